"""Studies as commands: what is wrong with a request is said in a line, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from ppfed.cli.console import print_error
from ppfed.errors import PPFedError


def run_study(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a study with the command line's arguments, and end the process.

    Parameters
    ----------
    main : callable
        Takes the arguments and returns the exit status.
    """
    try:
        status = main(sys.argv[1:])
    except PPFedError as error:
        print_error(error)
        status = 1
    sys.exit(status)
