"""``ppfed key``: make, inspect and hand over the key."""

# ruff: noqa: PLC0415 -- the key package is imported on first use: a process that needs no key never loads it.

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ppfed.cli.console import printable, stdout
from ppfed.cli.options import ask_new_passphrase, ask_passphrase

app = typer.Typer(
    help="Make, inspect and hand over the key that all owners share.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_PassphraseFlag = Annotated[
    bool,
    typer.Option(
        "--passphrase",
        help="Lock the file with a passphrase, from a prompt or from the file that PPFED_PASSPHRASE_FILE names.",
    ),
]


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="Key file to make; must not exist.")],
    passphrase: _PassphraseFlag = False,
) -> None:
    """Make a new key and print its fingerprint."""
    from ppfed.keys.files import refuse_existing, write_key_file
    from ppfed.keys.master import MasterKey

    refuse_existing(file)
    key = MasterKey.generate()
    write_key_file(file, key, ask_new_passphrase() if passphrase else None)
    _print(key.fingerprint)


@app.command()
def show(file: Annotated[Path, typer.Argument(help="Key file, in clear, locked or sealed.")]) -> None:
    """Print the fingerprint of a key and what protects its file. Needs no passphrase."""
    from ppfed.keys.files import inspect_key_file

    info = inspect_key_file(file)
    _print(f"fingerprint: {info.fingerprint or 'not visible until opened with `ppfed key open`'}")
    _print(f"protection:  {info.protection}")


@app.command()
def seal(
    file: Annotated[Path, typer.Argument(help="Key file to hand over.")],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="RECIPIENT",
            help="Who can open it: age1..., ssh-ed25519 ..., ssh-rsa ..., or a file with one a line. Repeatable.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Sealed file to make.", show_default="FILE.age")] = None,
) -> None:
    """Seal a key for other owners, so that it can be sent by e-mail."""
    from ppfed.keys.age import seal as seal_text
    from ppfed.keys.files import key_text, read_key_file, refuse_existing, write_private_file

    sealed_file = out or file.with_name(f"{file.name}.age")
    refuse_existing(sealed_file)
    recipients = [recipient for given in to for recipient in _recipients(given)]
    key = read_key_file(file, ask_passphrase)
    write_private_file(sealed_file, seal_text(key_text(key), recipients))
    _print(f"fingerprint: {key.fingerprint}")
    _print(f"sealed:      {sealed_file}")


@app.command("open")
def open_(
    sealed: Annotated[Path, typer.Argument(help="Sealed key, as received.")],
    identity: Annotated[
        Path, typer.Option(help="Your age identity file, or OpenSSH private key without a passphrase.")
    ],
    out: Annotated[Path, typer.Option(help="Key file to make; must not exist.")],
    passphrase: _PassphraseFlag = False,
) -> None:
    """Open a key that was sealed for you and print its fingerprint."""
    from ppfed.keys.age import open_sealed
    from ppfed.keys.files import (
        read_key_text,
        read_private_file,
        read_public_file,
        refuse_existing,
        write_key_file,
    )

    refuse_existing(out)
    identity_text = read_private_file(identity).decode(errors="replace")
    text = open_sealed(read_public_file(sealed), [identity_text], source=str(sealed))
    key = read_key_text(text, ask_passphrase, source=f"What {sealed} holds")
    write_key_file(out, key, ask_new_passphrase() if passphrase else None)
    _print(key.fingerprint)


@app.command()
def identity(file: Annotated[Path, typer.Argument(help="Identity file to make; must not exist.")]) -> None:
    """Make an age identity and print its recipient, which others seal the key for."""
    from ppfed.keys.age import identity_text, new_identity
    from ppfed.keys.files import write_private_file

    secret, recipient = new_identity()
    write_private_file(file, identity_text(secret, recipient, datetime.now(tz=UTC)).encode())
    _print(recipient)


def _recipients(given: str) -> list[str]:
    """Return the recipients that one ``--to`` names: itself, or those in a file."""
    from ppfed.keys.age import recipients_in
    from ppfed.keys.files import read_public_file

    path = Path(given.removeprefix("@"))
    literal = given.startswith(("age1", "ssh-"))
    # os.path, since Path.exists raises where the text is too long for a path.
    if given.startswith("@") or (not literal and os.path.exists(given)):
        return recipients_in(read_public_file(path).decode(errors="replace"), str(path))
    return [given]


def _print(line: str) -> None:
    # Unwrapped and unstyled: scripts capture it.
    stdout().out(printable(line), highlight=False)
