"""Receiving encrypted images: each owner's shards are fetched, checked and kept on disk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import RecordDict

from coordinator.conversation import Conversation, Reply
from coordinator.state import Enrolled, Plan, StateFolder
from ppfed.errors import DataError, FederationError, PeerDataError
from ppfed.images.source import Split
from ppfed.store import ShardStore, read_shard, rows_per_shard, verify_shard
from ppfed.wire.messages import MANIFEST, SHARD, pack_request
from ppfed.wire.shards import Manifest, ShardName, pack_shard_request, unpack_manifest, unpack_shard

_IN_FLIGHT = 2
"""Shards asked of an owner at once: the next is under way while one is stored, and memory stays bounded."""

_MOST_FAILURES = 3
_CHASE_S = 1.0


@dataclass
class _Delivery:
    """What one owner still has to deliver."""

    manifest: Manifest | None = None
    missing: list[ShardName] = field(default_factory=list)
    asked: dict[str, ShardName] = field(default_factory=dict)
    received: Counter[Split] = field(default_factory=Counter)
    failures: int = 0
    last_heard: float = 0.0
    paused: bool = False

    @property
    def complete(self) -> bool:
        return self.manifest is not None and not self.missing and not self.asked


class Intake:
    """Fetches the images of all owners.

    Parameters
    ----------
    conversation : Conversation
    state : StateFolder
    plan : Plan
    owners : mapping of str to Enrolled
    on_progress : callable
        Called with the images received so far, and those expected.
    """

    def __init__(
        self,
        conversation: Conversation,
        state: StateFolder,
        plan: Plan,
        owners: Mapping[str, Enrolled],
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._conversation = conversation
        self._state = state
        self._plan = plan
        self._settings = plan.settings
        self._owners = owners
        self._on_progress = on_progress
        self._deliveries = {owner: _Delivery() for owner in owners}

    def run(self) -> list[str]:
        """Fetch everything that is not on disk yet.

        Returns
        -------
        list of str
            The owners whose images are complete; an owner that fails its checks or falls silent is left out.

        Raises
        ------
        FederationError
            If fewer than the quorum are left.
        """
        self._state.audit("intake began", owners=len(self._deliveries))
        now, online = time.monotonic(), self._conversation.online()
        for owner, delivery in self._deliveries.items():
            delivery.last_heard = now
            if owner in online or not self._take_delivered(owner, delivery):
                self._ask_manifest(owner)
        while any(not delivery.complete for delivery in self._deliveries.values()):
            for reply in self._conversation.answers(time.monotonic() + _CHASE_S):
                self._handle(reply)
                # A shard is large: not one more than is needed while the next is pulled.
                del reply
            self._conversation.check_stop()
            self._chase()
            if not self._conversation.waiting_for() and any(not one.complete for one in self._deliveries.values()):
                time.sleep(_CHASE_S)
        self._state.audit("intake ended", owners=len(self._deliveries))
        return sorted(self._deliveries)

    def _handle(self, reply: Reply) -> None:
        delivery = self._deliveries.get(reply.owner)
        if delivery is None:
            return
        question = delivery.asked.pop(reply.question, None)
        if reply.message is None:
            self._state.audit("no answer", owner=reply.owner, reason=reply.error)
            if reply.owners_fault:
                self._fail(reply.owner, delivery, question, reply.error)
            else:
                self._pause(reply.owner, delivery, question)
            return
        delivery.last_heard = time.monotonic()
        try:
            if question is None:
                self._take_manifest(reply.owner, delivery, reply.message.content)
            else:
                self._take_shard(reply.owner, delivery, question, reply.message.content)
        except PeerDataError as error:
            self._state.audit("refused", owner=reply.owner, reason=error.message)
            self._fail(reply.owner, delivery, question, error.message)
            return
        self._ask_shards(reply.owner, delivery)

    def _take_manifest(self, owner: str, delivery: _Delivery, content: RecordDict) -> None:
        enrolled = self._owners[owner]
        announced = announced_images(enrolled)
        manifest = unpack_manifest(content, self._settings, sum(announced.values()))
        for split in Split:
            # Ceiling division: all shards but the last are full.
            wanted = -(-announced[split] // rows_per_shard(self._settings.shape))
            listed = len(manifest.checksums[split])
            if listed != wanted:
                raise PeerDataError(
                    f"the manifest lists {listed} shards of split {split}, and the {announced[split]} images that were "
                    f"announced make {wanted}"
                )
        self._take(owner, delivery, manifest)

    def _take_delivered(self, owner: str, delivery: _Delivery) -> bool:
        """Do without an owner that is away, if what an earlier run received of it is complete and still whole."""
        checksums = self._state.delivered().get(owner)
        if checksums is None or set(checksums) != set(Split):
            return False
        announced = announced_images(self._owners[owner])
        # It may have joined again with other images since.
        store = ShardStore(self._state.store(owner))
        rows: Counter[Split] = Counter()
        for name in Manifest(checksums).names():
            stored = self._stored_rows(store, name, checksums[name.split][name.index])
            if stored is None:
                return False
            rows[name.split] += stored
        if any(rows[split] != announced[split] for split in Split):
            return False
        self._take(owner, delivery, Manifest(checksums))
        self._state.audit("complete already", owner=owner)
        return True

    def _take(self, owner: str, delivery: _Delivery, manifest: Manifest) -> None:
        """Begin a delivery: what is on disk is not asked for."""
        delivery.manifest = manifest
        delivery.received.clear()
        store = ShardStore(self._state.store(owner))
        # What an earlier run received and this manifest does not list: the owner has prepared its images anew.
        kept = {store.path(name.split, name.index) for name in manifest.names()}
        for path in {path for split in Split for path in store.paths(split)} - kept:
            path.unlink()
        delivery.missing = []
        for name in manifest.names():
            have = self._stored_rows(store, name, manifest.checksums[name.split][name.index])
            if have is None:
                delivery.missing.append(name)
            else:
                delivery.received[name.split] += have
        self._note(owner, delivery)
        self._report()

    def _note(self, owner: str, delivery: _Delivery) -> None:
        """Write down whether the owner's images are complete, for a run that it may not be there for."""
        if delivery.manifest is not None:
            self._state.set_delivered(owner, delivery.manifest.checksums if delivery.complete else None)

    def _stored_rows(self, store: ShardStore, name: ShardName, checksum: int) -> int | None:
        """Rows of a shard that an earlier run received whole, or None."""
        path = store.path(name.split, name.index)
        if not path.exists():
            return None
        try:
            verify_shard(path)
            shard = read_shard(path)
        except DataError:
            return None
        return len(shard) if shard.checksum() == checksum else None

    def _take_shard(self, owner: str, delivery: _Delivery, name: ShardName, content: RecordDict) -> None:
        if delivery.manifest is None:
            raise PeerDataError("a shard came before the manifest")
        enrolled = self._owners[owner]
        checksum = delivery.manifest.checksums[name.split][name.index]
        shard = unpack_shard(content, name, self._settings, enrolled.fingerprint, checksum)
        full = rows_per_shard(self._settings.shape)
        rows = min(full, announced_images(enrolled)[name.split] - name.index * full)
        if len(shard) != rows:
            # Shards of an image each would keep everyone waiting, each in time, for as long as the owner likes.
            raise PeerDataError(f"shard {name.index} of split {name.split} holds {len(shard)} images, not {rows}")
        ShardStore(self._state.store(owner)).write(name.split, name.index, shard)
        delivery.received[name.split] += len(shard)
        self._state.audit("shard", owner=owner, split=str(name.split), index=name.index, images=len(shard))
        self._note(owner, delivery)
        self._report()

    def _ask_manifest(self, owner: str) -> None:
        asked = self._conversation.ask(owner, MANIFEST, pack_request(), "intake", self._plan.deadline_s)
        self._deliveries[owner].paused = asked is None

    def _ask_shards(self, owner: str, delivery: _Delivery) -> None:
        while delivery.missing and len(delivery.asked) < _IN_FLIGHT:
            name = delivery.missing.pop(0)
            message_id = self._conversation.ask(owner, SHARD, pack_shard_request(name), "intake", self._plan.deadline_s)
            if message_id is None:
                delivery.missing.insert(0, name)
                delivery.paused = True
                return
            delivery.asked[message_id] = name

    def _fail(self, owner: str, delivery: _Delivery, question: ShardName | None, reason: str) -> None:
        """Give the owner another chance, or none."""
        delivery.failures += 1
        if delivery.failures >= _MOST_FAILURES:
            self._leave_out(owner, reason)
        else:
            self._pause(owner, delivery, question)

    def _pause(self, owner: str, delivery: _Delivery, question: ShardName | None) -> None:
        """Ask nothing of this owner until ``_chase`` sees it online."""
        self._conversation.forget(owner)
        again = [] if question is None else [question]
        delivery.missing = [*again, *delivery.asked.values(), *delivery.missing]
        delivery.asked.clear()
        delivery.paused = True

    def _chase(self) -> None:
        """Ask again where an answer failed: the owner may have been restarted. Give up on one that stays silent."""
        now = time.monotonic()
        online: set[str] | None = None
        for owner, delivery in list(self._deliveries.items()):
            if delivery.complete:
                continue
            if now - delivery.last_heard > self._plan.deadline_s:
                if delivery.manifest is None and self._take_delivered(owner, delivery):
                    self._conversation.forget(owner)
                    continue
                self._leave_out(owner, f"silent for {self._plan.deadline_s:.0f} s")
            elif delivery.paused:
                online = self._conversation.online() if online is None else online
                if owner in online:
                    delivery.paused = False
                    if delivery.manifest is None:
                        self._ask_manifest(owner)
                    else:
                        self._ask_shards(owner, delivery)

    def _leave_out(self, owner: str, reason: str) -> None:
        self._conversation.forget(owner)
        del self._deliveries[owner]
        self._state.audit("left out", owner=owner, reason=reason)
        if len(self._deliveries) < self._plan.quorum:
            raise FederationError(
                f"{owner} could not deliver its images ({reason}), and fewer owners are left than the quorum of "
                f"{self._plan.quorum}",
                hint="Have the owner join again, then start the coordinator again: what was received is kept.",
            )
        self._report()

    def _report(self) -> None:
        expected = sum(
            sum(announced_images(one).values()) for name, one in self._owners.items() if name in self._deliveries
        )
        received = sum(delivery.received.total() for delivery in self._deliveries.values())
        self._on_progress(received, expected)


def announced_images(enrolled: Enrolled) -> dict[Split, int]:
    """Images that an owner will send, each variant counted."""
    return {Split.TRAIN: enrolled.train_images * enrolled.copies, Split.HELD_OUT: enrolled.held_out_images}


def distinct_images(store: ShardStore, split: Split) -> int:
    """Count the images of a split that have different ids: variants and repetitions are no images of their own."""
    ids = [shard.images.ids for shard in store.shards(split)]
    return len(np.unique(np.concatenate(ids), axis=0)) if ids else 0
