"""Runs the policy: each policy_input in, one target and one odometry out; stage and process.

The pilot knows nothing of modes, motors or operators; whatever it says, control bounds it.
"""

from __future__ import annotations

import numpy as np

from policies.manifest import (
    VELOCITIES,
    PolicyFile,
    check_policy,
    default_command,
    joint_table,
    read_policy,
)
from policies.session import PolicySession, verify_golden
from policies.signature import verify
from robot import clock, snapshot
from robot.bus import Publisher, Subscriber
from robot.choice import with_chosen
from robot.config import UserError
from robot.estimator import Estimator
from robot.geomap import AGE_LIMIT_NS, GeoMapSpec
from robot.messages import (
    VALID_ARMS,
    VALID_HEIGHT,
    Codec,
    HeightMap,
    Odometry,
    PolicyInfo,
    PolicyInput,
    Snapshot,
    Target,
)
from robot.model import Robot
from robot.node import Node
from robot.realtime import freeze_collector
from robot.runs import SIMULATED, RunConfig
from robot.topics import make_codecs

INFO_PERIOD_NS = 1_000_000_000
IDLE_MS = 100  # how often a pilot that nobody asks looks up
REHEARSAL_MS = 2  # before the next input is due; a control period of the usual 500 Hz
REHEARSED_NS = 1_000_000  # a step that takes longer is not rehearsed


class Pilot:
    """The stage: policy_input in, target and odometry out.

    Args:
        robot: joint order of the messages.
        policy: the checked policy file.
        session: runs it.
        codecs: topic name to layout.
        timing_factor: multiplies the age that a height map may have.
    """

    def __init__(
        self, robot: Robot, policy: PolicyFile, session: PolicySession, codecs: dict[str, Codec],
        timing_factor: float = 1.0,
    ) -> None:  # fmt: skip
        self.policy_id, self.session = policy.policy_id, session
        manifest = policy.manifest
        order = {name: i for i, name in enumerate(robot.joint_names)}
        self._observed = _selection([order[name] for name in manifest.observed_joints])
        self._driven = _selection([order[name] for name in manifest.driven_joints])
        inputs = session.inputs
        self._joint_pos, self._joint_vel = inputs["joint_pos"][0], inputs["joint_vel"][0]
        self._quat, self._gyro = inputs["imu_quat_wxyz"][0], inputs["imu_gyro"][0]
        self._command = inputs["command"][0]
        self._base_lin_vel = inputs["base_lin_vel"][0]
        self._scan, self._flag = inputs["height_scan"][0], inputs["height_flag"][0]
        self._scan[:], self._flag[:] = GeoMapSpec.pelvis_height, 1.0
        self._age_limit_ns = round(AGE_LIMIT_NS * timing_factor)
        self._map, self._map_expires_ns = (0, 0), -1  # instance, seq; when it is too old
        self.estimator = Estimator(robot)
        self._default = default_command(manifest)  # (4 + A,)
        self.episode, self.steps = -1, 0
        self.snapshot: Snapshot = codecs["pilot_state"].new()
        self._snapshot_steps = max(1, round(1.0 / manifest.step_dt))
        self.target: Target = codecs["target"].new()
        self.odometry: Odometry = codecs["odometry"].new()
        self.info: PolicyInfo = codecs["policy_info"].new()
        pose, stiffness, damping = zip(
            *(joint_table(manifest)[name] for name in robot.joint_names), strict=True
        )
        self.target.joint_pos_target[:] = pose
        self.target.stiffness[:] = stiffness
        self.target.damping[:] = damping
        self._describe(policy, np.array(pose))

    def _describe(self, policy: PolicyFile, pose: np.ndarray) -> None:
        info, ranges = self.info, policy.manifest.command_ranges
        info.policy_id, info.name = policy.policy_id, policy.manifest.name
        info.step_ns = round(policy.manifest.step_dt * 1e9)
        info.provider = self.session.provider
        info.velocity_min[:] = [getattr(ranges, name)[0] for name in VELOCITIES[:3]]
        info.velocity_max[:] = [getattr(ranges, name)[1] for name in VELOCITIES[:3]]
        info.base_height_range[:] = ranges.base_height or (0.0, 0.0)
        info.default_joint_pos[:] = pose

    def look(self, ground: HeightMap) -> None:
        """Take in a height map; steps see it until another comes, or it is too old."""
        self._map = ground.instance, ground.seq
        trusted = ground.gate == 0
        self._map_expires_ns = ground.t_mid_ns + self._age_limit_ns if trusted else -1
        self._scan[:] = ground.height  # flat, where it is not trusted

    def step(self, given: PolicyInput, now_ns: int) -> Target:
        """Run the policy once; a new episode, or step 0, starts from the initial carry."""
        session, out = self.session, self.target
        episode, step = given.episode, given.step
        if episode != self.episode or step == 0:
            session.reset()
            self.episode = episode
        self._fill(given)
        if session.reads_base_lin_vel:
            self._estimate(given)
            self._base_lin_vel[:] = self.estimator.velocity_b
        self._flag[0] = now_ns > self._map_expires_ns
        session.run()
        self.steps += 1
        out.joint_pos_target[self._driven] = session.joint_pos_target
        # In the order of Target's scalars.
        out.set_scalars(
            now_ns, given.instance, given.seq, self.policy_id, episode, step, *self._map
        )
        return out

    def rehearse(self, given: PolicyInput) -> None:
        """Have the caches warm for the next step, which then takes half the time.

        Changes nothing that lasts: `given` is what the last step was given.
        """
        self._fill(given)
        self.session.rehearse()

    def _fill(self, given: PolicyInput) -> None:
        self._joint_pos[:] = given.joint_pos[self._observed]
        self._joint_vel[:] = given.joint_vel[self._observed]
        self._quat[:] = given.imu_quat_wxyz
        self._gyro[:] = given.imu_gyro
        self._fill_command(self._command, given)

    def locate(self, given: PolicyInput, now_ns: int) -> Odometry:
        """Where the robot is by the input of the last step; call it once, after that step.

        By itself, so that a policy which asks for no velocity need not wait for it.
        """
        if not self.session.reads_base_lin_vel:
            self._estimate(given)
        found, out = self.estimator, self.odometry
        out.base_pos[:], out.base_quat_wxyz[:] = found.position, given.imu_quat_wxyz
        out.base_lin_vel_b[:], out.share[:] = found.velocity_b, found.share
        out.left_sole[:], out.right_sole[:] = found.soles
        # In the order of Odometry's scalars.
        out.set_scalars(
            now_ns, given.robot_time_ns, given.instance, given.seq, found.heading, found.height
        )
        return out

    def _estimate(self, given: PolicyInput) -> None:
        self.estimator.step(
            given.joint_pos, given.joint_vel, given.imu_quat_wxyz, given.imu_gyro,
            given.imu_accel, given.robot_time_ns,
        )  # fmt: skip

    def remember(self, now_ns: int) -> Snapshot | None:
        """What the policy remembers, once a second after a step; None at other times.

        A policy that carries more than a snapshot holds is replayed from the log's start only.
        """
        if self.steps % self._snapshot_steps:
            return None
        memory = self._memory(self.session.carry())
        if not snapshot.fits(memory):
            return None
        snapshot.save(memory, self.snapshot, now_ns, self.steps)
        return self.snapshot

    def recall(self, given: Snapshot, where: str) -> None:
        """Go on from a snapshot.

        Raises:
            UserError: it is of another policy or version; `where` names it.
        """
        carry = self.session.carry()
        snapshot.restore(self._memory(carry), given, where)
        first = self.session.first
        self.session.set_carry(carry)  # which also says that an episode goes on
        self.session.first = first

    def forget(self) -> None:
        """Be as a new pilot is: the next step begins an episode, and no ground was seen."""
        self.episode, self.steps = -1, 0
        self.blindfold()
        self.estimator.reset()

    def blindfold(self) -> None:
        """Forget what the ground looks like."""
        self._map, self._map_expires_ns = (0, 0), -1
        self._scan[:] = GeoMapSpec.pelvis_height

    def _memory(self, carry: dict[str, np.ndarray]) -> snapshot.Memory:
        return snapshot.Memory(
            plain=(
                (self, ("episode", "steps")),
                (self.session, ("first",)),
                (self.estimator, ("time_ns",)),
            ),
            blocks=tuple(
                snapshot.as_bytes(value) for value in (*carry.values(), self.estimator.memory)
            ),
        )

    def _fill_command(self, command: np.ndarray, given: PolicyInput) -> None:
        """(4 + A,) velocity, height, arms; what is not commanded is the manifest's default."""
        valid = given.command_valid
        command[:] = self._default
        # Zero velocity is a command of its own: in HOLD the policy balances in place.
        command[:3] = given.velocity
        if valid & VALID_HEIGHT:
            command[3] = given.base_height[0]
        if valid & VALID_ARMS:
            command[4:] = given.arm_joint_pos


def _selection(rows: list[int]) -> slice | np.ndarray:
    """Rows to pick; a slice, and so no copy, where it is all of them in order."""
    return slice(None) if rows == list(range(len(rows))) else np.array(rows)


def check_signature(run: RunConfig) -> None:
    """Refuse a policy that nobody we trust has signed, where motors or their emulator are driven.

    Raises:
        UserError: says whose signature is missing or wrong, and what to do.
    """
    if run.driver in SIMULATED or run.policy is None or run.unsigned_policy:
        return
    try:
        verify(run.policy)
    except UserError as error:
        raise UserError(f"{error}. To run it all the same: --unsigned-policy") from None


def load_pilot(run: RunConfig, robot: Robot) -> Pilot:
    """Read, check and test the run's policy, and make a pilot of it.

    Raises:
        UserError: the file, its signature, its fit to the robot, its test vectors or the provider
            are refused.
    """
    assert run.policy is not None
    check_signature(run)
    policy = read_policy(run.policy)
    check_policy(policy, robot, control_hz=run.control_hz)
    session = PolicySession(policy, run.provider, allow_fallback=run.simulated)
    verify_golden(session, policy.manifest)
    return Pilot(robot, policy, session, make_codecs(robot), run.timing_factor)


def main(node: Node) -> None:
    """The process: sleep until policy_input comes, answer it, repeat what is loaded."""
    pilot = load_pilot(with_chosen(node.config, node.directory), node.robot)
    if pilot.session.fallback:
        node.say(pilot.session.fallback)
    sees = pilot.session.reads_height_scan
    if sees and node.config.camera.source == "none":
        node.say("the policy can see the ground, and there is no camera: it walks blind")
    inputs = Subscriber(node.context, node.directory, node.pick("policy_input"))
    maps = Subscriber(node.context, node.directory, node.pick("height_map")) if sees else None
    targets = Publisher(node.context, node.directory, "target", node.codecs["target"])
    places = Publisher(node.context, node.directory, "odometry", node.codecs["odometry"])
    infos = Publisher(node.context, node.directory, "policy_info", node.codecs["policy_info"])
    states = Publisher(node.context, node.directory, "pilot_state", node.codecs["pilot_state"])
    freeze_collector()
    node.ready()
    rest_ms = max(1, pilot.info.step_ns // 1_000_000 - REHEARSAL_MS)
    last: PolicyInput | None = None  # what may be rehearsed with
    next_info = 0
    while not node.stopping:
        given = inputs.newest(rest_ms)
        if given is None:
            if last is not None:
                pilot.rehearse(last)
            last, given = None, inputs.newest(IDLE_MS)
        now = clock.now_ns()
        if isinstance(given, PolicyInput):
            if maps is not None and isinstance(ground := maps.newest(), HeightMap):
                pilot.look(ground)
            targets.send(pilot.step(given, now), now)
            # A long step is long by its arithmetic: rehearsing it would only keep the next waiting.
            last = given if clock.now_ns() - now < REHEARSED_NS else None
            places.send(pilot.locate(given, now), now)
            if state := pilot.remember(now):
                states.send(state, now)
        if now >= next_info:
            infos.send(pilot.info, now)
            next_info = now + INFO_PERIOD_NS
