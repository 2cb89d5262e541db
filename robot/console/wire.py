"""What a browser may say, checked strictly once at this edge; whatever else it says is refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from robot.config import Strict
from robot.messages import Ask

MAX_BYTES = 1024  # of one message; the longest honest one has under 200
MAX_NOTE = 140  # letters; with a name before it, it fits messages.Event
MOST_MS = 1e13  # a browser's clock, in ms; 300 years

Axis = Annotated[float, Field(ge=-1.0, le=1.0)]
Clock = Annotated[float, Field(ge=0.0, le=MOST_MS)]
MOST_ROWS = 32  # of arm joints, poses or hands
Row = Annotated[int, Field(ge=0, lt=MOST_ROWS)]
Angle = Annotated[float, Field(ge=-7.0, le=7.0)]
Metre = Annotated[float, Field(ge=-3.0, le=3.0)]


class ToJoints(Strict):
    """Arm joints are drawn to where sliders are; the others stay."""

    joints: Annotated[list[tuple[Row, Angle]], Field(min_length=1, max_length=MOST_ROWS)]
    """row among the arm joints, and rad"""


class ToPose(Strict):
    """All arm joints are drawn to a stored pose."""

    pose: Row


class ToPoint(Strict):
    """A hand is drawn to a point."""

    hand: Row
    at: tuple[Metre, Metre, Metre]
    """m, in the pelvis' frame"""


class Drive(Strict):
    """Where sticks and keys are, and whether the operator holds them."""

    t: Literal["drive"]
    seq: Annotated[int, Field(ge=1, le=1 << 53)]
    """counts up; what does not is a replay"""
    c: Clock
    """ms, the browser's clock when this was sampled"""
    deadman: bool
    """True while a drive key, stick or shoulder button is physically held"""
    x: Axis
    """forward, as a share of the policy's range"""
    y: Axis
    """left"""
    yaw: Axis
    """counter-clockwise"""
    arms: ToJoints | ToPose | ToPoint | None = None
    """where arms are drawn to while that too is physically held"""


class AskFor(Strict):
    """A button: something that control is asked for."""

    t: Literal["ask"]
    ask: Annotated[int, Field(ge=Ask.ACQUIRE, le=Ask.RESET)]
    """a value of messages.Ask"""
    c: Clock
    """ms, the browser's clock when it was pressed"""


class Pong(Strict):
    """The answer to a ping: measures the clocks' offset."""

    t: Literal["pong"]
    s: Annotated[int, Field(ge=0, le=1 << 62)]
    """ns, as the ping had it"""
    c: Clock
    """ms, the browser's clock when the ping came"""


class Invite(Strict):
    """A link for somebody else is wanted."""

    t: Literal["invite"]
    role: Annotated[int, Field(ge=1, le=3)]
    """a value of access.Role"""


class Rehearse(Strict):
    """Spoil the way from this console to control; simulation only."""

    t: Literal["rehearse"]
    delay_ms: Annotated[float, Field(ge=0.0, le=1000.0)]
    """added to every sample"""
    jitter_ms: Annotated[float, Field(ge=0.0, le=1000.0)]
    """most that is added on top, drawn evenly"""
    loss: Annotated[float, Field(ge=0.0, le=1.0)]
    """share of samples that get lost"""


class Mark(Strict):
    """A remark for the log of the run."""

    t: Literal["mark"]
    kind: Literal["mark", "begin", "end"]
    """a moment; an episode's begin (which ends the one before) or end"""
    note: Annotated[str, Field(max_length=MAX_NOTE)]
    """in words; may be empty"""
    c: Clock
    """ms, the browser's clock when it was pressed"""


class Watch(Strict):
    """What the page's view shows: a replay, in which nobody drives, or this robot."""

    t: Literal["watch"]
    replay: bool


class Choose(Strict):
    """Another policy is wanted."""

    t: Literal["choose"]
    policy: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    """its id, as the list of policies has it"""


class Seen(Strict):
    """The picture of a camera is on the page: the next one may come."""

    t: Literal["seen"]
    camera: Annotated[str, Field(max_length=15)]


Said = Drive | AskFor | Pong | Invite | Rehearse | Mark | Watch | Choose | Seen
_SAID: TypeAdapter[Said] = TypeAdapter(Annotated[Said, Field(discriminator="t")])


def parse(text: str | bytes) -> Said | str:
    """What the browser said, or in one sentence why that is nothing."""
    if len(text) > MAX_BYTES:
        return f"{len(text)} bytes; at most {MAX_BYTES} are read"
    try:
        return _SAID.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where or 'message'}: {first['msg']}"
