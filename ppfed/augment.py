"""Augmentation on a whole batch of uint8 images at once, on the device that trains.

It moves whole pixels and never mixes values, so it works on encrypted images as on plain ones (paper, section 3.3):
moving an encrypted image equals encrypting the moved image under the equally moved mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

_PAPER_SHIFT = 4
_PAPER_SIDE = 32


class Padding(StrEnum):
    """What a shift uncovers."""

    FILL = "fill"
    """One value everywhere."""
    REFLECT = "reflect"
    """The image mirrored at its border: encrypted pixels border on encrypted pixels, as everywhere else."""


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

    def of(self, part: slice) -> Placement:
        """Take some of the images."""
        return Placement(self.down[part], self.right[part], self.mirror[part], self.upend[part])


@dataclass(frozen=True)
class Augmentation:
    """Random shift and flips.

    Attributes
    ----------
    shift : int or None
        Largest shift in pixels, either way; None means 4 at a side of 32 pixels and in proportion elsewhere.
    horizontal_flip, vertical_flip : bool
        Whether images are flipped with probability 1/2.
    padding : Padding
        What a shift uncovers.
    fill : int
        The value for padding ``fill``, 0 to 255.
    """

    shift: int | None = None
    horizontal_flip: bool = True
    vertical_flip: bool = False
    padding: Padding = Padding.FILL
    fill: int = 0

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> Placement:
        """Draw where each of ``count`` images goes; on the CPU, so that a seed means the same on every device."""
        return Placement(
            down=_symmetric(self._reach(height), count, generator),
            right=_symmetric(self._reach(width), count, generator),
            mirror=_coin(self.horizontal_flip, count, generator),
            upend=_coin(self.vertical_flip, count, generator),
        )

    def __call__(
        self, images: Tensor, generator: torch.Generator, whole: int | None = None, part: slice = slice(None)
    ) -> Tensor:
        """Augment a batch, or a part of one.

        Parameters
        ----------
        images : uint8 tensor, (N, H, W, C)
        generator : torch.Generator on the CPU
        whole : int or None
            Images in the whole batch, if these are only a part: it is drawn for all of them, so that an image moves in
            the same way whoever has it.
        part : slice
            Which N of the whole batch these are.

        Returns
        -------
        uint8 tensor, (N, H, W, C), on the device of ``images``
        """
        count, height, width, _ = images.shape
        drawn = self.draw(count if whole is None else whole, height, width, generator)
        return place(images, drawn.of(part), self.padding, self.fill)

    def _reach(self, side: int) -> int:
        return round(_PAPER_SHIFT * side / _PAPER_SIDE) if self.shift is None else self.shift


NO_AUGMENTATION = Augmentation(shift=0, horizontal_flip=False)


def place(images: Tensor, placement: Placement, padding: Padding = Padding.FILL, fill: int = 0) -> Tensor:
    """Flip, then shift.

    Parameters
    ----------
    images : tensor of any dtype, (N, H, W, C)
    placement : Placement of N images
    padding : Padding
    fill : int
        What uncovered pixels become with padding ``fill``.

    Returns
    -------
    tensor of the same dtype and shape
    """
    count, height, width, _ = images.shape
    device = images.device
    rows = _source(height, placement.down.to(device), placement.upend.to(device), padding)
    columns = _source(width, placement.right.to(device), placement.mirror.to(device), padding)
    batch = torch.arange(count, device=device)[:, None, None]
    moved = images[batch, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    if padding is Padding.REFLECT:
        return moved
    uncovered = ~(_inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :])
    return moved.masked_fill_(uncovered[..., None], fill)


def _source(side: int, shift: Tensor, flip: Tensor, padding: Padding) -> Tensor:
    """For each new coordinate, (N, side), the old one; outside of the image where nothing moves there."""
    old = torch.arange(side, device=shift.device) - shift[:, None]
    if padding is Padding.REFLECT:
        # A wave that runs up and down between the first and the last pixel, both of which it meets once.
        period = max(1, 2 * (side - 1))
        old = old.remainder(period)
        old = torch.minimum(old, period - old)
    return torch.where(flip[:, None], side - 1 - old, old)


def _inside(coordinates: Tensor, side: int) -> Tensor:
    return (coordinates >= 0) & (coordinates < side)


def _symmetric(reach: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-reach, reach + 1, (count,), generator=generator)


def _coin(wanted: bool, count: int, generator: torch.Generator) -> Tensor:
    if not wanted:
        return torch.zeros(count, dtype=torch.bool)
    return torch.randint(0, 2, (count,), generator=generator).bool()
