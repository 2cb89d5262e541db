"""Real time is asked for, and what was not got is said with its reason."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pydantic import ValidationError

from robot import realtime
from robot.config import UserError
from robot.nodes import alive
from robot.realtime import Got, RealtimeConfig, freeze_collector, in_words, make_context
from tests.conftest import ROOT, eventually

CORE = min(os.sched_getaffinity(0))
EVERYTHING = {"fifo_priority": 40, "cpu": CORE, "io_cpu": CORE, "lock_memory": True}

ATTEMPT = """
import dataclasses, json, os, resource, sys
from robot.config import UserError
from robot.realtime import RealtimeConfig, enter, make_context
privileged, config = json.loads(sys.argv[1])
if not privileged:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    if os.geteuid() == 0:
        os.setgroups([]), os.setgid(65534), os.setuid(65534)  # nobody
config = RealtimeConfig.model_validate(config)
context, report = make_context(config)
print(json.dumps([dataclasses.asdict(got) for got in report + enter(config)]))
"""


def attempt(config: dict[str, object], privileged: bool = False) -> dict[str, Got]:
    """What a process of its own gets of real time, by name."""
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPT, json.dumps([privileged, config])],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    return {row["name"]: Got(**row) for row in json.loads(done.stdout)}


def test_every_request_is_answered_once():
    assert list(attempt(EVERYTHING, privileged=True)) == [
        "ZeroMQ I/O thread FIFO 39", f"ZeroMQ I/O thread on core {CORE}", "PREEMPT_RT kernel",
        f"core {CORE}", "SCHED_FIFO 40", "memory locked", "garbage collector frozen",
    ]  # fmt: skip


def test_what_was_not_asked_for_is_not_reported():
    asked_for_nothing = attempt({"lock_memory": False}, privileged=True)
    assert list(asked_for_nothing) == ["PREEMPT_RT kernel", "garbage collector frozen"]


def test_an_unprivileged_user_is_told_what_it_did_not_get_and_why():
    got = attempt(EVERYTHING)
    assert got["SCHED_FIFO 40"] == Got("SCHED_FIFO 40", False, "Operation not permitted")
    assert got["ZeroMQ I/O thread FIFO 39"].detail == "this user may not use SCHED_FIFO"
    assert not got["ZeroMQ I/O thread FIFO 39"].got
    memory = got["memory locked"]
    assert not memory.got and memory.detail.startswith("Cannot allocate memory")
    # These need no privilege.
    assert got[f"core {CORE}"].got and got[f"ZeroMQ I/O thread on core {CORE}"].got
    assert got["garbage collector frozen"].got


def test_a_core_that_is_not_there_is_refused_with_those_there_are():
    got = attempt({"cpu": 4000, "io_cpu": 4000, "lock_memory": False})
    assert got["core 4000"] == Got("core 4000", False, "Invalid argument")
    cores = sorted(os.sched_getaffinity(0))
    assert got["ZeroMQ I/O thread on core 4000"].detail == f"cores available: {cores}"


def test_the_kernel_is_reported_as_it_is():
    kernel = attempt({"lock_memory": False})["PREEMPT_RT kernel"]
    patched = Path("/sys/kernel/realtime").exists()
    assert kernel == Got("PREEMPT_RT kernel", patched, os.uname().release)


def test_in_words_the_missing_comes_with_its_reason():
    good, bad = Got("memory locked", True, "set"), Got("core 7", False, "Invalid argument")
    assert in_words([good]) == "real time: got memory locked"
    assert in_words([good, bad]) == (
        "real time: got memory locked; DEGRADED, not got: core 7 (Invalid argument)"
    )
    assert in_words([bad]).startswith("real time: got nothing; DEGRADED")
    assert str(good) == "got: memory locked (set)"
    assert str(bad) == "NOT got: core 7 (Invalid argument)"


def test_asking_for_nothing_gives_a_plain_context():
    context, report = make_context(RealtimeConfig())
    assert report == []
    context.term()


@pytest.mark.parametrize("given", [{"fifo_priority": 0}, {"fifo_priority": 99}, {"cpu": -1}])
def test_impossible_requests_are_refused_in_the_file(given: dict[str, int]):
    with pytest.raises(ValidationError):
        RealtimeConfig.model_validate(given)


def test_the_collector_is_frozen_and_off():
    try:
        got = freeze_collector()
        assert got.got and not gc.isenabled() and gc.get_freeze_count() > 1000
        assert got.detail.endswith(" objects")
    finally:
        gc.unfreeze()
        gc.enable()


PARENT = textwrap.dedent(
    """
    import os, signal, subprocess, sys, time
    child = '''
    import os, sys, time
    from robot.realtime import die_with_parent
    die_with_parent({number}, int(sys.argv[1]))
    print("armed", flush=True)
    time.sleep(60)
    '''
    made = subprocess.Popen([sys.executable, "-c", child, str({parent})], stdout=subprocess.PIPE)
    print(made.pid, (made.stdout.readline() or b"ended").decode().strip(), flush=True)
    time.sleep(60)
    """
)


def start_parent(number: int, parent: str) -> tuple[subprocess.Popen[str], int, str]:
    script = PARENT.format(number=number, parent=parent)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    pid, said = process.stdout.readline().split()
    return process, int(pid), said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number: signal.Signals):
    parent, child, said = start_parent(number, "os.getpid()")
    try:
        assert said == "armed" and alive(child)
        parent.kill()
        eventually(lambda: not alive(child), 5.0)
    finally:
        parent.kill()
        parent.communicate()


def test_a_child_whose_parent_is_gone_already_ends_at_once():
    parent, child, said = start_parent(signal.SIGKILL, "1 << 22")
    try:
        assert said == "ended"
        eventually(lambda: not alive(child), 5.0)
    finally:
        parent.kill()
        parent.communicate()


def test_c10_hardware_is_refused_without_real_time_unless_that_is_allowed(monkeypatch):
    asked: list[int] = []

    def may(answer: bool):
        def may_use_fifo(priority: int) -> bool:
            asked.append(priority)
            return answer

        return may_use_fifo

    monkeypatch.setattr(realtime, "may_use_fifo", may(False))
    with pytest.raises(UserError, match=r"SCHED_FIFO 80, which .* realtime.allow_degraded: true"):
        realtime.check_rights(RealtimeConfig(fifo_priority=80))
    realtime.check_rights(RealtimeConfig(fifo_priority=80, allow_degraded=True))
    monkeypatch.setattr(realtime, "may_use_fifo", may(True))
    realtime.check_rights(RealtimeConfig())
    assert asked == [80, 1]
