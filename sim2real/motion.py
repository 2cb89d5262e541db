"""The motion of a log: states, commands and modes tick by tick, and the base where it is known.

A simulation logs the truth about the base at the policy's rate. Without truth orientation is the
IMU's, the lowest foot stands on the floor and does not slip; where the base is stays unknown.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.config import UserError
from robot.log import Log
from robot.messages import LowCmd, Mode
from robot.model import Robot, compile_model
from robot.runs import NoiseConfig, RunConfig
from robot.terrain import terrain_of

COMMAND = ("joint_pos_target", "joint_vel_target", "effort_ff", "stiffness", "damping")
MEASURED = ("joint_pos", "joint_vel", "imu_quat_wxyz", "imu_gyro")
TRUE = (
    "base_pos_w", "base_quat_wxyz", "base_lin_vel_w", "base_ang_vel_b", "joint_pos", "sim_time_ns",
    "released",
)  # fmt: skip
# Of a good robot; where a log's own noise is zero or unknown.
USUAL_NOISE = NoiseConfig(
    joint_pos=0.001, joint_vel=0.05, imu_quat=0.003, imu_gyro=0.02, imu_accel=0.1
)


class Motion:
    """One run of control in a log, by row: one row per state that the robot reported.

    Args:
        log: where from.
        run: the configuration of the run.
        robot: its joints.

    Attributes:
        times_s: (K,) since the start of the log.
        robot_ns: (K,) the robot's own clock.
        mode: (K,) mode in force when the state was answered.
        states: (K,) measured, with the fields of MEASURED.
        has_truth: the log tells where the base is.
        known: rows whose base is known: those with truth, or all if the log has none.
        free: (K,) False while the robot hung on a gantry, as far as the log tells.
        notes: what a reader of a result must know about its source.

    Raises:
        UserError: there are no states and commands.
    """

    def __init__(self, log: Log, run: RunConfig, robot: Robot) -> None:
        self.log, self.run, self.robot = log, run, robot
        terrain = terrain_of(run.sim.terrain)
        self.model = compile_model(robot, run.sim.collisions, terrain)
        self._data = mujoco.MjData(self.model)
        self.notes = other_machine(log)
        low, high = self._span()
        states = self._read("low_state", ["robot_time_ns", "tick", *MEASURED], low, high)
        first = np.unique(states["robot_time_ns"], return_index=True)[1]
        self.states = states = states[first]
        self._cmds = self._read("low_cmd", ["tick", "mode", *COMMAND], low, high)
        if not len(states) or not len(self._cmds):
            raise UserError(f"{log.path}: has no low_state and low_cmd of one run of control")
        offset_ns = int(log.metadata.get("clock_offset_ns", 0)) - log.start_ns
        self.times_s = (states["stamp_ns"] + offset_ns) * 1e-9
        self.robot_ns: NDArray[np.int64] = states["robot_time_ns"]
        self._pair_commands()
        self._pair_truth(low, high)

    def _span(self) -> tuple[int, int]:
        """Stamps from (included) to (excluded) of the longest run of the control process."""
        cmds = self._read("low_cmd", ["instance"], 0, 1 << 62)
        if not len(cmds):
            return 0, 0
        begins = np.flatnonzero(np.diff(cmds["instance"], prepend=~cmds["instance"][:1]))
        sizes = np.diff(begins, append=len(cmds))
        longest = int(sizes.argmax())
        if len(begins) > 1:
            self.notes.append(
                f"control was restarted {len(begins) - 1} times; its longest run is looked at"
            )
        stamps = [0, *cmds["stamp_ns"][begins[1:]].tolist(), 1 << 62]
        return stamps[longest], stamps[longest + 1]

    def _read(self, topic: str, fields: list[str], low: int, high: int) -> NDArray[Any]:
        if topic not in self.log.topics or not self.log.topics[topic].count:
            return np.zeros(0, [(name, "i8") for name in ("stamp_ns", *fields)])
        read = self.log.read(topic, ["stamp_ns", *fields])
        return read[(read["stamp_ns"] >= low) & (read["stamp_ns"] < high)]

    def _pair_commands(self) -> None:
        ticks = self._cmds["tick"]
        order = np.argsort(ticks, kind="stable")
        at = np.searchsorted(ticks[order], self.states["tick"]).clip(max=len(ticks) - 1)
        self._cmd_row = order[at]
        found = ticks[self._cmd_row] == self.states["tick"]
        self.mode: NDArray[np.uint8] = self._cmds["mode"][self._cmd_row]
        self._columns = {name: self._cmds[name] for name in COMMAND}
        periods = np.round(np.diff(self.robot_ns) / self.run.period_ns)
        breaks = ~found
        breaks[1:] |= periods != 1
        self._breaks = np.concatenate([[0], np.cumsum(breaks)])

    def _pair_truth(self, low: int, high: int) -> None:
        truth = self._read("truth", list(TRUE), low, high)
        self.has_truth = bool(len(truth))
        self._truth = truth
        count = len(self.states)
        self._truth_row = np.full(count, -1)
        self.known, self.free = np.arange(count), np.ones(count, bool)
        if not self.has_truth:
            self.notes.append(
                "the log has no truth: orientation is the IMU's, the lowest foot stands still on "
                "the floor; whether the robot hung on a gantry is not known"
            )
            return
        at = np.searchsorted(self.robot_ns, truth["sim_time_ns"])
        inside = at < count
        same = self.robot_ns[at[inside]] == truth["sim_time_ns"][inside]
        rows = np.flatnonzero(inside)[same]
        self._truth_row[at[rows]] = rows
        self.known = np.flatnonzero(self._truth_row >= 0)
        before = np.searchsorted(truth["sim_time_ns"], self.robot_ns, "right") - 1
        self.free = (before >= 0) & (truth["released"][before.clip(min=0)] > 0)

    # --- rows ---

    def whole(self, row: int, ticks: int) -> bool:
        """The log has the state at `row` and all commands and states of the `ticks` after it."""
        end = row + ticks
        if row < 0 or end >= len(self.states):
            return False
        return bool(self._breaks[end + 1] == self._breaks[row + 1])

    def row_at(self, time_s: float) -> int:
        """The first row with a known base at or after a time.

        Raises:
            UserError: there is none.
        """
        times = self.times_s[self.known]
        at = int(np.searchsorted(times, time_s - 1e-6))
        if time_s < 0.0 or at == len(times):
            last = f"{times[-1]:.2f}" if len(times) else "no time at all"
            raise UserError(
                f"{self.log.path}: got {time_s:g} s; expected a time from 0 to {last} s after the "
                "start of the log"
            )
        return int(self.known[at])

    def fill(self, cmd: LowCmd, row: int) -> None:
        """Make `cmd` what was sent in answer to a row's state."""
        at = self._cmd_row[row]
        for name, column in self._columns.items():
            getattr(cmd, name)[:] = column[at]
        cmd.mode = int(self.mode[row])

    def joint_pos(self, row: int) -> NDArray[np.float64]:
        """(N,) rad, true where the log knows it, else measured."""
        true = self._truth_row[row]
        return self._truth["joint_pos"][true] if true >= 0 else self.states["joint_pos"][row]

    def state(
        self, row: int, rng: np.random.Generator | None = None, noise: NoiseConfig = USUAL_NOISE
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the robot was and how it moved.

        Args:
            row: one of `known`.
            rng: if given, whatever of the state was measured gets noise once more.
            noise: so much.

        Returns:
            qpos and qvel of the model.
        """
        pos, vel, quat, gyro = (self.states[name][row].copy() for name in MEASURED)
        if rng:
            vel += rng.normal(0.0, noise.joint_vel, vel.shape)
        if (true := self._truth_row[row]) >= 0:
            t = self._truth[true]
            qpos = np.concatenate([t["base_pos_w"], t["base_quat_wxyz"], t["joint_pos"]])
            return qpos, np.concatenate([t["base_lin_vel_w"], t["base_ang_vel_b"], vel])
        if rng:
            pos += rng.normal(0.0, noise.joint_pos, pos.shape)
            quat += rng.normal(0.0, noise.imu_quat / 2.0, 4)
            gyro += rng.normal(0.0, noise.imu_gyro, 3)
        return self._stand(pos, vel, quat / np.linalg.norm(quat), gyro)

    def _stand(self, pos: Any, vel: Any, quat: Any, gyro: Any) -> tuple[NDArray, NDArray]:
        """Base height and velocity that put the lowest foot on the floor, at rest."""
        model, data = self.model, self._data
        data.qpos[:], data.qvel[:] = [0, 0, 0, *quat, *pos], [0, 0, 0, *gyro, *vel]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        point, body = lowest_point(model, data)
        data.qpos[2] = -point[2]
        jacobian = np.zeros((3, model.nv))
        mujoco.mj_jac(model, data, jacobian, None, point, body)
        data.qvel[:3] = -jacobian @ data.qvel
        return data.qpos.copy(), data.qvel.copy()

    def poses(
        self, between: tuple[float, float] | None = None, rate_hz: float = 50.0
    ) -> list[tuple[float, NDArray[np.float64]]]:
        """(s since the start of the log, qpos) of the known rows, at most so many a second.

        Raises:
            UserError: there are not two of them.
        """
        low, high = between or (-np.inf, np.inf)
        poses: list[tuple[float, NDArray[np.float64]]] = []
        slot = -1
        for row in self.known.tolist():
            time_s = float(self.times_s[row])
            if low <= time_s < high and int(time_s * rate_hz + 1e-6) != slot:
                slot = int(time_s * rate_hz + 1e-6)
                poses.append((time_s, self.state(row)[0]))
        if len(poses) < 2:
            raise UserError(
                f"{self.log.path}: has no motion between {low:g} and {high:g} s; the log lasts "
                f"{self.log.duration_s:.2f} s"
            )
        return poses

    def mode_name(self, row: int) -> str:
        """Name of the mode in force."""
        return Mode(int(self.mode[row])).name


def lowest_point(model: mujoco.MjModel, data: mujoco.MjData) -> tuple[NDArray[np.float64], int]:
    """(3,) m, world: the lowest point of all foot capsules; and the body that it belongs to."""
    lowest, owner = np.array([0.0, 0.0, np.inf]), 0
    for i in range(model.ngeom):
        if "foot" not in model.geom(i).name or model.geom_type[i] != mujoco.mjtGeom.mjGEOM_CAPSULE:
            continue
        radius, half = model.geom_size[i, :2]
        axis = data.geom_xmat[i].reshape(3, 3)[:, 2]
        point = data.geom_xpos[i] - np.sign(axis[2]) * half * axis - [0.0, 0.0, radius]
        if point[2] < lowest[2]:
            lowest, owner = point, int(model.geom_bodyid[i])
    return lowest, owner


def start_noise(run: RunConfig) -> NoiseConfig:
    """Size of the sensors' noise: the run's own, the usual one where that is zero."""
    own = run.sim.noise.model_dump()
    usual = USUAL_NOISE.model_dump()
    return NoiseConfig(**{name: value or usual[name] for name, value in own.items()})


def other_machine(log: Log) -> list[str]:
    """One sentence for each thing that makes physics here differ from physics there in rounding."""
    here = {"mujoco-core": version("mujoco-core"), "machine": platform.machine()}
    there: dict[str, str] = json.loads(log.metadata.get("versions") or "{}")
    there["machine"] = log.metadata.get("machine", "")
    return [
        f"{name} was {there[name]} when the log was written and is {now} here; "
        "the last digits of physics may differ"
        for name, now in here.items()
        if there.get(name) and there[name] != now
    ]


def need_policy_phase(motion: Motion, modes: Sequence[Mode] = (Mode.POLICY,)) -> NDArray[np.int64]:
    """Rows in which a policy moved the robot.

    Raises:
        UserError: there are none.
    """
    rows = np.flatnonzero(np.isin(motion.mode, [int(mode) for mode in modes]))
    if not len(rows):
        had = ", ".join(Mode(int(m)).name for m in np.unique(motion.mode))
        raise UserError(f"{motion.log.path}: no policy moved the robot; modes in the log: {had}")
    return rows
