"""A simulated robot that sees, in lockstep: camera and perception beside control and pilot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from drivers.cameras import make_camera
from robot.log_writer import LogWriter
from robot.messages import Frame, HeightMap, Message, Truth
from robot.model import Robot
from robot.perception import Perception
from robot.runs import RunConfig
from sim2real.lockstep import Lockstep, LockstepOptions

TOPIC = "frame.head"


class Seeing(Lockstep):
    """Lockstep with eyes; what the camera gives passes through `tap_frame` on its way.

    Args:
        run: with a camera.
        pilot: as Lockstep's.
        robot: with a calibration.
        log: gets frames and height maps too.
    """

    def __init__(
        self,
        run: RunConfig,
        pilot: Any,
        robot: Robot,
        velocity: tuple[float, float, float] = (0.0, 0.0, 0.0),
        log: LogWriter | None = None,
    ) -> None:
        super().__init__(run, pilot, velocity, LockstepOptions(stream=False, log=log), robot=robot)
        self._told: list[Truth] = []
        self.camera = make_camera(run, robot, "head", self._truths, lambda: self.now_ns)
        self.perception = Perception(robot, robot.cameras["head"], self.codecs, run.timing_factor)
        self.frame: Frame = self.codecs[TOPIC].new()
        self.maps: list[HeightMap] = []
        self.tap_frame: Callable[[Frame], Frame | None] = lambda frame: frame

    def _truths(self) -> Iterator[Truth]:
        told, self._told = self._told, []
        yield from told

    def send(self, topic: str, message: Message, stamp_ns: int) -> int:
        seq = super().send(topic, message, stamp_ns)
        if topic == "low_state":
            self.perception.hear(message)  # type: ignore[arg-type]
        elif topic == "truth":
            self._told.append(message.copy())
            self._look()
        return seq

    def _look(self) -> None:
        """As the two processes do, 50 times a second: the newest frame, or none."""
        frame = None
        while self.camera.read(self.frame, 0):
            self.frame.t_pub_ns = self.now_ns
            self._outboxes[TOPIC].stamp(self.frame, self.frame.t_mid_ns)
            self._keep(TOPIC, self.frame)
            frame = self.tap_frame(self.frame)
        if frame is not None or self.ticks % 50 == 0:
            out = self.perception.step(frame, self.now_ns)
            self._outboxes["height_map"].stamp(out, self.now_ns)
            self._keep("height_map", out)
            self.maps.append(out.copy())
