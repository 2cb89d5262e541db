"""The simulated camera and perception in one process on simulated time, for lockstep and the judge.

The same camera and stage as in their processes; what lies between them is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from drivers.cameras.sim import SimCamera
from robot.messages import Codec, Frame, HeightMap, LowState, Message, Truth
from robot.model import Robot
from robot.perception import Perception
from robot.perception_node import IDLE_MS
from robot.runs import RunConfig
from robot.topics import CAMERA

TOPIC = f"frame.{CAMERA}"


class SteppedEyes:
    """Truths and states in, frames and height maps out.

    Args:
        run: the camera's noise, seed, terrain, timing factor.
        robot: with the camera's calibration.
        codecs: topic name to layout.
        send: takes topic, message and stamp (ns); numbers the message and passes it on.
        arrive: the frames that reach perception where this one was sent.

    Raises:
        UserError: the robot has no camera that can be simulated or mapped.
    """

    def __init__(
        self,
        run: RunConfig,
        robot: Robot,
        codecs: dict[str, Codec],
        send: Callable[[str, Message, int], object],
        arrive: Callable[[Frame], Iterable[Frame]] = lambda frame: (frame,),
    ) -> None:
        calibration = robot.cameras[CAMERA]
        self._truths: list[Truth] = []
        self._send, self._arrive = send, arrive
        self._now_ns = self._told_ns = 0
        self._frame: Frame = codecs[TOPIC].new()
        self.perception = Perception(robot, calibration, codecs, run.timing_factor)
        self._camera = SimCamera(run, robot, calibration, self._take, lambda: self._now_ns)

    def hear(self, message: Truth | LowState) -> None:
        """What control says: truths are for the camera, states for perception."""
        if isinstance(message, Truth):
            self._truths.append(message.copy())
        else:
            self.perception.hear(message)

    def step(self, now_ns: int) -> HeightMap | None:
        """One moment of both; the height map if there is a new one."""
        if not self._told_ns:
            self._told_ns = now_ns
        self._now_ns, out = now_ns, None
        if self._camera.read(self._frame, 0):
            self._frame.t_pub_ns = now_ns
            self._send(TOPIC, self._frame, self._frame.t_mid_ns)
            for frame in self._arrive(self._frame):
                out = self._tell(frame)
        if out is None and now_ns - self._told_ns > IDLE_MS * 1_000_000:
            out = self._tell(None)
        return out

    def _tell(self, frame: Frame | None) -> HeightMap:
        out = self.perception.step(frame, self._now_ns)
        self._send("height_map", out, self._now_ns)
        self._told_ns = self._now_ns
        return out

    def _take(self) -> list[Truth]:
        heard, self._truths = self._truths, []
        return heard
