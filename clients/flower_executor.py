"""Runs the owner's installed ClientApp for the messages that Flower's SuperNode holds.

Flower would unpack the coordinator's app bundle and run it here, on the machine that holds the key. So the SuperNode is
started without an executor of its own, and this module is the executor: it takes a message, calls our ClientApp in this
process, and pushes the reply. The bundle is never unpacked.

Everything here is internal to Flower 1.41 (``flwr/supernode/runtime/run_clientapp.py`` and
``flwr/supercore/superexec/run_superexec.py`` do the same steps); ``tests/clients/test_flower_contract.py`` fails
when it changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import httpx
from flwr.app import Message
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime import run_clientapp
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from ppfed.errors import PeerDataError, ServiceError
from ppfed.flower_waiting import pull_soon

_TRIES = 5
_LONGEST_RETRY_S = 2
_BUSY = frozenset({httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT})
_ACQUIRE_METHODS = frozenset({"/flwr.proto.Runtime/AcquireTask"})


class UnansweredError(ServiceError):
    """A message got no answer, not even that it failed: the SuperNode waits for it, and takes no other."""


class FlowerExecutor:
    """Takes tasks from a SuperNode's Runtime API, on the loopback interface.

    Parameters
    ----------
    address : str
        ``127.0.0.1:PORT``.
    secret : bytes
        Shared with the SuperNode: no other program on this machine may take tasks.
    client_app : ClientApp
    on_error : callable
        Called with an exception of the app; the coordinator hears its class at most, unless it is a ``PeerDataError``.
    """

    def __init__(
        self, address: str, secret: bytes, client_app: ClientApp, on_error: Callable[[Exception], None]
    ) -> None:
        # The SuperNode hands out a task before it has the message, which may come over a slow line; it takes the task
        # back where the message does not come.
        pull_soon(run_clientapp, None)
        self._address = address
        self._client_app = client_app
        self._on_error = on_error
        self._client = self._connect(
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE_METHODS),
        )

    def run_waiting_task(self) -> bool:
        """Answer one message, if one waits.

        Returns
        -------
        bool
            Whether one was answered.

        Raises
        ------
        UnansweredError
            If it has no answer, and the SuperNode has to be started again.
        """
        answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if not answer.HasField("task") or not answer.token:
            return False
        return self._run_task(answer.token)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _run_task(self, token: str) -> bool:
        client = self._connect(
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), RuntimeTokenHttpInterceptor(token)
        )
        heartbeat = HeartbeatSender(lambda: _sent_heartbeat(client))
        heartbeat.start()
        context, status, details = None, SubStatus.FAILED, "the message could not be taken or answered"
        answered = False
        try:
            try:
                message, context, _run, _bundle = pull_task_input(client)
                try:
                    reply = self._client_app(message=message, context=context)
                    outcome = SubStatus.COMPLETED, ""
                except Exception as error:
                    self._on_error(error)
                    outcome = SubStatus.FAILED, _public_reason(error)
                    reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, outcome[1]), reply_to=message)
                push_message(client, reply, context)
                answered = True
                status, details = outcome
            finally:
                push_task_output(client, context, status, details)
        except Exception as error:
            # A message that Flower cannot read must not end the owner's part in the federation.
            if _is_over(error):
                return False
            if not answered:
                raise UnansweredError(f"a message got no answer: {type(error).__name__}: {error}") from error
            self._on_error(error)
            return False
        finally:
            heartbeat.stop()
            client.close()
        return True

    def _connect(self, *interceptors: ProtobufClientInterceptor) -> RuntimeHttpClient:
        # Flower's client obeys the environment's proxies; this connection stays on this machine.
        os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*os.environ.get("NO_PROXY", "").split(","), "127.0.0.1"]))
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,
            root_certificates=None,
            interceptors=list(interceptors),
            retry_invoker=_retries(),
        )


def _is_over(error: Exception) -> bool:
    """Whether the task was taken back, as its run has ended: a coordinator died, and others follow."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED


def _passes(error: Exception) -> bool:
    """Whether the SuperNode may answer yet: it could not be reached, or is busy."""
    return isinstance(error, httpx.TransportError) or (
        isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _BUSY
    )


def _retries() -> RetryInvoker:
    """Try again what passes; Flower's own retries end the process, by SIGINT, where a task is over."""
    return RetryInvoker(
        lambda: exponential(max_delay=_LONGEST_RETRY_S),
        httpx.HTTPError,
        _TRIES,
        None,
        should_giveup=lambda error: not _passes(error),
    )


def _sent_heartbeat(client: RuntimeHttpClient) -> bool:
    """Send a heartbeat; False where it is worth to try again. Flower's own ends the process where a task is over."""
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.HTTPError as error:
        return not _passes(error)
    return True


def _public_reason(error: Exception) -> str:
    """Choose what the coordinator is told: what is wrong with its own message; other errors hold paths and names."""
    cause = error.__cause__ if isinstance(error.__cause__, PeerDataError) else error
    return cause.message if isinstance(cause, PeerDataError) else type(cause).__name__
