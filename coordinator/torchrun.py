"""``python -m coordinator.torchrun``: torchrun, ending with the process that started it.

Takes torchrun's arguments; the last line that it writes says which process failed, and why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ppfed.services import end_with_parent

PARENT_VARIABLE = "PPFED_PARENT"
"""Process id of the one that starts a process: whoever begins to look after importing torch may look too late."""


def follow_parent() -> None:
    """End with the process that the environment names, or else with the one that started this one."""
    named = os.environ.get(PARENT_VARIABLE)
    end_with_parent(None if named is None else int(named))


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; returns the exit code."""
    follow_parent()
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    # Imports torch: only after the parent is watched.
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    try:
        torchrun(list(arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # A dictionary where the process had time to write an error file.
        message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
        print(f"process {rank} failed: {message}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
