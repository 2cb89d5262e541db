"""Faults V1 and V2 on a robot that walks, in lockstep, with real bytes: noticed, named, bounded.

The single checks of a frame are in test_perception.py; here is what becomes of the heights, how
soon, and that the blind walk goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robot.geomap import SCAN_XY
from robot.messages import Encoding, Frame, FrameFault, HeightMap, Mode
from robot.model import load_robot
from robot.perception import AGE_LIMIT_NS, gate_names
from robot.pilot import load_pilot
from robot.runs import load_run
from robot.stepped_eyes import TOPIC
from robot.terminal import View
from robot.topics import make_codecs
from sim2real.lockstep import Lockstep, LockstepOptions
from tests.test_faults import FOREVER, Fault

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
HEAD = ROBOT.cameras["head"]
MS = 1_000_000
FRAME_MS = 1000.0 / HEAD.file.rate_hz
STEADY = {
    "pitch": [0.0, 0.0], "roll_yaw": [0.0, 0.0], "position": [0.0, 0.0],
    "field_of_view": [1.0, 1.0], "latency_ms": [40.0, 40.0], "drop": 0.0, "freeze": 0.0,
}  # fmt: skip
WALKED_S = 6.0  # after which a good map is trusted


def edited(edit: Callable[[Frame], Any]) -> Callable[[bytes], bytes]:
    """Changes the fields of a frame on its way."""

    def change(raw: bytes) -> bytes:
        frame: Frame = CODECS[TOPIC].new()
        frame.payload[:] = raw
        edit(frame)
        return bytes(frame.payload)

    return change


def put(**fields: int) -> Callable[[bytes], bytes]:
    return edited(lambda frame: [setattr(frame, name, value) for name, value in fields.items()])


def keep_picture() -> Callable[[bytes], bytes]:
    """The camera counts on, but shows what it showed first."""
    kept: list[np.ndarray] = []

    def edit(frame: Frame) -> None:
        kept.append(frame.data.copy())
        frame.data[:] = kept[0]

    return edited(edit)


class Walking:
    """The shipped walk with a camera, limits as on a robot; frames meet `fault` on their way."""

    def __init__(self, **noise: list[float]) -> None:
        run = load_run(
            "sim",
            {"policy": "walk", "camera.source": "sim", "camera.noise": STEADY | noise,
             "timing_factor": 1.0, "seed": 3},
        )  # fmt: skip
        self.fault = Fault("off", TOPIC)
        options = LockstepOptions(tap=lambda *told: self.fault(*told), stream=False)
        pilot = load_pilot(run, ROBOT)
        self.lockstep = Lockstep(run, pilot, (0.4, 0.0, 0.0), options, robot=ROBOT)
        assert self.lockstep.eyes is not None
        self.out: HeightMap = self.lockstep.eyes.perception.out
        self.view = View(self.lockstep.teleop, run)
        assert self.lockstep.run_until(Mode.POLICY, 12.0)
        self.lockstep.run_for(WALKED_S)

    def ms_until(self, true: Callable[[], bool], most_ms: int) -> float:
        """Simulated ms until so; control must go on walking."""
        begin = self.lockstep.now_ns
        while not true():
            assert self.lockstep.now_ns - begin < most_ms * MS, self.eyes
            self.lockstep.step()
            assert self.lockstep.control.machine.mode == Mode.POLICY
        return (self.lockstep.now_ns - begin) / MS

    def begin(self, fault: Fault) -> None:
        self.fault = fault
        fault.begin_ns, fault.end_ns = self.lockstep.now_ns, FOREVER

    @property
    def eyes(self) -> str:
        """What the operator's table says."""
        self.view.hear(self.out.copy())
        return self.view._eyes(self.lockstep.now_ns).plain

    @property
    def gate(self) -> list[str]:
        return gate_names(int(self.out.gate))

    def truth_error(self) -> np.ndarray:
        """(187,) m, ground of the next map above the flat floor."""
        data = self.lockstep.driver.data  # type: ignore[attr-defined]
        while True:
            height = float(data.qpos[2])
            self.lockstep.step()
            if self.out.now_ns == self.lockstep.now_ns - self.lockstep.run.period_ns:
                return height - self.out.height


@pytest.fixture(scope="module")
def walking() -> Walking:
    walking = Walking()
    assert walking.gate == [] and walking.eyes.startswith("the ground is known within ")
    return walking


V2 = FrameFault
ROWS = {
    "V1 unplugged": (Fault("off", TOPIC), None),
    "V2 stuck on the bus": (Fault("stuck", TOPIC), None),
    "V2 frozen": (Fault("garbage", TOPIC, keep_picture()), V2.FROZEN),
    "V2 black": (Fault("garbage", TOPIC, edited(lambda f: f.data.fill(0))), V2.BLACK),
    "V2 wrong size": (Fault("wrong", TOPIC, put(width=48, height=64)), V2.SIZE),
    "V2 wrong encoding": (Fault("wrong", TOPIC, put(encoding=int(Encoding.GRAY8))), V2.SIZE),
    "V2 garbage": (Fault("garbage", TOPIC, lambda raw: raw[:4] + raw[:3:-1]), None),
    "V2 late": (Fault("delayed", TOPIC, period=9), V2.LATE),
    "V2 stamps backwards": (Fault("wrong", TOPIC, put(t_mid_ns=1)), V2.BACKWARDS),
    "V2 other calibration": (Fault("wrong", TOPIC, put(calib_hash=7)), V2.CALIBRATION),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_walking_robot_without_good_frames_gets_flat_ground_says_so_and_recovers(
    walking: Walking, name: str
) -> None:
    fault, cause = ROWS[name]
    walking.ms_until(lambda: not walking.gate, 8000)
    before = walking.out.refused.copy()
    walking.begin(fault)
    try:
        took = walking.ms_until(lambda: "old" in walking.gate, 400)
        walking.lockstep.run_for(0.25)
        assert walking.gate[0] == "old" and walking.eyes.startswith("flat ground is assumed: old")
        np.testing.assert_allclose(walking.out.height, walking.out.base_height)
    finally:
        walking.fault.end_ns = walking.lockstep.now_ns
    # The newest good frame was exposed a frame and its latency before the fault began at most.
    assert took <= AGE_LIMIT_NS / MS + 50 + 2, took
    refused = walking.out.refused - before
    if cause is None:
        assert not refused.any()
    else:
        assert refused[cause] >= 2 and refused.sum() == refused[cause]
        assert f"{walking.out.refused[cause]} {cause.name.lower()}" in walking.eyes
    back = walking.ms_until(lambda: "old" not in walking.gate, 500)
    assert back <= 40.0 + 2 * FRAME_MS + 2, back


# --- wrong calibration that no hash tells -------------------------------------------------------


@pytest.mark.parametrize(
    "noise",
    [{"pitch": [0.0524, 0.0524]}, {"pitch": [-0.0524, -0.0524]},
     {"field_of_view": [1.05, 1.05]}, {"field_of_view": [0.95, 0.95]}],
    ids=["3 degrees higher", "3 degrees lower", "wider by 5 %", "narrower by 5 %"],
)  # fmt: skip
def test_a_camera_mounted_or_zoomed_a_little_otherwise_is_bounded(
    noise: dict[str, list[float]],
) -> None:
    walking, errors = Walking(**noise), []
    for _ in range(40):
        walking.lockstep.run_for(0.1)
        if not walking.gate:
            errors.append(walking.truth_error())
    assert walking.lockstep.control.machine.mode == Mode.POLICY
    if not errors:  # the feet have found it
        assert "contact" in walking.gate and "contact" in walking.eyes
        return
    off = np.abs(np.array(errors))
    p95, ahead = np.percentile(off, 95), off[:, SCAN_XY[:, 0] > 0.4].mean()
    print(f"{noise}: {len(errors)} of 40 trusted, {off.mean():.3f}, {p95:.3f}, {ahead:.3f} m")
    assert off.mean() < 0.05 and p95 < 0.08


def test_a_camera_that_looks_far_beside_its_calibration_is_found_by_the_feet() -> None:
    walking = Walking(pitch=[0.26, 0.26])  # 15 degrees: ground ahead is 20 cm too low
    shut = 0
    for _ in range(40):
        walking.lockstep.run_for(0.1)
        shut += bool(walking.gate)
    assert shut >= 36 and "contact" in walking.gate, (shut, walking.gate)
    assert "flat ground is assumed: " in walking.eyes and "contact" in walking.eyes
