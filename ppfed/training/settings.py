"""How a federation trains: choices and settings, without torch, so that whoever only checks them need not load it.

``TrainingConfig.of`` (``loop.py``) and ``Augmentation.of`` (``augment.py``) make of them what the training loop takes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ppfed.errors import UsageError
from ppfed.networks.config import AdaptationKind, Backbone, InputFeatures

FEWEST_IMAGES = 2
"""In a micro-batch: batch norm needs two, and the gradient of one image is the easiest to turn back into it."""


class Schedule(StrEnum):
    """How the learning rate moves over training."""

    LINEAR = "linear"
    """Up from zero over the warm-up, then straight down to zero."""
    PAPER = "paper"
    """Divided by 10 after half and after three quarters of the epochs (paper, section 4.1: 150 and 225 of 300)."""


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


class ServerStrategy(StrEnum):
    """How the coordinator makes one network of the owners' in exchange ``updates``: Flower's strategies."""

    FEDAVG = "fedavg"
    """Average weighted by image counts (McMahan et al., AISTATS 2017)."""
    FEDAVGM = "fedavgm"
    """The same with momentum (Hsu et al., 2019, arXiv 1909.06335)."""
    FEDADAM = "fedadam"
    """Adam on the average change (Reddi et al., ICLR 2021)."""
    FEDYOGI = "fedyogi"
    """Yogi on the average change (Reddi et al., ICLR 2021)."""


class UpdateFormat(StrEnum):
    """In which numbers owners send updates and gradients."""

    FLOAT32 = "float32"
    """As they were computed: weights, or a gradient."""
    BFLOAT16 = "bfloat16"
    """Half the bytes: what training changed of the weights that the round began with, or a gradient, each value rounded
    to 8 significant bits. What batch norm measured stays float32."""


class Precision(StrEnum):
    """In which numbers a network computes while it trains. Weights, optimizer and batch-norm statistics are float32."""

    AUTO = "auto"
    """``bfloat16`` on a GPU, ``float32`` elsewhere."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """Convolutions and matrix products with 8 significant bits (torch.autocast). On a processor with instructions for
    it (AVX-512 BF16, AMX) a step takes about half the time; on others it is emulated."""


class DataPlacement(StrEnum):
    """Where images lie while they are trained on. The trained weights are the same."""

    AUTO = "auto"
    """Resident if all images take no more than half of the device's free memory, else streamed."""
    RESIDENT = "resident"
    """In the device's memory."""
    STREAMED = "streamed"
    """On disk, read batch by batch while the device works on the batch before."""

    @classmethod
    def named(cls, name: str) -> DataPlacement:
        """Read a placement.

        Raises
        ------
        UsageError
            If there is no such placement.
        """
        try:
            return cls(name)
        except ValueError:
            raise UsageError(
                f"there is no data placement {name!r}", hint=f"Choose one of {', '.join(DataPlacement)}."
            ) from None


class TrainingSettings(BaseModel):
    """How the federation trains; see ``TrainingConfig``.

    ``rounds`` times ``local_epochs`` passes are made over the images. In exchange ``images`` a round is one pass at
    the coordinator; in exchange ``gradients`` it is one pass of all owners together, and ``batch_size`` counts the
    images of all owners in a step.

    Attributes
    ----------
    average_passes : float
        Exchange ``images``: over how many passes weights are averaged; 0 for not.
    first_crop : float
        Exchanges ``images`` and ``updates``: part of each side that the first pass sees.
    alternate_flip : bool
        Exchanges ``images`` and ``updates``: an image is flipped exactly if it was not in the pass before.
    strategy : ServerStrategy
        Exchange ``updates``.
    server_learning_rate, server_momentum : float or None
        Of the strategy; None takes its default (``coordinator/aggregation.py``). ``fedavg`` has neither.
    precision : Precision
        What all who train compute in. Whoever measures or classifies uses ``auto``.
    update_format : UpdateFormat
        Exchanges ``updates`` and ``gradients``: in which numbers owners send. What they are sent is float32.
    micro_batch : int
        Exchange ``gradients``: most images whose gradient an owner computes at once; larger parts are accumulated.
    min_local_batch : int
        Exchange ``gradients``: fewest images over which an owner computes a gradient.
    batch_norm : BatchNormMode
        Exchange ``gradients``: what batch norm normalises with.
    gradient_clip : float or None
        Exchange ``gradients``: longest Euclidean norm of an owner's gradient.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=10, ge=1, le=100_000)
    local_epochs: int = Field(default=1, ge=1, le=1000)
    batch_size: int = Field(default=128, ge=4, le=65_536)
    learning_rate: float = Field(default=0.2, gt=0, le=10)
    schedule: Schedule = Schedule.LINEAR
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = True
    adaptation: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(8, 32), max_length=16)
    adaptation_kind: AdaptationKind = AdaptationKind.PIXEL
    features: InputFeatures = InputFeatures.VALUES
    backbone: Backbone = Backbone.RESNET18
    base_maps: int = Field(default=64, ge=1, le=1024)
    shift: int | None = Field(default=None, ge=0, le=4096)
    horizontal_flip: bool = True
    vertical_flip: bool = False
    padding: Padding = Padding.REFLECT
    mirrored_views: bool = True
    average_passes: float = Field(default=0.0, ge=0, le=1000)
    first_crop: float = Field(default=1.0, ge=0.25, le=1)
    alternate_flip: bool = False
    precision: Precision = Precision.AUTO
    strategy: ServerStrategy = ServerStrategy.FEDAVG
    server_learning_rate: float | None = Field(default=None, gt=0, le=10)
    server_momentum: float | None = Field(default=None, ge=0, lt=1)
    update_format: UpdateFormat = UpdateFormat.FLOAT32
    micro_batch: int = Field(default=256, ge=4, le=65_536)
    min_local_batch: int = Field(default=FEWEST_IMAGES, ge=FEWEST_IMAGES, le=65_536)
    batch_norm: BatchNormMode = BatchNormMode.LOCAL
    gradient_clip: float | None = Field(default=None, gt=0, le=1e6)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def epochs(self) -> int:
        """Passes over the images in all rounds together."""
        return self.rounds * self.local_epochs
