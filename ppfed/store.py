"""Encrypted images at rest: memory-mapped Arrow shards.

An owner keeps its own here before anything leaves; the coordinator keeps what it received. The layout of a store::

    train/00000.arrow  train/00001.arrow  ...  held-out/00000.arrow  ...

Each shard is an Arrow IPC file of one record batch with the columns ``id``, ``label``, ``digest`` (SHA-256 of the
image's ciphertext) and ``pixels``; its schema's metadata says how the images were encrypted. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ppfed.atomic import sync_folder
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import DataError
from ppfed.images.source import Split
from ppfed.images.types import ID_BYTES, EncryptedImages, Int64Array, UInt8Array

SHARD_BYTES = 64 << 20
"""Most bytes of pixels in a shard, which is one message: Flower is fastest at 50 to 75 MB (docs/architecture.md)."""

_DIGEST_BYTES = 32
_METADATA_KEY = b"ppfed"
_SUFFIX = ".arrow"
_MODE = 0o600
_UNREADABLE = (OSError, pa.ArrowException, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Shard:
    """Some encrypted images of one split, with their labels.

    Attributes
    ----------
    images : EncryptedImages, N images
    labels : int64 array, (N,)
    """

    images: EncryptedImages
    labels: Int64Array

    def __post_init__(self) -> None:
        if not isinstance(self.images, EncryptedImages):
            raise TypeError("only encrypted images are stored and sent")
        if self.labels.shape != (len(self.images),) or self.labels.dtype != np.int64:
            raise ValueError("there must be one int64 label for each image")

    def __len__(self) -> int:
        return len(self.labels)

    def checksum(self) -> int:
        """CRC-32 of pixels, ids and labels, in this order: finds accidents, not attackers."""
        crc = zlib.crc32(self.images.pixels.data)
        crc = zlib.crc32(np.ascontiguousarray(self.images.ids).data, crc)
        return zlib.crc32(np.ascontiguousarray(self.labels, dtype="<i8").data, crc)


def rows_per_shard(shape: tuple[int, int, int]) -> int:
    """How many images of this shape make a full shard."""
    height, width, channels = shape
    return max(1, SHARD_BYTES // (height * width * channels))


class ShardStore:
    """A folder of shards.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self, split: Split) -> list[Path]:
        """Return the files of a split's shards, in order."""
        return sorted((self.folder / split).glob(f"[0-9]*{_SUFFIX}"))

    def path(self, split: Split, index: int) -> Path:
        """Return the file of one shard, whether or not it exists."""
        return self.folder / split / f"{index:05d}{_SUFFIX}"

    def write(self, split: Split, index: int, shard: Shard) -> Path:
        """Write a shard, readable by this user alone; it is on disk, whole, when this returns.

        Returns
        -------
        Path
            Of the new file; an older shard of the same index is replaced.
        """
        path = self.path(split, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        batch = _record_batch(shard)
        try:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            temporary.chmod(_MODE)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        return path

    def shards(self, split: Split) -> Iterator[Shard]:
        """Map the shards of a split into memory, one after another."""
        for path in self.paths(split):
            yield read_shard(path)

    def rows(self, split: Split) -> int:
        """Count the images of a split."""
        return sum(len(shard) for shard in self.shards(split))


def read_shard(path: Path) -> Shard:
    """Map a shard into memory: its pixels are read from disk when they are used.

    Raises
    ------
    DataError
        If the file is not a shard, or damaged in its structure.
    """
    try:
        return _map(path)[0]
    except _UNREADABLE as error:
        raise _damaged(path, error) from None


@dataclass(frozen=True)
class PixelFile:
    """Where on disk the pixels of a shard lie, for who reads single images.

    Attributes
    ----------
    path : Path
    shape : (height, width, channels)
    start : int
        Bytes before the first image; the images follow each other without a gap.
    labels : int64 array, (N,)
    size_bytes, modified_ns : int
        Of the whole file when it was looked at.
    """

    path: Path
    shape: tuple[int, int, int]
    start: int
    labels: Int64Array
    size_bytes: int
    modified_ns: int

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Int64Array, into: UInt8Array, places: Int64Array) -> None:
        """Read single images.

        Parameters
        ----------
        rows : int64 array, (n,)
            Quickest in the order of the file.
        into : uint8 array, (m, height * width * channels), C-contiguous
        places : int64 array, (n,)
            Where in ``into`` each image goes.

        Raises
        ------
        DataError
            If the file cannot be read, or is not as it was: then its labels belong to other images.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                descriptor = file.fileno()
                found = os.fstat(descriptor)
                if (found.st_size, found.st_mtime_ns) != (self.size_bytes, self.modified_ns):
                    raise self._lost("it was written to, or is another file")
                for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                    image = memoryview(into[place])
                    offset = self.start + row * len(image)
                    while image:
                        count = os.preadv(descriptor, [image], offset)
                        if not count:
                            raise self._lost("it became shorter")
                        image, offset = image[count:], offset + count
        except OSError as error:
            raise self._lost(error.strerror or type(error).__name__) from None

    def _lost(self, reason: str) -> DataError:
        return DataError(
            f"{self.path} cannot be read any more: {reason}",
            hint="Keep other programs away from the store, and start again: a damaged shard is fetched or made again.",
        )


def locate_pixels(path: Path) -> PixelFile:
    """Find the pixels of a shard.

    Raises
    ------
    DataError
        If the file is not a shard, or damaged in its structure.
    """
    try:
        before = path.stat()
        shard, start = _map(path)
        if not 0 <= start <= before.st_size - shard.images.pixels.nbytes:
            raise ValueError("the pixels do not lie in the file as they are")
    except _UNREADABLE as error:
        raise _damaged(path, error) from None
    return PixelFile(path, shard.images.shape, start, shard.labels, before.st_size, before.st_mtime_ns)


def _map(path: Path) -> tuple[Shard, int]:
    """Map a shard into memory, and count the bytes before its pixels."""
    with pa.memory_map(str(path)) as source:
        whole = source.read_buffer()
    batch = pa.ipc.open_file(whole).get_batch(0)
    meta = json.loads(batch.schema.metadata[_METADATA_KEY])
    shape = (meta["height"], meta["width"], meta["channels"])
    spec = CipherSpec(meta["name"], Scope(meta["scope"]), meta["colour_shuffle"])
    pixels = _fixed_bytes(batch.column("pixels"), int(np.prod(shape))).reshape(-1, *shape)
    ids = _fixed_bytes(batch.column("id"), ID_BYTES)
    shard = Shard(EncryptedImages(pixels, ids, spec, meta["fingerprint"]), _labels(batch.column("label")))
    return shard, batch.column("pixels").buffers()[1].address - whole.address if len(shard) else 0


def verify_shard(path: Path) -> None:
    """Compare every image of a shard with its digest.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    shard = read_shard(path)
    try:
        with pa.memory_map(str(path)) as source:
            stored = _fixed_bytes(pa.ipc.open_file(source).get_batch(0).column("digest"), _DIGEST_BYTES)
            sound = np.array_equal(stored, _digests(shard.images))
    except _UNREADABLE as error:
        raise _damaged(path, error) from None
    if not sound:
        raise DataError(f"{path} is damaged: an image differs from its digest", hint="Remove the file.")


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is not a shard of encrypted images, or it is damaged ({type(error).__name__})",
        hint="Remove the file; it is fetched or made again.",
    )


def _digests(images: EncryptedImages) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    joined = b"".join(hashlib.sha256(image.data).digest() for image in images.pixels)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, _DIGEST_BYTES)


def _record_batch(shard: Shard) -> pa.RecordBatch:
    images = shard.images
    height, width, channels = images.shape
    meta = {
        **asdict(images.cipher),
        "fingerprint": images.fingerprint,
        "height": height,
        "width": width,
        "channels": channels,
    }
    columns = {
        "id": _fixed_column(images.ids, ID_BYTES),
        "label": pa.array(shard.labels.astype(np.int32)),
        "digest": _fixed_column(_digests(images), _DIGEST_BYTES),
        "pixels": _fixed_column(images.pixels, height * width * channels),
    }
    schema = pa.schema(
        [(name, column.type) for name, column in columns.items()],
        metadata={_METADATA_KEY: json.dumps(meta).encode()},
    )
    return pa.record_batch(list(columns.values()), schema=schema)


def _fixed_column(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], width: int) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, buffer])


def _labels(column: pa.Array) -> Int64Array:
    if column.type != pa.int32() or column.null_count:
        raise ValueError("labels have another type, or some are missing")
    labels: Int64Array = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return labels


def _fixed_bytes(column: pa.Array, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if column.type != pa.binary(width):
        raise ValueError("a column has another width")
    flat = np.frombuffer(column.buffers()[1], dtype=np.uint8, count=len(column) * width)
    return flat.reshape(len(column), width)
