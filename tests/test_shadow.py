"""Level R5: the log's own policy agrees to the bit; another one's disagreement is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robot.config import UserError
from robot.log import Log
from sim2real.shadow import figures, shadow, worst_moments
from tests.conftest import make_policy
from tests.test_resimulate import record, swaying  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, swaying: Path) -> Log:  # noqa: F811
    return Log(record(tmp_path_factory.mktemp("logs"), swaying, 6.6))


def test_the_logs_own_policy_disagrees_by_exactly_nothing(log, swaying, tmp_path):  # noqa: F811
    result = shadow(log, tmp_path, swaying)
    assert result["same_policy"] and result["steps"] == 330
    assert {"STANDUP", "STAND", "POLICY"} <= set(result["modes"])
    assert all(row["max_all"] == 0.0 for row in result["modes"].values())
    assert result["worst"] == [] and result["first_noticeable_s"] is None
    assert any("last bit" in note for note in result["notes"])


def test_another_policy_disagrees_where_and_when_it_does(log, tmp_path):
    """Its weights push one joint only: every other joint's target is the default pose."""
    weights = np.random.default_rng(1).normal(0, 0.004, (29, 100))
    weights[3] += 0.4
    result = shadow(log, tmp_path, make_policy(tmp_path, "other", weights))
    row = result["modes"]["POLICY and HOLD"]
    names = result["joint_names"]
    assert not result["same_policy"] and int(np.argmax(row["max"])) == 3
    assert row["max"][3] > 0.1 and row["noticeable_share"][3] > 0.0
    worst = result["worst"][0]
    assert worst["joint"] == names[3]
    assert abs(worst["difference_rad"]) == pytest.approx(row["max"][3])
    assert 5.5 < result["first_noticeable_s"] <= worst["time_s"] < 6.6


def test_figures_are_as_by_hand():
    got = figures(np.array([[0.3, 0.0], [-0.4, 0.05]]))
    assert got["max"] == [0.4, 0.05] and got["noticeable_share"] == [1.0, 0.0]
    assert got["rmse"][0] == pytest.approx(np.sqrt(0.125)) and got["noticeable_share_all"] == 1.0


def test_worst_moments_are_apart_and_signed():
    times = np.arange(0.0, 2.0, 0.1)
    difference = np.zeros((20, 2))
    difference[3, 0], difference[4, 0], difference[15, 1] = 0.5, 0.9, -0.7
    got = worst_moments(times, difference, ("a", "b"))
    assert [(m["joint"], round(m["time_s"], 1), m["difference_rad"]) for m in got] == [
        ("a", 0.4, 0.9),
        ("b", 1.5, -0.7),
    ]


def test_logs_in_which_no_policy_ran_are_refused(swaying, tmp_path):  # noqa: F811
    short = Log(record(tmp_path, swaying, 0.3))
    with pytest.raises(UserError, match="no policy moved the robot; its modes were"):
        shadow(short, tmp_path, swaying)
    without = Log(record(tmp_path, None, 0.3))
    with pytest.raises(UserError, match="no policy ran"):
        shadow(without, tmp_path, swaying)
