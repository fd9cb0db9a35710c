"""Restore ciphertexts one by one, without key or training, on several cores, and keep what was restored.

What a chunk of images becomes depends on these and on the chunk's number, not on how many processes share the work.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ppfed.atomic import write_atomic
from ppfed.attacks.alone import Solver, solver
from ppfed.ciphers.spec import CipherSpec, cipher_info, cipher_names
from ppfed.errors import UsageError
from ppfed.images.types import UInt8Array

CHUNK = 50
"""Images that a process is given at a time: half a minute of work at most, which is what an interruption costs."""

_CPU = torch.device("cpu")
"""The same everywhere, so that what is restored is too."""


@dataclass(frozen=True, eq=False)
class Restored:
    """What a solver made.

    Attributes
    ----------
    pixels : uint8 array, (N, H, W, C)
    seconds : float
        Processor time, of all processes together.
    """

    pixels: UInt8Array
    seconds: float

    def save(self, path: Path) -> None:
        """Write it whole or not at all; this user alone may read it."""
        content = io.BytesIO()
        np.savez(content, pixels=self.pixels, seconds=np.array(self.seconds))
        write_atomic(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Restored:
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["pixels"], float(arrays["seconds"]))


def restorable() -> dict[str, CipherSpec]:
    """Name the ciphers whose images can be restored one by one, with a fresh key stream for each."""
    specs = {name: cipher_info(name).spec() for name in cipher_names()}
    return {name: spec for name, spec in specs.items() if solver(spec, device=_CPU) is not None}


def require_solver(cipher: CipherSpec, seed: int = 0) -> Solver:
    """Choose how to restore images of a cipher.

    Raises
    ------
    UsageError
        If nothing restores them one by one.
    """
    found = solver(cipher, device=_CPU, seed=seed)
    if found is None:
        raise UsageError(
            f"no attack restores single images of {cipher.name} without key and training",
            hint=f"Choose of: {', '.join(restorable())}.",
        )
    return found


def restore(
    cipher: CipherSpec, hidden: UInt8Array, folder: Path, *, seed: int, jobs: int, chunk: int = CHUNK
) -> Restored:
    """Restore images, but for those that an earlier call restored.

    Parameters
    ----------
    cipher : CipherSpec
        Of image scope.
    hidden : uint8 array, (N, H, W, C)
        Ciphertexts.
    folder : Path
        A file for each chunk is kept there, named after a digest of what it was made from. A solver that has changed
        since is not noticed.
    seed : int
        Of searches; each chunk has its own.
    jobs : int
        Processes side by side, of one thread each.
    chunk : int
        Images that a process is given at a time.

    Raises
    ------
    UsageError
        If nothing restores such images one by one.
    """
    require_solver(cipher)
    folder.mkdir(exist_ok=True)
    parts = [hidden[start : start + chunk] for start in range(0, len(hidden), chunk)]
    seeds = [int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) for number in range(len(parts))]
    paths = [folder / f"{cipher.name}-{_digest(cipher, *pair)}.npz" for pair in zip(parts, seeds, strict=True)]
    left = [number for number, path in enumerate(paths) if not path.exists()]
    if left:
        # A fork would copy the threads' locks; fresh processes cost some seconds, and work here takes minutes.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(jobs, len(left)), context, initializer=_begin)
        try:
            running = {pool.submit(_restore, cipher, parts[number], seeds[number]): paths[number] for number in left}
            for done in as_completed(running):
                done.result().save(running[done])
        finally:
            pool.shutdown(cancel_futures=True)
    found = [Restored.load(path) for path in paths]
    return Restored(np.concatenate([one.pixels for one in found]), sum(one.seconds for one in found))


def _digest(cipher: CipherSpec, hidden: UInt8Array, seed: int) -> str:
    digest = hashlib.sha256(f"{cipher}, seed {seed}, {hidden.shape}".encode())
    digest.update(np.ascontiguousarray(hidden).data)
    return digest.hexdigest()[:32]


def _begin() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no process behind of a study that was killed: a pool's would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _restore(cipher: CipherSpec, hidden: UInt8Array, seed: int) -> Restored:
    started = time.process_time()
    pixels = require_solver(cipher, seed)(hidden)
    return Restored(pixels, time.process_time() - started)
