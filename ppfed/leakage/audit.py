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
from ppfed.federation import CipherSettings, Exchange
from ppfed.images.types import UInt8Array
from ppfed.leakage.attackers import ATTACKERS, AuditPreset, Restored, Session
from ppfed.leakage.images import AuditImages
from ppfed.leakage.judge import Judge, JudgePreset, train_judge
from ppfed.leakage.metrics import resemblance
from ppfed.leakage.record import (
    CIPHERTEXT_KEY,
    ORIGINAL_KEY,
    AttackName,
    AttackOutcome,
    CandidateMatch,
    LeakageRecord,
    Resemblance,
)
from ppfed.leakage.reidentification import match_candidates
from ppfed.training.allocator import freed_memory_kept

SHOWN = 8
"""Images in the picture of a card."""

_QUICK_JUDGE = JudgePreset(epochs=3, base_maps=4, batch_size=16)


def _silent(_what: str, _part: float) -> None:
    pass


@dataclass(frozen=True, eq=False)
class AuditRun:
    """How an audit is run.

    Attributes
    ----------
    preset : AuditPreset
        What attackers spend.
    device : torch.device
    seed : int
        Of the throwaway keys and the attackers' training.
    judge : Judge or None
        For class accuracies and feature distances; ``judge_of`` makes one.
    on_progress : callable
        Called with what is at work, in words, and the part done of all, 0 to 1.
    """

    preset: AuditPreset
    device: torch.device
    seed: int
    judge: Judge | None = None
    on_progress: Callable[[str, float], None] = _silent


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


class Findings:
    """Gathers what attacks on the same images got, for one card.

    Parameters
    ----------
    images : AuditImages
    ciphertext : uint8 array, (N, H, W, C)
        What anybody sees of the targets.
    judge : Judge or None
        As in ``AuditRun``.
    shown : int
        So many images are in the pictures.
    """

    def __init__(self, images: AuditImages, ciphertext: UInt8Array, judge: Judge | None, shown: int = SHOWN) -> None:
        self._images = images
        self._ciphertext = ciphertext
        self._judge = judge
        self._shown = shown
        self._outcomes: list[AttackOutcome] = []
        self._pictures = {ORIGINAL_KEY: images.targets.pixels[:shown], CIPHERTEXT_KEY: ciphertext[:shown]}

    def add(self, attack: AttackName, restored: Restored, seconds: float) -> None:
        """Measure what an attack restored of the first targets."""
        outcome = AttackOutcome(
            attack=attack,
            setting=restored.setting,
            needs=restored.needs,
            resemblance=self._measured(restored.pixels),
            bits=restored.bits,
            seconds=seconds,
        )
        self._outcomes.append(outcome)
        self._pictures[outcome.picture_key] = restored.pixels[: self._shown]

    def audit(
        self,
        spec: CipherSpec | None,
        preset: AuditPreset,
        exchange: Exchange = Exchange.IMAGES,
        by_candidates: CandidateMatch | None = None,
    ) -> Audit:
        """Put all of it on a card: attacks in the order in which they were added."""
        height, width, channels = self._images.shape
        record = LeakageRecord(
            cipher=None if spec is None else CipherSettings.of(spec),
            exchange=exchange,
            height=height,
            width=width,
            channels=channels,
            data=self._images.data,
            preset=preset.value,
            ciphertext=self._measured(self._ciphertext),
            perfect=self._measured(self._images.targets.pixels),
            attacks=tuple(self._outcomes),
            by_candidates=by_candidates,
        )
        return Audit(record, self._pictures)

    def _measured(self, pixels: UInt8Array) -> Resemblance:
        """Compare images that stand for the first targets with all targets."""
        images, count = self._images, len(pixels)
        return resemblance(
            pixels,
            images.targets.pixels[:count],
            labels=images.target_labels[:count] if images.same_classes else None,
            judge=self._judge,
            candidates=images.targets.pixels,
        )


def applicable(spec: CipherSpec, channels: int) -> tuple[AttackName, ...]:
    """Name the attacks that make sense against a cipher, in the order of cards.

    Those that are known to fail are named too where others would ask for them: one mask for all is looked for also
    where masks are fresh.
    """
    return tuple(name for name in AttackName if name in ATTACKERS and ATTACKERS[name].applies(spec, channels))


def require_possible(attacks: Sequence[AttackName], possible: Sequence[AttackName], target: str) -> None:
    """Refuse attacks that do not apply to a target, with a ValueError."""
    strange = [name for name in attacks if name not in possible]
    if strange:
        raise ValueError(f"no attack on {target}: {', '.join(strange)}")


def audit(spec: CipherSpec, images: AuditImages, attacks: Sequence[AttackName], run: AuditRun) -> Audit:
    """Encrypt images under a throwaway key, attack them, and measure.

    Parameters
    ----------
    spec : CipherSpec
    images : AuditImages
    attacks : sequence of AttackName
        Of those that ``applicable`` names. What candidate pictures tell is always measured: it takes a second.
    run : AuditRun

    Raises
    ------
    UsageError
        If the cipher cannot encrypt images of that shape.
    ValueError
        If an attack does not apply.
    """
    possible = applicable(spec, images.shape[2])
    require_possible(attacks, possible, str(spec))
    ordered = [name for name in possible if name in attacks]

    def tell(stage: int, what: str) -> Callable[[float], None]:
        return lambda part: run.on_progress(what, (stage + part) / len(ordered))

    session = Session(spec, images, run.preset, run.device, run.seed)
    ciphertext = session.encrypted.pixels
    findings = Findings(images, ciphertext, run.judge)
    for stage, name in enumerate(ordered):
        with freed_memory_kept(run.device):
            started = time.monotonic()
            for restored in ATTACKERS[name].run(session, tell(stage, name.value)):
                findings.add(name, restored, time.monotonic() - started)
                started = time.monotonic()
    by_candidates = match_candidates(spec, ciphertext, images.targets.pixels)
    found = findings.audit(spec, run.preset, by_candidates=by_candidates)
    run.on_progress("done", 1.0)
    return found


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
