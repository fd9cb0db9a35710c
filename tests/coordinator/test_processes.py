"""Training with real processes under torchrun, beside the same training in this one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from clients.prepared import Prepared
from coordinator.checkpoint import load_checkpoint
from coordinator.cli import app
from coordinator.pooled import pooled_images, train_pooled
from coordinator.processes import Processes, read_job, train_in_processes
from coordinator.start import run_coordinator
from coordinator.state import RoundRecord, StateFolder
from ppfed.errors import ServiceError, UsageError
from ppfed.federation import Exchange, FederationSettings
from ppfed.networks.classifier import build_network
from ppfed.training.settings import DataPlacement

MakeSettings = Callable[..., FederationSettings]

CPU = torch.device("cpu")
TWO = Processes("cpu", 2)
OWNERS = ("anna", "bert")
STEADY = {"base_maps": 4, "batch_size": 25, "learning_rate": 0.002}
"""52 images make batches of 17 and 18: half of them in unequal parts. At higher rates such a small training is chaotic:
one process whose weights are changed by a millionth ends percents away."""
AVERAGED = {"average_passes": 2.0, "alternate_flip": True}
CLOSE = 1e-4
"""Sums in other order round differently, by 1e-7 each in float32; 9 steps of batch norm and ReLU amplify that."""


@pytest.fixture
def with_images(
    make_state: Callable[..., StateFolder], make_prepared: Callable[..., Prepared]
) -> Callable[..., StateFolder]:
    """Make a state folder in which the images of two owners have arrived."""

    def make(name: str = "state", **training: Any) -> StateFolder:
        state = make_state(name, exchange=Exchange.IMAGES, training={"rounds": 3, "seed": 3, **training})
        for position, owner in enumerate(OWNERS):
            make_prepared(state.store(owner), (17, 9), (7,), seed=position)
        return state

    return make


def in_this_process(state: StateFolder) -> list[RoundRecord]:
    settings = state.plan().settings
    images = pooled_images(state, OWNERS, CPU)
    network = build_network(settings.network_config(), settings.training.seed)
    return list(
        train_pooled(
            network,
            lambda _epoch: images.train,
            images.held_out,
            settings,
            state.checkpoint,
            CPU,
            lambda *_: None,
            len(OWNERS),
        )
    )


def in_processes(state: StateFolder, processes: Processes = TWO) -> list[RoundRecord]:
    return list(train_in_processes(state, processes, OWNERS, lambda: None))


def assert_same_training(one: StateFolder, other: StateFolder) -> None:
    mine, theirs = load_checkpoint(one.checkpoint), load_checkpoint(other.checkpoint)
    assert mine is not None
    assert theirs is not None
    assert mine.rounds == theirs.rounds
    for name in ("weights", "momentum", "average"):
        torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("options", [{}, AVERAGED], ids=["plain", "averaged"])
def test_the_loss_curve_is_that_of_one_process(
    with_images: Callable[..., StateFolder], options: dict[str, Any]
) -> None:
    alone, together = with_images("alone", **STEADY, **options), with_images("together", **STEADY, **options)
    expected, records = in_this_process(alone), in_processes(together)
    assert [one.round for one in records] == [1, 2, 3]
    assert [one.train_loss for one in records] == pytest.approx([one.train_loss for one in expected], rel=CLOSE)
    assert [one.held_out_loss for one in records] == pytest.approx([one.held_out_loss for one in expected], rel=CLOSE)
    assert [one.accuracy for one in records] == [one.accuracy for one in expected]
    assert_same_training(alone, together)


def test_streamed_images_train_the_same_network(with_images: Callable[..., StateFolder]) -> None:
    """To the bit: a sum of two gradients is the same in both orders."""
    found = []
    for placement in (DataPlacement.RESIDENT, DataPlacement.STREAMED):
        state = with_images(placement, **STEADY)
        records = in_processes(state, Processes("cpu", 2, placement=placement))
        checkpoint = load_checkpoint(state.checkpoint)
        assert checkpoint is not None
        found.append(([one.model_copy(update={"seconds": 0.0}) for one in records], checkpoint.weights))
        lines = [json.loads(line) for line in (state.folder / "audit.jsonl").read_text().splitlines()]
        assert [line["placement"] for line in lines if line["event"] == "images placed"] == [placement]
    (records, weights), (streamed, theirs) = found
    assert streamed == records
    assert [name for name in weights if not torch.equal(weights[name], theirs[name])] == []


def test_training_goes_on_from_the_checkpoint(with_images: Callable[..., StateFolder]) -> None:
    options = STEADY | AVERAGED
    whole, stopped = with_images("whole", **options), with_images("stopped", **options)
    in_this_process(whole)
    records = train_in_processes(stopped, TWO, OWNERS, lambda: None)
    next(records)
    records.close()
    left = in_processes(stopped)
    assert left[-1].round == 3
    assert_same_training(whole, stopped)


def test_a_process_that_dies_ends_the_training_with_a_reason(with_images: Callable[..., StateFolder]) -> None:
    state = with_images(rounds=100_000)
    records = train_in_processes(state, TWO, OWNERS, lambda: None)
    next(records)
    victims = processes_of(state, "coordinator.rank")
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    with pytest.raises(ServiceError, match="training with 2 processes") as failure:
        for _ in records:
            pass
    assert "training.log" in failure.value.message + (failure.value.hint or "")
    assert gone(victims)


def test_what_the_check_raises_ends_the_processes(with_images: Callable[..., StateFolder]) -> None:
    state = with_images(rounds=100_000)
    stop = False

    def check_stop() -> None:
        if stop:
            raise InterruptedError

    records = train_in_processes(state, TWO, OWNERS, check_stop)
    next(records)
    running = processes_of(state, "coordinator.rank")
    stop = True
    with pytest.raises(InterruptedError):
        for _ in records:
            pass
    assert gone(running)


@pytest.mark.parametrize(
    ("processes", "exchange", "message"),
    [
        (TWO, Exchange.UPDATES, "does not train at the coordinator"),
        (TWO, Exchange.GRADIENTS, "does not train at the coordinator"),
        (Processes(placement=DataPlacement.STREAMED), Exchange.UPDATES, "none to place here"),
        (Processes(placement=DataPlacement.RESIDENT), Exchange.GRADIENTS, "none to place here"),
        (Processes(compiled=True), Exchange.UPDATES, "no network to compile"),
        (Processes(compiled=True), Exchange.GRADIENTS, "no network to compile"),
        (Processes("cpu", 2, compiled=True), Exchange.IMAGES, "cannot train a compiled network together"),
        (Processes("cpu", machines=2, compiled=True), Exchange.IMAGES, "cannot train a compiled network together"),
        (Processes("mps", 2), Exchange.IMAGES, "names one device"),
        (Processes("cuda:1", 2), Exchange.IMAGES, "names one device"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    make_settings: MakeSettings, processes: Processes, exchange: Exchange, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        processes.check(make_settings(exchange=exchange))


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        (Processes("cuda", 4096), "GPUs here"),
        (Processes("auto", 4096), "GPUs here"),
        (Processes("cuda:4095"), "no device 'cuda:4095' here"),
        (Processes("abacus"), "no device 'abacus' here"),
    ],
)
def test_devices_that_are_not_there_are_missed_before_anyone_joins(
    make_state: Callable[..., StateFolder], processes: Processes, message: str
) -> None:
    state = make_state("state", exchange=Exchange.IMAGES)
    with pytest.raises(UsageError, match=message):
        run_coordinator(state, processes, lambda: None, lambda *_: None)
    assert state.running_pid() is None
    assert not state.open_mark.exists()


@pytest.mark.parametrize("compiled", [False, True])
def test_what_the_command_line_said_arrives_in_the_server_app(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    asked = Processes("cpu", 3, 2, DataPlacement.STREAMED, compiled)
    monkeypatch.setenv("CXX", "clang++")
    assert asked.environment().get("CXX") == ("clang++" if compiled else None)
    for name, value in asked.environment().items():
        monkeypatch.setenv(name, value)
    assert Processes.from_environment() == asked


@pytest.mark.parametrize("compiled", [False, True])
def test_a_coordinator_in_the_background_is_told_the_same(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    asked, told = Processes("cpu", 3, 2, DataPlacement.STREAMED, compiled), []
    monkeypatch.setattr("coordinator.plan.agree", lambda _folder, _given, check: check(None))
    monkeypatch.setattr(Processes, "check", lambda processes, _settings: told.append(processes) or sys.exit(0))
    assert CliRunner().invoke(app, ["start", *asked.options()]).exit_code == 0
    assert told == [asked]
    refused = CliRunner().invoke(app, ["start", "--data-placement", "cloud"])
    assert isinstance(refused.exception, UsageError)


def test_a_coordinator_that_cannot_compile_says_so_before_anyone_joins(
    make_state: Callable[..., StateFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    state = make_state("state", exchange=Exchange.IMAGES)
    with pytest.raises(UsageError, match="no-such-compiler"):
        run_coordinator(state, Processes("cpu", compiled=True), lambda: None, lambda *_: None)
    assert state.running_pid() is None
    assert not state.open_mark.exists()


def test_a_network_is_not_compiled_for_crops_that_grow(make_settings: MakeSettings) -> None:
    settings = make_settings(exchange=Exchange.IMAGES, height=32, width=32, training={"first_crop": 0.5})
    with pytest.raises(UsageError, match="compiled for one size of images"):
        Processes("cpu", compiled=True).check(settings)
    Processes("cpu").check(settings)


def test_one_process_is_right_for_every_exchange_and_several_for_images(make_settings: MakeSettings) -> None:
    accepted = set()
    for count in (1, 2):
        for exchange in Exchange:
            with contextlib.suppress(UsageError):
                Processes("auto", count).check(make_settings(exchange=exchange))
                accepted.add((count, exchange))
    assert accepted == {(1, exchange) for exchange in Exchange} | {(2, Exchange.IMAGES)}


def test_there_is_no_job_where_nothing_is_trained(make_state: Callable[..., StateFolder]) -> None:
    with pytest.raises(UsageError, match="no training is under way"):
        read_job(make_state("state"))


def processes_of(state: StateFolder, module: str) -> list[int]:
    """Ids of the processes that train in a state folder, in the order of their ranks."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if module.encode() in arguments and str(state.folder).encode() in arguments and b"-m" in arguments:
                variables = dict(part.partition(b"=")[::2] for part in (entry / "environ").read_bytes().split(b"\0"))
                if b"RANK" in variables:
                    found[int(variables[b"RANK"])] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def gone(processes: list[int]) -> bool:
    """Wait until processes have ended."""
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        if not any(running(one) for one in processes):
            return True
        time.sleep(0.1)
    return False


def running(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
