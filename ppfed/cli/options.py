"""Options that several commands share, and how they get at the key."""

# ruff: noqa: PLC0415 -- the key package is imported on first use: a process that needs no key never loads it.

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppfed.ciphers.spec import Scope, cipher_info, cipher_names
from ppfed.errors import PassphraseError, UsageError

if TYPE_CHECKING:
    from ppfed.keys.master import MasterKey

_VARIABLE = "PPFED_PASSPHRASE_FILE"
_WITH_SHUFFLE = ", ".join(name for name in cipher_names() if cipher_info(name).colour_shuffle)

KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar="PPFED_KEY_FILE", metavar="FILE", help="Key file; - reads it from standard input."),
]

CipherOption = Annotated[str, typer.Option("--cipher", metavar="NAME", help=f"One of: {', '.join(cipher_names())}.")]

ScopeOption = Annotated[
    Scope,
    typer.Option(help="image: a fresh key stream for each image. fixed: as published, one for all, which is weak."),
]

ShuffleOption = Annotated[
    bool | None,
    typer.Option(
        "--shuffle/--no-shuffle",
        help=f"Permute the colours of each pixel too (only {_WITH_SHUFFLE}).",
        show_default="shuffle, where the cipher has it",
    ),
]


def load_key(key: str | None) -> MasterKey:
    """Read the key that ``--key`` names.

    Parameters
    ----------
    key : str or None
        Path of a key file, or ``-`` for standard input.

    Raises
    ------
    UsageError
        If no key was named.
    KeyFileError
        If the key cannot be used.
    """
    from ppfed.keys.files import MAX_FILE_BYTES, read_key_file, read_key_text

    if key is None:
        raise UsageError("This command needs the key.", hint="Pass --key FILE, or set PPFED_KEY_FILE to its path.")
    if key == "-":
        text = sys.stdin.buffer.read(MAX_FILE_BYTES + 1).decode(errors="replace")
        return read_key_text(text, lambda: ask_passphrase(may_prompt=False), source="Standard input")
    return read_key_file(Path(key), ask_passphrase)


def ask_passphrase(*, may_prompt: bool = True) -> str:
    """Get the passphrase of an existing key: from the file that PPFED_PASSPHRASE_FILE names, else at a hidden prompt.

    Parameters
    ----------
    may_prompt : bool
        False where standard input carries something else.

    Raises
    ------
    PassphraseError
        If there is no passphrase to be had.
    KeyFileError
        If the passphrase file cannot be used.
    """
    return _passphrase_from_file() or _prompt("Passphrase of the key: ", may_prompt=may_prompt)


def ask_new_passphrase() -> str:
    """Get a passphrase for a new key file: as `ask_passphrase`, but a prompt asks twice.

    Raises
    ------
    PassphraseError
        If there is no passphrase to be had, or the two differ.
    KeyFileError
        If the passphrase file cannot be used.
    """
    passphrase = _passphrase_from_file()
    if passphrase is None:
        passphrase = _prompt("New passphrase: ")
        if passphrase != _prompt("The same again: "):
            raise PassphraseError("The two passphrases differ.", hint="Run the command again.")
    return passphrase


def _passphrase_from_file() -> str | None:
    from ppfed.keys.files import read_private_file

    name = os.environ.get(_VARIABLE)
    if not name:
        return None
    if not os.path.lexists(name):
        # What it names is not repeated: it may be the passphrase.
        raise PassphraseError(
            f"There is no file of the name that {_VARIABLE} holds.",
            hint="Let it hold the path of a file (mode 600) whose first line is the passphrase.",
        )
    try:
        passphrase = read_private_file(Path(name)).decode("utf-8-sig").split("\n")[0].rstrip("\r")
    except UnicodeDecodeError:
        passphrase = ""
    if not passphrase:
        raise PassphraseError(
            f"The first line of {name} is not a passphrase.", hint="Write the passphrase there, as UTF-8 text."
        )
    return passphrase


def _prompt(question: str, *, may_prompt: bool = True) -> str:
    if not (may_prompt and sys.stdin.isatty()):
        raise PassphraseError(
            "A passphrase is needed, and there is no terminal to ask for it.",
            hint=f"Set {_VARIABLE} to the path of a file (mode 600) whose first line is the passphrase.",
        )
    return getpass.getpass(question)
