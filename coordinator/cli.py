"""``ppfed coordinator``: commands of the GPU host."""

# Heavy imports stay inside the commands, so that 'ppfed --help' is quick.
# ruff: noqa: PLC0415

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Run a federation: admit owners, train, write the model.", no_args_is_help=True)

StateOption = Annotated[
    Path, typer.Option("--state", help="The federation's one folder.", metavar="DIR", envvar="PPFED_STATE")
]
_STATE = Path("ppfed-coordinator")


@app.command()
def start(  # noqa: PLR0917 -- each is an option
    state: StateOption = _STATE,
    name: Annotated[str | None, typer.Option(help="Name of the federation.")] = None,
    exchange: Annotated[str | None, typer.Option(help="images, updates or gradients.")] = None,
    owners: Annotated[int | None, typer.Option(help="How many owners take part.")] = None,
    classes: Annotated[str | None, typer.Option(help="cat,dog,... or a number N for 0 to N-1.")] = None,
    size: Annotated[str | None, typer.Option(help="Image size: 32, or 24x32 (height x width).")] = None,
    channels: Annotated[int | None, typer.Option(help="3 for colour, 1 for grey.")] = None,
    cipher: Annotated[str | None, typer.Option(help="np-v1, or a rival for comparison (docs/cipher.md).")] = None,
    scope: Annotated[str | None, typer.Option(help="image (fresh mask for each image) or fixed.")] = None,
    shuffle: Annotated[bool | None, typer.Option("--shuffle/--no-shuffle", help="Permute colours too.")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="The key's; else the first owner sets it.")] = None,
    rounds: Annotated[int | None, typer.Option(help="In images and gradients, passes over the images.")] = None,
    local_epochs: Annotated[int | None, typer.Option(help="Exchange updates: passes in each round.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step; in gradients, of all owners.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Exchange updates: fedavg, fedavgm, fedadam or fedyogi.")] = None,
    server_learning_rate: Annotated[float | None, typer.Option(help="Of a strategy other than fedavg.")] = None,
    server_momentum: Annotated[float | None, typer.Option(help="Of a strategy other than fedavg.")] = None,
    update_format: Annotated[
        str | None,
        typer.Option(help="Exchanges updates and gradients: float32, or bfloat16, which halves what owners send."),
    ] = None,
    batch_norm: Annotated[
        str | None, typer.Option(help="Exchange gradients: local, or shared (the coordinator's statistics).")
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Exchange gradients: images at once at an owner.")] = None,
    min_local_batch: Annotated[
        int | None, typer.Option(help="Exchange gradients: fewest images over which an owner computes a gradient.")
    ] = None,
    gradient_clip: Annotated[
        float | None, typer.Option(help="Exchange gradients: longest norm of an owner's gradient.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="linear or paper.")] = None,
    adaptation: Annotated[bool | None, typer.Option("--adaptation/--no-adaptation", help="Adaptation network.")] = None,
    adaptation_kind: Annotated[
        str | None, typer.Option(help="pixel; block or block-wise for block ciphers (docs/model.md).")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="What the network sees: values, fold, sorted-fold, fold-twice or sorted-fold-twice."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="resnet18, or convmixer for block ciphers (docs/model.md).")
    ] = None,
    base_maps: Annotated[int | None, typer.Option(help="Width of the network: 64 is ResNet-18.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Of the loss, 0 to below 1.")] = None,
    vertical_flip: Annotated[bool | None, typer.Option(help="Augment with vertical flips too.")] = None,
    horizontal_flip: Annotated[bool | None, typer.Option(help="Augment with horizontal flips.")] = None,
    padding: Annotated[str | None, typer.Option(help="What a shift uncovers: reflect or fill.")] = None,
    mirrored_views: Annotated[
        bool | None, typer.Option(help="Classify an image and its mirror image, and average.")
    ] = None,
    first_crop: Annotated[
        float | None,
        typer.Option(
            help="Part of each side that the first pass sees, growing to 1: 0.5 is the fast recipe (docs/model.md)."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="What whoever trains computes in: auto (bfloat16 on a GPU, float32 elsewhere), float32, or bfloat16: "
            "half the time on processors with instructions for it."
        ),
    ] = None,
    alternate_flip: Annotated[
        bool | None, typer.Option(help="Flip an image exactly if it was not flipped in the pass before.")
    ] = None,
    average_passes: Annotated[
        float | None, typer.Option(help="Exchange images: passes over which weights are averaged; 0 for not.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights, order and augmentation.")] = None,
    quorum: Annotated[int | None, typer.Option(help="Owners that a round needs; default: more than half.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds a round may take.")] = None,
    address: Annotated[
        str | None, typer.Option(help="host:port under which owners reach this machine; default: localhost:9443.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="host:port to listen on; default: all interfaces, loopback for localhost.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    gpus: Annotated[
        int,
        typer.Option(
            "--gpus", "--processes", min=1, help="Exchange images: GPUs to train on, each with a process of its own."
        ),
    ] = 1,
    machines: Annotated[
        int, typer.Option(min=1, help="Exchange images: machines that train together (docs/architecture.md).")
    ] = 1,
    data_placement: Annotated[
        str,
        typer.Option(
            help="Exchange images: resident (in the memory of the GPU, or else of the host), streamed from disk, "
            "or auto: streamed if they take more than half of the free memory."
        ),
    ] = "auto",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Exchange images: train a network that torch.compile has compiled (docs/performance.md).",
        ),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background once owners can join.")] = False,
) -> None:
    """Start a federation, or go on with the one in --state; runs until the model is written or 'stop'."""
    from coordinator.display import Watch
    from coordinator.plan import agree
    from coordinator.processes import Processes
    from coordinator.start import run_coordinator, start_detached
    from coordinator.state import StateFolder
    from ppfed.cli.console import print_line, stderr, stdout
    from ppfed.enrolment import Phase
    from ppfed.federation import Exchange
    from ppfed.leakage.reference import quoted
    from ppfed.leakage.wording import VERDICT
    from ppfed.training.settings import DataPlacement

    given = {
        "name": name,
        "exchange": exchange,
        "owners": owners,
        "classes": classes,
        "size": size,
        "channels": channels,
        "cipher": cipher,
        "scope": scope,
        "colour_shuffle": shuffle,
        "fingerprint": fingerprint,
        "rounds": rounds,
        "local_epochs": local_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "strategy": strategy,
        "server_learning_rate": server_learning_rate,
        "server_momentum": server_momentum,
        "update_format": update_format,
        "batch_norm": batch_norm,
        "micro_batch": micro_batch,
        "min_local_batch": min_local_batch,
        "gradient_clip": gradient_clip,
        "schedule": schedule,
        "adaptation": adaptation,
        "adaptation_kind": adaptation_kind,
        "features": features,
        "backbone": backbone,
        "base_maps": base_maps,
        "label_smoothing": label_smoothing,
        "vertical_flip": vertical_flip,
        "horizontal_flip": horizontal_flip,
        "padding": padding,
        "mirrored_views": mirrored_views,
        "first_crop": first_crop,
        "alternate_flip": alternate_flip,
        "precision": precision,
        "average_passes": average_passes,
        "seed": seed,
        "quorum": quorum,
        "deadline_s": deadline,
        "address": address,
        "listen": listen,
    }
    folder = StateFolder(state)
    agree(folder, {key: value for key, value in given.items() if value is not None})
    settings = folder.plan().settings
    processes = Processes(device, gpus, machines, DataPlacement.named(data_placement), compiled)
    processes.check(settings)
    console = stderr()
    print_line(console, f"leakage: {quoted(settings.cipher.spec, settings.exchange, settings.channels)}")
    if settings.exchange is Exchange.IMAGES:
        print_line(console, VERDICT)
    if detach:
        log = start_detached(folder, processes)
        print_line(console, f"open at {folder.plan().address}; output goes to {log}")
        return
    with Watch(console, folder) as watch:
        status = run_coordinator(folder, processes, watch.ready, watch)
    if status.phase is not Phase.FINISHED:
        print_line(console, f"{status.phase}: {status.message}")
        raise typer.Exit(0 if status.phase is Phase.STOPPED else 1)
    last = status.rounds[-1].accuracy if status.rounds else None
    print_line(stdout(), f"model     {folder.model}")
    stdout().print(f"accuracy  {'not measured' if last is None else format(last, '.2%')}")


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="Name of the owner.")],
    state: StateOption = _STATE,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; default: NAME.invite.")] = None,
) -> None:
    """Make the one file an owner needs to join. Send it over a channel that you trust."""
    from pydantic import ValidationError

    from coordinator.admission import make_invite
    from coordinator.state import StateFolder
    from ppfed.cli.console import print_line, stdout
    from ppfed.errors import UsageError
    from ppfed.federation import describe_invalid

    path = out or Path(f"{name}.invite")
    if path.exists():
        raise UsageError(f"{path} exists already", hint="Name another file with --out, or remove it.")
    try:
        made = make_invite(StateFolder(state), name)
    except ValidationError as error:
        raise UsageError(
            f"{name!r} is no name for an owner: {describe_invalid(error)}", hint="Use letters, digits, '.', '_', '-'."
        ) from None
    made.write(path)
    print_line(stdout(), str(path))


@app.command()
def status(
    state: StateOption = _STATE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show owners, fingerprints, rounds and accuracy."""
    from coordinator.display import status_report, status_tables
    from coordinator.state import StateFolder
    from ppfed.cli.console import stdout

    folder = StateFolder(state)
    report = status_report(folder)
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201
        return
    for table in status_tables(report):
        stdout().print(table)


@app.command()
def stop(state: StateOption = _STATE) -> None:
    """End a running coordinator cleanly; its folder is kept, and 'start' goes on from it."""
    from coordinator.start import request_stop
    from coordinator.state import StateFolder
    from ppfed.cli.console import stdout
    from ppfed.errors import UsageError

    folder = StateFolder(state)
    folder.plan()
    if not request_stop(folder):
        raise UsageError(f"no coordinator is running in {folder.folder}", hint="There is nothing to stop.")
    stdout().print("stopped")
