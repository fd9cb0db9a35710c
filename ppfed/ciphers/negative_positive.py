"""The pixel-based cipher: negative-positive transform and colour shuffle.

Source: Sirichotedumrong et al., ICIP 2019, sections 3.2 and 3.4; the bits come from AES as docs/cipher.md defines them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import WrongKeyError
from ppfed.images.types import ID_BYTES, EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

COLOUR_PERMUTATIONS: UInt8Array = np.array(
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], dtype=np.uint8
)
"""(6, 3): row k lists the old channel that each new channel takes: RGB, RBG, GRB, GBR, BRG, BGR (paper, 3.2)."""

_BLOCK_BYTES = 16
_WORD_BYTES = 4
_CHUNK_VALUES = 1 << 22
"""Values encrypted at once: large enough for whole batches, small enough to keep the temporaries in cache."""


def _spread_table() -> UInt8Array:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.ascontiguousarray(bits * np.uint8(255))


_SPREAD = _spread_table().view(np.uint64).ravel()
"""(256,) uint64: each byte of keystream spread to its eight XOR masks of 0 or 255, least significant bit first."""

_GATHER = np.argsort(COLOUR_PERMUTATIONS, axis=1).astype(np.uint8)
"""(6, 3): the inverse permutations, which undo the shuffle."""


@dataclass(frozen=True)
class NPStream:
    """What the key makes of a batch: the paper's random integers.

    Attributes
    ----------
    mask : uint8 array, (N, H, W, C)
        0 or 255: XORed with the pixels (step 2).
    permutation : uint8 array, (N, H, W), or None
        0 to 5: a row of ``COLOUR_PERMUTATIONS`` for each pixel (step 3); None where nothing is shuffled.
    """

    mask: UInt8Array
    permutation: UInt8Array | None


def apply_stream(pixels: UInt8Array, stream: NPStream) -> UInt8Array:
    """Encrypt: step 2, then step 3.

    Parameters
    ----------
    pixels : uint8 array, (N, H, W, C)
    stream : NPStream
        Of the same shape, or with N = 1 for a mask shared by the batch.

    Returns
    -------
    uint8 array, (N, H, W, C)
    """
    masked = pixels ^ stream.mask
    return masked if stream.permutation is None else _permute_colours(masked, stream.permutation, COLOUR_PERMUTATIONS)


def remove_stream(pixels: UInt8Array, stream: NPStream) -> UInt8Array:
    """Decrypt: undo step 3, then step 2. Shapes as in ``apply_stream``."""
    if stream.permutation is not None:
        pixels = _permute_colours(pixels, stream.permutation, _GATHER)
    return pixels ^ stream.mask


def _permute_colours(pixels: UInt8Array, permutation: UInt8Array, table: UInt8Array) -> UInt8Array:
    shape = pixels.shape
    permutation = np.broadcast_to(permutation, shape[:3])
    # One flat gather: value 3p + table[permutation of p] becomes the new value at each channel of pixel p.
    index = table.astype(np.int32)[permutation].reshape(-1, 3)
    index += np.arange(0, pixels.size, 3, dtype=np.int32)[:, None]
    return pixels.reshape(-1)[index].reshape(shape)


class NegativePositiveCipher:
    """The NP cipher, version 1.

    Parameters
    ----------
    key : MasterKey
    spec : CipherSpec
        Scope, and whether colours are shuffled.
    random_bytes : callable
        Where ids come from: the operating system's CSPRNG. They are public but must never repeat.
    """

    def __init__(self, key: MasterKey, spec: CipherSpec, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._spec = spec
        self._fingerprint = key.fingerprint
        self._random_bytes = random_bytes
        # ECB over counter blocks that we lay out ourselves is CTR mode for all images of a batch in one call.
        self._mask_aes = BlockCipher(algorithms.AES(key.derive(f"ppfed/v1/np/{spec.scope}/mask")), modes.ECB())  # noqa: S305
        self._shuffle_aes = BlockCipher(algorithms.AES(key.derive(f"ppfed/v1/np/{spec.scope}/shuffle")), modes.ECB())  # noqa: S305

    @property
    def spec(self) -> CipherSpec:
        """Its public parameters."""
        return self._spec

    @property
    def fingerprint(self) -> str:
        """The public name of its key."""
        return self._fingerprint

    def encrypt(self, images: PlainImages, ids: UInt8Array | None = None) -> EncryptedImages:
        """Encrypt a batch; see ``Cipher.encrypt``."""
        if ids is None:
            drawn = self._random_bytes(ID_BYTES * len(images))
            ids = np.frombuffer(drawn, dtype=np.uint8).reshape(len(images), ID_BYTES)
        pixels = self._transform(images.pixels, ids, apply_stream)
        return EncryptedImages(pixels, ids, self._spec, self._fingerprint)

    def decrypt(self, images: EncryptedImages) -> PlainImages:
        """Restore a batch; see ``Cipher.decrypt``."""
        if images.fingerprint != self._fingerprint:
            raise WrongKeyError(
                f"the images were encrypted with key {images.fingerprint}, and this key is {self._fingerprint}",
                hint="Use the key file with that fingerprint ('ppfed key show FILE' prints a file's).",
            )
        if images.cipher != self._spec:
            raise WrongKeyError(
                f"the images were encrypted with {images.cipher}, not with {self._spec}",
                hint="Decrypt with the parameters stored beside the images.",
            )
        return PlainImages(self._transform(images.pixels, images.ids, remove_stream))

    def stream(self, ids: UInt8Array, shape: tuple[int, int, int]) -> NPStream:
        """Derive masks and permutations.

        Parameters
        ----------
        ids : uint8 array, (N, 12)
            Ids of the images; ignored in fixed scope, where one stream (N = 1) serves every image.
        shape : (height, width, channels)
        """
        height, width, channels = shape
        if self._spec.scope is Scope.FIXED:
            nonce = b"".join(side.to_bytes(4, "big") for side in shape)
            ids = np.frombuffer(nonce, dtype=np.uint8).reshape(1, ID_BYTES)
        count, values = len(ids), height * width * channels
        bits = _ctr_keystream(self._mask_aes, ids, (values + 7) // 8)
        mask = _SPREAD[bits].view(np.uint8)[:, :values].reshape(count, *shape)
        if not self._spec.colour_shuffle or channels == 1:
            return NPStream(mask, None)
        words = _ctr_keystream(self._shuffle_aes, ids, height * width * _WORD_BYTES).view("<u4")
        # (u * 6) >> 32 for 32-bit u: the high half of a 64-bit product.
        permutation = ((words.astype(np.uint64) * np.uint64(6)) >> np.uint64(32)).astype(np.uint8)
        return NPStream(mask, permutation.reshape(count, height, width))

    def _transform(
        self, pixels: UInt8Array, ids: UInt8Array, apply: Callable[[UInt8Array, NPStream], UInt8Array]
    ) -> UInt8Array:
        shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        shared = self.stream(ids[:1], shape) if self._spec.scope is Scope.FIXED else None
        result = np.empty_like(pixels)
        for rows in _chunks(len(pixels), max(1, _CHUNK_VALUES // max(1, pixels[0].size if len(pixels) else 1))):
            result[rows] = apply(pixels[rows], shared or self.stream(ids[rows], shape))
        return result


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _ctr_keystream(aes: BlockCipher[modes.ECB], nonces: UInt8Array, length: int) -> UInt8Array:
    """AES-256-CTR keystreams of many nonces in one call.

    Parameters
    ----------
    aes : AES in ECB mode
    nonces : uint8 array, (N, 12)
        The counter block starts as the nonce followed by four zero bytes.
    length : int
        Bytes of keystream for each nonce.

    Returns
    -------
    uint8 array, (N, length), C-contiguous
    """
    blocks = -(-length // _BLOCK_BYTES)
    counters = np.empty((len(nonces), blocks, _BLOCK_BYTES), dtype=np.uint8)
    counters[:, :, :ID_BYTES] = nonces[:, None, :]
    counters[:, :, ID_BYTES:] = np.arange(blocks, dtype=">u4").view(np.uint8).reshape(blocks, 4)
    encryptor = aes.encryptor()
    keystream = np.frombuffer(encryptor.update(counters.data), dtype=np.uint8)
    return np.ascontiguousarray(keystream.reshape(len(nonces), blocks * _BLOCK_BYTES)[:, :length])
