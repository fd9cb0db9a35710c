from __future__ import annotations

import importlib.util
import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.error import Error
from flwr.serverapp import Grid
from flwr.simulation import run_simulation

from clients.prepared import Prepared
from coordinator.checkpoint import load_checkpoint
from coordinator.processes import Processes
from coordinator.server_app import run_federation
from coordinator.state import RoundRecord, StateFolder
from ppfed.enrolment import Phase
from ppfed.errors import FederationError, UsageError
from ppfed.images.source import Split
from ppfed.model_folder import load_model
from ppfed.networks.config import count_weights
from ppfed.networks.state import network_state
from ppfed.store import ShardStore
from ppfed.wire.messages import FINISH, MANIFEST, SHARD, pack_request
from ppfed.wire.shards import ShardName, pack_shard_request
from ppfed.wire.weights import Farewell, pack_farewell
from scenarios.simulated import simulation
from scenarios.simulated.flower_simulation import ObservedGrid, VirtualOwners, _question_name
from scenarios.simulated.simulation import MessageRecord, SimulationFailure, log_file, simulate

_SPEC = importlib.util.spec_from_file_location("loopback", Path(__file__).parents[2] / "coordinator" / "conftest.py")
assert _SPEC is not None
assert _SPEC.loader is not None
loopback = importlib.util.module_from_spec(_SPEC)
# Dataclasses look their module up.
sys.modules["loopback"] = loopback
_SPEC.loader.exec_module(loopback)
# The federation in memory that the coordinator's tests use, and what it needs.
flower_task, make_state, make_federation = loopback.flower_task, loopback.make_state, loopback.make_federation

CPU = torch.device("cpu")
# One shard each: a simulation is a process of its own, with shards of the real size.
OWNERS = {"anna": ((19,), (6,)), "bert": ((10,), (5,)), "cora": ((14,), (4,))}


def weights(model: Path) -> dict[str, torch.Tensor]:
    return network_state(load_model(model, CPU).network)


def assert_same_weights(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    # Bit for bit: the same operations in the same order, on one thread everywhere.
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def group_is_gone(leader: int, within_s: float) -> bool:
    """Whether no process of a group is left within some seconds; what is dead and not reaped does not count."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not list(members(leader)):
            return True
        time.sleep(0.1)
    return False


def members(leader: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        state, group = after_name[0], int(after_name[2])
        if group == leader and state not in "ZX":
            yield int(entry.parent.name)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["updates", "images", "gradients"])
def test_a_simulation_equals_the_same_federation_in_memory(
    make_federation: Callable[..., SimpleNamespace],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    exchange: str,
) -> None:
    federation = make_federation(OWNERS, exchange=exchange)
    run_federation(federation.grid, federation.state, Processes("cpu"))
    told: list[RoundRecord] = []
    result = simulate(federation.settings, federation.prepared, tmp_path / "simulated", CPU, told.append, jobs=2)
    state = StateFolder(tmp_path / "simulated")

    assert_same_weights(result.model, federation.state.model)
    expected = federation.state.status().rounds
    assert tuple(told) == result.rounds
    assert [one.model_dump(exclude={"seconds"}) for one in told] == [
        one.model_dump(exclude={"seconds"}) for one in expected
    ]
    assert capfd.readouterr() == ("", "")
    assert log_file(state).stat().st_size > 0
    assert not simulation.SimulationSetup.read(state).ray_folder.exists()

    weight_bytes = 4 * count_weights(federation.settings.network_config())
    if exchange == "updates":
        # Two rounds there and back, the last average and the farewell there; settings and names are less than 2 %. The
        # farewell brings each owner the model card with what was measured of the cipher: some kilobytes, 2 % of this.
        assert 1 < result.bytes_to_coordinator / (3 * 2 * weight_bytes) < 1.02
        assert 1 < result.bytes_from_coordinator / (3 * 4 * weight_bytes) < 1.05
    elif exchange == "images":
        sent = (19 + 10 + 14 + 6 + 5 + 4) * (8 * 8 * 3 + 12 + 8)
        assert sent < result.bytes_to_coordinator < sent + 6 * 1000

    # A finished one is not run again.
    started, again = time.monotonic(), list[RoundRecord]()
    assert simulate(federation.settings, federation.prepared, state.folder, CPU, again.append) == result
    assert again == told
    assert time.monotonic() - started < 1
    other = federation.settings.model_copy(update={"name": "other"})
    with pytest.raises(UsageError, match="other settings or other images"):
        simulate(other, federation.prepared, state.folder, CPU)


CHILD = """
import json, sys
from pathlib import Path
import torch
from clients.prepared import Prepared
from ppfed.federation import FederationSettings
from ppfed.store import ShardStore
from scenarios.simulated.simulation import simulate
torch.set_num_threads(1)
given = json.loads(sys.argv[1])
owners = {name: Prepared(ShardStore(Path(store)), *counts) for name, (store, counts) in given["owners"].items()}
settings = FederationSettings.model_validate(given["settings"])
simulate(settings, owners, Path(given["folder"]), torch.device("cpu"), jobs=2)
"""


@pytest.mark.slow
def test_an_interrupted_simulation_goes_on_as_if_nothing_had_been(
    make_federation: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    federation = make_federation(OWNERS, training={"rounds": 32})
    run_federation(federation.grid, federation.state, Processes("cpu"))
    state = StateFolder(tmp_path / "simulated")
    given = {
        "settings": federation.settings.model_dump(mode="json"),
        "folder": str(state.folder),
        "owners": {
            name: (str(one.store.folder), (one.train_images, one.held_out_images, one.copies, 0, {}))
            for name, one in federation.prepared.items()
        },
    }
    # Ctrl-C in the eighth round or soon after, kill -9 in the sixteenth.
    for how, after in ((signal.SIGINT, 8), (signal.SIGKILL, 16)):
        caller = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(given)], stderr=subprocess.PIPE)
        while (checkpoint := load_when_whole(state)) < after:
            assert caller.poll() is None, caller.communicate()[1].decode()
            time.sleep(0.02)
        assert checkpoint < 32
        simulating = state.running_pid()
        assert simulating is not None
        assert len(list(members(simulating))) > 3
        caller.send_signal(how)
        # A busy machine takes seconds to tear processes down. The federation would have been finished in that time.
        assert group_is_gone(simulating, 20), list(members(simulating))
        assert state.status().phase is Phase.TRAINING
        _, complaint = caller.communicate(timeout=20)
        assert caller.returncode == -how, complaint.decode()
    result = simulate(federation.settings, federation.prepared, state.folder, CPU, jobs=2)
    assert_same_weights(result.model, federation.state.model)
    assert [one.round for one in result.rounds] == list(range(1, 33))
    assert [one.accuracy for one in result.rounds] == [one.accuracy for one in federation.state.status().rounds]
    # What was asked twice counts once.
    weight_bytes = 4 * count_weights(federation.settings.network_config())
    assert 1 < result.bytes_from_coordinator / (3 * 34 * weight_bytes) < 1.02


def load_when_whole(state: StateFolder) -> int:
    try:
        checkpoint = load_checkpoint(state.checkpoint)
    except UsageError:
        # It was replaced while it was read.
        return 0
    return checkpoint.rounds if checkpoint else 0


@pytest.mark.slow
def test_an_owner_that_fails_ends_the_simulation(
    make_federation: Callable[..., SimpleNamespace], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    federation = make_federation(OWNERS)
    shard = federation.prepared["bert"].store.path(Split.HELD_OUT, 0)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    started = time.monotonic()
    with pytest.raises(FederationError, match=r"bert failed: .*00000\.arrow is not a shard") as caught:
        simulate(federation.settings, federation.prepared, tmp_path / "simulated", CPU)
    # It neither tries again nor waits for a deadline.
    assert time.monotonic() - started < 60
    state = StateFolder(tmp_path / "simulated")
    assert str(log_file(state)) in caught.value.hint
    assert caught.value.message.count("bert failed") == 1
    assert "; " not in caught.value.message
    assert state.status().phase == "failed"
    assert "bert failed" in state.status().message
    assert not state.model.exists()
    assert capfd.readouterr() == ("", "")


def test_what_the_coordinator_refused_is_told(make_state: Callable[..., StateFolder]) -> None:
    state = make_state()
    state.audit("refused", owner="anna", reason="of an earlier call")
    audited = simulation._audit_bytes(state)
    SimulationFailure(message="3 rounds in a row had fewer than 3 usable answers").write(state)
    with pytest.raises(FederationError) as caught:
        simulation._require_success(state, 1, audited)
    assert "anna" not in str(caught.value)
    state.audit("refused", owner="cora", reason="the number of images is not the announced one")
    state.audit("round fell short of the quorum", owners=2)
    with pytest.raises(FederationError, match="usable answers; cora: the number of images is not the announced one"):
        simulation._require_success(state, 1, audited)
    state.audit("missed the deadline", owner="bert", group="round 1")
    with pytest.raises(FederationError, match="; bert: missed the deadline"):
        simulation._require_success(state, 1, audited)


def test_a_process_that_was_killed_is_an_error(make_state: Callable[..., StateFolder]) -> None:
    with pytest.raises(FederationError, match="ended by signal 9 after 0 rounds") as caught:
        simulation._require_success(make_state(), -9, 0)
    assert "fewer owners" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "arguments", "reason"),
    [
        ({"owners": 4}, {}, "4 owners, and 3 were given"),
        ({}, {"jobs": 0}, "at least one owner"),
        ({}, {"device": torch.device("meta")}, "cpu or cuda"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    make_federation: Callable[..., SimpleNamespace],
    tmp_path: Path,
    changes: dict[str, Any],
    arguments: dict[str, Any],
    reason: str,
) -> None:
    federation = make_federation(OWNERS)
    settings = federation.settings.model_copy(update=changes)
    with pytest.raises(UsageError, match=reason):
        simulate(settings, federation.prepared, tmp_path / "new", **{"device": CPU, **arguments})
    assert not (tmp_path / "new").exists()


def test_an_owner_without_images_is_refused(make_federation: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    federation = make_federation(OWNERS)
    empty = {**federation.prepared, "anna": Prepared(ShardStore(tmp_path / "empty"), 0, 0, 1, 0, {})}
    with pytest.raises(UsageError, match="anna has no images"):
        simulate(federation.settings, empty, tmp_path / "new", CPU)


def test_without_ray_it_says_what_to_install(
    make_federation: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(OWNERS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError) as caught:
        simulate(federation.settings, federation.prepared, tmp_path / "new", CPU)
    assert "ppfed[scenarios]" in caught.value.hint


def test_bytes_of_a_repeated_question_count_once(make_state: Callable[..., StateFolder]) -> None:
    state = make_state()
    for owner, question, sent, received in (
        ("anna", "round 1", 10, 1),
        ("bert", "round 1", 20, 2),
        ("anna", "round 1", 30, 3),
        ("anna", "round 2", 40, 4),
    ):
        MessageRecord(owner=owner, question=question, sent_bytes=sent, received_bytes=received).append(state)
    # A process killed while it wrote.
    with (state.folder / "messages.jsonl").open("a") as file:
        file.write('{"owner":"bert","quest')
    assert simulation._count_bytes(state) == (90, 9)


# What is used of Flower.


def test_flower_still_runs_simulations_from_objects() -> None:
    wanted = {"server_app", "client_app", "num_supernodes", "backend_name", "backend_config"}
    assert wanted <= set(inspect.signature(run_simulation).parameters)


def test_the_grid_implements_all_that_flower_asks() -> None:
    assert not getattr(ObservedGrid, "__abstractmethods__", None)
    public = {name for name in vars(Grid) if not name.startswith("_")}
    assert public - {"get_nodes"} <= set(vars(ObservedGrid))


def test_a_virtual_node_tells_its_partition(tmp_path: Path) -> None:
    question = Message(RecordDict({"who": ConfigRecord()}), 7, "query.who")
    context = Context(1, 7, {"partition-id": 3}, RecordDict(), {})
    # Ray carries it there pickled.
    build, arguments = VirtualOwners(str(tmp_path)).__reduce__()
    answer = build(*arguments)(question, context)
    assert answer.content.config_records["who"]["partition-id"] == 3


def seated(federation: SimpleNamespace) -> ObservedGrid:
    grid = ObservedGrid(federation.grid, federation.state)
    grid._owners = {one.node_id: name for name, one in federation.enrolled.items()}
    return grid


def ask(grid: ObservedGrid, federation: SimpleNamespace, owner: str, content: RecordDict, kind: str) -> str:
    message = Message(content, federation.enrolled[owner].node_id, kind, ttl=60, group_id="intake")
    (question,) = grid.push_messages([message])
    return question


def test_an_answer_that_nobody_wants_holds_up_no_other(make_federation: Callable[..., SimpleNamespace]) -> None:
    federation = make_federation(OWNERS, exchange="images")
    federation.faults.delay_s = lambda owner, _question: 0.3 if owner == "bert" else 0.0
    grid = seated(federation)
    forgotten = ask(grid, federation, "anna", pack_request(), MANIFEST)
    wanted = ask(grid, federation, "bert", pack_request(), MANIFEST)
    deadline, answers = time.monotonic() + 5, list[Message]()
    while not answers and time.monotonic() < deadline:
        answers = list(grid.pull_messages([wanted]))
    assert [one.metadata.reply_to_message_id for one in answers] == [wanted]
    assert [one.metadata.reply_to_message_id for one in grid.pull_messages([forgotten])] == [forgotten]


def test_looking_waits_for_an_answer(make_federation: Callable[..., SimpleNamespace]) -> None:
    federation = make_federation(OWNERS, exchange="images")
    federation.faults.delay_s = lambda _owner, _question: 0.2
    grid = seated(federation)
    question = ask(grid, federation, "anna", pack_request(), MANIFEST)
    started = time.monotonic()
    assert len(list(grid.pull_messages([question]))) == 1
    assert 0.1 < time.monotonic() - started < 1


def test_an_error_of_an_owner_stops_the_federation(make_federation: Callable[..., SimpleNamespace]) -> None:
    federation = make_federation(OWNERS, exchange="images")
    federation.faults.mutate = lambda _owner, question, _answer: Message(Error(3, "the disk"), reply_to=question)
    grid = seated(federation)
    question = ask(grid, federation, "cora", pack_request(), MANIFEST)
    list(grid.pull_messages([question]))
    assert str(grid.failure) == "cora failed: the disk"
    assert federation.state.stop_request.exists()
    assert list(grid.get_node_ids()) == []
    assert not (federation.state.folder / "messages.jsonl").exists()


def test_a_question_has_the_same_name_every_time() -> None:
    def name(content: RecordDict, kind: str) -> str:
        return _question_name(Message(content, 1, kind, group_id="group"))

    farewell = Farewell(True, "", "a card", {}, "a curve")
    later = Farewell(True, "", "a card of another day", {}, "a curve")
    assert name(pack_farewell(farewell), FINISH) == name(pack_farewell(later), FINISH)
    shards = [ShardName(split, index) for split in Split for index in (0, 1)]
    assert len({name(pack_shard_request(shard), SHARD) for shard in shards}) == 4
