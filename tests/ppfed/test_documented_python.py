"""The Python in docs/model.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from ppfed.keys.files import write_key_file
from ppfed.keys.master import MasterKey
from ppfed.model_folder import write_model
from ppfed.networks.classifier import build_network

from .model_cards import small_card

DOCUMENT = Path(__file__).parents[2] / "docs" / "model.md"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_is_used_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], channels: int
) -> None:
    monkeypatch.chdir(tmp_path)
    key = MasterKey.generate()
    card = small_card(fingerprint=key.fingerprint, width=6, channels=channels, classes=("rose", "tulip"))
    write_model(Path("flowers.model"), build_network(card.network_config(), 0), card, [])
    write_key_file(Path("owners.key"), key, None)
    Path("photos").mkdir()
    Image.new("RGB", (20, 30), "red").save("photos/rose.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)

    exec(code, {})

    assert re.fullmatch(r"torch.Size\(\[1, 2\]\) \['(rose|tulip)'\]\n", capsys.readouterr().out)
