"""What a run is: one strict YAML file under configs/runs/, with the command line's overrides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from robot.config import CONFIGS, REPOSITORY, Strict, UserError, listing, load_yaml
from robot.realtime import RealtimeConfig

RUNS = CONFIGS / "runs"
SHIPPED = REPOSITORY / "policies"  # <name>/<name>.onnx
SIMULATED = frozenset({"sim", "loopback"})  # drivers that move no real motor


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


class ConsoleConfig(Strict):
    """The operator's console in a browser of this computer."""

    enabled: bool = True
    port: int = Field(default=8520, ge=0, le=65535)
    """where it listens, on this computer alone; 0, or if it is taken: any free one"""


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
    driver: Literal["sim", "loopback"]
    control_hz: int = Field(default=500, ge=50, le=2000)
    timing_factor: float = Field(default=1.0, ge=1.0, le=100.0)
    """multiplies gap and age limits; hardware refuses anything but 1"""
    target_wait_ms: int = Field(default=1, ge=0, le=10)
    """longest slice of a policy tick that control waits for the target it asked for"""
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    policy: Path | None = None
    """a file, or the name of a policy that comes with Plexus; null: the robot only stands"""
    seed: int = Field(default=0, ge=0)
    realtime: RealtimeConfig = RealtimeConfig()
    operator: OperatorConfig = OperatorConfig()
    viewer: bool = True
    """open a window with the robot where there is a display"""
    console: ConsoleConfig = ConsoleConfig()
    sim: SimConfig = SimConfig()
    log: LogConfig = Field(default_factory=LogConfig)

    @field_validator("policy", mode="before")
    @classmethod
    def _shipped(cls, given: Any) -> Any:
        shipped = shipped_policies()
        return str(shipped[given]) if isinstance(given, str) and given in shipped else given

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
        return self.driver in SIMULATED

    @property
    def period_ns(self) -> int:
        """Length of a control tick in ns."""
        return round(1e9 / self.control_hz)


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
