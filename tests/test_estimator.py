"""Odometry: exact over a foot that stands; its error on a walk with noise, slip and pushes."""

from __future__ import annotations

import math
from pathlib import Path

import mujoco
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from drivers.sim import SimDriver
from policies.manifest import parse_onnx, read_bytes, read_policy, write_policy
from robot.estimator import GAP_NS, LEAD, Estimator
from robot.log import Log
from robot.messages import Odometry, PolicyInput, Truth
from robot.model import compile_model, load_robot
from robot.pilot import load_pilot
from robot.runs import load_run
from robot.topics import make_codecs
from sim2real.lockstep import Lockstep, LockstepOptions
from sim2real.replay import replay
from tests.test_replay import record

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
STEP_NS = 20_000_000


def _rotation(quat: NDArray) -> NDArray:
    """(3, 3) from body to world."""
    out = np.zeros(9)
    mujoco.mju_quat2Mat(out, quat)
    return out.reshape(3, 3)


class OnOneLeg:
    """The robot's legs bend while its left foot stays where it is and the right one is lifted."""

    def __init__(self) -> None:
        self.model = compile_model(ROBOT)
        self.data = mujoco.MjData(self.model)
        self.site = self.model.site("left_foot").id
        self.anchor = self._foot(0.0)

    def joints(self, t: float) -> NDArray:
        """(N,) rad."""
        pose = ROBOT.stand_joint_pos.copy()
        for name, size in (("left_hip_pitch", 0.1), ("left_knee", 0.2), ("left_ankle_roll", 0.1)):
            pose[ROBOT.joint_names.index(f"{name}_joint")] += size * math.sin(3.0 * t)
        pose[ROBOT.joint_names.index("right_knee_joint")] += 0.6
        return pose

    def _foot(self, t: float) -> tuple[NDArray, NDArray]:
        """Of the sole's site in the pelvis frame: position and rotation."""
        self.data.qpos[:7] = (0, 0, 0, 1, 0, 0, 0)
        self.data.qpos[7:] = self.joints(t)
        mujoco.mj_kinematics(self.model, self.data)
        rotation = self.data.site_xmat[self.site].reshape(3, 3).copy()
        return self.data.site_xpos[self.site].copy(), rotation

    def pelvis(self, t: float) -> tuple[NDArray, NDArray]:
        """Where it must be, position from its place at time 0 and rotation."""
        (there, turn), (here, now) = self.anchor, self._foot(t)
        rotation = turn @ now.T
        return there - rotation @ here, rotation

    def measure(self, t: float) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
        """What the robot reports: joint_pos, joint_vel, quat_wxyz, gyro, accel."""
        h = 1e-5
        quat, later, gyro = np.zeros(4), np.zeros(4), np.zeros(3)
        mujoco.mju_mat2Quat(quat, self.pelvis(t)[1].ravel())
        mujoco.mju_mat2Quat(later, self.pelvis(t + h)[1].ravel())
        mujoco.mju_subQuat(gyro, later, quat)
        speed = (self.joints(t + h) - self.joints(t - h)) / (2 * h)
        before, here, after = (self.pelvis(t + s)[0] for s in (-1e-3, 0.0, 1e-3))
        felt = (before - 2 * here + after) / 1e-6 + [0, 0, 9.81]
        return self.joints(t), speed, quat, gyro / h, felt @ self.pelvis(t)[1]


def test_over_a_foot_that_stands_it_is_exact() -> None:
    leg, found = OnOneLeg(), Estimator(ROBOT)
    found.step(*leg.measure(0.0), 0)
    start = found.position.copy()
    assert start[:2] == pytest.approx([0.0, 0.0])
    assert found.soles[0, 2] == pytest.approx(0.0, abs=1e-3), "the left sole is the ground"
    for k in range(1, 60):
        t = k * 0.02
        found.step(*leg.measure(t), k * STEP_NS)
        moved = leg.pelvis(t)[0] - leg.pelvis(0.0)[0]
        assert found.position - start == pytest.approx(moved, abs=2e-3)
    truth = (leg.pelvis(t + 1e-5)[0] - leg.pelvis(t - 1e-5)[0]) / 2e-5 @ leg.pelvis(t)[1]
    assert np.linalg.norm(truth) > 0.02
    assert found.velocity_b == pytest.approx(truth, abs=0.03), "behind by the smoothing only"
    assert found.share[0] > 0.95
    assert found.height == pytest.approx(found.position[2], abs=5e-3)


def test_after_a_gap_it_goes_on_where_it_was() -> None:
    leg, found = OnOneLeg(), Estimator(ROBOT)
    found.step(*leg.measure(0.0), 0)
    found.step(*leg.measure(0.02), STEP_NS)
    before = found.position.copy()
    found.step(*leg.measure(0.5), STEP_NS + GAP_NS + 1)
    assert (found.position == before).all()
    found.step(*leg.measure(0.52), 2 * STEP_NS + GAP_NS + 1)
    assert 0.0 < np.linalg.norm(found.position - before) < 0.02


def test_an_accelerometer_that_is_dead_leads_nobody_far() -> None:
    leg, found = OnOneLeg(), Estimator(ROBOT)
    for k in range(100):
        pos, vel, quat, gyro, accel = leg.measure(0.02 * k)
        found.step(pos, vel, quat, gyro, 0 * accel, k * STEP_NS)
        moved = found.velocity_w - (leg.pelvis(0.02 * k + 1e-5)[0] - leg.pelvis(0.02 * k)[0]) / 1e-5
        assert np.linalg.norm(moved) < LEAD + 0.1


def test_what_it_remembers_is_all_it_remembers() -> None:
    leg, one, other = OnOneLeg(), Estimator(ROBOT), Estimator(ROBOT)
    for k in range(10):
        one.step(*leg.measure(0.02 * k), k * STEP_NS)
    other.memory[:], other.time_ns = one.memory, one.time_ns
    for found in (one, other):
        found.step(*leg.measure(0.2), 10 * STEP_NS)
    assert (one.memory == other.memory).all() and (one.velocity_b == other.velocity_b).all()
    assert (one.soles == other.soles).all() and (one.share == other.share).all()


# --- walks --------------------------------------------------------------------------------------

PHASES = {"walk": (8.0, 12.0), "slip": (12.0, 14.0), "push": (14.5, 17.0)}  # s
SLIPPERY = 0.3  # friction of the soles in place of 0.6
PUSH_N, PUSH_S = 40.0, 0.1


class Walk:
    """A noisy walk of the shipped policy: what odometry said, and what was true."""

    def __init__(self) -> None:
        run = load_run("sim", {"seed": 5})
        pilot = load_pilot(run, ROBOT)
        self.told: list[Odometry] = []
        self.true: list[Truth] = []
        locate = pilot.locate

        def listen(given: PolicyInput, now_ns: int) -> Odometry:
            self.told.append(locate(given, now_ns).copy())
            return self.told[-1]

        pilot.locate = listen
        lockstep = Lockstep(
            run, pilot, (0.4, 0.0, 0.0), LockstepOptions(stream=False), robot=ROBOT
        )  # fmt: skip
        lockstep.on_truth = lambda truth: self.true.append(truth.copy())
        assert isinstance(lockstep.driver, SimDriver)
        model, data = lockstep.driver.model, lockstep.driver.data
        soles = [i for i in range(model.ngeom) if "foot" in model.geom(i).name]
        rough = model.geom_friction[soles].copy()
        trunk = data.xfrc_applied[model.body(ROBOT.gantry.body).id]
        for tick in range(round(PHASES["push"][1] * run.control_hz)):
            now = tick / run.control_hz
            slipping = PHASES["slip"][0] <= now < PHASES["slip"][1]
            model.geom_friction[soles, 0] = SLIPPERY if slipping else rough[:, 0]
            if now >= PHASES["push"][0]:
                pushing = (now - PHASES["push"][0]) % 1.0 < PUSH_S
                trunk[:2] = (PUSH_N, -PUSH_N) if pushing else (0.0, 0.0)
            lockstep.step()
            assert data.qpos[2] > 0.5, f"it fell at {now} s"

    def errors(self, phase: str) -> tuple[NDArray, NDArray, float]:
        """(k, 3) m/s in the pelvis frame, (3,) m of drift over the phase, and the m walked."""
        begin, end = PHASES[phase]
        at = {truth.sim_time_ns: truth for truth in self.true}
        pairs = [
            (told, truth) for told in self.told
            if begin <= told.robot_time_ns * 1e-9 < end
            and (truth := at.get(told.robot_time_ns + 2_000_000))  # told after the tick's physics
        ]  # fmt: skip
        assert len(pairs) > 0.9 * 50 * (end - begin)
        wrong = [
            told.base_lin_vel_b - truth.base_lin_vel_w @ _rotation(truth.base_quat_wxyz)
            for told, truth in pairs
        ]
        places = np.array([truth.base_pos_w for _, truth in pairs])
        believed = np.array([told.base_pos for told, _ in pairs])
        # Only yaw is not common to both frames; it is the IMU's and does not drift here.
        drift = (believed[-1] - believed[0]) - (places[-1] - places[0])
        return np.array(wrong), drift, float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())


@pytest.fixture(scope="module")
def walked() -> Walk:
    return Walk()


@pytest.mark.parametrize(
    ("phase", "level", "vertical", "drift"),
    # Measured: see the table in robot/estimator.py.
    [("walk", 0.04, 0.04, 0.03), ("slip", 0.04, 0.04, 0.04), ("push", 0.05, 0.04, 0.04)],
)
def test_its_error_on_a_walk(
    walked: Walk, phase: str, level: float, vertical: float, drift: float
) -> None:
    wrong, gone, way = walked.errors(phase)
    rms = np.sqrt(np.square(wrong).mean(axis=0))
    assert max(rms[:2]) < level and rms[2] < vertical
    assert np.linalg.norm(gone[:2]) < drift * way
    assert abs(gone[2]) < 0.02 * way


# --- in the pilot -------------------------------------------------------------------------------


def _asks_for_velocity(standing: Path, out: Path, weights: NDArray) -> Path:
    """The policy with `weights` (3, 29) times base_lin_vel added to its targets."""
    model = parse_onnx(read_bytes(standing), standing)
    for node in model.graph.node:
        node.output[:] = ["before" if o == "joint_pos_target" else o for o in node.output]
    shape: onnx.ValueInfoProto = helper.make_tensor_value_info(
        "base_lin_vel", TensorProto.FLOAT, [1, 3]
    )
    model.graph.input.append(shape)
    model.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), "gain"))
    model.graph.node.extend([
        helper.make_node("MatMul", ["base_lin_vel", "gain"], ["lean"]),
        helper.make_node("Add", ["before", "lean"], ["joint_pos_target"]),
    ])  # fmt: skip
    manifest = read_policy(standing).manifest
    golden = manifest.golden
    still = {name: rows for name, rows in golden.inputs.items() if name != "base_lin_vel"}
    kept = golden.model_copy(update={"inputs": still})
    write_policy(out, model, manifest.model_copy(update={"golden": kept}))
    return out


def test_a_policy_that_asks_for_velocity_gets_it(standing_policy: Path, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(0.0, 0.1, (3, 29))
    asking = _asks_for_velocity(standing_policy, tmp_path / "asks.onnx", weights)
    run = load_run("loopback")
    pilots = [load_pilot(run.model_copy(update={"policy": p}), ROBOT) for p in
              (standing_policy, asking)]  # fmt: skip
    leg, given = OnOneLeg(), CODECS["policy_input"].new()
    for k in range(20):
        names = ("joint_pos", "joint_vel", "imu_quat_wxyz", "imu_gyro", "imu_accel")
        for name, value in zip(names, leg.measure(0.02 * k), strict=True):
            getattr(given, name)[:] = value
        given.robot_time_ns, given.step, given.seq = k * STEP_NS, k, k + 1
        plain, leaning = [pilot.step(given, k).joint_pos_target.copy() for pilot in pilots]
        places = [pilot.locate(given, k) for pilot in pilots]
        assert (places[0].record == places[1].record).all(), "one estimate, asked for or not"
        velocity = places[1].base_lin_vel_b
        assert leaning - plain == pytest.approx(velocity @ weights, abs=1e-5)
    assert np.linalg.norm(velocity) > 0.02
    assert places[1].input_seq == 20 and places[1].robot_time_ns == 19 * STEP_NS


def test_it_is_logged_and_runs_again_to_the_byte(standing_policy: Path, tmp_path: Path) -> None:
    def lose(topic: str, count: int) -> bool:
        return topic == "policy_input" and count == 10

    path = record(tmp_path, standing_policy, 4.0, lose=lose)
    places = Log(path)["odometry"]
    assert len(places) == 200 and (places["height"] > 0.7).all()
    result = replay(Log(path), tmp_path)
    pilot = next(stage for stage in result["stages"] if stage["stage"] == "pilot")
    assert pilot["different"] == 0 and pilot["incomplete"] == 1
    # A policy begins anew with each step 0; where the robot is comes with the snapshot of step 50.
    assert 199 + 150 <= pilot["compared"] <= 199 + 165
