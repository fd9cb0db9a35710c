"""One image file to one array: the only place where ppfed lets Pillow look at an owner's files.

NumPy, and those parts of Pillow that few files need, are imported on first use: the processes of
``ppfed/images/decoder_process.py`` take half as long to start without them.
"""

# ruff: noqa: PLC0415 -- as said above

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from PIL import Image, UnidentifiedImageError

from ppfed.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ppfed.images.types import UInt8Array

SUPPORTED = "PNG, JPEG, WebP, BMP or TIFF"
SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff"})
"""What image files are called. Used for files outside class folders only: inside, the content decides."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""The Pillow plugins that may parse a file; the rarer ones are an attack surface without a use here."""

MAX_PIXELS = 1 << 27
"""Larger images are refused: a small file can claim any size, and 134 megapixels are 400 MB in memory."""

LARGE_PIXELS = 1 << 25
"""Images above it are decoded one at a time (`ppfed/images/decoders.py`): 33 megapixels are 100 MB, and several times
that while they are converted."""

MOST_HELD_BYTES = 1 << 26
"""Once a group's pixels are more than this, the rest of it is not read: a small file can hold megabytes of them."""

Loaded = TypeVar("Loaded")

_STRIP_PIXELS = 1 << 20
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_HEADER_BYTES = 32
_PNG_DEPTH_AT = 24
_BITS_TAG, _PHOTOMETRIC_TAG = 258, 262  # TIFF 6.0
_WHITE_IS_ZERO = 0
_WIDE_GREY = "I;16"
_USUAL_BITS = (8, 10, 12, 13)
"""What instruments measure in, and exports put into the lowest of 16 bits as it is; the last leaves room above 12. The
least that holds all values is named, not their exact number of bits, in which images of one instrument differ."""
_FAINT_NOTE = "16-bit, but only the lowest"
_CONVERTED = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "RGBX": "RGB", "HSV": "RGB"}

# EXIF 2.32, tag 0x0112: what brings a picture upright again.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class LargeImageError(DataError):
    """An image that is larger than was asked for, and may be asked for again."""


class LoadedImage(NamedTuple):
    """One image as Pillow holds it, and what was lost on the way.

    Attributes
    ----------
    image : PIL.Image.Image
        Of mode L or RGB.
    notes : tuple of str
        Lossy conversions, such as ``16-bit reduced to 8 bits``.
    """

    image: Image.Image
    notes: tuple[str, ...]


class DecodedImage(NamedTuple):
    """One image and what was lost on the way.

    Attributes
    ----------
    pixels : uint8 array, (H, W, C), C is 1 or 3
    notes : tuple of str
        Lossy conversions, such as ``16-bit reduced to 8 bits``.
    """

    pixels: UInt8Array
    notes: tuple[str, ...]


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep Pillow's warnings to itself: what it warns of is in the report, as a reason or a note, or harms nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def asks_for_action(note: str) -> bool:
    """Whether a note warns: images are used as they are, but hardly as their owner means it."""
    return note.startswith(_FAINT_NOTE)


def decode_image(
    path: Path, *, size: tuple[int, int] | None = None, channels: int | None = None, most_pixels: int = MAX_PIXELS
) -> DecodedImage:
    """Decode an image file to an array. Parameters and errors are those of `load_image`."""
    import numpy as np

    loaded = load_image(path, size=size, channels=channels, most_pixels=most_pixels)
    try:
        pixels = np.array(loaded.image)
    except MemoryError as error:
        raise DataError(reason_for(error, b"")) from error
    return DecodedImage(pixels if pixels.ndim == 3 else pixels[:, :, None], loaded.notes)


def load_image(
    path: Path, *, size: tuple[int, int] | None = None, channels: int | None = None, most_pixels: int = MAX_PIXELS
) -> LoadedImage:
    """Decode an image file: EXIF orientation applied, transparency laid on white, 8 bits for each value.

    Parameters
    ----------
    path : Path
    size : (height, width) or None
        Stretch to it, without cropping, as ``torchvision.transforms.Resize((height, width))`` does.
    channels : 1, 3 or None
        None keeps grey images at one channel and gives all others three.
    most_pixels : int
        Images above ``MAX_PIXELS`` are refused anyway.

    Raises
    ------
    LargeImageError
        If the image is larger.
    DataError
        If the file cannot be used. The message is the reason alone, without the path.
    """
    with open_regular(path) as file:
        header = file.read(_HEADER_BYTES)
        file.seek(0)
        try:
            with Image.open(file, formats=FORMATS) as image:
                _refuse_unusable(image, most_pixels)
                image.load()
                return _prepared(image, header, size, channels)
        except DataError:
            raise
        # Pillow raises nearly anything on a damaged file: struct.error, SyntaxError, KeyError, zlib.error, ...
        except Exception as error:  # a reason for the owner, never a traceback
            raise DataError(reason_for(error, header)) from error


def load_group(
    paths: Iterable[Path], load: Callable[[Path], Loaded], size_bytes: Callable[[Loaded], int]
) -> list[Loaded | str | None]:
    """Load files one after another, so that what is held of them stays bounded.

    Parameters
    ----------
    paths : iterable of Path
    load : callable
        Loads a file; raises LargeImageError for one that is to wait.
    size_bytes : callable
        Tells how much is held of a file.

    Returns
    -------
    list
        Of each file what was loaded, or the reason why it cannot be used, or None: it is large, or comes after
        ``MOST_HELD_BYTES``.
    """
    results: list[Loaded | str | None] = []
    held_bytes = 0
    for path in paths:
        if held_bytes > MOST_HELD_BYTES:
            results.append(None)
            continue
        try:
            loaded = load(path)
        except LargeImageError:
            results.append(None)
        except DataError as error:
            results.append(error.message)
        except MemoryError as error:
            results.append(reason_for(error, b""))
        else:
            results.append(loaded)
            held_bytes += size_bytes(loaded)
    return results


def open_regular(path: Path) -> IO[bytes]:
    """Open a file that holds something.

    Raises
    ------
    DataError
        If it is missing, a broken link, no regular file, empty or unreadable. The message is the reason alone.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError("a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file")
        if status.st_size == 0:
            raise DataError("empty file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise DataError("broken link" if path.is_symlink() else "no such file") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error


def reason_for(error: Exception, header: bytes) -> str:
    """Say in the owner's words what Pillow, reading a file that begins with ``header``, means by ``error``."""
    if isinstance(error, Image.DecompressionBombError):
        return f"claims to have more than {MAX_PIXELS} pixels"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, UnidentifiedImageError) and not header.startswith(_MAGIC):
        return f"not a {SUPPORTED} image"
    if "truncated" in str(error).lower():
        return "truncated"
    return "damaged, or of a kind that Pillow cannot read"


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Stretch a grey or RGB image to (height, width): bilinear and antialiased, torchvision's default."""
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _refuse_unusable(image: Image.Image, most_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise DataError(f"claims to have more than {MAX_PIXELS} pixels")
    if pixels > most_pixels:
        raise LargeImageError(f"has more than {most_pixels} pixels")
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1 and image.format != "MPO":
        raise DataError(f"{frames} pages" if image.format == "TIFF" else f"animated, {frames} frames")
    if image.mode in ("I", "F"):
        raise DataError("32-bit integers or signed values" if image.mode == "I" else "32-bit floating point")


def _prepared(image: Image.Image, header: bytes, size: tuple[int, int] | None, channels: int | None) -> LoadedImage:
    # After load(), since the chunk may stand behind the pixels.
    if image.format == "PNG" and "ppfed-cipher" in image.info:
        raise DataError("already encrypted by ppfed")
    notes = []
    if image.format == "MPO":
        notes.append("first picture of a file with several taken")
    bits = _bits(image, header)
    if bits > 8:
        if "transparency" in image.info:
            raise DataError(f"{bits}-bit with a transparent colour")
        notes.append(_depth_note(image, bits))
    orientation, readable = _orientation(image)
    if not readable:
        notes.append("EXIF unreadable, orientation unknown")
    upright, conversion = _grey_or_rgb(image, bits)
    notes += conversion
    if orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[orientation])
    if channels == 1 and upright.mode == "RGB":
        upright = upright.convert("L")
        notes.append("colour reduced to grey")
    elif channels == 3 and upright.mode == "L":
        upright = upright.convert("RGB")
    if size is not None:
        upright = resize_image(upright, size)
    return LoadedImage(upright, tuple(notes))


def _bits(image: Image.Image, header: bytes) -> int:
    """Bits of each value in the file; Pillow's mode does not tell for colour, which it reduces by itself."""
    if image.format == "PNG":
        return header[_PNG_DEPTH_AT]
    if image.format == "TIFF":
        bits: tuple[int, ...] = _tiff_tag(image, _BITS_TAG, (1,))
        return max(bits)
    return 8


def _depth_note(image: Image.Image, bits: int) -> str:
    """Say that values are reduced to 8 bits, and whether next to nothing is left of them."""
    greatest = _greatest(image) if bits == 16 else None
    if greatest:  # An image that is black is black in any number of bits.
        for used in _USUAL_BITS:
            if greatest < 1 << used:
                end = "white" if _white_is_zero(image) else "black"
                return f"{_FAINT_NOTE} {used} bits are used: nearly {end} at 8 bits; rescale all images alike first"
    return f"{bits}-bit reduced to 8 bits"


def _greatest(image: Image.Image) -> int:
    """Greatest value of a 16-bit image; in colour, where Pillow keeps the high byte, the greatest that it may be."""
    import numpy as np

    if image.mode.startswith(_WIDE_GREY):
        return int(np.array(image).max())
    if not image.mode.startswith("RGB"):
        return 0
    colours = cast("tuple[tuple[int, int], ...]", image.getextrema())[:3]
    high = max(greatest for _, greatest in colours)
    return high << 8 | 0xFF if high else 0


def _white_is_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and bool(_tiff_tag(image, _PHOTOMETRIC_TAG, None) == _WHITE_IS_ZERO)


def _tiff_tag(image: Image.Image, tag: int, default: Any) -> Any:
    from PIL import TiffImagePlugin

    return image.tag_v2.get(tag, default) if isinstance(image, TiffImagePlugin.TiffImageFile) else default


def _orientation(image: Image.Image) -> tuple[int, bool]:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1)), True
    # Like a damaged image, damaged EXIF raises nearly anything; the pixels are sound all the same.
    except Exception:
        return 1, False


def _grey_or_rgb(image: Image.Image, bits: int) -> tuple[Image.Image, list[str]]:
    """Convert any mode to L or RGB."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image, []
    if image.mode.startswith(_WIDE_GREY):
        return _reduce_grey(image, bits), []
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode == "LAB":
        return _from_lab(image), ["CIELAB converted to RGB"]
    if image.mode not in _CONVERTED:
        raise DataError(f"pixels of kind {image.mode}")
    notes = ["CMYK converted to RGB without a colour profile"] if image.mode == "CMYK" else []
    return image.convert(_CONVERTED[image.mode]), notes


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise DataError("CIELAB that cannot be converted to RGB")
    return converted


def _reduce_grey(image: Image.Image, bits: int) -> Image.Image:
    """Scale 9- to 16-bit grey so that white stays white: divide by 257 and round, where there are 16 bits."""
    import numpy as np

    values: npt.NDArray[np.uint32] = np.array(image).astype(np.uint32)
    white = (1 << bits) - 1
    reduced = ((values * 255 + white // 2) // white).astype(np.uint8)
    # Pillow turns white-is-zero into black-is-zero for up to 8 bits only.
    if _white_is_zero(image):
        reduced = 255 - reduced
    return Image.fromarray(reduced)


def _on_white(image: Image.Image) -> tuple[Image.Image, list[str]]:
    # Strip by strip: several copies are made, and an image may have 134 million pixels.
    flat = Image.new("L" if image.mode in ("1", "L", "LA", "La") else "RGB", image.size)
    opaque = True
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        # Pillow has no direct way from La to RGBA.
        coloured = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
        if coloured.getchannel("A").getextrema() != (255, 255):
            opaque = False
            coloured = Image.alpha_composite(Image.new("RGBA", coloured.size, (255, 255, 255, 255)), coloured)
        # Exact for grey, where red, green and blue are equal.
        flat.paste(coloured.convert(flat.mode), (0, top))
    return flat, [] if opaque else ["transparency laid on white"]


def shown(path: str) -> str:
    """Make a path printable: file names may hold bytes that are no UTF-8."""
    return os.fsencode(path).decode("utf-8", errors="replace")
