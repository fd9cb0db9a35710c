"""The leakage card as files: a picture, a text and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ppfed.atomic import write_atomic
from ppfed.images.types import UInt8Array
from ppfed.leakage.picture import write_picture
from ppfed.leakage.record import LeakageRecord
from ppfed.leakage.wording import legend, markdown_table, sentence

RECORD_FILE = "leakage.json"
_TEXT_FILE = "leakage.md"
_PICTURE_FILE = "leakage.png"


def write_card(folder: Path, record: LeakageRecord, pictures: Mapping[str, UInt8Array]) -> tuple[Path, ...]:
    """Write the card into a folder. The picture shows plain images: its owner alone may read it.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    record : LeakageRecord
    pictures : mapping of str to uint8 array
        As ``ppfed.leakage.picture.leakage_card`` takes them.

    Returns
    -------
    tuple of Path
        Picture, text, numbers.

    Raises
    ------
    PPFedError
        If the picture cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture, text, numbers = (folder / name for name in (_PICTURE_FILE, _TEXT_FILE, RECORD_FILE))
    write_picture(picture, record, pictures)
    parts = (sentence(record), markdown_table(record), legend(record))
    write_atomic(text, "\n\n".join(part.strip() for part in parts) + "\n")
    write_atomic(numbers, record.model_dump_json(indent=2) + "\n")
    return picture, text, numbers
