"""``ppfed client join``: what is asked and shown before anything leaves, and how it ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from clients import cli, consent, join
from clients.flower_executor import UnansweredError
from clients.prepared import MARKER, Prepared
from ppfed.enrolment import Phase, StatusReply
from ppfed.errors import BadImagesError, UsageError
from ppfed.federation import Exchange, FederationSettings, Invite, new_token
from ppfed.keys.files import write_key_file
from ppfed.keys.master import MasterKey

MakeSettings = Callable[..., FederationSettings]


@pytest.fixture
def call(
    tmp_path: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SimpleNamespace]:
    """Run the command up to where it would connect."""
    monkeypatch.setenv("COLUMNS", "1000")
    write_key_file(tmp_path / "our.key", MasterKey(bytes(32)), None)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")

    def run(
        *options: str,
        answer: str | None = None,
        terminal: str = "",
        state: str = "state",
        ends: BaseException | None = None,
        **changes: Any,
    ) -> SimpleNamespace:
        invite = Invite(
            owner="anna",
            address="127.0.0.1:9443",
            ca_certificate="none",
            token=new_token(bytes(32)),
            federation=make_settings(**changes),
        )
        (tmp_path / "anna.invite").write_text(invite.model_dump_json())
        served: list[tuple[Any, ...]] = []

        def serve(*arguments: Any) -> join.Summary:
            served.append(arguments)
            if ends is not None:
                raise ends
            return join.Summary(None, tmp_path, "no model came out", 0, 0.0)

        monkeypatch.setattr(join, "serve", serve)
        asked: list[str] = []
        monkeypatch.setattr(join, "check_ahead", lambda _invite, fingerprint: asked.append(fingerprint))
        monkeypatch.setattr(consent, "_has_terminal", lambda: answer is not None)
        # Nor is whoever runs the tests asked.
        monkeypatch.setattr(consent, "TERMINAL", terminal or str(tmp_path / "none"))
        arguments = ["join", "--key", str(tmp_path / "our.key"), "--data", str(tmp_path / "data")]
        arguments += ["--invite", str(tmp_path / "anna.invite"), "--state", str(tmp_path / state), *options]
        result: Result = CliRunner().invoke(cli.app, arguments, input=answer)
        return SimpleNamespace(result=result, text=result.stderr, error=result.exception, served=served, asked=asked)

    return run


# The question.


def test_a_script_has_to_say_yes(call: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    done = call()
    assert isinstance(done.error, UsageError)
    assert "--yes" in done.error.hint
    assert "what leaves" in done.text
    assert done.served == []
    assert not (tmp_path / "state" / "store").exists()


@pytest.mark.parametrize(
    ("typed", "joins"), [(b"\n", False), (b"perhaps\nyes\n", True), (b"n\n", False), (b"\x04", False)]
)
def test_who_pipes_the_key_is_asked_at_the_terminal(
    call: Callable[..., SimpleNamespace], typed: bytes, *, joins: bool
) -> None:
    person, terminal = os.openpty()
    try:
        os.write(person, typed)
        done = call(terminal=os.ttyname(terminal))
        assert len(done.served) == joins
        # A terminal hands out what was written in as many pieces as it likes; without the question this times out.
        said = b""
        while b"Join? [y/N]" not in said:
            said += os.read(person, 1000)
    finally:
        os.close(person)
        os.close(terminal)


def test_no_means_no_and_comes_before_the_work(call: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    done = call(answer="n\n")
    assert done.result.exit_code == 1
    assert done.asked == done.served == []
    assert not (tmp_path / "state" / "store").exists()
    assert "20 in " in done.text
    assert "nothing leaves before" in done.text


def test_what_leaks_is_said_and_shown_before_the_question(call: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    done = call(answer="n\n", exchange="images")
    # Of noise no attack restores more than noise.
    assert "leakage      No attack" in done.text
    assert stat.S_IMODE((tmp_path / "state" / "leakage.png").stat().st_mode) == 0o600
    assert "no image is sent" in call(answer="n\n", exchange="updates").text


def test_a_folder_without_a_usable_image_is_reported_by_preparation(
    call: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"no image")
    done = call("--yes", exchange="images")
    assert isinstance(done.error, BadImagesError)
    assert done.served == []


@pytest.mark.parametrize(("options", "answer"), [(["--yes"], None), ([], "y\n")])
def test_yes_goes_on_and_shows_the_numbers(
    call: Callable[..., SimpleNamespace], options: list[str], answer: str | None
) -> None:
    done = call(*options, answer=answer)
    assert len(done.served) == 1
    # Before the work, what it would be in vain for.
    assert done.asked == [MasterKey(bytes(32)).fingerprint]
    assert "18 to train on, 2 held out" in done.text
    assert "by class     cat 9 + 1, dog 9 + 1\n" in done.text
    assert done.text.index("nothing leaves before") < done.text.index("18 to train on")
    assert ("Join?" in done.text) == (answer is not None)
    assert "warning" not in done.text
    assert "by position" not in done.text


def test_ctrl_c_says_how_it_goes_on(call: Callable[..., SimpleNamespace]) -> None:
    done = call("--yes", ends=KeyboardInterrupt())
    assert done.result.exit_code == 130
    assert done.text.endswith("interrupted: the same command goes on\n")


def test_what_is_left_out_and_what_is_missing_is_named(call: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    for path in (tmp_path / "data" / "dog").iterdir():
        path.unlink()
    for number in range(12):
        (tmp_path / "data" / "cat" / f"no-{number:02}.png").write_bytes(b"no image")
    for _ in range(2):
        # And again, where the store of the first time is used.
        text = call("--yes", "--skip-bad").text
        assert "by class     cat 9 + 1, dog 0 + 0\n" in text
        assert "no image to train on of dog\n" in text
        assert "left out     12 images" in text
        assert "no-09.png: " in text
        assert "no-10.png" not in text
        assert "and 2 more\n" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cipher": {"scope": "fixed"}}, ["one mask for all images"]),
        ({"cipher": {"colour_shuffle": False}}, ["without colour shuffle"]),
        ({"cipher": {"colour_shuffle": False}, "channels": 1}, []),
        ({"cipher": {"colour_shuffle": False, "scope": "fixed"}}, ["one mask", "without colour shuffle"]),
    ],
)
def test_weak_ciphers_are_warned_of(
    call: Callable[..., SimpleNamespace], changes: dict[str, Any], says: list[str]
) -> None:
    text = call(answer="n\n", **changes).text
    assert text.count("warning:") == len(says)
    assert all(one in text for one in says)


def test_a_model_that_is_trained_further_is_named(call: Callable[..., SimpleNamespace]) -> None:
    origin = {
        "federation": "former",
        "created": "2026-01-01T00:00:00Z",
        "weights_sha256": "ab" * 32,
        "fingerprint": MasterKey(bytes(32)).fingerprint,
    }
    text = call(answer="n\n", initial_model=origin).text
    assert "another key holds out other images" not in text
    other = call(answer="n\n", initial_model=origin | {"fingerprint": "0" * 16}).text
    assert "under another key, 0000000000000000, and another key holds out other images" in other
    assert f"begins with  former of 2026-01-01 00:00 (weights {'ab' * 8}), which is trained further" in text
    assert "begins with" not in call(answer="n\n").text


@pytest.mark.parametrize(
    ("classes", "shown"),
    [(("cat", "dog"), "by position: 0 = cat, 1 = dog"), (("1", "0"), None), (("0", "1"), None)],
)
def test_labels_by_position_are_shown(
    call: Callable[..., SimpleNamespace], tmp_path: Path, classes: tuple[str, ...], shown: str | None
) -> None:
    images = np.zeros((20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=np.arange(20) % 2)
    text = call("--data", str(tmp_path / "data.npz"), answer="n\n", classes=classes).text
    assert shown in text if shown else "by position" not in text


@pytest.mark.parametrize(
    ("exchange", "named"),
    [
        ("images", ["every encrypted image", "its label"]),
        (
            "gradients",
            [
                "a gradient for each training step",
                "all your encrypted images",
                "at least 2 at a time",
                "every batch-norm layer",
                "training loss",
                "loss on your held-out images",
                "classified rightly",
                "no image, but the gradient of a few images can be turned back",
            ],
        ),
        ("updates", ["weights", "training loss", "loss on your held-out images", "classified rightly", "no image"]),
    ],
)
def test_all_that_leaves_is_named(make_settings: MakeSettings, exchange: str, named: list[str]) -> None:
    text = join.what_leaves(make_settings(exchange=exchange))
    assert all(one in text for one in named)


# The state folder.


@pytest.mark.parametrize("exists", [False, True])
def test_nobody_else_looks_into_the_state_folder(
    call: Callable[..., SimpleNamespace], tmp_path: Path, exists: bool
) -> None:
    state = tmp_path / "state"
    if exists:
        state.mkdir(mode=0o755)
    call("--yes")
    assert state.stat().st_mode & 0o777 == 0o700
    state.chmod(0o755)
    assert len(call("--yes").served) == 1
    assert state.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["letter.txt", "store/letter.txt", "logs/mine.log"])
def test_a_folder_of_the_users_own_is_no_state_folder(
    call: Callable[..., SimpleNamespace], tmp_path: Path, name: str
) -> None:
    own = tmp_path / "state" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    (tmp_path / "state").chmod(0o755)
    done = call("--yes")
    assert isinstance(done.error, UsageError)
    assert "--state" in done.error.hint
    assert own.read_text() == "mine"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / "state" / "store" / MARKER).exists()


# The end.


class Idle:
    """An executor that no message waits for."""

    def __init__(self, *_arguments: Any) -> None:
        self.closed = False

    def run_waiting_task(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class Unanswered(Idle):
    """One whose first message gets no answer."""

    calls = 0

    def run_waiting_task(self) -> bool:
        Unanswered.calls += 1
        if Unanswered.calls == 1:
            raise UnansweredError("a message got no answer")
        return False


def status(phase: Phase) -> StatusReply:
    return StatusReply(phase=phase, owners_joined=2, owners_wanted=2)


@pytest.fixture
def wait_for_the_end(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, float]]:
    """Wait with a clock of its own; returns what the owner is told, and after how many seconds."""

    def wait(
        replies: Iterator[StatusReply | None], executor: type[Idle] = Idle, **node_methods: Any
    ) -> tuple[str, float]:
        clock = SimpleNamespace(now=0.0)

        def sleep(seconds: float) -> None:
            clock.now += seconds
            assert clock.now < 1000, "it never ends"

        monkeypatch.setattr(join, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
        monkeypatch.setattr(join, "FlowerExecutor", executor)
        app: Any = SimpleNamespace(farewell=None, client_app=lambda: None)
        node: Any = SimpleNamespace(runtime_address="", secret=b"", require_running=lambda: None, **node_methods)
        coordinator: Any = SimpleNamespace(status=lambda: next(replies))
        return join._answer_until_end(app, node, coordinator, lambda _line: None), clock.now

    return wait


@pytest.mark.parametrize("exchange", Exchange)
def test_only_an_owner_that_computes_steps_keeps_memory_between_questions(
    exchange: Exchange,
    make_settings: MakeSettings,
    make_prepared: Callable[..., Prepared],
    keeps_freed_memory: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What others hold meanwhile is images on their way, or nothing."""
    coordinator = SimpleNamespace(enrol=lambda *_: None, close=lambda: None)
    node = SimpleNamespace(stop=lambda: None)
    seen: list[bool] = []

    def answer_until_end(*_arguments: Any) -> str:
        seen.append(keeps_freed_memory())
        return ""

    monkeypatch.setattr(join, "CoordinatorClient", lambda _invite: coordinator)
    monkeypatch.setattr(join, "_connected_node", lambda *_: node)
    monkeypatch.setattr(join, "_answer_until_end", answer_until_end)
    invite = Invite(
        owner="anna",
        address="127.0.0.1:9443",
        ca_certificate="none",
        token=new_token(bytes(32)),
        federation=make_settings(exchange=exchange),
    )
    display: Any = None
    prepared = make_prepared(tmp_path / "store")
    join.serve(invite, "none", prepared, tmp_path, torch.device("cpu"), display, lambda _line: None)
    assert seen == [exchange is Exchange.GRADIENTS]
    assert not keeps_freed_memory()


@pytest.mark.parametrize("then", [status(Phase.FINISHED), None], ids=["coordinator there", "coordinator gone"])
def test_a_lost_farewell_is_not_waited_for_for_ever(
    wait_for_the_end: Callable[..., tuple[str, float]], then: StatusReply | None
) -> None:
    def replies() -> Iterator[StatusReply | None]:
        yield status(Phase.TRAINING)
        yield status(Phase.FINISHED)
        while True:
            yield then

    told, seconds = wait_for_the_end(replies())
    assert "the federation finished" in told
    assert "at the coordinator" in told
    assert 30 < seconds < 45


def test_a_node_that_waits_for_an_answer_in_vain_is_started_again(
    wait_for_the_end: Callable[..., tuple[str, float]],
) -> None:
    did: list[str] = []
    told, _ = wait_for_the_end(
        iter([status(Phase.STOPPED)]), Unanswered, stop=lambda: did.append("stop"), start=lambda: did.append("start")
    )
    assert did == ["stop", "start"]
    assert "stopped" in told


def test_federations_with_equal_settings_do_not_share_a_folder(make_settings: MakeSettings) -> None:
    first = Invite(
        owner="anna",
        address="127.0.0.1:9443",
        ca_certificate="one",
        token=new_token(bytes(32)),
        federation=make_settings(),
    )
    again = first.model_copy(update={"token": new_token(b"another".ljust(32))})
    others = (
        first.model_copy(update={"ca_certificate": "another"}),
        first.model_copy(update={"federation": make_settings(exchange="images")}),
    )
    assert join.default_folder(again) == join.default_folder(first)
    for other in others:
        assert join.default_folder(other) != join.default_folder(first)
    assert join.default_folder(first).name == "anna"


@pytest.mark.parametrize(
    ("phase", "message", "line"),
    [
        (Phase.WAITING, "x", "waiting for owners (1 of 2 joined)"),
        (Phase.TRAINING, "", "training"),
        (Phase.TRAINING, "going on without bert", "training: going on without bert"),
        # It is for the coordinator, and names its folder.
        (Phase.FINISHED, "send it the folder /srv/model", "finished"),
    ],
)
def test_how_it_stands_is_told_in_a_line(phase: Phase, message: str, line: str) -> None:
    assert join._as_line(StatusReply(phase=phase, owners_joined=1, owners_wanted=2, message=message)) == line
