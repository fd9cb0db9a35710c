from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppfed.errors import DataError, UsageError
from ppfed.images.types import Int64Array
from scenarios.declaration import Partition
from scenarios.simulated.partition import partition

HOWS = ("iid", "dirichlet-0.3", "dirichlet-5", "shards-1", "shards-2", "shards-5")


def some_labels(images: int, classes: int = 10, seed: int = 0) -> Int64Array:
    return np.random.default_rng(seed).integers(0, classes, images)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(HOWS), st.integers(1, 12), st.integers(200, 700), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_every_image_goes_to_exactly_one_owner(how: str, owners: int, images: int, classes: int, seed: int) -> None:
    labels = some_labels(images, classes, seed)
    parts = partition(labels, owners, Partition.parse(how), seed, fewest=1)
    assert len(parts) == owners
    assert all(part.dtype == np.int64 and len(part) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(images))
    again = partition(labels, owners, Partition.parse(how), seed, fewest=1)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("how", HOWS)
def test_another_seed_deals_otherwise(how: str) -> None:
    labels = some_labels(600)
    one, other = (partition(labels, 3, Partition.parse(how), seed) for seed in (1, 2))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_iid_owners_have_the_same_size_and_all_classes() -> None:
    labels = some_labels(5003)
    parts = partition(labels, 10, Partition.parse("iid"), 0)
    assert {len(part) for part in parts} == {500, 501}
    # 500 images of 10 classes: 50 of each expected, and 15 is five standard deviations away.
    assert min(np.bincount(labels[part], minlength=10).min() for part in parts) > 15


def test_a_small_alpha_makes_owners_differ_more() -> None:
    labels = some_labels(5000)

    def distance(how: str) -> float:
        """Mean total variation between an owner's classes and all."""
        shares = np.bincount(labels, minlength=10) / len(labels)
        parts = partition(labels, 10, Partition.parse(how), 0)
        return float(np.mean([abs(np.bincount(labels[p], minlength=10) / len(p) - shares).sum() / 2 for p in parts]))

    assert distance("iid") < distance("dirichlet-5") < distance("dirichlet-0.3")


def test_shards_bound_the_classes_of_an_owner() -> None:
    # 100 of each class and 20 shards: a shard is 50 images of one class.
    labels = np.repeat(np.arange(10), 100)
    parts = partition(labels, 10, Partition.parse("shards-2"), 3)
    assert [len(part) for part in parts] == [100] * 10
    assert max(len(np.unique(labels[part])) for part in parts) <= 2
    # Dealt out at random, neighbouring shards seldom meet.
    assert sum(len(np.unique(labels[part])) for part in parts) > 15


@pytest.mark.parametrize("how", HOWS)
def test_no_owner_gets_fewer_than_stated(how: str) -> None:
    parts = partition(some_labels(400), 4, Partition.parse(how), 5, fewest=30)
    assert min(len(part) for part in parts) >= 30


def test_what_cannot_be_met_is_an_error() -> None:
    with pytest.raises(DataError, match="too few for 10 owners with at least 10"):
        partition(some_labels(99), 10, Partition.parse("iid"), 0)
    with pytest.raises(DataError, match=r"partition dirichlet-0\.01 leaves some of 10 owners fewer than 100"):
        partition(some_labels(1000, 2), 10, Partition.parse("dirichlet-0.01"), 0, fewest=100)


@pytest.mark.parametrize(
    ("labels", "owners", "how"),
    [
        (np.zeros((4, 4), np.int64), 2, Partition.parse("iid")),
        (np.zeros(100, np.int32), 2, Partition.parse("iid")),
        (np.zeros(100, np.int64), 0, Partition.parse("iid")),
        (np.zeros(100, np.int64), 2, Partition(kind="dirichlet")),
        (np.zeros(100, np.int64), 2, Partition(kind="shards")),
    ],
)
def test_arguments_that_make_no_sense_are_refused(labels: Int64Array, owners: int, how: Partition) -> None:
    with pytest.raises(UsageError):
        partition(labels, owners, how, 0)


def test_nothing_is_looked_up() -> None:
    """A fresh interpreter whose sockets raise still deals out, and the packages know that they are offline."""
    code = """
import socket
def refuse(*_arguments, **_named): raise AssertionError("a look-up")
socket.socket.connect = socket.getaddrinfo = refuse
import numpy as np
from scenarios.declaration import Partition
from scenarios.simulated.partition import partition
print([len(part) for part in partition(np.arange(40) % 4, 2, Partition.parse("shards-2"), 0)])
import datasets.config, huggingface_hub.constants
print(datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["[20, 20]", "True True"], done.stderr
