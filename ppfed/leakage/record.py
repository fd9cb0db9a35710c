"""The leakage card as data: what each attack restored of images that a cipher hid, in numbers.

Nothing here needs a key, so that the coordinator can write a card into a model folder.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ppfed.federation import CipherSettings, Exchange

EXACT_PSNR_DB = 100.0
"""Stands for the infinite PSNR of an exact copy, so that means exist."""

ORIGINAL_KEY = "original"
CIPHERTEXT_KEY = "ciphertext"
"""Name the pictures of what an attack was to restore, and of what it saw, beside ``AttackOutcome.picture_key``."""


class AttackName(StrEnum):
    """The attacks, in the order in which cards list them (docs/leakage.md)."""

    FOLD = "fold"
    """Fresh masks, ciphertexts only: the value that NP leaves."""
    UNFOLD = "unfold"
    """Fresh masks, ciphertexts only: the strongest classical solver."""
    SAME_MASK = "same-mask"
    """One mask for all, ciphertexts only: what neighbouring values have in common gives the mask."""
    FREQUENCIES = "frequencies"
    """One key stream for all, ciphertexts only: how often values occur gives masks, how they vary together places."""
    CORRELATIONS = "correlations"
    """ELE, one key stream for all, ciphertexts only: how 4-bit values vary together tells what each one is."""
    KNOWN_PLAINTEXT = "known-plaintext"
    """One key stream for all: read off from a few pairs."""
    CHOSEN_PLAINTEXT = "chosen-plaintext"
    """One key stream for all: read off from one image of the attacker's choice."""
    BIT_PLANES = "bit-planes"
    """LE, ciphertexts only: which bits stand where."""
    JIGSAW = "jigsaw"
    """Block ciphers: put the blocks together by their edges."""
    TEMPLATE = "template"
    """Block ciphers with one key stream: the map of a block, from pairs."""
    INVERSION = "inversion"
    """A network trained on the attacker's own images under its own keys."""
    LEARNED_EDGES = "learned-edges"
    """Fresh masks: the classical solver with evidence from a network trained on the attacker's own images."""
    LEARNED_SEAMS = "learned-seams"
    """Block ciphers, fresh key streams: the jigsaw solver with a network's word on which blocks are neighbours."""
    LEAKED_PAIRS = "leaked-pairs"
    """One key stream for all: the same network trained on leaked pairs."""
    UNPAIRED = "unpaired"
    """A network trained on the ciphertexts against images of the attacker's own, without pairs."""
    CHOSEN_WEIGHTS = "chosen-weights"
    """Gradients or updates at weights that the coordinator chose to read images off them; encrypted images come out."""
    GRADIENTS = "gradients"
    """Gradient or update inversion at weights that anybody trains; what comes out is the encrypted image."""
    COLLUSION = "collusion"
    """An owner hands over the key."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measure(_Frozen):
    """A number over images.

    Attributes
    ----------
    mean : float
    spread : float
        Standard deviation over the images.
    """

    mean: float
    spread: float = Field(ge=0)


class Resemblance(_Frozen):
    """How much images resemble the originals.

    Attributes
    ----------
    images : int
        So many were compared.
    ssim : Measure
        Structural similarity of the grey images, -1 to 1 (Wang et al., IEEE TIP 2004; window of 7 pixels). Of an image
        and its negative the better one counts: an attacker sees which it is.
    psnr_db : Measure
        Peak signal-to-noise ratio over all channels, in dB, of the same choice; at most 100, which is an exact copy.
    feature_distance : Measure or None
        Distance of the features that a network trained on plain images computes (``Judge``): 0 for an exact copy.
    reidentified : float
        How often the original is the nearest of ``candidates`` originals to what was restored, 0 to 1.
    candidates : int
    median_rank : float
        Of the original among the candidates; 1 is best, half the candidates is chance.
    pair_accuracy : float
        How often the original is nearer than one other image, 0 to 1; 0.5 is chance.
    class_accuracy : float or None
        How often a classifier trained on plain images names the class, 0 to 1.
    """

    images: int = Field(ge=1)
    ssim: Measure
    psnr_db: Measure
    feature_distance: Measure | None = None
    reidentified: float = Field(ge=0, le=1)
    candidates: int = Field(ge=2)
    median_rank: float = Field(ge=1)
    pair_accuracy: float = Field(ge=0, le=1)
    class_accuracy: float | None = Field(default=None, ge=0, le=1)


class AttackOutcome(_Frozen):
    """What one attack got.

    Attributes
    ----------
    attack : AttackName
    setting : str
        What tells this run of the attack from others of the same name: ``5 pairs``, ``batch of 8``; may be empty.
    needs : str
        What the attacker must have, in words.
    resemblance : Resemblance
        Of what it restored.
    bits : float or None
        Part of the key stream's bits that it found, 0 to 1; 0.5 is chance. None for attacks that look for no bits.
    seconds : float
        It took, training included.
    """

    attack: AttackName
    setting: str = Field(default="", max_length=120)
    needs: str = Field(max_length=300)
    resemblance: Resemblance
    bits: float | None = Field(default=None, ge=0, le=1)
    seconds: float = Field(ge=0)

    @property
    def picture_key(self) -> str:
        """Name of its pictures: the attack, and its setting if it has one."""
        return f"{self.attack} {self.setting}".rstrip()


class CandidateMatch(_Frozen):
    """How well an attacker that has candidate pictures tells which of them was sent, restoring none.

    Attributes
    ----------
    images : int
        So many that were sent were compared.
    candidates : int
        The attacker has so many pictures, the original among them.
    reidentified : float
        How often the original fits best, 0 to 1; one of k that fit as well counts 1/k.
    pair_accuracy : float
        How often it fits better than one other, 0 to 1; 0.5 is chance.
    certain : float
        How often the original fits without any difference, and no other candidate does, 0 to 1.
    """

    images: int = Field(ge=1)
    candidates: int = Field(ge=2)
    reidentified: float = Field(ge=0, le=1)
    pair_accuracy: float = Field(ge=0, le=1)
    certain: float = Field(ge=0, le=1)


class LeakageRecord(_Frozen):
    """All attacks on one cipher, scope and exchange.

    Attributes
    ----------
    cipher : CipherSettings or None
        None for images that are not encrypted: the control.
    exchange : Exchange
        What the attacker was sent.
    height, width, channels : int
    data : str
        The images in words, without a path.
    preset : str
        What was spent on learned attacks.
    ciphertext, perfect : Resemblance
        The two baselines: the encrypted images as they are, and the originals themselves.
    attacks : tuple of AttackOutcome
    by_candidates : CandidateMatch or None
        What an attacker tells that has candidate pictures. None where it was not measured, as in older records and
        where no image is sent, or no way is known.
    """

    cipher: CipherSettings | None
    exchange: Exchange = Exchange.IMAGES
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: int = Field(ge=1)
    data: str = Field(max_length=200)
    preset: str = Field(max_length=40)
    ciphertext: Resemblance
    perfect: Resemblance
    attacks: tuple[AttackOutcome, ...] = ()
    by_candidates: CandidateMatch | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        named = [(outcome.attack, outcome.setting) for outcome in self.attacks]
        if len(set(named)) != len(named):
            raise ValueError("an attack is listed twice")
        return self

    @property
    def strongest(self) -> AttackOutcome | None:
        """The attack without the key that restored most, by SSIM; None where there is none.

        Where no image is sent, of those that restored as much to two digits, the last: it reads most images at once.
        """
        others = [outcome for outcome in self.attacks if outcome.attack is not AttackName.COLLUSION]
        if self.exchange is Exchange.IMAGES:
            return max(others, key=lambda outcome: outcome.resemblance.ssim.mean, default=None)
        return max(reversed(others), key=lambda outcome: round(outcome.resemblance.ssim.mean, 2), default=None)
