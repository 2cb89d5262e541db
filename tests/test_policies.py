"""What pages are told of policies: the run's, those beside it, and why one would not run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.manifest import read_policy
from policies.signature import create_key, sign
from robot.choice import offered
from robot.console.policies import policy_lines, rows
from robot.node import RUN_FILE
from robot.runs import RunConfig, load_run, shipped_policies
from tests.test_console import House


@pytest.fixture
def run(tmp_path: Path, standing_policy: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    folder = tmp_path / "policies"
    folder.mkdir()
    shutil.copy(standing_policy, folder / "mine.onnx")
    shutil.copy(standing_policy.with_name("theirs.onnx"), folder)
    key = create_key(tmp_path / "key")
    sign(folder / "mine.onnx", tmp_path / "key")
    (tmp_path / "trusted").write_text(f"{key} anna\n")
    monkeypatch.setenv("PLEXUS_TRUSTED_KEYS", str(tmp_path / "trusted"))
    return load_run("loopback", {"policy": str(folder / "mine.onnx")})


def test_the_runs_policy_comes_first_and_each_file_once(run: RunConfig):
    assert run.policy
    (run.policy.parent / "again.onnx").symlink_to(run.policy)
    names = [path.name for path in offered(run)]
    shipped = [path.name for path in shipped_policies().values()]
    assert sorted(names[1:]) == sorted(["theirs.onnx", *shipped])
    assert {names[0]} <= {"mine.onnx", "again.onnx"}
    assert offered(load_run("loopback")) == list(shipped_policies().values())


def test_a_policy_tells_its_ranges_its_judgement_and_who_vouches_for_it(run: RunConfig):
    assert run.policy
    told = {one["file"]: one for one in rows(run)}
    mine, theirs, walk = told["mine.onnx"], told["theirs.onnx"], told["walk.onnx"]
    assert mine["id"] == f"{read_policy(run.policy).policy_id:016x}" and theirs["id"] == ""
    assert mine["signed"] == "anna" and mine["unsigned"] == mine["why"] == ""
    assert mine["ranges"] == {axis: [-1.0, 1.0] for axis in ("vx", "vy", "yaw_rate")}
    assert "is not signed" in walk["unsigned"] and walk["why"] == ""
    shipped = read_policy(shipped_policies()["walk"])
    assert walk["facts"]["sha256"] == shipped.sha256
    assert walk["facts"]["eval_survival"] == shipped.manifest.provenance["eval_survival"]
    assert "'plexus_manifest' occurs 0 times" in theirs["why"] and theirs["name"] == ""


def test_a_file_that_does_not_fit_the_run_says_why(run: RunConfig):
    slow = run.model_copy(update={"control_hz": 70})
    assert "step_dt is 0.02 s, expected a multiple of the control period" in next(rows(slow))["why"]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "rt")
    yield made
    made.close()


def test_pages_are_told_by_another_process(house: House, run: RunConfig):
    (house.node.directory / RUN_FILE).write_text(run.model_dump_json())
    assert house.http("GET", "/policies")[0] == 404
    status, _, body = house.http("GET", "/policies", Cookie=house.cookie())
    told = [json.loads(line) for line in body.splitlines()]
    assert status == 200 and told == json.loads(json.dumps(list(rows(run))))


def test_who_goes_away_ends_the_process(tmp_path: Path, run: RunConfig):
    (tmp_path / RUN_FILE).write_text(run.model_dump_json())
    lines = policy_lines(tmp_path)
    assert json.loads(next(lines))["file"] == "mine.onnx"
    lines.close()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = entry.read_bytes().split(b"\0") if entry.exists() else []
        assert str(tmp_path).encode() not in words
