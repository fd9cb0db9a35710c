"""The process that runs one arm: ``python -m scenarios.worker FOLDER ARM SEED DEVICE``.

It writes one JSON object a line to its standard output: progress, and at the end a result or an error. It ends when its
standard input does: a runner that was killed leaves no arm at work behind.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from ppfed.errors import PPFedError
from ppfed.training import pick_device
from scenarios.arms import ArmRun, Progress
from scenarios.material import Material
from scenarios.results import RunRecord
from scenarios.run import RunFolder

_ORPHANED = 3


def main() -> int:
    """Run the arm that the arguments name."""
    _leave_with_the_runner()
    # Whatever else prints, prints to the log; the protocol keeps the real standard output to itself.
    protocol = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def say(kind: str, content: object) -> None:
        protocol.write(json.dumps({"kind": kind, "content": content}) + "\n")

    def tell(progress: Progress) -> None:
        say("progress", asdict(progress))

    folder, slug, seed, device = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    try:
        record = RunRecord.read(folder)
        if record is None:
            raise AssertionError(f"{folder} is no run")
        torch.set_num_threads(record.threads)
        run = RunFolder(folder)
        arm = next(arm for arm in record.scenario.arms if arm.slug == slug)
        budget = record.scenario.budget(record.scale)
        material = Material.load(run.images(arm.size or budget.size))
        result = ArmRun(arm, budget, material, seed, run.arm(slug, seed), pick_device(device), tell).run()
    except PPFedError as error:
        traceback.print_exc()
        say("error", str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        say("error", f"internal error: {type(error).__name__}: {error}")
        return 1
    say("result", result.model_dump(mode="json"))
    return 0


def _leave_with_the_runner() -> None:
    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(_ORPHANED)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
