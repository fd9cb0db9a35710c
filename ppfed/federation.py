"""What the owners and the coordinator of a federation agree on, and the invite that carries it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import InviteError
from ppfed.networks.config import NetworkConfig, count_weights, takes_any_size
from ppfed.training.settings import ServerStrategy, TrainingSettings

MAX_INVITE_BYTES = 1 << 20

MOST_WEIGHTS = 1 << 28
"""1 GiB as float32: an invite must not make an owner's machine run out of memory."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Name of a federation or an owner: it becomes part of file names."""

ClassName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$")]
"""Without control characters and line breaks: owners are shown the names before they agree."""
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Exchange(StrEnum):
    """What owners send."""

    IMAGES = "images"
    """Encrypted images and their labels; the coordinator trains on them."""
    UPDATES = "updates"
    """Weights trained on encrypted images at the owner; images never leave."""
    GRADIENTS = "gradients"
    """One gradient a step, of encrypted images at the owner; the coordinator takes the step."""


_SETTINGS_OF = {
    "average_passes": (Exchange.IMAGES,),
    "first_crop": (Exchange.IMAGES, Exchange.UPDATES),
    "alternate_flip": (Exchange.IMAGES, Exchange.UPDATES),
    "strategy": (Exchange.UPDATES,),
    "server_learning_rate": (Exchange.UPDATES,),
    "server_momentum": (Exchange.UPDATES,),
    "update_format": (Exchange.UPDATES, Exchange.GRADIENTS),
    "micro_batch": (Exchange.GRADIENTS,),
    "min_local_batch": (Exchange.GRADIENTS,),
    "batch_norm": (Exchange.GRADIENTS,),
    "gradient_clip": (Exchange.GRADIENTS,),
}
"""In which exchanges a setting means something."""

_NAMES_SHOWN = 10
_NAME_SHOWN = 50

_SMALLEST_CROP = 8
"""Pixels of a side: ResNet-18 halves maps three times."""


class _Agreed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CipherSettings(_Agreed):
    """The public parameters of the cipher; see ``CipherSpec``."""

    name: str = Field(default="np-v1", pattern=r"^[a-z0-9-]{1,32}$")
    scope: Scope = Scope.IMAGE
    colour_shuffle: bool = True

    @classmethod
    def of(cls, spec: CipherSpec) -> Self:
        """Make them of a ``CipherSpec``."""
        return cls(name=spec.name, scope=spec.scope, colour_shuffle=spec.colour_shuffle)

    @property
    def spec(self) -> CipherSpec:
        """The same as a ``CipherSpec``."""
        return CipherSpec(self.name, self.scope, self.colour_shuffle)


class ModelOrigin(_Agreed):
    """Names a model so that whoever has it can tell: ``sha256sum weights.safetensors`` in its folder.

    Attributes
    ----------
    federation : str
        That trained it.
    created : datetime
        With its time zone.
    weights_sha256 : str
        Of the file with its weights, 64 hex digits.
    fingerprint : str
        Public name of the key that its images were encrypted with, and that chose those that were held out.
    """

    federation: Name
    created: AwareDatetime
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    fingerprint: Fingerprint

    def __str__(self) -> str:
        return f"{self.federation} of {self.created:%Y-%m-%d %H:%M} (weights {self.weights_sha256[:16]})"


class FederationSettings(_Agreed):
    """Everything that owners and coordinator agree on before anything is sent.

    Attributes
    ----------
    name : str
    exchange : Exchange
    owners : int
        How many take part at most; training begins with all of them, or with as many as the coordinator waits for.
    classes : tuple of str
        Labels are positions in it.
    height, width, channels : int
    cipher : CipherSettings
    fingerprint : str or None
        The key's public name; None lets the first owner that joins set it.
    training : TrainingSettings
    initial_model : ModelOrigin or None
        Whose weights training begins with; None for random ones.
    """

    name: Name
    exchange: Exchange
    owners: int = Field(ge=1, le=10_000)
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=65_536)
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: Literal[1, 3] = 3
    cipher: CipherSettings = CipherSettings()
    fingerprint: Fingerprint | None = None
    training: TrainingSettings = TrainingSettings()
    initial_model: ModelOrigin | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is named twice")
        _require_exchange(self.exchange, self.training)
        self._check_augmentation()
        weights = count_weights(self.network_config())
        if weights > MOST_WEIGHTS:
            raise ValueError(
                f"the network would have {weights:,} weights, and {MOST_WEIGHTS:,} are the most: "
                "lower base_maps, adaptation or the number of classes"
            )
        return self

    def _check_augmentation(self) -> None:
        training = self.training
        if training.alternate_flip and not training.horizontal_flip:
            raise ValueError("alternate_flip needs horizontal flips")
        if training.first_crop == 1:
            return
        if not takes_any_size(training.backbone, training.adaptation_kind):
            raise ValueError("first_crop needs a network for images of any size: resnet18 with pixel adaptation")
        if min(self.height, self.width) * training.first_crop < _SMALLEST_CROP:
            raise ValueError(f"first_crop would leave less than {_SMALLEST_CROP} pixels of a side")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of each image."""
        return self.height, self.width, self.channels

    def digest(self) -> str:
        """SHA-256 of the settings, as 64 hex digits: two parties with the same digest agree on everything."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def network_config(self) -> NetworkConfig:
        """Which network the federation trains."""
        return NetworkConfig(
            classes=len(self.classes),
            height=self.height,
            width=self.width,
            channels=self.channels,
            adaptation=self.training.adaptation,
            base_maps=self.training.base_maps,
            features=self.training.features,
            adaptation_kind=self.training.adaptation_kind,
            backbone=self.training.backbone,
            # Where images are not mirrored in training, a mirror image is another picture.
            mirrored_views=self.training.mirrored_views and self.training.horizontal_flip,
        )


class Invite(_Agreed):
    """The one file an owner needs to join. It holds a one-time token and no key.

    Attributes
    ----------
    version : int
    owner : str
        The name under which the owner joins.
    address : str
        The coordinator's front door, ``host:port``.
    ca_certificate : str
        PEM; the only certificate authority the owner trusts for this federation.
    token : str
        Proves to the coordinator that it made this invite; bound to the first node key that uses it.
    federation : FederationSettings
    """

    version: Literal[1] = 1
    owner: Name
    address: str = Field(pattern=r"^[A-Za-z0-9.:\[\]_-]+:[0-9]{1,5}$", max_length=300)
    ca_certificate: str = Field(max_length=20_000)
    token: str = Field(pattern=r"^[A-Za-z0-9_-]{43}$", repr=False)
    federation: FederationSettings

    def write(self, path: Path) -> None:
        """Write the invite, readable by its owner alone; an existing file is not overwritten.

        Raises
        ------
        InviteError
            If the file exists, or cannot be written; nothing of it is left then.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise InviteError(f"{path} exists already", hint="Name another file with --out.") from None
        except OSError as error:
            raise _not_written(path, error) from None
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(self.model_dump_json(indent=2) + "\n")
        except OSError as error:
            path.unlink(missing_ok=True)
            raise _not_written(path, error) from None

    @classmethod
    def read(cls, path: Path) -> Invite:
        """Read an invite.

        Raises
        ------
        InviteError
            If the file is missing, damaged or of another version.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_INVITE_BYTES + 1)
        except OSError as error:
            raise InviteError(
                f"cannot read the invite {path}: {error.strerror}",
                hint="Ask the coordinator for the file that 'ppfed coordinator invite NAME' made.",
            ) from None
        try:
            if len(data) > MAX_INVITE_BYTES:
                raise ValueError("it is too large")
            return cls.model_validate_json(data)
        except (ValidationError, ValueError) as error:
            raise InviteError(
                f"{path} is not an invite of this version of ppfed: {describe_invalid(error)}",
                hint="Ask the coordinator to make a new one: ppfed coordinator invite NAME",
            ) from None


def _not_written(path: Path, error: OSError) -> InviteError:
    return InviteError(
        f"cannot write the invite {path}: {error.strerror}", hint="Name another file with --out, in a folder of yours."
    )


def describe_invalid(error: Exception) -> str:
    """Say in one line what pydantic found wrong, without repeating the input."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else first["msg"]
    return str(error)


def _require_exchange(exchange: Exchange, training: TrainingSettings) -> None:
    """Refuse settings that mean nothing in an exchange: whoever set them expects something of them."""
    if exchange is not Exchange.UPDATES and training.local_epochs != 1:
        raise ValueError(f"local epochs belong to exchange 'updates'; in exchange '{exchange}' a round is one pass")
    for name, exchanges in _SETTINGS_OF.items():
        if exchange not in exchanges and getattr(training, name) != TrainingSettings.model_fields[name].default:
            where = " and ".join(f"'{one}'" for one in exchanges)
            raise ValueError(
                f"{name} belongs to exchange{'s' if len(exchanges) > 1 else ''} {where}, and this is '{exchange}'"
            )
    if training.strategy is ServerStrategy.FEDAVG and (
        training.server_learning_rate is not None or training.server_momentum is not None
    ):
        raise ValueError("strategy fedavg has no server learning rate and no server momentum: choose another strategy")


def class_difference(agreed: Sequence[str], offered: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which of the agreed classes are missing from a list, and which it has besides."""
    known, listed = set(agreed), set(offered)
    return [name for name in agreed if name not in listed], [name for name in offered if name not in known]


def some_names(names: Sequence[str]) -> str:
    """List names for a message, as a peer may have sent any number of any length: ten, of fifty characters at most."""
    shown = [name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}..." for name in names[:_NAMES_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def new_token(random_bytes: bytes) -> str:
    """Write 32 random bytes as a token."""
    return base64.urlsafe_b64encode(random_bytes).rstrip(b"=").decode()


def parse_classes(text: str) -> tuple[str, ...]:
    """Read a list of classes: ``cat,dog``, or a number N for the classes 0 to N - 1."""
    if re.fullmatch(r"[0-9]{1,5}", text):
        return tuple(str(number) for number in range(int(text)))
    return tuple(part.strip() for part in text.split(",") if part.strip())
