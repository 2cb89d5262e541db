"""What a run is: one strict YAML file under configs/runs/, with the command line's overrides."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from robot.config import CONFIGS, REPOSITORY, Strict, UserError, listing, load_yaml
from robot.realtime import RealtimeConfig

if TYPE_CHECKING:  # it brings MuJoCo, half a second that most commands need not wait for
    from robot.model import Robot

RUNS = CONFIGS / "runs"
SHIPPED = REPOSITORY / "policies"  # <name>/<name>.onnx
SIMULATED = frozenset({"sim", "loopback"})  # drivers that move no real motor


HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def _is_address(text: str) -> bool:
    """Of one computer; not of all of them."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_multicast or address.is_reserved)


class NoiseConfig(Strict):
    """Standard deviations of simulated measurements."""

    joint_pos: float = Field(default=0.0, ge=0.0)
    """rad"""
    joint_vel: float = Field(default=0.0, ge=0.0)
    """rad/s"""
    imu_quat: float = Field(default=0.0, ge=0.0)
    """rad, about a random axis"""
    imu_gyro: float = Field(default=0.0, ge=0.0)
    """rad/s"""
    imu_accel: float = Field(default=0.0, ge=0.0)
    """m/s^2"""


class TerrainConfig(Strict):
    """The ground that a simulated robot walks on; it starts on a flat square of it."""

    name: str = "flat"
    """a row of robot.terrain.FAMILIES"""
    seed: int = Field(default=0, ge=0)
    """draws sizes and places"""
    difficulty: float | None = Field(default=None, gt=0.0)
    """m, what it measures depends on the family; null: the family's usual one"""

    @field_validator("name", "difficulty")
    @classmethod
    def _exists(cls, given: Any, info: ValidationInfo) -> Any:
        from robot.terrain import size_of  # with NumPy, which most commands need not load

        try:
            if info.field_name == "name":
                size_of(given)
            elif "name" in info.data:  # else that one was refused
                size_of(info.data["name"], given)
        except UserError as error:
            raise ValueError(error) from None
        return given


class SimConfig(Strict):
    """The simulated robot."""

    collisions: Literal["full", "feet"] = "full"
    physics_dt: float = Field(default=0.002, gt=0.0, le=0.01)
    """s; the control period is a whole number of these"""
    actuator_delay_ms: float = Field(default=0.0, ge=0.0, le=50.0)
    """from driver.write to torque"""
    corner_speed: float = Field(default=1.0, gt=0.0, le=1.0)
    """share of the velocity limit up to which a motor has full torque; from there it falls to 0"""
    noise: NoiseConfig = NoiseConfig()
    terrain: TerrainConfig = TerrainConfig()


class UnitreeConfig(Strict):
    """A Unitree G1, or its emulator, at the other end of DDS."""

    interface: str | None = None
    """network interface that the robot is connected to; it must be named"""
    network: str = "192.168.123.0/24"
    """where that interface must have its address; the vendor's network"""
    domain: int = Field(default=0, ge=0, le=232)
    """DDS domain; robots use 0"""
    emulator: bool = False
    """the other end is `plexus emulate g1`, and moves no real motor; a real robot is refused"""
    mode_machine: tuple[int, ...] = (5,)
    """what kinds of robot may answer (drivers.unitree_wire.VARIANTS); the model is of 5, rev 1.0"""
    readonly: bool = False
    """listen only: nothing is ever written or asked"""
    dry_run: bool = False
    """do everything, but send damping whatever the command is"""
    hang: bool = False
    """the robot hangs on a gantry: it may be taken over from its motion service"""
    stand_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """of the stand pose's stiffness: little for a first time on a gantry, 1 to stand on a floor"""
    trust_timeout: bool = False
    """do not try whether the motors notice that commands stop; arm without knowing"""
    trust_signs: bool = False
    """do not move each joint a little at the start, while the robot hangs, to see its sign"""
    repeats: int = Field(default=10, ge=3)
    """identical samples after which a sensor counts as frozen"""
    casing_limit: float = 85.0
    """degrees Celsius; the vendor's"""
    winding_limit: float = 120.0
    """degrees Celsius; the vendor's"""

    @field_validator("network")
    @classmethod
    def _is_network(cls, given: str) -> str:
        try:
            ipaddress.ip_network(given)
        except ValueError as error:
            raise ValueError(f"{error}; expected a network such as 192.168.123.0/24") from None
        return given

    @model_validator(mode="after")
    def _fits(self) -> UnitreeConfig:
        local = ipaddress.ip_network(self.network).is_loopback
        if self.emulator and (self.domain == 0 or not local):
            raise ValueError(
                "emulator: expected a domain other than 0 and a loopback network, so that no real "
                f"robot can be meant; got domain {self.domain}, network {self.network}"
            )
        if self.readonly and self.dry_run:
            raise ValueError("readonly and dry_run: expected one of them at most")
        return self


class OperatorConfig(Strict):
    """The operator on this computer."""

    automatic: bool = False
    """arm, stand up and start the policy without being told; simulation only"""
    velocity: tuple[float, float, float] | None = None
    """vx, vy (m/s), yaw rate (rad/s) to command all the time; null: what keys say"""
    arms: Literal["free", "swinging"] = "free"
    """what arms are commanded to do: nothing, the policy moves them; or robot.teleop.ARM_SWING"""
    keyboard: bool = True
    """read keys and show the live table where there is a terminal"""
    gamepad: bool = False
    """drive by a gamepad that is plugged into this computer"""


class ConsoleConfig(Strict):
    """The operator's console in a browser: of this computer, or of others by TLS."""

    enabled: bool = True
    port: int = Field(default=8520, ge=0, le=65535)
    """where it listens; 0, or if it is taken: any free one"""
    host: str | None = None
    """name or IPv4 address of this computer by which others' browsers come, over TLS, with a
    certificate of our own making; null: this computer alone"""

    @field_validator("host")
    @classmethod
    def _is_host(cls, given: str | None) -> str | None:
        if given is None:
            return None
        numeric = set(given) <= set("0123456789.:")
        if not HOST_NAME.fullmatch(given) or (numeric and not _is_address(given)):
            raise ValueError(
                f"got {given!r}, expected a name or an IPv4 address of this computer by which "
                "browsers reach it, such as robot.local or 192.168.1.7"
            )
        return given.lower()


Range = tuple[float, float]  # least and greatest; drawn uniformly


class CameraNoise(Strict):
    """What a simulated depth camera suffers; training, simulation and tests draw from it alike."""

    sigma_floor: Range = (0.002, 0.005)
    """m, standard deviation near the camera"""
    sigma_square: Range = (0.005, 0.015)
    """1/m, what it grows by with the square of the depth"""
    edge_px: Range = (0.0, 2.0)
    """pixels, rounded up, by which near things grow over far ones, or fly between them"""
    holes: Range = (0.0, 0.3)
    """share of the picture without depth, in blocks"""
    near_m: Range = (0.2, 0.3)
    """m, nearer is not seen"""
    inverse_step: Range = (0.0, 0.006)
    """1/m, steps of the inverse depth: a stereo camera's disparity"""
    field_of_view: Range = (0.98, 1.02)
    """share of the calibrated one"""
    pitch: Range = (-0.0524, 0.0524)
    """rad, of the mount"""
    roll_yaw: Range = (-0.0175, 0.0175)
    """rad, of the mount"""
    position: Range = (-0.01, 0.01)
    """m, of the mount, on each axis"""
    latency_ms: Range = (30.0, 150.0)
    """from the middle of exposure to publication"""
    latency_s: float = Field(default=5.0, gt=0.0)
    """s after which another latency is drawn"""
    drop: float = Field(default=0.02, ge=0.0, le=1.0)
    """share of frames that are lost"""
    freeze: float = Field(default=0.002, ge=0.0, le=1.0)
    """share of frames after which the camera repeats itself"""
    freeze_s: Range = (0.0, 0.5)
    """s, how long it does"""

    @model_validator(mode="after")
    def _ordered(self) -> CameraNoise:
        for name, value in self:
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name}: got {list(value)}, expected the least first")
        return self


class CameraConfig(Strict):
    """The camera in the head."""

    source: Literal["none", "sim", "v4l2", "replay"] = "none"
    noise: CameraNoise | None = CameraNoise()
    """sim: what disturbs the pictures; null: nothing"""
    device: str = "/dev/video0"
    """v4l2: the device"""
    log: Path | None = None
    """replay: a log with frames, shown again and again"""
    rgb: bool = False
    """sim and replay: also pictures in colour, for people, where there is GL"""


def default_log_folder() -> Path:
    """PLEXUS_LOG_DIR, else logs/ in the current folder."""
    return Path(os.environ.get("PLEXUS_LOG_DIR") or "logs")


class LogConfig(Strict):
    """The log of the run."""

    enabled: bool = True
    folder: Path = Field(default_factory=default_log_folder)
    """each log is a folder in it; the default is PLEXUS_LOG_DIR, or logs/ where we stand"""
    rotate_s: float = Field(default=60.0, gt=0.0)
    """s after which a new segment begins"""
    rotate_mb: int = Field(default=256, ge=1)
    """MB after which a new segment begins"""
    margin_mb: int = Field(default=16, ge=0)
    """MB that are left free on the disk; below, recording pauses and messages are counted"""


class RunConfig(Strict):
    """One run of the runtime."""

    name: str = ""
    """what logs call this run; empty: the name of its file"""
    robot: str
    driver: Literal["sim", "loopback", "unitree"]
    control_hz: int = Field(default=500, ge=50, le=2000)
    timing_factor: float = Field(default=1.0, ge=1.0, le=100.0)
    """multiplies gap and age limits; hardware refuses anything but 1"""
    target_wait_ms: int = Field(default=1, ge=0, le=10)
    """longest slice of a policy tick that control waits for the target it asked for"""
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    policy: Path | None = None
    """a file, or the name of a policy that comes with Plexus; null: the robot only stands"""
    unsigned_policy: bool = False
    """hardware and emulator: run a policy that nobody we trust has signed; the log says so"""
    seed: int = Field(default=0, ge=0)
    realtime: RealtimeConfig = RealtimeConfig()
    operator: OperatorConfig = OperatorConfig()
    viewer: bool = True
    """open a window with the robot where there is a display"""
    console: ConsoleConfig = ConsoleConfig()
    sim: SimConfig = SimConfig()
    unitree: UnitreeConfig = UnitreeConfig()
    camera: CameraConfig = CameraConfig()
    log: LogConfig = Field(default_factory=LogConfig)

    @field_validator("policy", mode="before")
    @classmethod
    def _shipped(cls, given: Any) -> Any:
        shipped = shipped_policies()
        return str(shipped[given]) if isinstance(given, str) and given in shipped else given

    @model_validator(mode="after")
    def _camera_fits(self) -> RunConfig:
        camera = self.camera
        if camera.source == "sim" and self.driver != "sim":
            raise ValueError(
                f"camera sim with driver {self.driver!r}: it draws what the simulation tells it; "
                "expected driver 'sim', or camera v4l2 or replay"
            )
        if camera.source == "replay" and camera.log is None:
            raise ValueError("camera replay: expected camera.log, a log with frames")
        if camera.rgb and camera.source not in ("sim", "replay"):
            raise ValueError(
                f"camera.rgb with camera {camera.source}: expected camera sim or replay"
            )
        return self

    @model_validator(mode="after")
    def _periods_fit(self) -> RunConfig:
        period = 1.0 / self.control_hz
        ratio = period / self.sim.physics_dt
        if self.driver == "sim" and (abs(ratio - round(ratio)) > 1e-6 or ratio < 0.5):
            raise ValueError(
                f"sim.physics_dt is {self.sim.physics_dt} s; expected a whole fraction of the "
                f"control period, {period} s"
            )
        delay = self.sim.actuator_delay_ms * 1e-3 / period
        if self.driver == "sim" and abs(delay - round(delay)) > 1e-6:
            raise ValueError(
                f"sim.actuator_delay_ms is {self.sim.actuator_delay_ms}; expected a whole number "
                f"of control periods, {period * 1e3:g} ms each"
            )
        if self.driver != "sim" and self.sim.terrain.name != "flat":
            raise ValueError(
                f"sim.terrain {self.sim.terrain.name!r}: for driver 'sim' only, got {self.driver!r}"
            )
        if not self.simulated and (self.timing_factor != 1.0 or self.operator.automatic):
            raise ValueError("hardware runs with timing_factor 1 and without operator.automatic")
        if self.target_wait_ms >= 1000.0 / self.control_hz:
            raise ValueError(
                f"target_wait_ms is {self.target_wait_ms}; expected less than the control period, "
                f"{1000.0 / self.control_hz:g} ms"
            )
        return self

    @property
    def simulated(self) -> bool:
        """True if no real motor can move."""
        return self.driver in SIMULATED or (self.driver == "unitree" and self.unitree.emulator)

    @property
    def period_ns(self) -> int:
        """Length of a control tick in ns."""
        return round(1e9 / self.control_hz)


def softened(robot: Robot, run: RunConfig) -> Robot:
    """The robot with as much of its stand stiffness as the run allows."""
    share = run.unitree.stand_share if run.driver == "unitree" else 1.0
    if share == 1.0:
        return robot
    return dataclasses.replace(robot, stand_stiffness=robot.stand_stiffness * share)


def shipped_policies() -> dict[str, Path]:
    """Files of the policies that come with Plexus, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*/*.onnx"))}


def run_path(name: str | Path) -> Path:
    """File of a run: configs/runs/<name>.yaml, or the path itself if it ends in .yaml.

    Raises:
        UserError: no such run; lists those there are.
    """
    path = Path(name)
    if path.suffix == ".yaml":
        return path
    path = RUNS / f"{name}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in RUNS.glob("*.yaml"))
        raise UserError(f"run {str(name)!r} is unknown; available: {listing(known)}")
    return path


def load_run(name: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a run's file, with the command line's values in place of its own (see load_yaml).

    Raises:
        UserError: no such run, or the file does not fit RunConfig.
    """
    path = run_path(name)
    run = load_yaml(path, RunConfig, overrides)
    return run if run.name else run.model_copy(update={"name": path.stem})
