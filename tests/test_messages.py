"""Messages: the record's bytes are CDR, checked against two decoders that we did not write."""

from typing import Any

import numpy as np
import pytest
from mcap_ros2._dynamic import generate_dynamic
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from robot.messages import (
    MESSAGES,
    PACKAGE,
    Codec,
    LowCmd,
    LowState,
    Message,
    Mode,
    Status,
    message_fields,
    message_text,
)

DIMS = {"joints": 29, "arm_joints": 14, "frame_bytes": 6144}
ROBOT_ID = 0x1234_5678_9ABC_DEF0


def filled(message: type[Message], seed: int = 1, dims: dict[str, int] | None = None) -> Any:
    """A message whose every field holds something else."""
    rng = np.random.default_rng(seed)
    out = Codec(message, dims or DIMS, ROBOT_ID).new()
    for slot in out.codec.slots:
        if slot.name in ("schema_hash", "robot_id"):
            continue
        if slot.kind == "text":
            setattr(out, slot.name, f"text of {slot.name}")
        elif slot.type.startswith("float"):
            out.record[slot.name] = rng.standard_normal(slot.count).squeeze()
        else:
            info = np.iinfo(slot.type)
            out.record[slot.name] = rng.integers(info.min, info.max, endpoint=True, dtype=slot.type)
    return out


def expected(message: Message) -> dict[str, object]:
    """Field name to value, strings still padded."""
    values: dict[str, object] = {}
    for field in message.codec.fields:
        value: Any = message.record[field.name]
        if field.type == "string":
            length = next(s.count for s in message.codec.slots if s.name == field.name) - 1
            values[field.name] = value.decode().ljust(length)
        else:
            values[field.name] = value
    return values


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.__name__)
def test_mcap_decoder_reads_every_field(message: type[Message]):
    sample = filled(message)
    decode = generate_dynamic(f"{PACKAGE}/msg/{message.__name__}", message_text(message))[
        f"{PACKAGE}/msg/{message.__name__}"
    ]
    got = decode(bytes(sample.payload))
    for name, value in expected(sample).items():
        decoded = getattr(got, name)
        if isinstance(decoded, bytes):
            decoded = np.frombuffer(decoded, np.uint8)
        np.testing.assert_array_equal(decoded, value, err_msg=name)


OTHER_DIMS = (
    {"joints": 23, "arm_joints": 10, "frame_bytes": 3},
    {"joints": 1, "arm_joints": 1, "frame_bytes": 1},
)


@pytest.mark.parametrize("dims", [DIMS, *OTHER_DIMS])
@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.__name__)
def test_rosbags_gives_the_same_bytes_back(message: type[Message], dims: dict[str, int]):
    sample = filled(message, dims=dims)
    store = get_typestore(Stores.EMPTY)
    name = f"{PACKAGE}/msg/{message.__name__}"
    store.register(get_types_from_msg(message_text(message), name))
    decoded = store.deserialize_cdr(bytes(sample.payload), name)
    for field, value in expected(sample).items():
        np.testing.assert_array_equal(getattr(decoded, field), value, err_msg=field)
    assert bytes(store.serialize_cdr(decoded, name)) == bytes(sample.payload)


def test_layout_is_cdr_and_not_c():
    # By hand: header 5 x 8 = 40, two 8-byte scalars to 56; count word at 56, data at 64 (aligned to
    # 8), 29 doubles to 296; next count at 296, data at 304.
    slots = {s.name: s for s in Codec(LowState, DIMS, ROBOT_ID).slots}
    assert (slots["joint_pos"].count_offset, slots["joint_pos"].offset) == (56, 64)
    assert (slots["joint_vel"].count_offset, slots["joint_vel"].offset) == (296, 304)
    # A fixed array has no count: 3 sequences of 29 end at 64 + 3 * 240 - 8 = 776.
    assert (slots["imu_quat_wxyz"].count_offset, slots["imu_quat_wxyz"].offset) == (-1, 776)


def test_views_are_aligned_and_share_the_memory():
    message = Codec(LowCmd, DIMS, ROBOT_ID).new()
    message.stiffness[3] = 7.5
    assert message.record["stiffness"][3] == 7.5
    for slot in message.codec.slots:
        if slot.kind == "array":
            assert getattr(message, slot.name).flags.aligned
    assert not np.isnan(message.joint_pos_target).any()


def test_text_is_cut_padded_and_ascii():
    status = Codec(Status, DIMS, ROBOT_ID).new()
    status.reason = "x" * 500
    assert status.reason == "x" * 160
    status.reason = "Grüße\0"
    assert status.reason == "Gr??e?"
    status.reason = ""
    assert status.reason == ""


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda b: b[:-1], "length"),
        (lambda b: b + b"\0", "length"),
        (lambda b: b"", "length"),
        (lambda b: b"\0\0" + b[2:], "encoding"),
        (lambda b: b[:4] + b"\1" * 8 + b[12:], "schema"),
        (lambda b: b[:12] + b"\1" * 8 + b[20:], "robot"),
        (lambda b: b[:60] + b"\x1e\0\0\0" + b[64:], "count"),
    ],
)
def test_foreign_bytes_are_refused_with_their_cause(spoil, cause: str):
    codec = Codec(LowState, DIMS, ROBOT_ID)
    frame = spoil(bytes(codec.new().payload))
    assert codec.refusal(memoryview(frame), len(frame)) == cause


def test_hash_tells_layouts_apart():
    hashes = {Codec(m, DIMS, 1).schema_hash for m in MESSAGES}
    assert len(hashes) == len(MESSAGES)
    assert Codec(LowState, {**DIMS, "joints": 23}, 1).schema_hash not in hashes
    assert Codec(LowState, DIMS, 2).schema_hash in hashes  # the robot has its own field


def test_every_field_says_what_it_is():
    for message in MESSAGES:
        for field in message_fields(message):
            assert len(field.doc) > 5, f"{message.__name__}.{field.name}"
            assert field.name == field.name.lower()


def test_dictionary_for_people_names_enumerations():
    status = Codec(Status, DIMS, ROBOT_ID).new()
    status.mode = Mode.STAND
    assert status.to_dict()["mode"] == "STAND"
    status.mode = 99
    assert status.to_dict()["mode"] == 99


def test_copy_is_independent():
    a = filled(LowState)
    b = a.copy()
    assert bytes(a.payload) == bytes(b.payload)
    b.joint_pos[0] = 42.0
    assert a.joint_pos[0] != 42.0
