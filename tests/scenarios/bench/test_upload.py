from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator.pki import ensure_certificates
from ppfed.store import SHARD_BYTES
from scenarios.bench.run import verdict
from scenarios.bench.upload.memory import PeakMemory, resident_bytes
from scenarios.bench.upload.plain_tls import plain_tls_s
from scenarios.bench.upload.product import Uploaded, shards_of
from scenarios.bench.upload.section import memory_rows

MIB = 1 << 20
# A shell whose child holds 64 MiB for as long as nobody ends it.
HOLDER = "import time; held = bytearray(b'x' * (64 << 20)); print('held', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDER!r}])"


def test_memory_of_grandchildren_counts_until_the_given_moment() -> None:
    began = time.time()
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            with PeakMemory(lambda: {"owner": parent.pid}) as memory:
                assert parent.stdout is not None
                assert parent.stdout.readline() == b"held\n"
                time.sleep(0.5)
            together, alone = memory.peaks(time.time())
            assert 64 * MIB < together["owner"] < 256 * MIB
            assert max(alone.values()) < together["owner"]
            assert memory.peaks(began) == ({}, {})
        finally:
            os.killpg(parent.pid, 9)


def test_a_process_that_is_gone_holds_nothing() -> None:
    assert resident_bytes(os.getpid()) > MIB
    assert resident_bytes(2**30) == 0


def test_the_plain_transfer_takes_time_and_ends(tmp_path: Path) -> None:
    certificates = ensure_certificates(tmp_path, "localhost", datetime.datetime.now(datetime.UTC))
    assert 0 < plain_tls_s(3 * MIB + 17, certificates) < 30


def test_bytes_are_dealt_out_in_full_shards() -> None:
    assert shards_of(8 * SHARD_BYTES, 1) == 8
    assert shards_of(8 * SHARD_BYTES, 4) == 2
    assert shards_of(1, 4) == 1


def test_memory_that_grows_with_the_data_breaks_its_floor() -> None:
    peaks = {"coordinator": 900 * MIB, "owner-0": 700 * MIB, "owner-1": 3000 * MIB}
    rows = list(memory_rows(Uploaded(1.0, 512 * MIB, peaks, {"owner-1: flower-supernode": 9 * MIB}, 100 * MIB)))
    assert [verdict(row) for row in rows] == ["met", "broken", ""]
    assert rows[1].value == pytest.approx(3000)
    assert rows[1].details == {"owner-1 flower-supernode mib": 9.0}
