"""Asks the G1's motion service who owns the robot, and makes it let go. Knows no motor.

Letting go makes the robot limp at once, and the vendor's own damping is not to be had afterwards:
it must hang, or sit. Source: api numbers and codes of Unitree's published SDK.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from drivers.dds import Participant
from robot.config import UserError

CHECK, SELECT, RELEASE = 1001, 1002, 1003  # api of motion_switcher
ANSWER_NS = 3_000_000_000  # finding each other takes most of it
REPEAT_NS = 250_000_000
POLL_NS = 2_000_000
RELEASE_NS = 20_000_000_000  # letting go takes a few seconds
ASK_AGAIN_NS = 500_000_000
REFUSED = 7007  # the service may not be switched now


def api_types() -> tuple[Any, Any]:
    """IdlStructs of request and response."""
    from cyclonedds.idl import make_idl_struct, types

    def make(name: str, **fields: Any) -> Any:
        return make_idl_struct(f"{name}_", f"unitree_api.msg.dds_.{name}_", fields)

    identity = make("RequestIdentity", id=types.int64, api_id=types.int64)
    lease = make("RequestLease", id=types.int64)
    policy = make("RequestPolicy", priority=types.int32, noreply=bool)
    header = make("RequestHeader", identity=identity, lease=lease, policy=policy)
    status = make("ResponseStatus", code=types.int32)
    answer = make("ResponseHeader", identity=identity, status=status)
    octets = types.sequence[types.byte]
    return (
        make("Request", header=header, parameter=str, binary=octets),
        make("Response", header=answer, data=str, binary=octets),
    )


class MotionService:
    """A client of rt/api/motion_switcher.

    Args:
        participant: our place on the robot's network.
        now: the clock, ns.
        sleep: waits for so many ns.
    """

    def __init__(
        self, participant: Participant, now: Callable[[], int], sleep: Callable[[int], None]
    ) -> None:
        self._request, self._response = api_types()
        topic = "rt/api/motion_switcher/"
        self._writer = participant.writer(f"{topic}request", self._request)
        self._reader = participant.reader(f"{topic}response", self._response, depth=8)
        self._now, self._sleep = now, sleep
        self._id = now() & 0x7FFFFFFF

    def owner(self) -> str:
        """Name of the service that owns the robot, "" for none.

        Raises:
            UserError: the motion switcher does not answer.
        """
        code, data = self._ask(CHECK, "")
        try:
            name = json.loads(data)["name"] if code == 0 else None
        except (ValueError, KeyError, TypeError):
            name = None
        if not isinstance(name, str):
            raise UserError(
                f"the robot's motion switcher answers {code} {data[:80]!r} when asked who owns "
                "the robot; expected a name. Restart the robot and try again"
            )
        return name

    def release(self) -> None:
        """Make whatever owns the robot let go; the robot is limp from then on.

        Raises:
            UserError: it does not let go.
        """
        end = self._now() + RELEASE_NS
        while name := self.owner():
            code, _ = self._ask(RELEASE, "")
            if code not in (0, REFUSED) or self._now() > end:
                raise UserError(
                    f"motion service {name!r} does not let go of the robot (code {code}); put the "
                    "robot into damping with its remote (L2+B) and try again"
                )
            self._sleep(ASK_AGAIN_NS)

    def _ask(self, api: int, parameter: str) -> tuple[int, str]:
        """Code and data of the answer to one request."""
        self._id += 1
        header_type = self._request.__annotations__["header"]
        parts = header_type.__annotations__
        header = header_type(
            identity=parts["identity"](id=self._id, api_id=api),
            lease=parts["lease"](id=0),
            policy=parts["policy"](priority=0, noreply=False),
        )
        message = self._request(header=header, parameter=parameter, binary=[])
        end, again = self._now() + ANSWER_NS, 0
        while self._now() < end:
            # Nobody hears what is said before both sides have found each other, in both directions;
            # so a request waits for that, and is repeated, which harms none of ours.
            met = self._writer.readers > 0 and self._reader.writers > 0
            if met and self._now() >= again:
                self._writer.write(message.serialize())
                again = self._now() + REPEAT_NS
            for data in self._reader.take():
                answer = self._response.deserialize(data)
                if answer.header.identity.id == self._id:
                    return int(answer.header.status.code), answer.data
            self._sleep(POLL_NS)
        raise UserError(
            "the robot's motion switcher does not answer within 3 s, so nobody knows who owns the "
            "robot; is its computer up, and is this the robot's network?"
        )
