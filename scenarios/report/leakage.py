"""What attackers got, beside the accuracy: cells of the main table, a card for each attacked arm, and the attacks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppfed.federation import Exchange
from ppfed.images.types import UInt8Array
from ppfed.leakage.metrics import upright
from ppfed.leakage.record import (
    CIPHERTEXT_KEY,
    ORIGINAL_KEY,
    AttackName,
    AttackOutcome,
    LeakageRecord,
    Measure,
    Resemblance,
)
from ppfed.leakage.wording import (
    ATTACKS,
    CIPHERTEXT,
    PERFECT,
    RIGHT_ONE_BY_CANDIDATES,
    RIGHT_ONE_RESTORED,
    part_words,
    sentence,
    title,
)
from scenarios.attacking import load_pictures
from scenarios.declaration import MIXING, Arm, Mode
from scenarios.report.cells import Column, Row, Table
from scenarios.report.outcome import Outcome
from scenarios.report.pictures import png_of
from scenarios.report.wording import NOTHING, duration, minus, quoted
from scenarios.results import pictures_path

RESTORED, BY_CANDIDATES = "Right one, by the restored picture", "Right one, by candidates"
"""Heads of columns."""

_SENT_IMAGES = (Mode.CENTRALIZED, Mode.POOLED)
_AS_SENT = "none needed"
_MOST_NEEDS = 2
"""What an attack needs differs with scope and setting; so many ways of saying it are enough."""
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_STRIP_VALUES = 6 * 32 * 32
"""Pixels in a strip of pictures: what is encrypted does not compress, and a report stays small."""


@dataclass(frozen=True)
class Leak:
    """What attackers without the key got of an arm, on average over seeds.

    Attributes
    ----------
    attack : str
        The strongest by SSIM, in words; or that none does better than what is sent.
    ssim, ciphertext : float
        Structural similarity of what it restored, and of what is sent.
    reidentified : float
        The most that any of them, or what is sent itself, tells of which image it is, by the restored picture, 0 to 1.
    candidates : int
        Of so many.
    by_candidates : float or None
        How often the right one of so many is found among pictures that the attacker has, 0 to 1; None where that was
        not measured, as in older runs, or no way is known.
    exchange : str
        What owners send.
    """

    attack: str
    ssim: float
    ciphertext: float
    reidentified: float
    candidates: int
    by_candidates: float | None
    exchange: str


@dataclass(frozen=True)
class Strip:
    """Pictures of one kind in a row.

    Attributes
    ----------
    caption : str
    numbers : str
    png : bytes
    """

    caption: str
    numbers: str
    png: bytes


@dataclass(frozen=True)
class Card:
    """What attacks on one arm got.

    Attributes
    ----------
    arm : str
    sentence : str
        In plain words.
    strips : tuple of Strip
        Originals first; empty where the pictures are not at hand.
    table : Table
    """

    arm: str
    sentence: str
    strips: tuple[Strip, ...]
    table: Table


def leaks(outcome: Outcome) -> dict[str, Leak]:
    """Say what attackers got of each arm, by name; arms of which nothing was measured are left out.

    A cipher leaks the same whatever network is trained: an arm that was not attacked itself has the leak of the first
    that was, with the same cipher, image size and exchange.
    """
    return {arm.name: _leak(found) for arm in outcome.finished if (found := _records(outcome, arm))}


def columns(outcome: Outcome) -> list[Column]:
    """Columns of the main table: none in a run without attacks."""
    found = []
    every = leaks(outcome)
    if every:
        found += [Column("Strongest attack without the key"), Column("SSIM (as sent)", True), Column(RESTORED, True)]
    if matched(every.values()):
        found.append(Column(BY_CANDIDATES, True))
    if _has_membership(outcome):
        found.append(Column("Membership AUC", True))
    return found


def cells(outcome: Outcome, arm: Arm) -> list[str]:
    """Fill these columns for an arm with results."""
    found: list[str] = []
    every = leaks(outcome)
    if every:
        leak = every.get(arm.name)
        if leak is None:
            found += [NOTHING] * 3
        else:
            found += [
                leak.attack,
                f"{number(leak.ssim)} ({number(leak.ciphertext)})",
                f"{part_words(leak.reidentified)} of {leak.candidates:,}",
            ]
        if matched(every.values()):
            found.append(NOTHING if leak is None else by_candidates(leak))
    if _has_membership(outcome):
        values = [result.membership.auc for result in outcome.results[arm.name] if result.membership is not None]
        found.append(f"{statistics.fmean(values):.3f}" if values else NOTHING)
    return found


def notes(outcome: Outcome) -> list[str]:
    """Explain these columns."""
    found = []
    if leaks(outcome):
        found.append(
            "Leakage, measured on held-out images: of all attacks that need no key, the one that restores most by SSIM "
            "(structural similarity of the grey images, 1 is a copy; in brackets what is sent, before any attack, or "
            "what the owner holds, where no image is sent); and how often what any of them restored tells which of so "
            "many images it is. An arm that was not attacked itself stands with the leakage of the arm with the same "
            "cipher, image size and exchange. A stronger attack may exist."
        )
    if matched(leaks(outcome).values()):
        found.append(
            "Right one, by candidates: how often an attacker that has so many pictures, the original among them, tells "
            "which of them was sent, by what is the same of both whatever the key; it restores nothing."
        )
    if any(arm.cipher == MIXING for arm in outcome.finished):
        found.append("Pixel block mixing has no key: its mixed training images are compared with the original ones.")
    if _has_membership(outcome):
        found.append(
            "Membership AUC: how often the trained network has a smaller loss on one of its training images than on "
            "one that was held out; 0.5 is chance."
        )
    return found


def cards(outcome: Outcome, folder: Path) -> list[Card]:
    """Show what attacks on each arm got under the first seed.

    Parameters
    ----------
    outcome : Outcome
    folder : Path
        Of the run: the pictures lie in it.
    """
    found = []
    for arm in outcome.finished:
        result = next((one for one in outcome.results[arm.name] if one.leakage is not None), None)
        if result is not None and result.leakage is not None:
            pictures = load_pictures(pictures_path(folder, arm.slug, result.seed))
            record = result.leakage
            found.append(Card(arm.name, sentence(record), tuple(_strips(record, pictures)), _table(arm, record)))
    return found


def attacks_table(outcome: Outcome) -> Table | None:
    """Say what each attack does, what it needs, and where it was published."""
    needs: dict[AttackName, list[str]] = {}
    for arm in outcome.finished:
        for record in _own(outcome, arm):
            for one in record.attacks:
                known = needs.setdefault(one.attack, [])
                if one.needs not in known and len(known) < _MOST_NEEDS:
                    known.append(one.needs)
    if not needs:
        return None
    rows = tuple(
        Row((ATTACKS[name].title, ATTACKS[name].line, "; or ".join(needs[name]), ATTACKS[name].source))
        for name in AttackName
        if name in needs
    )
    named = (Column("Attack"), Column("What the attacker does"), Column("What it needs"), Column("Source"))
    return Table("The attacks", named, rows)


def matched(every: Iterable[Leak]) -> bool:
    """Tell whether candidates were compared for any of these."""
    return any(leak.by_candidates is not None for leak in every)


def by_candidates(leak: Leak) -> str:
    """Write how often the right one of so many is found among candidates."""
    if leak.by_candidates is None:
        return NOTHING
    return f"{part_words(leak.by_candidates)} of {leak.candidates:,}"


def number(value: float) -> str:
    """Write an SSIM or the like: ``0.467``."""
    return minus(f"{value:.3f}")


def _own(outcome: Outcome, arm: Arm) -> list[LeakageRecord]:
    return [result.leakage for result in outcome.results[arm.name] if result.leakage is not None]


def _records(outcome: Outcome, arm: Arm) -> list[LeakageRecord]:
    """Return the arm's records, one for each seed; else of another with the same cipher, shape and exchange."""
    alike = (other for other in outcome.finished if arm.mode is not Mode.ALONE and _leaks_alike(outcome, arm, other))
    every = (_own(outcome, one) for one in (arm, *alike))
    return next((records for records in every if records), [])


def _leaks_alike(outcome: Outcome, arm: Arm, other: Arm) -> bool:
    both_send_images = arm.mode in _SENT_IMAGES and other.mode in _SENT_IMAGES
    shapes = {one.shape(outcome.budget) for one in (arm, other)}
    return (
        (both_send_images or arm.mode is other.mode)
        and (arm.cipher, arm.spec) == (other.cipher, other.spec)
        and len(shapes) == 1
    )


def _leak(records: Sequence[LeakageRecord]) -> Leak:
    first, strongest = records[0], records[0].strongest
    without_key = [_without_key(record) for record in records]
    # Where no image is sent, the encrypted one stands for comparison and nobody has it.
    beaten = strongest is None or (
        first.exchange is Exchange.IMAGES and strongest.resemblance.ssim.mean <= first.ciphertext.ssim.mean
    )
    return Leak(
        attack=_AS_SENT if strongest is None or beaten else title(strongest),
        ssim=statistics.fmean(max(one.ssim.mean for one in found) for found in without_key),
        ciphertext=statistics.fmean(record.ciphertext.ssim.mean for record in records),
        reidentified=statistics.fmean(max(one.reidentified for one in found) for found in without_key),
        candidates=first.ciphertext.candidates,
        by_candidates=statistics.fmean(found) if (found := _by_candidates(records)) else None,
        exchange=str(first.exchange),
    )


def _by_candidates(records: Sequence[LeakageRecord]) -> list[float]:
    return [record.by_candidates.reidentified for record in records if record.by_candidates is not None]


def _without_key(record: LeakageRecord) -> list[Resemblance]:
    """List what is restored without the key; and what is sent, where images are."""
    found = [one.resemblance for one in record.attacks if one.attack is not AttackName.COLLUSION]
    return [*found, record.ciphertext] if record.exchange is Exchange.IMAGES or not found else found


def _has_membership(outcome: Outcome) -> bool:
    return any(result.membership is not None for found in outcome.results.values() for result in found)


def _table(arm: Arm, record: LeakageRecord) -> Table:
    named: tuple[Column, ...] = (
        Column("What is shown"),
        Column("SSIM", True),
        Column("PSNR, dB", True),
        Column("Feature distance", True),
        Column(_sentence_case(RIGHT_ONE_RESTORED.format(count=record.ciphertext.candidates)), True),
        Column("Median rank", True),
        Column("Right one of two", True),
        Column("Class accuracy", True),
        Column("Key bits", True),
        Column("Time", True),
    )
    rows = [_row(_sent_words(record), record.ciphertext, record)]
    rows += [_row(title(one), one.resemblance, record, one) for one in record.attacks]
    rows.append(_row(PERFECT, record.perfect, record))
    match = record.by_candidates
    if match is not None:
        named = (*named, Column(_sentence_case(RIGHT_ONE_BY_CANDIDATES.format(count=match.candidates)), True))
        told = [part_words(match.reidentified), *[NOTHING] * (len(rows) - 1)]
        rows = [Row((*row.cells, cell)) for row, cell in zip(rows, told, strict=True)]
    measured = (
        f"{record.data}; {record.height} x {record.width} pixels; preset {record.preset}. Mean {_PLUS_MINUS} standard "
        "deviation over images; of an image and its negative the better one counts."
    )
    return Table(f"Attacks on {quoted(arm.name)}", named, tuple(rows), (measured,))


def _row(name: str, found: Resemblance, record: LeakageRecord, outcome: AttackOutcome | None = None) -> Row:
    among = "" if found.candidates == record.ciphertext.candidates else f" of {found.candidates:,}"
    distance, named = found.feature_distance, found.class_accuracy
    bits = None if outcome is None else outcome.bits
    return Row(
        (
            name,
            _spread(found.ssim, 3),
            _spread(found.psnr_db, 1),
            NOTHING if distance is None else _spread(distance, 3),
            part_words(found.reidentified) + among,
            f"{found.median_rank:g}",
            part_words(found.pair_accuracy),
            NOTHING if named is None else part_words(named),
            NOTHING if bits is None else part_words(bits),
            NOTHING if outcome is None else duration(outcome.seconds),
        )
    )


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _spread(measure: Measure, digits: int) -> str:
    return minus(f"{measure.mean:.{digits}f} {_PLUS_MINUS} {measure.spread:.{digits}f}")


def _sent_words(record: LeakageRecord) -> str:
    return "As sent" if record.cipher is None else CIPHERTEXT


def _strips(record: LeakageRecord, pictures: dict[str, UInt8Array]) -> list[Strip]:
    """Set pictures side by side; of an image and its negative the one that counted is shown."""
    if ORIGINAL_KEY not in pictures:
        return []
    originals = pictures[ORIGINAL_KEY]
    count = max(2, _STRIP_VALUES // (originals.shape[1] * originals.shape[2]))
    strips = [Strip("Original", "", _in_a_row(originals[:count]))]
    if CIPHERTEXT_KEY in pictures:
        sent = _in_a_row(pictures[CIPHERTEXT_KEY][:count])
        strips.append(Strip(_sent_words(record), f"SSIM {number(record.ciphertext.ssim.mean)}", sent))
    for one in record.attacks:
        restored = pictures.get(one.picture_key)
        if restored is not None:
            shown, _ = upright(restored[:count], originals[: len(restored[:count])])
            strips.append(Strip(title(one), f"SSIM {number(one.resemblance.ssim.mean)}", _in_a_row(shown)))
    return strips


def _in_a_row(images: UInt8Array) -> bytes:
    return png_of(np.concatenate(list(images), axis=1))
