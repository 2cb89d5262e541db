"""Changes a run's policy as it goes on: an operator chooses, a check passes, a new pilot loads it.

The file is copied into the private runtime directory and checked there, so that what was checked is
what a pilot loads and what the log keeps. Control needs no part in it: to control this is a pilot
that died and another that came, whose targets count once somebody starts the policy again.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from robot.bus import Publisher
from robot.clock import now_ns
from robot.config import UserError
from robot.messages import (
    ChangeState,
    Message,
    Mode,
    PolicyChange,
    PolicyChoice,
    PolicyInfo,
    Status,
    policy_id,
)
from robot.model import load_robot
from robot.modes import WALKING
from robot.node import RUN_FILE, Node
from robot.realtime import SINGLE_THREAD, die_with_parent
from robot.runs import RunConfig, shipped_policies
from robot.summary import keep

# Names of the policy files chosen so far, in order; the last is in force.
CHOSEN_FILE = "chosen.txt"
OWN = "-"  # in it: the policy that the run began with
MOST = 20  # files that are offered
PATIENCE_S = 60.0  # for a check, and for a pilot to be ready
TOLD_NS = 1_000_000_000
SILENT_NS = 500_000_000  # without status for so long, times the timing factor: no word from control
CPU_S = 30  # of a process that reads files of others
MEMORY = 4 << 30  # bytes, of addresses


def offered(run: RunConfig) -> list[Path]:
    """The run's policy, those that come with Plexus, and those in its folder; each file once."""
    own = [run.policy] if run.policy else []
    beside = sorted(run.policy.parent.glob("*.onnx")) if run.policy else []
    found = {path.resolve(): path for path in (*own, *shipped_policies().values(), *beside)}
    return list(found.values())[:MOST]


def chosen_names(directory: Path) -> list[str]:
    """Files in this runtime directory, or OWN, that pilots of the run loaded in turn by choice."""
    try:
        return (directory / CHOSEN_FILE).read_text().split()
    except OSError:
        return []


def with_chosen(run: RunConfig, directory: Path) -> RunConfig:
    """The run with the policy that is in force."""
    name = (chosen_names(directory) or [OWN])[-1]
    return run if name == OWN else run.model_copy(update={"policy": directory / name})


def why_not(mode: Mode, holder: int, lease: int) -> str:
    """Why whoever has this nonce may not change the policy now: one sentence, or "".

    Args:
        mode: in force.
        holder: nonce of the lease holder, 0 for nobody.
        lease: the asker's nonce.
    """
    if mode in WALKING:
        rest = ", ".join(one.name for one in Mode if one not in WALKING)
        return f"in {mode.name} the policy moves the robot; possible in {rest}"
    return "" if lease and holder == lease else "take control first"


class Chooser:
    """The manager's part: judges choices, has files checked, says when the pilot starts again.

    Args:
        node: the manager's.
    """

    def __init__(self, node: Node) -> None:
        self.node, self.directory = node, node.directory
        self.change: PolicyChange = node.codecs["policy_change"].new()
        self._publisher = Publisher(
            node.context, node.directory, "policy_change", node.codecs["policy_change"]
        )
        self._status: Status | None = None
        self._choice: PolicyChoice | None = None  # the one under way
        self._early: PolicyChoice | None = None  # one that came before any word from control
        self._check: subprocess.Popen[bytes] | None = None
        self._until = 0.0  # monotonic s
        self._told_ns = 0
        self._info: PolicyInfo | None = None
        self._before = 0  # instance of the pilot that goes
        self._last_good = OWN  # what it had loaded
        (self.directory / CHOSEN_FILE).unlink(missing_ok=True)
        for path in self.directory.glob("policy-*.onnx*"):
            path.unlink()

    @property
    def loaded(self) -> str:
        """Name of the policy that the newest pilot has loaded, "" before one has."""
        return self._info.name if self._info else ""

    def hear(self, message: Message) -> None:
        """Control's word, a pilot's, or an operator's choice."""
        if isinstance(message, Status):
            self._status = keep(message, self._status)
            if self._early is not None:
                early, self._early = self._early, None
                self._consider(early)
        elif isinstance(message, PolicyInfo):
            self._info = keep(message, self._info)
            starting = self._choice is not None and self._check is None
            fits = message.policy_id == self.change.policy_id
            if starting and fits and message.instance != self._before:
                self._end(ChangeState.READY, message.name)
        elif isinstance(message, PolicyChoice) and self._status is None:
            self._early = message.copy()  # as a run begins, control may be heard after an operator
        elif isinstance(message, PolicyChoice):
            self._consider(message)

    def turn(self, pilot: str) -> bool:
        """What time brings; True when the pilot is to be started again, with what is in force now.

        Args:
            pilot: state of the pilot's process, as in nodes.Child.
        """
        again = False
        if self._check is not None:
            again = self._await_check(self._check)
        elif self._choice is not None:
            late = time.monotonic() > self._until
            if late or pilot in ("failed", "waiting", "stopped"):
                why = "is not ready" if late else "ended while it started"
                self._force(self._last_good)
                self._end(
                    ChangeState.REFUSED, f"its pilot {why}; the policy before is loaded again"
                )
                again = True
        if now_ns() - self._told_ns >= TOLD_NS:
            self._tell()
        return again

    def close(self) -> None:
        """End a check under way, and close the socket."""
        if self._check is not None:
            self._check.kill()
            self._check.communicate()
        self._publisher.close()

    # --- pieces ---

    def _consider(self, choice: PolicyChoice) -> None:
        name = choice.instance, choice.seq
        answered = self.change.answer_instance, self.change.answer_seq
        if self._choice is not None or name == answered:
            return  # a repetition; or a second one, whose sender gives it up unanswered
        self._choice = choice.copy()
        self.change.policy_id = choice.policy_id
        self.change.answer_instance, self.change.answer_seq = name
        why = self._why_not(choice)
        info = self._info
        if not why and info is not None and info.policy_id == choice.policy_id:
            why = f"{info.name} is loaded already"
        if why:
            self._end(ChangeState.REFUSED, why)
            return
        self.change.state, self.change.text = ChangeState.LOADING, "checking the file"
        self._until = time.monotonic() + PATIENCE_S
        self._check = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.directory), str(choice.policy_id),
             str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | dict.fromkeys(SINGLE_THREAD, "1"), start_new_session=True,
        )  # fmt: skip
        self._tell()

    def _why_not(self, choice: PolicyChoice) -> str:
        status, factor = self._status, self.node.config.timing_factor
        if self.node.config.policy is None:
            return "this run began without a policy, so it has no pilot; start one with --policy"
        if status is None or now_ns() - status.now_ns > SILENT_NS * factor:
            return "no word from control"
        if choice.source != status.source and status.source != 255:
            return "take control first"
        return why_not(Mode(status.mode), status.lease, choice.lease)

    def _await_check(self, check: subprocess.Popen[bytes]) -> bool:
        """Heed the check's end; True if the pilot is to start with the file."""
        if check.poll() is None and time.monotonic() < self._until:
            return False
        assert self._choice is not None
        why = _verdict(check)
        self._check = None
        # The check takes seconds: what was allowed when it began may not be now.
        why = why or self._why_not(self._choice)
        if why:
            self._end(ChangeState.REFUSED, why)
            return False
        self._last_good = (chosen_names(self.directory) or [OWN])[-1]
        self._force(policy_file(self.directory, self._choice.policy_id).name)
        self._before = self._info.instance if self._info else 0
        self.change.text, self._until = "starting its pilot", time.monotonic() + PATIENCE_S
        self._tell()
        return True

    def _force(self, name: str) -> None:
        """Append what pilots start with from now on."""
        with (self.directory / CHOSEN_FILE).open("a") as file:
            file.write(f"{name}\n")

    def _end(self, state: ChangeState, text: str) -> None:
        assert self._choice is not None
        which, self._choice = f"{self._choice.policy_id:016x}", None
        self.change.state, self.change.text = state, text
        self.node.say(f"policy {which}: {state.name.lower()}: {text}")
        self._tell()

    def _tell(self) -> None:
        self._told_ns = now_ns()
        self._publisher.send(self.change, self._told_ns)


def _verdict(check: subprocess.Popen[bytes]) -> str:
    """Why a check refuses its file, "" if it does not."""
    late = check.poll() is None
    if late:
        check.kill()
    said, _ = check.communicate()
    if late:
        return f"its check took more than {PATIENCE_S:.0f} s"
    try:
        return json.loads(said)["why"]
    except (ValueError, KeyError):
        return f"its check crashed (exit code {check.returncode})"


# --- the check, a process of its own --------------------------------------------------------------


def policy_file(directory: Path, which: int) -> Path:
    """Where a chosen policy's copy lies."""
    return directory / f"policy-{which:016x}.onnx"


def check(run: RunConfig, directory: Path, which: int) -> None:
    """Copy an offered policy into the runtime directory and judge the copy as a pilot would.

    Raises:
        UserError: no such file is offered; its signature, its fit to the robot, its test vectors or
            the provider are refused. No copy is left then.
    """
    from policies.signature import signature_path
    from robot.pilot import check_signature, load_pilot

    path = _find(run, which)
    check_signature(run.model_copy(update={"policy": path}))  # its words name the file they mean
    copy, beside = policy_file(directory, which), signature_path(path)
    try:
        copy.write_bytes(path.read_bytes())
        if beside.is_file():
            signature_path(copy).write_bytes(beside.read_bytes())
        pilot = load_pilot(run.model_copy(update={"policy": copy}), load_robot(run.robot))
        if pilot.policy_id != which:
            raise UserError(f"{path.name}: was changed while it was checked")
    except UserError as error:
        copy.unlink()
        signature_path(copy).unlink(missing_ok=True)
        raise UserError(str(error).replace(str(copy), path.name)) from None


def _find(run: RunConfig, which: int) -> Path:
    for path in offered(run):
        if path.is_file() and policy_id(path.read_bytes()) == which:
            return path
    raise UserError(f"no file that is offered is policy {which:016x}; look at the list again")


def bound(run: RunConfig) -> None:
    """Limit this process before it reads files of others: whatever they are, it ends."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    if run.provider == "cpu":  # a GPU's driver reserves more addresses than there is memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main(directory: Path, which: int, parent: int) -> None:
    """The process: prints its verdict as JSON, {"why": ""} for a good file."""
    die_with_parent(signal.SIGKILL, parent)
    os.nice(10)
    run = RunConfig.model_validate_json((directory / RUN_FILE).read_text())
    bound(run)
    try:
        check(run, directory, which)
        print(json.dumps({"why": ""}))
    except (UserError, OSError) as error:
        print(json.dumps({"why": str(error)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
