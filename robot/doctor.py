"""The command `plexus doctor`: looks at this computer or at a robot, and says what to do.

It changes nothing and drives nothing. Each line is ok, not ok, or could not be told.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from robot.config import UserError, check_positive
from robot.realtime import may_use_fifo
from robot.runs import load_run

CPU = Path("/sys/devices/system/cpu")
FIFO = 80  # as configs/runs/g1.yaml asks
FREE_GB = 5.0
RECEIVE_BUFFER = 2 * 2**20  # bytes: a burst of states while nobody listens


@dataclass(frozen=True)
class Doctor:
    """Look at this computer, or at a robot; change nothing; say what to do."""

    what: tyro.conf.Positional[Literal["host", "g1"]] = "host"
    """this computer, or a Unitree G1"""
    run: str = "g1"
    """run file that says where the robot is; g1-emulator for the emulator"""
    interface: str | None = None
    """network interface that the robot is connected to"""
    readonly: bool = False
    """send nothing at all, not even the question who owns the robot"""
    seconds: float = 3.0
    """listen for so long; move joints by hand meanwhile, and their signs are told"""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do if it is not well."""

    name: str
    ok: bool | None  # None: could not be told
    detail: str
    do: str = ""


def doctor(args: Doctor) -> int:
    """`plexus doctor`; exit code 1 if something is not ok."""
    check_positive(seconds=args.seconds)
    if args.what == "host":
        return tell(host())
    overrides = {"unitree.interface": args.interface} if args.interface else {}
    run = load_run(args.run, overrides)
    if run.driver != "unitree":
        raise UserError(f"--run {args.run}: its driver is {run.driver!r}, expected a G1's")
    from drivers.unitree_doctor import examine

    return tell([*examine(run, args.seconds, args.readonly), *realtime_rights()])


def tell(findings: Iterator[Finding] | list[Finding]) -> int:
    """Print the lines as they are found; 1 if one of them is not ok."""
    table, sick = Table("", "what", "how it is", "what to do"), 0
    words = {True: "ok", False: "NOT OK", None: "?"}
    for each in findings:
        table.add_row(words[each.ok], each.name, each.detail, each.do if not each.ok else "")
        sick += each.ok is False
    Console().print(table)
    print(f"{sick} of these are not ok" if sick else "nothing is wrong that can be seen from here")
    return 1 if sick else 0


# --- this computer ------------------------------------------------------------------------------


def host() -> Iterator[Finding]:
    """What matters to a 500 Hz loop on this computer."""
    yield from realtime_rights()
    cores = sorted(os.sched_getaffinity(0))
    yield Finding("cores", len(cores) >= 4, f"{len(cores)} for us", "control wants one of its own")
    yield _governor()
    isolated = _text(CPU / "isolated")
    yield Finding(
        "isolated cores", bool(isolated) if isolated is not None else None, isolated or "none",
        "boot with isolcpus=N nohz_full=N rcu_nocbs=N and set realtime.cpu: N in the run file",
    )  # fmt: skip
    yield _clock_source()
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding("disk", free >= FREE_GB, f"{free:.1f} GB free here", "logs need 0.5 MB a second")
    buffer = _text(Path("/proc/sys/net/core/rmem_max"))
    enough = None if buffer is None else int(buffer) >= RECEIVE_BUFFER
    yield Finding(
        "receive buffers", enough, f"{buffer} bytes at most",
        f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER}, for bursts on the robot's network",
    )  # fmt: skip
    yield _swap()


def realtime_rights() -> Iterator[Finding]:
    """Kernel, scheduling, memory: the rights that the systemd unit gives."""
    rt = Path("/sys/kernel/realtime").exists()
    yield Finding(
        "real-time kernel", rt, f"{os.uname().release}{' PREEMPT_RT' if rt else ''}",
        "works without one, degraded: late ticks are likelier; install a PREEMPT_RT kernel",
    )  # fmt: skip
    fifo = may_use_fifo(FIFO)
    yield Finding(
        "SCHED_FIFO", fifo, f"priority {FIFO} {'may' if fifo else 'may not'} be used",
        "give CAP_SYS_NICE, or RLIMIT_RTPRIO 80, to this user (see configs/systemd)",
    )  # fmt: skip
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    unlimited = limit == resource.RLIM_INFINITY or os.geteuid() == 0
    shown = "unlimited" if unlimited else f"{limit} bytes"
    yield Finding("locked memory", unlimited, shown, "set LimitMEMLOCK=infinity for this user")


def _governor() -> Finding:
    found = {_text(path) for path in CPU.glob("cpu*/cpufreq/scaling_governor")} - {None}
    if not found:
        return Finding("CPU governor", None, "not told by this computer")
    good = found == {"performance"}
    do = "cpupower frequency-set -g performance; on a Jetson nvpmodel -m 0 and jetson_clocks"
    return Finding("CPU governor", good, ", ".join(sorted(map(str, found))), do)


def _clock_source() -> Finding:
    source = _text(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource"))
    # Others cost a system call, or a way out of a virtual machine, for each look at the clock.
    good = None if source is None else source in ("tsc", "arch_sys_counter")
    return Finding("clock source", good, source or "not told", "virtual machines: ask for tsc")


def _swap() -> Finding:
    text = _text(Path("/proc/meminfo")) or ""
    swap = next((line for line in text.splitlines() if line.startswith("SwapTotal")), "")
    none = swap.split()[1:2] == ["0"] if swap else None
    return Finding("swap", none, " ".join(swap.split()[1:]) or "not told", "swapoff -a")


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
