import itertools
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from coordinator import start
from coordinator.front_door import Traffic
from coordinator.processes import Processes
from coordinator.start import _Supervisor
from coordinator.state import StateFolder, Status
from ppfed.enrolment import Phase
from ppfed.errors import ServiceError


class FlowerThatSays:
    """The orders that a SuperLink takes, with an answer to what became of the run."""

    def __init__(self, answer: str) -> None:
        self.answer, self.asked = answer, 0

    def require_running(self) -> None:
        pass

    def submit(self) -> int:
        return 7

    def run_status(self, run_id: int) -> str:
        assert run_id == 7
        self.asked += 1
        return self.answer


@pytest.fixture
def supervised(
    make_state: Callable[..., StateFolder], monkeypatch: pytest.MonkeyPatch
) -> Callable[[FlowerThatSays, Callable[[StateFolder], None]], Status]:
    """Supervise a run; the callable stands for the ServerApp, and has its turn at every tick."""
    monkeypatch.setattr(start, "_TICK_S", 0.005)
    monkeypatch.setattr(start, "_RUN_CHECK_S", 0.02)
    monkeypatch.setattr(_Supervisor, "_enough_here", lambda _supervisor: True)
    state = make_state("state")

    def supervise(flower: FlowerThatSays, server_app: Callable[[StateFolder], None]) -> Status:
        state.set_status(Status(phase=Phase.TRAINING))
        watch = lambda *_: server_app(state)  # noqa: E731
        return _Supervisor(state, flower, Traffic(), watch).run()  # type: ignore[arg-type]

    return supervise


def test_a_server_app_that_died_in_silence_is_noticed(
    supervised: Callable[[FlowerThatSays, Callable[[StateFolder], None]], Status],
) -> None:
    flower = FlowerThatSays("finished:failed")
    with pytest.raises(ServiceError, match="ended without a result"):
        supervised(flower, lambda _state: None)
    assert flower.asked == 1


def test_flower_is_not_asked_about_a_server_app_that_is_heard_of(
    supervised: Callable[[FlowerThatSays, Callable[[StateFolder], None]], Status],
) -> None:
    flower, ticks = FlowerThatSays("finished:failed"), itertools.count()

    def server_app(state: StateFolder) -> None:
        phase = Phase.FINISHED if next(ticks) > 40 else Phase.TRAINING
        state.set_status(Status(phase=phase))

    assert supervised(flower, server_app).phase is Phase.FINISHED
    assert flower.asked == 0


def test_a_silent_run_that_goes_on_is_asked_about_until_it_ends(
    supervised: Callable[[FlowerThatSays, Callable[[StateFolder], None]], Status],
) -> None:
    flower = FlowerThatSays("running")

    def server_app(state: StateFolder) -> None:
        if flower.asked == 3:
            state.set_status(Status(phase=Phase.FINISHED))

    assert supervised(flower, server_app).phase is Phase.FINISHED
    assert flower.asked == 3


def test_only_the_first_run_waits_for_all_owners(
    make_federation: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later run is submitted with nobody online: it waits for the quorum itself."""
    monkeypatch.setattr(start, "_TICK_S", 0.005)
    state = make_federation().state
    flower, submitted = FlowerThatSays("running"), []
    monkeypatch.setattr(flower, "submit", lambda: submitted.append(True) or 7)

    def watch(*_facts: object) -> None:
        if submitted:
            state.set_status(Status(phase=Phase.FINISHED))
        else:
            state.stop_request.touch()

    assert _Supervisor(state, flower, Traffic(), watch).run().phase is Phase.STOPPED  # type: ignore[arg-type]
    assert submitted == []
    state.stop_request.unlink()
    state.set_begun()
    assert _Supervisor(state, flower, Traffic(), watch).run().phase is Phase.FINISHED  # type: ignore[arg-type]
    assert submitted == [True]


def test_a_later_run_does_not_wait_for_ever_for_an_owner_whose_invite_was_replaced(
    make_federation: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = dict.fromkeys(("anna", "bert", "carl"), ((2,), ()))
    state = make_federation(owners, quorum=2).state
    state.set_begun()
    with state.changing_owners() as listed:
        listed["carl"] = listed["carl"].model_copy(update={"enrolled": None})
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += 10 * seconds

    monkeypatch.setattr(start, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    flower, submitted = FlowerThatSays("running"), list[float]()
    monkeypatch.setattr(flower, "submit", lambda: submitted.append(clock.now) or 7)

    def watch(*_facts: object) -> None:
        if submitted:
            state.set_status(Status(phase=Phase.FINISHED))

    assert _Supervisor(state, flower, Traffic(), watch).run().phase is Phase.FINISHED  # type: ignore[arg-type]
    deadline_s = state.plan().deadline_s
    assert deadline_s < submitted[0] < deadline_s + 10


def test_a_first_run_begins_once_as_many_are_online_as_it_begins_with(
    make_federation: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three owners that joined one has gone again."""
    monkeypatch.setattr(start, "_TICK_S", 0.005)
    owners = dict.fromkeys(("anna", "bert", "carl"), ((2,), ()))
    state = make_federation(owners, quorum=2, begin_with=2).state
    flower, submitted, traffic = FlowerThatSays("running"), [], Traffic()
    monkeypatch.setattr(flower, "submit", lambda: submitted.append(sorted(traffic.online())) or 7)
    ticks = itertools.count()

    def watch(*_facts: object) -> None:
        traffic.last_seen[("anna", "bert")[min(next(ticks) // 20, 1)]] = time.monotonic()
        if submitted:
            state.set_status(Status(phase=Phase.FINISHED))

    assert _Supervisor(state, flower, traffic, watch).run().phase is Phase.FINISHED  # type: ignore[arg-type]
    assert submitted == [["anna", "bert"]]
    assert next(ticks) > 20


@pytest.mark.parametrize(
    ("printed", "message", "hint"),
    [
        (
            "leakage: what was said here too\nerror: cannot listen on x\nnext: Free it.\n",
            "cannot listen on x",
            "Free it.",
        ),
        ("leakage: what was said here too\nerror: no luck\n", "no luck", ""),
        ("Killed\n", "Killed", ""),
    ],
)
def test_a_coordinator_that_does_not_start_in_the_background_says_why_and_no_more(
    make_state: Callable[..., StateFolder], monkeypatch: pytest.MonkeyPatch, printed: str, message: str, hint: str
) -> None:
    popen = start.subprocess.Popen
    monkeypatch.setattr(
        start.subprocess,
        "Popen",
        lambda _command, **named: popen([sys.executable, "-c", f"print({printed!r})"], **named),
    )
    with pytest.raises(ServiceError) as caught:
        start.start_detached(make_state("state"), Processes())
    assert caught.value.message == f"the coordinator did not start: {message}"
    assert caught.value.hint == hint
