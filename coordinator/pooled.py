"""Exchange ``images``: train on the encrypted images of all owners."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from coordinator.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from coordinator.state import RoundRecord, StateFolder
from ppfed.federation import FederationSettings
from ppfed.networks.classifier import ImageClassifier
from ppfed.networks.state import load_network_state, network_state
from ppfed.store import ShardStore
from ppfed.training.loop import BatchSource, Evaluation, Trainer, TrainingConfig, evaluate
from ppfed.training.placement import PlacedImages, place_images
from ppfed.training.ranks import ALONE, Ranks
from ppfed.training.settings import DataPlacement


def pooled_images(
    state: StateFolder,
    owners: Sequence[str],
    device: torch.device,
    placement: DataPlacement = DataPlacement.AUTO,
    ranks: Ranks = ALONE,
) -> PlacedImages:
    """Open the images of all owners, in the order of owners and shards; the audit trail says where they lie.

    Parameters
    ----------
    state : StateFolder
    owners : sequence of str
    device : torch.device
        Where they are trained on.
    placement : DataPlacement
    ranks : Ranks
        The processes that train together, each of which opens all images.
    """
    stores = [ShardStore(state.store(owner)) for owner in owners]
    images = place_images(stores, state.plan().settings.shape, device, placement, ranks.size)
    if ranks.first:
        state.audit(
            "images placed",
            placement=images.placement,
            asked=placement,
            size_bytes=images.size_bytes,
            free_bytes=images.free_bytes,
        )
    return images


def train_pooled(
    network: ImageClassifier,
    images_of: Callable[[int], BatchSource],
    held_out: BatchSource,
    settings: FederationSettings,
    checkpoints: Path,
    device: torch.device,
    on_step: Callable[[int, int], None],
    owners: int,
    ranks: Ranks = ALONE,
    *,
    compiled: bool = False,
) -> Iterator[RoundRecord]:
    """Train, going on from the last checkpoint.

    Parameters
    ----------
    network : ImageClassifier
        After the last round it holds what is delivered: the average of weights, where one is kept.
    images_of : callable
        Returns the training images of a pass, counted from 0.
    held_out : BatchSource
    settings : FederationSettings
    checkpoints : Path
        Folder of the last checkpoint.
    device : torch.device
    on_step : callable
        Called after each step with the number of steps done in this pass, and of all its steps.
    owners : int
    ranks : Ranks
        The processes that train together; the first one writes the checkpoints.
    compiled : bool
        As ``Trainer`` takes it.

    Yields
    ------
    RoundRecord
        After each round: one pass over the images. The same in all processes, but for the time.
    """
    trainer = Trainer(network, TrainingConfig.of(settings.training), device, ranks, compiled=compiled)
    done = 0
    checkpoint = load_checkpoint(checkpoints)
    if checkpoint is not None:
        done = checkpoint.rounds
        load_network_state(network, checkpoint.weights)
        trainer.load_momentum(checkpoint.momentum)
        trainer.load_average(checkpoint.average)
        if checkpoint.record is not None:
            # A crash may have come between the checkpoint and the status.
            yield checkpoint.record
    for epoch in range(done, settings.training.epochs):
        started = time.monotonic()
        images = images_of(epoch)
        ranks.require_same("rounds done or images", device, epoch, len(images), len(held_out))
        (result,) = trainer.train_epochs(images, epoch, 1, on_step)
        evaluation = _evaluate_together(trainer.trained, held_out, device, ranks)
        record = RoundRecord(
            round=result.epoch + 1,
            train_loss=result.loss,
            held_out_loss=evaluation.loss if evaluation.count else None,
            accuracy=evaluation.accuracy if evaluation.count else None,
            held_out_images=evaluation.count,
            seconds=time.monotonic() - started,
            owners=owners,
        )
        if ranks.first:
            save_checkpoint(
                checkpoints,
                Checkpoint(record.round, network_state(network), trainer.momentum(), record, average=trainer.average()),
            )
        yield record
    if trainer.trained is not network:
        load_network_state(network, network_state(trainer.trained))


def _evaluate_together(network: nn.Module, held_out: BatchSource, device: torch.device, ranks: Ranks) -> Evaluation:
    """Evaluate, each process on its part."""
    if ranks.size == 1 or not len(held_out):
        return evaluate(network, held_out)
    mine = evaluate(network, held_out, ranks.part(len(held_out)))
    loss = mine.loss * mine.count if mine.count else 0.0
    sums = torch.tensor([mine.correct, mine.count, loss], dtype=torch.float64, device=device)
    correct, count, loss = ranks.sum(sums).tolist()
    return Evaluation(int(correct), int(count), loss / count)
