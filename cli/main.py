"""The command `mmgen`: it finds the subcommands, and turns every error into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from mmgen import __version__
from mmgen.cli.terminal import Terminated, note
from mmgen.errors import MachineError, MmgenError

COMMANDS = {
    "generate": "mmgen.cli.generate:generate",
    "batch": "mmgen.cli.batch:batch",
    "plan": "mmgen.cli.plan:plan",
    "sweep": "mmgen.cli.sweep:sweep",
    "edit": "mmgen.cli.edit:edit",
    "upscale": "mmgen.cli.upscale:upscale",
    "vary": "mmgen.cli.unclip:vary",
    "mix": "mmgen.cli.unclip:mix",
    "interpolate": "mmgen.cli.unclip:interpolate",
    "diff-text": "mmgen.cli.unclip:diff_text",
    "rerun": "mmgen.cli.rerun:rerun",
    "inspect": "mmgen.cli.inspect:inspect",
    "diff": "mmgen.cli.diff:diff",
    "grid": "mmgen.cli.grid:grid",
    "gallery": "mmgen.cli.gallery:gallery",
    "strip": "mmgen.cli.strip:strip",
    "models": "mmgen.cli.models:models",
    "doctor": "mmgen.cli.doctor:doctor",
    "train": "mmgen.cli.train:train",
    "eval": "mmgen.cli.eval:evaluate",
}
INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141  # 128 + the signal's number, as shells count


class LazyGroup(click.Group):
    """A group that imports a command's file when the command is used or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mmgen", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, envvar="MMGEN_DEBUG", help="Show where an error came from.")
def cli(debug: bool) -> None:
    """Pictures from words, with a chain of small diffusion stages.

    \b
    mmgen generate "two cats and a red balloon on the beach"
    """


def run() -> NoReturn:
    """The entry point of the installed command."""
    signal.signal(signal.SIGTERM, _terminate)
    _prepare_streams()
    sys.exit(main(sys.argv[1:], quiet=True))


def main(args: Sequence[str], *, quiet: bool = False) -> int:
    """Run one command line and return its exit code; every error is one line on stderr.

    quiet: keep what libraries print for programmers from the terminal, for the rest of the process.
    """
    debug = False
    try:
        with cli.make_context("mmgen", list(args)) as context:
            debug = bool(context.params["debug"])
            if quiet and not debug:
                _silence_libraries()
            cli.invoke(context)
            sys.stdout.flush()
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        if debug:
            traceback.print_exc()
        return _report(error)


def _report(error: BaseException) -> int:
    """Say on stderr what went wrong, in one line; the exit code that goes with it."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case BrokenPipeError():
            _drop_stdout()
            return BROKEN_PIPE
        case KeyboardInterrupt() | click.Abort():
            return _say("interrupted: what was finished stays", INTERRUPTED)
        case Terminated():
            return _say("terminated: what was finished stays", TERMINATED)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT, filename=None):  # of a file, a MachineError says it
            _drop_stdout()
            full = "standard output cannot be written: the disk is full: free some space, or choose another place"
            return _say(full, MachineError.exit_code)
        case MmgenError():
            return _say(str(error), error.exit_code)
        case click.ClickException():
            return _say(_click_text(error), error.exit_code)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _say("out of memory: choose a smaller --size, or another --device", MachineError.exit_code)
    return _say(f"{type(error).__name__}: {error} (MMGEN_DEBUG=1 shows where)", 1)


def _click_text(error: click.ClickException) -> str:
    command = getattr(getattr(error, "ctx", None), "command_path", "mmgen")
    return f"{error.format_message().rstrip('.')} ({command} --help lists what there is)"


def _say(text: str, exit_code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        note(f"error: {text}")
    return exit_code


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _drop_stdout() -> None:
    """Send what Python may still flush at its end to nowhere: the reader has gone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_streams() -> None:
    """A prompt may hold characters that the terminal cannot show: show their numbers, do not fail."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def _silence_libraries() -> None:
    """Advice that libraries print for programmers does not help a person at a terminal."""
    warnings.filterwarnings("ignore")
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # for loading what is here already
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    run()
