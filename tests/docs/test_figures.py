"""Tables of the documents say what the committed rows say, which also have to load.

A new table of measured figures belongs in ``TABLES``. Tables that were run once and left no rows cannot be held.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from ppfed.leakage.record import CandidateMatch, Resemblance
from scenarios.report.statistics import Accuracies, Difference
from scenarios.studies import effort, one_key, orbit_search
from scenarios.studies.chosen_weights import PassRow
from scenarios.studies.restored import RestoredRow
from scenarios.studies.shadows import ShadowRow

from . import committed
from .committed import BenchRow, Told
from .figures import Column, Figures, Key, is_written, lines

LEAKAGE, FRONTIER, PERFORMANCE = "docs/leakage.md", "docs/frontier.md", "docs/performance.md"
RIGHT_ONE = "right one of 1,000 by the restored picture"


def percent(part: float) -> str:
    """With one digit after the point where that is not zero."""
    return f"{100 * part:.1f}".removesuffix(".0") + " %"


def whole_percent(part: float) -> str:
    """Halves are rounded up."""
    return f"{math.floor(100 * part + 0.5)} %"


def ssim(found: Resemblance, digits: int = 3) -> str:
    return f"{found.ssim.mean:.{digits}f} ± {found.ssim.spread:.{digits}f}"


def mean_and_spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def accuracy(found: Accuracies) -> str:
    """In percent, with the standard deviation over seeds where there are some."""
    spread = "" if found.deviation is None else f" ± {100 * found.deviation:.1f}"
    return f"{100 * found.mean:.1f}{spread}"


def accuracy_percent(found: Accuracies) -> str:
    return f"{accuracy(found)} %"


def of_told(write: Callable[[Told], str]) -> Callable[[tuple[Accuracies, list[Told]]], str]:
    """Write what attacks on an arm tell, one after the other."""
    return lambda row: "; ".join(write(one) for one in row[1])


def attacks_of_arm(row: tuple[Accuracies, list[Told]]) -> str:
    """The attack, of a second one the number of images alone."""
    first, *rest = [one.attack for one in row[1]]
    return "; ".join([first, *(one.split(", ")[1].removesuffix(" images") for one in rest)])


def in_points(found: Difference) -> str:
    low, high = found.interval
    return f"{100 * low:+.1f} to {100 * high:+.1f} points"


def size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.3g} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.3g} MB"


def network_or_solver(leak: orbit_search.Leak | None) -> tuple[str, str]:
    return ("-", "-") if leak is None else (f"{leak.ssim:.3f} ± {leak.ssim_spread:.3f}", f"{100 * leak.found:.1f} %")


def in_common(write: Callable[[CandidateMatch], str]) -> Callable[[list[CandidateMatch | None]], str]:
    """Write what all have in common; nothing where there is none."""
    return lambda found: " and ".join(sorted({"" if one is None else write(one) for one in found}))


def the_pass(row: PassRow) -> str:
    return f"{ {2: 'the third', 9: 'the last'}[row.number] }, {row.learning_rate:.3g}"


def read(found: Resemblance) -> str:
    return f"{found.ssim.mean:.3f} ({whole_percent(found.reidentified)})"


def searched(found: Resemblance) -> str:
    return f"{ssim(found, 2)}, {whole_percent(found.reidentified)}"


def by_attack(attack: str, of: str) -> Callable[[list[ShadowRow]], str]:
    """Write the mean of an attack over networks."""

    def write(rows: list[ShadowRow]) -> str:
        values = [getattr(one, of) for one in committed.outcomes(rows, attack)]
        return mean_and_spread(values) if of == "auc" else f"{100 * statistics.mean(values):.1f} %"

    return write


def two_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:#.2g}"


def bench(row: BenchRow) -> str:
    """Write a figure with its range over the turns, where there was more than one."""
    write, unit = two_digits, " %"
    if row.unit == "x":
        write, unit = "{:.2f}".format, ""
    elif row.unit == "% longer":
        write, unit = "{:.1f}".format, " % shorter" if row.value < 0 else " % longer"
    figure = write(abs(row.value)) + unit
    if row.spread is None or row.spread[0] == row.spread[1]:
        return figure
    return f"{figure} ({write(row.spread[0])} to {write(row.spread[1])})"


def beside_a_copy(side: str, threads: str) -> Column:
    title = side if threads == "1 thread" else f"{side}, {threads}"
    return Column(title, lambda both: f"{both[0].value:.2f} / {both[1].value:.2f}", (side, threads))


def of_hundred(row: RestoredRow) -> str:
    return f"{100 * row.accuracy:.1f}"


def seconds_an_image(row: RestoredRow) -> str:
    return f"{row.restoring_s / (row.budget.images + row.budget.held_out):#.2g} s"


def restored_or_plain() -> dict[Key, RestoredRow]:
    """Show the accuracy on plain images, which are not encrypted, in the column of what was sent."""
    return {
        (cipher, "as sent" if cipher == "plain" else kind): row
        for (cipher, kind), row in committed.restored_first().items()
    }


def of_folders(row: BenchRow) -> str:
    assert row.spread is not None
    against = "one core" if "itself" in row.against else "the bare loop"
    return f"{row.value:.2f} of {against} ({row.spread[0]:.2f} to {row.spread[1]:.2f})"


def longer(row: BenchRow) -> str:
    assert row.spread is not None
    return f"{row.value:.0f} % ({row.spread[0]:.0f} to {row.spread[1]:.0f})"


def detail(name: str, unit: str, digits: int = 1) -> Callable[[BenchRow], str]:
    """Write one of the figures behind a ratio."""
    return lambda row: f"{row.details[name]:.{digits}f} {unit}"


def shares(row: BenchRow) -> str:
    names = ("flower-superlink", "flwr-serverapp", "ppfed")
    return ", ".join(f"{row.details[f'coordinator {name} mib']:.0f}" for name in names)


STRONGEST = (
    Column("as sent", lambda told: f"{told.sent.ssim.mean:.2f}"),
    Column("strongest attack without the key", lambda told: told.attack),
    Column("SSIM", lambda told: ssim(told.resemblance)),
    Column(RIGHT_ONE, lambda told: percent(told.resemblance.reidentified)),
)
ATTACKED = (
    Column("accuracy", lambda row: accuracy(row[0])),
    Column("strongest attack", attacks_of_arm),
    Column("SSIM", of_told(lambda one: ssim(one.resemblance))),
    Column("right one of 1,000", of_told(lambda one: percent(one.resemblance.reidentified))),
)
ATTACKED_SHORT = (
    ATTACKED[0],
    ATTACKED[1],
    Column("SSIM", of_told(lambda one: f"{one.resemblance.ssim.mean:.3f}")),
    Column(RIGHT_ONE, of_told(lambda one: percent(one.resemblance.reidentified))),
)
UNTRAINED = "the same, without training"
DEFAULT = "np-v1, image scope, colour shuffle on"
ONE_MASK = "np-v1, fixed scope, colour shuffle off"
IN_BFLOAT16 = (
    Column("float32", accuracy_percent, ("float32",)),
    Column("bfloat16", accuracy_percent, ("bfloat16",)),
    Column("difference, 95 % interval", in_points, ("difference",)),
)

TABLES = (
    Figures(
        LEAKAGE,
        ("encrypted images",),
        (
            *(
                Column(f"{count:,}", lambda row: f"{row.resemblance.ssim.mean:.3f}", (count,))
                for count in one_key.COUNTS
            ),
            Column("time", lambda row: f"{row.seconds:.1f} s", (one_key.COUNTS[-1],)),
        ),
        committed.one_key,
        lines(
            ("NP + shuffle", "np-v1, fixed scope, colour shuffle on"),
            ("NP", ONE_MASK),
            ("NP twice + shuffle", "np2-v1, fixed scope, colour shuffle on"),
            ("NP twice", "np2-v1, fixed scope, colour shuffle off"),
            ("LE", "le-v1, fixed scope"),
            ("EtC", "etc-v1, fixed scope"),
            ("block scrambling + pixel permutation", "block-pixel-v1, fixed scope"),
            ("ELE", "ele-v1, fixed scope"),
            ("logistic map + RC4", "logistic-rc4-v1, fixed scope"),
        ),
    ),
    Figures(
        LEAKAGE,
        ("", "pictures", "steps of 64"),
        (
            Column("SSIM", lambda row: ssim(row.resemblance)),
            Column("right one of 1,000", lambda row: percent(row.resemblance.reidentified)),
            Column("time", lambda row: f"{row.seconds / 60:.1f} min"),
        ),
        committed.efforts,
        lines(
            *(
                (one.cipher, f"{one.preset.images:,}", f"{one.preset.steps:,}", key)
                for one in effort.EFFORTS
                if (key := (one.cipher, one.preset.images, one.preset.steps)) in committed.efforts()
            )
        ),
    ),
    Figures(
        LEAKAGE,
        ("cipher", "learned from"),
        (
            Column("SSIM", lambda told: f"{ssim(told.resemblance)}, {told.resemblance.psnr_db.mean:.1f} dB"),
            Column(RIGHT_ONE, lambda told: percent(told.resemblance.reidentified)),
            Column("time", lambda told: f"{told.seconds / 60:.1f} min"),
        ),
        committed.trained_networks,
        lines(
            *(
                (cipher, "20,000 pictures and keys of its own" if first else "the same", (cipher, "inversion"))
                for cipher, first in (
                    ("np-v1, image scope, colour shuffle off", True),
                    (DEFAULT, False),
                    ("np-v1, image scope, grey images", False),
                    ("np2-v1, image scope, grey images", False),
                    ("np2-v1, image scope, colour shuffle on", False),
                    ("np2-v1, image scope, colour shuffle off", False),
                    ("le-v1, image scope", False),
                    ("block-pixel-v1, image scope", False),
                    ("etc-v1, image scope", False),
                    ("logistic-rc4-v1, image scope", False),
                    ("ele-v1, image scope", False),
                )
            ),
            (ONE_MASK, "1,000 leaked pairs", (ONE_MASK, "leaked-pairs")),
            (ONE_MASK, "ciphertexts and pictures of its own, no pair", (ONE_MASK, "unpaired")),
        ),
    ),
    Figures(
        LEAKAGE,
        ("cipher",),
        STRONGEST,
        committed.strongest_attacks,
        lines(
            DEFAULT,
            (UNTRAINED, (DEFAULT, "without training")),
            "np-v1, image scope, grey images",
            (UNTRAINED, ("np-v1, image scope, grey images", "without training")),
            "np-v1, image scope, colour shuffle off",
            (UNTRAINED, ("np-v1, image scope, colour shuffle off", "without training")),
            "le-v1, image scope",
            "etc-v1, image scope",
            (UNTRAINED, ("etc-v1, image scope", "without training")),
            "block-pixel-v1, image scope",
            (UNTRAINED, ("block-pixel-v1, image scope", "without training")),
            "np2-v1, image scope, colour shuffle on",
            (UNTRAINED, ("np2-v1, image scope, colour shuffle on", "without training")),
            "np2-v1, image scope, grey images",
            (UNTRAINED, ("np2-v1, image scope, grey images", "without training")),
            "np2-v1, image scope, colour shuffle off",
            (UNTRAINED, ("np2-v1, image scope, colour shuffle off", "without training")),
            "logistic-rc4-v1, image scope",
            "ele-v1, image scope",
            "np-v1, fixed scope, grey images",
            "np2-v1, fixed scope, grey images",
            "np-v1, fixed scope, colour shuffle on",
            ONE_MASK,
            "le-v1, fixed scope",
            "etc-v1, fixed scope",
            "logistic-rc4-v1, fixed scope",
            "ele-v1, fixed scope",
            "block-pixel-v1, fixed scope",
            "np2-v1, fixed scope, colour shuffle on",
            "np2-v1, fixed scope, colour shuffle off",
        ),
    ),
    Figures(
        LEAKAGE,
        ("",),
        (
            Column(
                "by candidates: right one of 1,000",
                lambda found: in_common(lambda one: percent(one.reidentified))(found) or "no way is known",
            ),
            Column("of these, no other fits", in_common(lambda one: percent(one.certain))),
        ),
        committed.candidates,
        lines(
            ("np-v1, np2-v1, either scope, with and without shuffle, in colour and grey", "np"),
            ("le-v1, ele-v1, etc-v1, block-pixel-v1, either scope", "blocks"),
            ("logistic-rc4-v1", "logistic"),
        ),
    ),
    Figures(
        LEAKAGE,
        ("SSIM (right one of 1,000)",),
        (
            Column("plain", read, ("plain", "random")),
            Column("the same, one class", read, ("plain", "one class")),
            Column(f"{DEFAULT}: then restored by the solver", read, (DEFAULT, "random")),
            Column("the same, one class", read, (DEFAULT, "one class")),
        ),
        lambda: committed.steps_read(64),
        lines(("8 images", 8), ("32 images", 32), ("128 images", 128)),
    ),
    Figures(
        LEAKAGE,
        ("SSIM (right one of 1,000)",),
        (
            Column("plain", read, ("plain", "random")),
            Column(f"{DEFAULT}: then restored by the solver", read, (DEFAULT, "random")),
            Column(f"{ONE_MASK}: then restored by the solver", read, (ONE_MASK, "random")),
        ),
        lambda: committed.steps_read(16),
        lines(("one image", 1), ("2 images", 2), ("8 images", 8), ("32 images", 32)),
    ),
    Figures(
        LEAKAGE,
        ("owner's images", ""),
        (
            Column("steps", lambda row: str(-(-row.images // row.batch))),
            Column("pass of ten, rate of its first step", the_pass),
            Column("windows read", lambda row: str(row.windows)),
            Column(
                "images read to 3 grey levels",
                lambda row: f"{row.close[0]} ({whole_percent(row.close[0] / row.images)})",
            ),
            Column("to 8", lambda row: f"{row.close[1]} ({whole_percent(row.close[1] / row.images)})"),
            Column("these, then restored: SSIM", lambda row: "" if row.restored is None else ssim(row.restored)),
        ),
        committed.passes_read,
        lines(
            *(
                (f"{images:,}", name, (images, cipher))
                for cipher, name in (("plain", "plain"), (DEFAULT, "NP + shuffle"))
                for images in (512, 1024)
            )
        ),
    ),
    Figures(
        LEAKAGE,
        ("SSIM, right one of 1,000",),
        (
            Column("one image", searched, (1,)),
            Column("batch of 8", searched, (8,)),
            Column("batch of 32", searched, (32,)),
        ),
        committed.gradients_searched,
        lines(
            ("local (the default, and always in updates), initial weights", ("local", "initial")),
            ("local, trained weights", ("local", "trained")),
            ("shared (exchange gradients; running statistics), initial weights", ("shared", "initial")),
            ("shared, trained weights", ("shared", "trained")),
        ),
    ),
    Figures(
        LEAKAGE,
        ("exchange", ""),
        ATTACKED_SHORT,
        lambda: committed.arms_attacked("leakage-small"),
        lines(
            ("images", "plain", "plain"),
            ("", "NP, grey images", "fresh NP, grey images"),
            ("", "NP + shuffle: the default", "fresh NP + shuffle"),
            ("", "NP", "fresh NP"),
            ("gradients", "plain", "gradients, plain"),
            ("", "NP + shuffle", "gradients, fresh NP + shuffle"),
            ("updates", "plain", "updates, plain"),
            ("", "NP + shuffle", "updates, fresh NP + shuffle"),
        ),
    ),
    Figures(
        LEAKAGE,
        ("exchange images",),
        (ATTACKED_SHORT[0], replace(ATTACKED_SHORT[1], title="strongest attack without the key"), *ATTACKED_SHORT[2:]),
        lambda: committed.arms_attacked("leakage-small-2"),
        lines(
            ("fresh keys: NP twice", "fresh NP twice"),
            ("NP twice + shuffle (np2-v1)", "fresh NP twice + shuffle"),
            ("block scrambling + pixel permutation", "fresh block scrambling + pixel permutation"),
            ("the same, ConvMixer", "fresh block scrambling + pixel permutation, ConvMixer"),
            ("EtC", "fresh EtC"),
            ("LE", "fresh LE"),
            ("ELE", "fresh ELE"),
            ("logistic map + RC4", "fresh logistic map + RC4"),
            ("one key: NP", "NP"),
            "NP + shuffle",
            "block scrambling + pixel permutation, ConvMixer",
            "block scrambling + pixel permutation",
            "LE",
            "EtC",
            "NP twice + shuffle",
            "logistic map + RC4",
            "ELE",
            ("no key: pixel block mixing", "pixel block mixing"),
        ),
    ),
    Figures(
        LEAKAGE,
        ("",),
        (
            Column(
                "accuracy, held-out (its own)",
                lambda rows: (
                    f"{100 * statistics.mean(row.accuracy for row in rows):.1f} "
                    f"({100 * statistics.mean(row.member_accuracy for row in rows):.1f})"
                ),
            ),
            Column("by the loss: AUC", by_attack("loss", "auc")),
            Column("found at 1 % false alarms", by_attack("loss", "tpr_at_1_percent_fpr")),
            Column("calibrated: AUC", by_attack("calibration", "auc")),
            Column("found", by_attack("calibration", "tpr_at_1_percent_fpr")),
            Column("LiRA: AUC", by_attack("likelihood", "auc")),
            Column("found", by_attack("likelihood", "tpr_at_1_percent_fpr")),
        ),
        committed.shadow_networks,
        lines(("plain images", "plain"), ("NP + shuffle, fresh masks: the default", "sorted-fold")),
    ),
    Figures(
        FRONTIER,
        ("what fresh keys leave",),
        (
            Column("accuracy", lambda row: f"{100 * row.accuracy:.1f}"),
            Column("U-Net: SSIM", lambda row: network_or_solver(row.network)[0]),
            Column("right one", lambda row: network_or_solver(row.network)[1]),
            Column("solver: SSIM", lambda row: network_or_solver(row.solver)[0]),
            Column("right one", lambda row: network_or_solver(row.solver)[1]),
        ),
        committed.orbits,
        lines(
            "NP",
            ("NP + shuffle: the default", "NP + shuffle"),
            "NP twice",
            "NP twice + shuffle",
            "eight constants + shuffle",
            "NP on lightness and colour",
            "NP twice on lightness, NP on colour",
            "colour alone",
            "lightness alone",
            "lightness alone, NP twice",
            "NP + shuffle, lower four bits hidden",
            ("NP + shuffle, every other pixel hidden", "NP + shuffle, every other pixel"),
            ("NP + shuffle, two neighbours in either order", "NP + shuffle, pairs"),
            ("NP + shuffle, blocks of 2x2 in any order", "NP + shuffle, blocks of 2x2"),
            ("NP, the twelve values of 2x2 blocks in any order", "NP, values of 2x2 blocks"),
        ),
    ),
    Figures(
        FRONTIER,
        ("fresh keys (report)",),
        ATTACKED,
        lambda: committed.arms_attacked("frontier-small"),
        lines(
            ("plain", "plain, 32 pixels"),
            ("NP, grey images", "NP, grey images, image scope, 32 pixels"),
            ("NP + shuffle: the default", "NP + shuffle, image scope, 32 pixels"),
            ("NP", "NP, image scope, 32 pixels"),
            ("NP twice + shuffle", "NP twice + shuffle, image scope, 32 pixels"),
            ("block scrambling + pixel permutation", "block scrambling + pixel permutation, image scope, 32 pixels"),
            ("EtC", "EtC, image scope, 32 pixels"),
            ("LE", "LE, image scope, 32 pixels"),
        ),
    ),
    Figures(
        FRONTIER,
        ("fresh keys",),
        (
            Column("accuracy, three seeds", accuracy, ("accuracy",)),
            Column(
                "learned edges, one key (leakage.md): SSIM",
                lambda told: ssim(told.resemblance),
                ("leak",),
            ),
            Column("right one of 1,000", lambda told: percent(told.resemblance.reidentified), ("leak",)),
        ),
        committed.grey_and_default,
        lines("NP, grey images", "NP", ("NP + shuffle: the default", "NP + shuffle")),
    ),
    Figures(
        FRONTIER,
        ("",),
        ATTACKED,
        lambda: committed.arms_attacked("frontier-small-2", lenders=("frontier-small",)),
        lines(
            ("one key stream for all images:", ()),
            ("NP + shuffle", "NP + shuffle, fixed scope, 32 pixels"),
            ("NP", "NP, fixed scope, 32 pixels"),
            ("block scrambling + pixel permutation", "block scrambling + pixel permutation, fixed scope, 32 pixels"),
            (
                "the same, ConvMixer",
                "block scrambling + pixel permutation, ConvMixer, fixed scope, 32 pixels",
            ),
            ("LE", "LE, fixed scope, 32 pixels"),
            ("EtC", "EtC, fixed scope, 32 pixels"),
            ("logistic map + RC4", "logistic map + RC4, fixed scope, 32 pixels"),
            ("ELE", "ELE, fixed scope, 32 pixels"),
            ("fresh keys:", ()),
            (
                "block scrambling + pixel permutation, ConvMixer",
                "block scrambling + pixel permutation, ConvMixer, image scope, 32 pixels",
            ),
            ("ELE", "ELE, image scope, 32 pixels"),
            ("logistic map + RC4", "logistic map + RC4, image scope, 32 pixels"),
            ("no key:", ()),
            ("pixel block mixing", "pixel block mixing, 32 pixels"),
        ),
    ),
    Figures(
        "README.md",
        ("held-out accuracy (%)",),
        (
            Column("no adaptation network", str, ("none",)),
            Column("adaptation network", str, ("adaptation",)),
            Column("with what helps*", str, ("helps",)),
            Column("restored without the key**", str, ("restored",)),
        ),
        committed.paper_table2,
        lines(
            "plain",
            ("NP + shuffle, fresh masks: the default", "fresh NP + shuffle"),
            ("NP, fresh masks", "fresh NP"),
            ("NP twice + shuffle, fresh masks", "fresh NP twice + shuffle"),
            ("NP + shuffle, one mask for all images", "NP + shuffle"),
            ("NP, one mask for all images", "NP"),
            ("Tanaka's LE", "LE"),
            "EtC",
            "logistic map + RC4",
        ),
    ),
    Figures(
        FRONTIER,
        ("",),
        (
            Column("accuracy on ciphertexts", of_hundred, ("as sent",)),
            Column("on what was restored", of_hundred, ("restored",)),
            Column("SSIM of that", lambda row: f"{row.shown.ssim.mean:.3f}", ("restored",)),
            Column(
                "turned by eye", lambda row: "" if row.by_eye is None else f"{row.by_eye.ssim.mean:.3f}", ("restored",)
            ),
            Column("to restore an image", seconds_an_image, ("restored",)),
        ),
        restored_or_plain,
        lines(
            ("plain images", "plain"),
            ("LE", "le-v1, image scope"),
            ("block scrambling + pixel permutation", "block-pixel-v1, image scope"),
            ("EtC", "etc-v1, image scope"),
            ("NP + shuffle", DEFAULT),
            ("NP twice + shuffle", "np2-v1, image scope, colour shuffle on"),
        ),
    ),
    *(
        Figures(
            PERFORMANCE,
            (f"of a copy, {machine}",),
            (
                beside_a_copy("32x32", "1 thread"),
                beside_a_copy("224x224", "1 thread"),
                Column("target", lambda both: both[0].target_figure, ("32x32", "1 thread")),
                beside_a_copy("32x32", "2 threads"),
                beside_a_copy("224x224", "2 threads"),
            ),
            partial(committed.ciphers_beside_a_copy, file),
            lines(
                ("fixed scope", "np-v1, fixed scope, colour shuffle off"),
                ("image scope", "np-v1, image scope, colour shuffle off"),
                ("fixed scope, colour shuffle", "np-v1, fixed scope, colour shuffle on"),
                ("image scope, colour shuffle: the default", DEFAULT),
            ),
        )
        for machine, file in (("EPYC", "epyc-cipher.json"), ("Xeon", "cipher.json"))
    ),
    Figures(
        PERFORMANCE,
        ("",),
        (
            Column("Intel Xeon (cipher.json)", of_folders, ("cipher.json",)),
            Column("AMD EPYC (epyc-cipher.json)", of_folders, ("epyc-cipher.json",)),
            Column("target", lambda row: row.target_figure, ("cipher.json",)),
        ),
        committed.folders_encrypted,
        lines("32x32, one core", "500x375 to 224x224, one core", "32x32, two cores", "500x375 to 224x224, two cores"),
    ),
    Figures(
        PERFORMANCE,
        ("",),
        (
            Column("full width, Intel Xeon (whole.json)", bench, ("whole.json",)),
            Column("full width, AMD EPYC (epyc.json)", bench, ("epyc.json",)),
            Column("a quarter, another AMD EPYC", None),
            Column(
                "target",
                lambda row: row.target_figure + (" %" if row.target and row.unit != "x" else ""),
                ("whole.json",),
            ),
        ),
        committed.training_steps,
        lines(
            ("our loop, with augmentation, beside bare steps", "our loop, with augmentation"),
            ("images streamed from disk beside images in memory", "images streamed from disk"),
            ("augmentation, of a step", "augmentation"),
            ("encrypted, no adaptation network, beside plain", "encrypted, no adaptation network"),
            ("encrypted, adaptation network, beside plain", "encrypted, adaptation network"),
            ("float32 matrix rate, of a product of 2048x2048", "matrix rate"),
        ),
        unlisted=frozenset(("batches from disk without a step", file) for file in ("whole.json", "epyc.json")),
    ),
    Figures(
        PERFORMANCE,
        ("",),
        IN_BFLOAT16,
        lambda: committed.formats_compared("precision-small"),
        lines("plain", "encrypted"),
    ),
    Figures(
        PERFORMANCE,
        ("operations, full width",),
        (
            Column("of the time", lambda row: f"{two_digits(row.value)} %"),
            Column("of their own roof", lambda row: f"{row.details['of_roof']:.2f}"),
        ),
        committed.operations,
        lines(
            "convolutions, backward",
            "convolutions, forward",
            "batch norm",
            "ReLU and shortcuts",
            "optimizer",
            "augmentation",
        ),
        unlisted=frozenset({("loss, pooling, input features",), ("matrix products",)}),
    ),
    Figures(
        PERFORMANCE,
        ("",),
        (
            Column("passes", lambda cost: str(cost[0]), ("cost",)),
            Column("computation", lambda cost: f"{cost[1]:.1f}", ("cost",)),
            Column("plain", accuracy_percent, ("plain",)),
            Column("encrypted", accuracy_percent, ("NP + shuffle",)),
        ),
        committed.recipes,
        lines(
            "the paper's recipe",
            ("one cycle on whole images: a federation's defaults", "one cycle, 67% of the passes"),
            ("fast: one cycle, crops from half of a side", "fast"),
            ("fast", "fast, 50% of the passes"),
            ("fast, weights averaged over 0.25 passes", "fast, averaged"),
            "fast, alternating flips",
        ),
    ),
    Figures(
        PERFORMANCE,
        ("owners",),
        (
            Column("float32: longer", longer, ("float32", "round")),
            Column(
                "round, training",
                lambda row: f"{row.details['round_s']:.1f} s, {row.details['training_s']:.1f} s",
                ("float32", "round"),
            ),
            Column("sent by each, of the network's size", lambda row: f"{row.value:.3f}", ("float32", "sent")),
            Column("bfloat16: longer", longer, ("bfloat16", "round")),
            Column("sent by each", lambda row: f"{row.value:.3f}", ("bfloat16", "sent")),
        ),
        committed.rounds,
        lines("2", "4", "8"),
    ),
    Figures(
        PERFORMANCE,
        ("",),
        (
            *IN_BFLOAT16,
            Column("from owners, all rounds", lambda sent: f"{size(sent[0])} and {size(sent[1])}", ("sent",)),
        ),
        lambda: committed.formats_compared("formats-small"),
        lines(("exchange updates", "updates"), ("exchange gradients", "gradients")),
    ),
    Figures(
        PERFORMANCE,
        ("",),
        (
            Column("ppfed", detail("ours_mb_per_s", "MB/s"), ("Flower alone",)),
            Column("Flower alone", detail("bare_flower_mb_per_s", "MB/s"), ("Flower alone",)),
            Column("of Flower alone", bench, ("Flower alone",)),
            Column("of a plain TLS socket", lambda row: f"{row.value:.3f}", ("a plain TLS socket",)),
            Column("target", lambda row: row.target_figure, ("Flower alone",)),
        ),
        committed.uploads,
        lines(
            ("1 owner, 512 MiB", ("upload.json", "1 owner, 512 MiB")),
            ("4 owners, 512 MiB in all", ("upload.json", "4 owners, 512 MiB")),
            ("1 owner, 512 MiB, EPYC (epyc.json)", ("epyc.json", "1 owner, 512 MiB")),
            ("4 owners, 512 MiB in all, EPYC", ("epyc.json", "4 owners, 512 MiB")),
        ),
    ),
    Figures(
        PERFORMANCE,
        ("memory of all processes of a role at one moment",),
        (
            Column("target", lambda row: f"{int(row.target_figure):,} MiB", ("memory of the coordinator",)),
            Column("coordinator", lambda row: f"{row.value:.0f} MiB", ("memory of the coordinator",)),
            Column("of it SuperLink, ServerApp, front door", shares, ("memory of the coordinator",)),
            Column("owner", lambda row: f"{row.value:.0f} MiB", ("memory of the owner",)),
            Column("SuperLink's database", lambda row: f"{row.value:.0f} MiB", ("the SuperLink's database",)),
        ),
        committed.upload_memory,
        lines(("2 GiB", "upload.json"), ("2 GiB, EPYC", "epyc.json")),
    ),
)


@pytest.mark.parametrize("table", [pytest.param(table, id=table.name) for table in TABLES])
def test_a_table_says_what_the_rows_say(table: Figures) -> None:
    if differences := table.differences():
        pytest.fail("\n".join(differences), pytrace=False)


ORBITS = next(table for table in TABLES if table.read is committed.orbits)


def changed_row() -> dict[Key, orbit_search.OrbitRow]:
    rows = committed.orbits()
    return rows | {("NP",): replace(rows["NP",], accuracy=0.5)}


def another_row() -> dict[Key, orbit_search.OrbitRow]:
    rows = committed.orbits()
    return rows | {("another",): rows["NP",]}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (replace(ORBITS, document="README.md"), "the document has 0 tables with these titles"),
        (replace(ORBITS, lines=ORBITS.lines[1:]), "lines: the document has"),
        (replace(ORBITS, lines=ORBITS.lines[::-1]), "lines: the document has"),
        (replace(ORBITS, read=dict), "line 'NP': nothing was measured under ('NP',)"),
        (replace(ORBITS, read=another_row), "no line shows what was measured under ('another',)"),
        (
            replace(ORBITS, read=changed_row),
            "line 'NP', column 'accuracy': the document has '67.3', the rows say '50.0'",
        ),
        (replace(ORBITS, unlisted=frozenset({("gone",)})), "nothing was measured under ('gone',), which is left out"),
    ],
)
def test_what_does_not_agree_is_named(changed: Figures, says: str) -> None:
    assert any(says in difference for difference in changed.differences())


@pytest.mark.parametrize(
    ("stands", "agrees"),
    [("0.1", True), ("0.1: chance", True), ("0.1; more since", True), ("0.12", False), ("", False)],
)
def test_a_remark_may_follow_a_figure_and_more_digits_may_not(stands: str, agrees: bool) -> None:
    assert is_written("0.1", stands) == agrees
