"""What ``scenario run`` shows while arms are at work."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ppfed.cli.console import print_line
from scenarios.arms import Progress as ArmProgress
from scenarios.results import Result
from scenarios.run import Job, Watcher


class RunDisplay(Watcher):
    """One bar for all arms and one for each at work, with the time that is left; lines of text for what is done.

    Parameters
    ----------
    console : Console
    total : int
        Arms and seeds of the run.
    done : int
        How many have results from an earlier start.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        super().__init__(self._started, self._progressed, self._finished, self._failed)
        self._console = console
        self._total = total
        self._done = done
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=not sys.stderr.isatty(),
            # An arm's pass may take minutes: the estimate must not forget the last one.
            speed_estimate_period=24 * 3600,
        )
        self._all = self._bars.add_task("all arms", total=total - done)
        self._tasks: dict[Job, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def _started(self, job: Job) -> None:
        self._tasks[job] = self._bars.add_task(_name(job), total=1.0)
        if not sys.stderr.isatty():
            print_line(self._console, f"started   {_name(job)}")

    def _progressed(self, job: Job, progress: ArmProgress) -> None:
        task = self._tasks[job]
        known = "" if progress.accuracy is None else f"  {progress.accuracy:.1%}"
        known += f"  {progress.stage}" if progress.stage else ""
        before = next(one.completed for one in self._bars.tasks if one.id == task)
        part = progress.done / progress.total
        self._bars.update(task, completed=part, description=f"{_name(job)}{known}")
        self._bars.advance(self._all, part - before)

    def _finished(self, job: Job, result: Result) -> None:
        self._end(job)
        self._done += 1
        print_line(
            self._console,
            f"{self._done:>3}/{self._total}  {_name(job)}: {result.accuracy:.2%} in {result.seconds:.0f} s",
        )

    def _failed(self, job: Job, reason: str) -> None:
        self._end(job)
        print_line(self._console, f"failed    {_name(job)}: {reason}")

    def _end(self, job: Job) -> None:
        task = self._tasks.pop(job)
        before = next(one.completed for one in self._bars.tasks if one.id == task)
        self._bars.advance(self._all, 1.0 - before)
        self._bars.remove_task(task)


def _name(job: Job) -> str:
    return f"{job.arm} (seed {job.seed})"
