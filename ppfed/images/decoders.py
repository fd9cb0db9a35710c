"""Decode many image files on all cores: in processes of their own, with the caller's process as one more.

Pillow parses a file's header in Python, which holds the interpreter lock, so that threads queue for it where images are
small (docs/performance.md). The processes are started as commands, not with ``multiprocessing``: a fork would copy the
key, and a fresh interpreter of ``multiprocessing`` runs the caller's script again unless that guards against it. What
they are told is paths, size and channels, and what they answer is pixels; neither is ever pickled.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar, cast

import numpy as np
import PIL

import ppfed
from ppfed.cores import cores
from ppfed.errors import DataError, PPFedError
from ppfed.images.decode import LARGE_PIXELS, DecodedImage, decode_image, load_group, shown
from ppfed.images.decoder_process import LENGTH_BYTES, READY, framed
from ppfed.images.pool import groups, map_ahead
from ppfed.images.types import UInt8Array
from ppfed.services import child_environment


class ImageFile(Protocol):
    """What has to be known of a file to decode it."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def size_bytes(self) -> int:
        """How large it is."""


_File = TypeVar("_File", bound=ImageFile)

_FILE_S, _BYTE_S = 1e-4, 1e-8
"""What decoding takes at least, for each file and each byte of it: a rough figure, to tell whether a process pays."""
_PROCESS_WORK_S = 0.25
"""Work that a process must have to be started, which takes several hundredths of a second."""
_UNDER_WAY_LEAST, _UNDER_WAY_MOST, _UNDER_WAY_BYTES = 2, 4, 1 << 17
"""Groups that a process has at a time, so that it need not wait for the next one; more than two where they are small,
as its thread may wait longer for the interpreter lock than such a group takes."""
_AHEAD_BYTES = 1 << 26
_GROUPS_LEAST, _GROUPS_MOST = 2, 16
"""Groups for each core that are decoded ahead of the caller: as many as fill ``_AHEAD_BYTES``, within these."""
_PIPE_BYTES = 1 << 20
_ONE_CORE = "`taskset --cpu-list 0 ppfed ...`"
_CODE = "import sys; sys.path += sys.argv[1:]; from ppfed.images.decoder_process import main; main()"


def decode_files(
    files: Sequence[_File], *, size: tuple[int, int] | None, channels: int | None
) -> Iterator[list[tuple[_File, DecodedImage | str]]]:
    """Decode files, and yield them with their image, or the reason why there is none, in order and in groups.

    Where there are several cores, and work enough to win back the start of processes, each core but one gets a process;
    the caller's decodes whenever it would have to wait. They end with the iterator. Otherwise it is done in threads or
    by the caller's (`map_ahead`).

    Processes have Pillow's own settings, whatever the caller's program made of them in its process.

    Memory is bounded whatever the files hold. What is decoded ahead is at most 160 MB for each group: 64 MiB, and one
    image of ``LARGE_PIXELS``; there are about two groups for each core. Larger images, and what comes after so much in
    a group, are decoded when their turn comes, one at a time.

    Parameters
    ----------
    files : sequence
        Things with a ``path`` and ``size_bytes``.
    size, channels
        As in `decode_image`.

    Raises
    ------
    PPFedError
        If a process cannot be started, or ends before its time: usually killed by the system for want of memory.
    """
    count = _processes(files)
    decoded = (
        _in_processes(files, count, size, channels)
        if count
        else map_ahead(
            lambda group: list(zip(group, _attempt_group(group, size, channels), strict=True)),
            files,
            lambda file: file.size_bytes,
        )
    )
    for group in decoded:
        part: list[tuple[_File, DecodedImage | str]] = []
        for file, result in group:
            if result is not None:
                part.append((file, result))
                continue
            if part:
                yield part
            part = []
            yield [(file, _attempt(file, size, channels))]
        if part:
            yield part


def _processes(files: Sequence[ImageFile]) -> int:
    """How many processes pay."""
    work_s = _FILE_S * len(files) + _BYTE_S * sum(file.size_bytes for file in files)
    return min(cores() - 1, int(work_s / _PROCESS_WORK_S))


def _attempt(file: ImageFile, size: tuple[int, int] | None, channels: int | None) -> DecodedImage | str:
    try:
        return decode_image(Path(file.path), size=size, channels=channels)
    except DataError as error:
        return error.message


def _attempt_group(
    files: Sequence[ImageFile], size: tuple[int, int] | None, channels: int | None
) -> list[DecodedImage | str | None]:
    """Decode a group, but for large images and what follows ``MOST_HELD_BYTES`` of pixels: None stands for these."""
    decode = partial(decode_image, size=size, channels=channels, most_pixels=LARGE_PIXELS)
    return load_group((Path(file.path) for file in files), decode, lambda one: one.pixels.nbytes)


class _Task(Generic[_File]):
    """A group of files, and what becomes of it."""

    def __init__(self, files: list[_File], size_bytes: int) -> None:
        self.files, self.size_bytes = files, size_bytes
        self.results: Future[list[DecodedImage | str | None]] = Future()


def _in_processes(
    files: Sequence[_File], count: int, size: tuple[int, int] | None, channels: int | None
) -> Iterator[list[tuple[_File, DecodedImage | str | None]]]:
    waiting: SimpleQueue[_Task[_File] | None] = SimpleQueue()
    pending: deque[_Task[_File]] = deque()
    coming = groups(files, lambda file: file.size_bytes)
    largest_bytes = 0
    processes: list[_Process[_File]] = []
    try:
        for _ in range(count):
            processes.append(_Process(waiting, size, channels))
        while True:
            ahead = (count + 1) * _GROUPS_LEAST
            if largest_bytes:
                ahead = min(max(ahead, _AHEAD_BYTES // largest_bytes), (count + 1) * _GROUPS_MOST)
            while len(pending) < ahead and (group := next(coming, None)):
                pending.append(_Task(*group))
                waiting.put(pending[-1])
            if not pending:
                return
            while not pending[0].results.done() and (task := _next(waiting)):
                task.results.set_result(_attempt_group(task.files, size, channels))
            first = pending.popleft()
            results = first.results.result()
            largest_bytes = max(
                largest_bytes, sum(one.pixels.nbytes for one in results if isinstance(one, DecodedImage))
            )
            yield list(zip(first.files, results, strict=True))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.close()


def _next(waiting: SimpleQueue[_Task[_File] | None]) -> _Task[_File] | None:
    """Take the next task, if there is one."""
    try:
        return _left(waiting, waiting.get_nowait())
    except Empty:
        return None


def _left(waiting: SimpleQueue[_Task[_File] | None], task: _Task[_File] | None) -> _Task[_File] | None:
    """Leave None, which says that there are no more tasks, for the next thread."""
    if task is None:
        waiting.put(None)
    return task


def _has_room(asked: deque[_Task[_File]]) -> bool:
    """Whether a process with these tasks should get another one."""
    if len(asked) < _UNDER_WAY_LEAST:
        return True
    return len(asked) < _UNDER_WAY_MOST and sum(task.size_bytes for task in asked) < _UNDER_WAY_BYTES


class _Process(Generic[_File]):
    """A process that decodes, and the thread that talks to it.

    Parameters
    ----------
    waiting : queue of tasks
        Shared with other processes. None ends the thread.
    size, channels
        As in `decode_image`.
    """

    def __init__(
        self, waiting: SimpleQueue[_Task[_File] | None], size: tuple[int, int] | None, channels: int | None
    ) -> None:
        self._waiting, self._size, self._channels = waiting, size, channels
        try:
            self._process = subprocess.Popen(
                decoder_command(),
                env=child_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A session of its own: ctrl-C reaches the caller, who ends it.
                start_new_session=True,
            )
        except OSError as error:
            raise PPFedError(
                f"A process to decode images cannot be started: {error.strerror}.",
                hint=f"Close other programs, or use one core: {_ONE_CORE}.",
            ) from error
        self._requests = cast("io.BufferedWriter", self._process.stdin)
        self._answers = cast("io.BufferedReader", self._process.stdout)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            # The system's usual 64 KiB hold less than a group, and the process would wait for the thread. Where an
            # unprivileged user has many pipes already, it stays at that.
            with suppress(OSError):
                fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Kill the process, whatever it does: it has nothing to lose."""
        self._process.kill()

    def close(self) -> None:
        """Wait until nothing is left of a process that was killed."""
        self._waiting.put(None)
        self._thread.join()
        self._process.wait()
        self._answers.close()
        with suppress(BrokenPipeError):
            self._requests.close()

    def _run(self) -> None:
        asked: deque[_Task[_File]] = deque()
        try:
            # Until it is there, the caller's process decodes.
            if not self._is_ready() and (task := self._wait()):
                asked.append(task)
                raise self._ended(task)
            while True:
                while _has_room(asked) and (task := _next(self._waiting) if asked else self._wait()):
                    asked.append(task)
                    self._ask(task)
                if not asked:
                    return
                results = self._answer(asked[0])
                asked.popleft().results.set_result(results)
        # To whoever waits for the results.
        except Exception as error:
            for task in asked:
                task.results.set_exception(error)

    def _wait(self) -> _Task[_File] | None:
        return _left(self._waiting, self._waiting.get())

    def _is_ready(self) -> bool:
        """Wait for the message with which it begins, or for its end."""
        return len(self._answers.read(len(READY))) == len(READY)

    def _ask(self, task: _Task[_File]) -> None:
        try:
            self._requests.write(framed([[file.path for file in task.files], self._size, self._channels]))
            self._requests.flush()
        except BrokenPipeError as error:
            raise self._ended(task) from error

    def _answer(self, task: _Task[_File]) -> list[DecodedImage | str | None]:
        length = bytes(self._read(LENGTH_BYTES, task))
        heads = json.loads(self._read(int.from_bytes(length, "big"), task).tobytes())
        pixels = self._read(sum(math.prod(head[:3]) for head in heads if isinstance(head, list)), task)
        results: list[DecodedImage | str | None] = []
        start = 0
        for head in heads:
            if not isinstance(head, list):
                results.append(head)
                continue
            height, width, channels, notes = head
            end = start + height * width * channels
            results.append(DecodedImage(pixels[start:end].reshape(height, width, channels), tuple(notes)))
            start = end
        return results

    def _read(self, size_bytes: int, task: _Task[_File]) -> UInt8Array:
        content = np.empty(size_bytes, dtype=np.uint8)
        if self._answers.readinto(content.data) < size_bytes:
            raise self._ended(task)
        return content

    def _ended(self, task: _Task[_File]) -> PPFedError:
        """Say why the process has ended."""
        code = self._process.wait()
        others = f" and {len(task.files) - 1} files after it" if len(task.files) > 1 else ""
        where = f"before it had read {shown(task.files[0].path)}{others}"
        if code == -signal.SIGKILL:
            return PPFedError(
                f"A process that decodes images was killed {where}, as the system does when memory runs out.",
                hint=f"Close other programs, or use one core, which takes less memory: {_ONE_CORE}.",
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return PPFedError(
            f"A process that decodes images ended with {how} {where}.",
            hint="If it printed nothing above, one of these files may have crashed Pillow: take them out. "
            f"One core does without such processes: {_ONE_CORE}.",
        )


def decoder_command() -> list[str]:
    """Return how a process that decodes is started.

    Isolated (``-I -S``): without Python's environment variables, the current folder and what a site adds. Modules come
    from where this process has them.
    """
    folders = {str(Path(package.__path__[0]).parent): None for package in (ppfed, PIL, np)}
    return [sys.executable, "-I", "-S", "-c", _CODE, *folders]
