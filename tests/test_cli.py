"""The command line: a mistake is one clear sentence on stderr, exit code 2, and nothing is written."""

# ruff: noqa: E501 - sentences stand on one line, as they are printed

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest

from policies.importers import import_policy
from policies.manifest import read_policy, write_policy
from robot.cli import main, parse_velocity
from robot.config import CONFIGS, UserError
from robot.model import load_robot
from robot.nodes import NODES
from robot.topics import TOPICS
from tests.conftest import ROOT

# What the user typed, and what is said. {here} is the folder that the command is given in.
MISTAKES: dict[str, str] = {
    # Which run.
    "run nosuch": "run 'nosuch' is unknown; available: g1, g1-emulator, loopback, sim",
    "run sim --interface lo --hang": "--interface, --hang: for robots only; the driver of 'sim' is 'sim'",
    "run g1 --timing-factor 2": f"{CONFIGS}/runs/g1.yaml: (whole file): hardware runs with timing_factor 1 and without operator.automatic",
    "run g1 --lockstep": "--lockstep: driver 'unitree' is no simulation",
    "emulate g1 --domain 0": "--domain 0 is that of real robots; take another one, such as 1",
    "emulate g1 --fault nosuch:joint=x": "--fault nosuch:joint=x: got 'joint=x', expected key=number, for example joint=3",
    "doctor g1 --run sim": "--run sim: its driver is 'sim', expected a G1's",
    "run nosuch.yaml": "nosuch.yaml: no such file; available there: backwards.yaml, folder.yaml, lacking.yaml, list.yaml, typo.yaml, units.yaml",
    "run folder.yaml": "folder.yaml: not a regular file",
    # What it says.
    "run typo.yaml": "typo.yaml:4: sim.noise.joint_pso: unknown key (did you mean 'joint_pos'?); "
    "available: joint_pos, joint_vel, imu_quat, imu_gyro, imu_accel",
    "run units.yaml": "units.yaml:3: sim.actuator_delay_ms: got '2 ms', expected a valid number",
    "run list.yaml --command 0,0,0 --headless": "list.yaml:3: operator: got [1, 2], expected a mapping",
    # Which robot.
    "run lacking.yaml --lockstep": '{here}/lacking/robot.yaml:26: joints: "left_knee_joint" of g1.xml has no row; expected one',
    "run lacking.yaml": '{here}/lacking/robot.yaml:26: joints: "left_knee_joint" of g1.xml has no row; expected one',
    "run backwards.yaml": "{here}/backwards/robot.yaml:27: joints.0: left_hip_pitch_joint: position_limit [2.8798, -2.5307], expected lower < upper",
    # What the command line says instead.
    "run sim --seed -1": "command line: seed: got -1, expected greater than or equal to 0",
    "run sim --timing-factor 0.1": "command line: timing_factor: got 0.1, expected greater than or equal to 1",
    "run sim --timing-factor nan": "command line: timing_factor: got nan, expected a finite number",
    "run sim --seconds -5": "--seconds: got -5, expected more than 0",
    "run sim --seconds nan --lockstep": "--seconds: got nan, expected more than 0",
    "run sim --command 0.5,0": "--command: got '0.5,0', expected three numbers vx,vy,yaw_rate in m/s, m/s, rad/s, for example 0.5,0,0",
    "run sim --command fast": "--command: got 'fast', expected three numbers vx,vy,yaw_rate in m/s, m/s, rad/s, for example 0.5,0,0",
    "run sim --command nan,0,0": "--command: got 'nan,0,0', expected three numbers vx,vy,yaw_rate in m/s, m/s, rad/s, for example 0.5,0,0",
    "run sim --no-filter": "--no-filter: the safety filter can be switched off in --lockstep only",
    "run sim --lockstep --json none/out.json": "none/out.json: the folder {here}/none does not exist",
    "run sim --lockstep --json lacking": "lacking: is a folder, expected a file",
    "run sim --video none/a.mp4": "none/a.mp4: the folder {here}/none does not exist",
    # Where the console is.
    "run sim --console no --console-host a": "--console-host: got --console no beside it, expected a console",
    "run loopback --console-host 192.0.2.77": "console.host 192.0.2.77: no listening at 192.0.2.77: Cannot assign requested address; expected an address of this computer",
    # Which policy.
    "run sim --policy none.onnx": "{here}/none.onnx: no such file; available there: other.onnx, standing.onnx, theirs.onnx",
    "run sim --policy typo.yaml": "{here}/typo.yaml: not an ONNX file",
    "run sim --policy lacking": "{here}/lacking: not a regular file",
    "run sim --policy wlak": "--policy: got 'wlak', expected a file, none, or one that comes with Plexus; available: terrain-walk, walk",
    "run sim --policy theirs.onnx": "{here}/theirs.onnx: metadata 'plexus_manifest' occurs 0 times, expected once; "
    "available: dof_names, kp, kd, command_ranges; files of other projects are converted by `plexus policy import`",
    "run sim --policy other.onnx": "{here}/other.onnx: manifest: a policy for robot 'h1', expected 'g1'",
    "policy check other.onnx": "other.onnx: manifest: a policy for robot 'h1', expected 'g1'",
    "policy check standing.onnx --robot h1": "robot 'h1' is unknown; available: g1",
    "policy show none.onnx": "none.onnx: no such file; available there: other.onnx, standing.onnx, theirs.onnx",
    "policy show typo.yaml": "typo.yaml: not an ONNX file",
    "policy import typo.yaml": "typo.yaml: not an ONNX file",
    "policy import none.onnx": "none.onnx: no such file; available there: other.onnx, standing.onnx, theirs.onnx",
    "policy import theirs.onnx --out none/out.onnx": "none/out.onnx: the folder {here}/none does not exist",
    # Which topic.
    "echo nothing": "topic 'nothing' is unknown; available: " + ", ".join(t.name for t in TOPICS),
    "echo low_state": "no run is going on here; start one with `plexus run sim`",
    "echo low_state --count -1": "--count: got -1, expected more than 0",
    # Which log, and what of it.
    "log list nosuch": "nosuch: no such folder; expected one that holds logs",
    "log info typo.yaml": "typo.yaml: got no readable record; expected a log in MCAP",
    "log cat walked status --limit 0": "--limit: got 0, expected more than 0",
    "log plot walked low_state.joint_pos --out p.txt": "p.txt: expected a file name that ends in .png",
    "log plot walked status.mode --between 3 1": "walked: got no message of status.mode in the time asked for; the log is 8.990 s long",
    "log plot walked low_state.noise": "field 'low_state.noise': topic low_state has no numbers of name 'noise'; available: schema_hash, robot_id, instance, seq, stamp_ns, robot_time_ns, tick, joint_pos, joint_vel, joint_effort, imu_quat_wxyz, imu_gyro, imu_accel",
    "log export walked walked --to csv --out x": "--to csv: got 2 logs, expected one",
    "log export walked --to lerobot --out walked": "walked: is there already; expected a new or an empty folder",
    "replay walked --policy none.onnx": "none.onnx: no such file; available there: other.onnx, standing.onnx, theirs.onnx",
    "replay walked --json none/out.json": "none/out.json: the folder {here}/none does not exist",
    "replay walked --accept walked": "walked: exists already; a reference is never overwritten",
}  # fmt: skip

# The parser's own mistakes: its box names what was got and what there is.
PARSED: dict[str, tuple[str, ...]] = {
    "": ("run", "nodes", "console", "topics", "echo", "bench", "policy"),
    "walk": ("walk", "run", "nodes", "console", "topics", "echo", "bench", "policy"),
    "policy convert a.onnx": ("convert", "import", "show", "check"),
    "run sim --fast": ("--fast",),
    "run sim --seed x": ("--seed", "x"),
    "run sim --provider gpu": ("--provider", "gpu", "cpu", "cuda", "tensorrt"),
    "run sim --collisions some": ("--collisions", "some", "full", "feet"),
    "policy show": ("PATH",),
    "echo": ("STR",),
}

HELP = (
    "", "run", "nodes", "console", "topics", "echo", "bench", "policy", "policy import", "policy show",
    "policy check", "log", "log list", "log info", "log recover", "log cat", "log plot",
    "log export", "replay", "eval", "train", "emulate", "doctor", "policy sign", "policy verify",
)  # fmt: skip

# Of these also a real process: exit code and streams as the shell has them.
SPAWNED = ("run typo.yaml", "run lacking.yaml", "policy show none.onnx", "echo low_state", "walk")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, standing_policy: Path) -> Path:
    """A folder with good and bad files."""
    here = tmp_path_factory.mktemp("here")
    (here / "folder.yaml").mkdir()
    shutil.copytree(ROOT / "tests" / "data" / "logs" / "walk", here / "walked")
    run = "robot: g1\ndriver: sim\n"
    (here / "typo.yaml").write_text(run + "sim: {noise: {\n  joint_pso: 1}}\n")
    (here / "units.yaml").write_text(run + "sim: {actuator_delay_ms: 2 ms}\n")
    (here / "list.yaml").write_text(run + "operator: [1, 2]\n")
    text = (CONFIGS / "g1" / "robot.yaml").read_text()
    left_knee = re.search(r"  - \{name: left_knee_joint.*?\}\n", text, re.DOTALL)
    assert left_knee is not None
    lacking = text.replace(left_knee[0], "")
    lacking = re.sub(r"index: (\d+)", lambda m: f"index: {int(m[1]) - (int(m[1]) > 3)}", lacking)
    backwards = text.replace("[-2.5307, 2.8798]", "[2.8798, -2.5307]", 1)
    for name, content in (("lacking", lacking), ("backwards", backwards)):
        (here / name).mkdir()
        (here / name / "robot.yaml").write_text(content)
        shutil.copy(CONFIGS / "g1" / "g1.xml", here / name)
        robot = here / name / "robot.yaml"
        (here / f"{name}.yaml").write_text(f"robot: {robot}\ndriver: sim\n")
    shutil.copy(standing_policy, here)
    shutil.copy(standing_policy.parent / "theirs.onnx", here)
    model, manifest = import_policy(here / "theirs.onnx", load_robot("g1"), "other")
    write_policy(here / "other.onnx", model, manifest.model_copy(update={"robot": "h1"}))
    return here


def plexus(line: str, here: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "robot.cli", *line.split()],
        capture_output=True, text=True, cwd=here, stdin=subprocess.DEVNULL, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT),
             "PLEXUS_RUNTIME_DIR": str(here.parent / "runtime")},
    )  # fmt: skip


class Said(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture
def say(
    here: Path,
    runtime_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], Said]:
    """The command in this process, where an exception that gets out fails the test at once."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "200")

    def run(line: str) -> Said:
        before = contents(here)
        try:
            code = main(line.split())
        except SystemExit as end:
            code = end.code
        assert contents(here) == before, "something was written"
        assert not runtime_dir.exists() or not list(runtime_dir.iterdir()), "a run was begun"
        said = capsys.readouterr()
        return Said(code, str(said.out), str(said.err))

    return run


def contents(folder: Path) -> dict[str, float]:
    return {str(p): p.stat().st_mtime for p in folder.rglob("*")}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(say: Callable[[str], Said], here: Path, line: str):
    sentence = MISTAKES[line].replace("{here}", str(here))
    assert say(line) == Said(2, "", f"plexus: {sentence}\n")


@pytest.mark.parametrize("line", PARSED)
def test_the_parser_names_what_it_does_not_know(say: Callable[[str], Said], line: str):
    got = say(line)
    assert got.code == 2 and got.out == ""
    for word in PARSED[line]:
        assert word in got.err, got.err


@pytest.mark.parametrize("line", SPAWNED)
def test_a_process_ends_with_code_2_and_without_a_traceback(here: Path, line: str):
    got = plexus(line, here)
    assert (got.returncode, got.stdout) == (2, "")
    if line in MISTAKES:
        assert got.stderr == f"plexus: {MISTAKES[line].replace('{here}', str(here))}\n"
    assert got.stderr and "Traceback" not in got.stderr


@pytest.mark.parametrize("name", HELP)
def test_help_tells_every_option_in_words(say: Callable[[str], Said], name: str):
    got = say(f"{name} --help".strip())
    assert (got.code, got.err) == (0, "")
    lines = [line.strip("│ ") for line in got.out.splitlines()]
    shown = set()
    for at, line in enumerate(lines):
        if re.match(r"--\w", line):
            shown.add(line.split()[0].rstrip(","))
            words = (re.split(r"  +", line, maxsplit=1)[1:] or [lines[at + 1]])[0]
            words = re.sub(r"\(default: .*?\)|\(required\)", "", words).strip()
            assert len(words.split()) >= 2, f"{line!r} is not explained"
    if name == "run":
        assert shown == {
            "--policy", "--seconds", "--headless", "--command", "--arms", "--json", "--video", "--seed",
            "--collisions", "--lockstep", "--filter", "--provider", "--timing-factor", "--log",
            "--interface", "--hang", "--readonly", "--dry-run", "--unsigned-policy",
            "--console", "--console-host", "--gamepad",
            "--camera", "--rgb", "--terrain", "--terrain-seed", "--difficulty",
        }  # fmt: skip
    elif name == "":
        assert all(
            re.search(rf"\W {each} +[A-Z]", got.out) for each in HELP if each and " " not in each
        )


def test_a_log_is_shown_printed_and_run_again(say: Callable[[str], Said]):
    told = json.loads(say("log info walked --json").out)
    assert [row["mode"] for row in told["modes"]][-1] == "POLICY" and told["state"] == "finished"
    rows = [
        json.loads(x)
        for x in say("log cat walked status --fields mode --limit 2").out.split("\n")
        if x
    ]
    assert [row["mode"] for row in rows] == ["PASSIVE", "PASSIVE"]
    got = say("replay walked")
    assert (got.code, got.out.splitlines()[-1]) == (0, "R1: same")
    got = say("log recover walked")
    assert (got.code, got.out) == (0, "nothing to do\n")


def test_topics_as_people_and_programs_read_them(say: Callable[[str], Said]):
    rows = json.loads(say("topics --json").out)
    assert rows == [
        {"name": t.name, "message": t.message.__name__, "rate": t.rate, "publisher": t.publisher, "logged": t.logged}
        for t in TOPICS
    ]  # fmt: skip
    shown = say("topics").out
    assert all(t.name in shown and t.doc in shown for t in TOPICS)


def test_nodes_without_a_run(say: Callable[[str], Said]):
    rows = json.loads(say("nodes --json").out)
    assert rows == [{"name": row.name, "pid": None, "state": "not running"} for row in NODES]
    shown = say("nodes").out
    assert all(row.doc in shown for row in NODES)


def test_a_policy_says_what_it_is(say: Callable[[str], Said]):
    got = say("policy show standing.onnx")
    assert got.code == 0 and "standing" in got.out and "left_hip_pitch_joint" in got.out


def test_a_foreign_policy_is_imported_checked_and_run(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copy(here / "theirs.onnx", tmp_path)
    monkeypatch.chdir(tmp_path)
    imported = plexus("policy import theirs.onnx --name mine", tmp_path)
    assert imported.returncode == 0, imported.stderr
    assert re.fullmatch(
        r"theirs\.plexus\.onnx: mine, imported from theirs\.onnx; test vectors within [\de.+-]+\n"
        r"run it: plexus run sim --policy theirs\.plexus\.onnx\n",
        imported.stdout,
    )
    assert read_policy(tmp_path / "theirs.plexus.onnx").manifest.name == "mine"
    assert main(["policy", "check", "theirs.plexus.onnx"]) == 0
    assert re.fullmatch(
        r"theirs\.plexus\.onnx: fits g1; test vectors within [\de.+-]+\n", capsys.readouterr().out
    )
    line: str = "run sim --policy theirs.plexus.onnx --lockstep --seconds 0.5 --json out.json"
    assert main([*line.split()]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["stream_sha256"] in capsys.readouterr().out and report["seconds"] == 0.5


def test_an_import_that_fails_writes_nothing(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model = onnx.load(here / "theirs.onnx")
    del model.metadata_props[:]
    (tmp_path / "bare.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    assert main(["policy", "import", "bare.onnx"]) == 2
    got = capsys.readouterr().err
    assert got.startswith("plexus: bare.onnx: ") and len(got.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bare.onnx"]


def test_an_interrupt_in_lockstep_ends_without_a_traceback(launch, tmp_path: Path):
    run = launch(
        "run",
        "sim",
        "--policy",
        "none",
        "--lockstep",
        "--seconds",
        "1000",
        "--json",
        str(tmp_path / "a.json"),
    )
    end = time.monotonic() + 20.0
    while "no policy" not in run.err and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.0)
    run.process.send_signal(2)
    assert run.wait(10) == 130
    assert "Traceback" not in run.err and not (tmp_path / "a.json").exists()


def test_velocity_is_three_numbers():
    assert parse_velocity("0.5,0,-1") == [0.5, 0.0, -1.0]
    assert parse_velocity(" .5, 0 ,1e-1") == [0.5, 0.0, 0.1]
    for text in ("", "1,2,3,4", "1,2,inf", "1,2,500", "1;2;3"):
        with pytest.raises(UserError, match="expected three numbers vx,vy,yaw_rate"):
            parse_velocity(text)


def test_the_command_line_starts_without_what_takes_long_to_import():
    slow = ("mujoco", "torch", "onnxruntime", "matplotlib")
    code = f"import sys, robot.cli; print([name for name in {slow} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (out.stdout, out.stderr) == ("[]\n", "")
