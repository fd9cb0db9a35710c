"""Where training begins: at random weights, or at a model that is trained further."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from coordinator.state import StateFolder
from ppfed.ciphers.spec import Scope
from ppfed.errors import ModelError, UsageError
from ppfed.federation import ModelOrigin
from ppfed.model_folder import WEIGHTS_FILE, ModelCard, load_model
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import NetworkConfig
from ppfed.networks.state import load_network_state

_OF_IMAGES = ("horizontal_flip", "vertical_flip")
"""Settings of its training that say what its images are like: taken over, and free to change."""


@dataclass(frozen=True)
class FurtherModel:
    """A model that is to be trained further.

    Attributes
    ----------
    origin : ModelOrigin
    weights : bytes
        The file of its weights.
    fixed : dict of str to value
        Options of ``coordinator start`` that its weights decide.
    suggested : dict of str to value
        Options that it was trained with, and that may be others.
    network : NetworkConfig
        Of the weights.
    """

    origin: ModelOrigin
    weights: bytes
    fixed: Mapping[str, Any]
    suggested: Mapping[str, Any]
    network: NetworkConfig


def read_further_model(folder: Path) -> FurtherModel:
    """Read the folder of a model that is to be trained further.

    Raises
    ------
    ModelError
        If it is damaged, or no model.
    """
    card = load_model(folder).card
    weights = (folder / WEIGHTS_FILE).read_bytes()
    return FurtherModel(
        ModelOrigin(
            federation=card.federation,
            created=card.created,
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            fingerprint=card.fingerprint,
        ),
        weights,
        _fixed(card),
        {name: card.training[name] for name in _OF_IMAGES if name in card.training},
        card.network_config(),
    )


def initial_network(state: StateFolder) -> ImageClassifier:
    """Build the network of a federation, with the weights that training begins with.

    Raises
    ------
    UsageError
        If the weights of the model that is trained further are damaged or missing.
    """
    settings = state.plan().settings
    network = build_network(settings.network_config(), settings.training.seed)
    if settings.initial_model is None:
        return network
    path = state.initial_weights
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != settings.initial_model.weights_sha256:
            raise ValueError("other weights than at the start")
        load_network_state(network, load_file(path))
    except (OSError, ValueError, SafetensorError, ModelError) as error:
        raise UsageError(
            f"{path}, the weights to train further, cannot be used ({type(error).__name__})",
            hint=f"Copy {WEIGHTS_FILE} of that model there: {settings.initial_model}.",
        ) from None
    return network


def _fixed(card: ModelCard) -> dict[str, Any]:
    """List what the weights fit, and what the images looked like that they learned from."""
    fixed: dict[str, Any] = {
        "classes": ",".join(card.classes),
        "size": f"{card.height}x{card.width}",
        "channels": card.channels,
        "cipher": card.cipher.name,
        "scope": card.cipher.scope,
        "colour_shuffle": card.cipher.colour_shuffle,
        "adaptation": bool(card.adaptation),
        "adaptation_kind": card.adaptation_kind,
        "features": card.features,
        "backbone": card.backbone,
        "base_maps": card.base_maps,
    }
    if card.cipher.scope is Scope.FIXED:
        # It learned what one mask makes of images; under another key's it is as good as random.
        fixed["fingerprint"] = card.fingerprint
    return fixed
