"""What a policy in training is told of the ground: true heights, as wrong as a map is wrong.

A map is shifted, turned, tilted and lifted by what odometry and camera do not know, its edges are
beside their place, cells were never seen, and it comes late. All of this is drawn anew every now
and then, so that it stays for a while, as it does on a robot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from policies.ground import Ground
from robot.geomap import SCAN_XY

if TYPE_CHECKING:
    from policies.recipe import EyesRecipe

CELLS = len(SCAN_XY)
XY = torch.from_numpy(SCAN_XY).float()  # (CELLS, 2) m, robot.geomap's order


class Eyes:
    """Height scans of B simulations.

    Args:
        recipe: sizes of the errors.
        ground: terrain of those that have one; the others' ground is even.
        count: B.
        uniform: (low, high, *shape) -> Tensor.
    """

    def __init__(
        self, recipe: EyesRecipe, ground: Ground, count: int, uniform: Callable[..., Tensor]
    ) -> None:
        self.recipe, self.ground, self._uniform = recipe, ground, uniform
        every = max(round(1 / recipe.blind), 1) if recipe.blind else count + 1
        turn = torch.arange(count) // ground.families  # so that some of each family are
        self.blind = (turn % every == 0).float().unsqueeze(1)  # (B, 1)
        self.past = torch.zeros(recipe.delay[1] + 1, count, CELLS)  # newest first
        self.delay = torch.zeros(count, dtype=torch.long)
        self.left = torch.zeros(count)  # steps until errors are drawn anew
        self.cell = torch.zeros(count, CELLS, 2)  # m beside its place
        self.pose = torch.zeros(count, 6)  # x, y, z m; roll, pitch, yaw rad
        self.unseen = torch.zeros(count, CELLS, dtype=torch.bool)

    def truth(self, base_pos: Tensor, yaw: Tensor, below: Tensor) -> Tensor:
        """(B, CELLS) m, the pelvis over the ground.

        Args:
            base_pos: (B, 3) m.
            yaw: (B,) rad.
            below: (B,) m, height of the ground where it is even.
        """
        return self._look(base_pos, yaw, below, XY.expand(len(yaw), -1, -1))

    def told(self, base_pos: Tensor, yaw: Tensor, below: Tensor) -> Tensor:
        """(B, CELLS) m as a map has it, some steps late; `truth` names the arguments."""
        self.left -= 1
        due = torch.nonzero(self.left <= 0).flatten()
        if len(due):
            self._draw(due)
        x, y, z, roll, pitch, turn = (part.unsqueeze(1) for part in self.pose.unbind(1))
        at = turned(XY + self.cell, turn) + torch.stack([x, y], 2)
        seen = self._look(base_pos, yaw, below, at)
        seen = seen + z + XY[:, 0] * pitch + XY[:, 1] * roll
        seen = seen + self._uniform(-1, 1, *seen.shape) * self.recipe.white
        guess = seen.mean(1, keepdim=True)
        self.past = torch.cat([torch.where(self.unseen, guess, seen).unsqueeze(0), self.past[:-1]])
        return self.past[self.delay, torch.arange(len(self.delay))]

    def reset(self, rows: Tensor, base_height: Tensor) -> None:
        """New episodes begin on flat ground; base_height: (n,) m."""
        self.past[:, rows] = base_height.view(1, -1, 1)
        self.left[rows] = 0

    def _draw(self, rows: Tensor) -> None:
        recipe, draw, n = self.recipe, self._uniform, len(rows)
        tilt, place = recipe.tilt, recipe.position
        size = torch.tensor([place, place, recipe.offset, tilt, tilt, recipe.heading])
        self.pose[rows] = draw(-1, 1, n, 6) * size
        self.cell[rows] = draw(-1, 1, n, CELLS, 2) * recipe.cell
        self.unseen[rows] = draw(0, 1, n, CELLS) < draw(0, 2 * recipe.unseen, n, 1)
        low, high = recipe.delay
        self.delay[rows] = draw(low, high + 1, n).long().clamp(low, high)
        self.left[rows] = draw(*recipe.every, n).round()

    def _look(self, base_pos: Tensor, yaw: Tensor, below: Tensor, at: Tensor) -> Tensor:
        height = (base_pos[:, 2] - below).unsqueeze(1).expand(-1, CELLS).clone()
        rows = torch.nonzero(self.ground.rows).flatten()
        at = turned(at[rows], yaw[rows, None]) + base_pos[rows, None, :2]
        under = self.ground.heights(rows, at)
        height[rows] = base_pos[rows, 2:] - under
        return height

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on."""
        return {name: getattr(self, name).clone() for name in MEMORY}

    def load_state_dict(self, given: dict[str, Tensor]) -> None:
        """Go on from a state_dict of the same recipe and size."""
        for name in MEMORY:
            setattr(self, name, given[name].clone())


def turned(xy: Tensor, angle: Tensor) -> Tensor:
    """(n, k, 2) points turned about the origin by (n, 1) rad."""
    cos, sin, (x, y) = torch.cos(angle), torch.sin(angle), xy.unbind(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], -1)


MEMORY = ("past", "delay", "left", "cell", "pose", "unseen")
