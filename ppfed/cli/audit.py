"""``ppfed audit``: what an attacker gets of an owner's own images, measured before anything leaves."""

# ruff: noqa: PLC0415 -- torch, scikit-image and the attacks are imported on first use, so that `ppfed --help` is quick.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppfed.ciphers.spec import DEFAULT_CIPHER, CipherSpec, Scope, cipher_info
from ppfed.cli.console import print_line, progress_bar, stderr, stdout
from ppfed.cli.options import CipherOption, ScopeOption, ShuffleOption
from ppfed.errors import UsageError, first_bad

if TYPE_CHECKING:
    from ppfed.federation import Exchange, FederationSettings
    from ppfed.leakage.audit import Audit, AuditRun
    from ppfed.leakage.images import AuditImages
    from ppfed.leakage.record import AttackName

_SEED = 0
"""Of the choice of images and of the attacker's training: an audit that is run again says the same."""

_STEPS = 1000

app = typer.Typer(help="Measure what an attacker gets.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep ``leakage`` a sub-command."""


@app.command()
def leakage(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Your plain images: class folders, CIFAR-10 for Python, or an .npz.")
    ],
    *,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the leakage card; its picture shows plain images.")
    ] = Path("leakage"),
    invite: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take cipher, size and channels from an invite, as 'client join' will."),
    ] = None,
    exchange_name: Annotated[
        str | None,
        typer.Option(
            "--exchange",
            metavar="NAME",
            help="What leaves: images, or updates or gradients, of small batches. Default: the invite's, else images.",
        ),
    ] = None,
    cipher_name: CipherOption = DEFAULT_CIPHER,
    scope: ScopeOption = Scope.IMAGE,
    shuffle: ShuffleOption = None,
    size: Annotated[str, typer.Option(metavar="SIZE", help="Stretch to 32 (square) or 24x32 (height x width).")] = "32",
    preset: Annotated[
        str,
        typer.Option(help="What the attacker spends on training: quick (a minute), cpu (half an hour), gpu."),
    ] = "cpu",
    attacker_data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Images the attacker has of its own. Default: a part of yours, the worst case."
        ),
    ] = None,
    targets: Annotated[int, typer.Option(min=10, max=10_000, help="Most images to attack.")] = 1000,
    attack: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run this attack only; may be given several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Attack your own images as a coordinator could, and see what it gets. Needs no key and sends nothing."""
    from ppfed.federation import Exchange, Invite
    from ppfed.images.size import parse_size
    from ppfed.leakage.attackers import AuditPreset
    from ppfed.leakage.audit import AuditRun, applicable, audit, judge_of
    from ppfed.leakage.card import write_card
    from ppfed.leakage.sent import possible_on_sent
    from ppfed.leakage.wording import markdown_table, sentence
    from ppfed.training.loop import pick_device

    settings = None if invite is None else Invite.read(invite).federation
    if settings is None:
        spec, sides, channels = cipher_info(cipher_name).spec(scope, colour_shuffle=shuffle), parse_size(size), None
    else:
        spec, sides, channels = settings.cipher.spec, (settings.height, settings.width), settings.channels
    try:
        chosen = AuditPreset(preset)
    except ValueError:
        raise UsageError(f"there is no preset {preset!r}", hint=f"Choose {', '.join(AuditPreset)}.") from None
    try:
        exchange = Exchange(exchange_name or (Exchange.IMAGES if settings is None else settings.exchange))
    except ValueError:
        raise UsageError(f"there is no exchange {exchange_name!r}", hint=f"Choose {', '.join(Exchange)}.") from None
    place = pick_device(device)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty.", hint="Name another folder with --out.")
    images = _read(source, attacker_data, sides, channels, targets, chosen.own_images)
    possible = (applicable if exchange is Exchange.IMAGES else possible_on_sent)(spec, images.shape[2])
    attacks = _chosen_attacks(attack, possible, spec)
    print_line(
        stderr(),
        f"attacking exchange {exchange}, {len(images.targets):,} images, {spec}; the attacker has "
        f"{len(images.own):,} images of its own",
    )
    with progress_bar("training a judge", _STEPS) as advance:
        judge = judge_of(images, chosen, place, _SEED, _in_steps(advance))
    with progress_bar("attacking", _STEPS) as advance:
        run = AuditRun(chosen, place, _SEED, judge, _untitled(_in_steps(advance)))
        if exchange is Exchange.IMAGES:
            result = audit(spec, images, attacks, run)
        else:
            result = _audit_sent(spec, images, exchange, settings, attacks, run)
    paths = write_card(out, result.record, result.pictures)
    print_line(stdout(), markdown_table(result.record))
    print_line(stdout(), sentence(result.record))
    for path in paths:
        print_line(stdout(), str(path))


def _audit_sent(
    spec: CipherSpec,
    images: AuditImages,
    exchange: Exchange,
    settings: FederationSettings | None,
    attacks: tuple[AttackName, ...],
    run: AuditRun,
) -> Audit:
    """Attack what leaves in place of images, for the invite's network or else the default one."""
    from ppfed.federation import Exchange
    from ppfed.leakage.sent import SENT_ATTACKS, OwnerStep, audit_sent, sent_attacks, sent_batches
    from ppfed.networks.classifier import build_network
    from ppfed.networks.config import NetworkConfig, best_features
    from ppfed.training.settings import BatchNormMode, TrainingSettings

    height, width, channels = images.shape
    training = TrainingSettings() if settings is None else settings.training
    if settings is None:
        config = NetworkConfig(
            images.classes, height, width, channels, base_maps=training.base_maps, features=best_features(spec)
        )
    elif images.classes > len(settings.classes):
        raise UsageError(
            f"these images have {images.classes} classes, and the invite's network has {len(settings.classes)}",
            hint="Name a folder with the classes of the federation.",
        )
    else:
        config = settings.network_config()
    left_out = sorted(set(attacks) & set(SENT_ATTACKS) - set(sent_attacks(config)))
    if left_out:
        print_line(stderr(), f"left out: {', '.join(left_out)}; no such weights are known for this network")
    batch_norm = training.batch_norm if exchange is Exchange.GRADIENTS else BatchNormMode.LOCAL
    step = OwnerStep(build_network(config, run.seed).to(run.device), exchange, batch_norm)
    batches = sent_batches(exchange, training.min_local_batch)
    return audit_sent(spec, images, step, batches, run, attacks=attacks)


def _untitled(told: Callable[[float], None]) -> Callable[[str, float], None]:
    return lambda _what, part: told(part)


def _in_steps(advance: Callable[[int], None]) -> Callable[[float], None]:
    """Turn parts done, 0 to 1, into steps of a bar."""
    told = 0

    def tell(part: float) -> None:
        nonlocal told
        steps = int(part * _STEPS) - told
        told += steps
        advance(steps)

    return tell


def _chosen_attacks(
    names: list[str] | None, possible: tuple[AttackName, ...], spec: CipherSpec
) -> tuple[AttackName, ...]:
    if not names:
        return possible
    unknown = sorted(set(names) - set(possible))
    if unknown:
        raise UsageError(
            f"there is no attack {', '.join(map(repr, unknown))} on {spec}", hint=f"Choose from: {', '.join(possible)}."
        )
    return tuple(attack for attack in possible if attack in names)


def _read(
    source: Path,
    attacker_data: Path | None,
    size: tuple[int, int],
    channels: int | None,
    targets: int,
    own: int,
) -> AuditImages:
    from ppfed.images.decode import quiet_decoders
    from ppfed.images.open import open_source
    from ppfed.images.source import LoadReport
    from ppfed.leakage.images import split_source, with_attacker_images

    report = LoadReport()
    with quiet_decoders(), progress_bar("reading images", None) as advance:
        owners = open_source(source)
        images = split_source(
            owners,
            size=size,
            channels=channels,
            targets=targets,
            own=own,
            data=source.name,
            seed=_SEED,
            report=report,
            progress=advance,
        )
        if attacker_data is not None:
            images = with_attacker_images(
                images, owners.classes, open_source(attacker_data), own=own, seed=_SEED, report=report, progress=advance
            )
    if report.bad:
        print_line(stderr(), f"{len(report.bad)} image{'s' if len(report.bad) > 1 else ''} cannot be used, left out:")
        for line in first_bad(report.bad, len(report.bad)):
            print_line(stderr(), f"  {line}")
    return images
