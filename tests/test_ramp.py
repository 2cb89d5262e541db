"""The one ramp: starts where things are, ends where they shall be, moves evenly in between."""

from __future__ import annotations

import numpy as np
import pytest

from robot.messages import LowCmd
from robot.model import load_robot
from robot.ramp import FROM_DAMP_GAIN, GAINS, TARGETS, Ramp
from robot.safety import block
from robot.topics import make_codecs

CODECS = make_codecs(load_robot("g1"))
PERIOD_S = 0.002


def command(value: float) -> LowCmd:
    message: LowCmd = CODECS["low_cmd"].new()
    for name in (*TARGETS, *GAINS):
        getattr(message, name)[:] = value
    return message


def ramp(target_s: float, gain_s: float, start: float = 1.0) -> Ramp:
    made = Ramp(CODECS["low_cmd"].new(), PERIOD_S)
    made.begin(command(start), target_s, gain_s)
    return made


def test_a_new_ramp_is_done_and_changes_nothing():
    made, cmd = Ramp(command(0), PERIOD_S), command(5.0)
    made.apply(cmd)
    assert made.done and made.progress == 0.0
    assert cmd.joint_pos_target[0] == cmd.stiffness[0] == 5.0


def test_targets_and_gains_blend_over_times_of_their_own():
    made = ramp(target_s=0.02, gain_s=0.01)
    assert (made.target_ticks, made.gain_ticks) == (10, 5)
    for tick in range(1, 13):
        cmd = command(3.0)
        assert made.done == (tick > 10)
        made.apply(cmd)
        for names, ticks in ((TARGETS, 10), (GAINS, 5)):
            expected = 1.0 + 2.0 * min(1.0, tick / ticks)
            for name in names:
                assert getattr(cmd, name) == pytest.approx(expected), (tick, name)
        assert made.progress == min(1.0, tick / 10)


def test_gains_may_take_longer_than_targets():
    made = ramp(target_s=0.004, gain_s=0.008)
    seen = []
    while not made.done:
        cmd = command(0.0)
        made.apply(cmd)
        seen.append((float(cmd.joint_pos_target[0]), float(cmd.damping[0])))
    assert seen == [(0.5, 0.75), (0.0, 0.5), (0.0, 0.25), (0.0, 0.0)]


def test_the_last_tick_gives_the_new_source_exactly():
    made, rng = ramp(0.01, 0.01), np.random.default_rng(0)
    new = rng.normal(size=29)
    for _ in range(5):
        cmd = command(0.0)
        cmd.joint_pos_target[:] = new
        made.apply(cmd)
    assert cmd.joint_pos_target == pytest.approx(new, abs=1e-15)
    cmd.joint_pos_target[:] = new
    made.apply(cmd)
    assert np.array_equal(cmd.joint_pos_target, new), "afterwards nothing is computed any more"


def test_a_ramp_of_no_length_is_done_at_once():
    made, cmd = ramp(0.0, 0.0), command(7.0)
    assert made.done
    made.apply(cmd)
    assert cmd.joint_pos_target[0] == 7.0 and made.ticks == 0


def test_ramps_of_one_kind_only():
    made, cmd = ramp(0.0, 0.004), command(3.0)
    made.apply(cmd)
    assert (cmd.joint_pos_target[0], cmd.stiffness[0]) == (3.0, 2.0)
    made, cmd = ramp(0.004, 0.0), command(3.0)
    made.apply(cmd)
    assert (cmd.joint_pos_target[0], cmd.stiffness[0]) == (2.0, 3.0)


def test_the_start_is_copied_and_not_followed():
    made, in_force = Ramp(CODECS["low_cmd"].new(), PERIOD_S), command(1.0)
    made.begin(in_force, 0.004, 0.004)
    in_force.joint_pos_target[:] = 99.0
    cmd = command(3.0)
    made.apply(cmd)
    assert cmd.joint_pos_target[0] == 2.0


def test_out_of_damp_the_stiffness_starts_at_a_share_of_the_new_one():
    made = ramp(0.004, 0.004, start=0.0)
    made.soften(command(100.0))
    cmd = command(100.0)
    made.apply(cmd)
    assert FROM_DAMP_GAIN == 0.2
    assert cmd.stiffness == pytest.approx(60.0)  # half way from 20 to 100
    assert cmd.damping == pytest.approx(50.0)


def test_a_ramp_within_a_ramp_starts_from_what_is_in_force():
    made, cmd = ramp(0.02, 0.02, start=0.0), command(10.0)
    for _ in range(5):
        cmd = command(10.0)
        made.apply(cmd)
    assert cmd.joint_pos_target[0] == 5.0
    made.begin(cmd, 0.02, 0.02)
    assert not made.done and made.progress == 0.0
    cmd = command(0.0)
    made.apply(cmd)
    assert cmd.joint_pos_target[0] == pytest.approx(4.5)


def test_nothing_but_the_five_arrays_is_touched():
    made, cmd = ramp(0.02, 0.02), command(3.0)
    before = cmd.copy()
    made.apply(cmd)
    for name in (*TARGETS, *GAINS):
        getattr(cmd, name)[:] = 3.0
    assert np.array_equal(cmd.buffer, before.buffer)
    assert len(block(cmd, "joint_pos_target", "damping")) == 5 * 29 + 4
