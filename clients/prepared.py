"""An owner's encrypted images, ready to be used. Whatever runs from here on has no key and never imports one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ppfed.atomic import write_atomic
from ppfed.errors import DataError
from ppfed.federation import Exchange, FederationSettings
from ppfed.images.source import Split
from ppfed.store import ShardStore, verify_shard
from ppfed.training.settings import FEWEST_IMAGES

MARKER = ".ppfed-store"
"""A file that says: ppfed made this folder, and may delete it."""

_RECORD = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """An owner's encrypted images, ready to be used.

    Attributes
    ----------
    store : ShardStore
    train_images, held_out_images : int
        Distinct images.
    copies : int
        Augmented variants of each training image in the store; 1 where there is only the image itself.
    bad : int
        Images left out because they could not be used.
    notes : dict of str to int
        Conversions, with the number of images.
    by_class : tuple of (int, int)
        Of each class of the federation, distinct images to train on and held out; empty where nobody counted.
    left_out : tuple of (str, str)
        Path of the first images left out, and why.
    """

    store: ShardStore
    train_images: int
    held_out_images: int
    copies: int
    bad: int
    notes: dict[str, int]
    by_class: tuple[tuple[int, int], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def measured(self, settings: FederationSettings) -> int:
        """How many held-out images weights are measured on.

        Where no image leaves, none, if it is a single one or if they are fewer than a gradient takes: measured often
        enough, with weights chosen for it, single images could be read.
        """
        if settings.exchange is Exchange.IMAGES or self.held_out_images >= _fewest_measured(settings):
            return self.held_out_images
        return 0


def _fewest_measured(settings: FederationSettings) -> int:
    return settings.training.min_local_batch if settings.exchange is Exchange.GRADIENTS else FEWEST_IMAGES


class _Record(BaseModel):
    """``prepared.json``: what of, and how, a store was made; see ``Prepared``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    signature: str
    train_images: int
    held_out_images: int
    copies: int
    bad: int
    notes: dict[str, int]
    by_class: tuple[tuple[int, int], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


def write_prepared(folder: Path, signature: str, prepared: Prepared) -> None:
    """Write down what a store was made of, and what is in it: now it is whole.

    Parameters
    ----------
    folder : Path
        Of the store.
    signature : str
        Names everything that the store depends on.
    prepared : Prepared
    """
    counted = {name: getattr(prepared, name) for name in _Record.model_fields if name != "signature"}
    write_atomic(folder / _RECORD, _Record(signature=signature, **counted).model_dump_json())


def read_prepared(folder: Path, signature: str) -> Prepared | None:
    """Take the store that is there; None unless it was made of the same and every image in it is as it was.

    Parameters
    ----------
    folder : Path
        Of the store.
    signature : str
        As ``write_prepared`` took it.
    """
    try:
        record = _Record.model_validate_json((folder / _RECORD).read_bytes())
    except (OSError, ValidationError):
        return None
    if record.signature != signature:
        return None
    store = ShardStore(folder)
    rows = {Split.TRAIN: record.train_images * record.copies, Split.HELD_OUT: record.held_out_images}
    try:
        for split in Split:
            for path in store.paths(split):
                verify_shard(path)
            if store.rows(split) != rows[split]:
                return None
    except DataError:
        return None
    return Prepared(store, **record.model_dump(exclude={"signature"}))
