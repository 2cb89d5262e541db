"""Operators' remarks in the log of the run: moments with a note, episodes' begins and ends.

A run is always logged whole; a mark only says where to look, and an episode what to learn from
(robot/log_episodes.py). It knows no socket and no page.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from robot.console.access import Bucket, Role
from robot.console.operators import MS, Out
from robot.console.wire import Mark
from robot.messages import Codec, Event, EventKind, RecorderStatus

TOPIC = "event.console"
SILENT_NS = 2_000 * MS  # the recorder speaks every 500 ms; times the timing factor
LATEST_NS = 5_000 * MS  # a press that is said to be longer ago is taken as pressed now
KINDS = {
    "mark": EventKind.MARK, "begin": EventKind.EPISODE_BEGIN, "end": EventKind.EPISODE_END,
}  # fmt: skip


@dataclass(frozen=True)
class Episode:
    """The episode that is open.

    Attributes:
        begin_ns: since when, robot's clock.
        note: what was said at its beginning.
    """

    begin_ns: int
    note: str


class Marks:
    """Turns what pages remark into events, and knows whether they would reach a log.

    Args:
        codec: of the topic TOPIC.
        timing_factor: multiplies the time after which the recorder counts as silent.
    """

    def __init__(self, codec: Codec, timing_factor: float) -> None:
        self.episode: Episode | None = None
        self._event: Event = codec.new()
        self._silent_ns = int(SILENT_NS * timing_factor)
        self._recorder: RecorderStatus | None = None
        self._heard_ns = 0
        self._pace = Bucket(rate=2.0, burst=20)

    def hear(self, status: RecorderStatus, now_ns: int) -> None:
        """The recorder's word, which must stay as it is."""
        self._recorder, self._heard_ns = status, now_ns

    def why_not(self, role: Role, now_ns: int) -> str:
        """Why nothing can be marked now: one sentence, or ""."""
        if role < Role.DRIVE:
            return f"this page may {role.name.lower()} only"
        if self._recorder is None:
            return "this run is not logged"
        if now_ns - self._heard_ns > self._silent_ns:
            return f"no word from the recorder for {(now_ns - self._heard_ns) * 1e-9:.0f} s"
        return "" if self._recorder.recording else f"not recording: {self._recorder.warning}"

    def make(self, name: str, role: Role, mark: Mark, pressed_ns: int, now_ns: int) -> Out | str:
        """The event of a remark; or why there is none, in one sentence.

        Args:
            name: who made it; goes into the log with the note.
            pressed_ns: when, robot's clock, as the page says.
        """
        note = " ".join(_ascii(mark.note).split())
        if reason := self.why_not(role, now_ns):
            return reason
        if mark.note.strip() and not note:
            return "a note is kept in ASCII; nothing of this one would be left"
        if mark.kind == "end" and self.episode is None:
            return "no episode was begun on this console"
        if not self._pace.take(now_ns):
            return "too many marks at a time"
        stamp_ns = pressed_ns if 0 <= now_ns - pressed_ns <= LATEST_NS else now_ns
        event = self._event
        event.kind, event.text = KINDS[mark.kind], f"{name}: {note}" if note else name
        if mark.kind != "mark":
            self.episode = Episode(stamp_ns, note) if mark.kind == "begin" else None
        return Out(TOPIC, event, stamp_ns)

    def to_dict(self, role: Role, now_ns: int) -> dict[str, Any]:
        """What a page of this role shows."""
        episode = self.episode
        return {
            "why": self.why_not(role, now_ns),
            "episode_s": None if episode is None else round((now_ns - episode.begin_ns) * 1e-9),
            "episode": "" if episode is None else episode.note,
        }


def _ascii(text: str) -> str:
    """What of a text an event's field can hold: letters without their accents."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return "".join(letter if letter.isprintable() else " " for letter in plain)
