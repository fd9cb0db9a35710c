"""How often Flower's processes look whether something has come. Flower offers no setting for it.

*For the objects of a message.* A message can be pulled as soon as it is announced, before the first of its objects is
there. For each object that is missing Flower then sleeps for 1, 2, 4, 8 and then 10 seconds, whatever the size: of a
shard of images most objects are missed at least once, and the coordinator slept for longer than the transfer took; an
owner's ClientApp is called when the first object of a question is there, and always slept for a second.

*For the next message, and for its answer.* A SuperNode sleeps for 3 s where no message waits for it, for 0.5 s where
the answer is not ready. It looks right after it has answered, when the coordinator cannot have asked again, so that
every round, every step of exchange ``gradients`` and every shard took 3 s more than it needed.

Everything here is internal to Flower 1.41; ``tests/clients/test_flower_contract.py`` fails when it changes.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, pull_objects

from ppfed.wire.sizes import MessageSize

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.2
_MOST_S = 600.0
"""Flower forgets an answer whose node pushes nothing for three minutes, and says so; this is for a node that pushes a
little now and then."""

_SHARE = 0.25


def pull_soon(module: ModuleType, most_s: float | None = _MOST_S) -> None:
    """Make a module of Flower's look for missing objects several times a second; calling it again changes nothing.

    And give up a message that is larger than any of ppfed's (``ppfed/wire/sizes.py``).

    Parameters
    ----------
    module : module
        One that pulls with ``pull_objects`` or ``pull_and_inflate_object_from_tree``.
    most_s : float or None
        So long it looks for the objects of a message, in seconds; None until somebody says that they will not come.
    """
    for pull in (pull_objects, pull_and_inflate_object_from_tree):
        if hasattr(module, pull.__name__):
            briefly = functools.partial(
                _measured(pull),
                initial_backoff=FIRST_WAIT_S,
                backoff_cap=LONGEST_WAIT_S,
                # Flower's 500 tries would be over after two minutes.
                max_tries_per_object=None,
                max_time=most_s,
            )
            setattr(module, pull.__name__, briefly)


def _measured(pull: Callable[..., Any]) -> Callable[..., Any]:
    """Make each call of one of Flower's functions measure the message that it pulls."""
    parameters = inspect.signature(pull)

    @functools.wraps(pull)
    def pull_measured(*arguments: Any, **named: Any) -> Any:
        call = parameters.bind(*arguments, **named)
        call.arguments["pull_object_fn"] = MessageSize(call.arguments["pull_object_fn"])
        return pull(*call.args, **call.kwargs)

    return pull_measured


class GrowingWaits:
    """Stands in for the module ``time`` where Flower sleeps for the same time again and again.

    A wait takes a quarter of the time that has been waited already: what comes is noticed late by a quarter of the
    time that it took, and whoever has waited for long looks as seldom as Flower would: a silence of 12 s costs some 25
    looks in place of 4, and every minute more the same 20.
    """

    def __init__(self) -> None:
        self._kind = 0.0
        self._since = 0.0

    def sleep(self, seconds: float) -> None:
        """Sleep for so long at most; another ``seconds`` than the last time begins a new wait."""
        now = time.monotonic()
        if seconds != self._kind:
            self._kind, self._since = seconds, now
        time.sleep(min(seconds, max(FIRST_WAIT_S, _SHARE * (now - self._since))))
