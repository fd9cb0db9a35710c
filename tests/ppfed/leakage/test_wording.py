"""Records in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ppfed.ciphers.spec import Scope
from ppfed.federation import CipherSettings, Exchange
from ppfed.leakage.record import AttackName, AttackOutcome, CandidateMatch, LeakageRecord, Measure, Resemblance
from ppfed.leakage.reference import references
from ppfed.leakage.wording import (
    ATTACKS,
    NOTHING,
    cipher_words,
    exchange_words,
    legend,
    markdown_table,
    part_words,
    sentence,
    title,
)

MakeRecord = Callable[..., LeakageRecord]
MakeResemblance = Callable[..., Resemblance]


def test_every_attack_has_words() -> None:
    assert set(ATTACKS) == set(AttackName)
    assert len({words.title for words in ATTACKS.values()}) == len(AttackName)
    for words in ATTACKS.values():
        # The clause follows "A coordinator that": a verb in the present tense, or "is handed".
        assert words.does.split()[0].endswith("s")
        assert not words.does.endswith((".", ","))
        assert words.line[0].isupper()
        assert words.line.endswith(".")
        assert words.source
        for loaded in ("secure", "private"):
            assert loaded not in words.line


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (0, "0 %"),
        (0.0001, "under 0.1 %"),
        (0.001, "0.1 %"),
        (0.0472, "4.7 %"),
        (0.0996, "10 %"),
        (0.471, "47 %"),
        (0.994, "99.4 %"),
        (0.9995, "over 99.9 %"),
        (1, "100 %"),
    ],
)
def test_parts(part: float, words: str) -> None:
    assert part_words(part) == words


def test_the_strongest_attack_speaks(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    record = make_record(
        (AttackName.FOLD, "", make_resemblance(0.4, 0.3)),
        (AttackName.INVERSION, "", make_resemblance(0.47, 0.47)),
        (AttackName.COLLUSION, "", make_resemblance(1)),
    )
    assert sentence(record) == (
        "A coordinator that trains a network on pictures of its own restores these images to SSIM 0.47 (0.03 as sent, "
        "1 is a copy) and tells by the restored picture which of 1,000 an image is in 47 %. With the key of one owner, "
        "a coordinator has every image exactly."
    )


def test_what_reads_many_images_speaks_where_it_reads_as_much_of_them(
    make_record: MakeRecord, make_resemblance: MakeResemblance
) -> None:
    sent = [
        (AttackName.CHOSEN_WEIGHTS, f"{batch} images", make_resemblance(ssim, 0.7))
        for batch, ssim in ((2, 0.8202), (8, 0.8176), (32, 0.8049))
    ]
    # The last reads 0.80 to two digits. Where images are sent, more ciphertexts are no merit.
    for exchange, words in ((Exchange.UPDATES, "8 images"), (Exchange.IMAGES, "2 images")):
        found = make_record(*sent).model_copy(update={"exchange": exchange})
        assert f"equations in its pixels ({words}) restores" in sentence(found)


def test_nothing_is_said_of_one_key_stream_where_each_image_has_its_own() -> None:
    fresh = [one for one in references() if one.cipher is not None and one.cipher.scope is Scope.IMAGE]
    assert fresh
    for record in fresh:
        assert "one key stream" not in sentence(record)
        assert "one mask" not in sentence(record)


def test_another_attack_that_tells_images_apart_better_is_named(
    make_record: MakeRecord, make_resemblance: MakeResemblance
) -> None:
    inversion = (AttackName.INVERSION, "", make_resemblance(0.47, 0.3))
    better = make_record((AttackName.JIGSAW, "8 images", make_resemblance(0.4, 0.6)), inversion)
    assert sentence(better).endswith(
        "in 30 %. One that puts the blocks together by their edges (8 images) tells by the restored picture which of "
        "1,000 an image is in 60 %."
    )
    # 33 % is not clearly more than 30 %: two standard errors of their difference are 4.1 points for 1,000 images.
    alike = make_record((AttackName.JIGSAW, "", make_resemblance(0.4, 0.33)), inversion)
    assert sentence(alike).endswith("in 30 %.")


@pytest.mark.parametrize("attacks", [1, 2])
def test_no_attack_beats_the_ciphertext(
    attacks: int, make_record: MakeRecord, make_resemblance: MakeResemblance
) -> None:
    found = [(name, "", make_resemblance(0.032, 0.002)) for name in (AttackName.SAME_MASK, AttackName.FOLD)]
    text = sentence(make_record(*found[:attacks]))
    lead = {
        1: "The one attack tried restores no more than the ciphertext shows: SSIM 0.03 (0.03 as sent",
        2: "No attack tried restores more than the ciphertext shows: SSIM 0.03 at most (0.03 as sent",
    }
    assert text == (
        f"{lead[attacks]}, 1 is a copy), and it tells by the restored picture which of 1,000 an image is in 0.2 % "
        "(guessing: 0.1 %). "
        "A stronger attack may exist."
    )


def test_what_counts_as_beating_the_ciphertext(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    """0.03 with a spread of 0.12 over 1,000 images: two standard errors of a difference are 0.0107."""
    for ssim, reidentified, beats in ((0.040, 0.001, False), (0.042, 0.001, True), (0.03, 0.05, True)):
        text = sentence(make_record((AttackName.FOLD, "", make_resemblance(ssim, reidentified))))
        assert text.startswith("A coordinator that") == beats


def test_exact_recovery(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    known = (AttackName.KNOWN_PLAINTEXT, "5 pairs", make_resemblance(1))
    assert sentence(make_record(known)) == (
        "A coordinator that reads the one key stream off a few images that it knows (5 pairs) restores these images "
        "exactly: SSIM 1 (0.03 as sent)."
    )
    nearly = make_resemblance(0.9991, 1.0)
    text = sentence(make_record((AttackName.SAME_MASK, "", nearly)))
    assert "to SSIM over 0.99 (0.03 as sent, 1 is a copy) and tells by the restored picture which of 1,000" in text
    assert "exactly" not in text


def test_exchanges_in_which_no_image_is_sent(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    gradients = (AttackName.GRADIENTS, "batch of 8", make_resemblance(0.2, 0.1))
    assert sentence(make_record(gradients, exchange=Exchange.GRADIENTS)) == (
        "A coordinator that searches for the images that explain what an owner sent (batch of 8) restores these images "
        "to SSIM 0.20 (0.03 encrypted, 1 is a copy) and tells by the restored picture which of 1,000 an image is in "
        "10 %."
    )
    control = make_record(gradients, cipher=None, exchange=Exchange.GRADIENTS, ciphertext=make_resemblance(1))
    assert sentence(control) == (
        "A coordinator that searches for the images that explain what an owner sent (batch of 8) restores these "
        "images, which are not encrypted, to SSIM 0.20 (1 is a copy) and tells by the restored picture which of 1,000 "
        "an image is in 10 %."
    )


def test_without_cipher_and_without_attack(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    assert sentence(make_record(cipher=None, ciphertext=make_resemblance(1))) == (
        "These images are not encrypted: whoever is sent them has every image exactly."
    )
    assert sentence(make_record()).startswith("No attack without the key was tried")
    only_key = make_record((AttackName.COLLUSION, "", make_resemblance(1)))
    assert "says nothing" in sentence(only_key)
    assert sentence(only_key).endswith("With the key of one owner, a coordinator has every image exactly.")


def test_the_table(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    fewer = make_resemblance(-0.0204, 0.5, candidates=200)
    judged = make_resemblance(0.47, 0.47, class_accuracy=0.612, feature_distance=Measure(mean=0.41, spread=0.0504))
    bits = AttackOutcome(
        attack=AttackName.SAME_MASK, setting="a|b", needs="x", resemblance=judged, bits=0.984, seconds=2
    )
    record = make_record((AttackName.FOLD, "", fewer)).model_dump()
    record["attacks"] = (*record["attacks"], bits.model_dump())
    table = markdown_table(LeakageRecord.model_validate(record))
    assert table.replace(NOTHING, "none").replace("\N{MINUS SIGN}", "-").splitlines() == [
        "|  | SSIM (mean ± spread) | PSNR (dB) | feature distance "
        "| right one of 1,000 by the restored picture | right one of two | class accuracy | key bits found |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| Ciphertext | 0.030 ± 0.120 | 17.2 ± 2.5 | none | 0.1 % | 95 % | none | none |",
        "| Fold | -0.020 ± 0.120 | 17.2 ± 2.5 | none | 50 % (of 200) | 95 % | none | none |",
        r"| Ciphertexts of one mask, a\|b | 0.470 ± 0.120 | 17.2 ± 2.5 | 0.410 ± 0.050 | 47 % | 95 % | 61 % | 98 % |",
        "| Perfect copy | 1.000 ± 0.000 | 100.0 ± 0.0 | none | 100 % | 100 % | none | none |",
    ]


def test_candidates_that_were_compared_are_spoken_of(
    make_record: MakeRecord, make_resemblance: MakeResemblance
) -> None:
    fold = (AttackName.FOLD, "", make_resemblance(0.4, 0.3))
    without = make_record(fold)
    for certain, reidentified, words in (
        (1.0, 1.0, "of 1,000 candidates the right one alone fits, in 100 %."),
        (0.994, 0.997, "of 1,000 candidates the right one alone fits, in 99.4 %."),
        (0.0, 0.92, "Whoever has 1,000 candidate pictures tells which of them was sent in 92 %, restoring none."),
    ):
        match = CandidateMatch(
            images=1000, candidates=1000, reidentified=reidentified, pair_accuracy=1, certain=certain
        )
        record = make_record(fold, by_candidates=match)
        assert sentence(record).startswith(sentence(without))
        assert sentence(record).endswith(words)
        assert ("knows whether it was sent" in sentence(record)) is (certain > 0.99)
        rows = [line.strip("| ").split(" | ") for line in markdown_table(record).splitlines()]
        assert rows[0][-1] == "right one of 1,000 by candidates"
        # It is told of what was sent, and not of what an attack restored.
        assert [row[-1] for row in rows[2:]] == [part_words(reidentified), NOTHING, NOTHING]
        assert legend(record).splitlines()[:-1] == legend(without).splitlines()
    # Whoever is sent a picture needs no candidates; of one that is mixed with others they tell.
    for ssim, said in ((1, False), (0.4, True)):
        plain = make_record(cipher=None, ciphertext=make_resemblance(ssim), by_candidates=match)
        assert ("restoring none" in sentence(plain)) is said


def test_records_from_before_candidates_were_compared_are_read(make_record: MakeRecord) -> None:
    old = make_record().model_dump()
    del old["by_candidates"]
    record = LeakageRecord.model_validate(old)
    assert record.by_candidates is None
    assert "candidate" not in sentence(record) + markdown_table(record) + legend(record)


def test_what_candidates_tell_was_measured_of_every_cipher_but_one() -> None:
    images = [one for one in references() if one.cipher is not None and one.exchange is Exchange.IMAGES]
    lacking = {one.cipher.name for one in images if one.cipher is not None and one.by_candidates is None}
    assert lacking == {"logistic-rc4-v1"}
    assert all(one.by_candidates.certain > 0.99 for one in images if one.by_candidates is not None)


def test_the_legend(make_record: MakeRecord, make_resemblance: MakeResemblance) -> None:
    record = make_record(
        (AttackName.KNOWN_PLAINTEXT, "1 pair", make_resemblance()), (AttackName.JIGSAW, "", make_resemblance())
    )
    first, second = legend(record).splitlines()
    assert first.startswith(
        f"- **{title(record.attacks[0])}.** Reads the one key stream off a few images that it knows"
    )
    assert "It needs what it needs." in second
    assert "Source: Gallagher, CVPR 2012" in second


def test_cipher_and_exchange(make_record: MakeRecord) -> None:
    # A cipher that this version does not know, in a card from another, is named all the same.
    assert "later-v9" in cipher_words(CipherSettings(name="later-v9"))
    assert "plain" in cipher_words(None)
    assert "encrypted images" in exchange_words(make_record())
    assert "no image" in exchange_words(make_record(exchange=Exchange.UPDATES))
    assert "encrypted" not in exchange_words(make_record(cipher=None))
