"""Attacks what owners send instead of images: gradients, or the weights after a local step.

Two coordinators attack. One is curious: it trains as agreed, and searches for the images that explain what it is sent.
The other is hostile: it chooses the weights that it sends so that images can be read off the answer.

What comes out is an image as encrypted as the owner had it. So each is measured several times: as it came, folded, and
as attacks on ciphertexts restore it: the strongest that needs no training, and learned edges where these are asked for.
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

from ppfed.attacks.alone import Solver, solver
from ppfed.attacks.sent import gradient_inversion
from ppfed.attacks.sent.chosen_weights import ToldApartBy, can_choose, chosen_network, read_images, told_apart_by
from ppfed.attacks.sent.gradient_inversion import GradientInversionConfig, invert_gradient, smooth_view
from ppfed.attacks.values.fold import fold, folded_view, folds
from ppfed.ciphers.spec import CipherSpec
from ppfed.errors import UsageError
from ppfed.federation import Exchange
from ppfed.images.types import EncryptedImages, Int64Array, PlainImages, UInt8Array
from ppfed.leakage.attackers import AuditPreset, Restored, Session, edges_of_session
from ppfed.leakage.audit import SHOWN, Audit, AuditRun, Findings, applicable, require_possible
from ppfed.leakage.images import AuditImages
from ppfed.leakage.record import AttackName
from ppfed.networks.classifier import ImageClassifier
from ppfed.networks.config import NetworkConfig
from ppfed.networks.state import network_state
from ppfed.training.augment import Augmentation
from ppfed.training.gradients import Moments, partial_gradient
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig
from ppfed.training.settings import FEWEST_IMAGES, BatchNormMode


@dataclass(frozen=True)
class GradientSearch:
    """What is spent on searching for images.

    Attributes
    ----------
    config : GradientInversionConfig
    images : int
        So many are attacked, in batches, and one batch at least.
    largest : int
        The largest batch that is tried.
    """

    config: GradientInversionConfig
    images: int
    largest: int


_SEARCHES = {
    AuditPreset.QUICK: GradientSearch(gradient_inversion.QUICK, 2, 2),
    AuditPreset.CPU: GradientSearch(gradient_inversion.CPU, 2, 2),
    AuditPreset.GPU: GradientSearch(gradient_inversion.GPU, 64, 32),
}
_READ = {AuditPreset.QUICK: 16, AuditPreset.CPU: 96, AuditPreset.GPU: 960}
"""So many images are read with chosen weights."""
_RATE = 0.05
"""Of the local step; any but 0 tells the same."""
_WORDS = {Exchange.GRADIENTS: "a gradient", Exchange.UPDATES: "the weights after one local step"}
_TRAINING = "training learned edges"
_BATCHES = (1, 2, 8, 32)
SENT_ATTACKS = (AttackName.CHOSEN_WEIGHTS, AttackName.GRADIENTS)
"""Attacks on what owners send instead of images, in the order of cards."""


@dataclass(frozen=True, eq=False)
class OwnerStep:
    """What an owner is asked for in place of images: one step on one batch.

    Attributes
    ----------
    network : ImageClassifier
        With the weights of the step, on the device; no step changes it.
    exchange : Exchange
        ``gradients`` or ``updates``.
    batch_norm : BatchNormMode
        Exchange ``gradients``: what batch norm normalises with.

    Raises
    ------
    ValueError
        If the exchange sends images, or in ``updates`` batch norm is not local.
    """

    network: ImageClassifier
    exchange: Exchange
    batch_norm: BatchNormMode = BatchNormMode.LOCAL

    def __post_init__(self) -> None:
        if self.exchange is Exchange.IMAGES:
            raise ValueError("exchange 'images' sends images: audit() attacks those")
        if self.exchange is Exchange.UPDATES and self.batch_norm is not BatchNormMode.LOCAL:
            raise ValueError("exchange 'updates' normalises with each batch's own statistics")


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


def possible_on_sent(spec: CipherSpec | None, channels: int) -> tuple[AttackName, ...]:
    """Name what ``audit_sent`` can be asked for, in the order of cards: learned edges too where the cipher allows."""
    on_images = () if spec is None else applicable(spec, channels)
    return tuple(
        name for name in AttackName if name in SENT_ATTACKS or (name is AttackName.LEARNED_EDGES and name in on_images)
    )


def sent_batches(exchange: Exchange, fewest: int = FEWEST_IMAGES) -> tuple[int, ...]:
    """List the numbers of images to measure: an owner sends no gradient over fewer than ``fewest``."""
    if exchange is Exchange.UPDATES:
        return _BATCHES
    return tuple(batch for batch in _BATCHES if batch >= fewest) or (fewest,)


def sent_attacks(config: NetworkConfig) -> tuple[AttackName, ...]:
    """Name the attacks on what owners send instead of images, for a network."""
    return SENT_ATTACKS if can_choose(config) else (AttackName.GRADIENTS,)


def audit_sent(
    spec: CipherSpec | None,
    images: AuditImages,
    step: OwnerStep,
    batches: Sequence[int],
    run: AuditRun,
    *,
    attacks: Sequence[AttackName] = SENT_ATTACKS,
    search: GradientSearch | None = None,
) -> Audit:
    """Let an owner send what the exchange says, and make images of it.

    The owner does what helps the attacker: it does not augment, and in exchange ``updates`` it takes one local step on
    one batch. The attacker knows the labels, which a gradient of few images tells anyway. Batches are drawn at random,
    so that images of a batch may share a label.

    Parameters
    ----------
    spec : CipherSpec or None
        None for plain images: the control.
    images : AuditImages
    step : OwnerStep
        As a curious coordinator asks for it; a hostile one chooses other weights.
    batches : sequence of int
        Images in what an owner sends. Those with more images than there are targets are left out.
    run : AuditRun
    attacks : sequence of AttackName
        Of ``possible_on_sent``, and not learned edges alone. Weights are chosen only for networks for which
        ``sent_attacks`` says so, and the search is left out for batches larger than it is to try. Learned edges are
        trained on the attacker's own images, and restore what the others get.
    search : GradientSearch or None
        None for the preset's.

    Raises
    ------
    UsageError
        If no attack is named that gets images.
    ValueError
        If an attack does not apply.
    """
    possible = possible_on_sent(spec, images.shape[2])
    require_possible(attacks, possible, f"what is sent of {spec or 'plain images'}")
    if not set(attacks) & set(SENT_ATTACKS):
        raise UsageError(
            "learned edges restore encrypted images that another attack gets, and none is named",
            hint=f"Name one of {', '.join(SENT_ATTACKS)} too.",
        )
    search = search or _SEARCHES[run.preset]
    images = _mixed(images, run.seed)
    session = None if spec is None else Session(spec, images, run.preset, run.device, run.seed)
    encrypted = None if session is None else session.encrypted
    fed = images.targets.pixels if encrypted is None else encrypted.pixels
    owner = _Owner(step, fed, images.target_labels, run.device)
    wanted = [attack for attack in sent_attacks(step.network.config) if attack in attacks]
    parts = _parts(wanted, batches, len(fed), _READ[run.preset], search)
    findings = Findings(images, fed, run.judge, min(SHOWN, len(fed), *(part.images for part in parts)))
    learns = session is not None and AttackName.LEARNED_EDGES in attacks
    stages = len(parts) + learns
    restorers: list[_Restorer] = []
    if session is not None:
        restorers = _restorers(session, partial(_tell_part, run.on_progress, _TRAINING, 0, stages), learns=learns)
    for number, part in enumerate(parts, start=learns):
        tell = partial(_tell_part, run.on_progress, _WORDS[step.exchange], number, stages)
        started = time.monotonic()
        if part.attack is AttackName.CHOSEN_WEIGHTS:
            found = _read(owner, part, run.seed, tell)
        else:
            config = replace(search.config, smooth=smooth_view(spec), batch_norm=step.batch_norm)
            found = _inverted(owner, part, config, run.seed, tell)
        seconds = time.monotonic() - started
        for one, view in _views(found, encrypted, restorers):
            restored = Restored(view, _needs(step, part) + one.needs, f"{_images_in_words(part.batch)}{one.how}")
            findings.add(part.attack, restored, seconds + one.trained_s)
    audit = findings.audit(spec, run.preset, step.exchange)
    run.on_progress("done", 1.0)
    return audit


def sent_by_owner(step: OwnerStep, images: UInt8Array, labels: Int64Array, device: torch.device) -> Sent:
    """Compute what the coordinator learns of one batch.

    Parameters
    ----------
    step : OwnerStep
    images : uint8 array, (N, H, W, C)
    labels : int64 array, (N,)
    device : torch.device
    """
    batch = ImageTensors.from_numpy(np.ascontiguousarray(images), labels, device)
    own = copy.deepcopy(step.network)
    if step.exchange is Exchange.GRADIENTS:
        part = partial_gradient(
            own, batch.images, batch.labels, nn.CrossEntropyLoss(), micro_batch=len(batch), batch_norm=step.batch_norm
        )
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


@dataclass(frozen=True, eq=False)
class _Owner:
    """What it is asked for, and what it trains on, (N, H, W, C)."""

    step: OwnerStep
    fed: UInt8Array
    labels: Int64Array
    device: torch.device

    def answers(self, part: _Part) -> Iterator[tuple[slice, Sent]]:
        """Send what comes of one batch after another, until all images of the part were used."""
        for start in range(0, part.images, part.batch):
            rows = slice(start, start + part.batch)
            yield rows, sent_by_owner(self.step, self.fed[rows], self.labels[rows], self.device)


@dataclass(frozen=True)
class _Part:
    """One attack on batches of one size, until so many images were used."""

    attack: AttackName
    batch: int
    images: int


def _parts(
    attacks: Sequence[AttackName], batches: Sequence[int], targets: int, most_read: int, search: GradientSearch
) -> list[_Part]:
    """Put attacks and batches together, and leave out what there are too few images for, or the search is not for."""
    largest = {AttackName.CHOSEN_WEIGHTS: targets, AttackName.GRADIENTS: min(targets, search.largest)}
    most = {AttackName.CHOSEN_WEIGHTS: most_read, AttackName.GRADIENTS: search.images}
    return [
        _Part(attack, batch, _count(batch, most[attack], targets))
        for attack in attacks
        for batch in batches
        if batch <= largest[attack]
    ]


def _count(batch: int, most: int, targets: int) -> int:
    """Count the images to attack: whole batches, and one at least."""
    return max(batch, min(most, targets) // batch * batch)


def _needs(step: OwnerStep, part: _Part) -> str:
    sent = f"{_WORDS[step.exchange]} over {_images_in_words(part.batch)}, and the labels, which such a gradient tells"
    if part.attack is not AttackName.CHOSEN_WEIGHTS:
        return sent
    return f"{sent}, for weights that tell images apart by {told_apart_by(step.network.config, part.batch)}"


def _read(owner: _Owner, part: _Part, seed: int, on_progress: Callable[[float], None]) -> UInt8Array:
    """Read batch after batch with chosen weights; images are in the owner's order.

    The labels tell it, or, where images of one label were told apart, whoever measures pairs them.
    """
    config = owner.step.network.config
    network = chosen_network(config, part.batch, seed).to(owner.device)
    asked = replace(owner, step=replace(owner.step, network=network))
    pairs = told_apart_by(config, part.batch) is ToldApartBy.BRIGHTNESS
    results = []
    for rows, sent in asked.answers(part):
        labels = torch.from_numpy(owner.labels[rows])
        shape = (part.batch, *owner.fed.shape[1:])
        found = read_images(network, sent.gradient, sent.moments, labels, shape, batch_norm=owner.step.batch_norm)
        results.append(paired(found.images, owner.fed[rows]) if pairs else found.images)
        on_progress(rows.stop / part.images)
    return np.concatenate(results)


def _inverted(
    owner: _Owner, part: _Part, config: GradientInversionConfig, seed: int, on_progress: Callable[[float], None]
) -> UInt8Array:
    """Invert batch after batch of what the owner trained on, and put each in the order that fits what was fed best.

    A gradient does not say which image is which. Whoever measures has to pair them; an attacker does not care.
    """
    results = []
    for rows, sent in owner.answers(part):
        found = invert_gradient(
            owner.step.network,
            sent.gradient,
            torch.from_numpy(owner.labels[rows]),
            (part.batch, *owner.fed.shape[1:]),
            config,
            moments=sent.moments,
            device=owner.device,
            seed=seed + rows.start,
            on_step=partial(_tell_step, on_progress, rows.start, part),
        )
        results.append(paired(found.images, owner.fed[rows]))
    return np.concatenate(results)


def _mixed(images: AuditImages, seed: int) -> AuditImages:
    """Put the targets into a random order: where classes take turns, no two images of a batch would share a label."""
    order = np.random.default_rng(seed).permutation(len(images.targets))
    return replace(images, targets=PlainImages(images.targets.pixels[order]), target_labels=images.target_labels[order])


def paired(found: UInt8Array, fed: UInt8Array) -> UInt8Array:
    """Put found images, (N, H, W, C), into the order in which their folded values fit those of others best."""
    mine, theirs = (fold(images).reshape(len(images), -1).astype(np.float64) for images in (found, fed))
    rows = linear_sum_assignment(cdist(theirs, mine, "sqeuclidean"))[1]
    ordered: UInt8Array = found[rows]
    return ordered


@dataclass(frozen=True, eq=False)
class _Restorer:
    """Makes pictures of encrypted images.

    Attributes
    ----------
    how, needs : str
        What is said behind the number of images, and behind what the attacker needs.
    restore : callable
    trained_s : float
    """

    how: str
    restore: Solver
    needs: str = ""
    trained_s: float = 0.0


def _restorers(session: Session, tell: Callable[[float], None], *, learns: bool) -> list[_Restorer]:
    """Choose the strongest that needs no training, and train learned edges where they are wanted."""
    found = solver(session.spec, device=session.device, seed=session.seed)
    restorers = [] if found is None else [_Restorer(", then restored", found)]
    if learns:
        preset, started = session.preset.edges, time.monotonic()
        edges = edges_of_session(session, preset, tell)
        needs = f"; {min(preset.images, len(session.images.own)):,} pictures of its own, and time to train"
        restorers.append(_Restorer(", then by learned edges", edges.restore, needs, time.monotonic() - started))
    return restorers


def _views(
    inverted: UInt8Array, encrypted: EncryptedImages | None, restorers: Sequence[_Restorer]
) -> Iterator[tuple[_Restorer, UInt8Array]]:
    """Show what came out as it is, folded, and restored."""
    yield _Restorer("", _same), inverted
    if encrypted is None:
        return
    if folds(encrypted.cipher.name):
        folding = _Restorer(", folded", lambda pixels: folded_view(replace(encrypted[: len(pixels)], pixels=pixels)))
        restorers = [folding, *restorers]
    for one in restorers:
        yield one, one.restore(inverted)


def _same(pixels: UInt8Array) -> UInt8Array:
    return pixels


def _tell_part(on_progress: Callable[[str, float], None], what: str, number: int, parts: int, part: float) -> None:
    on_progress(what, (number + part) / parts)


def _tell_step(on_progress: Callable[[float], None], start: int, part: _Part, step: int, steps: int) -> None:
    on_progress((start + part.batch * step / steps) / part.images)


def _images_in_words(batch: int) -> str:
    return "one image" if batch == 1 else f"{batch} images"
