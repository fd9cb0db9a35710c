"""Augmentation on a whole batch of uint8 images at once, on the device that trains.

It moves whole pixels and never mixes values, so it works on encrypted images as on plain ones (paper, section 3.3):
moving an encrypted image equals encrypting the moved image under the equally moved mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ppfed.training.settings import Padding, TrainingSettings

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

    @classmethod
    def of(cls, settings: TrainingSettings) -> Self:
        """Make it of what a federation agreed on."""
        return cls(settings.shift, settings.horizontal_flip, settings.vertical_flip, settings.padding)

    def draw(
        self, count: int, height: int, width: int, generator: torch.Generator, mirror: Tensor | None = None
    ) -> Placement:
        """Draw where each of ``count`` images goes; on the CPU, so that a seed means the same on every device.

        Where ``mirror`` says which images are flipped horizontally, that is not drawn.
        """
        return Placement(
            down=_symmetric(self._reach(height), count, generator),
            right=_symmetric(self._reach(width), count, generator),
            mirror=_coin(self.horizontal_flip, count, generator) if mirror is None else mirror,
            upend=_coin(self.vertical_flip, count, generator),
        )

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        whole: int | None = None,
        part: slice = slice(None),
        mirror: Tensor | None = None,
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
        mirror : bool tensor, (whole,), or None
            Which images of the whole batch are flipped horizontally; None draws it.

        Returns
        -------
        uint8 tensor, (N, H, W, C), on the device of ``images``
        """
        count, height, width, _ = images.shape
        drawn = self.draw(count if whole is None else whole, height, width, generator, mirror)
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
    count, height, width, channels = images.shape
    if count == 0:
        return images.clone()
    down, right = _bounded(placement.down, height, padding), _bounded(placement.right, width, padding)
    margins = int(down.abs().max()), int(right.abs().max())
    framed = _framed(images, margins, padding, fill)
    _, tall, wide, _ = framed.shape
    # A new row is one piece of an old one, moved as a whole: all there is to know is where it begins. Those that are
    # mirrored move the other way here, as they are turned afterwards.
    row = torch.arange(height, device=down.device) - down[:, None]
    row = torch.where(placement.upend[:, None], height - 1 - row, row) + margins[0]
    column = torch.where(placement.mirror, right, -right) + margins[1]
    image = torch.arange(count, device=down.device)
    begins = ((image[:, None] * tall + row) * wide + column[:, None]) * channels
    pieces = framed.reshape(-1).unfold(0, width * channels, 1)
    moved = pieces.index_select(0, begins.reshape(-1).to(images.device)).view(images.shape)
    mirrored = placement.mirror.nonzero()[:, 0].to(images.device)
    return moved.index_copy_(0, mirrored, moved.index_select(0, mirrored).flip(2))


def crop_centre(images: Tensor, part: float) -> Tensor:
    """Keep the middle of images. After a shift that is a crop at random, and needs no padding while it fits.

    Parameters
    ----------
    images : tensor of any dtype, (N, H, W, C)
    part : float
        Of each side, above 0 and up to 1.

    Returns
    -------
    tensor of the same dtype, (N, round(part H), round(part W), C), contiguous; sides are 1 at least
    """
    for axis in (1, 2):
        side = images.shape[axis]
        kept = max(1, round(part * side))
        images = images.narrow(axis, (side - kept) // 2, kept)
    return images.contiguous()


def alternating_mirrors(count: int, epoch: int, coins: torch.Generator) -> Tensor:
    """Choose which images are flipped in a pass: each exactly if it was not in the pass before.

    Two passes in a row show every image once as it is and once mirrored; with a coin for each pass, half of the images
    would be shown twice alike (Jordan, arXiv 2404.00498, section 3.6).

    Parameters
    ----------
    count : int
        Images, in the order of their source.
    epoch : int
        Counted from 0.
    coins : torch.Generator on the CPU
        The same for every pass: it decides the first one.

    Returns
    -------
    bool tensor, (count,)
    """
    return torch.randint(0, 2, (count,), generator=coins).bool() ^ bool(epoch % 2)


def _bounded(shift: Tensor, side: int, padding: Padding) -> Tensor:
    """Give shifts that do the same and are no larger than the image."""
    if padding is Padding.FILL:
        return shift.clamp(-side, side)
    half = _period(side) // 2
    return (shift + half).remainder(_period(side)) - half


def _framed(images: Tensor, margins: tuple[int, int], padding: Padding, fill: int) -> Tensor:
    """Add what shifts may uncover: rows above and below, columns on the left and on the right."""
    if padding is Padding.FILL:
        return nn.functional.pad(images, (0, 0, margins[1], margins[1], margins[0], margins[0]), value=fill)
    for axis, margin in enumerate(margins, start=1):
        before = images.narrow(axis, 1, margin).flip(axis)
        after = images.narrow(axis, images.shape[axis] - 1 - margin, margin).flip(axis)
        images = torch.cat([before, images, after], axis)
    return images


def _period(side: int) -> int:
    """Length of a wave that runs from the first pixel to the last and back, and meets both once."""
    return max(1, 2 * (side - 1))


def _symmetric(reach: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-reach, reach + 1, (count,), generator=generator)


def _coin(wanted: bool, count: int, generator: torch.Generator) -> Tensor:
    if not wanted:
        return torch.zeros(count, dtype=torch.bool)
    return torch.randint(0, 2, (count,), generator=generator).bool()
