"""Shared by all tests: small federations, encrypted images, and one thread."""

from __future__ import annotations

import os
import platform
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from clients.prepared import Prepared
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.federation import Exchange, FederationSettings
from ppfed.images.source import Split
from ppfed.images.types import PlainImages
from ppfed.keys.master import MasterKey
from ppfed.store import Shard, ShardStore

# Deadlines measure the machine: on a busy one, or at the first use of something, they fail by chance.
settings.register_profile("ppfed", deadline=None)
settings.load_profile("ppfed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest and waits most, so that no process of pytest's is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


# A shell that starts a job in the background has it ignore Ctrl-C, and so would every child that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# In each new folder torch.compile asks by compiling which vector instructions there are, and takes twice as long to
# compile for them. Child processes inherit this.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")

KEY = MasterKey(bytes(range(32)))
CLASSES = ("cat", "dog")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads, and on a busy machine many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def keeps_freed_memory() -> Callable[[], bool]:
    """Look whether this process has large blocks that were freed at hand; skips where no C library gives them back."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc gives memory back at once")

    def look() -> bool:
        faults = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            # Larger than what glibc keeps by itself, however often such a block came and went.
            torch.ones(96 << 20, dtype=torch.uint8)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        # The first may be new; the system may hand out pages of 4 KiB or of 2 MiB, 24,576 or 48 of them.
        return min(faults[1:]) < 24

    return look


@pytest.fixture(scope="session")
def fingerprint() -> str:
    """Public name of the key that all shared images are encrypted with."""
    return KEY.fingerprint


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., FederationSettings]:
    """Build the settings of a federation small enough to train in a blink; any of them can be changed."""

    def make(**changes: Any) -> FederationSettings:
        training = {
            "rounds": 2,
            "batch_size": 8,
            "learning_rate": 0.05,
            "base_maps": 2,
            "adaptation": (2, 2),
            **changes.pop("training", {}),
        }
        settings = {
            "name": "zoo",
            "exchange": Exchange.UPDATES,
            "owners": 2,
            "classes": CLASSES,
            "height": 8,
            "width": 8,
            "channels": 3,
            **changes,
        }
        return FederationSettings.model_validate({**settings, "training": training})

    return make


@pytest.fixture(scope="session")
def make_shard() -> Callable[..., Shard]:
    """Encrypt random images of given shape with the shared key."""

    def make(
        rows: int,
        seed: int = 0,
        *,
        shape: tuple[int, int, int] = (8, 8, 3),
        scope: Scope = Scope.IMAGE,
        colour_shuffle: bool = True,
        classes: int = len(CLASSES),
        key: MasterKey = KEY,
    ) -> Shard:
        random = np.random.default_rng(seed)
        labels = random.integers(0, classes, rows, dtype=np.int64)
        pixels = random.integers(0, 256, (rows, *shape), dtype=np.uint8)
        # Something to learn: the upper half of one class is flat.
        pixels[labels == 0, : shape[0] // 2] = 128
        ids = random.integers(0, 256, (rows, 12), dtype=np.uint8)
        cipher = make_cipher(CipherSpec("np-v1", scope, colour_shuffle), key)
        return Shard(cipher.encrypt(PlainImages(pixels), ids), labels)

    return make


@pytest.fixture(scope="session")
def make_prepared(make_shard: Callable[..., Shard]) -> Callable[..., Prepared]:
    """Fill an owner's store: the rows of each of its training shards and of its held-out shards are given."""

    def make(
        folder: Path, train: tuple[int, ...] = (12, 7), held_out: tuple[int, ...] = (6,), seed: int = 0
    ) -> Prepared:
        store = ShardStore(folder)
        for split, shards in ((Split.TRAIN, train), (Split.HELD_OUT, held_out)):
            for index, rows in enumerate(shards):
                store.write(split, index, make_shard(rows, seed=hash((seed, split is Split.TRAIN, index)) & 0xFFFF))
        return Prepared(store, sum(train), sum(held_out), 1, 0, {})

    return make
