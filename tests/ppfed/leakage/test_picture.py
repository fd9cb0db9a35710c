"""The leakage card."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

from ppfed.images.types import UInt8Array
from ppfed.leakage.picture import leakage_card, write_picture
from ppfed.leakage.record import CIPHERTEXT_KEY, ORIGINAL_KEY, AttackName, LeakageRecord, Resemblance
from ppfed.leakage.wording import sentence, title

MakeRecord = Callable[..., LeakageRecord]
MakeResemblance = Callable[..., Resemblance]


def images(count: int, side: int, channels: int) -> UInt8Array:
    noise = np.random.default_rng(0).normal(size=(count, side, side, channels))
    return np.clip(128 + 300 * gaussian_filter(noise, (0, 2, 2, 0)), 0, 255).astype(np.uint8)


def noise(like: UInt8Array, seed: int) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, like.shape, dtype=np.uint8)


def text_of(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(("side", "channels", "attacks"), [(8, 1, 2), (32, 3, 10), (224, 3, 3)])
def test_what_is_shown(
    side: int, channels: int, attacks: int, make_record: MakeRecord, make_resemblance: MakeResemblance
) -> None:
    originals = images(3, side, channels)
    names = [name for name in AttackName if name is not AttackName.UNPAIRED][:attacks]
    record = make_record(*((name, "5 pairs", make_resemblance(0.1 + 0.05 * n)) for n, name in enumerate(names)))
    restored = [noise(originals, 5 + number) for number in range(attacks)]
    # Like the numbers, the picture takes the better of an image and its negative; and grey images are shown too.
    restored[0] = 255 - originals
    restored[1] = restored[1][..., :1]
    pictures = {ORIGINAL_KEY: originals, CIPHERTEXT_KEY: noise(originals, 1)}
    pictures |= {outcome.picture_key: shown for outcome, shown in zip(record.attacks, restored, strict=True)}
    figure = leakage_card(record, pictures)
    text = text_of(figure)
    for outcome in record.attacks:
        assert title(outcome) in text
        assert f"SSIM {outcome.resemblance.ssim.mean:.2f}" in text
    for said in (
        "Original",
        "SSIM 0.03 right one of 1,000 by the restored picture: 0.1 %",
        "right one of 1,000 by the restored picture: 47 %",
        sentence(record),
        "Cipher: np-v1, image scope, colour shuffle on",
        "Exchange images",
        "not confidentiality",
        "1,000 images of 32 x 32 pixels (photographs)",
    ):
        assert said in text
    shown = {np.asarray(axes.images[0].get_array()).tobytes() for axes in figure.axes}
    factor = -(-128 // side)
    for original in originals:
        grown = original.repeat(factor, axis=0).repeat(factor, axis=1)
        assert grown.tobytes() in shown
        assert (255 - grown).tobytes() not in shown


def test_the_strongest_attack_stands_out(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    originals = images(1, 16, 3)
    record = make_record(
        (AttackName.FOLD, "", make_resemblance(0.4)),
        (AttackName.INVERSION, "", make_resemblance(0.6)),
        (AttackName.COLLUSION, "", make_resemblance(1)),
    )
    pictures = dict.fromkeys([ORIGINAL_KEY, CIPHERTEXT_KEY, *(one.picture_key for one in record.attacks)], originals)
    heads = {text.get_text(): text.get_color() for text in leakage_card(record, pictures).texts}
    plain = heads["Original"]
    assert heads["Fold"] == plain
    assert heads["images"] == heads["Trained on own"] != plain
    assert heads["over the key"] == plain


def test_attacks_without_pictures_are_left_out(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    originals = images(2, 16, 3)
    record = make_record((AttackName.FOLD, "", make_resemblance(0.4)), (AttackName.UNFOLD, "", make_resemblance(0.5)))
    card = leakage_card(record, {"original": originals, "ciphertext": originals, "fold": originals})
    assert len(card.axes) == 6
    with pytest.raises(ValueError, match="do not fit"):
        leakage_card(record, {"original": originals, "ciphertext": originals, "jigsaw": originals})
    with pytest.raises(ValueError, match="do not fit"):
        leakage_card(record, {"original": originals, "fold": originals})
    with pytest.raises(ValueError, match="as many"):
        leakage_card(record, {"original": originals, "ciphertext": originals[:1]})


def test_images_that_are_not_encrypted(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    originals = images(1, 16, 3)
    record = make_record(cipher=None, ciphertext=make_resemblance(1))
    text = text_of(leakage_card(record, {"original": originals, "ciphertext": originals}))
    assert "Ciphertext" not in text
    assert "plain images" in text
    assert "obfuscation" not in text


def test_the_file_is_private_and_the_same_every_time(
    tmp_path: Path, make_record: MakeRecord, make_resemblance: MakeResemblance
) -> None:
    originals = images(2, 16, 3)
    record = make_record((AttackName.FOLD, "", make_resemblance(0.4)))
    for name in ("one.png", "two.png"):
        write_picture(
            tmp_path / name, record, {"original": originals, "ciphertext": noise(originals, 0), "fold": originals}
        )
    assert stat.S_IMODE((tmp_path / "one.png").stat().st_mode) == 0o600
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as card:
        assert min(card.size) > 300
