"""The noise of depth cameras: each effect alone, by hand or by counting; the same for one seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drivers.cameras.noise import Delivery, Draw, disturb, draw, misplace
from robot.model import load_robot
from robot.runs import CameraNoise

HEAD = load_robot("g1").cameras["head"]
NONE = (0.0, 0.0)
CLEAN = CameraNoise(
    sigma_floor=NONE, sigma_square=NONE, edge_px=NONE, holes=NONE, near_m=NONE, inverse_step=NONE,
    field_of_view=(1.0, 1.0), pitch=NONE, roll_yaw=NONE, position=NONE, latency_ms=NONE, drop=0.0,
    freeze=0.0,
)  # fmt: skip
SHAPE = (3, 48, 64)


def spoil(depth: np.ndarray, seed: int = 1, **ranges: tuple[float, float]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = CLEAN.model_copy(update=ranges)
    return disturb(depth.astype(np.float32), draw(noise, len(depth), rng), rng)


def flat(z: float) -> np.ndarray:
    return np.full(SHAPE, z, np.float32)


def test_without_noise_nothing_changes():
    depth = np.random.default_rng(0).uniform(0.1, 3.0, SHAPE).astype(np.float32)
    depth[0, :5] = 0.0
    np.testing.assert_array_equal(spoil(depth), depth)
    assert misplace(HEAD, CLEAN, np.random.default_rng(0)).intrinsics == pytest.approx(
        HEAD.intrinsics
    )


def test_the_default_is_what_the_facts_say():
    drawn = draw(CameraNoise(), 2000, np.random.default_rng(1))
    assert dataclasses.asdict(drawn).keys() == {f.name for f in dataclasses.fields(Draw)}
    for name, low, high in (
        ("sigma_floor", 0.002, 0.005), ("sigma_square", 0.005, 0.015), ("holes", 0.0, 0.3),
        ("near_m", 0.2, 0.3), ("edge_px", 0.0, 2.0),
    ):  # fmt: skip
        values = getattr(drawn, name)
        assert low <= values.min() < low + 0.02 * (high - low), name
        assert high >= values.max() > high - 0.02 * (high - low), name


def test_one_seed_gives_one_picture():
    depth = np.random.default_rng(0).uniform(0.3, 3.0, SHAPE)
    every = {name: value for name, value in CameraNoise() if isinstance(value, tuple)}
    np.testing.assert_array_equal(spoil(depth, 5, **every), spoil(depth, 5, **every))
    assert np.any(spoil(depth, 5, **every) != spoil(depth, 6, **every))


@pytest.mark.parametrize("z", [0.5, 2.0])
def test_sigma_grows_with_the_square_of_depth(z: float):
    error = spoil(flat(z), sigma_floor=(0.003, 0.003), sigma_square=(0.01, 0.01)) - z
    assert error.std() == pytest.approx(0.003 + 0.01 * z * z, rel=0.03)
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(error.size)


def test_holes_are_blocks_and_no_more_than_their_share():
    out = spoil(flat(1.0), holes=(0.3, 0.3))
    share = np.mean(out == 0.0, axis=(1, 2))
    assert np.all(share <= 0.31) and np.all(share > 0.1)
    inner = out == 0.0
    together = inner[:, :, 1:] & inner[:, :, :-1]
    assert together.sum() > 0.8 * inner.sum(), "single pixels are no blocks"


def test_near_things_are_not_seen():
    depth = flat(1.0)
    depth[:, :10] = 0.22
    out = spoil(depth, near_m=(0.25, 0.25))
    assert not out[:, :10].any() and out[:, 10:].all()


def test_depth_comes_in_steps_of_its_inverse():
    depth = np.linspace(0.5, 3.0, 3 * 48 * 64).reshape(SHAPE)
    out = spoil(depth, inverse_step=(0.05, 0.05))
    steps = 1.0 / out / 0.05
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert np.all(np.abs(1.0 / out - 1.0 / depth) <= 0.0251)


def test_edges_grow_sideways_by_as_many_pixels_as_drawn_and_flying_pixels_lie_between():
    depth = flat(2.0)
    depth[:, 20:30, 30:34] = 1.0
    out = spoil(depth, edge_px=(2.0, 2.0))
    changed = out != depth
    assert not changed[:, :20].any() and not changed[:, 30:].any(), "sideways only"
    columns = np.flatnonzero(changed.any(axis=(0, 1)))
    assert columns.tolist() == [28, 29, 34, 35]
    new = out[changed]
    assert np.mean(new == 1.0) > 0.5 and np.all((new >= 1.0) & (new < 2.0))
    assert np.any((new > 1.0) & (new < 2.0))
    one = spoil(depth, edge_px=(0.5, 0.5)) != depth
    assert np.flatnonzero(one.any(axis=(0, 1))).tolist() == [29, 34]


def test_a_misplaced_camera_is_off_by_what_was_drawn():
    rng = np.random.default_rng(2)
    turned = misplace(HEAD, CLEAN.model_copy(update={"pitch": (0.05, 0.05)}), rng)
    ahead, before = turned.rotation[:, 2], HEAD.rotation[:, 2]
    assert np.arccos(ahead @ before) == pytest.approx(0.05)
    np.testing.assert_allclose(turned.rotation[:, 0], HEAD.rotation[:, 0], atol=1e-12)
    np.testing.assert_allclose(turned.rotation @ turned.rotation.T, np.eye(3), atol=1e-12)
    wide = misplace(HEAD, CLEAN.model_copy(update={"field_of_view": (1.02, 1.02)}), rng)
    assert wide.intrinsics[0] == pytest.approx(HEAD.intrinsics[0] / 1.02)
    worst = [misplace(HEAD, CameraNoise(), rng) for _ in range(200)]
    off = np.array([w.position - HEAD.position for w in worst])
    assert 0.009 < np.abs(off).max() <= 0.01
    assert turned.calib_hash == HEAD.calib_hash, "it does not know that it is misplaced"


def test_pictures_are_late_lost_and_repeated_as_often_as_said():
    second = 1_000_000_000
    delivery = Delivery(CameraNoise(freeze=0.0), np.random.default_rng(4))
    times = [i * second // 30 for i in range(9000)]
    lost = sum(delivery.fate(t) == "lost" for t in times)
    assert 0.015 < lost / len(times) < 0.025
    late = [delivery.latency_ns(t) for t in times]
    assert 30e6 <= min(late) < 40e6 and 140e6 < max(late) <= 150e6
    changes = [t for t, a, b in zip(times[1:], late[1:], late[:-1], strict=True) if a != b]
    assert len(changes) == 59 and np.diff(changes).min() >= 5 * second
    frozen = Delivery(CameraNoise(freeze=1.0, freeze_s=(0.2, 0.2)), np.random.default_rng(4))
    assert {frozen.fate(t) for t in times[:100]} == {"frozen"}
