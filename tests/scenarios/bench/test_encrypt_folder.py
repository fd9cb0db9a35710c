from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec
from ppfed.cores import cores
from ppfed.images.encrypted_folder import decrypt_folder, encrypt_folder
from ppfed.images.open import open_source
from ppfed.keys.master import MasterKey
from scenarios.bench import encrypt_folder as section
from scenarios.bench.measurement import BenchSettings

QUICK = BenchSettings(quick=True, device=torch.device("cpu"))
SMALL = (section._Kind("tiny", 64, 8, 8, 8), section._Kind("photographs", 16, 60, 80, 24))
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no such call")


@needs_affinity
def test_the_section_measures_each_kind_of_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section, "_KINDS", SMALL)
    usable = os.sched_getaffinity(0)
    rows = list(section.measure(QUICK))
    assert [row.name for row in rows] == [
        f"{kind}, {number}" for kind in ("tiny", "photographs") for number in ("one core", "two cores")
    ]
    assert all(row.unmeasured == "there is one core" if row.unmeasured else row.value > 0 for row in rows)
    assert not rows[0].unmeasured
    # An eighth of each folder in quick mode.
    assert rows[0].details["ours_images_per_s"] == pytest.approx(8 / float(rows[0].details["ours_s"]))
    assert os.sched_getaffinity(0) == usable


@needs_affinity
def test_without_a_second_core_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section, "_KINDS", SMALL[:1])
    monkeypatch.setattr(section, "cores", lambda: 1)
    _, second = section.measure(QUICK)
    assert second.unmeasured == "there is one core"
    assert not second.broken


def test_where_cores_cannot_be_chosen_the_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    rows = list(section.measure(QUICK))
    assert len(rows) == 4
    assert all("choose its cores" in row.unmeasured for row in rows)


@needs_affinity
def test_a_call_and_its_threads_stay_on_their_cores() -> None:
    seen = []

    def look() -> None:
        seen.append(cores())
        thread = threading.Thread(target=lambda: seen.append(cores()))
        thread.start()
        thread.join()

    before = cores()
    section.on_cores(1, look)
    assert seen == [1, 1]
    assert cores() == before


def test_both_sides_store_the_same_pictures(tmp_path: Path) -> None:
    """The bare loop does all that encryption does but the cipher: decrypted, the files show the same."""
    section.make_folder(tmp_path / "source", 6, 40, 30)
    section.bare_loop(tmp_path / "source", tmp_path / "bare", 16)
    key = MasterKey(bytes(range(32)))
    source = open_source(tmp_path / "source")
    encrypt_folder(source, make_cipher(CipherSpec(), key), tmp_path / "encrypted", size=(16, 16))
    decrypt_folder(tmp_path / "encrypted", key, tmp_path / "plain")
    names = [path.relative_to(tmp_path / "bare") for path in (tmp_path / "bare").rglob("*.png")]
    assert len(names) == 6
    for name in names:
        bare, plain = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("bare", "plain"))
        assert bare.shape == (16, 16, 3)
        assert np.array_equal(bare, plain)


def test_synthetic_photographs_are_like_photographs() -> None:
    picture = section.synthetic_photograph(120, 160, 0).astype(float)
    # Neighbours are alike: in noise they differ by 1.13 standard deviations on average, here by 0.56.
    assert np.abs(np.diff(picture, axis=1)).mean() < 0.8 * picture.std()
    # Colours go together: the correlation of two of them is 1 / 1.09 before values are cut off.
    assert np.corrcoef(picture[..., 0].ravel(), picture[..., 1].ravel())[0, 1] > 0.8
    assert not np.array_equal(picture, section.synthetic_photograph(120, 160, 1))
