"""Scenario files: what they resolve to, and how they are refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from ppfed.attacks.alone import XOR_CONSTANTS
from ppfed.ciphers.registry import cipher_names, make_cipher
from ppfed.ciphers.spec import Scope
from ppfed.errors import UsageError
from ppfed.keys.master import MasterKey
from ppfed.leakage.audit import applicable
from ppfed.leakage.record import AttackName
from ppfed.networks.classifier import build_network
from scenarios.arms import ArmRun
from scenarios.declaration import Arm, Mode, Partition, Scale, Scenario, bundled, load, parse
from scenarios.material import Material, digits

BUDGETS = "\n".join(f"[{scale}]\nsize = 8\nepochs = 2\nbase_maps = 4" for scale in Scale)
HEAD = 'title = "t"\nquestion = "q"\n'


def declared(arms: str) -> Scenario:
    return parse("mine", f"{HEAD}{BUDGETS}\n{arms}")


def test_lists_become_arms() -> None:
    scenario = declared(
        '[[arms]]\nname = "u"\nmode = "updates"\nowners = [2, 5]\npartition = ["iid", "dirichlet-0.3"]\n'
        '[[arms]]\nname = "c"\n'
    )
    found = [(arm.name, arm.owners, arm.partition) for arm in scenario.arms]
    assert found == [
        ("u, 2 owners, iid", 2, "iid"),
        ("u, 2 owners, dirichlet-0.3", 2, "dirichlet-0.3"),
        ("u, 5 owners, iid", 5, "iid"),
        ("u, 5 owners, dirichlet-0.3", 5, "dirichlet-0.3"),
        ("c", 1, "iid"),
    ]


def test_sizes_become_arms_in_groups_of_their_own() -> None:
    scenario = declared('[[arms]]\nname = "a"\nsize = [16, 32]\n[[arms]]\nname = "b"\ngroup = "g"\nsize = [16, 32]\n')
    found = [(arm.name, arm.size, arm.group) for arm in scenario.arms]
    assert found == [
        ("a, 16 pixels", 16, "16 pixels"),
        ("a, 32 pixels", 32, "32 pixels"),
        ("b, 16 pixels", 16, "g"),
        ("b, 32 pixels", 32, "g"),
    ]


def test_parts_of_the_budget_become_arms_with_fewer_passes() -> None:
    scenario = declared('[[arms]]\nname = "a"\nbudget_part = [0.25, 0.5, 1.0]\n')
    budget = scenario.smoke.model_copy(update={"epochs": 10})
    found = [(arm.name, arm.epochs(budget), arm.epochs(scenario.smoke)) for arm in scenario.arms]
    # A quarter of ten passes is two, and of two it is one: an arm trains.
    assert found == [
        ("a, 25% of the passes", 2, 1),
        ("a, 50% of the passes", 5, 1),
        ("a, 100% of the passes", 10, 2),
    ]


def test_all_attacks_are_those_that_fit() -> None:
    encrypted, plain, sent = declared(
        '[[arms]]\nname = "e"\nattacks = ["all"]\n'
        '[[arms]]\nname = "p"\ncipher = "plain"\nattacks = ["all"]\n'
        '[[arms]]\nname = "s"\nmode = "gradients"\nowners = 2\nattacks = ["all"]\n'
    ).arms
    assert encrypted.spec is not None
    assert encrypted.wanted_attacks == applicable(encrypted.spec, 3)
    assert AttackName.FOLD in encrypted.wanted_attacks
    assert plain.wanted_attacks == ()
    assert sent.wanted_attacks == (AttackName.LEARNED_EDGES, AttackName.CHOSEN_WEIGHTS, AttackName.GRADIENTS)
    assert declared('[[arms]]\nname = "n"\n').arms[0].wanted_attacks == ()


def test_named_attacks_are_run_in_the_order_of_cards() -> None:
    (arm,) = declared('[[arms]]\nname = "a"\nattacks = ["collusion", "fold"]\n').arms
    assert arm.wanted_attacks == (AttackName.FOLD, AttackName.COLLUSION)


def test_a_scale_says_what_attacks_spend() -> None:
    scenario = declared('[[arms]]\nname = "a"\n')
    assert [scenario.budget(scale).attack_preset for scale in Scale] == ["quick", "cpu", "gpu"]
    chosen = scenario.model_copy(update={"paper": scenario.paper.model_copy(update={"attack_preset": "cpu"})})
    assert chosen.budget(Scale.PAPER).attack_preset == "cpu"


@pytest.mark.parametrize("text", ["iid", "dirichlet-0.3", "dirichlet-100", "shards-2"])
def test_a_partition_is_written_as_it_is_read(text: str) -> None:
    assert str(Partition.parse(text)) == text


@pytest.mark.parametrize("text", ["", "iid-3", "dirichlet", "dirichlet--1", "shards-0", "shards-x", "random"])
def test_what_is_no_partition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"partition|greater|could not convert|invalid literal"):
        Partition.parse(text)


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        ("", "arms"),
        ('[[arms]]\nname = "a"\n[[arms]]\nname = "A!"\n', "named 'a'"),
        ('[[arms]]\nname = "a"\nowners = 2\n', "one owner"),
        ('[[arms]]\nname = "a"\nmode = "pooled"\nwrong_key_owners = 2\n', "more owners"),
        ('[[arms]]\nname = "a"\ncipher = "plain"\nwrong_key_owners = 1\n', "no key"),
        ('[[arms]]\nname = "a"\nlocal_epochs = 2\n', "local epochs"),
        ('[[arms]]\nname = "a"\nmode = "updates"\nlocal_epochs = 3\n', "does not divide"),
        ('[[arms]]\nname = "a"\nmode = "pooled"\naugmentation = "client"\n', "centralized arms only"),
        ('[[arms]]\nname = "a"\nstrategy = "fedadam"\n', "mode 'updates'"),
        ('[[arms]]\nname = "a"\nupdate_format = "bfloat16"\n', "modes 'updates' and 'gradients'"),
        ('[[arms]]\nname = "a"\nbatch_norm = "shared"\n', "mode 'gradients'"),
        ('[[arms]]\nname = "a"\nmode = "updates"\naverage_passes = 1\n', "averaged over passes in modes"),
        ('[[arms]]\nname = "a"\nmode = "gradients"\nfirst_crop = 0.5\n', "do not belong to mode 'gradients'"),
        ('[[arms]]\nname = "a"\naugmentation = "client"\nalternate_flip = true\n', "after encryption"),
        ('[[arms]]\nname = "a"\nadaptation_kind = "block"\nfirst_crop = 0.5\n', "images of any size"),
        ('[[arms]]\nname = "a"\nmode = "updates"\nlocal_epochs = 2\nbudget_part = 0.5\n', "does not divide"),
        ('[[arms]]\nname = "a"\nbudget_part = [0.5, 1.5]\n', "budget_part"),
        ('[[arms]]\nname = "a"\ncolour = "red"\n', "colour"),
        ('[[arms]]\nname = "a"\npartition = "random"\n', "no partition"),
        ('[[arms]]\nname = "a"\nattacks = ["guessing"]\n', "attacks"),
        ('[[arms]]\nname = "a"\nattacks = ["fold", "fold"]\n', "once each"),
        ('[[arms]]\nname = "a"\nattacks = ["all", "fold"]\n', "'all' alone"),
        ('[[arms]]\nname = "a"\nattacks = ["gradients"]\n', "does not fit"),
        ('[[arms]]\nname = "a"\ncipher = "plain"\nattacks = ["fold"]\n', "none but 'all'"),
        ('[[arms]]\nname = "a"\nmode = "updates"\nattacks = ["fold"]\n', "there is learned-edges, chosen-weights"),
        ('[[arms]]\nname = "a"\nmode = "alone"\nattacks = ["all"]\n', "nobody is sent"),
        ('[[arms]]\nname = "a"\nmode = "pooled"\ncipher = "pixel-block-mixing"\n', "mixing is compared"),
        ('[[arms]]\nname = "a"\naugmentation = "client"\ncipher = "pixel-block-mixing"\n', "mixing is compared"),
        ('[[arms]]\nname = "a"\nchannels = 1\ncolour_shuffle = true\n', "no colours to shuffle"),
        ('[[arms]]\nname = "a"\nchannels = 2\n', "channels"),
        ("[[arms]\n", "not TOML"),
        ("arms = 3\n", "malformed"),
    ],
)
def test_a_malformed_scenario_is_refused_with_its_reason(arms: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        parse("mine", f"{HEAD}{arms}" if arms.startswith("arms") else f"{HEAD}{BUDGETS}\n{arms}")
    assert "docs/scenarios.md" in caught.value.hint


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(str(tmp_path / "nothing.toml"))
    assert all(name in caught.value.hint for name in bundled())


def test_a_file_is_read_like_a_bundled_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'{HEAD}{BUDGETS}\n[[arms]]\nname = "c"\n')
    assert load(str(path)) == declared('[[arms]]\nname = "c"\n')


def test_the_digest_is_of_what_decides_numbers() -> None:
    base = '[[arms]]\nname = "c"\n'
    first = declared(base)
    assert first.digest(Scale.SMOKE) == parse("mine", f"{HEAD}notes = 'n'\n{BUDGETS}\n{base}").digest(Scale.SMOKE)
    assert first.digest(Scale.SMOKE) == declared(base).digest(Scale.SMOKE)
    assert first.digest(Scale.SMOKE) != first.digest(Scale.SMALL)
    assert first.digest(Scale.SMOKE) != declared(base + "colour_shuffle = true\n").digest(Scale.SMOKE)


def test_the_bundled_scenarios_are_the_promised_ones() -> None:
    assert set(bundled()) == {
        "paper-table2",
        "paper-table3",
        "federated",
        "formats",
        "gradients",
        "wrong-key",
        "frontier",
        "options",
        "leakage",
        "fast",
        "precision",
    }


def arms() -> list[tuple[str, Arm]]:
    return [(name, arm) for name, scenario in bundled().items() for arm in scenario.arms]


@cache
def few_digits(shape: tuple[int, int, int]) -> Material:
    return digits(shape[0], 20, 10, channels=shape[2])


@pytest.mark.parametrize(("name", "arm"), arms(), ids=lambda value: value if isinstance(value, str) else value.slug)
def test_every_bundled_arm_has_a_cipher_a_network_and_sound_settings(name: str, arm: Arm, tmp_path: Path) -> None:
    scenario = bundled()[name]
    for scale in Scale:
        budget = scenario.budget(scale)
        material = few_digits(arm.shape(budget))
        settings = ArmRun(arm, budget, material, 0, tmp_path, None, None).settings()  # type: ignore[arg-type]
        assert settings.training.epochs == arm.epochs(budget)
        assert settings.training.base_maps == budget.base_maps
        if scale is Scale.SMOKE:
            build_network(settings.network_config(), 0)
            if arm.spec is not None:
                assert arm.spec.name in cipher_names()
                make_cipher(arm.spec, MasterKey.generate()).encrypt(material.train)


def test_leakage_is_measured_of_every_cipher_in_both_scopes() -> None:
    attacked = {(arm.cipher, arm.scope) for arm in bundled()["leakage"].arms if arm.attacks and arm.spec is not None}
    assert {(name, scope) for name in cipher_names() for scope in Scope} <= attacked
    # With one key stream for all, NP twice is NP with another constant: the same attacks read it off.
    frontier = bundled()["frontier"].arms
    every = {(arm.cipher, arm.size) for arm in frontier if arm.attacks and arm.channels == 3}
    assert every >= {(name, side) for name in cipher_names() for side in (16, 32, 48)}
    # Fresh NP masks fall to a solver, and further to the same with learned evidence.
    fresh = [arm for arm in frontier if arm.cipher in XOR_CONSTANTS and arm.scope is Scope.IMAGE]
    assert len(fresh) == 12
    assert all({AttackName.UNFOLD, AttackName.LEARNED_EDGES} <= set(arm.wanted_attacks) for arm in fresh)


def test_the_papers_tables_are_the_papers() -> None:
    """Every number of the paper's tables 2 and 3, with the setting it belongs to."""
    table2 = {arm.name: arm.published.accuracy for arm in bundled()["paper-table2"].arms if arm.published}
    assert sorted(table2.values()) == [56.41, 58.59, 69.03, 82.51, 85.15, 86.16, 86.99, 92.98]
    assert table2["NP, adaptation"] == 86.99
    assert table2["NP + shuffle"] == 82.51
    table3 = {arm.name: arm.published.accuracy for arm in bundled()["paper-table3"].arms if arm.published}
    assert sorted(table3.values()) == [56.41, 85.15, 85.84, 86.99, 90.65, 92.94]
    for scenario in ("paper-table2", "paper-table3"):
        for arm in bundled()[scenario].arms:
            if arm.published is not None:
                assert arm.spec is None or arm.spec.scope == "fixed"
                assert arm.padding == "fill"
                assert not arm.mirrored_views
                assert arm.features == "values"
                assert arm.mode is Mode.CENTRALIZED
        paper = bundled()[scenario].paper
        assert (paper.epochs, paper.batch_size, paper.learning_rate, paper.base_maps) == (300, 128, 0.1, 64)
        assert (paper.schedule, paper.images, paper.held_out) == ("paper", None, None)
