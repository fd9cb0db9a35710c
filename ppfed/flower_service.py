"""One of Flower's commands with a garbage collector that runs often: a module around it calls ``main``.

Flower's services hold each request of up to 8 MiB in a cycle of references. Python looks for such cycles after so many
new objects, however large these are, and an upload makes few: dozens of requests wait in memory for it: see
docs/performance.md.
"""

from __future__ import annotations

import gc
import sys
from importlib.metadata import entry_points

_THRESHOLDS = (100, 2, 2)
"""A full collection after some 400 new objects that are still there: a request or two."""


def collect_often() -> None:
    """Look for cycles often, and only in what is made from now on, so that it costs next to nothing."""
    gc.collect()
    gc.freeze()
    # Once more: Python waits until a quarter of what the last full collection found has been added.
    gc.collect()
    gc.set_threshold(*_THRESHOLDS)


def main() -> None:
    """Run the command that the first argument names; it sees the others as its own."""
    del sys.argv[0]
    (command,) = entry_points(group="console_scripts", name=sys.argv[0])
    run = command.load()
    collect_often()
    sys.exit(run())
