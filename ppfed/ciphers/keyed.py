"""What all ciphers have in common: sub-keys, ids, scopes, batches, and the refusal of another key's images."""

from __future__ import annotations

import math
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Generic, TypeVar

import numpy as np

from ppfed.ciphers.keystream import Keystream, fixed_nonce
from ppfed.ciphers.spec import CipherSpec, Scope, cipher_info
from ppfed.cores import cores
from ppfed.errors import WrongKeyError
from ppfed.images.types import ID_BYTES, EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

StreamT = TypeVar("StreamT")
"""What the key makes of a batch: the random choices of one cipher, for each image or for all of them."""

_CHUNK_VALUES = 1 << 18
"""Values encrypted at once, where a cipher has no reason for more: everything made of them on the way stays in a core's
cache."""


class KeyedCipher(ABC, Generic[StreamT]):
    """A cipher whose random choices come from AES keystreams; a subclass says which choices, and what they do.

    Parameters
    ----------
    key : MasterKey
    spec : CipherSpec
        Its name is the subclass's.
    random_bytes : callable
        Where ids come from: OpenSSL's CSPRNG, which the operating system seeds, and anew in each process; it is ten
        times as fast as the system's own. Ids are public but must never repeat.
    threads : int or None
        That share a large batch; None for one a core. The result does not depend on it.

    Raises
    ------
    UsageError
        If the cipher does not have the options that ``spec`` asks for.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    """Its part of the sub-keys' labels: ``np`` in ``ppfed/v1/np/image/mask``."""
    uses: ClassVar[tuple[str, ...]]
    """What it needs keystreams for; each has a sub-key of its own."""

    def __init__(
        self,
        key: MasterKey,
        spec: CipherSpec,
        random_bytes: Callable[[int], bytes] = ssl.RAND_bytes,
        threads: int | None = None,
    ) -> None:
        if spec.name != self.name:
            raise ValueError(f"this is cipher {self.name}, not {spec.name}")
        self._info = cipher_info(spec.name)
        self._info.check(spec)
        self._spec = spec
        self._fingerprint = key.fingerprint
        self._random_bytes = random_bytes
        self._threads = threads or cores()
        self._keystreams = {
            use: Keystream(key.derive(f"ppfed/v1/{self.label}/{spec.scope}/{use}")) for use in self.uses
        }

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
        pixels = self._transform(images.pixels, ids, self._apply)
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
        return PlainImages(self._transform(images.pixels, images.ids, self._remove))

    def stream(self, ids: UInt8Array, shape: tuple[int, int, int]) -> StreamT:
        """Derive the random choices.

        Parameters
        ----------
        ids : uint8 array, (N, 12)
            Ids of the images; ignored in fixed scope, where one stream (N = 1) serves every image.
        shape : (height, width, channels)
        """
        return self._derive(fixed_nonce(shape) if self._spec.scope is Scope.FIXED else ids, shape)

    @abstractmethod
    def _derive(self, nonces: UInt8Array, shape: tuple[int, int, int]) -> StreamT:
        """Derive the random choices from nonces, (N, 12)."""

    @abstractmethod
    def _apply(self, pixels: UInt8Array, stream: StreamT, out: UInt8Array) -> None:
        """Encrypt images of (N, H, W, C) with a stream of N or of one, into ``out`` of the same shape."""

    @abstractmethod
    def _remove(self, pixels: UInt8Array, stream: StreamT, out: UInt8Array) -> None:
        """Decrypt; shapes as in ``_apply``."""

    def _chunk_values(self, shape: tuple[int, int, int], values: int) -> int:  # noqa: ARG002
        """Say how many values to encrypt at once, of a batch of so many, of images of (height, width, channels)."""
        return _CHUNK_VALUES

    def _transform(
        self, pixels: UInt8Array, ids: UInt8Array, change: Callable[[UInt8Array, StreamT, UInt8Array], None]
    ) -> UInt8Array:
        shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        self._info.check(self._spec, shape)
        shared = self.stream(ids[:1], shape) if self._spec.scope is Scope.FIXED else None
        result = np.empty_like(pixels)

        def change_rows(rows: slice) -> None:
            stream = self.stream(ids[rows], shape) if shared is None else shared
            change(pixels[rows], stream, result[rows])

        chunks = list(_chunks(len(pixels), max(1, self._chunk_values(shape, pixels.size) // math.prod(shape))))
        if self._threads == 1 or len(chunks) <= 1:
            for rows in chunks:
                change_rows(rows)
        else:
            with ThreadPoolExecutor(min(self._threads, len(chunks))) as executor:
                list(executor.map(change_rows, chunks))
        return result


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
