"""What an owner and the coordinator's front door say to each other, as JSON over TLS."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ppfed.errors import MismatchError
from ppfed.federation import CipherSettings, ClassName, Fingerprint
from ppfed.peer_text import PeerText

ENROL_PATH = "/v1/enrol"
STATUS_PATH = "/v1/status"
FLEET_PREFIX = "/v1/fleet/"

MOST_IMAGES = 100_000_000
"""In one split of one owner: more than any data set of labelled images, and few enough to count shards with."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EnrolmentRequest(_Message):
    """An owner asks to take part, and says what it brings.

    ``node_key`` is the public half of the key that its SuperNode signs with, in OpenSSH's one-line format.
    """

    token: str = Field(pattern=r"^[A-Za-z0-9_-]{43}$", repr=False)
    node_key: str = Field(max_length=2000)
    settings_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    fingerprint: Fingerprint
    cipher: CipherSettings
    height: int
    width: int
    channels: Literal[1, 3]
    classes: tuple[ClassName, ...] = Field(max_length=65_536)
    train_images: int = Field(ge=1, le=MOST_IMAGES)
    held_out_images: int = Field(ge=0, le=MOST_IMAGES)
    copies: int = Field(default=1, ge=1, le=1000)
    ppfed_version: str = Field(max_length=64)


class EnrolmentReply(_Message):
    """The coordinator admits the owner, or says why not and what to do."""

    admitted: bool
    message: PeerText = ""
    hint: PeerText = ""


class Phase(StrEnum):
    """Where a federation stands."""

    WAITING = "waiting for owners"
    INTAKE = "receiving images"
    TRAINING = "training"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


class StatusRequest(_Message):
    """An owner asks how things stand."""

    token: str = Field(pattern=r"^[A-Za-z0-9_-]{43}$", repr=False)


class StatusReply(_Message):
    """How things stand."""

    phase: Phase
    owners_joined: int
    owners_wanted: int
    message: PeerText = ""
    fingerprint: str = ""
    """Of the key that the owners agreed on; empty before the first has joined."""


def key_differs(agreed: str, fingerprint: str) -> MismatchError:
    """Say that an owner's key is not the one that the others use; both are named by their fingerprints."""
    return MismatchError(
        f"the key differs: this federation uses key {agreed}, yours is {fingerprint}",
        hint="Get the key file from another owner ('ppfed key seal' and 'ppfed key open'), then join again.",
    )
