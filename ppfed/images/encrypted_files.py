"""Read many files that ``ppfed encrypt`` made; those that are none are reported and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from ppfed.errors import DataError
from ppfed.images.png import read_encrypted_png
from ppfed.images.pool import each, map_ahead
from ppfed.images.source import no_progress
from ppfed.images.types import EncryptedImages

_About = TypeVar("_About")


def accept_all(_images: EncryptedImages) -> None:
    """Accept any encrypted image."""


def read_encrypted_files(
    files: Iterable[tuple[Path, _About]],
    on_bad: Callable[[_About, str], None],
    *,
    require: Callable[[EncryptedImages], None] = accept_all,
    progress: Callable[[int], None] = no_progress,
) -> Iterator[tuple[EncryptedImages, _About]]:
    """Read encrypted images in threads, and yield them in order.

    Parameters
    ----------
    files : iterable of (Path, anything)
        What stands beside a path comes back beside its image.
    on_bad : callable
        Called with what stands beside a path, and the reason, for each file that is no encrypted image, or is refused.
    require : callable
        Refuses an image by raising DataError.
    progress : callable
        Called with the number of files done.
    """

    def attempt(file: tuple[Path, _About]) -> tuple[EncryptedImages | str, _About]:
        path, about = file
        try:
            images = read_encrypted_png(path)
            require(images)
        except DataError as error:
            return error.message.removeprefix(f"{path}: "), about
        return images, about

    for group in map_ahead(each(attempt), files, lambda file: _size_bytes(file[0])):
        for result, about in group:
            if isinstance(result, str):
                on_bad(about, result)
            else:
                yield result, about
        progress(len(group))


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a broken link; reading it gives the reason
