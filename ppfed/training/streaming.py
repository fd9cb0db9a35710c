"""Images that stay on disk: training and measuring read them batch by batch, while they work on the batch before.

Single images are read from the shards' files, not through a memory map. Of a mapped file the system reads far more than
a batch asks for (docs/performance.md), and where a file has become shorter, or a disk fails, touching a map kills the
process, while reading gives an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from ppfed.errors import DataError
from ppfed.store import PixelFile, locate_pixels

THREAD_NAME = "ppfed-streaming"
_AHEAD = 2
"""Batches that are read while one is worked on, each by a thread of its own."""


@dataclass(frozen=True)
class _Arriving:
    """Images, and the event after which their copy to a GPU is complete."""

    images: Tensor
    copied: torch.cuda.Event | None = None


class StoredImages:
    """The images of some shards as a ``BatchSource``: only their labels are in memory.

    Parameters
    ----------
    paths : sequence of Path
        Of the shards; rows are counted in this order.
    shape : (height, width, channels)
        Of every image.
    device : torch.device
        Where the batches go.

    Raises
    ------
    DataError
        If a file is not a shard, or has images of another shape.
    """

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int, int], device: torch.device) -> None:
        self.shape, self._device = shape, device
        self._files = [_located(path, shape) for path in paths]
        self._ends = np.cumsum([len(file) for file in self._files], dtype=np.int64)
        labels = np.concatenate([np.empty(0, np.int64), *(file.labels for file in self._files)])
        self._labels = torch.from_numpy(labels).to(device)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def size_bytes(self) -> int:
        """Bytes that all images and labels take in memory."""
        return len(self) * (int(np.prod(self.shape)) + self._labels.element_size())

    def batches(self, rows: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Read ahead of the caller, in threads that end with the generator.

        Raises
        ------
        DataError
            If a shard's file cannot be read any more, or was written to since this source was made.
        IndexError
            If there is no such row.
        """
        fetch = _Upload(self, self._device).fetch if self._device.type == "cuda" else self._fetch
        under_way: deque[tuple[Tensor, Future[_Arriving]]] = deque()
        with ThreadPoolExecutor(_AHEAD, THREAD_NAME) as threads:
            for some in rows:
                under_way.append((some, threads.submit(fetch, some)))
                if len(under_way) > _AHEAD:
                    yield self._arrived(*under_way.popleft())
            while under_way:
                yield self._arrived(*under_way.popleft())

    def _arrived(self, rows: Tensor, future: Future[_Arriving]) -> tuple[Tensor, Tensor]:
        arriving = future.result()
        if arriving.copied is not None:
            working = torch.cuda.current_stream(self._device)
            working.wait_event(arriving.copied)
            # Else its memory could be given to the next copy while the GPU still works on it.
            arriving.images.record_stream(working)
        return arriving.images.to(self._device), self._labels[rows.to(self._device)]

    def _fetch(self, rows: Tensor) -> _Arriving:
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        self.read(rows, images)
        return _Arriving(images)

    def read(self, rows: Tensor, into: Tensor) -> None:
        """Read images from disk, file by file and from front to back.

        Parameters
        ----------
        rows : int64 tensor, (n,)
        into : uint8 tensor on the CPU, (n, H, W, C), contiguous
        """
        wanted = rows.numpy()
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()}, and there are {len(self)} images")
        images = into.numpy().reshape(len(wanted), int(np.prod(self.shape)))
        places = np.argsort(wanted)
        files = np.searchsorted(self._ends, wanted[places], side="right")
        for number in np.unique(files):
            file, mine = self._files[number], places[files == number]
            file.read(wanted[mine] - (self._ends[number] - len(file)), images, mine)


class _Upload:
    """Takes batches to a GPU through page-locked buffers, on a stream beside the one on which the GPU works."""

    def __init__(self, source: StoredImages, device: torch.device) -> None:
        self._source, self._device = source, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: SimpleQueue[tuple[Tensor, torch.cuda.Event]] = SimpleQueue()
        for _ in range(_AHEAD):
            nothing = torch.empty((0, *source.shape), dtype=torch.uint8)
            self._buffers.put((nothing, torch.cuda.Event()))  # type: ignore[no-untyped-call]

    def fetch(self, rows: Tensor) -> _Arriving:
        buffer, copied = self._buffers.get()
        try:
            copied.synchronize()
            # This also chooses the right GPU: a new thread would use the first one.
            with torch.cuda.stream(self._stream):
                if len(buffer) < len(rows):
                    buffer = torch.empty((len(rows), *self._source.shape), dtype=torch.uint8, pin_memory=True)
                self._source.read(rows, buffer[: len(rows)])
                images = buffer[: len(rows)].to(self._device, non_blocking=True)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record(self._stream)
        finally:
            self._buffers.put((buffer, copied))
        return _Arriving(images, copied)


def _located(path: Path, shape: tuple[int, int, int]) -> PixelFile:
    file = locate_pixels(path)
    if file.shape != shape:
        raise DataError(f"{path} has images of {file.shape}, not of {shape}", hint="Remove the file.")
    return file
