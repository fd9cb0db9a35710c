"""``ppfed encrypt``, ``ppfed decrypt`` and ``ppfed preview``."""

# ruff: noqa: PLC0415 -- Pillow, matplotlib and the key package are imported on first use, so that `ppfed --help` is quick.

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ppfed.ciphers.spec import DEFAULT_CIPHER, CipherSpec, Scope, cipher_info
from ppfed.cli.console import printable, progress_bar, stderr, stdout
from ppfed.cli.options import CipherOption, KeyOption, ScopeOption, ShuffleOption, load_key
from ppfed.errors import UsageError

_SHOWN_BAD = 10

_SizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Stretch to 32 (square) or 24x32 (height x width) first.", show_default="size kept"
    ),
]
_SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave bad files out instead of stopping.")]


def encrypt(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of class folders, CIFAR-10 for Python, or an .npz.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make; must not exist, or be empty.")],
    key: KeyOption = None,
    cipher_name: CipherOption = DEFAULT_CIPHER,
    scope: ScopeOption = Scope.IMAGE,
    shuffle: ShuffleOption = None,
    size: _SizeOption = None,
    channels: Annotated[
        int | None,
        typer.Option(
            metavar="1|3",
            help="Make all images grey (1) or colour (3) first, as the network takes them.",
            show_default="grey kept at 1, others 3",
        ),
    ] = None,
    skip_bad: _SkipBadOption = False,
) -> None:
    """Encrypt images into PNG files that look like noise."""
    from ppfed.ciphers.registry import make_cipher
    from ppfed.images.decode import quiet_decoders
    from ppfed.images.encrypted_folder import encrypt_folder
    from ppfed.images.open import open_source
    from ppfed.images.size import parse_size

    sides = None if size is None else parse_size(size)
    if channels not in (None, 1, 3):
        raise UsageError(f"--channels is 1 or 3, not {channels}.", hint="Take 3 for colour, 1 for grey.")
    spec = cipher_info(cipher_name).spec(scope, colour_shuffle=shuffle)
    cipher = make_cipher(spec, load_key(key))
    _warn_of_fixed_scope(spec)
    started = time.perf_counter()
    with quiet_decoders():
        images = open_source(source)
        with progress_bar("encrypting", sum(images.counts.values())) as progress:
            report = encrypt_folder(
                images, cipher, out, size=sides, channels=channels, skip_bad=skip_bad, progress=progress
            )
    seconds = time.perf_counter() - started
    for section, counts in report.written.items():
        for class_name, count in counts.items():
            _print(f"{count:>9,}  {f'{section}/' if section else ''}{class_name}")
    _print_notes(report.load.notes)
    _print_bad(report.load.bad)
    _print(f"encrypted {report.load.used:,} images in {seconds:.1f} s: {spec}, key {cipher.fingerprint}")
    _print(f"written to {out}")


def decrypt(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `ppfed encrypt` wrote, or one PNG of it.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to make; must not exist, or be empty. For one PNG also a .png.")
    ],
    key: KeyOption = None,
    skip_bad: _SkipBadOption = False,
) -> None:
    """Restore encrypted images bit for bit, as PNG files."""
    from ppfed.images.decode import quiet_decoders
    from ppfed.images.encrypted_folder import count_files, decrypt_file, decrypt_folder

    if not source.exists():
        raise UsageError(f"{source} does not exist.", hint="Check the path.")
    master = load_key(key)
    with quiet_decoders():
        if source.is_file():
            target = out if out.suffix.lower() == ".png" else out / source.name
            decrypt_file(source, master, target)
            _print(f"decrypted 1 image to {target}")
            return
        started = time.perf_counter()
        with progress_bar("decrypting", count_files(source)) as progress:
            report = decrypt_folder(source, master, out, skip_bad=skip_bad, progress=progress)
    _print_bad(report.bad)
    _print(f"decrypted {report.written:,} images in {time.perf_counter() - started:.1f} s to {out}")


def preview(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of class folders, CIFAR-10 for Python, or an .npz.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="PNG to write; shows plain images, so keep it private.")],
    key: KeyOption = None,
    cipher_name: CipherOption = DEFAULT_CIPHER,
    scope: ScopeOption = Scope.IMAGE,
    shuffle: ShuffleOption = None,
    size: _SizeOption = None,
    count: Annotated[int, typer.Option(min=1, max=100, help="Images to show.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Which ones.")] = 0,
) -> None:
    """Show some images plain, encrypted, and as an attacker without the key sees them."""
    import torch

    from ppfed.attacks.alone import fits, solver
    from ppfed.ciphers.registry import make_cipher
    from ppfed.federation import Exchange
    from ppfed.images.decode import quiet_decoders
    from ppfed.images.open import open_source
    from ppfed.images.size import parse_size
    from ppfed.images.source import LoadReport
    from ppfed.leakage.reference import quoted
    from ppfed.picture_grid import require_writable
    from ppfed.preview import REDUCED, choose_samples, solved_shape, write_contact_sheet

    sides = None if size is None else parse_size(size)
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out} is not the name of a PNG file.", hint="Let it end in .png.")
    require_writable(out)
    spec = cipher_info(cipher_name).spec(scope, colour_shuffle=shuffle)
    cipher = make_cipher(spec, load_key(key))
    _warn_of_fixed_scope(spec)
    report = LoadReport()
    with quiet_decoders():
        samples = choose_samples(open_source(source), size=sides, count=count, seed=seed, report=report)
    shapes = [sample.image.shape for sample in samples]
    solvable = all(fits(spec.name, solved_shape(shape)) for shape in shapes)
    restore = solver(spec, device=torch.device("cpu")) if solvable else None
    with progress_bar("solving" if restore else "drawing", len(samples)) as progress:
        write_contact_sheet(
            out,
            samples,
            cipher,
            restore=restore,
            finding=quoted(spec, Exchange.IMAGES, max(channels for *_, channels in shapes)),
            progress=progress,
        )
    _print_notes(report.notes)
    _print_bad(report.bad)
    if restore and any(solved_shape(shape) != shape for shape in shapes):
        _print(f"what the solver restores is {REDUCED}; --size 32, or another size, is for all columns")
    _print(f"{len(samples)} images shown in {out}")


def _warn_of_fixed_scope(spec: CipherSpec) -> None:
    if spec.scope is not Scope.FIXED:
        return
    stderr().print(
        f"[bold yellow]warning:[/] fixed scope uses {cipher_info(spec.name).fixed_scope}. "
        "Use it to compare with published results, not to hide anything.",
        soft_wrap=True,
    )


def _print_notes(notes: Mapping[str, int]) -> None:
    from ppfed.images.decode import asks_for_action

    for note, count in sorted(Counter(notes).items()):
        _print(f"{count:>9,}  {'warning' if asks_for_action(note) else 'note'}: {note}")


def _print_bad(bad: Sequence[tuple[str, str]]) -> None:
    if not bad:
        return
    _print(f"{len(bad):>9,}  bad, left out:")
    for path, reason in bad[:_SHOWN_BAD]:
        _print(f"           {path}: {reason}")
    if len(bad) > _SHOWN_BAD:
        _print(f"           and {len(bad) - _SHOWN_BAD} more")


def _print(line: str) -> None:
    # Unwrapped and unstyled: scripts capture it. Names may look like markup, or hold what moves a terminal's cursor.
    stdout().out(printable(line.replace("\n", "\N{REPLACEMENT CHARACTER}")), highlight=False)
