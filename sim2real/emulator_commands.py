"""The command `plexus emulate`: its options, and the loop that lets the robot's time go on."""

from __future__ import annotations

import json
import select
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import tyro

from robot.config import UserError, check_positive, without_extra

if TYPE_CHECKING:
    from sim2real.emulator import Emulator

CATCH_UP_MS = 10.0  # what is made up for in real time


@dataclass(frozen=True)
class Emulate:
    """Play a robot on its own protocol, in a process of its own, until Ctrl-C."""

    robot: tyro.conf.Positional[Literal["g1"]] = "g1"
    """which robot"""
    interface: str = "lo"
    """network interface to be on"""
    domain: int = 1
    """DDS domain; 0 is that of real robots and is refused"""
    mode_machine: int = 5
    """what kind of G1 it says it is"""
    service: str = "ai"
    """motion service that owns the robot at the start; "none" for none"""
    crc: bool = True
    """--no-crc: states without CRC, as some simulators send them"""
    faults: Annotated[tuple[str, ...], tyro.conf.arg(name="fault")] = ()
    """thrown from the start: NAME or NAME:key=value,key=value; "list" lists them"""
    orders: bool = False
    """take orders as lines of JSON on stdin, and answer each"""
    stepped: bool = False
    """time goes on by orders only"""
    timing_factor: float | None = None
    """multiplies the motors' time-out; default: 1 if --stepped, else 10, for shared computers"""
    seconds: float | None = None
    """end after this long"""
    seed: int = 0
    """of noise and of what is lost at random"""


def emulate(args: Emulate) -> int:
    """`plexus emulate g1`."""
    from sim2real.emulator_faults import SWITCHES

    check_positive(seconds=args.seconds, timing_factor=args.timing_factor)
    if "list" in args.faults:
        for name, (doc, values) in SWITCHES.items():
            shown = ",".join(f"{key}={value}" for key, value in values.items())
            print(f"{name}{':' + shown if shown else ''}  {doc}")
        return 0
    if args.domain == 0:
        raise UserError("--domain 0 is that of real robots; take another one, such as 1")
    faults = [parse_fault(text) for text in args.faults]
    try:
        from sim2real.emulator import Emulator, EmulatorOptions
    except ImportError as error:
        raise without_extra(error, "g1", "the G1") from None
    from robot.model import load_robot

    options = EmulatorOptions(
        args.interface, args.domain, args.mode_machine,
        "" if args.service == "none" else args.service, args.crc, args.seed,
        2 if args.stepped else 10, args.timing_factor or (1.0 if args.stepped else 10.0),
    )  # fmt: skip
    emulator = Emulator(load_robot(args.robot), options)
    for name, values in faults:
        emulator.faults.throw(name, values)
    print(
        f"emulating a G1 on {args.interface!r}, domain {args.domain}: mode_machine "
        f"{args.mode_machine}, owned by {args.service!r}. Try `plexus run g1-emulator`",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run(emulator, args.stepped, args.orders, args.seconds)
    return 0


def parse_fault(text: str) -> tuple[str, dict[str, Any]]:
    """'encoder_jump:joint=3,rad=0.5' to its name and values.

    Raises:
        UserError: a value is no number.
    """
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            values[key] = float(value) if "." in value else int(value)
        except ValueError:
            raise UserError(
                f"--fault {text}: got {part!r}, expected key=number, for example joint=3"
            ) from None
    return name, values


def obey_lines(emulator: Emulator, lines: TextIO, wait: bool) -> bool:
    """Carry out orders, one JSON object per line, and answer each; False once there are no more."""
    while wait or select.select([lines], [], [], 0)[0]:
        line = lines.readline()
        if not line:
            return False
        try:
            answer = emulator.order(json.loads(line))
        except (UserError, ValueError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    return True


def run(emulator: Emulator, stepped: bool, orders: bool, seconds: float | None) -> None:
    """Until told to stop: stepped by orders, or in real time, as far as this computer keeps up.

    Small delays are made up for. After larger ones the robot's time goes on from there, as if the
    whole world had stood still: a burst of steps would let its motors miss commands that nobody
    could have sent.
    """
    lines = sys.stdin if stepped or orders else None
    if stepped:
        assert lines is not None
        obey_lines(emulator, lines, wait=True)
        return
    begin = time.monotonic()
    while seconds is None or emulator.ms < seconds * 1e3:
        behind = (time.monotonic() - begin) * 1e3 - emulator.ms
        if behind > CATCH_UP_MS:
            begin += (behind - CATCH_UP_MS) * 1e-3
        if behind < 0.0:
            time.sleep(-behind * 1e-3)
            continue
        emulator.step()
        if lines is not None and not obey_lines(emulator, lines, wait=False):
            return
