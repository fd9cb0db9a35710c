"""Augmentation on a whole batch of uint8 images at once, on the device that trains.

It moves whole pixels and never mixes values, so it works on encrypted images as on plain ones (paper, section 3.3):
moving an encrypted image equals encrypting the moved image under the equally moved mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PAPER_SHIFT = 4
_PAPER_SIDE = 32


@dataclass(frozen=True)
class Placement:
    """Where a batch of images is moved to.

    Attributes
    ----------
    down, right : int64 tensor, (N,)
        Shift in pixels.
    mirror, upend : bool tensor, (N,)
        Whether to flip horizontally (left and right change places), vertically; flips come before shifts.
    """

    down: Tensor
    right: Tensor
    mirror: Tensor
    upend: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random shift and flips.

    Attributes
    ----------
    shift : int or None
        Largest shift in pixels, either way; None means 4 at a side of 32 pixels and in proportion elsewhere.
    horizontal_flip, vertical_flip : bool
        Whether images are flipped with probability 1/2.
    fill : int
        Value of the pixels that a shift uncovers, 0 to 255.
    """

    shift: int | None = None
    horizontal_flip: bool = True
    vertical_flip: bool = False
    fill: int = 0

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> Placement:
        """Draw where each of ``count`` images goes; on the CPU, so that a seed means the same on every device."""
        return Placement(
            down=_symmetric(self._reach(height), count, generator),
            right=_symmetric(self._reach(width), count, generator),
            mirror=_coin(self.horizontal_flip, count, generator),
            upend=_coin(self.vertical_flip, count, generator),
        )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Parameters
        ----------
        images : uint8 tensor, (N, H, W, C)
        generator : torch.Generator on the CPU

        Returns
        -------
        uint8 tensor, (N, H, W, C), on the device of ``images``
        """
        count, height, width, _ = images.shape
        return place(images, self.draw(count, height, width, generator), self.fill)

    def _reach(self, side: int) -> int:
        return round(_PAPER_SHIFT * side / _PAPER_SIDE) if self.shift is None else self.shift


NO_AUGMENTATION = Augmentation(shift=0, horizontal_flip=False)


def place(images: Tensor, placement: Placement, fill: int = 0) -> Tensor:
    """Flip, then shift; uncovered pixels become ``fill``.

    Parameters
    ----------
    images : tensor of any dtype, (N, H, W, C)
    placement : Placement of N images
    fill : int

    Returns
    -------
    tensor of the same dtype and shape
    """
    count, height, width, _ = images.shape
    device = images.device
    rows, rows_inside = _source(height, placement.down.to(device), placement.upend.to(device))
    columns, columns_inside = _source(width, placement.right.to(device), placement.mirror.to(device))
    batch = torch.arange(count, device=device)[:, None, None]
    moved = images[batch, rows[:, :, None], columns[:, None, :]]
    uncovered = ~(rows_inside[:, :, None] & columns_inside[:, None, :])
    return moved.masked_fill_(uncovered[..., None], fill)


def _source(side: int, shift: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """For each new coordinate, (N, side): the old one, clamped, and whether it lay inside the image."""
    old = torch.arange(side, device=shift.device) - shift[:, None]
    inside = (old >= 0) & (old < side)
    old = old.clamp(0, side - 1)
    return torch.where(flip[:, None], side - 1 - old, old), inside


def _symmetric(reach: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-reach, reach + 1, (count,), generator=generator)


def _coin(wanted: bool, count: int, generator: torch.Generator) -> Tensor:
    if not wanted:
        return torch.zeros(count, dtype=torch.bool)
    return torch.randint(0, 2, (count,), generator=generator).bool()
