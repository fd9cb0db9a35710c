"""``ppfed audit leakage``, as an owner runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ppfed.cli.main import build_app
from ppfed.errors import DataError, PPFedError, UsageError
from ppfed.leakage.record import AttackName, LeakageRecord

from ..photographs import pieces


def call(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["audit", "leakage", *arguments])


def fail(error: type[PPFedError], *arguments: str) -> PPFedError:
    result = call(*arguments)
    assert isinstance(result.exception, error), result.output
    return result.exception


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = pieces(60)
    for number, image in enumerate(pixels):
        folder = tmp_path / "photos" / ("light" if image.mean() > 110 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path


def test_an_audit_writes_a_card(photos: Path) -> None:
    result = call("photos", "--scope", "fixed", "--preset", "quick", "--attack", "same-mask", "--attack", "collusion")
    assert result.exit_code == 0, result.output
    assert "SSIM" in result.stdout
    assert {path.name for path in (photos / "leakage").iterdir()} == {"leakage.png", "leakage.md", "leakage.json"}
    record = LeakageRecord.model_validate_json((photos / "leakage" / "leakage.json").read_bytes())
    assert {outcome.attack for outcome in record.attacks} == {AttackName.SAME_MASK, AttackName.COLLUSION}
    # A fifth is attacked; twelve ciphertexts are enough for one mask.
    assert record.ciphertext.images == 12
    assert all(outcome.resemblance.ssim.mean > 0.99 for outcome in record.attacks)
    assert str(photos) not in record.model_dump_json()


def test_the_attacker_can_have_other_pictures(photos: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(50):
        folder = photos / "theirs" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    result = call("photos", "--preset", "quick", "--attack", "fold", "--attacker-data", "theirs")
    assert result.exit_code == 0, result.output
    record = LeakageRecord.model_validate_json((photos / "leakage" / "leakage.json").read_bytes())
    # Their classes are others: nothing is classified.
    assert record.perfect.class_accuracy is None


def test_what_is_sent_instead_of_images_is_attacked(photos: Path) -> None:
    result = call("photos", "--preset", "quick", "--exchange", "updates", "--attack", "chosen-weights", "--size", "16")
    assert result.exit_code == 0, result.output
    record = LeakageRecord.model_validate_json((photos / "leakage" / "leakage.json").read_bytes())
    assert record.exchange == "updates"
    assert {outcome.setting for outcome in record.attacks} >= {"one image", "one image, then restored"}
    assert (photos / "leakage" / "leakage.png").exists()


def test_what_cannot_be_done_is_said(photos: Path) -> None:
    assert "fold" in fail(UsageError, "photos", "--attack", "guess").hint
    assert "cpu" in fail(UsageError, "photos", "--preset", "slow").hint
    assert "updates" in fail(UsageError, "photos", "--exchange", "telepathy").hint
    assert "chosen-weights" in fail(UsageError, "photos", "--exchange", "updates", "--attack", "fold").hint
    (photos / "full").mkdir()
    (photos / "full" / "file").touch()
    assert "not empty" in fail(UsageError, "photos", "--out", "full").message
    few = photos / "few" / "one"
    few.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(few / "0.png")
    assert "too few" in fail(DataError, "few", "--size", "8").message
