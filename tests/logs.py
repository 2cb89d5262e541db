"""Logs for tests, written by the container's own library and not by our recorder."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import CompressionType, Writer

from robot.messages import Codec, Message
from robot.model import Robot, load_robot
from robot.pilot import load_pilot
from robot.runs import RunConfig, load_run
from sim2real.lockstep import Lockstep

CLOCK_OFFSET_NS = 1_795_491_000_000_000_000  # wall clock - monotonic; 24 November 2026
RECEIPT_NS = 300_000  # from the stamp to the log
QOS = """- history: 1
  depth: 10
  reliability: 1
  durability: 2
  deadline: {sec: 9223372036, nsec: 854775807}
  lifespan: {sec: 9223372036, nsec: 854775807}
  liveliness: 1
  liveliness_lease_duration: {sec: 9223372036, nsec: 854775807}
  avoid_ros_namespace_conventions: false
"""


def write_log(folder: Path, topics: dict[str, list[Any]], **metadata: str) -> Path:
    """Write messages as one finished log of one segment; returns the log's folder.

    Args:
        folder: where logs lie.
        topics: topic name to messages of one layout, each stamped.
        metadata: added to, or in place of, the `plexus` record's.
    """
    robot = load_robot("g1")
    record = {
        "format": "1", "run_id": "ab12" * 4, "run": "sim", "robot": robot.name,
        "start_utc": "2026-11-24T03:30:00Z", "clock_offset_ns": str(CLOCK_OFFSET_NS),
        "segment": "0", "simulated": "true", "timing_factor": "1.0",
    } | metadata  # fmt: skip
    path = folder / f"20261124T033000Z-{record['run']}-{record['run_id'][:4]}"
    path.mkdir(parents=True)
    with (path / "000.mcap").open("wb") as stream:
        writer = Writer(stream, chunk_size=1 << 18, compression=CompressionType.ZSTD)
        writer.start(profile="ros2", library="test")
        writer.add_metadata("plexus", record)
        _attach(writer, robot)
        _add_messages(writer, topics)
        count = sum(map(len, topics.values()))
        writer.add_metadata("end", {"reason": "done", "messages": str(count), "lost": "0"})
        writer.finish()
    return path


def _attach(writer: Writer, robot: Robot) -> None:
    files = {
        "robot.yaml": robot.path.read_bytes(),
        robot.mjcf.name: robot.mjcf.read_bytes(),
        "run.json": load_run("sim").model_dump_json().encode(),
    }
    for name, data in files.items():
        writer.add_attachment(CLOCK_OFFSET_NS, CLOCK_OFFSET_NS, name, "text/plain", data)


def _add_messages(writer: Writer, topics: dict[str, list[Any]]) -> None:
    schemas: dict[str, int] = {}
    channels: dict[str, int] = {}
    for topic, messages in topics.items():
        codec: Codec = messages[0].codec
        if codec.name not in schemas:
            schemas[codec.name] = writer.register_schema(
                f"plexus/msg/{codec.name}", "ros2msg", codec.text.encode()
            )
        lengths = {s.name: s.count for s in codec.slots if s.count_offset >= 0}
        channels[topic] = writer.register_channel(
            "/" + topic.replace(".", "/"), "cdr", schemas[codec.name],
            {"offered_qos_profiles": QOS, "plexus_topic": topic, "lengths": json.dumps(lengths)},
        )  # fmt: skip
    everything = [(m.stamp_ns, topic, m) for topic, messages in topics.items() for m in messages]
    for stamp_ns, topic, message in sorted(everything, key=lambda item: item[0]):
        at = stamp_ns + CLOCK_OFFSET_NS
        writer.add_message(
            channels[topic], at + RECEIPT_NS, bytes(message.payload), at, message.seq & 0xFFFFFFFF
        )


class Recorded(Lockstep):
    """A lockstep run that keeps a copy of every message, in `messages` by topic."""

    def __init__(self, run: RunConfig, pilot: Any, **options: Any) -> None:
        super().__init__(run, pilot, **options)
        self.messages: dict[str, list[Any]] = {}

    def send(self, topic: str, message: Message, stamp_ns: int) -> int:
        """As Lockstep's."""
        seq = super().send(topic, message, stamp_ns)
        self._copy(topic, message)
        return seq

    def _post(self, topic: str, message: Message, again: bool = False) -> None:
        super()._post(topic, message, again)
        if not again:
            self._copy(topic, message)

    def _copy(self, topic: str, message: Message) -> None:
        self.messages.setdefault(topic, []).append(message.copy())


@functools.cache
def walked(policy: Path) -> dict[str, list[Any]]:
    """Messages of a run that stands up, follows the policy, loses operator and then pilot.

    By topic; POLICY from 6 s, HOLD from about 8.2 s, FAULT from about 8.6 s on.
    """
    config = load_run("sim", {"policy": str(policy), "timing_factor": 1.0})
    robot = load_robot("g1")
    run = Recorded(config, load_pilot(config, robot), robot=robot, velocity=(0.2, 0.0, 0.0))
    run.run_for(8.0)
    run.operator_present = False
    run.run_for(0.5)
    run.pilot_alive = False
    run.run_for(0.5)
    return run.messages


def series(codec: Codec, stamps_ns: Any, **columns: Any) -> list[Any]:
    """Messages of one publisher, numbered from 1, whose fields are rows of `columns`."""
    messages = []
    for i, stamp_ns in enumerate(np.asarray(stamps_ns).tolist()):
        message = codec.new()
        message.stamp(7, i + 1, stamp_ns)
        for name, values in columns.items():
            if isinstance(values[i], str):
                setattr(message, name, values[i])
            else:
                message.record[name] = values[i]
        messages.append(message)
    return messages
