"""The live table, rendered to text: what stands there is what the messages say."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from robot.messages import (
    ChangeState,
    FrameFault,
    HeightMap,
    Mode,
    PolicyInfo,
    RecorderStatus,
    Status,
    Timing,
    Truth,
)
from robot.model import load_robot
from robot.modes import BIT, FAULT, NO_CAUSE
from robot.runs import RunConfig
from robot.teleop import KEYS, Teleop
from robot.terminal import COLOR, WHAT, View
from robot.topics import make_codecs

CODECS = make_codecs(load_robot("g1"))
NOW_NS = 10_000_000_000
MS = 1_000_000


def as_text(table: RenderableType) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


class Screen:
    """A view with its messages, all well unless a test says otherwise."""

    def __init__(self, policy: Path | None = Path("walk.onnx")) -> None:
        run = RunConfig(robot="g1", driver="sim", timing_factor=10.0, policy=policy)
        self.teleop = Teleop(CODECS, "keyboard", (0.5, 0.0, -0.25), False, True, nonce=3)
        self.view = View(self.teleop, run)
        self.status: Status = CODECS["status"].new()
        self.status.now_ns, self.status.mode = NOW_NS, Mode.POLICY
        self.status.source, self.status.cause = 1, NO_CAUSE
        self.status.velocity[:] = 0.4, 0.0, -0.2
        self.status.state_age_ms, self.status.target_age_ms = 0.4, 12.0
        self.status.command_age_ms = -1.0
        self.truth: Truth | None = None

    def text(self, now_ns: int = NOW_NS) -> str:
        return as_text(self.view.render(self.status, self.truth, now_ns))

    def row(self, label: str, now_ns: int = NOW_NS) -> str:
        """The words behind a label."""
        lines = [line.strip("│ ") for line in self.text(now_ns).splitlines()]
        return next(line for line in lines if line.startswith(label))[len(label) :].strip()


def test_before_control_speaks_it_says_so():
    assert "no word from control yet" in as_text(Screen().view.render(None, None, NOW_NS))


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name)
def test_every_mode_has_its_words_and_colour(mode: Mode):
    screen = Screen()
    screen.status.mode = mode
    assert screen.row("mode") == f"{mode.name}  {WHAT[mode]}"
    assert COLOR[mode] in ("white", "yellow", "cyan", "green", "red")


def test_silence_of_control_takes_the_place_of_the_mode():
    screen = Screen()
    assert screen.row("mode", NOW_NS + 499 * MS).startswith("POLICY")
    assert screen.row("mode", NOW_NS + 750 * MS) == "no word from control for 750 ms"


def test_the_rows_say_who_what_and_how_old():
    screen = Screen()
    assert screen.row("velocity") == (
        "wish +0.50 +0.00 m/s -0.25 rad/s   accepted +0.40 +0.00 m/s -0.20 rad/s"
    )
    assert screen.row("operator") == "keyboard holds the lease"
    assert screen.row("ages") == "state 0 ms  target 12 ms  command none"
    assert screen.row("faults") == "none"
    assert screen.row("last word") == "-"


def test_the_consoles_address_stands_there_as_its_file_says(tmp_path):
    screen, file = Screen(), tmp_path / "console.txt"
    screen.view = View(screen.teleop, screen.view.run, file)
    assert "console  " not in screen.text()
    file.write_text("http://127.0.0.1:8520/?token=once\n")
    assert screen.row("console") == "http://127.0.0.1:8520/?token=once"
    file.write_text("http://127.0.0.1:8520/?token=again\n")
    assert screen.row("console") == "http://127.0.0.1:8520/?token=again"


def test_nobody_holds_the_lease():
    screen = Screen()
    screen.status.source = 255
    assert screen.row("operator") == "nobody holds the lease"


def test_the_policy_row_says_what_runs_or_what_to_do():
    screen = Screen()
    assert screen.row("policy") == "walk.onnx: no word from the pilot"
    info: PolicyInfo = CODECS["policy_info"].new()
    info.name, info.provider = "my walk", "cpu"
    screen.view.hear(info)
    assert screen.row("policy") == "my walk on cpu"
    change = CODECS["policy_change"].new()
    change.state, change.text = ChangeState.LOADING, "checking the file"
    screen.view.hear(change)
    assert screen.row("policy") == "my walk on cpu; loading another: checking the file"
    assert Screen(None).row("policy") == (
        "none: import one with `plexus policy import FILE`, run with --policy"
    )


def timing(stamp_s: float, executed: int) -> Timing:
    message: Timing = CODECS["timing"].new()
    message.stamp_ns, message.executed_ticks = round(stamp_s * 1e9), executed
    message.skipped_ticks = 3
    message.lateness_us[:] = 80.0
    message.lateness_us[7] = 1500.0
    message.policy_ticks = 5
    message.path_us[:5] = 900.0
    return message


def test_rate_lateness_and_drops_come_from_timing():
    screen = Screen()
    screen.status.drops, screen.status.blocked = 4, 2
    assert "ticks/s" not in screen.text()
    screen.view.hear(timing(1.0, 50))
    screen.view.hear(timing(1.1, 99))
    assert screen.row("control") == (
        "490 ticks/s, skipped 3, late p50 80 us, worst 1500 us (timing factor 10)"
    )
    assert screen.row("path") == "sensing to target p50 900 us"
    assert screen.row("dropped") == "4 frames, 2 refused contents"


def test_the_gantry_is_shown_where_there_is_one():
    screen = Screen()
    assert "gantry" not in screen.text()
    truth = screen.truth = CODECS["truth"].new()
    truth.support_force = 321.4
    assert screen.row("gantry") == "carries 321 N"
    truth.released = 1
    assert screen.row("gantry") == "let go"


def test_faults_and_their_reason_are_shown_once_armed():
    screen = Screen()
    screen.status.faults = BIT["target_lost"] | BIT["overrun"]
    screen.status.reason = "target_lost: the target is 100 ms old"
    assert screen.row("faults") == "target_lost, overrun"
    assert screen.row("last word") == "-"
    screen.status.mode, screen.status.cause = Mode.FAULT, FAULT["target_lost"]
    assert screen.row("last word") == "target_lost: the target is 100 ms old"
    screen.status.mode = Mode.PASSIVE  # before arming many rows are active by nature
    assert screen.row("faults") == "none"


def test_the_refusal_of_the_last_key_is_shown():
    screen = Screen()
    screen.teleop.note = "STAND is refused: the robot moves"
    assert screen.row("last word") == "STAND is refused: the robot moves"


def test_every_key_is_explained():
    text = Screen().text()
    for key in KEYS.values():
        assert key.label in text and key.doc in text


def test_it_fits_into_100_columns():
    screen = Screen()
    screen.view.hear(timing(1.0, 50))
    assert max(len(line) for line in screen.text().splitlines()) <= 100


def test_the_log_is_shown_and_its_warning_in_red():
    screen = Screen()
    assert "no word from the recorder" in screen.row("log")
    told: RecorderStatus = CODECS["recorder"].new()
    told.bytes_written, told.path = 12_300_000, "/logs/20261124T033000Z-sim-1a2b"
    screen.view.hear(told)
    assert "12.3 MB in 20261124T033000Z-sim-1a2b" in screen.row("log")
    told.lost, told.warning = 7, "3 MB left on the disk; recording pauses"
    assert "7 messages lost; 3 MB left on the disk; recording pauses" in screen.row("log")


def test_eyes_have_a_row_where_there_is_a_camera_and_say_what_is_wrong():
    screen = Screen()
    assert "eyes" not in screen.text()
    run = screen.view.run
    camera = run.camera.model_copy(update={"source": "sim"})
    screen.view.run = run.model_copy(update={"camera": camera})
    assert screen.row("eyes") == "no word from perception"
    told: HeightMap = CODECS["height_map"].new()
    told.now_ns, told.age_ms, told.mean_std = NOW_NS, 62.0, 0.02
    screen.view.hear(told)
    assert screen.row("eyes") == "the ground is known within 4 cm, picture 62 ms old"
    told.camera_pitch = -0.03
    assert screen.row("eyes").endswith("picture 62 ms old; camera 1.7 degrees too low")
    told.camera_pitch = 0.01
    told.refused[FrameFault.FROZEN], told.refused[FrameFault.CALIBRATION] = 3, 1
    assert screen.row("eyes").endswith("; dropped 1 calibration, 3 frozen")
    told.gate = 0b1010
    assert screen.row("eyes") == (
        "flat ground is assumed: old, contact; dropped 1 calibration, 3 frozen"
    )
    assert screen.row("eyes", NOW_NS + 1001 * MS) == "no word from perception"
