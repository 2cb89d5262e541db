"""Asks the operating system for real-time behaviour and says plainly what it could not get.

Nothing here is needed to run: each step reports got or not got, with the reason.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq
from pydantic import Field

from robot.config import Strict, UserError

MCL_CURRENT, MCL_FUTURE = 1, 2  # mman.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
PR_SET_PDEATHSIG = 1  # prctl.h
SINGLE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class RealtimeConfig(Strict):
    """What the control process asks for."""

    fifo_priority: int | None = Field(default=None, ge=1, le=98)
    """SCHED_FIFO priority of the loop; its ZeroMQ I/O thread gets one less."""
    cpu: int | None = Field(default=None, ge=0)
    """Core that control is pinned to."""
    io_cpu: int | None = Field(default=None, ge=0)
    """Core that control's ZeroMQ I/O thread is pinned to."""
    lock_memory: bool = True
    allow_degraded: bool = False
    """drive hardware although SCHED_FIFO is not to be had: late ticks are likelier, and damp"""


@dataclass(frozen=True)
class Got:
    """One request to the operating system and its answer."""

    name: str
    got: bool
    detail: str

    def __str__(self) -> str:
        return f"{'got' if self.got else 'NOT got'}: {self.name} ({self.detail})"


def make_context(config: RealtimeConfig) -> tuple[zmq.Context, list[Got]]:
    """A ZeroMQ context whose I/O thread has its priority and core set before the first socket."""
    context = zmq.Context()
    report: list[Got] = []
    if config.fifo_priority:
        name = f"ZeroMQ I/O thread FIFO {max(1, config.fifo_priority - 1)}"
        if may_use_fifo(config.fifo_priority):
            context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_FIFO)
            context.set(zmq.THREAD_PRIORITY, max(1, config.fifo_priority - 1))
            report.append(Got(name, True, "set on the context"))
        else:
            report.append(Got(name, False, "this user may not use SCHED_FIFO"))
    if config.io_cpu is not None:
        name = f"ZeroMQ I/O thread on core {config.io_cpu}"
        available = os.sched_getaffinity(0)
        if config.io_cpu in available:
            context.set(zmq.THREAD_AFFINITY_CPU_ADD, config.io_cpu)
            report.append(Got(name, True, "set on the context"))
        else:
            report.append(Got(name, False, f"cores available: {sorted(available)}"))
    return context, report


def enter(config: RealtimeConfig) -> list[Got]:
    """Make this thread as real-time as it gets. Call it last, when everything is built."""
    report = [_kernel()]
    if (cpu := config.cpu) is not None:
        report.append(_attempt(f"core {cpu}", lambda: os.sched_setaffinity(0, {cpu})))
    if config.fifo_priority:
        parameters = os.sched_param(config.fifo_priority)
        report.append(
            _attempt(
                f"SCHED_FIFO {config.fifo_priority}",
                lambda: os.sched_setscheduler(0, os.SCHED_FIFO, parameters),
            )
        )
    if config.lock_memory:
        report.append(_attempt("memory locked", _lock_memory))
    report.append(freeze_collector())
    return report


def check_rights(config: RealtimeConfig) -> None:
    """Refuse to drive hardware without real-time scheduling, unless that is allowed (C10).

    Raises:
        UserError: says how to get it, and how to go without.
    """
    priority = config.fifo_priority or 1
    if config.allow_degraded or may_use_fifo(priority):
        return
    raise UserError(
        f"real time: this user may not use SCHED_FIFO {priority}, which a robot's control wants; "
        "`plexus doctor host` says how to get it. To drive degraded all the same, set "
        "realtime.allow_degraded: true in the run file"
    )


def freeze_collector() -> Got:
    """Collect once, move everything out of the collector's sight, switch it off."""
    gc.collect()
    gc.freeze()
    gc.disable()
    return Got("garbage collector frozen", True, f"{gc.get_freeze_count()} objects")


def die_with_parent(signal_number: int, parent: int) -> None:
    """Ask the kernel to signal this process when its parent dies; ends at once if it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        sys.exit(0)


def in_words(report: list[Got]) -> str:
    """One line: what was got, and what was not with the reason."""
    got = ", ".join(g.name for g in report if g.got) or "nothing"
    missing = "; ".join(f"{g.name} ({g.detail})" for g in report if not g.got)
    return f"real time: got {got}" + (f"; DEGRADED, not got: {missing}" if missing else "")


def _kernel() -> Got:
    is_rt = Path("/sys/kernel/realtime").exists()
    return Got("PREEMPT_RT kernel", is_rt, os.uname().release)


def _lock_memory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # Freed memory stays with the process, so that a later allocation does not fault pages in.
    libc.mallopt(M_TRIM_THRESHOLD, 256 * 2**20)
    libc.mallopt(M_MMAP_THRESHOLD, 256 * 2**20)
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        number = ctypes.get_errno()
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        raise OSError(number, f"{os.strerror(number)}, RLIMIT_MEMLOCK is {limit} bytes")


def may_use_fifo(priority: int) -> bool:
    """Try it on this thread and go back."""
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        return False
    os.sched_setscheduler(0, before, parameters)
    return True


def _attempt(name: str, action: Callable[[], object]) -> Got:
    try:
        action()
    except (OSError, ValueError, AttributeError) as error:
        return Got(name, False, getattr(error, "strerror", None) or str(error))
    return Got(name, True, "set")
