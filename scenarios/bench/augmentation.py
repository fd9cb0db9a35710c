"""Augmentation of a batch at once on one thread, beside torchvision's transforms in a DataLoader without workers."""

from __future__ import annotations

import importlib
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ppfed.training.augment import Augmentation
from scenarios.bench.measurement import Bound, Measurement, Turns, in_turn
from scenarios.bench.torchvision_import import import_torchvision

_BATCHES = (128, 512)
_IMAGES = 512
"""Augmented in a turn, by us as often as it takes for both to work for about as long."""
_REPEATS = 16
_SIDE = 32
_SHIFT = 4


def measure(section: str, budget_s: float) -> Iterator[Measurement]:
    """Shift and flip random images of 32x32 on the processor, as training on CIFAR-10 does."""
    try:
        import_torchvision()
    except (ImportError, RuntimeError) as error:
        reason = "torchvision is not installed" if isinstance(error, ImportError) else f"torchvision fails: {error}"
        yield from (Measurement.left_out(section, _name(batch_size), reason) for batch_size in _BATCHES)
        return
    images = torch.randint(0, 256, (_IMAGES, _SIDE, _SIDE, 3), dtype=torch.uint8)
    channels_first = images.permute(0, 3, 1, 2).contiguous()
    with one_thread():
        for batch_size in _BATCHES:
            turns = in_turn(
                partial(_run, batched, images, batch_size, _REPEATS),
                partial(_run, usual_way, channels_first, batch_size),
                budget_s=budget_s,
            )
            turns = Turns(tuple(one / _REPEATS for one in turns.ours), turns.theirs)
            rates: dict[str, float | str] = {
                "ours_images_per_s": _IMAGES / statistics.median(turns.ours),
                "theirs_images_per_s": _IMAGES / statistics.median(turns.theirs),
            }
            yield Measurement(
                section,
                _name(batch_size),
                turns.speed,
                against="torchvision v2 in a DataLoader without workers",
                target=Bound(10.0),
                floor=Bound(2.0),
                spread=turns.spread,
                details=turns.details | rates,
            )


def batched(images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Augment uint8 images, (N, H, W, C), batch by batch, as ppfed does."""
    augmentation, generator = Augmentation(shift=_SHIFT), torch.Generator().manual_seed(0)
    return (augmentation(batch, generator) for batch in torch.split(images, batch_size))


def usual_way(images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Augment uint8 images, (N, C, H, W), one by one as they are loaded, and join them in batches."""
    v2 = importlib.import_module("torchvision.transforms.v2")
    transform = v2.Compose([v2.RandomCrop(images.shape[-1], padding=_SHIFT), v2.RandomHorizontalFlip()])
    return iter(DataLoader(_Transformed(images, transform), batch_size=batch_size, num_workers=0))


def _run(way: Callable[[Tensor, int], Iterator[Tensor]], images: Tensor, batch_size: int, times: int = 1) -> None:
    """Augment the images some times over, and keep no batch."""
    for _ in range(times):
        deque(way(images, batch_size), maxlen=0)


class _Transformed(Dataset[Tensor]):
    def __init__(self, images: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._transform(self._images[index])


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _name(batch_size: int) -> str:
    return f"augmentation on one thread, {_SIDE}x{_SIDE}, batch {batch_size}"
