"""Things moved alike in all images: where each belongs follows from how they vary together, as pictures say.

From the second moments of all pairs of things, K of what was moved and S of the attacker's pictures, the order P is
sought for which sum(W * P K P') is largest, W = S (S + s)^-1. For normally distributed pictures with noise of variance
s added that is the likeliest order. It is convex in P, so that moving all things at once to where its gradient wants
them (an assignment problem) never makes it smaller. Then half of what holds each thing where it is is left out, which
leads out of most dead ends. Of few things more is tried: random orders to begin with, exchanges of two things while one
helps, and all of it again with half of the best order at random. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from ppfed.images.types import UInt8Array

IndexArray = npt.NDArray[np.intp]
Float32Array = npt.NDArray[np.float32]

_IMAGES_AT_ONCE = 500
_NOISE = (0.3, 0.06)
"""Variances s, as parts of the largest that pictures have in one direction: coarse shapes first."""
FREE = 0.5
"""So much of what holds a thing at its place is taken away, once nothing else helps."""
_STEPS, _PATIENCE = 25, 3
_STARTS, _TRIES = 30, 400
_GAIN = 1e-9
"""Of what is reached, by which an exchange has to better it: less is rounding."""

# Lightness, red against blue, green against both: of photographs they hardly vary together.
_OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]], dtype=np.float32)
_OPPONENT /= np.linalg.norm(_OPPONENT, axis=1, keepdims=True)


class Matching:
    """Finds the place of each thing.

    Parameters
    ----------
    known : uint8 or float32 array, (M, P, C)
        Of pictures: P things, such as pixels, of 1 or 3 colours.
    shape : tuple of int
        Rows and columns that the things stand in; their product is P.
    """

    def __init__(self, known: UInt8Array | Float32Array, shape: tuple[int, int]) -> None:
        self._shape = shape
        centre = known.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
        self._centre = centre
        moments, self._means = self._moments(known)
        largest = float(np.linalg.eigvalsh(moments[0])[-1])
        self._spreads = _spreads(moments)
        self._weights = [
            np.stack([weights(one, noise) for one in moments])
            for noise in (part * max(largest, 1.0) for part in _NOISE)
        ]

    def begin(self, moved: UInt8Array | Float32Array) -> IndexArray:
        """Find the place of each thing: (P,) of (N, P, C)."""
        moments, means = self._moments(moved)
        features, wanted = (
            np.concatenate([mean, spread])
            for mean, spread in ((means, _spreads(moments)), (self._means, self._spreads))
        )
        apart = (features**2).sum(axis=0)[:, None] + (wanted**2).sum(axis=0) - 2 * features.T @ wanted
        height, width = self._shape
        place = self._climbed(linear_sum_assignment(apart)[1], moments, 0)[1]
        # Pictures are nearly as likely as their mirror images.
        mirrored = np.arange(height * width).reshape(height, width)[:, ::-1].reshape(-1)[place]
        starts = (place, mirrored)
        best = max((self._climbed(start, moments, 0) for start in starts), key=lambda found: found[0])[1]
        return self._loosened(best, moments)

    def search(self, moved: UInt8Array | Float32Array, generator: np.random.Generator) -> IndexArray:
        """Find the place of each thing, beginning at random: (P,) of (N, P, C).

        For some hundred things at most: it takes O(C P^3) operations some thousand times.
        """
        moments = self._moments(moved)[0]
        things = moments.shape[1]
        starts = (generator.permutation(things) for _ in range(_STARTS))
        most, best = max((self._settled(start, moments) for start in starts), key=lambda found: found[0])
        for _ in range(_TRIES):
            start, some = best.copy(), generator.permutation(things)[: things // 2]
            start[some] = start[generator.permutation(some)]
            reached, place = self._settled(start, moments)
            if reached > most:
                most, best = reached, place
        return best

    def settle(self, moved: UInt8Array | Float32Array, place: IndexArray) -> IndexArray:
        """Go on from places that are roughly right, with exchanges: for few things, as ``search``."""
        return self._settled(place, self._moments(moved)[0])[1]

    def improve(self, moved: UInt8Array | Float32Array, place: IndexArray) -> IndexArray:
        """Go on from places that are roughly right."""
        return self._loosened(place, self._moments(moved)[0])

    def _loosened(self, place: IndexArray, moments: Float32Array) -> IndexArray:
        for level in range(len(_NOISE)):
            place = self._climbed(place, moments, level, FREE)[1]
        return place

    def _climbed(
        self, place: IndexArray, moments: Float32Array, level: int, free: float = 0.0
    ) -> tuple[float, IndexArray]:
        wanted = self._weights[level]
        held = np.stack([np.diag(one) for one in moments])

        def pulls(place: IndexArray) -> tuple[Float32Array, Float32Array]:
            pull = sum(one[:, np.argsort(place)] @ weight for one, weight in zip(moments, wanted, strict=True))
            loosened = pull - free * sum(one[:, None] * weight[place] for one, weight in zip(held, wanted, strict=True))
            return pull, loosened

        return climb(place, pulls)

    def _settled(self, place: IndexArray, moments: Float32Array) -> tuple[float, IndexArray]:
        return self._exchanged(self._loosened(place, moments), moments)

    def _exchanged(self, place: IndexArray, moments: Float32Array) -> tuple[float, IndexArray]:
        """Exchange the two things that gain most by it, until none do, at the lowest noise."""
        place = place.copy()
        seen, wanted = moments.astype(np.float64), self._weights[-1].astype(np.float64)
        own = np.diagonal(seen, axis1=1, axis2=2)
        while True:
            here = wanted[:, place[:, None], place]
            reached = float((seen * here).sum())
            alone, both = np.diagonal(here, axis1=1, axis2=2), seen @ here
            kept = np.diagonal(both, axis1=1, axis2=2)
            gain = both + both.transpose(0, 2, 1) - kept[:, :, None] - kept[:, None]
            gain -= (seen - own[:, :, None]) * (alone[:, :, None] - here)
            gain -= (own[:, None] - seen) * (here - alone[:, None])
            gain = 2 * gain + (own[:, None] - own[:, :, None]) * (alone[:, :, None] - alone[:, None])
            first, second = np.unravel_index(gain.sum(axis=0).argmax(), gain.shape[1:])
            if gain[:, first, second].sum() <= _GAIN * abs(reached):
                return reached, place
            place[[first, second]] = place[[second, first]]

    def _moments(self, images: UInt8Array | Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return second moments of things in pairs about the pictures' colour, (C, P, P), and means, (C, P)."""
        pixels, channels = images.shape[1:]
        turned = _OPPONENT if channels == 3 else np.ones((1, 1), dtype=np.float32)
        moments = np.zeros((channels, pixels, pixels), dtype=np.float32)
        means = np.zeros((channels, pixels), dtype=np.float32)
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            part = (images[start : start + _IMAGES_AT_ONCE].astype(np.float32) - self._centre) @ turned.T
            for channel in range(channels):
                values = np.ascontiguousarray(part[..., channel])
                moments[channel] += values.T @ values
                means[channel] += values.sum(axis=0)
        count = np.float32(len(images))
        return moments / count, means / count


def climb(
    place: IndexArray, pulls: Callable[[IndexArray], tuple[Float32Array, Float32Array]]
) -> tuple[float, IndexArray]:
    """Move all things at once to where they are pulled, again and again, until nothing is gained for a while.

    Parameters
    ----------
    place : intp array, (P,)
        Where to begin.
    pulls : callable
        Called with places. Returns two float32 arrays, (P, P), of things and places: how likely each is, of which the
        sum over things is to be large, and by what to choose the next places.

    Returns
    -------
    float
        The largest sum.
    intp array, (P,)
        Its places.
    """
    best, most, since = place, -np.inf, 0
    for _ in range(_STEPS):
        likely, pull = pulls(place)
        reached = float(np.take_along_axis(likely, place[:, None], axis=1).sum())
        if reached > most:
            best, most, since = place, reached, 0
        else:
            since += 1
        if since >= _PATIENCE:
            break
        moved = linear_sum_assignment(pull, maximize=True)[1]
        if np.array_equal(moved, place):
            break
        place = moved
    return most, best


def weights(moments: Float32Array, noise: float) -> Float32Array:
    """Say what each pair of things has to do with one another, as pictures have it: S (S + s)^-1.

    Parameters
    ----------
    moments : float32 array, (P, P)
        S, second moments.
    noise : float
        The variance s.

    Returns
    -------
    float32 array, (P, P)
    """
    identity = np.eye(len(moments), dtype=np.float32)
    return (identity - noise * np.linalg.inv(moments + noise * identity)).astype(np.float32, copy=False)


def _spreads(moments: Float32Array) -> Float32Array:
    result: Float32Array = np.sqrt(np.diagonal(moments, axis1=1, axis2=2))
    return result
