"""Between pages and bus: what pages say becomes commands and requests, what control says pictures.

It owns the console's one `Operators` and `Picture`, and publishes at once what they yield. It knows
neither HTTP nor cookies (server.py).
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import secrets
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from robot.clock import now_ns
from robot.console.access import TOKEN_LIFE_NS, Access, Bucket, Role, Visit
from robot.console.arms import ArmWish
from robot.console.chaos import Chaos
from robot.console.clock import BrowserClock
from robot.console.eyes import Eyes, picture
from robot.console.marks import TOPIC, Marks
from robot.console.operators import (
    DEADMAN_NS,
    FULL_NS,
    MS,
    ROLE,
    ZERO_NS,
    Operator,
    Operators,
    Out,
)
from robot.console.picks import TOPIC as CHOICES
from robot.console.picks import Picks
from robot.console.picture import Picture
from robot.console.shapes import Shapes
from robot.console.wire import (
    AskFor,
    Choose,
    Drive,
    Invite,
    Mark,
    Pong,
    Rehearse,
    Said,
    Seen,
    Watch,
)
from robot.messages import (
    Ask,
    Frame,
    Message,
    PolicyChange,
    PolicyInfo,
    PolicyInput,
    RecorderStatus,
    Status,
)
from robot.node import Node
from robot.terrain import terrain_of

PING_NS = 500 * MS


class Line:
    """What waits to be sent to one page: the newest of each kind, so none can pile up.

    Args:
        visit: who it is.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self._waiting: dict[str, str | bytes] = {}
        self._fresh = asyncio.Event()

    def offer(self, kind: str, data: str | bytes) -> None:
        """Put in place of what of this kind has not gone out yet."""
        self._waiting[kind] = data
        self._fresh.set()

    def tell(self, kind: str, *, of: str = "", **fields: Any) -> None:
        """Offer a JSON message; what is `of` another thing is another kind."""
        self.offer(f"{kind} {of}", json.dumps({"t": kind, **fields}))

    async def next(self) -> list[str | bytes]:
        """Everything that waits, once something does."""
        await self._fresh.wait()
        self._fresh.clear()
        waiting, self._waiting = list(self._waiting.values()), {}
        return waiting


@dataclass(eq=False)
class Page:
    """An open page: its line, its operator, its clock, and what it sees."""

    line: Line
    operator: Operator
    clock: BrowserClock = field(default_factory=BrowserClock)
    pinged_ns: int = 0
    told: int = 0  # events it knows
    frames: dict[str, Frame] = field(default_factory=dict)  # newest sent, by camera
    awaited: set[str] = field(default_factory=set)  # cameras whose picture it has not shown yet


class Desk:
    """The console behind the server.

    Args:
        node: robot, run, and a line for people.
        access: makes tokens for links that one person gives another.
        publish: sends one message on the bus.
    """

    def __init__(self, node: Node, access: Access, publish: Callable[[Out], None]) -> None:
        self.node, self.access, self._publish = node, access, publish
        self.address = ""  # http://host:port, once it is known
        self.pages: list[Page] = []
        self.operators = Operators(node.codecs, node.config.timing_factor, arms=ArmWish(node.robot))
        self.picks = Picks(node.codecs[CHOICES], self.operators)
        self.marks = Marks(node.codecs[TOPIC], node.config.timing_factor)
        self.picture = Picture(node.robot, node.config)
        terrain = terrain_of(node.config.sim.terrain)
        self.shapes = Shapes(node.robot, terrain)
        self.eyes = Eyes()
        self.chaos = Chaos()
        self._draw = random.Random()
        self._log = Bucket(rate=1.0, burst=20)
        self._unlogged = 0
        limits = {"deadman": DEADMAN_NS, "full": FULL_NS, "zero": ZERO_NS}
        factor = node.config.timing_factor
        told = {name: ns * factor / MS for name, ns in limits.items()}
        self._hello = self.picture.hello(self.shapes.geoms(), told)
        self._hello["floor"] = terrain.floor
        self._hello["arms"] = self.operators.arms.hello()

    # --- pages ------------------------------------------------------------------------------------

    def join(self, line: Line) -> Page:
        """A page was opened; everybody is told."""
        visit = line.visit
        operator = self.operators.join(visit.name, visit.role, secrets.randbits(63) | 1)
        page = Page(line, operator)
        self.pages.append(page)
        line.tell("hello", **self._hello, name=visit.name, role=visit.role.name.lower())
        self.say(f"{visit.name} is here ({visit.role.name.lower()})")
        self.ping(page, now_ns())
        return page

    def leave(self, page: Page) -> None:
        """A page is gone; if it drove, the robot holds now."""
        self.pages.remove(page)
        drove = page.operator is self.operators.driver
        self._send(self.operators.leave(page.operator, now_ns()))
        self.say(f"{page.line.visit.name} is gone{', and it drove' if drove else ''}")

    def hear(self, page: Page, said: Said) -> None:
        """A page said something well-formed."""
        now = now_ns()
        if isinstance(said, Drive):
            self._drive(page, said)
        elif isinstance(said, AskFor):
            pressed = min(now, page.clock.to_ours(said.c)) if page.clock.known else now
            self._send(self.operators.ask(page.operator, Ask(said.ask), pressed, now))
            self._tell_answers()
        elif isinstance(said, Pong):
            page.clock.hear(said.s, said.c, now)
        elif isinstance(said, Invite):
            self._invite(page, Role(said.role))
        elif isinstance(said, Rehearse):
            self._rehearse(page, said)
        elif isinstance(said, Mark):
            self._mark(page, said, now)
        elif isinstance(said, Watch):
            self.operators.watch(page.operator, said.replay)
        elif isinstance(said, Choose):
            self._choose(page, said, now)
        elif isinstance(said, Seen):
            page.awaited.discard(said.camera)

    def stop(self, name: str) -> None:
        """STOP by a visitor without a WebSocket: the way that needs the least to work."""
        visitor = Operator(name, Role.OBSERVE, secrets.randbits(63) | 1)
        self._send(self.operators.ask(visitor, Ask.ESTOP, now_ns(), now_ns()))

    def refused(self, what: str) -> None:
        """Somebody was kept out or cut off: into the log, but never a flood of it."""
        if not self._log.take(now_ns()):
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more like it)" if self._unlogged else ""
        self._unlogged = 0
        # Strangers choose these words: nothing that a terminal would obey goes through.
        words = "".join(letter if letter.isprintable() else "?" for letter in what[:200])
        self.say(f"refused: {words}{more}", "bad")

    def say(self, text: str, kind: str = "") -> None:
        """One line for people, in the run's output and on every page."""
        self.node.say(text)
        self.picture.tell(text, _wall(), kind)

    def _drive(self, page: Page, drive: Drive) -> None:
        if not page.clock.known:
            page.operator.refused += 1
            return
        late_ns = self.chaos.fate_ns(self._draw)
        if late_ns is None:
            return
        if late_ns == 0:
            self._sample(page, drive)
        else:
            asyncio.get_running_loop().call_later(late_ns * 1e-9, self._sample, page, drive)

    def _sample(self, page: Page, drive: Drive) -> None:
        if page in self.pages:  # a delayed sample may outlive its page
            captured = page.clock.to_ours(drive.c)
            self._send(self.operators.sample(page.operator, drive, captured, now_ns()))

    def _invite(self, page: Page, role: Role) -> None:
        """A link for another browser, with no more rights than one's own."""
        own = page.operator.role
        if role > own:
            page.operator.note = f"this page may {own.name.lower()} only"
            return
        token = self.access.issue(role, now_ns() + TOKEN_LIFE_NS)
        page.line.tell("invite", role=role.name.lower(), address=f"{self.address}/?token={token}")
        self.say(f"{page.line.visit.name} made a link ({role.name.lower()})")

    def _rehearse(self, page: Page, said: Rehearse) -> None:
        if page.operator.role < Role.ARM or not self.node.simulated:
            page.operator.note = "bad networks are rehearsed in simulation, by whoever may arm"
            return
        self.chaos = Chaos(said.delay_ms, said.jitter_ms, said.loss)
        self.say(
            f"{page.line.visit.name} rehearses: {said.delay_ms:g} ms late, up to "
            f"{said.jitter_ms:g} ms more, {said.loss:.0%} lost"
        )

    def _mark(self, page: Page, said: Mark, now: int) -> None:
        visit, clock = page.line.visit, page.clock
        pressed = clock.to_ours(said.c) if clock.known else now
        out = self.marks.make(visit.name, visit.role, said, pressed, now)
        if isinstance(out, str):
            page.operator.note = out
            return
        self._send([out])
        what = {"mark": "marked", "begin": "began an episode", "end": "ended the episode"}
        self.say(f"{visit.name} {what[said.kind]}{f': {said.note}' if said.note else ''}")

    def _choose(self, page: Page, said: Choose, now: int) -> None:
        chosen = list(self.picks.choose(page.operator, int(said.policy, 16), now))
        self._send(chosen)
        if chosen:
            self.say(f"{page.line.visit.name} chose policy {said.policy}")

    # --- the bus ----------------------------------------------------------------------------------

    def take(self, message: Message) -> bool:
        """A message of the bus, which stays as it is; True if pages should know at once."""
        before = self.operators.mode
        if isinstance(message, Status):
            self.operators.hear(message, now_ns())
        elif isinstance(message, PolicyInfo):
            self.operators.hear_policy(message)
        elif isinstance(message, PolicyChange):
            self.picks.hear(message)
        elif isinstance(message, RecorderStatus):
            self.marks.hear(message, now_ns())
        elif isinstance(message, PolicyInput):
            self.operators.arms.hear(message)
        self.picture.hear(message, _wall())
        self.eyes.hear(message)
        answered = self._tell_answers() or isinstance(message, PolicyChange)
        return answered or self.operators.mode != before

    def turn(self, now: int) -> None:
        """What time brings: repetitions, deadmen, pings."""
        self._send(self.operators.step(now))
        self._send(self.picks.step(now))
        self._tell_answers()
        for page in self.pages:
            if now - page.pinged_ns >= PING_NS:
                self.ping(page, now)

    def ping(self, page: Page, now: int) -> None:
        """Ask a page for its clock."""
        page.pinged_ns = now
        page.line.tell("ping", s=now)

    def _send(self, outs: Iterable[Out]) -> None:
        for out in outs:
            self._publish(out)

    def _tell_answers(self) -> bool:
        """Control's answers, to who asked; what a robot does by request is an event for all."""
        ended, self.picks.ended = self.picks.ended, []
        for loaded, text in ended:
            self.say(f"policy: {text}", "" if loaded else "bad")
        answered, self.operators.answered = self.operators.answered, []
        for operator, ask, ok, reason, ms in answered:
            line = next((p.line for p in self.pages if p.operator is operator), None)
            if line:
                data = {
                    "t": "answer",
                    "ask": ask.name,
                    "ok": ok,
                    "reason": reason,
                    "ms": round(ms, 1),
                }
                line.offer(f"answer {ask.name}", json.dumps(data))
            took = f", acknowledged after {ms:.0f} ms" if ok and ask == Ask.ESTOP else ""
            text = f"{operator.name}: {ask.name}{took if ok else ' refused: ' + reason}"
            self.say(text, "" if ok else "bad")
        return bool(answered)

    # --- pictures ---------------------------------------------------------------------------------

    def show_pose(self) -> None:
        """The robot's bodies, to every page, after the time that they are of: ms of its clock."""
        message = self.picture.pose
        if message is not None and self.pages:
            data = self.shapes.poses(message)
            for page in self.pages:
                known = page.clock.known
                taken = page.clock.to_theirs(message.stamp_ns) if known else math.nan
                page.line.offer("pose", struct.pack("<d", taken) + data)

    def show_state(self, now: int) -> None:
        """Everything else: what is the same for all is encoded once."""
        if not self.pages:
            return
        ground = self.eyes.ground(now)
        more = {"rehearsed": self.chaos != Chaos(), "arms": self.operators.arms.told()}
        more["change"] = self.picks.to_dict()
        common = json.dumps(self.picture.to_dict(now) | more)
        for page in self.pages:
            you = json.dumps(self._you(page, now))
            page.line.offer("state", f'{{"t":"state","all":{common},"you":{you}}}')
            if ground:
                page.line.tell("ground", **ground)
            if page.told != self.picture.events_told:
                page.told = self.picture.events_told
                page.line.tell("events", events=list(self.picture.events))

    def show_cameras(self) -> None:
        """Newest pictures, to each page as fast as it shows them: one of each camera under way."""
        for name, frame in self.eyes.frames.items():
            told: dict[str, Any] | None = None
            for page in self.pages:
                if name in page.awaited or page.frames.get(name) is frame or not page.clock.known:
                    continue
                told = told or picture(frame)
                page.frames[name] = frame
                page.awaited.add(name)
                taken = round(page.clock.to_theirs(frame.t_mid_ns), 1)
                page.line.tell("camera", of=name, **told, taken=taken)

    def _you(self, page: Page, now: int) -> dict[str, Any]:
        operator, clock = page.operator, page.clock
        return {
            "drives": operator is self.operators.driver, "engaged": operator.engaged,
            "neutral": operator.neutral, "age_ms": round(operator.age_ns / MS, 1),
            "bound_ms": round(clock.round_trip_ns / 2 / MS, 1) if clock.known else None,
            "share": round(self.operators.speed_share(operator.age_ns), 2),
            "stop_ms": round(operator.stop_ms, 1), "note": operator.note,
            "refused": operator.refused, "pages": len(self.pages),
            "why": {ask.name: self.operators.why_not(operator, ask) for ask in ROLE},
            "watches": operator.watches, "choose": self.picks.why_not(operator),
            "marks": self.marks.to_dict(operator.role, now),
        }  # fmt: skip


def _wall() -> str:
    return time.strftime("%H:%M:%S")
