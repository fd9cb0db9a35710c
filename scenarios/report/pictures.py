"""Pictures of what each cipher makes of an image: of a drawn one, so that a report shows nobody's data."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ppfed.attacks.values.fold import keyless_view
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec
from ppfed.errors import PPFedError
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from scenarios.declaration import Scale, Scenario

LARGEST_SIDE = 96
"""Ciphertext does not compress, and a report stays small: larger images are shown at this size."""

_SHOWN_SIDE = 160
_FINE = 8
"""Shapes are drawn so much larger and then reduced, so that their edges are smooth as in a photograph."""

_FOLDS = "np-"


@dataclass(frozen=True)
class Tile:
    """One picture.

    Attributes
    ----------
    caption : str
    png : bytes
    """

    caption: str
    png: bytes


@dataclass(frozen=True)
class CipherPictures:
    """What one cipher does.

    Attributes
    ----------
    cipher : str
        In words.
    tiles : tuple of Tile
    problem : str
        Why there are none; else empty.
    """

    cipher: str
    tiles: tuple[Tile, ...]
    problem: str = ""


def drawn_image(side: int) -> UInt8Array:
    """Draw a house between a tree and a hill, under the sun.

    Parameters
    ----------
    side : int
        In pixels.

    Returns
    -------
    uint8 array, (side, side, 3)
        The same at every call.
    """
    fine = side * _FINE
    rise = np.linspace(0.0, 1.0, fine)[:, None, None]
    sky = np.array([62, 120, 200]) * (1 - rise) + np.array([225, 205, 185]) * rise
    canvas = Image.fromarray(np.broadcast_to(sky, (fine, fine, 3)).round().astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(canvas)

    def shape(*points: float) -> list[float]:
        return [point * fine for point in points]

    draw.ellipse(shape(0.66, 0.08, 0.88, 0.30), fill=(250, 214, 70))
    draw.ellipse(shape(-0.35, 0.58, 0.75, 1.60), fill=(58, 128, 62))
    draw.ellipse(shape(0.30, 0.68, 1.45, 1.70), fill=(96, 158, 70))
    draw.rectangle(shape(0.42, 0.48, 0.80, 0.82), fill=(226, 218, 200))
    draw.polygon(shape(0.37, 0.49, 0.61, 0.29, 0.85, 0.49), fill=(170, 52, 44))
    draw.rectangle(shape(0.56, 0.62, 0.66, 0.82), fill=(92, 58, 40))
    draw.rectangle(shape(0.47, 0.55, 0.54, 0.63), fill=(60, 92, 130))
    draw.rectangle(shape(0.69, 0.55, 0.76, 0.63), fill=(60, 92, 130))
    draw.rectangle(shape(0.17, 0.60, 0.22, 0.84), fill=(84, 58, 38))
    draw.ellipse(shape(0.06, 0.32, 0.33, 0.66), fill=(28, 88, 48))
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def cipher_pictures(scenario: Scenario, scale: Scale) -> list[CipherPictures]:
    """Show each distinct cipher of a scenario under a key that is drawn here and forgotten.

    Each encrypts the same picture twice, which shows what the scope means. For the negative-positive transform there is
    also what the fold takes from it without the key.
    """
    sides: dict[CipherSpec, int] = {}
    plain_side = 0
    for arm in scenario.arms:
        side = min(arm.size or scenario.budget(scale).size, LARGEST_SIDE)
        if arm.spec is None:
            plain_side = max(side, plain_side)
        else:
            sides[arm.spec] = max(side, sides.get(arm.spec, 0))
    plain_side = plain_side or max(sides.values())
    key = MasterKey.generate()
    shown = [CipherPictures("plain", (_tile(f"drawn, {plain_side} x {plain_side} pixels", drawn_image(plain_side)),))]
    return shown + [_encrypted(spec, side, key) for spec, side in sides.items()]


def _encrypted(spec: CipherSpec, side: int, key: MasterKey) -> CipherPictures:
    picture = drawn_image(side)
    try:
        encrypted = make_cipher(spec, key).encrypt(PlainImages(np.stack([picture, picture])))
    except (PPFedError, ValueError) as error:
        problem = error.message if isinstance(error, PPFedError) else str(error)
        return CipherPictures(str(spec), (), problem)
    tiles = [_tile("encrypted", encrypted.pixels[0]), _tile("the same picture again", encrypted.pixels[1])]
    if spec.name.startswith(_FOLDS):
        tiles.append(_tile("without the key: the fold", keyless_view(encrypted)[0]))
    return CipherPictures(str(spec), tuple(tiles))


def _tile(caption: str, pixels: UInt8Array) -> Tile:
    factor = max(1, _SHOWN_SIDE // pixels.shape[0])
    grown = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    return Tile(caption, png_of(grown))


def png_of(pixels: UInt8Array) -> bytes:
    """Write pixels, uint8 of shape (H, W, 1 or 3), as PNG."""
    image = Image.fromarray(pixels[..., 0], "L") if pixels.shape[2] == 1 else Image.fromarray(pixels, "RGB")
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return data.getvalue()
