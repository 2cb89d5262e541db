"""TerrainNet learns, goes on to the last bit, treats left and right alike; mistakes are said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from policies import terrain_train
from policies.terrain_data import save
from policies.terrain_model import CELLS, GRID, TerrainModel, loss, mirror
from policies.terrain_train import (
    DATA,
    TerrainOptions,
    TerrainTrainer,
    finish,
    is_terrain,
    load_terrain_recipe,
    tensors,
    train_terrain,
)
from policies.train import BEST, CURVES, newest_checkpoint
from policies.trials import HELD_OUT_SEED
from robot.cli import main
from robot.config import UserError
from robot.geomap import SCAN_XY
from robot.model import load_robot
from robot.terrain_net import load_net

SCALE = 0.001
RECIPE = load_terrain_recipe("terrain")
SMALL = RECIPE.model_copy(update={
    "streams": 2, "frames": 6, "total_steps": 2 * 6 * 12,
    "data": RECIPE.data.model_copy(update={"episodes": 5}),
})  # fmt: skip


def walk(seed: int, n: int = 30) -> dict[str, np.ndarray]:
    """Made up: the map's ground is 5 cm too high ahead of the robot."""
    rng = np.random.default_rng(seed)
    prior = 0.75 + 0.02 * rng.standard_normal((n, CELLS)).astype(np.float32)
    error = np.where(SCAN_XY[:, 0] > 0.01, 0.05, 0.0).astype(np.float32)
    return {
        "steps": rng.integers(0, 3000, (n, 48, 64)).astype(np.uint16),
        "state": rng.standard_normal((n, 19)).astype(np.float32),
        "prior_height": prior, "prior_std": np.full((n, CELLS), 0.03, np.float32),
        "prior_age": np.zeros((n, CELLS), np.float32), "height": prior + error,
        "time": np.arange(n, dtype=np.float32) / 30,
    }  # fmt: skip


@pytest.fixture
def data() -> list[dict[str, np.ndarray]]:
    torch.set_num_threads(1)
    return [walk(seed) for seed in range(5)]


def test_an_untrained_network_says_what_the_map_says():
    frames = {name: value[None] for name, value in tensors(walk(0), SCALE).items()}
    torch.manual_seed(0)
    net = TerrainModel()
    prior = [frames[name] for name in ("prior_height", "prior_std", "prior_age")]
    height, logvar, h = net.sequence(
        frames["depth"], frames["valid"], frames["state"], torch.zeros(1, 1, 256), *prior
    )
    assert (height - prior[0]).abs().max() < 0.02
    assert ((0.5 * logvar).exp() / prior[1]).log().abs().max() < 0.1
    assert height.shape == logvar.shape == (1, 30, CELLS) and h.shape == (1, 1, 256)


def test_the_mirror_is_its_own_inverse():
    frames = tensors(walk(1), SCALE)
    twice = mirror(mirror(frames))
    assert all(torch.equal(twice[name], value) for name, value in frames.items())


def test_the_mirrored_picture_shows_the_mirrored_places():
    """Pixels put into the pelvis frame by the state's camera: left becomes right, and no more."""
    rng = np.random.default_rng(4)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    given = walk(2, n=1)
    given["state"][0, 9:15] = np.concatenate([turn[:, 0], turn[:, 1]])
    given["steps"][:] = rng.integers(300, 2900, (1, 48, 64))
    frames = tensors(given, SCALE)
    fx, fy, cx, cy = load_robot("g1").cameras["head"].intrinsics
    v, u = np.mgrid[:48, :64] + 0.5
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones((48, 64))], axis=-1)

    def places(frames: dict[str, torch.Tensor]) -> np.ndarray:
        state = frames["state"][0].numpy()
        right, down = state[9:12], state[12:15]
        axes = np.stack([right, down, np.cross(right, down)], axis=1)
        z = frames["depth"][0].numpy()[..., None] * 3.0
        return (rays * z) @ axes.T + state[15:18]

    seen, mirrored = places(frames), places(mirror(frames))
    np.testing.assert_allclose(mirrored[:, ::-1], seen * [1, -1, 1], atol=1e-5)
    image = mirror(frames)
    np.testing.assert_array_equal(
        image["height"][0].reshape(GRID), frames["height"][0].reshape(GRID).flip(0)
    )
    gravity, gyro, velocity = frames["state"][0, :9].reshape(3, 3).numpy()
    np.testing.assert_allclose(image["state"][0, :3], gravity * [1, -1, 1])
    np.testing.assert_allclose(image["state"][0, 3:6], gyro * [-1, 1, -1])  # an axial vector
    np.testing.assert_allclose(image["state"][0, 6:9], velocity * [1, -1, 1])


def test_heights_learn_from_errors_and_deviations_from_likelihood():
    height = torch.tensor([0.1], requires_grad=True)
    logvar = torch.tensor([0.0], requires_grad=True)
    total, error = loss(height, logvar, torch.tensor([0.3]), weight=2.0)
    total.backward()
    assert error.item() == pytest.approx(0.2)
    assert total.item() == pytest.approx(0.2 / 0.1 + 0.04 / 0.1 + 2.0 * 0.5 * 0.04)
    assert height.grad is not None and logvar.grad is not None
    assert height.grad.item() == pytest.approx(-10.0 - 2 * 0.2 / 0.1)  # not of the likelihood
    assert logvar.grad.item() == pytest.approx(2.0 * 0.5 * (1 - 0.04))


def test_a_short_training_lowers_the_error_below_the_maps(data):
    recipe = SMALL.model_copy(update={"total_steps": 2 * 6 * 150, "seed": 2})
    trainer = TerrainTrainer(recipe, data, SCALE)
    before, _ = trainer.judge()
    rows = [trainer.iterate() for _ in range(trainer.iterations)]
    after, wide = trainer.judge()
    assert before == pytest.approx(0.05 * 8 / 17, abs=0.01)
    assert after < 0.75 * before and rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["error/map"] == pytest.approx(0.05 * 8 / 17, rel=1e-3)
    assert 0.1 < wide < 10.0


def test_it_goes_on_to_the_last_bit(data, tmp_path: Path):
    straight = TerrainTrainer(SMALL, data, SCALE)
    for _ in range(8):
        straight.iterate()
    broken = TerrainTrainer(SMALL, data, SCALE)
    for _ in range(5):
        broken.iterate()
    broken.save(tmp_path / "5.pt")
    resumed = TerrainTrainer(SMALL, data, SCALE)
    resumed.load(tmp_path / "5.pt")
    for _ in range(3):
        resumed.iterate()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert torch.equal(straight.h, resumed.h) and resumed.iteration == 8
    assert [row["loss"] for row in straight.rows] == [row["loss"] for row in resumed.rows]


def test_streams_follow_a_walk_and_say_where_one_begins(data):
    trainer = TerrainTrainer(SMALL, data, SCALE)
    streams = trainer.streams
    for _ in range(12):
        before = streams.at.copy()
        _, first = streams.next()
        for row, old, begins in zip(streams.at, before, first.tolist(), strict=True):
            goes_on = row[0] == old[0] and row[1] == old[1] + 6 and row[2] == old[2]
            assert goes_on or (begins and row[1] == 6)
            assert not begins or row[1] == 6


def small_run(out: Path, data: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks that are there already are not made again."""
    (out / DATA).mkdir(parents=True)
    for i, frames in enumerate(data):
        save(out / DATA / f"{i:05d}.npz", frames)
    monkeypatch.setattr(terrain_train, "generate", lambda work, jobs: iter(()))


def test_a_run_leaves_checkpoints_curves_and_a_network(
    data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    small_run(out, data, monkeypatch)
    path = train_terrain(SMALL, out, TerrainOptions(judge_iterations=4))
    assert load_net(path, load_robot("g1").cameras["head"]).file.about["provenance"]["frames"] > 0
    assert (out / BEST).exists() and (out / CURVES).exists() and newest_checkpoint(out)
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    again = finish(out, SMALL).read_bytes()
    assert again == path.read_bytes()
    assert is_terrain(out / "recipe.yaml") and is_terrain("terrain") and not is_terrain("walk")
    with pytest.raises(UserError, match="holds a run already"):
        train_terrain(SMALL, out)
    with pytest.raises(UserError, match="begun with another recipe"):
        train_terrain(SMALL, out, TerrainOptions(resume=True, seed=9))


def test_a_checkpoint_of_another_network_is_refused(data, tmp_path: Path):
    TerrainTrainer(SMALL, data, SCALE).save(tmp_path / "a.pt")
    other = TerrainTrainer(SMALL.model_copy(update={"prior": False}), data, SCALE)
    with pytest.raises(UserError, match=r"a.pt: does not fit this recipe"):
        other.load(tmp_path / "a.pt")


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = (terrain_train.RECIPES / "terrain.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("seed: 1\n", f"seed: {HELD_OUT_SEED}\n"))
    assert main(["train", str(path)]) == 2
    assert "is the judge's; expected one below" in capsys.readouterr().err
    path.write_text(text.replace("streams: 8", "stream: 8"))
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "stream" in said and str(path) in said and "Traceback" not in said
    assert main(["train", "terrain", "--device", "cuda"]) == 2
    assert "--envs and --device: TerrainNet has neither" in capsys.readouterr().err
