"""The process that runs arms: ``python -m scenarios.worker FOLDER DEVICE``.

It reads one arm a line from its standard input and writes one JSON object a line to its standard output: progress, and
at the end of each arm a result or an error. It ends when its standard input does, whatever it is at: a runner that was
killed leaves no arm at work behind.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from ppfed.errors import PPFedError
from ppfed.training.compilation import compiler_cache
from ppfed.training.loop import pick_device
from scenarios.arms import ArmRun
from scenarios.material import Material
from scenarios.results import RunRecord
from scenarios.run import RunFolder


def main() -> int:
    """Run arms until the runner goes away."""
    jobs = _jobs()
    # Whatever else prints, prints to the log; the protocol keeps the real standard output to itself.
    protocol = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    folder, device = RunFolder(Path(sys.argv[1])), pick_device(sys.argv[2])
    record = RunRecord.read(folder.folder)
    if record is None:
        raise AssertionError(f"{folder.folder} is no run")
    torch.set_num_threads(record.threads)
    while True:
        job = jobs.get()
        kind, content = _run(folder, record, job["slug"], job["seed"], device, partial(_say, protocol, "progress"))
        _say(protocol, kind, content)


def _run(
    folder: RunFolder, record: RunRecord, slug: str, seed: int, device: torch.device, say: Callable[[object], None]
) -> tuple[str, object]:
    log = os.open(folder.log(slug, seed), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        arm = next(arm for arm in record.scenario.arms if arm.slug == slug)
        budget = record.scenario.budget(record.scale)
        material = Material.load(folder.images(arm.shape(budget)))
        run = ArmRun(
            arm,
            budget,
            material,
            seed,
            folder.arm(slug, seed),
            device,
            lambda done: say(asdict(done)),
            data_title=record.data_title,
            compiled=record.identity.compilation,
        )
        with compiler_cache(folder.compiled) if record.identity.compilation else nullcontext():
            return "result", run.run().model_dump(mode="json")
    except PPFedError as error:
        traceback.print_exc()
        return "error", str(error)
    except Exception as error:
        traceback.print_exc()
        return "error", f"internal error: {type(error).__name__}: {error}"


def _say(protocol: TextIO, kind: str, content: object) -> None:
    protocol.write(json.dumps({"kind": kind, "content": content}) + "\n")


def _jobs() -> queue.SimpleQueue[dict[str, Any]]:
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return jobs


if __name__ == "__main__":
    sys.exit(main())
