"""The engine: results survive whatever happens to the processes, and are never mixed."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppfed.errors import DataError, UsageError
from scenarios import results
from scenarios.attacking import load_pictures
from scenarios.declaration import Mode, Scale, Scenario, load
from scenarios.results import Result, RunRecord
from scenarios.run import RunFolder, Runner, Watcher, code_digest, jobs_of, open_run, require_compilable

KILLS = int(os.environ.get("PPFED_TEST_KILLS", "4"))
"""How often the run is killed; 'PPFED_TEST_KILLS=20' is the full proof."""

PPFED = (sys.executable, "-c", "from ppfed.cli.main import main; main()")
BUDGET = (
    "size = 8\nepochs = 4\nbase_maps = 2\nbatch_size = 16\nimages = 100\nheld_out = 50\n"
    "targets = 20\nattacker_images = 50\n"
)
TINY = (
    'title = "t"\nquestion = "q"\n'
    + "".join(f"[{scale}]\n{BUDGET}" for scale in Scale)
    + """
[[arms]]
name = "plain"
cipher = "plain"

[[arms]]
name = "fresh"
colour_shuffle = true
attacks = ["fold", "collusion"]

[[arms]]
name = "client"
scope = "fixed"
augmentation = "client"

[[arms]]
name = "alone"
mode = "alone"
owners = 2
"""
)


@pytest.fixture
def scenario_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tiny(scenario_file: Path) -> Scenario:
    return load(str(scenario_file))


def begin(
    scenario: Scenario, folder: Path, scale: Scale = Scale.SMOKE, data: Path | None = None, *, compiled: bool = False
) -> RunRecord:
    return open_run(scenario, scale, data, folder, "cpu", 2, lambda _count: None, compiled=compiled)


def run(scenario: Scenario, folder: Path, watcher: Watcher | None = None) -> list[str]:
    record = begin(scenario, folder)
    failed = Runner(RunFolder(folder), "cpu", 2, watcher or Watcher()).run(jobs_of(record, None))
    return [job.slug for job in failed]


def comparable(folder: Path) -> dict[tuple[str, int], Result]:
    """Return all results but for the time they took."""
    found = {}
    for one in results.read(folder):
        curve = tuple(row.model_copy(update={"seconds": 0.0}) for row in one.curve)
        record = one.leakage
        if record is not None:
            attacks = tuple(attack.model_copy(update={"seconds": 0.0}) for attack in record.attacks)
            record = record.model_copy(update={"attacks": attacks})
        assert (one.arm, one.seed) not in found
        found[one.arm, one.seed] = one.model_copy(update={"seconds": 0.0, "curve": curve, "leakage": record})
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.toml").write_text(TINY)
    assert run(load(str(folder / "tiny.toml")), folder / "run") == []
    return folder / "run"


def test_every_arm_has_a_result_and_nothing_else_is_left(undisturbed: Path) -> None:
    found = results.read(undisturbed)
    assert {one.arm for one in found} == {"plain", "fresh", "client", "alone"}
    for one in found:
        assert [row.passes for row in one.curve] == [1, 2, 3, 4]
        assert one.held_out_images == 50
        assert (one.leakage is not None) is (one.arm == "fresh")
        assert one.membership is not None
    pictures = list((undisturbed / "pictures").iterdir())
    assert [path.name for path in pictures] == ["fresh-seed-0.npz"]
    assert stat.S_IMODE(pictures[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(pictures[0].parent.stat().st_mode) == 0o700
    assert not (undisturbed / "images").exists()
    assert not [path for path in (undisturbed / "arms").iterdir() if path.is_dir()]


def test_finished_arms_are_not_run_again(undisturbed: Path, tiny: Scenario) -> None:
    before = (undisturbed / results.RESULTS_FILE).read_bytes()
    started: list[str] = []
    assert run(tiny, undisturbed, Watcher(started=lambda job: started.append(job.slug))) == []
    assert started == []
    assert (undisturbed / results.RESULTS_FILE).read_bytes() == before


def test_compiled_networks_learn_the_same_and_leave_no_code_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether anything can be compiled here is asked by compiling (tests/coordinator/test_machine.py).
    asked: list[tuple[str, Path]] = []
    monkeypatch.setattr("scenarios.run.require_compiler", lambda device, place, _env: asked.append((device, place)))
    # The network that is compiled most quickly, and batches of one size.
    budget = BUDGET.replace("batch_size = 16", "batch_size = 100").replace(
        "epochs = 4", "epochs = 2\nlearning_rate = 0.01"
    )
    arm = '[[arms]]\nname = "a"\nbackbone = "convmixer"\nadaptation = []\n'
    path = tmp_path / "one.toml"
    path.write_text('title = "t"\nquestion = "q"\n' + "".join(f"[{scale}]\n{budget}" for scale in Scale) + arm)
    scenario = load(str(path))
    assert run(scenario, tmp_path / "eager") == []
    folder = RunFolder(tmp_path / "compiled")
    record = begin(scenario, folder.folder, compiled=True)
    assert asked == [("cpu", folder.compiled)]
    made: list[Path] = []
    watcher = Watcher(finished=lambda _job, _result: made.extend(folder.compiled.rglob("*.so")))
    assert Runner(folder, "cpu", 1, watcher).run(jobs_of(record, None)) == []
    assert made
    assert not folder.compiled.exists()
    (found,), (eager,) = results.read(folder.folder), results.read(tmp_path / "eager")
    assert [row.train_loss for row in found.curve] == pytest.approx([row.train_loss for row in eager.curve], rel=1e-5)
    with pytest.raises(UsageError, match="compilation differ"):
        begin(scenario, folder.folder)


@pytest.mark.parametrize(
    ("change", "complaint"), [({"mode": Mode.POOLED}, "mode 'pooled'"), ({"first_crop": 0.5}, "crops that grow")]
)
def test_what_cannot_be_compiled_is_named(tiny: Scenario, change: dict[str, object], complaint: str) -> None:
    require_compilable(tiny.arms)
    with pytest.raises(UsageError, match=complaint):
        require_compilable([*tiny.arms, tiny.arms[1].model_copy(update=change)])


def test_more_seeds_are_added_to_what_is_there(tiny: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    record = begin(tiny, folder)
    jobs = jobs_of(record, 2, tiny.choose(["plain"]))
    assert [(job.arm, job.seed) for job in jobs] == [("plain", 0), ("plain", 1)]
    runner = Runner(RunFolder(folder), "cpu", 2, Watcher())
    assert runner.run(jobs[:1]) == []
    first = results.read(folder)
    assert begin(tiny, folder) == record
    assert runner.run(jobs) == []
    both = results.read(folder)
    assert [one.seed for one in both] == [0, 1]
    assert both[:1] == first
    assert both[0].curve[0].train_loss != both[1].curve[0].train_loss


def test_chosen_arms_are_run_and_the_rest_is_added_later(scenario_file: Path, tmp_path: Path) -> None:
    command = [*PPFED, "scenario", "run", str(scenario_file), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run([*command, "--arm", "plane"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no arm of 'tiny' is named 'plane'" in done.stderr
    # No copy of anybody's images was made for nothing.
    assert not (tmp_path / "run").exists()

    subprocess.run([*command, "--arm", "pl*", "--arm", "alone"], capture_output=True, check=True)
    assert [one.arm for one in results.read(tmp_path / "run")] == ["plain", "alone"]
    assert "Arms without a result" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    subprocess.run(command, capture_output=True, check=True)
    assert {one.arm for one in results.read(tmp_path / "run")} == {"plain", "fresh", "client", "alone"}
    assert "Arms without a result" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_results(
    undisturbed: Path, scenario_file: Path, tmp_path: Path
) -> None:
    randomness = random.Random(1)
    killed, runs = 0, 0
    while killed < KILLS:
        runs += 1
        folder = tmp_path / f"run-{runs}"
        command = [*PPFED, "scenario", "run", str(scenario_file), "--jobs", "2", "--out", str(folder)]
        while killed < KILLS and len(results.read(folder)) < len(results.read(undisturbed)):
            runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # From before the images are read to the last arm.
            time.sleep(randomness.uniform(0.5, 10.0))
            killed += runner.poll() is None
            runner.kill()
            runner.wait()
            if killed % 3 == 2 and (folder / results.RESULTS_FILE).exists():
                # As if the power had failed in the middle of a line.
                with (folder / results.RESULTS_FILE).open("a") as file:
                    file.write('{"arm": "pla')
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert comparable(folder) == comparable(undisturbed)
        # The pictures of an attack that was killed after it are made, or kept, too.
        assert load_pictures(folder / "pictures" / "fresh-seed-0.npz").keys() >= {"original", "ciphertext", "fold"}
    assert killed == KILLS


def processes_of(folder: Path) -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"scenarios.worker {folder}"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_arms_do_not_outlive_their_runner(how: signal.Signals, scenario_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runner = subprocess.Popen(
        [*PPFED, "scenario", "run", str(scenario_file), "--out", str(folder), "--device", "cpu"],
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: bool(processes_of(folder)))
    runner.send_signal(how)
    _, errors = runner.communicate(timeout=60)
    wait_until(lambda: not processes_of(folder), 20.0)
    if how is signal.SIGINT:
        assert runner.returncode == 130
        assert b"goes on from here" in errors
        assert b"Traceback" not in errors


def test_results_of_other_settings_data_or_code_are_refused(
    undisturbed: Path, tiny: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}
    first = tiny.arms[0].model_copy(update={"label_smoothing": 0.1})
    changed = tiny.model_copy(update={"arms": (first, *tiny.arms[1:])})
    with pytest.raises(UsageError, match="settings differ"):
        begin(changed, undisturbed)
    with pytest.raises(UsageError, match="settings, data differ"):
        begin(tiny, undisturbed, Scale.SMALL, write_images(tmp_path / "data"))
    with pytest.raises(UsageError, match="data differ"):
        begin(tiny, undisturbed, data=write_images(tmp_path / "data"))
    monkeypatch.setattr("scenarios.run.code_digest", lambda: "0" * 64)
    with pytest.raises(UsageError, match="code differ"):
        begin(tiny, undisturbed)
    assert {path: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()} == before


def write_images(folder: Path) -> Path:
    """Ten classes of 20 images: enough for the tiny scenario, and not the digits."""
    randomness = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for number in range(70):
            pixels = randomness.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


def test_a_folder_that_holds_something_else_is_left_alone(tiny: Scenario, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(UsageError, match="not empty"):
        begin(tiny, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.txt", "tiny.toml"}


@pytest.mark.parametrize(
    ("left", "ours"),
    [
        ([".lock"], True),
        ([".lock", "images/.source.abc"], True),
        ([".lock", "images/source", "images/8x8x3.partial"], True),
        (["images/source", "images/8x8x3.npz", "compiled/a.so", ".run.json.abc"], True),
        (["images/source", "thesis.txt"], False),
        (["images/holiday.jpg"], False),
        (["images"], False),
        (["compiled/a.so"], False),
    ],
)
def test_what_a_run_leaves_that_is_killed_before_it_has_a_record_is_gone_on_with(
    tiny: Scenario, tmp_path: Path, left: list[str], *, ours: bool
) -> None:
    for name in left:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    if ours:
        assert begin(tiny, tmp_path / "run").scenario == tiny
    else:
        with pytest.raises(UsageError, match="not empty"):
            begin(tiny, tmp_path / "run")
        assert all((tmp_path / "run" / name).exists() for name in left)


def test_scales_beyond_smoke_want_images(tiny: Scenario, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs images"):
        begin(tiny, tmp_path / "run", Scale.SMALL)


def test_two_runners_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(UsageError, match="at work"), RunFolder(tmp_path / "run").locked():
        pass


def test_an_arm_that_fails_is_named_and_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    # Blocks of 4 pixels do not fit images of 6.
    path.write_text(TINY.replace("size = 8", "size = 6").replace('name = "client"', 'name = "le"\ncipher = "le-v1"'))
    reasons: list[str] = []
    watcher = Watcher(failed=lambda _job, reason: reasons.append(reason))
    assert run(load(str(path)), tmp_path / "run", watcher) == ["le"]
    assert len(reasons) == 1
    assert "4" in reasons[0]
    assert {one.arm for one in results.read(tmp_path / "run")} == {"plain", "fresh", "alone"}
    # What a second try needs is kept.
    assert (tmp_path / "run" / "images").exists()


def test_a_line_that_was_cut_off_is_no_result(undisturbed: Path, tmp_path: Path) -> None:
    whole = (undisturbed / results.RESULTS_FILE).read_bytes()
    copy = tmp_path / results.RESULTS_FILE
    copy.write_bytes(whole[:-20])
    assert results.read(tmp_path) == results.read(undisturbed)[:-1]
    results.mend(tmp_path)
    results.append(tmp_path, results.read(undisturbed)[-1])
    assert copy.read_bytes() == whole


def test_damage_elsewhere_is_no_cut(undisturbed: Path, tmp_path: Path) -> None:
    lines = (undisturbed / results.RESULTS_FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / results.RESULTS_FILE).write_bytes(b'{"arm": 3}\n' + lines[1])
    with pytest.raises(DataError, match="damaged"):
        results.read(tmp_path)


def test_the_code_digest_sees_what_trains_and_not_how_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    (package / "report").mkdir(parents=True)
    for name in ("__init__.py", "train.py", "display.py", "report/__init__.py"):
        (package / name).write_text("")
    monkeypatch.setattr("scenarios.run._PACKAGES", ("package",))
    monkeypatch.syspath_prepend(str(tmp_path))
    first = code_digest()
    (package / "report" / "__init__.py").write_text("colour = 'red'")
    (package / "display.py").write_text("colour = 'red'")
    assert code_digest() == first
    (package / "train.py").write_text("rate = 1")
    assert code_digest() != first


def test_the_command_ends_with_a_report_and_names_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("size = 8", "size = 6").replace('name = "client"', 'name = "le"\ncipher = "le-v1"'))
    command = [*PPFED, "scenario", "run", str(path), "--out", str(tmp_path / "run"), "--jobs", "2", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1 of 4 runs failed: le" in done.stderr
    assert "Traceback" not in done.stderr
    assert "/run/report.html" in done.stdout
    assert (tmp_path / "run" / "report.md").read_text() in done.stdout

    again = subprocess.run([*PPFED, "scenario", "report", str(tmp_path / "run")], capture_output=True, check=True)
    assert again.stdout.split() == [str(tmp_path / "run" / name).encode() for name in ("report.html", "report.md")]


def test_a_folder_named_scenarios_where_the_user_stands_is_not_taken_for_ours(tmp_path: Path) -> None:
    mine = tmp_path / "scenarios"
    mine.mkdir()
    (mine / "mine.toml").write_text(TINY[: TINY.index('[[arms]]\nname = "fresh"')])
    (mine / "__init__.py").touch()
    (mine / "worker.py").write_text("raise SystemExit('not this one')")
    source = str(Path(__file__).parents[2])
    ours = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    start = (sys.executable, "-P", *PPFED[1:])
    subprocess.run(
        [*start, "scenario", "run", "scenarios/mine.toml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ours},
        check=True,
    )
    assert len(results.read(tmp_path / "runs" / "mine-smoke")) == 1


def test_an_unknown_scale_is_answered_with_the_known_ones(scenario_file: Path) -> None:
    done = subprocess.run(
        [*PPFED, "scenario", "run", str(scenario_file), "--scale", "huge"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "smoke, small or paper" in done.stderr
