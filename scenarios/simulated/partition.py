"""Which owner gets which images, through flwr-datasets' partitioners.

Only labels and row numbers go through them; no image is copied and nothing is looked up on the internet.

- ``iid``: every owner gets a random sample; sizes differ by one image at most.
- ``dirichlet``: the owners' shares of each class are drawn from a Dirichlet distribution (Hsu et al.,
  arXiv:1909.06335).
- ``shards``: images sorted by class are cut into shards of one size, dealt out at random (McMahan et al., AISTATS
  2017).
  Where the images do not divide evenly, the last shard is smaller, and with few images in a shard some owners get one
  shard fewer; no image is dropped.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ppfed.errors import DataError, UsageError
from ppfed.images.types import Int64Array
from scenarios.declaration import Partition

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

FEWEST_IMAGES = 10
"""What every owner gets at least, unless the caller says otherwise."""

_DRAWS = 100
_LABEL = "label"
_ROW = "row"
# Read when the packages are imported.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
}


def partition(
    labels: Int64Array, owners: int, how: Partition, seed: int, *, fewest: int = FEWEST_IMAGES
) -> list[Int64Array]:
    """Deal images out to owners: each image to exactly one, the same way for the same seed.

    Parameters
    ----------
    labels : int64 array, (N,)
    owners : int
    how : Partition
    seed : int
        At least 0.
    fewest : int
        Images that every owner gets at least. A Dirichlet draw that leaves somebody fewer is thrown away and drawn
        again, so a large value makes the shares more even than ``alpha`` says.

    Returns
    -------
    list of int64 array
        Rows of each owner, in random order.

    Raises
    ------
    UsageError
        If flwr-datasets is not installed, or an argument makes no sense.
    DataError
        If the images do not suffice.
    """
    if labels.ndim != 1 or labels.dtype != np.int64:
        raise UsageError(f"labels must be one row of int64, not {labels.dtype} of shape {labels.shape}")
    if owners < 1 or fewest < 1 or seed < 0:
        raise UsageError("owners and fewest must be at least 1, and the seed at least 0")
    if len(labels) < owners * fewest:
        raise DataError(
            f"{len(labels)} images are too few for {owners} owners with at least {fewest} each",
            hint="Take more images or fewer owners.",
        )
    # A new seed for each draw: the partitioners give up after a few of their own.
    for draw in np.random.SeedSequence(seed).generate_state(_DRAWS if how.kind == "dirichlet" else 1):
        rows = _deal(labels, owners, how, int(draw), fewest)
        if rows is not None and min(len(part) for part in rows) >= fewest:
            return rows
    raise DataError(
        f"partition {how} leaves some of {owners} owners fewer than {fewest} of the {len(labels)} images",
        hint="Take more images, fewer owners, or a milder partition.",
    )


def _deal(labels: Int64Array, owners: int, how: Partition, seed: int, fewest: int) -> list[Int64Array] | None:
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    try:
        from datasets import Dataset  # noqa: PLC0415
    except ImportError:
        raise UsageError(
            "partitions need flwr-datasets, which is not installed", hint="Install it: pip install 'ppfed[scenarios]'"
        ) from None
    random = np.random.default_rng(seed)
    # The IID partitioner cuts in order, and shards take the images of a class in order.
    order = random.permutation(len(labels))
    partitioner = _partitioner(len(labels), owners, how, seed, fewest)
    partitioner.dataset = Dataset.from_dict({_LABEL: labels[order], _ROW: order})
    try:
        with warnings.catch_warnings():
            # That it draws again is what we ask for.
            warnings.simplefilter("ignore")
            parts = [partitioner.load_partition(owner) for owner in range(owners)]
    except ValueError:
        # It says so where no draw, or no arrangement of shards, gives every owner enough.
        return None
    rows = [part.with_format("numpy")[_ROW][:].astype(np.int64) for part in parts]
    if not np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(labels))):
        raise DataError("flwr-datasets did not give each image to exactly one owner; its version may have changed")
    return rows


def _partitioner(images: int, owners: int, how: Partition, seed: int, fewest: int) -> Partitioner:
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, ShardPartitioner  # noqa: PLC0415

    if how.kind == "dirichlet" and how.alpha is not None:
        return DirichletPartitioner(owners, _LABEL, how.alpha, min_partition_size=fewest, seed=seed)
    if how.kind == "shards" and how.shards is not None:
        # With shards of this size, and the last one kept, nothing is left over.
        size = -(-images // (owners * how.shards))
        return ShardPartitioner(owners, _LABEL, shard_size=size, keep_incomplete_shard=True, seed=seed)
    if how.kind == "iid":
        return IidPartitioner(owners)
    raise UsageError(f"partition {how.kind} lacks its number; write dirichlet-0.3 or shards-2")
