"""Joins processes: one ZeroMQ PUB socket per topic on ipc, in a private directory.

Each topic has one publisher, held by a file lock: a second is refused, and a crashed one's stale
endpoint is taken over. A frame that is not exactly one of ours is counted and dropped, never
raised.
The checks (`Inbox`) and the numbering (`Outbox`) know no socket, so lockstep runs the same ones.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import zmq

from robot.config import UserError
from robot.messages import STAMP, STAMP_AT, Codec, Message

LONGEST_IPC_PATH = 107  # sun_path of Linux, less the terminating NUL
MAX_FRAME = 64 * 1024  # what a stranger may send on a control topic before being cut off
MALFORMED = ("length", "encoding", "schema", "count")  # causes that mean a wrong form
QUEUE = 64  # messages per pipe; readers of the newest drain it, age is checked
QUEUE_ALL = 20_000  # for readers that want every message
# As plain numbers: `zmq.POLLIN` and its kin are enumerations, and their `&` runs Python code.
EVENTS, POLLIN, NOBLOCK = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK)
MAX_INSTANCES = 64  # publishers remembered per inbox; more is a flood


class Outbox:
    """Numbers the messages of one publisher of one topic.

    Args:
        codec: layout of the topic.
        instance: this run of the publisher; random on the bus, seeded in lockstep.
    """

    def __init__(self, codec: Codec, instance: int) -> None:
        self.codec, self.instance, self.seq = codec, instance, 0

    def stamp(self, message: Message, stamp_ns: int) -> int:
        """Write instance, the next seq and the time into the header; returns seq."""
        self.seq += 1
        STAMP.pack_into(message.memory, STAMP_AT, self.instance, self.seq, stamp_ns)
        return self.seq


class Inbox:
    """Checks frames of one or more layouts and keeps count of what it refused and missed.

    Args:
        codecs: the layouts that may arrive.
        buffers: messages of each type that stay valid at a time, the newest included.
    """

    def __init__(self, codecs: Iterable[Codec], buffers: int = 2) -> None:
        self.drops: Counter[str] = Counter()  # cause: length, encoding, schema, robot, count, old
        self.dropped = 0  # sum of drops
        self.malformed = 0  # those of them whose form was wrong
        self.received = 0
        self.missed = 0  # gaps in seq
        self._by_size: dict[int, list[Codec]] = {}
        self._by_schema: dict[bytes, tuple[Codec, deque[Message]]] = {}
        for codec in {c.schema_hash: c for c in codecs}.values():
            self._by_size.setdefault(codec.size, []).append(codec)
            key = codec.schema_hash.to_bytes(8, "little")
            self._by_schema[key] = (codec, deque(codec.new() for _ in range(buffers)))
        self._last: dict[tuple[int, int], int] = {}  # (schema, instance) -> seq

    def accept(self, frame: memoryview, length: int) -> Message | None:
        """The message in `frame[:length]`, or None if it is refused (and counted).

        The message is valid until as many more of its type are accepted as there are buffers,
        which take turns. `length` may exceed the frame: then it was cut on receipt and is refused.
        """
        known = self._by_schema.get(bytes(frame[4:12])) if length <= len(frame) else None
        if known is None:
            return self._drop("schema" if length in self._by_size else "length")
        codec, turns = known
        if cause := codec.refusal(frame, length):
            return self._drop(cause)
        message = turns[0]
        message.memory[4 : 4 + length] = frame[:length]
        instance, seq = message.origin
        key = codec.schema_hash, instance
        last = self._last.get(key)
        if last is None:
            if len(self._last) >= MAX_INSTANCES:
                self._last.pop(next(iter(self._last)))
        elif seq <= last:
            return self._drop("old")
        else:
            self.missed += seq - last - 1
        self._last[key] = seq
        self.received += 1
        turns.rotate(-1)
        return message

    def _drop(self, cause: str) -> None:
        self.drops[cause] += 1
        self.dropped += 1
        self.malformed += cause in MALFORMED


class Publisher:
    """The one sender of a topic.

    Raises:
        UserError: another process publishes this topic, or the path is too long.
    """

    def __init__(self, context: zmq.Context, directory: Path, topic: str, codec: Codec) -> None:
        self.topic, self.outbox = topic, Outbox(codec, secrets.randbits(63) | 1)
        self._lock = lock_file(directory / f"{topic}.lock", f"topic {topic!r} has a publisher")
        path = endpoint(directory, topic)
        # We hold the lock, so what lies there was left by a killed run.
        path.unlink(missing_ok=True)
        self.socket = context.socket(zmq.PUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, QUEUE_ALL)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        self.socket.bind(f"ipc://{path}")
        # The compiled `send`: the one above it costs half of a send whose code is no longer cached.
        compiled: Any = super(zmq.Socket, self.socket)
        self._send: Callable[[memoryview, int], None] = compiled.send

    def send(self, message: Message, stamp_ns: int) -> int:
        """Number, stamp and send; never blocks (a slow subscriber loses messages). Returns seq."""
        seq = self.outbox.stamp(message, stamp_ns)
        self._send(message.payload, NOBLOCK)
        return seq

    def repeat(self, message: Message) -> None:
        """Send again what was sent before, unchanged: who has it drops it as old."""
        self.socket.send(message.payload, zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket and give the topic free."""
        self.socket.close()
        os.close(self._lock)


class Subscriber:
    """Receives one or more topics through one socket; connects before or after the publisher.

    Args:
        every: keep a long queue (recorder) instead of a short one (newest wins).
    """

    def __init__(
        self,
        context: zmq.Context,
        directory: Path,
        codecs: Mapping[str, Codec],
        every: bool = False,
    ) -> None:
        self.inbox = Inbox(codecs.values())
        # An oversized frame is cut here and refused by its length; MAXMSGSIZE would instead close
        # the connection for good, so it is left to the sockets that strangers could reach.
        self._frame = memoryview(bytearray(MAX_FRAME))
        self.socket = context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, QUEUE_ALL if every else QUEUE)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        for topic in codecs:
            self.socket.connect(f"ipc://{endpoint(directory, topic)}")
        self._timeout_ms = -1
        self._recv_into: Callable[..., int] = self.socket.recv_into
        self._getsockopt: Callable[[int], Any] = self.socket.getsockopt
        # The socket's descriptor tells of news since EVENTS was asked last. Polling it costs a
        # quarter of asking EVENTS, and mostly there are none.
        self._news = select.poll()
        self._news.register(self.socket.getsockopt(zmq.FD), select.POLLIN)
        self._drained = False  # EVENTS has said that nothing is left

    def receive(self, timeout_ms: int = 0) -> Message | None:
        """The next good message, waiting for one frame at most `timeout_ms`; None if there is none.

        Never raises. Waiting is one call into ZeroMQ; polling first and then receiving are three.
        """
        if timeout_ms:
            return self._await(timeout_ms)
        if self._drained and not self._news.poll(0):
            return None
        self._drained = False
        # Asking EVENTS costs a third of a receive that raises Again.
        while self._getsockopt(EVENTS) & POLLIN:
            length = self._recv_into(self._frame, flags=NOBLOCK)
            if message := self.inbox.accept(self._frame, length):
                return message
        self._drained = True
        return None

    def _await(self, timeout_ms: int) -> Message | None:
        if timeout_ms != self._timeout_ms:
            self._timeout_ms = timeout_ms
            self.socket.setsockopt(zmq.RCVTIMEO, timeout_ms)
        self._drained = False  # the descriptor tells nothing of what this call has seen
        try:
            length = self._recv_into(self._frame)
        except zmq.Again:
            return None
        return self.inbox.accept(self._frame, length)

    def newest(self, timeout_ms: int = 0) -> Message | None:
        """The last good message of the queue, waiting for a first one at most `timeout_ms`."""
        last = self.receive(timeout_ms) if timeout_ms else None
        while message := self.receive():
            last = message
        return last

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def endpoint(directory: Path, topic: str) -> Path:
    """Socket file of a topic.

    Raises:
        UserError: the path is longer than an ipc path may be.
    """
    path = directory / f"{topic}.ipc"
    if len(os.fsencode(path)) > LONGEST_IPC_PATH:
        raise UserError(
            f"{path}: {len(os.fsencode(path))} characters, an ipc path may have "
            f"{LONGEST_IPC_PATH}; choose a shorter runtime directory (PLEXUS_RUNTIME_DIR)"
        )
    return path


def runtime_directory() -> Path:
    """The private directory that holds endpoints and locks; made if need be, always mode 0700.

    PLEXUS_RUNTIME_DIR, else XDG_RUNTIME_DIR/plexus, else /tmp/plexus-<user id>.

    Raises:
        UserError: it is a link, belongs to somebody else, or others may enter it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    default = Path(base) / "plexus" if base else Path(f"/tmp/plexus-{os.getuid()}")
    path = Path(os.environ.get("PLEXUS_RUNTIME_DIR", default))
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        raise UserError(f"{path}: cannot be the runtime directory: {error.strerror}") from None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise UserError(
            f"{path}: got owner {info.st_uid}, mode {stat.filemode(info.st_mode)}; expected a "
            f"directory of user {os.getuid()} that nobody else may enter (drwx------)"
        )
    return path


def lock_file(path: Path, held: str) -> int:
    """Lock `path` for this process's life; returns the descriptor that holds it.

    The kernel gives it free when the process dies, however it dies.

    Raises:
        UserError: another process holds it; says `held` and that process's id.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise UserError(f"{path}: {held} already, process {holder}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
