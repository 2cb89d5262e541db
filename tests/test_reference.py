"""Reference logs: whatever a stage does otherwise than when they were accepted shows here.

To make them anew, after a change of messages or of what a stage remembers:
`python -m tests.test_reference`. After a change of behaviour they are accepted one by one, as the
failing message says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot.config import UserError
from robot.log import Log
from robot.messages import Ask, Request
from robot.topics import source_index
from sim2real.lockstep import Lockstep
from sim2real.reference import accept
from sim2real.replay import replay
from tests.conftest import make_policy
from tests.test_replay import CODECS, record

LOGS = Path(__file__).parent / "data" / "logs"
NAMES = ("walk", "stop")


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_does_what_it_did_when_the_reference_was_accepted(name, tmp_path):
    path = LOGS / name
    try:
        result = replay(Log(path), tmp_path)
        told, ok = "\n".join(result["notes"]), result["verdict"] == "same"
    except UserError as error:
        told, ok = str(error), False
    assert ok, (
        f"{told}\nLook at it:  plexus replay {path}\n"
        f"Accept it:   plexus replay {path} --accept NEW, then put NEW in its place\n"
        f"Other messages or another memory: make all anew: python -m tests.test_reference"
    )
    assert all(not stage["incomplete"] for stage in result["stages"])
    assert [stage["stage"] for stage in result["stages"]] == ["control", "pilot"]


@pytest.mark.parametrize("kind", ["Prescott", "Haswell"])
def test_library_code_for_another_kind_of_processor_changes_nothing(kind, tmp_path):
    """Logs of a robot are replayed elsewhere; OpenBLAS, under numpy, rounds as the processor is."""
    done = subprocess.run(
        [sys.executable, "-m", "robot.cli", "replay", str(LOGS / "walk")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "OPENBLAS_CORETYPE": kind},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_references_hold_what_can_go_wrong():
    modes = {name: set(np.unique(Log(LOGS / name)["low_cmd"]["mode"])) for name in NAMES}
    assert {0, 1, 2, 3, 4} <= modes["walk"] and {4, 5, 6, 7, 8} <= modes["stop"]
    assert sum(f.stat().st_size for f in LOGS.rglob("*")) < 2_500_000


def events() -> dict[int, Callable[[Lockstep], object]]:
    """What happens in "stop", by tick: HOLD, back, soft stop; a silent pilot; an e-stop."""

    def ask(what: Ask) -> Callable[[Lockstep], object]:
        def say(lockstep: Lockstep) -> None:
            message: Request = CODECS["request.script"].new()
            message.lease, message.source = lockstep.teleop._nonce, source_index("script")
            message.ask = what
            lockstep.post("request.script", message)

        return say

    def pilot(alive: bool) -> Callable[[Lockstep], object]:
        return lambda lockstep: setattr(lockstep, "pilot_alive", alive)

    return {
        650: ask(Ask.HOLD), 700: ask(Ask.ENGAGE), 760: pilot(False), 800: pilot(True),
        840: ask(Ask.RESET), 860: ask(Ask.ARM), 870: ask(Ask.STAND_UP), 1250: ask(Ask.SOFT_STOP),
        1300: ask(Ask.ESTOP),
    }  # fmt: skip


def make() -> None:
    """Record both at 100 Hz, so that they are small."""
    with tempfile.TemporaryDirectory() as folder:
        weights = np.random.default_rng(1).normal(0, 0.004, (29, 100))
        policy = make_policy(Path(folder), "swaying", weights)
        happens = events()

        def act(lockstep: Lockstep) -> None:
            happens.get(lockstep.ticks, lambda _: None)(lockstep)

        given: dict[str, Any] = {"control_hz": 100, "target_wait_ms": 1, "timing_factor": 1.0}
        simulated: dict[str, Any] = given | {"sim.actuator_delay_ms": 10.0}
        walked = record(Path(folder), policy, 9.0, driver="sim", **simulated)
        stopped = record(Path(folder), policy, 14.0, act, **given)
        for name, path in (("walk", walked), ("stop", stopped)):
            shutil.rmtree(LOGS / name, ignore_errors=True)
            accept(Log(path), LOGS / name)  # without the topics of viewers


if __name__ == "__main__":
    make()
    sys.exit(pytest.main([__file__]))
