"""Plots: what is drawn is what the log says; the picture is a PNG that shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from robot.config import UserError
from robot.log import Log
from robot.log_plot import DPI, WIDTH, draw, envelope, plot
from robot.messages import Mode
from robot.model import load_robot
from robot.modes import BIT
from robot.topics import make_codecs
from tests.logs import CLOCK_OFFSET_NS, series, walked, write_log

CODECS = make_codecs(load_robot("g1"))
MS = 1_000_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, standing_policy: Path) -> Log:
    """A run with every mode from PASSIVE to FAULT."""
    return Log(write_log(tmp_path_factory.mktemp("logs"), walked(standing_policy)))


def texts(axes) -> list[str]:
    """What is written in a panel or the lane, its legend included."""
    legend = axes.get_legend()
    return [t.get_text() for t in axes.texts] + [
        t.get_text() for t in (legend.get_texts() if legend else [])
    ]


def drawn(line) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of a line."""
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_a_panel_shows_its_field_with_name_unit_and_values(log):
    _, axes = draw(log, ["low_state.joint_pos[left_knee]"], between=(6.0, 7.0)).axes
    assert axes.get_title(loc="left") == "low_state.joint_pos[left_knee]"
    assert axes.get_title(loc="right") == "measured joint positions"
    assert axes.get_ylabel() == "rad" and axes.get_xlim() == (6.0, 7.0)
    read = log.read("low_state", ["joint_pos[3]"], between=(6.0, 7.0))
    (line,) = [line for line in axes.lines if len(drawn(line)[0]) > 2]
    seconds, values = drawn(line)
    np.testing.assert_array_equal(values, read["joint_pos[3]"])
    # Drawn when it was measured, 0.3 ms before the log received it.
    stamps = log.read("low_state", ["stamp_ns"], between=(6.0, 7.0))["stamp_ns"]
    expected = (stamps + CLOCK_OFFSET_NS - log.start_ns) * 1e-9
    np.testing.assert_allclose(seconds, expected, atol=1e-9)


def test_modes_and_faults_are_named_in_the_lane(log):
    figure = draw(log, ["low_cmd.mode", "status.state_age_ms"])
    lane, mode, _ = figure.axes
    written = texts(lane)
    assert {"STANDUP", "STAND", "POLICY", "HOLD", "FAULT"} <= set(written)
    assert "command_stale" in written and "target_lost" in written
    assert [t.get_text() for t in mode.get_yticklabels()] == [
        "PASSIVE", "DAMP", "STANDUP", "STAND", "POLICY", "HOLD", "FAULT",
    ]  # fmt: skip


def test_an_array_is_one_panel_whose_widest_lines_are_named(tmp_path):
    stamps = 10**9 + np.arange(300) * 2 * MS
    joint_pos = np.zeros((300, 29))
    joint_pos[:, 12:18] = np.sin(np.arange(300) / 9)[:, None] * np.arange(1, 7)
    low_state = series(CODECS["low_state"], stamps, joint_pos=joint_pos)
    log = Log(write_log(tmp_path, {"low_state": low_state}))
    _, axes = draw(log, ["low_state.joint_pos"]).axes
    assert len(axes.lines) == 29
    assert texts(axes) == [
        "waist_yaw", "waist_roll", "waist_pitch", "left_shoulder_pitch", "left_shoulder_roll",
        "left_shoulder_yaw", "23 that move less",
    ]  # fmt: skip


def test_a_line_breaks_where_messages_are_missing(tmp_path):
    ticks = np.concatenate([np.arange(100), np.arange(300, 400)])
    low_state = series(CODECS["low_state"], 10**9 + ticks * 2 * MS, tick=ticks)
    log = Log(write_log(tmp_path, {"low_state": low_state}))
    _, axes = draw(log, ["low_state.tick"]).axes
    values = drawn(axes.lines[0])[1]
    assert np.flatnonzero(np.isnan(values)).tolist() == [100] and len(values) == 201


def test_a_fault_is_marked_once_when_it_comes_up_but_not_before_arming(tmp_path):
    tilt, lost = BIT["tilt"], BIT["manager_lost"]
    faults = [lost, 0, tilt, tilt | BIT["clipping"], 0, tilt, 1 << 60]
    status = series(
        CODECS["status"], 10**9 + np.arange(7) * 1000 * MS,
        faults=faults, mode=[Mode.PASSIVE] + [Mode.STAND] * 6,
    )  # fmt: skip
    log = Log(write_log(tmp_path, {"status": status}))
    lane, axes = draw(log, ["status.tick"], between=(0.0, 7.0)).axes
    expected = ["PASSIVE", "STAND", "clipping", "fault 60", "tilt", "tilt"]
    assert sorted(texts(lane)) == expected
    marks = [drawn(line)[0] for line in axes.lines if len(drawn(line)[0]) == 2]
    assert [round(float(x[0])) for x in marks] == [2, 3, 5, 6]


@given(st.integers(0, 9000), st.integers(1, 300), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_thinned_series_keeps_extremes_ends_and_holes(count, columns, random):
    rng = np.random.default_rng(random.getrandbits(32))
    seconds, values = np.arange(count) * 0.002, rng.standard_normal(count)
    values[rng.random(count) < 0.01 * rng.integers(0, 2)] = np.nan
    thin_s, thin = envelope(seconds, values, columns)
    assert len(thin) <= 4 * columns + 1 if count >= 3 * columns else len(thin) == count
    assert (np.diff(thin_s) > 0).all()
    np.testing.assert_array_equal(thin, values[np.searchsorted(seconds, thin_s)])
    if count:
        assert thin_s[0] == seconds[0] and thin_s[-1] == seconds[-1]
        assert np.isnan(values).any() == np.isnan(thin).any()
    if count and not np.isnan(values).all():
        assert np.nanmin(thin) == np.nanmin(values) and np.nanmax(thin) == np.nanmax(values)


def test_the_picture_is_a_png_of_the_panels(log, tmp_path):
    out = tmp_path / "a.png"
    assert plot(log, ["low_state.imu_gyro", "low_cmd.joint_pos_target"], out) == out
    picture = imread(out)
    assert picture.shape[1] == round(WIDTH * DPI) and picture.shape[0] > 400
    assert (picture[..., :3].max(axis=2) < 0.5).mean() > 0.002, "nothing dark is drawn"
    assert (picture[0, :, :3] == 1).all(), "the border is white"


@pytest.mark.parametrize(
    ("fields", "name", "between", "says"),
    [
        ([], "a.png", None, "nothing to draw: expected at least one topic.field; topics: "),
        (["low_state.joint_po"], "a.png", None, "topic low_state has no numbers of name"),
        (
            ["low_state.tick"],
            "a.png",
            (100.0, 101.0),
            "in the time asked for; the log is 8.998",
        ),
        (["low_state.tick"], "a.jpg", None, "a.jpg: expected a file name that ends in .png"),
        (["low_state.tick"], "b/a.png", None, "does not exist"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_file(log, tmp_path, fields, name, between, says):
    with pytest.raises(UserError) as error:
        plot(log, fields, tmp_path / name, between)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
