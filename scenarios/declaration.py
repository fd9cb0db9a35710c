"""What a scenario declares: a TOML file, checked and resolved into arms.

A file names the published study it stands beside, a budget for each scale, and its arms. An arm whose ``owners``,
``partition``, ``size`` or ``budget_part`` is a list stands for one arm per combination::

    [[arms]]
    name = "updates, encrypted"
    mode = "updates"
    owners = [2, 5, 10]
    partition = ["iid", "dirichlet-0.3"]
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import UsageError
from ppfed.federation import describe_invalid
from ppfed.leakage.attackers import AuditPreset
from ppfed.leakage.audit import applicable
from ppfed.leakage.record import AttackName
from ppfed.leakage.sent import possible_on_sent
from ppfed.networks.config import AdaptationKind, Backbone, InputFeatures, takes_any_size
from ppfed.training.settings import BatchNormMode, Padding, Precision, Schedule, ServerStrategy, UpdateFormat

PLAIN = "plain"
MIXING = "pixel-block-mixing"
ALL_ATTACKS = "all"

_SUFFIX = ".toml"
_SLUG = re.compile(r"[^a-z0-9]+")


class Scale(StrEnum):
    """How much to spend."""

    SMOKE = "smoke"
    """Seconds an arm: shows that everything runs, and nothing about accuracy."""
    SMALL = "small"
    """Minutes an arm on one processor core: the order of the arms."""
    PAPER = "paper"
    """The published budget, for a GPU."""


_PRESETS = {Scale.SMOKE: AuditPreset.QUICK, Scale.SMALL: AuditPreset.CPU, Scale.PAPER: AuditPreset.GPU}
"""What attacks spend at a scale that does not say."""


class Mode(StrEnum):
    """Who trains on whose images."""

    CENTRALIZED = "centralized"
    """One party has all images, and trains."""
    POOLED = "pooled"
    """Owners send their encrypted images to a coordinator, which trains: exchange ``images``."""
    UPDATES = "updates"
    """Owners train, the coordinator averages: exchange ``updates``."""
    GRADIENTS = "gradients"
    """Owners send gradients, the coordinator steps: exchange ``gradients``."""
    ALONE = "alone"
    """Each owner trains on its own images, and shares nothing."""


class AugmentationPlace(StrEnum):
    """Where images are augmented."""

    CLOUD = "cloud"
    """After encryption, by whoever trains."""
    CLIENT = "client"
    """Before encryption, by the owner, anew for each pass."""
    NONE = "none"


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Published(_Declared):
    """A number from the literature that stands beside an arm's.

    Attributes
    ----------
    accuracy : float
        In percent.
    source : str
        Where it stands.
    """

    accuracy: float = Field(ge=0, le=100)
    source: str = Field(min_length=1, max_length=200)


class Budget(_Declared):
    """What a scale spends.

    Attributes
    ----------
    images, held_out : int or None
        Training and held-out images, the same number of each class; None uses all.
    size : int
        Side of the images in pixels; ``Arm.size`` overrides it.
    epochs : int
        Passes over the images; ``Arm.budget_part`` makes fewer.
    seeds : int
        How many times each arm is run, unless ``--seeds`` says otherwise.
    base_maps : int
        Width of the network's first stage; 64 is ResNet-18.
    batch_size, learning_rate, schedule, nesterov
        As in ``TrainingConfig``.
    attack : bool
        Whether arms that declare attacks are attacked at this scale.
    targets : int
        Held-out images that are attacked; all of them where there are no more.
    attacker_images : int
        The attacker's own, of the training split: the last of each class, so that no arm trains on them unless there
        are too few others.
    attack_preset : AuditPreset or None
        What learned attacks may spend; None is the scale's: quick, cpu, gpu.
    """

    images: int | None = Field(default=None, ge=20)
    held_out: int | None = Field(default=None, ge=10)
    size: int = Field(ge=4, le=1024)
    epochs: int = Field(ge=1, le=10_000)
    seeds: int = Field(default=1, ge=1, le=100)
    base_maps: int = Field(ge=1, le=1024)
    batch_size: int = Field(default=128, ge=4, le=65_536)
    learning_rate: float = Field(default=0.2, gt=0, le=10)
    schedule: Schedule = Schedule.LINEAR
    nesterov: bool = True
    attack: bool = True
    targets: int = Field(default=1000, ge=10)
    attacker_images: int = Field(default=20_000, ge=40)
    attack_preset: AuditPreset | None = None


class Partition(_Declared):
    """How images are dealt out to owners: ``iid``, ``dirichlet-ALPHA`` or ``shards-N`` in a scenario file.

    Attributes
    ----------
    kind : str
    alpha : float or None
        Concentration of the Dirichlet distribution over owners, for each class.
    shards : int or None
        Shards per owner, each of images sorted by label.
    """

    kind: Literal["iid", "dirichlet", "shards"]
    alpha: float | None = Field(default=None, gt=0, le=1e6)
    shards: int | None = Field(default=None, ge=1, le=1000)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form.

        Raises
        ------
        ValueError
        """
        kind, _, value = text.partition("-")
        if kind == "iid" and not value:
            return cls(kind="iid")
        if kind == "dirichlet" and value:
            return cls(kind="dirichlet", alpha=float(value))
        if kind == "shards" and value:
            return cls(kind="shards", shards=int(value))
        raise ValueError(f"{text!r} is no partition; write iid, dirichlet-0.3 or shards-2")

    def __str__(self) -> str:
        value = {"iid": "", "dirichlet": f"-{self.alpha:g}" if self.alpha else "", "shards": f"-{self.shards}"}
        return self.kind + value[self.kind]


class Arm(_Declared):
    """One configuration.

    Attributes
    ----------
    name : str
        Unique in the scenario.
    group : str
        Arms of a group stand together in tables and share a colour family.
    mode : Mode
    cipher : str
        In the registry; or ``plain``: images are not encrypted (a control; no federation can be declared so); or
        ``pixel-block-mixing``, which has no key: training images are mixed with others of their class, held-out ones
        are plain.
    scope : Scope
    colour_shuffle : bool
    adaptation : tuple of int
        Feature maps of the adaptation network; empty leaves it out.
    adaptation_kind : AdaptationKind
    features : InputFeatures
    backbone : Backbone
    augmentation : AugmentationPlace
    padding : Padding
        What a shift uncovers; the paper's zeros are ``fill``.
    mirrored_views : bool
        As in ``NetworkConfig``.
    size : int or None
        Side of the images in pixels, where it is not the budget's.
    budget_part : float
        Part of the budget's passes that it makes, one at least.
    learning_rate, schedule
        Where they are not the budget's.
    average_passes, first_crop, alternate_flip, precision
        As in ``TrainingSettings``.
    channels : 1 or 3
        Grey images, as ``ppfed coordinator start --channels 1`` makes them, or red, green and blue.
    owners : int
    partition : str
        As ``Partition.parse`` reads it.
    local_epochs : int
        Passes between two averages; the number of all passes stays what it is.
    strategy : ServerStrategy
    update_format : UpdateFormat
    batch_norm : BatchNormMode
        These three as in ``TrainingSettings``.
    wrong_key_owners : int
        So many owners encrypt with a key of their own, and nobody notices.
    label_smoothing : float
    attacks : tuple of AttackName, or ("all",)
        What is measured of the cipher on held-out images, beside the accuracy; empty for nothing. With ``plain`` and
        ``pixel-block-mixing`` there is no key to do without, and "all" measures the images themselves. In modes
        ``updates`` and ``gradients`` "all" is the inversion of what owners send.
    published : Published or None
    """

    name: str = Field(min_length=1, max_length=120)
    group: str = Field(default="", max_length=80)
    mode: Mode = Mode.CENTRALIZED
    cipher: str = Field(default="np-v1", pattern=r"^[a-z0-9-]{1,32}$")
    scope: Scope = Scope.IMAGE
    colour_shuffle: bool = False
    adaptation: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(8, 32), max_length=16)
    adaptation_kind: AdaptationKind = AdaptationKind.PIXEL
    features: InputFeatures = InputFeatures.VALUES
    backbone: Backbone = Backbone.RESNET18
    augmentation: AugmentationPlace = AugmentationPlace.CLOUD
    padding: Padding = Padding.FILL
    mirrored_views: bool = False
    size: int | None = Field(default=None, ge=4, le=1024)
    budget_part: float = Field(default=1.0, gt=0, le=1)
    learning_rate: float | None = Field(default=None, gt=0, le=10)
    schedule: Schedule | None = None
    average_passes: float = Field(default=0.0, ge=0, le=1000)
    first_crop: float = Field(default=1.0, ge=0.25, le=1)
    alternate_flip: bool = False
    precision: Precision = Precision.AUTO
    channels: Literal[1, 3] = 3
    owners: int = Field(default=1, ge=1, le=1000)
    partition: str = "iid"
    local_epochs: int = Field(default=1, ge=1, le=1000)
    strategy: ServerStrategy = ServerStrategy.FEDAVG
    update_format: UpdateFormat = UpdateFormat.FLOAT32
    batch_norm: BatchNormMode = BatchNormMode.LOCAL
    wrong_key_owners: int = Field(default=0, ge=0, le=1000)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    attacks: tuple[AttackName | Literal["all"], ...] = Field(default=(), max_length=len(AttackName))
    published: Published | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        Partition.parse(self.partition)
        if self.mode is Mode.CENTRALIZED and self.owners != 1:
            raise ValueError("a centralized arm has one owner")
        if self.wrong_key_owners > self.owners:
            raise ValueError("more owners have a wrong key than there are owners")
        if self.wrong_key_owners and self.cipher == PLAIN:
            raise ValueError("plain images have no key to be wrong")
        if self.cipher == MIXING and (
            self.mode is not Mode.CENTRALIZED or self.augmentation is AugmentationPlace.CLIENT
        ):
            raise ValueError("pixel block mixing is compared in centralized arms that augment afterwards")
        if self.colour_shuffle and self.channels == 1:
            raise ValueError("grey images have no colours to shuffle")
        self._check_attacks()
        if self.local_epochs != 1 and self.mode is not Mode.UPDATES:
            raise ValueError("local epochs belong to mode 'updates'")
        if self.strategy is not ServerStrategy.FEDAVG and self.mode is not Mode.UPDATES:
            raise ValueError("strategies belong to mode 'updates'")
        if self.update_format is not UpdateFormat.FLOAT32 and self.mode not in (Mode.UPDATES, Mode.GRADIENTS):
            raise ValueError("update formats belong to modes 'updates' and 'gradients'")
        if self.batch_norm is not BatchNormMode.LOCAL and self.mode is not Mode.GRADIENTS:
            raise ValueError("shared batch norm belongs to mode 'gradients'")
        if self.augmentation is AugmentationPlace.CLIENT and self.mode is not Mode.CENTRALIZED:
            raise ValueError("augmentation before encryption is compared in centralized arms only")
        self._check_speed()
        return self

    def _check_speed(self) -> None:
        """Refuse what the arm's training would not do."""
        if self.augmentation is not AugmentationPlace.CLOUD and (self.alternate_flip or self.first_crop != 1):
            raise ValueError("crops and alternating flips belong to augmentation after encryption")
        if self.average_passes and self.mode in (Mode.UPDATES, Mode.GRADIENTS):
            raise ValueError("weights are averaged over passes in modes 'centralized', 'pooled' and 'alone'")
        if (self.alternate_flip or self.first_crop != 1) and self.mode is Mode.GRADIENTS:
            raise ValueError("crops and alternating flips do not belong to mode 'gradients'")
        if self.first_crop != 1 and not takes_any_size(self.backbone, self.adaptation_kind):
            raise ValueError("crops need a network for images of any size: resnet18 with pixel adaptation")

    def _check_attacks(self) -> None:
        if not self.attacks:
            return
        if len(set(self.attacks)) != len(self.attacks) or (ALL_ATTACKS in self.attacks and len(self.attacks) > 1):
            raise ValueError("attacks are named once each, or 'all' alone")
        if self.mode is Mode.ALONE:
            raise ValueError("in mode 'alone' nobody is sent anything to attack")
        unfit = [str(attack) for attack in self.attacks if attack not in (ALL_ATTACKS, *self.possible_attacks)]
        if unfit:
            possible = ", ".join(self.possible_attacks) or "none but 'all'"
            raise ValueError(f"attack {', '.join(unfit)} does not fit this arm; there is {possible}")

    def shape(self, budget: Budget) -> tuple[int, int, int]:
        """Height, width and channels of its images."""
        side = self.size or budget.size
        return side, side, self.channels

    def epochs(self, budget: Budget) -> int:
        """Count the passes over the images that it makes."""
        return max(1, round(self.budget_part * budget.epochs))

    @property
    def slug(self) -> str:
        """The name as part of a file name; unique in the scenario."""
        return _SLUG.sub("-", self.name.lower()).strip("-")

    @property
    def spec(self) -> CipherSpec | None:
        """The cipher's public parameters; None where there is no key: for plain and for mixed images."""
        return None if self.cipher in (PLAIN, MIXING) else CipherSpec(self.cipher, self.scope, self.colour_shuffle)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is done to the images: a control."""
        return self.cipher == PLAIN

    @property
    def possible_attacks(self) -> tuple[AttackName, ...]:
        """Attacks that make sense for the cipher, and for what leaves an owner."""
        if self.mode in (Mode.UPDATES, Mode.GRADIENTS):
            return possible_on_sent(self.spec, self.channels)
        return () if self.spec is None else applicable(self.spec, self.channels)

    @property
    def wanted_attacks(self) -> tuple[AttackName, ...]:
        """Attacks to run, in the order of cards."""
        return tuple(one for one in self.possible_attacks if one in self.attacks or ALL_ATTACKS in self.attacks)


class Scenario(_Declared):
    """A declared experiment.

    Attributes
    ----------
    name : str
        The file's name without its suffix.
    title, question, notes : str
        What it is, what it answers, and what a reader must know about it.
    smoke, small, paper : Budget
    arms : tuple of Arm
        With lists of owners, partitions, sizes and parts of the budget resolved.
    """

    name: str
    title: str = Field(min_length=1, max_length=200)
    question: str = Field(min_length=1, max_length=1000)
    notes: str = Field(default="", max_length=5000)
    smoke: Budget
    small: Budget
    paper: Budget
    arms: tuple[Arm, ...] = Field(min_length=1, max_length=500)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        slugs = [arm.slug for arm in self.arms]
        for arm in self.arms:
            for scale in Scale:
                if arm.epochs(self.budget(scale)) % arm.local_epochs:
                    raise ValueError(f"local_epochs of {arm.name!r} does not divide the passes at scale '{scale}'")
        twice = next((slug for slug in slugs if slugs.count(slug) > 1), None)
        if twice is not None:
            raise ValueError(f"two arms are named {twice!r}")
        return self

    def budget(self, scale: Scale) -> Budget:
        """Return what a scale spends."""
        budget: Budget = getattr(self, scale)
        return budget.model_copy(update={"attack_preset": budget.attack_preset or _PRESETS[scale]})

    def choose(self, patterns: Sequence[str]) -> tuple[Arm, ...]:
        """Return the arms that are named, in their order; all of them for no pattern.

        Parameters
        ----------
        patterns : sequence of str
            Names of arms, with ``*`` and ``?`` as in file names.

        Raises
        ------
        UsageError
            If a pattern fits no arm.
        """
        names = [arm.name for arm in self.arms]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(
                    f"no arm of {self.name!r} is named {pattern!r}",
                    hint=f"Take one of these, or write * for a part of a name: {'; '.join(names)}.",
                )
        if not patterns:
            return self.arms
        return tuple(arm for arm in self.arms if any(fnmatchcase(arm.name, pattern) for pattern in patterns))

    def is_attacked(self, scale: Scale) -> bool:
        """Whether leakage is measured of any arm."""
        return self.budget(scale).attack and any(arm.attacks for arm in self.arms)

    def digest(self, scale: Scale) -> str:
        """SHA-256 of everything that decides the numbers at a scale, as 64 hex digits."""
        content = self.model_dump(mode="json", include={"name": True, "arms": True, str(scale): True})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def bundled() -> dict[str, Scenario]:
    """Return the scenarios that come with ppfed, by name."""
    folder = resources.files(__package__)
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(_SUFFIX)), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(_SUFFIX): parse(entry.name.removesuffix(_SUFFIX), entry.read_text("utf-8"))
        for entry in files
    }


def load(name: str) -> Scenario:
    """Read a scenario: a bundled name, or a file.

    Raises
    ------
    UsageError
        If there is no such scenario, or the file is no scenario.
    """
    known = bundled()
    if name in known:
        return known[name]
    path = Path(name)
    try:
        return parse(path.stem, path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"there is no scenario {name!r}, and as a file it cannot be read: {reason}",
            hint=f"Name a file, or one of: {', '.join(known)}.",
        ) from None


def parse(name: str, text: str) -> Scenario:
    """Read the text of a scenario file.

    Raises
    ------
    UsageError
        Saying what is wrong with it.
    """
    try:
        content = tomllib.loads(text)
        content["arms"] = [arm for declared in content.get("arms", []) for arm in _resolved(declared)]
        return Scenario.model_validate({**content, "name": name})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"scenario {name!r} is not TOML: {error}", hint="See docs/scenarios.md.") from None
    except (ValidationError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"scenario {name!r} is malformed: {describe_invalid(error)}", hint="See docs/scenarios.md."
        ) from None


_LISTED = {
    "owners": "{} owners",
    "partition": "{}",
    "size": "{} pixels",
    "budget_part": "{:.0%} of the passes",
}
"""Fields whose list stands for several arms, and how these are named."""


def _resolved(declared: dict[str, object]) -> list[dict[str, object]]:
    """One arm for each combination of listed fields, named after them."""
    listed = {field: values for field in _LISTED if isinstance(values := declared.get(field), list)}
    arms = []
    for combination in itertools.product(*listed.values()):
        chosen = dict(zip(listed, combination, strict=True))
        words = {field: _LISTED[field].format(value) for field, value in chosen.items()}
        name = ", ".join([str(declared.get("name", "")), *words.values()])
        # Sizes are not compared with each other: each is a group, unless the file says otherwise.
        group = {"group": words["size"]} if "size" in words else {}
        arms.append({**group, **declared, **chosen, "name": name})
    return arms
