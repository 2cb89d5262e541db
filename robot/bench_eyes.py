"""The rows of `plexus bench` about eyes: what a camera and perception cost control, and themselves.

The simulated robot stands by the shipped policy, once with eyes and once without; one of the two is
stopped while the other is measured.
The camera has no noise and no made-up latency, so that ages are this machine's own.
"""

from __future__ import annotations

import itertools
import math
import time

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.bench import TO_POLICY_S, Nodes, Slot, start_together
from robot.bench_figures import Row, make_row, skips, spread
from robot.bench_floor import Samples, Setup
from robot.bus import Subscriber
from robot.geomap import GeoMap
from robot.messages import PerceptionTiming
from robot.model import compile_model, load_robot
from robot.raycast import DepthRays
from robot.topics import CAMERA

CPU_GOAL, AGE_GOALS_MS = 1.05, (60.0, 120.0)  # of control's tick; p50 and p99
LENGTH_S = 0.4  # of a slot: with the bare map's between, none is stopped for long
PATIENCE_S = 30.0  # longer than the time given, until each row has something
USE_NS = 20_000_000  # a policy of 50 Hz looks at the newest map so often
BLIND = {"policy": "walk", "camera.source": "none"}
EYES = BLIND | {"camera.source": "sim", "camera.noise": None}


def measure(setup: Setup, seconds: dict[str, float]) -> dict[str, Row]:
    """The rows that are named, from the same rounds."""
    left, bare = sum(seconds.values()), BareMap()  # made now: it takes time, and nobody may wait
    with (
        Nodes(setup, "blind", run="sim", given=BLIND) as blind,
        Seeing(setup, "eyes", run="sim", given=EYES) as eyes,
    ):
        # Beside the time that is given: a simulated robot is let down from its gantry first.
        start_together((blind, eyes), min(4.0 * TO_POLICY_S, 2.0 * left))
        end = time.monotonic() + left
        computed = []

        def floor(length: float) -> Samples:
            bare.us.clear()
            bare.play(length / 4.0)
            return blind.slot(length).cpu

        def ours(length: float) -> Samples:
            before = len(eyes.computed_us)
            slot = eyes.slot(length)
            computed.append(
                (Samples(np.array(bare.us)), Samples(np.array(eyes.computed_us[before:])))
            )
            return slot.cpu

        pairs: list[tuple[Samples, Samples]] = []
        # In fixed turns: stopped for two slots, control would take it for a gap in time. A short
        # slot on a busy machine may have no timing message or no frame, then it goes on.
        while time.monotonic() < end or (
            time.monotonic() < end + PATIENCE_S
            and not (any(map(_both, pairs)) and any(map(_both, computed)) and eyes.ages_ms)
        ):
            pairs.append((floor(LENGTH_S), ours(LENGTH_S)))
        rows = {"eyes": _eyes_row(pairs, blind, eyes), "map": _map_row(computed, eyes)}
    return {name: rows[name] for name in seconds}


def _both(pair: tuple[Samples, Samples]) -> bool:
    return all(len(side.us) for side in pair)


def _eyes_row(pairs: list[tuple[Samples, Samples]], blind: Nodes, eyes: Seeing) -> Row:
    shares = {name: round(eyes.cpu_share(name), 4) for name in ("camera", "perception")}
    ages = spread(np.array(eyes.ages_ms))
    p50, p99 = (f"{ages[key]:.0f}" if ages else "?" for key in ("p50", "p99"))
    note = (
        f"CPU of a control tick with camera and perception, {eyes.modes}; floor: without, "
        f"{blind.modes}; camera takes {shares['camera']:.1%} and perception "
        f"{shares['perception']:.1%} of a core; goal {CPU_GOAL} x. Age of the map at use p50 {p50} "
        f"ms (goal {AGE_GOALS_MS[0]:g}), p99 {p99} ms (goal {AGE_GOALS_MS[1]:g})"
    )
    return make_row("eyes", pairs, note, age_ms=ages, shares=shares, **skips(pairs))


def _map_row(pairs: list[tuple[Samples, Samples]], eyes: Seeing) -> Row:
    frames = max(1, len(eyes.computed_us))
    cpu_us = round(1e6 * eyes.cpu_share("perception") * eyes.seconds / frames)
    note = (
        "frame taken up to height map, by the wall clock; floor: a bare GeoMap.update of such a "
        f"frame; all that perception does takes at most {cpu_us} us of CPU a frame"
    )
    return make_row("map", pairs, note, cpu_us_a_frame=cpu_us)


class Seeing(Nodes):
    """Nodes with a camera, and what perception said of its time.

    Attributes:
        computed_us: of each frame.
        ages_ms: of the newest map, at each look of a policy.
    """

    def __enter__(self) -> Seeing:
        super().__enter__()
        node = self.manager.node
        self._timings = Subscriber(
            node.context, self.directory, node.pick("perception_timing"), every=True
        )
        self.computed_us: list[float] = []
        self.ages_ms: list[float] = []
        return self

    def begin(self) -> None:
        """As Nodes', and of maps, too."""
        super().begin()
        self.computed_us.clear()
        self.ages_ms.clear()

    def slot(self, seconds: float) -> Slot:
        """As Nodes', and the maps of it."""
        slot, heard = super().slot(seconds), []
        while message := self._timings.receive():
            if isinstance(message, PerceptionTiming):
                done_ns = message.stamp_ns + message.compute_ms * 1e6
                exposed_ns = done_ns - message.total_ms * 1e6
                if exposed_ns >= self._since_ns:  # not of before the stop
                    heard.append((done_ns, exposed_ns))
                    self.computed_us.append(message.compute_ms * 1e3)
        for (done_ns, exposed_ns), (next_ns, _) in itertools.pairwise(heard):
            uses = np.arange(math.ceil(done_ns / USE_NS) * USE_NS, next_ns, USE_NS)
            self.ages_ms += ((uses - exposed_ns) * 1e-6).tolist()
        return slot


class BareMap:
    """GeoMap.update alone, over a frame of flat ground as the robot's camera sees it.

    Attributes:
        us: of each update so far.
    """

    def __init__(self) -> None:
        robot = load_robot("g1")
        camera, model = robot.cameras[CAMERA], compile_model(robot)
        data = mujoco.MjData(model)
        data.qpos[:7] = (0, 0, 0.76, 1, 0, 0, 0)
        data.qpos[7:] = robot.stand_joint_pos
        mujoco.mj_kinematics(model, data)
        link = model.body(camera.file.link).id
        turn = data.xmat[link].reshape(3, 3)
        position = data.xpos[link] + turn @ camera.position - data.qpos[:3]
        self._depth: NDArray = DepthRays(model, camera).depth(data)
        self._told = tuple(camera.intrinsics.tolist()), turn @ camera.rotation, position
        self._grid, self._frames = GeoMap(), 0
        self.us: list[float] = []

    def play(self, seconds: float) -> None:
        """At the camera's rate for so long, the robot walking on."""
        period = 1.0 / 30.0
        for _ in range(max(2, round(seconds / period))):
            self._frames += 1
            base = np.array([0.01 * self._frames, 0.0, 0.76])
            begin = time.perf_counter_ns()
            self._grid.update(
                self._depth, self._depth > 0.0, *self._told, (1.0, 0.0, 0.0, 0.0), base,
                self._frames * 33_000_000,
            )  # fmt: skip
            self.us.append((time.perf_counter_ns() - begin) * 1e-3)
            time.sleep(period)
