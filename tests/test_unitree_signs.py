"""The commissioning move: each joint whose sign is wrong is named, on paper and by the emulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds")

from drivers.unitree_signs import MOST, MOVED, PATIENCE_S, ROUNDS, SignTrial
from robot.config import UserError
from tests.unitree_rig import MS, ROBOT, SteppedDriver, SteppedEmulator

N, DT = ROBOT.num_joints, 0.002


class Pendulums:
    """Joints that know nothing of each other: each its own damped pendulum at rest."""

    def __init__(self, sway: float = 0.0) -> None:
        self.pos = ROBOT.stand_joint_pos.copy()
        self.rest, self.vel = self.pos.copy(), np.full(N, sway)
        self.signs, self.stuck = np.ones(N), np.zeros(N, bool)
        self.furthest, self.most = 0.0, np.zeros(N)  # rad; share of each motor's torque

    def run(self, trial: SignTrial, most_s: float = 60.0) -> float:
        """Seconds that the trial took."""
        for tick in range(round(most_s / DT)):
            torque = trial.step(self.signs * self.pos, DT)
            if torque is None:
                return tick * DT
            self.most = np.maximum(self.most, np.abs(torque) / ROBOT.effort_limit)
            push = 10.0 * torque / ROBOT.effort_limit
            self.vel += DT * (push - 10.0 * (self.pos - self.rest) - 5.0 * self.vel)
            self.vel[self.stuck] = 0.0
            self.pos += DT * self.vel
            self.furthest = max(self.furthest, float(np.abs(self.pos - self.rest).max()))
        raise AssertionError("the trial goes on for ever")


def test_each_joint_has_its_turn_and_a_sound_robot_passes_having_moved_little():
    assert sorted(joint for round_ in ROUNDS for joint in round_) == list(range(N))
    joints, trial = Pendulums(), SignTrial(ROBOT)
    assert joints.run(trial) < 15.0 and trial.complaint == ""
    assert (joints.most > 0.0).all() and joints.most.max() < MOST
    assert MOVED < joints.furthest < 2.0 * MOVED


@pytest.mark.parametrize("joint", range(N))
def test_a_joint_with_the_wrong_sign_is_named_before_it_has_gone_far(joint: int):
    joints, trial = Pendulums(), SignTrial(ROBOT)
    joints.signs[joint] = -1.0
    joints.run(trial)
    name = ROBOT.joint_names[joint]
    assert trial.complaint == f"{name} turned against its torque: its sign is wrong"
    assert joints.furthest < 2.0 * MOVED


def test_a_joint_that_does_not_move_is_named_with_the_torque_that_it_had():
    joints, trial = Pendulums(), SignTrial(ROBOT)
    joints.stuck[3] = True
    joints.run(trial)
    most = MOST * ROBOT.effort_limit[3]
    assert trial.complaint == f"left_knee_joint did not move under {most:.1f} N m"


def test_nothing_is_pushed_while_the_robot_sways():
    joints, trial = Pendulums(sway=0.5), SignTrial(ROBOT)
    begin = None
    for tick in range(1000):
        torque = trial.step(joints.pos, DT)
        assert torque is not None
        if torque.any():
            begin = tick
            break
        joints.vel += DT * (-10.0 * (joints.pos - joints.rest) - 5.0 * joints.vel)
        joints.pos += DT * joints.vel
    assert begin is not None and np.abs(joints.vel).max() < 0.05
    trial = SignTrial(ROBOT)
    for tick in range(round(2 * PATIENCE_S / DT)):
        if trial.step(np.full(N, 0.1 * tick * DT), DT) is None:
            break
    assert trial.complaint == f"left_hip_pitch_joint did not come to rest in {PATIENCE_S:.0f} s"


def test_a_position_that_is_no_number_is_no_rest():
    trial = SignTrial(ROBOT)
    while trial.step(np.full(N, np.nan), DT) is not None:
        pass
    assert "did not come to rest" in trial.complaint


# --- the emulator -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteppedEmulator]:
    made = SteppedEmulator(tmp_path_factory.mktemp("emulator"), "--service", "none")
    yield made
    made.close()


# What is wrong with the emulated robot, and what is said of it; "": it is taken over.
MOVES: dict[str, tuple[dict, str]] = {
    "nothing": ({}, ""),
    "S13 a knee": ({"encoder_reversed": {"joint": 3}}, "left_knee_joint turned against its"),
    "S13 the waist": ({"encoder_reversed": {"joint": 14}}, "waist_pitch_joint turned against its"),
    "S13 a wrist": ({"encoder_reversed": {"joint": 27}}, "right_wrist_pitch_joint turned against"),
    "no power": ({"motor_off": {"joint": 4}}, "left_ankle_pitch_joint did not move under 7.5 N m"),
}  # fmt: skip


class Moved(SteppedDriver):
    """Peaks are those from the first push on: before it, what sways is damped."""

    pushed, damped = False, 0.0  # whether a joint was; share of a motor's torque until then

    def _try_signs(self) -> None:
        self.emulator.order(reset=True)
        try:
            super()._try_signs()
        finally:
            self.peaks = self.emulator.order()

    def _send(self, values: np.ndarray) -> bool:
        if values[2].any() and not self.pushed:
            self.pushed, self.damped = True, self.emulator.order()["peak_torque"]
            self.emulator.order(reset=True)
        return super()._send(values)


@pytest.mark.parametrize("row", MOVES)
def test_s13_a_hanging_robot_is_moved_a_little_and_refused_by_name(
    emulator: SteppedEmulator, row: str
):
    """A check at the start: within 15 s, with small torque and speed, and before any arming."""
    faults, words = MOVES[row]
    hanging = {"prop": False, "step": 3000, "fault": faults}
    driver = Moved(emulator, start=hanging, trust_signs=False)
    try:
        begin_ns = emulator.now_ns
        if words:
            with pytest.raises(UserError, match=f"the commissioning move: {words}"):
                driver.open()
        else:
            driver.open()
        assert emulator.now_ns - begin_ns < 18_000 * MS
        assert driver.peaks["peak_torque"] < MOST + 0.03  # with damping
        assert driver.damped < 0.5, "of an arm that still sways; 0.36 was seen"
        assert 0.0 < driver.peaks["peak_speed"] < 0.1
    finally:
        driver.close()
        emulator.order(fault=dict.fromkeys(faults))


@pytest.mark.parametrize("option", ["dry_run", "trust_signs"])
def test_s13_no_joint_is_moved_where_nobody_asked_for_it(emulator: SteppedEmulator, option: str):
    fault = {"encoder_reversed": {"joint": 3}}
    start = {"prop": False, "fault": fault}
    options: dict[str, Any] = {"trust_signs": False, option: True}
    driver = SteppedDriver(emulator, start=start, **options)
    try:
        driver.open()
    finally:
        driver.close()
        emulator.order(fault={"encoder_reversed": None})
