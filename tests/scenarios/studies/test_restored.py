"""Training on what is restored, on pictures that a few steps tell apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope, cipher_info
from ppfed.errors import UsageError
from ppfed.images.types import Int64Array, PlainImages, UInt8Array
from ppfed.leakage.attackers import throwaway_ids, throwaway_key
from ppfed.networks.config import AdaptationKind, best_features
from scenarios.material import Material
from scenarios.process_tree import family, wait_until_gone
from scenarios.studies.networks import described_for_ciphertexts
from scenarios.studies.restored import (
    PLAIN,
    ROWS_FILE,
    SMALL_BUDGET,
    Kind,
    RestoredBudget,
    RestoredRow,
    main,
    measure,
)
from scenarios.studies.restoring import restorable, restore
from scenarios.studies.rows import RowsFile

CPU = torch.device("cpu")
LE, BLOCK_PIXEL = cipher_info("le-v1").spec(), cipher_info("block-pixel-v1").spec()
FEW = RestoredBudget(images=160, held_out=80, epochs=8, base_maps=4)
BRIEF = RestoredBudget(images=8, held_out=4, epochs=1, base_maps=4)


def streaks(count: int, seed: int) -> tuple[PlainImages, Int64Array]:
    """Draw smooth coloured pictures of 32x32 pixels with streaks that run across (0) or down (1)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2

    def smooth(channels: int, sigma: tuple[float, float], spread: float) -> UInt8Array:
        field = gaussian_filter(rng.normal(size=(64, 64, channels)), (*sigma, 0))[16:48, 16:48]
        return field / field.std() * spread

    pictures = [
        128 + smooth(1, (5.0, 1.2) if label else (1.2, 5.0), 45) + smooth(3, (8, 8), 25) + rng.normal(size=(32, 32, 3))
        for label in labels
    ]
    return PlainImages(np.clip(pictures, 0, 255).astype(np.uint8)), labels


def material_of(budget: RestoredBudget) -> Material:
    return Material(("across", "down"), *streaks(budget.images, 1), *streaks(budget.held_out, 2))


def ciphertexts(cipher: CipherSpec, count: int) -> UInt8Array:
    return make_cipher(cipher, throwaway_key(0)).encrypt(streaks(count, 3)[0], throwaway_ids(0, count)).pixels


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[RestoredRow]]:
    def measured(ciphers: list[CipherSpec], budget: RestoredBudget, seed: int = 0) -> list[RestoredRow]:
        file = RowsFile(tmp_path / ROWS_FILE, RestoredRow)
        measure(ciphers, material_of(budget), budget, tmp_path / "restored", file, CPU, seed=seed, jobs=1)
        return file.read()

    return measured


def test_a_coordinator_that_restores_le_first_learns_what_its_ciphertexts_hide(run):
    plain, sent, restored = run([LE], FEW)
    assert [row.kind for row in (plain, sent, restored)] == list(Kind)
    assert (plain.cipher, sent.cipher, restored.cipher) == (PLAIN, str(LE), str(LE))
    # Of 80 images of two classes chance gets 50 %, with a standard deviation of 5.6 points.
    assert plain.accuracy > 0.9
    assert sent.accuracy < 0.7
    assert restored.accuracy > 0.9
    assert plain.ssim == 1
    assert restored.shown.ssim.mean > 0.8 > 0.3 > sent.shown.ssim.mean
    # Some are negatives, and no oracle turned them.
    assert restored.ssim < restored.shown.ssim.mean
    assert plain.restoring_s == sent.restoring_s == 0 < restored.restoring_s
    assert restored.by_eye is None


def test_solved_puzzles_are_trained_on_as_they_hang(run):
    """Whether streaks run across or down is lost where pictures are turned, however well they are restored."""
    restored = run([BLOCK_PIXEL], RestoredBudget(images=40, held_out=40, epochs=4, base_maps=4))[-1]
    assert restored.by_eye is not None
    assert restored.by_eye.ssim.mean > 0.9
    assert restored.shown.ssim.mean < 0.5
    # Chance is 50 % with a standard deviation of 8 points.
    assert 0.2 < restored.accuracy < 0.8


def test_what_is_there_is_not_measured_again(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = run([LE], BRIEF)
    monkeypatch.setattr("scenarios.studies.restoring.ProcessPoolExecutor", None)
    # What was restored outlives the row.
    lines = (tmp_path / ROWS_FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / ROWS_FILE).write_bytes(b"".join(lines[:-1]))
    assert run([LE], BRIEF) == rows
    monkeypatch.setattr("scenarios.studies.restored.train", None)
    assert run([LE], BRIEF) == rows
    for other in ({"seed": 1}, {"budget": replace(BRIEF, epochs=2)}):
        with pytest.raises(TypeError, match="not callable"):
            run([LE], **{"budget": BRIEF, **other})


def test_neither_interruptions_nor_the_number_of_processes_change_what_is_restored(tmp_path: Path):
    hidden = ciphertexts(BLOCK_PIXEL, 3)
    hidden[2] = hidden[1]
    whole = restore(BLOCK_PIXEL, hidden, tmp_path / "restored", seed=0, jobs=1, chunk=1)
    # Equal images have files of their own: their chunks search with other seeds.
    kept, *lost = sorted((tmp_path / "restored").iterdir())
    assert len(lost) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in (kept, *lost)), "others can read what was restored"
    written = kept.stat().st_mtime_ns
    for path in lost:
        path.unlink()
    again = restore(BLOCK_PIXEL, hidden, tmp_path / "restored", seed=0, jobs=2, chunk=1)
    assert np.array_equal(again.pixels, whole.pixels)
    assert sorted((tmp_path / "restored").iterdir()) == [kept, *lost]
    assert kept.stat().st_mtime_ns == written


RESTORES_FOR_LONG = """
import sys
from pathlib import Path
import numpy as np
from ppfed.ciphers.spec import cipher_info
from scenarios.studies.restoring import restore
if __name__ == "__main__":
    hidden = np.random.default_rng(0).integers(0, 256, (5000, 32, 32, 3), dtype=np.uint8)
    restore(cipher_info("etc-v1").spec(), hidden, Path(sys.argv[1]), seed=0, jobs=1)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")
def test_a_study_that_is_killed_leaves_no_process_behind(tmp_path: Path):
    script = tmp_path / "study.py"
    script.write_text(RESTORES_FOR_LONG)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    study = subprocess.Popen([sys.executable, script, tmp_path / "restored"], env=environment)
    children: list[int] = []
    try:
        deadline = time.monotonic() + 60
        # What tracks the pool's resources is one, what restores is the other.
        while len(children) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            children = family(study.pid)[1:]
    finally:
        study.kill()
        study.wait()
    assert len(children) == 2
    # A process that still loads torch is asked once it has; without the watch it would wait for ever.
    left = wait_until_gone(children, 60)
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize("name", ["ele-v1", "logistic-rc4-v1"])
def test_what_nothing_restores_is_refused(name: str, tmp_path: Path):
    with pytest.raises(UsageError, match=f"restores single images of {name}") as refused:
        main(["nowhere", str(tmp_path / "out"), name])
    assert refused.value.hint is not None
    assert "le-v1, etc-v1" in refused.value.hint
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=name):
        measure(
            [cipher_info(name).spec()],
            material_of(BRIEF),
            BRIEF,
            tmp_path,
            RowsFile(tmp_path / ROWS_FILE, RestoredRow),
            CPU,
            seed=0,
            jobs=1,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["only-one"], "required: out"),
        (["data", "out", "--jobs", "none"], "--jobs"),
        (["data", "out", "--images", "0"], "not positive"),
        (["data", "out", "le-v2"], "no cipher 'le-v2'"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        main(arguments)


def test_what_is_measured_and_at_which_budget_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("scenarios.studies.restored.read_images", lambda *_: None)
    monkeypatch.setattr(
        "scenarios.studies.restored.measure",
        lambda ciphers, _material, budget, *_, seed, jobs: asked.append(
            ([cipher.name for cipher in ciphers], budget, seed, jobs)
        ),
    )
    for words in ("", "small le-v1 le-v1 --jobs 2", "--images 50 etc-v1 --seed 3"):
        assert main(["data", str(tmp_path / "out"), *words.split()]) == 0
    everything = ["np-v1", "le-v1", "etc-v1", "block-pixel-v1", "np2-v1"]
    assert asked == [
        (everything, RestoredBudget(), 0, 1),
        (["le-v1"], SMALL_BUDGET, 0, 2),
        (["etc-v1"], RestoredBudget(images=50), 3, 1),
    ]


def test_every_cipher_has_a_network_that_suits_it():
    material = material_of(BRIEF)
    for name, cipher in restorable().items():
        assert cipher.scope is Scope.IMAGE
        network = described_for_ciphertexts(material, 4, cipher)
        assert network.features is best_features(cipher)
        assert (network.adaptation_kind is AdaptationKind.BLOCK) == (name == "le-v1")
    with pytest.raises(ValueError, match="no ResNet-18"):
        described_for_ciphertexts(material, 4, CipherSpec("np2-v1", colour_shuffle=False))
