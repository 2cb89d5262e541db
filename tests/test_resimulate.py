"""Levels R2, R3 and R4: our own physics follows our own log, and other physics does not."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot.config import UserError
from robot.log import Log
from robot.log_writer import open_log
from robot.model import load_robot
from robot.pilot import load_pilot
from robot.runs import load_run
from robot.topics import make_codecs
from sim2real.closed_loop import closed_loop
from sim2real.lockstep import START_NS, Lockstep, LockstepOptions
from sim2real.motion import Motion
from sim2real.open_loop import Course, lost_at, open_loop
from sim2real.replay import setup_of
from sim2real.resimulate import Errors, predict
from tests.conftest import make_policy

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
EPOCH_NS = 1_795_491_000_000_000_000
POLICY_S = 6.0  # about then the policy begins
# Heavy contact work makes these runs the cost of this file: few horizons, wide spaces.
FEW: dict[str, Any] = {"horizons_s": (0.02, 0.1), "every_s": 0.2}


class WithoutTruth:
    """A log writer as a real robot's: the truth does not reach it."""

    def __init__(self, log: Any) -> None:
        self.log = log

    def write(self, topic: str, *rest: Any) -> None:
        if topic != "truth":
            self.log.write(topic, *rest)

    def flush(self) -> None:
        self.log.flush()


def record(
    folder: Path,
    policy: Path | None,
    seconds: float,
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0),
    truth: bool = True,
    driver: str = "sim",
    noise: bool = True,
) -> Path:
    """A run in lockstep as a log."""
    given: dict[str, Any] = {"log.folder": str(folder)}
    given["policy"] = str(policy) if policy else None
    given |= {} if noise else {"sim.noise": {}}
    run = load_run(driver, given)
    log = open_log(run, ROBOT, CODECS, now_ns=START_NS, epoch_ns=EPOCH_NS)
    options = LockstepOptions(log=log if truth else WithoutTruth(log), stream=False)  # type: ignore[arg-type]
    pilot = load_pilot(run, ROBOT) if policy else None
    lockstep = Lockstep(run, pilot, velocity, options, robot=ROBOT)
    for outbox in lockstep._outboxes.values():
        outbox.instance += 1000  # in real time publishers are not numbered as lockstep does
    lockstep.run_for(seconds)
    log.close("done")
    return log.folder


@pytest.fixture(scope="module")
def swaying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that stands and depends a little on what it observes, its last action included."""
    weights = np.random.default_rng(1).normal(0, 0.004, (29, 100))
    return make_policy(tmp_path_factory.mktemp("swaying"), "swaying", weights)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, swaying: Path) -> Log:
    """Sensors without noise: what the log says is where the robot was."""
    return Log(record(tmp_path_factory.mktemp("quiet"), swaying, 7.4, noise=False))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory, swaying: Path) -> Log:
    return Log(record(tmp_path_factory.mktemp("noisy"), swaying, 7.4))


def heavier(folder: Path, factor: float) -> Path:
    """A robot.yaml whose bodies weigh `factor` times as much."""
    cameras = (camera.path for camera in ROBOT.cameras.values())
    for path in (ROBOT.path, ROBOT.mjcf, *cameras):
        shutil.copy(path, folder)
    mjcf = folder / ROBOT.mjcf.name

    def scaled(match: re.Match[str]) -> str:
        return f'mass="{float(match[1]) * factor}"'

    text, count = re.subn(r'mass="([^"]+)"', scaled, mjcf.read_text())
    assert count > 20
    mjcf.write_text(text)
    return folder / ROBOT.path.name


def ratio(result: dict[str, Any], horizon: str = "0.1") -> float:
    return result["modes"]["all"][horizon]["ratio_all"]


# --- R2 ---------------------------------------------------------------------------------------


def test_without_noise_physics_repeats_itself_to_rounding(quiet, tmp_path):
    result = predict(quiet, tmp_path, **FEW)
    assert result["base"] == "truth" and result["starts"] >= 5
    for horizon in ("0.02", "0.1"):
        assert max(result["modes"]["all"][horizon]["p95"]) < 1e-9
        assert result["modes"]["all"][horizon]["floor_rmse_all"] > 1e-4
    assert "on the gantry" in result["left_out"]


def test_with_noise_the_error_is_the_floor(noisy, tmp_path):
    result = predict(noisy, tmp_path, **FEW)
    assert 0.7 < ratio(result) < 1.4
    assert set(result["modes"]) == {"all", "POLICY"}
    assert len(result["modes"]["POLICY"]["0.1"]["rmse"]) == len(result["joint_names"]) == 29
    assert predict(noisy, tmp_path, **FEW) == result, "the same log, another result"


def test_another_mass_or_delay_stands_above_the_floor(noisy, tmp_path):
    same = ratio(predict(noisy, tmp_path, **FEW))
    scaled = tmp_path / "heavier"
    scaled.mkdir()
    assert ratio(predict(noisy, tmp_path, robot=heavier(scaled, 1.2), **FEW)) > 2.0 * same


def test_a_wrong_delay_is_far_from_the_log_where_joints_move(quiet, tmp_path):
    right = predict(quiet, tmp_path, **FEW)
    wrong = predict(quiet, tmp_path, actuator_delay_ms=10.0, **FEW)
    assert ratio(wrong) > 1e6 * ratio(right) and wrong["actuator_delay_ms"] == 10.0


def test_a_log_without_truth_is_predicted_from_imu_and_feet_and_says_so(swaying, tmp_path):
    log = Log(record(tmp_path, swaying, 7.0, truth=False))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    result = predict(log, scratch, (0.1,), 0.5)
    assert result["base"] == "imu and feet"
    assert any("no truth" in note for note in result["notes"])
    assert result["modes"]["POLICY"]["0.1"]["rmse_all"] < 0.05


def test_the_base_put_together_from_imu_and_feet_is_close_to_the_truth(quiet, tmp_path):
    motion = Motion(quiet, *setup_of(quiet, tmp_path))
    row = int(motion.known[-2])
    true_pos, true_vel = motion.state(row)
    motion._truth_row[row] = -1
    pos, vel = motion.state(row)
    assert abs(pos[2] - true_pos[2]) < 0.005 and np.allclose(pos[3:], true_pos[3:], atol=1e-9)
    assert np.allclose(vel[:3], true_vel[:3], atol=0.02)
    assert np.array_equal(vel[3:], true_vel[3:])


def test_figures_of_errors_are_as_by_hand():
    errors = Errors(np.array([[3.0, 0.0], [4.0, 1.0]]), np.full((2, 1, 2), 0.5))
    got = errors.figures(np.array([True, True]))
    assert got["rmse"] == [math.sqrt(12.5), math.sqrt(0.5)]
    assert got["ratio_all"] == pytest.approx(math.sqrt(26.0 / 4.0) / 0.5)


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_the_log_does_not_hold_is_refused_in_one_sentence(quiet, tmp_path):
    assert "rising" in refused(lambda: predict(quiet, tmp_path, (0.1, 0.02)))
    assert "no truth at every horizon" in refused(lambda: predict(quiet, tmp_path, (0.03,)))
    assert "no state to predict from" in refused(lambda: predict(quiet, tmp_path, (60.0,)))
    assert "whole number" in refused(lambda: predict(quiet, tmp_path, actuator_delay_ms=1.3))
    assert "expected a time" in refused(lambda: open_loop(quiet, tmp_path, 99.0))
    assert "expected a time" in refused(lambda: open_loop(quiet, tmp_path, -1.0))
    assert "gantry" in refused(lambda: open_loop(quiet, tmp_path, 1.0))
    assert "less than 0.1 s" in refused(lambda: open_loop(quiet, tmp_path, 7.35))
    assert "gantry" in refused(lambda: closed_loop(quiet, tmp_path, 2.0))
    assert "ends less" in refused(lambda: closed_loop(quiet, tmp_path, 7.37))


def test_logs_without_physics_or_policy_are_refused(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    loopback = Log(record(tmp_path, None, 0.5, driver="loopback"))
    for level in (predict, open_loop, closed_loop):
        assert "loopback" in refused(lambda level=level: level(loopback, scratch))
    short = Log(record(tmp_path, None, 0.5))
    assert "no policy moved" in refused(lambda: open_loop(short, scratch))
    assert "--policy" in refused(lambda: closed_loop(short, scratch))
    assert "on the gantry" in refused(lambda: predict(short, scratch, (0.02,)))


# --- R3 ---------------------------------------------------------------------------------------


def test_open_loop_from_a_noiseless_log_follows_it(quiet, tmp_path):
    result = open_loop(quiet, tmp_path, seconds=0.8)
    assert result["diverged_s"] is None and result["followed_s"] == pytest.approx(0.8)
    assert max(result["series"]["distance_m"]) < 1e-6
    assert result["begin_s"] == pytest.approx(POLICY_S, abs=0.1) and result["mode"] == "POLICY"
    assert max(result["series"]["shadow_distance_m"][0]) > 1e-5
    assert result["fell"]["log"] is result["fell"]["simulation"] is None


def test_open_loop_with_other_physics_parts_from_the_log(quiet, tmp_path):
    scaled = tmp_path / "heavier"
    scaled.mkdir()
    result = open_loop(quiet, tmp_path, seconds=1.2, robot=heavier(scaled, 1.5))
    assert max(result["series"]["distance_m"]) > 1e-3


def test_a_motion_is_lost_at_5_cm_or_5_degrees():
    poses = np.tile([0, 0, 0.8, 1, 0, 0, 0], (3, 1)).astype(float)
    moved, turned, fallen = poses.copy(), poses.copy(), poses.copy()
    moved[2, 0] = 0.051
    half = math.radians(5.1) / 2
    turned[1, 3:] = math.cos(half), 0.0, math.sin(half), 0.0
    fallen[2, 2] = 0.3
    still = Course(poses)
    assert lost_at(*Course(moved).apart(still), position_known=True) == 2
    assert lost_at(*Course(moved).apart(still), position_known=False) is None
    assert lost_at(*Course(turned).apart(still), position_known=False) == 1
    assert lost_at(*still.apart(still), position_known=True) is None
    assert Course(fallen).fallen_at() == 2 and still.fallen_at() is None


# --- R4 ---------------------------------------------------------------------------------------


def test_closed_loop_goes_on_as_the_noiseless_log_did(quiet, tmp_path):
    """Physics, control and policy are where they were: only then targets stay the same."""
    result = closed_loop(quiet, tmp_path, 6.5, seconds=0.7, repeats=1, keep=tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    again = Log(kept)
    for topic, field in (("low_cmd", "joint_pos_target"), ("low_state", "joint_pos")):
        new, old = (log.read(topic, ["tick", field]) for log in (again, quiet))
        old = old[np.isin(old["tick"], new["tick"])]
        assert len(old) == len(new) == 350
        assert np.allclose(new[field], old[field], atol=1e-12), topic
    (simulated,) = result["simulated"]
    assert simulated["fell"] is False and simulated["notes"] == []
    assert simulated["modes"] == result["logged"]["modes"] == [[0.0, "POLICY"]]
    assert simulated["power_w"] == pytest.approx(result["logged"]["power_w"], rel=0.01)


def test_closed_loop_runs_another_policy_and_hears_the_logs_operator(
    quiet, standing_policy, tmp_path
):
    result = closed_loop(quiet, tmp_path, 6.3, standing_policy, 1.0, repeats=2)
    assert result["policy"] == str(standing_policy)
    for run in result["simulated"]:
        assert run["modes"] == [[0.0, "POLICY"]], "without the operator it would be in HOLD"
        assert run["fell"] is False
    assert result["simulated"][0] != result["simulated"][1]
    assert "0 of 2 runs fall" in result["notes"][0]


def test_a_policy_that_throws_the_robot_over_is_found_out(quiet, tmp_path):
    bad = make_policy(tmp_path, "bad", np.random.default_rng(0).normal(0, 0.6, (29, 100)))
    (run,) = closed_loop(quiet, tmp_path, 6.0, bad, 1.4, repeats=1)["simulated"]
    assert run["fell"] or run["modes"][-1][1] != "POLICY"


def test_closed_loop_of_a_walk_does_not_fall(public_policy, tmp_path):
    log = Log(record(tmp_path, public_policy("ppo"), 10.0, (0.5, 0.0, 0.0)))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    result = closed_loop(log, scratch, 8.5, seconds=1.4, repeats=2)
    assert [run["fell"] for run in result["simulated"]] == [False, False]
    for run in result["simulated"]:
        assert run["mean_velocity_b"][0] == pytest.approx(
            result["logged"]["mean_velocity_b"][0], abs=0.08
        )
