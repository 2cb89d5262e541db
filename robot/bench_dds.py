"""The rows of `plexus bench` that go through DDS: the G1's driver beside loops of bare bytes.

Two processes on the loopback interface. One plays the robot: a bare peer, the same for both sides.
The other plays the computer, in one domain with our driver, in the next with bytes as they are.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from drivers import unitree_wire as wire
from drivers.dds import Participant, RawWriter
from drivers.unitree import UnitreeDriver
from robot import clock
from robot.bench_figures import Pair, Row, make_row, more, skips, spread, take_turns
from robot.bench_floor import (
    ANSWER_S,
    CONTROL_HZ,
    PERIOD_NS,
    Job,
    Player,
    Samples,
    Setup,
    at_rate,
    main,
    players,
)
from robot.config import UserError
from robot.messages import LowCmd, LowState
from robot.runs import UnitreeConfig

MODULE = "robot.bench_dds"
FIRST_DOMAIN, PAIRS = 120, 50  # of DDS; two benches beside each other hardly meet
SIDES = ("ours", "bare")
FACTOR = 100.0  # as in bench.py: changes the driver's limits, not its work
ANSWER_NS = 100_000_000  # longest wait for a command that answers
MEETING_S = 1.0  # answered for so long at first: the two ends find each other
TAIL_S = 0.1  # answered for so much longer than asked
VARIANT = 5
# Where both ends put a number that tells which state a command answers: the first motor's position.
STATE_MARK = 4 + int(wire.STATE_LAYOUT.leaves["motor_state.q"].offsets[0])
CMD_MARK = 4 + int(wire.CMD_LAYOUT.leaves["motor_cmd.q"].offsets[0])
MARK_STEP, MARKS = 1e-4, 400  # rad; no joint may seem to jump when they begin anew


def _domain(side: str) -> int:
    """Both ends are children of the same bench."""
    return FIRST_DOMAIN + 2 * (os.getppid() % PAIRS) + SIDES.index(side)


# --- rows ---------------------------------------------------------------------------------------


def measure(setup: Setup, seconds: dict[str, float]) -> dict[str, Row]:
    """The rows that are named, each in about so many seconds, both sides in turns."""
    rows: dict[str, Row] = {}
    with (
        players(setup, ROBOT_JOBS, MODULE) as robot,
        players(setup, COMPUTER_JOBS, MODULE) as computer,
    ):
        for side in SIDES:
            _together(robot, f"meet_{side}", computer, f"open_{side}", 0.0)
        if "dds" in seconds:
            pairs = take_turns(
                seconds["dds"],
                lambda s: _together(robot, "ask_bare", computer, "answer_bare", s)[0],
                lambda s: _together(robot, "ask_ours", computer, "answer_ours", s)[0],
            )
            note = (
                f"state to command at {CONTROL_HZ} Hz, seen by a bare peer, the driver's read and "
                "write in between; floor: the same bytes without a driver"
            )
            rows["dds"] = make_row("dds", pairs, note)
        loops = [name for name in ("dds_period", "dds_cpu") if name in seconds]
        if loops:
            rows |= _loops(robot, computer, sum(seconds[name] for name in loops))
    return {name: rows[name] for name in seconds}


def _together(
    robot: Player, asks: str, computer: Player, answers: str, seconds: float
) -> tuple[Samples, Samples]:
    """Both ends at work; what the robot's and the computer's have measured."""
    computer.begin(answers, seconds)
    robot.begin(asks, seconds)
    return robot.end(asks), computer.end(answers)


def _loops(robot: Player, computer: Player, seconds: float) -> dict[str, Row]:
    """Periods as the receiver saw them, and CPU time of the sender, from the same rounds."""
    spent: dict[str, list[Samples]] = {side: [] for side in SIDES}
    periods: dict[str, list[Samples]] = {side: [] for side in SIDES}

    def slot(side: str, s: float) -> Samples:
        heard, cpu = _together(robot, f"hear_{side}", computer, f"send_{side}", s)
        spent[side].append(cpu)
        periods[side].append(heard)
        return Samples(np.abs(heard.us - PERIOD_NS * 1e-3), heard.skipped)

    late = take_turns(seconds, lambda s: slot("bare", s), lambda s: slot("ours", s))
    cpu: list[Pair] = list(zip(spent["bare"], spent["ours"], strict=True))
    seen = {side: spread(np.concatenate([s.us for s in periods[side]])) for side in SIDES}
    return {
        "dds_period": make_row(
            "dds_period", late,
            f"how far a command's period is off {PERIOD_NS * 1e-3:.0f} us at the receiver; floor: "
            "a bare loop with a constant message",
            period_us=seen["ours"], floor_period_us=seen["bare"],
            **skips(late), **more(late),
        ),
        "dds_cpu": make_row(
            "dds_cpu", cpu,
            f"CPU of the driver's read and write at {CONTROL_HZ} Hz; floor: taking and writing "
            "bare bytes",
        ),
    }  # fmt: skip


# --- the robot's end ----------------------------------------------------------------------------


class Peer:
    """Sends states and hears commands, and knows nothing of who is at the other end.

    Args:
        side: whose domain it is on.
    """

    def __init__(self, side: str) -> None:
        participant, kinds = Participant(_domain(side), "lo"), wire.idl_types()
        self.participant, self.side = participant, side
        self._states = participant.writer("rt/lowstate", kinds["LowState_"])
        self._commands = participant.reader("rt/lowcmd", kinds["LowCmd_"], depth=16)
        self._wait = self._commands.waiter()
        self._frame = frame = wire.Frame(wire.STATE_LAYOUT)
        frame.put("mode_machine", VARIANT)
        frame.put("motor_state.mode", 1)
        frame.view("imu_state.quaternion")[0] = 1.0
        frame.view("imu_state.accelerometer")[2] = 9.81
        frame.view("motor_state.temperature", 2)[:] = 40
        self._tick, self._gyro = frame.view("tick"), frame.view("imu_state.gyroscope")
        self._pos = frame.view("motor_state.q")
        self._count = 0

    def _prepare(self) -> bytes:
        """A state unlike the one before; returns its mark."""
        self._count += 1
        self._tick[0] = clock.now_ns() // 1_000_000 & 0xFFFFFFFF
        self._pos[:] = MARK_STEP * (self._count % MARKS)
        self._gyro[:] = self._pos[0]
        self._frame.sign()
        return bytes(self._frame.buffer[STATE_MARK : STATE_MARK + 4])

    def ask(self, most_ns: int) -> float | None:
        """us from a state to the command that answers it; None if none does in time."""
        mark = self._prepare()
        self._commands.take()
        begin = clock.now_ns()
        self._states.write(self._frame.payload)
        while (left := begin + most_ns - clock.now_ns()) > 0:
            if self._wait(left):
                now = clock.now_ns()
                for data in self._commands.take():
                    if data[CMD_MARK : CMD_MARK + 4] == mark:
                        return (now - begin) * 1e-3
        return None

    def hear(self, seconds: float) -> Samples:
        """us between the arrivals of commands, and periods in which none came."""
        arrivals: list[int] = []
        due = clock.now_ns()
        end = due + round(seconds * 1e9)
        while (now := clock.now_ns()) < end:
            if now >= due:
                self._prepare()
                self._states.write(self._frame.payload)
                due += ((now - due) // PERIOD_NS + 1) * PERIOD_NS
            elif self._wait(due - now):
                arrivals += [clock.now_ns()] * len(self._commands.take())
        periods = np.diff(np.array(arrivals[2:], np.int64))  # the first ones find cold caches
        passed = np.maximum(0, np.rint(periods / PERIOD_NS) - 1)
        return Samples(periods * 1e-3, int(passed.sum()))

    def meet(self) -> None:
        """Send states until somebody answers.

        Raises:
            UserError: nobody does.
        """
        deadline = time.monotonic() + ANSWER_S
        while self.ask(PERIOD_NS) is None:
            if time.monotonic() > deadline:
                raise UserError(f"bench: nobody answered in DDS within {ANSWER_S:.0f} s")


@functools.cache
def _peer(side: str) -> Peer:
    return Peer(side)


def _meets(side: str) -> Job:
    peer = _peer(side)

    def run(_: float) -> Samples:
        peer.meet()
        return Samples(np.empty(0))

    return run


def _asks(side: str) -> Job:
    """us from each state to its answer, at the cadence of the robot."""
    peer = _peer(side)

    def run(seconds: float) -> Samples:
        rate, kept = clock.Rate(PERIOD_NS), []
        end = clock.now_ns() + round(seconds * 1e9)  # by time: the other end ends by time, too
        while clock.now_ns() < end:
            rate.wait()
            if (value := peer.ask(ANSWER_NS)) is not None:
                kept.append(value)
        return Samples(np.array(kept[2:]), rate.skipped)

    return run


def _hears(side: str) -> Job:
    return _peer(side).hear


# --- the computer's end -------------------------------------------------------------------------


class Computer(Protocol):
    """Takes states and sends commands."""

    def open(self) -> None:
        """Meet the robot's end."""
        ...

    def wait(self, most_ns: int, /) -> bool:
        """Sleep until a state has come; False if none did."""
        ...

    def turn(self) -> None:
        """Read what has come, write a command that answers it."""
        ...


class Ours(UnitreeDriver):
    """The driver, opened on a peer that has no motion service to be asked for."""

    def __init__(self, setup: Setup) -> None:
        config = UnitreeConfig(
            interface="lo",
            network="127.0.0.0/8",
            domain=_domain("ours"),
            mode_machine=(VARIANT,),
            trust_timeout=True,
        )
        super().__init__(setup.robot, config, FACTOR)
        self._state: LowState = setup.codec(LowState).new()
        self._cmd: LowCmd = setup.codec(LowCmd).new()
        self._cmd.stiffness[:], self._cmd.damping[:] = 20.0, 1.0

    def open(self) -> None:
        """As every driver is; then until the peer can hear."""
        super().open()
        self._sleeper = self._states.waiter()
        assert self._commands is not None
        _await_reader(self._commands)

    def _take_over(self, participant: Participant) -> None:
        """The peer is nobody's."""

    def wait(self, most_ns: int) -> bool:
        """Sleep until a state has come."""
        return self._sleeper(most_ns)

    def turn(self) -> None:
        """What control does with it, and nothing else."""
        self.read(self._state)
        self._cmd.joint_pos_target[:] = self._state.joint_pos
        self.write(self._cmd)


class Bare:
    """Bytes in, and always the same bytes out, but for the mark."""

    def __init__(self, _: Setup) -> None:
        participant, kinds = Participant(_domain("bare"), "lo"), wire.idl_types()
        self.participant = participant
        self._states = participant.reader("rt/lowstate", kinds["LowState_"], depth=32)
        self._commands = participant.writer("rt/lowcmd", kinds["LowCmd_"])
        self._frame = bytearray(4 + wire.CMD_LAYOUT.size)
        self._frame[:4] = wire.HEADER
        self.wait = self._states.waiter()

    def open(self) -> None:
        """Until the peer can hear."""
        _await_reader(self._commands)

    def turn(self) -> None:
        """The mark of the newest state, written back."""
        if taken := self._states.take(32):
            self._frame[CMD_MARK : CMD_MARK + 4] = taken[-1][STATE_MARK : STATE_MARK + 4]
        self._commands.write(self._frame)


def _await_reader(writer: RawWriter) -> None:
    deadline = time.monotonic() + ANSWER_S
    while not writer.readers:
        if time.monotonic() > deadline:
            raise UserError(f"bench: nobody listened in DDS within {ANSWER_S:.0f} s")
        time.sleep(0.01)


@functools.cache
def _computer(side: str, setup: Setup) -> Computer:
    return Ours(setup) if side == "ours" else Bare(setup)


def _opens(side: str, setup: Setup) -> Job:
    computer = _computer(side, setup)

    def run(_: float) -> Samples:
        computer.open()
        return _answer(computer, MEETING_S)

    return run


def _answers(side: str, setup: Setup) -> Job:
    computer = _computer(side, setup)
    return lambda seconds: _answer(computer, seconds + TAIL_S)


def _answer(computer: Computer, seconds: float) -> Samples:
    """Answer each state as it comes."""
    end = clock.now_ns() + round(seconds * 1e9)
    while (left := end - clock.now_ns()) > 0:
        if computer.wait(left):
            computer.turn()
    return Samples(np.empty(0))


def _sends(side: str, setup: Setup) -> Job:
    """us of CPU of each turn, on a schedule of our own."""
    computer = _computer(side, setup)

    def run(seconds: float) -> Samples:
        if not computer.wait(round(ANSWER_S * 1e9)):
            raise UserError(f"bench: no state in DDS within {ANSWER_S:.0f} s")

        def turn(_: int) -> float:
            begin = time.thread_time_ns()
            computer.turn()
            return (time.thread_time_ns() - begin) * 1e-3

        return at_rate(CONTROL_HZ, seconds, turn)

    return run


JOBS: dict[str, Callable[[Setup], Job]] = {
    f"{verb}_{side}": make
    for side in SIDES
    for verb, make in (
        ("meet", lambda _, side=side: _meets(side)),
        ("ask", lambda _, side=side: _asks(side)),
        ("hear", lambda _, side=side: _hears(side)),
        ("open", lambda setup, side=side: _opens(side, setup)),
        ("answer", lambda setup, side=side: _answers(side, setup)),
        ("send", lambda setup, side=side: _sends(side, setup)),
    )
}
ROBOT_JOBS = tuple(f"{verb}_{side}" for verb in ("meet", "ask", "hear") for side in SIDES)
COMPUTER_JOBS = tuple(f"{verb}_{side}" for verb in ("open", "answer", "send") for side in SIDES)

if __name__ == "__main__":
    sys.exit(main(JOBS))
