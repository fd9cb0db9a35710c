"""The result of a federation: a folder with the network, what there is to know about it, and how it came about.

::

    weights.safetensors   the state of the network (ppfed/networks/state.py)
    card.json             ``ModelCard``
    curve.csv             one line for each round
    curve.png             the same, drawn

Nothing is pickled, so opening a folder that somebody else made runs none of their code.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ppfed.atomic import write_atomic
from ppfed.ciphers.spec import CipherSpec
from ppfed.errors import ModelError
from ppfed.federation import CipherSettings, ClassName, Fingerprint, ModelOrigin, Name, describe_invalid
from ppfed.leakage.record import LeakageRecord
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import AdaptationKind, Backbone, InputFeatures, NetworkConfig
from ppfed.networks.state import check_network_state, load_network_state, network_state
from ppfed.training.curve import CurvePoint, curve_to_csv
from ppfed.training.loop import pick_device

NOTICE = (
    "The cipher is visual obfuscation, not confidentiality: it keeps pictures from eyes, logs and thumbnail caches. "
    "Whoever holds the encrypted images can restore nearly all of most ciphers' by a program, without the key."
)
_SAYS = "not confidentiality"
"""What the notice of every card says, also of one that another version wrote."""

FORMAT_VERSION = 1
WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "card.json"
CURVE_FILE = "curve.csv"
PLOT_FILE = "curve.png"

_FILES = {WEIGHTS_FILE, CARD_FILE, CURVE_FILE, PLOT_FILE}
_FORMAT = "ppfed-model"
_MAX_CARD_BYTES = 4 << 20
_AGAIN = "Copy the whole folder again from where it was made."


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CardOwner(_Frozen):
    """How many images an owner gave."""

    name: Name
    train_images: int = Field(ge=0)
    held_out_images: int = Field(ge=0)


class ModelCard(_Frozen):
    """What there is to know about a model.

    Attributes
    ----------
    format, version : str, int
        Of the folder.
    federation : str
    exchange : str
        What owners sent: ``images``, ``updates`` or ``gradients``.
    cipher : CipherSettings
        How the images were encrypted that the network learned from; queries are encrypted alike.
    fingerprint : str
        The key's public name.
    height, width, channels : int
    classes : tuple of str
        The network's outputs, in order.
    adaptation : tuple of int
    base_maps : int
    features : InputFeatures
    adaptation_kind : AdaptationKind
    mirrored_views : bool
    backbone : Backbone
        These six as in ``NetworkConfig``.
    owners : tuple of CardOwner
    rounds, local_epochs : int
    accuracy : float or None
        On held-out images, 0 to 1; None where there were none.
    held_out_images : int
        How many images ``accuracy`` was measured on.
    seed : int
    training : dict
        Settings of the training.
    versions : dict of str to str
        Of ppfed, torch, flwr and python: ``installed_versions``.
    created : datetime
        With its time zone.
    leakage : LeakageRecord or None
        What attackers got of images encrypted so, in ppfed's own measurements; None where there are none.
    trained_further_from : ModelOrigin or None
        The model whose weights training began with; None where they were random.
    notice : str
        ``NOTICE``, or what another version wrote in its place.
    """

    format: Literal["ppfed-model"] = "ppfed-model"
    version: Literal[1] = 1
    federation: Name
    exchange: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    cipher: CipherSettings
    fingerprint: Fingerprint
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: Literal[1, 3]
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=65_536)
    adaptation: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(max_length=16)
    base_maps: int = Field(ge=1, le=1024)
    features: InputFeatures = InputFeatures.VALUES
    adaptation_kind: AdaptationKind = AdaptationKind.PIXEL
    mirrored_views: bool = False
    backbone: Backbone = Backbone.RESNET18
    owners: tuple[CardOwner, ...] = Field(max_length=10_000)
    rounds: int = Field(ge=0)
    local_epochs: int = Field(ge=1)
    accuracy: float | None = Field(ge=0, le=1)
    held_out_images: int = Field(ge=0)
    seed: int
    training: dict[str, JsonValue]
    versions: dict[str, str]
    created: AwareDatetime
    leakage: LeakageRecord | None = None
    trained_further_from: ModelOrigin | None = None
    notice: str = NOTICE

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if _SAYS not in self.notice:
            raise ValueError(f"the notice that every model carries is missing: {_SAYS}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is named twice")
        if (self.accuracy is None) != (self.held_out_images == 0):
            raise ValueError("an accuracy goes with held-out images, and only with them")
        return self

    def network_config(self) -> NetworkConfig:
        """Which network the weights are for."""
        return NetworkConfig(
            classes=len(self.classes),
            height=self.height,
            width=self.width,
            channels=self.channels,
            adaptation=self.adaptation,
            base_maps=self.base_maps,
            features=self.features,
            adaptation_kind=self.adaptation_kind,
            mirrored_views=self.mirrored_views,
            backbone=self.backbone,
        )

    def measured(self) -> str:
        """Say how accurate it was, and on what."""
        if self.accuracy is None:
            return "not measured"
        announced = sum(owner.held_out_images for owner in self.owners)
        of = f" of {announced}, as not all owners were there" if self.held_out_images < announced else ""
        return f"{self.accuracy:.2%} on {self.held_out_images} held-out images{of}"

    def cipher_spec(self) -> CipherSpec:
        """How queries are encrypted."""
        return self.cipher.spec


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to classify: the network is on the chosen device, in evaluation mode."""

    network: ImageClassifier
    card: ModelCard


def installed_versions() -> dict[str, str]:
    """Versions of what a model is made with."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("ppfed", "torch", "flwr")},
    }


def write_model(folder: Path, network: ImageClassifier, card: ModelCard, curve: Sequence[CurvePoint]) -> None:
    """Write a model folder, whole or not at all, readable by this user alone.

    Parameters
    ----------
    folder : Path
        Made if it is missing; an older model folder there is replaced.
    network : ImageClassifier
        As the card describes it.
    card : ModelCard
    curve : sequence of CurvePoint

    Raises
    ------
    ModelError
        If ``folder`` holds anything but a model, or if the weights are not finite.
    ValueError
        If the card describes another network.
    OSError
        If the disk refuses.
    """
    if network.config != card.network_config():
        raise ValueError("the card describes another network")
    # Matplotlib is loaded here, and not into the coordinator's memory while images arrive.
    from ppfed.training.curve_picture import curve_png  # noqa: PLC0415

    folder = folder.resolve()
    _refuse_foreign(folder)
    state = network_state(network)
    broken = next((name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())), None)
    if broken is not None:
        raise ModelError(
            f"the model is not written, because training diverged: {broken} holds values that are not finite",
            hint="Train again with a lower learning rate.",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    fresh, aside = work / "new", work / "old"
    try:
        fresh.mkdir(mode=0o700)
        write_atomic(fresh / WEIGHTS_FILE, save(state))
        write_atomic(fresh / CARD_FILE, card.model_dump_json(indent=2) + "\n")
        write_atomic(fresh / CURVE_FILE, curve_to_csv(curve))
        write_atomic(fresh / PLOT_FILE, curve_png(curve, _headline(card)))
        _move_into_place(fresh, folder, aside)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if not aside.exists():
            work.rmdir()
        raise
    shutil.rmtree(work, ignore_errors=True)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Open a model folder.

    Parameters
    ----------
    folder : str or Path
    device : str or torch.device
        Where the network is put; a name is one that ``pick_device`` knows.

    Raises
    ------
    ModelError
        Saying what is wrong with it.
    UsageError
        If there is no such device here.
    """
    folder = Path(folder)
    chosen = pick_device(device) if isinstance(device, str) else device
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder {folder}",
            hint=f"Name the folder that holds {CARD_FILE} and {WEIGHTS_FILE}.",
        )
    card = _read_card(folder / CARD_FILE)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ModelError(f"{path} is missing", hint=_AGAIN)
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file ({type(error).__name__})", hint=_AGAIN) from None
    try:
        # A card may claim any network. Memory is taken for it only when the weights bear it out. Networks draw no
        # weights here: that would load torch's compiler, which takes longer than all of this.
        with torch.device("meta"):
            check_network_state(ImageClassifier(card.network_config()), state)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", hint=f"It belongs to another {CARD_FILE}. {_AGAIN}") from None
    except ValueError as error:
        raise ModelError(f"{folder / CARD_FILE} describes a network that cannot be: {error}", hint=_AGAIN) from None
    network = build_network(card.network_config(), seed=0)
    load_network_state(network, state)
    return LoadedModel(network.to(chosen).eval(), card)


def _read_card(path: Path) -> ModelCard:
    data = _card_bytes(path)
    content = _card_content(data, path)
    if content.get("version") != FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {str(content.get('version'))[:20]}, and this ppfed reads {FORMAT_VERSION}",
            hint="Use the version of ppfed that made it: it stands in the card, under 'versions'.",
        )
    try:
        return ModelCard.model_validate_json(data)
    except ValidationError as error:
        raise ModelError(f"{path} is damaged: {describe_invalid(error)}", hint=_AGAIN) from None


def _card_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CARD_BYTES + 1)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", hint="Name a folder that ppfed made, and copy it whole.") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", hint="Check who may read the folder.") from None
    if len(data) > _MAX_CARD_BYTES:
        raise ModelError(f"{path} is too large to be a model card", hint=_AGAIN)
    return data


def _card_content(data: bytes, path: Path) -> dict[str, object]:
    try:
        content = from_json(data, allow_inf_nan=False)
    except ValueError:
        raise ModelError(f"{path} is damaged: it is not JSON", hint=_AGAIN) from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ModelError(f"{path} is not a model card of ppfed", hint="Name a folder that ppfed made.")
    return content


def _refuse_foreign(folder: Path) -> None:
    """Let a missing or empty folder and a model folder pass: nothing else is ever replaced."""
    if not folder.exists():
        return
    hint = "Name a new folder, or move what is there out of the way."
    if not folder.is_dir():
        raise ModelError(f"{folder} exists and is not a folder", hint=hint)
    found = {path.name for path in folder.iterdir()}
    if not found:
        return
    foreign = sorted(found - _FILES)
    if foreign:
        raise ModelError(f"{folder} exists and holds something that is no part of a model: {foreign[0]}", hint=hint)
    try:
        _card_content(_card_bytes(folder / CARD_FILE), folder / CARD_FILE)
    except ModelError as error:
        raise ModelError(f"{folder} exists and is not a model folder: {error.message}", hint=hint) from None


def _move_into_place(fresh: Path, folder: Path, aside: Path) -> None:
    if not folder.exists():
        fresh.rename(folder)
        return
    folder.rename(aside)
    try:
        fresh.rename(folder)
    except OSError:
        aside.rename(folder)
        raise


def _headline(card: ModelCard) -> str:
    reached = "" if card.accuracy is None else f", accuracy {card.accuracy:.1%} on {card.held_out_images} images"
    return f"{card.federation} ({card.exchange}){reached}\n{card.cipher_spec()}"
