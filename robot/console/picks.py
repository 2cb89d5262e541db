"""The console's part in changing the policy: who may choose one, and what has become of it.

One choice is under way at a time, and while it is, this console starts no policy. The manager
judges again (robot/choice.py). It knows no socket and no page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from robot.choice import why_not
from robot.console.access import Role
from robot.console.operators import MS, SOURCE, Operator, Operators, Out
from robot.messages import ChangeState, Codec, PolicyChange, PolicyChoice
from robot.topics import source_index

TOPIC = "policy_choice"
RESEND_NS = 100 * MS  # an unanswered choice is sent again, unchanged
PATIENCE_NS = 3_000 * MS  # then it is given up


class Picks:
    """Turns what pages choose into choices for the manager.

    Args:
        codec: of the topic TOPIC.
        operators: who drives, in which mode; they start no policy while one is changed.
    """

    def __init__(self, codec: Codec, operators: Operators) -> None:
        self.operators = operators
        self.ended: list[
            tuple[bool, str]
        ] = []  # changes to tell people of: loaded or not, in words
        self._choice: PolicyChoice = codec.new()
        self._choice.source = source_index(SOURCE)
        self._by: Operator | None = None  # whose choice the manager has not answered
        self._since_ns = self._last_ns = 0
        self._change: PolicyChange | None = None

    def why_not(self, operator: Operator) -> str:
        """Why this page may not choose now: one sentence, or ""."""
        if operator.role < Role.ARM:
            return f"this page may {operator.role.name.lower()} only"
        if operator.watches:
            return "this page shows a replay"
        if not self.operators.heard:
            return "no word from control yet"
        if self.operators.changing:
            return "a policy is being loaded"
        if asked := self.operators.under_way:
            return f"control has not answered {asked.name} yet"
        return why_not(self.operators.mode, self.operators.holder, operator.nonce)

    def choose(self, operator: Operator, policy_id: int, now_ns: int) -> Iterator[Out]:
        """A page chose a policy; what is not allowed becomes the operator's note."""
        operator.note = self.why_not(operator)
        if operator.note:
            return
        self._by, self._since_ns, self._last_ns = operator, now_ns, now_ns
        self.operators.changing = True
        choice = self._choice
        choice.lease, choice.policy_id = operator.nonce, policy_id
        yield Out(TOPIC, choice, now_ns)

    def step(self, now_ns: int) -> Iterator[Out]:
        """What time brings: an unanswered choice is repeated, then given up."""
        if self._by is None:
            return
        if now_ns - self._since_ns > PATIENCE_NS:
            self._by.note, self._by = "no answer from the manager", None
            self._settle()
        elif now_ns - self._last_ns >= RESEND_NS:
            self._last_ns = now_ns
            yield Out(TOPIC, self._choice, now_ns, again=True)

    def hear(self, change: PolicyChange) -> None:
        """The manager's word, which must stay as it is."""
        before, self._change = self._change, change
        ours = (change.answer_instance, change.answer_seq) == tuple(self._choice.origin)
        if self._by is not None and ours:
            if change.state == ChangeState.REFUSED:
                self._by.note = change.text
            self._by = None
        told = None if before is None else _which(before)
        # What a new console hears first is an old story.
        if told not in (None, _which(change)) and change.state != ChangeState.LOADING:
            ready = change.state == ChangeState.READY
            text = f"{change.text} is loaded" if ready else f"not loaded: {change.text}"
            self.ended.append((ready, text))
        self._settle()

    def _settle(self) -> None:
        loading = self._change is not None and self._change.state == ChangeState.LOADING
        self.operators.changing = loading or self._by is not None

    def to_dict(self) -> dict[str, Any]:
        """What every page shows of the last choice: id, state (a row of ChangeState) and words."""
        change = self._change
        if self._by is not None:
            return {"id": f"{self._choice.policy_id:016x}", "state": "LOADING", "text": "asked for"}
        if change is None:
            return {"id": "", "state": "NONE", "text": ""}
        state = ChangeState(change.state).name
        return {"id": f"{change.policy_id:016x}", "state": state, "text": change.text}


def _which(change: PolicyChange) -> tuple[int, ...]:
    return change.answer_instance, change.answer_seq, change.state
