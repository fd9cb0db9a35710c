"""Flower's SuperNode as an owner runs it: ``python -m clients.supernode_process ...``.

The arguments are those of ``ppfed.flower_service``. It looks for messages as often as they come
(``ppfed/flower_waiting.py``), and survives the end of a run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal

from ppfed.flower_service import main
from ppfed.flower_waiting import GrowingWaits, pull_soon


def fail_where_the_run_has_ended(pull: Callable[..., dict[str, bytes]]) -> Callable[..., dict[str, bytes]]:
    """Make the end of a run a failure to pull a message.

    A coordinator that dies leaves announced messages whose content never comes. Flower 1.41 passes such a message over,
    but keeps the task that it has made for it: the next ClientApp takes that task, and waits for ever.
    """

    @functools.wraps(pull)
    def pull_or_fail(object_ids: list[str], *arguments: Any, **named: Any) -> dict[str, bytes]:
        try:
            return pull(object_ids, *arguments, **named)
        except RunNotRunningException:
            raise ObjectPullError(object_ids[0] if object_ids else "", "the run has ended") from None

    return pull_or_fail


if __name__ == "__main__":
    pull_soon(start_client_internal)
    start_client_internal.pull_objects = fail_where_the_run_has_ended(start_client_internal.pull_objects)
    start_client_internal.time = GrowingWaits()  # type: ignore[assignment]
    main()
