"""A training recipe: one strict YAML file, held against the tables of terms and the robot.

Every mistake is one sentence with its line, before anything starts.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from policies.rewards import CRITIC, CURRICULUM, LEVELS, REWARDS, TERMINATIONS
from policies.terms import OBSERVATIONS
from policies.world import RANDOMISATION
from robot.config import (
    CONFIGS,
    REPOSITORY,
    Strict,
    UserError,
    check,
    listing,
    parse_yaml,
    read_text,
)
from robot.model import Robot, compile_model, load_robot
from robot.terrain import FAMILIES

RECIPES = CONFIGS / "recipes"

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"got {list(pair)}, expected the lowest, then the highest")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


class Feet(Strict):
    """Soles of the training model: spheres in the frame of each foot's body."""

    left: str
    """A site of the MJCF on the left foot's body."""
    right: str
    radius: Positive
    """m."""
    points: Annotated[list[tuple[float, float, float]], Field(min_length=3)]
    """m, the same for both feet, symmetric in y."""
    toe_radius: Positive = 0.01
    """m."""
    toes: list[tuple[float, float, float]] = Field(default_factory=list)
    """m; smaller spheres that only boxes touch: what a foot strikes a step with."""


class Rough(Strict):
    """Ground that changes under a foot while it swings."""

    share: Share
    """of the environments."""
    height: NotNegative
    """m, up and down."""
    slope: NotNegative
    """rad."""


class SimRecipe(Strict):
    """The training physics; not what the evaluator uses."""

    step_dt: Positive
    """s of one policy step."""
    decimation: Count
    """physics steps per policy step."""
    iterations: Count
    """of the PGS solver."""
    feet: Feet
    rough: Rough

    @property
    def physics_dt(self) -> float:
        """s of one physics step."""
        return self.step_dt / self.decimation


class TerrainRecipe(Strict):
    """Terrain of robot/terrain.py under some of the environments, from easy to hard."""

    share: Share
    """of the environments, taken from the last."""
    families: Annotated[list[str], Field(min_length=1)]
    levels: Count
    """from a family's easiest terrain on."""
    hardest: Share
    """of the way to a family's hardest, at the last level."""
    seeds: Count
    """terrains of each family and level."""
    first_level: Annotated[int, Field(ge=0)] = 0
    """where a training begins."""
    ahead: Share
    """of the commands there that ask to walk on, as far as one can, and look where."""
    ahead_vx: PositiveRange
    """m/s, of these."""

    @model_validator(mode="after")
    def _known(self) -> TerrainRecipe:
        trained = [name for name, family in FAMILIES.items() if not family.held_out]
        for name in self.families:
            if name not in trained:
                raise ValueError(f"families: {name!r}, expected some of {listing(trained, 30)}")
        return self


class EyesRecipe(Strict):
    """How wrong the height scan is that the policy sees; each is drawn evenly to both sides."""

    blind: Annotated[float, Field(ge=0, le=0.5)]
    """share of the environments that are told nothing, and that they are."""
    delay: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0, le=10)]]
    """policy steps, least and most."""
    every: PositiveRange
    """policy steps until errors are drawn anew."""
    position: NotNegative
    """m, the whole scan is shifted along each axis."""
    offset: NotNegative
    """m, it is lifted."""
    tilt: NotNegative
    """rad."""
    heading: NotNegative
    """rad, it is turned."""
    cell: NotNegative
    """m along each axis that a cell's height is taken from beside it: what edges suffer."""
    white: NotNegative
    """m, anew in each step."""
    unseen: Annotated[float, Field(ge=0, le=0.5)]
    """of the cells, on average, that are guessed."""

    @model_validator(mode="after")
    def _ordered(self) -> EyesRecipe:
        _ordered(self.delay)
        return self


class CommandRecipe(Strict):
    """What is asked of the policy."""

    vx: Range
    """m/s."""
    vy: Range
    """m/s."""
    yaw_rate: Range
    """rad/s."""
    base_height: Range
    """m."""
    nominal_height: Positive
    """m, most of the time."""
    height_share: Share
    """of commands that ask for another height."""
    standing_share: Share
    """of commands that ask to stand."""
    axis_share: Share
    """of commands along one of vx, vy, yaw_rate alone."""
    reverse_share: Share
    """of commands that ask for 60 to 100 % of full speed against the one before."""
    stand_below: Positive
    """norm of (vx, vy, yaw rate) that means standing."""
    resample: PositiveRange
    """s between commands."""

    @model_validator(mode="after")
    def _has_nominal(self) -> CommandRecipe:
        low, high = self.base_height
        if not low <= self.nominal_height <= high:
            raise ValueError(f"nominal_height {self.nominal_height}, expected within base_height")
        return self


class ArmsRecipe(Strict):
    """What the arms are told; the shares of the three ways sum to 1."""

    held: Share
    swinging: Share
    random: Share
    amplitude: NotNegative
    """rad around the default pose, held and random."""
    swing: dict[str, float]
    """rad by joint pattern, swung with frequency."""
    frequency: PositiveRange
    """Hz."""
    move_time: PositiveRange
    """s from one random pose to the next."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> ArmsRecipe:
        total = self.held + self.swinging + self.random
        if abs(total - 1) > 1e-6:
            raise ValueError(f"held, swinging and random sum to {total:g}, expected 1")
        return self


class ClockRecipe(Strict):
    """The gait clock."""

    period: Positive
    """s."""
    swing_share: Annotated[float, Field(gt=0, le=0.5)]
    """of the period that a foot is in the air."""


class Gains(Strict):
    """Stiffness and damping from each motor's reflected inertia, robot.model.motor_gains."""

    natural_frequency_hz: Positive
    damping_ratio: Positive


class ActionRecipe(Strict):
    """target = pose and commanded arms + squat + step + scale * effort / stiffness * action."""

    gains: Gains
    scale: Positive
    arm_share: Positive
    """of the scale, for arm joints."""
    clip: Positive
    swing: dict[str, float]
    """rad by joint of the left leg at the top of its swing; the right leg is its mirror image."""
    squat: dict[str, float]
    """rad per m of commanded height above the nominal one, by joint pattern."""


class TermRow(Strict):
    """One observation term."""

    name: str
    scale: float = 1.0
    noise: NotNegative = 0.0
    """in the term's own unit, uniform to both sides."""
    history: Annotated[int, Field(ge=1, le=32)] = 1
    """frames."""


class CriticRow(Strict):
    """One term of the critic's observation: noise free, and beyond what the robot measures."""

    name: str
    scale: float = 1.0


class RewardRow(Strict):
    """One reward per second."""

    weight: float
    params: dict[str, Any] = Field(default_factory=dict)


class Ppo(Strict):
    """Settings of the learner."""

    num_steps_per_env: Count = 24
    num_learning_epochs: Count = 3
    num_mini_batches: Count = 4
    clip_param: Positive = 0.2
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.99
    lam: Share = 0.95
    entropy_coef: NotNegative = 0.001
    value_loss_coef: NotNegative = 1.0
    use_clipped_value_loss: bool = False
    """values may move by clip_param an update: too slow where returns are ten and updates few."""
    max_grad_norm: Positive = 1.0
    learning_rate: Positive = 1.0e-3
    learning_rate_range: PositiveRange = (1.0e-4, 1.0e-2)
    schedule: Literal["adaptive", "fixed"] = "adaptive"
    desired_kl: Positive = 0.01
    init_std: Positive = 0.5
    final_std: Positive = 0.5
    """exploration has a bound that goes from init_std to this over the training."""
    actor_hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 128, 128)
    critic_hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 128, 128)
    activation: Literal["elu", "relu", "tanh", "silu"] = "elu"
    normalise: bool = True
    """what the actor sees; the critic's observation always is."""
    critic_first: Annotated[int, Field(ge=0)] = 0
    """iterations in which the critic learns alone, so that a given actor is not spoilt."""
    symmetry: Literal["equivariant", "augmentation", "none"] = "equivariant"


class LevelRow(Strict):
    """How one level grows."""

    term: str
    params: dict[str, Any] = Field(default_factory=dict)


class Recipe(Strict):
    """A whole training run."""

    name: str
    robot: str
    seed: Annotated[int, Field(ge=0)]
    num_envs: Count
    total_steps: Count
    """policy steps of all environments together."""
    episode_s: Positive
    sim: SimRecipe
    terrain: TerrainRecipe | None = None
    """none: even ground, or rough."""
    eyes: EyesRecipe | None = None
    """for policies that see terrain."""
    commands: CommandRecipe
    arms: ArmsRecipe
    clock: ClockRecipe
    action: ActionRecipe
    observation: Annotated[list[TermRow], Field(min_length=1)]
    critic: Annotated[list[CriticRow], Field(min_length=1)]
    rewards: dict[str, RewardRow]
    clip_rewards: bool
    """their sum is never below 0."""
    fall: NotNegative
    """taken off when an episode ends by falling."""
    terminations: dict[str, dict[str, Any]]
    randomisation: dict[str, dict[str, Any]]
    curriculum: dict[str, LevelRow]
    ppo: Ppo = Ppo()

    @property
    def step_dt(self) -> float:
        """s of one policy step."""
        return self.sim.step_dt


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read and check a recipe: "walk" of configs/recipes, or a path.

    Raises:
        UserError: the first mistake, with its line.
    """
    path = Path(name_or_path)
    if not path.suffix:
        known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
        if path.name not in known:
            raise UserError(f"recipe {str(path)!r} is unknown; available: {listing(known)}")
        path = RECIPES / f"{path.name}.yaml"
    shown = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
    data, lines = parse_yaml(read_text(path), shown)
    recipe = check(data, Recipe, where=str(shown), lines=lines)
    robot = _robot(recipe, shown, lines)
    for key, mistake in mistakes(recipe, robot):
        line = next(lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in lines)
        raise UserError(f"{shown}:{line}: {mistake}")
    return recipe


def _robot(recipe: Recipe, shown: Path, lines: dict[tuple, int]) -> Robot:
    try:
        return load_robot(recipe.robot)
    except UserError as error:
        raise UserError(f"{shown}:{lines.get(('robot',), 1)}: robot: {error}") from None


Mistake = tuple[tuple, str]  # key path in the recipe, sentence


def mistakes(recipe: Recipe, robot: Robot) -> Iterator[Mistake]:
    """Every mistake between the recipe, the tables of terms and the robot."""
    names = [row.name for row in recipe.observation]
    for at, row in enumerate(recipe.observation):
        yield from _unknown(("observation", at, "name"), row.name, OBSERVATIONS)
        if row.name in names[:at]:
            yield ("observation", at, "name"), f'observation: "{row.name}" is given twice'
    sees = [name for name in ("height_scan", "height_flag") if name in names]
    if sees and (recipe.eyes is None or recipe.terrain is None):
        at = ("observation", names.index(sees[0]), "name")
        yield at, f'observation: "{sees[0]}" needs sections eyes and terrain'
    for at, critic in enumerate(recipe.critic):
        yield from _unknown(("critic", at, "name"), critic.name, {**OBSERVATIONS, **CRITIC})
    for name, reward in recipe.rewards.items():
        at = ("rewards", name)
        yield from _term(at, (*at, "params"), name, reward.params, REWARDS, robot)
    for name, level in recipe.curriculum.items():
        at = ("curriculum", name)
        yield from _unknown(at, name, LEVELS)
        row = level.term, level.params
        yield from _term((*at, "term"), (*at, "params"), *row, CURRICULUM, robot)
    for key, table in (("terminations", TERMINATIONS), ("randomisation", RANDOMISATION)):
        for name, params in getattr(recipe, key).items():
            yield from _term((key, name), (key, name), name, params, table, robot)
    yield from _joints(("action", "swing"), recipe.action.swing, robot)
    yield from _joints(("action", "squat"), recipe.action.squat, robot)
    yield from _joints(("arms", "swing"), recipe.arms.swing, robot)
    yield from _sites(recipe, robot)
    low, high = recipe.randomisation.get("delay", {}).get("steps", (0, 0))
    if low < 0 or high > recipe.sim.decimation:
        at = ("randomisation", "delay", "steps")
        yield at, f"delay.steps: got [{low}, {high}], expected 0 to {recipe.sim.decimation} steps"


def _sites(recipe: Recipe, robot: Robot) -> Iterator[Mistake]:
    model = compile_model(robot, "feet")
    sites = [model.site(i).name for i in range(model.nsite)]
    for side in ("left", "right"):
        name = getattr(recipe.sim.feet, side)
        if name not in sites:
            where = f'sim.feet.{side}: {robot.name} has no site "{name}"'
            yield ("sim", "feet", side), f"{where}; available: {listing(sites)}"


def _term(
    at: tuple, params_at: tuple, name: str, params: Mapping[str, Any],
    table: Mapping[str, Callable], robot: Robot,
) -> Iterator[Mistake]:  # fmt: skip
    """A term's name and parameters against the function of that name."""
    if name not in table:
        yield from _unknown(at, name, table)
        return
    known = parameters(table[name])
    for param, value in params.items():
        place, where = (*params_at, param), f"{at[0]}.{name}.{param}"
        if param not in known:
            yield place, f"{where}: unknown key; available: {listing(known)}"
        elif param == "joints" and isinstance(value, dict):
            yield from _joints(place, value, robot)
        elif param == "joints":
            yield place, f"{where}: got {value!r}, expected a mapping of joint to number"
        elif not _fits(value, known[param]):
            yield place, f"{where}: got {value!r}, expected {_kind(known[param])}"
    for param, default in known.items():
        if default is inspect.Parameter.empty and param not in params:
            yield at, f"{at[0]}.{name}.{param}: missing; expected a value here"


def parameters(function: Callable) -> dict[str, Any]:
    """Keyword-only parameters of a term and their defaults."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind == inspect.Parameter.KEYWORD_ONLY}


def _fits(value: Any, default: Any) -> bool:
    """Whether a parameter is a finite number, or as many as the default has."""
    if isinstance(default, tuple):
        return (
            isinstance(value, list)
            and len(value) == len(default)
            and all(_fits(x, 0.0) for x in value)
            and (len(value) != 2 or value[0] <= value[1])
        )
    return type(value) in (int, float) and abs(value) < 1e9


def _kind(default: Any) -> str:
    return f"{len(default)} numbers, lowest first" if isinstance(default, tuple) else "a number"


def _unknown(key: tuple, name: str, table: Mapping[str, Any]) -> Iterator[Mistake]:
    if name not in table:
        yield key, f'{key[0]}: "{name}" is unknown; available: {listing(table, 30)}'


def _joints(key: tuple, values: Mapping[str, Any], robot: Robot) -> Iterator[Mistake]:
    for pattern, value in values.items():
        where = ".".join(str(part) for part in key)
        if not any(fnmatch.fnmatchcase(name, pattern) for name in robot.joint_names):
            have = f"available: {listing(robot.joint_names)}"
            yield (*key, pattern), f'{where}: {robot.name} has no joint "{pattern}"; {have}'
        if not _fits(value, 0.0):
            yield (*key, pattern), f"{where}.{pattern}: got {value!r}, expected a number"
