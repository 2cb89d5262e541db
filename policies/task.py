"""The walk as a vectorised environment for rsl_rl: commands, observations, rewards, resets.

One step is 20 ms of every simulation. Physics is world.py's, terms are terms.py's and rewards.py's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from rsl_rl.env import VecEnv
from tensordict import TensorDict
from torch import Tensor

from policies.crossing import AIM_GAIN, AIM_MOST, TURN_GAIN, TURN_MOST
from policies.eyes import CELLS, Eyes
from policies.recipe import Recipe
from policies.rewards import CRITIC, CURRICULUM, LEVELS, REWARDS, TERMINATIONS, State
from policies.terms import (
    OBSERVATIONS,
    Mirror,
    Observation,
    Sensors,
    advance,
    joined,
    joint_values,
    make_body,
    observation_mirror,
    reference,
    stepping,
    swing,
    target,
)
from policies.world import World
from robot.model import Robot

# Estimate of how high each foot is lifted: where an episode begins (m), and how much of an error at
# the top of a swing it takes in. A foot that stays down is at a fifth of it after 1.5 cycles.
LIFT_START, LIFT_RATE = 0.1, 0.12
ON_WAY = 0.5  # rad off a terrain's way, from which on one is held to it
GOING = 0.2  # m/s asked for, from which a foot looks where it goes
EDGE, EDGE_TILT = 0.03, 0.1  # m under a standing sole's point that is an edge; squared slope at it
# What the task remembers beside the world, by name; all are exactly resumed.
MEMORY = (
    "episode_length_buf", "action", "last_action", "older_action", "phase", "command",
    "next_command", "steered", "on_way", "away", "asked",
    "arm_from", "arm_to", "arm_at", "arm_time", "arm_random", "arm_swing", "arm_frequency",
    "arm_angle", "velocity_error", "lift", "first", "reward_sums",
)  # fmt: skip


class Task(VecEnv):
    """B environments of one recipe.

    Args:
        recipe: was checked.
        robot: the recipe's.
        num_envs: the recipe's if not given.
        seed: added to the recipe's, so that processes differ.
        threads: of the physics; 0 is one per core.
        device: where observations, rewards and actions are.
        total_steps: over which the curriculum runs; the recipe's if not given.
    """

    def __init__(
        self, recipe: Recipe, robot: Robot, num_envs: int | None = None, seed: int = 0,
        threads: int = 0, device: str = "cpu", total_steps: int | None = None,
    ) -> None:  # fmt: skip
        self.cfg, self.device = recipe.model_dump(mode="json"), device
        self.recipe, self.robot = recipe, robot
        self.body = body = make_body(recipe, robot)
        self.num_envs = count = num_envs or recipe.num_envs
        self.num_actions = robot.num_joints
        self.max_episode_length = round(recipe.episode_s / recipe.step_dt)
        self.total_steps, self.steps = total_steps or recipe.total_steps, 0
        self.world = World(recipe, robot, body, count, recipe.seed + seed, threads)
        ground = self.world.ground
        self.eyes = None if recipe.eyes is None or ground is None else Eyes(
            recipe.eyes, ground, count, self.world.uniform
        )  # fmt: skip
        self.policy_terms = Observation(recipe.observation, body)
        self.mirror = make_mirror(recipe, body)
        self._rewards = {
            name: (row.weight, _params(row.params, robot)) for name, row in recipe.rewards.items()
        }
        self._critic_scale = torch.tensor([
            row.scale for row in recipe.critic for _ in range(len(_critic_signs(row.name, body)[0]))
        ])  # fmt: skip
        self._arm_swing = joint_values(recipe.arms.swing, robot.joint_names)[body.arms]
        self._filter = min(1.0, 1.0 / (recipe.clock.period / recipe.step_dt))
        self.levels = dict.fromkeys(LEVELS, 1.0)
        self.noise, self.pushed = True, True
        self.seconds = {"physics": 0.0, "whole": 0.0}
        self.ids = torch.arange(count)
        self._unflagged = torch.zeros(count, 1)
        self._uneven = torch.zeros(count) if ground is None else ground.rows.float()
        n, arms = robot.num_joints, len(body.arms)
        self.episode_length_buf = torch.zeros(count, dtype=torch.long, device=device)
        self.action, self.last_action, self.older_action = (torch.zeros(count, n) for _ in range(3))
        self.phase = torch.zeros(count, 1)
        self.command = torch.zeros(count, 4 + arms)
        self.next_command = torch.zeros(count)
        self.steered, self.on_way = (torch.zeros(count, dtype=torch.bool) for _ in range(2))
        self.away, self.asked = torch.zeros(count), torch.zeros(count)
        self.arm_from, self.arm_to, self.arm_swing = (torch.zeros(count, arms) for _ in range(3))
        self.arm_at, self.arm_time = torch.zeros(count), torch.ones(count)
        self.arm_random = torch.zeros(count, dtype=torch.bool)
        self.arm_frequency, self.arm_angle = torch.ones(count), torch.zeros(count)
        self.velocity_error = torch.zeros(count, 3)
        self.lift = torch.full((count, 2), LIFT_START)
        self.first = torch.ones(count, 1)
        self.reward_sums = torch.zeros(count, len(self._rewards))
        self.past = {
            name: torch.zeros(count, frames, width)
            for name, (frames, width) in self.policy_terms.history.items()
        }
        self.grow()
        self._reset(torch.ones(count, dtype=torch.bool))
        self._observe()

    # --- what rsl_rl calls ------------------------------------------------------------------------

    def get_observations(self) -> TensorDict:
        """Groups "policy" and "critic", each (B, n) on the device."""
        return self._observations

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        """One policy step of every environment; ended ones start anew.

        Args:
            actions: (B, N).

        Returns:
            observations, (B,) rewards, (B,) dones, extras with "time_outs" and "log".
        """
        begin = time.perf_counter()
        clip = self.recipe.action.clip
        self.older_action, self.last_action = self.last_action, self.action
        self.action = torch.nan_to_num(actions.detach().to("cpu", torch.float32)).clamp(-clip, clip)
        now = self._sensors()._replace(last_action=self.last_action)
        running = stepping(now, self.body)
        bump = swing(self.phase, running, self.body.swing_share)
        targets = target(self.action, now, self.body)
        self.episode_length_buf += 1
        if self.pushed:
            self.world.push(self.episode_length_buf.cpu() * self.recipe.step_dt)
        physics = time.perf_counter()
        self.world.step(targets)
        self.seconds["physics"] += time.perf_counter() - physics
        self.phase = advance(self.phase, self.command, self.body)
        self.first.zero_()
        state = self._state(bump, running)
        self._follow(state)
        reward, falls = self._judge(state)
        self.world.lay_ground()
        self.world.lay_boxes()
        time_outs = (self.episode_length_buf.cpu() >= self.max_episode_length) & ~falls
        dones = falls | time_outs
        log = self._log(state, dones, falls)
        self.steps += self.num_envs
        self.grow()
        self._move_commands()
        self._reset(dones, falls)
        self._observe()
        self.seconds["whole"] += time.perf_counter() - begin
        extras = {"time_outs": time_outs.to(self.device), "log": log}
        return self._observations, reward.to(self.device), dones.to(self.device), extras

    # --- for training and tests -------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "world": self.world.state_dict(),
            "memory": {name: getattr(self, name).clone() for name in MEMORY},
            "past": {name: value.clone() for name, value in self.past.items()},
            "eyes": None if self.eyes is None else self.eyes.state_dict(),
            "observations": {k: self._observations[k].clone() for k in ("policy", "critic")},
            "levels": dict(self.levels),
            "steps": self.steps,
        }

    def load_state_dict(self, given: Mapping[str, Any]) -> None:
        """Go on exactly where state_dict was taken; same recipe and number of environments."""
        self.world.load_state_dict(given["world"])
        for name, value in given["memory"].items():
            setattr(self, name, value.clone())
        self.episode_length_buf = self.episode_length_buf.to(self.device)
        self.past = {name: value.clone() for name, value in given["past"].items()}
        if self.eyes is not None:
            self.eyes.load_state_dict(given["eyes"])
        self.levels, self.steps = dict(given["levels"]), given["steps"]
        groups = {k: v.clone().to(self.device) for k, v in given["observations"].items()}
        self._observations = TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def spread(self) -> None:
        """Put the robots on terrain of all levels, from the next reset on."""
        if (ground := self.world.ground) is not None:
            ground.level = torch.arange(self.num_envs) * ground.levels // self.num_envs

    def reset(self) -> TensorDict:
        """All environments start anew."""
        self._reset(torch.ones(self.num_envs, dtype=torch.bool))
        self._observe()
        return self._observations

    # --- parts of a step --------------------------------------------------------------------------

    def _sensors(self, clean: bool = True) -> Sensors:
        world = self.world
        scan, flag = self._scan(clean)
        return Sensors(
            joint_pos=world.joint_pos if clean else world.joint_pos + world.encoder,
            joint_vel=world.joint_vel,
            imu_quat_wxyz=world.quat,
            imu_gyro=world.gyro,
            command=self.command,
            last_action=self.action,
            phase=self.phase,
            height_scan=scan,
            height_flag=flag,
        )

    def _scan(self, clean: bool) -> tuple[Tensor, Tensor]:
        """(B, 187) m and (B, 1) flags; clean: the truth."""
        if self.eyes is None:
            return torch.full((self.num_envs, CELLS), self.body.nominal_height), self._unflagged
        world = self.world
        place = world.base_pos, yaw_of(world.quat), world.ground_height
        if clean:
            return self.eyes.truth(*place), self._unflagged
        return self.eyes.told(*place), self.eyes.blind

    def _state(self, bump: Tensor, running: Tensor) -> State:
        world, body = self.world, self.body
        yaw = yaw_of(world.quat)
        cos, sin = torch.cos(yaw), torch.sin(yaw)
        vx, vy, vz = world.lin_vel_w.unbind(1)
        velocity = torch.stack([cos * vx + sin * vy, cos * vy - sin * vx, vz], 1)
        gravity = OBSERVATIONS["projected_gravity"][0](self._sensors(), body)
        height = self.command[:, 3:4] - body.nominal_height
        soles, slope = world.soles, world.soles @ world.to_slope
        uneven = self._uneven
        tilt = slope.square().sum(2)
        tilt = torch.where(uneven.unsqueeze(1) > 0, tilt.clamp(max=EDGE_TILT), tilt)
        contact = world.foot_contact
        overhang = (soles > EDGE).float().mean(2) * contact * uneven.unsqueeze(1)
        way = self.command[:, 0].sign() * (self.command[:, 0].abs() > GOING)
        rise = world.rise(torch.stack([cos, sin], 1) * way.unsqueeze(1))
        across = world.foot_pos[:, 0] - world.foot_pos[:, 1]
        return State(
            body=body, command=self.command, moving=running[:, 0].float(), swing=bump,
            base_height=world.base_pos[:, 2] - world.ground_height, gravity=gravity,
            velocity=velocity, ang_vel=world.gyro, velocity_error=self.velocity_error,
            joint_pos=world.joint_pos, joint_vel=world.joint_vel, effort=world.effort,
            reference=reference(self.command, body) + height * body.squat,
            action=self.action, last_action=self.last_action, older_action=self.older_action,
            foot_height=soles.mean(2), lift=self.lift, foot_tilt=tilt,
            foot_speed=world.foot_velocity.norm(dim=2), foot_contact=contact,
            foot_gap=cos * across[:, 1] - sin * across[:, 0], finite=world.finite,
            uneven=uneven, overhang=overhang, rise=rise, away=self.away,
        )  # fmt: skip

    def _follow(self, state: State) -> None:
        """Let the averages over a gait cycle take this step in, the state's and the task's own."""
        turning = -(state.ang_vel * state.gravity).sum(1, keepdim=True)
        error = self.command[:, :3] - torch.cat([state.velocity[:, :2], turning], 1)
        self.velocity_error = self.velocity_error + self._filter * (error - self.velocity_error)
        # Least squares of height = lift * bump, recursively: a foot in stance changes nothing.
        missing = state.foot_height - self.lift * state.swing
        self.lift = self.lift + LIFT_RATE * state.swing * missing
        state.velocity_error, state.lift = self.velocity_error, self.lift

    def _judge(self, state: State) -> tuple[Tensor, Tensor]:
        """(B,) reward of this step, (B,) bool fallen."""
        dt, penalties = self.recipe.step_dt, self.levels["penalties"]
        terms = [
            REWARDS[name](state, **params) * (weight * dt * (penalties if weight < 0 else 1.0))
            for name, (weight, params) in self._rewards.items()
        ]
        each = torch.nan_to_num(torch.stack(terms, 1), nan=0.0, posinf=0.0, neginf=0.0)
        self.reward_sums += each
        reward = each.sum(1)
        if self.recipe.clip_rewards:
            reward = reward.clamp(min=0.0)
        falls = torch.zeros(self.num_envs, dtype=torch.bool)
        for name, params in self.recipe.terminations.items():
            falls |= TERMINATIONS[name](state, **params)
        return reward - self.recipe.fall * falls, falls

    def _log(self, state: State, dones: Tensor, falls: Tensor) -> dict[str, Any]:
        """Means over environments; rewards per second of the episodes that ended."""
        error = (state.command[:, :3] - state.velocity[:, :3]).abs()
        mean = state.velocity_error.abs().mean(0)
        log: dict[str, Any] = {
            "error/vx": mean[0].item(),
            "error/vy": mean[1].item(),
            "error/yaw": mean[2].item(),
            "error/xy_step": error[:, :2].mean().item(),
            **{f"level/{name}": value for name, value in self.levels.items()},
        }
        if (ground := self.world.ground) is not None:
            log |= {f"terrain/{name}": level for name, level in ground.mean_levels().items()}
        if dones.any():
            ended = self.episode_length_buf.cpu()[dones]
            seconds = ended.float() * self.recipe.step_dt
            sums = (self.reward_sums[dones] / seconds[:, None]).mean(0)
            log |= {f"reward/{name}": sums[i].item() for i, name in enumerate(self._rewards)}
            log["episode/falls"] = falls[dones].float().mean().item()
        return log

    def grow(self) -> None:
        """Levels of the curriculum for the steps done."""
        done = self.steps / self.total_steps
        for name, row in self.recipe.curriculum.items():
            self.levels[name] = CURRICULUM[row.term](done, **row.params)
        self.world.rough_level = self.levels["rough"]

    def _reset(self, mask: Tensor, falls: Tensor | None = None) -> None:
        rows = torch.nonzero(mask).flatten()
        if not len(rows):
            return
        if (ground := self.world.ground) is not None:
            fallen = torch.zeros(len(rows), dtype=torch.bool) if falls is None else falls[rows]
            # Along the way only: beside every terrain there is a flat strip to stroll along.
            walked = self.world.base_pos[rows, 0].abs()
            ground.assign(rows, fallen, walked, self.asked[rows])
        self.world.reset(rows.to(torch.int32).numpy(), self.levels, self.recipe.randomisation)
        self.episode_length_buf[rows.to(self.device)] = 0
        for buffer in (self.action, self.last_action, self.older_action):
            buffer[rows] = 0
        self.velocity_error[rows], self.reward_sums[rows], self.first[rows] = 0, 0, 1
        self.asked[rows] = 0
        self.lift[rows] = LIFT_START
        if self.eyes is not None:
            self.eyes.reset(rows, self.world.base_pos[rows, 2])
        # Either foot may begin.
        self.phase[rows] = (self.world.uniform(0, 2, len(rows), 1)).floor() / 2
        self._draw_command(rows)
        self._draw_arms(rows)

    # --- commands ---------------------------------------------------------------------------------

    def _draw_command(self, rows: Tensor) -> None:
        spec, draw, n = self.recipe.commands, self.world.uniform, len(rows)
        level = self.levels["commands"]
        ranges = (spec.vx, spec.vy, spec.yaw_rate)
        velocity = torch.stack([draw(low, high, n) for low, high in ranges], 1) * level
        kind = draw(0, 1, n)
        axis = torch.nn.functional.one_hot(draw(0, 3, n).long().clamp(max=2), 3)
        alone = (kind < spec.standing_share + spec.axis_share).unsqueeze(1)
        velocity = torch.where(alone, velocity * axis, velocity)
        velocity[kind < spec.standing_share] = 0
        # Full speed the other way is what a walk falls over, and uniform draws hardly ever ask it.
        low, high = (torch.tensor(ends) * level for ends in zip(*ranges, strict=True))
        before = self.command[rows, :3]
        back = torch.where(before > 0, low, high) * (before != 0) * draw(0.6, 1, n, 1)
        reversed_ = (draw(0, 1, n) < spec.reverse_share) & (before != 0).any(1)
        velocity = torch.where(reversed_.unsqueeze(1), back, velocity)
        velocity[velocity.norm(dim=1) < spec.stand_below] = 0
        other = draw(0, 1, n) < spec.height_share
        velocity = self._ahead(rows, velocity)
        height = torch.where(other, draw(*spec.base_height, n), torch.tensor(spec.nominal_height))
        self.command[rows, :3], self.command[rows, 3] = velocity, height
        now = self.episode_length_buf.cpu()[rows] * self.recipe.step_dt
        self.next_command[rows] = now + draw(*spec.resample, n)

    def _ahead(self, rows: Tensor, velocity: Tensor) -> Tensor:
        """(n, 3) on terrain mostly straight on, or nobody gets there."""
        spec, ground, draw, n = (
            self.recipe.terrain,
            self.world.ground,
            self.world.uniform,
            len(rows),
        )
        if spec is None or ground is None:
            return velocity
        straight = torch.stack([draw(*spec.ahead_vx, n), *(0.1 * draw(-1, 1, 2, n))], 1)
        chosen = (draw(0, 1, n) < spec.ahead) & ground.rows[rows]
        self.steered[rows], self.on_way[rows] = chosen, self.on_way[rows] & chosen
        return torch.where(chosen.unsqueeze(1), straight, velocity)

    def _steer(self) -> None:
        """Who walks ahead on terrain is steered along it, as a person and the judge would.

        Velocities are in the heading frame: who may turn aside walks along a step, not over it.
        """
        yaw = yaw_of(self.world.quat)
        back = torch.cos(yaw) < 0  # along -x: as if the world were turned by half a circle
        side = torch.where(back, -1.0, 1.0) * self.world.base_pos[:, 1]
        off = (-AIM_GAIN * side).clamp(-AIM_MOST, AIM_MOST) - yaw + torch.pi * back
        away = torch.atan2(torch.sin(off), torch.cos(off))
        # Who was asked to turn before has time to come back to the way.
        self.on_way = self.steered & (self.on_way | (away.abs() < ON_WAY))
        self.away = torch.where(self.on_way, away, 0.0)
        turn = (TURN_GAIN * away).clamp(-TURN_MOST, TURN_MOST)
        self.command[:, 2] = torch.where(self.steered, turn, self.command[:, 2])
        self.asked += self.steered * self.command[:, 0].abs() * self.recipe.step_dt

    def _draw_arms(self, rows: Tensor) -> None:
        """Choose for each between held, swinging and random, and begin there."""
        spec, draw, n, arms = self.recipe.arms, self.world.uniform, len(rows), len(self.body.arms)
        kind = draw(0, 1, n)
        swinging = (kind >= spec.held) & (kind < spec.held + spec.swinging)
        self.arm_random[rows] = kind >= spec.held + spec.swinging
        self.arm_to[rows] = self._arm_pose(n) * (~swinging).unsqueeze(1)
        self.arm_from[rows] = self.arm_to[rows]
        self.arm_at[rows], self.arm_time[rows] = 0.0, draw(*spec.move_time, n)
        amplitude = draw(0, 1, n, 1) * self._arm_swing * self.levels["arms"]
        self.arm_swing[rows] = amplitude * swinging.unsqueeze(1)
        self.arm_frequency[rows] = draw(*spec.frequency, n)
        self.arm_angle[rows] = draw(0, 2 * torch.pi, n)
        assert self.arm_to.shape[1] == arms
        self._place_arms()

    def _arm_pose(self, n: int) -> Tensor:
        """(n, A) rad from the default pose."""
        reach = self.recipe.arms.amplitude * self.levels["arms"]
        return self.world.uniform(-reach, reach, n, len(self.body.arms))

    def _place_arms(self) -> None:
        body = self.body
        share = (self.arm_at / self.arm_time).clamp(max=1.0).unsqueeze(1)
        smooth = share * share * (3 - 2 * share)
        pose = self.arm_from + (self.arm_to - self.arm_from) * smooth
        swung = self.arm_swing * torch.sin(self.arm_angle).unsqueeze(1)
        # Left and right arm swing against each other.
        half = swung.shape[1] // 2
        swung = torch.cat([swung[:, :half], -swung[:, half:]], 1)
        low, high = (0.95 * body.position_limit[body.arms]).unbind(1)
        self.command[:, 4:] = (body.default_joint_pos[body.arms] + pose + swung).clamp(low, high)

    def _move_commands(self) -> None:
        dt = self.recipe.step_dt
        now = self.episode_length_buf.cpu() * dt
        due = torch.nonzero(now >= self.next_command).flatten()
        if len(due):
            self._draw_command(due)
        self.arm_at += dt
        self.arm_angle = (self.arm_angle + 2 * torch.pi * dt * self.arm_frequency) % (2 * torch.pi)
        there = torch.nonzero(self.arm_random & (self.arm_at >= self.arm_time)).flatten()
        if len(there):
            self.arm_from[there] = self.arm_to[there]
            self.arm_to[there] = self._arm_pose(len(there))
            self.arm_at[there] = 0.0
            self.arm_time[there] = self.world.uniform(*self.recipe.arms.move_time, len(there))
        self._steer()
        self._place_arms()

    # --- observations -----------------------------------------------------------------------------

    def _observe(self) -> None:
        terms = self.policy_terms
        frame = terms.frame(self._sensors(clean=False))
        if self.noise:
            frame = frame + self.world.uniform(-1, 1, *frame.shape) * terms.noise
        policy, self.past = terms.assemble(frame, self.past, self.first)
        sensors = self._sensors()
        state = self._critic_state(sensors)
        parts = [
            CRITIC[row.name][0](state)
            if row.name in CRITIC
            else OBSERVATIONS[row.name][0](sensors, self.body)
            for row in self.recipe.critic
        ]
        critic = torch.nan_to_num(torch.cat(parts, 1) * self._critic_scale)
        groups = {"policy": torch.nan_to_num(policy), "critic": critic}
        groups = {name: value.to(self.device) for name, value in groups.items()}
        self._observations = TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def _critic_state(self, sensors: Sensors) -> State:
        running = stepping(sensors, self.body)
        return self._state(swing(self.phase, running, self.body.swing_share), running)


def yaw_of(quat: Tensor) -> Tensor:
    """(B,) rad, heading of (B, 4) scalar first."""
    w, x, y, z = quat.unbind(1)
    return torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def make_mirror(recipe: Recipe, body: Any) -> Mirror:
    """Left and right exchanged in the observations and actions of a recipe's task."""
    return Mirror(
        policy=observation_mirror(recipe.observation, body),
        critic=joined([_critic_signs(row.name, body) for row in recipe.critic]),
        action=body.mirror,
    )


def _critic_signs(name: str, body: Any) -> tuple[Tensor, Tensor]:
    return (CRITIC[name] if name in CRITIC else OBSERVATIONS[name])[1](body)


def _params(params: Mapping[str, Any], robot: Robot) -> dict[str, Any]:
    """Parameters of a term with joints by name made a tensor over all."""
    return {
        key: joint_values(value, robot.joint_names) if key == "joints" else value
        for key, value in params.items()
    }
