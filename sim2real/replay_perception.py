"""Runs perception again over the frames and states that each height map names (level R1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot.log import Log
from robot.log_writer import cpu_name
from robot.messages import Frame, LowState
from robot.model import Robot
from robot.perception import STATE_TICKS, Perception
from robot.runs import RunConfig
from robot.topics import CAMERA, make_codecs
from sim2real.replay import OTHER_CPU_TOLERANCE, Comparer, Rows, StageResult


class PerceptionReplay:
    """Each height map of a log, from the start of the process that published it.

    A map remembers more than a snapshot holds, so after a lost input nothing can be run again until
    the process begins anew.

    Args:
        log: where from.
        run: the configuration of the run.
        robot: its cameras.
    """

    def __init__(self, log: Log, run: RunConfig, robot: Robot) -> None:
        self.log, self.run, self.robot = log, run, robot
        self.codecs = make_codecs(robot)
        names = ("height_map", f"frame.{CAMERA}", "low_state")
        self.maps, self.frames, self.states = (Rows(log, n, self.codecs[n]) for n in names)
        self.result = StageResult("perception")
        self.offset_ns = int(log.metadata.get("clock_offset_ns", 0)) - log.start_ns
        self._frame_at = {
            name: row
            for row, name in enumerate(zip(self.frames.instances, self.frames.seqs, strict=True))
        }
        ticks = self.states.records["tick"].astype(np.int64)
        looked_at = np.flatnonzero(ticks % STATE_TICKS == 0)
        instances = self.states.records["instance"]
        # By publisher: rows that perception looks at, their seqs and ticks.
        self._by_instance: dict[int, tuple[NDArray, NDArray, NDArray]] = {}
        for instance in np.unique(instances[looked_at]).tolist():
            rows = looked_at[instances[looked_at] == instance]
            self._by_instance[instance] = rows, self.states.records["seq"][rows], ticks[rows]
        self._last = (0, 0)  # instance of the states, and end of those taken among its rows

    def __call__(self) -> StageResult:
        """Every height map that the log holds."""
        maps, result = self.maps, self.result
        same_cpu = self.log.metadata.get("cpu") == cpu_name()
        tolerance = 0.0 if same_cpu else OTHER_CPU_TOLERANCE
        comparer = Comparer(maps, list(range(len(maps))), result, self.robot, tolerance)
        perception, synced = self._new(), False
        before: tuple[int, int] | None = None
        for row in range(len(maps)):
            name = maps.instances[row], maps.seqs[row]
            if before is None or name[0] != before[0]:
                perception, synced = self._new(), name[1] == 1
                self._last = (0, 0)
            elif name[1] != before[1] + 1:
                synced = False
            before = name
            if not synced:
                result.skip("what the map remembered is lost")
            elif why := self._feed(perception, row):
                synced = False
                result.skip(why)
            else:
                self._step(perception, comparer, row)
        return result

    def _new(self) -> Perception:
        camera = self.robot.cameras[CAMERA]
        return Perception(self.robot, camera, self.codecs, self.run.timing_factor)

    def _feed(self, perception: Perception, row: int) -> str:
        """Let it hear the states between the last map and this one; why that cannot be, or ""."""
        record = self.maps.records[row]
        frame = int(record["frame_instance"]), int(record["frame_seq"])
        if frame[0] and frame not in self._frame_at:
            return "the frame it consumed is lost"
        count, instance = int(record["states"]), int(record["state_instance"])
        if not count:
            return ""
        rows, seqs, ticks = self._by_instance.get(instance, (np.zeros(0, np.int64),) * 3)
        end = int(np.searchsorted(seqs, record["state_seq"], "right"))
        known = self._last[0] == instance
        begin = self._last[1] if known else end - count
        taken = ticks[max(begin - known, 0) : end]
        if begin < 0 or end - begin != count or np.any(np.diff(taken) != STATE_TICKS):
            return "a low_state it consumed is lost"
        state: LowState = self.states.codec.new()
        for at in rows[begin:end].tolist():
            perception.hear(self.states.fill(state, at))
        self._last = (instance, end)
        return ""

    def _step(self, perception: Perception, comparer: Comparer, row: int) -> None:
        record = self.maps.records[row]
        name = int(record["frame_instance"]), int(record["frame_seq"])
        frame: Frame | None = None
        if name[0]:
            frame = self.frames.message(self._frame_at[name])
        now_ns = int(record["now_ns"])
        comparer.at = row
        out = perception.step(frame, now_ns)
        comparer.meet(out, row, now_ns, (now_ns + self.offset_ns) * 1e-9)
        self.result.steps += 1
