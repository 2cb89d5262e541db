"""A wrong recipe is one sentence with its line, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.recipe import RECIPES, load_recipe
from robot.config import UserError

WALK = (RECIPES / "walk.yaml").read_text()


def test_the_walk_is_a_valid_recipe():
    recipe = load_recipe("walk")
    assert recipe.step_dt == pytest.approx(0.02)
    assert [row.name for row in recipe.observation][:2] == ["base_ang_vel", "projected_gravity"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  track_yaw:", "  track_jaw:", '"track_jaw" is unknown; available: track_linear'),
        ("name: base_ang_vel, scale: 0.25, noise", "name: base_speed, noise", "base_ang_vel"),
        ("params: {sigma: 0.05}", "params: {sigmo: 0.05}", "unknown key; available: sigma"),
        ("params: {sigma: 0.05}", "params: {sigma: wide}", "got 'wide', expected a number"),
        ("  vx: [-0.6, 1.0]", "  vx: [-0.6, 1.0, 2.0]", "commands.vx"),
        ("  vx: [-0.6, 1.0]", "  vx: [1.0, -0.6]", "expected the lowest, then the highest"),
        ("left_knee_joint: 0.8", "left_nee_joint: 0.8", 'g1 has no joint "left_nee_joint"'),
        ('"waist*": 15.0', '"tail*": 15.0', 'g1 has no joint "tail*"'),
        ("  held: 0.4", "  held: 0.5", "sum to 1.1, expected 1"),
        ("  left: left_foot", "  left: left_paw", "available: "),
        ("  delay: {steps: [0, 2]}", "  delay: {steps: [0, 9]}", "expected 0 to 3"),
        ("  tilted: {angle: 1.0}", "  tilted: {angel: 1.0}", "available: angle"),
        ("  rough: {term: ramp", "  ruff: {term: ramp", "available: penalties"),
        ("  friction: {range: [0.3, 1.2]}", "  friction: {range: [0.3]}", "expected 2 numbers"),
        ("clip: 10.0", "clip: -1", "greater than 0"),
        ("robot: g1", "robot: g2", "available: g1"),
    ],
)
def test_a_mistake_names_its_line_and_what_exists(tmp_path: Path, old: str, new: str, says: str):
    assert WALK.count(old) >= 1
    path = tmp_path / "wrong.yaml"
    path.write_text(WALK.replace(old, new, 1))
    line = WALK[: WALK.index(old)].count("\n") + 1
    with pytest.raises(UserError) as error:
        load_recipe(path)
    text = str(error.value)
    assert says in text and "\n" not in text
    got = int(text.split("wrong.yaml:")[1].split(":")[0])
    assert line - 1 <= got <= line + 1


def test_a_joint_map_is_asked_for_where_a_term_needs_one(tmp_path: Path):
    path = tmp_path / "wrong.yaml"
    begin = WALK.index("    params:\n      joints:")
    path.write_text(WALK[:begin] + WALK[WALK.index("  action_rate:") :])
    with pytest.raises(UserError, match=r"posture\.joints: missing"):
        load_recipe(path)


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(UserError, match="available: terrain, terrain-walk, walk"):
        load_recipe("dance")
