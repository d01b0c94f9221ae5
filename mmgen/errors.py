"""The errors a person sees: one clear line, and the exit code that goes with it."""


class MmgenError(Exception):
    """Something went wrong that a person can mend. Its text is one line that names the thing and says what to do."""

    exit_code = 1


class UsageError(MmgenError):
    """The command line, a request or a prompt file is wrong."""

    exit_code = 2


class ModelError(MmgenError):
    """A checkpoint is missing, damaged, unsafe or does not fit its own configuration."""

    exit_code = 3


class MachineError(MmgenError):
    """The device, the disk, the memory or a permission stands in the way."""

    exit_code = 3


class NonFiniteError(MmgenError):
    """A network returned NaN or infinity. A black picture is never written instead."""


def told(error: Exception) -> str:
    """What another library's error says, in one line that is not endless; its class where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__
