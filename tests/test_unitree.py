"""The G1's driver against an emulator that shares no code with it; both against known answers."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds")

from drivers import unitree_wire as wire
from drivers.dds import Participant, check_interface
from drivers.driver import Driver, DriverFault
from drivers.unitree import UnitreeDriver
from drivers.unitree_state import StateWatch
from robot.config import UserError
from robot.messages import Mode
from robot.modes import BIT
from robot.runs import UnitreeConfig
from sim2real import emulator_wire
from tests.test_contract import CODECS, ROBOT, DriverContract, command
from tests.unitree_rig import SteppedDriver, SteppedEmulator

# --- known answers ------------------------------------------------------------------------------


def low_cmd(motors: dict[int, dict[str, float]], **head: int) -> wire.Frame:
    """A command by the values of its motors; what is not named is zero."""
    frame = wire.Frame(wire.CMD_LAYOUT)
    for name, value in head.items():
        frame.put(name, value)
    for slot, values in motors.items():
        for name, value in values.items():
            if name == "mode":
                frame.body[wire.CMD_LAYOUT.leaves["motor_cmd.mode"].offsets[slot]] = int(value)
            else:
                frame.view(f"motor_cmd.{name}")[slot] = value
    return frame


F = {"mode": 1, "q": 0.5, "dq": -1.0, "tau": 2.0, "kp": 20.0, "kd": 0.5}
KNOWN: dict[str, tuple[wire.Frame, int]] = {
    "A": (low_cmd({}), 0xFE172F9F),
    "B": (low_cmd({}, mode_machine=5), 0x54F027ED),
    "C": (low_cmd({i: {"mode": 1, "kd": 3} for i in range(29)}, mode_machine=5), 0xC8655A9D),
    "D": (low_cmd({i: {"mode": 1, "kd": 8} for i in range(35)}, mode_machine=5), 0xD7E3AB3A),
    "E": (low_cmd({i: {"mode": 1, "q": round(0.01 * i, 2), "dq": -0.5, "tau": 2, "kp": 20,
                       "kd": 0.5} for i in range(29)}, mode_machine=5), 0x65C061DE),
    "F": (low_cmd({0: F}, mode_machine=5), 0xB15E5F6B),
    "F'": (low_cmd({0: F}, mode_machine=5, mode_pr=1), 0xA58B0163),
    "G": (low_cmd({29: {"q": 1.0}, 15: {"q": 0.1, "kp": 60, "kd": 1.5}}, mode_machine=5),
          0xAAFD28F4),
    "I": (low_cmd({3: {"q": 0.5, "kp": 25, "kd": 0.5}, 15: {"q": 0.2, "kp": 25, "kd": 0.5}}),
          0xF036ADB0),  # by the vendor's own SDK
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_the_crc_of_a_command_is_the_known_answer_and_both_sides_agree(name: str):
    frame, crc = KNOWN[name]
    assert wire.CMD_LAYOUT.crc(frame.body) == crc
    frame.sign()
    values = emulator_wire.CMD_WIRE.unpack(bytes(frame.payload[4:]))
    assert values[-1] == crc
    assert emulator_wire.checksum(emulator_wire.CMD_IMAGE.pack(*values)) == crc
    mode_pr, mode_machine, motors = emulator_wire.read_command(bytes(frame.payload))
    assert (mode_pr, mode_machine) == (frame.get("mode_pr")[0], frame.get("mode_machine")[0])
    assert [motor.q for motor in motors] == frame.view("motor_cmd.q").tolist()
    assert [motor.mode for motor in motors] == frame.get("motor_cmd.mode").tolist()


def test_the_crc_is_the_published_one_on_its_own_check_values():
    assert emulator_wire.checksum(struct.pack("<2I", 0x12345678, 0)) == 0xDF8A8A2B
    assert emulator_wire.checksum(bytes(20)) == 0x552D22C8
    # Byte-wise, "123456789" is the check value of the catalogue; two words and one byte of it
    # are no whole words, so the words of the image are not what is tested here.
    mirrored = b"123456789".translate(wire.BITS_REVERSED)
    import zlib

    assert wire._reverse32(zlib.crc32(mirrored) ^ 0xFFFFFFFF) == 0x0376E6E7


def test_the_bytes_of_a_command_are_the_known_ones():
    frame, _ = KNOWN["F"]
    body = bytes.fromhex("00050100 0000003f 000080bf 00000040 0000a041 0000003f 00000000 00000000")
    assert bytes(frame.payload[:4]) == bytes.fromhex("00010000")
    assert bytes(frame.payload[4:36]) == body
    image = frame.body.take(wire.CMD_LAYOUT.image_source).tobytes()
    known = "00050000 01000000 0000003f 000080bf 00000040 0000a041 0000003f 00000000 00000000"
    assert image[:36] == bytes.fromhex(known) and len(image) == 1004


def test_the_crc_of_a_state_is_the_known_answer():
    assert wire.STATE_LAYOUT.crc(wire.Frame(wire.STATE_LAYOUT).body) == 0xD64BB04A
    values: list[Any] = [0, 0, 0, 5, 1000, 1.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 9.81, 0, 0, 0, 25]
    for i in range(29):
        values += [1, 0.01 * i, 0.0, 0.0, 0.0, 30, 31, 48.0] + [0] * 7
    values += [0] * 15 * 6 + [0] * 45
    data = emulator_wire.write_state(values)
    frame = wire.Frame(wire.STATE_LAYOUT)
    assert frame.take(data) == "" and int(frame.view("crc")[0]) == 0x1144A8CD
    assert frame.view("tick")[0] == 1000 and frame.get("mode_machine")[0] == 5
    np.testing.assert_allclose(frame.view("motor_state.q")[:29], 0.01 * np.arange(29), rtol=1e-6)
    assert frame.view("motor_state.temperature", 2)[28].tolist() == [30, 31]
    assert frame.view("imu_state.accelerometer")[2] == np.float32(9.81)


@pytest.mark.parametrize(
    ("layout", "path", "first", "step", "size"),
    [
        (wire.CMD_LAYOUT, "motor_cmd.q", 4, 28, 1000),
        (wire.CMD_LAYOUT, "reserve", 980, 4, 1000),
        (wire.CMD_LAYOUT, "crc", 996, 0, 1000),
        (wire.STATE_LAYOUT, "tick", 12, 0, 2088),
        (wire.STATE_LAYOUT, "imu_state.rpy", 56, 4, 2088),
        (wire.STATE_LAYOUT, "motor_state.q", 72, 56, 2088),
        (wire.STATE_LAYOUT, "wireless_remote", 2028, 1, 2088),
        (wire.STATE_LAYOUT, "crc", 2084, 0, 2088),
    ],
)
def test_fields_lie_where_they_were_measured(layout, path, first, step, size):
    offsets = layout.leaves[path].offsets
    assert layout.size == size and offsets[0] == first
    assert not step or set(np.diff(offsets).tolist()) == {step}
    assert wire.CMD_LAYOUT.leaves["motor_cmd.mode"].offsets[:3].tolist() == [2, 28, 56]
    assert wire.STATE_LAYOUT.leaves["motor_state.mode"].offsets[:2].tolist() == [70, 124]


def test_one_flipped_bit_anywhere_and_the_crc_of_the_wire_itself_are_refused():
    frame, _ = KNOWN["E"]
    frame.sign()
    good, taker = bytes(frame.payload), wire.Frame(wire.CMD_LAYOUT)
    assert taker.take(good) == ""
    holes = {4 + byte for byte in range(1000)} - {
        4 + offset + byte
        for leaf in wire.CMD_LAYOUT.leaves.values()
        for offset in leaf.offsets
        for byte in range(leaf.dtype.itemsize)
    }
    rng = np.random.default_rng(1)
    for at in rng.permutation(range(4, 1004))[:300]:
        spoilt = bytearray(good)
        spoilt[at] ^= 1 << int(rng.integers(8))
        assert taker.take(bytes(spoilt)) == ("" if at in holes else "crc"), at
    words = struct.unpack("<250I", good[4:])
    assert emulator_wire.checksum(good[4:]) != words[-1]
    assert taker.take(good[:-4]) == "length" and taker.take(b"\0\0\0\0" + good[4:]) == "encoding"


IDS = {
    "MotorCmd_": ("827f55de9b9de38c62bacd1e56c9", "a2d9ced50a7956e2a607613a13f1"),
    "LowCmd_": ("6569fc15f0d47aa8600b9e91fbbc", "42b0283aa7e1bb592ec898a0dbed"),
    "IMUState_": ("fc687176651206558473df442280", "7d4166754177d86fa27cd25b0403"),
    "MotorState_": ("7cc584ed940b8f3018f18de0ed24", "a86cbab3ae0aa98a1e746643a099"),
    "LowState_": ("2f38296b52aa0230b92d378b1e39", "2be9706c9587e8d8afd8bfc6de7b"),
}  # as Cyclone 0.10.2 computes them, and as the vendor's headers have them


@pytest.mark.parametrize("name", IDS)
def test_a19_type_identifiers_are_those_of_the_robots_generation_of_dds(name: str):
    theirs = emulator_wire.TYPES[name]
    for kind in (wire.idl_types()[name], theirs):
        kind.__idl__.populate()
        info = kind.__idl__.get_type_info()
        got = [each.typeid_with_size.type_id.value.hex() for each in (info.minimal, info.complete)]
        assert tuple(got) == IDS[name]


def test_the_remote_is_read_as_documented():
    data = bytes.fromhex("0000 0001 0000803e 000000bf 00000000 00000000 0000803f") + bytes(16)
    held = wire.Remote.decode(data)
    assert held == wire.Remote(wire.KEY["A"], lx=0.25, rx=-0.5, ly=1.0)
    stop = wire.Remote.decode(bytes(2) + bytes.fromhex("2002") + bytes(36))
    assert stop.holds(wire.STOP_KEYS) and stop.keys == 0x0220 and not held.holds(wire.STOP_KEYS)
    assert wire.Remote.decode(struct.pack("<4xf32x", np.nan)).lx == 0.0


def test_every_error_bit_has_a_name():
    assert wire.motor_fault_names(0x40000001) == ["overcurrent", "motor lost the computer"]
    assert wire.motor_fault_names(0x10000000) == ["unknown 0x10000000"]
    assert len(wire.MOTOR_FAULTS) == 22


def test_s14_s15_one_dead_sensor_does_not_hide_a_hot_motor():
    watch, frame = StateWatch(ROBOT, UnitreeConfig()), wire.Frame(wire.STATE_LAYOUT)
    heat = frame.view("motor_state.temperature", 2)  # casing, winding; limits 85 and 120
    heat[:] = 40
    heat[3], heat[4], heat[5], heat[6] = 0, (85, 40), (40, 111), (40, 255)
    frame.sign()
    watch.hear([bytes(frame.payload)], 0, energised=False)
    assert watch.heat_margin()[:7].tolist() == [45, 45, 45, 85, 0, 9, 45]
    told = BIT["temperature_unknown"] | BIT["motor_overheated"]
    assert watch.alerts(0) == told
    heat[4] = 40
    frame.view("tick")[0] = 2
    frame.sign()
    watch.hear([bytes(frame.payload)], 0, energised=False)
    assert watch.alerts(0) == BIT["temperature_unknown"] | BIT["motor_hot"]


# --- the contract -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteppedEmulator]:
    made = SteppedEmulator(tmp_path_factory.mktemp("emulator"), "--service", "none")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_stays_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """One participant per domain: a test that fails must not make all others fail."""
    yield
    if "emulator" in request.fixturenames:
        drivers = request.getfixturevalue("emulator").drivers
        while drivers:
            drivers.pop().close()


class TestUnitree(DriverContract):
    """Against the emulator, through DDS."""

    settle_ticks = 150
    stop_softness = 0.3
    has_truth = True
    effort_noise = 0.5

    @pytest.fixture(autouse=True)
    def _emulator(self, emulator: SteppedEmulator) -> None:
        self.emulator = emulator

    def make(self) -> Driver:
        return SteppedDriver(self.emulator)


# --- refusals, before any command ---------------------------------------------------------------


def refused(emulator: SteppedEmulator, start: dict[str, Any], **options: Any) -> str:
    """What `open` says; the emulator heard no command meanwhile."""
    driver = SteppedDriver(emulator, start=start, **options)
    before = emulator.order()["received"]
    with pytest.raises(UserError) as error:
        driver.open()
    assert emulator.order(step=2)["received"] == before
    driver.close()
    return str(error.value)


def test_no_interface_named_or_a_wrong_one_is_refused_before_anything_is_sent():
    with pytest.raises(UserError, match=r"no network interface is named; .* --interface; avail"):
        check_interface(None, "192.168.123.0/24")
    with pytest.raises(UserError, match=r"interface 'eth99' is unknown; available: .*lo"):
        check_interface("eth99", "192.168.123.0/24")
    with pytest.raises(UserError, match=r"'lo' has the address 127.0.0.1; expected one in the rob"):
        check_interface("lo", "192.168.123.0/24")
    assert check_interface("lo", "127.0.0.0/8") == "lo"


def test_no_robot_is_one_sentence(emulator: SteppedEmulator):
    said = refused(emulator, {"fault": {"off": {}}})
    assert said.startswith("no robot: not a word on rt/lowstate within 3 s on 'lo', domain ")
    assert "Is it switched on" in said and "plexus doctor g1" in said


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (4, "mode_machine 4 (23 joints, rev 1.0); expected one of [5]; this runtime drives 29"),
        (0, "mode_machine 0 (not known; 0 means that the robot is not ready); expected"),
        (6, "mode_machine 6 (29 joints, waist locked, rev 1.0); expected one of [5]; wait until"),
    ],
)
def test_f5_a_robot_of_another_kind_is_refused(emulator: SteppedEmulator, kind: int, words: str):
    said = refused(emulator, {"fault": {"mode_machine": {"value": kind}}})
    assert said.startswith(f"the robot says {words}"), said


def test_s12_joints_in_another_order_than_the_motors_are_refused(emulator: SteppedEmulator):
    """Two rows of the map swapped; and whoever has the right map is not understood any more."""
    names = list(ROBOT.joint_names)
    names[3], names[9] = names[9], names[3]
    robot = dataclasses.replace(ROBOT, joint_names=tuple(names))
    driver, before = SteppedDriver(emulator, robot), emulator.order()["received"]
    with pytest.raises(UserError) as error:
        driver.open()
    assert str(error.value).endswith(
        "row 3 is right_knee_joint; expected left_knee_joint, which is motor 3 of a G1: commands "
        "would go to the wrong joints"
    )
    assert emulator.order(step=2)["received"] == before
    assert ROBOT.joint_names == wire.JOINTS


def test_a18_a_second_writer_is_refused_at_the_start(emulator: SteppedEmulator):
    said = refused(emulator, {"fault": {"second_writer": {}}})
    assert said.startswith("somebody else commands this robot (rt/lowcmd); stop that program first")


def test_states_without_a_good_crc_are_refused_with_their_reason(emulator: SteppedEmulator):
    said = refused(emulator, {"fault": {"garbage": {}}})
    assert "states come in on 'lo', but all " in said and "refused for their crc" in said


def test_a_counter_that_stands_still_is_no_clock(emulator: SteppedEmulator):
    said = refused(emulator, {"fault": {"tick_stuck": {}}})
    assert said.startswith("the robot's tick counter advanced by 0 in ")


def test_an_owned_robot_is_taken_over_only_if_it_hangs(emulator: SteppedEmulator):
    said = refused(emulator, {"service": "ai"}, hang=False)
    assert said.startswith("motion service 'ai' owns the robot. Taking over makes it LIMP at once")
    assert "--hang" in said and emulator.order()["service"] == "ai"
    driver = SteppedDriver(emulator, start={"service": "ai"})
    driver.open()
    assert emulator.order()["service"] == "" and emulator.last["refused"].get("service", 0) == 0
    driver.close()


@pytest.mark.parametrize("options", [{"trust_timeout": True}, {"readonly": True}])
def test_a13_where_the_motors_time_out_is_trusted_or_nothing_is_written_it_is_not_tried(
    emulator: SteppedEmulator, options: dict[str, Any]
):
    driver = SteppedDriver(emulator, start={"fault": {"no_timeout": {}}}, **options)
    before, health = emulator.order()["received"], CODECS["health"].new()
    driver.open()
    assert emulator.order()["received"] == before
    assert driver.health(health) and not health.alerts & BIT["timeout_unknown"]
    driver.close()


def test_readonly_listens_to_an_owned_robot_and_never_writes(emulator: SteppedEmulator):
    driver = SteppedDriver(emulator, start={"service": "ai"}, readonly=True)
    before = emulator.order()["received"]
    driver.open()
    state = CODECS["low_state"].new()
    for _ in range(5):
        driver.read(state)
        cmd = command(Mode.STAND)
        driver.write(cmd)
        assert not cmd.stiffness.any() and not cmd.damping.any()
    assert emulator.last["received"] == before and emulator.last["service"] == "ai"
    driver.close()


def test_a_dry_run_sends_damping_whatever_the_command_is(emulator: SteppedEmulator):
    driver = SteppedDriver(emulator, dry_run=True)
    driver.open()
    state, cmd = CODECS["low_state"].new(), command(Mode.STAND, ROBOT.stand_joint_pos + 0.2)
    cmd.effort_ff[:] = 5.0
    driver.read(state)
    driver.write(cmd)
    assert not cmd.stiffness.any() and not cmd.effort_ff.any()
    np.testing.assert_allclose(cmd.damping, ROBOT.damp_damping)
    for _ in range(100):
        driver.read(state)
        assert abs(state.joint_effort @ state.joint_vel) < 60.0
        driver.write(command(Mode.STAND, ROBOT.stand_joint_pos + 0.2))
    assert emulator.last["obeyed"] > 90 and emulator.last["peak_torque"] < 0.5
    driver.close()


def test_a14_a_command_that_is_no_number_is_not_sent(emulator: SteppedEmulator):
    driver = SteppedDriver(emulator)
    driver.open()
    before, cmd = emulator.order()["received"], command(Mode.STAND)
    cmd.joint_pos_target[3] = np.nan
    with pytest.raises(DriverFault, match="is no number was not sent"):
        driver.write(cmd)
    assert emulator.order(step=2)["received"] == before
    driver.close()


def test_a10_three_commands_that_cannot_be_sent_are_a_fault(emulator: SteppedEmulator):
    """The writer is a real one whose entity is gone, as after the loss of an interface."""
    driver = SteppedDriver(emulator)
    driver.open()
    assert driver._commands is not None
    driver._commands.close()
    for _ in range(2):
        UnitreeDriver.write(driver, command(Mode.DAMP))
    with pytest.raises(DriverFault, match="3 commands in a row could not be sent"):
        UnitreeDriver.write(driver, command(Mode.DAMP))
    with pytest.raises(DriverFault, match="3 commands in a row could not be sent"):
        driver.read(CODECS["low_state"].new())


def test_a_robot_whose_policies_read_the_torso_gets_that_imu(emulator: SteppedEmulator):
    driver = SteppedDriver(emulator, robot=dataclasses.replace(ROBOT, imu="torso"))
    driver.open()
    state, pelvis = CODECS["low_state"].new(), driver.watch
    for _ in range(20):
        driver.write(command(Mode.DAMP))
        SteppedDriver._await(lambda: False, 0.002)
    driver.read(state)
    assert not np.array_equal(state.imu_quat_wxyz, pelvis.now.quat)
    assert np.linalg.norm(state.imu_quat_wxyz) == pytest.approx(1.0, abs=1e-5)
    driver._torsos.close()
    with pytest.raises(DriverFault, match="no word from the torso's IMU"):
        for _ in range(20):
            driver.write(command(Mode.DAMP))
            driver.read(state)


def test_the_emulator_obeys_no_wrong_command(emulator: SteppedEmulator):
    """Its own manners: CRC, variant, length; and the remap that mode_pr 1 means."""
    participant = Participant(emulator.domain, "lo")
    writer = participant.writer("rt/lowcmd", wire.idl_types()["LowCmd_"])
    SteppedDriver._await(lambda: writer.readers > 0, 5.0)
    start = emulator.order(fresh=True)
    good, _ = KNOWN["C"]
    good.sign()
    other = low_cmd({0: F}, mode_machine=4)
    other.sign()
    flipped = bytearray(good.payload)
    flipped[50] ^= 1
    for count, frame in enumerate((bytes(flipped), bytes(other.payload), bytes(good.payload)), 1):
        writer.write(frame)
        emulator.order(after=start["received"] + count, step=1)
    end = emulator.last
    assert end["refused"]["crc"] == start["refused"].get("crc", 0) + 1
    assert end["refused"]["mode_machine"] == start["refused"].get("mode_machine", 0) + 1
    assert end["obeyed"] == start["obeyed"] + 1 and not end["timed_out"]
    assert emulator.order(step=49)["timed_out"] is False
    assert emulator.order(step=2)["timed_out"] is True, "its motors damp by themselves"
    participant.close()
