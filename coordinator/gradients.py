"""Exchange ``gradients``: owners compute, the coordinator takes the steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from flwr.app import Message

from coordinator.checkpoint import Checkpoint, PassSoFar, load_checkpoint, save_checkpoint
from coordinator.norm_bound import NormBound, SeenNorms
from coordinator.quorum import Quorum, with_evaluation
from coordinator.state import RoundRecord, StateFolder
from ppfed.errors import FederationError
from ppfed.federation import FederationSettings
from ppfed.networks.classifier import ImageClassifier
from ppfed.networks.state import load_network_state, network_state
from ppfed.training.allocator import freed_memory_kept
from ppfed.training.gradients import (
    PartialGradient,
    Turns,
    apply_step,
    count_moments,
    owner_offset,
    steps_of_pass,
    values_per_image,
)
from ppfed.training.loop import Trainer, TrainingConfig
from ppfed.wire.messages import GRADIENT
from ppfed.wire.weights import GradientOrder, pack_gradient_order, unpack_gradient, within_range

_CHECKPOINT_S = 60.0
_HINT = (
    "Values that are out of range or not finite mean that training diverged: start a new federation with a lower "
    "--learning-rate. Else start again: it goes on from the last checkpoint."
)


class Gradients:
    """Runs passes over the images of all owners, a step at a time.

    Parameters
    ----------
    quorum : Quorum
    state : StateFolder
    settings : FederationSettings
    network : ImageClassifier
        Is trained; it may be on any device.
    device : torch.device
        Where the optimizer runs.
    on_step : callable
        Called after each step with the number of steps done in this pass, and of all its steps.
    """

    def __init__(
        self,
        quorum: Quorum,
        state: StateFolder,
        settings: FederationSettings,
        network: ImageClassifier,
        device: torch.device,
        on_step: Callable[[int, int], None],
    ) -> None:
        self._quorum = quorum
        self._state = state
        self._settings = settings
        self._network = network
        self._on_step = on_step
        self._values = values_per_image(network, settings.shape)
        self._trainer = Trainer(network, TrainingConfig.of(settings.training), device)
        self._parameters = sum(one.numel() for one in network.parameters())
        self._channels = count_moments(network)
        training = settings.training
        images = {name: one.train_images for name, one in quorum.owners.items()}
        self._steps = state.steps_of_pass(steps_of_pass(sum(images.values()), training.batch_size))
        # The number stays what it was when training began, and owners refuse one that is less than their images make.
        self.too_many_images = tuple(
            name for name, count in sorted(images.items()) if steps_of_pass(count, training.batch_size) > self._steps
        )
        self._turns = {
            name: Turns(count, self._steps, training.min_local_batch, owner_offset(name))
            for name, count in images.items()
            if name not in self.too_many_images
        }
        self._nodes = {name: one.node_id for name, one in quorum.owners.items()}
        self._bound = NormBound(SeenNorms(), self._nodes)
        # Whoever missed a deadline is asked again in the next pass, not in each step: a step would take the deadline.
        self._absent: set[str] = set()
        # Those for whose bad answers a step was passed over: where training diverges, everybody's are bad.
        self._refused: set[str] = set()

    def run(self) -> Iterator[RoundRecord]:
        """Run all passes, going on from the last checkpoint; yields a record of each when its accuracy is known.

        Raises
        ------
        FederationError
            If several attempts at a step fall short of the quorum, or the weights leave the range that owners accept.
        """
        if len(self._turns) < self._quorum.needed:
            raise FederationError(
                f"of {', '.join(self.too_many_images)} there are more images than the steps of a pass have room for, "
                f"counted when training began, and without them it falls short of a quorum of {self._quorum.needed}",
                hint="Start with a smaller --quorum; or open another federation, which all begin together.",
            )
        for owner in self.too_many_images:
            self._state.audit("takes no part", owner=owner, reason="its images make more steps than a pass has")
        done, so_far = 0, PassSoFar()
        checkpoint = load_checkpoint(self._state.checkpoint)
        if checkpoint is not None:
            done, so_far = checkpoint.rounds, checkpoint.so_far
            load_network_state(self._network, checkpoint.weights)
            self._trainer.load_momentum(checkpoint.momentum)
            self._bound = NormBound(checkpoint.norms, self._nodes)
            if checkpoint.record is not None and so_far.steps == 0:
                yield self._evaluated(checkpoint.record)
        with freed_memory_kept(self._trainer.device):
            for number in range(done + 1, self._settings.training.rounds + 1):
                record = self._pass(number, so_far)
                so_far = PassSoFar()
                yield self._evaluated(record)

    def _pass(self, number: int, so_far: PassSoFar) -> RoundRecord:
        started = saved = time.monotonic()
        epochs = TrainingConfig.of(self._settings.training).epochs
        self._absent.clear()
        self._refused.clear()
        for step in range(so_far.steps, self._steps):
            parts = self._parts(number, step)
            loss = 0.0
            if parts:
                progress = (number - 1 + step / self._steps) / epochs
                loss = apply_step(
                    self._trainer, parts, progress, self._values, clip=self._settings.training.gradient_clip
                )
                if not within_range(network_state(self._network)):
                    raise FederationError(
                        f"training diverged in step {step + 1} of round {number}",
                        hint="Start a new federation with a lower --learning-rate, or with --gradient-clip.",
                    )
            images = sum(part.images for part in parts)
            so_far = PassSoFar(
                steps=step + 1,
                loss=so_far.loss + loss * images,
                images=so_far.images + images,
                seconds=so_far.seconds,
                owners=max(so_far.owners, len(parts)),
            )
            self._on_step(step + 1, self._steps)
            if time.monotonic() - saved > _CHECKPOINT_S and step + 1 < self._steps:
                elapsed = so_far.model_copy(update={"seconds": so_far.seconds + time.monotonic() - started})
                self._save(number - 1, None, elapsed)
                saved = time.monotonic()
        record = RoundRecord(
            round=number,
            train_loss=so_far.loss / so_far.images if so_far.images else None,
            seconds=so_far.seconds + time.monotonic() - started,
            owners=so_far.owners,
        )
        self._save(number, record, PassSoFar())
        return record

    def _parts(self, number: int, step: int) -> list[PartialGradient]:
        """Gather the gradients of the owners whose turn it is; empty where it is nobody's, or nobody of them is there.

        As many may be missing from a step as from the federation: all but the quorum. An owner that has steps to itself
        would end the run for all otherwise, by leaving or by answering badly.
        """
        turns = {name: one.count(step) for name, one in self._turns.items() if one.part(step) is not None}
        if not turns:
            return []
        needed = max(0, len(turns) - (len(self._turns) - self._quorum.needed))
        if not needed and set(turns) <= self._absent:
            return []
        order = pack_gradient_order(GradientOrder(number, step, self._steps, network_state(self._network)))
        group = f"round {number} step {step + 1}"

        def unpack(owner: str, message: Message) -> PartialGradient:
            return unpack_gradient(
                message.content,
                turns[owner],
                self._parameters,
                self._channels,
                self._settings.training.update_format,
            )

        def attempt() -> dict[str, PartialGradient]:
            answers = self._quorum.ask(GRADIENT, order, group, unpack, set(turns) - self._absent)
            self._absent |= self._quorum.late
            if len(answers) < needed:
                self._absent.clear()
            return answers

        answers = self._quorum.gather(attempt, needed, _HINT)
        if not answers:
            self._pass_over(group, set(turns))
        for owner, one in self._bound.bound_parts(answers).items():
            answers[owner] = one.answer
            self._state.audit("bounded", owner=owner, group=group, reason=one.reason)
            if one.far:
                # A gradient that long in each step would carry the weights away, shortened or not.
                self._leave_out(group, {owner})
        # Sums depend on the order of their terms, and answers come in any.
        return [answers[owner] for owner in sorted(answers)]

    def _pass_over(self, group: str, owners: set[str]) -> None:
        """Do without these owners for the rest of the pass, if the quorum is there without them."""
        self._refused |= self._quorum.refused
        left = len(self._quorum.wait() - self._refused)
        if left < self._quorum.needed:
            raise FederationError(
                f"nobody gave a usable answer in {group}, and {left} owners are left of a quorum of "
                f"{self._quorum.needed}",
                hint=f"See audit.jsonl for each owner's reason. {_HINT}",
            )
        self._leave_out(group, owners)
        self._state.audit("step passed over", group=group)

    def _leave_out(self, group: str, owners: set[str]) -> None:
        for owner in sorted(owners - self._absent):
            self._state.audit("left out of the pass", owner=owner, group=group)
        self._absent |= owners

    def _evaluated(self, record: RoundRecord) -> RoundRecord:
        group = f"evaluation of round {record.round}"
        return with_evaluation(record, self._quorum.evaluate(record.round + 1, self._network, group))

    def _save(self, rounds: int, record: RoundRecord | None, so_far: PassSoFar) -> None:
        save_checkpoint(
            self._state.checkpoint,
            Checkpoint(
                rounds,
                network_state(self._network),
                self._trainer.momentum(),
                record,
                so_far,
                norms=self._bound.seen,
            ),
        )
