"""Terrain under the simulations of a training: who walks where, how high the ground is there.

Terrains are made once, by robot/terrain.py, and shared. A simulation's model has few boxes; those
nearest to its robot are put into them as it walks. Heights come from a grid per terrain, as rays
would cost more than the physics. It knows nothing of robots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robot.terrain import FAMILIES, Terrain, make_terrain

if TYPE_CHECKING:
    from policies.recipe import TerrainRecipe

Ids = NDArray[np.int32]

CELL = 0.025  # m, of the height grids
HALF = (10.5, 3.5)  # m from the origin in x and y that the grids cover; beyond, as at their edge
SLOTS = 16  # boxes of one simulation's model
AWAY = -50.0  # m, height of a box that is nowhere
LAY_EVERY = 5  # steps between looks at which boxes are nearest


class Ground:
    """Terrain of some of B simulations.

    Args:
        recipe: families and levels.
        rows: (B,) bool, which simulations walk on terrain.
        generator: draws terrains and levels.
    """

    def __init__(self, recipe: TerrainRecipe, rows: Tensor, generator: torch.Generator) -> None:
        self.rows, self.generator = rows, generator
        self.levels, self.seeds = recipe.levels, recipe.seeds
        self.names, self.families = tuple(recipe.families), len(recipe.families)
        self.count = self.families * recipe.seeds  # terrains of a level
        self.grid, self._boxes = _pool(self.names, recipe.levels, recipe.seeds, recipe.hardest)
        self.floor = self._boxes.floor
        self.level = torch.full((len(rows),), min(recipe.first_level, recipe.levels - 1))
        self.terrain = torch.zeros(len(rows), dtype=torch.long)  # row of grid
        self._steps = 0

    def assign(self, rows: Tensor, fallen: Tensor, walked: Tensor, asked: Tensor) -> None:
        """Another terrain for new episodes: harder after a walk of 4 m, easier after a fall.

        Easier also for who came less than half as far as asked: before a step that is too high one
        can stand for ever and learn nothing.

        Args:
            rows: (n,) simulations.
            fallen: (n,) bool, how their last episode ended.
            walked: (n,) m from the origin, along the way.
            asked: (n,) m that the commands asked for along the way.
        """
        easier = fallen | (walked < 0.5 * asked)
        level = self.level[rows] - easier.long() + (~easier & (walked > 4.0)).long()
        drawn = torch.randint(self.levels, level.shape, generator=self.generator)
        # Who has done the hardest goes on anywhere, so that what is easy is not forgotten.
        level = torch.where(level >= self.levels, drawn, level.clamp(min=0))
        self.level[rows] = level
        # Each simulation keeps its family, so that its level is how far one has got with that.
        family = rows % self.families
        seed = torch.randint(self.seeds, level.shape, generator=self.generator)
        self.terrain[rows] = level * self.count + family * self.seeds + seed

    def mean_levels(self) -> dict[str, float]:
        """How far one has got with each family, in levels; a family may be listed repeatedly."""
        kind = torch.arange(len(self.rows)) % self.families
        out = {}
        for name in dict.fromkeys(self.names):
            listed = torch.tensor([other == name for other in self.names])
            out[name] = self.level[self.rows & listed[kind]].float().mean().nan_to_num().item()
        return out

    def heights(self, rows: Tensor, xy: Tensor) -> Tensor:
        """Height of the ground, of the nearest cell.

        Args:
            rows: (n,) simulations.
            xy: (n, k, 2) m.

        Returns:
            (n, k) m.
        """
        ahead, aside = self.grid.shape[1:]
        i = ((xy[..., 0] + HALF[0]) * (1 / CELL)).long().clamp(0, ahead - 1)
        j = ((xy[..., 1] + HALF[1]) * (1 / CELL)).long().clamp(0, aside - 1)
        return self.grid[self.terrain[rows].unsqueeze(1), i, j]

    def due(self) -> Tensor:
        """(n,) the simulations whose boxes are to be looked at in this step."""
        self._steps += 1
        every = torch.arange(len(self.rows))[self._steps % LAY_EVERY :: LAY_EVERY]
        return every[self.rows[every]]

    def nearest(self, rows: Tensor, xy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes nearest to some robots.

        Args:
            rows: (n,) simulations.
            xy: (n, 2) m.

        Returns:
            (n, SLOTS, 3) m centres, (n, SLOTS, 4) orientations, (n, SLOTS, 3) m half edges.
        """
        return self._boxes.nearest(self.terrain[rows], xy)

    def state_dict(self) -> dict:
        """What the next step depends on."""
        return {"level": self.level.clone(), "terrain": self.terrain.clone(), "steps": self._steps}

    def load_state_dict(self, given: dict) -> None:
        """Go on from a state_dict of the same recipe and size."""
        self.level, self.terrain = given["level"].clone(), given["terrain"].clone()
        self._steps = given["steps"]


@lru_cache(maxsize=1)  # the quick evaluation and the training walk on the same
def _pool(
    families: tuple[str, ...], levels: int, seeds: int, hardest: float
) -> tuple[Tensor, _Boxes]:
    """Grids and boxes of all terrains: level by level, in it family by family, in it by seed."""
    terrains = [
        make_terrain(family, seed, difficulty(family, hardest * level / max(levels - 1, 1)))
        for level in range(levels) for family in families for seed in range(seeds)
    ]  # fmt: skip
    return torch.from_numpy(np.stack([_grid(terrain) for terrain in terrains])), _Boxes(terrains)


def difficulty(family: str, share: float) -> float:
    """m, a share of the way from the family's easiest to its hardest."""
    row = FAMILIES[family]
    return row.easy + (row.hard - row.easy) * share


def _grid(terrain: Terrain) -> NDArray[np.float32]:
    """Heights at the middles of the cells, [x, y]."""
    axes = [np.arange(-half + 0.5 * CELL, half, CELL) for half in HALF]
    out = np.full([len(axis) for axis in axes], terrain.floor)
    for box in terrain.boxes:
        low, high = box.centre()[:2] - box.reach(), box.centre()[:2] + box.reach()
        window = tuple(
            slice(*np.searchsorted(axis, (low[i], high[i]))) for i, axis in enumerate(axes)
        )
        part = [axis[cut] for axis, cut in zip(axes, window, strict=True)]
        xy = np.stack(np.meshgrid(*part, indexing="ij"), axis=-1)
        out[window] = np.maximum(out[window], box.heights(xy))
    return out.astype(np.float32)


class _Boxes:
    """All boxes of all terrains, in arrays; terrains with fewer are filled up with nowhere."""

    def __init__(self, terrains: Sequence[Terrain]) -> None:
        most = max(SLOTS, *(len(terrain.boxes) for terrain in terrains))
        shape = len(terrains), most
        self.centre = torch.full((*shape, 3), AWAY)
        self.quat = torch.tensor([1.0, 0, 0, 0]).expand(*shape, 4).clone()
        self.half = torch.full((*shape, 3), 0.01)
        self.floor = torch.tensor([terrain.floor for terrain in terrains])
        self.turn = torch.tensor([1.0, 0]).expand(*shape, 2).clone()  # cosine and sine of the yaw
        for i, terrain in enumerate(terrains):
            for j, box in enumerate(terrain.boxes):
                quat = np.empty(4)
                mujoco.mju_mat2Quat(quat, box.rotation().ravel())
                self.centre[i, j] = torch.from_numpy(box.centre())
                self.quat[i, j] = torch.from_numpy(quat)
                self.half[i, j] = 0.5 * torch.tensor(box.size)
                self.turn[i, j] = torch.tensor([math.cos(box.yaw), math.sin(box.yaw)])

    def nearest(self, terrain: Tensor, xy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See Ground.nearest; terrain is (n,)."""
        away = xy.unsqueeze(1) - self.centre[terrain][..., :2]  # (n, M, 2)
        cos, sin = self.turn[terrain].unbind(2)
        x, y = away.unbind(2)
        along = torch.stack([x * cos + y * sin, y * cos - x * sin], 2)
        outside = (along.abs() - self.half[terrain][..., :2]).clamp(min=0)
        slots = outside.square().sum(2).topk(SLOTS, largest=False).indices
        rows = terrain.unsqueeze(1)
        return self.centre[rows, slots], self.quat[rows, slots], self.half[rows, slots]
