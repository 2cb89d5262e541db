"""Run files: which there are, which are refused, and the rules between their values."""

# ruff: noqa: E501 - sentences stand on one line, as they are printed

from __future__ import annotations

from pathlib import Path

import pytest

from robot.config import UserError
from robot.model import load_robot
from robot.runs import RUNS, RunConfig, load_run, run_path, shipped_policies, softened

GOOD = "robot: g1\ndriver: sim\n"


def said(folder: Path, text: str) -> str:
    path = folder / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_run(path)
    return str(error.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_run_of_the_repository_is_valid(path: Path):
    run = load_run(path.stem)
    assert run.simulated is (path.stem != "g1") and run.period_ns == 2_000_000


def test_simulation_is_noisy_delayed_and_limited_by_default():
    sim = load_run("sim").sim
    assert all(value > 0.0 for value in sim.noise.model_dump().values())
    assert sim.actuator_delay_ms > 0.0 and sim.corner_speed < 1.0 and sim.collisions == "full"


def test_an_unknown_run_lists_those_there_are():
    with pytest.raises(
        UserError, match=r"^run 'simm' is unknown; available: g1, g1-emulator, loopback, sim$"
    ):
        run_path("simm")


def test_a_path_is_taken_as_it_is(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        GOOD + "control_hz: 1000\ntarget_wait_ms: 0\nsim: {physics_dt: 0.001}\n"
    )
    assert load_run(tmp_path / "mine.yaml").period_ns == 1_000_000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sim: {physics_dt: 0.0015}",
         "a.yaml: (whole file): sim.physics_dt is 0.0015 s; expected a whole fraction of the control period, 0.002 s"),
        ("sim: {physics_dt: 0.004}",
         "a.yaml: (whole file): sim.physics_dt is 0.004 s; expected a whole fraction of the control period, 0.002 s"),
        ("target_wait_ms: 2",
         "a.yaml: (whole file): target_wait_ms is 2; expected less than the control period, 2 ms"),
        ("driver: g1\n", "a.yaml:3: key 'driver' is given twice"),
        ("control_hz: 10", "a.yaml:3: control_hz: got 10, expected greater than or equal to 50"),
        ("control_hz: 500.0", "a.yaml:3: control_hz: got 500.0, expected a valid integer"),
        ("control_hz: 500.5", "a.yaml:3: control_hz: got 500.5, expected a valid integer"),
        ("timing_factor: 0.5", "a.yaml:3: timing_factor: got 0.5, expected greater than or equal to 1"),
        ("timing_factor: .inf", "a.yaml:3: timing_factor: got inf, expected a finite number"),
        ("seed: -1", "a.yaml:3: seed: got -1, expected greater than or equal to 0"),
        ("provider: gpu", "a.yaml:3: provider: got 'gpu', expected 'cpu', 'cuda' or 'tensorrt'"),
        ("sim: {noise: {imu_gyro: -0.1}}",
         "a.yaml:3: sim.noise.imu_gyro: got -0.1, expected greater than or equal to 0"),
        ("sim:\n  noise:\n    imu_giro: 0.1",
         "a.yaml:5: sim.noise.imu_giro: unknown key (did you mean 'imu_gyro'?); "
         "available: joint_pos, joint_vel, imu_quat, imu_gyro, imu_accel"),
        ("sim: {collisions: none}", "a.yaml:3: sim.collisions: got 'none', expected 'full' or 'feet'"),
        ("sim: {corner_speed: 0}", "a.yaml:3: sim.corner_speed: got 0, expected greater than 0"),
        ("operator: {velocity: [0.5, 0]}",
         "a.yaml:3: operator.velocity.2: missing; expected a value here"),
        ("operator: {velocity: 0.5}", "a.yaml:3: operator.velocity: got 0.5, expected a valid list"),
        ("realtime: {fifo_priority: 99}",
         "a.yaml:3: realtime.fifo_priority: got 99, expected less than or equal to 98"),
        ("camera: {rgb: true}",
         "a.yaml: (whole file): camera.rgb with camera none: expected camera sim or replay"),
        ("polices: x.onnx",
         "a.yaml:3: polices: unknown key (did you mean 'policy'?); available: name, robot, driver, "
         "control_hz, timing_factor, target_wait_ms, provider, policy, unsigned_policy, seed, realtime, "
         "operator and 6 more"),
    ],
)  # fmt: skip
def test_rules_of_a_run(tmp_path, text: str, sentence: str):
    assert said(tmp_path, GOOD + text) == sentence


UNITREE = "robot: g1\ndriver: unitree\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("timing_factor: 2.0",
         "a.yaml: (whole file): hardware runs with timing_factor 1 and without operator.automatic"),
        ("operator: {automatic: true}",
         "a.yaml: (whole file): hardware runs with timing_factor 1 and without operator.automatic"),
        ("unitree: {emulator: true}",
         "a.yaml:3: unitree: emulator: expected a domain other than 0 and a loopback network, so that no "
         "real robot can be meant; got domain 0, network 192.168.123.0/24"),
        ("unitree: {emulator: true, domain: 1}",
         "a.yaml:3: unitree: emulator: expected a domain other than 0 and a loopback network, so that no "
         "real robot can be meant; got domain 1, network 192.168.123.0/24"),
        ("unitree: {readonly: true, dry_run: true}",
         "a.yaml:3: unitree: readonly and dry_run: expected one of them at most"),
        ("unitree: {stand_share: 0}", "a.yaml:3: unitree.stand_share: got 0, expected greater than 0"),
    ],
)  # fmt: skip
def test_rules_of_a_robot(tmp_path, text: str, sentence: str):
    assert said(tmp_path, UNITREE + text) == sentence


def test_a_hanging_robot_stands_up_softly():
    robot = load_robot("g1")
    run = load_run("g1", {"unitree.stand_share": 0.3})
    assert (softened(robot, run).stand_stiffness == 0.3 * robot.stand_stiffness).all()
    assert softened(robot, load_run("sim")) is robot and softened(robot, load_run("g1")) is robot


def test_a_driver_must_be_one_of_ours(tmp_path):
    assert said(tmp_path, "robot: g1\ndriver: mujoco\n") == (
        "a.yaml:2: driver: got 'mujoco', expected 'sim', 'loopback' or 'unitree'"
    )


def test_without_physics_its_step_does_not_matter():
    run = RunConfig(robot="g1", driver="loopback", control_hz=2000, target_wait_ms=0)
    assert run.period_ns == 500_000


@pytest.mark.parametrize("hz", [50, 100, 250, 500])
def test_every_whole_multiple_of_the_physics_step_is_a_period(hz: int):
    assert RunConfig(robot="g1", driver="sim", control_hz=hz).period_ns == 10**9 // hz


def test_overrides_reach_into_the_file():
    run = load_run("sim", {"seed": 7, "sim.collisions": "feet", "operator.velocity": [0.5, 0, 0]})
    assert (run.seed, run.sim.collisions, run.operator.velocity) == (7, "feet", (0.5, 0.0, 0.0))
    assert run.sim.noise == load_run("sim").sim.noise and run.operator.automatic


def test_a_run_survives_the_way_to_its_processes():
    run = load_run("sim", {"policy": "/a/b.onnx", "operator.velocity": [0.5, 0, 0]})
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


def test_a_policy_that_comes_with_plexus_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "walk").mkdir()
    file = tmp_path / "walk" / "walk.onnx"
    file.write_bytes(b"")
    monkeypatch.setattr("robot.runs.SHIPPED", tmp_path)
    assert shipped_policies() == {"walk": file}
    assert load_run("sim", {"policy": "walk"}).policy == file
    assert load_run("sim", {"policy": "other.onnx"}).policy == Path("other.onnx")
    assert load_run("sim", {"policy": None}).policy is None
