"""One encrypted image as a PNG file (docs/cipher.md, "Files")."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ppfed.ciphers.spec import CipherSpec, Scope, is_fingerprint
from ppfed.errors import DataError
from ppfed.images.decode import MAX_PIXELS, open_regular, reason_for
from ppfed.images.types import ID_BYTES, EncryptedImages, UInt8Array

_CIPHER = "ppfed-cipher"
_SCOPE = "ppfed-scope"
_SHUFFLE = "ppfed-shuffle"
_KEY = "ppfed-key"
_ID = "ppfed-id"

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_STORED = 0
"""The level at which zlib only copies: ciphertext does not compress."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_HEX_ID = re.compile(rf"[0-9a-f]{{{2 * ID_BYTES}}}")
_HEADER_BYTES = 32
_DEPTH_AT, _COLOUR_AT = 24, 25
_GREY, _RGB = 0, 2


def encode_encrypted_png(images: EncryptedImages) -> bytes:
    """Encode one encrypted image.

    Parameters
    ----------
    images : EncryptedImages, N = 1

    Raises
    ------
    TypeError
        If given anything but encrypted images.
    ValueError
        If there is not exactly one.
    """
    # Checked at run time too: this is where a mistake would write a plain image under the name of an encrypted one.
    if not isinstance(images, EncryptedImages):
        raise TypeError(f"only EncryptedImages are stored as such, not {type(images).__name__}")
    if len(images) != 1:
        raise ValueError(f"one image at a time, not {len(images)}")
    texts = {
        _CIPHER: images.cipher.name,
        _SCOPE: str(images.cipher.scope),
        _SHUFFLE: str(int(images.cipher.colour_shuffle)),
        _KEY: images.fingerprint,
    }
    if images.cipher.scope is Scope.IMAGE:
        texts[_ID] = images.ids[0].tobytes().hex()
    return _stored_png(images.pixels[0], texts)


def encode_png(pixels: UInt8Array) -> bytes:
    """Encode an image of (H, W, 1 or 3) as an 8-bit PNG, compressed."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _stored_png(pixels: UInt8Array, texts: Mapping[str, str]) -> bytes:
    """Encode an image of (H, W, 1 or 3) as an 8-bit PNG without compressing it (ISO/IEC 15948).

    Pillow tries five filters on each row, at level 0 too, and takes 20 times as long for 224x224.
    """
    height, width, channels = pixels.shape
    header = _HEADER.pack(width, height, 8, _GREY if channels == 1 else _RGB, 0, 0, 0)
    return b"".join(
        [
            _SIGNATURE,
            *_packed(b"IHDR", header),
            *(part for name, text in texts.items() for part in _packed(b"tEXt", f"{name}\0{text}".encode("latin-1"))),
            *_packed(b"IDAT", zlib.compress(_rows(pixels).data, _STORED)),
            *_packed(b"IEND", b""),
        ]
    )


def _rows(pixels: UInt8Array) -> UInt8Array:
    """Set the number of its filter before each row: 0, for none."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, width * channels)
    return rows


def _packed(kind: bytes, content: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the parts of a chunk; its checksum covers kind and content."""
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return len(content).to_bytes(4, "big"), kind, content, checksum.to_bytes(4, "big")


def read_encrypted_png(path: Path) -> EncryptedImages:
    """Read one encrypted image.

    In fixed scope no id is stored; the first 12 bytes of the SHA-256 of the pixels stand in for it.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If it is no such file. The message names the path.
    """
    try:
        return _read(path)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", hint=error.hint) from error.__cause__


def _read(path: Path) -> EncryptedImages:
    with open_regular(path) as file:
        header = file.read(_HEADER_BYTES)
        file.seek(0)
        try:
            with Image.open(file, formats=("PNG",)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                chunks = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
                frames = int(getattr(image, "n_frames", 1))
                pixels = np.array(image)
        # Pillow raises nearly anything on a damaged file.
        except Exception as error:
            raise DataError(reason_for(error, header)) from error
    if _CIPHER not in chunks:
        raise DataError("not encrypted by ppfed")
    if header[_DEPTH_AT] != 8 or header[_COLOUR_AT] not in (_GREY, _RGB) or frames != 1:
        raise DataError("not an 8-bit grey or RGB image, as encrypted ones are: another program has changed it")
    cipher, fingerprint = _parameters(chunks)
    pixels = pixels.reshape(1, *pixels.shape[:2], -1)
    if cipher.scope is Scope.IMAGE:
        image_id = bytes.fromhex(_chunk(chunks, _ID, _HEX_ID))
    else:
        image_id = hashlib.sha256(pixels.data).digest()[:ID_BYTES]
    ids = np.frombuffer(image_id, dtype=np.uint8).reshape(1, ID_BYTES)
    return EncryptedImages(pixels, ids, cipher, fingerprint)


def _parameters(chunks: Mapping[str, str]) -> tuple[CipherSpec, str]:
    name = _chunk(chunks, _CIPHER, _NAME)
    scope = _chunk(chunks, _SCOPE, re.compile("|".join(Scope)))
    shuffle = _chunk(chunks, _SHUFFLE, re.compile("[01]"))
    fingerprint = chunks.get(_KEY, "")
    if not is_fingerprint(fingerprint):
        raise _damaged(chunks, _KEY)
    return CipherSpec(name, Scope(scope), colour_shuffle=shuffle == "1"), fingerprint


def _chunk(chunks: Mapping[str, str], name: str, form: re.Pattern[str]) -> str:
    value = chunks.get(name, "")
    if form.fullmatch(value) is None:
        raise _damaged(chunks, name)
    return value


def _damaged(chunks: Mapping[str, str], name: str) -> DataError:
    what = "is malformed" if name in chunks else "is missing"
    return DataError(f"its text chunk {name} {what}", hint="Encrypt the original again.")
