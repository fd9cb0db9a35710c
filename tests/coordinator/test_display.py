"""What ``coordinator status`` shows: text from others is shown as it is, and commands no terminal."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from coordinator.display import Watch, status_report, status_tables
from coordinator.front_door import Traffic
from coordinator.state import TOO_LATE, Enrolled, Owner, RoundRecord, StateFolder, Status, now_text
from ppfed.enrolment import Phase

HOSTILE = "[red]a[/red] [link=https://evil.example.org]b[/link] :smile: \x1b[2J [/nothing]"


def test_text_of_others_is_no_markup_and_no_command(make_state: Callable[..., StateFolder]) -> None:
    state = make_state()
    with state.changing_owners() as owners:
        for name in ("anna", "bert"):
            enrolled = Enrolled(
                node_key="key",
                node_id=1,
                fingerprint=HOSTILE,
                train_images=3,
                held_out_images=1,
                copies=1,
                at=now_text(),
            )
            owners[name] = Owner(
                name=HOSTILE, token_sha256="", invited_at="", enrolled=enrolled if name == "anna" else None
            )
    state.set_status(Status(phase=Phase.FAILED, message=HOSTILE))
    report = status_report(state)
    for one in report["owners"]:
        one["name"] = HOSTILE
    report["federation"] = HOSTILE
    file = io.StringIO()
    console = Console(file=file, width=400, force_terminal=True, color_system="truecolor")
    for table in status_tables(report):
        console.print(table)
    shown = file.getvalue()
    # The title, the message, two names and a fingerprint.
    assert shown.count("[red]a[/red] [link=https://evil.example.org]b[/link] :smile: ") == 5
    assert "\x1b[2J" not in shown
    assert "\x1b]8" not in shown


def test_a_round_that_went_on_without_an_owner_says_so(make_state: Callable[..., StateFolder]) -> None:
    state = make_state()
    whole = RoundRecord(round=1, train_loss=0.5, accuracy=6 / 11, held_out_images=11, seconds=1.0, owners=2)
    fewer = RoundRecord(round=2, accuracy=0.5, held_out_images=6, seconds=1.0, owners=1)
    file = io.StringIO()
    Watch(Console(file=file, width=200), state)(Status(phase=Phase.TRAINING, rounds=[whole, fewer]), Traffic())
    lines = file.getvalue().splitlines()
    assert "round 1 of 2, loss 0.500, accuracy 54.55% of 11 held-out images, 1.0 s" in lines
    assert "round 2 of 2, accuracy 50.00% of 6 held-out images, 1.0 s, with 1 of 2 owners" in lines


def test_whoever_joins_while_a_run_is_under_way_is_said_to_be_too_late(make_state: Callable[..., StateFolder]) -> None:
    state = make_state()
    with state.changing_owners() as owners:
        for name in ("anna", "bert"):
            enrolled = Enrolled(
                node_key="key", node_id=1, fingerprint="f", train_images=3, held_out_images=1, copies=1, at=now_text()
            )
            owners[name] = Owner(name=name, token_sha256="", invited_at="", enrolled=enrolled)
    file = io.StringIO()
    watch = Watch(Console(file=file, width=200), state)
    watch(Status(phase=Phase.TRAINING, owners=("anna",)), Traffic())
    lines = file.getvalue().splitlines()
    assert "anna joined with key f: 3 + 1 images" in lines
    assert f"bert joined with key f: 3 + 1 images; {TOO_LATE}" in lines
    state.set_status(Status(phase=Phase.TRAINING, owners=("anna",)))
    report = status_report(state)
    assert [one["too_late"] for one in report["owners"]] == [False, True]
    shown = io.StringIO()
    Console(file=shown, width=200).print(status_tables(report)[1])
    assert shown.getvalue().count(TOO_LATE) == 1


def test_steps_of_a_round_under_way_are_shown(make_state: Callable[..., StateFolder]) -> None:
    state = make_state(exchange="gradients")
    state.set_status(Status(phase=Phase.TRAINING, steps=3, steps_expected=7))
    file = io.StringIO()
    Console(file=file, width=200).print(status_tables(status_report(state))[0])
    assert "3 of 7 in this round" in file.getvalue()
