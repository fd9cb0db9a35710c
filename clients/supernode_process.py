"""Flower's SuperNode as an owner runs it: ``python -m clients.supernode_process ...``.

The arguments are the command and its own. It looks for messages as often as they come
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


def fail_where_the_run_has_ended(take: Callable[..., int | None]) -> Callable[..., int | None]:
    """Make the end of a run a failure to take a message: ``start_client_internal._pull_and_store_message``.

    A coordinator that dies leaves announced messages whose content never comes. Flower 1.41 passes such a message over,
    but keeps the task that it has made for it: the next ClientApp takes that task, and waits for ever.
    """

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_fail(run_id: int, about: str) -> Any:
            try:
                return call(run_id, about)
            except RunNotRunningException:
                raise ObjectPullError(about, "the run has ended") from None

        return call_or_fail

    @functools.wraps(take)
    def take_or_fail(
        *, pull_object: Callable[..., Any], confirm_message_received: Callable[..., Any], **named: Any
    ) -> int | None:
        return take(
            pull_object=failing(pull_object), confirm_message_received=failing(confirm_message_received), **named
        )

    return take_or_fail


if __name__ == "__main__":
    pull_soon(start_client_internal)
    start_client_internal._pull_and_store_message = fail_where_the_run_has_ended(
        start_client_internal._pull_and_store_message
    )
    start_client_internal.time = GrowingWaits()  # type: ignore[assignment]
    main()
