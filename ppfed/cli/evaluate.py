"""``ppfed evaluate``: how well a model does on labelled images of one's own."""

# ruff: noqa: PLC0415 -- torch, scikit-learn and the key package are imported on first use: help and usage errors come at once.

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppfed.cli.console import print_line, printable, progress_bar, stderr, stdout
from ppfed.cli.options import KeyOption, load_key
from ppfed.cli.predict import print_problems
from ppfed.errors import PPFedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ppfed.evaluation.answers import Answers, MeasuredPart
    from ppfed.evaluation.metrics import Metrics
    from ppfed.images.source import LoadReport
    from ppfed.model_folder import ModelCard

_MOST_COLUMNS = 20
"""A confusion matrix of more classes is not drawn: no terminal is wide enough."""

_UNKNOWN = "-"


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Labelled images: class folders, CIFAR-10 for Python, an .npz, or a folder that 'ppfed encrypt' made. "
            "Its test part is measured, else its val or valid part, else all of it.",
        ),
    ],
    *,
    key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON object.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV to write: true class, predicted class and probabilities by image."),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad files out instead of stopping.")] = False,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out", help="Of images without parts, measure those alone that a federation with this key holds out."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Measure a model on labelled images. Plain ones are encrypted in memory, which needs the key."""
    from ppfed.evaluation.answers import choose_part, classify_part
    from ppfed.evaluation.metrics import measure
    from ppfed.images.decode import quiet_decoders
    from ppfed.images.open import open_source
    from ppfed.images.source import LoadReport
    from ppfed.model_folder import load_model
    from ppfed.training.loop import pick_device

    if out is not None:
        _require_new_csv(out)
    chosen = pick_device(device)
    loaded = load_model(model, chosen)
    report = LoadReport()
    with quiet_decoders():
        part = choose_part(open_source(source), loaded.card, held_out_only=held_out)
        master = None if part.encrypted else load_key(key)
        with progress_bar("classifying", len(part)) as progress:
            answers = classify_part(loaded, part, master, chosen, report, skip_bad=skip_bad, progress=progress)
    metrics = measure(loaded.card.classes, answers.labels, answers.probabilities)
    print_problems(report)
    _print_remarks(part, loaded.card, metrics)
    if out is not None:
        _write_csv(out, answers, loaded.card.classes)
        print_line(stderr(), f"each image's answer is in {out}")
    if as_json:
        # Unwrapped and unstyled: scripts read it.
        stdout().out(_json(model, part, loaded.card, metrics, report), highlight=False)
    else:
        _print_metrics(model, part, loaded.card, metrics)


def _require_new_csv(path: Path) -> None:
    if path.suffix.lower() != ".csv":
        raise UsageError(f"{path} is not the name of a CSV file.", hint="Let it end in .csv.")
    if path.exists():
        raise UsageError(f"{path} exists already.", hint="Choose another name, or move the file away.")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", hint="Make it first, or choose another.")


def _write_csv(path: Path, answers: Answers, classes: Sequence[str]) -> None:
    from ppfed.atomic import write_atomic

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "predicted", *(f"probability of {name}" for name in classes)])
    best = answers.probabilities.argmax(1)
    for name, label, top, row in zip(answers.names, answers.labels, best, answers.probabilities.tolist(), strict=True):
        writer.writerow([name, classes[label], classes[top], *(f"{one:.6g}" for one in row)])
    try:
        write_atomic(path, text.getvalue())
    except OSError as error:
        raise PPFedError(
            f"{path} cannot be written: {error.strerror or error}.", hint="Free some space or choose another place."
        ) from error


def _print_remarks(part: MeasuredPart, card: ModelCard, metrics: Metrics) -> None:
    console = stderr()
    if part.by_number:
        pairs = ", ".join(f"{number} is {name}" for number, name in enumerate(card.classes[: len(part.positions)]))
        print_line(console, f"note: classes are numbered, and were matched by position: {pairs}")
    if missing := [one.name for one in metrics.classes if not one.images]:
        print_line(console, f"note: there are no images of {', '.join(missing)}")
    if not part.held_out and not part.held_out_only:
        print_line(
            console,
            f"note: {part.source.root} has no test part, so all of its images were measured: "
            "the figures are too good if the model was trained on them; "
            "--held-out measures those alone that a federation holds out",
        )
    origin = card.trained_further_from
    if part.held_out_only and origin is not None and origin.fingerprint != card.fingerprint:
        print_line(
            console,
            f"note: the model was trained further from one under another key, {origin.fingerprint}, which held out "
            "other images: the figures are too good if that one was trained on these",
        )
    if (one := metrics.one_answer) is not None:
        print_line(
            console,
            f"warning: the model hardly tells images apart: it takes {one.answers:,} of {metrics.images:,} for "
            f"{one.name}, among them {one.wrong:,} of the {one.others:,} of other classes. Do not go by the accuracy. "
            "Usual causes: too few rounds, a class with few training images, images of another kind.",
        )


def _json(model: Path, part: MeasuredPart, card: ModelCard, metrics: Metrics, report: LoadReport) -> str:
    from dataclasses import asdict

    from ppfed.images.decode import shown

    found = {
        "model": shown(str(model)),
        "federation": card.federation,
        "source": shown(str(part.source.root)),
        "part": part.section or None,
        "held_out_only": part.held_out_only,
        "encrypted": part.encrypted,
        "matched_by": "position" if part.by_number else "name",
        "images": metrics.images,
        "left_out": len(report.bad),
        "correct": metrics.correct,
        "accuracy": metrics.accuracy,
        "accuracy_interval": list(metrics.interval),
        "balanced_accuracy": metrics.balanced_accuracy,
        "classes": [asdict(one) for one in metrics.classes],
        "confusion": metrics.confusion.tolist(),
        "one_answer": None if metrics.one_answer is None else asdict(metrics.one_answer),
    }
    # ASCII alone: class names come from the coordinator, and the escapes of JSON command no terminal.
    return json.dumps(found, indent=2, ensure_ascii=True, allow_nan=False)


def _print_metrics(model: Path, part: MeasuredPart, card: ModelCard, metrics: Metrics) -> None:
    console = stdout()
    low, high = metrics.interval
    where = f"part {part.section} of {part.source.root}" if part.section else f"all of {part.source.root}"
    if part.held_out_only:
        where = f"those of {part.source.root} that a federation with this key holds out"
    print_line(console, f"{metrics.images:,} {'image' if metrics.images == 1 else 'images'} measured: {where}")
    print_line(console, f"model: {model}, of federation {card.federation}{_claim(card)}")
    print_line(
        console,
        f"accuracy: {metrics.accuracy:.1%}, {metrics.correct:,} right (95% interval: {low:.1%} to {high:.1%})",
    )
    print_line(console, f"balanced accuracy (mean recall): {metrics.balanced_accuracy:.1%}")
    console.print(_class_table(metrics))
    if len(metrics.classes) > _MOST_COLUMNS:
        print_line(console, f"The confusion matrix of {len(metrics.classes)} classes is in the output of --json.")
    else:
        print_line(console, "confusion matrix: the true class by row, the model's by column")
        console.print(_confusion_table(metrics))


def _claim(card: ModelCard) -> str:
    if card.accuracy is None:
        return ""
    return f", which measured {card.accuracy:.1%} on its {card.held_out_images:,} held-out images"


def _class_table(metrics: Metrics) -> Table:
    from rich.table import Table
    from rich.text import Text

    two = len(metrics.classes) == 2
    table = Table()
    table.add_column("class", overflow="fold")
    for heading in ("images", "recall (sensitivity)", "precision", *(("specificity",) if two else ()), "ROC AUC"):
        table.add_column(heading, justify="right")
    for one in metrics.classes:
        figures = [_percent(one.recall), _percent(one.precision)]
        figures += [_percent(one.specificity)] if two else []
        figures += [_UNKNOWN if one.auc is None else f"{one.auc:.3f}"]
        table.add_row(Text(printable(one.name)), f"{one.images:,}", *figures)
    return table


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.1%}"


def _confusion_table(metrics: Metrics) -> Table:
    from rich.table import Table
    from rich.text import Text

    names = [Text(printable(one.name)) for one in metrics.classes]
    # Names may be folded, and numbers may not.
    width = len(f"{metrics.confusion.max():,}")
    table = Table()
    table.add_column("true \\ predicted", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", overflow="fold", min_width=width)
    for name, row in zip(names, metrics.confusion.tolist(), strict=True):
        table.add_row(name, *(f"{count:,}" for count in row))
    return table
