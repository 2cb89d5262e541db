"""Actor and critic for rsl_rl that treat left and right alike, exactly and by construction.

A mirror image of the robot is the same robot: actor(mirror(x)) == mirror(actor(x)), and the critic
gives the same value for both. Each layer here commutes with the mirror, which is cheaper
than running a plain network on the input and on its image: in the basis of sums and differences of
mirrored values every weight matrix falls into two blocks of half its side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from typing import Any

import torch
from rsl_rl.models import MLPModel
from rsl_rl.modules import MLP, EmpiricalNormalization
from rsl_rl.modules.distribution import GaussianDistribution
from torch import Tensor, nn
from torch.nn.functional import elu, linear, relu, silu, tanh

ROOT_HALF = 0.5**0.5
HEAD_SCALE = 0.1  # of the actor's last layer: the first actions are near 0, so noise explores
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": elu, "relu": relu, "silu": silu, "tanh": tanh,
}  # fmt: skip


class Reflection(nn.Module):
    """The mirror as a signed permutation: image[i] = sign[i] * x[source[i]].

    Args:
        mirror: maps (batch, size) to the mirrored (batch, size).
        size: length of a vector.

    Raises:
        ValueError: `mirror` is no signed permutation, or is not its own inverse.
    """

    source: Tensor  # (size,) int64
    sign: Tensor  # (size,) +1 or -1

    def __init__(self, mirror: Callable[[Tensor], Tensor], size: int) -> None:
        super().__init__()
        probe = torch.arange(1.0, size + 1.0)
        image = mirror(probe.unsqueeze(0)).squeeze(0).cpu().float()
        self.register_buffer("source", image.abs().round().long() - 1, persistent=False)
        self.register_buffer("sign", image.sign(), persistent=False)
        if sorted(self.source.tolist()) != list(range(size)):
            raise ValueError("the mirror is no signed permutation of the vector's elements")
        if not torch.equal(self(self(probe)), probe):
            raise ValueError("the mirror of the mirror image is not the vector itself")

    def forward(self, x: Tensor) -> Tensor:
        """The mirror image of x, (..., size)."""
        return self.sign * x[..., self.source]

    def orbits(self) -> Tensor:
        """(size,) the smaller index of each element and its partner."""
        return torch.minimum(self.source, torch.arange(len(self.source), device=self.source.device))


class Halves(nn.Module):
    """Orthonormal change of basis from a vector to its even and its odd part under a reflection.

    A mirrored pair has an even part (their sum) and an odd part (their difference); an element that
    is its own partner is even if the mirror keeps it and odd if the mirror turns its sign. A part
    that would be empty keeps one element, always 0.
    """

    even_first: Tensor
    even_second: Tensor
    even_weight: Tensor
    even_turn: Tensor
    even_slot: Tensor
    even_back: Tensor
    odd_first: Tensor
    odd_second: Tensor
    odd_weight: Tensor
    odd_turn: Tensor
    odd_slot: Tensor
    odd_back: Tensor

    def __init__(self, reflection: Reflection) -> None:
        super().__init__()
        source, sign = reflection.source, reflection.sign
        for name, parity in (("even", 1.0), ("odd", -1.0)):
            elements = [
                i for i, j in enumerate(source.tolist())
                if i < j or (i == j and sign[i] == parity)
            ]  # fmt: skip
            first = torch.tensor(elements or [0])
            second = source[first]
            weight = torch.where(first == second, 0.5, ROOT_HALF) * float(bool(elements))
            self.register_buffer(f"{name}_first", first, persistent=False)
            self.register_buffer(f"{name}_second", second, persistent=False)
            self.register_buffer(f"{name}_weight", weight, persistent=False)
            self.register_buffer(f"{name}_turn", parity * sign[first], persistent=False)
            slot, back = torch.zeros_like(source), torch.zeros(len(source))
            for place, i in enumerate(elements):
                j = int(source[i])
                slot[i] = slot[j] = place
                back[i] = 1.0 if i == j else ROOT_HALF
                back[j] = back[i] if i == j else parity * sign[i] * ROOT_HALF
            self.register_buffer(f"{name}_slot", slot, persistent=False)
            self.register_buffer(f"{name}_back", back, persistent=False)

    @property
    def sizes(self) -> tuple[int, int]:
        """Lengths of the even and of the odd part."""
        return len(self.even_first), len(self.odd_first)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, size) -> even and odd parts; of the mirror image the same and the negated."""
        even = (x[:, self.even_first] + self.even_turn * x[:, self.even_second]) * self.even_weight
        odd = (x[:, self.odd_first] + self.odd_turn * x[:, self.odd_second]) * self.odd_weight
        return even, odd

    def join(self, even: Tensor, odd: Tensor) -> Tensor:
        """The inverse of `split`."""
        # index_select's gradient is much faster than indexing's, and deterministic
        return even.index_select(1, self.even_slot) * self.even_back + (
            odd.index_select(1, self.odd_slot) * self.odd_back
        )


class EquivariantMLP(nn.Module):
    """A perceptron that commutes with the mirror.

    Hidden units are in mirrored pairs; a layer is two blocks, on sums and on differences of pairs,
    and only the activation sees the pairs themselves. A network and its image averaged is the
    special case in which no unit listens to its partner's side.

    Args:
        inputs: reflection of the input.
        outputs: reflection of the output, or None for one output that the mirror leaves alone.
        hidden_dims: units of the hidden layers, each an even number.
        activation: a key of ACTIVATIONS.
    """

    def __init__(
        self,
        inputs: Reflection,
        outputs: Reflection | None,
        hidden_dims: Sequence[int],
        activation: str = "elu",
    ) -> None:
        super().__init__()
        if any(width % 2 for width in hidden_dims):
            raise ValueError(f"hidden sizes are {list(hidden_dims)}; expected even numbers")
        self.activation = ACTIVATIONS[activation]
        self.inputs = Halves(inputs)
        self.outputs = Halves(outputs) if outputs is not None else None
        pairs = [(width // 2, width // 2) for width in hidden_dims]
        sizes = [self.inputs.sizes, *pairs, self.outputs.sizes if self.outputs else (1, 0)]
        self.even = nn.ModuleList(nn.Linear(a[0], b[0]) for a, b in pairwise(sizes))
        # an odd part has no bias: the mirror would turn its sign
        self.odd = nn.ModuleList(
            nn.Linear(a[1], b[1], bias=False) for a, b in pairwise(sizes) if b[1]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        even, odd = self.inputs.split(x)
        for of_even, of_odd in zip(self.even[:-1], self.odd, strict=False):
            # the factors of the change of basis go into the weights: these are small
            even = linear(even, of_even.weight * ROOT_HALF, of_even.bias * ROOT_HALF)
            odd = linear(odd, of_odd.weight * ROOT_HALF)
            left, right = self.activation(even + odd), self.activation(even - odd)
            even, odd = (left + right) * ROOT_HALF, (left - right) * ROOT_HALF
        if self.outputs is None:
            return self.even[-1](even)
        return self.outputs.join(self.even[-1](even), self.odd[-1](odd))

    def plain(self) -> PlainMLP:
        """The same function in ordinary layers: twice the weights, but few operations to start."""
        blocks: list[tuple[Any, Any]] = list(zip_longest(self.even, self.odd))
        eye = torch.eye(len(self.inputs.even_slot))
        even, odd = (part.T for part in self.inputs.split(eye))  # the parts of this layer's input
        layers = []
        with torch.no_grad():
            for of_even, of_odd in blocks[:-1]:
                same, other = of_even.weight @ even, of_odd.weight @ odd
                weight = torch.cat((same + other, same - other)) * ROOT_HALF
                layers.append(_linear(weight, of_even.bias.repeat(2) * ROOT_HALF))
                half = torch.eye(len(same)) * ROOT_HALF
                even, odd = torch.cat((half, half), 1), torch.cat((half, -half), 1)
            of_even, of_odd = blocks[-1]
            weight, bias = of_even.weight @ even, of_even.bias
            if self.outputs is not None:
                other = of_odd.weight @ odd
                none = torch.zeros(1, len(other))
                bias = self.outputs.join(bias.unsqueeze(0), none).squeeze(0)
                weight = self.outputs.join(weight.T, other.T).T
            layers.append(_linear(weight, bias))
        return PlainMLP(layers, self.activation)

    def take(self, plain: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Become the function that `plain` gave away.

        Args:
            plain: (weight, bias) of its layers, for an actor.

        Raises:
            ValueError: they are of another shape, or treat left and right differently.
        """
        assert self.outputs is not None
        eye = torch.eye(len(self.inputs.even_slot))
        even, odd = (part.T for part in self.inputs.split(eye))
        blocks: list[tuple[Any, Any]] = list(zip(self.even, self.odd, strict=True))
        if len(plain) != len(blocks):
            raise ValueError(f"{len(plain)} layers, expected {len(blocks)}")
        with torch.no_grad():
            for (of_even, of_odd), (weight, bias) in zip(blocks[:-1], plain, strict=False):
                top, bottom = weight.chunk(2)
                _put(of_even.weight, (top + bottom) @ even.T * ROOT_HALF)
                _put(of_odd.weight, (top - bottom) @ odd.T * ROOT_HALF)
                _put(of_even.bias, bias.chunk(2)[0] / ROOT_HALF)
                half = torch.eye(len(top)) * ROOT_HALF
                even, odd = torch.cat((half, half), 1), torch.cat((half, -half), 1)
            of_even, of_odd = blocks[-1]
            weight, bias = plain[-1]
            of_both = self.outputs.split(weight.T)
            _put(of_even.weight, of_both[0].T @ even.T)
            _put(of_odd.weight, of_both[1].T @ odd.T)
            _put(of_even.bias, self.outputs.split(bias.unsqueeze(0))[0].squeeze(0))
            for layer, (weight, bias) in zip(self.plain().layers, plain, strict=True):
                for mine, given in ((layer.weight, weight), (layer.bias, bias)):
                    if not torch.allclose(mine, given, atol=1e-4):  # type: ignore[arg-type]
                        raise ValueError("it treats left and right differently")


def _put(parameter: Tensor, value: Tensor) -> None:
    if parameter.shape != value.shape:
        raise ValueError(f"a layer of {tuple(value.shape)}, expected {tuple(parameter.shape)}")
    parameter.copy_(value)


class PlainMLP(nn.Module):
    """Linear layers with an activation between them.

    Args:
        layers: each takes what the one before gives.
        activation: of all but the last.
    """

    def __init__(self, layers: Sequence[nn.Linear], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.activation = nn.ModuleList(layers), activation

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


class MirrorNormalization(EmpiricalNormalization):
    """Running mean and spread over what was seen and over its mirror image."""

    def __init__(self, reflection: Reflection) -> None:
        super().__init__(len(reflection.source))
        self.reflection = reflection

    @torch.jit.unused
    def update(self, x: Tensor) -> None:
        """Learn from x, (batch, size)."""
        super().update(torch.cat((x, self.reflection(x))))
        # equal but for the rounding of long sums; the network's promise is to the last bit
        self._mean = (self._mean + self.reflection(self._mean)) * 0.5
        self._var = (self._var + self._var[:, self.reflection.source]) * 0.5
        self._std = torch.sqrt(self._var)


class JointNoise(GaussianDistribution):
    """Gaussian exploration; mirrored joints share their standard deviation.

    Args:
        output_dim: number of actions.
        reflection: of the actions; None: each action has its own.
        init_std, std_range: standard deviation at the start, and its bounds.
    """

    share: Tensor  # (actions,) the parameter of each action

    def __init__(
        self,
        output_dim: int,
        reflection: Reflection | None = None,
        init_std: float = 1.0,
        std_range: tuple[float, float] = (1e-6, 1e6),
    ) -> None:
        super().__init__(output_dim, init_std, std_range)
        owners = reflection.orbits() if reflection else torch.arange(output_dim)
        first, share = torch.unique(owners, return_inverse=True)
        self.register_buffer("share", share, persistent=False)
        self.std_param = nn.Parameter(torch.full((len(first),), float(init_std)))

    def update(self, mlp_output: Tensor) -> None:
        """Set the distribution for these means."""
        low, high = self.std_range
        std = self.std_param.clamp(low, high).index_select(0, self.share)
        self._distribution = torch.distributions.Normal(mlp_output, std)

    def init_mlp_weights(self, mlp: nn.Module) -> None:
        """Make the last layer small (rsl_rl calls this once the network is built)."""
        last = (mlp.even[-1], mlp.odd[-1]) if isinstance(mlp, EquivariantMLP) else (mlp[-1],)  # type: ignore[index]
        with torch.no_grad():
            for layer in last:
                layer.weight *= HEAD_SCALE  # type: ignore[operator]


class EquivariantModel(MLPModel):
    """rsl_rl's model with the equivariant network and normalisation in place of its own.

    Args:
        inputs: reflection of the concatenated observation groups.
        outputs: reflection of the actions; None for a critic.
        others: as in MLPModel.
    """

    def __init__(
        self,
        obs: Any,
        obs_groups: dict[str, list[str]],
        obs_set: str,
        output_dim: int,
        inputs: Reflection,
        outputs: Reflection | None = None,
        hidden_dims: Sequence[int] = (256, 128, 128),
        activation: str = "elu",
        obs_normalization: bool = True,
        distribution_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            obs, obs_groups, obs_set, output_dim, list(hidden_dims), activation,
            obs_normalization=False, distribution_cfg=distribution_cfg,
        )  # fmt: skip
        self.obs_normalization = obs_normalization
        if obs_normalization:
            self.obs_normalizer = MirrorNormalization(inputs)
        self.mlp: MLP = EquivariantMLP(inputs, outputs, hidden_dims, activation)  # type: ignore[assignment]
        if self.distribution is not None:
            self.distribution.init_mlp_weights(self.mlp)

    def as_onnx(self, verbose: bool) -> nn.Module:
        """The network for export: ordinary layers, the first of which normalises."""
        model: Any = super().as_onnx(verbose)
        model.mlp = model.mlp.plain()
        if self.obs_normalization:
            normaliser, first = model.obs_normalizer, model.mlp.layers[0]
            with torch.no_grad():
                first.weight /= normaliser._std + normaliser.eps
                first.bias -= first.weight @ normaliser._mean.squeeze(0)
            model.obs_normalizer = nn.Identity()
        return model


def augment(
    mirrors: dict[str, Reflection], env: Any, obs: Any, actions: Tensor | None
) -> tuple[Any, Tensor | None]:
    """Samples and their mirror images, for rsl_rl's own data augmentation.

    Args:
        mirrors: reflection of each observation group, and of "action".
        env: unused; rsl_rl gives it.
        obs: TensorDict of groups (batch, n), or None.
        actions: (batch, actions), or None.
    """
    if obs is not None:
        image = obs.clone()
        for group in obs.keys():  # noqa: SIM118  (iterating a TensorDict yields rows, not keys)
            image[group] = mirrors[group](obs[group])
        obs = torch.cat((obs, image))
    if actions is not None:
        actions = torch.cat((actions, mirrors["action"](actions)))
    return obs, actions
