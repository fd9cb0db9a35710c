"""What a federation may choose between, apart from the code that does it.

Settings, invites and status are made of these. A process that only reads settings, above all the coordinator's public
one, loads no PyTorch for them.
"""

from __future__ import annotations

from enum import StrEnum

from ppfed.ciphers.spec import CipherSpec, Scope

FEWEST_IMAGES = 2
"""In a micro-batch: batch norm needs two, and the gradient of one image is the easiest to turn back into it."""


class InputFeatures(StrEnum):
    """What the network is shown of the pixel values.

    With fresh masks a value v is as likely as 255 - v, so its distance from 127.5 is all that a ciphertext tells about
    it (a sufficient statistic); with the colour shuffle it is the sorted triple of a pixel's distances. Folding spares
    the network to learn that, and needs no key. Where the top bit is masked as well (``np2-v1``), the same holds for
    how far the lower seven bits are from their nearer end. Where one mask serves all images, a fold throws away what
    could be learned.
    """

    VALUES = "values"
    """The values, scaled to -1 to 1 with 127.5 as zero."""
    FOLD = "fold"
    """The distance from mid-grey, scaled to -1 to 1."""
    SORTED_FOLD = "sorted-fold"
    """The same, sorted over the channels of each pixel."""
    FOLD_TWICE = "fold-twice"
    """min(w, 127 - w) of the lower seven bits w, scaled to -1 to 1: the same for v, v ^ 0xff, v ^ 0x80 and v ^ 0x7f."""
    SORTED_FOLD_TWICE = "sorted-fold-twice"
    """The same, sorted over the channels of each pixel."""


def best_features(cipher: CipherSpec) -> InputFeatures:
    """Choose what to show of images under a cipher: all that it leaves, and nothing that only the key could tell."""
    if cipher.scope is not Scope.IMAGE:
        return InputFeatures.VALUES
    match cipher.name:
        case "np-v1":
            return InputFeatures.SORTED_FOLD if cipher.colour_shuffle else InputFeatures.FOLD
        case "np2-v1":
            return InputFeatures.SORTED_FOLD_TWICE if cipher.colour_shuffle else InputFeatures.FOLD_TWICE
        case _:
            return InputFeatures.VALUES


class AdaptationKind(StrEnum):
    """Which adaptation network."""

    PIXEL = "pixel"
    """1x1 convolutions (Sirichotedumrong et al., ICIP 2019, section 3.5)."""
    BLOCK = "block"
    """One map for all blocks, then a sub-pixel convolution (Tanaka, arXiv 1804.00490)."""
    BLOCK_WISE = "block-wise"
    """A map for each block position, mixed over positions, then a sub-pixel convolution (arXiv 2001.07761)."""


class Backbone(StrEnum):
    """What classifies, behind features and adaptation network."""

    RESNET18 = "resnet18"
    """ResNet-18 (He et al., CVPR 2016), as in the paper."""
    CONVMIXER = "convmixer"
    """A small ConvMixer: its patch embedding can absorb the key of a block cipher (``ppfed/convmixer.py``)."""


class Padding(StrEnum):
    """What a shift uncovers."""

    FILL = "fill"
    """One value everywhere."""
    REFLECT = "reflect"
    """The image mirrored at its border: encrypted pixels border on encrypted pixels, as everywhere else."""


class BatchNormMode(StrEnum):
    """What batch norm normalises with while gradients are computed."""

    LOCAL = "local"
    """The statistics of each micro-batch, as data-parallel training without synchronised batch norm does."""
    SHARED = "shared"
    """The running statistics that the coordinator keeps: no image's gradient depends on other images then, and the
    owners' gradients add up to the gradient of the whole batch exactly."""


class Schedule(StrEnum):
    """How the learning rate moves over training."""

    LINEAR = "linear"
    """Up from zero over the warm-up, then straight down to zero."""
    PAPER = "paper"
    """Divided by 10 after half and after three quarters of the epochs (paper, section 4.1: 150 and 225 of 300)."""
