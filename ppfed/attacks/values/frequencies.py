"""Ciphertexts alone, values masked and pixels moved alike in all: how often values occur, and how pixels vary together.

Frequency analysis of what ``logistic-rc4-v1`` does in fixed scope, with pictures of the attacker's own in place of a
language. Source: ours.

1. *Masks.* At each place of the ciphertexts, and for each pair of its colours, how often each pair of values occurs is
   compared with how often it does in pictures, under each of the 65,536 pairs of masks. A sum over values that are
   XORed is a Walsh-Hadamard transform, so that all pairs of masks are asked at once.
2. *Places.* Where pixels belong follows from how they vary together (``ppfed/attacks/matching.py``).
3. *Masks again*: of a pixel whose neighbours are known, they and its other colours are asked, as in step 1. Then the
   places again.

With P pixels of C colours, N ciphertexts and M pictures, masks take O(C P (N + 256^3)) operations, C times as many
the second time, and places O(C P^2 (M + N)) and some dozen times O(C P^3); memory is O(C P^2) besides what is given.
32x32 pixels in colour take about a minute of one core and less than 1 GiB, longer where nothing is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.linalg import hadamard
from scipy.ndimage import gaussian_filter

from ppfed.attacks.blocks.template import Template
from ppfed.attacks.matching import Float32Array, IndexArray, Matching
from ppfed.images.types import UInt8Array

MOST_PIXELS = 48 * 48
"""Of an image: they are compared in pairs, and assigned in time that grows with their third power."""

_LEVELS = 256
_CHUNK = 64
"""Places whose frequencies are counted at once: 32 MiB."""
_NEVER = 0.3
"""Added to how often a pair of values was seen: unseen ones are unlikely, not impossible."""
_KEPT = 8
"""Masks of a colour, the likeliest beside another colour's, that are tried in threes."""
_ROUNDS = 2
"""So often masks are asked of neighbours."""

_WALSH = hadamard(_LEVELS).astype(np.float32)


def recover(ciphertexts: UInt8Array, own: UInt8Array, tell: Callable[[float], None] = lambda _part: None) -> Template:
    """Recover the masks and the order of pixels that images share.

    Parameters
    ----------
    ciphertexts : uint8 array, (N, H, W, C)
        With 1 or 3 channels. Of 32x32 pixels in colour 1,000 were enough; where each has a key stream of its own,
        the result is at chance.
    own : uint8 array, (M, H, W, C)
        Pictures of the same kind, none of which has to be among the encrypted.
    tell : callable
        Called with the part done, 0 to 1.

    Returns
    -------
    Template
        With ``block_px`` 1 and without 4-bit values.

    Raises
    ------
    ValueError
        If there are no images, or their shapes differ, or they have more than ``MOST_PIXELS`` pixels.
    """
    height, width, channels = ciphertexts.shape[1:]
    if own.shape[1:] != ciphertexts.shape[1:] or not len(own) or not len(ciphertexts):
        raise ValueError("there must be ciphertexts, and pictures of the same shape")
    if height * width > MOST_PIXELS:
        raise ValueError(f"images have more than {MOST_PIXELS:,} pixels")
    hidden = ciphertexts.reshape(len(ciphertexts), -1, channels)
    known = own.reshape(len(own), -1, channels)
    mask = _likeliest_masks(hidden, known)
    tell(0.4)
    matching = Matching(known, (height, width))
    place = matching.begin(hidden ^ mask)
    for number in range(_ROUNDS):
        tell(0.6 + 0.4 * number / _ROUNDS)
        asked = _masks_by_neighbours(hidden, mask, place, own)
        if np.array_equal(asked, mask):
            break
        mask = asked
        place = matching.improve(hidden ^ mask, place)
    source = (place[:, None] * channels + np.arange(channels)).reshape(-1)
    return Template(False, 1, source, mask.reshape(-1))


def _likeliest_masks(hidden: UInt8Array, known: UInt8Array) -> UInt8Array:
    """Compare frequencies at each place with those of pictures anywhere: (P, C)."""
    places, channels = hidden.shape[1:]
    if channels == 1:
        counts = np.bincount(known.reshape(-1), minlength=_LEVELS)
        spectrum = _WALSH @ np.log(gaussian_filter(counts.astype(np.float32), 1.0) + counts + _NEVER)
        seen = np.stack([np.bincount(hidden[:, place, 0], minlength=_LEVELS) for place in range(places)])
        alone: UInt8Array = (((seen @ _WALSH) * spectrum) @ _WALSH).argmax(axis=1)[:, None].astype(np.uint8)
        return alone
    pairs = ((0, 1), (1, 2), (0, 2))
    spectra = [_WALSH @ _log_frequencies(known[..., one], known[..., other]) @ _WALSH for one, other in pairs]
    mask = np.empty((places, channels), dtype=np.uint8)
    for chunk, part in _chunks(hidden):
        first, second, third = (
            _WALSH @ ((_WALSH @ _counted(part[..., one], part[..., other]) @ _WALSH) * spectrum) @ _WALSH
            for (one, other), spectrum in zip(pairs, spectra, strict=True)
        )
        here = np.arange(len(first))
        green = (first.max(axis=1) + second.max(axis=2)).argmax(axis=1)
        red_alone, blue_alone = first[here, :, green], second[here, green]
        red, blue = (np.argsort(alone, axis=1)[:, -_KEPT:] for alone in (red_alone, blue_alone))
        total = (
            np.take_along_axis(red_alone, red, axis=1)[:, :, None]
            + np.take_along_axis(blue_alone, blue, axis=1)[:, None]
            + third[here[:, None, None], red[:, :, None], blue[:, None]]
        )
        best = total.reshape(len(here), -1).argmax(axis=1)
        mask[chunk] = np.stack([red[here, best // _KEPT], green, blue[here, best % _KEPT]], axis=1)
    return mask


def _masks_by_neighbours(hidden: UInt8Array, mask: UInt8Array, place: IndexArray, own: UInt8Array) -> UInt8Array:
    """Ask the pixels above, below, left and right of each, and its other colours, for its mask: (P, C)."""
    asked = np.empty_like(mask)
    places, channels = mask.shape
    laid = (hidden ^ mask)[:, np.argsort(place)].reshape(-1, *own.shape[1:])
    for channel in range(channels):
        likely = np.zeros((places, _LEVELS), dtype=np.float32)
        for other in range(channels):
            # Of its own colour a pixel says nothing itself, but its neighbours do.
            witness, wanted = (
                _around(images[..., other]) if other == channel else images[..., other] for images in (own, laid)
            )
            spectrum = _WALSH @ _log_frequencies(own[..., channel], witness)
            wanted = wanted.reshape(len(hidden), -1)[:, place]
            for chunk, part in _chunks(np.stack([hidden[..., channel], wanted], axis=2)):
                counts = _counted(part[..., 0], part[..., 1])
                likely[chunk] += ((_WALSH @ counts) * spectrum).sum(axis=2) @ _WALSH
        asked[:, channel] = likely.argmax(axis=1)
    return asked


def _around(images: UInt8Array) -> UInt8Array:
    """Show of each pixel the mean of those of its four neighbours that are neither darkest nor brightest."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    four = np.stack([wide[:, :-2, 1:-1], wide[:, 2:, 1:-1], wide[:, 1:-1, :-2], wide[:, 1:-1, 2:]])
    four.sort(axis=0)
    middle: UInt8Array = ((four[1].astype(np.uint16) + four[2] + 1) // 2).astype(np.uint8)
    return middle


def _log_frequencies(first: UInt8Array, second: UInt8Array) -> Float32Array:
    """Count pairs of values, smooth a little, and take the logarithm: (256, 256)."""
    counts = _counted(first.reshape(-1, 1), second.reshape(-1, 1))[0]
    result: Float32Array = np.log(gaussian_filter(counts, 1.0) + counts + _NEVER)
    return result


def _counted(first: UInt8Array, second: UInt8Array) -> Float32Array:
    """Count pairs of values over the first axis: (N, B) each to (B, 256, 256)."""
    places = first.shape[1]
    pairs = (np.arange(places) * _LEVELS + first) * _LEVELS + second
    counts = np.bincount(pairs.reshape(-1), minlength=places * _LEVELS * _LEVELS)
    return counts.reshape(places, _LEVELS, _LEVELS).astype(np.float32)


def _chunks(values: UInt8Array) -> Iterator[tuple[slice, UInt8Array]]:
    for start in range(0, values.shape[1], _CHUNK):
        chunk = slice(start, start + _CHUNK)
        yield chunk, values[:, chunk]
