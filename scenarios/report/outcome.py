"""What a run has brought so far: its arms, their results, and which arm is whose control."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from ppfed.errors import DataError, UsageError
from scenarios import results
from scenarios.declaration import Arm, Budget, Scenario
from scenarios.report.statistics import Accuracies, Difference, difference
from scenarios.results import RESULTS_FILE, RUN_FILE, Result, RunRecord


@dataclass(frozen=True)
class Outcome:
    """A run and its results.

    Attributes
    ----------
    record : RunRecord
    results : dict of str to tuple of Result
        By arm, in the order of declaration; each arm's by seed. An arm without results has an empty tuple.
    begun : frozenset of (str, int)
        Arms and seeds that left a log.
    """

    record: RunRecord
    results: Mapping[str, tuple[Result, ...]]
    begun: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the folder of a run.

        Raises
        ------
        UsageError
            If it is no such folder.
        DataError
            If its files are damaged, or do not belong together.
        """
        record = RunRecord.read(folder) if folder.is_dir() else None
        if record is None:
            raise UsageError(
                f"{folder} is not the folder of a scenario run: it has no {RUN_FILE}",
                hint="Name the folder that 'ppfed scenario run' printed.",
            )
        by_arm: dict[str, dict[int, Result]] = {arm.name: {} for arm in record.scenario.arms}
        for result in results.read(folder):
            found = by_arm.get(result.arm)
            if found is None or result.seed in found:
                what = "of an arm that the run does not declare" if found is None else "twice of one arm and seed"
                raise DataError(
                    f"{folder / RESULTS_FILE} holds results {what}",
                    hint=f"It was edited, or belongs to another {RUN_FILE}. Restore both, or run the scenario again.",
                )
            found[result.seed] = result
        count = _seeds(by_arm)
        return cls(
            record,
            {name: tuple(found[seed] for seed in sorted(found)) for name, found in by_arm.items()},
            frozenset(
                (arm.name, seed)
                for arm in record.scenario.arms
                for seed in range(count)
                if results.log_path(folder, arm.slug, seed).exists()
            ),
        )

    @property
    def scenario(self) -> Scenario:
        """What was declared."""
        return self.record.scenario

    @property
    def budget(self) -> Budget:
        """What was spent on each arm."""
        return self.scenario.budget(self.record.scale)

    @property
    def seeds(self) -> int:
        """How many seeds each arm should have: seeds count from 0, and all arms take one before any takes the next."""
        return _seeds({name: {result.seed for result in found} for name, found in self.results.items()})

    @cached_property
    def finished(self) -> tuple[Arm, ...]:
        """Arms with one result or more."""
        return tuple(arm for arm in self.scenario.arms if self.results[arm.name])

    @cached_property
    def missing(self) -> dict[str, tuple[int, ...]]:
        """Seeds that have no result, by arm."""
        lacking = {
            name: tuple(sorted(set(range(self.seeds)) - {result.seed for result in found}))
            for name, found in self.results.items()
        }
        return {name: seeds for name, seeds in lacking.items() if seeds}

    @cached_property
    def accuracies(self) -> dict[str, Accuracies]:
        """Of each arm with a result."""
        return {
            arm.name: Accuracies(
                {result.seed: result.accuracy for result in self.results[arm.name]},
                min(result.held_out_images for result in self.results[arm.name]),
            )
            for arm in self.finished
        }

    @cached_property
    def ranked(self) -> tuple[Arm, ...]:
        """Arms with a result, the most accurate first; equal ones as declared."""
        return tuple(sorted(self.finished, key=lambda arm: -self.accuracies[arm.name].mean))

    def control(self, arm: Arm) -> Arm | None:
        """Find what an arm loses to: the unencrypted arm that has most in common with it.

        The size must be the same. Then count, in this order: mode, owners, partition, place of augmentation, local
        passes, strategy, schedule and its rate, crops, precision, group, and the order of declaration. The adaptation
        network does not count: it is there because of the cipher.
        """
        if arm.is_plain:
            return None
        plain = [other for other in self.finished if other.is_plain and other.size == arm.size]
        return max(plain, key=lambda other: _common(arm, other), default=None)

    def difference(self, first: Arm, second: Arm) -> Difference:
        """How far the second arm is above the first."""
        return difference(self.accuracies[first.name], self.accuracies[second.name])


def _seeds(by_arm: Mapping[str, Collection[int]]) -> int:
    return max((seed for seeds in by_arm.values() for seed in seeds), default=0) + 1


_RECIPE = ("schedule", "learning_rate", "first_crop", "precision")
_COMMON = ("mode", "owners", "partition", "augmentation", "local_epochs", "strategy", *_RECIPE, "group")


def _common(first: Arm, second: Arm) -> tuple[bool, ...]:
    return tuple(getattr(first, field) == getattr(second, field) for field in _COMMON)
