"""Encrypted images on their way from an owner to the coordinator: manifest, request, shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import PeerDataError
from ppfed.federation import FederationSettings
from ppfed.images.source import Split
from ppfed.images.types import ID_BYTES, EncryptedImages
from ppfed.store import SHARD_BYTES, Shard, rows_per_shard
from ppfed.wire.messages import ARRAYS, CONFIG, array_of, arrays_of, config_of, values_of

_MAX_SHARDS = 1_000_000


@dataclass(frozen=True)
class ShardName:
    """Which shard of an owner: its split, and its index within it."""

    split: Split
    index: int


@dataclass(frozen=True)
class Manifest:
    """What an owner will send: CRC-32 of each shard, by split, in order."""

    checksums: Mapping[Split, tuple[int, ...]]

    def names(self) -> list[ShardName]:
        """List all shards."""
        return [ShardName(split, index) for split in Split for index in range(len(self.checksums[split]))]


def pack_manifest(manifest: Manifest) -> RecordDict:
    """Owner to coordinator."""
    return RecordDict({CONFIG: ConfigRecord({str(split): list(manifest.checksums[split]) for split in Split})})


def unpack_manifest(content: RecordDict, settings: FederationSettings, rows: int) -> Manifest:
    """Check and unpack a manifest; ``rows`` images were announced at enrolment.

    Raises
    ------
    PeerDataError
        If it is not a manifest, or lists more shards than the announced images can fill.
    """
    config = config_of(content)
    checksums: dict[Split, tuple[int, ...]] = {}
    for split in Split:
        listed = config.get(str(split), [])
        if not isinstance(listed, list) or not all(isinstance(crc, int) for crc in listed):
            raise PeerDataError("the manifest is malformed")
        checksums[split] = tuple(int(crc) for crc in listed if isinstance(crc, int))
    total = sum(len(listed) for listed in checksums.values())
    if total > min(_MAX_SHARDS, rows // rows_per_shard(settings.shape) + 2 * len(Split)):
        raise PeerDataError("the manifest lists more shards than the announced images fill")
    return Manifest(checksums)


def pack_shard_request(name: ShardName) -> RecordDict:
    """Coordinator to owner."""
    return RecordDict({CONFIG: ConfigRecord({"split": str(name.split), "index": name.index})})


def unpack_shard_request(content: RecordDict) -> ShardName:
    """Check and unpack; raises PeerDataError."""
    config = config_of(content)
    split, index = config.get("split"), config.get("index")
    if split not in list(Split) or not isinstance(index, int) or not 0 <= index < _MAX_SHARDS:
        raise PeerDataError("the coordinator asked for a shard that cannot exist")
    return ShardName(Split(str(split)), index)


def pack_shard(name: ShardName, shard: Shard) -> RecordDict:
    """Owner to coordinator: encrypted images and labels.

    Raises
    ------
    TypeError
        If the images are not encrypted.
    """
    images = shard.images
    if not isinstance(images, EncryptedImages):
        raise TypeError("only encrypted images are sent")
    height, width, channels = images.shape
    return RecordDict(
        {
            ARRAYS: ArrayRecord(
                {
                    "pixels": array_of(images.pixels),
                    "ids": array_of(images.ids),
                    "labels": array_of(shard.labels),
                }
            ),
            CONFIG: ConfigRecord(
                {
                    "split": str(name.split),
                    "index": name.index,
                    "crc": shard.checksum(),
                    "height": height,
                    "width": width,
                    "channels": channels,
                    "cipher": images.cipher.name,
                    "scope": str(images.cipher.scope),
                    "colour-shuffle": images.cipher.colour_shuffle,
                    "fingerprint": images.fingerprint,
                }
            ),
        }
    )


def unpack_shard(
    content: RecordDict, name: ShardName, settings: FederationSettings, fingerprint: str, checksum: int
) -> Shard:
    """Check and unpack a shard: split, index, shape, dtype, number, labels, cipher, fingerprint, checksum.

    Raises
    ------
    PeerDataError
        Saying which check failed.
    """
    config = config_of(content)
    height, width, channels = settings.shape
    cipher = settings.cipher
    expected: dict[str, object] = {
        "split": str(name.split),
        "index": name.index,
        "height": height,
        "width": width,
        "channels": channels,
        "cipher": cipher.name,
        "scope": str(cipher.scope),
        "colour-shuffle": cipher.colour_shuffle,
        "fingerprint": fingerprint,
        "crc": checksum,
    }
    for key, value in expected.items():
        if config.get(key) != value:
            raise PeerDataError(f"shard {name.index} of split {name.split}: {key} is not the agreed one")
    arrays = arrays_of(content, {"pixels", "ids", "labels"}, 2 * SHARD_BYTES)
    pixels, ids, labels = (values_of(arrays[key]) for key in ("pixels", "ids", "labels"))
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != settings.shape:
        raise PeerDataError(
            f"images are {pixels.dtype} of shape {pixels.shape}, not uint8 (N, {height}, {width}, {channels})"
        )
    count = len(pixels)
    if not 1 <= count <= rows_per_shard(settings.shape):
        raise PeerDataError(f"a shard holds 1 to {rows_per_shard(settings.shape)} images, not {count}")
    if ids.dtype != np.uint8 or ids.shape != (count, ID_BYTES):
        raise PeerDataError("ids have another dtype or shape")
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise PeerDataError("labels have another dtype or shape")
    if not (labels.min() >= 0 and labels.max() < len(settings.classes)):
        raise PeerDataError("a label lies outside the class list")
    spec = CipherSpec(cipher.name, Scope(cipher.scope), cipher.colour_shuffle)
    shard = Shard(EncryptedImages(pixels, ids, spec, fingerprint), labels)
    if shard.checksum() != checksum:
        raise PeerDataError(f"shard {name.index} of split {name.split} was damaged on the way")
    return shard
