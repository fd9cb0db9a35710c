"""What the coordinator shows: live while it runs, and for ``coordinator status``."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordinator.front_door import Traffic
from coordinator.state import TOO_LATE, StateFolder, Status
from ppfed.cli.console import live_bar, print_line, printable
from ppfed.enrolment import Phase

_MB = 1e6
_SHOWN_ROUNDS = 12


class Watch:
    """Prints what changes while a federation runs; use it as a context manager."""

    def __init__(self, console: Console, state: StateFolder) -> None:
        self._console = console
        self._state = state
        self._joined: set[str] = set()
        self._rounds = len(state.status().rounds)
        self._phase: Phase | None = None
        self._message = ""
        self._bar = live_bar(console)
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()

    def ready(self) -> None:
        """Say that owners can join."""
        plan = self._state.plan()
        self._say(f"federation '{plan.settings.name}' is open at {plan.address} (TLS, node authentication)")
        invited = len(self._state.owners().owners)
        if invited < plan.settings.owners:
            where = f"--state {self._state.folder}"
            self._say(
                f"make an invite for each of {plan.settings.owners} owners: ppfed coordinator invite NAME {where}"
            )

    def __call__(self, status: Status, _traffic: Traffic) -> None:
        """Show what changed."""
        settings = self._state.plan().settings
        for name, one in self._state.owners().enrolled().items():
            if name not in self._joined:
                self._joined.add(name)
                late = f"; {TOO_LATE}" if status.leaves_out(name) else ""
                self._say(
                    f"{name} joined with key {one.fingerprint}: {one.train_images} + {one.held_out_images} images{late}"
                )
        if status.phase is not self._phase:
            self._phase = status.phase
            self._say(str(status.phase))
        # How it ended is said by the command.
        if status.phase in (Phase.INTAKE, Phase.TRAINING) and status.message != self._message:
            self._message = status.message
            if self._message:
                self._say(self._message)
        for record in status.rounds[self._rounds :]:
            accuracy = ""
            if record.accuracy is not None:
                accuracy = f", accuracy {record.accuracy:.2%} of {record.held_out_images} held-out images"
            loss = "" if record.train_loss is None else f", loss {record.train_loss:.3f}"
            few = f", with {record.owners} of {settings.owners} owners" if record.owners < settings.owners else ""
            number = f"round {record.round} of {settings.training.rounds}"
            self._say(f"{number}{loss}{accuracy}, {record.seconds:.1f} s{few}")
        self._rounds = max(self._rounds, len(status.rounds))
        if status.phase is Phase.INTAKE:
            done, total = status.images_received, status.images_expected or None
        else:
            done, total = len(status.rounds), settings.training.rounds
        description = str(status.phase)
        if status.phase is Phase.TRAINING and status.steps:
            description += f", round {done + 1} of {total}, steps"
            done, total = status.steps, status.steps_expected
        self._bar.update(self._task, description=description, completed=done, total=total)

    def _say(self, line: str) -> None:
        print_line(self._console, line)


def status_report(state: StateFolder) -> dict[str, Any]:
    """Collect what ``coordinator status`` shows, as plain JSON values."""
    plan = state.plan()
    status = state.status()
    owners = state.owners()
    traffic = state.traffic()
    settings = plan.settings
    return {
        "federation": settings.name,
        "address": plan.address,
        "running": state.running_pid() is not None,
        "phase": str(status.phase),
        "message": status.message,
        "exchange": str(settings.exchange),
        "cipher": str(settings.cipher.spec),
        "classes": list(settings.classes),
        "size": list(settings.shape),
        "owners_wanted": settings.owners,
        "owners": [
            {
                "name": name,
                "joined": owner.enrolled is not None,
                "too_late": owner.enrolled is not None and status.leaves_out(name),
                "fingerprint": owner.enrolled.fingerprint if owner.enrolled else None,
                "train_images": owner.enrolled.train_images if owner.enrolled else None,
                "held_out_images": owner.enrolled.held_out_images if owner.enrolled else None,
                "bytes_sent": traffic.get(name, 0),
            }
            for name, owner in sorted(owners.owners.items())
        ],
        "images_received": status.images_received,
        "images_expected": status.images_expected,
        "rounds_wanted": settings.training.rounds,
        "steps": status.steps,
        "steps_expected": status.steps_expected,
        "rounds": [record.model_dump() for record in status.rounds],
        "accuracy": status.rounds[-1].accuracy if status.rounds else None,
        "model": str(state.model) if status.phase is Phase.FINISHED else None,
        "updated_at": status.updated_at,
    }


def status_tables(report: dict[str, Any]) -> list[Table]:
    """Lay the report out for a terminal."""
    overview = Table(title=_text(f"federation {report['federation']}"), show_header=False, title_justify="left")
    overview.add_column(style="bold")
    overview.add_column(overflow="fold")
    rows = {
        "phase": report["phase"] + ("" if report["running"] else " (no coordinator is running)"),
        "message": report["message"],
        "address": report["address"],
        "exchange": report["exchange"],
        "cipher": report["cipher"],
        "rounds": f"{len(report['rounds'])} of {report['rounds_wanted']}",
        "steps": f"{report['steps']} of {report['steps_expected']} in this round" if report["steps"] else "",
        "accuracy": "" if report["accuracy"] is None else f"{report['accuracy']:.2%}",
        "model": report["model"] or "",
    }
    for key, value in rows.items():
        if value:
            overview.add_row(key, _text(value))
    owners = Table(title=f"owners: {len(report['owners'])} of {report['owners_wanted']} invited", title_justify="left")
    for heading in ("owner", "key", "train", "held out", "sent"):
        owners.add_column(heading, justify="left" if heading in ("owner", "key") else "right")
    for one in report["owners"]:
        if one["joined"]:
            owners.add_row(
                _text(one["name"]),
                _text(one["fingerprint"]),
                str(one["train_images"]),
                str(one["held_out_images"]),
                f"{one['bytes_sent'] / _MB:.1f} MB",
            )
            if one["too_late"]:
                owners.add_row("", _text(TOO_LATE), "", "", "")
        else:
            owners.add_row(_text(one["name"]), "not joined yet", "", "", "")
    rounds = Table(title="last rounds", title_justify="left")
    for heading in ("round", "loss", "held-out loss", "accuracy", "held out", "owners", "seconds"):
        rounds.add_column(heading, justify="right")
    for record in report["rounds"][-_SHOWN_ROUNDS:]:
        rounds.add_row(
            str(record["round"]),
            _number(record["train_loss"], ".3f"),
            _number(record["held_out_loss"], ".3f"),
            _number(record["accuracy"], ".2%"),
            str(record["held_out_images"] or ""),
            str(record["owners"]),
            f"{record['seconds']:.1f}",
        )
    return [overview, owners, *([rounds] if report["rounds"] else [])]


def _text(value: str) -> Text:
    """Show text as it is: names and messages come from others, and are no markup."""
    return Text(printable(value))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
