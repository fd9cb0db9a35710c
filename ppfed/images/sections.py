"""What ppfed's own sources share: they consist of sections, such as ``train``, ``val`` and ``test``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ppfed.errors import DataError
from ppfed.images.source import LabelledImages, LoadReport, Split, no_progress

UNDIVIDED = ""
"""Name of the only section of a source that is not divided."""


class SectionedSource(ABC):
    """A source of images that also tells which part of itself an image comes from. See `ImageSource`.

    Parameters
    ----------
    root : Path
        Folder or file that holds it.
    classes : sequence of str
    sections : mapping of str to Split
        Sections in their order, and what each is used for.

    Raises
    ------
    DataError
        If a class is called what no folder in another can be: its name becomes one where images are encrypted.
    """

    def __init__(self, root: Path, classes: Sequence[str], sections: Mapping[str, Split]) -> None:
        self.root = root
        self.sections = dict(sections)
        self._classes = tuple(classes)
        for name in self._classes:
            if name in ("", ".", "..") or not {"/", "\0"}.isdisjoint(name):
                raise DataError(
                    f"{root} has a class called {name!r}, which no folder can be.", hint="Rename the class."
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; labels are positions in it."""
        return self._classes

    @property
    def counts(self) -> Mapping[Split, int]:
        """How many images each split lists."""
        totals: Counter[Split] = Counter()
        for section, split in self.sections.items():
            totals[split] += len(self.listing(section))
        return dict(totals)

    def read(
        self,
        split: Split,
        *,
        size: tuple[int, int] | None,
        channels: int | None,
        report: LoadReport,
        batch_size: int = 512,
        progress: Callable[[int], None] = no_progress,
    ) -> Iterator[LabelledImages]:
        """Read the images of one split; see ``ImageSource.read``."""
        for section, section_split in self.sections.items():
            if section_split is split:
                yield from self.read_section(
                    section, size=size, channels=channels, report=report, batch_size=batch_size, progress=progress
                )

    @abstractmethod
    def listing(self, section: str) -> Sequence[tuple[int, str]]:
        """Label and name of each image of a section, in the order of reading, before any is read."""

    @abstractmethod
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
        """Read the images of one section; see ``ImageSource.read``.

        Parameters
        ----------
        positions : sequence of int, or None
            Places in the listing: read only these, in this order.
        """
