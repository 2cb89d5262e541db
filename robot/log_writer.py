"""Writes one log: a folder of MCAP segments that survive a crash and stand each for itself.

It knows files and no bus, so the recorder and lockstep use the same one. A log that cannot be
written costs messages, which are counted, and never the run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from robot.config import REPOSITORY, UserError
from robot.mcap_file import McapFile
from robot.messages import PACKAGE, Codec
from robot.model import Robot
from robot.runs import RunConfig
from robot.topics import TOPICS
from robot.viewer_topics import CHANNELS, DESCRIPTION, ViewerTopics
from robot.viewer_topics import HEARD as VIEWED

FORMAT = "1"  # of the metadata record `plexus`
SYNC_NS = 1_000_000_000  # what a power cut may lose, beside the device's own cache
RETRY_NS = 2_000_000_000  # between attempts to go on after an error of the disk
PACKAGES = (
    "plexus", "mcap", "mujoco-core", "numpy", "onnxruntime", "onnxruntime-gpu", "pydantic", "pyzmq",
)  # fmt: skip
USER_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.ELOOP)


# --- the writer -------------------------------------------------------------------------------


class LogWriter:
    """Writes one log: a folder of segments, each readable without the others.

    Nothing but the constructor raises: where the disk is full or broken, messages are counted in
    `lost`, `warning` says why, and a new segment is begun when there is room again.

    Args:
        folder: of this log; made if need be. Segments that are there already stay.
        codecs: topic name to layout of every topic that may be written.
        metadata: text by name, repeated in each segment.
        attachments: bytes by file name; a policy file goes into one segment only.
        offset_ns: epoch minus monotonic time, fixed for the whole log.
        rotate_s: a segment is closed after this time of the messages' clock.
        rotate_mb: or when it is this large.
        margin_mb: writing pauses while the disk has less than this left.
        viewer: makes the topics that viewers know; None: they are left out.

    Raises:
        UserError: the folder cannot be made or written, for another reason than a full disk.

    Attributes:
        recorded: messages written, those of viewers not counted.
        lost: messages that were given to `write` and did not reach the log.
        bytes_free: left on the disk at the last flush.
        warning: what is wrong; empty if nothing is.
    """

    def __init__(
        self,
        folder: Path,
        codecs: Mapping[str, Codec],
        metadata: Mapping[str, str],
        attachments: Mapping[str, bytes],
        offset_ns: int,
        *,
        rotate_s: float = 60.0,
        rotate_mb: int = 256,
        margin_mb: int = 16,
        viewer: ViewerTopics | None = None,
    ) -> None:
        self.folder, self.codecs, self.offset_ns = folder, codecs, offset_ns
        self.metadata, self.attachments = dict(metadata), dict(attachments)
        self.recorded = self.lost = self.bytes_free = 0
        self.warning = ""
        self._rotate_ns, self._rotate_bytes = round(rotate_s * 1e9), rotate_mb * 1_000_000
        self._margin, self._viewer = margin_mb * 1_000_000, viewer
        self._file: McapFile | None = None
        self._stream: IO[bytes]
        self._partial = folder
        self._channels: dict[str, int] = {}
        self._unflushed = 0  # messages that a failing disk would take with it
        self._finished_bytes = 0
        self._segment_ns: int | None = None  # receipt of the segment's first message
        self._last_ns = 0
        self._retry_at = self._sync_at = 0
        self._closed = False
        self._kept: set[str] = set()  # policy files that a segment of this log has
        # Syncing may take as long as the disk likes; the receiving loop must not wait for it.
        self._disk = ThreadPoolExecutor(1, "disk")
        self._syncing: Future[Any] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._probe()
            if _next_number(folder):  # a recorder before this one wrote what the run began with
                self._kept.update(name for name in attachments if name.endswith(".onnx"))
        except OSError as error:
            if error.errno in USER_ERRORS:
                self._disk.shutdown()
                raise UserError(f"{folder}: cannot hold a log: {error.strerror}") from None
        self._begin_if_room()

    @property
    def recording(self) -> bool:
        """False while messages are only counted."""
        return self._file is not None

    @property
    def bytes_written(self) -> int:
        """Size of all segments of this writer."""
        if self._file is None:
            return self._finished_bytes
        return self._finished_bytes + self._file.size

    def write(
        self, topic: str, payload: memoryview | bytes, seq: int, stamp_ns: int, received_ns: int
    ) -> None:
        """Put one message into the open chunk.

        Args:
            topic: our name of it.
            payload: its bytes on the wire, CDR header included; copied before this returns.
            seq: number given by its publisher.
            stamp_ns: time in its header, monotonic.
            received_ns: time of its receipt, monotonic.
        """
        file = self._file
        if file is None:
            self.lost += 1
            return
        if self._segment_ns is None:
            self._segment_ns = received_ns
        self._last_ns = received_ns
        self._unflushed += 1
        self.recorded += 1
        log_ns, publish_ns = received_ns + self.offset_ns, stamp_ns + self.offset_ns
        if publish_ns < 0:  # no clock says so, but nothing a message says may stop a log
            publish_ns = 0
        try:
            channels = self._channels
            file.message(channels[topic], seq & 0xFFFFFFFF, log_ns, publish_ns, payload)
            if topic in VIEWED and self._viewer:
                for name, drawn in self._viewer.hear(topic, payload, publish_ns):
                    file.message(channels[name], 0, log_ns, publish_ns, drawn)
        except OSError as error:
            self._abandon(error)

    def attach(self, name: str, data: bytes) -> None:
        """Add a file to this segment and to all that follow, a policy file to one of them."""
        self.attachments[name] = data
        if self._file is None:
            return
        try:
            self._attach(self._file, name, data)
        except OSError as error:
            self._abandon(error)

    def flush(self) -> None:
        """Close the chunk and hand it to the kernel: what is flushed survives this process.

        To be called ten times a second or more often. Also looks after space, the next segment,
        and syncing to the disk once a second.
        """
        if self._file is None:
            if not self._closed:
                self._begin_if_room()
            return
        try:
            self._file.flush()
            self._unflushed = 0
            descriptor = self._stream.fileno()
            self.bytes_free = _free(descriptor)
            if self.bytes_free < self._margin:
                self._pause()
            elif self._segment_ns is not None and (
                self._last_ns - self._segment_ns >= self._rotate_ns
                or self._file.size >= self._rotate_bytes
            ):
                self._finish_segment()
                self._begin_if_room()
            else:
                self._sync(descriptor)
        except OSError as error:
            self._abandon(error)

    def close(self, reason: str) -> None:
        """End the log: `reason` and the counts go into a metadata record, the disk is synced."""
        if self._closed:
            return
        self._closed = True
        if self._file is None:
            # Below the margin there is usually room for the last words.
            with contextlib.suppress(OSError):
                self._begin()
        if self._file is not None:
            try:
                self._file.flush()
                counts = {"messages": str(self.recorded), "lost": str(self.lost)}
                self._file.metadata("end", {"reason": reason, **counts})
                self._finish_segment()
            except OSError as error:
                self._abandon(error)
        self._disk.shutdown(wait=True)
        self._heed_disk()

    # --- segments ---

    def _probe(self) -> None:
        """Raise what the kernel says if nothing may be written here."""
        probe = self.folder / ".probe"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        probe.unlink()

    def _begin_if_room(self) -> None:
        """Begin a segment, unless the disk is too full or was broken a moment ago."""
        if time.monotonic_ns() < self._retry_at:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.bytes_free = _free(self.folder)
            # Twice the margin: a disk at its limit would otherwise stutter between both states.
            if self.bytes_free < (2 if self.warning else 1) * self._margin:
                self._pause()
                return
            self._begin()
            self.warning = ""
        except OSError as error:
            self._fail(error)

    def _begin(self) -> None:
        """Open the next segment and write what makes it readable alone.

        Raises:
            OSError: it cannot be written; nothing of it is left behind.
        """
        number = _next_number(self.folder)
        self._partial = self.folder / f"{number:03d}.mcap.partial"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        stream = os.fdopen(os.open(self._partial, flags, 0o644), "wb")
        kept = self._kept.copy()
        try:
            # Held while the segment is written: nobody takes it for the leavings of a crash.
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            file = McapFile(stream, "ros2", "plexus")
            file.metadata("plexus", {**self.metadata, "segment": str(number)})
            for name, data in self.attachments.items():
                if name not in self._kept:
                    self._attach(file, name, data)
            file.flush()
            self._channels = _register(file, self.codecs, self._viewer is not None)
            if self._viewer:
                at = max(self._last_ns + self.offset_ns, self._began_epoch_ns)
                description = self._viewer.description
                file.message(self._channels[DESCRIPTION], 0, at, at, description)
                file.flush()
        except OSError:
            self._kept = kept
            self._partial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                stream.close()
            raise
        self._stream, self._file = stream, file
        self._segment_ns, self._unflushed, self._sync_at = None, 0, 0

    @property
    def _began_epoch_ns(self) -> int:
        return int(self.metadata.get("start_ns", "0"))

    def _attach(self, file: McapFile, name: str, data: bytes) -> None:
        kind = {"json": "application/json", "xml": "text/xml", "yaml": "text/yaml"}
        media = kind.get(name.rpartition(".")[2], "application/octet-stream")
        at = max(self._last_ns + self.offset_ns, self._began_epoch_ns)
        file.attachment(name, media, data, at)
        if name.endswith(".onnx"):
            self._kept.add(name)

    def _finish_segment(self) -> None:
        """Write the summary; syncing and renaming are left to the second thread."""
        assert self._file is not None
        self._file.finish()
        self._stream.flush()
        self._finished_bytes += self._file.size
        self._file, stream, partial = None, self._stream, self._partial
        self._syncing = self._disk.submit(_seal, stream, partial)

    def _pause(self) -> None:
        """Too little space: finish the segment cleanly while there is room to do so."""
        self.warning = (
            f"log paused: {self.bytes_free // 1_000_000} MB free on its disk, "
            f"{self._margin // 1_000_000} MB are kept"
        )
        if self._file is not None:
            self._finish_segment()

    def _abandon(self, error: OSError) -> None:
        """The disk refused: what was flushed stays in the .partial, for `plexus log recover`."""
        self.lost += self._unflushed
        self.recorded -= self._unflushed
        self._unflushed = 0
        if self._file is not None:
            self._file, stream = None, self._stream
            with contextlib.suppress(OSError):
                self._finished_bytes += os.fstat(stream.fileno()).st_size
            self._disk.submit(_close_quietly, stream)
        self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.warning = f"log interrupted: {error.strerror or error}"
        self._retry_at = time.monotonic_ns() + RETRY_NS

    # --- syncing ---

    def _sync(self, descriptor: int) -> None:
        """Once a second, unless the last one still goes on."""
        now = time.monotonic_ns()
        if now < self._sync_at or (self._syncing and not self._syncing.done()):
            return
        self._heed_disk()
        self._sync_at = now + SYNC_NS
        self._syncing = self._disk.submit(os.fdatasync, descriptor)

    def _heed_disk(self) -> None:
        """Say it if the second thread met an error."""
        if self._syncing and self._syncing.done() and (error := self._syncing.exception()):
            self.warning = f"log not synced to disk: {getattr(error, 'strerror', '') or error}"


def _next_number(folder: Path) -> int:
    """One more than the last segment's, finished or not."""
    found = (re.match(r"(\d{3,})\.mcap", path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in found if match), default=-1) + 1


def _free(where: int | Path) -> int:
    disk = os.statvfs(where)
    return disk.f_bavail * disk.f_frsize


def _seal(stream: IO[bytes], partial: Path) -> None:
    """Sync a finished segment, then give it its final name, and sync that too."""
    with stream:
        os.fdatasync(stream.fileno())
        partial.rename(partial.with_suffix(""))
        folder = os.open(partial.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _close_quietly(stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        stream.close()


# --- channels ---------------------------------------------------------------------------------

# facts of rosbag2, as integers since older readers know no words: keep the last (1), reliable (1).
_QOS = """- history: 1
  depth: {depth}
  reliability: 1
  durability: {durability}
  deadline: {{sec: 9223372036, nsec: 854775807}}
  lifespan: {{sec: 9223372036, nsec: 854775807}}
  liveliness: 1
  liveliness_lease_duration: {{sec: 9223372036, nsec: 854775807}}
  avoid_ros_namespace_conventions: false
"""
QOS = _QOS.format(depth=10, durability=2)
QOS_LATCHED = _QOS.format(depth=1, durability=1)


def channel_name(topic: str) -> str:
    """Name of a topic as viewers show it: command.script is /command/script."""
    return "/" + topic.replace(".", "/")


def _register(file: McapFile, codecs: Mapping[str, Codec], viewer: bool) -> dict[str, int]:
    """Schemas and channels of all topics; topic name to channel id."""
    schemas: dict[str, int] = {}
    channels: dict[str, int] = {}
    for topic, codec in codecs.items():
        if codec.name not in schemas:
            name = f"{PACKAGE}/msg/{codec.name}"
            schemas[codec.name] = file.schema(name, "ros2msg", codec.text)
        lengths = {s.name: s.count for s in codec.slots if s.count_offset >= 0}
        about = {
            "offered_qos_profiles": QOS, "plexus_topic": topic, "lengths": json.dumps(lengths),
        }  # fmt: skip
        channels[topic] = file.channel(channel_name(topic), "cdr", schemas[codec.name], about)
    for topic, (schema, text) in CHANNELS.items() if viewer else ():
        about = {"offered_qos_profiles": QOS_LATCHED if topic == DESCRIPTION else QOS}
        identity = file.schema(schema, "ros2msg", text)
        channels[topic] = file.channel(topic, "cdr", identity, about)
    return channels


# --- what a log says of its run ---------------------------------------------------------------


def describe_run(run: RunConfig, robot: Robot) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata and attachments of a log of this run; what cannot be found out is left out."""
    metadata = {
        "format": FORMAT,
        "run": run.name or run.driver,
        "robot": robot.name,
        "simulated": str(run.simulated).lower(),
        "timing_factor": repr(run.timing_factor),
        "versions": json.dumps(_versions()),
        "kernel": f"{platform.release()} {platform.version()}",
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "command_line": " ".join(sys.argv),
        **_commit(),
    }
    attachments = {"run.json": run.model_dump_json(indent=1).encode()}
    files = {"robot.yaml": robot.path, robot.mjcf.name: robot.mjcf}
    files |= {camera.path.name: camera.path for camera in robot.cameras.values()}
    for name, path in {**files, **({"policy.onnx": run.policy} if run.policy else {})}.items():
        with contextlib.suppress(OSError):
            attachments[name] = path.read_bytes()
    for key, name in (("mjcf", robot.mjcf.name), ("policy", "policy.onnx")):
        if name in attachments:
            metadata[f"{key}_sha256"] = hashlib.sha256(attachments[name]).hexdigest()
    return metadata, attachments


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def cpu_name() -> str:
    """The processor, as the kernel calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> dict[str, str]:
    """Commit of our code and whether it was changed since; nothing where it is no checkout."""
    if not (REPOSITORY / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments],
            capture_output=True, text=True, timeout=2.0, check=True,
        ).stdout.strip()  # fmt: skip

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": str(dirty).lower()}
    return {}


def open_log(
    run: RunConfig,
    robot: Robot,
    codecs: Mapping[str, Codec],
    *,
    now_ns: int,
    epoch_ns: int,
    command_line: str | None = None,
) -> LogWriter:
    """A new log of this run.

    Args:
        run: says in its `log` section where and how large.
        robot: the robot of the run.
        codecs: topic name to layout.
        now_ns: the messages' clock now; monotonic, or simulated in lockstep.
        epoch_ns: the wall clock now.
        command_line: of the run; None: of this process.

    Raises:
        UserError: the folder cannot be made or written.
    """
    metadata, attachments = describe_run(run, robot)
    if command_line:
        metadata["command_line"] = command_line
    run_id = secrets.token_hex(8)
    start = datetime.fromtimestamp(epoch_ns * 1e-9, UTC)
    metadata |= {
        "run_id": run_id,
        "start_utc": start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "start_ns": str(epoch_ns),
        "clock_offset_ns": str(epoch_ns - now_ns),
    }
    name = re.sub(r"[^\w.-]+", "-", metadata["run"])
    folder = run.log.folder.absolute() / f"{start:%Y%m%dT%H%M%SZ}-{name}-{run_id[:4]}"
    return make_writer(run, robot, codecs, folder, metadata, attachments)


def make_writer(
    run: RunConfig,
    robot: Robot,
    codecs: Mapping[str, Codec],
    folder: Path,
    metadata: Mapping[str, str],
    attachments: Mapping[str, bytes],
) -> LogWriter:
    """A writer with the run's limits, in a folder that may hold segments of the same log."""
    log = run.log
    logged = {topic.name: codecs[topic.name] for topic in TOPICS if topic.logged}
    return LogWriter(
        folder, logged, metadata, attachments, int(metadata["clock_offset_ns"]),
        rotate_s=log.rotate_s, rotate_mb=log.rotate_mb, margin_mb=log.margin_mb,
        viewer=ViewerTopics(robot, codecs),
    )  # fmt: skip
