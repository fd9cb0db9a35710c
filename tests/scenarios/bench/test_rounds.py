from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coordinator.state import RoundRecord, Status
from ppfed.images.source import Split
from ppfed.store import rows_per_shard
from ppfed.training.loop import Evaluation
from ppfed.training.settings import TrainingSettings, UpdateFormat
from scenarios.bench import owner as owner_module
from scenarios.bench.measurement import BenchSettings
from scenarios.bench.owner import Clock, compute_s, synthetic_store
from scenarios.bench.processes import Federation
from scenarios.bench.rounds import product, section, simulated
from scenarios.bench.rounds.product import Rounds
from scenarios.bench.run import verdict
from scenarios.local_processes import LocalProcesses

SMALL = TrainingSettings(rounds=3, batch_size=8, base_maps=1, adaptation=(2,))


def busy(at_least_s: float) -> None:
    began = time.process_time()
    while time.process_time() - began < at_least_s:
        pass


def test_an_owners_clock_counts_its_work_and_not_its_waiting(tmp_path: Path) -> None:
    assert compute_s(tmp_path) == {}
    clock = Clock(tmp_path)
    for number, work_s in ((1, 0.02), (2, 0.1)):
        clock.round_started(number, 2, Evaluation(0, 0, float("nan")))
        busy(work_s)
        time.sleep(0.3)
        clock.round_finished(number, 2, 1.0)
    spent = compute_s(tmp_path)
    assert 0.02 <= spent[1] < 0.1 <= spent[2] < 0.25


def test_a_store_holds_so_many_images_in_full_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "rows_per_shard", lambda _shape: 4)
    settings = simulated.federation_settings(1, SMALL)
    prepared = synthetic_store(tmp_path, settings, 10, 0)
    assert (prepared.train_images, prepared.held_out_images) == (10, 0)
    assert [len(shard) for shard in prepared.store.shards(Split.TRAIN)] == [4, 4, 2]
    assert rows_per_shard(settings.shape) > 10


def test_bytes_are_those_of_both_messages() -> None:
    whole, rounded = (section.message_bytes(form) for form in UpdateFormat)
    # What Flower writes around the weights is less than a thousandth, and statistics, which stay float32, a thousandth.
    assert 2 < whole.value < 2.002
    assert 1.5 < rounded.value < 1.502
    assert (verdict(whole), verdict(rounded)) == ("met", "met")
    assert whole.details["network_mb"] == pytest.approx(44.8, abs=0.5)


def test_an_overhead_is_over_the_training_that_the_cores_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section, "cores", lambda: 2)
    seen = Rounds((6.0, 8.0, 9.0), (8.0, 8.0, 8.0), 22.4e6)
    overhead, sent = section.product_rows(seen, 4, UpdateFormat.BFLOAT16)
    # Eight seconds of training take two cores four; the round in the middle took eight.
    assert overhead.value == pytest.approx(100.0)
    assert overhead.spread == pytest.approx((50.0, 125.0))
    assert overhead.details == {"round_s": 8.0, "training_s": 4.0}
    assert sent.value == pytest.approx(0.5, abs=0.01)
    assert not sent.broken
    # One owner uses one core.
    alone, _ = section.product_rows(seen, 1, UpdateFormat.BFLOAT16)
    assert alone.value == pytest.approx(0.0)


def test_owners_that_send_more_than_was_agreed_break_the_floor() -> None:
    _, sent = section.product_rows(Rounds((6.0,), (8.0,), 44.9e6), 2, UpdateFormat.BFLOAT16)
    assert verdict(sent) == "broken"


def test_the_exponent_of_owners_is_fitted() -> None:
    row = section.owners_row((2, 8, 32), (0.4, 1.6, 6.4))
    assert row.value == pytest.approx(1.0)
    assert verdict(row) == "met"
    assert verdict(section.owners_row((2, 8, 32), (0.4, 6.4, 102.4))) == "broken"


def test_what_owners_and_coordinator_wrote_is_read(tmp_path: Path) -> None:
    running = Federation(LocalProcesses(tmp_path))
    state = running.state
    state.folder.mkdir()
    state.set_status(Status(rounds=[RoundRecord(round=one, seconds=float(one), owners=2) for one in (1, 2, 3)]))
    state.set_traffic({"owner-0": 300, "owner-1": 600})
    for number in range(2):
        running.owner_folder(number).mkdir()
        lines = [f'{{"round": {one}, "seconds": {one + number}}}\n' for one in (1, 2, 3)]
        (running.owner_folder(number) / "compute.jsonl").write_text("".join(lines))
    # The first round does not count, but what was sent in it does.
    assert product._seen(running, 2, 3) == Rounds((2.0, 3.0), (2.0 + 3.0, 3.0 + 4.0), 150.0)


def test_training_alone_is_done_for_real(tmp_path: Path) -> None:
    settings = simulated.federation_settings(2, SMALL)
    prepared = simulated.prepare(tmp_path, settings, 16)
    assert list(prepared) == ["owner-000", "owner-001"]
    spent = simulated.alone_s(settings, prepared)
    assert len(spent) == 2
    assert min(spent) > 0


def test_a_quick_run_simulates_and_a_full_one_starts_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    simulations: list[tuple[int, int | None]] = []
    federations: list[tuple[int, UpdateFormat]] = []

    def simulate(settings: Any, owners: Any, folder: Path, _device: torch.device, *, jobs: int | None) -> Any:
        assert len(owners) == settings.owners
        simulations.append((settings.owners, jobs))
        # The first round, in which everything starts, is no round to measure.
        seconds = (100.0, 0.1 * settings.owners, 0.1 * settings.owners)
        return SimpleNamespace(
            rounds=[RoundRecord(round=number + 1, seconds=one, owners=2) for number, one in enumerate(seconds)]
        )

    def run_rounds(_folder: Path, owners: int, _images: int, _rounds: int, form: UpdateFormat, **_sizes: int) -> Rounds:
        federations.append((owners, form))
        return Rounds((1.0,), (1.0,), 1.0)

    monkeypatch.setattr(simulated, "simulate", simulate)
    monkeypatch.setattr(section, "run_rounds", run_rounds)
    monkeypatch.setattr(section, "alone_s", lambda _settings, _owners: (0.1, 0.1))
    quick = list(section.measure(BenchSettings(quick=True, device=torch.device("cpu"))))
    assert simulations == [(2, 1), (2, None), (32, None)]
    assert federations == []
    assert [row.value for row in quick[2:]] == pytest.approx([100.0, 1.0])
    simulations.clear()
    full = list(section.measure(BenchSettings(quick=False, device=torch.device("cpu"))))
    assert [owners for owners, _ in simulations] == [2, 8, 32, 100, 200]
    assert federations == [(owners, form) for owners in (2, 4, 8) for form in UpdateFormat]
    assert len(full) == 2 + 2 * 6 + 1
