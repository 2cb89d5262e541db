"""The commands `plexus camera`: what a calibration says, and other projects' formats in and out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from robot.config import UserError, check_writable, listing


@dataclass(frozen=True)
class CameraShow:
    """Show what a robot's calibration file says of its camera."""

    camera: tyro.conf.Positional[str] = "head"
    """name of the camera"""
    robot: str = "g1"
    """name under configs/, or path of a robot.yaml"""


@dataclass(frozen=True)
class CameraImport:
    """Take intrinsics from a ROS camera_info or an OpenCV file; mount and encoding stay ours."""

    file: tyro.conf.Positional[Path]
    """YAML of camera_calibration, or of OpenCV's storage"""
    out: tyro.conf.Positional[Path]
    """calibration file to write"""
    camera: str = "head"
    """name of the camera"""
    robot: str = "g1"
    """name under configs/, or path of a robot.yaml"""


@dataclass(frozen=True)
class CameraExport:
    """Print the camera of a frame in another project's format."""

    camera: tyro.conf.Positional[str] = "head"
    """name of the camera"""
    to: Literal["ros", "opencv"] = "ros"
    """camera_info YAML, or OpenCV's storage"""
    robot: str = "g1"
    """name under configs/, or path of a robot.yaml"""


@dataclass(frozen=True)
class CameraTool:
    """Look at a camera's calibration, or convert it."""

    action: (
        Annotated[CameraShow, tyro.conf.subcommand("show")]
        | Annotated[CameraImport, tyro.conf.subcommand("import")]
        | Annotated[CameraExport, tyro.conf.subcommand("export")]
    )


def camera(args: CameraTool) -> int:
    """`plexus camera show|import|export`."""
    return RUNNERS[type(args.action)](args.action)


def _find(robot: str, name: str) -> Any:
    from robot.model import load_robot

    cameras = load_robot(robot).cameras
    if name not in cameras:
        raise UserError(f"camera {name!r} of {robot} is unknown; available: {listing(cameras)}")
    return cameras[name]


def show(args: CameraShow) -> int:
    """The figures, and what follows from them."""
    found = _find(args.robot, args.camera)
    file = found.file
    fx, fy, cx, cy = found.intrinsics
    edges = [
        np.degrees(np.arctan(near / f) + np.arctan((size - near) / f))
        for near, size, f in ((cx, file.width, fx), (cy, file.height, fy))
    ]
    ahead = np.degrees(np.arcsin(-found.rotation[2, 2]))
    print(f"file       {found.path}")
    print(f"frame      {file.width} x {file.height} {file.encoding} at {file.rate_hz:g} Hz")
    print(f"sensor     {file.sensor[0]} x {file.sensor[1]}, {len(file.chain)} steps to the frame")
    print(f"view       {edges[0]:.1f} degrees wide, {edges[1]:.1f} high")
    print(f"lens       {file.distortion_model}, fx {fx:.3f} fy {fy:.3f} cx {cx:.3f} cy {cy:.3f}")
    print(f"mount      on {file.link}, looks {ahead:.1f} degrees down of its horizontal")
    print(f"found      {file.method} ({file.date})")
    print(f"hash       {found.calib_hash:016x}")
    return 0


def import_file(args: CameraImport) -> int:
    """Read, check, then write."""
    from robot.calibration_formats import import_calibration, our_yaml

    check_writable(args.out)
    base = _find(args.robot, args.camera)
    file = import_calibration(args.file, base, datetime.now(UTC).date())
    args.out.write_text(our_yaml(file))
    print(f"{args.out}: written; name it under cameras in {args.robot}'s robot.yaml")
    return 0


def export(args: CameraExport) -> int:
    """Print it."""
    from robot.calibration_formats import export_calibration

    print(export_calibration(_find(args.robot, args.camera).file, args.to), end="")
    return 0


RUNNERS: dict[type, Any] = {CameraShow: show, CameraImport: import_file, CameraExport: export}
