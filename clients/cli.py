"""``ppfed client``: commands of an owner."""

# Heavy imports stay inside the command, so that 'ppfed --help' is quick.
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.consent import agrees
from ppfed.cli.options import KeyOption

if TYPE_CHECKING:
    from rich.console import Console

    from clients.prepared import Prepared
    from ppfed.federation import FederationSettings, Invite
    from ppfed.images.sections import SectionedSource
    from ppfed.images.source import ImageSource

_CLASSES_SHOWN = 20

app = typer.Typer(help="Take part in a federation as an owner of images.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep ``join`` a sub-command."""


@app.command()
def join(
    data: Annotated[
        Path, typer.Option("--data", help="Class folder, CIFAR-10 root or .npz with your plain images.", metavar="DIR")
    ],
    invite: Annotated[Path, typer.Option("--invite", help="The file the coordinator made for you.", metavar="FILE")],
    key: KeyOption = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="Folder for encrypted images, logs and the model.", metavar="DIR")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be used.")] = False,
    augment_copies: Annotated[
        int,
        typer.Option(
            "--augment-copies", min=1, max=1000, metavar="N", help="Exchange images: send N variants of each image."
        ),
    ] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps, for local training.")] = "auto",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before anything leaves.")] = False,
) -> None:
    """Check, encrypt, join, serve rounds, and receive the model."""
    from clients.display import RichDisplay
    from clients.join import LEAKAGE_PICTURE, check_ahead, default_folder, make_private, serve, store_folder
    from clients.preparation import class_positions, prepare
    from ppfed.cli.console import ctrl_c_says, print_line, progress_bar, stderr, stdout
    from ppfed.cli.options import load_key
    from ppfed.enrolment import key_differs
    from ppfed.errors import UsageError
    from ppfed.federation import Exchange, Invite
    from ppfed.images.decode import quiet_decoders
    from ppfed.images.open import open_source
    from ppfed.leakage.reference import quoted
    from ppfed.training.loop import pick_device

    console, out = stderr(), stdout()
    invitation = Invite.read(invite)
    settings = invitation.federation
    if augment_copies > 1 and settings.exchange is not Exchange.IMAGES:
        raise UsageError(
            "--augment-copies belongs to exchange 'images'",
            hint=f"In exchange '{settings.exchange}' you augment afresh in each epoch anyway: leave the option out.",
        )
    master = load_key(key)
    fingerprint = master.fingerprint
    if settings.fingerprint is not None and fingerprint != settings.fingerprint:
        raise key_differs(settings.fingerprint, fingerprint)
    source = open_source(data)
    class_positions(source.classes, settings)
    folder = state or default_folder(invitation)
    make_private(folder)
    _announce(console, invitation, source, data, fingerprint)
    _show_leakage(console, settings, source, folder / LEAKAGE_PICTURE)
    if not yes and not agrees("Join?"):
        raise typer.Exit(1)
    check_ahead(invitation, fingerprint)
    with quiet_decoders(), progress_bar("checking and encrypting", sum(source.counts.values())) as progress:
        prepared = prepare(
            source,
            data,
            master,
            settings,
            store_folder(folder),
            copies=augment_copies,
            skip_bad=skip_bad,
            progress=progress,
        )
    # From here on nothing needs the key.
    del master
    _report(console, prepared, settings)
    with ctrl_c_says("interrupted: the same command goes on"), RichDisplay(console) as display:
        summary = serve(invitation, fingerprint, prepared, folder, pick_device(device), display, display.notice)
    if summary.card is None:
        print_line(console, summary.message)
        raise typer.Exit(1)
    print_line(out, f"model     {summary.model_folder}")
    out.print(f"accuracy  {summary.card.measured()}")
    print_line(out, f"leakage   {quoted(settings.cipher.spec, settings.exchange, settings.channels)}")
    out.print(f"sent      {summary.bytes_out / 1e6:.2f} MB in {summary.seconds:.0f} s")


def _announce(console: Console, invite: Invite, source: ImageSource, data: Path, fingerprint: str) -> None:
    """Say what the owner is about to agree to."""
    from clients.join import what_leaves
    from clients.preparation import by_position
    from ppfed.ciphers.spec import Scope, cipher_info
    from ppfed.cli.console import print_line
    from ppfed.images.source import Split

    settings = invite.federation
    lines = [
        f"federation   {settings.name}, as {invite.owner}, at {invite.address}",
        f"key          {fingerprint}",
        f"images       {sum(source.counts.values())} in {data}; {settings.height}x{settings.width}, "
        f"{len(settings.classes)} classes",
        f"cipher       {settings.cipher.spec}",
        f"exchange     {settings.exchange}",
        f"what leaves  {what_leaves(settings)}",
        "remember     the cipher is visual obfuscation, not confidentiality (docs/threat-model.md)",
    ]
    if settings.initial_model is not None:
        lines.append(
            f"begins with  {settings.initial_model}, which is trained further; held-out images that it was trained on "
            "make it look better than it is (docs/model.md)"
        )
        if settings.initial_model.fingerprint != fingerprint and Split.HELD_OUT not in source.counts:
            lines.append(
                f"note         it was trained under another key, {settings.initial_model.fingerprint}, and another key "
                "holds out other images: divide yours into train/ and test/ if it was trained on them"
            )
    if by_position(source.classes, settings):
        pairs = ", ".join(f"{n} = {name}" for n, name in zip(source.classes, settings.classes, strict=False))
        lines.append(f"labels       by position: {pairs}")
    lines.append("next         images are checked and encrypted on this machine; nothing leaves before that is done")
    for line in lines:
        print_line(console, line)
    warning = "[bold red]warning:[/]"
    if settings.cipher.scope is Scope.FIXED:
        console.print(f"{warning} fixed scope uses {cipher_info(settings.cipher.name).fixed_scope}.", soft_wrap=True)
    shuffles = cipher_info(settings.cipher.name).colour_shuffle
    if settings.channels > 1 and shuffles and not settings.cipher.colour_shuffle:
        console.print(
            f"{warning} without colour shuffle, structure and colours of an image are within reach of whoever has its "
            "ciphertext.",
            soft_wrap=True,
        )


def _show_leakage(console: Console, settings: FederationSettings, source: SectionedSource, picture: Path) -> None:
    """Say with its number, and show, what a coordinator can restore, before the owner decides."""
    from ppfed.cli.console import print_line
    from ppfed.errors import DataError
    from ppfed.federation import Exchange
    from ppfed.images.decode import quiet_decoders
    from ppfed.images.source import LoadReport
    from ppfed.leakage.glance import GLANCE_IMAGES, glance
    from ppfed.leakage.images import read_some
    from ppfed.leakage.reference import quoted
    from ppfed.leakage.wording import VERDICT

    if settings.exchange is not Exchange.IMAGES:
        print_line(console, f"leakage      {quoted(settings.cipher.spec, settings.exchange, settings.channels)}")
        return
    try:
        with quiet_decoders():
            pixels, _ = read_some(
                source,
                size=(settings.height, settings.width),
                channels=settings.channels,
                count=GLANCE_IMAGES,
                seed=0,
                report=LoadReport(),
            )
    except DataError:
        # No usable image: preparation reads all of them after this, and says what is wrong with them.
        print_line(console, f"leakage      {quoted(settings.cipher.spec, settings.exchange, settings.channels)}")
        return
    seen = glance(pixels, settings.cipher.spec, picture)
    print_line(console, f"leakage      {seen.sentence}")
    print_line(console, f"             {VERDICT}")
    if seen.picture is not None:
        print_line(console, f"             {seen.picture} shows it beside your images; keep it to yourself")


def _report(console: Console, prepared: Prepared, settings: FederationSettings) -> None:
    """Say what came of the owner's images."""
    from ppfed.cli.console import print_line
    from ppfed.errors import first_bad
    from ppfed.federation import some_names
    from ppfed.images.decode import asks_for_action

    lines = [f"encrypted    {prepared.train_images} to train on, {prepared.held_out_images} held out"]
    for note, count in sorted(prepared.notes.items()):
        images = "1 image" if count == 1 else f"{count} images"
        lines.append(f"{'warning' if asks_for_action(note) else 'note':<13}{images}: {note}")
    if prepared.by_class:
        named = list(zip(settings.classes, prepared.by_class, strict=True))
        if len(named) > _CLASSES_SHOWN:
            named.sort(key=lambda one: -sum(one[1]))
        shown = [f"{name} {train} + {held_out}" for name, (train, held_out) in named[:_CLASSES_SHOWN]]
        more = f", and {len(named) - len(shown)} classes more" if len(named) > len(shown) else ""
        lines.append(f"by class     {', '.join(shown)}{more}")
        without = [name for name, (train, _) in named if not train]
        if without:
            lines.append(f"note         no image to train on of {some_names(without)}")
    if prepared.measured(settings) != prepared.held_out_images:
        lines.append("note         nothing is measured on your held-out images: they are too few to hide single ones")
    if prepared.bad:
        lines.append(f"left out     {prepared.bad} images that cannot be used")
        lines += [f"             {line}" for line in first_bad(prepared.left_out, prepared.bad)]
    for line in lines:
        print_line(console, line)
