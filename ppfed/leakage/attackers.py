"""What each attacker is given, and which of the attacks it then runs.

The attacks themselves know nothing of keys (``ppfed/attacks``); here their targets are encrypted, and pairs are leaked
that an attacker is said to have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import cast

import numpy as np
import torch

from ppfed.attacks.alone import PUZZLES, XOR_CONSTANTS, fits, open_ways, puzzle, puzzle_variants
from ppfed.attacks.blocks import bit_planes, correlations, template
from ppfed.attacks.blocks.edges import Variants
from ppfed.attacks.blocks.template import Template
from ppfed.attacks.blocks.views import likeliest_view, views
from ppfed.attacks.learned import inversion, learned_edges, learned_seams, unpaired
from ppfed.attacks.learned.learned_patterns import Leaves
from ppfed.attacks.values import frequencies, known_plaintext, same_mask, stream, unfold
from ppfed.attacks.values.fold import folded_view
from ppfed.ciphers.negative_positive import NegativePositiveCipher
from ppfed.ciphers.registry import Cipher, make_cipher
from ppfed.ciphers.spec import BLOCK_PX, CipherSpec, Scope
from ppfed.errors import UsageError
from ppfed.images.types import ID_BYTES, EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from ppfed.leakage.images import AuditImages
from ppfed.leakage.metrics import upright
from ppfed.leakage.record import AttackName
from ppfed.networks.config import best_features

_FEW_CIPHERTEXTS = 100
_PAIRS = (1, 5)
_TEMPLATE_PAIRS = (2, 10)
_LEAKED_PAIRS = 1000
_FEWEST_REFERENCES, _MOST_REFERENCES = 30, 500
_ATTACKERS_KEY = 1 << 20
"""Numbers of the attacker's own keys start here; the owners' is 0."""


class AuditPreset(StrEnum):
    """What an attacker spends."""

    QUICK = "quick"
    """A minute: shows that the attacks work, not how well."""
    CPU = "cpu"
    """Half an hour on one core at 32x32 pixels."""
    GPU = "gpu"

    @property
    def inversion(self) -> inversion.InversionPreset:
        """What is spent on a learned inversion."""
        return {"quick": inversion.QUICK, "cpu": inversion.CPU, "gpu": inversion.GPU}[self.value]

    @property
    def edges(self) -> learned_edges.EdgesPreset:
        """What is spent on learned edges."""
        return {"quick": learned_edges.QUICK, "cpu": learned_edges.CPU, "gpu": learned_edges.GPU}[self.value]

    @property
    def seams(self) -> learned_seams.SeamsPreset:
        """What is spent on learned seams."""
        return {"quick": learned_seams.QUICK, "cpu": learned_seams.CPU, "gpu": learned_seams.GPU}[self.value]

    @property
    def unpaired(self) -> unpaired.UnpairedPreset:
        """What is spent on an attack without pairs."""
        return {"quick": unpaired.QUICK, "cpu": unpaired.CPU, "gpu": unpaired.GPU}[self.value]

    @property
    def own_images(self) -> int:
        """So many images of its own an attacker uses."""
        return self.inversion.images

    @property
    def pooled(self) -> int:
        """Most images whose puzzles are solved as one."""
        return {"quick": 100, "cpu": 1000, "gpu": 1000}[self.value]

    @property
    def searched(self) -> int:
        """Most images that a slow search is run on."""
        return {"quick": 16, "cpu": 200, "gpu": 1000}[self.value]


@dataclass(frozen=True, eq=False)
class Restored:
    """What an attack made of the first targets.

    Attributes
    ----------
    pixels : uint8 array, (n, H, W, C) or (n, H, W, 1)
    needs : str
        What the attacker was given, in words.
    setting : str
        As in ``AttackOutcome``.
    bits : float or None
        As in ``AttackOutcome``.
    """

    pixels: UInt8Array
    needs: str
    setting: str = ""
    bits: float | None = None


class Session:
    """The target and what an attacker may be given of it.

    Parameters
    ----------
    spec : CipherSpec
    images : AuditImages
    preset : AuditPreset
    device : torch.device
    seed : int
    """

    def __init__(
        self, spec: CipherSpec, images: AuditImages, preset: AuditPreset, device: torch.device, seed: int
    ) -> None:
        self.spec = spec
        self.images = images
        self.preset = preset
        self.device = device
        self.seed = seed
        self.cipher: Cipher = make_cipher(spec, throwaway_key(seed))
        self.encrypted: EncryptedImages = self.cipher.encrypt(images.targets, throwaway_ids(seed, len(images.targets)))

    @property
    def constants(self) -> tuple[int, ...]:
        """What NP, or NP twice, may XOR values with."""
        return XOR_CONSTANTS[self.spec.name]

    def bits_found(self, found: stream.RecoveredStream, *, either_sign: bool = False) -> float:
        """Compare a recovered key stream with the true one of the first target; NP and NP twice only."""
        true = cast(NegativePositiveCipher, self.cipher).stream(self.encrypted.ids[:1], self.images.shape)
        return stream.mask_bits_found(found, true.mask, true.permutation, either_sign=either_sign)

    def leaked(self, count: int) -> tuple[UInt8Array, UInt8Array]:
        """Give the attacker pairs under the owners' key: images of its own, as if they were an owner's.

        Returns
        -------
        plain, encrypted : uint8 arrays, (count, H, W, C)
            Fewer where the attacker has not as many images.
        """
        plain = self.images.own.pixels[:count]
        return plain, self.as_owner(plain)

    def as_owner(self, plain: UInt8Array) -> UInt8Array:
        """Encrypt under the owners' key."""
        return self.cipher.encrypt(PlainImages(plain), throwaway_ids(self.seed, len(plain), 1)).pixels

    def under_own_keys(self, plain: UInt8Array, epoch: int) -> UInt8Array:
        """Encrypt as the attacker can: under a key of its own, with a fresh key stream for each image."""
        spec = CipherSpec(self.spec.name, Scope.IMAGE, self.spec.colour_shuffle)
        cipher = make_cipher(spec, throwaway_key(self.seed, _ATTACKERS_KEY + epoch))
        return cipher.encrypt(PlainImages(plain), throwaway_ids(self.seed, len(plain), 2 + epoch)).pixels


def throwaway_key(seed: int, number: int = 0) -> MasterKey:
    """Make a key for an audit. It is no secret: anyone who has the seed can make it, so that results repeat."""
    return MasterKey(hashlib.sha256(f"ppfed audit, not a secret: seed {seed}, key {number}".encode()).digest())


def throwaway_ids(seed: int, count: int, use: int = 0) -> UInt8Array:
    """Draw ids for so many images, (count, 12), that repeat with the seed, and are others for each use."""
    source = np.random.SeedSequence([seed, use])
    return np.random.default_rng(source).integers(0, 256, (count, ID_BYTES), dtype=np.uint8)


Tell = Callable[[float], None]
"""Called with the part done, 0 to 1."""


@dataclass(frozen=True)
class Attacker:
    """An attack, bound to what it is given.

    Attributes
    ----------
    applies : callable
        Whether it makes sense against a cipher, for images with so many channels.
    run : callable
        Called with the session and with what to call with the part done, 0 to 1.
    """

    applies: Callable[[CipherSpec, int], bool]
    run: Callable[[Session, Tell], Iterator[Restored]]


def _fold(session: Session, _tell: Tell) -> Iterator[Restored]:
    yield Restored(folded_view(session.encrypted), "the ciphertext alone")


def _unfold(session: Session, tell: Tell) -> Iterator[Restored]:
    hidden = session.encrypted.pixels[: session.preset.searched]
    restored = unfold.unfold(
        hidden, colour_shuffle=session.spec.colour_shuffle, constants=session.constants, device=session.device
    )
    tell(1.0)
    yield Restored(restored, "the ciphertext alone")


def _same_mask(session: Session, tell: Tell) -> Iterator[Restored]:
    hidden = session.encrypted.pixels
    counts = sorted({min(_FEW_CIPHERTEXTS, len(hidden)), len(hidden)})
    for number, count in enumerate(counts, start=1):
        found = same_mask.recover(
            hidden[:count], colour_shuffle=session.spec.colour_shuffle, constants=session.constants
        )
        bits = session.bits_found(found, either_sign=True)
        yield Restored(found.restore(hidden), "ciphertexts that share one mask", f"{count:,} ciphertexts", bits)
        tell(number / len(counts))


def _frequencies(session: Session, tell: Tell) -> Iterator[Restored]:
    height, width, _ = session.images.shape
    if height * width > frequencies.MOST_PIXELS:
        raise UsageError(
            f"images of {height}x{width} are too large for the attack on places by frequencies",
            hint="Measure at another --size, such as 32, or name other attacks with --attack.",
        )
    yield from _compared(session, frequencies.recover, tell)


def _correlations(session: Session, tell: Tell) -> Iterator[Restored]:
    height, width, _ = session.images.shape
    if (height // BLOCK_PX) * (width // BLOCK_PX) > correlations.MOST_BLOCKS:
        raise UsageError(
            f"images of {height}x{width} are too large for the attack by correlations",
            hint="Measure at another --size, such as 32, or name other attacks with --attack.",
        )
    if min(len(session.images.targets), len(session.images.own)) < correlations.FEWEST:
        raise UsageError(
            "one image varies with nothing: the attack by correlations needs more",
            hint="Name a folder with more images, or other attacks with --attack.",
        )
    yield from _compared(session, correlations.recover, tell)


def _compared(
    session: Session, recover: Callable[[UInt8Array, UInt8Array, Tell], Template], tell: Tell
) -> Iterator[Restored]:
    """Restore by what ciphertexts of one key stream have in common, compared with pictures of the attacker's own.

    Few of either do not tell a picture from its mirror image, which eyes do.
    """
    hidden, own = session.encrypted.pixels, session.images.own.pixels[: session.preset.own_images]
    restored = recover(hidden, own, tell).restore(hidden)
    needs = f"ciphertexts that share one key stream, and {len(own):,} pictures of its own"
    setting = f"{len(hidden):,} ciphertexts"
    yield Restored(restored, needs, setting)
    seen = turned_by_eye(restored, session.images.targets.pixels, open_ways(session.spec.name), pooled=True)
    if not np.array_equal(seen, restored):
        yield Restored(seen, f"{needs}, and eyes to tell which way up", f"{setting}, turned by eye")


def _known_plaintext(session: Session, tell: Tell) -> Iterator[Restored]:
    for number, count in enumerate(_PAIRS, start=1):
        plain, hidden = session.leaked(count)
        found = known_plaintext.recover(
            plain, hidden, colour_shuffle=session.spec.colour_shuffle, constants=session.constants
        )
        bits = session.bits_found(found)
        restored = found.restore(session.encrypted.pixels)
        yield Restored(restored, "images that it knows, with their ciphertexts", _pairs_in_words(len(plain)), bits)
        tell(number / len(_PAIRS))


def _chosen_plaintext(session: Session, _tell: Tell) -> Iterator[Restored]:
    chosen = known_plaintext.chosen_image(*session.images.shape)
    found = known_plaintext.recover(
        chosen, session.as_owner(chosen), colour_shuffle=session.spec.colour_shuffle, constants=session.constants
    )
    bits = session.bits_found(found)
    needs = "an owner who encrypts one image of the attacker's choice"
    yield Restored(found.restore(session.encrypted.pixels), needs, bits=bits)


def _bit_planes(session: Session, _tell: Tell) -> Iterator[Restored]:
    _require_fit(session)
    pooled = session.spec.scope is Scope.FIXED
    hidden = session.encrypted.pixels[: None if pooled else session.preset.searched]
    needs = "ciphertexts that share one key stream" if pooled else "the ciphertext alone"
    yield Restored(bit_planes.restore_le(hidden, pooled=pooled), needs)


def _require_fit(session: Session) -> None:
    if not fits(session.spec.name, session.images.shape):
        height, width, _ = session.images.shape
        raise UsageError(
            f"images of {height}x{width} are too small or too large for the attack on blocks",
            hint="Measure at another --size, such as 32, or name other attacks with --attack.",
        )


def _jigsaw(session: Session, _tell: Tell) -> Iterator[Restored]:
    _require_fit(session)
    pooled = session.spec.scope is Scope.FIXED
    hidden = session.encrypted.pixels
    solved = hidden[: session.preset.pooled if pooled else session.preset.searched]
    found = puzzle(session.spec.name, solved, pooled=pooled, generator=np.random.default_rng(session.seed))
    needs = "ciphertexts that share one key stream" if pooled else "the ciphertext alone"
    yield from _turned(session, found.restore(hidden if pooled else solved), needs, pooled=pooled)


def _turned(session: Session, restored: UInt8Array, needs: str, *, pooled: bool) -> Iterator[Restored]:
    """Show what a jigsaw solver made in the way that is likeliest, and in the way that is right."""
    ways = open_ways(session.spec.name)
    known = session.images.own.pixels[:_MOST_REFERENCES]
    if len(known) >= _FEWEST_REFERENCES:
        likely = likeliest_view(restored, known, ways, pooled=pooled)
        yield Restored(likely, f"{needs}, and some pictures of its own to tell which way up", "turned by guess")
    yield Restored(
        turned_by_eye(restored, session.images.targets.pixels[: len(restored)], ways, pooled=pooled),
        f"{needs}, and eyes to tell which way up",
        "turned by eye",
    )


def turned_by_eye(restored: UInt8Array, originals: UInt8Array, ways: Variants, *, pooled: bool) -> UInt8Array:
    """Turn and mirror as the originals want it: whoever sees a picture sees that it hangs upside down."""
    shown = views(restored, ways)
    likeness = np.stack([upright(view, originals)[1] for view in shown])
    if pooled:
        return shown[int(likeness.mean(axis=1).argmax())]
    chosen: UInt8Array = np.stack(shown)[likeness.argmax(axis=0), np.arange(len(restored))]
    return chosen


def _template(session: Session, tell: Tell) -> Iterator[Restored]:
    for number, count in enumerate(_TEMPLATE_PAIRS, start=1):
        plain, hidden = session.leaked(count)
        found = template.recover(session.spec.name, plain, hidden)
        restored = found.restore(session.encrypted.pixels)
        yield Restored(restored, "images that it knows, with their ciphertexts", _pairs_in_words(len(plain)))
        tell(number / len(_TEMPLATE_PAIRS))


def _inversion(session: Session, tell: Tell) -> Iterator[Restored]:
    trained = inversion_of_session(session, session.preset.inversion, tell)
    count = len(session.images.own)
    yield Restored(trained.restore(session.encrypted.pixels), f"{count:,} pictures of its own, and time to train")


def inversion_of_session(session: Session, preset: inversion.InversionPreset, tell: Tell) -> inversion.Inversion:
    """Train a learned inversion on what the attacker of a session has: pictures, and keys of its own."""
    fresh = replace(session.spec, scope=Scope.IMAGE)
    return inversion.train_inversion(
        session.images.own.pixels,
        session.under_own_keys,
        preset,
        features=best_features(fresh),
        front=inversion.best_front(fresh),
        device=session.device,
        seed=session.seed,
        on_step=lambda step, steps: tell(step / steps),
    )


def _learned_edges(session: Session, tell: Tell) -> Iterator[Restored]:
    preset = session.preset.edges
    trained = edges_of_session(session, preset, tell)
    count = min(preset.images, len(session.images.own))
    restored = trained.restore(session.encrypted.pixels[: session.preset.searched])
    yield Restored(restored, f"{count:,} pictures of its own, and time to train")


def edges_of_session(session: Session, preset: learned_edges.EdgesPreset, tell: Tell) -> learned_edges.LearnedEdges:
    """Train learned edges on what the attacker of a session has; of NP or NP twice in image scope."""
    return learned_edges.train_edges(
        session.images.own.pixels,
        Leaves(session.constants, session.spec.colour_shuffle),
        preset,
        device=session.device,
        seed=session.seed,
        on_progress=tell,
    )


def _learned_seams(session: Session, tell: Tell) -> Iterator[Restored]:
    _require_fit(session)
    cipher, own = session.spec.name, session.images.own.pixels
    trained = learned_seams.train_seams(
        own,
        session.preset.seams,
        block_px=BLOCK_PX,
        variants=puzzle_variants(cipher, session.images.shape[2]),
        device=session.device,
        seed=session.seed,
        on_progress=tell,
    )
    hidden = session.encrypted.pixels[: session.preset.searched]
    found = puzzle(cipher, hidden, pooled=False, generator=np.random.default_rng(session.seed), fit=trained.costs)
    needs = f"{min(session.preset.seams.images, len(own)):,} pictures of its own, and time to train"
    yield from _turned(session, found.restore(hidden), needs, pooled=False)


def _leaked_pairs(session: Session, tell: Tell) -> Iterator[Restored]:
    plain, hidden = session.leaked(_LEAKED_PAIRS)
    trained = inversion.train_inversion(
        plain,
        lambda _plain, _epoch: hidden,
        session.preset.inversion,
        features=best_features(session.spec),
        front=inversion.best_front(session.spec),
        device=session.device,
        seed=session.seed,
        on_step=lambda step, steps: tell(step / steps),
    )
    restored = trained.restore(session.encrypted.pixels)
    yield Restored(restored, "leaked images with their ciphertexts, and time to train", _pairs_in_words(len(plain)))


def _unpaired(session: Session, tell: Tell) -> Iterator[Restored]:
    hidden = session.encrypted.pixels
    trained = unpaired.train_unpaired(
        hidden,
        session.images.own.pixels,
        session.preset.unpaired,
        device=session.device,
        seed=session.seed,
        on_step=lambda step, steps: tell(step / steps),
    )
    needs = (
        f"{len(hidden):,} ciphertexts that share one mask, {len(session.images.own):,} pictures of its own, and time"
    )
    yield Restored(trained.restore(hidden), needs)


def _collusion(session: Session, _tell: Tell) -> Iterator[Restored]:
    yield Restored(session.cipher.decrypt(session.encrypted).pixels, "the key, from one owner")


def _pairs_in_words(count: int) -> str:
    return "1 pair" if count == 1 else f"{count:,} pairs"


def _only(*names: str, scope: Scope | None = None) -> Callable[[CipherSpec, int], bool]:
    return lambda spec, _channels: spec.name in names and scope in (None, spec.scope)


_NP = tuple(XOR_CONSTANTS)
_TEMPLATES = ("le-v1", "ele-v1", "etc-v1", "block-pixel-v1", "logistic-rc4-v1")

ATTACKERS: Mapping[AttackName, Attacker] = MappingProxyType(
    {
        AttackName.FOLD: Attacker(_only(*_NP), _fold),
        AttackName.UNFOLD: Attacker(_only(*_NP), _unfold),
        AttackName.SAME_MASK: Attacker(_only(*_NP), _same_mask),
        AttackName.FREQUENCIES: Attacker(_only("logistic-rc4-v1", scope=Scope.FIXED), _frequencies),
        AttackName.CORRELATIONS: Attacker(_only("ele-v1", scope=Scope.FIXED), _correlations),
        AttackName.KNOWN_PLAINTEXT: Attacker(_only(*_NP), _known_plaintext),
        AttackName.CHOSEN_PLAINTEXT: Attacker(_only(*_NP), _chosen_plaintext),
        AttackName.BIT_PLANES: Attacker(_only("le-v1"), _bit_planes),
        AttackName.JIGSAW: Attacker(_only(*PUZZLES), _jigsaw),
        AttackName.TEMPLATE: Attacker(_only(*_TEMPLATES, scope=Scope.FIXED), _template),
        AttackName.INVERSION: Attacker(lambda spec, _channels: spec.scope is Scope.IMAGE, _inversion),
        AttackName.LEARNED_EDGES: Attacker(_only(*_NP, scope=Scope.IMAGE), _learned_edges),
        AttackName.LEARNED_SEAMS: Attacker(_only(*PUZZLES, scope=Scope.IMAGE), _learned_seams),
        AttackName.LEAKED_PAIRS: Attacker(lambda spec, _channels: spec.scope is Scope.FIXED, _leaked_pairs),
        AttackName.UNPAIRED: Attacker(_only("np-v1", scope=Scope.FIXED), _unpaired),
        AttackName.COLLUSION: Attacker(lambda _spec, _channels: True, _collusion),
    }
)
"""By name; what owners send instead of images is attacked in ``ppfed/leakage/sent.py``."""
