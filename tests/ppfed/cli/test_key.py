"""``ppfed key``: whole commands, in process and, where standard input or a terminal matter, in one of their own."""

from __future__ import annotations

import base64
import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from ppfed.cli.key import app
from ppfed.cli.options import KeyOption, load_key
from ppfed.errors import (
    KeyFileError,
    KeyFileExistsError,
    KeyFileFormatError,
    KeyFilePermissionError,
    PassphraseError,
    PPFedError,
    UsageError,
)
from ppfed.keys.age import new_identity
from ppfed.keys.files import inspect_key_file, key_text, read_key_file, write_key_file
from ppfed.keys.master import MasterKey

PASSPHRASE = "correct horse battery staple"
KEY_APP = "from ppfed.cli.key import app; app()"
LOAD_KEY = "import sys; from ppfed.cli.options import load_key; print(load_key(sys.argv[1]).fingerprint)"


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PPFED_KEY_FILE", raising=False)
    monkeypatch.delenv("PPFED_PASSPHRASE_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def passphrase_file(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = working_folder / "passphrase"
    path.write_text(f"{PASSPHRASE}\nsecond line\n")
    path.chmod(0o600)
    monkeypatch.setenv("PPFED_PASSPHRASE_FILE", str(path))
    return path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def run(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*arguments: str) -> PPFedError:
    result = call(*arguments)
    assert isinstance(result.exception, PPFedError), result.output
    assert result.stdout == ""
    return result.exception


def python(code: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def at_terminal(code: str, *arguments: str, typed: list[str]) -> tuple[int, str]:
    """Run Python at a terminal of its own and answer each prompt; return exit code and all that was shown."""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", code, *arguments])
    shown, answers = "", list(typed)
    while True:
        try:
            shown += os.read(terminal, 1024).decode()
        except OSError:  # Linux: the other end is closed
            break
        # getpass turns the echo off before it asks.
        if answers and len(re.findall(r"(?:assphrase|again)[^\n]*: ", shown)) > len(typed) - len(answers):
            os.write(terminal, f"{answers.pop(0)}\n".encode())
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown


def test_new_prints_nothing_but_the_fingerprint() -> None:
    printed = run("new", "a.key")
    assert printed == f"{read_key_file(Path('a.key'), None).fingerprint}\n"
    assert stat.S_IMODE(os.stat("a.key").st_mode) == 0o600


def test_new_never_overwrites() -> None:
    run("new", "a.key")
    before = Path("a.key").read_bytes()
    assert isinstance(error_of("new", "a.key"), KeyFileExistsError)
    assert Path("a.key").read_bytes() == before


@pytest.mark.usefixtures("passphrase_file")
def test_new_locks_with_the_passphrase_file() -> None:
    printed = run("new", "a.key", "--passphrase")
    assert read_key_file(Path("a.key"), lambda: PASSPHRASE).fingerprint == printed.strip()
    with pytest.raises(PassphraseError):
        read_key_file(Path("a.key"), lambda: "second line")
    assert run("show", "a.key").splitlines() == [
        f"fingerprint: {printed.strip()}",
        "protection:  passphrase (scrypt, ChaCha20-Poly1305)",
    ]
    assert load_key("a.key").fingerprint == printed.strip()


def test_passphrase_file_must_be_private(passphrase_file: Path) -> None:
    passphrase_file.chmod(0o644)
    assert isinstance(error_of("new", "a.key", "--passphrase"), KeyFilePermissionError)
    assert not Path("a.key").exists()


@pytest.mark.parametrize("content", [b"", b"\nsecond\n", b"\xff\xfe"])
def test_passphrase_file_must_hold_one(passphrase_file: Path, content: bytes) -> None:
    passphrase_file.write_bytes(content)
    assert isinstance(error_of("new", "a.key", "--passphrase"), PassphraseError)


def test_show() -> None:
    printed = run("new", "a.key")
    assert run("show", "a.key") == f"fingerprint: {printed}protection:  none (file permissions only)\n"
    assert isinstance(error_of("show", "none.key"), KeyFileError)
    assert isinstance(error_of("show", "-"), KeyFileError)


def test_identity_seal_and_open_hand_a_key_over() -> None:
    """The whole hand-over, with two recipients, one of them in a file."""
    bob, carol = run("identity", "bob.txt").strip(), run("identity", "carol.txt").strip()
    Path("recipients").write_text(f"# owners\n{carol}\n")
    fingerprint = run("new", "a.key").strip()
    assert run("seal", "a.key", "--to", bob, "--to", "@recipients") == (
        f"fingerprint: {fingerprint}\nsealed:      a.key.age\n"
    )
    assert "sealed with age" in run("show", "a.key.age")
    for owner in ("bob", "carol"):
        assert run("open", "a.key.age", "--identity", f"{owner}.txt", "--out", f"{owner}.key") == f"{fingerprint}\n"
        assert Path(f"{owner}.key").read_bytes() == Path("a.key").read_bytes()
        assert stat.S_IMODE(os.stat(f"{owner}.key").st_mode) == 0o600


def test_identity_prints_only_the_public_part() -> None:
    recipient = run("identity", "bob.txt").strip()
    lines = Path("bob.txt").read_text().splitlines()
    assert recipient.startswith("age1")
    assert lines[1] == f"# public key: {recipient}"
    assert lines[2].startswith("AGE-SECRET-KEY-1")
    assert stat.S_IMODE(os.stat("bob.txt").st_mode) == 0o600
    assert isinstance(error_of("identity", "bob.txt"), KeyFileExistsError)


def test_recipient_may_be_the_path_of_a_file() -> None:
    recipient = run("identity", "bob.txt").strip()
    Path("bob.pub").write_text(recipient)
    run("new", "a.key")
    run("seal", "a.key", "--to", "bob.pub", "--out", "for bob")
    run("open", "for bob", "--identity", "bob.txt", "--out", "b.key")


@pytest.mark.usefixtures("passphrase_file")
def test_sealing_a_locked_key_unlocks_it_and_opening_can_lock_it_again() -> None:
    recipient = run("identity", "bob.txt").strip()
    fingerprint = run("new", "a.key", "--passphrase").strip()
    run("seal", "a.key", "--to", recipient)
    run("open", "a.key.age", "--identity", "bob.txt", "--out", "plain.key")
    run("open", "a.key.age", "--identity", "bob.txt", "--out", "locked.key", "--passphrase")
    assert read_key_file(Path("plain.key"), None).fingerprint == fingerprint
    assert read_key_file(Path("locked.key"), lambda: PASSPHRASE).fingerprint == fingerprint


def test_refusals_of_seal() -> None:
    recipient = run("identity", "bob.txt").strip()
    run("new", "a.key")
    long_nonsense = "x" * 5000
    for bad in ("bob", "age1nonsense", "@none", long_nonsense, "bob.txt"):
        error = error_of("seal", "a.key", "--to", bad)
        assert isinstance(error, UsageError) or bad == "@none"
        assert "AGE-SECRET" not in str(error)
    assert not Path("a.key.age").exists()
    run("seal", "a.key", "--to", recipient)
    assert isinstance(error_of("seal", "a.key", "--to", recipient), KeyFileExistsError)
    assert call("seal", "a.key").exit_code == 2


def test_refusals_of_open() -> None:
    recipient = run("identity", "bob.txt").strip()
    run("identity", "eve.txt")
    run("new", "a.key")
    run("seal", "a.key", "--to", recipient)

    def refused(sealed: str, identity: str, out: str = "b.key") -> type[PPFedError]:
        return type(error_of("open", sealed, "--identity", identity, "--out", out))

    assert refused("a.key.age", "eve.txt") is PassphraseError
    assert refused("a.key.age", "a.key") is KeyFileFormatError
    assert refused("a.key", "bob.txt") is KeyFileFormatError
    assert refused("a.key.age", "bob.txt", "a.key") is KeyFileExistsError
    os.chmod("bob.txt", 0o640)
    assert refused("a.key.age", "bob.txt") is KeyFilePermissionError
    assert not Path("b.key").exists()


def test_opening_something_else_than_a_key() -> None:
    from ppfed.keys.age import seal

    recipient = run("identity", "bob.txt").strip()
    Path("note.age").write_bytes(seal("just a note", [recipient]))
    error = error_of("open", "note.age", "--identity", "bob.txt", "--out", "b.key")
    assert isinstance(error, KeyFileFormatError)
    assert "just a note" not in str(error)


def test_no_command_prints_the_key() -> None:
    recipient = run("identity", "bob.txt").strip()
    commands = [
        ("new", "a.key"),
        ("show", "a.key"),
        ("seal", "a.key", "--to", recipient),
        ("open", "a.key.age", "--identity", "bob.txt", "--out", "b.key"),
        ("show", "a.key.age"),
        ("new", "a.key"),
    ]
    printed = "".join(call(*command).output for command in commands)
    secret = Path("a.key").read_text().split()[-1]
    assert not any(secret[i : i + 8] in printed for i in range(len(secret) - 7))
    assert "AGE-SECRET" not in printed


# Where the key comes from


def test_no_key_named() -> None:
    with pytest.raises(UsageError, match="PPFED_KEY_FILE"):
        load_key(None)


def test_key_option_takes_the_variable_and_prefers_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = typer.Typer()

    @probe.command()
    def fingerprint(key: KeyOption = None) -> None:
        typer.echo(load_key(key).fingerprint)

    first, second = run("new", "first.key"), run("new", "second.key")
    monkeypatch.setenv("PPFED_KEY_FILE", "first.key")
    assert CliRunner().invoke(probe, []).stdout == first
    assert CliRunner().invoke(probe, ["--key", "second.key"]).stdout == second
    monkeypatch.delenv("PPFED_KEY_FILE")
    assert isinstance(CliRunner().invoke(probe, []).exception, UsageError)


def test_key_from_standard_input() -> None:
    key = MasterKey.generate()
    result = python(LOAD_KEY, "-", stdin=key_text(key))
    assert (result.returncode, result.stdout) == (0, f"{key.fingerprint}\n")


def test_locked_key_from_standard_input(passphrase_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = MasterKey.generate()
    write_key_file(Path("a.key"), key, PASSPHRASE)
    locked = Path("a.key").read_text()
    assert python(LOAD_KEY, "-", stdin=locked).stdout == f"{key.fingerprint}\n"
    monkeypatch.delenv("PPFED_PASSPHRASE_FILE")
    result = python(LOAD_KEY, "-", stdin=locked)
    assert result.returncode != 0
    assert "Set PPFED_PASSPHRASE_FILE" in result.stderr


def test_a_key_in_the_place_of_its_path_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    key = MasterKey.generate()
    for text in (key_text(key), key_text(key).splitlines()[-1], new_identity()[0]):
        secret = text.splitlines()[-1].split(" ")[-1]
        for given in (lambda text=text: load_key(text), lambda text=text: inspect_key_file(Path(text))):
            with pytest.raises(KeyFileError, match="is a key itself") as failure:
                given()
            assert secret not in failure.value.message + failure.value.hint
    write_key_file(Path("a.key"), key, PASSPHRASE)
    monkeypatch.setenv("PPFED_PASSPHRASE_FILE", PASSPHRASE)
    with pytest.raises(PassphraseError, match="PPFED_PASSPHRASE_FILE") as missing:
        load_key("a.key")
    assert PASSPHRASE not in missing.value.message + missing.value.hint


SECRET = bytes.fromhex("fbefffffe1") + bytes(range(7, 34))
"""With slashes side by side in standard base64, of which a path keeps one."""


@pytest.mark.parametrize(
    "text",
    [
        base64.urlsafe_b64encode(SECRET).decode().rstrip("="),
        base64.urlsafe_b64encode(SECRET).decode(),
        base64.b64encode(SECRET).decode(),
        f" {base64.b64encode(SECRET[::-1]).decode()}\n",
        SECRET.hex(),
    ],
)
def test_a_key_without_its_marker_is_not_repeated_either(text: str) -> None:
    with pytest.raises(KeyFileError, match="has the form of a key") as failure:
        load_key(text)
    said = failure.value.message + failure.value.hint
    assert text.strip()[-20:] not in said


def test_a_file_may_have_a_name_like_a_key() -> None:
    key, path = MasterKey.generate(), Path("Key2" + "a" * 39)
    write_key_file(path, key, None)
    assert load_key(str(path)).fingerprint == key.fingerprint
    for missing in ("a" * 43, "keys/Of-Hospital-A/2026/owners-2026-autumn.key"):
        with pytest.raises(KeyFileError, match="does not exist"):
            load_key(missing)


def test_no_terminal_to_ask_at() -> None:
    result = python(KEY_APP, "new", "a.key", "--passphrase")
    assert result.returncode != 0
    assert "Set PPFED_PASSPHRASE_FILE" in result.stderr
    assert not Path("a.key").exists()


def test_passphrase_is_asked_for_twice_and_not_shown() -> None:
    code, shown = at_terminal(KEY_APP, "new", "a.key", "--passphrase", typed=[PASSPHRASE, PASSPHRASE])
    assert code == 0, shown
    assert PASSPHRASE not in shown
    key = read_key_file(Path("a.key"), lambda: PASSPHRASE)
    assert key.fingerprint in shown
    code, shown = at_terminal(LOAD_KEY, "a.key", typed=[PASSPHRASE])
    assert code == 0, shown
    assert key.fingerprint in shown
    assert PASSPHRASE not in shown


def test_two_different_passphrases_make_no_key() -> None:
    code, shown = at_terminal(KEY_APP, "new", "a.key", "--passphrase", typed=[PASSPHRASE, "another"])
    assert code != 0
    assert "differ" in shown
    assert not Path("a.key").exists()


def test_help_loads_no_key_code() -> None:
    """A process that needs no key, such as the coordinator's, never loads the module."""
    result = python("import sys; import ppfed.cli.key; print([m for m in sys.modules if m.startswith('ppfed.keys')])")
    assert result.stdout == "[]\n"


def test_ssh_identity_opens() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    private = ed25519.Ed25519PrivateKey.generate()
    Path("id_ed25519").touch(0o600)
    Path("id_ed25519").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    Path("id_ed25519.pub").write_bytes(
        private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    run("new", "a.key")
    run("seal", "a.key", "--to", "id_ed25519.pub", "--to", new_identity()[1])
    run("open", "a.key.age", "--identity", "id_ed25519", "--out", "b.key")
    assert inspect_key_file(Path("b.key")) == inspect_key_file(Path("a.key"))
