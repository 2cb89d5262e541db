"""Hindsight on a lockstep walk over kerbs: nearer to simulation's truth than the map online was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robot.cli import main
from robot.geomap import SCAN_XY
from robot.log import Log
from robot.log_writer import open_log
from robot.messages import Mode
from robot.model import load_robot
from robot.pilot import load_pilot
from robot.runs import load_run
from robot.terrain import terrain_of
from robot.topics import make_codecs
from sim2real.hindsight import Hindsight, Labels, Moment, cell_at, fuse
from sim2real.hindsight_figures import figures
from sim2real.lockstep import START_NS, Lockstep, LockstepOptions
from sim2real.replay import replay, setup_of

ROBOT = load_robot("g1")
PITCH = 0.04  # rad that the simulated camera looks higher than its calibration says
SECONDS = 17.0  # of which 6 s are the way to the walk
NOISE = {
    "pitch": [PITCH, PITCH], "roll_yaw": [0.0, 0.0], "position": [0.0, 0.0],
    "field_of_view": [1.0, 1.0], "holes": [0.0, 0.1], "latency_ms": [60.0, 60.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The log of a walk with eyes."""
    run = load_run(
        "sim",
        {"policy": "walk", "camera.source": "sim", "camera.noise": NOISE, "seed": 1,
         "sim.terrain.name": "kerbs", "sim.terrain.seed": 5, "sim.terrain.difficulty": 0.04,
         "log.folder": str(tmp_path_factory.mktemp("logs"))},
    )  # fmt: skip
    log = open_log(run, ROBOT, make_codecs(ROBOT), now_ns=START_NS, epoch_ns=10**18)
    lockstep = Lockstep(
        run, load_pilot(run, ROBOT), (0.5, 0.0, 0.0), LockstepOptions(log=log), robot=ROBOT
    )
    lockstep.run_for(SECONDS)
    log.close("done")
    assert lockstep.control.machine.mode == Mode.POLICY, "it walked to the end"
    return Log(log.folder)


@pytest.fixture(scope="module")
def looked_back(walked: Log, tmp_path_factory: pytest.TempPathFactory) -> tuple[Hindsight, Labels]:
    hindsight = Hindsight(walked, *setup_of(walked, tmp_path_factory.mktemp("setup")))
    return hindsight, hindsight.label()


def truth(log: Log, rows: np.ndarray) -> np.ndarray:
    """(n, 187) m, pelvis z minus ground z around each height map, as it really was."""
    records, truths = log["height_map"][rows], log["truth"]
    at = np.searchsorted(truths["stamp_ns"], records["now_ns"], "right") - 1
    pos, (w, x, y, z) = truths["base_pos_w"][at], truths["base_quat_wxyz"][at].T
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))[:, None]
    ahead, left = SCAN_XY.T
    places = np.stack(
        [pos[:, :1] + np.cos(yaw) * ahead - np.sin(yaw) * left,
         pos[:, 1:2] + np.sin(yaw) * ahead + np.cos(yaw) * left],
        axis=-1,
    )  # fmt: skip
    run = load_run("sim", {"sim.terrain.name": "kerbs", "sim.terrain.seed": 5,
                           "sim.terrain.difficulty": 0.04})  # fmt: skip
    return pos[:, 2:] - terrain_of(run.sim.terrain).heights(places)


def test_hindsight_is_nearer_to_the_truth_than_the_map_was(looked_back) -> None:
    hindsight, labels = looked_back
    records = hindsight.maps.records[labels.rows]
    judged = labels.known & (records["gate"] == 0)[:, None]
    assert judged.mean() > 0.2 and labels.known.mean() > 0.6
    real = truth(hindsight.log, labels.rows)
    label, online = (np.abs(real - h)[judged].mean() for h in (labels.height, records["height"]))
    ahead = judged & (SCAN_XY[:, 0] > 0.3)
    label_ahead, online_ahead = (
        np.abs(real - h)[ahead].mean() for h in (labels.height, records["height"])
    )
    print(f"all: label {label:.4f}, online {online:.4f} m; ahead: {label_ahead:.4f}, "
          f"{online_ahead:.4f} m; mount {labels.mount}")  # fmt: skip
    # The online map finds the camera's pitch, too, but has to walk for it.
    assert label < 0.01 and label < online
    assert label_ahead < 0.008 and label_ahead < 0.85 * online_ahead


def test_the_soles_tell_how_the_camera_really_sits(looked_back) -> None:
    mount = looked_back[1].mount
    assert mount.footholds >= 10
    assert mount.value[0] > 0.01 and abs(mount.value[0] - PITCH) < 2.5 * mount.std[0]
    assert mount.std[0] < 0.02 and (np.abs(mount.value[1:]) < 2.5 * mount.std[1:]).all()


def test_figures_say_how_far_the_online_map_was_off(looked_back) -> None:
    hindsight, labels = looked_back
    found = figures(labels, hindsight.maps.records)
    cells, feet = found["cells"], found["footholds"]
    assert (
        sum(row["n"] for name, row in cells.items() if "seen" in name or "newest" in name)
        == (cells["all"]["n"])
    )
    # A camera that looks higher than it says puts the ground too low, until the map has found it.
    records = hindsight.maps.records[labels.rows]
    new = labels.known & (records["cell_age"] < 0.05)
    begun = records["now_ns"] < START_NS + 8 * 10**9
    early, late = (
        float((labels.height - records["height"])[new & when[:, None]].mean())
        for when in (begun, ~begun)
    )
    print(f"bias in new cells: {early:.4f} m at first, {late:.4f} m later")
    assert early < -0.01 and abs(late) < 0.004 and cells["in the newest frame"]["bias"] < 0.0
    assert 0.0 < cells["all"]["mean"] < cells["all"]["p95"] < 0.2
    assert feet["all"]["n"] >= 10 and feet["all"]["mean"] < 0.05
    assert found["mount"]["pitch"]["value"] == labels.mount.value[0]
    online = hindsight.maps.records["height"][labels.rows]
    error = (labels.height - online)[
        labels.known & (hindsight.maps.records["gate"] == 0)[labels.rows, None]
    ]
    assert cells["all"]["mean"] == pytest.approx(np.abs(error).mean())


def test_the_command_writes_labels_that_numpy_reads(
    walked: Log, looked_back, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["log", "label", str(walked.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    hindsight, labels = looked_back
    assert told.pop("labels") == str(walked.path / "labels.npz")
    assert told == json.loads(json.dumps(figures(labels, hindsight.maps.records)))
    with np.load(walked.path / "labels.npz", allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["height"], labels.height.astype(np.float32))
        assert (
            kept["frame_seq"].tolist() == hindsight.maps.records["frame_seq"][labels.rows].tolist()
        )
        assert len(kept["foothold_error"]) == len(labels.footholds.sole)
    assert Log(walked.path).topics.keys() == walked.topics.keys(), "the log reads as before"


def test_a_lockstep_log_with_frames_replays_to_the_byte(walked: Log, tmp_path: Path) -> None:
    found = {stage["stage"]: stage for stage in replay(walked, tmp_path)["stages"]}
    assert found["perception"]["compared"] > 400
    assert {stage["different"] + stage["incomplete"] for stage in found.values()} == {0}


def test_a_log_without_frames_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run("sim", {"policy": None, "log.folder": str(tmp_path)})
    log = open_log(run, ROBOT, make_codecs(ROBOT), now_ns=START_NS, epoch_ns=10**18)
    Lockstep(run, None, options=LockstepOptions(log=log), robot=ROBOT).run_for(0.1)
    log.close("done")
    assert main(["log", "label", str(log.folder)]) == 2
    assert "got no frame.head, expected a log of a run with a camera" in capsys.readouterr().err


def test_two_maps_are_weighed_by_what_they_know() -> None:
    unseen = np.inf
    height, variance = fuse(
        np.array([0.0, 0.1, 0.0, 9.9, 0.0]), np.array([1e-4, 1e-4, 1e-4, unseen, unseen]),
        np.array([0.02, 9.9, 0.2, 0.3, 9.9]), np.array([1e-4, unseen, 3e-4, 2e-4, unseen]),
    )  # fmt: skip
    assert height[:4] == pytest.approx([0.01, 0.1, 0.0, 0.3])
    assert variance[:4] == pytest.approx([0.5e-4, 1e-4, 1e-4 + 0.01, 2e-4])
    assert variance[4] == np.inf


def test_a_place_is_in_the_cell_that_the_scan_has_there() -> None:
    here = Moment(0, np.array([2.0, 1.0, 0.7]), np.pi / 2)  # faces +y
    cell = cell_at(here, np.array([1.8, 1.5, 0.0]))  # 0.5 m ahead, 0.2 m to the left
    assert cell is not None and SCAN_XY[cell] == pytest.approx([0.5, 0.2])
    assert cell_at(here, np.array([2.0, 2.0, 0.0])) is None, "1 m ahead"
