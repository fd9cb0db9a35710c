"""Whole folders from plain to encrypted and back. A folder appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from ppfed.ciphers.registry import Cipher, make_cipher
from ppfed.errors import BadImagesError, DataError, PPFedError, UsageError
from ppfed.images.batching import join_equal
from ppfed.images.decode import shown
from ppfed.images.encrypted_files import read_encrypted_files
from ppfed.images.folder import is_ignored
from ppfed.images.open import raise_if_bad
from ppfed.images.png import encode_encrypted_png, encode_png, read_encrypted_png
from ppfed.images.pool import each, map_ahead
from ppfed.images.sections import SectionedSource
from ppfed.images.source import LoadReport, no_progress
from ppfed.images.types import EncryptedImages, UInt8Array
from ppfed.keys.master import MasterKey

_Image = TypeVar("_Image")

_BATCH_SIZE = 64
"""Small, so that little is left to be written after the last images are decoded, which other cores cannot help with."""


@dataclass(frozen=True)
class EncryptReport:
    """What `encrypt_folder` did.

    Attributes
    ----------
    written : mapping of str to Counter of str
        Images written, by section (``""`` where the source is not divided) and class; classes without any included.
    load : LoadReport
        What happened while reading.
    """

    written: dict[str, Counter[str]]
    load: LoadReport


@dataclass
class DecryptReport:
    """What `decrypt_folder` did.

    Attributes
    ----------
    written : int
        Images restored.
    bad : list of (path, reason)
        Files that were left out.
    """

    written: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)


def encrypt_folder(
    source: SectionedSource,
    cipher: Cipher,
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], None] = no_progress,
) -> EncryptReport:
    """Encrypt all images of a source into ``OUT/<class>/<name>.png``, or ``OUT/<section>/<class>/<name>.png``.

    Parameters
    ----------
    source : SectionedSource
    cipher : Cipher
    out : Path
        Must not exist, or be empty.
    size : (height, width) or None
        Resize to it first; None keeps each image's own size.
    channels : 1, 3 or None
        Convert to it first; None keeps grey images at one channel and gives all others three.
    skip_bad : bool
        Leave bad images out instead of raising.
    progress : callable
        Called with the number of images done.

    Raises
    ------
    UsageError
        If ``out`` is not empty, or in the source.
    BadImagesError
        If images are bad and ``skip_bad`` is False. All are named, and nothing is written.
    PPFedError
        If ``out`` cannot be written.
    """
    load = LoadReport()
    written = {section: Counter(dict.fromkeys(source.classes, 0)) for section in source.sections}

    def encrypted(staging: Path) -> Iterator[tuple[Path, EncryptedImages]]:
        for section in source.sections:
            folders = [staging / section / name for name in source.classes]
            for folder in folders:
                folder.mkdir(parents=True)
            targets: dict[tuple[int, str], str] = {}
            for batch in source.read_section(
                section, size=size, channels=channels, report=load, batch_size=_BATCH_SIZE, progress=progress
            ):
                # Here rather than above: other processes decode in the meantime.
                targets = targets or _targets(source.listing(section))
                if load.bad and not skip_bad:
                    continue  # only to find the other bad ones
                images = cipher.encrypt(batch.images)
                for row, (label, name) in enumerate(zip(batch.labels.tolist(), batch.names, strict=True)):
                    written[section][source.classes[label]] += 1
                    yield folders[label] / targets[label, name], images[row : row + 1]

    with _staged(out, source.root) as staging:
        _write_all(encrypted(staging), encode_encrypted_png, lambda image: image.pixels.nbytes)
        raise_if_bad(load, skip_bad=skip_bad)
    return EncryptReport(written, load)


def decrypt_folder(
    source: Path,
    key: MasterKey,
    out: Path,
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] = no_progress,
) -> DecryptReport:
    """Restore all images of an encrypted folder, bit for bit, as plain PNG files in the same tree.

    Parameters
    ----------
    source : Path
    key : MasterKey
        Cipher and parameters are in the files.
    out : Path
        Must not exist, or be empty.
    skip_bad : bool
        Leave files that are not encrypted images out instead of raising.
    progress : callable
        Called with the number of files done.

    Raises
    ------
    UsageError
        If ``out`` is not empty, or in ``source``.
    WrongKeyError
        If an image was encrypted with another key. Nothing is written.
    BadImagesError
        If files are not encrypted images and ``skip_bad`` is False. All are named, and nothing is written.
    PPFedError
        If ``out`` cannot be written.
    """
    report = DecryptReport()

    def decrypted(staging: Path) -> Iterator[tuple[Path, UInt8Array]]:
        sound = _read_all(source, staging, report, progress)
        for run in join_equal(sound, _kind, lambda image: image[0].pixels.nbytes, _BATCH_SIZE):
            images, names = _joined(run)
            plain = make_cipher(images.cipher, key).decrypt(images)
            if report.bad and not skip_bad:
                continue  # only to find the other bad ones
            report.written += len(names)
            yield from zip([staging / name for name in names], plain.pixels, strict=True)

    with _staged(out, source) as staging:
        _write_all(decrypted(staging), encode_png, lambda pixels: pixels.nbytes)
        if report.bad and not skip_bad:
            raise BadImagesError(report.bad)
        if not report.written:
            raise DataError(f"{source} holds no encrypted images.", hint="Pass a folder that `ppfed encrypt` wrote.")
    return report


def decrypt_file(source: Path, key: MasterKey, out: Path) -> None:
    """Restore one encrypted image as a plain PNG file.

    Raises
    ------
    UsageError
        If ``out`` exists.
    DataError
        If ``source`` is no encrypted image.
    WrongKeyError
        If it was encrypted with another key.
    PPFedError
        If ``out`` cannot be written.
    """
    images = read_encrypted_png(source)
    data = encode_png(make_cipher(images.cipher, key).decrypt(images).pixels[0])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise UsageError(f"{out} exists already.", hint="Choose another name, or remove it first.") from None
    except OSError as error:
        raise _unwritable(out, error) from error


def count_files(folder: Path) -> int:
    """Count the files in a folder, without what systems leave behind."""
    return sum(len(names) for _, _, names in _walk(folder))


@contextmanager
def _staged(out: Path, source: Path) -> Iterator[Path]:
    """Give a new folder that becomes ``out`` when the block ends well, and vanishes when it does not."""
    out = out.resolve()
    if out.is_relative_to(source.resolve()):
        raise UsageError(f"{out} lies in {source}, which is read.", hint="Choose a folder outside it.")
    exists = out.exists()
    if exists and not out.is_dir():
        raise UsageError(f"{out} is a file.", hint="Choose a folder that does not exist yet.")
    if exists and any(out.iterdir()):
        raise UsageError(f"{out} is not empty.", hint="Choose a folder that does not exist yet, or empty it first.")
    holder: Path | None = None
    try:
        # An existing folder may be a mount point, which nothing can be renamed to: then stage inside it.
        place = out if exists else out.parent
        place.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(dir=place, prefix=f".{out.name}.unfinished-"))
        # The holder is private; the folder inside it gets the usual permissions.
        staging = holder / "out"
        staging.mkdir()
        yield staging
        if exists:
            for child in staging.iterdir():
                child.rename(out / child.name)
        else:
            staging.rename(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        if holder is not None:
            shutil.rmtree(holder, ignore_errors=True)


def _unwritable(out: Path, error: OSError) -> PPFedError:
    return PPFedError(
        f"{out} cannot be written: {error.strerror or error}.", hint="Free some space or choose another place."
    )


def _write_all(
    images: Iterable[tuple[Path, _Image]], encode: Callable[[_Image], bytes], size_bytes: Callable[[_Image], int]
) -> None:
    """Encode and write images in threads: making a file is the slowest part of storing a small image."""

    def write(entry: tuple[Path, _Image]) -> None:
        path, image = entry
        data = encode(image)
        try:
            path.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    for _ in map_ahead(each(write), images, lambda entry: size_bytes(entry[1])):
        pass


def _targets(listing: Sequence[tuple[int, str]]) -> dict[tuple[int, str], str]:
    """Name each image's file below its class: ``a.png`` for ``a.jpg``, ``a.jpg.png`` where ``a.png`` is contested."""
    short = {entry: str(PurePosixPath(entry[1]).with_suffix(".png")) for entry in listing}
    targets = dict(short)
    while True:
        claims: defaultdict[tuple[int, str], list[tuple[int, str]]] = defaultdict(list)
        for entry, target in targets.items():
            claims[entry[0], target].append(entry)
        # A long name may in turn be another's short one, which then becomes long too.
        contested = [entry for rivals in claims.values() if len(rivals) > 1 for entry in rivals]
        if not contested:
            return targets
        targets.update({entry: f"{entry[1]}.png" for entry in contested})


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder in order: each folder below it, and the names of folders and files in it."""
    for where, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        yield os.path.relpath(where, folder), folders, sorted(name for name in files if not is_ignored(name))


def _read_all(
    source: Path, staging: Path, report: DecryptReport, progress: Callable[[int], None]
) -> Iterator[tuple[EncryptedImages, str]]:
    """Read the files below ``source``, and make each of its folders, empty ones included."""
    names: list[str] = []
    for where, folders, files in _walk(source):
        for name in folders:
            (staging / where / name).mkdir(parents=True, exist_ok=True)
        names += [os.path.normpath(os.path.join(where, name)) for name in files]

    def on_bad(name: str, reason: str) -> None:
        report.bad.append((shown(name), reason))

    yield from read_encrypted_files(((source / name, name) for name in names), on_bad, progress=progress)


def _kind(image: tuple[EncryptedImages, str]) -> tuple[object, ...]:
    return image[0].shape, image[0].cipher, image[0].fingerprint


def _joined(images: list[tuple[EncryptedImages, str]]) -> tuple[EncryptedImages, list[str]]:
    first = images[0][0]
    pixels = np.concatenate([image.pixels for image, _ in images])
    ids = np.concatenate([image.ids for image, _ in images])
    return EncryptedImages(pixels, ids, first.cipher, first.fingerprint), [name for _, name in images]
