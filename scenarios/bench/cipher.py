"""The cipher's speed beside copying the same bytes, its bare keystream, and the usual way to write it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from ppfed.ciphers.negative_positive import COLOUR_PERMUTATIONS, NegativePositiveCipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.cores import cores
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import KEY_BYTES, MasterKey
from scenarios.bench.measurement import BenchSettings, Bound, Measurement, in_turn

SECTION = "cipher"
_SHAPES = {"32x32": (32, 20_000), "224x224": (224, 400)}
"""Side and number of images: about 60 MB each, more than a processor's caches hold."""
_QUICK_PART = 4
_USUAL_IMAGES = 200
_BITS = 8

_TARGETS = {
    (Scope.FIXED, False): Bound(0.7),
    (Scope.IMAGE, False): Bound(0.6),
    (Scope.IMAGE, True): Bound(0.06),
}
_USUAL_TARGET = 250.0
"""Times as fast as a loop over images with a NumPy generator."""
_FLOORS = {
    (Scope.FIXED, False): Bound(0.08),
    (Scope.IMAGE, False): Bound(0.03),
    (Scope.FIXED, True): Bound(0.015),
    (Scope.IMAGE, True): Bound(0.004),
}
"""By scope and colour shuffle: of encryption and decryption, in proportion to a copy."""


def measure(settings: BenchSettings) -> Iterator[Measurement]:
    """Measure encryption and decryption in every scope, on one thread and on one a core.

    A copy goes to memory that is new each time, as the cipher's result does.
    """
    budget_s = 0.2 if settings.quick else 3.0
    key = MasterKey(os.urandom(KEY_BYTES))
    for name, (side, count) in _SHAPES.items():
        plain = PlainImages(_images(count // (_QUICK_PART if settings.quick else 1), side))
        for threads in (1,) if settings.quick else (1, cores()):
            for scope, shuffle in _FLOORS:
                spec = CipherSpec(scope=scope, colour_shuffle=shuffle)
                cipher = NegativePositiveCipher(key, spec, threads=threads)
                encrypted = cipher.encrypt(plain)
                setting = f"{spec}, {name}, {threads} {'thread' if threads == 1 else 'threads'}"
                ways: dict[str, Callable[[], object]] = {
                    "encrypt": partial(cipher.encrypt, plain),
                    "decrypt": partial(cipher.decrypt, encrypted),
                }
                for way, call in ways.items():
                    yield _against_copy(f"{way}, {setting}", call, plain.pixels, scope, shuffle, budget_s)
        yield from _against_others(key, plain, name, budget_s)


def _against_copy(
    name: str, call: Callable[[], object], pixels: UInt8Array, scope: Scope, shuffle: bool, budget_s: float
) -> Measurement:
    turns = in_turn(call, pixels.copy, budget_s=budget_s)
    return Measurement(
        SECTION,
        name,
        turns.speed,
        against="copy of the same bytes",
        target=_TARGETS.get((scope, shuffle)),
        floor=_FLOORS[scope, shuffle],
        spread=turns.spread,
        details=turns.details | {"ours_gb_per_s": pixels.nbytes / statistics.median(turns.ours) / 1e9},
    )


def _against_others(key: MasterKey, plain: PlainImages, name: str, budget_s: float) -> Iterator[Measurement]:
    """Image scope on one thread beside its mask's bare keystream, and beside a loop over images."""
    cipher = NegativePositiveCipher(key, CipherSpec(scope=Scope.IMAGE, colour_shuffle=False), threads=1)
    turns = in_turn(
        partial(cipher.encrypt, plain), partial(_keystream, plain.pixels.nbytes // _BITS), budget_s=budget_s
    )
    yield Measurement(
        SECTION,
        f"encrypt, NP, {name}",
        turns.speed,
        against="AES-CTR keystream of its mask, nothing else",
        spread=turns.spread,
        details=turns.details,
    )
    few = PlainImages(plain.pixels[:_USUAL_IMAGES])
    for shuffle in (False, True):
        spec = CipherSpec(scope=Scope.IMAGE, colour_shuffle=shuffle)
        ours = NegativePositiveCipher(key, spec, threads=1)
        turns = in_turn(partial(ours.encrypt, few), partial(usual_way, few.pixels, shuffle=shuffle), budget_s=budget_s)
        yield Measurement(
            SECTION,
            f"encrypt, {spec}, {name}",
            turns.speed,
            against="RandomState and a loop over images",
            target=Bound(_USUAL_TARGET),
            floor=Bound(2.0),
            spread=turns.spread,
            details=turns.details,
        )


def usual_way(pixels: UInt8Array, *, shuffle: bool) -> UInt8Array:
    """Encrypt as published scripts do: a NumPy generator seeded for each image, and whole-array operations in it.

    Its random numbers are no key stream, only as costly as the ones that such scripts draw.

    Parameters
    ----------
    pixels : uint8 array, (N, H, W, 3)
    shuffle : bool
        Whether colours are shuffled too.
    """
    encrypted = np.empty_like(pixels)
    for index, image in enumerate(pixels):
        random = np.random.RandomState(index)
        masked = np.where(random.randint(0, 2, image.shape) == 1, 255 - image, image).astype(np.uint8)
        if shuffle:
            order = COLOUR_PERMUTATIONS[random.randint(0, len(COLOUR_PERMUTATIONS), image.shape[:2])]
            masked = np.take_along_axis(masked, order.astype(np.intp), axis=2)
        encrypted[index] = masked
    return encrypted


def _keystream(length: int) -> bytes:
    return BlockCipher(algorithms.AES(bytes(KEY_BYTES)), modes.CTR(bytes(16))).encryptor().update(bytes(length))


def _images(count: int, side: int) -> UInt8Array:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
