"""Decoding in processes: the same results as on one core, and nothing of the caller in them."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ppfed.ciphers.negative_positive import NegativePositiveCipher
from ppfed.ciphers.spec import CipherSpec
from ppfed.errors import BadImagesError, PPFedError
from ppfed.images import decoders
from ppfed.images.decoder_process import READY, framed
from ppfed.images.decoders import decode_files, decoder_command
from ppfed.images.encrypted_folder import EncryptReport, encrypt_folder
from ppfed.images.open import open_source
from ppfed.keys.master import MasterKey

KEY = MasterKey(bytes(range(100, 132)))
_SUICIDE = [sys.executable, "-c", "import os; os.write(1, b'ready'); os.read(0, 1); os.kill(os.getpid(), 9)"]
_EXIT_3 = [sys.executable, "-c", "raise SystemExit(3)"]


class File(NamedTuple):
    path: str
    size_bytes: int


@pytest.fixture(name="use_cores")
def _use_cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend to have so many cores, and that processes pay for any work."""
    monkeypatch.setattr(decoders, "_PROCESS_WORK_S", 1e-6)
    return lambda count: monkeypatch.setattr(decoders, "cores", lambda: count)


@pytest.fixture(name="started")
def _started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Processes that were started."""
    processes: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def record(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*args, **kwargs))
        return processes[-1]

    monkeypatch.setattr(decoders.subprocess, "Popen", record)
    return processes


def leave_all_to_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caller's process from decoding: it would be done with a small folder before others have started."""
    monkeypatch.setattr(decoders, "_next", lambda _waiting: None)


@pytest.mark.parametrize("cores", [1, 3])
def test_what_is_large_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_cores: Callable[[int], None], cores: int
) -> None:
    # 16.8 megapixels: four of them are more than a group may hold. 33.6 are too many for a group at all.
    sides = [8, 4100, 4100, 4100, 5800, 4100, 4100, 8]
    paths = []
    for number, side in enumerate(sides):
        paths.append(tmp_path / f"{number}.png")
        Image.new("L", (side, side), 20 + number).save(paths[-1])
    alone: list[str] = []
    attempt = decoders._attempt

    def record(file: File, *given: Any) -> Any:
        alone.append(file.path)
        return attempt(file, *given)

    monkeypatch.setattr(decoders, "_attempt", record)
    use_cores(cores)
    if cores > 1:
        leave_all_to_processes(monkeypatch)
    # So small that all are one group.
    files = [File(str(path), 1) for path in paths]
    position = 0
    for group in decode_files(files, size=None, channels=None):
        for file, found in group:
            assert file.path == str(paths[position])
            assert not isinstance(found, str)
            assert found.pixels.shape == (sides[position], sides[position], 1)
            assert found.pixels[0, 0] == found.pixels[-1, -1] == 20 + position
            position += 1
        # What was decoded ahead, or one image.
        assert len(group) == 1 or sum(found.pixels.nbytes for _, found in group if not isinstance(found, str)) < 1e8
    assert position == len(sides)
    assert alone == [str(paths[number]) for number in (4, 6, 7)]


def fill(root: Path, count: int = 90) -> None:
    """Make a folder with images of several kinds, and with files of many kinds that cannot be used."""
    generator = np.random.default_rng(3)
    for number in range(count):
        folder = root / f"class-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shape = (9, 7) if number % 5 == 0 else (9, 7, 3 + (number % 7 == 0))
        suffix = ".jpg" if len(shape) == 3 and shape[2] == 3 else ".png"
        image = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        image.save(folder / f"{number:03}{suffix}", exif=exif)
    Image.fromarray(generator.integers(0, 1 << 16, (9, 7), dtype=np.uint16)).save(root / "class-0" / "wide.tif")
    (root / "class-0" / "004x.jpg").write_bytes((root / "class-0" / "004.jpg").read_bytes()[:300])
    (root / "class-0" / "005x.png").write_bytes(b"")
    (root / "class-1" / "006x.txt").write_text("no image")
    (root / "class-1" / "link.jpg").symlink_to("nowhere")
    os.rename(root / "class-1" / "001.jpg", os.fsencode(root / "class-1") + b"/001\xff.jpg")


def encrypt(source: Path, out: Path, skip_bad: bool = True) -> tuple[EncryptReport, int]:
    """Encrypt with ids that are the same in each call; also return the progress."""
    generator = np.random.default_rng(1)
    cipher = NegativePositiveCipher(KEY, CipherSpec(), random_bytes=generator.bytes)
    steps: list[int] = []
    report = encrypt_folder(open_source(source), cipher, out, skip_bad=skip_bad, progress=steps.append)
    return report, sum(steps)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def gone(pid: int) -> bool:
    """Whether a process has ended, or is a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60  # generous: machines may be busy
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("count", "caller_decodes"), [(2, False), (4, True)])
def test_a_folder_is_encrypted_alike_on_one_core_and_on_several(
    tmp_path: Path,
    use_cores: Callable[[int], None],
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    caller_decodes: bool,
) -> None:
    if not caller_decodes:
        leave_all_to_processes(monkeypatch)
    fill(tmp_path / "source")
    use_cores(1)
    alone = encrypt(tmp_path / "source", tmp_path / "alone")
    assert not started
    use_cores(count)
    together = encrypt(tmp_path / "source", tmp_path / "together")
    assert len(started) == count - 1
    assert all(process.returncode is not None for process in started)
    assert together == alone
    assert len(alone[0].load.bad) == 4
    assert alone[0].load.notes
    assert contents(tmp_path / "together") == contents(tmp_path / "alone") != {}


def test_all_bad_files_are_named_in_order(
    tmp_path: Path, use_cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_all_to_processes(monkeypatch)
    fill(tmp_path / "source")
    errors = []
    for count in (1, 3):
        use_cores(count)
        with pytest.raises(BadImagesError) as caught:
            encrypt(tmp_path / "source", tmp_path / "out", skip_bad=False)
        errors.append(caught.value.bad)
        assert not (tmp_path / "out").exists()
    assert errors[0] == errors[1]
    assert len(errors[0]) == 4


@settings(max_examples=6)
@given(
    chosen=st.lists(st.integers(0, 94), max_size=120),
    size=st.none() | st.tuples(st.integers(1, 12), st.integers(1, 12)),
    channels=st.sampled_from([None, 1, 3]),
)
def test_any_files_in_any_order_come_out_alike(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[int], size: tuple[int, int] | None, channels: int | None
) -> None:
    root = tmp_path_factory.getbasetemp() / "any-files"
    if not root.exists():
        fill(root)
    paths = sorted(str(path) for path in root.rglob("*") if not path.is_dir())
    assert len(paths) == 95
    files = [File(paths[number], 1 << 16) for number in chosen]  # groups of four

    def decoded(count: int) -> list[tuple[object, ...]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoders, "_PROCESS_WORK_S", 1e-6)
            patch.setattr(decoders, "cores", lambda: count)
            leave_all_to_processes(patch)
            groups = list(decode_files(files, size=size, channels=channels))
        return [
            (file, result)
            if isinstance(result, str)
            else (file, result.pixels.shape, str(result.pixels.dtype), result.pixels.tobytes(), result.notes)
            for group in groups
            for file, result in group
        ]

    assert decoded(3) == decoded(1)


def test_little_work_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(decoders, "cores", lambda: 8)
    fill(tmp_path / "source")
    encrypt(tmp_path / "source", tmp_path / "out")
    assert not started
    # 0.1 ms a file: 8,000 files are work for three processes, whatever the number of cores.
    assert decoders._processes([File("a", 1)] * 8000) == 3
    assert decoders._processes([File("a", 1)] * 10**6) == 7


@pytest.mark.parametrize(
    ("command", "message"), [(_SUICIDE, r"was killed before it had read .*class-0/000\.png"), (_EXIT_3, "exit code 3")]
)
def test_a_process_that_is_killed_ends_everything_with_a_next_step(
    tmp_path: Path,
    use_cores: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(decoders, "decoder_command", lambda: command)
    leave_all_to_processes(monkeypatch)
    fill(tmp_path / "source")
    use_cores(2)
    with pytest.raises(PPFedError, match=message) as caught:
        encrypt(tmp_path / "source", tmp_path / "out")
    assert caught.value.hint
    assert os.listdir(tmp_path) == ["source"]
    assert not [thread for thread in threading.enumerate() if thread.name == "decoder"]


def test_a_process_that_cannot_be_started_is_an_error(
    tmp_path: Path, use_cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "decoder_command", lambda: [str(tmp_path / "nothing")])
    fill(tmp_path / "source")
    use_cores(2)
    with pytest.raises(PPFedError, match="cannot be started: No such file"):
        encrypt(tmp_path / "source", tmp_path / "out")


def test_processes_end_with_an_iterator_that_nobody_wants_any_more(
    tmp_path: Path, use_cores: Callable[[int], None], started: list[subprocess.Popen[bytes]]
) -> None:
    fill(tmp_path / "source")
    files = [File(str(path), 1 << 20) for path in (tmp_path / "source").rglob("*.jpg")]
    use_cores(4)
    groups = decode_files(files, size=None, channels=None)
    next(groups)
    assert len(started) == 3
    groups.close()  # type: ignore[attr-defined]
    assert all(process.returncode is not None for process in started)
    assert not [thread for thread in threading.enumerate() if thread.name == "decoder"]


def test_few_large_images_are_decoded_ahead(
    tmp_path: Path, use_cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "source")
    (path,) = (tmp_path / "source").rglob("002.jpg")
    asked: list[int] = []

    class Asked(NamedTuple):
        number: int
        path: str

        @property
        def size_bytes(self) -> int:
            asked.append(self.number)
            return 1 << 20

    use_cores(3)
    monkeypatch.setattr(decoders, "_processes", lambda files: 2)
    monkeypatch.setattr(decoders, "_AHEAD_BYTES", 1)
    for done, group in enumerate(decode_files([Asked(n, str(path)) for n in range(60)], size=None, channels=None)):
        assert len(group) == 1
        # Two groups for each core, this one included.
        assert max(asked) < done + 6


def test_what_a_process_gets_is_paths_and_nothing_of_the_key(
    tmp_path: Path, use_cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = bytes(range(100, 132))
    record = (
        "import subprocess, sys, os\n"
        f"with open({str(tmp_path / 'environment')!r}, 'w') as file: file.write(repr(dict(os.environ)))\n"
        f"with open({str(tmp_path / 'requests')!r}, 'wb') as file:\n"
        f"    child = subprocess.Popen({decoder_command()!r}, stdin=subprocess.PIPE)\n"
        "    while data := os.read(0, 1 << 16):\n"
        "        file.write(data); file.flush(); child.stdin.write(data); child.stdin.flush()\n"
    )
    monkeypatch.setattr(decoders, "decoder_command", lambda: [sys.executable, "-c", record])
    leave_all_to_processes(monkeypatch)
    monkeypatch.setenv("PPFED_KEY_PASSPHRASE", "hunter2")
    fill(tmp_path / "source", 10)
    use_cores(2)
    encrypt(tmp_path / "source", tmp_path / "out")
    requests = (tmp_path / "requests").read_bytes()
    files = [file.path for file in open_source(tmp_path / "source")._scans[""].files]  # type: ignore[attr-defined]
    assert requests == framed([files, None, None])
    environment = (tmp_path / "environment").read_bytes()
    for text in (secret, secret.hex().encode(), base64.b64encode(secret)[:20], b"hunter2", KEY.fingerprint.encode()):
        assert text not in requests + environment + repr(decoder_command()).encode()


def test_a_process_loads_little(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    *command, _main, ppfed_at, _pillow_at = decoder_command()
    code = f"{_main}; import sys; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run(
        [*command, code, ppfed_at, _pillow_at],
        input=framed([[str(tmp_path / "a.jpg")], [4, 4], 1]),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == READY + framed([[4, 4, 1, ["colour reduced to grey"]]]) + bytes(16)
    loaded = set(done.stderr.decode().split())
    assert {"PIL.Image", "ppfed.images.decode"} <= loaded
    unwanted = {"torch", "numba", "flwr", "numpy", "cryptography", "multiprocessing", "pickle"}
    assert not loaded & unwanted
    assert not [name for name in loaded if name.startswith(("ppfed.keys", "ppfed.ciphers", "clients", "coordinator"))]


_SCRIPT = """
import sys, time
sys.path[:0] = {path!r}
print("started", flush=True)
from ppfed.images import decoders
from ppfed.images.open import open_source
from ppfed.images.source import LoadReport
decoders.cores, decoders._PROCESS_WORK_S, decoders._next = lambda: 2, 1e-6, lambda waiting: None
start = decoders.subprocess.Popen
def record(*args, **kwargs):
    process = start(*args, **kwargs)
    print(process.pid, flush=True)
    return process
decoders.subprocess.Popen = record
source = open_source(__import__("pathlib").Path({source!r}))
for batch in source.read_section("", size=None, channels=None, report=LoadReport(), batch_size=1):
    print("read", flush=True)
    time.sleep({pause})
"""


def script(folder: Path, pause: float) -> subprocess.Popen[str]:
    """Start a script that reads a folder in processes, without a guard against being run again by them."""
    fill(folder / "source")
    (folder / "script.py").write_text(_SCRIPT.format(path=sys.path, source=str(folder / "source"), pause=pause))
    return subprocess.Popen(
        [sys.executable, folder / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    output, errors = script(tmp_path, 0.0).communicate(timeout=120)
    assert errors == ""
    started, _child, *read = output.splitlines()
    assert started == "started"
    assert set(read) == {"read"}


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_ends_with_its_parent_and_without_a_word(tmp_path: Path, signal_number: signal.Signals) -> None:
    parent = script(tmp_path, 60.0)
    assert parent.stdout is not None
    parent.stdout.readline()
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "read\n"
    assert not gone(child)
    # Ctrl-C does not even reach it.
    assert os.getsid(child) == child
    # As ctrl-C in a terminal does.
    os.killpg(parent.pid, signal_number)
    _, errors = parent.communicate(timeout=60)
    wait_until(lambda: gone(child))
    assert "decoder_process" not in errors
    assert errors.count("Traceback") == (signal_number == signal.SIGINT)
