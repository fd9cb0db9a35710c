"""How often Flower looks whether a part of an answer has arrived.

A reply can be pulled as soon as its node has announced it, before the first of its objects is there. For each object
that is missing Flower then sleeps for 1, 2, 4, 8 and then 10 seconds, whatever the size: of a shard of images most
objects are missed at least once, and the coordinator slept for longer than the transfer took. Flower offers no
setting: ``HttpGrid`` calls ``pull_objects`` with its defaults. Everything here is internal to Flower 1.41;
``tests/clients/test_flower_contract.py`` fails when it changes.
"""

from __future__ import annotations

import functools

from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.2
_MOST_S = 600.0
"""Flower forgets an answer whose node pushes nothing for three minutes, and says so; this is for a node that pushes a
little now and then."""


def wait_briefly() -> None:
    """Make this process's grid look several times a second; calling it again changes nothing."""
    http_grid.pull_objects = functools.partial(
        pull_objects,
        initial_backoff=FIRST_WAIT_S,
        backoff_cap=LONGEST_WAIT_S,
        # Flower's 500 tries would be over after two minutes.
        max_tries_per_object=None,
        max_time=_MOST_S,
    )
