"""Fixtures: policies to run, a private runtime directory, and processes that end with the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from policies.importers import import_policy
from policies.manifest import write_policy
from robot.model import load_robot

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "policies"
PUBLIC = {
    "ppo": SHARED / "holosoma_ppo_g1_29dof" / "ppo_g1_29dof.onnx",
    "fastsac": SHARED / "holosoma_fastsac_g1_29dof" / "fastsac_g1_29dof.onnx",
}


@pytest.fixture(scope="session")
def standing_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy file that answers everything with the default pose and stiff gains: it stands."""
    return make_policy(tmp_path_factory.mktemp("policy"), "standing", np.zeros((29, 100)))


def make_policy(folder: Path, name: str, weights: np.ndarray) -> Path:
    """A policy whose action is `weights` (29, 100) times the observation, about the stand pose.

    Made in the format of a public project and imported as one, so that the whole way is walked.
    """
    robot = load_robot("g1")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["actor_obs", "w"], ["action"], transB=1)],
        "main",
        [helper.make_tensor_value_info("actor_obs", TensorProto.FLOAT, [1, 100])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, [1, 29])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    metadata = {
        "dof_names": list(robot.joint_names),
        "kp": robot.stand_stiffness.tolist(),
        "kd": robot.stand_damping.tolist(),
        "command_ranges": {"lin_vel_x": [-1, 1], "lin_vel_y": [-1, 1], "ang_vel_yaw": [-1, 1]},
    }
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    (folder / "theirs.onnx").write_bytes(model.SerializeToString())
    out = folder / f"{name}.onnx"
    write_policy(out, *import_policy(folder / "theirs.onnx", robot, name))
    return out


@pytest.fixture(scope="session")
def public_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Imports a public policy by its short name; skips the test where the files are not at hand."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if not PUBLIC[name].exists():
            pytest.skip(f"the public policy {PUBLIC[name].name} is not beside this repository")
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / f"{name}.onnx"
            write_policy(made[name], *import_policy(PUBLIC[name], load_robot("g1"), name))
        return made[name]

    return get


@pytest.fixture(autouse=True)
def log_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logs of runs that a test starts lie in a folder of this test alone."""
    monkeypatch.setenv("PLEXUS_LOG_DIR", str(tmp_path / "logs"))
    return tmp_path / "logs"


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of this test alone."""
    folder = tmp_path / "rt"
    monkeypatch.setenv("PLEXUS_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return folder


class Launched:
    """A `plexus` command in a process of its own, with its output in files."""

    def __init__(self, arguments: tuple[str, ...], folder: Path) -> None:
        self.out_path, self.err_path = folder / "out.txt", folder / "err.txt"
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "robot.cli", *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT,
            )  # fmt: skip

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    def wait(self, timeout: float = 60.0) -> int:
        return self.process.wait(timeout)


@pytest.fixture
def launch(tmp_path: Path, runtime_dir: Path) -> Iterator[Callable[..., Launched]]:
    """Starts `plexus ARGS`; whatever runs in this test's runtime directory ends with the test."""
    started: list[Launched] = []

    def start(*arguments: str) -> Launched:
        folder = tmp_path / f"launch{len(started)}"
        folder.mkdir()
        started.append(Launched(arguments, folder))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
    for pid in processes_of(runtime_dir):
        os.kill(pid, signal.SIGKILL)


def processes_of(folder: Path) -> list[int]:
    """Ids of living processes whose command line names this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def eventually(check: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of `check`, asked again and again; fails after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := check():
            return value
        time.sleep(0.02)
    pytest.fail(f"not within {seconds} s: {check}")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, as training collects: sums depend on their number."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
