"""Cameras as data: reads a calibration file, and puts the camera it describes into a MuJoCo scene.

Axes are optical (OpenCV): x right, y down, z forward, row 0 on top; pixel centres at +0.5. MuJoCo's
camera looks along its own -z with y up, so the two differ by diag(1, -1, -1). Other projects'
formats are calibration_formats.py's.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import mujoco
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from robot.config import Strict, UserError, load_yaml
from robot.messages import DepthKind, Encoding, hash64
from robot.rotations import rotation_matrix

Distortion = Literal["none", "plumb_bob", "rational", "fisheye4"]
COEFFICIENTS: dict[str, int] = {"none": 0, "plumb_bob": 5, "rational": 8, "fisheye4": 4}
BYTES_PER_PIXEL = {"rgb8": 3, "bgr8": 3, "gray8": 1, "z16": 2}
JPEG_PIXELS_PER_BYTE = 4  # room for a JPEG of quality 80, which takes 8 pixels per byte at most
MAX_FRAME_BYTES = 60_000  # with its header a frame passes the bus, whose limit is bus.MAX_FRAME
SENSOR_WIDTH = 0.01  # m, of MuJoCo's camera; any, since only its ratio to the focal length counts
UNIT_LENGTH = 1e-6  # by which a quaternion's length may differ from 1
TO_MUJOCO = np.diag([1.0, -1.0, -1.0])

Size = Annotated[int, Field(ge=2, le=4096)]
Pixels = Annotated[float, Field(gt=0.0)]


class Mount(Strict):
    """A pose of the camera's optical axes in the frame of a link."""

    pos: tuple[float, float, float]
    """m."""
    quat_wxyz: tuple[float, float, float, float]
    """Scalar first, of length 1."""

    @model_validator(mode="after")
    def _unit(self) -> Mount:
        length = math.hypot(*self.quat_wxyz)
        if abs(length - 1.0) > UNIT_LENGTH:
            raise ValueError(f"quat_wxyz has length {length:.7g}, expected 1")
        return self


class Step(Strict):
    """One thing done to the sensor's image: either of both."""

    crop: tuple[int, int, Size, Size] | None = None
    """left, top, width, height in pixels."""
    resize: tuple[Size, Size] | None = None
    """width, height; each pixel becomes the nearest of the old ones."""

    @model_validator(mode="after")
    def _one(self) -> Step:
        if (self.crop is None) == (self.resize is None):
            raise ValueError("expected one of crop and resize")
        return self


class CalibrationFile(Strict):
    """A camera's calibration as it is written."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,14}$")]
    """What frames and topics call it."""
    width: Size
    """Columns of a frame."""
    height: Size
    """Rows of a frame."""
    fx: Pixels
    fy: Pixels
    cx: Pixels
    """From the left edge of the image; the middle of an image 64 wide is 32."""
    cy: Pixels
    """From the top edge."""
    distortion_model: Distortion = "none"
    distortion: tuple[float, ...] = ()
    """As many coefficients as the model has, in OpenCV's order."""
    encoding: Literal["rgb8", "bgr8", "gray8", "z16", "jpeg"]
    depth_kind: Literal["none", "z", "range"] = "none"
    depth_scale_m: Annotated[float, Field(ge=0.0, le=0.1)] = 0.0
    """m of one step of a z16 pixel."""
    rate_hz: Annotated[float, Field(gt=0.0, le=240.0)]
    link: str
    """A body of the MJCF that carries the camera."""
    T_link_cam: Mount  # the field's own name for this transform
    """Optical axes in the link."""
    sensor_size: tuple[Size, Size] | None = None
    """Columns and rows of what the sensor gives, before `chain`; null: those of a frame."""
    chain: tuple[Step, ...] = ()
    """Crops and resizes from the sensor's image to the frame, in order."""
    method: str
    """How it was found: nominal, a target and a program, ..."""
    date: date
    reprojection_error_px: Annotated[float, Field(ge=0.0)] | None = None
    serial: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> CalibrationFile:
        expected = COEFFICIENTS[self.distortion_model]
        if len(self.distortion) != expected:
            raise ValueError(
                f"distortion: got {len(self.distortion)} coefficients, expected {expected} of "
                f"model {self.distortion_model}"
            )
        if not (self.cx < self.width and self.cy < self.height):
            raise ValueError(
                f"cx, cy: got {self.cx:g}, {self.cy:g}, expected within the image of "
                f"{self.width} x {self.height}"
            )
        depth = self.encoding == "z16"
        if depth != (self.depth_kind != "none") or depth != (self.depth_scale_m > 0.0):
            raise ValueError(
                f"encoding {self.encoding} with depth_kind {self.depth_kind} and depth_scale_m "
                f"{self.depth_scale_m:g}; expected both with z16 and with z16 alone"
            )
        ends = through_chain(np.ones(4), self.sensor, self.chain)[1]
        if ends != (self.width, self.height) or (self.chain and self.encoding == "jpeg"):
            raise ValueError(
                f"chain: makes {ends[0]} x {ends[1]} of the sensor's {self.sensor[0]} x "
                f"{self.sensor[1]}, expected {self.width} x {self.height}, and no chain with jpeg"
            )
        if self.frame_bytes > MAX_FRAME_BYTES:
            raise ValueError(
                f"a frame of {self.frame_bytes} bytes ({self.width} x {self.height} {self.encoding}"
                f"), expected {MAX_FRAME_BYTES} at most; resize it, or use jpeg"
            )
        return self

    @property
    def sensor(self) -> tuple[int, int]:
        """Columns and rows before the chain."""
        return self.sensor_size or (self.width, self.height)

    @property
    def stride(self) -> int:
        """Bytes of a row; 0 of JPEG."""
        return self.width * BYTES_PER_PIXEL.get(self.encoding, 0)

    @property
    def frame_bytes(self) -> int:
        """Room for one frame's pixels."""
        if self.encoding == "jpeg":
            return self.width * self.height // JPEG_PIXELS_PER_BYTE
        return self.stride * self.height


@dataclass(frozen=True)
class Calibration:
    """A calibration that was checked; arrays are read-only."""

    file: CalibrationFile
    path: Path
    calib_hash: int
    """uint64 over all that decides where a pixel looks and what it means; frames carry it."""
    intrinsics: NDArray[np.float64]
    """(4,) fx, fy, cx, cy in pixels."""
    rotation: NDArray[np.float64]
    """(3, 3) optical axes, as columns, in the link."""
    position: NDArray[np.float64]
    """(3,) m in the link."""
    encoding: Encoding
    depth_kind: DepthKind

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.file.height, self.file.width


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        UserError: the first mistake in it, with file, line, got and expected.
    """
    return make_calibration(load_yaml(path, CalibrationFile), path)


def make_calibration(file: CalibrationFile, path: Path) -> Calibration:
    """What follows from a file's figures; `path` says where they are from."""
    mount = file.T_link_cam
    arrays = (
        np.array([file.fx, file.fy, file.cx, file.cy]),
        rotation_matrix(mount.quat_wxyz),
        np.array(mount.pos),
    )
    for array in arrays:
        array.setflags(write=False)
    return Calibration(
        file, path, _geometry_hash(file), *arrays,
        encoding=Encoding[file.encoding.upper()], depth_kind=DepthKind[file.depth_kind.upper()],
    )  # fmt: skip


def _geometry_hash(file: CalibrationFile) -> int:
    """Who calibrated it when is no part of it: the same figures have the same hash."""
    about = {"name", "rate_hz", "method", "date", "reprojection_error_px", "serial"}
    return hash64(json.dumps(file.model_dump(mode="json", exclude=about), sort_keys=True))


def through_chain(
    intrinsics: NDArray[np.float64], size: tuple[int, int], chain: tuple[Step, ...]
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """What crops and resizes make of (4,) fx, fy, cx, cy and of (columns, rows).

    Raises:
        ValueError: a crop goes beyond the image.
    """
    fx, fy, cx, cy = intrinsics
    wide, high = size
    for step in chain:
        if step.crop:
            left, top, width, height = step.crop
            if left < 0 or top < 0 or left + width > wide or top + height > high:
                raise ValueError(
                    f"chain: crop {list(step.crop)} of an image of {wide} x {high}, expected "
                    "left, top, width, height within it"
                )
            cx, cy, wide, high = cx - left, cy - top, width, height
        elif step.resize:
            width, height = step.resize
            fx, cx, fy, cy = (
                fx * width / wide, cx * width / wide, fy * height / high, cy * height / high,
            )  # fmt: skip
            wide, high = width, height
    return np.array([fx, fy, cx, cy]), (wide, high)


def apply_chain(image: NDArray, chain: tuple[Step, ...]) -> NDArray:
    """The frame that a chain makes of (rows, columns, ...) of the sensor."""
    for step in chain:
        if step.crop:
            left, top, width, height = step.crop
            image = image[top : top + height, left : left + width]
        elif step.resize:
            rows, columns = (
                ((np.arange(new) + 0.5) * old / new).astype(int)
                for new, old in zip(step.resize[::-1], image.shape, strict=False)
            )
            image = image[rows[:, None], columns]
    return np.ascontiguousarray(image)


def check_pinhole(calibration: Calibration, who: str) -> None:
    """Refuse a camera whose rays are bent.

    Raises:
        UserError: names the file, the model and who cannot work with it.
    """
    model = calibration.file.distortion_model
    if model != "none":
        raise UserError(
            f"{calibration.path}: distortion_model: got {model}, expected none: {who} works with "
            "rectified images"
        )


def mjcf_size(file: CalibrationFile) -> tuple[int, int]:
    """Columns and rows of the centred image that holds the frame.

    MuJoCo's own offset of the centre changed its sign between versions, so a frame whose centre is
    not in its middle is a crop of a larger image: columns from width' / 2 - cx on, rows likewise.
    """
    wide = math.ceil(2.0 * max(file.cx, file.width - file.cx))
    high = math.ceil(2.0 * max(file.cy, file.height - file.cy))
    return wide, high


def add_camera(spec: mujoco.MjSpec, calibration: Calibration) -> None:
    """Put the camera into a scene, under its own name, on its link."""
    file = calibration.file
    wide, high = mjcf_size(file)
    pixel = SENSOR_WIDTH / wide  # m; pixels are square in MuJoCo, the two focal lengths need not be
    spec.body(file.link).add_camera(
        name=file.name, pos=calibration.position, quat=_mjcf_quat(calibration),
        resolution=[wide, high], sensor_size=[wide * pixel, high * pixel],
        focal_length=[file.fx * pixel, file.fy * pixel],
    )  # fmt: skip


def aim_camera(model: mujoco.MjModel, calibration: Calibration) -> None:
    """Move the camera of this name, in a compiled scene, to where `calibration` has it."""
    row = model.camera(calibration.file.name).id
    pixel = SENSOR_WIDTH / mjcf_size(calibration.file)[0]
    model.cam_pos[row], model.cam_quat[row] = calibration.position, _mjcf_quat(calibration)
    model.cam_intrinsic[row, :2] = calibration.intrinsics[:2] * pixel


def _mjcf_quat(calibration: Calibration) -> NDArray[np.float64]:
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, (calibration.rotation @ TO_MUJOCO).ravel())
    return quat
