"""The chain of stages, checked before any weight is read."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from mmgen.errors import UsageError
from mmgen.noise import Noise
from mmgen.pipelines.stage import Draft, Stage
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings


class Cascade:
    """Ordered stages. Raises UsageError when a stage needs what no stage before it gives."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        known = {"prompts"}
        for stage in self.stages:
            if missing := sorted(stage.needs - known):
                raise UsageError(
                    f"stage {stage.name!r} needs {' and '.join(missing)}, but the stages before it give only "
                    f"{', '.join(sorted(known))}. Put a stage that gives {missing[0]} before it"
                )
            known |= stage.gives
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise UsageError(f"two stages have one name: {', '.join(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The stages' names, in order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the pictures the chain can end with, smallest first."""
        return tuple(stage.size for stage in self.stages if stage.size is not None)

    def up_to(self, size: int) -> Cascade:
        """The chain that ends with pictures of this side. Raises UsageError if none does."""
        for i, stage in enumerate(self.stages):
            if stage.size == size:
                return Cascade(self.stages[: i + 1])
        raise UsageError(f"no stage gives pictures of {size} px: choose {' or '.join(map(str, self.sizes))}")

    def run(
        self, draft: Draft, stages: Mapping[str, StageSettings], seeds: Sequence[int]
    ) -> Generator[Step, None, Draft]:
        """Every stage in turn, each with its own noise. Yields every step of every stage."""
        for stage in self.stages:
            settings = stages.get(stage.name, StageSettings())
            draft = yield from stage.run(draft, settings, Noise(seeds, stage.name))
        return draft
