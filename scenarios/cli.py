"""``ppfed demo``: the main job on this machine, between real processes."""

# Heavy imports stay inside the command, so that 'ppfed --help' is quick.
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Class folder, CIFAR-10 root or .npz; default: handwritten digits.", metavar="DIR"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.", metavar="DIR")] = Path(
        "demo"
    ),
    images: Annotated[int, typer.Option("--images", min=20, help="With --data: how many images to use.")] = 4000,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds, or passes over the images.")] = 10,
    size: Annotated[str | None, typer.Option("--size", help="Image size; default: 16 for digits, 32 else.")] = None,
) -> None:
    """Run a coordinator and two owners as separate processes over TLS: exchange images, then updates."""
    from ppfed.cli.console import print_line, stderr, stdout
    from scenarios.demo import Demo, digits, own_images, result_table

    console = stderr()
    material = digits() if data is None else own_images(data, images, size)
    with Demo(out, material, rounds, lambda line: print_line(console, line)) as run:
        run.prepare()
        results = [run.federation("images"), run.federation("updates")]
        answers = run.predict(results[0])
    stdout().print(result_table(material.title, results))
    print_line(stdout(), answers)
    for name, path in run.paths(results).items():
        print_line(stdout(), f"{name:<18}{path}")
