"""What the commands print, and where: results to stdout, everything else to stderr."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ppfed.errors import PPFedError

_FILE_COLUMNS = 180
_INTERRUPTED = 130
"""As a shell says it of a program that Ctrl-C ends."""


def stdout() -> Console:
    """Return the console for results."""
    # Rich asks all three streams for a terminal's width, and takes 80 where none is one.
    streams = (sys.stdin, sys.stdout, sys.stderr)
    wide = _is_file(sys.stdout) or not any(stream is not None and stream.isatty() for stream in streams)
    return Console(highlight=False, width=_FILE_COLUMNS if wide and "COLUMNS" not in os.environ else None)


def _is_file(stream: TextIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def stderr() -> Console:
    """Return the console for notices, warnings, errors and progress."""
    return Console(stderr=True, highlight=False)


def print_error(error: PPFedError) -> None:
    """Print an error and what to do next to stderr."""
    console = stderr()
    console.print(f"[bold red]error:[/] {escape(printable(error.message))}", soft_wrap=True, emoji=False)
    if error.hint:
        console.print(f"[bold]next:[/] {escape(printable(error.hint))}", soft_wrap=True, emoji=False)


def print_bug(error: Exception) -> None:
    """Print an exception that ppfed did not foresee to stderr, in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    print_line(stderr(), f"error: this is a bug in ppfed: {text} (PPFED_DEBUG=1 shows where)")


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: text from peers and file names is no markup and commands no terminal."""
    console.print(printable(line), markup=False, emoji=False, soft_wrap=True)


@contextmanager
def ctrl_c_says(line: str) -> Iterator[None]:
    """Have Ctrl-C end the block, and the command, with a line that says how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        print_line(stderr(), line)
        raise typer.Exit(_INTERRUPTED) from None


def printable(text: str) -> str:
    """Replace what is not printable, but for line breaks: names and messages come from others."""
    kept = (one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
    return "".join(kept)


def live_bar(console: Console) -> Progress:
    """Make a bar that a role keeps below its lines while it works; invisible where there is no terminal."""
    # A description may hold text from peers.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr while the block runs.

    Parameters
    ----------
    description : str
    total : int or None
        None where the amount of work is unknown.

    Yields
    ------
    callable
        Called with the number of steps done since the last call.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)
