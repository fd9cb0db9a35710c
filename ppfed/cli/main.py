"""The ``ppfed`` command: collects the groups of commands and prints errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated

import typer

import ppfed
from ppfed.cli import audit, evaluate, images, key, predict
from ppfed.cli.console import print_bug, print_error, stdout
from ppfed.errors import PPFedError, UsageError
from ppfed.keys.files import SEEN_HINT, holds_key

_EX_SOFTWARE = 70
"""As in BSD's sysexits.h: an error inside the program."""


def build_app() -> typer.Typer:
    """Build the command line, with the groups that the roles register as entry points in ``ppfed.commands``."""
    app = typer.Typer(
        name="ppfed",
        help="Train one image classifier on encrypted images of several owners, on a host that holds no key.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    @app.callback()
    def root(
        # While options are read: without a command the body is never reached.
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
        ] = False,
    ) -> None: ...

    app.add_typer(key.app, name="key")
    app.add_typer(audit.app, name="audit")
    app.command("encrypt")(images.encrypt)
    app.command("decrypt")(images.decrypt)
    app.command("preview")(images.preview)
    app.command("predict")(predict.predict)
    app.command("evaluate")(evaluate.evaluate)
    for entry_point in sorted(entry_points(group="ppfed.commands"), key=lambda found: found.name):
        command = entry_point.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry_point.name)
        else:
            app.command(entry_point.name)(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        stdout().print(ppfed.__version__)
        raise typer.Exit


def _require_no_key(arguments: Sequence[str]) -> None:
    """Refuse a key among the arguments before anything can repeat it, in whichever message."""
    if any(holds_key(argument) for argument in arguments):
        raise UsageError(
            "What was given as an argument is a key itself, or looks like one; it is not repeated.",
            hint=f"If it is no key, check the path. {SEEN_HINT}",
        )


def main() -> None:
    """Run the command line; a ``PPFedError`` ends it with exit code 1, a bug with 70, and neither with a traceback.

    ``PPFED_DEBUG=1`` shows a bug's traceback, and never the values of variables: they may be keys and pixels.
    """
    try:
        _require_no_key(sys.argv[1:])
        build_app()()
    except PPFedError as error:
        print_error(error)
        sys.exit(1)
    except Exception as error:
        print_bug(error)
        if os.environ.get("PPFED_DEBUG") == "1":
            traceback.print_exc()
        sys.exit(_EX_SOFTWARE)
