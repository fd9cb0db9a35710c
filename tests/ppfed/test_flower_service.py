import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppfed.services import flower_service

SUPERLINK = flower_service("flower-superlink", "coordinator.superlink_process")

# What a service does with a request: a few objects, one of them large, in a cycle of references.
REQUESTS = """
import collections
import gc
import sys
from ppfed.flower_service import collect_often

class Request:
    alive = most = 0
    def __init__(self):
        self.me, self.parts = self, [[] for _ in range(300)]
        Request.alive += 1
        Request.most = max(Request.most, Request.alive)
    def __del__(self):
        Request.alive -= 1

class Kept: pass
kept = [Kept() for _ in range(100_000)]  # modules, classes and tables of a service
gc.collect()
if sys.argv[1] == "often":
    collect_often()
at_work = collections.deque(maxlen=8)  # old enough, when they are done, for Python to leave them alone
for _ in range(500):
    at_work.append(Request())
print(Request.most)
"""


def most_alive(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", REQUESTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_requests_do_not_pile_up() -> None:
    # Eight at work, and a full collection after some 1,000 objects: two collections of 100 in each younger generation.
    assert most_alive("often") <= 40
    assert most_alive("as Python does") > 60


def test_a_service_sees_its_own_arguments() -> None:
    done = subprocess.run([*SUPERLINK, "--help"], capture_output=True, text=True, check=True)
    assert "usage: flower-superlink" in done.stdout
    assert "--database" in done.stdout


@pytest.mark.parametrize(
    "service",
    [SUPERLINK, flower_service("flower-supernode", "clients.supernode_process")],
    ids=["superlink", "supernode"],
)
def test_a_service_runs_what_is_installed_and_not_what_lies_around(service: list[str], tmp_path: Path) -> None:
    (tmp_path / "flwr.py").write_text("print('not this one')")
    done = subprocess.run(
        [*service, "--version"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )
    assert "not this one" not in done.stdout
