"""The ServerApp: what a run of the federation does, from the owners' arrival to the model."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import http_grid

from coordinator.conversation import Conversation, StopRequestedError
from coordinator.intake import Intake, distinct_images
from coordinator.processes import Processes
from coordinator.state import STATE_VARIABLE, Enrolled, Plan, StateFolder, Status
from coordinator.throttle import at_most_every
from ppfed.enrolment import Phase
from ppfed.errors import FederationError, PPFedError
from ppfed.federation import Exchange
from ppfed.flower_service import collect_often
from ppfed.flower_waiting import pull_soon
from ppfed.images.source import Split
from ppfed.services import end_with_parent
from ppfed.store import ShardStore
from ppfed.wire.messages import FINISH

_STATUS_S = 1.0
_FAREWELL_S = 60.0
_LAST_FAREWELL_S = 20.0

app = ServerApp()


@app.main()
def main(grid: Grid, _context: Context) -> None:
    """Run the federation whose state folder the environment names."""
    end_with_parent()
    pull_soon(http_grid)
    collect_often()
    state = StateFolder(Path(os.environ[STATE_VARIABLE]))
    run_federation(grid, state, Processes.from_environment())


def run_federation(grid: Grid, state: StateFolder, processes: Processes) -> None:
    """Receive images or run rounds, write the model, and tell the owners how it ended.

    Parameters
    ----------
    grid : Grid
    state : StateFolder
    processes : Processes
        What computes; if it is one, it is this.

    Raises
    ------
    PPFedError
        If it fails; the status and the owners have been told.
    """
    plan = state.plan()
    owners = state.owners().enrolled()
    nodes = {name: one.node_id for name, one in owners.items()}
    conversation = Conversation(grid, nodes, state.stop_request.exists, state.joined_at)
    run = _Run(conversation, state, plan, owners, processes)
    try:
        run.work()
    except StopRequestedError as error:
        run.end(Phase.STOPPED, error.message)
    except PPFedError as error:
        run.end(Phase.FAILED, error.message)
        raise
    except Exception as error:
        run.end(Phase.FAILED, f"internal error ({type(error).__name__}); see logs/superexec.log")
        raise


class _Run:
    def __init__(
        self,
        conversation: Conversation,
        state: StateFolder,
        plan: Plan,
        owners: Mapping[str, Enrolled],
        processes: Processes,
    ) -> None:
        self._conversation = conversation
        self._state = state
        self._plan = plan
        self._owners = dict(owners)
        self._processes = processes
        # After a crash, rounds of the earlier run stand in the status still.
        self._status = Status(rounds=state.status().rounds, owners=tuple(sorted(owners)))
        self._lasting = ""

    def work(self) -> None:
        """Receive images where they are exchanged, train, and tell the owners."""
        images = self._plan.settings.exchange is Exchange.IMAGES
        self._set(phase=Phase.INTAKE if images else Phase.TRAINING)
        self._await_owners()
        if images:
            self._receive()
        # torch takes 190 MiB, which whoever only receives images can do without.
        from coordinator.training_run import TrainingRun  # noqa: PLC0415

        training = TrainingRun(
            self._conversation,
            self._state,
            self._plan,
            self._owners,
            self._processes,
            at_most_every(_STATUS_S, self._show_step),
            self._remark,
        )
        for record in training.rounds():
            kept = [one for one in self._status.rounds if one.round < record.round]
            # Whoever was waited for may be there again.
            self._set(phase=Phase.TRAINING, rounds=[*kept, record], steps=0, message=self._lasting)
        # The status says "finished" only after the owners were told: then the services may go.
        away = ", ".join(sorted(self._tell(training.write_model(self._status.rounds), _FAREWELL_S)))
        left = f"{away} did not get the model: send them the folder {self._state.model}" if away else ""
        self._set(phase=Phase.FINISHED, message=left)

    def _await_owners(self) -> None:
        """In the first run wait for as many as it begins with; later for those that come in time, and the quorum."""
        owners = set(self._owners)
        if not self._state.begun:
            self._go_on_without(self._conversation.wait_for_most(owners, self._plan.begin_with, time.monotonic()))
            self._state.set_begun()
            return
        # Of an owner whose images are all here nothing is needed.
        owners -= set(self._state.delivered())
        count = self._plan.quorum - (len(self._owners) - len(owners))
        absent = owners - self._conversation.online()
        if absent:
            limit = f"{self._plan.deadline_s:.0f} s if the quorum is there"
            self._set(message=f"waiting for {', '.join(sorted(absent))}, for {limit}")
        self._go_on_without(self._conversation.wait_for_most(owners, count, time.monotonic() + self._plan.deadline_s))

    def _go_on_without(self, missing: set[str]) -> None:
        names = ", ".join(sorted(missing))
        if missing:
            self._state.audit("goes on without", owners=names)
        self._set(message=f"going on without {names}, who may join again" if missing else "")

    def _receive(self) -> None:
        def on_progress(received: int, expected: int) -> None:
            self._set(images_received=received, images_expected=expected)

        complete = Intake(self._conversation, self._state, self._plan, self._owners, on_progress).run()
        # The card speaks of what was delivered, not of what was announced.
        self._owners = {name: self._delivered(name) for name in complete}
        self._set(phase=Phase.TRAINING)
        if not any(one.train_images for one in self._owners.values()):
            raise FederationError("no owner delivered an image to train on")

    def _remark(self, text: str) -> None:
        """Say something that holds until the end."""
        self._lasting = text
        self._set(message=text)

    def _show_step(self, step: int, steps: int) -> None:
        self._set(steps=step, steps_expected=steps)

    def _delivered(self, owner: str) -> Enrolled:
        store = ShardStore(self._state.store(owner))
        return self._owners[owner].model_copy(
            update={
                "train_images": distinct_images(store, Split.TRAIN),
                "held_out_images": distinct_images(store, Split.HELD_OUT),
            }
        )

    def end(self, phase: Phase, message: str) -> None:
        """Tell the owners and the status that it ended without a model."""
        self._state.audit(str(phase), reason=message)
        from ppfed.wire.weights import Farewell, pack_farewell  # noqa: PLC0415 -- it loads torch

        try:
            self._tell(pack_farewell(Farewell(False, message, "", {})), _LAST_FAREWELL_S)
        finally:
            self._set(phase=phase, message=message)

    def _tell(self, farewell: RecordDict, timeout_s: float) -> set[str]:
        """Tell every owner that is online how it ended, and wait until each has heard it or the time is over.

        Also those that joined too late to take part: they would wait for ever.

        Returns
        -------
        set of str
            Those that have not heard it.
        """
        for owner in self._conversation.waiting_for():
            self._conversation.forget(owner)
        enrolled = self._state.owners().enrolled()
        self._conversation.include({name: one.node_id for name, one in enrolled.items()})
        for owner in sorted(self._conversation.online()):
            self._conversation.ask(owner, FINISH, farewell, "finish", timeout_s)
        answers = self._conversation.answers(time.monotonic() + timeout_s, heed_stop=False)
        heard = {reply.owner for reply in answers if reply.message is not None}
        deaf = set(enrolled) - heard
        for owner in sorted(deaf):
            self._state.audit("did not hear the end", owner=owner)
        return deaf

    def _set(self, **changes: object) -> None:
        self._status = self._status.model_copy(update=changes)
        self._state.set_status(self._status)
