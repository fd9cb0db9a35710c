"""Time to accuracy: how soon arms that differ in their passes reach given accuracies."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ppfed.training.loop import TrainingConfig
from scenarios.declaration import Arm, Budget
from scenarios.report.cells import Column, Row, Table
from scenarios.report.outcome import Outcome
from scenarios.report.wording import NOTHING, duration, percent, quoted
from scenarios.results import Result

_PARTS = (0.8, 0.9, 0.95, 0.99)
"""Of the best arm's accuracy in a group: how soon is each arm so good?"""


def is_compared(outcome: Outcome) -> bool:
    """Whether the scenario asks for it: its arms differ in their passes."""
    return len({arm.epochs(outcome.budget) for arm in outcome.scenario.arms}) > 1


def seconds_until(_arm: Arm, _budget: Budget, result: Result, passes: int) -> float:
    """Time from the start to the end of a pass, measuring included."""
    return sum(row.seconds for row in result.curve if row.passes <= passes)


def computation_until(arm: Arm, budget: Budget, _result: Result, passes: int) -> float:
    """Count computation up to the end of a pass, in passes over whole images: a crop is its part of the pixels."""
    config = TrainingConfig(epochs=arm.epochs(budget), first_crop=arm.first_crop)
    return sum(config.crop_at(epoch) ** 2 for epoch in range(passes))


def table(outcome: Outcome) -> Table | None:
    """List when each arm reached parts of its group's best accuracy; None where arms do not differ in their passes."""
    arms = [arm for arm in outcome.finished if outcome.results[arm.name][0].curve]
    if not arms or not is_compared(outcome):
        return None
    rows, notes = [], []
    for group in dict.fromkeys(arm.group for arm in arms):
        members = [arm for arm in arms if arm.group == group]
        best = max(members, key=lambda arm: outcome.accuracies[arm.name].mean)
        highest = outcome.accuracies[best.name].mean
        rows += [_row(outcome, arm, highest) for arm in members]
        steps = ", ".join(f"{100 * part:g} % of it are {percent(part * highest)} %" for part in _PARTS)
        of = f" of {quoted(group)}" if group else ""
        notes.append(f"Most accurate at its end{of} is {quoted(best.name)} with {percent(highest)} %; {steps}.")
    columns = (
        Column("Arm"),
        Column("At its end, %", True),
        Column("Passes / computation / time", True),
        *(Column(f"To {100 * part:g} % of the best", True) for part in _PARTS),
    )
    notes += [
        "Passes over the images / computation in passes over whole images / time, up to the first pass after which the "
        "mean over seeds is so accurate. Computation counts pixels: a crop of 24 of 32 pixels a side is "
        "(24 / 32)\N{SUPERSCRIPT TWO} of a whole image. Time is the mean over seeds, includes measuring on the "
        "held-out images after each pass, and depends on what else the machine did.",
    ]
    return Table("Time to accuracy", columns, tuple(rows), tuple(notes))


def _row(outcome: Outcome, arm: Arm, highest: float) -> Row:
    results, budget = outcome.results[arm.name], outcome.budget
    curve = _mean_curve(results)

    def taken(passes: int) -> str:
        computation = computation_until(arm, budget, results[0], passes)
        seconds = statistics.fmean(seconds_until(arm, budget, result, passes) for result in results)
        return f"{passes} / {computation:.1f} / {duration(seconds)}"

    reached = [
        min((passes for passes, mean in curve.items() if mean >= part * highest), default=None) for part in _PARTS
    ]
    return Row(
        (
            arm.name,
            percent(outcome.accuracies[arm.name].mean),
            taken(results[0].curve[-1].passes),
            *(NOTHING if passes is None else taken(passes) for passes in reached),
        ),
        arm.group,
    )


def _mean_curve(results: Sequence[Result]) -> dict[int, float]:
    """Mean accuracy over seeds after each pass that was measured under all of them."""
    found = [{row.passes: row.accuracy for row in result.curve if row.accuracy is not None} for result in results]
    return {
        passes: statistics.fmean(one[passes] for one in found)
        for passes in sorted(set.intersection(*(set(one) for one in found)))
    }
