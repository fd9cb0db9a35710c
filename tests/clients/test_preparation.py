"""From plain images to an encrypted store: classes, held-out images, copies, and what is made again."""

from __future__ import annotations

import errno
import hashlib
import hmac
import itertools
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clients import preparation
from clients.join import make_private, store_folder
from clients.preparation import by_position, class_positions, prepare
from clients.prepared import MARKER, Prepared
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec
from ppfed.errors import BadImagesError, DataError, MismatchError, UsageError
from ppfed.federation import FederationSettings
from ppfed.images.held_out import held_out_by_content
from ppfed.images.open import open_source
from ppfed.images.source import Split
from ppfed.images.types import EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from ppfed.store import Shard, ShardStore, locate_pixels

MakeSettings = Callable[..., FederationSettings]

KEY = MasterKey(bytes(range(32)))
CIPHER = make_cipher(CipherSpec(), KEY)


def picture(number: int) -> UInt8Array:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def class_folder(root: Path, counts: dict[str, int]) -> Path:
    """Pictures in class folders; the number of a picture is its seed."""
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for position in range(count):
            Image.fromarray(picture(number)).save(root / name / f"{position:03}.png")
            number += 1
    return root


def npz(path: Path, labels: list[int], held_out: list[int] | None = None) -> Path:
    arrays: dict[str, Any] = {
        "train_images": np.stack([picture(number) for number in range(len(labels))]),
        "train_labels": np.array(labels),
    }
    if held_out is not None:
        arrays["val_images"] = np.stack([picture(1000 + number) for number in range(len(held_out))])
        arrays["val_labels"] = np.array(held_out)
    np.savez(path, **arrays)
    return path


def made(path: Path, settings: FederationSettings, folder: Path, **options: Any) -> Prepared:
    return prepare(open_source(path), path, KEY, settings, folder, **options)


def decrypted(prepared: Prepared, split: Split) -> tuple[UInt8Array, list[int], list[bytes]]:
    """Plain pixels, labels and ids of a split, in order."""
    pixels, labels, ids = [], [], []
    for shard in prepared.store.shards(split):
        pixels.append(CIPHER.decrypt(shard.images).pixels)
        labels += shard.labels.tolist()
        ids += [one.tobytes() for one in shard.images.ids]
    return np.concatenate(pixels), labels, ids


# Classes.


@given(order=st.permutations(["ant", "bee", "cat", "dog"]))
def test_classes_are_matched_by_name(make_settings: MakeSettings, order: list[str]) -> None:
    settings = make_settings(classes=("dog", "ant", "cat", "bee"))
    positions = class_positions(tuple(order), settings)
    assert [settings.classes[position] for position in positions] == order


@given(count=st.integers(1, 4))
def test_numbered_classes_are_matched_by_position(make_settings: MakeSettings, count: int) -> None:
    settings = make_settings(classes=("dog", "ant", "cat", "bee"))
    positions = class_positions(tuple(str(number) for number in range(count)), settings)
    assert positions.tolist() == list(range(count))
    assert positions.dtype == np.int64


@given(names=st.permutations(["0", "1", "2", "3"]), count=st.integers(1, 4))
def test_numbers_that_are_names_are_matched_by_name(make_settings: MakeSettings, names: list[str], count: int) -> None:
    """The federation may list its classes as 1, 0: then label 0 is not its first class."""
    settings = make_settings(classes=tuple(names))
    offered = tuple(str(number) for number in range(count))
    assert [settings.classes[position] for position in class_positions(offered, settings)] == list(offered)
    assert not by_position(offered, settings)


@pytest.mark.parametrize(
    ("offered", "says"),
    [
        (("cat",), "yours lacks dog"),
        (("cat", "dog", "emu"), "yours has emu besides"),
        (("cat", "emu"), "yours lacks dog; yours has emu besides"),
        (("0", "1", "2"), "yours lacks cat, dog; yours has 0, 1, 2 besides"),
        (("1", "2"), "yours lacks cat, dog"),
    ],
)
def test_other_classes_are_refused_by_name(make_settings: MakeSettings, offered: tuple[str, ...], says: str) -> None:
    with pytest.raises(MismatchError, match=says) as caught:
        class_positions(offered, make_settings())
    assert "cat, dog" in caught.value.hint


def test_numbers_that_are_some_of_the_names_are_refused(make_settings: MakeSettings) -> None:
    """0 is neither by name nor by position: 1 is the owner's second class and the federation's first."""
    with pytest.raises(MismatchError, match="yours lacks 2; yours has 0 besides"):
        class_positions(("0", "1"), make_settings(classes=("1", "2")))


def test_labels_are_the_federations(tmp_path: Path, make_settings: MakeSettings) -> None:
    """Folders are sorted, the federation's classes are not."""
    data = class_folder(tmp_path / "data", {"ant": 3, "bee": 2})
    prepared = made(data, make_settings(classes=("bee", "ant")), tmp_path / "store")
    pixels, labels, _ = decrypted(prepared, Split.TRAIN)
    assert labels == [1, 1, 1, 0, 0]
    assert np.array_equal(pixels, np.stack([picture(number) for number in range(5)]))


def test_other_classes_leave_nothing_behind(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = class_folder(tmp_path / "data", {"ant": 3, "bee": 2})
    with pytest.raises(MismatchError):
        made(data, make_settings(), tmp_path / "store")
    assert not (tmp_path / "store").exists()


# What is kept.


def test_only_ciphertext_is_stored(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = npz(tmp_path / "data.npz", [0, 1] * 10)
    made(data, make_settings(), tmp_path / "store")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    for number in range(20):
        assert picture(number).tobytes()[:24] not in stored
    assert KEY.reveal() not in stored


def noise(count: int) -> PlainImages:
    return PlainImages(np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8))


def test_one_image_in_ten_is_held_out() -> None:
    held_out = held_out_by_content(noise(20_000), KEY)
    # Five standard deviations of a binomial distribution.
    assert abs(held_out.mean() - 0.1) < 5 * (0.1 * 0.9 / 20_000) ** 0.5


def test_whether_an_image_is_held_out_is_written_down() -> None:
    """A change would measure models on what they were trained on (docs/cipher.md has the rule)."""
    images = noise(200)
    secret = KEY.derive("ppfed/v1/held-out")
    first = [hmac.new(secret, image.tobytes(), hashlib.sha256).hexdigest()[:8] for image in images.pixels]
    assert held_out_by_content(images, KEY).tolist() == [digits < "19999999" for digits in first]


def test_nobody_without_the_key_can_tell_from_where_an_image_went_which_it_is() -> None:
    images = noise(20_000)
    mine, others = held_out_by_content(images, KEY), held_out_by_content(images, MasterKey(bytes(32)))
    assert abs((mine & others).mean() - 0.01) < 5 * (0.01 * 0.99 / 20_000) ** 0.5


@given(labels=st.lists(st.integers(0, 2), min_size=8, max_size=60))
def test_where_nothing_is_held_out_the_image_decides(
    tmp_path_factory: pytest.TempPathFactory, make_settings: MakeSettings, labels: list[int]
) -> None:
    tmp_path = tmp_path_factory.mktemp("owner")
    data = npz(tmp_path / "data.npz", labels)
    prepared = made(data, make_settings(classes=("a", "b", "c")), tmp_path / "store")
    held_out = held_out_by_content(PlainImages(np.stack([picture(row) for row in range(len(labels))])), KEY)
    assert (prepared.train_images, prepared.held_out_images) == ((~held_out).sum(), held_out.sum())
    for split, chosen in ((Split.TRAIN, ~held_out), (Split.HELD_OUT, held_out)):
        rows = np.flatnonzero(chosen).tolist()
        if rows:
            pixels, found, _ = decrypted(prepared, split)
            assert np.array_equal(pixels, np.stack([picture(row) for row in rows]))
            assert found == [labels[row] for row in rows]


def test_no_image_is_held_out_that_was_trained_on_before(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = class_folder(tmp_path / "data", {"cat": 40, "dog": 40})
    before = made(data, make_settings(), tmp_path / "store")
    trained, held_out = ({image.tobytes() for image in decrypted(before, split)[0]} for split in Split)
    assert trained
    assert held_out
    # Others come, one is renamed, and one is there twice.
    for number in range(1000, 1040):
        Image.fromarray(picture(number)).save(data / "cat" / f"-{number}.png")
    (data / "dog" / "007.png").rename(data / "dog" / "new.png")
    (data / "cat" / "copy.png").write_bytes((data / "cat" / "003.png").read_bytes())
    after = made(data, make_settings(), tmp_path / "store")
    later_trained, later_held_out = ({image.tobytes() for image in decrypted(after, split)[0]} for split in Split)
    assert trained < later_trained
    assert held_out <= later_held_out
    assert not later_trained & later_held_out


@pytest.mark.parametrize("copies", [1, 3])
def test_images_are_counted_by_class(tmp_path: Path, make_settings: MakeSettings, copies: int) -> None:
    settings = make_settings(exchange="images", classes=("dog", "emu", "cat"))
    data = tmp_path / "data"
    class_folder(data / "train", {"cat": 9, "dog": 19, "emu": 0})
    class_folder(data / "test", {"cat": 1, "dog": 2, "emu": 0})
    for _ in range(2):
        prepared = made(data, settings, tmp_path / "store", copies=copies)
        assert prepared.by_class == ((19, 2), (0, 0), (9, 1))


def test_held_out_images_that_are_given_are_taken(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = npz(tmp_path / "data.npz", [0, 1] * 10, held_out=[1, 0, 1])
    prepared = made(data, make_settings(), tmp_path / "store")
    assert (prepared.train_images, prepared.held_out_images) == (20, 3)
    pixels, labels, _ = decrypted(prepared, Split.HELD_OUT)
    assert labels == [1, 0, 1]
    assert np.array_equal(pixels, np.stack([picture(1000 + number) for number in range(3)]))


def test_ids_never_repeat(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = npz(tmp_path / "data.npz", [0, 1] * 15)
    prepared = made(data, make_settings(), tmp_path / "store")
    ids = decrypted(prepared, Split.TRAIN)[2] + decrypted(prepared, Split.HELD_OUT)[2]
    assert len(set(ids)) == len(ids) == 30


@pytest.mark.parametrize("copies", [2, 3])
def test_copies_share_ids_and_count_once(tmp_path: Path, make_settings: MakeSettings, copies: int) -> None:
    data = npz(tmp_path / "data.npz", [0, 1] * 9, held_out=[0, 1])
    settings = make_settings(exchange="images", training={"shift": 2})
    prepared = made(data, settings, tmp_path / "store", copies=copies)
    assert (prepared.train_images, prepared.held_out_images, prepared.copies) == (18, 2, copies)
    shards = list(prepared.store.shards(Split.TRAIN))
    ids = np.concatenate([shard.images.ids for shard in shards])
    labels = np.concatenate([shard.labels for shard in shards])
    pixels = np.concatenate([shard.images.pixels for shard in shards])
    distinct, times = np.unique(ids, axis=0, return_counts=True)
    assert len(distinct) == 18
    assert set(times) == {copies}
    assert prepared.store.rows(Split.HELD_OUT) == 2
    for one in distinct:
        rows = np.flatnonzero((ids == one).all(axis=1))
        assert len(set(labels[rows])) == 1
    # The first of each is the image itself, and the variants of an image are not all the same.
    images = EncryptedImages(pixels[:18], ids[:18], shards[0].images.cipher, KEY.fingerprint)
    assert np.array_equal(CIPHER.decrypt(images).pixels, np.stack([picture(row) for row in range(18)]))
    assert not np.array_equal(pixels[:18], pixels[18:36])


@pytest.mark.parametrize("rows", [1, 4, 18, 100])
def test_shards_are_full_but_for_the_last(
    tmp_path: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(preparation, "rows_per_shard", lambda _shape: rows)
    data = npz(tmp_path / "data.npz", [0, 1] * 9, held_out=[0, 1])
    prepared = made(data, make_settings(), tmp_path / "store")
    sizes = [len(shard) for shard in prepared.store.shards(Split.TRAIN)]
    assert sum(sizes) == 18
    assert all(size == rows for size in sizes[:-1])
    assert 0 < sizes[-1] <= rows
    assert np.array_equal(decrypted(prepared, Split.TRAIN)[0], np.stack([picture(row) for row in range(18)]))


# Made again, or not.


def ids_of(prepared: Prepared) -> list[bytes]:
    return decrypted(prepared, Split.TRAIN)[2]


def test_a_store_is_used_again_where_nothing_changed(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    (data / "notes.txt").write_text("beside the class folders")
    first = made(data, make_settings(), tmp_path / "store")
    ids = ids_of(first)
    steps: list[int] = []
    again = made(data, make_settings(), tmp_path / "store", progress=steps.append)
    assert steps == []  # nothing was read
    assert ids_of(again) == ids
    assert (again.train_images, again.held_out_images, again.copies, again.bad, again.notes) == (
        first.train_images,
        first.held_out_images,
        first.copies,
        first.bad,
        first.notes,
    )


def touch_later(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: Image.fromarray(picture(99)).save(data / "cat" / "new.png"),
        lambda data: (data / "cat" / "000.png").unlink(),
        lambda data: touch_later(data / "cat" / "000.png"),
        lambda data: (data / "cat" / "000.png").rename(data / "dog" / "moved.png"),
    ],
)
def test_a_store_is_made_again_where_a_file_changed(
    tmp_path: Path, make_settings: MakeSettings, change: Callable[[Path], object]
) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    before = ids_of(made(data, make_settings(), tmp_path / "store"))
    change(data)
    after = ids_of(made(data, make_settings(), tmp_path / "store"))
    assert not set(before) & set(after)


@pytest.mark.parametrize("changed", ["key", "settings", "copies"])
def test_a_store_is_made_again_for_another(tmp_path: Path, make_settings: MakeSettings, changed: str) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    store = tmp_path / "store"
    before = set(ids_of(made(data, make_settings(exchange="images"), store)))
    settings = make_settings(exchange="images", training={"seed": 9} if changed == "settings" else {})
    key = MasterKey(bytes(32)) if changed == "key" else KEY
    prepared = prepare(open_source(data), data, key, settings, store, copies=2 if changed == "copies" else 1)
    shards = list(prepared.store.shards(Split.TRAIN))
    assert shards
    assert {shard.images.fingerprint for shard in shards} == {key.fingerprint}
    assert not before & {one.tobytes() for shard in shards for one in shard.images.ids}


def change_a_pixel(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[locate_pixels(shard).start] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda shard: shard.write_bytes(shard.read_bytes()[:-100]),
        lambda shard: shard.write_bytes(b"garbage"),
        change_a_pixel,
    ],
    ids=["missing", "truncated", "garbage", "pixel"],
)
def test_a_damaged_store_is_made_again(
    tmp_path: Path, make_settings: MakeSettings, damage: Callable[[Path], object]
) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    first = made(data, make_settings(), tmp_path / "store")
    before = ids_of(first)
    damage(first.store.path(Split.TRAIN, 0))
    after = made(data, make_settings(), tmp_path / "store")
    assert not set(before) & set(ids_of(after))
    assert after.store.rows(Split.TRAIN) == after.train_images == first.train_images


def test_a_record_of_another_version_makes_the_store_again(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    before = ids_of(made(data, make_settings(), tmp_path / "store"))
    record = tmp_path / "store" / "prepared.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "more": 1}))
    assert ids_of(made(data, make_settings(), tmp_path / "store")) != before


@pytest.mark.parametrize("content", ["{", "[]", "", "null", '{"signature": "x"}'])
def test_a_damaged_record_makes_the_store_again(tmp_path: Path, make_settings: MakeSettings, content: str) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    before = ids_of(made(data, make_settings(), tmp_path / "store"))
    (tmp_path / "store" / "prepared.json").write_text(content)
    assert ids_of(made(data, make_settings(), tmp_path / "store")) != before


@pytest.mark.parametrize("error", [KeyboardInterrupt, partial(OSError, errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize(
    ("place", "name", "after"),
    [
        (shutil, "rmtree", 1),  # half of the older store is gone
        (Path, "rmdir", 0),  # all of it is, but for its folder
        (Path, "write_text", 0),  # the marker is not there yet
        (ShardStore, "write", 0),
        (ShardStore, "write", 2),
        (preparation, "write_prepared", 0),
    ],
)
def test_an_interrupted_preparation_is_made_again(
    tmp_path: Path,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    after: int,
    error: Callable[[], BaseException],
) -> None:
    """Wherever it is interrupted, ``ppfed client join`` goes on: it looks at the state folder, then makes the store."""
    monkeypatch.setattr(preparation, "rows_per_shard", lambda _shape: 2)
    data = npz(tmp_path / "data.npz", [0, 1] * 10, held_out=[0, 1])
    state = tmp_path / "state"
    make_private(state)
    before = ids_of(made(data, make_settings(), store_folder(state)))
    touch_later(data)
    original, calls = getattr(place, name), itertools.count()

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) >= after:
            raise error()
        return original(*arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(place, name, interrupted)
        with pytest.raises((KeyboardInterrupt, OSError)):
            made(data, make_settings(), store_folder(state))
    make_private(state)
    prepared = made(data, make_settings(), store_folder(state))
    assert (prepared.train_images, prepared.held_out_images) == (20, 2)
    assert [prepared.store.rows(split) for split in (Split.TRAIN, Split.HELD_OUT)] == [20, 2]
    assert not set(before) & set(ids_of(prepared))


# What is deleted.


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", ["letter.txt", "train/00000.arrow", "prepared.json"])
def test_a_folder_of_the_users_own_is_never_deleted(tmp_path: Path, make_settings: MakeSettings, content: str) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    own = tmp_path / "store" / content
    own.parent.mkdir(parents=True)
    own.write_text("the only copy")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="ppfed did not make it") as caught:
        made(data, make_settings(), tmp_path / "store")
    assert "--state" in caught.value.hint
    assert contents(tmp_path) == before


def test_what_a_link_in_the_store_points_to_is_never_deleted(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    before = ids_of(made(data, make_settings(), tmp_path / "store"))
    own = tmp_path / "own"
    own.mkdir()
    (own / "letter.txt").write_text("the only copy")
    (tmp_path / "store" / "link").symlink_to(own)
    touch_later(data / "cat" / "000.png")
    assert not set(before) & set(ids_of(made(data, make_settings(), tmp_path / "store")))
    assert contents(own) == {"letter.txt": b"the only copy"}
    assert not (tmp_path / "store" / "link").exists()


def test_a_file_in_the_stores_place_is_never_deleted(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    (tmp_path / "store").write_text("the only copy")
    with pytest.raises(UsageError, match="ppfed did not make it"):
        made(data, make_settings(), tmp_path / "store")
    assert (tmp_path / "store").read_text() == "the only copy"


@pytest.mark.parametrize(
    ("data", "store"),
    [
        ("store", "store"),
        ("store/pictures", "store"),
        ("pictures", "pictures/store"),
        ("pictures", "elsewhere/../pictures/store"),
        ("pictures", "link/store"),
    ],
)
def test_plain_images_and_store_lie_apart(tmp_path: Path, make_settings: MakeSettings, data: str, store: str) -> None:
    class_folder(tmp_path / data, {"cat": 3, "dog": 3})
    (tmp_path / "link").symlink_to(tmp_path / data)
    # Even a store's marker does not make it a store.
    (tmp_path / data / MARKER).touch()
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="one holds the other"):
        made(tmp_path / data, make_settings(), tmp_path / store)
    assert contents(tmp_path) == before


def test_an_empty_folder_becomes_a_store(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    (tmp_path / "store").mkdir()
    assert made(data, make_settings(), tmp_path / "store").train_images == 6


# Bad images.


def spoil(data: Path) -> None:
    (data / "cat" / "broken.png").write_bytes(b"no picture")


def test_a_bad_image_is_named_and_nothing_is_kept(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    spoil(data)
    with pytest.raises(BadImagesError, match=r"broken\.png"):
        made(data, make_settings(), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_bad_images_may_be_left_out_and_are_counted(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = class_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    spoil(data)
    prepared = made(data, make_settings(), tmp_path / "store", skip_bad=True)
    assert (prepared.train_images, prepared.bad) == (6, 1)
    assert made(data, make_settings(), tmp_path / "store", skip_bad=True).bad == 1


@pytest.mark.parametrize(
    ("images", "changes"),
    [(1, {}), (3, {"exchange": "gradients", "training": {"min_local_batch": 4}})],
)
def test_too_few_images_to_train_on_are_refused(
    tmp_path: Path, make_settings: MakeSettings, images: int, changes: dict[str, Any]
) -> None:
    data = class_folder(tmp_path / "data", {"cat": images, "dog": 0})
    with pytest.raises(DataError, match="images to train on"):
        made(data, make_settings(**changes), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_images_are_brought_to_the_agreed_form(tmp_path: Path, make_settings: MakeSettings) -> None:
    data = tmp_path / "data"
    (data / "cat").mkdir(parents=True)
    (data / "dog").mkdir()
    for number in range(3):
        Image.fromarray(np.full((20, 30), 60 * number, np.uint8)).save(data / "cat" / f"{number}.png")
    prepared = made(data, make_settings(height=4, width=6, channels=1), tmp_path / "store")
    (shard,) = prepared.store.shards(Split.TRAIN)
    assert shard.images.shape == (4, 6, 1)
    assert isinstance(shard, Shard)
    assert isinstance(CIPHER.decrypt(shard.images), PlainImages)
