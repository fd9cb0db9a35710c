"""The leakage card as a picture: a few images, their ciphertexts, and what each attack made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ppfed.images.types import UInt8Array
from ppfed.leakage.metrics import upright
from ppfed.leakage.record import CIPHERTEXT_KEY, ORIGINAL_KEY, CandidateMatch, LeakageRecord, Resemblance
from ppfed.leakage.wording import (
    CIPHERTEXT,
    NOT_CONFIDENTIAL,
    RIGHT_ONE_BY_CANDIDATES,
    RIGHT_ONE_RESTORED,
    cipher_words,
    exchange_words,
    part_words,
    sentence,
    ssim_words,
    title,
)
from ppfed.picture_grid import Column, Paragraph, Row, draw_grid, write_figure

_NO_BREAK = "\N{NO-BREAK SPACE}"


def leakage_card(record: LeakageRecord, pictures: Mapping[str, UInt8Array]) -> Figure:
    """Draw the card.

    Like the numbers, what was restored shows the image or its negative, whichever is more like the original.

    Parameters
    ----------
    record : LeakageRecord
    pictures : mapping of str to uint8 array, (N, H, W, C) or (N, H, W, 1)
        The same N images as ``original``, as ``ciphertext``, and as attacks of the record restored them, by
        ``AttackOutcome.picture_key``. Attacks without pictures are left out.

    Raises
    ------
    ValueError
        If there is no original or ciphertext, the arrays differ in length, or one belongs to no attack of the record.
    """
    outcomes = {outcome.picture_key: outcome for outcome in record.attacks}
    if not {ORIGINAL_KEY, CIPHERTEXT_KEY} <= pictures.keys() <= {ORIGINAL_KEY, CIPHERTEXT_KEY, *outcomes}:
        raise ValueError(f"pictures of {sorted(pictures)} do not fit a record of {sorted(outcomes)}")
    if len({len(images) for images in pictures.values()}) != 1:
        raise ValueError("every column needs as many pictures as there are originals")
    originals = pictures[ORIGINAL_KEY]
    sent = _column(CIPHERTEXT if record.cipher else "As sent", record.ciphertext, strong=False)
    if record.by_candidates is not None:
        sent = replace(sent, notes=(*sent.notes, _told(RIGHT_ONE_BY_CANDIDATES, record.by_candidates)))
    columns = [Column("Original"), sent]
    shown = [originals, pictures[CIPHERTEXT_KEY]]
    for key, outcome in outcomes.items():
        if key in pictures:
            columns.append(_column(title(outcome), outcome.resemblance, strong=outcome == record.strongest))
            shown.append(upright(pictures[key], originals)[0])
    return draw_grid(
        columns,
        [Row([images[row] for images in shown]) for row in range(len(originals))],
        _paragraphs(record),
        title=f"What an attacker gets: {record.cipher.spec if record.cipher else 'plain images'}",
    )


def write_picture(path: Path, record: LeakageRecord, pictures: Mapping[str, UInt8Array]) -> None:
    """Write the card as a PNG that only its owner may read; parameters as in ``leakage_card``.

    Raises
    ------
    PPFedError
        If it cannot be written.
    ValueError
        As ``leakage_card``.
    """
    write_figure(path, leakage_card(record, pictures))


def _column(name: str, found: Resemblance, *, strong: bool) -> Column:
    notes = (f"SSIM {ssim_words(found)}", _told(RIGHT_ONE_RESTORED, found))
    return Column(name, notes, gauge=float(np.clip(found.ssim.mean, 0, 1)), strong=strong)


def _told(words: str, found: Resemblance | CandidateMatch) -> str:
    told = part_words(found.reidentified).replace(" %", f"{_NO_BREAK}%")
    return f"{words.format(count=found.candidates)}: {told}"


def _paragraphs(record: LeakageRecord) -> list[Paragraph]:
    measured = record.ciphertext.images
    return [
        Paragraph(sentence(record), strong=True),
        Paragraph(f"Cipher: {cipher_words(record.cipher)}. Exchange {exchange_words(record)}."),
        Paragraph(
            f"Measured on {measured:,} images of {record.height} x {record.width} pixels ({record.data}), preset "
            f"{record.preset}. SSIM, and the bar, is likeness to the original: 0 for none, 1 for a copy."
        ),
        *([Paragraph(NOT_CONFIDENTIAL)] if record.cipher else []),
    ]
