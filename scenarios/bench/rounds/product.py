"""Rounds between real processes: what each takes, and what of it is the owners' training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ppfed.training.settings import UpdateFormat
from scenarios.bench.owner import compute_s
from scenarios.bench.processes import Federation, federation


@dataclass(frozen=True)
class Rounds:
    """What was seen of a federation's rounds, but for the first, in which everyone starts up.

    Attributes
    ----------
    seconds : tuple of float
        Of each round, as the coordinator counts them.
    compute_s : tuple of float
        Processor time of the owners' local training, all owners together, in the same rounds.
    received_bytes : float
        From an owner in a round: all that passed the front door, by number of all rounds.
    """

    seconds: tuple[float, ...]
    compute_s: tuple[float, ...]
    received_bytes: float


def run_rounds(
    folder: Path, owners: int, images: int, rounds: int, form: UpdateFormat, *, base_maps: int, batch_size: int
) -> Rounds:
    """Run a federation to its last round.

    Parameters
    ----------
    folder : Path
    owners : int
    images : int
        Of each owner.
    rounds : int
        Two at least.
    form : UpdateFormat
    base_maps, batch_size : int
        As in ``TrainingSettings``.

    Raises
    ------
    ServiceError
        If a process fails, or it takes longer than ten minutes.
    """
    options = (
        *("--name", "rounds", "--exchange", "updates", "--rounds", str(rounds), "--update-format", str(form)),
        *("--base-maps", str(base_maps), "--batch-size", str(batch_size)),
    )
    with federation(folder, options, owners, images) as running:
        # The record of a round is there once the next has begun, or the end was measured.
        running.wait("the last round", lambda: len(running.state.status().rounds) == rounds)
        return _seen(running, owners, rounds)


def _seen(running: Federation, owners: int, rounds: int) -> Rounds:
    records = [record for record in running.state.status().rounds if record.round > 1]
    computed = [compute_s(running.owner_folder(number)) for number in range(owners)]
    return Rounds(
        tuple(record.seconds for record in records),
        tuple(sum(one[record.round] for one in computed) for record in records),
        sum(running.state.traffic().values()) / owners / rounds,
    )
