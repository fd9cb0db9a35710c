"""Runs attacks against one cipher and measures what they got: the leakage card.

The keys here are made for the audit and thrown away: it needs no owner's key. What each attacker is given stands in
``ppfed/leakage/attackers.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ppfed.ciphers.spec import CipherSpec
from ppfed.federation import CipherSettings
from ppfed.images.types import UInt8Array
from ppfed.leakage.attackers import ATTACKERS, AuditPreset, Session
from ppfed.leakage.images import AuditImages
from ppfed.leakage.judge import Judge, JudgePreset, train_judge
from ppfed.leakage.metrics import resemblance
from ppfed.leakage.record import (
    CIPHERTEXT_KEY,
    ORIGINAL_KEY,
    AttackName,
    AttackOutcome,
    LeakageRecord,
    Resemblance,
)
from ppfed.leakage.reidentification import match_candidates
from ppfed.training.allocator import freed_memory_kept

SHOWN = 8
"""Images in the picture of a card."""

_QUICK_JUDGE = JudgePreset(epochs=3, base_maps=4, batch_size=16)


@dataclass(frozen=True)
class Audit:
    """What came of it.

    Attributes
    ----------
    record : LeakageRecord
    pictures : mapping of str to uint8 array, (n, H, W, C) or (n, H, W, 1)
        The first ``SHOWN`` images: ``original``, ``ciphertext``, then what each attack restored, by the attack's name
        and setting.
    """

    record: LeakageRecord
    pictures: Mapping[str, UInt8Array]


def applicable(spec: CipherSpec, channels: int) -> tuple[AttackName, ...]:
    """Name the attacks that make sense against a cipher, in the order of cards.

    Those that are known to fail are named too where others would ask for them: one mask for all is looked for also
    where masks are fresh.
    """
    return tuple(name for name in AttackName if name in ATTACKERS and ATTACKERS[name].applies(spec, channels))


def audit(
    spec: CipherSpec,
    images: AuditImages,
    attacks: Sequence[AttackName],
    preset: AuditPreset,
    *,
    device: torch.device,
    seed: int,
    on_progress: Callable[[str, float], None],
    judge: Judge | None = None,
) -> Audit:
    """Encrypt images under a throwaway key, attack them, and measure.

    Parameters
    ----------
    spec : CipherSpec
    images : AuditImages
    attacks : sequence of AttackName
        Of those that ``applicable`` names. What candidate pictures tell is always measured: it takes a second.
    preset : AuditPreset
    device : torch.device
    seed : int
        Of the throwaway keys, the attackers' training and the judge's.
    on_progress : callable
        Called with what is at work, in words, and the part done of all, 0 to 1.
    judge : Judge or None
        For class accuracies and feature distances; ``judge_of`` makes one.

    Raises
    ------
    UsageError
        If the cipher cannot encrypt images of that shape.
    ValueError
        If an attack does not apply.
    """
    possible = applicable(spec, images.shape[2])
    strange = [name for name in attacks if name not in possible]
    if strange:
        raise ValueError(f"no attack on {spec}: {', '.join(strange)}")
    ordered = [name for name in possible if name in attacks]

    def tell(stage: int, what: str) -> Callable[[float], None]:
        return lambda part: on_progress(what, (stage + part) / len(ordered))

    session = Session(spec, images, preset, device, seed)
    outcomes: list[AttackOutcome] = []
    pictures = {ORIGINAL_KEY: images.targets.pixels[:SHOWN], CIPHERTEXT_KEY: session.encrypted.pixels[:SHOWN]}
    for stage, name in enumerate(ordered):
        with freed_memory_kept(device):
            started = time.monotonic()
            for restored in ATTACKERS[name].run(session, tell(stage, name.value)):
                seconds = time.monotonic() - started
                outcome = AttackOutcome(
                    attack=name,
                    setting=restored.setting,
                    needs=restored.needs,
                    resemblance=measured(restored.pixels, images, judge),
                    bits=restored.bits,
                    seconds=seconds,
                )
                outcomes.append(outcome)
                pictures[outcome.picture_key] = restored.pixels[:SHOWN]
                started = time.monotonic()
    height, width, channels = images.shape
    record = LeakageRecord(
        cipher=CipherSettings.of(spec),
        height=height,
        width=width,
        channels=channels,
        data=images.data,
        preset=preset.value,
        ciphertext=measured(session.encrypted.pixels, images, judge),
        perfect=measured(images.targets.pixels, images, judge),
        attacks=tuple(outcomes),
        by_candidates=match_candidates(spec, session.encrypted.pixels, images.targets.pixels),
    )
    on_progress("done", 1.0)
    return Audit(record, pictures)


def judge_of(
    images: AuditImages, preset: AuditPreset, device: torch.device, seed: int, on_progress: Callable[[float], None]
) -> Judge:
    """Train a judge on the attacker's own images: a minute or two, seconds with preset ``quick``."""
    return train_judge(
        images.own.pixels,
        images.own_labels,
        images.classes,
        preset=_QUICK_JUDGE if preset is AuditPreset.QUICK else None,
        device=device,
        seed=seed,
        on_step=lambda step, steps: on_progress(step / steps),
    )


def measured(restored: UInt8Array, images: AuditImages, judge: Judge | None) -> Resemblance:
    """Compare what was restored of the first targets with all targets."""
    count = len(restored)
    return resemblance(
        restored,
        images.targets.pixels[:count],
        labels=images.target_labels[:count] if images.same_classes else None,
        judge=judge,
        candidates=images.targets.pixels,
    )
