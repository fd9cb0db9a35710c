"""The card of a small model, for whoever needs one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ppfed.federation import CipherSettings
from ppfed.model_folder import ModelCard


def small_card(**changes: Any) -> ModelCard:
    """Describe a network that is built in a blink; ``classes``, ``fingerprint`` and what else matters are given."""
    fields: dict[str, Any] = {
        "federation": "flowers",
        "exchange": "images",
        "cipher": CipherSettings(),
        "height": 8,
        "width": 8,
        "channels": 3,
        "adaptation": (4,),
        "base_maps": 2,
        "owners": (),
        "rounds": 1,
        "local_epochs": 1,
        "accuracy": None,
        "held_out_images": 0,
        "seed": 0,
        "training": {},
        "versions": {},
        "created": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return ModelCard(**{**fields, **changes})
