"""Two runs side by side."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from scenarios.declaration import Arm, Scale
from scenarios.report.cells import Column, Row, Table
from scenarios.report.outcome import Outcome
from scenarios.report.statistics import Difference, Finding, difference
from scenarios.report.tables import budget_differences
from scenarios.report.wording import FINDINGS, NOTHING, accuracy, counted, interval_of, listed, points

_DIGEST_SHOWN = 12


@dataclass(frozen=True)
class Sides:
    """Two runs.

    Attributes
    ----------
    first, second : Outcome
        Shown as A and B.
    """

    first: Outcome
    second: Outcome

    @property
    def title(self) -> str:
        """Both titles, or the one they share."""
        titles = dict.fromkeys(side.scenario.title for side in (self.first, self.second))
        return f"Two runs side by side: {' / '.join(titles)}"

    @property
    def is_smoke(self) -> bool:
        """Whether one of them says nothing about accuracy."""
        return Scale.SMOKE in {self.first.record.scale, self.second.record.scale}

    def verdict(self) -> list[str]:
        """Say in words what the runs have in common, and what differs."""
        found = self._differences()
        sentences = [self._alike()]
        if not found:
            return [*sentences, "No arm has results in both runs, so there is nothing to compare."]
        if self.is_smoke:
            return sentences
        counts = Counter(each.finding for each in found.values())
        words = {
            Finding.BEYOND: "beyond chance",
            Finding.WITHIN: "by no more than chance allows",
            Finding.ONE_SEED: "by more than the held-out images explain, with an unknown spread over seeds",
        }
        parts = [f"{counts[finding]} {text}" for finding, text in words.items() if counts[finding]]
        opening = f"Of {counted(len(found), 'arm')} with results in both runs"
        return [*sentences, f"{opening}, B differs from A in {listed(parts)}."]

    def tables(self) -> list[Table]:
        """List what the runs are, what differs, and all arms."""
        found = [self._runs(), self._declared(), self._arms()]
        return [table for table in found if table.rows]

    def _alike(self) -> str:
        first, second = self.first.record, self.second.record
        differing = [
            name
            for name in type(first.identity).model_fields
            if getattr(first.identity, name) != getattr(second.identity, name)
        ]
        if not differing:
            return "The runs have the same settings, data, code and device."
        sentence = f"The runs differ in {listed(differing)}."
        if "data" in differing:
            sentence += " Their accuracies were measured on different images."
        return sentence

    def _runs(self) -> Table:
        rows = []
        for name, first, second in zip(_FACTS, _facts(self.first), _facts(self.second), strict=True):
            rows.append(Row((name, first, second, "same" if first == second else "differs")))
        columns = (Column("What"), Column("A"), Column("B"), Column("Same"))
        return Table("The runs", columns, tuple(rows))

    def _declared(self) -> Table:
        """List settings that differ, of the budget and of arms with the same name."""
        rows = [Row(("budget", *differing)) for differing in budget_differences(self.first.budget, self.second.budget)]
        others = {arm.name: arm for arm in self.second.scenario.arms}
        for arm in self.first.scenario.arms:
            other = others.get(arm.name)
            if other is not None:
                rows += [Row((arm.name, *differing)) for differing in _arm_differences(arm, other)]
        columns = (Column("Where"), Column("Setting"), Column("A"), Column("B"))
        return Table("Settings that differ", columns, tuple(rows))

    def _differences(self) -> dict[str, Difference]:
        first, second = self.first.accuracies, self.second.accuracies
        return {name: difference(first[name], second[name]) for name in first if name in second}

    def _arms(self) -> Table:
        names = dict.fromkeys(arm.name for side in (self.first, self.second) for arm in side.scenario.arms)
        found = self._differences()
        rows = []
        for name in names:
            each = found.get(name)
            if each is None:
                shown = (NOTHING, NOTHING, self._where(name))
            else:
                shown = (points(each.value), interval_of(each), FINDINGS[each.finding])
            rows.append(Row((name, _reached(self.first, name), _reached(self.second, name), *shown)))
        columns = (
            Column("Arm"),
            Column("A: accuracy, %", True),
            Column("B: accuracy, %", True),
            Column("B minus A", True),
            Column("95 % interval", True),
            Column("Finding"),
        )
        notes = (
            "Mean \N{PLUS-MINUS SIGN} standard deviation over seeds (number of seeds); differences in percentage "
            "points. Where both runs have the same seeds, two or more, differences are taken seed by seed; else the "
            "two spreads are added (Welch). The interval adds the error of the held-out images, as if each run had "
            "images of its own.",
        )
        return Table("All arms", columns, tuple(rows), notes)

    def _where(self, name: str) -> str:
        """Say why an arm cannot be compared."""
        sides = {"A": self.first, "B": self.second}
        undeclared = [side for side, outcome in sides.items() if name not in outcome.results]
        if undeclared:
            return f"not declared in {undeclared[0]}"
        return f"no result in {listed([side for side, outcome in sides.items() if not outcome.results[name]])}"


_FACTS = (
    "Scenario",
    "Scale",
    "Data",
    "Training images",
    "Held-out images",
    "Seeds",
    "Device",
    "Threads of each arm",
    "Versions",
    "Begun",
    "Digest of the settings",
    "Digest of the data",
    "Digest of the code",
)


def _facts(outcome: Outcome) -> tuple[str, ...]:
    record = outcome.record
    return (
        outcome.scenario.name,
        str(record.scale),
        record.data_title,
        f"{record.train_images:,}",
        f"{record.held_out_images:,}",
        f"{outcome.seeds}",
        record.identity.trained_on,
        f"{record.threads}",
        ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())),
        record.created,
        record.identity.settings[:_DIGEST_SHOWN],
        record.identity.data[:_DIGEST_SHOWN],
        record.identity.code[:_DIGEST_SHOWN],
    )


def _reached(outcome: Outcome, name: str) -> str:
    found = outcome.accuracies.get(name)
    return NOTHING if found is None else accuracy(found)


def _arm_differences(first: Arm, second: Arm) -> list[tuple[str, str, str]]:
    return [
        (field.replace("_", " "), _shown(getattr(first, field)), _shown(getattr(second, field)))
        for field in Arm.model_fields
        if field not in {"name", "group", "published"} and getattr(first, field) != getattr(second, field)
    ]


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(str(part) for part in value) or "none"
    return NOTHING if value is None else str(value)
