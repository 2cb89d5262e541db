"""The process that listens to every topic and writes the run's log.

It is a client: it may be stalled, killed and started again, and control never notices.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import operator
import os
import select
import struct
import time
from pathlib import Path
from typing import Any

import zmq

from robot import clock
from robot.bus import MAX_INSTANCES, NOBLOCK, QUEUE_ALL, Publisher, Subscriber, endpoint
from robot.choice import chosen_names
from robot.config import UserError
from robot.log_writer import LogWriter, describe_run, make_writer, open_log
from robot.messages import EventKind, Message
from robot.node import RUN_FILE, Node
from robot.nodes import END_FILE, LOG_FILE
from robot.realtime import freeze_collector
from robot.topics import TOPICS

REALTIME_FILE = "realtime.json"  # in the runtime directory, written by control
HEARD = tuple(t.name for t in TOPICS if t.logged and t.publisher != "recorder")
# All that a killed recorder loses is one turn. Messages wait in ZeroMQ's queues meanwhile: taking
# them in large batches costs half the CPU of small ones, and the age of a flush is the same.
TURN_NS = 80_000_000
STATUS_NS, CLOCK_NS = 500_000_000, 1_000_000_000
SILENCE_NS, LONGEST_END_NS = 100_000_000, 1_000_000_000  # after SIGTERM
STOPPING_TURN_NS = 20_000_000
ORPHAN_SILENCE_NS = 1_000_000_000  # without a manager control may go on damping: so do we
STAMP, STAMP_AT = struct.Struct("<QQq"), 20  # instance, seq, stamp_ns in a frame
IN_CREATE = 0x100  # sys/inotify.h


Heard = tuple[int, str, bytes, int, int]  # received_ns, topic, frame, seq, stamp_ns
RECEIVED = operator.itemgetter(0)


class Ear:
    """Listens to one topic. Frames do not carry its name and layouts are shared: one socket each.

    It connects when the endpoint appears: ZeroMQ's own attempts come at intervals, and what is
    published in between is gone.
    """

    def __init__(self, node: Node, topic: str) -> None:
        self.node, self.topic = node, topic
        self.path = endpoint(node.directory, topic)
        self.missed = self.refused = 0  # gaps in seq; frames that are not ours
        codec = node.codecs[topic]
        self._size, self._prefix = codec.size, bytes(codec.new().payload[:STAMP_AT])
        self._newest: dict[int, int] = {}  # instance -> seq
        self._subscriber: Subscriber | None = None
        self._connected_to: tuple[int, int] | None = None
        self._closing: list[Subscriber] = []

    def look(self) -> None:
        """Connect if there is a publisher, or another one than before."""
        try:
            found = self.path.stat()
        except OSError:
            return
        identity = (found.st_ino, found.st_ctime_ns)
        if identity != self._connected_to:
            if self._subscriber:
                self._closing.append(self._subscriber)  # after what it still holds
            self._connected_to = identity
            self._subscriber = Subscriber(
                self.node.context, self.node.directory, self.node.pick(self.topic), every=True
            )

    def drain(self, since_ns: int, now_ns: int, into: list[Heard]) -> None:
        """Take everything that arrived since `since_ns`.

        Nobody saw when it arrived; it was between the last look and this one, and as near to the
        time in its header as that allows.
        """
        for subscriber in (*self._closing, self._subscriber):
            if subscriber is not None:
                self._take(subscriber.socket, since_ns, now_ns, into)
        while self._closing:
            self._closing.pop().close()

    def _take(self, socket: zmq.Socket, since_ns: int, now_ns: int, into: list[Heard]) -> None:
        # Not Subscriber.receive: what it does beyond this would double the recorder's CPU time.
        receive, topic, newest = socket.recv, self.topic, self._newest
        size, prefix = self._size, self._prefix
        for _ in range(QUEUE_ALL):
            try:
                frame: bytes = receive(NOBLOCK)  # type: ignore[assignment]  # copy=True gives bytes
            except zmq.Again:
                return
            if len(frame) != size or frame[:STAMP_AT] != prefix:  # encapsulation, schema, robot
                self.refused += 1
                continue
            instance, seq, stamp_ns = STAMP.unpack_from(frame, STAMP_AT)
            last = newest.get(instance)
            if last is None:
                if len(newest) >= MAX_INSTANCES:
                    newest.pop(next(iter(newest)))
            elif seq <= last:
                continue  # repeated by its publisher
            else:
                self.missed += seq - last - 1
            newest[instance] = seq
            if stamp_ns > since_ns:  # else a topic stays in its order
                if stamp_ns > now_ns:  # it came while this batch is being taken
                    now_ns = clock.now_ns()
                since_ns = stamp_ns if stamp_ns < now_ns else now_ns
            into.append((since_ns, topic, frame, seq, stamp_ns))


class Voice:
    """The recorder's own topics: published, and written into the log without the way round."""

    def __init__(self, node: Node, writer: LogWriter) -> None:
        self.writer = writer
        names = [t.name for t in TOPICS if t.publisher == "recorder"]
        self.publishers = {
            name: Publisher(node.context, node.directory, name, node.codecs[name]) for name in names
        }
        self.messages: dict[str, Any] = {name: node.codecs[name].new() for name in names}

    def event(self, kind: EventKind, text: str, now_ns: int) -> None:
        """Something worth finding again."""
        event = self.messages["event"]
        event.kind, event.text = int(kind), text
        self._send("event", event, now_ns)

    def clocks(self, now_ns: int) -> None:
        """Both clocks, read together."""
        clocks = self.messages["clock"]
        before = clock.now_ns()
        clocks.realtime_ns = time.time_ns()
        after = clock.now_ns()
        clocks.monotonic_ns = (before + after) // 2
        clocks.uncertainty_ns = after - before
        self._send("clock", clocks, now_ns)

    def status(self, missed: int, now_ns: int) -> None:
        """How the log is doing; `missed` never reached us."""
        status, writer = self.messages["recorder"], self.writer
        status.bytes_written, status.bytes_free = writer.bytes_written, writer.bytes_free
        status.recorded, status.lost = writer.recorded, writer.lost + missed
        status.recording = writer.recording
        status.path, status.warning = str(writer.folder), writer.warning
        self._send("recorder", status, now_ns)

    def _send(self, topic: str, message: Message, now_ns: int) -> None:
        # Stamped with the turn's time, so that the log stays in order.
        seq = self.publishers[topic].send(message, now_ns)
        self.writer.write(topic, message.payload, seq, now_ns, now_ns)


class Recorder:
    """The node: takes what the sockets hold, batch by batch, and hands it to the writer."""

    def __init__(self, node: Node) -> None:
        self.node, self.parent = node, os.getppid()
        self.writer, again = _open_or_continue(node)
        self.ears = [Ear(node, topic) for topic in HEARD]
        self.voice = Voice(node, self.writer)
        self._heard_ns = 0
        self._stop_ns = 0
        self._status_at = self._clock_at = 0
        self._watch = _watch_folder(node.directory)
        self._said = ""
        self._look()
        restarted = "the recorder was started again" if again else "the log begins"
        self._drained_ns = clock.now_ns()
        self.voice.event(EventKind.START, restarted, self._drained_ns)

    def run(self) -> None:
        """Until told to stop, and then until nothing comes any more."""
        begin = clock.now_ns()
        while not self._at_end():
            self.turn(begin)
            begin = max(begin + TURN_NS, clock.now_ns())
            self._wait_until(begin)
        reason = self._reason()
        now = clock.now_ns()
        self.voice.event(EventKind.END, reason, now)
        self._tell(now)
        self.writer.close(reason)

    def turn(self, now: int) -> None:
        """One batch; then whatever is due; then all of it to the kernel."""
        self._write_batch(now)
        now = self._drained_ns  # our own messages come after these
        if now >= self._clock_at:
            self._clock_at = now + CLOCK_NS
            self.voice.clocks(now)
        if now >= self._status_at:
            self._status_at = now + STATUS_NS
            self._tell(now)
        self.writer.flush()

    def _wait_until(self, deadline_ns: int) -> None:
        """Sleep, but connect to a publisher as soon as it appears: ahead of its first message."""
        while (remaining := deadline_ns - clock.now_ns()) > 0:
            if self.node.stopping:
                remaining = min(remaining, STOPPING_TURN_NS)
                deadline_ns = 0
            if select.select([self._watch], [], [], remaining * 1e-9)[0]:
                os.read(self._watch, 65536)
                self._look()

    def _look(self) -> None:
        for ear in self.ears:
            ear.look()

    def _write_batch(self, now: int) -> None:
        batch: list[Heard] = []
        for ear in self.ears:
            ear.drain(self._drained_ns, now, batch)
        batch.sort(key=RECEIVED)
        self._drained_ns = max(now, RECEIVED(batch[-1])) if batch else now
        write = self.writer.write
        for received_ns, topic, payload, seq, stamp_ns in batch:
            write(topic, payload, seq, stamp_ns, received_ns)
            # The manager's heartbeat goes on while it stops us.
            if topic != "heartbeat":
                self._heard_ns = now

    def _tell(self, now_ns: int) -> None:
        self.voice.status(sum(ear.missed for ear in self.ears), now_ns)
        if self.writer.warning != self._said:
            self._said = self.writer.warning
            self.node.say(self._said or "log goes on")
        if REALTIME_FILE not in self.writer.attachments:
            self._attach_realtime()
        self._attach_policies()

    def _attach_realtime(self) -> None:
        """What control got of real time; it says so after we began."""
        path, run = (self.node.directory / name for name in (REALTIME_FILE, RUN_FILE))
        with contextlib.suppress(OSError):
            if path.stat().st_mtime_ns >= run.stat().st_mtime_ns:  # else an earlier run's
                self.writer.attach(path.name, path.read_bytes())

    def _attach_policies(self) -> None:
        """Files that were chosen while the run went on; one pilot loads each before it speaks."""
        for name in chosen_names(self.node.directory):
            if name not in self.writer.attachments:
                with contextlib.suppress(OSError):  # OWN is no file, and attached already
                    self.writer.attach(name, (self.node.directory / name).read_bytes())

    def _reason(self) -> str:
        """Why the run ended, as the manager says."""
        if self._orphaned():
            return "the manager was lost"
        try:
            return (self.node.directory / END_FILE).read_text()
        except OSError:
            return "stopped"

    def _orphaned(self) -> bool:
        return os.getppid() != self.parent

    def _at_end(self) -> bool:
        """Told to stop, and the last words of the others have been heard."""
        if not self.node.stopping:
            return False
        now = clock.now_ns()
        self._stop_ns = self._stop_ns or now
        silence = now - max(self._heard_ns, self._stop_ns)
        if self._orphaned():
            return silence > ORPHAN_SILENCE_NS
        return silence > SILENCE_NS or now - self._stop_ns > LONGEST_END_NS


def _open_or_continue(node: Node) -> tuple[LogWriter, bool]:
    """This run's log; True with it if an earlier recorder of the run began it."""
    run, robot, codecs = node.config, node.robot, node.codecs
    path = node.directory / LOG_FILE
    try:
        begun = json.loads(path.read_text())
        _, attachments = describe_run(run, robot)
        folder, metadata = Path(begun["folder"]), begun["metadata"]
        return make_writer(run, robot, codecs, folder, metadata, attachments), True
    except (OSError, ValueError, KeyError):
        pass
    now_ns, epoch_ns = clock.now_ns(), time.time_ns()
    writer = open_log(
        run, robot, codecs, now_ns=now_ns, epoch_ns=epoch_ns, command_line=_parents_command_line()
    )
    path.write_text(json.dumps({"folder": str(writer.folder), "metadata": writer.metadata}))
    return writer, False


def _parents_command_line() -> str | None:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
        return " ".join(words.rstrip("\0").split("\0"))
    return None


def _watch_folder(folder: Path) -> int:
    """An inotify descriptor that becomes readable when something is created in `folder`."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_CLOEXEC)
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(folder), IN_CREATE) < 0:
        raise UserError(f"{folder}: cannot be watched: {os.strerror(ctypes.get_errno())}")
    return watch


def main(node: Node) -> None:
    """Record until told to stop; a disk that is full or broken costs messages, never this loop."""
    # Never preempts who runs; set before any thread starts, which inherits it. os.nice(5) instead
    # cost a tenth more CPU here, most of it in ZeroMQ's thread.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    recorder = Recorder(node)
    freeze_collector()  # batches make garbage of their own; nothing older has to be looked at
    node.ready()
    recorder.run()
