"""A round of exchange ``updates``: what it takes besides training, what it sends, and how it grows with owners."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from flwr.app import RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from torch import Tensor

from ppfed.cores import cores
from ppfed.networks.classifier import build_network
from ppfed.networks.state import flatten, network_state
from ppfed.training.loop import Evaluation
from ppfed.training.settings import TrainingSettings, UpdateFormat
from ppfed.wire.weights import RoundOrder, RoundResult, pack_round_order, pack_round_result
from scenarios.bench.measurement import BenchSettings, Bound, Measurement, Turns, exponent
from scenarios.bench.rounds.product import Rounds, run_rounds
from scenarios.bench.rounds.simulated import alone_s, federation_settings, prepare, simulated_s

SECTION = "rounds"
_FULL_WIDTH = 64
_BATCH = 32

_OWNERS = (2, 4, 8)
_IMAGES = 128
"""Of each owner, where the network is of full width; in quick mode one batch."""
_ROUNDS = 4
_QUICK_ROUNDS = 2
"""The first is not counted; a round of full width takes long."""

_COUNTS = (2, 8, 32, 100, 200)
_QUICK_COUNTS = (2, 32)
_NARROW = 4
_FEW_IMAGES = 16
"""Network and images of those many owners."""

_MOST_BYTES = {UpdateFormat.FLOAT32: 2.01, UpdateFormat.BFLOAT16: 1.51}
"""Of a round's messages to an owner and back, in proportion to the network's size."""
_MOST_SENT = {UpdateFormat.FLOAT32: 1.1, UpdateFormat.BFLOAT16: 0.6}
"""Of what an owner sends for a round, Flower's requests for messages included."""


def measure(settings: BenchSettings) -> Iterator[Measurement]:
    """Measure rounds between real processes, and rounds of many owners in Flower's simulation.

    Quick mode simulates both.
    """
    yield from (message_bytes(form) for form in UpdateFormat)
    if settings.quick:
        yield _simulated_overhead(owners=2, images=_BATCH, rounds=_QUICK_ROUNDS)
    else:
        for owners in _OWNERS:
            for form in UpdateFormat:
                with tempfile.TemporaryDirectory() as folder:
                    seen = run_rounds(
                        Path(folder), owners, _IMAGES, _ROUNDS, form, base_maps=_FULL_WIDTH, batch_size=_BATCH
                    )
                yield from product_rows(seen, owners, form)
    counts = _QUICK_COUNTS if settings.quick else _COUNTS
    yield owners_row(counts, [_round_of(count) for count in counts])


def message_bytes(form: UpdateFormat) -> Measurement:
    """Count all that Flower moves of a round's two messages, in proportion to the network's weights in float32."""
    weights = _full_weights()
    result = RoundResult(weights, _BATCH, 1.0, Evaluation(0, 0, float("nan")))
    order_bytes = _moved_bytes(pack_round_order(RoundOrder(1, weights)))
    answer_bytes = _moved_bytes(pack_round_result(result, weights if form is UpdateFormat.BFLOAT16 else None))
    network_bytes = _size_bytes(weights)
    return Measurement(
        SECTION,
        f"bytes of a round, to an owner and back, {form}",
        (order_bytes + answer_bytes) / network_bytes,
        against="the weights of ResNet-18 in float32",
        target=Bound(_MOST_BYTES[form], at_most=True),
        floor=Bound(_MOST_BYTES[form], at_most=True),
        details={
            "network_mb": network_bytes / 1e6,
            "to_owner_mb": order_bytes / 1e6,
            "from_owner_mb": answer_bytes / 1e6,
        },
    )


def product_rows(seen: Rounds, owners: int, form: UpdateFormat) -> Iterator[Measurement]:
    """Compare rounds between real processes with the owners' training, and their answers with the network.

    All owners share this machine: without a federation its cores would share the owners' processor time.
    """
    working = min(owners, cores())
    shared = tuple(one / working for one in seen.compute_s)
    yield _overhead(
        f"round of {owners} owners, real processes, {form}",
        Turns(seen.seconds, shared),
        f"the sum of the owners' training, on {working} core{'s' if working > 1 else ''}",
        Bound(1000.0, at_most=True),
    )
    yield Measurement(
        SECTION,
        f"sent by each of {owners} owners in a round, {form}",
        seen.received_bytes / _size_bytes(_full_weights()),
        against="the weights of ResNet-18 in float32",
        floor=Bound(_MOST_SENT[form], at_most=True),
        details={"from_owner_mb": seen.received_bytes / 1e6},
    )


def owners_row(counts: Sequence[int], spent: Sequence[float]) -> Measurement:
    """Fit how the time of a round grows with the number of owners: 1 means that twice as many take twice as long."""
    return Measurement(
        SECTION,
        f"round of {counts[0]} to {counts[-1]} owners, simulated",
        exponent(counts, spent),
        "",
        "exponent of the time in the number of owners",
        target=Bound(1.1, at_most=True),
        floor=Bound(1.5, at_most=True),
        details={f"seconds at {count} owners": one for count, one in zip(counts, spent, strict=True)},
    )


def _simulated_overhead(owners: int, images: int, rounds: int) -> Measurement:
    training = TrainingSettings(
        rounds=rounds, batch_size=_BATCH, base_maps=_FULL_WIDTH, update_format=UpdateFormat.BFLOAT16
    )
    agreed = federation_settings(owners, training)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepare(folder / "owners", agreed, images)
        # One owner at a time, with all threads, as in the training that it is compared with.
        ours = simulated_s(folder / "coordinator", agreed, prepared, jobs=1)
        turns = Turns(ours, alone_s(agreed, prepared))
    return _overhead(
        f"round of {owners} owners, simulated, {training.update_format}",
        turns,
        "the sum of the owners' training",
        Bound(2000.0, at_most=True),
    )


def _overhead(name: str, turns: Turns, against: str, floor: Bound) -> Measurement:
    overheads = turns.overheads
    return Measurement(
        SECTION,
        f"{name}, ResNet-18",
        statistics.median(overheads),
        "% longer",
        against,
        floor=floor,
        spread=(min(overheads), max(overheads)),
        details={
            "round_s": statistics.median(turns.ours),
            "training_s": statistics.median(turns.theirs),
        },
    )


def _round_of(owners: int) -> float:
    agreed = federation_settings(owners, TrainingSettings(rounds=_ROUNDS, batch_size=_FEW_IMAGES, base_maps=_NARROW))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepare(folder / "owners", agreed, _FEW_IMAGES)
        return statistics.median(simulated_s(folder / "coordinator", agreed, prepared))


def _full_weights() -> dict[str, Tensor]:
    agreed = federation_settings(1, TrainingSettings(base_maps=_FULL_WIDTH))
    return network_state(build_network(agreed.network_config(), 0))


def _size_bytes(weights: dict[str, Tensor]) -> int:
    return 4 * len(flatten(weights))


def _moved_bytes(content: RecordDict) -> int:
    return sum(len(one.deflate()) for one in get_all_nested_objects(content).values())
