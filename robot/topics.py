"""The table of topics: message, rate, publisher, logged; and the table of operator sources."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from robot.messages import (
    ClockMap,
    Codec,
    Command,
    Consumed,
    Event,
    Frame,
    Health,
    Heartbeat,
    HeightMap,
    Intervention,
    LowCmd,
    LowState,
    Message,
    Odometry,
    PerceptionTiming,
    PolicyChange,
    PolicyChoice,
    PolicyInfo,
    PolicyInput,
    RecorderStatus,
    Request,
    Snapshot,
    Status,
    Target,
    Timing,
    Truth,
)
from robot.model import Robot


class Rank(IntEnum):
    """Who may take the lease from whom: upwards only (faults.md 6)."""

    SCRIPT = 1
    REMOTE_OPERATOR = 2
    LOCAL_OPERATOR = 3


@dataclass(frozen=True)
class Source:
    """An operator source. Its row number is what messages carry."""

    name: str
    rank: Rank
    node: str  # the row of nodes.NODES that sends it
    doc: str


SOURCES: tuple[Source, ...] = (
    Source("script", Rank.SCRIPT, "teleop", "a command given on the command line"),
    Source("keyboard", Rank.LOCAL_OPERATOR, "teleop", "the arrow keys of the terminal"),
    Source("remote", Rank.LOCAL_OPERATOR, "teleop", "the robot's own wireless remote"),
    Source("console", Rank.REMOTE_OPERATOR, "console", "a browser"),
    Source("gamepad", Rank.LOCAL_OPERATOR, "gamepad", "a gamepad plugged into this computer"),
)


@dataclass(frozen=True)
class Topic:
    """One row: what travels, how often, who sends it, whether logs keep it."""

    name: str
    message: type[Message]
    rate: str  # as people read it
    publisher: str  # a row of nodes.NODES
    logged: bool
    doc: str


TOPICS: tuple[Topic, ...] = (
    Topic("low_state", LowState, "control", "control", True, "what the robot reports"),
    Topic("low_cmd", LowCmd, "control", "control", True, "what was really sent to the motors"),
    Topic("policy_input", PolicyInput, "policy", "control", True, "wakes the pilot"),
    Topic("target", Target, "policy", "pilot", True, "what the policy wants of every joint"),
    Topic("odometry", Odometry, "policy", "pilot", True, "how the robot moves, by its feet"),
    Topic("policy_info", PolicyInfo, "1 Hz", "pilot", True, "what the pilot has loaded"),
    Topic("status", Status, "policy, and on change", "control", True, "mode, faults, answers"),
    Topic("intervention", Intervention, "on event", "control", True, "the filter clipped"),
    Topic("timing", Timing, "control / 50", "control", True, "lateness and durations"),
    Topic("consumed", Consumed, "on input", "control", True, "what a tick took in, for replay"),
    Topic("control_state", Snapshot, "1 Hz", "control", True, "what control remembers"),
    Topic("pilot_state", Snapshot, "1 Hz", "pilot", True, "what the policy remembers"),
    Topic("truth", Truth, "policy", "control", True, "simulation only: ground truth"),
    Topic("health", Health, "20 Hz, and on change", "control", True, "hardware: the robot itself"),
    Topic("heartbeat", Heartbeat, "50 Hz", "manager", True, "the manager is alive"),
    Topic("policy_choice", PolicyChoice, "on event", "console", True, "load another policy"),
    Topic(
        "policy_change",
        PolicyChange,
        "1 Hz, and on change",
        "manager",
        True,
        "what became of a choice",
    ),
    Topic("recorder", RecorderStatus, "2 Hz", "recorder", True, "how the log is doing"),
    Topic("clock", ClockMap, "1 Hz", "recorder", True, "monotonic against wall clock"),
    Topic("event", Event, "on event", "recorder", True, "start, end with reason, remarks"),
    Topic("event.console", Event, "on event", "console", True, "marks and episodes, by operators"),
    Topic("frame.head", Frame, "camera", "camera", True, "pictures of the camera in the head"),
    Topic("frame.head_rgb", Frame, "camera", "rgb", True, "the same in colour, for people"),
    Topic("height_map", HeightMap, "camera", "perception", True, "the ground around the robot"),
    Topic("perception_timing", PerceptionTiming, "camera", "perception", True, "from light to map"),
    *(
        Topic(f"command.{s.name}", Command, "20 Hz", s.node, True, f"wish of {s.doc}")
        for s in SOURCES
    ),
    *(
        Topic(f"request.{s.name}", Request, "on event", s.node, True, f"request of {s.doc}")
        for s in SOURCES
    ),
)
# Row of nodes.NODES to the camera that it reads: row of robot.cameras, end of its topic.
CAMERA_OF = {"camera": "head", "rgb": "head_rgb"}
CAMERA = CAMERA_OF["camera"]  # the one that perception looks through
TOPIC = {topic.name: topic for topic in TOPICS}
OPERATOR_TOPICS = tuple(t.name for t in TOPICS if t.message in (Command, Request))


def source_index(name: str) -> int:
    """Row of SOURCES with this name."""
    return next(i for i, source in enumerate(SOURCES) if source.name == name)


def make_codecs(robot: Robot) -> dict[str, Codec]:
    """Topic name to codec for one robot; topics of the same message share one codec."""
    by_message = {t.message: Codec(t.message, robot.dims, robot.robot_id) for t in TOPICS}
    return {topic.name: by_message[topic.message] for topic in TOPICS}
