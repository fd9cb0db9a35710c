"""``ppfed predict``: classify images with a model that a federation made."""

# ruff: noqa: PLC0415 -- torch and the key package are imported on first use: help and usage errors come at once.

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppfed.cli.console import print_line, printable, progress_bar, stderr, stdout
from ppfed.cli.options import KeyOption, load_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ppfed.images.source import LoadReport
    from ppfed.prediction import Prediction

_STEP = 256
"""Images between two steps of the progress bar: as many as go through the network at once."""


def predict(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, plain or made by 'ppfed encrypt'; of a folder, all in it and in the folders below.",
        ),
    ],
    key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with the probabilities of all classes.")] = False,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Classes to show for each image.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Classify images. Plain ones are encrypted here first, which needs the key; encrypted ones need none."""
    from ppfed.images.decode import quiet_decoders
    from ppfed.images.source import LoadReport
    from ppfed.model_folder import load_model
    from ppfed.prediction import predict_images
    from ppfed.training.loop import pick_device

    chosen = pick_device(device)
    loaded = load_model(model, chosen)
    report = LoadReport()
    paths = _files(images, report)
    # Once for all steps: it may ask for a passphrase.
    master = cache(lambda: load_key(key))
    with quiet_decoders():
        # The bar waits for the first step, so that it does not draw over a question for the passphrase.
        predictions = predict_images(loaded, master, paths[:_STEP], chosen, report)
        if len(paths) > _STEP:
            with progress_bar("classifying", len(paths)) as progress:
                progress(_STEP)
                for start in range(_STEP, len(paths), _STEP):
                    step = paths[start : start + _STEP]
                    predictions += predict_images(loaded, master, step, chosen, report)
                    progress(len(step))
    if as_json:
        # Unwrapped and unstyled: scripts read it.
        stdout().out(_json(predictions, loaded.card.classes), highlight=False)
    elif predictions:
        stdout().print(_table(predictions, loaded.card.classes, top))
    print_problems(report)
    if report.bad:
        raise typer.Exit(1)


def _files(images: Sequence[Path], report: LoadReport) -> list[Path]:
    """Put the image files of each folder in its place, and tell how many they are."""
    from ppfed.prediction import image_files

    files: list[Path] = []
    for path in images:
        if not os.path.isdir(path):
            files.append(path)
            continue
        found = image_files(path, report)
        print_line(stderr(), f"{path}: {len(found):,} image {'file' if len(found) == 1 else 'files'}")
        files += found
    return files


def _json(predictions: Sequence[Prediction], classes: Sequence[str]) -> str:
    from ppfed.images.decode import shown

    found = [
        {
            "file": shown(str(prediction.path)),
            "class": prediction.top_class,
            "probabilities": dict(zip(classes, prediction.probabilities.tolist(), strict=True)),
        }
        for prediction in predictions
    ]
    # ASCII alone: class names come from the coordinator, and the escapes of JSON command no terminal.
    return json.dumps(found, indent=2, ensure_ascii=True)


def _table(predictions: Sequence[Prediction], classes: Sequence[str], top: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("next best")
    for prediction in predictions:
        ranked = (-prediction.probabilities).argsort(kind="stable")[1:top]
        rest = ", ".join(f"{classes[index]} {prediction.probabilities[index]:.1%}" for index in ranked)
        cells = (str(prediction.path), prediction.top_class, f"{prediction.probabilities.max():.1%}", rest)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def print_problems(report: LoadReport) -> None:
    """Tell on stderr what happened to images, and which were left out."""
    console = stderr()
    for note, count in report.notes.items():
        print_line(console, f"note: {note}, {count} {'image' if count == 1 else 'images'}")
    for path, reason in report.bad:
        print_line(console, f"left out: {path}: {reason}")
