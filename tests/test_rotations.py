"""Rotations against MuJoCo's own, and what lies between two by hand."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest

from robot.rotations import heading_of, quat_between, rotation_matrix


def yawed(angle: float) -> np.ndarray:
    return np.array([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])


def test_a_matrix_is_that_of_mujoco():
    for quat in np.random.default_rng(0).standard_normal((50, 4)):
        quat /= np.linalg.norm(quat)
        expected = np.zeros(9)
        mujoco.mju_quat2Mat(expected, quat)
        assert rotation_matrix(quat) == pytest.approx(expected.reshape(3, 3), abs=1e-15)


@pytest.mark.parametrize("angle", [0.0, 0.3, -2.9])
def test_the_heading_is_the_yaw_also_of_a_leaning_body(angle: float):
    lean = np.array([math.cos(0.1), 0.0, math.sin(0.1), 0.0])
    quat = np.zeros(4)
    mujoco.mju_mulQuat(quat, yawed(angle), lean)
    assert heading_of(rotation_matrix(quat)) == pytest.approx(angle)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_between_two_orientations_it_goes_the_short_way(sign: float):
    before, after = yawed(0.10), sign * yawed(0.14)
    assert quat_between(before, after, 0.0) == pytest.approx(before)
    assert quat_between(before, after, 0.5) == pytest.approx(yawed(0.12))
    got = quat_between(before, after, 0.25)
    assert got == pytest.approx(yawed(0.11), abs=1e-6) and np.linalg.norm(got) == pytest.approx(1)
