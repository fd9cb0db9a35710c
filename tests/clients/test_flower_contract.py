"""What of Flower's inside is used here, pinned: these fail when Flower changes, before an owner notices."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import requires, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from flwr.app import Array, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.common import constant
from flwr.common.constant import FAB_MAX_SIZE, ErrorCode, SubStatus
from flwr.proto import runtime_pb2
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, pull_objects
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.routers.runtime import router as runtime_router
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import http_grid
from flwr.supernode import start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.runtime import run_clientapp
from packaging.requirements import Requirement

from clients import flower_executor
from clients.flower_executor import UnansweredError
from clients.supernode_process import fail_where_the_run_has_ended
from coordinator import front_door, superlink
from ppfed.enrolment import FLEET_PREFIX
from ppfed.errors import DataError, PeerDataError, ServiceError
from ppfed.services import CHUNK_BYTES, flower_environment

EXECUTOR = Path(inspect.getfile(flower_executor))
BUNDLE = Path(inspect.getfile(superlink)).parent / "bundle"


def imported() -> list[tuple[str, str]]:
    """Every name that clients/flower_executor.py takes from Flower."""
    return [
        (node.module or "", alias.name)
        for node in ast.walk(ast.parse(EXECUTOR.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr")
        for alias in node.names
    ]


def test_flower_is_pinned_to_a_minor_version_and_that_one_is_installed() -> None:
    # One for everybody, one for the simulation.
    pins = [Requirement(one) for one in requires("ppfed") or [] if Requirement(one).name == "flwr"]
    assert pins
    for pin in pins:
        assert pin.specifier.contains(version("flwr"))
        assert pin.specifier.contains("1.41.0")
        assert not pin.specifier.contains("1.42.0")
        assert not pin.specifier.contains("1.40.0")


@pytest.mark.parametrize(("module", "name"), imported())
def test_every_internal_name_exists(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_the_list_of_names_is_not_empty() -> None:
    assert ("flwr.supernode.runtime.run_clientapp", "pull_task_input") in imported()
    assert len(imported()) > 10


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (flower_executor.pull_task_input, ["client"], {}),
        (flower_executor.push_message, ["client", "reply", "context"], {}),
        (flower_executor.push_task_output, ["client", None, "status", "details"], {}),
        (flower_executor.HeartbeatSender, [lambda: True], {}),
        (flower_executor.RetryInvoker, [lambda: iter([1.0]), httpx.HTTPError, 5, None], {"should_giveup": bool}),
        (flower_executor.exponential, [], {"max_delay": 2.0}),
        (flower_executor.RuntimeVersionHttpInterceptor, [], {"component_name": "SuperExec"}),
        (flower_executor.RuntimeTokenHttpInterceptor, ["token"], {}),
        (
            flower_executor.SuperExecAuthHttpInterceptor,
            [],
            {"master_secret": b"s", "protected_methods": frozenset({"m"})},
        ),
        (
            RuntimeHttpClient.from_server_address,
            [],
            {
                "server_address": "127.0.0.1:1",
                "insecure": True,
                "root_certificates": None,
                "interceptors": [],
                "retry_invoker": None,
            },
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_call_fits_its_signature(call: Callable[..., Any], arguments: list[Any], named: dict[str, Any]) -> None:
    inspect.signature(call).bind(*arguments, **named)


def test_task_input_is_what_is_unpacked() -> None:
    returns = inspect.signature(flower_executor.pull_task_input, eval_str=True).return_annotation
    assert [one.__name__ for one in returns.__args__] == ["Message", "Context", "Run", "Fab"]
    sender = flower_executor.HeartbeatSender
    assert callable(sender.start)
    assert callable(sender.stop)
    assert (SubStatus.COMPLETED, SubStatus.FAILED) == ("completed", "failed")
    assert isinstance(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, int)


@pytest.mark.parametrize(
    "name",
    [
        "AcquireTask",
        "SendTaskHeartbeat",
        "PullTaskInput",
        "PullMessages",
        "PushMessages",
        "PullObject",
        "PushObject",
        "ConfirmMessageReceived",
        "PushTaskOutput",
    ],
)
def test_the_runtime_api_has_its_methods(name: str) -> None:
    """The client's method calls the path at which the SuperNode's router serves it."""
    source = inspect.getsource(getattr(RuntimeHttpClient, name))
    assert f'rpc_method="/flwr.proto.Runtime/{name}"' in source
    path = source.split('path="')[1].split('"')[0]
    served = {route.path: route.methods for route in runtime_router.routes}  # type: ignore[attr-defined]
    assert served[path] == {"POST"}


def test_the_protected_method_is_the_one_that_hands_out_tasks() -> None:
    assert {"/flwr.proto.Runtime/AcquireTask"} == flower_executor._ACQUIRE_METHODS
    request = runtime_pb2.AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    assert list(request.supported_task_types) == [TaskType.CLIENT_APP]
    answer = runtime_pb2.AcquireTaskResponse()
    assert not answer.HasField("task")
    assert answer.token == ""


def test_nodes_present_their_key_as_the_front_door_reads_it() -> None:
    assert front_door._NODE_KEY_HEADER == FLEET_HTTP_PUBLIC_KEY_HEADER == "flwr-public-key"
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    openssh = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    assert front_door.public_key_pem(openssh) == public_key_to_bytes(public)


def test_every_fleet_call_of_flower_passes_the_front_door() -> None:
    source = inspect.getsource(FleetHttpClient)
    calls = [part.split('"')[0] for part in source.split(f'path="{FLEET_PREFIX}')[1:]]
    assert len(calls) == source.count("rpc_method=") >= 10
    assert "push-object" in calls
    for call in calls:
        assert front_door._FLEET_CALL.fullmatch(call)


def test_an_array_is_joined_as_it_is_measured() -> None:
    """Were it joined otherwise, a small message could fill the memory again, and nobody would notice."""
    source = ast.parse(Path(inspect.getfile(Array)).read_text())
    (defined,) = [node for node in ast.walk(source) if isinstance(node, ast.FunctionDef) and node.name == "inflate"]
    assert [one.arg for one in defined.args.args] == ["cls", "object_content", "children"]
    text = ast.unparse(defined)
    assert "chunk_ids_indices = cast(list[int], array_metadata['arraychunk_ids'])" in text
    assert "chunk_ids = [children_ids[i] for i in chunk_ids_indices]" in text
    # What pulls hands over how one object is pulled.
    for pull in (pull_objects, pull_and_inflate_object_from_tree):
        assert "pull_object_fn" in inspect.signature(pull).parameters


def test_the_grid_pulls_with_the_function_whose_waits_are_shortened() -> None:
    """ppfed.flower_waiting replaces it: under another name, the coordinator would sleep through an upload."""
    source = inspect.getsource(http_grid.HttpGrid.pull_messages)
    assert source.count("pull_objects(") == 1
    assert "backoff" not in source
    named = {"initial_backoff": 0.05, "backoff_cap": 0.2, "max_tries_per_object": None, "max_time": 600.0}
    inspect.signature(pull_objects).bind(["id"], lambda _id: b"", **named)
    inspect.signature(pull_and_inflate_object_from_tree).bind(
        "tree", lambda _id: b"", lambda _id: None, return_type=Message, **named
    )


def test_a_slow_line_does_not_cost_an_owner_its_message(executed: Callable[..., SimpleNamespace]) -> None:
    """The SuperNode makes the task before it has the message, and fails it where the message does not come."""
    executed(lambda message, context: message)
    assert run_clientapp.pull_and_inflate_object_from_tree.keywords["max_time"] is None  # type: ignore[attr-defined]
    source = inspect.getsource(start_client_internal._pull_and_store_message)
    assert source.index("state.create_task(") < source.index("pull_objects(") < source.index("state.finish_task(")


def test_a_supernode_waits_where_its_waits_are_shortened() -> None:
    """clients.supernode_process replaces ``time`` there: for messages it is 3 s, for answers and their parts 0.5 s."""
    tree = ast.parse(inspect.getsource(start_client_internal))
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "time"]
    assert {node.attr for node in used} == {"sleep"}
    waits = {
        function.name: sorted(
            ast.literal_eval(call.args[0])
            for call in ast.walk(function)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "time.sleep"
        )
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
    }
    assert {name: found for name, found in waits.items() if found} == {
        "start_client_internal": [3],
        "_push_messages": [0.5, 0.5],
    }
    assert inspect.getsource(start_client_internal._pull_and_store_message).count("pull_objects(") == 1
    assert inspect.getsource(run_clientapp.pull_task_input).count("pull_and_inflate_object_from_tree(") == 1


def test_the_supernode_that_is_started_waits_so() -> None:
    script = """
import runpy, sys
sys.argv = ["clients.supernode_process", "flower-supernode", "--version"]
try:
    runpy.run_module("clients.supernode_process", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
from flwr.supernode.start_client_internal import _pull_and_store_message, pull_objects, time
named = pull_objects.keywords
print(type(time).__name__, _pull_and_store_message.__wrapped__.__name__, named["initial_backoff"], named["max_time"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "GrowingWaits _pull_and_store_message 0.05 600.0", done.stderr


@pytest.mark.parametrize("ended_at", ["pull_object", "confirm_message_received"])
@pytest.mark.parametrize("ours", [False, True])
def test_a_message_of_a_run_that_has_ended_leaves_no_task(*, ours: bool, ended_at: str) -> None:
    """Flower's own way leaves one, which the next ClientApp would wait for: when that changes, so can ours."""
    state, store = MagicMock(), MagicMock()
    state.create_task.return_value = 7
    store.preregister.return_value = ["an id"]
    message = SimpleNamespace(metadata=SimpleNamespace(run_id=1, group_id="", message_type="train", message_id="m"))
    flowers = start_client_internal._pull_and_store_message
    take = fail_where_the_run_has_ended(flowers) if ours else flowers

    def end(_run: int, _about: str) -> bytes:
        raise RunNotRunningException

    calls = {"pull_object": lambda _run, _object: b"", "confirm_message_received": MagicMock(), ended_at: end}
    found = take(
        state=state,
        object_store=store,
        node_config={},
        receive=lambda: (message, "tree"),
        get_run=MagicMock(),
        get_fab=MagicMock(),
        trusted_entities=None,
        **calls,
    )
    assert found is None
    assert state.finish_task.called is ours
    assert state.delete_messages.called is ours
    if ours:
        assert state.finish_task.call_args.args == (7,)
        assert state.finish_task.call_args.kwargs["sub_status"] == SubStatus.FAILED


def test_arrays_are_cut_into_chunks_of_the_size_that_was_chosen() -> None:
    name = "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"
    assert f'os.getenv("{name}"' in inspect.getsource(constant)
    assert flower_environment(Path("home"))[name] == str(CHUNK_BYTES)
    code = f"import clients.join; from flwr.common import constant; print(constant.{name})"
    owner = {key: value for key, value in os.environ.items() if key != name}
    done = subprocess.run([sys.executable, "-c", code], env=owner, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(CHUNK_BYTES)
    # A push is one request: the chunk and a little around it.
    assert CHUNK_BYTES + 4096 < front_door._MOST_FLEET_BYTES


# The bundle.


def test_flower_accepts_the_bundle() -> None:
    config, warnings = load_and_validate(BUNDLE / "pyproject.toml", check_module=False)
    assert config["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "ppfed_bundle.server_app:app",
        "clientapp": "ppfed_bundle.client_app:app",
    }
    assert isinstance(warnings, list)


def test_the_bundle_is_small_and_holds_no_logic() -> None:
    content = build_fab_from_disk(BUNDLE)
    assert len(content) < 10_000 < FAB_MAX_SIZE
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sources = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
        assert set(archive.namelist()) - set(sources) <= {"pyproject.toml", ".info/CONTENT"}
    assert set(sources) == {f"ppfed_bundle/{name}.py" for name in ("__init__", "client_app", "server_app")}
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda | ast.If | ast.For | ast.While
            )
            assert not isinstance(node, ast.Call) or ast.unparse(node) == "ClientApp()"


# The executor itself, with Flower's network taken away.


class NoNetwork:
    """Stands for a connection to the SuperNode's Runtime API."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.closed = 0

    def AcquireTask(self, _request: Any) -> Any:  # noqa: N802 -- Flower's name
        answer = runtime_pb2.AcquireTaskResponse()
        if self.tasks:
            self.tasks -= 1
            answer.task.task_id = 1
            answer.token = "a token"
        return answer

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    metadata = Metadata(1, "m", 1, 2, "", "", 1e12, 60.0, "query")

    def run(app: Callable[..., Message], pull_error: Exception | None = None) -> SimpleNamespace:
        client = NoNetwork(tasks=1)
        pushed: list[Message] = []
        outputs: list[tuple[Any, str, str]] = []
        errors: list[Exception] = []
        message = Message(content=RecordDict(), metadata=metadata)

        def pull(_client: Any) -> Any:
            if pull_error is not None:
                raise pull_error
            return message, "context", None, None

        monkeypatch.setattr(flower_executor.FlowerExecutor, "_connect", lambda _self, *_interceptors: client)
        monkeypatch.setattr(flower_executor, "_sent_heartbeat", lambda _client: True)
        monkeypatch.setattr(flower_executor, "pull_task_input", pull)
        monkeypatch.setattr(flower_executor, "push_message", lambda _client, reply, _context: pushed.append(reply))
        monkeypatch.setattr(
            flower_executor,
            "push_task_output",
            lambda _client, context, status, details: outputs.append((context, status, details)),
        )
        executor = flower_executor.FlowerExecutor("127.0.0.1:1", b"secret", app, errors.append)  # type: ignore[arg-type]
        return SimpleNamespace(executor=executor, pushed=pushed, outputs=outputs, errors=errors, client=client)

    return run


def test_a_waiting_message_is_answered(executed: Callable[..., SimpleNamespace]) -> None:
    one = executed(lambda message, context: Message(RecordDict(), reply_to=message))
    assert one.executor.run_waiting_task() is True
    assert one.executor.run_waiting_task() is False
    assert [reply.metadata.reply_to_message_id for reply in one.pushed] == ["m"]
    assert one.outputs == [("context", SubStatus.COMPLETED, "")]
    assert get_all_nested_objects(one.pushed[0])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PeerDataError("not agreed", hint="a hint for us"), "not agreed"),
        (DataError("/home/anna/pictures/secret.png is damaged"), "DataError"),
        (ServiceError("its log is /home/anna/log"), "ServiceError"),
        (FileNotFoundError("/home/anna/pictures/secret.png"), "FileNotFoundError"),
        (ValueError("0x1234"), "ValueError"),
    ],
)
def test_an_error_is_told_without_details(
    executed: Callable[..., SimpleNamespace], error: Exception, told: str
) -> None:
    def fail(message: Message, context: Any) -> Message:
        raise error

    one = executed(fail)
    assert one.executor.run_waiting_task() is True
    assert one.errors == [error]
    (reply,) = one.pushed
    assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, told)
    assert one.outputs == [("context", SubStatus.FAILED, told)]


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        (SimpleNamespace(success=True), True),
        # The task is over: nothing to try again, and nothing to end this process for.
        (SimpleNamespace(success=False), True),
        (httpx.Response(401), True),
        (httpx.Response(503), False),
        (httpx.ConnectError("gone"), False),
    ],
)
def test_a_heartbeat_ends_nothing(answer: Any, *, good: bool) -> None:
    def send(_request: Any) -> Any:
        if isinstance(answer, httpx.Response):
            raise httpx.HTTPStatusError("", request=httpx.Request("POST", "http://x"), response=answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert flower_executor._sent_heartbeat(SimpleNamespace(SendTaskHeartbeat=send)) is good  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "asked"), [(401, 1), (403, 1), (502, 5), (503, 5), (504, 5)])
def test_only_a_busy_supernode_is_asked_again(monkeypatch: pytest.MonkeyPatch, status: int, asked: int) -> None:
    """And no status ends the process, as Flower's retries do with 401."""
    monkeypatch.setattr(flower_executor, "_LONGEST_RETRY_S", 0)
    calls: list[int] = []

    def ask() -> None:
        calls.append(status)
        raise httpx.HTTPStatusError("", request=httpx.Request("POST", "http://x"), response=httpx.Response(status))

    with pytest.raises(httpx.HTTPStatusError):
        flower_executor._retries().invoke(ask)
    assert len(calls) == asked


def test_a_message_that_cannot_be_pulled_is_not_reported_as_answered(
    executed: Callable[..., SimpleNamespace],
) -> None:
    damaged = RuntimeError("damaged")
    one = executed(lambda message, context: message, pull_error=damaged)
    with pytest.raises(UnansweredError, match="no answer: RuntimeError: damaged"):
        one.executor.run_waiting_task()
    ((_, status, details),) = one.outputs
    assert status == SubStatus.FAILED
    assert "damaged" not in details
    assert one.pushed == []
    assert one.client.closed == 1


def test_a_task_that_was_taken_back_is_no_error_to_speak_of(executed: Callable[..., SimpleNamespace]) -> None:
    request = httpx.Request("POST", "http://127.0.0.1/v1/runtime/pull-object")
    error = httpx.HTTPStatusError("", request=request, response=httpx.Response(401))
    one = executed(lambda message, context: message, pull_error=error)
    assert one.executor.run_waiting_task() is False
    assert one.errors == []


@pytest.mark.parametrize("step", ["push_message", "push_task_output"])
def test_an_answer_that_cannot_be_handed_over_does_not_end_the_owner(
    executed: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    one = executed(lambda message, context: Message(RecordDict(), reply_to=message))

    def fail(*_arguments: Any) -> None:
        raise ValueError("Flower cannot")

    monkeypatch.setattr(flower_executor, step, fail)
    if step == "push_message":
        # The SuperNode would wait for it for ever; of an answer that it has, it needs no report.
        with pytest.raises(UnansweredError, match="Flower cannot"):
            one.executor.run_waiting_task()
    else:
        assert one.executor.run_waiting_task() is False
        assert [str(error) for error in one.errors] == ["Flower cannot"]
    assert [status for _, status, _ in one.outputs] == ([SubStatus.FAILED] if step == "push_message" else [])
    assert one.client.closed == 1
