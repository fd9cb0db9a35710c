"""Shows an owner what goes on: live in a terminal, as lines elsewhere."""

from __future__ import annotations

from rich.console import Console

from ppfed.cli.console import live_bar, print_line, printable
from ppfed.training.loop import Evaluation

_MB = 1e6


class RichDisplay:
    """Prints progress to a console; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = live_bar(console)
        self._task = self._bar.add_task("waiting", total=None)

    def __enter__(self) -> RichDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()

    def notice(self, line: str) -> None:
        """Print a line."""
        print_line(self._console, line)
        self._bar.update(self._task, description=printable(line[:60]).replace("\n", " "))

    def shard_sent(self, number: int, total: int, size_bytes: int) -> None:
        """See ``Display``."""
        self.notice(f"sent shard {number} of {total} ({size_bytes / _MB:.1f} MB of encrypted images so far)")
        self._bar.update(self._task, completed=number, total=total)

    def round_started(self, number: int, rounds: int, evaluation: Evaluation) -> None:
        """See ``Display``."""
        accuracy = f"; accuracy here before it {evaluation.accuracy:.1%}" if evaluation.count and number > 1 else ""
        self.notice(f"round {number} of {rounds}{accuracy}")

    def step(self, done: int, steps: int) -> None:
        """See ``Display``."""
        self._bar.update(self._task, completed=done, total=steps)

    def round_finished(self, number: int, rounds: int, train_loss: float) -> None:
        """See ``Display``."""
        self.notice(f"round {number} of {rounds} trained: loss {train_loss:.3f}")
