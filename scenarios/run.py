"""Runs a scenario: arms one after another or side by side, each in a process of its own.

Everything lies in one folder::

    run.json        what this run is (``RunRecord``)
    results.jsonl   one line for each finished arm and seed
    arms/           checkpoints and logs of arms at work
    images/         the images, while there is work left
    compiled/       what torch.compile made, while there is work left
    pictures/       of each attacked arm: some images, and what attackers restored of them
    report.html     made at the end, and by 'ppfed scenario report'
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import torch

from coordinator.machine import require_compiler
from ppfed.atomic import write_atomic
from ppfed.cores import cores
from ppfed.errors import UsageError
from ppfed.images.source import files_digest
from ppfed.model_folder import installed_versions
from ppfed.training.loop import pick_device
from scenarios import results
from scenarios.arms import Progress
from scenarios.attacking import PICTURES_FILE
from scenarios.declaration import Arm, Mode, Scale, Scenario
from scenarios.material import DIGITS, Material, digits, read_images
from scenarios.results import Identity, Result, RunRecord

_PACKAGES = ("ppfed", "clients", "coordinator", "scenarios")
_PRESENTATION = {"cli", "display", "report"}
"""Modules and folders that decide how numbers look and not what they are."""

_LOG_TAIL_LINES = 15
_END_S = 20.0


@dataclass(frozen=True)
class Job:
    """An arm under a seed.

    Attributes
    ----------
    arm : str
        The arm's name.
    slug : str
    seed : int
    """

    arm: str
    slug: str
    seed: int


@dataclass
class Watcher:
    """What a runner tells whoever watches; each may be replaced.

    Attributes
    ----------
    started, finished, failed : callable
        Called with the job, and with its result or the reason.
    progressed : callable
        Called with the job and its progress.
    """

    started: Callable[[Job], None] = field(default=lambda _job: None)
    progressed: Callable[[Job, Progress], None] = field(default=lambda _job, _progress: None)
    finished: Callable[[Job, Result], None] = field(default=lambda _job, _result: None)
    failed: Callable[[Job, str], None] = field(default=lambda _job, _reason: None)


class RunFolder:
    """Where things lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def images(self, shape: tuple[int, int, int]) -> Path:
        """Return the file of images of one shape; plain, for this user alone, deleted when all arms are done."""
        return self.folder / "images" / f"{'x'.join(map(str, shape))}.npz"

    @property
    def mark(self) -> Path:
        """File that names the source of the images; its folder is ours."""
        return self.folder / "images" / "source"

    def forget_images(self) -> None:
        """Delete the copies of images; they are made again when they are needed."""
        shutil.rmtree(self.folder / "images", ignore_errors=True)

    @property
    def compiled(self) -> Path:
        """Folder of compiled code; deleted when all arms are done."""
        return self.folder / "compiled"

    def arm(self, slug: str, seed: int) -> Path:
        """Return the folder of checkpoints of an arm at work."""
        return self.folder / "arms" / f"{slug}-seed-{seed}"

    def keep_pictures(self, slug: str, seed: int) -> None:
        """Move what attacks restored from an arm's folder to where reports look for it; the user alone may read it."""
        made = self.arm(slug, seed) / PICTURES_FILE
        if made.exists():
            kept = results.pictures_path(self.folder, slug, seed)
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            made.replace(kept)

    def log(self, slug: str, seed: int) -> Path:
        """Return the file with what an arm's process printed."""
        return results.log_path(self.folder, slug, seed)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second runner out.

        Raises
        ------
        UsageError
            If one is at work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(
                    f"another 'ppfed scenario run' is at work in {self.folder}", hint="Name another folder with --out."
                ) from None
            yield


def open_run(
    scenario: Scenario,
    scale: Scale,
    data: Path | None,
    folder: Path,
    device: str,
    jobs: int,
    progress: Callable[[int], None],
    data_name: str | None = None,
    *,
    compiled: bool = False,
) -> RunRecord:
    """Begin a run in a folder, or go on with the one that is there.

    Parameters
    ----------
    scenario : Scenario
    scale : Scale
    data : Path or None
        Images; None takes scikit-learn's digits, at scale ``smoke`` only.
    folder : Path
    device : str
        As ``pick_device`` takes it.
    jobs : int
        Arms side by side; they share the processor's cores.
    progress : callable
        Called with the number of images read.
    data_name : str or None
        What reports call the data; None takes the name of its folder.
    compiled : bool
        Whether arms train networks that ``torch.compile`` has compiled.

    Raises
    ------
    UsageError
        If the folder holds another run: its results must not be mixed with these; or if nothing can be compiled here.
    DataError
        If the images cannot be used.
    """
    if data is None and scale is not Scale.SMOKE:
        raise UsageError(
            f"scale '{scale}' needs images", hint="Name a class folder, a CIFAR-10 root or an .npz file with --data."
        )
    known = RunRecord.read(folder)
    if known is None and folder.exists() and not _is_ours(RunFolder(folder)):
        raise UsageError(f"{folder} is not empty, and no run of a scenario", hint="Name another folder with --out.")
    materials = _materials(scenario, scale, data, RunFolder(folder), progress)
    first = next(iter(materials.values()))
    content = hashlib.sha256("".join(materials[shape].digest() for shape in sorted(materials)).encode()).hexdigest()
    identity = Identity(
        settings=scenario.digest(scale),
        data=content,
        code=code_digest(),
        device=_device_name(pick_device(device)),
        compilation=compiled,
    )
    if known is not None:
        try:
            _require_same(known.identity, identity, folder)
        except UsageError:
            RunFolder(folder).forget_images()
            raise
    if compiled:
        require_compiler(device, RunFolder(folder).compiled, os.environ)
    if known is not None:
        return known
    record = RunRecord(
        scenario=scenario,
        scale=scale,
        identity=identity,
        data_title=data_name or (DIGITS if data is None else data.resolve().name),
        classes=first.classes,
        train_images=len(first.train),
        held_out_images=len(first.held_out),
        attacker_images=0 if first.attacker is None else len(first.attacker),
        threads=max(1, cores() // jobs),
        versions=installed_versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    record.write(folder)
    return record


def jobs_of(record: RunRecord, seeds: int | None, arms: Sequence[Arm] | None = None) -> list[Job]:
    """List arms under all seeds, seed by seed: an interrupted run has whole tables of few seeds.

    Parameters
    ----------
    record : RunRecord
    seeds : int or None
        How many; None for what the scenario says.
    arms : sequence of Arm or None
        None for all.
    """
    count = record.scenario.budget(record.scale).seeds if seeds is None else seeds
    wanted = record.scenario.arms if arms is None else arms
    return [Job(arm.name, arm.slug, seed) for seed in range(count) for arm in wanted]


def require_compilable(arms: Sequence[Arm]) -> None:
    """Refuse to compile the networks of arms which cannot be: none would be trained otherwise without a word.

    Raises
    ------
    UsageError
    """
    others = [arm for arm in arms if arm.mode not in (Mode.CENTRALIZED, Mode.ALONE)]
    if others:
        raise UsageError(
            f"no compiled network is trained in mode '{others[0].mode}' (arm {others[0].name!r})",
            hint="Leave --compile out, or name arms of modes 'centralized' and 'alone' with --arm.",
        )
    growing = [arm for arm in arms if arm.first_crop < 1]
    if growing:
        raise UsageError(
            f"a network is compiled for one size of images, and arm {growing[0].name!r} trains on crops that grow",
            hint="Leave --compile out, or name other arms with --arm.",
        )


class Runner:
    """Runs what has no result yet.

    Parameters
    ----------
    folder : RunFolder
        With a ``run.json``; locked by the caller.
    device : str
    side_by_side : int
        How many arms at once, each in a process that takes one after another.
    watcher : Watcher
    """

    def __init__(self, folder: RunFolder, device: str, side_by_side: int, watcher: Watcher) -> None:
        self._folder = folder
        self._device = device
        self._side_by_side = side_by_side
        self._watcher = watcher
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()

    def run(self, jobs: list[Job]) -> list[Job]:
        """Run the jobs that have no result; return those that failed.

        An interruption ends the processes; what they had done up to their last checkpoint is kept.
        """
        results.mend(self._folder.folder)
        done = {(one.arm, one.seed) for one in results.read(self._folder.folder)}
        waiting = [job for job in jobs if (job.arm, job.seed) not in done]
        failed: list[Job] = []
        at_work: dict[_Worker, Job] = {}
        idle: list[_Worker] = []
        try:
            while waiting or at_work:
                while waiting and len(at_work) < self._side_by_side:
                    worker = idle.pop() if idle else _Worker(self._folder.folder, self._device, self._events)
                    job = waiting.pop(0)
                    self._folder.arm(job.slug, job.seed).mkdir(parents=True, exist_ok=True)
                    at_work[worker] = job
                    worker.give(job)
                    self._watcher.started(job)
                event = self._events.get()
                if event.worker not in at_work:
                    # An idle process ended: the next arm gets another.
                    idle = [worker for worker in idle if worker is not event.worker]
                    continue
                job = at_work[event.worker]
                if event.kind == "progress" and isinstance(event.content, dict):
                    self._watcher.progressed(job, Progress(**event.content))
                    continue
                del at_work[event.worker]
                if event.kind != "end":
                    idle.append(event.worker)
                if event.kind == "result":
                    self._keep(job, Result.model_validate(event.content))
                else:
                    failed.append(job)
                    self._watcher.failed(job, self._reason(job, event))
        finally:
            for worker in (*at_work, *idle):
                worker.end()
        if not failed:
            self._folder.forget_images()
            shutil.rmtree(self._folder.compiled, ignore_errors=True)
        return failed

    def _keep(self, job: Job, result: Result) -> None:
        # In this order: a result is the last word on an arm.
        self._folder.keep_pictures(job.slug, job.seed)
        results.append(self._folder.folder, result)
        shutil.rmtree(self._folder.arm(job.slug, job.seed), ignore_errors=True)
        self._watcher.finished(job, result)

    def _reason(self, job: Job, event: _Event) -> str:
        if event.kind == "error":
            return str(event.content)
        log = self._folder.log(job.slug, job.seed)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        tail = "\n".join(lines[-_LOG_TAIL_LINES:])
        return f"its process ended with {event.content}, as it does where memory runs out; the end of {log}:\n{tail}"


@dataclass(frozen=True, eq=False)
class _Event:
    """What a process said; kind ``end`` with its exit status when it ended."""

    worker: _Worker
    kind: str
    content: object


class _Worker:
    """A process that runs arms, one after another (``scenarios/worker.py``)."""

    def __init__(self, folder: Path, device: str, events: queue.SimpleQueue[_Event]) -> None:
        self._events = events
        self._process = subprocess.Popen(
            # -P: a folder of the user's own that is called scenarios is not ours.
            [sys.executable, "-P", "-m", "scenarios.worker", str(folder), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C goes to the whole group; the runner alone decides what ends when.
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def give(self, job: Job) -> None:
        """Let it run an arm."""
        with suppress(BrokenPipeError):
            # It ended; the thread that listens says so.
            print(json.dumps({"slug": job.slug, "seed": job.seed}), file=self._process.stdin, flush=True)

    def end(self) -> None:
        """End the process, whatever it is at."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            message = json.loads(line)
            self._events.put(_Event(self, message["kind"], message["content"]))
        self._events.put(_Event(self, "end", self._process.wait()))


def code_digest() -> str:
    """SHA-256 of the source that decides numbers, and of the versions of what it stands on, as 64 hex digits."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if not _PRESENTATION.intersection(parts):
                digest.update("/".join((package, *parts)).encode() + b"\0" + path.read_bytes())
    for package in ("torch", "numpy", "flwr"):
        digest.update(f"{package} {version(package)}".encode())
    return digest.hexdigest()


def _is_ours(folder: RunFolder) -> bool:
    """Whether nothing is there but what a run leaves that was killed before it had its record."""
    left = {path.name for path in folder.folder.iterdir()} - {".lock"}
    begun = {name for name in left if name in ("images", "compiled") or name.startswith(f".{results.RUN_FILE}.")}
    images = folder.mark.parent
    only_made = images.is_dir() and all(path.name.startswith(f".{folder.mark.name}.") for path in images.iterdir())
    return not left or (left == begun and folder.mark.exists()) or (left == {"images"} and only_made)


def _materials(
    scenario: Scenario, scale: Scale, data: Path | None, folder: RunFolder, progress: Callable[[int], None]
) -> dict[tuple[int, int, int], Material]:
    """Read the images in every shape that an arm wants, or the copies of the same files that an earlier start left."""
    budget = scenario.budget(scale)
    materials = {}
    source = "digits" if data is None else files_digest(data)
    mark = folder.mark
    if not mark.exists() or mark.read_text(encoding="utf-8") != source:
        folder.forget_images()
        mark.parent.mkdir(parents=True)
        mark.parent.chmod(0o700)
        write_atomic(mark, source)
    attacker_images = budget.attacker_images if scenario.is_attacked(scale) else 0
    for shape in {arm.shape(budget) for arm in scenario.arms}:
        path = folder.images(shape)
        if path.exists():
            materials[shape] = Material.load(path)
            continue
        size, _, channels = shape
        wanted = (size, budget.images, budget.held_out)
        material = (
            digits(*wanted, attacker_images=attacker_images, channels=channels)
            if data is None
            else read_images(data, *wanted, progress, attacker_images=attacker_images, channels=channels)
        )
        material.save(path)
        materials[shape] = material
    return materials


def _require_same(known: Identity, now: Identity, folder: Path) -> None:
    differing = [name for name in Identity.model_fields if getattr(known, name) != getattr(now, name)]
    if differing:
        raise UsageError(
            f"{folder} holds results of another run: {', '.join(differing)} differ, and they must not be mixed",
            hint="Name another folder with --out, or remove this one. 'ppfed scenario report --compare' sets two runs "
            "side by side.",
        )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {platform.machine()}"
