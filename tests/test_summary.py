"""The figures of a run, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robot.messages import Mode, Status, Timing, Truth
from robot.model import load_robot
from robot.modes import BIT, FAULT, NO_CAUSE
from robot.summary import Summary, percentiles
from robot.topics import make_codecs

CODECS = make_codecs(load_robot("g1"))
STEP_S = 0.02


def status(
    mode: Mode, time_s: float = 0.0, faults: int = 0, reason: str = "", cause: int = NO_CAUSE
) -> Status:
    message: Status = CODECS["status"].new()
    message.mode, message.now_ns, message.faults = mode, round(time_s * 1e9), faults
    message.reason, message.cause = reason, cause
    return message


def truth(
    time_s: float, x: float = 0.0, y: float = 0.0, yaw: float = 0.0, z: float = 0.75,
    released: bool = True, support: float = 0.0, roll: float = 0.0,
) -> Truth:  # fmt: skip
    message: Truth = CODECS["truth"].new()
    message.sim_time_ns, message.released = round(time_s * 1e9), released
    message.support_force = support
    message.base_pos_w[:] = x, y, z
    half = (yaw if yaw else roll) / 2.0
    axis = (0.0, 0.0, 1.0) if yaw else (1.0, 0.0, 0.0)
    message.base_quat_wxyz[:] = [math.cos(half), *(math.sin(half) * a for a in axis)]
    return message


def walking(*truths: Truth) -> Summary:
    summary = Summary(1.0)
    summary.hear(status(Mode.POLICY))
    for message in truths:
        summary.hear(message)
    return summary


def times(seconds: float) -> np.ndarray:
    return np.arange(round(seconds / STEP_S) + 1) * STEP_S


# --- velocity -----------------------------------------------------------------------------------


def test_straight_ahead():
    got = walking(*(truth(t, x=0.5 * t) for t in times(3.0)))
    assert got.mean_velocity() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("yaw", "expected"),
    [
        (math.pi / 2, [0.0, -0.5, 0.0]),  # looks along y, so world x is to its right
        (-math.pi / 2, [0.0, 0.5, 0.0]),
        (math.pi, [-0.5, 0.0, 0.0]),
        (math.pi / 4, [0.3536, -0.3536, 0.0]),
    ],
)
def test_velocity_is_in_the_frame_of_the_heading(yaw: float, expected: list[float]):
    got = walking(*(truth(t, x=0.5 * t, yaw=yaw) for t in times(3.0)))
    assert got.mean_velocity() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("turn", [1.0, -0.5])
def test_on_a_circle_all_velocity_is_ahead(turn: float):
    """Two whole turns: the displacement is nothing, the speed is not, and yaw passes pi."""
    speed = 0.6
    radius = speed / turn
    path = (
        truth(t, radius * math.sin(turn * t), radius * (1 - math.cos(turn * t)), turn * t or 1e-9)
        for t in times(4 * math.pi / abs(turn))
    )
    got = walking(*path).mean_velocity()
    # A chord is shorter than its arc by sin(x) / x with x = turn * step / 2: 1.7e-5 here.
    assert got == pytest.approx([speed, 0.0, turn], abs=2e-4)


def test_the_first_third_is_starting_and_does_not_count():
    got = walking(*(truth(t, x=0.0 if t < 1.0 else 0.4 * (t - 1.0)) for t in times(3.0)))
    assert got.mean_velocity() == pytest.approx([0.4, 0.0, 0.0], abs=1e-3)


def test_only_the_policy_walks_and_a_gap_is_no_walk():
    summary = Summary(1.0)
    for t in times(6.0):
        held = 3.0 < t < 4.0  # in HOLD somebody carries it 10 m to the side
        summary.hear(status(Mode.HOLD if held else Mode.POLICY, t))
        summary.hear(truth(t, x=0.3 * t, y=10.0 if t >= 3.5 else 0.0))
    assert summary.mean_velocity() == pytest.approx([0.3, 0.0, 0.0], abs=1e-3)


def test_a_restarted_simulation_begins_a_new_walk():
    first = [truth(t + 100.0, x=2.0 * t) for t in times(3.0)]
    second = [truth(t, x=0.5 * t) for t in times(3.0)]
    assert walking(*first, *second).mean_velocity() == [0.5, 0.0, 0.0]


def test_without_a_walk_there_is_no_velocity():
    assert Summary(1.0).mean_velocity() is None
    assert walking(truth(0.0), truth(0.02)).mean_velocity() is None
    assert walking(*[truth(1.0)] * 5).mean_velocity() is None
    stood = Summary(1.0)
    stood.hear(status(Mode.STAND))
    for t in times(1.0):
        stood.hear(truth(t, x=t))
    assert stood.mean_velocity() is None


# --- modes, faults, falls -----------------------------------------------------------------------


def test_modes_are_listed_once_each_with_seconds_since_the_first_status():
    summary = Summary(10.0)
    for time_s, mode in ((100.0, Mode.PASSIVE), (100.5, Mode.PASSIVE), (101.25, Mode.DAMP),
                         (102.0, Mode.STANDUP), (105.0, Mode.DAMP)):  # fmt: skip
        summary.hear(status(mode, time_s))
    got = summary.to_dict()
    assert got["modes"] == [[0.0, "PASSIVE"], [1.25, "DAMP"], [2.0, "STANDUP"], [5.0, "DAMP"]]
    assert got["timing_factor"] == 10.0 and got["reasons"] == []


def test_faults_are_kept_once_and_not_before_arming():
    summary = Summary(1.0)
    summary.hear(status(Mode.PASSIVE, 0.0, BIT["manager_lost"] | BIT["target_lost"]))
    assert summary.faults == []
    summary.hear(status(Mode.POLICY, 1.0, BIT["target_late"]))
    summary.hear(status(Mode.POLICY, 1.1, BIT["target_late"] | BIT["overrun"]))
    summary.hear(status(Mode.HOLD, 1.2, BIT["tilt"], "tilt: tilted beyond the limit"))
    summary.hear(status(Mode.SOFT_STOP, 1.3, 0, ""))
    assert summary.faults == ["target_late", "overrun", "tilt"]
    assert summary.reasons == ["tilt: tilted beyond the limit", "SOFT_STOP was requested"]


@pytest.mark.parametrize("mode", [Mode.STAND, Mode.POLICY, Mode.HOLD])
@pytest.mark.parametrize(
    ("fallen", "how"),
    [
        (True, {"z": 0.39}),
        (True, {"roll": math.radians(61)}),
        (False, {"z": 0.41}),
        (False, {"roll": math.radians(59)}),
        (False, {"z": 0.1, "released": False}),  # it hangs, or is being hung up
    ],
)
def test_a_robot_that_lies_has_fallen(mode: Mode, fallen: bool, how: dict):
    summary = Summary(1.0)
    summary.hear(status(mode))
    summary.hear(truth(1.0))
    summary.hear(truth(2.0, **how))
    summary.hear(truth(3.0))  # up again: it has fallen all the same
    assert summary.to_dict()["fell"] is fallen


def test_a_fall_that_the_mode_machine_damped_in_time_is_a_fall():
    summary = Summary(1.0)
    summary.hear(status(Mode.POLICY))
    summary.hear(truth(1.0))
    summary.hear(status(Mode.FAULT, 2.0, BIT["fallen"], "fallen", FAULT["fallen"]))
    summary.hear(truth(2.0, roll=math.radians(52)))
    assert summary.fell


def test_damping_for_another_cause_is_no_fall():
    """A damped robot sinks, and is meant to."""
    summary = Summary(1.0)
    summary.hear(status(Mode.POLICY))
    summary.hear(truth(1.0))
    summary.hear(status(Mode.FAULT, 2.0, BIT["target_lost"], "", FAULT["target_lost"]))
    summary.hear(truth(2.0, z=0.1))
    assert not summary.fell


def test_tilted_on_the_gantry_is_no_fall():
    summary = Summary(1.0)
    summary.hear(status(Mode.STANDUP))
    summary.hear(truth(1.0, released=False))
    summary.hear(status(Mode.FAULT, 2.0, BIT["fallen"], "", FAULT["fallen"]))
    assert not summary.fell


def test_the_gantry_reports_release_and_forces():
    summary = Summary(1.0)
    for t, force, released in ((1.0, 320.04, False), (2.0, 400.06, False), (3.5, 0.0, True),
                               (9.0, 10.0, True)):  # fmt: skip
        summary.hear(truth(t, released=released, support=force))
    assert summary.to_dict()["gantry"] == {
        "release_time_s": 3.5, "support_force_max_n": 400.1, "support_force_end_n": 10.0,
    }  # fmt: skip


# --- timing -------------------------------------------------------------------------------------


def test_percentiles_by_hand():
    got = percentiles(np.arange(1001.0))
    assert got == {"p50": 500.0, "p99": 990.0, "p999": 999.0, "max": 1000.0}
    assert percentiles(np.array([7.25])) == {"p50": 7.2, "p99": 7.2, "p999": 7.2, "max": 7.2}
    assert percentiles(np.array([])) is None


def timing(part: int) -> Timing:
    """The part-th message of a run: 50 ticks each, 25 policy ticks, one skipped tick each."""
    message: Timing = CODECS["timing"].new()
    message.executed_ticks, message.skipped_ticks = 50 * (part + 1), part + 1
    message.elapsed_ns = 51 * (part + 1) * 2_000_000
    message.policy_ticks = 25
    message.lateness_us[:] = np.arange(50) + 50 * part
    message.tick_us[:], message.cpu_us[:] = 300.0, 200.0
    message.path_us[:], message.path_us[25:] = 900.0, 1e9  # what does not count
    message.write_us[:], message.write_us[25:] = 950.0, 1e9
    message.minor_faults, message.allocated_blocks = 100 - part, 5000 + 10 * part
    message.collections = 2
    return message


def test_timing_is_gathered_over_the_whole_run():
    summary = Summary(1.0)
    message = timing(0)
    for part in range(4):
        message.copy_from(timing(part))  # one message, filled again: nothing may be aliased
        summary.hear(message)
    got = summary.to_dict()
    control = got["control"]
    assert (control["executed_ticks"], control["skipped_ticks"]) == (200, 4)
    assert control["elapsed_s"] == 0.408
    assert control["rate_hz"] == round(200 / 0.408, 2)
    assert control["lateness_us"] == {"p50": 99.5, "p99": 197.0, "p999": 198.8, "max": 199.0}
    assert control["cpu_us"]["max"] == 200.0 and control["tick_us"]["p50"] == 300.0
    assert got["path_us"] == dict.fromkeys(("p50", "p99", "p999", "max"), 900.0)
    assert got["write_us"]["max"] == 950.0
    assert got["pilot"]["rate_hz"] == round(100 / 0.408, 2)
    # Over the second half: from the third message to the fourth.
    assert control["after_warm_up"] == {
        "page_faults": -1, "allocated_blocks_growth": 10, "collections": 2,
    }  # fmt: skip


def test_without_timing_and_truth_the_rest_is_there():
    got = Summary(3.0).to_dict()
    assert "control" not in got and got["mean_velocity_b"] is None and got["modes"] == []
    assert got["drops"] == 0 and got["blocked"] == 0 and got["timing_factor"] == 3.0
