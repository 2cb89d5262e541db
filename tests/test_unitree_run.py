"""The G1's emulator and the whole runtime in their processes: a start, a walk, kill -9, doctor.

Order and final state are asserted; budgets are those of the stated timing factor.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds")

from robot.cli import main
from robot.log import Log
from robot.messages import Mode
from robot.model import load_robot
from robot.runs import load_run
from sim2real.replay import ControlReplay
from tests.conftest import ROOT, eventually
from tests.test_run import Watch, nodes_state
from tests.unitree_rig import DOMAIN

RUN_DOMAIN = DOMAIN + 100  # beside the stepped ones


class FreeEmulator:
    """`plexus emulate g1` on its own clock, which takes orders."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.err_path = folder / "emulator.txt"
        with self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "robot.cli", "emulate", "g1", "--orders", *options,
                 "--domain", str(RUN_DOMAIN)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, cwd=ROOT, text=True,
            )  # fmt: skip
        self.order()  # answered once it is there: a driver waits 3 s for a robot, no longer

    def order(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.err_path.read_text()
        return json.loads(line)


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[FreeEmulator]:
    made = FreeEmulator(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()
    for pipe in (made.process.stdin, made.process.stdout):
        if pipe:
            pipe.close()


@pytest.fixture
def run_file(tmp_path: Path) -> str:
    """configs/runs/g1-emulator.yaml on this test's own domain."""
    text = (ROOT / "configs/runs/g1-emulator.yaml").read_text()
    path = tmp_path / "g1-emulator.yaml"
    path.write_text(text.replace("domain: 1\n", f"domain: {RUN_DOMAIN}\n"))
    return str(path)


@pytest.fixture
def watch(runtime_dir: Path) -> Iterator[Watch]:
    runtime_dir.mkdir(mode=0o700)
    made = Watch(runtime_dir)
    yield made
    made.close()


def test_only_one_file_differs_between_robot_emulator_and_simulation():
    robot, emulator, sim = (load_run(name) for name in ("g1", "g1-emulator", "sim"))
    assert robot.robot == emulator.robot == sim.robot == "g1"
    assert robot.driver == emulator.driver == "unitree" and sim.driver == "sim"
    assert (robot.simulated, emulator.simulated) == (False, True)
    assert robot.timing_factor == 1.0 and not robot.operator.automatic
    assert robot.unitree.interface is None and not robot.unitree.hang and robot.unitree.domain == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run g1", "no network interface is named; name the one the robot is connected to"),
        (
            "run g1 --interface lo",
            "'lo' has the address 127.0.0.1; expected one in the robot's net",
        ),
        ("run g1 --interface eth99 --hang", "network interface 'eth99' is unknown; available: "),
    ],
)
def test_a_wrong_interface_is_one_sentence_before_any_process_starts(capsys, words: str, said: str):
    assert main([*words.split(), "--headless"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("plexus: ") and said in err[-1] and "Traceback" not in "".join(err)


def test_doctor_finds_the_emulator_well_and_its_owner_in_the_way(emulator, run_file, launch):
    emulator.order(fault={"temperature": {"joint": 3, "degrees": 118}})
    told = launch("doctor", "g1", "--run", run_file, "--seconds", "2")
    assert told.wait(90) == 1
    out = told.out
    for name in ("interface", "states", "mode_machine", "commands", "gravity", "joint limits"):
        assert any(line.split("│")[2].strip() == name for line in out.splitlines() if "│" in line)
    rows = {line.split("│")[2].strip(): line.split("│")[1].strip()
            for line in out.splitlines() if line.count("│") >= 5}  # fmt: skip
    assert rows["interface"] == rows["CRC"] == rows["mode_machine"] == rows["commands"] == "ok"
    assert rows["gravity"] == rows["upright"] == rows["repetitions"] == rows["battery"] == "ok"
    assert rows["owner"] == "NOT OK" and rows["temperatures"] == "NOT OK"
    assert "--hang" in out and "left_knee_joint" in out
    before = emulator.order()
    assert before["received"] == 0 and before["service"] == "ai", "nothing was commanded"


@pytest.mark.acceptance
def test_kill_9_of_control_and_the_motors_damp_by_themselves(emulator, run_file, launch, watch):
    launch("run", run_file, "--policy", "none", "--headless", "--log", "no")
    watch.until(Mode.STAND, 90.0)
    emulator.order(reset=True)
    instance = watch.status.instance
    os.kill(nodes_state()["control"]["pid"], signal.SIGKILL)
    eventually(lambda: emulator.order()["timed_out"], 10.0)
    worst = emulator.order()
    assert worst["peak_torque"] <= 1.0 and worst["peak_speed"] <= 1.0, "no jerk"
    # A new control comes up, and nothing moves until somebody arms it.
    eventually(lambda: watch.mode is not None and watch.status.instance != instance, 40.0)
    assert watch.mode == Mode.PASSIVE
    assert emulator.order()["peak_torque"] <= 1.0


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("fault", "values", "words"),
    [
        ("motor_fault", {"joint": 3, "bits": 1}, "left_knee_joint: overcurrent"),
        ("off", {}, "no state from the robot for 200 ms"),
        ("second_writer", {}, "somebody else commands this robot"),
    ],
)
def test_free_running_the_order_and_the_end_are_the_same(
    emulator, run_file, launch, watch, fault, values, words
):
    launch("run", run_file, "--policy", "none", "--headless", "--log", "no")
    watch.until(Mode.STANDUP, 90.0)
    emulator.order(fault={fault: values}, reset=True)
    watch.until(Mode.FAULT, 20.0)
    assert words in watch.status.reason
    emulator.order(fault={fault: None})
    assert watch.mode == Mode.FAULT
    assert [mode for _, mode in watch.seen][-2:] == [Mode.STANDUP, Mode.FAULT]
    assert emulator.order()["peak_torque"] <= 1.0


@pytest.mark.acceptance
def test_a_minute_of_walking_through_dds_and_its_log_replays(
    emulator, run_file, launch, tmp_path, log_dir
):
    """The policy that comes with Plexus, on a computer that may be half as fast."""
    report = tmp_path / "out.json"
    run = launch(
        "run", run_file, "--policy", "walk", "--unsigned-policy",
        "--seconds", "130", "--headless", "--command", "0.5,0,0", "--json", str(report),
    )  # fmt: skip
    assert run.wait(300) == 0, run.err
    got = json.loads(report.read_text())
    assert got["fell"] is False and got["modes"][-1][1] == "POLICY", got
    assert got["mean_velocity_b"][0] == pytest.approx(0.5, abs=0.1)
    log = Log(got["log"])
    truth, status = log["truth"], log["status"]
    walking = truth["stamp_ns"] >= status["stamp_ns"][status["mode"] == Mode.POLICY][0]
    assert np.ptp(truth["sim_time_ns"][walking]) >= 60e9
    again = ControlReplay(log, load_run(run_file), load_robot("g1"))()
    assert again.different == 0 and again.incomplete == 0
