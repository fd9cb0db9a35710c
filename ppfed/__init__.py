"""ppfed: train one image classifier on the encrypted images of several owners.

What a user of the library may touch is named in ``__all__``. Everything is imported on first use, so that a
coordinator, which imports ``ppfed`` too, never loads the key module.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# Flower reads this once, when it is first imported, which happens after this package is: an owner's messages were cut
# into Flower's own 5 MiB otherwise.
os.environ.setdefault("FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", str(8 << 20))

_HOMES = {
    "CipherSpec": "ppfed.ciphers.spec",
    "EncryptedImages": "ppfed.images.types",
    "MasterKey": "ppfed.keys.master",
    "PPFedError": "ppfed.errors",
    "PlainImages": "ppfed.images.types",
    "Scope": "ppfed.ciphers.spec",
    "load_model": "ppfed.model_folder",
    "make_cipher": "ppfed.ciphers.registry",
    "read_key_file": "ppfed.keys.files",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Reading it takes longer than starting Python does, and processes that decode are started for each folder.
        return import_module("importlib.metadata").version("ppfed")
    if name not in _HOMES:
        raise AttributeError(f"module 'ppfed' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
