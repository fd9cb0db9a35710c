"""From the options of 'coordinator start' to the federation's settings, and again at a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.plan import agree, make_plan, split_address
from coordinator.state import StateFolder
from ppfed.ciphers.spec import Scope
from ppfed.errors import UsageError
from ppfed.federation import Exchange

NEEDED: dict[str, Any] = {"exchange": "updates", "owners": 3, "classes": "cat,dog", "size": "24x32"}
# Every option, with a value that is not the default.
OPTIONS: dict[str, Any] = {
    **NEEDED,
    "name": "zoo",
    "channels": 1,
    "scope": "fixed",
    "colour_shuffle": False,
    "fingerprint": "0123456789abcdef",
    "rounds": 7,
    "local_epochs": 2,
    "batch_size": 64,
    "learning_rate": 0.3,
    "schedule": "paper",
    "adaptation": False,
    "base_maps": 16,
    "vertical_flip": True,
    "horizontal_flip": False,
    "seed": 4,
    "quorum": 3,
    "deadline_s": 30.0,
    "address": "gpu.example.org:9443",
    "listen": "0.0.0.0:9000",
}


@pytest.mark.parametrize("option", NEEDED)
def test_a_new_federation_names_what_it_needs(option: str) -> None:
    with pytest.raises(UsageError, match=f"needs --{option}\n") as caught:
        make_plan({name: value for name, value in NEEDED.items() if name != option})
    assert caught.value.hint


def test_all_that_is_needed_is_named_at_once() -> None:
    with pytest.raises(UsageError, match="needs --exchange, --owners, --classes, --size"):
        make_plan({})


def test_options_become_settings() -> None:
    plan = make_plan(OPTIONS)
    settings, training = plan.settings, plan.settings.training
    assert (settings.name, settings.exchange, settings.owners, settings.quorum) == ("zoo", Exchange.UPDATES, 3, 3)
    assert (settings.classes, settings.shape) == (("cat", "dog"), (24, 32, 1))
    assert (settings.cipher.scope, settings.cipher.colour_shuffle) == (Scope.FIXED, False)
    assert (settings.fingerprint, settings.deadline_s) == ("0123456789abcdef", 30.0)
    assert (training.rounds, training.local_epochs, training.batch_size, training.seed) == (7, 2, 64, 4)
    assert (training.learning_rate, training.schedule, training.base_maps) == (0.3, "paper", 16)
    assert (training.adaptation, training.vertical_flip, training.horizontal_flip) == ((), True, False)
    assert (plan.address, plan.listen) == ("gpu.example.org:9443", "0.0.0.0:9000")


@pytest.mark.parametrize(("owners", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (10, 6)])
def test_the_quorum_is_more_than_half_unless_it_is_given(owners: int, quorum: int) -> None:
    assert make_plan({**NEEDED, "owners": owners}).settings.quorum == quorum
    assert make_plan({**NEEDED, "owners": owners, "quorum": 1}).settings.quorum == 1


@pytest.mark.parametrize(
    ("address", "listen"),
    [
        (None, "127.0.0.1:9443"),
        ("localhost:8000", "127.0.0.1:8000"),
        ("127.0.0.1:8000", "127.0.0.1:8000"),
        ("[::1]:8000", "[::1]:8000"),
        ("[2001:db8::1]:8000", "[::]:8000"),
        ("gpu.example.org:8000", "0.0.0.0:8000"),
        ("192.0.2.1:8000", "0.0.0.0:8000"),
    ],
)
def test_only_a_federation_that_is_not_local_listens_on_all_interfaces(address: str | None, listen: str) -> None:
    assert make_plan(NEEDED if address is None else {**NEEDED, "address": address}).listen == listen


@pytest.mark.parametrize(
    "change",
    [
        {"classes": "cat"},
        {"classes": "cat,cat"},
        {"classes": "1"},
        {"size": "large"},
        {"size": "0"},
        {"owners": 0},
        {"quorum": 4},
        {"exchange": "pixels"},
        {"exchange": "images", "local_epochs": 2},
        {"channels": 2},
        {"scope": "none"},
        {"fingerprint": "abc"},
        {"deadline_s": 0.0},
        {"name": "../zoo"},
        {"rounds": 0},
        {"schedule": "cosine"},
        {"address": "gpu.example.org"},
        {"address": "gpu.example.org:0"},
        {"address": "gpu.example.org:99999"},
        {"address": ":9443"},
        {"listen": "9443"},
    ],
)
def test_options_that_make_no_sense_are_refused_with_a_hint(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan({**NEEDED, **change})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("address", "expected"),
    [("a.b:1", ("a.b", 1)), ("[::1]:9443", ("::1", 9443)), ("192.0.2.1:65535", ("192.0.2.1", 65535))],
)
def test_addresses_are_split(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("options", [NEEDED, OPTIONS])
def test_a_restart_goes_on_with_the_same_settings(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = StateFolder(tmp_path / "state")
    agree(folder, options)
    plan = folder.plan()
    assert plan == make_plan(options)
    agree(folder, {})
    agree(folder, options)
    for name, value in options.items():
        agree(folder, {name: value})
    assert folder.plan() == plan


CHANGED = {
    **{name: value for name, value in OPTIONS.items() if name not in NEEDED},
    "exchange": "images",
    "owners": 4,
    "classes": "dog,cat",
    "size": "32x24",
}


@pytest.mark.parametrize("option", CHANGED)
def test_a_contradiction_at_a_restart_is_refused(tmp_path: Path, option: str) -> None:
    folder = StateFolder(tmp_path / "state")
    agree(folder, NEEDED)
    before = folder.plan()
    with pytest.raises(UsageError, match=f"other settings than {option}"):
        agree(folder, {option: CHANGED[option]})
    assert folder.plan() == before


def test_every_option_is_tested() -> None:
    import inspect

    from coordinator.cli import start

    names = {"shuffle": "colour_shuffle", "deadline": "deadline_s"}
    options = {names.get(name, name) for name in inspect.signature(start).parameters}
    assert options - set(OPTIONS) <= {"state", "device", "detach"}
    assert set(OPTIONS) <= options
