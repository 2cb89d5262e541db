"""Moves arm targets one step towards joint angles or a point: in limits, no faster, off the body.

A step is a small quadratic programme over the arm joints: come as near as the wish says, while no
joint passes its limit and nothing of an arm comes nearer to the robot than `CLEAR`. Pairs and
distances are those of MuJoCo's own collision detection. It knows no operator and no socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from robot.model import FloatArray, Robot

NEAR = 0.06  # m, pairs that are nearer than this are looked after
CLEAR = 0.015  # m, nearer than this no step goes
LEAST = 0.005  # m, what is left of CLEAR where a step's bend was not foreseen
CLOSING = 0.5  # share of the room to CLEAR that one step may use
PULL = 0.05  # m, the hand is drawn by no more than this at a time
DAMPING = 1e-3  # m^2/rad^2, beside the squared reach of a joint, about 0.1
# m: with a stretched arm the hand's way bends as much as the arm is long. Damping by so much of the
# pull keeps an arm still that is drawn beyond its reach (without, it swung for ever).
BEND = 0.5
POSTURE = 5e-4  # m^2/rad^2: what draws elbow and wrist to the stand pose while the hand moves
SWEEPS = 60  # of the dual, whose rows are few
ROUNDING = 1e-6  # rad, m: what is nothing


class Hands:
    """Kinematics of the arms on a robot whose pelvis is the origin, unturned.

    Args:
        robot: joints, limits and stand pose.
        sites: one site of the MJCF per hand: the point that is drawn.
    """

    def __init__(self, robot: Robot, sites: Sequence[str]) -> None:
        spec = mujoco.MjSpec.from_file(str(robot.mjcf))
        for geom in spec.geoms:
            geom.margin = NEAR
        model = self._model = spec.compile()
        self._data = mujoco.MjData(model)
        self._data.qpos[:7] = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
        joints = [model.joint(name).id for name in robot.joint_names]
        self._qpos = model.jnt_qposadr[joints]
        arms = np.array(joints)[robot.arm_joints]
        self._arm_qpos, self._arm_dofs = model.jnt_qposadr[arms], model.jnt_dofadr[arms]
        self._sites = [model.site(name).id for name in sites]
        self._is_arm = self._below(model.jnt_bodyid[arms])
        self._low, self._high = robot.position_limit[robot.arm_joints].T
        self._rest = robot.stand_joint_pos[robot.arm_joints]
        self._jac, self._other = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self.see(robot.stand_joint_pos)

    def _below(self, bodies: NDArray[np.int32]) -> NDArray[np.bool_]:
        """(bodies,) True for these and all that hang on them."""
        below = np.zeros(self._model.nbody, bool)
        below[bodies] = True
        for body in range(1, self._model.nbody):  # parents come first
            below[body] |= below[self._model.body_parentid[body]]
        return below

    def see(self, joint_pos: FloatArray) -> None:
        """Take over where legs and waist are. Args: (N,) rad."""
        self._data.qpos[self._qpos] = joint_pos

    def places(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Where a picture finds each hand: the row of its body among all, and the point in it."""
        model = self._model
        return [
            {
                "name": name,
                "body": int(model.site_bodyid[site]) - 1,
                "at": model.site_pos[site].tolist(),
            }
            for name, site in zip(names, self._sites, strict=True)
        ]

    def points(self, arms: FloatArray) -> FloatArray:
        """(hands, 3) where the hands are, m in the pelvis' frame, with the arm joints at `arms`."""
        self._place(arms)
        return self._data.site_xpos[self._sites].copy()

    def room(self, arms: FloatArray) -> float:
        """Least distance of an arm to another part of the robot, m; NEAR: nothing is nearer."""
        self._place(arms)
        return min((dist for dist, _ in self._close()), default=NEAR)

    def toward(self, arms: FloatArray, goal: FloatArray, most: float) -> FloatArray:
        """One step in a straight line, as far as nothing is in the way.

        Args:
            arms: (A,) rad, where the arms are told to be now.
            goal: (A,) rad; beyond a limit means the limit.
            most: rad that no joint moves further than.

        Returns:
            (A,) rad.
        """
        wish = np.clip(goal, self._low, self._high) - arms
        far = np.abs(wish).max()
        self._place(arms)
        return self._step(arms, np.eye(len(arms)), wish * min(1.0, most / max(far, most)), most)

    def reach(self, arms: FloatArray, hand: int, point: ArrayLike, most: float) -> FloatArray:
        """One step of a hand towards a point, by damped least squares; as `toward`.

        Args:
            arms: (A,) rad, where the arms are told to be now.
            hand: row of the sites.
            point: (3,) m in the pelvis' frame.
            most: rad that no joint moves further than.
        """
        self._place(arms)
        site = self._sites[hand]
        error = np.asarray(point) - self._data.site_xpos[site]
        pull = error * min(1.0, PULL / max(np.linalg.norm(error), PULL))
        far = np.linalg.norm(pull)
        mujoco.mj_jacSite(self._model, self._data, self._jac, None, site)
        jac = self._jac[:, self._arm_dofs]
        # Off the point only: a hand that is where it should be has an elbow that stays.
        posture = POSTURE * far / PULL * jac.any(axis=0)
        cost = jac.T @ jac + np.diag(DAMPING + BEND * far + posture)
        return self._step(arms, cost, jac.T @ pull + posture * (self._rest - arms), most)

    def _place(self, arms: FloatArray) -> None:
        model, data = self._model, self._data
        data.qpos[self._arm_qpos] = arms
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)

    def _close(self) -> list[tuple[float, mujoco.MjContact]]:
        """Contacts of arms, touching or near, with their distances in m."""
        body = self._model.geom_bodyid
        return [
            (contact.dist, contact)
            for contact in self._data.contact
            if self._is_arm[body[contact.geom[0]]] or self._is_arm[body[contact.geom[1]]]
        ]

    def _step(
        self, arms: FloatArray, cost: FloatArray, gain: FloatArray, most: float
    ) -> FloatArray:
        """The step x that is least in x cost x / 2 - gain x and allowed; `arms` are placed."""
        close = self._close()
        rows, rooms = self._fences(arms, close, most)
        step = minimise(cost, gain, rows, rooms)
        # All allowances are positive or zero, so a part of an allowed step is allowed.
        step *= min(1.0, most / max(np.abs(step).max(), 1e-12))
        least = min(LEAST, min((dist for dist, _ in close), default=NEAR))
        for _ in range(4):
            there = np.clip(arms + step, self._low, self._high)
            if self.room(there) >= least:
                return there
            step = step / 2
        return arms.copy()

    def _fences(
        self, arms: FloatArray, close: list[tuple[float, mujoco.MjContact]], most: float
    ) -> tuple[FloatArray, FloatArray]:
        """(n, A) rows and (n,) allowances of rows @ step <= allowance: limits, and pairs nearby."""
        one = np.eye(len(arms))
        below, above = np.maximum(arms - self._low, 0.0), np.maximum(self._high - arms, 0.0)
        rows = [-one[below < most], one[above < most]]
        rooms = [below[below < most], above[above < most]]
        for dist, contact in close:
            first, second = self._model.geom_bodyid[contact.geom]
            mujoco.mj_jac(self._model, self._data, self._jac, None, contact.pos, first)
            mujoco.mj_jac(self._model, self._data, self._other, None, contact.pos, second)
            closing = contact.frame[:3] @ (self._jac - self._other)[:, self._arm_dofs]
            rows.append(closing[None])
            rooms.append(np.array([CLOSING * max(dist - CLEAR, 0.0)]))
        return np.concatenate(rows), np.concatenate(rooms)


def minimise(cost: FloatArray, gain: FloatArray, rows: FloatArray, rooms: FloatArray) -> FloatArray:
    """x that is least in x cost x / 2 - gain x, with rows @ x <= rooms; 0 is always allowed.

    Args:
        cost: (n, n), positive definite.
        gain: (n,).
        rows: (m, n).
        rooms: (m,), none negative.

    Source: Hildreth's method, coordinate ascent on the dual (Hildreth 1957).
    """
    inverse = np.linalg.inv(cost)
    free = inverse @ gain
    if not len(rows) or (rows @ free <= rooms).all():
        return free
    spread = rows @ inverse @ rows.T
    short = rooms - rows @ free
    weights = np.zeros(len(rows))
    for _ in range(SWEEPS):
        for i in range(len(rows)):
            rest = short[i] + spread[i] @ weights - spread[i, i] * weights[i]
            weights[i] = max(0.0, -rest / max(spread[i, i], 1e-12))
    step = free - inverse @ rows.T @ weights
    # What the sweeps have left over is taken back: the whole step shrinks until it is allowed.
    over = rows @ step
    shares = np.where(over > rooms, (rooms + ROUNDING) / np.maximum(over, ROUNDING), 1.0)
    return step * min(1.0, shares.min())
