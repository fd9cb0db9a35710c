"""Receiving encrypted images: all of them arrive as they were sent, and an owner that fails harms nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Message, RecordDict

from coordinator import conversation
from coordinator.conversation import StopRequestedError
from coordinator.intake import Intake
from coordinator.state import now_text
from ppfed.errors import FederationError
from ppfed.images.source import Split
from ppfed.store import ShardStore
from ppfed.wire.messages import MANIFEST, SHARD

MakeFederation = Callable[..., SimpleNamespace]
Audit = Callable[..., list[dict[str, Any]]]
Rewrite = Callable[..., Message]

IMAGES = {"exchange": "images"}


def receive(federation: SimpleNamespace, progress: list[tuple[int, int]] | None = None) -> list[str]:
    def on_progress(received: int, expected: int) -> None:
        if progress is not None:
            progress.append((received, expected))

    return Intake(federation.conversation, federation.state, federation.plan, federation.enrolled, on_progress).run()


def assert_arrived(federation: SimpleNamespace, owner: str) -> None:
    received, sent = ShardStore(federation.state.store(owner)), federation.prepared[owner].store
    for split in Split:
        shards = list(received.shards(split))
        assert len(shards) == len(sent.paths(split))
        for mine, theirs in zip(shards, sent.shards(split), strict=True):
            assert np.array_equal(mine.images.pixels, theirs.images.pixels)
            assert np.array_equal(mine.images.ids, theirs.images.ids)
            assert np.array_equal(mine.labels, theirs.labels)
            assert (mine.images.cipher, mine.images.fingerprint) == (theirs.images.cipher, theirs.images.fingerprint)


def asked(federation: SimpleNamespace, message_type: str, owner: str | None = None) -> int:
    return sum(kind == message_type and owner in (None, who) for who, kind in federation.grid.asked)


def test_all_images_arrive(make_federation: MakeFederation, audit: Audit) -> None:
    federation = make_federation(**IMAGES)
    progress: list[tuple[int, int]] = []
    assert receive(federation, progress) == ["anna", "bert"]
    for owner in ("anna", "bert"):
        assert_arrived(federation, owner)
    assert asked(federation, MANIFEST) == 2
    assert asked(federation, SHARD) == 5
    assert progress[-1] == (40, 40)
    assert progress == sorted(progress)
    assert sum(line["images"] for line in audit(federation.state) if line["event"] == "shard") == 40


def test_an_owner_without_held_out_images_is_complete(make_federation: MakeFederation) -> None:
    federation = make_federation({"anna": ((3,), ())}, **IMAGES)
    assert receive(federation) == ["anna"]
    assert_arrived(federation, "anna")


def test_what_is_on_disk_is_not_asked_for_again(make_federation: MakeFederation) -> None:
    federation = make_federation(**IMAGES)
    receive(federation)
    federation.grid.asked.clear()
    progress: list[tuple[int, int]] = []
    assert receive(federation, progress) == ["anna", "bert"]
    assert asked(federation, SHARD) == 0
    assert progress[-1] == (40, 40)


def test_an_interrupted_intake_goes_on_where_it_was(make_federation: MakeFederation) -> None:
    federation = make_federation(**IMAGES)

    def stop_after_two(_received: int, _expected: int) -> None:
        if len(list(federation.state.folder.glob("store/*/*/*.arrow"))) >= 2:
            federation.state.stop_request.touch()

    with pytest.raises(StopRequestedError):
        Intake(federation.conversation, federation.state, federation.plan, federation.enrolled, stop_after_two).run()
    kept = len(list(federation.state.folder.glob("store/*/*/*.arrow")))
    assert 2 <= kept < 5
    federation.state.stop_request.unlink()
    for owner in federation.enrolled:
        federation.conversation.forget(owner)
    federation.grid.asked.clear()
    assert receive(federation) == ["anna", "bert"]
    assert asked(federation, SHARD) == 5 - kept
    assert_arrived(federation, "anna")
    assert_arrived(federation, "bert")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(b"nothing"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"digest", b"dugest")),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_shard_on_disk_is_asked_for_again(
    make_federation: MakeFederation, damage: Callable[[Path], object]
) -> None:
    federation = make_federation(**IMAGES)
    receive(federation)
    damage(ShardStore(federation.state.store("anna")).path(Split.TRAIN, 1))
    federation.grid.asked.clear()
    receive(federation)
    assert asked(federation, SHARD) == 1
    assert_arrived(federation, "anna")


def test_images_that_were_prepared_anew_replace_the_old_ones(
    make_federation: MakeFederation, make_prepared: Callable[..., Any]
) -> None:
    """The owner joined again with fewer images: none of the old ones is trained on."""
    federation = make_federation(**IMAGES)
    receive(federation)
    anna = federation.prepared["anna"].store
    anna.path(Split.TRAIN, 1).unlink()
    make_prepared(anna.folder, (4,), (6,), seed=9)
    federation.enrolled["anna"] = federation.enrolled["anna"].model_copy(update={"train_images": 4})
    receive(federation)
    assert_arrived(federation, "anna")
    assert ShardStore(federation.state.store("anna")).rows(Split.TRAIN) == 4


def corrupt_pixels(pixels: Any) -> Any:
    pixels[0, 0, 0, 0] ^= 1
    return pixels


def test_a_shard_damaged_on_the_way_is_asked_for_again(
    make_federation: MakeFederation, audit: Audit, rewrite: Rewrite
) -> None:
    federation = make_federation(**IMAGES)
    damaged = []

    def once(owner: str, question: Message, answer: Message) -> Message:
        if question.metadata.message_type == SHARD and not damaged:
            damaged.append(owner)
            return rewrite(answer, {"pixels": corrupt_pixels})
        return answer

    federation.faults.mutate = once
    assert receive(federation) == ["anna", "bert"]
    assert_arrived(federation, "anna")
    refused = [line for line in audit(federation.state) if line["event"] == "refused"]
    assert len(refused) == 1
    assert "damaged on the way" in refused[0]["reason"]


def send_nonsense(nonsense: RecordDict, kind: str) -> Callable[[str, Message, Message], Message]:
    def mutate(owner: str, question: Message, answer: Message) -> Message:
        if owner == "anna" and question.metadata.message_type == kind:
            return Message(nonsense, reply_to=question)
        return answer

    return mutate


@pytest.mark.parametrize("kind", [MANIFEST, SHARD])
def test_an_owner_that_keeps_sending_bad_data_is_left_out(
    make_federation: MakeFederation, audit: Audit, nonsense: RecordDict, kind: str
) -> None:
    federation = make_federation(quorum=1, **IMAGES)
    federation.faults.mutate = send_nonsense(nonsense, kind)
    progress: list[tuple[int, int]] = []
    assert receive(federation, progress) == ["bert"]
    assert_arrived(federation, "bert")
    assert progress[-1] == (15, 15)
    events = [line["event"] for line in audit(federation.state) if line.get("owner") == "anna"]
    assert events.count("refused") == 3
    assert events[-1] == "left out"


@pytest.mark.parametrize("kind", [MANIFEST, SHARD])
def test_an_owner_whose_answers_cannot_be_read_is_left_out(
    make_federation: MakeFederation, audit: Audit, kind: str
) -> None:
    """Flower raises on them; the other owner's answers, ready at the same moment, are not lost with them."""
    federation = make_federation(quorum=1, deadline_s=3.0, **IMAGES)
    federation.faults.garble = lambda owner, question: owner == "anna" and question.metadata.message_type == kind
    federation.faults.delay_s = lambda _owner, _question: 0.05
    assert receive(federation) == ["bert"]
    assert_arrived(federation, "bert")
    assert asked(federation, SHARD, "bert") == 2
    reasons = [line["reason"] for line in audit(federation.state) if line["event"] == "no answer"]
    assert reasons == ["unreadable answer (DecodeError)"] * 3


def test_an_owner_that_keeps_reporting_errors_is_left_out(make_federation: MakeFederation, audit: Audit) -> None:
    """It would be asked again and again until the deadline otherwise."""
    from flwr.app.error import Error

    federation = make_federation(quorum=1, deadline_s=3.0, **IMAGES)
    federation.faults.mutate = lambda owner, question, answer: (
        Message(Error(2, "broken"), reply_to=question) if owner == "anna" else answer
    )
    assert receive(federation) == ["bert"]
    assert [line["event"] for line in audit(federation.state) if line.get("owner") == "anna"] == [
        *["no answer"] * 3,
        "left out",
    ]


def test_an_owner_that_is_away_is_not_counted_as_failing(make_federation: MakeFederation) -> None:
    from flwr.app.error import Error

    federation = make_federation(**IMAGES)
    away = []

    def lose(owner: str, question: Message, answer: Message) -> Message:
        if owner == "anna" and len(away) < 5:
            away.append(owner)
            return Message(Error(5, "node unavailable"), reply_to=question)
        return answer

    federation.faults.mutate = lose
    assert receive(federation) == ["anna", "bert"]
    assert len(away) == 5


def test_an_owner_cannot_answer_for_another(make_federation: MakeFederation, audit: Audit) -> None:
    """The question's id inside an answer is the owner's to write; Flower matches by its envelope."""
    federation = make_federation(quorum=1, **IMAGES)
    questions: dict[str, Message] = {}

    def forge(owner: str, question: Message, answer: Message) -> Message:
        questions[owner] = question
        if owner == "bert":
            answer.metadata.__dict__["_reply_to_message_id"] = questions["anna"].metadata.message_id
        return answer

    federation.faults.mutate = forge
    assert receive(federation) == ["anna"]
    assert_arrived(federation, "anna")
    blamed = {line["owner"] for line in audit(federation.state) if line["event"] == "no answer"}
    assert blamed == {"bert"}


def test_a_superlink_that_fails_is_not_blamed_on_an_owner(make_federation: MakeFederation) -> None:
    federation = make_federation(**IMAGES)

    def fail(_ids: Any) -> list[Message]:
        raise httpx.ConnectError("gone")

    federation.grid.pull_messages = fail
    with pytest.raises(httpx.ConnectError):
        receive(federation)


def test_below_the_quorum_it_fails_and_says_what_to_do(make_federation: MakeFederation, nonsense: RecordDict) -> None:
    federation = make_federation(quorum=2, **IMAGES)
    federation.faults.mutate = send_nonsense(nonsense, SHARD)
    with pytest.raises(FederationError, match=r"anna could not deliver its images .* quorum of 2") as caught:
        receive(federation)
    assert "what was received is kept" in caught.value.hint


@pytest.mark.parametrize(
    ("announced", "says"),
    [
        ({"train_images": 25}, "lists 2 shards of split train, and the 25 images"),
        ({"train_images": 12}, "lists 2 shards of split train, and the 12 images"),
        ({"copies": 2}, "lists 2 shards of split train, and the 38 images"),
        ({"held_out_images": 0}, "lists 1 shards of split held-out, and the 0 images"),
        # The sum fits, the parts do not: the card would speak of an accuracy on no images.
        ({"train_images": 25, "held_out_images": 0}, "lists 2 shards of split train"),
        ({"train_images": 20}, "shard 1 of split train holds 7 images, not 8"),
        ({"train_images": 18}, "shard 1 of split train holds 7 images, not 6"),
        ({"held_out_images": 5}, "shard 0 of split held-out holds 6 images, not 5"),
    ],
)
def test_other_images_than_announced_are_refused(
    make_federation: MakeFederation, audit: Audit, announced: dict[str, int], says: str
) -> None:
    federation = make_federation(enrolled={"anna": announced}, quorum=1, **IMAGES)
    assert receive(federation) == ["bert"]
    refused = [line["reason"] for line in audit(federation.state) if line["event"] == "refused"]
    assert len(refused) == 3
    assert all(says in reason for reason in refused)


def test_an_owner_cannot_cut_its_images_into_crumbs(make_federation: MakeFederation, audit: Audit) -> None:
    """Each crumb would be in time, and all of them would keep the others waiting for as long as it likes."""
    federation = make_federation({"anna": ((4, 4, 4), (4,)), "bert": ((12,), (5,))}, quorum=1, **IMAGES)
    assert receive(federation) == ["bert"]
    assert "lists 3 shards" in audit(federation.state)[-2]["reason"]


def test_a_silent_owner_is_left_out_after_the_deadline(make_federation: MakeFederation, audit: Audit) -> None:
    federation = make_federation(quorum=1, deadline_s=0.4, **IMAGES)
    federation.faults.drop = lambda owner, question: owner == "anna" and question.metadata.message_type == SHARD
    assert receive(federation) == ["bert"]
    assert_arrived(federation, "bert")
    assert [one["event"] for one in audit(federation.state)[-2:]] == ["left out", "intake ended"]


def test_a_slow_owner_is_waited_for_while_it_makes_progress(make_federation: MakeFederation) -> None:
    """Each answer comes in time; all of them together take longer than the deadline."""
    federation = make_federation({"anna": ((4, 4, 4), (4,))}, deadline_s=1.0, **IMAGES)
    federation.faults.delay_s = lambda _owner, _question: 0.4
    assert receive(federation) == ["anna"]
    assert_arrived(federation, "anna")


def test_an_owner_that_comes_back_is_asked_again(make_federation: MakeFederation, audit: Audit) -> None:
    federation = make_federation(**IMAGES)
    failed = []

    def fail_once(owner: str, question: Message, answer: Message) -> Message:
        from flwr.app.error import Error

        if owner == "anna" and question.metadata.message_type == SHARD and not failed:
            failed.append(owner)
            return Message(Error(3, "node unavailable"), reply_to=question)
        return answer

    federation.faults.mutate = fail_once
    assert receive(federation) == ["anna", "bert"]
    assert_arrived(federation, "anna")
    assert [line["reason"] for line in audit(federation.state) if line["event"] == "no answer"] == [
        "error 3: node unavailable"
    ]


def test_an_owner_that_was_restarted_has_forgotten_its_questions(
    make_federation: MakeFederation, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both shards it was asked for are lost with it, and Flower would never say so."""
    monkeypatch.setattr(conversation, "_LOST_CHECK_S", 0.0)
    federation = make_federation({"anna": ((4, 4, 4), (4,))}, deadline_s=10.0, **IMAGES)
    lost = []

    def restart(owner: str, question: Message) -> bool:
        if question.metadata.message_type != SHARD or len(lost) == 2:
            return False
        lost.append(owner)
        if len(lost) == 2:
            # It joins again a moment later.
            threading.Timer(0.1, join_again).start()
        return True

    def join_again() -> None:
        with federation.state.changing_owners() as owners:
            again = owners["anna"].enrolled.model_copy(update={"at": now_text()})
            owners["anna"] = owners["anna"].model_copy(update={"enrolled": again})

    federation.faults.drop = restart
    assert receive(federation) == ["anna"]
    assert_arrived(federation, "anna")
    reasons = {line["reason"] for line in audit(federation.state) if line["event"] == "no answer"}
    assert reasons == {"the owner joined again and forgot the question"}


@pytest.mark.parametrize("kind", [MANIFEST, SHARD])
def test_a_question_that_flower_does_not_take_is_asked_again(make_federation: MakeFederation, kind: str) -> None:
    federation = make_federation(deadline_s=5.0, **IMAGES)
    refused = []

    def refuse_once(owner: str, question: Message) -> bool:
        if owner == "anna" and question.metadata.message_type == kind and not refused:
            refused.append(owner)
            return True
        return False

    federation.faults.refuse = refuse_once
    assert receive(federation) == ["anna", "bert"]
    assert refused == ["anna"]


def test_an_answer_from_another_node_is_no_answer(make_federation: MakeFederation, audit: Audit) -> None:
    federation = make_federation(quorum=1, deadline_s=0.5, **IMAGES)

    def forge(owner: str, question: Message, answer: Message) -> Message:
        if owner == "anna":
            answer.metadata.__dict__["_src_node_id"] = 101  # bert's
        return answer

    federation.faults.mutate = forge
    assert receive(federation) == ["bert"]
    reasons = {line["reason"] for line in audit(federation.state) if line["event"] == "no answer"}
    assert reasons == {"the answer came from another node"}


def test_memory_stays_bounded(make_federation: MakeFederation) -> None:
    """No owner is asked for more than two shards at once."""
    federation = make_federation({"anna": ((3, 3, 3), (3,))}, **IMAGES)
    open_questions, most = 0, 0

    def count(_owner: str, question: Message) -> float:
        nonlocal open_questions, most
        if question.metadata.message_type == SHARD:
            open_questions += 1
            most = max(most, open_questions)
        return 0.05

    pull = federation.grid.pull_messages

    def pulled(message_ids: Any) -> list[Message]:
        nonlocal open_questions
        answers = list(pull(message_ids))
        open_questions -= sum(one.metadata.message_type == SHARD for one in answers)
        return answers

    federation.faults.delay_s = count
    federation.grid.pull_messages = pulled
    receive(federation)
    assert most == 2


def test_an_owner_that_is_away_is_not_asked_for_images_that_are_complete(make_federation: MakeFederation) -> None:
    federation = make_federation(**IMAGES)
    receive(federation)
    federation.grid.asked.clear()
    federation.faults.offline.add("bert")
    progress: list[tuple[int, int]] = []
    assert receive(federation, progress) == ["anna", "bert"]
    assert asked(federation, MANIFEST, "bert") == 0
    assert progress[-1] == (40, 40)


def test_an_owner_that_falls_silent_after_it_delivered_is_kept(make_federation: MakeFederation, audit: Audit) -> None:
    """Flower takes an owner that is gone for one that is online for a minute."""
    federation = make_federation(quorum=1, deadline_s=0.3, **IMAGES)
    receive(federation)
    federation.faults.drop = lambda owner, _question: owner == "bert"
    assert receive(federation) == ["anna", "bert"]
    assert [line["owner"] for line in audit(federation.state) if line["event"] == "complete already"] == ["bert"]


@pytest.mark.parametrize("how", ["damaged", "announced anew", "announced one more", "half"])
def test_an_owner_that_is_away_is_left_out_where_its_images_are_not_complete(
    make_federation: MakeFederation, how: str
) -> None:
    federation = make_federation(quorum=1, deadline_s=0.3, **IMAGES)
    if how == "half":
        federation.faults.drop = lambda owner, question: (
            owner == "anna" and question.metadata.message_type == SHARD and asked(federation, SHARD, "anna") > 1
        )
    receive(federation)
    store = ShardStore(federation.state.store("anna"))
    if how == "damaged":
        flip(store.path(Split.TRAIN, 0))
    elif how.startswith("announced"):
        # One more makes as many shards as before.
        images = 99 if how == "announced anew" else federation.enrolled["anna"].train_images + 1
        federation.enrolled["anna"] = federation.enrolled["anna"].model_copy(update={"train_images": images})
    federation.faults.drop = lambda _owner, _question: False
    for owner in federation.enrolled:
        federation.conversation.forget(owner)
    federation.faults.offline.add("anna")
    assert receive(federation) == ["bert"]
