"""Episodes: the right stretches, on a grid that pairs states and commands, with honest clocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from robot import log_episodes
from robot.log import Log
from robot.log_episodes import find_episodes, make_grid, resample, tick_ns
from robot.messages import EventKind, Mode
from robot.model import load_robot
from robot.topics import make_codecs
from tests.logs import CLOCK_OFFSET_NS, series, walked, write_log

CODECS = make_codecs(load_robot("g1"))
START, TICK = 10**9, 2_000_000  # ns
JOINTS = 29

MakeLog = Callable[..., Log]


@pytest.fixture
def make_log(tmp_path: Path) -> MakeLog:
    """A log whose numbers say where they come from: joint_pos is the tick, its target tick + 0.5.

    Args of the function: mode of each tick; lateness of each, in ns; ticks that lack the state,
    the command; every how many ticks the policy is asked, 0 for never; tick and kind of marks.
    """

    def make(
        modes: ArrayLike, late_ns: ArrayLike = 0, no_state: Any = (), no_cmd: Any = (),
        asked_every: int = 10, marks: Any = (),
    ) -> Log:  # fmt: skip
        modes = np.asarray(modes)
        ticks = np.arange(len(modes))
        stamps = START + ticks * TICK + np.broadcast_to(late_ns, len(ticks)).astype(np.int64)
        rows = np.repeat(ticks[:, None], JOINTS, axis=1)
        topics = {
            "low_state": series(
                CODECS["low_state"], stamps, tick=ticks, joint_pos=rows, joint_vel=rows + 0.25
            ),
            "low_cmd": series(
                CODECS["low_cmd"], stamps, tick=ticks, state_tick=ticks, mode=modes,
                joint_pos_target=rows + 0.5, clipped=ticks % 20 == 0,
            ),
            "intervention": series(CODECS["intervention"], stamps[::20], tick=ticks[::20]),
        }  # fmt: skip
        for topic, lacking in (("low_state", no_state), ("low_cmd", no_cmd)):
            topics[topic] = [m for i, m in enumerate(topics[topic]) if i not in lacking]
        if marks:
            at, kinds = zip(*marks, strict=True)
            topics["event.console"] = series(
                CODECS["event.console"], START + np.array(at) * TICK, kind=kinds
            )
        if asked_every:
            asked = ticks[(modes == Mode.POLICY) & (ticks % asked_every == 0)]
            velocity = np.repeat(asked[:, None], 3, axis=1)
            topics["policy_input"] = series(
                CODECS["policy_input"], stamps[asked], velocity=velocity
            )
        return Log(write_log(tmp_path, topics))

    return make


STAND, POLICY, HOLD = int(Mode.STAND), int(Mode.POLICY), int(Mode.HOLD)


def test_each_stretch_in_policy_or_hold_is_an_episode(make_log: MakeLog):
    log = make_log([STAND] * 100 + [POLICY] * 495 + [HOLD] * 105 + [STAND] * 50 + [HOLD] * 100)
    first, second = find_episodes(log, 50)
    # 600 ticks of 2 ms at 50 Hz; the frames lie in the middle of ticks 100, 110, 120, ...
    assert len(first.grid_ns) == 60 and len(second.grid_ns) == 10
    begin = START + CLOCK_OFFSET_NS + 100 * TICK + TICK // 2
    np.testing.assert_array_equal(first.grid_ns, begin + np.arange(60) * 20_000_000)

    columns, card = resample(first)
    ticks = 100.0 + 10 * np.arange(60)
    assert columns["observation.state"].shape == (60, 2 * JOINTS + 10)
    np.testing.assert_array_equal(columns["observation.state"][:, 3], ticks)
    np.testing.assert_array_equal(columns["observation.state"][:, JOINTS], ticks + 0.25)
    np.testing.assert_array_equal(columns["action"][:, 7], ticks + 0.5)
    # The policy is asked in POLICY only; in HOLD the last word stands.
    np.testing.assert_array_equal(columns["observation.command"][:, 0], np.minimum(ticks, 590))
    assert card["modes"] == {"POLICY": 50, "HOLD": 10}
    assert card["interventions"] == 30  # ticks 100, 120, ... 680
    assert card["clipped_share"] == 0.5 and card["paired_share"] == 1.0


def test_the_columns_beside_say_which_sample_and_when(make_log: MakeLog):
    (episode,) = find_episodes(make_log([STAND] * 5 + [POLICY] * 100), 50)
    columns, _ = resample(episode)
    ticks = 5 + 10 * np.arange(10)
    stamps = START + CLOCK_OFFSET_NS + ticks * TICK
    np.testing.assert_array_equal(columns["observation.time_ns"], stamps)
    np.testing.assert_array_equal(columns["source.low_cmd_time_ns"], stamps)
    np.testing.assert_array_equal(columns["source.low_state_seq"], ticks + 1)
    np.testing.assert_array_equal(columns["source.low_cmd_seq"], ticks + 1)
    # Nothing was asked before tick 10: zeros, and seq 0 says that there was nothing.
    np.testing.assert_array_equal(columns["source.policy_input_seq"], np.arange(10))
    assert columns["source.policy_input_time_ns"][0] == 0
    assert (columns["observation.command"][0] == 0).all()


@pytest.mark.parametrize("first_late", [0, 900_000])
def test_late_ticks_are_not_taken_for_their_neighbours(make_log: MakeLog, first_late: int):
    late = np.random.default_rng(1).integers(0, 900_000, 1000)
    late[0] = first_late
    (episode,) = find_episodes(make_log([POLICY] * 1000, late), 50)
    columns, card = resample(episode)
    np.testing.assert_array_equal(columns["action"][:, 0], 10 * np.arange(100) + 0.5)
    np.testing.assert_array_equal(columns["observation.state"][:, 0], 10 * np.arange(100))
    assert card["paired_share"] == 1.0


def test_a_frame_whose_command_was_made_from_another_state_is_counted(make_log: MakeLog):
    (episode,) = find_episodes(make_log([POLICY] * 100, no_state={50}), 50)
    columns, card = resample(episode)
    assert columns["observation.state"][5, 0] == 49 and columns["action"][5, 0] == 50.5
    assert card["paired_share"] == 0.9
    assert card["sources"]["low_state"] == {
        "messages": 90, "lost": 1, "missing_frames": 0, "held_frames": 0,
        "age_ms": pytest.approx({"mean": 1.2, "max": 3.0}),
    }  # fmt: skip


def test_held_samples_are_counted(make_log: MakeLog):
    lost = set(range(41, 80))  # 78 ms
    (episode,) = find_episodes(make_log([POLICY] * 100, no_state=lost, no_cmd=lost), 50)
    columns, card = resample(episode)
    assert columns["action"][:, 0].tolist() == [
        0.5, 10.5, 20.5, 30.5, 40.5, 40.5, 40.5, 40.5, 80.5, 90.5,
    ]  # fmt: skip
    for topic in ("low_state", "low_cmd"):
        assert card["sources"][topic]["lost"] == 39
        assert card["sources"][topic]["held_frames"] == 3
        assert card["sources"][topic]["age_ms"]["max"] == pytest.approx(61.0)


BEGIN, END, MARK = EventKind.EPISODE_BEGIN, EventKind.EPISODE_END, EventKind.MARK


@pytest.mark.parametrize(
    ("marks", "ticks"),
    [
        # Tick of the first and after the last, a frame each ten ticks.
        ([(150, BEGIN), (250, END)], [(150, 250)]),
        ([(0, BEGIN), (300, BEGIN), (300, MARK), (600, END)], [(100, 300), (300, 400)]),
        ([(200, END), (250, BEGIN)], [(250, 400)]),
        ([(120, BEGIN), (200, END), (220, END), (320, BEGIN)], [(120, 200), (320, 400)]),
        ([(200, MARK), (220, END)], [(100, 400)]),
        ([(0, BEGIN), (50, END)], []),
    ],
    ids=["one", "the next ends the one before", "to the end", "two", "none was begun", "outside"],
)  # fmt: skip
def test_marked_episodes_cut_and_choose(make_log: MakeLog, marks: Any, ticks: Any):
    log = make_log([STAND] * 100 + [POLICY] * 300 + [STAND] * 100, marks=marks)
    found = [resample(episode)[0]["action"][:, 0] for episode in find_episodes(log, 50)]
    assert [(a[0] - 0.5, a[-1] + 9.5) for a in found] == ticks


@pytest.mark.parametrize("lacks", ["no_state", "no_cmd"])
def test_a_hole_ends_the_episode(make_log: MakeLog, lacks: str):
    log = make_log([POLICY] * 400, **{lacks: set(range(150, 250))})  # 200 ms
    first, second = (resample(episode)[0]["action"][:, 0] for episode in find_episodes(log, 50))
    # Commands go on for 0.1 s where only states are missing.
    assert first[-1] < 200 and second[0] == 250.5 and len(second) == 15


def test_the_error_of_holding_is_told(make_log: MakeLog):
    (episode,) = find_episodes(make_log([POLICY] * 101), 50)
    # Joints move 1 rad per tick, frames lie half a tick after their sample.
    assert resample(episode)[1]["hold_error_rad"] == pytest.approx(
        # The last frame has no sample after it, in its window or anywhere.
        {"rms": 0.5 * np.sqrt(10 / 11), "max": 0.5}
    )


def test_windows_and_cuts_change_nothing(make_log: MakeLog, monkeypatch):
    log = make_log([POLICY] * 1000, no_state={503, 504})
    (episode,) = find_episodes(log, 50)
    whole, card = resample(episode)
    monkeypatch.setattr(log_episodes, "WINDOW_FRAMES", 7)
    columns, again = resample(episode)
    assert card == again
    monkeypatch.setattr(log_episodes, "LONGEST_S", 1)
    parts = find_episodes(log, 50)
    assert [len(part.grid_ns) for part in parts] == [50, 50]
    cut = [resample(part)[0] for part in parts]
    for name, values in whole.items():
        np.testing.assert_array_equal(columns[name], values)
        np.testing.assert_array_equal(np.concatenate([part[name] for part in cut]), values)


def test_the_whole_log_is_an_episode_on_demand(make_log: MakeLog):
    log = make_log([STAND] * 100, asked_every=0)
    assert find_episodes(log, 50) == []
    (episode,) = find_episodes(log, 50, whole=True)
    columns, card = resample(episode)
    assert len(columns["action"]) == 10 and (columns["observation.command"] == 0).all()
    assert card["sources"]["policy_input"] == {"messages": 0, "lost": 0, "missing_frames": 10}


def test_one_frame_is_no_episode(make_log: MakeLog):
    assert find_episodes(make_log([STAND] * 20 + [POLICY] * 10 + [STAND] * 20), 50) == []


@pytest.mark.parametrize("hz", [50, 300, 500, 1000])
def test_the_tick_is_found_in_noise(hz: int):
    rng = np.random.default_rng(hz)
    stamps = (np.arange(5000) * 1e9 / hz + rng.integers(0, 100_000_000 // hz, 5000)).astype(
        np.int64
    )
    assert tick_ns(stamps) == 1e9 / hz
    grid = make_grid(stamps, 50)
    # No drift: after all this time a frame still lies in its tick.
    np.testing.assert_array_equal(
        np.searchsorted(stamps, grid, side="right") - 1, np.arange(len(grid)) * hz // 50
    )


def test_a_real_run_is_told_as_it_was(tmp_path: Path, standing_policy: Path):
    messages = walked(standing_policy)
    log = Log(write_log(tmp_path, messages))
    (episode,) = find_episodes(log, 50)
    columns, card = resample(episode)
    policy = [m for m in messages["low_cmd"] if m.mode in (Mode.POLICY, Mode.HOLD)]
    assert len(columns["action"]) == -(-len(policy) // 10)
    np.testing.assert_array_equal(
        columns["action"], [m.joint_pos_target.astype(np.float32) for m in policy[::10]]
    )
    assert (columns["observation.command"][:20, 0] <= 0.2).all()
    assert columns["observation.command"][:, 0].max() == np.float32(0.2)
    assert card["faults"] == ["command_stale", "target_late"] and card["paired_share"] == 1.0
    assert card["begin_s"] == pytest.approx(6.0, abs=0.01)
    assert card["damage"] == []
