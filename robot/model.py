"""Robots as data: reads robot.yaml, holds it against its MJCF, and builds the MuJoCo scene."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, Field, model_validator

from robot.calibration import Calibration, add_camera, load_calibration
from robot.config import (
    CONFIGS,
    REPOSITORY,
    Strict,
    UserError,
    check,
    listing,
    parse_yaml,
    read_text,
)
from robot.messages import hash64
from robot.terrain import FLAT, Terrain

FloatArray = NDArray[np.float64]
Collisions = Literal["full", "feet"]

FULL_TURN = 2 * math.pi
SAME = 1e-6  # relative; robot.yaml may round the MJCF's figures


def _angle(value: float) -> float:
    if abs(value) > FULL_TURN:
        raise ValueError(f"got {value}, expected rad within one turn (are these degrees?)")
    return value


Angle = Annotated[float, AfterValidator(_angle)]  # rad
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Motor(Strict):
    """One type of motor as the joint feels it: behind its gear, doubled in a linkage of two."""

    reflected_inertia: Positive
    """kg m^2, the rotor's times the square of the gear ratio."""
    effort_limit: Positive
    """N m."""
    velocity_limit: Positive
    """rad/s."""
    stiffness_max: Positive
    """N m/rad, the most that a command may ask for."""
    damping_max: Positive
    """N m s/rad, the most that a command may ask for."""


class JointRow(Strict):
    """One named joint; rows stand in the order of the motors."""

    name: str
    index: Annotated[int, Field(ge=0)]
    """Place on the motor bus, equal to the row's own place."""
    motor: str
    """A key of `motors`."""
    group: Literal["leg", "waist", "arm"]
    position_limit: tuple[Angle, Angle]
    """rad, lower and upper."""
    stand: Angle
    """rad, the pose of STAND."""
    crouch: Angle
    """rad, the low pose that SOFT_STOP moves to."""
    stand_stiffness: NotNegative
    """N m/rad."""
    stand_damping: NotNegative
    """N m s/rad."""
    damp: NotNegative
    """N m s/rad, used alone in DAMP."""

    @model_validator(mode="after")
    def _poses_fit(self) -> JointRow:
        low, high = self.position_limit
        if not low < high:
            raise ValueError(f"{self.name}: position_limit [{low}, {high}], expected lower < upper")
        for pose in ("stand", "crouch"):
            if not low <= getattr(self, pose) <= high:
                at = getattr(self, pose)
                raise ValueError(f"{self.name}: {pose} at {at}, expected within [{low}, {high}]")
        return self


class SafetyLimits(Strict):
    """What the safety filter and the mode machine need to know of this robot."""

    braking_acceleration: Positive
    """rad/s^2, how hard every joint can brake in front of its limit."""
    braking_band: Positive
    """rad/s below the braking speed at which torque into the limit starts to fade."""
    target_step_limit: Positive
    """rad, the most a joint's target may move in one control tick."""
    tilt_hold: Positive
    """rad between the pelvis' z axis and the vertical: HOLD."""
    roll_damp: Positive
    """rad: DAMP after tilt_damp_time."""
    pitch_damp: Positive
    """rad: DAMP after tilt_damp_time."""
    tilt_damp_time: Positive
    """s."""


class Gantry(Strict):
    """Where and how a simulated robot hangs on a rope."""

    body: str
    """A body of the MJCF."""
    point: tuple[float, float, float]
    """m, in the body's frame; above the centre of mass."""
    stiffness: Positive
    """N/m."""
    damping: NotNegative
    """N s/m."""


class RobotFile(Strict):
    """robot.yaml as it is written."""

    name: str
    model: str
    """MJCF beside robot.yaml."""
    imu: str
    """Which IMU low_state carries: site imu_in_<imu> of the MJCF."""
    motors: dict[str, Motor]
    joints: Annotated[list[JointRow], Field(min_length=1)]
    safety: SafetyLimits
    gantry: Gantry
    cameras: dict[str, str] = Field(default_factory=dict)
    """Name of a camera to its calibration file beside robot.yaml."""


@dataclass(frozen=True)
class Robot:
    """A robot that was checked against its model; arrays are read-only, rows in motor order."""

    name: str
    robot_id: int
    """uint64 over name and joint names; every message carries it."""
    path: Path
    """robot.yaml."""
    mjcf: Path
    imu: str
    """Which IMU low_state carries."""
    joint_names: tuple[str, ...]
    arm_joints: NDArray[np.intp]
    """(A,) rows of group "arm"."""
    position_limit: FloatArray
    """(N, 2) rad."""
    effort_limit: FloatArray
    """(N,) N m."""
    velocity_limit: FloatArray
    """(N,) rad/s."""
    stand_joint_pos: FloatArray
    """(N,) rad."""
    stand_stiffness: FloatArray
    """(N,) N m/rad."""
    stand_damping: FloatArray
    """(N,) N m s/rad."""
    crouch_joint_pos: FloatArray
    """(N,) rad."""
    damp_damping: FloatArray
    """(N,) N m s/rad, alone in DAMP."""
    stiffness_max: FloatArray
    """(N,) N m/rad."""
    damping_max: FloatArray
    """(N,) N m s/rad."""
    safety: SafetyLimits
    gantry: Gantry
    cameras: dict[str, Calibration]
    """By name."""

    @property
    def num_joints(self) -> int:
        """N."""
        return len(self.joint_names)

    @property
    def dims(self) -> dict[str, int]:
        """Lengths of the message sequences, by the names that messages use."""
        largest = max((c.file.frame_bytes for c in self.cameras.values()), default=1)
        return {
            "joints": self.num_joints, "arm_joints": len(self.arm_joints), "frame_bytes": largest,
        }  # fmt: skip


def load_robot(name_or_path: str | Path) -> Robot:
    """Read a robot and check it against its MJCF.

    Args:
        name_or_path: a folder of configs/ ("g1"), or the path of a robot.yaml.

    Raises:
        UserError: no such robot, or the first mistake in its files.
    """
    path = _find(name_or_path)
    shown = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
    data, lines = parse_yaml(read_text(path), shown)
    file = check(data, RobotFile, where=str(shown), lines=lines)
    mjcf = path.parent / file.model
    for key, mistake in _mistakes(file, mjcf):
        line = next(lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in lines)
        raise UserError(f"{shown}:{line}: {mistake}")
    return _robot(file, path, mjcf)


def build_spec(
    robot: Robot, collisions: Collisions = "full", terrain: Terrain = FLAT
) -> mujoco.MjSpec:
    """The robot on the ground, with light and sky, ready to be changed and compiled.

    Args:
        robot: gives the MJCF.
        collisions: "feet" lets nothing but the ground and the feet's outer geoms touch, which is
            faster; the file is the same.
        terrain: boxes on the floor; geoms of the world in group 0.
    """
    spec = mujoco.MjSpec.from_file(str(robot.mjcf))
    if collisions == "feet":
        for geom in spec.geoms:
            if geom.classname.name != "foot":
                geom.contype = geom.conaffinity = 0
            else:
                geom.contype = 0  # the floor touches it, the other foot does not
    _add_scene(spec)
    for calibration in robot.cameras.values():
        add_camera(spec, calibration)
    _add_terrain(spec, terrain)
    return spec


def compile_model(
    robot: Robot, collisions: Collisions = "full", terrain: Terrain = FLAT
) -> mujoco.MjModel:
    """The compiled scene of build_spec."""
    return build_spec(robot, collisions, terrain).compile()


def motor_gains(
    reflected_inertia: ArrayLike, natural_frequency_hz: float = 10.0, damping_ratio: float = 2.0
) -> tuple[FloatArray, FloatArray]:
    """Stiffness and damping that make a bare motor a second-order system.

    kp = I w^2 and kd = 2 zeta I w, with w = 2 pi f.

    Args:
        reflected_inertia: I, kg m^2, any shape.
        natural_frequency_hz: f.
        damping_ratio: zeta; 2 because the link behind the motor adds inertia.

    Returns:
        Stiffness in N m/rad and damping in N m s/rad, of the same shape.

    Source: BeyondMimic (arXiv 2508.08241), as in HybridRobotics/whole_body_tracking and mjlab.
    """
    inertia = np.asarray(reflected_inertia, dtype=np.float64)
    omega = 2 * math.pi * natural_frequency_hz
    return inertia * omega**2, 2 * damping_ratio * inertia * omega


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix:
        return path.resolve()
    known = sorted(p.parent.name for p in CONFIGS.glob("*/robot.yaml"))
    if str(name_or_path) not in known:
        raise UserError(f"robot {str(name_or_path)!r} is unknown; available: {listing(known)}")
    return CONFIGS / path / "robot.yaml"


def _robot(file: RobotFile, path: Path, mjcf: Path) -> Robot:
    rows = file.joints
    motors = [file.motors[row.motor] for row in rows]
    names = tuple(row.name for row in rows)

    def column(records: Sequence[Strict], field: str) -> FloatArray:
        return _frozen(np.array([getattr(r, field) for r in records], dtype=np.float64))

    return Robot(
        name=file.name,
        robot_id=hash64("\n".join((file.name, *names))),
        path=path,
        mjcf=mjcf,
        imu=file.imu,
        joint_names=names,
        arm_joints=_frozen(np.array([r.index for r in rows if r.group == "arm"], dtype=np.intp)),
        position_limit=column(rows, "position_limit"),
        effort_limit=column(motors, "effort_limit"),
        velocity_limit=column(motors, "velocity_limit"),
        stand_joint_pos=column(rows, "stand"),
        stand_stiffness=column(rows, "stand_stiffness"),
        stand_damping=column(rows, "stand_damping"),
        crouch_joint_pos=column(rows, "crouch"),
        damp_damping=column(rows, "damp"),
        stiffness_max=column(motors, "stiffness_max"),
        damping_max=column(motors, "damping_max"),
        safety=file.safety,
        gantry=file.gantry,
        cameras={name: load_calibration(path.parent / at) for name, at in file.cameras.items()},
    )


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array


Mistake = tuple[tuple, str]  # key path in robot.yaml, sentence


def _mistakes(file: RobotFile, mjcf: Path) -> Iterator[Mistake]:
    """Every mistake between the rows, and between the rows and the MJCF, gravest first."""
    yield from _row_mistakes(file)
    if not mjcf.is_file():
        near = sorted(p.name for p in mjcf.parent.glob("*.xml"))
        yield ("model",), f"model: no such file {file.model!r}; available there: {listing(near)}"
        return
    try:
        model = mujoco.MjModel.from_xml_path(str(mjcf))
    except ValueError as error:
        yield ("model",), f"{file.model} does not compile: {' '.join(str(error).split())}"
        return
    yield from _name_mistakes(file, model)
    for at, row in enumerate(file.joints):
        yield from _figure_mistakes(at, row, file, model)
    yield from _place_mistakes(file, model, mjcf.parent)
    yield from _braking_mistakes(file, model)


def _braking_mistakes(file: RobotFile, model: mujoco.MjModel) -> Iterator[Mistake]:
    safety = file.safety
    needed = safety.braking_band**2 / safety.braking_acceleration  # rad, both ends
    for row in file.joints:
        low, high = model.joint(row.name).range
        if high - low <= needed:
            got = f"braking_band {safety.braking_band} rad/s needs {needed:.3f} rad to brake in"
            yield ("safety", "braking_band"), f'{got}; joint "{row.name}" has {high - low:.3f} rad'
            return


def _row_mistakes(file: RobotFile) -> Iterator[Mistake]:
    names: dict[str, int] = {}
    indices: dict[int, str] = {}
    for at, row in enumerate(file.joints):
        joint = f'joint "{row.name}"'
        if row.name in names:
            yield ("joints", at, "name"), f"{joint} is given twice, first in row {names[row.name]}"
        if row.index in indices:
            taken = f'index {row.index} is taken by "{indices[row.index]}"'
            yield ("joints", at, "index"), f"{joint}: {taken}; expected {at}"
        if row.index != at:
            yield ("joints", at, "index"), f"{joint}: index {row.index}, expected {at}, its row"
        names[row.name], indices[row.index] = at, row.name
        motor = file.motors.get(row.motor)
        if motor is None:
            known = f"expected one of motors; available: {listing(file.motors)}"
            yield ("joints", at, "motor"), f'{joint}: motor "{row.motor}" is unknown; {known}'
            continue
        for field, most in (
            ("stand_stiffness", motor.stiffness_max),
            ("stand_damping", motor.damping_max),
            ("damp", motor.damping_max),
        ):
            if getattr(row, field) > most:
                got = f"{field} {getattr(row, field)}, expected at most {most}"
                yield ("joints", at, field), f"{joint}: {got} as of motor {row.motor}"


def _name_mistakes(file: RobotFile, model: mujoco.MjModel) -> Iterator[Mistake]:
    """Joints and actuators must be those of the rows, in their order."""
    rows = [row.name for row in file.joints]
    hinges = [
        model.joint(i).name
        for i in range(model.njnt)
        if model.jnt_type[i] == mujoco.mjtJoint.mjJNT_HINGE
    ]
    for at, name in enumerate(rows):
        if name not in hinges:
            near = listing(_nearest(name, hinges))
            expected = f"expected a joint of {file.model}; available: {near}"
            yield ("joints", at, "name"), f'joint "{name}" is unknown; {expected}'
    for name in hinges:
        if name not in rows:
            yield ("joints",), f'joints: "{name}" of {file.model} has no row; expected one'
    for at, (name, hinge) in enumerate(zip(rows, hinges, strict=True)):
        if name != hinge:
            expected = f'expected "{hinge}", the order of {file.model}'
            yield ("joints", at, "name"), f'joint "{name}" is out of order; {expected}'
    if [model.actuator(i).name for i in range(model.nu)] != hinges:
        yield ("model",), f"{file.model}: expected one actuator per joint, named and ordered alike"


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """`known` with the likeliest meant names first."""
    return sorted(known, key=lambda other: (not other.startswith(name), name not in other))


def _figure_mistakes(
    at: int, row: JointRow, file: RobotFile, model: mujoco.MjModel
) -> Iterator[Mistake]:
    """Limits, efforts and inertias are written in both files, so that each can be read alone."""
    motor, effort = file.motors[row.motor], file.motors[row.motor].effort_limit
    joint, actuator = model.joint(row.name), model.actuator(row.name)
    of_motor = f" of motor {row.motor}"
    for key, name, unit, got, expected in (
        ("position_limit", "", "rad", row.position_limit, joint.range),
        ("motor", "effort_limit", "N m", [-effort, effort], actuator.forcerange),
        ("motor", "reflected_inertia", "kg m^2", motor.reflected_inertia, joint.armature),
    ):
        if not np.allclose(got, expected, rtol=SAME, atol=0):
            what = name + of_motor if name else key
            figures = f"got {_figures(got)}, expected {_figures(expected)} {unit}"
            yield ("joints", at, key), f'joint "{row.name}": {what}: {figures} as in {file.model}'


def _figures(values: ArrayLike) -> str:
    flat = [f"{x:.7g}" for x in np.ravel(np.asarray(values))]
    return flat[0] if len(flat) == 1 else f"[{', '.join(flat)}]"


def _place_mistakes(file: RobotFile, model: mujoco.MjModel, folder: Path) -> Iterator[Mistake]:
    imus = [s[7:] for i in range(model.nsite) if (s := model.site(i).name).startswith("imu_in_")]
    if file.imu not in imus:
        expected = f"expected a site imu_in_... of {file.model}; available: {listing(imus)}"
        yield ("imu",), f"imu: {file.imu!r} is unknown; {expected}"
    bodies = [model.body(i).name for i in range(1, model.nbody)]
    if file.gantry.body not in bodies:
        expected = f"expected a body of {file.model}; available: {listing(bodies)}"
        yield ("gantry", "body"), f"gantry.body: {file.gantry.body!r} is unknown; {expected}"
    for name, at in file.cameras.items():
        camera = load_calibration(folder / at).file
        if camera.name != name:
            yield (
                ("cameras", name),
                f"cameras.{name}: {at} is of {camera.name!r}, expected {name!r}",
            )
        if camera.link not in bodies:
            expected = f"expected a body of {file.model}; available: {listing(bodies)}"
            yield ("cameras", name), f"cameras.{name}: {at}: link {camera.link!r}: {expected}"


def _add_scene(spec: mujoco.MjSpec) -> None:
    """Floor (geom "floor"), lights, sky and haze."""
    built = mujoco.mjtBuiltin
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=built.mjBUILTIN_GRADIENT,
        rgb1=[0.62, 0.72, 0.83], rgb2=[0.93, 0.94, 0.95], width=256, height=1536,
    )  # fmt: skip
    spec.add_texture(
        name="floor", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=built.mjBUILTIN_CHECKER,
        rgb1=[0.74, 0.76, 0.78], rgb2=[0.69, 0.71, 0.735], width=512, height=512,
        mark=mujoco.mjtMark.mjMARK_EDGE, markrgb=[0.84, 0.85, 0.86],
    )  # fmt: skip
    material = spec.add_material(name="floor", texrepeat=[1, 1], texuniform=True)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    # A plane's shadow on itself would be noise.
    spec.worldbody.add_geom(
        name="floor", type=plane, size=[0, 0, 0.05], material="floor", castshadow=False
    )
    spec.worldbody.first_body().add_light(
        name="sun", type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM, pos=[1, -1.2, 2.4],
        dir=[-0.4, 0.48, -0.95], diffuse=[0.6, 0.59, 0.57], specular=[0.3, 0.3, 0.3],
    )  # fmt: skip
    spec.visual.headlight.ambient = [0.36, 0.37, 0.39]
    spec.visual.headlight.diffuse = [0.32, 0.32, 0.32]
    spec.visual.headlight.specular = [0.1, 0.1, 0.1]
    spec.visual.rgba.haze = [0.9, 0.92, 0.94, 1]
    spec.visual.map.haze = 0.35
    spec.visual.quality.shadowsize = 2048
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1920, 1080
    spec.stat.center, spec.stat.extent = [0, 0, 0.7], 2.0


def _add_terrain(spec: mujoco.MjSpec, terrain: Terrain) -> None:
    """Its boxes in two greys, so that a step shows from above, without shadows, which cost most."""
    spec.geom("floor").pos = [0.0, 0.0, terrain.floor]
    for i, box in enumerate(terrain.boxes):
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, box.rotation().ravel())
        shade = (0.66, 0.76)[i // 2 % 2]
        spec.worldbody.add_geom(
            name=f"terrain{i}", type=mujoco.mjtGeom.mjGEOM_BOX, pos=box.centre(), quat=quat,
            size=0.5 * np.array(box.size), rgba=[shade, shade, shade, 1], castshadow=False,
        )  # fmt: skip
