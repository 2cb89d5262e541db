"""Lockstep: the same bytes every time, every input answered, faults injected on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot.messages import Message, Mode
from robot.model import load_robot
from robot.pilot import Pilot, load_pilot
from robot.runs import RunConfig, load_run
from sim2real.lockstep import Lockstep, LockstepOptions, walk

ROBOT = load_robot("g1")
MEASURED = {"ppo": 0.392, "fastsac": 0.418}  # m/s, of 0.5 commanded, in their own projects' way
START_S = 6.0  # stand up, be let down, blend: about then the policy begins


def make(
    policy: Path | None = None,
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0),
    seed: int = 0,
    driver: str = "sim",
    **options: Any,
) -> Lockstep:
    given = {"policy": None if policy is None else str(policy), "seed": seed}
    run: RunConfig = load_run(driver, given)
    pilot: Pilot | None = load_pilot(run, ROBOT) if policy else None
    return Lockstep(run, pilot, velocity, LockstepOptions(**options), robot=ROBOT)


class Wire:
    """A tap that counts, and may replace the frames of one topic from a time on."""

    def __init__(self, topic: str = "", change: Callable[[bytes], Iterable[bytes]] | None = None):
        self.topic, self.change, self.active = topic, change, False
        self.seen: Counter[str] = Counter()

    def __call__(self, topic: str, frame: bytes, now_ns: int) -> Iterable[bytes]:
        self.seen[topic] += 1
        if self.active and topic == self.topic and self.change:
            return self.change(frame)
        return (frame,)


# --- determinism ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stood(standing_policy: Path) -> dict[str, dict[str, Any]]:
    """The stand-in policy: twice the same, without filter, and a little with another seed."""
    return {
        "first": walk(make(standing_policy, seed=1), 7.0),
        "again": walk(make(standing_policy, seed=1), 7.0),
        "other seed": walk(make(standing_policy, seed=2), 1.0),
        "no filter": walk(make(standing_policy, seed=1, filtered=False), 7.0),
    }


def test_two_runs_are_the_same_bytes(stood):
    first, again = stood["first"], stood["again"]
    del first["realtime_factor"], again["realtime_factor"]
    assert first == again and len(first["stream_sha256"]) == 64
    assert [name for _, name in first["modes"]] == ["PASSIVE", "DAMP", "STANDUP", "STAND", "POLICY"]
    assert first["fell"] is False


def test_another_seed_is_another_run(stood, standing_policy: Path):
    lockstep = make(standing_policy, seed=1)
    assert walk(lockstep, 1.0)["stream_sha256"] != stood["other seed"]["stream_sha256"]


def test_without_noise_the_seed_means_nothing():
    def run(seed: int) -> bytes:
        config = load_run("sim", {"seed": seed, "sim.noise": {}})
        lockstep = Lockstep(config, None, robot=ROBOT)
        lockstep.run_for(0.5)
        return bytes(lockstep.control.truth.payload) + lockstep.control.state.joint_pos.tobytes()

    assert run(1) == run(2)


def test_the_filter_changes_nothing_in_a_healthy_run(stood):
    assert stood["first"]["stream_sha256"] == stood["no filter"]["stream_sha256"]
    assert stood["no filter"]["filtered"] is False and stood["first"]["filtered"] is True


def test_the_hash_can_be_switched_off():
    lockstep = make(stream=False)
    before = lockstep.stream_sha256
    lockstep.run_for(0.1)
    assert lockstep.stream_sha256 == before


# --- public policies --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walked(public_policy: Callable[[str], Path]) -> Callable[..., dict[str, Any]]:
    """Twelve seconds of walking with a public policy, once each."""
    done: dict[tuple[str, bool], dict[str, Any]] = {}

    def get(name: str, filtered: bool = True) -> dict[str, Any]:
        if (name, filtered) not in done:
            lockstep = make(public_policy(name), (0.5, 0.0, 0.0), filtered=filtered, stream=False)
            done[name, filtered] = walk(lockstep, START_S + 12.0)
        return done[name, filtered]

    return get


@pytest.mark.parametrize("name", MEASURED)
def test_a_public_policy_walks_at_its_measured_velocity(walked, name: str):
    got = walked(name)
    assert got["modes"][-1][1] == "POLICY" and got["modes"][-1][0] < START_S + 1.0
    assert got["fell"] is False and got["drops"] == 0 and got["blocked"] == 0
    assert got["mean_velocity_b"][0] == pytest.approx(MEASURED[name], abs=0.06)
    assert abs(got["mean_velocity_b"][1]) < 0.06 and abs(got["mean_velocity_b"][2]) < 0.1


def test_the_filter_does_not_slow_a_healthy_walk(walked):
    ours, theirs = walked("ppo"), walked("ppo", filtered=False)
    difference = np.subtract(ours["mean_velocity_b"], theirs["mean_velocity_b"])
    assert np.abs(difference).max() < 0.01


# --- the way of messages ------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["loopback", "sim"])
def test_low_state_is_numbered_by_its_tick(driver: str, standing_policy: Path):
    lockstep = make(standing_policy, driver=driver)
    for tick in range(1, 200):
        lockstep.step()
        state, cmd = lockstep.control.state, lockstep.control.cmd
        assert state.seq == state.tick == cmd.seq == cmd.tick == tick
    assert lockstep.ticks == 199


def test_every_policy_input_is_answered(standing_policy: Path):
    wire = Wire()
    lockstep = make(standing_policy, driver="loopback", tap=wire)
    lockstep.run_for(8.0)
    assert lockstep.control.machine.mode == Mode.POLICY
    assert wire.seen["policy_input"] == wire.seen["target"]
    assert wire.seen["policy_input"] == pytest.approx(8.0 * 50, abs=1)
    assert lockstep.control.target.input_seq == lockstep.control.policy_input.seq


@pytest.mark.parametrize("delay", [0, 1, 4, 9])
def test_a_target_comes_as_many_ticks_later_as_told(standing_policy: Path, delay: int):
    lockstep = make(standing_policy, driver="loopback", target_delay_ticks=delay)
    lockstep.run_for(0.5)
    asked: dict[int, int] = {}
    delays = set()
    for _ in range(100):
        before = lockstep.control.target.input_seq
        lockstep.step()
        asked.setdefault(lockstep.control.policy_input.seq, lockstep.ticks)
        now = lockstep.control.target.input_seq
        if now != before and now in asked:
            delays.add(lockstep.ticks - asked[now])
    assert delays == {delay}


def test_a_late_target_still_stands(standing_policy: Path):
    lockstep = make(standing_policy, target_delay_ticks=2)
    got = walk(lockstep, 7.0)
    assert got["target_delay_ticks"] == 2 and got["fell"] is False
    assert got["modes"][-1][1] == "POLICY" and got["faults"] == []


def test_lost_targets_damp_the_robot(standing_policy: Path):
    wire = Wire("target", lambda frame: ())
    lockstep = make(standing_policy, driver="loopback", tap=wire)
    assert lockstep.run_until(Mode.POLICY, 12.0)
    wire.active = True
    assert lockstep.run_until(Mode.FAULT, 2.0)
    assert lockstep.summary.faults == ["target_late", "target_lost"]
    assert (lockstep.control.cmd.stiffness == 0.0).all()


def test_a_changed_frame_meets_the_checks_of_the_bus(standing_policy: Path):
    wire = Wire("command.script", lambda frame: (frame[:-1],))
    lockstep = make(standing_policy, driver="loopback", tap=wire)
    lockstep.run_for(0.1)
    assert lockstep.summary.to_dict()["drops"] == 0
    wire.active, before = True, wire.seen["command.script"]
    lockstep.run_for(0.5)
    sent = wire.seen["command.script"] - before
    assert lockstep.drops() == (sent, 0) and sent >= 8


def test_a_doubled_frame_counts_once(standing_policy: Path):
    wire = Wire("heartbeat", lambda frame: (frame, frame))
    lockstep = make(standing_policy, driver="loopback", tap=wire)
    wire.active = True
    lockstep.run_for(0.5)
    assert lockstep.drops()[0] == 25  # one of each pair
    assert "manager_lost" not in lockstep.summary.faults


def test_rubbish_on_a_topic_is_counted_and_hurts_nobody():
    lockstep = make(driver="loopback")
    lockstep.run_for(0.1)
    lockstep.post_frame("command.script", b"rubbish")
    lockstep.post_frame("target", b"")
    lockstep.run_for(0.1)
    assert lockstep.drops() == (2, 1)


def test_poses_come_at_the_policys_rate_for_a_clip():
    poses: list[tuple[float, np.ndarray]] = []
    lockstep = make()

    def keep(truth: Message) -> None:
        poses.append((truth.sim_time_ns * 1e-9, truth.joint_pos.copy()))  # pyright: ignore

    lockstep.on_truth = keep
    lockstep.run_for(2.0)
    times = np.array([time for time, _ in poses])
    assert len(times) >= 100 and np.diff(times).max() < 0.021
    assert np.ptp([pose for _, pose in poses], axis=0).max() > 0.0


def test_loopback_tells_no_truth():
    lockstep = make(driver="loopback")
    lockstep.on_truth = lambda truth: pytest.fail("loopback has no world")
    got = walk(lockstep, 1.0)
    assert got["mean_velocity_b"] is None and got["gantry"]["support_force_end_n"] is None


def test_without_policy_it_is_let_down_and_stays_in_stand():
    got = walk(make(), 7.0)
    assert got["modes"][-1][1] == "STAND" and got["gantry"]["release_time_s"] > 3.0
    assert got["realtime_factor"] > 0.0 and got["seconds"] == 7.0 and got["seed"] == 0
