"""Attacks what owners send instead of images: gradients, or the weights after a local step.

What comes out of an inversion is an image as encrypted as the owner had it. So each is measured three times: as it
came, folded, and as an attack on ciphertexts restores it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn

from ppfed.attacks import gradient_inversion
from ppfed.attacks.alone import Solver
from ppfed.attacks.fold import fold, folded_view, folds
from ppfed.attacks.gradient_inversion import GradientInversionConfig, invert_gradient, smooth_view
from ppfed.augment import Augmentation
from ppfed.ciphers.spec import CipherSpec
from ppfed.federation import CipherSettings, Exchange
from ppfed.gradients import Moments, partial_gradient
from ppfed.images.types import EncryptedImages, Int64Array, UInt8Array
from ppfed.leakage.attackers import AuditPreset, Session
from ppfed.leakage.audit import SHOWN, Audit, measured
from ppfed.leakage.images import AuditImages
from ppfed.leakage.judge import Judge
from ppfed.leakage.picture import CIPHERTEXT_KEY, ORIGINAL_KEY, picture_key
from ppfed.leakage.record import AttackName, AttackOutcome, LeakageRecord
from ppfed.network import ImageClassifier
from ppfed.network_state import network_state
from ppfed.training import ImageTensors, Trainer, TrainingConfig

_CONFIGS = {
    AuditPreset.QUICK: gradient_inversion.QUICK,
    AuditPreset.CPU: gradient_inversion.CPU,
    AuditPreset.GPU: gradient_inversion.GPU,
}
_RATE = 0.05
"""Of the local step; any but 0 tells the same."""
_WORDS = {Exchange.GRADIENTS: "a gradient", Exchange.UPDATES: "the weights after one local step"}
_IMAGES = {AuditPreset.QUICK: 2, AuditPreset.CPU: 8, AuditPreset.GPU: 64}
"""So many images are attacked at least, in batches."""


@dataclass(frozen=True, eq=False)
class Sent:
    """What an owner sends of one batch, and the coordinator makes of it.

    Attributes
    ----------
    gradient : mapping of str to float tensor
        By parameter.
    moments : Moments
        What batch norm saw.
    """

    gradient: Mapping[str, torch.Tensor]
    moments: Moments


def audit_gradients(
    spec: CipherSpec | None,
    images: AuditImages,
    network: ImageClassifier,
    exchange: Exchange,
    batches: Sequence[int],
    preset: AuditPreset,
    *,
    device: torch.device,
    seed: int,
    on_progress: Callable[[str, float], None],
    restore: Solver | None,
    judge: Judge | None = None,
) -> Audit:
    """Let an owner send what the exchange says, and invert it.

    The owner does what helps the attacker: it does not augment, and in exchange ``updates`` it takes one local step on
    one batch. The attacker knows the labels, which a gradient of few images tells anyway.

    Parameters
    ----------
    spec : CipherSpec or None
        None for plain images: the control.
    images : AuditImages
    network : ImageClassifier
        With the weights of the attacked step.
    exchange : Exchange
        ``gradients`` or ``updates``.
    batches : sequence of int
        Images in what an owner sends. Those with more images than there are targets are left out.
    preset : AuditPreset
    device : torch.device
    seed : int
    on_progress : callable
        As for ``audit``.
    restore : callable or None
        Restores ciphertexts, as ``ppfed.attacks.alone.solver``; None leaves that out.
    judge : Judge or None
        As for ``audit``.

    Raises
    ------
    ValueError
        If the exchange sends images.
    """
    if exchange is Exchange.IMAGES:
        raise ValueError("exchange 'images' sends images: audit() attacks those")
    wanted = [batch for batch in batches if batch <= len(images.targets)]
    encrypted = None if spec is None else Session(spec, images, preset, device, seed).encrypted
    fed = images.targets.pixels if encrypted is None else encrypted.pixels
    outcomes: list[AttackOutcome] = []
    shown = min(SHOWN, _IMAGES[preset], len(fed))
    pictures = {ORIGINAL_KEY: images.targets.pixels[:shown], CIPHERTEXT_KEY: fed[:shown]}
    for number, batch in enumerate(wanted):
        started = time.monotonic()
        inverted = _inverted(
            network,
            fed[: max(batch, _IMAGES[preset] // batch * batch)],
            images.target_labels,
            batch,
            exchange,
            replace(_CONFIGS[preset], smooth=smooth_view(spec)),
            device,
            seed,
            partial(_tell_part, on_progress, _WORDS[exchange], number, len(wanted)),
        )
        seconds = time.monotonic() - started
        for how, view in _views(inverted, encrypted, restore):
            outcome = AttackOutcome(
                attack=AttackName.GRADIENTS,
                setting=f"{_images_in_words(batch)}{how}",
                needs=f"{_WORDS[exchange]} over {_images_in_words(batch)}, and the labels, which such a gradient tells",
                resemblance=measured(view, images, judge),
                seconds=seconds,
            )
            outcomes.append(outcome)
            if len(view) >= shown:
                pictures[picture_key(outcome)] = view[:shown]
    height, width, channels = images.shape
    record = LeakageRecord(
        cipher=None if spec is None else CipherSettings.of(spec),
        exchange=exchange,
        height=height,
        width=width,
        channels=channels,
        data=images.data,
        preset=preset.value,
        ciphertext=measured(fed, images, judge),
        perfect=measured(images.targets.pixels, images, judge),
        attacks=tuple(outcomes),
    )
    on_progress("done", 1.0)
    return Audit(record, pictures)


def sent_by_owner(
    network: ImageClassifier, images: UInt8Array, labels: Int64Array, exchange: Exchange, device: torch.device
) -> Sent:
    """Compute what the coordinator learns of one batch; the network is not changed.

    Parameters
    ----------
    network : ImageClassifier
        On the device.
    images : uint8 array, (N, H, W, C)
    labels : int64 array, (N,)
    exchange : Exchange
        ``gradients`` or ``updates``.
    device : torch.device
    """
    batch = ImageTensors.from_numpy(np.ascontiguousarray(images), labels, device)
    own = copy.deepcopy(network)
    if exchange is Exchange.GRADIENTS:
        part = partial_gradient(own, batch.images, batch.labels, nn.CrossEntropyLoss(), micro_batch=len(batch))
        return Sent(gradient_inversion.gradient_by_name(own, part.gradient), part.moments)
    config = TrainingConfig(
        epochs=1, batch_size=len(batch), learning_rate=_RATE, warmup=0.0, augmentation=Augmentation(0, False, False)
    )
    before = {name: tensor.clone() for name, tensor in network_state(own).items()}
    list(Trainer(own, config, device).train_epochs(batch, 0, 1))
    after = network_state(own)
    return Sent(
        gradient_inversion.gradient_of_update(own, before, after, config, [_RATE]),
        gradient_inversion.moments_of_update(own, before, after, images.shape, 1),
    )


def _inverted(
    network: ImageClassifier,
    fed: UInt8Array,
    labels: Int64Array,
    batch: int,
    exchange: Exchange,
    config: GradientInversionConfig,
    device: torch.device,
    seed: int,
    on_progress: Callable[[float], None],
) -> UInt8Array:
    """Invert batch after batch of what the owner trained on, and put each in the order that fits what was fed best.

    A gradient does not say which image is which. Whoever measures has to pair them; an attacker does not care.
    """
    results = []
    for start in range(0, len(fed), batch):
        rows = slice(start, start + batch)
        sent = sent_by_owner(network, fed[rows], labels[rows], exchange, device)
        found = invert_gradient(
            network,
            sent.gradient,
            torch.from_numpy(labels[rows]),
            (batch, *fed.shape[1:]),
            config,
            moments=sent.moments,
            device=device,
            seed=seed + start,
            on_step=partial(_tell_step, on_progress, start, batch, len(fed)),
        )
        results.append(paired(found.images, fed[rows]))
    return np.concatenate(results)


def paired(found: UInt8Array, fed: UInt8Array) -> UInt8Array:
    """Put found images, (N, H, W, C), into the order in which their folded values fit those of others best."""
    mine, theirs = (fold(images).reshape(len(images), -1).astype(np.float64) for images in (found, fed))
    rows = linear_sum_assignment(cdist(theirs, mine, "sqeuclidean"))[1]
    ordered: UInt8Array = found[rows]
    return ordered


def _views(
    inverted: UInt8Array, encrypted: EncryptedImages | None, restore: Solver | None
) -> Iterator[tuple[str, UInt8Array]]:
    yield "", inverted
    if encrypted is None:
        return
    if folds(encrypted.cipher.name):
        yield ", folded", folded_view(replace(encrypted[: len(inverted)], pixels=inverted))
    if restore is not None:
        yield ", then restored", restore(inverted)


def _tell_part(on_progress: Callable[[str, float], None], what: str, number: int, parts: int, part: float) -> None:
    on_progress(what, (number + part) / parts)


def _tell_step(on_progress: Callable[[float], None], start: int, batch: int, count: int, step: int, steps: int) -> None:
    on_progress((start + batch * step / steps) / count)


def _images_in_words(batch: int) -> str:
    return "one image" if batch == 1 else f"{batch} images"
