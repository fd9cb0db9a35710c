"""Prediction: queries are encrypted as the training images were, and asked in any mixture of plain and encrypted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import BadImagesError, WrongKeyError
from ppfed.federation import CipherSettings
from ppfed.images.decode import decode_image
from ppfed.images.png import encode_encrypted_png
from ppfed.images.source import LoadReport
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import KEY_BYTES, MasterKey
from ppfed.model_folder import LoadedModel
from ppfed.networks.classifier import build_network
from ppfed.prediction import Prediction, predict_images
from ppfed.training.loop import predict_logits

from .model_cards import small_card

CPU = torch.device("cpu")
KEY = MasterKey(bytes(range(KEY_BYTES)))
OTHER_KEY = MasterKey(bytes(KEY_BYTES))
FIXED = CipherSettings(scope=Scope.FIXED)


def model(**changes: Any) -> LoadedModel:
    fields = {"fingerprint": KEY.fingerprint, "width": 6, "classes": ("rose", "tulip", "daisy")}
    card = small_card(**{**fields, **changes})
    return LoadedModel(build_network(card.network_config(), 0).eval(), card)


def picture(path: Path, shape: tuple[int, ...] = (8, 6, 3), seed: int = 0) -> Path:
    Image.fromarray(pixels(shape, seed)).save(path)
    return path


def pixels(shape: tuple[int, ...] = (8, 6, 3), seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encrypted(path: Path, spec: CipherSpec, key: MasterKey = KEY, shape: tuple[int, ...] = (8, 6, 3)) -> Path:
    path.write_bytes(encode_encrypted_png(make_cipher(spec, key).encrypt(PlainImages(pixels(shape)[None]))))
    return path


def no_key() -> MasterKey:
    raise AssertionError("the key was asked for")


def probabilities(predictions: list[Prediction]) -> list[list[float]]:
    return [prediction.probabilities.tolist() for prediction in predictions]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 3]),
    st.booleans(),
    st.sampled_from(["png", "bmp"]),
)
def test_a_plain_image_is_decoded_encrypted_and_classified(
    tmp_path: Path, height: int, width: int, channels: int, wanted: int, colour_shuffle: bool, kind: str
) -> None:
    # Fixed scope: there the ciphertext of an image is known beforehand.
    asked = model(channels=wanted, cipher=CipherSettings(scope=Scope.FIXED, colour_shuffle=colour_shuffle))
    path = picture(tmp_path / f"image.{kind}", (height, width, 3) if channels == 3 else (height, width))

    (prediction,) = predict_images(asked, KEY, [path], CPU)

    decoded = decode_image(path, size=(8, 6), channels=wanted).pixels
    ciphertext = make_cipher(asked.card.cipher_spec(), KEY).encrypt(PlainImages(decoded[None])).pixels
    expected = predict_logits(asked.network, torch.from_numpy(ciphertext)).softmax(1)[0].numpy()
    assert np.array_equal(prediction.probabilities, expected)
    assert prediction.probabilities.dtype == np.float32
    # Three 32-bit roundings.
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert prediction.top_class == ("rose", "tulip", "daisy")[expected.argmax()]
    assert prediction.path == path


@pytest.mark.parametrize("scope", Scope)
def test_an_encrypted_image_is_classified_as_it_is_and_without_the_key(tmp_path: Path, scope: Scope) -> None:
    asked = model(cipher=CipherSettings(scope=scope))
    path = encrypted(tmp_path / "image.png", asked.card.cipher_spec())
    with Image.open(path) as image:
        ciphertext = np.array(image)[None]
    (prediction,) = predict_images(asked, no_key, [path], CPU)
    expected = predict_logits(asked.network, torch.from_numpy(ciphertext)).softmax(1)[0].numpy()
    assert np.array_equal(prediction.probabilities, expected)


def test_plain_and_encrypted_agree_in_fixed_scope_and_keep_their_order(tmp_path: Path) -> None:
    asked = model(cipher=FIXED)
    paths = [
        picture(tmp_path / "a.png"),
        encrypted(tmp_path / "b.png", FIXED.spec),
        picture(tmp_path / "c.png", seed=1),
    ]
    predictions = predict_images(asked, KEY, paths, CPU)
    assert [prediction.path for prediction in predictions] == paths
    assert probabilities(predictions)[0] == probabilities(predictions)[1] != probabilities(predictions)[2]


def test_in_image_scope_each_query_gets_a_fresh_id(tmp_path: Path) -> None:
    path = picture(tmp_path / "image.png")
    asked = model()
    first, second = probabilities(predict_images(asked, KEY, [path, path], CPU))
    (third,) = probabilities(predict_images(asked, KEY, [path], CPU))
    assert first != second
    assert third not in (first, second)


def test_more_than_a_batch(tmp_path: Path) -> None:
    asked = model(cipher=FIXED)
    paths = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png", seed=1)] * 150
    (tmp_path / "bad.png").write_bytes(b"no image")
    report = LoadReport()
    together = probabilities(predict_images(asked, KEY, [*paths, tmp_path / "bad.png"], CPU, report))
    alone = probabilities(predict_images(asked, KEY, paths[:2], CPU))
    # The size of a batch may change the order of 32-bit sums.
    np.testing.assert_allclose(together, alone * 150, atol=1e-5)
    assert (report.used, len(report.bad)) == (300, 1)


def test_another_key_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(WrongKeyError) as caught:
        predict_images(model(), OTHER_KEY, [tmp_path / "missing.png"], CPU)
    assert KEY.fingerprint in caught.value.message
    assert OTHER_KEY.fingerprint in caught.value.message
    with pytest.raises(WrongKeyError):
        predict_images(model(), lambda: OTHER_KEY, [picture(tmp_path / "image.png")], CPU)


def test_bad_images_are_named_and_the_others_classified(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("not an image")
    stripped = tmp_path / "stripped.png"
    with Image.open(encrypted(tmp_path / "whole.png", CipherSpec())) as image:
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_text("ppfed-cipher", "np-v1")
        image.save(stripped, pnginfo=chunks)
    bad = {
        tmp_path / "missing.png": "no such file",
        tmp_path / "text.png": "image",
        encrypted(tmp_path / "key.png", CipherSpec(), OTHER_KEY): f"encrypted with key {OTHER_KEY.fingerprint}",
        encrypted(tmp_path / "scope.png", FIXED.spec): "fixed scope",
        encrypted(tmp_path / "size.png", CipherSpec(), shape=(6, 8, 3)): "6x8",
        encrypted(tmp_path / "grey.png", CipherSpec(), shape=(8, 6, 1)): "1 channel",
        stripped: "text chunk ppfed-scope is missing",
    }
    report = LoadReport()
    predictions = predict_images(model(), KEY, [*bad, good], CPU, report)
    assert [prediction.path for prediction in predictions] == [good]
    for (path, reason), (expected, part) in zip(report.bad, bad.items(), strict=True):
        assert path == str(expected)
        assert part in reason
        assert str(tmp_path) not in reason
    with pytest.raises(BadImagesError) as caught:
        predict_images(model(), KEY, [*bad, good], CPU)
    assert list(caught.value.bad) == report.bad


def test_lossy_conversions_are_noted(tmp_path: Path) -> None:
    report = LoadReport()
    predict_images(model(channels=1), KEY, [picture(tmp_path / "image.png")] * 2, CPU, report)
    assert report.notes == {"colour reduced to grey": 2}


def test_no_images_give_no_predictions() -> None:
    assert predict_images(model(), no_key, [], CPU) == []
