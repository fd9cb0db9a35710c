"""Files that are written whole: what stood there before stays until then, and nobody else reads any of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ppfed import atomic
from ppfed.atomic import write_atomic


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "ünïcode\n")
    assert path.read_bytes() == "ünïcode\n".encode()
    write_atomic(path, b"\x00\r\n\xff")
    assert path.read_bytes() == b"\x00\r\n\xff"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_nobody_else_reads_it_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    under_way = []

    def fsync(descriptor: int) -> None:
        if not is_folder(descriptor):
            under_way.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "file", "secret", mode)
    finally:
        os.umask(before)
    assert under_way == [0o600]
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_by_default_it_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o666)
    write_atomic(path, "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_content_is_on_the_disk_before_it_takes_the_place_of_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    synced = []

    def fsync(descriptor: int) -> None:
        # What is still in a buffer of this process would not be on the disk.
        size = None if is_folder(descriptor) else os.fstat(descriptor).st_size
        synced.append((size, path.read_text()))

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    write_atomic(path, "newer")
    # Then its name: a power failure could bring the older one back, after somebody was told of the newer.
    assert synced == [(len("newer"), "old"), (None, "newer")]
    assert path.read_text() == "newer"


def test_after_an_error_the_older_file_stands_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(_descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"
