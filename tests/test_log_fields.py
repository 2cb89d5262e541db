"""What a log says of its fields: units, names, and what a user may call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from robot import log_fields
from robot.config import UserError
from robot.log import Log
from robot.log_fields import Field, find_field
from robot.messages import MESSAGES, Mode, message_fields, message_text
from robot.model import load_robot
from robot.topics import make_codecs
from tests.logs import series, write_log

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
TOPICS = ("low_state", "low_cmd", "status", "command.script")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    messages = {topic: series(CODECS[topic], [10**9]) for topic in TOPICS}
    return Log(write_log(tmp_path_factory.mktemp("logs"), messages))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.__name__)
def test_units_and_sentences_of_all_our_fields_are_read_from_the_text(message):
    text = message_text(message)
    for field in message_fields(message):
        assert log_fields.unit(text, field.name) == ("" if field.unit == "1" else field.unit)
        assert log_fields.field_doc(text, field.name) == field.doc


def test_values_have_the_names_of_the_text():
    text = CODECS["status"].text
    assert log_fields.value_names(text, "mode") == {int(mode): mode.name for mode in Mode}
    assert log_fields.value_names(text, "answer_ask")[6] == "START_POLICY"
    assert log_fields.value_names(text, "tick") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("low_state.joint_pos", Field("low_state", "joint_pos")),
        ("low_state.joint_pos[3]", Field("low_state", "joint_pos", 3)),
        ("low_state.joint_pos[left_knee]", Field("low_state", "joint_pos", 3)),
        ("low_state.joint_pos[left_knee_joint]", Field("low_state", "joint_pos", 3)),
        ("low_state.imu_quat_wxyz[w]", Field("low_state", "imu_quat_wxyz", 0)),
        ("low_state.imu_gyro[z]", Field("low_state", "imu_gyro", 2)),
        ("command.script.velocity[1]", Field("command.script", "velocity", 1)),
        ("command.script.arm_joint_pos[right_wrist_yaw]",
         Field("command.script", "arm_joint_pos", 13)),
        ("status.mode", Field("status", "mode")),
    ],
)  # fmt: skip
def test_a_field_is_found_by_name_number_and_joint(log, text, expected):
    assert find_field(log, text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("low_stat.joint_pos", "topics of this log: low_state, low_cmd, status, command.script"),
        ("low_state", "expected topic.field, topic.field[3] or topic.field[joint]"),
        ("", "expected topic.field"),
        ("low_state.joint_po", "topic low_state has no numbers of name 'joint_po'; available: "),
        ("status.reason", "topic status has no numbers of name 'reason'"),
        ("status.mode[0]", "mode is a single number, expected no [...]"),
        ("low_state.joint_pos[29]", "element '29' is unknown; expected 0 to 28, or one of: left_"),
        ("low_state.joint_pos[left_kne]", "element 'left_kne' is unknown"),
        ("low_state.joint_pos[-1]", "element '-1' is unknown"),
    ],
)
def test_a_mistake_says_what_there_is(log, text, says):
    with pytest.raises(UserError) as error:
        find_field(log, text)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\xff", b"- a", b"joints: 3", b"joints: [{nam: a}]", b"{"])
def test_a_broken_robot_file_only_costs_the_names(tmp_path: Path, data: bytes):
    log = Log(write_log(tmp_path, {"low_state": series(CODECS["low_state"], [10**9])}))
    assert log_fields.joint_names(log) == ROBOT.joint_names
    log.attachments["robot.yaml"] = data
    assert log_fields.joint_names(log) == ()
    names = log_fields.element_names(log, log.topics["low_state"], "joint_pos")
    assert names == [str(i) for i in range(29)]
