"""A leakage record in words: what each attacker does, a table, and one sentence with its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ppfed.federation import CipherSettings, Exchange
from ppfed.leakage.record import (
    EXACT_PSNR_DB,
    AttackName,
    AttackOutcome,
    CandidateMatch,
    LeakageRecord,
    Measure,
    Resemblance,
)

NOTHING = "\N{EN DASH}"
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_MINUS = "\N{MINUS SIGN}"

CIPHERTEXT = "Ciphertext"
PERFECT = "Perfect copy"
NOT_CONFIDENTIAL = "Visual obfuscation, not confidentiality: it hides images from a glance, not from an attacker."

VERDICT = (
    "No visual cipher that ppfed has measured is worth calling protection: where the coordinator must not see the "
    "images, use exchange 'updates', which sends none, with a coordinator that you trust to train as agreed: one that "
    "chooses the weights reads images off single steps and off whole passes (docs/leakage.md)."
)

RIGHT_ONE_RESTORED = "right one of {count:,} by the restored picture"
RIGHT_ONE_BY_CANDIDATES = "right one of {count:,} by candidates"
"""Heads of columns: found with what an attack restored, or among pictures that the attacker has, restoring none."""

_CERTAIN = 0.99
"""Part of the images from which on an attacker is said to know."""
_ERRORS = 2.0
"""What lies within two standard errors of the ciphertext is not called better than it."""


@dataclass(frozen=True)
class AttackWords:
    """An attack in words.

    Attributes
    ----------
    title : str
    does : str
        What the attacker does; goes after "A coordinator that".
    detail : str
        Goes after that where there is room.
    source : str
        Where it was published, or that it is ours.
    """

    title: str
    does: str
    detail: str
    source: str

    @property
    def line(self) -> str:
        """What the attacker does, as a line of its own."""
        return f"{self.does[0].upper()}{self.does[1:]}{self.detail}."


_OURS = "ours (docs/leakage.md)"
_CHANG_LI = "Chang and Li, arXiv 2004.13263"
_INVERSE_TRANSFORMATION = "inverse transformation attack, Sirichotedumrong and Kiya, arXiv 2010.06198"

ATTACKS: Mapping[AttackName, AttackWords] = MappingProxyType(
    {
        AttackName.FOLD: AttackWords(
            "Fold",
            "folds each value and its negative into one",
            ", which is all that a fresh mask leaves of it; needs no training",
            _OURS,
        ),
        AttackName.UNFOLD: AttackWords(
            "Classical solver",
            "guesses what the masks hide so that images become smooth",
            " and their colours likely; needs no training",
            _OURS,
        ),
        AttackName.SAME_MASK: AttackWords(
            "Ciphertexts of one mask",
            "reads the one mask off many ciphertexts",
            ", by what neighbouring values have in common",
            "ours (docs/leakage.md); with a network: arXiv 1912.04746",
        ),
        AttackName.FREQUENCIES: AttackWords(
            "Frequency analysis",
            "reads the one key stream off many ciphertexts and pictures of its own",
            ", by how often values occur and how pixels vary together",
            _OURS,
        ),
        AttackName.CORRELATIONS: AttackWords(
            "Correlations",
            "reads the one key stream off many ciphertexts and pictures of its own",
            ", by how 4-bit values vary together",
            _OURS,
        ),
        AttackName.KNOWN_PLAINTEXT: AttackWords(
            "Known plaintext",
            "reads the one key stream off a few images that it knows",
            ", as plain and as encrypted ones",
            _CHANG_LI,
        ),
        AttackName.CHOSEN_PLAINTEXT: AttackWords(
            "Chosen plaintext",
            "reads the one key stream off an image of its choice",
            ", which an owner was brought to encrypt",
            _CHANG_LI,
        ),
        AttackName.BIT_PLANES: AttackWords(
            "Bit planes",
            "tells bits apart by the statistics that their places keep",
            "; from a single ciphertext, or from many that share one key stream",
            "ours, after a remark of Chang and Li, arXiv 2004.13263",
        ),
        AttackName.JIGSAW: AttackWords(
            "Jigsaw solver",
            "puts the blocks together by their edges",
            ", like a jigsaw puzzle",
            "Gallagher, CVPR 2012; Chuman, Kurihara and Kiya, IEICE Transactions E101-D(1), 2018",
        ),
        AttackName.TEMPLATE: AttackWords(
            "Templates of blocks",
            "learns from images that it knows what the one key stream does to a block",
            "",
            _OURS,
        ),
        AttackName.INVERSION: AttackWords(
            "Trained on own images",
            "trains a network on pictures of its own",
            ", encrypted under keys of its own, to restore them",
            _INVERSE_TRANSFORMATION,
        ),
        AttackName.LEARNED_EDGES: AttackWords(
            "Solver with learned edges",
            "trains a network on pictures of its own to tell which pixels of an image have like masks",
            ", and settles all at once; in colour after the classical solver",
            _OURS,
        ),
        AttackName.LEARNED_SEAMS: AttackWords(
            "Jigsaw solver with learned seams",
            "trains a network on pictures of its own to tell which blocks of an image are neighbours",
            ", and puts them together as the jigsaw solver does",
            "ours, after Sholomon, David and Netanyahu, ICANN 2016",
        ),
        AttackName.LEAKED_PAIRS: AttackWords(
            "Trained on leaked pairs",
            "trains a network on leaked images and their ciphertexts",
            " to restore the others",
            _INVERSE_TRANSFORMATION,
        ),
        AttackName.UNPAIRED: AttackWords(
            "Trained without pairs",
            "trains a network to turn ciphertexts into what looks like pictures of its own",
            ", without one image of which it knows both",
            "GAN-based attack, Sirichotedumrong and Kiya, arXiv 2010.06198",
        ),
        AttackName.CHOSEN_WEIGHTS: AttackWords(
            "Chosen weights",
            "sends weights that turn what an owner sends back into equations in its pixels",
            ", and solves them; it finds encrypted images, told apart by brightness, or in narrow networks by label: "
            "then of those that share one the mean",
            "ours (docs/leakage.md), after Fowl et al., ICLR 2022, arXiv 2110.13057",
        ),
        AttackName.GRADIENTS: AttackWords(
            "Gradient inversion",
            "searches for the images that explain what an owner sent",
            "; what it finds are encrypted images",
            "Geiping et al., NeurIPS 2020, arXiv 2003.14053",
        ),
        AttackName.COLLUSION: AttackWords(
            "An owner hands over the key",
            "is handed the key by an owner",
            " and decrypts",
            "no attack: what a shared key means",
        ),
    }
)

_SENT = {
    Exchange.IMAGES: "encrypted images, once",
    Exchange.UPDATES: "weights trained on encrypted images, once a round; no image",
    Exchange.GRADIENTS: "gradients of encrypted images, once a step; no image",
}
_SENT_PLAIN = {exchange: words.replace("encrypted images", "plain images") for exchange, words in _SENT.items()}


MATCHED = (
    "Compares what the cipher leaves of an image whatever the key with the same of pictures that the attacker has, the "
    "original among them. It restores nothing, and needs the ciphertext alone."
)
"""What is done to find the right one by candidates."""


def title(outcome: AttackOutcome) -> str:
    """Name an attack with its setting."""
    words = ATTACKS[outcome.attack].title
    return f"{words}, {outcome.setting}" if outcome.setting else words


def cipher_words(cipher: CipherSettings | None) -> str:
    """Name the cipher."""
    return "none, the images are plain" if cipher is None else str(cipher.spec)


def exchange_words(record: LeakageRecord) -> str:
    """Say what owners send."""
    sent = _SENT_PLAIN if record.cipher is None else _SENT
    return f"{record.exchange}: owners send {sent[record.exchange]}"


def sentence(record: LeakageRecord) -> str:
    """Say in plain words what an attacker gets, with its numbers.

    Of the attacks that need no key: the strongest by SSIM, and another that tells images apart clearly better, if there
    is one; then what candidate pictures tell and what the key gives, if that was measured.
    """
    match = record.by_candidates
    if record.cipher is None and record.exchange is Exchange.IMAGES:
        text = f"These images are not encrypted: whoever is sent them {_has(record.ciphertext)}."
        return text if match is None or _is_exact(record.ciphertext) else f"{text} {_by_candidates(match)}"
    text = _without_key(record)
    if match is not None:
        text += f" {_by_candidates(match)}"
    collusion = [outcome for outcome in record.attacks if outcome.attack is AttackName.COLLUSION]
    if collusion:
        most = max(collusion, key=lambda outcome: outcome.resemblance.ssim.mean)
        text += f" With the key of one owner, a coordinator {_has(most.resemblance)}."
    return text


def markdown_table(record: LeakageRecord) -> str:
    """Write all numbers as a Markdown table: ciphertext, attacks, perfect copy."""
    baseline = record.ciphertext
    head = [
        "",
        f"SSIM (mean {_PLUS_MINUS} spread)",
        "PSNR (dB)",
        "feature distance",
        RIGHT_ONE_RESTORED.format(count=baseline.candidates),
        "right one of two",
        "class accuracy",
        "key bits found",
    ]
    rows = [_cells(CIPHERTEXT, baseline, baseline)]
    rows += [_cells(title(outcome), outcome.resemblance, baseline, outcome.bits) for outcome in record.attacks]
    rows += [_cells(PERFECT, record.perfect, baseline)]
    match = record.by_candidates
    if match is not None:
        # It takes the ciphertext and nothing that was made of it.
        head.append(RIGHT_ONE_BY_CANDIDATES.format(count=match.candidates))
        for row, cell in zip(rows, [part_words(match.reidentified), *[NOTHING] * (len(rows) - 1)], strict=True):
            row.append(cell)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def legend(record: LeakageRecord) -> str:
    """Say in a Markdown list what each attacker of the record does, what it needs and where it was published."""
    lines = []
    for outcome in record.attacks:
        words = ATTACKS[outcome.attack]
        needs = f"It needs {outcome.needs}."
        lines.append(f"- **{title(outcome)}.** {words.line} {needs} Source: {words.source}.")
    if record.by_candidates is not None:
        lines.append(f"- **By candidates.** {MATCHED} Source: {_OURS}.")
    return "".join(f"{line}\n" for line in lines)


def ssim_words(resemblance: Resemblance) -> str:
    """Write an SSIM: ``0.47``; ``1`` stands for an exact copy alone."""
    if _is_exact(resemblance):
        return "1"
    return f"{resemblance.ssim.mean:.2f}".replace("-", _MINUS) if resemblance.ssim.mean < 0.995 else "over 0.99"


def part_words(part: float) -> str:
    """Write a part as ``47 %``; ``0 %`` and ``100 %`` stand for none and all."""
    percent = 100 * part
    digits = 0 if 10 <= percent < 99 else 1
    rounded = round(percent, digits)
    if 0 < part < 0.0005:
        return "under 0.1 %"
    if part < 1 and rounded >= 100:
        return "over 99.9 %"
    return f"{rounded:g} %"


def _without_key(record: LeakageRecord) -> str:
    strongest, sent = record.strongest, record.ciphertext
    if strongest is None:
        return (
            f"No attack without the key was tried on these images. The ciphertext has SSIM {ssim_words(sent)} (1 is a "
            "copy), which says nothing of what an attacker gets."
        )
    others = [outcome for outcome in record.attacks if outcome.attack is not AttackName.COLLUSION]
    if record.cipher is not None and not any(_beats(outcome.resemblance, sent) for outcome in others):
        return _nothing_gained(record, [outcome.resemblance for outcome in others])
    text = f"A coordinator that {_does(strongest)} {_restores(record, strongest.resemblance)}."
    keenest = max(others, key=lambda outcome: outcome.resemblance.reidentified)
    if _tells_better(keenest.resemblance, strongest.resemblance):
        text += f" One that {_does(keenest)} {_tells(keenest.resemblance)}."
    return text


def _nothing_gained(record: LeakageRecord, tried: Sequence[Resemblance]) -> str:
    lead, most = (
        ("The one attack tried restores no", "") if len(tried) == 1 else ("No attack tried restores", " at most")
    )
    shown = ssim_words(max(tried, key=lambda found: found.ssim.mean))
    keenest = max(tried, key=lambda found: found.reidentified)
    return (
        f"{lead} more than the ciphertext shows: SSIM {shown}{most} ({_before(record)}, 1 is a copy), and it "
        f"tells by the restored picture which of {keenest.candidates:,} an image is in "
        f"{part_words(keenest.reidentified)} (guessing: {part_words(1 / keenest.candidates)}). A stronger attack may "
        "exist."
    )


def _before(record: LeakageRecord) -> str:
    sent = ssim_words(record.ciphertext)
    return f"{sent} as sent" if record.exchange is Exchange.IMAGES else f"{sent} encrypted"


def _does(outcome: AttackOutcome) -> str:
    does = ATTACKS[outcome.attack].does
    return f"{does} ({outcome.setting})" if outcome.setting else does


def _restores(record: LeakageRecord, shown: Resemblance) -> str:
    these = "these images, which are not encrypted," if record.cipher is None else "these images"
    if _is_exact(shown):
        return f"restores {these} exactly: SSIM 1" + ("" if record.cipher is None else f" ({_before(record)})")
    before = "" if record.cipher is None else f"{_before(record)}, "
    return f"restores {these} to SSIM {ssim_words(shown)} ({before}1 is a copy) and {_tells(shown)}"


def _tells(shown: Resemblance) -> str:
    told = part_words(shown.reidentified)
    return f"tells by the restored picture which of {shown.candidates:,} an image is in {told}"


def _by_candidates(match: CandidateMatch) -> str:
    if match.certain >= _CERTAIN:
        return (
            "Whoever has a picture, decoded to the same size, knows whether it was sent: of "
            f"{match.candidates:,} candidates the right one alone fits, in {part_words(match.certain)}."
        )
    return (
        f"Whoever has {match.candidates:,} candidate pictures tells which of them was sent in "
        f"{part_words(match.reidentified)}, restoring none."
    )


def _has(shown: Resemblance) -> str:
    if _is_exact(shown):
        return "has every image exactly"
    return f"has them with SSIM {ssim_words(shown)} (1 is a copy)"


def _is_exact(shown: Resemblance) -> bool:
    return shown.psnr_db.mean >= EXACT_PSNR_DB


def _beats(shown: Resemblance, sent: Resemblance) -> bool:
    error = math.hypot(_error(shown.ssim, shown.images), _error(sent.ssim, sent.images))
    return shown.ssim.mean - sent.ssim.mean > _ERRORS * error or _tells_better(shown, sent)


def _tells_better(shown: Resemblance, than: Resemblance) -> bool:
    error = math.hypot(*(_error_of_part(found.reidentified, found.images) for found in (shown, than)))
    return shown.reidentified - than.reidentified > _ERRORS * error


def _error(measure: Measure, images: int) -> float:
    return measure.spread / math.sqrt(images)


def _error_of_part(part: float, images: int) -> float:
    """Estimate the standard error of a part, never zero: one success and one failure are added (Agresti and Coull)."""
    shrunk = (part * images + 1) / (images + 2)
    return math.sqrt(shrunk * (1 - shrunk) / images)


def _cells(name: str, shown: Resemblance, baseline: Resemblance, bits: float | None = None) -> list[str]:
    among = "" if shown.candidates == baseline.candidates else f" (of {shown.candidates:,})"
    distance = shown.feature_distance
    return [
        _escaped(name),
        _spread(shown.ssim, 3),
        _spread(shown.psnr_db, 1),
        NOTHING if distance is None else _spread(distance, 3),
        part_words(shown.reidentified) + among,
        part_words(shown.pair_accuracy),
        NOTHING if shown.class_accuracy is None else part_words(shown.class_accuracy),
        NOTHING if bits is None else part_words(bits),
    ]


def _spread(measure: Measure, digits: int) -> str:
    return f"{measure.mean:.{digits}f} {_PLUS_MINUS} {measure.spread:.{digits}f}".replace("-", _MINUS)


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")
