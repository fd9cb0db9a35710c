"""Find out what a path holds, and open it as a source of images."""

from __future__ import annotations

from pathlib import Path

from ppfed.errors import BadImagesError, DataError
from ppfed.images.cifar import find_cifar, open_cifar
from ppfed.images.folder import FolderSource
from ppfed.images.npz import open_npz
from ppfed.images.sections import SectionedSource
from ppfed.images.source import LoadReport

_NO_CLASSES_HINT = (
    "Put the images of each class into a sub-folder named after it. Images that are only to be encrypted, shown or "
    "classified need no classes: put them all into one sub-folder of any name. "
)
_HINT = (
    "Supported are: a folder of class folders (ROOT/<class>/<image>), one with train/ and val/, valid/ or test/ of "
    "class folders, CIFAR-10 for Python (cifar-10-batches-py/), and an .npz in the layout of MedMNIST."
)


def open_source(path: Path) -> SectionedSource:
    """Open a folder of class folders, CIFAR-10 or an ``.npz``.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If it is missing or none of these, or cannot be used.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist.", hint="Check the path.")
    if path.is_dir():
        return open_cifar(path) if find_cifar(path) else _open_folder(path)
    if path.suffix.lower() == ".npz":
        return open_npz(path)
    if path.name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")):
        raise DataError(f"{path} is an archive.", hint="Unpack it and pass the folder.")
    raise DataError(f"{path} is not a source of images.", hint=_HINT)


def raise_if_bad(report: LoadReport, *, skip_bad: bool) -> None:
    """Raise if images were bad, unless they may be skipped; raise in any case if none was good.

    Raises
    ------
    BadImagesError
        If there are bad images and ``skip_bad`` is False.
    DataError
        If there are bad images and no others.
    """
    if report.bad and not skip_bad:
        raise BadImagesError(report.bad)
    if report.bad and not report.used:
        path, reason = report.bad[0]
        raise DataError(f"None of the {len(report.bad)} images can be used. The first, {path}: {reason}.")


def _open_folder(path: Path) -> FolderSource:
    try:
        return FolderSource(path)
    except DataError as error:
        if "no class folders" not in error.message:
            raise
        raise DataError(error.message, hint=_NO_CLASSES_HINT + _HINT) from error
