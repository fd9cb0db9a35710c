"""``ppfed coordinator``: commands of the GPU host."""

# Heavy imports stay inside the commands, so that 'ppfed --help' is quick; the settings, for their defaults, cost it a
# tenth of a second.
# Most parameters of 'start' reach 'agree' by their names, through the context.
# ruff: noqa: ARG001, PLC0415

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ppfed.training.settings import TrainingSettings

app = typer.Typer(help="Run a federation: admit owners, train, write the model.", no_args_is_help=True)

StateOption = Annotated[
    Path, typer.Option("--state", help="The federation's one folder.", metavar="DIR", envvar="PPFED_STATE")
]
_STATE = Path("ppfed-coordinator")

_FEDERATION = "Federation; a new one needs the first four"
_IMAGES = "Images and cipher"
_TRAINING = "Training"
_NETWORK = "Network"
_AUGMENTATION = "Augmentation of encrypted images"
_UPDATES = "Exchange updates"
_GRADIENTS = "Exchange gradients"
_MACHINE = "The coordinator alone: may differ at each start"

_OF_THIS_START = frozenset({"state", "device", "gpus", "machines", "data_placement", "compiled", "detach"})
"""Parameters of ``start`` that are no part of what owners and coordinator agree on."""


def _option(text: str, panel: str, *flags: str, default: str | bool = False) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, show_default=default)


def _setting(name: str, text: str, panel: str, *flags: str) -> Any:
    """Describe the option of a training setting; its default stands in ``TrainingSettings``."""
    default = TrainingSettings.model_fields[name].default
    if isinstance(default, bool):
        # As the flag is called that is on when nothing is said.
        default = f"{'' if default else 'no-'}{name.replace('_', '-')}"
    return _option(text, panel, *flags, default=default is not None and str(default))


def _here(text: str, *flags: str, least: int | None = None) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=_MACHINE, min=least)


@app.command()
def start(  # noqa: PLR0917 -- each is an option
    context: typer.Context,
    exchange: Annotated[str | None, _option("What owners send: images, updates or gradients.", _FEDERATION)] = None,
    owners: Annotated[int | None, _option("How many owners take part.", _FEDERATION)] = None,
    classes: Annotated[str | None, _option("cat,dog,... or a number N for 0 to N-1.", _FEDERATION)] = None,
    size: Annotated[str | None, _option("Of images: 32, or 24x32 (height x width).", _FEDERATION)] = None,
    name: Annotated[str | None, _option("What it is called.", _FEDERATION, default="federation")] = None,
    quorum: Annotated[int | None, _option("Owners that a round needs.", _MACHINE, default="more than half")] = None,
    deadline_s: Annotated[
        float | None, _option("Seconds that a round may take.", _MACHINE, "--deadline", default="600")
    ] = None,
    begin_with: Annotated[int | None, _option("Owners that the first run waits for.", _MACHINE, default="all")] = None,
    address: Annotated[
        str | None,
        _option("host:port under which owners reach this machine.", _FEDERATION, default="localhost:9443"),
    ] = None,
    listen: Annotated[
        str | None,
        _option("host:port to listen on.", _MACHINE, default="all interfaces; loopback for localhost"),
    ] = None,
    fingerprint: Annotated[
        str | None, _option("Of the owners' key.", _FEDERATION, default="that of the first owner")
    ] = None,
    channels: Annotated[int | None, _option("3 for colour, 1 for grey.", _IMAGES, default="3")] = None,
    cipher: Annotated[
        str | None, _option("np-v1, or a rival for comparison (docs/cipher.md).", _IMAGES, default="np-v1")
    ] = None,
    scope: Annotated[
        str | None, _option("image (fresh mask for each image) or fixed (weak).", _IMAGES, default="image")
    ] = None,
    colour_shuffle: Annotated[
        bool | None,
        _option("Permute colours too.", _IMAGES, "--shuffle/--no-shuffle", default="shuffle, where the cipher has it"),
    ] = None,
    rounds: Annotated[
        int | None, _setting("rounds", "How many; in images and gradients, passes over the images.", _TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, _setting("batch_size", "Images in a step; in gradients, of all owners.", _TRAINING)
    ] = None,
    learning_rate: Annotated[float | None, _setting("learning_rate", "At its peak.", _TRAINING)] = None,
    schedule: Annotated[str | None, _setting("schedule", "linear or paper.", _TRAINING)] = None,
    label_smoothing: Annotated[
        float | None, _setting("label_smoothing", "Of the loss, 0 to below 1.", _TRAINING)
    ] = None,
    first_crop: Annotated[
        float | None,
        _setting(
            "first_crop",
            "Part of each side that the first pass sees, growing to 1: 0.5 is the fast recipe (docs/model.md).",
            _TRAINING,
        ),
    ] = None,
    average_passes: Annotated[
        float | None,
        _setting("average_passes", "Exchange images: passes over which weights are averaged; 0 for not.", _TRAINING),
    ] = None,
    precision: Annotated[
        str | None,
        _setting(
            "precision",
            "What whoever trains computes in: auto (bfloat16 on a GPU, float32 elsewhere), float32, or bfloat16: "
            "half the time on processors with instructions for it.",
            _TRAINING,
        ),
    ] = None,
    initial_model: Annotated[
        Path | None,
        _option(
            "Model folder to train further; it decides classes, size, cipher and network (docs/model.md).",
            _TRAINING,
            default="random weights",
        ),
    ] = None,
    seed: Annotated[int | None, _setting("seed", "Of initial weights, order and augmentation.", _TRAINING)] = None,
    base_maps: Annotated[int | None, _setting("base_maps", "Width of the network: 64 is ResNet-18.", _NETWORK)] = None,
    backbone: Annotated[
        str | None, _setting("backbone", "resnet18, or convmixer for block ciphers (docs/model.md).", _NETWORK)
    ] = None,
    adaptation: Annotated[
        bool | None,
        _option("Adaptation network.", _NETWORK, "--adaptation/--no-adaptation", default="adaptation"),
    ] = None,
    adaptation_kind: Annotated[
        str | None,
        _setting("adaptation_kind", "pixel; block or block-wise for block ciphers (docs/model.md).", _NETWORK),
    ] = None,
    features: Annotated[
        str | None,
        _option(
            "What the network sees: values, fold, sorted-fold, fold-twice or sorted-fold-twice.",
            _NETWORK,
            default="what the cipher leaves",
        ),
    ] = None,
    horizontal_flip: Annotated[
        bool | None, _setting("horizontal_flip", "Flip images from left to right.", _AUGMENTATION)
    ] = None,
    vertical_flip: Annotated[bool | None, _setting("vertical_flip", "And upside down.", _AUGMENTATION)] = None,
    alternate_flip: Annotated[
        bool | None,
        _setting("alternate_flip", "Flip an image exactly if it was not flipped in the pass before.", _AUGMENTATION),
    ] = None,
    padding: Annotated[
        str | None, _setting("padding", "What a shift uncovers: reflect or fill.", _AUGMENTATION)
    ] = None,
    mirrored_views: Annotated[
        bool | None,
        _setting("mirrored_views", "Classify an image and its mirror image, and average.", _AUGMENTATION),
    ] = None,
    local_epochs: Annotated[int | None, _setting("local_epochs", "Passes in each round.", _UPDATES)] = None,
    strategy: Annotated[str | None, _setting("strategy", "fedavg, fedavgm, fedadam or fedyogi.", _UPDATES)] = None,
    server_learning_rate: Annotated[
        float | None,
        _option("Of a strategy other than fedavg.", _UPDATES, default="the strategy's"),
    ] = None,
    server_momentum: Annotated[
        float | None,
        _option("Of a strategy other than fedavg.", _UPDATES, default="the strategy's"),
    ] = None,
    update_format: Annotated[
        str | None,
        _setting(
            "update_format",
            "Exchange gradients, too: float32, or bfloat16, which halves what owners send.",
            _UPDATES,
        ),
    ] = None,
    batch_norm: Annotated[
        str | None, _setting("batch_norm", "local, or shared (the coordinator's statistics).", _GRADIENTS)
    ] = None,
    micro_batch: Annotated[int | None, _setting("micro_batch", "Images at once at an owner.", _GRADIENTS)] = None,
    min_local_batch: Annotated[
        int | None,
        _setting("min_local_batch", "Fewest images over which an owner computes a gradient.", _GRADIENTS),
    ] = None,
    gradient_clip: Annotated[
        float | None, _option("Longest norm of an owner's gradient.", _GRADIENTS, default="none")
    ] = None,
    state: StateOption = _STATE,
    device: Annotated[str, _here("auto, cpu, cuda or mps.")] = "auto",
    gpus: Annotated[
        int,
        _here("Exchange images: GPUs to train on, each with a process of its own.", "--gpus", "--processes", least=1),
    ] = 1,
    machines: Annotated[
        int, _here("Exchange images: machines that train together (docs/architecture.md).", least=1)
    ] = 1,
    data_placement: Annotated[
        str,
        _here(
            "Exchange images: resident (in the memory of the GPU, or else of the host), streamed from disk, "
            "or auto: streamed if they take more than half of the free memory."
        ),
    ] = "auto",
    compiled: Annotated[
        bool,
        _here(
            "Exchange images: train a network that torch.compile has compiled (docs/performance.md).",
            "--compile/--no-compile",
        ),
    ] = False,
    detach: Annotated[bool, _here("Go on in the background once owners can join.", "--detach")] = False,
) -> None:
    """Start a federation, or go on with the one in --state; runs until the model is written or 'stop'."""
    from coordinator.display import Watch
    from coordinator.plan import agree
    from coordinator.processes import Processes
    from coordinator.start import run_coordinator, start_detached
    from coordinator.state import StateFolder
    from ppfed.cli.console import ctrl_c_says, print_line, stderr, stdout
    from ppfed.enrolment import Phase
    from ppfed.federation import Exchange
    from ppfed.leakage.reference import quoted
    from ppfed.leakage.wording import VERDICT
    from ppfed.training.settings import DataPlacement

    folder = StateFolder(state)
    given = {key: value for key, value in context.params.items() if key not in _OF_THIS_START}
    processes = Processes(device, gpus, machines, DataPlacement.named(data_placement), compiled)
    agree(folder, {key: value for key, value in given.items() if value is not None}, processes.check)
    plan = folder.plan()
    settings = plan.settings
    console = stderr()
    if settings.initial_model is not None:
        print_line(console, f"trains further: {settings.initial_model}")
    print_line(console, f"leakage: {quoted(settings.cipher.spec, settings.exchange, settings.channels)}")
    if settings.exchange is Exchange.IMAGES:
        print_line(console, VERDICT)
    if detach:
        log = start_detached(folder, processes)
        print_line(console, f"open at {plan.address}; output goes to {log}")
        return
    goes_on = f"interrupted: 'ppfed coordinator start --state {folder.folder}' goes on; owners wait for it"
    with ctrl_c_says(goes_on), Watch(console, folder) as watch:
        status = run_coordinator(folder, processes, watch.ready, watch)
    if status.phase is not Phase.FINISHED:
        print_line(console, f"{status.phase}: {status.message}")
        raise typer.Exit(0 if status.phase is Phase.STOPPED else 1)
    if status.message:
        print_line(console, status.message)
    print_line(stdout(), f"model     {folder.model}")
    last = status.rounds[-1] if status.rounds else None
    accuracy = "not measured"
    if last is not None and last.accuracy is not None:
        accuracy = f"{last.accuracy:.2%} on {last.held_out_images} held-out images"
    stdout().print(f"accuracy  {accuracy}")


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="Name of the owner.")],
    state: StateOption = _STATE,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; default: NAME.invite.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also if it has joined: its folder is lost, and it joins anew.")
    ] = False,
) -> None:
    """Make the one file an owner needs to join. Send it over a channel that you trust."""
    from pydantic import ValidationError

    from coordinator.admission import make_invite
    from coordinator.state import StateFolder
    from ppfed.cli.console import print_line, stdout
    from ppfed.errors import UsageError

    path = out or Path(f"{name}.invite")
    try:
        make_invite(StateFolder(state), name, path, replace=replace)
    except ValidationError:
        raise UsageError(
            f"{name!r} is no name for an owner",
            hint="Use up to 64 letters a to z, digits, '.', '_', '-', a letter or digit first.",
        ) from None
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
