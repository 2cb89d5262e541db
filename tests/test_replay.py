"""Level R1: what ran runs again to the byte, what changed is named, what is lost is incomplete."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.driver import DriverFault
from policies.importers import holosoma
from robot.config import UserError
from robot.log import Log
from robot.log_writer import open_log
from robot.messages import Ask, LowState, Message, Mode, Request
from robot.model import load_robot
from robot.pilot import load_pilot
from robot.runs import load_run
from robot.topics import make_codecs, source_index
from sim2real import reference
from sim2real import replay as r1
from sim2real.lockstep import START_NS, Lockstep, LockstepOptions
from tests.conftest import eventually, make_policy

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
EPOCH_NS = 1_795_491_000_000_000_000
SECOND = 500  # ticks

Lose = Callable[[str, int], bool]  # topic, how many of it before: whether the log lacks it


class Lossy:
    """A log writer that some messages do not reach."""

    def __init__(self, log: Any, lose: Lose) -> None:
        self.log, self.lose, self.counts = log, lose, dict.fromkeys(CODECS, 0)

    def write(self, topic: str, *rest: Any) -> None:
        self.counts[topic] += 1
        if not self.lose(topic, self.counts[topic] - 1):
            self.log.write(topic, *rest)

    def flush(self) -> None:
        self.log.flush()


def record(
    folder: Path,
    policy: Path | None,
    seconds: float,
    act: Callable[[Lockstep], None] = lambda lockstep: None,
    lose: Lose = lambda topic, count: False,
    driver: str = "loopback",
    **overrides: Any,
) -> Path:
    """A run in lockstep as a log; `act` is called before each tick."""
    run = load_run(driver, {"log.folder": str(folder), **overrides})
    if policy:
        run = run.model_copy(update={"policy": policy})
    log = open_log(run, ROBOT, CODECS, now_ns=START_NS, epoch_ns=EPOCH_NS)
    pilot = load_pilot(run, ROBOT) if policy else None
    options = LockstepOptions(log=Lossy(log, lose))  # type: ignore[arg-type]
    lockstep = Lockstep(run, pilot, (0.0, 0.0, 0.0), options, robot=ROBOT)
    for _ in range(round(seconds * run.control_hz)):
        act(lockstep)
        lockstep.step()
    log.close("done")
    return log.folder


def check(path: Path, tmp_path: Path, **options: Any) -> dict[str, Any]:
    folder = tmp_path / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return r1.replay(Log(path), folder, **options)


def stage(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in result["stages"] if row["stage"] == name)


@pytest.fixture(scope="module")
def swaying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that depends a little on everything it observes, its last action included."""
    weights = np.random.default_rng(1).normal(0, 0.004, (29, 100))
    return make_policy(tmp_path_factory.mktemp("swaying"), "swaying", weights)


@pytest.fixture(scope="module")
def stood(tmp_path_factory: pytest.TempPathFactory, swaying: Path) -> Path:
    """Simulated, from the gantry into the policy, with sensor noise."""
    return record(tmp_path_factory.mktemp("logs"), swaying, 8.0, driver="sim")


def test_a_simulated_run_is_the_same_to_the_byte(stood, tmp_path):
    result = check(stood, tmp_path)
    assert result["verdict"] == "same", result["notes"]
    assert {"STANDUP", "STAND", "POLICY"} <= set(result["modes"])
    control, pilot = stage(result, "control"), stage(result, "pilot")
    assert control["steps"] == 8 * SECOND and control["incomplete"] == pilot["incomplete"] == 0
    assert control["compared"] > 2 * 8 * SECOND + 8 * 50 and pilot["steps"] == 8 * 50
    assert control["rounded"] == pilot["rounded"] == 0


@pytest.mark.parametrize(
    "topic",
    ["low_state", "low_cmd", "policy_input", "target", "status", "consumed", "heartbeat",
     "command.script", "request.script", "policy_info", "control_state", "pilot_state"],
)  # fmt: skip
def test_one_lost_message_makes_steps_incomplete_and_none_different(topic, swaying, tmp_path):
    """The next snapshot, at most a second later, goes on from there."""
    nth = {
        "request.script": 2,
        "policy_info": 2,
        "control_state": 1,
        "pilot_state": 1,
        "command.script": 60,
    }
    lost = nth.get(topic, 230)
    path = record(tmp_path, swaying, 6.0, lose=lambda t, count: (t, count) == (topic, lost))
    log = Log(path)
    assert log.lost.get(topic, 0) == 1
    result = check(path, tmp_path)
    assert result["verdict"] == "same", result["notes"]
    control, pilot = stage(result, "control"), stage(result, "pilot")
    assert control["steps"] + control["incomplete"] == 6 * SECOND
    if topic in ("low_state", "low_cmd", "consumed", "heartbeat", "command.script", "target"):
        assert 0 < control["incomplete"] <= SECOND and control["reasons"], control
    if topic in ("target", "policy_input"):
        assert 0 < pilot["incomplete"] + (topic == "target") <= 51
    if topic in ("status", "control_state", "pilot_state"):
        assert not control["incomplete"] and not pilot["incomplete"]


def test_a_pilot_whose_first_targets_are_lost_is_incomplete_until_its_snapshot(swaying, tmp_path):
    """A restarted pilot may speak before the recorder has joined it: what it carries is unknown."""
    path = record(tmp_path, swaying, 6.0, lose=lambda t, count: t == "target" and count < 230)
    result = check(path, tmp_path)
    assert result["verdict"] == "same", result["notes"]
    assert 0 < stage(result, "pilot")["incomplete"] <= 51


def test_without_its_beginning_a_log_replays_from_its_first_snapshot(swaying, tmp_path):
    begin = 1.3 * SECOND
    seen = {"tick": 0}

    def lose(topic: str, count: int) -> bool:
        seen["tick"] += topic == "low_state"
        return seen["tick"] < begin

    result = check(record(tmp_path, swaying, 5.0, lose=lose), tmp_path)
    control = stage(result, "control")
    assert result["verdict"] == "same", result["notes"]
    assert control["steps"] == 3 * SECOND and control["incomplete"] == 2 * SECOND


def test_faults_requests_and_stops_are_run_again_too(swaying, tmp_path):
    """An e-stop, a driver that fails to read and to write, NaN, a flood, a stranger's request."""
    codec = CODECS["request.keyboard"]

    def say(lockstep: Lockstep, ask: Ask) -> None:
        message: Request = codec.new()
        message.ask, message.lease, message.source = ask, 77, source_index("keyboard")
        lockstep.post("request.keyboard", message)

    def fail(lockstep: Lockstep, name: str, text: str) -> None:
        driver = lockstep.driver

        def once(message: Message) -> None:
            delattr(driver, name)
            raise DriverFault(text)

        setattr(driver, name, once)

    def spoil(lockstep: Lockstep) -> None:
        driver, read = lockstep.driver, lockstep.driver.read

        def once(state: LowState) -> None:
            delattr(driver, "read")
            read(state)
            state.joint_vel[3] = np.nan

        driver.read = once  # type: ignore[method-assign]

    events: dict[int, Callable[[Lockstep], object]] = {
        300: lambda lockstep: [say(lockstep, Ask.HOLD) for _ in range(11)],
        2000: spoil,
        2300: lambda lockstep: say(lockstep, Ask.ESTOP),
        2400: lambda lockstep: [say(lockstep, ask) for ask in (Ask.ACQUIRE, Ask.RESET)],
        2100: lambda lockstep: fail(lockstep, "read", "no answer from joint 7"),
        2600: lambda lockstep: fail(lockstep, "write", "bus off"),
        2700: lambda lockstep: lockstep.post_frame("request.script", b"noise"),
        2750: lambda lockstep: lockstep.post_frame("target", b"noise"),
    }

    def act(lockstep: Lockstep) -> None:
        lockstep.control.note_late(3 if lockstep.ticks == 2800 else 0)
        events.get(lockstep.ticks, lambda _: None)(lockstep)

    path = record(tmp_path, swaying, 6.0, act)
    log = Log(path)
    consumed = log["consumed"]
    assert [b"no answer from joint 7" in row for row in consumed["text"]].count(True) == 1
    assert consumed["count"].max() == 8 and set(consumed["driver_fault"]) == {0, 1, 2}
    assert consumed["skipped"].max() == 3 and consumed["malformed"].max() == 1
    result = check(path, tmp_path)
    assert result["verdict"] == "same", result["notes"]
    assert stage(result, "control")["steps"] == 6 * SECOND
    assert {"ESTOP", "FAULT", "POLICY"} <= set(result["modes"])


def test_an_exception_in_a_tick_is_incomplete_and_what_follows_is_not(swaying, tmp_path):
    def act(lockstep: Lockstep) -> None:
        if lockstep.ticks == 2200:
            # As the process does it: the tick ends with an exception and damping goes out.
            lockstep.control.tick += 1
            lockstep.control.fail(ValueError("a bug"))
            lockstep.control.damp(lockstep.driver)

    result = check(record(tmp_path, swaying, 6.0, act), tmp_path)
    control = stage(result, "control")
    assert result["verdict"] == "same", result["notes"]
    assert 0 < control["incomplete"] <= SECOND and "FAULT" in result["modes"]


def test_another_bound_of_the_filter_shows_as_its_first_intervention(stood, tmp_path):
    text = ROBOT.path.read_text().replace("target_step_limit: 0.8 ", "target_step_limit: 0.0001 ")
    changed = tmp_path / "robot"
    shutil.copytree(ROBOT.path.parent, changed)
    (changed / "robot.yaml").write_text(text)
    result = check(stood, tmp_path, robot=changed / "robot.yaml")
    assert result["verdict"] == "different"
    firsts = {row["topic"]: row for row in stage(result, "control")["firsts"]}
    first = firsts["intervention"]
    assert first["logged"] == "no message" and first["got"].startswith("step of ")
    assert any(name in first["got"] for name in ROBOT.joint_names)
    assert firsts["low_cmd"]["step"] == first["step"]
    assert not stage(result, "pilot")["different"]


def test_another_scale_of_the_policy_names_the_observation_term(
    stood, tmp_path, swaying, monkeypatch
):
    changed = dict(holosoma.TERMS) | {"dof_vel": (None, 0.06)}
    monkeypatch.setattr(holosoma, "TERMS", changed)
    weights = np.random.default_rng(1).normal(0, 0.004, (29, 100))
    other = make_policy(tmp_path, "other", weights)
    result = check(stood, tmp_path, policy=other)
    pilot = stage(result, "pilot")
    assert result["verdict"] == "different" and not stage(result, "control")["different"]
    assert pilot["firsts"][0]["term"] == "dof_vel"
    assert pilot["firsts"][0]["element"] in ROBOT.joint_names
    assert "first differing observation term: dof_vel" in " ".join(result["notes"])
    # The same policy, made anew, is the same.
    monkeypatch.setattr(holosoma, "TERMS", holosoma.TERMS | {"dof_vel": (None, 0.05)})
    same = make_policy(tmp_path, "swaying", weights)
    assert check(stood, tmp_path, policy=same)["verdict"] == "same"


def test_code_that_behaves_otherwise_is_caught(stood, tmp_path, monkeypatch):
    monkeypatch.setattr("robot.control.RAMP_S", {"stand": (2.9, 1.0), "policy": (2.0, 1.5)})
    result = check(stood, tmp_path)
    first = stage(result, "control")["firsts"][0]
    assert result["verdict"] == "different"
    assert (first["topic"], first["field"]) == ("low_cmd", "joint_pos_target")


def test_an_accepted_change_is_the_new_reference(stood, tmp_path, monkeypatch):
    """Targets and policy inputs change with each other, and the new log is whole again."""
    monkeypatch.setattr("robot.control.RAMP_S", {"stand": (2.5, 1.0), "policy": (1.0, 1.0)})
    weights = np.random.default_rng(2).normal(0, 0.004, (29, 100))
    other = make_policy(tmp_path, "another", weights)
    result = reference.accept(Log(stood), tmp_path / "new", policy=other)
    assert result["verdict"] == "same", result["notes"]
    assert check(tmp_path / "new", tmp_path)["verdict"] == "same"
    old, new = Log(stood), Log(tmp_path / "new")
    assert np.array_equal(old["low_state"], new["low_state"])
    assert not np.array_equal(old["target"]["joint_pos_target"], new["target"]["joint_pos_target"])
    with pytest.raises(UserError, match="exists already"):
        reference.accept(Log(stood), tmp_path / "new")
    monkeypatch.undo()
    assert check(tmp_path / "new", tmp_path)["verdict"] == "different"


def test_a_log_in_which_nothing_happened_fails(tmp_path):
    def keep_away(lockstep: Lockstep) -> None:
        lockstep.operator_present = False

    result = check(record(tmp_path, None, 1.5, keep_away), tmp_path)
    assert result["verdict"] == "nothing" and "never armed" in result["notes"][0]


def test_a_log_without_its_attachments_is_refused_in_one_sentence(stood, tmp_path):
    log = Log(stood)
    log.attachments.pop("robot.yaml")
    with pytest.raises(UserError, match=r"has no attachment 'robot\.yaml'"):
        r1.replay(log, tmp_path)


def test_another_layout_is_refused_with_the_commit_that_wrote_it(stood, tmp_path, monkeypatch):
    codecs = dict(CODECS)
    codecs["low_cmd"] = CODECS["low_state"]
    monkeypatch.setattr(r1, "make_codecs", lambda robot: codecs)
    with pytest.raises(UserError, match="low_cmd was written with another layout"):
        check(stood, tmp_path)


@pytest.mark.alone
def test_a_run_of_real_processes_is_the_same_to_the_byte(launch, tmp_path, monkeypatch, swaying):
    """Raced, with a restarted pilot; what each tick consumed was logged."""
    monkeypatch.setenv("PLEXUS_LOG_DIR", str(tmp_path / "logs"))
    run = launch("run", "sim", "--policy", str(swaying), "--headless")
    from tests.test_run import nodes_state

    def walking() -> Path | None:
        found = list((tmp_path / "logs").glob("*"))
        return found[0] if found and Mode.POLICY in modes_of(found) else None

    path = eventually(walking, 40.0)
    time.sleep(2.0)
    os.kill(nodes_state()["pilot"]["pid"], signal.SIGKILL)
    time.sleep(4.0)
    run.process.send_signal(signal.SIGINT)
    assert run.wait(20) == 0
    log = Log(path)
    assert not any(log.lost.values()), log.lost
    result = check(path, tmp_path)
    assert result["verdict"] == "same", result["notes"]
    assert stage(result, "control")["incomplete"] == 0
    assert stage(result, "control")["steps"] > 5 * SECOND
    assert "FAULT" in result["modes"]


def modes_of(paths: Iterable[Path]) -> set[int]:
    try:
        return set(np.unique(Log(next(iter(paths))).read("low_cmd", ["mode"])["mode"]).tolist())
    except UserError:
        return set()
