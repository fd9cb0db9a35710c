"""Images in class folders: ``ROOT/<class>/...``, or ``ROOT/train/<class>/...`` with ``test``, ``val``, ``valid``."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppfed.errors import DataError
from ppfed.images.batching import join_equal
from ppfed.images.decode import SUFFIXES, DecodedImage, shown
from ppfed.images.decoders import decode_files
from ppfed.images.sections import UNDIVIDED, SectionedSource
from ppfed.images.source import LabelledImages, LoadReport, Split, no_progress
from ppfed.images.types import PlainImages, UInt8Array

SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": Split.TRAIN,
    "val": Split.HELD_OUT,
    "valid": Split.HELD_OUT,
    "test": Split.HELD_OUT,
}

_OTHER_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".log", ".xlsx")
"""What is not counted as an image in advance. It is read like any other file all the same: the content decides."""
_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_IGNORED_NOTE = "hidden or system file ignored"
_BESIDE_NOTE = "other file beside the class folders ignored"


class _File(NamedTuple):
    path: str
    name: str
    label: int
    size_bytes: int


@dataclass
class _Scan:
    """What a section holds, as far as the folders tell."""

    files: list[_File] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def is_ignored(name: str) -> bool:
    """Whether a file or folder is left by a system rather than put there by the owner."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


class FolderSource(SectionedSource):
    """Images in class folders, searched recursively; links are followed.

    Classes are sorted as ``torchvision.datasets.ImageFolder`` sorts them; an empty class folder is a class.

    Parameters
    ----------
    root : Path

    Raises
    ------
    DataError
        If it holds no class folders, or its split folders do not have the same ones.
    """

    def __init__(self, root: Path) -> None:
        top = _Scan()
        folders = _class_folders(root, root, top)
        if _is_divided(root, folders):
            sections = {name: split for name, split in SPLIT_FOLDERS.items() if name in folders}
            # What lies at the top belongs to no section; it is told of with the first.
            scans = {name: top if name == "train" else _Scan() for name in sections}
            levels = {name: _class_folders(root, folders[name], scans[name]) for name in sections}
        else:
            sections, scans, levels = {UNDIVIDED: Split.TRAIN}, {UNDIVIDED: top}, {UNDIVIDED: folders}
        classes = _common_classes(root, levels)
        for section, level in levels.items():
            for label, class_name in enumerate(classes):
                _collect(root, level[class_name], label, "", scans[section], frozenset())
        self._scans = scans
        super().__init__(root, classes, sections)

    def listing(self, section: str) -> Sequence[tuple[int, str]]:
        """Label and name of each image of a section, in the order of reading."""
        return [(file.label, file.name) for file in self._scans[section].files]

    @property
    def counts(self) -> Mapping[Split, int]:
        """How many images each split lists, without files that are evidently something else."""
        totals: Counter[Split] = Counter()
        for section, split in self.sections.items():
            totals[split] += _images_among(self._scans[section].files)
        return dict(totals)

    def read_section(
        self,
        section: str,
        *,
        size: tuple[int, int] | None,
        channels: int | None,
        report: LoadReport,
        batch_size: int = 512,
        progress: Callable[[int], None] = no_progress,
        positions: Sequence[int] | None = None,
    ) -> Iterator[LabelledImages]:
        """Read the images of one section; see ``SectionedSource.read_section``."""
        scan = self._scans[section]
        if positions is None:
            files: Sequence[_File] = scan.files
            report.bad += scan.bad
            report.notes.update(scan.notes)
        else:
            files = [scan.files[position] for position in positions]

        sound = self._sift(decode_files(files, size=size, channels=channels), report, progress)
        for run in join_equal(sound, lambda image: image[1].shape, lambda image: image[1].nbytes, batch_size):
            yield _batch(run, report)

    def _sift(
        self,
        groups: Iterable[list[tuple[_File, DecodedImage | str]]],
        report: LoadReport,
        progress: Callable[[int], None],
    ) -> Iterator[tuple[_File, UInt8Array]]:
        """Enter bad files and notes into the report, and pass the sound images on."""
        for group in groups:
            for file, result in group:
                if isinstance(result, str):
                    report.bad.append((_below(self.root, file.path), result))
                else:
                    report.notes.update(result.notes)
                    yield file, result.pixels
            progress(_images_among(file for file, _ in group))


def _images_among(files: Iterable[_File]) -> int:
    return sum(not file.name.lower().endswith(_OTHER_SUFFIXES) for file in files)


def _batch(images: list[tuple[_File, UInt8Array]], report: LoadReport) -> LabelledImages:
    report.used += len(images)
    return LabelledImages(
        PlainImages(np.stack([pixels for _, pixels in images])),
        np.array([file.label for file, _ in images], dtype=np.int64),
        tuple(file.name for file, _ in images),
    )


def _below(root: Path, path: str) -> str:
    return shown(Path(os.path.relpath(path, root)).as_posix())


def _entries(root: Path, folder: str, scan: _Scan) -> list[os.DirEntry[str]]:
    """List a folder in order, without what systems leave behind."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        scan.bad.append((_below(root, folder), f"folder cannot be read: {error.strerror}"))
        return []
    kept = [entry for entry in entries if not is_ignored(entry.name)]
    if len(kept) < len(entries):
        scan.notes[_IGNORED_NOTE] += len(entries) - len(kept)
    return kept


def _class_folders(root: Path, folder: str | Path, scan: _Scan) -> dict[str, str]:
    """Return the class folders in a folder, by name; enter what else lies there."""
    folders: dict[str, str] = {}
    for entry in _entries(root, str(folder), scan):
        if entry.is_dir():
            name = _class_name(entry)
            if name in folders:
                raise DataError(f"{folder} holds two class folders that are both called {name!r}.", hint="Rename one.")
            folders[name] = entry.path
        elif Path(entry.name).suffix.lower() in SUFFIXES:
            scan.bad.append((_below(root, entry.path), "not in a class folder"))
        else:
            scan.notes[_BESIDE_NOTE] += 1
    return folders


def _class_name(entry: os.DirEntry[str]) -> str:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{shown(entry.path)}: the folder's name is not UTF-8.", hint="Rename it.") from None
    # macOS may store an accented letter as two characters, and class names are compared between owners.
    return unicodedata.normalize("NFC", entry.name)


def _is_divided(root: Path, folders: Mapping[str, str]) -> bool:
    """Whether the folders are ``train`` and its like rather than classes."""
    divided = [name for name in folders if name in SPLIT_FOLDERS and _holds_folders(folders[name])]
    if not divided:
        return False
    others = [name for name in folders if name not in SPLIT_FOLDERS]
    if "train" not in divided or others:
        missing = "there is no train/ with class folders" if "train" not in divided else f"{others[0]}/ lies beside"
        raise DataError(
            f"{root} holds {divided[0]}/ with class folders in it, but {missing}.",
            hint="Put class folders directly into it, or train/ and, where there are such images, val/, valid/ or "
            "test/, each with the same class folders, and nothing else.",
        )
    return True


def _holds_folders(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() and not is_ignored(entry.name) for entry in entries)
    except OSError:
        return False


def _common_classes(root: Path, levels: Mapping[str, Mapping[str, str]]) -> list[str]:
    classes = sorted(next(iter(levels.values())))
    if not classes:
        raise DataError(
            f"{root} holds no class folders.", hint="Put the images of each class into a folder named after it."
        )
    for section, level in levels.items():
        if different := sorted(set(classes) ^ set(level)):
            where = section if different[0] in level else "train"
            raise DataError(
                f"{root}: train/ and {section}/ have different classes: {different[0]!r} is in {where}/ only.",
                hint="Give both the same class folders; a class without images is an empty folder.",
            )
    return classes


def _collect(root: Path, folder: str, label: int, prefix: str, scan: _Scan, above: frozenset[tuple[int, int]]) -> None:
    """Find the files of a class, whatever they are: reading them tells whether they are images."""
    try:
        status = os.stat(folder)
    except OSError:
        identity = (0, 0)
    else:
        identity = (status.st_dev, status.st_ino)
    if identity in above:
        scan.bad.append((_below(root, folder), "a link to a folder above it"))
        return
    for entry in _entries(root, folder, scan):
        if entry.is_dir():
            _collect(root, entry.path, label, f"{prefix}{entry.name}/", scan, above | {identity})
        else:
            try:
                size_bytes = entry.stat().st_size
            except OSError:
                size_bytes = 0  # a broken link; reading it gives the reason
            scan.files.append(_File(entry.path, prefix + entry.name, label, size_bytes))
