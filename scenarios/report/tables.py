"""The tables of a report, as text: HTML and Markdown show the same cells."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from itertools import compress

from ppfed.training.loop import TrainingConfig
from scenarios.declaration import Arm, Budget, Scale, Scenario, bundled
from scenarios.material import DIGITS
from scenarios.report import leakage
from scenarios.report.cells import Column, Row, Table
from scenarios.report.outcome import Outcome
from scenarios.report.statistics import CONFIDENCE, Accuracies, plan
from scenarios.report.verdict import Pair
from scenarios.report.wording import (
    FINDINGS,
    NOTHING,
    accuracy,
    count_bytes,
    count_weights,
    counted,
    duration,
    interval,
    interval_of,
    needed,
    percent,
    points,
    quoted,
)
from scenarios.results import Result

_DIGEST_SHOWN = 12
_UNSEEN_SPREAD = "unknown"
_SHOWN = {
    *("name", "group", "mode", "owners", "partition", "local_epochs", "wrong_key_owners", "published"),
    *("size", "channels", "budget_part"),
    *("cipher", "scope", "colour_shuffle", "adaptation", "adaptation_kind", "features"),
    *("augmentation", "padding", "mirrored_views"),
    "attacks",
}
"""Fields of an arm that have words of their own in the main table, or columns for what came of them; others are named
where they are not the default."""

_ATTACKER = {"attack", "targets", "attacker_images", "attack_preset"}
"""Fields of a budget that decide no accuracy."""

_BUDGET_WORDS = {
    "images": "training images",
    "held_out": "held-out images",
    "size": "image size",
    "epochs": "passes",
    "base_maps": "feature maps of the first stage",
    "nesterov": "Nesterov momentum",
    "targets": "attacked images",
    "attacker_images": "the attacker's own images",
}
_SQUARED = "\N{SUPERSCRIPT TWO}"


def settings(outcome: Outcome) -> list[tuple[str, str]]:
    """Say what was run, and how to run it again."""
    record, budget = outcome.record, outcome.budget
    sizes = sorted({arm.size or budget.size for arm in outcome.scenario.arms})
    kind = record.identity.device.partition(":")[0]
    data = [] if record.data_title == DIGITS else ["--data", "DIR"]
    command = [
        *("ppfed", "scenario", "run", _name_of(outcome.scenario), *data, "--scale", str(record.scale)),
        *("--seeds", str(outcome.seeds), "--device", kind),
        *(["--compile"] if record.identity.compilation else []),
    ]
    return [
        ("Scale", str(record.scale)),
        ("Data", f"{record.data_title}: {counted(len(record.classes), 'class', 'classes')}"),
        ("Images", f"{record.train_images:,} for training, {record.held_out_images:,} held out"),
        ("Image size", ", ".join(f"{size} x {size}" for size in sizes) + " pixels"),
        ("Passes over the images", ", ".join(map(str, sorted({arm.epochs(budget) for arm in outcome.scenario.arms})))),
        ("Batch", f"{budget.batch_size} images"),
        ("Learning rate", f"{budget.learning_rate:g}, schedule {budget.schedule}"),
        ("Momentum", f"{TrainingConfig.momentum:g}, {'Nesterov' if budget.nesterov else 'classical'}"),
        ("Network", f"ResNet-18 with {budget.base_maps} feature maps in its first stage (64 is the full width)"),
        *_attacker(outcome),
        ("Seeds", f"{outcome.seeds}; the scale asks for {budget.seeds}"),
        ("Device", record.identity.trained_on),
        ("Threads of each arm", f"{record.threads}: the processor's cores, divided by --jobs"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))),
        ("Begun", record.created),
        ("Digest of the settings", record.identity.settings[:_DIGEST_SHOWN]),
        ("Digest of the data", record.identity.data[:_DIGEST_SHOWN]),
        ("Digest of the code", record.identity.code[:_DIGEST_SHOWN]),
        ("Run it again", shlex.join(command)),
    ]


def _attacker(outcome: Outcome) -> list[tuple[str, str]]:
    if not outcome.scenario.is_attacked(outcome.record.scale):
        return []
    record, budget = outcome.record, outcome.budget
    own = counted(record.attacker_images, "image")
    attacked = f"{min(budget.targets, record.held_out_images):,} held-out images"
    return [
        ("Attacker", f"{own} of its own, of the training split; {attacked} attacked; preset {budget.attack_preset}")
    ]


def _name_of(scenario: Scenario) -> str:
    known = bundled().get(scenario.name)
    return scenario.name if known == scenario else f"{scenario.name}.toml"


def accuracies(outcome: Outcome) -> Table:
    """Make the main table, of arms with a result; of all while there is none. ``missing`` lists the others.

    Columns in which no arm has anything are left out: most scenarios have no published numbers.
    """
    columns = (
        Column("Arm"),
        Column("Who trains"),
        Column("Cipher"),
        Column("Adaptation"),
        Column("Augmentation"),
        Column("Accuracy, %", True),
        Column("95 % interval", True),
        Column("Published, %", True),
        Column("To published", True),
        Column("To plain", True),
        *leakage.columns(outcome),
        Column("Time", True),
        Column("To / from coordinator", True),
        Column("Weights", True),
    )
    arms = outcome.finished or outcome.scenario.arms
    rows = tuple(_arm_row(outcome, arm) for arm in _by_group(arms))
    used = [any(row.cells[place] != NOTHING for row in rows) for place in range(len(columns))]
    return Table(
        "All arms" if len(arms) == len(outcome.scenario.arms) else "Arms with a result",
        tuple(compress(columns, used)),
        tuple(Row(tuple(compress(row.cells, used)), row.group) for row in rows),
        tuple(_main_notes(outcome)),
    )


def _arm_row(outcome: Outcome, arm: Arm) -> Row:
    described = (arm.name, who(outcome, arm), cipher(arm), adaptation(arm), augmentation(arm))
    published = NOTHING if arm.published is None else f"{arm.published.accuracy:.2f} [{_source(outcome, arm)}]"
    found = outcome.results[arm.name]
    if not found:
        lacking = 5 + len(leakage.columns(outcome))
        return Row((*described, "no result", NOTHING, published, *[NOTHING] * lacking), arm.group)
    reached = outcome.accuracies[arm.name]
    control = outcome.control(arm)
    return Row(
        (
            *described,
            accuracy(reached),
            interval(reached),
            published,
            NOTHING if arm.published is None else points(reached.mean - arm.published.accuracy / 100),
            NOTHING if control is None else points(outcome.difference(control, arm).value),
            *leakage.cells(outcome, arm),
            duration(statistics.fmean(result.seconds for result in found)),
            _traffic(found),
            count_weights(statistics.fmean(result.parameters for result in found)),
        ),
        arm.group,
    )


def _traffic(found: Sequence[Result]) -> str:
    sent = statistics.fmean(result.bytes_to_coordinator for result in found)
    received = statistics.fmean(result.bytes_from_coordinator for result in found)
    return f"{count_bytes(sent)} / {count_bytes(received)}" if sent or received else NOTHING


def who(outcome: Outcome, arm: Arm) -> str:
    """Who trains on whose images, in a few words."""
    parts = [str(arm.mode)]
    if arm.owners > 1:
        parts += [f"{arm.owners} owners", arm.partition]
    if arm.local_epochs > 1:
        parts.append(f"{arm.local_epochs} local passes")
    if arm.wrong_key_owners:
        parts.append(f"{arm.wrong_key_owners} with a wrong key")
    if arm.size not in (None, outcome.budget.size):
        parts.append(f"{arm.size} pixels")
    if arm.budget_part < 1:
        parts.append(counted(arm.epochs(outcome.budget), "pass", "passes"))
    if arm.channels == 1:
        parts.append("grey images")
    parts += [
        _option(field, getattr(arm, field))
        for field, declared in Arm.model_fields.items()
        if field not in _SHOWN and getattr(arm, field) != declared.default
    ]
    return ", ".join(parts)


def _option(field: str, value: object) -> str:
    name = field.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}"


def cipher(arm: Arm) -> str:
    """Name, scope and colour shuffle."""
    if arm.spec is None:
        return arm.cipher
    return f"{arm.cipher}, {arm.scope}{', shuffle' if arm.colour_shuffle else ''}"


def augmentation(arm: Arm) -> str:
    """Name the place of augmentation, and what is not as usual."""
    parts = [str(arm.augmentation)]
    if arm.padding != Arm.model_fields["padding"].default:
        parts.append(f"padding {arm.padding}")
    if arm.mirrored_views:
        parts.append("mirrored views")
    return ", ".join(parts)


def adaptation(arm: Arm) -> str:
    """Name the adaptation network and the input features."""
    maps = "-".join(str(maps) for maps in arm.adaptation)
    network = f"{arm.adaptation_kind} {maps}" if maps else "none"
    default = Arm.model_fields["features"].default
    return network if arm.features == default else f"{network}, {arm.features}"


def _by_group(arms: Sequence[Arm]) -> list[Arm]:
    """Arms of a group together; groups in the order of their first arms."""
    groups = list(dict.fromkeys(arm.group for arm in arms))
    return sorted(arms, key=lambda arm: groups.index(arm.group))


def sources(outcome: Outcome) -> list[str]:
    """List sources of published numbers, in the order in which the main table names them."""
    return list(
        dict.fromkeys(arm.published.source for arm in _by_group(outcome.scenario.arms) if arm.published is not None)
    )


def _source(outcome: Outcome, arm: Arm) -> int:
    return sources(outcome).index(arm.published.source) + 1 if arm.published is not None else 0


def _main_notes(outcome: Outcome) -> list[str]:
    notes = [
        "Accuracy on the held-out images after the last pass: mean \N{PLUS-MINUS SIGN} standard deviation over seeds "
        "(number of seeds). The 95 % interval holds two errors: the spread over seeds, s / sqrt(n), and the binomial "
        "error of the held-out images, sqrt(p (1 - p) / m) with two right and two wrong answers added, which all seeds "
        "share. The half width t(n - 1) s / sqrt(n) for the first and 1.96 times the second add as squares.",
        "Differences are in percentage points; a minus means that this arm is less accurate. Time and traffic are of "
        "one seed, on average; traffic counts what crosses the network to and from the coordinator.",
    ]
    if any(one.seeds == 1 for one in outcome.accuracies.values()):
        notes.append(
            "An arm with one seed has no known spread over seeds: its interval is that of the held-out images alone, "
            "and too narrow."
        )
    notes += leakage.notes(outcome)
    controls = dict.fromkeys(found.name for arm in outcome.finished if (found := outcome.control(arm)) is not None)
    if controls:
        notes.append(
            f"Plain: {', '.join(quoted(name) for name in controls)}. An arm stands beside the unencrypted arm of the "
            "same image size that has most in common with it (mode, owners, partition, augmentation, schedule, crops, "
            "precision)."
        )
    if sources(outcome):
        notes.append(f"Published: {'; '.join(f'[{n}] {text}' for n, text in enumerate(sources(outcome), 1))}.")
        notes.append(_budget_note(outcome))
    return notes


def _budget_note(outcome: Outcome) -> str:
    """Say in what this run differs from the published budget."""
    published, spent = outcome.scenario.budget(Scale.PAPER), outcome.budget
    differing = budget_differences(published, spent.model_copy(update={f: getattr(published, f) for f in _ATTACKER}))
    if not differing:
        return (
            "This run had the budget that the scenario gives as the published one. Each source says what else differed."
        )
    return (
        "The published numbers were measured with another budget, so the distance to them is not only the method's: "
        + "; ".join(f"{field} {published}, here {here}" for field, published, here in differing)
        + "."
    )


def budget_differences(first: Budget, second: Budget) -> list[tuple[str, str, str]]:
    """Name what differs between two budgets, seeds aside."""

    def shown(value: object) -> str:
        if value is None:
            return "all"
        return f"{value:,}" if type(value) is int else str(value)

    return [
        (_BUDGET_WORDS.get(field, field.replace("_", " ")), shown(getattr(first, field)), shown(getattr(second, field)))
        for field in Budget.model_fields
        if field != "seeds" and getattr(first, field) != getattr(second, field)
    ]


def pairs(outcome: Outcome, caption: str, first: str, chosen: Sequence[Pair]) -> Table:
    """Whether the two arms of each pair differ, and what would tell."""
    columns = (
        Column(first),
        Column("Second"),
        Column("Difference", True),
        Column("95 % interval", True),
        Column("Seeds alone", True),
        Column("Finding"),
        Column("Needed to separate them"),
    )
    rows = []
    for pair in chosen:
        found = outcome.difference(*pair)
        alone = found.half_over_seeds
        rows.append(
            Row(
                (
                    pair[0].name,
                    pair[1].name,
                    points(found.value),
                    interval_of(found),
                    _UNSEEN_SPREAD if alone is None else f"\N{PLUS-MINUS SIGN} {percent(alone)}",
                    FINDINGS[found.finding],
                    needed(found, plan(found)),
                )
            )
        )
    return Table(caption, columns, tuple(rows))


def how_compared(outcome: Outcome, compared: int) -> list[str]:
    """How pairs are judged, and with which formula seeds are planned."""
    notes = [
        "A difference is the second arm's mean accuracy minus the first's, in percentage points. Where both arms were "
        "run under the same seeds, two or more, the differences are taken seed by seed, and what a seed does to both "
        "arms cancels out; else the two spreads are added (Welch).",
        "The 95 % interval holds the spread over seeds and the error of the held-out images, "
        "b = p1 (1 - p1) / m + p2 (1 - p2) / m, as if each arm had been measured on images of its own. Both see the "
        "same images and mostly err on the same ones, so this is cautious. The column \N{LEFT DOUBLE QUOTATION MARK}"
        "seeds alone\N{RIGHT DOUBLE QUOTATION MARK} gives the interval's half width if these held-out images were all "
        "that matter.",
        f"Seeds needed: the smallest n with t(n - 1){_SQUARED} s{_SQUARED} / n + 1.96{_SQUARED} b < d{_SQUARED}, for "
        "the observed difference d and the observed standard deviation s of one seed's difference. Where b alone is "
        "too large no number of seeds is enough, and more held-out images are asked for. A difference seen by chance "
        "is planned for like a true one: take the numbers as orders of magnitude.",
    ]
    if any(one.seeds == 1 for one in outcome.accuracies.values()):
        notes.append(
            "Some arms have one seed only: how much seeds differ is then unknown, only the error of the held-out "
            "images is known, and no difference counts as beyond chance."
        )
    if compared > 1:
        notes.append(
            f"At {100 * CONFIDENCE:g} % about {compared * (1 - CONFIDENCE):.1f} of {compared} comparisons would come "
            "out beyond chance if nothing differed."
        )
    return notes


def missing(outcome: Outcome) -> Table | None:
    """Arms and seeds without a result."""
    rows = []
    slugs = {arm.name: arm.slug for arm in outcome.scenario.arms}
    for name, seeds in outcome.missing.items():
        begun = [seed for seed in seeds if (name, seed) in outcome.begun]
        logs = ", ".join(f"arms/{slugs[name]}-seed-{seed}.log" for seed in begun)
        state = f"begun and not ended; see {logs}" if begun else "not begun"
        rows.append(Row((name, ", ".join(str(seed) for seed in seeds), state)))
    if not rows:
        return None
    return Table("Arms without a result", (Column("Arm"), Column("Seeds"), Column("State")), tuple(rows))


def queries(outcome: Outcome) -> Table | None:
    """Accuracies on further sets of held-out images."""
    rows = []
    for arm in outcome.finished:
        found = outcome.results[arm.name]
        for name in dict.fromkeys(name for result in found for name in result.query_accuracies):
            values = {one.seed: one.query_accuracies[name] for one in found if name in one.query_accuracies}
            reached = Accuracies(values, outcome.accuracies[arm.name].images)
            rows.append(Row((arm.name, name, accuracy(reached), interval(reached))))
    if not rows:
        return None
    columns = (Column("Arm"), Column("Queries"), Column("Accuracy, %", True), Column("95 % interval", True))
    return Table("Accuracy on further queries", columns, tuple(rows))


def owners(outcome: Outcome) -> Table | None:
    """Accuracies of owners that train alone."""
    rows = []
    for arm in outcome.finished:
        values = [value for result in outcome.results[arm.name] for value in result.owner_accuracies]
        if values:
            shown = (statistics.fmean(values), min(values), max(values))
            rows.append(Row((arm.name, str(arm.owners), *(percent(value) for value in shown))))
    if not rows:
        return None
    columns = (
        Column("Arm"),
        Column("Owners", True),
        Column("Mean, %", True),
        Column("Lowest, %", True),
        Column("Highest, %", True),
    )
    note = "Each owner trains on its own images and is measured on all held-out images; over all owners and seeds."
    return Table("Owners on their own", columns, tuple(rows), (note,))
