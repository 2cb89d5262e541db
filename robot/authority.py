"""Decides who drives: one lease at a time, taken over only upwards in rank; anyone may stop.

Pure: it sees messages and time, never a socket. Source of the rules: faults.md 6.
"""

from __future__ import annotations

from robot.messages import Ask, Command, Request
from robot.topics import SOURCES

HOLD_NS = 200_000_000  # without a command for this long: HOLD
EXPIRY_NS = 500_000_000  # without a command for this long: the lease is gone


class Authority:
    """The lease, and the holder's newest command.

    Args:
        command: buffer that keeps the accepted command.
        timing_factor: multiplies the age limits (1 on hardware).
    """

    def __init__(self, command: Command, timing_factor: float) -> None:
        self.command = command
        self.hold_ns = int(HOLD_NS * timing_factor)
        self.expiry_ns = int(EXPIRY_NS * timing_factor)
        self.holder = 0  # nonce, 0: nobody
        self.source = 255  # row of SOURCES, 255: nobody
        self.seen_ns = 0  # last sign of life of the holder
        self.command_ns = -1  # when the command was captured; -1: none under this lease
        self.refused = 0  # commands of others, dropped

    def hear(self, command: Command, now_ns: int) -> None:
        """Take a command, if it is the holder's and not from the future or past its limit."""
        if command.lease != self.holder or self.holder == 0 or command.source != self.source:
            self.refused += 1
            return
        age = now_ns - command.stamp_ns
        if not -self.hold_ns <= age <= self.hold_ns:
            self.refused += 1
            return
        self.command.copy_from(command)
        self.command_ns = command.stamp_ns
        self.seen_ns = now_ns

    def ask(self, request: Request, now_ns: int) -> tuple[bool, str]:
        """Answer ACQUIRE and RELEASE; returns (accepted, reason of the refusal)."""
        if request.source >= len(SOURCES) or request.lease == 0:
            return False, f"source {request.source} is unknown or its nonce is 0"
        if request.ask == Ask.RELEASE:
            if request.lease != self.holder:
                return False, "RELEASE is refused: another source holds the lease"
            self._drop()
            return True, ""
        rank = SOURCES[request.source].rank
        if self.holder not in (0, request.lease) and rank <= SOURCES[self.source].rank:
            name = SOURCES[self.source].name
            return False, f"ACQUIRE is refused: {name} drives, and its rank is not below yours"
        if request.lease != self.holder:
            self._drop()
            self.holder, self.source = request.lease, request.source
        self.seen_ns = now_ns
        return True, ""

    def expire(self, now_ns: int) -> None:
        """Drop the lease of a holder that went silent."""
        if self.holder and now_ns - self.seen_ns > self.expiry_ns:
            self._drop()

    def holds(self, request: Request) -> bool:
        """True if the request's sender holds the lease."""
        return self.holder != 0 and request.lease == self.holder

    def command_age_ns(self, now_ns: int) -> int:
        """Age of the holder's command; -1 if there is none."""
        # The tick took its time before it read the bus: a command may be some microseconds younger.
        return -1 if self.command_ns < 0 else max(0, now_ns - self.command_ns)

    def fresh(self, now_ns: int) -> bool:
        """True while the holder's command is young enough to be obeyed."""
        return self.command_ns >= 0 and now_ns - self.command_ns <= self.hold_ns

    def _drop(self) -> None:
        self.holder, self.source, self.command_ns = 0, 255, -1
