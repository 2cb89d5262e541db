"""The loops that `plexus bench` compares, bare ones and ours, in processes of their own.

A player does one job at a time on request, and echoes answer it; in between all of them sleep. So
both sides of a row find the same cold caches, the same cadence and the same neighbours.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from robot import clock
from robot.config import UserError
from robot.messages import Codec, LowState, Message, PolicyInput, Target
from robot.model import Robot, load_robot
from robot.realtime import RealtimeConfig, die_with_parent, enter, freeze_collector
from robot.topics import make_codecs

CONTROL_HZ, POLICY_HZ = 500, 50
PERIOD_NS = 1_000_000_000 // CONTROL_HZ
ROBOT = "g1"
ANSWER_S = 60.0  # for one job, start-up included
SEQ = struct.Struct("<Q")  # leads every bare frame, so that an answer finds its question
COMPILERS = ("cc", "gcc", "clang")
# The limit of what a loop can do here: absolute deadlines, memory locked, skipping as ours does.
C_TIMER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}
int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int64_t period = atoll(argv[1]), ticks = atoll(argv[2]), n = 0, skipped = 0;
    int64_t *late = calloc(ticks, sizeof *late);
    if (!late || ticks < 1) return 2;
    (void)mlockall(MCL_CURRENT | MCL_FUTURE);
    int64_t deadline = now(), end = deadline + ticks * period;
    while (n < ticks && deadline < end) {
        deadline += period;
        struct timespec t = {deadline / INT64_C(1000000000), deadline % INT64_C(1000000000)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)) { }
        int64_t over = now() - deadline, passed = over / period;
        skipped += passed;
        deadline += passed * period;
        late[n++] = over - passed * period;
    }
    printf("{\"skipped\": %lld, \"us\": [", (long long)skipped);
    for (int64_t i = 0; i < n; i++) printf("%s%.3f", i ? "," : "", late[i] * 1e-3);
    printf("]}\n");
    return 0;
}
"""


@dataclass(frozen=True)
class Samples:
    """What one job measured."""

    us: NDArray[np.float64]  # (n,) one per tick, round trip or call
    skipped: int = 0  # whole periods passed over meanwhile


Job = Callable[[float], Samples]  # measure for so many seconds


@dataclass(frozen=True)
class Setup:
    """What jobs and echoes are built from."""

    directory: Path  # private; holds the sockets
    policy: Path | None

    @property
    def robot(self) -> Robot:
        """The robot whose message sizes count."""
        return load_robot(ROBOT)

    def codec(self, message: type[Message]) -> Codec[Any]:
        """Layout of a message of the robot."""
        return Codec(message, self.robot.dims, self.robot.robot_id)

    def policy_file(self) -> Any:
        """The policy, read and checked (imported late: a timer needs no ONNX)."""
        from policies.manifest import read_policy

        assert self.policy is not None
        return read_policy(self.policy)


def at_rate(hz: int, seconds: float, turn: Callable[[int], float | None]) -> Samples:
    """Call `turn` with the tick's number on schedule; keep what it returns, the first two aside.

    The first turns after a pause find colder caches than a loop that runs ever does.
    """
    rate, kept = clock.Rate(1_000_000_000 // hz), []
    for tick in range(max(1, round(seconds * hz))):
        rate.wait()
        if (value := turn(tick)) is not None:
            kept.append(value)
    return Samples(np.array(kept[min(2, len(kept) - 1) :]), rate.skipped)


# --- timer --------------------------------------------------------------------------------------


def timer_ours(_: Setup) -> Job:
    """Lateness of robot.clock.Rate."""

    def run(seconds: float) -> Samples:
        rate = clock.Rate(PERIOD_NS)
        late = [rate.wait() for _ in range(round(seconds * CONTROL_HZ))]
        return Samples(np.array(late) * 1e-3, rate.skipped)

    return run


def timer_bare(_: Setup) -> Job:
    """Lateness of an absolute clock_nanosleep through ctypes, where there is no compiler."""
    sleep = getattr(ctypes.CDLL(None), "clock_nanosleep", None)
    if sleep is None:
        raise UserError("bench: neither a C compiler nor clock_nanosleep is here; leave timer out")
    until = (ctypes.c_long * 2)()  # struct timespec

    def run(seconds: float) -> Samples:
        late, skipped, deadline = [], 0, clock.now_ns()
        for _ in range(round(seconds * CONTROL_HZ)):
            deadline += PERIOD_NS
            until[0], until[1] = divmod(deadline, 1_000_000_000)
            sleep(time.CLOCK_MONOTONIC, 1, until, None)  # 1: TIMER_ABSTIME
            passed, rest = divmod(clock.now_ns() - deadline, PERIOD_NS)
            skipped, deadline = skipped + passed, deadline + passed * PERIOD_NS
            late.append(rest * 1e-3)
        return Samples(np.array(late), skipped)

    return run


def compile_timer(folder: Path) -> tuple[Path | None, str]:
    """The C loop's program in `folder`, or None; and the compiler's name, or why there is none."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        return None, f"no C compiler ({', '.join(COMPILERS)})"
    source, program = folder / "timer.c", folder / "timer"
    source.write_text(C_TIMER)
    made = subprocess.run([compiler, "-O2", "-o", program, source], capture_output=True)
    if made.returncode != 0:
        return None, f"{Path(compiler).name} failed"
    return program, Path(compiler).name


def run_timer(program: Path, seconds: float) -> Samples:
    """Lateness of the C loop."""
    count = max(1, round(seconds * CONTROL_HZ))
    command = [str(program), str(PERIOD_NS), str(count)]
    done = subprocess.run(command, capture_output=True, timeout=ANSWER_S, check=True)
    told = json.loads(done.stdout)
    return Samples(np.array(told["us"]), told["skipped"])


# --- hops ---------------------------------------------------------------------------------------


class BareAsker:
    """Sends frames of one size over bare pyzmq and waits for the answers.

    Args:
        directory: holds the sockets.
        name: of the pair of sockets.
        size: bytes of a frame.
    """

    def __init__(self, directory: Path, name: str, size: int) -> None:
        self.out, self.back = _sockets(directory, f"{name}_ask", f"{name}_answer")
        self.frame = bytearray(size)
        self.seq = 0
        self.back.setsockopt(zmq.RCVTIMEO, 20)
        _meet(self.ask, name)
        self.back.setsockopt(zmq.RCVTIMEO, 1000)

    def ask(self) -> int | None:
        """Duration of one round trip in ns; None if no answer came."""
        self.seq += 1
        SEQ.pack_into(self.frame, 0, self.seq)
        begin = clock.now_ns()
        self.out.send(self.frame)
        try:
            while SEQ.unpack_from(self.back.recv())[0] != self.seq:
                pass
        except zmq.Again:
            return None
        return clock.now_ns() - begin


def _sockets(directory: Path, out: str, back: str) -> tuple[zmq.Socket, zmq.Socket]:
    """A PUB socket bound to `out` and a SUB socket connected to `back`."""
    context = zmq.Context.instance()
    publisher, subscriber = context.socket(zmq.PUB), context.socket(zmq.SUB)
    publisher.setsockopt(zmq.LINGER, 0)
    subscriber.setsockopt(zmq.LINGER, 0)
    subscriber.setsockopt(zmq.RECONNECT_IVL, 20)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    publisher.bind(f"ipc://{directory / out}.bare")
    subscriber.connect(f"ipc://{directory / back}.bare")
    return publisher, subscriber


def _meet(ask: Callable[[], int | None], name: str) -> None:
    """Ask until somebody answers: what is published before a subscription arrives is lost."""
    deadline = time.monotonic() + ANSWER_S
    while ask() is None:
        if time.monotonic() > deadline:
            raise UserError(f"bench: the echo of {name} did not answer within {ANSWER_S:.0f} s")


def echo_bare(directory: Path, name: str, size: int, work: Callable[[], object]) -> None:
    """For ever: receive, work, answer with a frame of `size` bytes that carries the same number."""
    out, given = _sockets(directory, f"{name}_answer", f"{name}_ask")
    answer = bytearray(size)
    freeze_collector()
    while True:
        asked = given.recv()
        work()
        answer[: SEQ.size] = asked[: SEQ.size]
        out.send(answer)


def hop_bare(setup: Setup) -> Job:
    """One way (half a round trip) of a low_state-size frame over bare pyzmq."""
    asker = BareAsker(setup.directory, "hop", setup.codec(LowState).size)
    return lambda seconds: at_rate(POLICY_HZ, seconds, lambda _: _half(asker.ask()))


def hop_ours(setup: Setup) -> Job:
    """The same through Publisher and Subscriber, with all their checks."""
    from robot.bus import Publisher, Subscriber

    context, codec = zmq.Context.instance(), setup.codec(LowState)
    publisher = Publisher(context, setup.directory, "hop_ask", codec)
    subscriber = Subscriber(context, setup.directory, {"hop_answer": codec})
    message = codec.new()

    def ask(timeout_ms: int) -> int | None:
        message.tick += 1
        begin = clock.now_ns()
        publisher.send(message, begin)
        while answer := subscriber.receive(timeout_ms):
            if isinstance(answer, LowState) and answer.tick == message.tick:
                return clock.now_ns() - begin
        return None

    _meet(lambda: ask(20), "hop")
    return lambda seconds: at_rate(POLICY_HZ, seconds, lambda _: _half(ask(1000)))


def echo_hop_bare(setup: Setup) -> None:
    """Answers hop_bare."""
    echo_bare(setup.directory, "hop", setup.codec(LowState).size, lambda: None)


def echo_hop_ours(setup: Setup) -> None:
    """Answers hop_ours."""
    from robot.bus import Publisher, Subscriber

    context, codec = zmq.Context.instance(), setup.codec(LowState)
    subscriber = Subscriber(context, setup.directory, {"hop_ask": codec})
    publisher = Publisher(context, setup.directory, "hop_answer", codec)
    answer = codec.new()
    freeze_collector()
    while True:
        given = subscriber.newest(1000)
        if isinstance(given, LowState):
            answer.tick = given.tick
            publisher.send(answer, clock.now_ns())


def _half(round_trip_ns: int | None) -> float | None:
    return None if round_trip_ns is None else round_trip_ns * 0.5e-3


# --- inference and path -------------------------------------------------------------------------


class BareSession:
    """The policy file in ONNX Runtime and nothing else; one thread, as anybody would set it up."""

    def __init__(self, data: bytes) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.feeds: dict[str, NDArray[np.float32]] = {
            v.name: np.zeros(v.shape, np.float32) for v in self.session.get_inputs()
        }
        if "imu_quat_wxyz" in self.feeds:
            self.feeds["imu_quat_wxyz"][0, 0] = 1.0
        self.binding = self.session.io_binding()
        for name, value in self.feeds.items():
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        self.results = [  # the binding holds addresses only
            (v.name, ort.OrtValue.ortvalue_from_numpy(np.zeros(v.shape, np.float32)))
            for v in self.session.get_outputs()
        ]
        for name, value in self.results:
            self.binding.bind_ortvalue_output(name, value)

    def run(self) -> None:
        """From bound inputs to bound outputs."""
        self.session.run_with_iobinding(self.binding)

    def run_plain(self) -> None:
        """As the textbook has it: dictionary in, list out."""
        self.session.run(None, self.feeds)


def inference_bare(setup: Setup) -> Job:
    """run_with_iobinding of the bare session."""
    return _timed(BareSession(setup.policy_file().data).run)


def inference_plain(setup: Setup) -> Job:
    """run() of the bare session."""
    return _timed(BareSession(setup.policy_file().data).run_plain)


def inference_ours(setup: Setup) -> Job:
    """PolicySession.run of the same file."""
    from policies.session import PolicySession

    session = PolicySession(setup.policy_file())
    session.inputs["imu_quat_wxyz"][0, 0] = 1.0
    return _timed(session.run)


def _timed(run: Callable[[], None]) -> Job:
    def turn(_: int) -> float:
        begin = clock.now_ns()
        run()
        return (clock.now_ns() - begin) * 1e-3

    return lambda seconds: at_rate(POLICY_HZ, seconds, turn)


def path_bare(setup: Setup) -> Job:
    """Policy-input-size frame out, bare run, target-size frame back: each tenth tick at 500 Hz."""
    asker = BareAsker(setup.directory, "path", setup.codec(PolicyInput).size)
    every = CONTROL_HZ // POLICY_HZ

    def turn(tick: int) -> float | None:
        if tick % every or (elapsed := asker.ask()) is None:
            return None
        return elapsed * 1e-3

    return lambda seconds: at_rate(CONTROL_HZ, seconds, turn)


def echo_path_bare(setup: Setup) -> None:
    """Answers path_bare."""
    session = BareSession(setup.policy_file().data)
    echo_bare(setup.directory, "path", setup.codec(Target).size, session.run)


# --- tick ---------------------------------------------------------------------------------------


class HotPorts:
    """Ports without a bus: messages are numbered, and the last target answers every input."""

    def __init__(self, setup: Setup, answer: Target) -> None:
        from robot.bus import Outbox

        codecs = make_codecs(setup.robot)
        self.outboxes = {topic: Outbox(codec, 1) for topic, codec in codecs.items()}
        self.answer = answer

    def receive(self) -> tuple[()]:
        """Nobody says anything."""
        return ()

    def target(self, asked_seq: int | None) -> Target | None:
        """The answer, where one was asked for."""
        return None if asked_seq is None else self.answer

    def send(self, topic: str, message: Message, stamp_ns: int) -> int:
        """Number it; a policy_input is answered."""
        seq = self.outboxes[topic].stamp(message, stamp_ns)
        if isinstance(message, PolicyInput):
            self.answer.input_instance, self.answer.input_seq = message.instance, seq
        return seq

    def drops(self) -> tuple[int, int]:
        """Nothing is refused."""
        return 0, 0


def tick_hot(setup: Setup) -> Job:
    """CPU time of robot.control.tick in POLICY, back to back, loopback driver, no bus."""
    from robot.control import tick
    from robot.messages import Mode
    from robot.pilot import load_pilot
    from robot.runs import load_run
    from sim2real.lockstep import Lockstep, LockstepOptions

    run = load_run("loopback", {"policy": str(setup.policy)})
    pilot = load_pilot(run, setup.robot)
    lockstep = Lockstep(run, pilot, options=LockstepOptions(stream=False), robot=setup.robot)
    if not lockstep.run_until(Mode.POLICY, 20.0):
        raise UserError(f"{setup.policy}: never got to POLICY on the loopback driver")
    lockstep.run_for(3.0)  # the blend into the policy ends
    control, driver, now = lockstep.control, lockstep.driver, lockstep.now_ns
    ports = HotPorts(setup, pilot.target)

    def measure(seconds: float) -> Samples:
        values: list[float] = []
        end = clock.now_ns() + round(seconds * 1e9)
        while clock.now_ns() < end:
            begin = time.thread_time_ns()
            tick(control, driver, ports, lambda: now)  # time stands still: nothing ever gets old
            values.append((time.thread_time_ns() - begin) * 1e-3)
        return Samples(np.array(values[len(values) // 10 :]))

    return measure


# --- processes ----------------------------------------------------------------------------------

JOBS: dict[str, Callable[[Setup], Job]] = {
    "timer_ours": timer_ours, "timer_bare": timer_bare,
    "hop_ours": hop_ours, "hop_bare": hop_bare,
    "path_bare": path_bare, "tick_hot": tick_hot,
    "inference_ours": inference_ours, "inference_bare": inference_bare,
    "inference_plain": inference_plain,
}  # fmt: skip
ECHOES: dict[str, Callable[[Setup], None]] = {
    "hop_ours": echo_hop_ours, "hop_bare": echo_hop_bare, "path_bare": echo_path_bare,
}  # fmt: skip


class Player:
    """Our end of the player process.

    Args:
        process: reads a line of JSON per job, and answers with one.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def play(self, job: str, seconds: float) -> Samples:
        """Do a row of JOBS for `seconds`.

        Raises:
            UserError: the player has ended; its reason is above.
        """
        self.begin(job, seconds)
        return self.end(job)

    def begin(self, job: str, seconds: float) -> None:
        """Begin a job; another player may begin its own meanwhile. Raises as `play` does."""
        assert self._process.stdin
        try:
            print(json.dumps([job, seconds]), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise UserError(f"bench: the process that measures {job} has ended") from None

    def end(self, job: str) -> Samples:
        """What the job that was begun has measured. Raises as `play` does."""
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise UserError(f"bench: the process that measures {job} has ended")
        told = json.loads(line)
        return Samples(np.array(told["us"]), told["skipped"])


@contextmanager
def players(
    setup: Setup, jobs: Iterable[str], module: str = "robot.bench_floor"
) -> Iterator[Player]:
    """A player that can do `jobs` of a module, with the echoes they need; gone afterwards."""
    jobs = list(jobs)
    started: list[subprocess.Popen[str]] = []
    try:
        for role in ("player", *(job for job in jobs if job in ECHOES)):
            started.append(_spawn(role, setup, jobs, module))
        yield Player(started[0])
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()


def _spawn(role: str, setup: Setup, jobs: list[str], module: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, role, str(setup.directory)]
    command += ["--parent", str(os.getpid()), "--jobs", *jobs]
    command += ["--policy", str(setup.policy)] if setup.policy else []
    pipe = subprocess.PIPE if role == "player" else subprocess.DEVNULL
    # In a session of their own: Ctrl-C is the bench's, which ends them.
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)


def main(jobs: dict[str, Callable[[Setup], Job]]) -> int:
    """Entry of a module with players, called by the bench.

    Args:
        jobs: what its player can do.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("role", help="player, or a row of ECHOES")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--jobs", nargs="*", default=[])
    options = parser.parse_args()
    die_with_parent(signal.SIGKILL, options.parent)
    setup = Setup(options.directory, options.policy)
    try:
        if options.role == "player":
            play({name: jobs[name](setup) for name in options.jobs})
        else:
            ECHOES[options.role](setup)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    return 0


def play(jobs: dict[str, Job]) -> None:
    """Answer requests from standard input until it ends; set up as control is."""
    enter(RealtimeConfig())
    for line in sys.stdin:
        name, seconds = json.loads(line)
        done = jobs[name](seconds)
        print(json.dumps({"us": done.us.tolist(), "skipped": done.skipped}), flush=True)


if __name__ == "__main__":
    sys.exit(main(JOBS))
