"""The one training loop: pooled training, an owner's local training and every scenario arm use it.

Arms differ in their data and in who averages; the steps are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ppfed.errors import DataError, UsageError
from ppfed.images.types import Int64Array, UInt8Array
from ppfed.networks.state import load_network_state, network_state
from ppfed.store import Shard
from ppfed.training.allocator import freed_memory_kept
from ppfed.training.augment import Augmentation, alternating_mirrors, crop_centre
from ppfed.training.compilation import compile_network
from ppfed.training.ranks import ALONE, Ranks
from ppfed.training.settings import Precision, Schedule, TrainingSettings

_EVALUATION_BATCH = 512
_PAPER_DROPS = (0.5, 0.75)
_PAPER_FACTOR = 0.1
_WHOLE_FROM = 0.75
"""Part of all passes over which crops grow; the rest see whole images, as those that are classified are."""
_CROPS = 8
"""Crops are so many parts of a side, whole ones: each new size costs a GPU a search for the best kernels."""
_MIRRORS = 1 << 34
"""Added to the seed of alternating flips, so that they do not repeat the order of images."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes
    ----------
    epochs : int
        Passes over the data, in all rounds together.
    batch_size : int
    learning_rate : float
        At its peak.
    momentum, weight_decay : float
        Of SGD with Nesterov momentum; biases and batch-norm parameters decay too, as in the paper.
    nesterov : bool
    schedule : Schedule
    warmup : float
        Part of all epochs over which the linear schedule rises.
    label_smoothing : float
    augmentation : Augmentation
        Applied to the batch as it is: to encrypted images, if the images are encrypted.
    average_passes : float
        What is measured and delivered is an exponential moving average of weights and batch-norm statistics, over so
        many passes (a decay of 1 - 1 / steps in that time); 0 for the weights themselves.
    first_crop : float
        Part of each side that the first pass sees, after the shift; it grows in eighths to whole images after three
        quarters of all passes. 1 shows whole images always.
    alternate_flip : bool
        In place of a coin for each pass, flip an image horizontally exactly if it was not in the pass before.
    precision : Precision
        What steps are computed in.
    seed : int
        Of the order of images and their augmentation. Secrets never come from it.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    schedule: Schedule = Schedule.LINEAR
    warmup: float = 0.2
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    average_passes: float = 0.0
    first_crop: float = 1.0
    alternate_flip: bool = False
    precision: Precision = Precision.AUTO
    seed: int = 0

    @classmethod
    def of(cls, settings: TrainingSettings, seed_offset: int = 0) -> Self:
        """Make it of what a federation agreed on; ``seed_offset`` gives each owner an order of images of its own."""
        return cls(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,
            label_smoothing=settings.label_smoothing,
            nesterov=settings.nesterov,
            augmentation=Augmentation.of(settings),
            average_passes=settings.average_passes,
            first_crop=settings.first_crop,
            alternate_flip=settings.alternate_flip,
            precision=settings.precision,
            seed=settings.seed + seed_offset,
        )

    def learning_rate_at(self, progress: float) -> float:
        """Learning rate when ``progress``, from 0 to 1, of all epochs is done."""
        if self.schedule is Schedule.PAPER:
            return self.learning_rate * _PAPER_FACTOR ** sum(progress >= drop for drop in _PAPER_DROPS)
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        return self.learning_rate * (1.0 - progress) / (1.0 - self.warmup)

    def crop_at(self, epoch: int) -> float:
        """Part of each side that a pass sees, the first being 0. Its computation is about the square of that."""
        grown = min(1.0, epoch / (_WHOLE_FROM * self.epochs))
        return round(_CROPS * (self.first_crop + (1.0 - self.first_crop) * grown)) / _CROPS


class BatchSource(Protocol):
    """Images and labels that are trained on or measured, wherever they lie."""

    def __len__(self) -> int:
        """Count the images."""

    def batches(self, rows: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Hand out batches on the device that trains; a source may prepare the next ones meanwhile.

        Parameters
        ----------
        rows : iterable of int64 tensor on the CPU, (n,)
            The images of each batch, counted from 0, in any order.

        Yields
        ------
        images : uint8 tensor, (n, H, W, C)
        labels : int64 tensor, (n,)
            For each element of ``rows``, in its order. Who does not read to the end closes the generator.
        """


@dataclass(frozen=True, eq=False)
class ImageTensors:
    """Images and labels that lie whole on the device that trains: the source for all that fits.

    Attributes
    ----------
    images : uint8 tensor, (N, H, W, C)
    labels : int64 tensor, (N,)
    """

    images: Tensor
    labels: Tensor

    @classmethod
    def from_numpy(cls, pixels: UInt8Array, labels: Int64Array, device: torch.device) -> ImageTensors:
        """Put arrays on the device that trains; on the CPU the pixels are shared, not copied."""
        return cls(_shared(pixels).to(device), torch.tensor(labels, dtype=torch.int64, device=device))

    @classmethod
    def from_shards(cls, shards: Sequence[Shard], shape: tuple[int, int, int], device: torch.device) -> ImageTensors:
        """Put stored shards of encrypted images on the device that trains, one shard at a time.

        Parameters
        ----------
        shards : sequence of Shard
        shape : (height, width, channels)
        device : torch.device
        """
        total = sum(len(shard) for shard in shards)
        images = torch.empty((total, *shape), dtype=torch.uint8, device=device)
        labels = torch.empty(total, dtype=torch.int64, device=device)
        start = 0
        for shard in shards:
            stop = start + len(shard)
            images[start:stop] = _shared(shard.images.pixels)
            labels[start:stop] = _shared(shard.labels)
            start = stop
        return cls(images, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Select rows on the device."""
        for some in rows:
            there = some.to(self.labels.device)
            yield self.images[there], self.labels[there]


def _shared(values: UInt8Array | Int64Array) -> Tensor:
    """See an array as a tensor without a copy; it is only read."""
    with warnings.catch_warnings():
        # Arrays mapped from disk are read-only. PyTorch warns about that though nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on held-out images.

    Attributes
    ----------
    correct, count : int
    loss : float
        Mean cross-entropy.
    """

    correct: int
    count: int
    loss: float

    @property
    def accuracy(self) -> float:
        """From 0 to 1; nan where there were no images."""
        return self.correct / self.count if self.count else float("nan")


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did.

    Attributes
    ----------
    epoch : int
        Counted from 0.
    loss : float
        Mean training loss.
    """

    epoch: int
    loss: float


def pick_device(name: str = "auto") -> torch.device:
    """Pick cuda, mps or cpu, in this order; or take the one that is named.

    Raises
    ------
    UsageError
        If there is no such device here.
    """
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError):
            raise UsageError(f"there is no device {name!r} here", hint="Choose auto or cpu.") from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def ignore_step(_step: int, _steps: int) -> None:
    """Take the progress of a training that nobody watches."""


class Trainer:
    """SGD on one device, or with others that each take a part of every batch: to rounding, the steps are the same.

    Parameters
    ----------
    network : nn.Module
        Takes uint8 images, (N, H, W, C), and returns logits; it is moved to ``device``.
    config : TrainingConfig
    device : torch.device
    ranks : Ranks
        The processes that train together.
    compiled : bool
        Steps run what torch.compile makes of ``network``, which stays as it is (``ppfed/training/compilation.py``).

    Raises
    ------
    UsageError
        If several processes are to train a compiled network, or one on crops that grow.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainingConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
        *,
        compiled: bool = False,
    ) -> None:
        if compiled and ranks.size > 1:
            raise UsageError("several processes cannot train a compiled network", hint="Leave one of both out.")
        if compiled and config.first_crop < 1:
            # Each size would be compiled, and torch gives up after a few.
            raise UsageError("crops that grow cannot train a compiled network", hint="Leave one of both out.")
        self.network = network.to(device)
        self._average = AveragedModel(self.network, use_buffers=True) if config.average_passes else None
        self._joined: Callable[[Tensor], Tensor] = (
            compile_network(self.network, device) if compiled else ranks.join(self.network, device)
        )
        self._ranks = ranks
        self.config = config
        self.device = device
        self._parameters = dict(self.network.named_parameters())
        # Of each parameter; torch fills them at the first step, and leaves them as they are without momentum.
        self._momentum: list[Tensor | None] = [None] * len(self._parameters)
        self._loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)

    @property
    def trained(self) -> nn.Module:
        """What is to be measured and delivered: the average, or where none is kept, the network itself."""
        return self.network if self._average is None else self._average.module

    def train_epochs(
        self,
        data: BatchSource,
        first: int,
        count: int,
        on_step: Callable[[int, int], None] = ignore_step,
    ) -> Iterator[EpochResult]:
        """Train epochs ``first`` to ``first + count - 1`` of the schedule.

        The order of images and their augmentation depend on the seed and the epoch alone, so a training that was
        stopped after any epoch goes on as if it had not been.

        Parameters
        ----------
        data : BatchSource for this trainer's device
            All images, in every process. Where they lie changes nothing of the result.
        first, count : int
        on_step : callable
            Called after each step with the number of steps done in this epoch, and of all its steps.

        Yields
        ------
        EpochResult
            After each epoch.

        Raises
        ------
        DataError
            If there are no images, or a batch has fewer than there are processes.
        """
        if not len(data):
            raise DataError("there are no images to train on", hint="Check what the training split holds.")
        steps = -(-len(data) // self.config.batch_size)
        if len(data) // steps < self._ranks.size:
            raise DataError(
                f"a batch of {len(data) // steps} images cannot be shared by {self._ranks.size} processes",
                hint="Train with fewer processes, or with a larger batch size.",
            )
        if self._average is not None:
            horizon = max(1.0, self.config.average_passes * steps)
            self._average.multi_avg_fn = get_ema_multi_avg_fn(1.0 - 1.0 / horizon)  # type: ignore[no-untyped-call]
        with freed_memory_kept(self.device):
            for epoch in range(first, first + count):
                yield self._train_epoch(data, epoch, steps, on_step)

    def _train_epoch(
        self, data: BatchSource, epoch: int, steps: int, on_step: Callable[[int, int], None]
    ) -> EpochResult:
        generator = epoch_generator(self.config.seed, epoch)
        # Batches of nearly equal size: no small remainder that would upset batch norm.
        batches = torch.randperm(len(data), generator=generator).tensor_split(steps)
        parts = [batch[self._ranks.part(len(batch))] for batch in batches]
        mirrors = self._mirrors(len(data), epoch)
        self.network.train()
        total = torch.zeros((), device=self.device)
        with closing(data.batches(parts)) as arriving:
            for step, (batch, (images, labels)) in enumerate(zip(batches, arriving, strict=True)):
                rate = self.config.learning_rate_at((epoch + step / steps) / self.config.epochs)
                part = self._ranks.part(len(batch))
                mirror = None if mirrors is None else mirrors[batch]
                moved = self.config.augmentation(images, generator, len(batch), part, mirror)
                moved = crop_centre(moved, self.config.crop_at(epoch))
                # The mean over processes of these losses is the mean over the batch, whose parts may differ by one.
                weight = len(labels) * self._ranks.size / len(batch)
                total += self._step(moved, labels, rate, weight) * len(batch)
                if self._average is not None:
                    self._average.update_parameters(self.network)
                on_step(step + 1, steps)
        return EpochResult(epoch, float(self._ranks.sum(total)) / self._ranks.size / len(data))

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum by parameter name; empty before the first step, and where there is none."""
        buffers = zip(self._parameters, self._momentum, strict=True)
        return {name: buffer.clone() for name, buffer in buffers if buffer is not None}

    def load_momentum(self, momentum: Mapping[str, Tensor]) -> None:
        """Go on with the momentum of an earlier training of the same network."""
        if momentum:
            # In the parameters' memory format: the fused step goes through both as they lie.
            self._momentum = [
                torch.empty_like(parameter, requires_grad=False).copy_(momentum[name])
                for name, parameter in self._parameters.items()
            ]

    def average(self) -> dict[str, Tensor]:
        """Return the state of the averaged network, as ``network_state`` does; empty where none is kept."""
        return {} if self._average is None else network_state(self._average.module)

    def load_average(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the average of an earlier training of the same network.

        Raises
        ------
        ModelError
            If it does not fit.
        """
        if self._average is not None:
            load_network_state(self._average.module, state)
            # Else the next step would begin a new average.
            self._average.n_averaged.fill_(1)

    def _mirrors(self, count: int, epoch: int) -> Tensor | None:
        if not self.config.alternate_flip:
            return None
        return alternating_mirrors(count, epoch, epoch_generator(_MIRRORS + self.config.seed, 0))

    @torch.no_grad()
    def descend(self, rate: float) -> None:
        """Take a step of SGD along the gradients, which all parameters must have.

        By the function in which ``torch.optim.SGD`` ends: the class loads torch's compiler, which takes over a second.

        Parameters
        ----------
        rate : float
            The learning rate.
        """
        parameters: list[Tensor] = [*self._parameters.values()]
        sgd(
            parameters,
            [cast(Tensor, one.grad) for one in parameters],
            self._momentum if self.config.momentum else [],
            fused=True,
            lr=rate,
            momentum=self.config.momentum,
            dampening=0.0,
            weight_decay=self.config.weight_decay,
            nesterov=self.config.nesterov,
            maximize=False,
        )

    def _step(self, images: Tensor, labels: Tensor, rate: float, weight: float) -> Tensor:
        # Before the forward pass: gradients that a CUDA graph made lie where it works again.
        self.network.zero_grad(set_to_none=True)
        with autocast(self.device, self.config.precision):
            loss: Tensor = self._loss(self._joined(images).float(), labels) * weight
        loss.backward()  # type: ignore[no-untyped-call]
        self.descend(rate)
        return loss.detach()


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Randomness of one epoch: on the CPU, so that it means the same on every device."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


@torch.no_grad()
def predict_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Classify without training.

    Parameters
    ----------
    network : nn.Module
    images : uint8 tensor, (N, H, W, C), on the network's device

    Returns
    -------
    float32 tensor, (N, classes), on the same device
    """
    network.eval()
    with autocast(images.device):
        return torch.cat([network(batch).float() for batch in torch.split(images, _EVALUATION_BATCH)])


@torch.no_grad()
def evaluate(network: nn.Module, data: BatchSource, part: slice = slice(None)) -> Evaluation:
    """Measure accuracy and loss on held-out images, batch by batch.

    Parameters
    ----------
    network : nn.Module
    data : BatchSource for the network's device
    part : slice
        Which of the images are measured.
    """
    rows = torch.arange(len(data))[part]
    if not len(rows):
        return Evaluation(0, 0, float("nan"))
    sums = []
    with closing(data.batches(torch.split(rows, _EVALUATION_BATCH))) as arriving:
        for images, labels in arriving:
            logits = predict_logits(network, images)
            loss_sum = nn.functional.cross_entropy(logits, labels, reduction="sum")
            sums.append(torch.stack([(logits.argmax(1) == labels).sum().to(loss_sum.dtype), loss_sum]))
    # Added up on the CPU, in 64 bits; the count of one batch is whole in 32.
    correct, loss = torch.stack(sums).cpu().double().sum(0).tolist()
    return Evaluation(int(correct), len(rows), loss / len(rows))


def autocast(device: torch.device, precision: Precision = Precision.AUTO) -> AbstractContextManager[object]:
    """Compute in a precision; weights and what is kept of them stay float32."""
    if precision is Precision.AUTO:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = Precision.BFLOAT16 if fast else Precision.FLOAT32
    return nullcontext() if precision is Precision.FLOAT32 else torch.autocast(device.type, dtype=torch.bfloat16)
