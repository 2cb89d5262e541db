"""The network treats left and right alike, to the last bit, and learns like any other."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from rsl_rl.modules.distribution import GaussianDistribution
from tensordict import TensorDict

from policies.network import (
    EquivariantMLP,
    EquivariantModel,
    Halves,
    JointNoise,
    MirrorNormalization,
    Reflection,
    augment,
)

# elements 0 and 3 swap, 1 and 4 swap with a turned sign, 2 stays, 5 turns its sign
SOURCE = torch.tensor([3, 4, 2, 0, 1, 5])
SIGN = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])


def mirror(x: torch.Tensor) -> torch.Tensor:
    return SIGN * x[..., SOURCE]


def swap(a: torch.Tensor) -> torch.Tensor:
    """Actions: 0 and 1 swap, 2 turns its sign."""
    return a[..., [1, 0, 2]] * torch.tensor([1.0, 1.0, -1.0])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


def model(outputs: bool, **options: Any) -> EquivariantModel:
    obs = TensorDict({"policy": torch.randn(32, 6)}, batch_size=[32])
    built = EquivariantModel(
        obs, {"actor": ["policy"]}, "actor", 3 if outputs else 1, Reflection(mirror, 6),
        Reflection(swap, 3) if outputs else None, hidden_dims=(16, 8), **options,
    )  # fmt: skip
    built.update_normalization(
        TensorDict({"policy": 3 * torch.randn(512, 6) + 1}, batch_size=[512])
    )
    return built


def of(x: torch.Tensor) -> TensorDict:
    return TensorDict({"policy": x}, batch_size=[len(x)])


def test_a_reflection_is_read_from_the_function_that_mirrors() -> None:
    read = Reflection(mirror, 6)
    assert read.source.tolist() == SOURCE.tolist()
    assert read.sign.tolist() == SIGN.tolist()
    assert read.orbits().tolist() == [0, 1, 2, 0, 1, 5]


def test_what_is_no_mirror_is_refused() -> None:
    with pytest.raises(ValueError, match="no signed permutation"):
        Reflection(lambda x: x[..., [0, 0, 1]], 3)
    with pytest.raises(ValueError, match="not the vector itself"):
        Reflection(lambda x: x[..., [1, 2, 0]], 3)


def test_halves_of_a_hand_worked_vector() -> None:
    halves = Halves(Reflection(mirror, 6))
    even, odd = halves.split(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
    root = 2.0**0.5
    torch.testing.assert_close(even, torch.tensor([[5 / root, -3 / root, 3.0]]))
    torch.testing.assert_close(odd, torch.tensor([[-3 / root, 7 / root, 6.0]]))


def test_splitting_keeps_length_and_joining_undoes_it() -> None:
    halves, x = Halves(Reflection(mirror, 6)), torch.randn(20, 6)
    even, odd = halves.split(x)
    torch.testing.assert_close(halves.join(even, odd), x)
    torch.testing.assert_close((even**2).sum(1) + (odd**2).sum(1), (x**2).sum(1))


def test_the_actor_commutes_with_the_mirror_to_the_last_bit() -> None:
    actor, x = model(True), torch.randn(200, 6)
    assert torch.equal(actor(of(mirror(x))), swap(actor(of(x))))
    assert actor(of(x)).abs().min(dim=0).values.max() > 0  # no output is constantly 0


def test_the_critic_does_not_see_the_mirror() -> None:
    critic, x = model(False), torch.randn(200, 6)
    assert torch.equal(critic(of(mirror(x))), critic(of(x)))
    assert critic(of(x)).std() > 0.01


def test_a_vector_with_only_odd_elements_works() -> None:
    turn = Reflection(lambda x: -x, 2)
    net, x = EquivariantMLP(turn, turn, (8,)), torch.randn(50, 2)
    assert torch.equal(net(-x), -net(x))
    assert net(x).std() > 0.01


def test_equivariance_survives_learning_and_any_equivariant_map_can_be_learned() -> None:
    actor, x = model(True), torch.randn(512, 6)
    target = torch.stack((x[:, 0] * x[:, 1], -x[:, 3] * x[:, 4], torch.sin(x[:, 5])), dim=1)
    torch.testing.assert_close(swap(target)[:, 2], -target[:, 2])
    wanted = (target + swap(torch.stack(
        (mirror(x)[:, 0] * mirror(x)[:, 1], -mirror(x)[:, 3] * mirror(x)[:, 4],
         torch.sin(mirror(x)[:, 5])), dim=1))) / 2  # fmt: skip
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.01)
    for _ in range(400):
        loss = ((actor(of(x)) - wanted) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05 * wanted.var()  # pyright: ignore[reportPossiblyUnboundVariable]
    assert torch.equal(actor(of(mirror(x))), swap(actor(of(x))))


def test_a_gradient_reaches_every_parameter() -> None:
    actor = model(True)
    actor(of(torch.randn(64, 6))).square().sum().backward()
    for name, parameter in actor.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_the_first_layers_signal_is_as_strong_as_in_a_plain_network() -> None:
    x = torch.randn(4096, 6)
    ours = torch.stack(
        [
            EquivariantMLP(Reflection(mirror, 6), Reflection(swap, 3), (64, 64))(x).std()
            for _ in range(10)
        ]
    ).mean()
    plain = torch.stack(
        [torch.nn.Sequential(
            torch.nn.Linear(6, 64), torch.nn.ELU(), torch.nn.Linear(64, 64), torch.nn.ELU(),
            torch.nn.Linear(64, 3))(x).std() for _ in range(10)]).mean()  # fmt: skip
    assert 0.5 < ours / plain < 2.0


def test_odd_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden sizes are \[7\]; expected even numbers"):
        EquivariantMLP(Reflection(mirror, 6), None, (7,))


def test_normalisation_is_that_of_the_data_and_its_mirror_image() -> None:
    norm, x = MirrorNormalization(Reflection(mirror, 6)), torch.randn(1000, 6) * 2 + 3
    norm.update(x)
    both = torch.cat((x, mirror(x)))
    torch.testing.assert_close(norm.mean, both.mean(0))
    torch.testing.assert_close(norm.std, both.std(0, unbiased=False))
    assert torch.equal(norm(mirror(x)), mirror(norm(x)))
    norm.update(torch.randn(500, 6))
    assert torch.equal(norm(mirror(x)), mirror(norm(x)))


def test_mirrored_joints_share_their_noise() -> None:
    noise = JointNoise(3, Reflection(swap, 3), init_std=0.5, std_range=(0.1, 0.9))
    noise.std_param.data = torch.tensor([0.3, 2.0])
    noise.update(torch.zeros(4, 3))
    torch.testing.assert_close(noise.std, torch.tensor([0.3, 0.3, 0.9]).expand(4, 3))


def test_noise_without_mirror_is_that_of_the_library() -> None:
    ours, theirs = JointNoise(3, None, init_std=0.5), GaussianDistribution(3, init_std=0.5)
    mean, actions = torch.randn(5, 3), torch.randn(5, 3)
    ours.update(mean)
    theirs.update(mean)
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy, theirs.entropy)


def test_a_state_dict_holds_all_that_was_learned() -> None:
    first = model(True, distribution_cfg={"class_name": JointNoise, "init_std": 0.5,
                                          "reflection": Reflection(swap, 3)})  # fmt: skip
    second = model(True, distribution_cfg={"class_name": JointNoise, "init_std": 0.5,
                                           "reflection": Reflection(swap, 3)})  # fmt: skip
    second.load_state_dict(first.state_dict())
    x = of(torch.randn(9, 6))
    assert torch.equal(first(x), second(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch calls this exporter old
def test_the_exported_graph_computes_the_same(tmp_path) -> None:
    actor = model(True, distribution_cfg={"class_name": JointNoise, "reflection": None})
    actor.update_normalization(of(3 * torch.randn(64, 6) + 1))
    actor.eval()
    graph = actor.as_onnx(verbose=False).eval()
    torch.onnx.export(graph, (torch.zeros(1, 6),), str(tmp_path / "a.onnx"), dynamo=False,
                      opset_version=18, input_names=["obs"], output_names=["action"],
                      dynamic_axes={"obs": {0: "n"}})  # fmt: skip
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    x = torch.randn(17, 6)
    (got,) = session.run(None, {"obs": x.numpy()})
    np.testing.assert_allclose(got, actor(of(x)).detach().numpy(), atol=1e-5)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_augmentation_appends_the_mirror_image() -> None:
    mirrors = {"policy": Reflection(mirror, 6), "action": Reflection(swap, 3)}
    x, a = torch.randn(4, 6), torch.randn(4, 3)
    obs, actions = augment(mirrors, None, of(x), a)
    assert obs.batch_size[0] == 8
    assert torch.equal(obs["policy"][4:], mirror(x)) and torch.equal(obs["policy"][:4], x)
    assert actions is not None and torch.equal(actions[4:], swap(a))
