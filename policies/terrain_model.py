"""TerrainNet in torch: a depth picture, the state and what is remembered become heights.

What it puts out is added to a map that is there already: GeoMap's scan, or flat ground under a
robot that stands. So an untrained network says what that map says.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from robot.geomap import SCAN_X, SCAN_XY, SCAN_Y
from robot.terrain_net import MEMORY, STATE

GRID = (len(SCAN_Y), len(SCAN_X))  # y outer, x inner
CELLS = GRID[0] * GRID[1]
ALONE_STD = 0.1  # m, of heights without a map
FLAT = 0.76  # m, pelvis of a standing robot above flat ground
DEPTH_CHANNELS = (8, 16, 32, 32)
DEPTH_FEATURES, PRIOR_FEATURES = 96, 64
LOCAL, FIELDS = 8, 4  # channels per cell: of the map, and of what the memory says of it
FIELD_REACH = 0.05  # m, of the field that is added to all heights
REACH = 0.02  # m, what an output of 1 moves a height by, beside the map's own deviation
PIT_REACH = 0.3  # m, the same of the coarse step
ERROR_UNIT = 0.1  # m
STD = (0.003, 0.5)  # m, between which the map's own deviation is believed
LOGVAR = (-14.0, 2.0)
PRIOR = ("prior_height", "prior_std", "prior_age")


class TerrainModel(nn.Module):
    """The network; B streams, T frames each.

    Args:
        prior: it is shown GeoMap's scan and corrects it; False: it sees the contract's inputs
            alone.
        shape: rows and columns of a picture.
    """

    spread: Tensor  # () added to logvar, what calibration found
    smooth: Tensor  # (6, 187) what fields are made of: a mount that is off tilts and bends the map

    def __init__(self, prior: bool = True, shape: tuple[int, int] = (48, 64)) -> None:
        super().__init__()
        self.prior = prior
        self.register_buffer("spread", torch.zeros(()))
        x, y = torch.from_numpy(SCAN_XY.astype("float32")).T / 0.8
        smooth = torch.stack((torch.ones_like(x), x, y, x * x, x * y, y * y))
        self.register_buffer("smooth", smooth, persistent=False)
        channels = (2, *DEPTH_CHANNELS)
        self.depth = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels)
        )
        seen = DEPTH_CHANNELS[-1] * (shape[0] // 16) * (shape[1] // 16)
        self.depth_features = nn.Linear(seen, DEPTH_FEATURES)
        features, cell = DEPTH_FEATURES + STATE, FIELDS
        if prior:
            self.local = nn.ModuleList(
                (nn.Conv2d(3, LOCAL, 3, padding=1), nn.Conv2d(LOCAL, LOCAL, 3, padding=1))
            )
            self.coarse = nn.Conv2d(LOCAL, LOCAL, 3, stride=2, padding=1)
            rows, columns = (GRID[0] + 1) // 2, (GRID[1] + 1) // 2
            self.prior_features = nn.Linear(LOCAL * rows * columns, PRIOR_FEATURES)
            features, cell = features + PRIOR_FEATURES, cell + LOCAL
        self.memory = nn.GRU(features, MEMORY, batch_first=True)
        self.fields = nn.Linear(MEMORY, (1 + FIELDS) * len(smooth))
        self.mix = nn.Conv2d(cell, LOCAL, 3, padding=1)
        self.out = nn.Conv2d(LOCAL, 3, 1)  # a fine and a coarse step, and the log-variance
        with torch.no_grad():
            self.out.weight *= 0.1
            self.fields.weight[: len(smooth)] *= 0.1
            nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(
        self, depth: Tensor, valid: Tensor, state: Tensor, h_in: Tensor, *prior: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One frame of one robot, with the names and shapes of the contract."""
        given = [part.unsqueeze(1) for part in (depth.squeeze(1), valid.squeeze(1), state, *prior)]
        height, logvar, h_out = self.sequence(*given[:3], h_in, *given[3:])
        return height.squeeze(1), logvar.squeeze(1), h_out

    def sequence(
        self, depth: Tensor, valid: Tensor, state: Tensor, h: Tensor, *prior: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """T frames of B streams.

        Args:
            depth, valid: (B, T, H, W), see robot.terrain_net.depth_inputs.
            state: (B, T, 19).
            h: (1, B, 256) memory.
            prior: GeoMap's height (m), standard deviation (m) and age (s), (B, T, 187) each.

        Returns:
            Heights in m and log-variances, (B, T, 187), and the memory (1, B, 256).
        """
        batch, steps = state.shape[:2]
        x = torch.stack((depth, valid), 2).flatten(0, 1)
        for layer in self.depth:
            x = elu(layer(x))
        features = [elu(self.depth_features(x.flatten(1))), state.flatten(0, 1)]
        base = torch.full_like(state[..., :1], FLAT)
        std = torch.full_like(base, ALONE_STD)
        maps = []
        if self.prior:
            base, std, age = prior
            std = std.clamp(*STD)
            seen = torch.stack(
                (
                    ((base - FLAT) * 5.0).clamp(-3.0, 3.0), std.log() + 3.0,
                    torch.log1p(age) - 1.0,
                ), 2,
            )  # fmt: skip
            x = seen.flatten(0, 1).unflatten(2, GRID)
            for layer in self.local:
                x = elu(layer(x))
            maps.append(x)
            features.append(elu(self.prior_features(elu(self.coarse(x)).flatten(1))))
        remembered, h = self.memory(torch.cat(features, 1).unflatten(0, (batch, steps)), h)
        spoken = self.fields(remembered.flatten(0, 1)).unflatten(1, (1 + FIELDS, -1))
        fields = spoken @ self.smooth
        maps.append(fields[:, 1:].unflatten(2, GRID))
        out = self.out(elu(self.mix(torch.cat(maps, 1)))).flatten(2).unflatten(0, (batch, steps))
        logvar = 2.0 * std.log() + out[:, :, 1] + self.spread
        # What the map is sure of is moved a little, what it guessed at a lot; and there are pits,
        # of which it saw the brink alone.
        own = (REACH + std) * out[:, :, 0] + PIT_REACH * out[:, :, 2]
        tilt = FIELD_REACH * fields[:, 0].unflatten(0, (batch, steps))
        return base + tilt + own, logvar.clamp(*LOGVAR), h


def mirror(frames: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same frames as a robot whose left is its right would have had them."""
    signs = torch.tensor(
        [1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, 1, -1, 1, 1], dtype=torch.float32
    )  # gravity; turning; velocity; image axes: right (turned about), down; place; time
    out = {}
    for name, value in frames.items():
        if name in ("depth", "valid"):
            out[name] = value.flip(-1)
        elif name == "state":
            out[name] = value * signs
        else:
            out[name] = value.unflatten(-1, GRID).flip(-2).flatten(-2)
    return out


def loss(height: Tensor, logvar: Tensor, truth: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """What is learned from, and the mean absolute error in m.

    Heights learn from the absolute error, and from its square that great errors count for more: a
    pit of a metre weighs three times as much as a centimetre, and not a hundred. Deviations learn
    by the likelihood of errors that they do not move: so neither pays for the other.

    Args:
        height, logvar, truth: (..., 187).
        weight: of the likelihood beside the error in decimetres.
    """
    error = (height - truth).abs()
    squared = error.detach().square()
    likelihood = 0.5 * (logvar + squared * (-logvar).exp())
    mean = error.mean()
    great = error.square().mean() / ERROR_UNIT
    return mean / ERROR_UNIT + great + weight * likelihood.mean(), mean.detach()
