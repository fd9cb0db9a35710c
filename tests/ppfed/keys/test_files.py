"""Key files: what is written, what is refused, and that no error shows the key."""

from __future__ import annotations

import base64
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ppfed.errors import (
    KeyFileError,
    KeyFileExistsError,
    KeyFileFormatError,
    KeyFilePermissionError,
    KeyFileTruncatedError,
    PassphraseError,
)
from ppfed.keys.files import (
    MAX_FILE_BYTES,
    KeyFileInfo,
    Protection,
    ScryptCost,
    inspect_key_file,
    key_text,
    read_key_file,
    read_key_text,
    write_key_file,
    write_private_file,
)
from ppfed.keys.master import KEY_BYTES, MasterKey

# The default cost takes a third of a second for each guess; what is tested here does not depend on it.
CHEAP = ScryptCost(n=2, r=1, p=1)
PASSPHRASE = "correct horse battery staple"

keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).map(MasterKey)
passphrases = st.text(min_size=1, max_size=40)
damages = st.tuples(st.integers(min_value=0), st.characters())
in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def encoded(key: MasterKey) -> str:
    return base64.urlsafe_b64encode(key.reveal()).decode().rstrip("=")


def shows(key: MasterKey, text: str) -> bool:
    """Whether any run of 6 secret bytes stands in ``text``: by chance, one in 2**48 for each."""
    secret = key.reveal()
    runs = [secret[i : i + 6] for i in range(len(secret) - 5)]
    base64_runs = [encoded(key)[i : i + 8] for i in range(len(encoded(key)) - 7)]
    forms = [form for run in runs for form in (run.hex(), run.decode("latin-1"), repr(run)[2:-1])]
    return any(form.lower() in text.lower() for form in forms) or any(run in text for run in base64_runs)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def assert_hidden(key: MasterKey, error: BaseException) -> None:
    for link in chain(error):
        shown = f"{link!s} {link!r} {link.args!r} {vars(link)!r}"
        # A secret such as 32 zero bytes has runs that stand anywhere.
        assert len(set(key.reveal())) < 16 or not shows(key, shown)


def locked_text(folder: Path, key: MasterKey, passphrase: str = PASSPHRASE) -> str:
    path = folder / "locked.key"
    path.unlink(missing_ok=True)
    write_key_file(path, key, passphrase, CHEAP)
    return path.read_text()


def make(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def fail() -> str:
    raise AssertionError("no passphrase was to be asked for")


# Round trips and the written form


@given(keys)
def test_text_reads_back(key: MasterKey) -> None:
    assert read_key_text(key_text(key), fail).reveal() == key.reveal()


@given(keys)
def test_text_is_as_defined(key: MasterKey) -> None:
    *comments, line, end = key_text(key).split("\n")
    assert all(comment.startswith("# ") for comment in comments)
    assert comments.count(f"# fingerprint: {key.fingerprint}") == 1
    assert line == f"PPFED-SECRET-KEY-1 {encoded(key)}"
    assert end == ""


@in_tmp_path
@given(key=keys, passphrase=st.none() | passphrases)
def test_file_reads_back(tmp_path: Path, key: MasterKey, passphrase: str | None) -> None:
    path = tmp_path / "a.key"
    path.unlink(missing_ok=True)
    write_key_file(path, key, passphrase, CHEAP)
    assert read_key_file(path, lambda: passphrase or fail()).reveal() == key.reveal()


@given(keys, st.sampled_from(["\n", "\r\n"]), st.text(" \t\r", max_size=3), st.booleans())
def test_line_endings_and_trailing_space_do_not_matter(key: MasterKey, newline: str, space: str, mark: bool) -> None:
    text = newline.join(line + space for line in key_text(key).split("\n"))
    assert read_key_text("\ufeff" * mark + text, None).reveal() == key.reveal()


@in_tmp_path
@given(key=keys, passphrase=passphrases)
def test_locked_file_is_as_documented(tmp_path: Path, key: MasterKey, passphrase: str) -> None:
    """Unlocks it with nothing of ppfed but the documentation (docs/keys.md)."""
    assume(passphrase.isascii())
    lines = locked_text(tmp_path, key, passphrase).splitlines()
    stated, line = lines[-2:]
    assert stated == f"# fingerprint: {key.fingerprint}"
    header, _, ciphertext = line.rpartition("$")
    marker, _, value = header.partition(" ")
    kdf, n, r, p, salt, nonce = value.split("$")
    assert (marker, kdf, n, r, p) == ("PPFED-LOCKED-KEY-1", "scrypt", "2", "1", "1")
    decoded = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in (salt, nonce, ciphertext)]
    assert [len(decoded[0]), len(decoded[1])] == [16, 12]
    wrapping_key = Scrypt(salt=decoded[0], length=32, n=2, r=1, p=1).derive(passphrase.encode())
    text = ChaCha20Poly1305(wrapping_key).decrypt(decoded[1], decoded[2], f"{stated}\n{header}".encode())
    assert text.decode() == key_text(key)


def test_locking_twice_shares_nothing(tmp_path: Path) -> None:
    key = MasterKey.generate()
    first, second = (locked_text(tmp_path, key).splitlines()[-1].split("$") for _ in range(2))
    assert all(a != b for a, b in zip(first[4:], second[4:], strict=True))


def test_default_cost_is_written_and_opens(tmp_path: Path) -> None:
    key, path = MasterKey.generate(), tmp_path / "a.key"
    write_key_file(path, key, PASSPHRASE)
    assert " scrypt$131072$8$1$" in path.read_text()
    assert read_key_file(path, lambda: PASSPHRASE).reveal() == key.reveal()


def test_accents_unlock_however_they_were_typed(tmp_path: Path) -> None:
    key = MasterKey.generate()
    text = locked_text(tmp_path, key, "caf\u00e9")
    assert read_key_text(text, lambda: "cafe\u0301").reveal() == key.reveal()


# Damage


def check_damaged(
    key: MasterKey, text: str, ask_passphrase: Callable[[], str] | None, *allowed: type[Exception]
) -> None:
    """A damaged text never yields another key, and no error shows this one."""
    try:
        found = read_key_text(text, ask_passphrase)
    except allowed as error:
        assert_hidden(key, error)
    else:
        assert found.reveal() == key.reveal()


@given(keys, damages)
def test_any_replaced_character_of_the_key_line_is_an_error(key: MasterKey, damage: tuple[int, str]) -> None:
    before, line = key_text(key).rstrip("\n").rsplit("\n", 1)
    position, character = damage[0] % len(line), damage[1]
    assume(line[position] != character)
    damaged = line[:position] + character + line[position + 1 :]
    with pytest.raises((KeyFileTruncatedError, KeyFileFormatError)) as caught:
        read_key_text(f"{before}\n{damaged}\n", None)
    assert_hidden(key, caught.value)


@given(keys, st.integers(0, 61))
def test_any_missing_character_of_the_key_line_is_an_error(key: MasterKey, position: int) -> None:
    before, line = key_text(key).rstrip("\n").rsplit("\n", 1)
    assert len(line) == 62
    with pytest.raises((KeyFileTruncatedError, KeyFileFormatError)) as caught:
        read_key_text(f"{before}\n{line[:position]}{line[position + 1 :]}\n", None)
    assert_hidden(key, caught.value)


@given(keys, st.lists(st.tuples(st.integers(min_value=0), st.integers(0, 2), st.characters()), min_size=1, max_size=4))
def test_damage_anywhere_never_gives_another_key(key: MasterKey, changes: list[tuple[int, int, str]]) -> None:
    text = key_text(key)
    for where, removed, added in changes:
        position = where % (len(text) + 1)
        text = text[:position] + added + text[position + removed :]
    check_damaged(key, text, None, KeyFileTruncatedError, KeyFileFormatError)


@in_tmp_path
@given(key=keys, where=st.integers(min_value=0), removed=st.integers(0, 2), added=st.characters())
def test_damage_of_a_locked_text_never_gives_another_key(
    tmp_path: Path, key: MasterKey, where: int, removed: int, added: str
) -> None:
    text = locked_text(tmp_path, key)
    position = where % len(text)
    damaged = text[:position] + added + text[position + removed :]
    # A changed digit may ask for much more work than a test has time for.
    assume("scrypt$2$1$1$" in damaged)
    check_damaged(key, damaged, lambda: PASSPHRASE, KeyFileTruncatedError, KeyFileFormatError, PassphraseError)


@given(keys, st.integers(min_value=0))
def test_truncation_is_told_from_another_format(key: MasterKey, length: int) -> None:
    text = key_text(key)
    start = len("# ppfed secret key")
    cut = text[: start + length % (len(text) - 1 - start)]
    with pytest.raises(KeyFileTruncatedError):
        read_key_text(cut, None)


def test_fingerprint_must_be_there_and_match() -> None:
    key, other = MasterKey.generate(), MasterKey.generate()
    for wrong in (
        key_text(key).replace(key.fingerprint, other.fingerprint),
        key_text(key).replace(f"# fingerprint: {key.fingerprint}\n", ""),
        key_text(key).replace(key.fingerprint, key.fingerprint[:-1]),
        f"# fingerprint: {other.fingerprint}\n{key_text(key)}",
    ):
        with pytest.raises(KeyFileTruncatedError, match="fingerprint"):
            read_key_text(wrong, None)


def test_two_keys_in_one_text_are_refused() -> None:
    with pytest.raises(KeyFileTruncatedError):
        read_key_text(key_text(MasterKey.generate()) + key_text(MasterKey.generate()), None)


def test_unused_bits_of_the_last_character_count() -> None:
    key = MasterKey(bytes(32))
    with pytest.raises(KeyFileTruncatedError):
        read_key_text(key_text(key).replace("A" * 43, "A" * 42 + "B"), None)


def test_later_version_asks_for_an_update() -> None:
    text = key_text(MasterKey.generate()).replace("KEY-1 ", "KEY-2 ")
    with pytest.raises(KeyFileFormatError, match="version"):
        read_key_text(text, None)


# Locked files


@in_tmp_path
@given(key=keys, wrong=passphrases)
def test_wrong_passphrase_and_damage_read_the_same(tmp_path: Path, key: MasterKey, wrong: str) -> None:
    assume(wrong != PASSPHRASE)
    text = locked_text(tmp_path, key)
    with pytest.raises(PassphraseError) as wrong_one:
        read_key_text(text, lambda: wrong)
    # 30 characters before the end lies inside the tag or the ciphertext.
    flipped = text[:-30] + ("A" if text[-30] != "A" else "B") + text[-29:]
    with pytest.raises(PassphraseError) as damaged_one:
        read_key_text(flipped, lambda: PASSPHRASE)
    assert str(wrong_one.value) == str(damaged_one.value)
    for caught in (wrong_one, damaged_one):
        assert_hidden(key, caught.value)
        assert PASSPHRASE not in str(caught.value)


@pytest.mark.parametrize("part", ["fingerprint", "salt", "nonce"])
def test_header_and_fingerprint_are_authenticated(tmp_path: Path, part: str) -> None:
    key, other = MasterKey.generate(), MasterKey.generate()
    text, foreign = locked_text(tmp_path, key), locked_text(tmp_path, other)
    if part == "fingerprint":
        text = text.replace(key.fingerprint, other.fingerprint)
    else:
        place = {"salt": 4, "nonce": 5}[part]
        text = text.replace(text.split("$")[place], foreign.split("$")[place])
    with pytest.raises(PassphraseError):
        read_key_text(text, lambda: PASSPHRASE)


def test_a_locked_file_that_holds_another_key_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Made by a faulty or hostile writer who knows the passphrase."""
    key, other = MasterKey.generate(), MasterKey.generate()
    monkeypatch.setattr("ppfed.keys.files.key_text", lambda _: key_text(other))
    text = locked_text(tmp_path, key)
    with pytest.raises(KeyFileTruncatedError):
        read_key_text(text, lambda: PASSPHRASE)


@pytest.mark.parametrize(
    "cost", ["2097152$8$1", "131073$8$1", "1$8$1", "131072$17$1", "131072$8$5", "9999999999$9999999999$9999999999"]
)
def test_costly_parameters_are_refused_before_any_work(tmp_path: Path, cost: str) -> None:
    text = locked_text(tmp_path, MasterKey.generate()).replace("$2$1$1$", f"${cost}$")
    with pytest.raises(KeyFileFormatError, match="scrypt"):
        read_key_text(text, fail)


@pytest.mark.parametrize(("n", "r", "p"), [(2**21, 8, 1), (3, 8, 1), (0, 8, 1), (2, 0, 1), (2, 17, 1), (2, 1, 5)])
def test_costly_parameters_are_not_written(n: int, r: int, p: int) -> None:
    with pytest.raises(ValueError, match="scrypt"):
        ScryptCost(n, r, p)


def test_locked_file_without_a_way_to_ask(tmp_path: Path) -> None:
    with pytest.raises(PassphraseError):
        read_key_text(locked_text(tmp_path, MasterKey.generate()), None)


def test_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PassphraseError):
        write_key_file(tmp_path / "a.key", MasterKey.generate(), "", CHEAP)
    assert not list(tmp_path.iterdir())


# Files of another kind


@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)),
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        b"AGE-SECRET-KEY-1QQQQQQ\n",
        b"Dear all,\nplease find the key attached.\n",
        b"# a comment\n",
        b"\xff\xfe\x00P\x00P",
    ],
    ids=["empty", "blank", "png", "pem", "age-identity", "prose", "comment", "utf-16"],
)
def test_another_kind_of_file_is_no_key_file(tmp_path: Path, data: bytes, mode: int) -> None:
    path = make(tmp_path / "a.key", data, mode)
    for read in (lambda: read_key_file(path, fail), lambda: inspect_key_file(path)):
        with pytest.raises(KeyFileFormatError, match=re.escape(str(path))) as caught:
            read()
        assert caught.value.hint
        assert "QQQQ" not in str(caught.value)
        assert "attached" not in str(caught.value)


@in_tmp_path
@given(data=st.binary(max_size=300))
def test_random_bytes_are_no_key_file_and_are_not_quoted(tmp_path: Path, data: bytes) -> None:
    path = make(tmp_path / "a.key", data)
    with pytest.raises((KeyFileFormatError, KeyFileTruncatedError)) as caught:
        read_key_file(path, fail)
    assert all(link.args in ((), (caught.value.message,)) for link in chain(caught.value))


def test_nothing_beyond_64_kib_is_read(tmp_path: Path) -> None:
    text = key_text(MasterKey.generate())
    padding = "#" * (MAX_FILE_BYTES - len(text) - 1) + "\n"
    read_key_file(make(tmp_path / "fits.key", (padding + text).encode()), None)
    for read in (
        lambda: read_key_file(make(tmp_path / "long.key", ("#" + padding + text).encode()), None),
        lambda: read_key_text("#" + padding + text, None),
    ):
        with pytest.raises(KeyFileFormatError, match="64 KiB"):
            read()


@pytest.mark.parametrize(
    "start", ["-----BEGIN AGE ENCRYPTED FILE-----\nYWdl", "age-encryption.org/v1\n-> X25519 abc\n"]
)
def test_sealed_file_says_how_to_open_it(tmp_path: Path, start: str) -> None:
    path = make(tmp_path / "a.key.age", start.encode(), 0o644)
    assert inspect_key_file(path) == KeyFileInfo(None, Protection.SEALED)
    with pytest.raises(KeyFileFormatError, match="sealed with age") as caught:
        read_key_file(path, fail)
    assert "ppfed key open" in caught.value.hint
    with pytest.raises(KeyFileFormatError, match="sealed with age"):
        read_key_text(start, fail)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="does not exist"):
        read_key_file(tmp_path / "none.key", fail)
    with pytest.raises(KeyFileFormatError, match="folder"):
        read_key_file(tmp_path, fail)
    with pytest.raises(KeyFileFormatError, match="regular"):
        read_key_file(Path("/dev/zero"), fail)


def test_pipe_can_be_read(tmp_path: Path) -> None:
    """A shell's ``--key <(...)``."""
    key, path = MasterKey.generate(), tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    writer = threading.Thread(target=lambda: path.write_text(key_text(key)))
    writer.start()
    assert read_key_file(path, fail).reveal() == key.reveal()
    writer.join()


# Permissions, overwriting, failures to write


@pytest.fixture
def umask_0() -> Iterator[None]:
    previous = os.umask(0)
    yield
    os.umask(previous)


@pytest.fixture
def umask_777() -> Iterator[None]:
    previous = os.umask(0o777)
    yield
    os.umask(previous)


@pytest.mark.parametrize("umask", ["umask_0", "umask_777"])
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_mode_is_600_under_any_umask(
    tmp_path: Path, request: pytest.FixtureRequest, umask: str, passphrase: str | None
) -> None:
    request.getfixturevalue(umask)
    path = tmp_path / "a.key"
    write_key_file(path, MasterKey.generate(), passphrase, CHEAP)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o610, 0o601, 0o602, 0o620])
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_file_that_others_may_use_is_refused(tmp_path: Path, mode: int, passphrase: str | None) -> None:
    path = tmp_path / "a b.key"
    write_key_file(path, MasterKey.generate(), passphrase, CHEAP)
    path.chmod(mode)
    for read in (lambda: read_key_file(path, fail), lambda: inspect_key_file(path)):
        with pytest.raises(KeyFilePermissionError) as caught:
            read()
        assert caught.value.hint == f"Run: chmod 600 '{path}'"


def _file(path: Path) -> None:
    path.write_text("kept")


def _link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("kept")
    path.symlink_to(target)


@pytest.mark.parametrize("occupy", [_file, _link, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_nothing_is_overwritten(tmp_path: Path, occupy: Callable[[Path], None]) -> None:
    path = tmp_path / "a.key"
    occupy(path)
    with pytest.raises(KeyFileExistsError) as caught:
        write_key_file(path, MasterKey.generate(), None)
    assert caught.value.hint
    assert not path.is_file() or path.read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()


def test_the_open_itself_refuses_an_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone makes the file between the check and the open."""
    monkeypatch.setattr("ppfed.keys.files.refuse_existing", lambda path: None)
    path = tmp_path / "a.key"
    path.write_text("kept")
    with pytest.raises(KeyFileExistsError):
        write_key_file(path, MasterKey.generate(), None)
    assert path.read_text() == "kept"


@pytest.mark.parametrize(
    ("failure", "expected"), [(OSError(28, "No space left"), KeyFileError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_partial_file_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, expected: type[BaseException]
) -> None:
    def broken(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(expected):
        write_private_file(tmp_path / "a.key", b"x")
    assert not list(tmp_path.iterdir())


def test_a_new_file_and_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.key"
    synced: list[tuple[Path, bytes]] = []

    def fsync(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_private_file(path, b"x")
    assert synced == [(path, b"x"), (tmp_path, b"x")]


def test_a_file_system_that_cannot_sync_folders_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_private_file(tmp_path / "a.key", b"x")
    assert (tmp_path / "a.key").read_bytes() == b"x"


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be created: No such file or directory"):
        write_key_file(tmp_path / "none" / "a.key", MasterKey.generate(), None)


# Inspecting


def test_inspecting_needs_no_passphrase(tmp_path: Path) -> None:
    key = MasterKey.generate()
    write_key_file(tmp_path / "plain.key", key, None)
    write_key_file(tmp_path / "locked.key", key, PASSPHRASE, CHEAP)
    assert inspect_key_file(tmp_path / "plain.key") == KeyFileInfo(key.fingerprint, Protection.NONE)
    assert inspect_key_file(tmp_path / "locked.key") == KeyFileInfo(key.fingerprint, Protection.LOCKED)
    assert encoded(key) not in (tmp_path / "locked.key").read_text()
