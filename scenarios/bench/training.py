"""The training step: what augmentation, the adaptation network and our loop cost, and how near it is to the machine.

With ``--device cuda`` it measures what a GPU does at full width with batches of 128 and 512.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ppfed.ciphers.spec import CipherSpec
from ppfed.images.source import Split
from ppfed.images.types import ID_BYTES, EncryptedImages
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import InputFeatures, NetworkConfig
from ppfed.store import Shard, ShardStore
from ppfed.training.augment import NO_AUGMENTATION, Augmentation
from ppfed.training.compilation import compile_network, compiler_cache
from ppfed.training.loop import BatchSource, ImageTensors, Trainer, TrainingConfig, autocast
from ppfed.training.placement import place_images
from ppfed.training.settings import DataPlacement, Precision
from scenarios.bench import augmentation, roofline
from scenarios.bench.measurement import BenchSettings, Bound, Measurement, Turns, in_turn, seconds

SECTION = "training"
_CLASSES = 10
_SIDE = 32
_ENCRYPTED = InputFeatures.SORTED_FOLD
"""What the network is shown of the default cipher."""
_NO_KEY = "0" * 16
"""In place of a fingerprint: the images are noise."""
_PASSES = 64
"""Over the images, where nothing but the reading is timed."""


@dataclass(frozen=True)
class _Size:
    """What is trained.

    Attributes
    ----------
    base_maps : int
    batch_size : int
    steps : int
        In a turn.
    """

    base_maps: int
    batch_size: int
    steps: int

    def __str__(self) -> str:
        return f"ResNet-18 of {self.base_maps} maps, batch {self.batch_size}"


def measure(settings: BenchSettings) -> Iterator[Measurement]:
    """Measure steps of the one training loop on random 32x32 images, and augmentation alone."""
    budget_s = 1.0 if settings.quick else 10.0
    yield from augmentation.measure(SECTION, budget_s)
    for size in _sizes(settings):
        step = _Step(size, settings.device, budget_s)
        yield step.loop()
        yield from step.streaming()
        yield step.augmentation()
        yield from step.overheads()
        yield step.matrix_rate()
        yield from step.roofline()
        if not settings.quick:
            yield step.compiled()
            yield from step.bfloat16()


def _sizes(settings: BenchSettings) -> tuple[_Size, ...]:
    if settings.quick:
        return (_Size(16, 64, 2),)
    if settings.device.type == "cuda":
        return (_Size(64, 128, 64), _Size(64, 512, 16))
    return (_Size(64, 32, 2),)


class _Step:
    """Measures one size; every network is the same but for what is named."""

    def __init__(self, size: _Size, device: torch.device, budget_s: float) -> None:
        self._size, self._device, self._budget_s = size, device, budget_s
        generator = torch.Generator().manual_seed(0)
        count = size.batch_size * size.steps
        self._data = ImageTensors(
            torch.randint(0, 256, (count, _SIDE, _SIDE, 3), dtype=torch.uint8, generator=generator).to(device),
            torch.randint(0, _CLASSES, (count,), generator=generator).to(device),
        )

    def loop(self) -> Measurement:
        """Our loop, which shuffles and augments, beside steps on batches that lie ready."""
        turns = in_turn(
            self._epoch(self._network(), Augmentation()),
            _bare_steps(self._network(), self._data, self._size.batch_size, self._device),
            budget_s=self._budget_s,
            device=self._device,
        )
        row = self._overhead("our loop, with augmentation", turns, "bare steps on batches that lie ready")
        images_per_s = len(self._data) / statistics.median(turns.ours)
        gpu = self._device.type == "cuda"
        return replace(
            row,
            target=Bound(5.0 if gpu else 2.0, at_most=True),
            floor=Bound(60.0, at_most=True),
            details=row.details | {"ours_images_per_s": images_per_s},
        )

    def streaming(self) -> Iterator[Measurement]:
        """Our loop on images that are read from disk, and the reading alone, beside images in the device's memory."""
        resident, against = self._data, "images in the device's memory"
        with tempfile.TemporaryDirectory() as folder:
            streamed = self._stored(Path(folder))
            turns = in_turn(
                self._epoch(self._network(), Augmentation(), streamed),
                self._epoch(self._network(), Augmentation()),
                budget_s=self._budget_s,
                device=self._device,
            )
            yield replace(
                self._overhead("images streamed from disk", turns, against),
                target=Bound(2.0, at_most=True),
                floor=Bound(60.0, at_most=True),
            )
            rows = torch.split(torch.randperm(len(resident)).repeat(_PASSES), self._size.batch_size)
            turns = in_turn(
                partial(_read_all, streamed, rows),
                partial(_read_all, resident, rows),
                budget_s=self._budget_s,
                device=self._device,
            )
        images = _PASSES * len(resident)
        yield Measurement(
            SECTION,
            f"batches from disk without a step, {self._size}",
            turns.speed,
            against=against,
            floor=Bound(0.03),
            spread=turns.spread,
            details=turns.details
            | {
                "ours_images_per_s": images / statistics.median(turns.ours),
                "theirs_images_per_s": images / statistics.median(turns.theirs),
            },
        )

    def augmentation(self) -> Measurement:
        """Shifts and flips of a batch, as a part of a step."""
        images = self._data.images[: self._size.batch_size]
        generator = torch.Generator().manual_seed(0)
        shift_and_flip = Augmentation()
        step = self._epoch(self._network(), NO_AUGMENTATION)

        def augment() -> None:
            for _ in range(self._size.steps):
                shift_and_flip(images, generator)

        turns = in_turn(augment, step, budget_s=self._budget_s, device=self._device)
        parts = [100 / speed for speed in turns.speeds]
        return Measurement(
            SECTION,
            f"augmentation, {self._size}",
            statistics.median(parts),
            "%",
            "a step without it",
            target=Bound(2.0, at_most=True),
            floor=Bound(30.0, at_most=True),
            spread=(min(parts), max(parts)),
            details=turns.details | {"ours_images_per_s": len(self._data) / statistics.median(turns.ours)},
        )

    def overheads(self) -> Iterator[Measurement]:
        """Training on encrypted images, with and without an adaptation network, beside plain images."""
        for name, adaptation in (("no adaptation network", ()), ("adaptation network", (8, 32))):
            turns = in_turn(
                self._epoch(self._network(_ENCRYPTED, adaptation), Augmentation()),
                self._epoch(self._network(InputFeatures.VALUES, ()), Augmentation()),
                budget_s=self._budget_s,
                device=self._device,
            )
            yield self._overhead(f"encrypted, {name}", turns, "plain, no adaptation network")

    def matrix_rate(self) -> Measurement:
        """Floating-point operations of a step in a second, beside those of a large matrix product of the same type."""
        network = self._network()
        batch = self._batch()
        with FlopCounterMode(display=False) as counter:
            _loss(network, batch.images, batch.labels, self._device).backward()  # type: ignore[no-untyped-call]
        step_flops = counter.get_total_flops() * self._size.steps
        product, product_flops, product_name = roofline.matrix_product(self._device)
        turns = in_turn(self._epoch(network, Augmentation()), product, budget_s=self._budget_s, device=self._device)
        parts = [speed * step_flops / product_flops for speed in turns.speeds]
        return Measurement(
            SECTION,
            f"matrix rate, {self._size}",
            statistics.median(parts),
            against=product_name,
            target=Bound(0.85) if self._size.base_maps == 64 and self._device.type == "cpu" else None,
            floor=Bound(0.02),
            spread=(min(parts), max(parts)),
            details={
                "step_gflop_per_image": step_flops / len(self._data) / 1e9,
                "product_gflop_per_s": product_flops / statistics.median(turns.theirs) / 1e9,
                "step_gflop_per_s": step_flops / statistics.median(turns.ours) / 1e9,
            },
        )

    def roofline(self) -> Iterator[Measurement]:
        """Time that the two ceilings allow a step, beside the time that it takes."""
        data = self._batch()
        generator, augmentation = torch.Generator().manual_seed(0), Augmentation()
        step = _bare_step(self._network(), self._device)
        yield from roofline.measure(
            SECTION,
            str(self._size),
            lambda: augmentation(data.images, generator),
            lambda images: step(images, data.labels),
            device=self._device,
            budget_s=self._budget_s,
        )

    def compiled(self) -> Measurement:
        """Compare steps of a compiled network with eager ones; the details say how long the first one took."""
        data, spent = self._batch(), 0.0
        with tempfile.TemporaryDirectory() as folder, compiler_cache(Path(folder)):
            network = self._network()
            ours = _bare_step(network, self._device, compile_network(network, self._device))
            theirs = _bare_step(self._network(), self._device)
            try:
                spent = seconds(lambda: ours(data.images, data.labels), self._device)
            except (RuntimeError, OSError) as error:
                return Measurement.left_out(
                    SECTION, f"compiled, {self._size}", f"torch.compile: {error}".split("\n")[0]
                )
            turns = in_turn(
                lambda: ours(data.images, data.labels),
                lambda: theirs(data.images, data.labels),
                budget_s=self._budget_s,
                device=self._device,
            )
        row = self._overhead("compiled", turns, "eager steps")
        return replace(row, details=row.details | {"first_step_s": spent})

    def bfloat16(self) -> Iterator[Measurement]:
        """Compare steps in bfloat16 with float32 ones, where we train in float32."""
        if self._device.type != "cpu":
            return
        data = self._batch()
        ours = _bare_step(self._network(), self._device, precision=Precision.BFLOAT16)
        theirs = _bare_step(self._network(), self._device)
        turns = in_turn(
            lambda: ours(data.images, data.labels),
            lambda: theirs(data.images, data.labels),
            budget_s=self._budget_s,
            device=self._device,
        )
        yield self._overhead("bfloat16 (autocast)", turns, "float32 steps")

    def _batch(self) -> ImageTensors:
        """One batch."""
        return ImageTensors(
            self._data.images[: self._size.batch_size].contiguous(), self._data.labels[: self._size.batch_size]
        )

    def _overhead(self, name: str, turns: Turns, against: str) -> Measurement:
        overheads = turns.overheads
        return Measurement(
            SECTION,
            f"{name}, {self._size}",
            statistics.median(overheads),
            "% longer",
            against,
            spread=(min(overheads), max(overheads)),
            details=turns.details,
        )

    def _network(self, features: InputFeatures = _ENCRYPTED, adaptation: tuple[int, ...] = (8, 32)) -> ImageClassifier:
        config = NetworkConfig(
            _CLASSES, _SIDE, _SIDE, base_maps=self._size.base_maps, features=features, adaptation=adaptation
        )
        return build_network(config, 0).to(self._device)

    def _stored(self, folder: Path) -> BatchSource:
        """Write the images as an owner's upload would lie there, in shards that every batch touches."""
        store = ShardStore(folder)
        pixels, labels = self._data.images.cpu().numpy(), self._data.labels.cpu().numpy()
        ids = np.zeros((len(pixels), ID_BYTES), dtype=np.uint8)
        for index, rows in enumerate(np.array_split(np.arange(len(pixels)), self._size.steps)):
            images = EncryptedImages(pixels[rows], ids[rows], CipherSpec(), _NO_KEY)
            store.write(Split.TRAIN, index, Shard(images, labels[rows]))
        return place_images([store], (_SIDE, _SIDE, 3), self._device, DataPlacement.STREAMED).train

    def _epoch(
        self, network: ImageClassifier, augmentation: Augmentation, data: BatchSource | None = None
    ) -> Callable[[], object]:
        config = TrainingConfig(
            epochs=1_000_000, batch_size=self._size.batch_size, learning_rate=1e-3, augmentation=augmentation
        )
        trainer = Trainer(network, config, self._device)
        return lambda: list(trainer.train_epochs(self._data if data is None else data, 1, 1))


def _bare_steps(network: nn.Module, data: ImageTensors, batch_size: int, device: torch.device) -> Callable[[], None]:
    """Write the loop as tightly as PyTorch lets one: the same optimizer on batches that lie ready."""
    step = _bare_step(network, device)

    def steps() -> None:
        batches = zip(torch.split(data.images, batch_size), torch.split(data.labels, batch_size), strict=True)
        for images, labels in batches:
            step(images, labels)

    return steps


def _bare_step(
    network: nn.Module,
    device: torch.device,
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
    precision: Precision = Precision.AUTO,
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Write a step; ``forward`` may be what was compiled of the network."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    network.train()
    # Not "or": what torch.compile returns has no truth value.
    used = network if forward is None else forward

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        _loss(used, images, labels, device, precision).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _read_all(source: BatchSource, rows: Sequence[torch.Tensor]) -> None:
    for _ in source.batches(rows):
        pass


def _loss(
    network: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    device: torch.device,
    precision: Precision = Precision.AUTO,
) -> torch.Tensor:
    with autocast(device, precision):
        return nn.functional.cross_entropy(network(images).float(), labels)
