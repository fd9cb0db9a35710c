"""Leakage records made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ppfed.federation import CipherSettings
from ppfed.leakage.record import AttackName, AttackOutcome, LeakageRecord, Measure, Resemblance


@pytest.fixture(scope="session")
def make_resemblance() -> Callable[..., Resemblance]:
    """Build what was measured of 1,000 images; any of it can be changed."""

    def make(ssim: float = 0.47, reidentified: float = 0.47, **changes: Any) -> Resemblance:
        exact = ssim == 1
        values: dict[str, Any] = {
            "images": 1000,
            "ssim": Measure(mean=ssim, spread=0 if exact else 0.12),
            "psnr_db": Measure(mean=100 if exact else 17.25, spread=0 if exact else 2.5),
            "reidentified": 1 if exact else reidentified,
            "candidates": 1000,
            "median_rank": 1 if exact else 3,
            "pair_accuracy": 1 if exact else 0.953,
        }
        return Resemblance.model_validate({**values, **changes})

    return make


@pytest.fixture(scope="session")
def make_record(make_resemblance: Callable[..., Resemblance]) -> Callable[..., LeakageRecord]:
    """Build a record of attacks, each a name, a setting and what it restored; anything else can be changed."""

    def make(*attacks: tuple[AttackName, str, Resemblance], **changes: Any) -> LeakageRecord:
        outcomes = tuple(
            AttackOutcome(attack=name, setting=setting, needs="what it needs", resemblance=found, seconds=1.0)
            for name, setting, found in attacks
        )
        values: dict[str, Any] = {
            "cipher": CipherSettings(),
            "height": 32,
            "width": 32,
            "channels": 3,
            "data": "photographs",
            "preset": "cpu",
            "ciphertext": make_resemblance(0.03, 0.001),
            "perfect": make_resemblance(1),
            "attacks": outcomes,
        }
        return LeakageRecord.model_validate({**values, **changes})

    return make
