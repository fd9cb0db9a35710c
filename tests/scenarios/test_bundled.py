"""Every kind of arm of every bundled scenario runs at scale ``smoke``, from the command to the report."""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

import pytest

from ppfed.ciphers.spec import Scope
from ppfed.leakage.record import AttackName
from scenarios import results
from scenarios.declaration import Arm, Mode, Scale, Scenario, bundled


def kind(arm: Arm, scenario: Scenario) -> Arm:
    """Return what two arms have in common that run the same code.

    They may differ in the number of owners, how images are shared out, the size of images, the passes, what is
    published, or the scope of a cipher that is not attacked.
    """
    apart = {"name": "-", "group": "", "size": None, "budget_part": 1.0, "published": None}
    apart |= {"owners": min(arm.owners, 2), "partition": "iid"}
    if not scenario.smoke.attack:
        apart["attacks"] = ()
    if not (arm.attacks and scenario.smoke.attack):
        apart["scope"] = Scope.IMAGE
    return arm.model_copy(update=apart)


def chosen_arms() -> dict[str, list[Arm]]:
    """Choose the first arm of each kind, whichever scenario it is of; and of each scenario one at least.

    An arm that is attacked trains as one that is not: those come first.
    """
    scenarios = sorted(bundled().items(), key=lambda one: -sum(bool(kind(arm, one[1]).attacks) for arm in one[1].arms))
    seen: set[str] = set()
    chosen = {}
    for name, scenario in scenarios:
        chosen[name] = []
        for arm in scenario.arms:
            whole = kind(arm, scenario)
            unattacked = whole.model_copy(update={"attacks": (), "scope": Scope.IMAGE})
            if repr(whole) not in seen:
                chosen[name].append(arm)
            seen |= {repr(whole), repr(unattacked)}
        chosen[name] = chosen[name] or list(scenario.arms[:1])
    return chosen


CHOSEN = chosen_arms()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", list(CHOSEN))
def test_a_bundled_scenario_runs(name: str, tmp_path: Path) -> None:
    scenario = bundled()[name]
    arms = CHOSEN[name]
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from ppfed.cli.main import main; main()"),
            *("scenario", "run", name, "--out", str(tmp_path / "run"), "--device", "cpu"),
            # A second process pays where there is much to do.
            *("--jobs", "2" if len(arms) > 10 else "1"),
            *(option for arm in arms for option in ("--arm", arm.name)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    found = {one.arm: one for one in results.read(tmp_path / "run")}
    assert set(found) == {arm.name for arm in arms}
    for arm in arms:
        one = found[arm.name]
        # Each arm makes all passes over all images, and is measured on all that are held out.
        assert one.curve[-1].passes == arm.epochs(scenario.smoke)
        assert sum(one.owner_images) == scenario.smoke.images
        assert one.held_out_images == scenario.smoke.held_out
        assert (one.bytes_to_coordinator > 0) is (arm.mode is not Mode.ALONE)
        assert one.membership is not None
        assert (one.leakage is not None) is (scenario.smoke.attack and bool(arm.attacks))
        if one.leakage is not None:
            # An attack may be run in several settings.
            expected = set(arm.wanted_attacks)
            if 4 * scenario.smoke.base_maps < 16 * one.leakage.channels:
                # No such weights are known for so narrow a network (docs/leakage.md).
                expected.discard(AttackName.CHOSEN_WEIGHTS)
            if arm.mode in (Mode.UPDATES, Mode.GRADIENTS) and AttackName.LEARNED_EDGES in expected:
                # They restore what the other attacks get.
                expected.discard(AttackName.LEARNED_EDGES)
                assert any("then by learned edges" in attack.setting for attack in one.leakage.attacks)
            assert expected == {attack.attack for attack in one.leakage.attacks}
        assert (one.bytes_from_coordinator > 0) is (arm.mode not in {Mode.CENTRALIZED, Mode.ALONE})

    page = html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "These numbers say that everything runs, and nothing else." in page
    assert all(arm.group in page for arm in arms)
    assert ("Accuracy against leakage" in page) is scenario.is_attacked(Scale.SMOKE)
