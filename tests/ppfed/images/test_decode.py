"""Every odd format an owner's folder may hold, made here with numpy and Pillow."""

from __future__ import annotations

import io
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms, PngImagePlugin

from ppfed.errors import DataError
from ppfed.images import decode
from ppfed.images.decode import asks_for_action, decode_image
from ppfed.images.types import UInt8Array

GENERATOR = np.random.default_rng(7)
RGB: UInt8Array = GENERATOR.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY: UInt8Array = GENERATOR.integers(0, 256, (6, 9), dtype=np.uint8)
WIDE = GENERATOR.integers(0, 1 << 16, (6, 9), dtype=np.uint16)
ALPHA: UInt8Array = GENERATOR.integers(0, 256, (6, 9, 1), dtype=np.uint8)


def reason(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        decode_image(path)
    assert str(path) not in caught.value.message
    return caught.value.message


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def scanlines(values: np.ndarray) -> bytes:
    """Rows of big-endian 16-bit values, each after filter byte 0."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values.reshape(len(values), -1))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["colour", "grey"])
def test_lossless_formats(tmp_path: Path, name: str, pixels: UInt8Array) -> None:
    if name == "a.webp" and pixels.ndim == 2:
        pytest.skip("WebP has no grey images")
    Image.fromarray(pixels).save(tmp_path / name, lossless=True)
    decoded = decode_image(tmp_path / name)
    assert np.array_equal(decoded.pixels, pixels.reshape(6, 9, -1))
    assert decoded.notes == ()


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_what_pillow_decodes(tmp_path: Path, quality: int, progressive: bool) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=quality, progressive=progressive)
    assert np.array_equal(decode_image(tmp_path / "a.jpg").pixels, np.array(Image.open(tmp_path / "a.jpg")))


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(decode_image(tmp_path / "a.jpg").pixels, RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_orientation(tmp_path: Path, orientation: int, name: str) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = 60, 120, 180
    # What a camera held in each way stores (EXIF 2.32, tag 274): the inverse of what brings it upright.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif, lossless=True)
    pixels = decode_image(tmp_path / name).pixels
    assert pixels.shape == upright.shape
    # Flat quarters of whole 4x4 blocks: JPEG rounds them by a level or two, quarters differ by 60.
    assert np.abs(pixels.astype(int) - upright).max() < 20


def test_unreadable_exif_costs_only_the_orientation(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    decoded = decode_image(tmp_path / "a.png")
    assert np.array_equal(decoded.pixels, RGB)


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(8)
    image.save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png")
    assert np.array_equal(decoded.pixels, np.array(image.convert("RGB")))
    assert decoded.notes == ()


def test_one_bit(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.bmp"):
        Image.fromarray(GREY > 127).save(tmp_path / name)
        assert np.array_equal(decode_image(tmp_path / name).pixels[..., 0], (GREY > 127) * 255)


@pytest.mark.parametrize("colour", [RGB, GREY[..., None]], ids=["RGBA", "LA"])
@pytest.mark.parametrize("strip_pixels", [1, 20, 1 << 20], ids=["a row", "some rows", "all"])
def test_transparency_is_laid_on_white(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: UInt8Array, strip_pixels: int
) -> None:
    monkeypatch.setattr("ppfed.images.decode._STRIP_PIXELS", strip_pixels)
    Image.fromarray(np.concatenate([colour, ALPHA], axis=2)).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png")
    share = ALPHA / 255
    # Pillow composes in fixed point: within one level of the exact value.
    assert np.abs(decoded.pixels - (colour * share + 255 * (1 - share))).max() <= 1
    assert decoded.pixels.shape == colour.shape
    assert decoded.notes == ("transparency laid on white",)


def test_opaque_alpha_costs_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.concatenate([RGB, np.full_like(ALPHA, 255)], axis=2)).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png")
    assert np.array_equal(decoded.pixels, RGB)
    assert decoded.notes == ()


def test_one_transparent_row_is_enough_to_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppfed.images.decode._STRIP_PIXELS", 1)
    alpha = np.full_like(ALPHA, 255)
    alpha[0] = 0
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png")
    assert np.array_equal(decoded.pixels[0], np.full_like(RGB[0], 255))
    assert np.array_equal(decoded.pixels[1:], RGB[1:])
    assert decoded.notes == ("transparency laid on white",)


def test_transparent_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transparent colour or palette entry, as old tools wrote it."""
    monkeypatch.setattr("ppfed.images.decode._STRIP_PIXELS", 20)
    palette = Image.fromarray(RGB).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=0)
    Image.fromarray(RGB).save(tmp_path / "rgb.png", transparency=tuple(RGB[0, 0].tolist()))
    Image.fromarray(GREY).save(tmp_path / "grey.png", transparency=int(GREY[0, 0]))
    transparent = {
        "palette.png": np.array(palette) == 0,
        "rgb.png": (RGB[0, 0] == RGB).all(axis=2),
        "grey.png": GREY[0, 0] == GREY,
    }
    plain = {"palette.png": np.array(palette.convert("RGB")), "rgb.png": RGB, "grey.png": GREY[..., None]}
    for name, where in transparent.items():
        decoded = decode_image(tmp_path / name)
        assert np.array_equal(decoded.pixels, np.where(where[..., None], 255, plain[name])), name
        assert decoded.notes == ("transparency laid on white",)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey(tmp_path: Path, name: str) -> None:
    values = WIDE.copy()
    values[0, :3] = 0, 65535, 128  # 128 / 257 is just below a half
    Image.fromarray(values).save(tmp_path / name)
    decoded = decode_image(tmp_path / name)
    assert np.array_equal(decoded.pixels[..., 0], np.round(values / 257))
    assert decoded.notes == ("16-bit reduced to 8 bits",)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(
    ("greatest", "bits"), [(1, 8), (255, 8), (256, 10), (1023, 10), (4095, 12), (4096, 13), (8191, 13)]
)
def test_values_in_the_lowest_of_16_bits_are_told(tmp_path: Path, name: str, greatest: int, bits: int) -> None:
    """An export of fewer bits as they are: the fixed rule holds, for owners must not differ, but nothing hides it."""
    values = np.minimum(WIDE, greatest)
    Image.fromarray(values).save(tmp_path / name)
    decoded = decode_image(tmp_path / name)
    assert np.array_equal(decoded.pixels[..., 0], np.round(values / 257))
    (note,) = decoded.notes
    assert f"only the lowest {bits} bits" in note
    assert "nearly black" in note
    assert asks_for_action(note)


@pytest.mark.parametrize("greatest", [0, 8192, 65535])
def test_dark_and_black_images_are_no_such_export(tmp_path: Path, greatest: int) -> None:
    Image.fromarray(np.minimum(WIDE, greatest)).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png").notes == ("16-bit reduced to 8 bits",)
    assert not asks_for_action("16-bit reduced to 8 bits")


def test_tiff_that_says_how_many_bits_it_has_is_scaled_by_these(tmp_path: Path) -> None:
    """Its white is 4,095: nothing is dark, and nothing is warned of."""
    rows = np.array([[0, 2048, 4095, 4095]])
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in rows.reshape(-1, 2).tolist())
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed
    (tmp_path / "a.tif").write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    decoded = decode_image(tmp_path / "a.tif")
    assert decoded.pixels[0, :, 0].tolist() == [0, 128, 255, 255]
    assert decoded.notes == ("12-bit reduced to 8 bits",)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "LA", "RGBA"])
@pytest.mark.parametrize(("greatest", "bits"), [(1023, 10), (4095, 12), (65535, None)])
def test_colour_in_the_lowest_of_16_bits_is_told(
    tmp_path: Path, colour: int, channels: int, greatest: int, bits: int | None
) -> None:
    """However opaque it is."""
    values = np.minimum(GENERATOR.integers(0, 1 << 16, (6, 9, channels), dtype=np.uint16), greatest)
    if channels in (2, 4):
        values[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(raw_png(9, 6, 16, colour, scanlines(values)))
    (note,) = decode_image(tmp_path / "a.png").notes
    assert (f"only the lowest {bits} bits" in note) == asks_for_action(note) == (bits is not None)


def test_16_bit_grey_white_is_zero(tmp_path: Path) -> None:
    Image.fromarray(WIDE).save(tmp_path / "a.tif", tiffinfo={262: 0})
    if Image.open(tmp_path / "a.tif").tag_v2[262] != 0:  # type: ignore[attr-defined]
        pytest.skip("this Pillow cannot write it")
    assert np.array_equal(decode_image(tmp_path / "a.tif").pixels[..., 0], 255 - np.round(WIDE / 257))


def test_16_bit_colour(tmp_path: Path) -> None:
    values = GENERATOR.integers(0, 1 << 16, (6, 9, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(raw_png(9, 6, 16, 2, scanlines(values)))
    decoded = decode_image(tmp_path / "a.png")
    # Pillow keeps the high byte.
    assert np.array_equal(decoded.pixels, values >> 8)
    assert decoded.notes == ("16-bit reduced to 8 bits",)


def test_16_bit_with_a_transparent_colour(tmp_path: Path) -> None:
    transparent = chunk(b"tRNS", struct.pack(">H", int(WIDE[0, 0])))
    (tmp_path / "a.png").write_bytes(raw_png(9, 6, 16, 0, scanlines(WIDE), transparent))
    assert reason(tmp_path / "a.png") == "16-bit with a transparent colour"


@pytest.mark.parametrize("depth", [2, 4])
def test_less_than_8_bits(tmp_path: Path, depth: int) -> None:
    values = np.arange(1 << depth, dtype=np.uint8)
    bits = np.unpackbits(values[:, None], axis=1)[:, 8 - depth :].reshape(-1)
    (tmp_path / "a.png").write_bytes(raw_png(1 << depth, 1, depth, 0, b"\0" + np.packbits(bits).tobytes()))
    decoded = decode_image(tmp_path / "a.png")
    assert np.array_equal(decoded.pixels[0, :, 0], values.astype(int) * 255 // ((1 << depth) - 1))
    assert decoded.notes == ()


def test_cmyk(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((16, 16, 3), (200, 40, 90), np.uint8)).convert("CMYK")
    for name in ("a.jpg", "a.tif"):
        image.save(tmp_path / name, quality=95)
        decoded = decode_image(tmp_path / name)
        # One flat colour: JPEG moves it by a level or two.
        assert np.abs(decoded.pixels.astype(int) - (200, 40, 90)).max() <= 3
        assert decoded.notes == ("CMYK converted to RGB without a colour profile",)


def test_ycbcr(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("YCbCr")
    image.save(tmp_path / "a.tif")
    assert np.array_equal(decode_image(tmp_path / "a.tif").pixels, np.array(image.convert("RGB")))


def test_lab(tmp_path: Path) -> None:
    colour = np.full((6, 9, 3), (200, 40, 90), np.uint8)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = ImageCms.applyTransform(Image.fromarray(colour), to_lab)
    assert image is not None
    image.save(tmp_path / "a.tif")
    decoded = decode_image(tmp_path / "a.tif")
    # 8-bit CIELAB is coarser than sRGB: a few levels.
    assert np.abs(decoded.pixels.astype(int) - colour).max() <= 4
    assert decoded.notes == ("CIELAB converted to RGB",)


@pytest.mark.parametrize(("dtype", "said"), [(np.float32, "floating point"), (np.int32, "32-bit integers")])
def test_values_without_a_white_are_refused(tmp_path: Path, dtype: type, said: str) -> None:
    Image.fromarray(WIDE.astype(dtype)).save(tmp_path / "a.tif")
    assert said in reason(tmp_path / "a.tif")


@pytest.mark.parametrize(("name", "said"), [("a.png", "animated, 3"), ("a.webp", "animated, 3"), ("a.tif", "3 pages")])
def test_several_frames_are_refused(tmp_path: Path, name: str, said: str) -> None:
    frames = [Image.fromarray(np.full((6, 9, 3), level, np.uint8)) for level in (0, 100, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert reason(tmp_path / name).startswith(said)


def test_a_camera_file_gives_its_first_picture(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (50, 200)]
    pictures[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pictures[1:])
    decoded = decode_image(tmp_path / "a.jpg")
    # A flat grey: JPEG moves it by a level at most.
    assert np.abs(decoded.pixels.astype(int) - 50).max() <= 1
    assert decoded.notes == ("first picture of a file with several taken",)


def test_encrypted_images_are_not_encrypted_again(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("ppfed-cipher", "np-v1")
    Image.fromarray(RGB).save(tmp_path / "before.png", pnginfo=info)
    text = chunk(b"tEXt", b"ppfed-cipher\0np-v1")
    data = (tmp_path / "before.png").read_bytes().replace(text, b"")
    (tmp_path / "after.png").write_bytes(data[:-12] + text + data[-12:])
    assert reason(tmp_path / "before.png") == reason(tmp_path / "after.png") == "already encrypted by ppfed"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
def test_cut_off_anywhere_gives_a_reason(tmp_path: Path, name: str) -> None:
    big = GENERATOR.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(big).save(tmp_path / "whole", {"jpg": "JPEG", "tif": "TIFF"}.get(name[2:], name[2:].upper()))
    data = (tmp_path / "whole").read_bytes()
    for share in (0.05, 0.3, 0.6, 0.9):
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        assert reason(tmp_path / name).startswith(("truncated", "damaged"))


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_never_gives_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]))
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a").write_bytes(content)
    with suppress(DataError):
        assert decode_image(tmp_path / "a").pixels.dtype == np.uint8


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(RGB).save(tmp_path / "a.gif")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path / "empty.png") == "empty file"
    assert reason(tmp_path / "text.png") == "not a PNG, JPEG, WebP, BMP or TIFF image"
    assert reason(tmp_path / "a.gif") == "not a PNG, JPEG, WebP, BMP or TIFF image"
    assert reason(tmp_path / "folder.png") == "a folder, not a file"
    assert reason(tmp_path / "broken.png") == "broken link"
    assert reason(tmp_path / "missing.png") == "no such file"
    assert reason(tmp_path / "pipe.png") == "not a regular file"


def test_links_are_followed(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    assert np.array_equal(decode_image(tmp_path / "link.png").pixels, RGB)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    path.chmod(0)
    if os.geteuid() == 0:  # nothing is forbidden to root

        def forbidden(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", forbidden)
    assert reason(path) == "cannot be read: Permission denied"


def test_a_bomb_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(raw_png(60_000, 60_000, 8, 0, b""))
    assert reason(tmp_path / "a.png").startswith("claims to have more than")
    Image.fromarray(RGB).save(tmp_path / "small.png")
    monkeypatch.setattr(decode, "MAX_PIXELS", RGB.shape[0] * RGB.shape[1] - 1)
    assert reason(tmp_path / "small.png").startswith("claims to have more than")
    monkeypatch.setattr(decode, "MAX_PIXELS", RGB.shape[0] * RGB.shape[1])
    decode_image(tmp_path / "small.png")


def test_channels(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    grey = decode_image(tmp_path / "rgb.png", channels=1)
    assert np.array_equal(grey.pixels[..., 0], np.array(Image.fromarray(RGB).convert("L")))
    assert grey.notes == ("colour reduced to grey",)
    colour = decode_image(tmp_path / "grey.png", channels=3)
    assert np.array_equal(colour.pixels, np.repeat(GREY[..., None], 3, axis=2))
    assert colour.notes == ()


@given(arrays(np.uint8, (11, 17, 3)), st.tuples(st.integers(1, 24), st.integers(1, 24)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("torchvision")
def test_resizing_is_torchvisions(tmp_path: Path, pixels: UInt8Array, size: tuple[int, int]) -> None:
    from torchvision.transforms import Resize

    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.array(Resize(size)(Image.fromarray(pixels)))
    assert np.array_equal(decode_image(tmp_path / "a.png", size=size).pixels, expected)
