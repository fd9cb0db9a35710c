"""From an owner's plain images to a store of encrypted ones, before anything leaves.

After this the key is not needed any more: training, uploading and measuring work on the encrypted store.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from clients.prepared import MARKER, Prepared, read_prepared, write_prepared
from ppfed.ciphers.registry import make_cipher
from ppfed.errors import MOST_BAD_SHOWN, BadImagesError, DataError, MismatchError, PPFedError, UsageError
from ppfed.federation import FederationSettings, class_difference, some_names
from ppfed.images.held_out import held_out_by_content
from ppfed.images.source import ImageSource, LoadReport, Split, files_digest, no_progress
from ppfed.images.types import EncryptedImages, Int64Array
from ppfed.keys.master import MasterKey
from ppfed.store import Shard, ShardStore, rows_per_shard
from ppfed.training.augment import Augmentation
from ppfed.training.loop import epoch_generator


def class_positions(classes: tuple[str, ...], settings: FederationSettings) -> Int64Array:
    """Map an owner's labels to the federation's: by name, or by position where ``by_position`` says so.

    Returns
    -------
    int64 array, (owner's classes,)
        The federation's label for each of the owner's.

    Raises
    ------
    MismatchError
        Naming the classes that differ.
    """
    if by_position(classes, settings):
        return np.arange(len(classes), dtype=np.int64)
    missing, extra = class_difference(settings.classes, classes)
    # A source that numbers its classes knows of those that it has images of, and of no others.
    if extra or (missing and not _numbered(classes)):
        parts = [f"yours lacks {some_names(missing)}"] if missing else []
        parts += [f"yours has {some_names(extra)} besides"] if extra else []
        raise MismatchError(
            f"the class list differs from the federation's: {'; '.join(parts)}",
            hint=f"Name your class folders: {some_names(settings.classes)}; a class without images is an empty folder.",
        )
    positions = {name: position for position, name in enumerate(settings.classes)}
    return np.array([positions[name] for name in classes], dtype=np.int64)


def by_position(classes: tuple[str, ...], settings: FederationSettings) -> bool:
    """Whether labels are matched by position: the source numbers its classes (``.npz``), the federation names them.

    Where a number is also a name in the federation, its position may be another: then only the name counts.
    """
    return _numbered(classes) and len(classes) <= len(settings.classes) and set(classes).isdisjoint(settings.classes)


def _numbered(classes: tuple[str, ...]) -> bool:
    return classes == tuple(str(position) for position in range(len(classes)))


def prepare(
    source: ImageSource,
    path: Path,
    key: MasterKey,
    settings: FederationSettings,
    folder: Path,
    *,
    copies: int = 1,
    skip_bad: bool = False,
    progress: Callable[[int], None] = no_progress,
) -> Prepared:
    """Read, check and encrypt all images of an owner.

    A store made earlier from the same files under the same settings and key is used again, so that an owner that
    was interrupted need not send anything twice.

    Where the source has no held-out split, whether an image is held out depends on its pixels and the key alone
    (``held_out_by_content``).

    Parameters
    ----------
    source : ImageSource
    path : Path
        Where ``source`` was opened.
    key : MasterKey
    settings : FederationSettings
        They name the cipher, too.
    folder : Path
        Where the store is made.
    copies : int
        How many variants of each training image to make, augmented after encryption; the first is the image itself.
    skip_bad : bool
        Leave out images that cannot be used.
    progress : callable
        Called with the number of images done.

    Raises
    ------
    BadImagesError
        If some images cannot be used and ``skip_bad`` is false; nothing is kept then.
    DataError
        If nothing is left to train on.
    MismatchError
        If the classes differ.
    UsageError
        If ``folder`` holds anything that ppfed did not make, or lies where the images are.
    """
    _require_apart(path, folder)
    positions = class_positions(source.classes, settings)
    signature = _signature(path, settings, key.fingerprint, copies)
    known = read_prepared(folder, signature)
    if known is not None:
        return known
    store = _begin_store(folder)
    writer = _StoreWriter(store, settings, copies)
    report = LoadReport()
    cipher = make_cipher(settings.cipher.spec, key)
    held_out_given = Split.HELD_OUT in source.counts
    size = (settings.height, settings.width)
    for split in source.counts:
        for batch in source.read(split, size=size, channels=settings.channels, report=report, progress=progress):
            labels = positions[batch.labels]
            encrypted = cipher.encrypt(batch.images)
            if held_out_given:
                held_out = np.full(len(labels), split is Split.HELD_OUT)
            else:
                held_out = held_out_by_content(batch.images, key)
            writer.add(encrypted, labels, held_out)
    bad = [] if skip_bad else report.bad
    refusal = _refusal(path, bad, writer.images(Split.TRAIN), settings.training.min_local_batch)
    if refusal is not None:
        _remove_store(folder)
        raise refusal
    writer.flush()
    prepared = Prepared(
        store,
        train_images=writer.images(Split.TRAIN),
        held_out_images=writer.images(Split.HELD_OUT),
        copies=copies,
        bad=len(report.bad),
        notes=dict(report.notes),
        by_class=writer.by_class(),
        left_out=tuple(report.bad[:MOST_BAD_SHOWN]),
    )
    write_prepared(folder, signature, prepared)
    return prepared


def _refusal(path: Path, bad: list[tuple[str, str]], train_images: int, fewest: int) -> PPFedError | None:
    """Say why the images that were read are no part of a federation; None where they are."""
    if bad:
        return BadImagesError(bad)
    if train_images < fewest:
        return DataError(
            f"{path} holds {train_images} images to train on, and training here needs {fewest} at least",
            hint="Name a folder with one sub-folder per class, with images in them.",
        )
    return None


def _require_apart(path: Path, folder: Path) -> None:
    data, store = path.resolve(), folder.resolve()
    if data == store or data in store.parents or store in data.parents:
        raise UsageError(
            f"the encrypted images would be kept in {folder}, and your plain images are in {path}: one holds the other",
            hint="Name another folder with --state.",
        )


def _begin_store(folder: Path) -> ShardStore:
    """Make an empty store in place of what ppfed left there.

    From here until ``write_prepared`` a store has the marker and no record: what an interruption leaves is not used,
    and the next call removes it.
    """
    _remove_store(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("ppfed makes and deletes this folder as it needs it.\n")
    return ShardStore(folder)


def _remove_store(folder: Path) -> None:
    """Delete a store that ppfed made; nothing else is ever deleted."""
    if not folder.exists():
        return
    content = list(folder.iterdir()) if folder.is_dir() else [folder]
    marker = folder / MARKER
    if content and marker not in content:
        raise UsageError(
            f"{folder} exists, and ppfed did not make it: nothing in it was touched",
            hint="Name another folder with --state, or move this one away.",
        )
    # The marker goes last: what an interruption leaves can still be told from a user's own folder.
    for one in content:
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        elif one != marker:
            one.unlink()
    marker.unlink(missing_ok=True)
    folder.rmdir()


class _StoreWriter:
    """Puts encrypted images into the shards of both splits, training images in all their variants, and counts them."""

    def __init__(self, store: ShardStore, settings: FederationSettings, copies: int) -> None:
        self._shards = {split: _ShardWriter(store, split, settings) for split in Split}
        self._variants = _variants(Augmentation.of(settings.training), copies)
        self._counted = {split: np.zeros(len(settings.classes), dtype=np.int64) for split in Split}

    def add(self, images: EncryptedImages, labels: Int64Array, held_out: npt.NDArray[np.bool_]) -> None:
        for split, rows in ((Split.TRAIN, ~held_out), (Split.HELD_OUT, held_out)):
            where = np.flatnonzero(rows)
            self._counted[split] += np.bincount(labels[where], minlength=len(self._counted[split]))
            chosen = Shard(images[where], labels[where])
            for variant in self._variants(chosen) if split is Split.TRAIN else [chosen]:
                self._shards[split].add(variant)

    def flush(self) -> None:
        for shards in self._shards.values():
            shards.flush()

    def images(self, split: Split) -> int:
        """Count distinct images."""
        return int(self._counted[split].sum())

    def by_class(self) -> tuple[tuple[int, int], ...]:
        """Count distinct images of each class: to train on, and held out."""
        train, held_out = (self._counted[split].tolist() for split in (Split.TRAIN, Split.HELD_OUT))
        return tuple(zip(train, held_out, strict=True))


class _ShardWriter:
    """Collects encrypted images until they make a full shard."""

    def __init__(self, store: ShardStore, split: Split, settings: FederationSettings) -> None:
        self._store = store
        self._split = split
        self._rows = rows_per_shard(settings.shape)
        self._waiting: list[Shard] = []
        self._index = 0

    def add(self, shard: Shard) -> None:
        self._waiting.append(shard)
        while sum(len(part) for part in self._waiting) >= self._rows:
            whole = _joined(self._waiting)
            self._write(_rows(whole, slice(0, self._rows)))
            self._waiting = [_rows(whole, slice(self._rows, None))]

    def flush(self) -> None:
        if sum(len(part) for part in self._waiting):
            self._write(_joined(self._waiting))
        self._waiting = []

    def _write(self, shard: Shard) -> None:
        self._store.write(self._split, self._index, shard)
        self._index += 1


def _joined(parts: list[Shard]) -> Shard:
    first = parts[0].images
    images = EncryptedImages(
        np.concatenate([part.images.pixels for part in parts]),
        np.concatenate([part.images.ids for part in parts]),
        first.cipher,
        first.fingerprint,
    )
    return Shard(images, np.concatenate([part.labels for part in parts]))


def _rows(shard: Shard, rows: slice) -> Shard:
    return Shard(shard.images[rows], shard.labels[rows])


def _variants(augmentation: Augmentation, copies: int) -> Callable[[Shard], Iterator[Shard]]:
    generators = [epoch_generator(copy, 0) for copy in range(1, copies)]

    def make(shard: Shard) -> Iterator[Shard]:
        yield shard
        images = shard.images
        for generator in generators:
            moved = augmentation(torch.from_numpy(images.pixels), generator).numpy()
            # The id stays: it says that this is the same image, so that the model card counts it once.
            yield Shard(EncryptedImages(moved, images.ids, images.cipher, images.fingerprint), shard.labels)

    return make


def _signature(path: Path, settings: FederationSettings, fingerprint: str, copies: int) -> str:
    """Name what a store was made from: the files' names, sizes and times, the settings, the key, the copies."""
    text = f"{settings.digest()} {fingerprint} {copies}\n{path}\n{files_digest(path)}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
