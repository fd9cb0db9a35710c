"""Everything ppfed raises on purpose, but for what it catches again itself (`StopRequestedError`, `LargeImageError`).

::

    PPFedError
    ├── UsageError                 the request itself makes no sense
    ├── KeyFileError               a key file cannot be used
    │   ├── KeyFilePermissionError     others on this machine may read it
    │   ├── KeyFileFormatError         it is not a key file
    │   ├── KeyFileTruncatedError      it was one, but part of it is missing or damaged
    │   ├── KeyFileExistsError         it would have been overwritten
    │   └── PassphraseError            wrong or missing passphrase or identity
    ├── WrongKeyError              the images were encrypted with another key, or another cipher
    ├── DataError                  images or labels cannot be used
    │   └── BadImagesError             names each bad file with its reason
    ├── FederationError            owners and coordinator cannot work together
    │   ├── InviteError                an invite is damaged, used up or not for this owner
    │   ├── MismatchError              an owner's key, cipher, size or classes differ from the federation's
    │   ├── PeerDataError              what a peer sent fails a check
    │   └── ServiceError               a Flower service did not start, or went away
    └── ModelError                 a model folder cannot be used

A message says what happened and why; ``hint`` says what to do next. Neither ever contains key material or pixels.
"""

from __future__ import annotations

from collections.abc import Sequence


class PPFedError(Exception):
    """Base of all errors of ppfed.

    Parameters
    ----------
    message : str
        What happened, and why.
    hint : str
        What to do next.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(PPFedError):
    """The request itself makes no sense."""


class KeyFileError(PPFedError):
    """A key file cannot be used."""


class KeyFilePermissionError(KeyFileError):
    """Others on this machine may read the key file."""


class KeyFileFormatError(KeyFileError):
    """The file is not a key file."""


class KeyFileTruncatedError(KeyFileError):
    """The file was a key file, but part of it is missing or damaged."""


class KeyFileExistsError(KeyFileError):
    """The file exists already, and a key file is never overwritten."""


class PassphraseError(KeyFileError):
    """A wrong or missing passphrase or identity."""


class WrongKeyError(PPFedError):
    """The images were encrypted with another key, or with another cipher."""


class DataError(PPFedError):
    """Images or labels cannot be used."""


MOST_BAD_SHOWN = 10


def first_bad(bad: Sequence[tuple[str, str]], total: int) -> list[str]:
    """Write the first of ``total`` files that cannot be used, a line each, and how many more there are.

    Parameters
    ----------
    bad : sequence of (str, str)
        Path and reason of each; the first ``MOST_BAD_SHOWN`` are enough.
    total : int
    """
    lines = [f"{path}: {reason}" for path, reason in bad[:MOST_BAD_SHOWN]]
    return [*lines, f"and {total - len(lines)} more"] if total > len(lines) else lines


class BadImagesError(DataError):
    """Some image files cannot be used.

    Parameters
    ----------
    bad : sequence of (str, str)
        Path and reason of every bad file.
    """

    def __init__(self, bad: Sequence[tuple[str, str]]) -> None:
        self.bad = tuple(bad)
        lines = [f"  {line}" for line in first_bad(self.bad, len(self.bad))]
        noun = "image cannot" if len(self.bad) == 1 else "images cannot"
        super().__init__(
            "\n".join([f"{len(self.bad)} {noun} be used:", *lines]),
            hint="Repair or remove them, or pass --skip-bad to leave them out and have them counted.",
        )


class FederationError(PPFedError):
    """Owners and coordinator cannot work together."""


class InviteError(FederationError):
    """An invite is damaged, used up or not for this owner."""


class MismatchError(FederationError):
    """An owner's key, cipher, image size or class list differs from the federation's."""


class PeerDataError(FederationError):
    """What a peer sent fails a check."""


class ServiceError(FederationError):
    """A Flower service did not start, or went away."""


class ModelError(PPFedError):
    """A model folder cannot be used."""
