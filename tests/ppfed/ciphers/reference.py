"""All ciphers but NP value by value, as docs/cipher.md words them: slow, and sharing no code with ppfed.

Run as a script, with ``rivals-v1`` or ``later-v1``, it prints the vectors of that file in tests/vectors/.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Shape = tuple[int, int, int]
Draw = Callable[[str, int], bytes]
"""Keystream: for a use, so many bytes."""

FILES = {
    "rivals-v1": ("le-v1", "etc-v1", "logistic-rc4-v1", "ele-v1"),
    "later-v1": ("block-pixel-v1", "np2-v1"),
}
"""Each file of vectors with its ciphers."""

COLOUR_ORDERS = ["RGB", "RBG", "GRB", "GBR", "BRG", "BGR"]


def hkdf(secret: bytes, label: str, length: int = 32) -> bytes:
    """RFC 5869 with an empty salt; one block of SHA-256 is enough."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, label.encode() + b"\x01", hashlib.sha256).digest()[:length]


def keystream(key: bytes, nonce: bytes, length: int) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(nonce + bytes(4))).encryptor().update(bytes(length))


def fixed_nonce(shape: Shape) -> bytes:
    return b"".join(side.to_bytes(4, "big") for side in shape)


def encrypt(
    name: str, secret: bytes, image_id: bytes | None, shape: Shape, image: bytes, *, colour_shuffle: bool = False
) -> bytes:
    """Encrypt one image; no id means fixed scope."""
    scope = "fixed" if image_id is None else "image"
    nonce = fixed_nonce(shape) if image_id is None else image_id

    def draw(use: str, length: int) -> bytes:
        return keystream(hkdf(secret, f"ppfed/v1/{name.removesuffix('-v1')}/{scope}/{use}"), nonce, length)

    ciphers: dict[str, Callable[[Draw, Shape, bytes], bytes]] = {
        "le-v1": _le,
        "ele-v1": _ele,
        "etc-v1": _etc,
        "logistic-rc4-v1": _logistic_rc4,
        "block-pixel-v1": _block_pixel,
        "np2-v1": partial(_np2, colour_shuffle=colour_shuffle),
    }
    return ciphers[name](draw, shape, image)


def _bit(data: bytes, number: int) -> int:
    return data[number // 8] >> (number % 8) & 1


def _word(data: bytes, number: int, size: int) -> int:
    return int.from_bytes(data[size * number : size * (number + 1)], "little")


def _order(words: list[int]) -> list[int]:
    """Sort positions by words whose low bits are replaced by the position."""
    bits = 0
    while 2**bits < len(words):
        bits += 1
    return sorted(range(len(words)), key=lambda position: words[position] // 2**bits * 2**bits + position)


def _cut(shape: Shape, image: bytes) -> list[list[int]]:
    height, width, channels = shape
    return [
        [
            image[((top + row) * width + left + column) * channels + channel]
            for row in range(4)
            for column in range(4)
            for channel in range(channels)
        ]
        for top in range(0, height, 4)
        for left in range(0, width, 4)
    ]


def _join(shape: Shape, blocks: list[list[int]]) -> bytes:
    height, width, channels = shape
    image = bytearray(height * width * channels)
    for number, block in enumerate(blocks):
        top, left = number // (width // 4) * 4, number % (width // 4) * 4
        for place, value in enumerate(block):
            row, column, channel = place // channels // 4, place // channels % 4, place % channels
            image[((top + row) * width + left + column) * channels + channel] = value
    return bytes(image)


def _nibble_block(block: list[int], reverse: list[int], words: list[int]) -> list[int]:
    nibbles = [value % 16 for value in block] + [value // 16 for value in block]
    nibbles = [15 - nibble if flag else nibble for nibble, flag in zip(nibbles, reverse, strict=True)]
    nibbles = [nibbles[old] for old in _order(words)]
    return [nibbles[place] + 16 * nibbles[place + len(block)] for place in range(len(block))]


def _le(draw: Draw, shape: Shape, image: bytes) -> bytes:
    count = 32 * shape[2]
    bits, data = draw("reverse", count // 8), draw("shuffle", 8 * count)
    reverse = [_bit(bits, number) for number in range(count)]
    words = [_word(data, number, 8) for number in range(count)]
    return _join(shape, [_nibble_block(block, reverse, words) for block in _cut(shape, image)])


def _ele(draw: Draw, shape: Shape, image: bytes) -> bytes:
    blocks, count = _cut(shape, image), 32 * shape[2]
    bits, data = draw("reverse", len(blocks) * count // 8), draw("shuffle", 8 * len(blocks) * count)
    scrambled = []
    for number, block in enumerate(blocks):
        mine = range(number * count, (number + 1) * count)
        scrambled.append(_nibble_block(block, [_bit(bits, i) for i in mine], [_word(data, i, 8) for i in mine]))
    data = draw("scramble", 8 * len(blocks))
    return _join(shape, [scrambled[old] for old in _order([_word(data, i, 8) for i in range(len(blocks))])])


def _etc(draw: Draw, shape: Shape, image: bytes) -> bytes:
    blocks, channels = _cut(shape, image), shape[2]
    turns, bits, words = (
        draw("turn", len(blocks)),
        draw("negate", len(blocks) // 8 + 1),
        draw("colour", 4 * len(blocks)),
    )
    changed = []
    for number, block in enumerate(blocks):
        pixels = [[tuple(block[(row * 4 + column) * channels :][:channels]) for column in range(4)] for row in range(4)]
        for _ in range(turns[number] % 4):
            pixels = [[pixels[column][3 - row] for column in range(4)] for row in range(4)]
        if turns[number] // 4 % 2:
            pixels = [line[::-1] for line in pixels]
        if turns[number] // 8 % 2:
            pixels = pixels[::-1]
        if _bit(bits, number):
            pixels = [[tuple(255 - value for value in pixel) for pixel in line] for line in pixels]
        if channels == 3:
            order = COLOUR_ORDERS[_word(words, number, 4) * 6 >> 32]
            pixels = [[tuple(pixel["RGB".index(colour)] for colour in order) for pixel in line] for line in pixels]
        changed.append([value for line in pixels for pixel in line for value in pixel])
    data = draw("scramble", 8 * len(blocks))
    return _join(shape, [changed[old] for old in _order([_word(data, i, 8) for i in range(len(blocks))])])


def _logistic_rc4(draw: Draw, shape: Shape, image: bytes) -> bytes:
    height, width, channels = shape
    masked = bytes(a ^ b for a, b in zip(image, rc4(draw("rc4", 16), len(image)), strict=True))
    value = (2 * (_word(draw("logistic", 8), 0, 8) // 2**12) + 1) / 2**53
    for _ in range(1000):
        value = (3.99 * value) * (1.0 - value)
    orbit = []
    for _ in range(height * width):
        value = (3.99 * value) * (1.0 - value)
        orbit.append(value)
    # sorted() is stable: of equal values the earlier comes first.
    order = sorted(range(height * width), key=orbit.__getitem__)
    return b"".join(masked[channels * old : channels * (old + 1)] for old in order)


def rc4(key: bytes, length: int) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    stream, i, j = bytearray(), 0, 0
    for _ in range(length):
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        stream.append(state[(state[i] + state[j]) % 256])
    return bytes(stream)


def _block_pixel(draw: Draw, shape: Shape, image: bytes) -> bytes:
    blocks, channels = _cut(shape, image), shape[2]
    data = draw("shuffle", 8 * 16)
    inside = _order([_word(data, number, 8) for number in range(16)])
    shuffled = [[block[old * channels + channel] for old in inside for channel in range(channels)] for block in blocks]
    data = draw("scramble", 8 * len(blocks))
    return _join(shape, [shuffled[old] for old in _order([_word(data, i, 8) for i in range(len(blocks))])])


def _np2(draw: Draw, shape: Shape, image: bytes, *, colour_shuffle: bool) -> bytes:
    masks, tops = draw("mask", len(image) // 8 + 1), draw("top", len(image) // 8 + 1)
    values = list(image)
    for number in range(len(values)):
        if _bit(masks, number):
            values[number] = 255 - values[number]
        if _bit(tops, number):
            values[number] = (values[number] + 128) % 256
    if colour_shuffle and shape[2] == 3:
        words = draw("shuffle", 4 * len(values) // 3)
        for pixel in range(len(values) // 3):
            order = COLOUR_ORDERS[_word(words, pixel, 4) * 6 >> 32]
            old = dict(zip("RGB", values[3 * pixel : 3 * pixel + 3], strict=True))
            values[3 * pixel : 3 * pixel + 3] = [old[colour] for colour in order]
    return bytes(values)


def vectors(file: str) -> list[dict[str, Any]]:
    """Make the vectors of a file; those of ciphers that have the option of a colour shuffle say whether it is on."""
    keys = [bytes(range(32)), bytes(range(255, 223, -1))]
    image_id = bytes(range(12))
    cases: list[tuple[str, bytes, bytes | None, Shape]] = [
        ("fixed scope", keys[0], None, (8, 12, 3)),
        ("image scope", keys[0], image_id, (8, 12, 3)),
        ("image scope, one channel", keys[0], image_id, (12, 8, 1)),
        ("image scope, other key and id", keys[1], image_id[::-1], (4, 8, 3)),
        ("fixed scope, one block", keys[1], None, (4, 4, 1)),
    ]
    made = []
    for name in FILES[file]:
        sizes: list[tuple[str, bytes, bytes | None, Shape]] = [*cases]
        if name in ("logistic-rc4-v1", "np2-v1"):
            sizes.append(("image scope, sides that are no multiples of 4", keys[0], image_id, (3, 5, 3)))
        for number, (title, key, number_id, shape) in enumerate(sizes):
            image = random.Random(number).randbytes(shape[0] * shape[1] * shape[2])
            for shuffle in (True, False) if name == "np2-v1" else (None,):
                ciphertext = encrypt(name, key, number_id, shape, image, colour_shuffle=bool(shuffle))
                option = {} if shuffle is None else {"colour_shuffle": shuffle}
                made.append(
                    {
                        "name": f"{name}, {title}" + (", no colour shuffle" if shuffle is False else ""),
                        "cipher": name,
                        "key": key.hex(),
                        "fingerprint": hkdf(key, "ppfed/v1/fingerprint", 8).hex(),
                        "shape": list(shape),
                        "image": image.hex(),
                        "image_id": None if number_id is None else number_id.hex(),
                        **option,
                        "ciphertext": ciphertext.hex(),
                    }
                )
    return made


if __name__ == "__main__":
    print(json.dumps(vectors(sys.argv[1]), indent=1))
