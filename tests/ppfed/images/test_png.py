"""Encrypted images at rest."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, PngImagePlugin

from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import DataError
from ppfed.images.png import encode_encrypted_png, read_encrypted_png
from ppfed.images.types import EncryptedImages, PlainImages
from ppfed.keys.master import MasterKey

KEY = MasterKey(bytes(range(32)))
PLAIN = PlainImages(np.random.default_rng(1).integers(0, 256, (1, 5, 7, 3), dtype=np.uint8))


def encrypted(spec: CipherSpec | None = None) -> EncryptedImages:
    return make_cipher(spec or CipherSpec(), KEY).encrypt(PLAIN)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Read a PNG's chunks by the PNG specification, checksums included."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        found.append((kind, content))
        at += 12 + length
    return found


@given(
    st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])).flatmap(
        lambda shape: arrays(np.uint8, shape)
    ),
    st.builds(CipherSpec, scope=st.sampled_from(Scope), colour_shuffle=st.booleans()),
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, pixels: np.ndarray, spec: CipherSpec) -> None:
    cipher = make_cipher(spec, KEY)
    images = cipher.encrypt(PlainImages(pixels))
    (tmp_path / "a.png").write_bytes(encode_encrypted_png(images))
    restored = read_encrypted_png(tmp_path / "a.png")
    assert np.array_equal(restored.pixels, images.pixels)
    assert (restored.cipher, restored.fingerprint) == (spec, KEY.fingerprint)
    if spec.scope is Scope.IMAGE:
        assert np.array_equal(restored.ids, images.ids)
    else:
        assert restored.ids.tobytes() == hashlib.sha256(images.pixels.tobytes()).digest()[:12]
    assert np.array_equal(cipher.decrypt(restored).pixels, pixels)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("scope", Scope)
def test_text_chunks(scope: Scope, shuffle: bool) -> None:
    images = encrypted(CipherSpec(scope=scope, colour_shuffle=shuffle))
    expected = {
        b"ppfed-cipher": b"np-v1",
        b"ppfed-scope": scope.encode(),
        b"ppfed-shuffle": b"1" if shuffle else b"0",
        b"ppfed-key": KEY.fingerprint.encode(),
    }
    if scope is Scope.IMAGE:
        expected[b"ppfed-id"] = images.ids.tobytes().hex().encode()
    found = chunks(encode_encrypted_png(images))
    text = [content.split(b"\0") for kind, content in found if kind == b"tEXt"]
    assert dict(text) == expected
    assert {kind for kind, _ in found} == {b"IHDR", b"tEXt", b"IDAT", b"IEND"}


def test_plain_images_are_not_encoded() -> None:
    with pytest.raises(TypeError, match="PlainImages"):
        encode_encrypted_png(PLAIN)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 2])
def test_one_image_is_one_file(count: int) -> None:
    images = make_cipher(CipherSpec(), KEY).encrypt(PlainImages(np.zeros((count, 2, 2, 3), np.uint8)))
    with pytest.raises(ValueError, match="one image"):
        encode_encrypted_png(images)


# Deflate stores at most 65,535 bytes in a piece: the second shape takes several.
@pytest.mark.parametrize("shape", [(5, 7, 3), (150, 200, 3), (300, 301, 1)])
def test_any_png_reader_sees_the_ciphertext(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (1, *shape), dtype=np.uint8)
    images = make_cipher(CipherSpec(), KEY).encrypt(PlainImages(pixels))
    (tmp_path / "a.png").write_bytes(encode_encrypted_png(images))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == ("L" if shape[2] == 1 else "RGB")
        assert np.array_equal(np.array(image).reshape(shape), images.pixels[0])


def test_no_time_is_spent_on_compressing() -> None:
    height, width = 200, 150
    # Unlike any real ciphertext, these pixels would compress.
    images = EncryptedImages(
        np.zeros((1, height, width, 3), np.uint8), np.zeros((1, 12), np.uint8), CipherSpec(), KEY.fingerprint
    )
    # A filter's number for each row, five bytes for at most 65,535, six for the stream, and the other chunks.
    raw = height * (1 + 3 * width)
    assert raw < len(encode_encrypted_png(images)) < raw * 1.001 + 500


GOOD = {"cipher": "np-v1", "scope": "image", "shuffle": "1", "key": "0123456789abcdef", "id": "00" * 12}


def write_with(path: Path, image: Image.Image, **values: str) -> None:
    info = PngImagePlugin.PngInfo()
    for name, value in values.items():
        info.add_text(f"ppfed-{name}", value)
    image.save(path, "PNG", pnginfo=info)


def test_the_good_case_of_the_next_tests_is_good(tmp_path: Path) -> None:
    write_with(tmp_path / "a.png", Image.new("RGB", (3, 2)), **GOOD)
    assert read_encrypted_png(tmp_path / "a.png").shape == (2, 3, 3)


@pytest.mark.parametrize("name", ["scope", "shuffle", "key", "id"])
def test_missing_and_malformed_chunks(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    write_with(path, Image.new("RGB", (3, 2)), **{key: value for key, value in GOOD.items() if key != name})
    with pytest.raises(DataError, match=rf"a\.png: its text chunk ppfed-{name} is missing"):
        read_encrypted_png(path)
    for value in ("x", f"{GOOD[name]}\n", f" {GOOD[name]}", GOOD[name].upper() + "F"):
        write_with(path, Image.new("RGB", (3, 2)), **{**GOOD, name: value})
        with pytest.raises(DataError, match=rf"a\.png: its text chunk ppfed-{name} is malformed"):
            read_encrypted_png(path)


def test_plain_pngs_are_told_apart(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: not encrypted by ppfed"):
        read_encrypted_png(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16"])
def test_other_pixels_are_refused(tmp_path: Path, mode: str) -> None:
    write_with(tmp_path / "a.png", Image.new(mode, (3, 2)), **GOOD)
    with pytest.raises(DataError, match=r"a\.png: not an 8-bit grey or RGB image"):
        read_encrypted_png(tmp_path / "a.png")


def test_damaged_files(tmp_path: Path) -> None:
    data = encode_encrypted_png(encrypted())
    for content, said in [(b"", "empty"), (b"text", "not a"), (data[:-30], "truncated"), (data[:20], "")]:
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.png: .*{said}"):
            read_encrypted_png(tmp_path / "a.png")
    with pytest.raises(DataError, match="no such file"):
        read_encrypted_png(tmp_path / "nowhere.png")
    Image.fromarray(PLAIN.pixels[0]).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg"):
        read_encrypted_png(tmp_path / "a.jpg")
