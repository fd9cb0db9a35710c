"""``ppfed demo``: the main job on this machine, between real processes. ``ppfed scenario``: declared experiments.

``ppfed bench``: how fast it is.
"""

# Heavy imports stay inside the command, so that 'ppfed --help' is quick.
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

scenario = typer.Typer(help="Run declared experiments, and report on them.", no_args_is_help=True)


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
    run = Demo(out, material, rounds, lambda line: print_line(console, line))
    run.prepare()
    results = [run.federation("images"), run.federation("updates")]
    answers = run.predict(results[0])
    stdout().print(result_table(material.title, results))
    print_line(stdout(), answers)
    for name, path in run.paths(results).items():
        print_line(stdout(), f"{name:<18}{path}")


def bench(
    sections: Annotated[
        list[str] | None, typer.Argument(help="Parts of it; default: all.", metavar="[SECTION]...", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Three minutes instead of half an hour.")] = False,
    device: Annotated[str, typer.Option("--device", help="Where to train: auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[Path, typer.Option("--out", help="JSON to write.", metavar="FILE")] = Path("bench.json"),
) -> None:
    """Measure how fast ppfed is, as ratios to something measured in the same run."""
    from ppfed.cli.console import print_line, stderr, stdout
    from ppfed.training.loop import pick_device
    from scenarios.bench import run
    from scenarios.bench.measurement import BenchSettings

    chosen = run.choose(sections or [])
    settings = BenchSettings(quick=quick, device=pick_device(device))
    rows = []
    console = stderr()
    for row in run.measure(chosen, settings):
        print_line(console, f"{row.section}: {row.name}: {run.figure(row)}{row.unmeasured and f': {row.unmeasured}'}")
        rows.append(row)
    run.write(out, rows, settings)
    stdout().print(run.table(rows))
    print_line(stdout(), f"written to {out}")
    run.check(rows)


@scenario.command("list")
def list_scenarios() -> None:
    """List the scenarios that come with ppfed."""
    from rich.table import Table

    from ppfed.cli.console import stdout
    from scenarios.declaration import bundled

    table = Table("scenario", "arms", "what it answers")
    for name, one in bundled().items():
        table.add_row(name, str(len(one.arms)), one.question)
    stdout().print(table)


@scenario.command("run")
def run_scenario(
    name: Annotated[str, typer.Argument(help="A name from 'ppfed scenario list', or a TOML file.", metavar="NAME")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Class folder, CIFAR-10 root or .npz; only scale smoke can do without (handwritten digits).",
            metavar="DIR",
        ),
    ] = None,
    data_name: Annotated[
        str | None, typer.Option("--data-name", help="What reports call the data; default: its folder's name.")
    ] = None,
    scale: Annotated[str, typer.Option("--scale", help="smoke, small or paper: what to spend.")] = "smoke",
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Repetitions of each arm; default: the scenario's.")
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm", help="Run only this arm; * stands for anything. May be given several times.", metavar="NAME"
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Train networks that torch.compile has compiled (docs/performance.md)."),
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Arms side by side; they share the cores.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run; default: runs/NAME-SCALE.", metavar="DIR")
    ] = None,
) -> None:
    """Run a scenario, or go on with it: arms that have a result are not run again."""
    from ppfed.cli.console import ctrl_c_says, print_line, progress_bar, stderr, stdout
    from ppfed.errors import PPFedError, UsageError
    from scenarios import declaration, results
    from scenarios.display import RunDisplay
    from scenarios.report import write_report
    from scenarios.run import RunFolder, Runner, jobs_of, open_run, require_compilable

    declared = declaration.load(name)
    try:
        chosen = declaration.Scale(scale)
    except ValueError:
        raise UsageError(f"there is no scale {scale!r}", hint="Choose smoke, small or paper.") from None
    wanted_arms = declared.choose(arms or [])
    if compiled:
        require_compilable(wanted_arms)
    folder = RunFolder(out or Path("runs") / f"{declared.name}-{chosen}")
    console = stderr()
    with folder.locked():
        with progress_bar("reading images", None) as advance:
            record = open_run(
                declared, chosen, data, folder.folder, device, jobs, advance, data_name, compiled=compiled
            )
        wanted = jobs_of(record, seeds, wanted_arms)
        done = {(one.arm, one.seed) for one in results.read(folder.folder)}
        known = sum((job.arm, job.seed) in done for job in wanted)
        print_line(
            console,
            f"{declared.title}: {len(wanted)} runs at scale '{chosen}'"
            + (f", {known} of them done earlier" if known else "")
            + f"; results go to {folder.folder}",
        )
        goes_on = "interrupted; finished arms are kept: the same command goes on from here"
        with RunDisplay(console, len(wanted), known) as display, ctrl_c_says(goes_on):
            failed = Runner(folder, device, jobs, display).run(wanted)
        page, text = write_report(folder.folder)
    print_line(stdout(), text.read_text(encoding="utf-8"))
    print_line(stdout(), f"report: {page}")
    if failed:
        raise PPFedError(
            f"{len(failed)} of {len(wanted)} runs failed: {', '.join(sorted({job.arm for job in failed}))}",
            hint=f"See the logs in {folder.folder / 'arms'}. The same command runs them again.",
        )


@scenario.command("report")
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folder of a run; two with --compare.", metavar="DIR")],
    compare: Annotated[bool, typer.Option("--compare", help="Set two runs side by side.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --compare: folder of the report; default: here.", metavar="DIR")
    ] = None,
) -> None:
    """Write report.html and report.md of a run, or of two side by side."""
    from ppfed.cli.console import print_line, stdout
    from ppfed.errors import UsageError
    from scenarios.report import compare as compare_runs
    from scenarios.report import write_report

    if len(folders) != (2 if compare else 1):
        raise UsageError(
            f"{len(folders)} folders were named",
            hint="Name one run, or two with --compare: ppfed scenario report --compare A B",
        )
    paths = compare_runs(folders[0], folders[1], out or Path()) if compare else write_report(folders[0])
    for path in paths:
        print_line(stdout(), str(path))
