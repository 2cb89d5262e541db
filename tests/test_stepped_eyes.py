"""Eyes in lockstep: pictures and maps at the camera's rate, the same bytes every time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from robot.cli import main
from robot.messages import FrameFault, Message
from robot.model import load_robot
from robot.runs import load_run
from robot.stepped_eyes import TOPIC
from sim2real.lockstep import Lockstep

ROBOT = load_robot("g1")
RATE_HZ = ROBOT.cameras["head"].file.rate_hz
SECONDS = 1.0


class Counting(Lockstep):
    """Counts what is sent."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.counts: Counter[str] = Counter()
        super().__init__(*given, **named)

    def send(self, topic: str, message: Message, stamp_ns: int) -> int:
        self.counts[topic] += 1
        return super().send(topic, message, stamp_ns)


def run_once(**given: object) -> Counting:
    lockstep = Counting(load_run("sim", {"policy": None, **given}), None, robot=ROBOT)
    lockstep.run_for(SECONDS)
    return lockstep


def test_without_noise_every_picture_becomes_a_map_of_the_moment_it_came() -> None:
    lockstep = run_once(**{"camera.source": "sim", "camera.noise": None})
    assert lockstep.eyes is not None
    out = lockstep.eyes.perception.out
    assert lockstep.counts[TOPIC] == pytest.approx(SECONDS * RATE_HZ, abs=2)
    assert lockstep.counts["height_map"] >= lockstep.counts[TOPIC]
    # The first picture is from before the first state.
    assert out.frames == lockstep.counts[TOPIC] - 1 and out.refused[FrameFault.LATE] == 1
    assert out.missed == 0 and out.refused.sum() == 1 and 0.0 < out.age_ms < 40.0


def test_with_noise_the_same_bytes_come_every_time_and_another_seed_sees_other_things() -> None:
    one, same = (run_once(**{"camera.source": "sim"}).stream_sha256 for _ in range(2))
    assert one == same
    assert run_once(**{"camera.source": "sim", "seed": 7}).stream_sha256 != one


def test_without_a_camera_there_are_no_eyes() -> None:
    lockstep = run_once()
    assert lockstep.eyes is None and not lockstep.counts[TOPIC] + lockstep.counts["height_map"]


def test_a_real_camera_is_not_for_lockstep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "sim", "--lockstep", "--camera", "v4l2", "--policy", "none"]) == 2
    assert "--camera v4l2: in --lockstep only sim or none" in capsys.readouterr().err
