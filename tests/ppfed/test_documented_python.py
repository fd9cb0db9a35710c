"""The Python in docs/model.md does what it says."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from ppfed.federation import CipherSettings
from ppfed.keys.files import write_key_file
from ppfed.keys.master import MasterKey
from ppfed.model_folder import ModelCard, write_model
from ppfed.networks.classifier import build_network

DOCUMENT = Path(__file__).parents[2] / "docs" / "model.md"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_is_used_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], channels: int
) -> None:
    monkeypatch.chdir(tmp_path)
    key = MasterKey.generate()
    card = ModelCard(
        federation="flowers",
        exchange="images",
        cipher=CipherSettings(),
        fingerprint=key.fingerprint,
        height=8,
        width=6,
        channels=channels,
        classes=("rose", "tulip"),
        adaptation=(4,),
        base_maps=2,
        owners=(),
        rounds=1,
        local_epochs=1,
        accuracy=None,
        held_out_images=0,
        seed=0,
        training={},
        versions={},
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
    write_model(Path("flowers.model"), build_network(card.network_config(), 0), card, [])
    write_key_file(Path("owners.key"), key, None)
    Path("photos").mkdir()
    Image.new("RGB", (20, 30), "red").save("photos/rose.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)

    exec(code, {})

    assert re.fullmatch(r"torch.Size\(\[1, 2\]\) \['(rose|tulip)'\]\n", capsys.readouterr().out)
