"""Earlier runs as pages see them: a list, each one's archive, and its poses for a replay.

Everything comes in pieces that take a fraction of a second each, so that whoever asked may go away
between two of them. What a page names is compared with what lies there; no path is made of it.
It knows neither HTTP nor threads beside its own lock.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import stat
import tarfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from robot.config import UserError
from robot.console.shapes import FIXED_HEIGHT, Shapes
from robot.log import LOG_TIME, Log
from robot.log_info import enum_names, log_folders, log_row
from robot.log_marks import marks_for_people
from robot.model import Robot
from robot.segment import segment_paths

MAX_LISTED = 100
MAX_OPEN = 2  # logs whose index is kept
PIECE = 1 << 18  # bytes of an archive
WINDOW_S = 10  # of a replay that is asked for at once
FRAMES_PER_S = 25
MARGIN_S = 1.0  # before a window: there lies what is newest at its begin
NO_MODE = 255
NS_PER_S = 1_000_000_000
FRAMES_NS = np.arange(FRAMES_PER_S) * (NS_PER_S // FRAMES_PER_S)  # of the frames in a second
# Where the robot was: topic and fields of base position, base orientation, joints.
SOURCES = (
    ("truth", ("base_pos_w", "base_quat_wxyz", "joint_pos")),
    ("low_state", ("", "imu_quat_wxyz", "joint_pos")),
)


class Library:
    """The folder of logs.

    Args:
        folder: where each run leaves a folder.
        robot: whose shapes a replay is drawn with.
    """

    def __init__(self, folder: Path, robot: Robot) -> None:
        self.folder, self.robot = folder, robot
        self._lock = threading.Lock()
        self._open: dict[str, Log] = {}

    def rows(self) -> Generator[bytes]:
        """One JSON line per run, newest first: id, and what log_info.log_row says."""
        for path in self._folders()[:MAX_LISTED]:
            yield _line({"id": _id(path), **log_row(path)})

    def name(self, run: str) -> str:
        """Name of a run's folder, in letters that no header and no shell minds.

        Raises:
            UserError: no such run.
        """
        name = self._path(run).name
        return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)

    def archive(self, run: str) -> Generator[bytes]:
        """A run's files as a tar, as they are now.

        Raises:
            UserError: no such run, or it cannot be read.
        """
        folder, name = self._path(run), self.name(run)
        try:
            for path in segment_paths(folder):
                with _open_segment(path) as file:
                    found = os.fstat(file.fileno())
                    size = found.st_size  # of one being written: up to here
                    entry = tarfile.TarInfo(f"{name}/{path.name}")
                    entry.size, entry.mtime = size, int(found.st_mtime)
                    yield entry.tobuf(tarfile.PAX_FORMAT)
                    for at in range(0, size, PIECE):
                        length = min(PIECE, size - at)
                        yield file.read(length).ljust(length, b"\0")
                    yield bytes(-size % tarfile.BLOCKSIZE)
        except OSError as error:
            raise UserError(f"run {name}: {error.strerror}") from None
        yield bytes(2 * tarfile.BLOCKSIZE)

    def facts(self, run: str) -> Generator[bytes]:
        """What a time line needs, as one JSON line.

        It has name, duration_s, window_s, stride (numbers per frame), modes (value to name) and
        marks (t_s, kind, text).

        Raises:
            UserError: no such run, it cannot be read, or is of another robot.
        """
        log = self._log(run, again=True)
        self._source(log)
        status = log.topics.get("status")
        yield _line({
            "name": log.path.name, "duration_s": log.duration_s, "window_s": WINDOW_S,
            "stride": 2 + self._shapes.numbers,
            "modes": enum_names(status.text, "mode") if status else {},
            "marks": marks_for_people(log),
        })  # fmt: skip

    def frames(self, run: str, window: int) -> Generator[bytes]:
        """Poses of one window of WINDOW_S, as float32, a second at a time.

        A frame is its time (s since the log's start), its mode (NO_MODE: unknown), and 7 numbers
        per body (Shapes.poses). There are at most FRAMES_PER_S; where the log has none, none is
        made up.

        Raises:
            UserError: no such run or window, or the log is of another robot.
        """
        log = self._log(run)
        if window * WINDOW_S > log.duration_s:
            raise UserError(f"window {window}: the run lasts {log.duration_s:.1f} s")
        topic, fields = self._source(log)
        shown_ns = 0
        for begin_s in range(window * WINDOW_S, (window + 1) * WINDOW_S):
            span = begin_s - MARGIN_S, begin_s + 1.0
            asked = {topic: [LOG_TIME, *filter(None, fields)]}
            if "status" in log.topics:
                asked["status"] = [LOG_TIME, "mode"]
            read = log.read_topics(asked, span)
            grid_ns = log.start_ns + begin_s * NS_PER_S + FRAMES_NS
            rows = np.unique(_newest(read[topic], grid_ns))
            poses = read[topic][rows[rows >= 0]]
            poses = poses[poses[LOG_TIME] > shown_ns]
            if len(poses):
                shown_ns = int(poses[LOG_TIME][-1])
                yield self._draw(log, fields, poses, read.get("status")).tobytes()

    def _draw(
        self, log: Log, fields: tuple[str, str, str], poses: NDArray[Any], status: Any
    ) -> NDArray[np.float32]:
        """(frames, 2 + 7 bodies) of messages."""
        position, quat, joints = fields
        times = poses[LOG_TIME].astype(np.int64)
        out = np.empty((len(poses), 2 + self._shapes.numbers), np.float32)
        out[:, 0] = (times - log.start_ns) * 1e-9
        out[:, 1] = NO_MODE
        if status is not None and len(status):
            rows = _newest(status, times)
            out[rows >= 0, 1] = status["mode"][rows[rows >= 0]]
        for row, pose in zip(out, poses, strict=True):
            base = pose[position] if position else (0.0, 0.0, FIXED_HEIGHT)
            with self._lock:
                row[2:] = self._shapes.place(base, pose[quat], pose[joints]).ravel()
        return out

    @functools.cached_property
    def _shapes(self) -> Shapes:
        """Apart from the live view's: made once a replay is asked for, used in other threads."""
        return Shapes(self.robot)

    def _source(self, log: Log) -> tuple[str, tuple[str, str, str]]:
        """The topic that tells where the robot was, and its fields."""
        robot, joints = log.metadata.get("robot", ""), len(self.robot.joint_names)
        for name, fields in SOURCES:
            dtype = log.topics[name].dtype if name in log.topics else None
            if dtype is None or not set(filter(None, fields)) <= set(dtype.names or ()):
                continue
            if robot == self.robot.name and dtype["joint_pos"].shape == (joints,):
                return name, fields
            raise UserError(f"this run is of robot {robot!r}; this console draws {self.robot.name}")
        raise UserError("this run's log does not tell where the robot was")

    def _log(self, run: str, again: bool = False) -> Log:
        """A run's log; `again` reads its index anew, as one that is being written grows."""
        path = self._path(run)
        with self._lock:
            if again or run not in self._open:
                self._open.pop(run, None)
                while len(self._open) >= MAX_OPEN:
                    self._open.pop(next(iter(self._open)))
                self._open[run] = Log(path)
            return self._open[run]

    def _folders(self) -> list[Path]:
        """The runs' folders, newest first; links lead elsewhere and are none."""
        if not self.folder.is_dir():
            return []
        return [path for path in reversed(log_folders(self.folder)) if not path.is_symlink()]

    def _path(self, run: str) -> Path:
        for path in self._folders():
            if _id(path) == run:
                return path
        raise UserError("no such run; it may have been deleted since the list was made")


def _id(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _newest(records: NDArray[Any], at_ns: NDArray[np.int64]) -> NDArray[np.intp]:
    """Row of the newest message at each moment; -1: there is none yet."""
    return np.searchsorted(records[LOG_TIME].astype(np.int64), at_ns, side="right") - 1


def _open_segment(path: Path) -> IO[bytes]:
    """A regular file of a log, also if it got its final name since the folder was read."""
    if not path.exists():
        path = path.with_suffix("")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is no regular file")
    return os.fdopen(descriptor, "rb")
