"""Other projects' calibration formats: ROS camera_info YAML and OpenCV's file storage, in and out.

They hold the sensor's intrinsics alone. Where the camera is mounted, what its pixels mean and how a
frame is cut out of the sensor's image come from a calibration of ours that is there already.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from robot.calibration import COEFFICIENTS, Calibration, CalibrationFile, through_chain
from robot.config import UserError, check, listing, read_text, short

Format = Literal["ros", "opencv"]
# What others call our models; ROS has no word for "none", which is plumb_bob with zeros.
ROS_MODELS = {
    "plumb_bob": "plumb_bob", "rational_polynomial": "rational", "equidistant": "fisheye4",
}  # fmt: skip
OPENCV_TAG = "tag:yaml.org,2002:opencv-matrix"


class Intrinsics(NamedTuple):
    """What these formats tell of a camera."""

    size: tuple[int, int]  # columns, rows
    matrix: NDArray[np.float64]  # (4,) fx, fy, cx, cy
    model: str  # one of ours
    distortion: tuple[float, ...]
    error_px: float | None


# --- reading ------------------------------------------------------------------------------------


def import_calibration(path: Path, base: Calibration, today: date) -> CalibrationFile:
    """Put the intrinsics of another project's file in place of our own.

    Args:
        path: a ROS camera_info YAML, or OpenCV's storage as YAML; told apart by what is in it.
        base: gives mount, encoding and chain.
        today: becomes the calibration's date.

    Raises:
        UserError: it is neither, something in it is missing, or its image has another size than
            our sensor or frame.
    """
    text = read_text(path)
    data = _load(text, path)
    read = _from_opencv if "%YAML:1.0" in text[:20] or "camera_matrix" not in data else _from_ros
    got = read(data, path)
    file = base.file
    if got.size == file.sensor:
        try:
            matrix, _ = through_chain(got.matrix, got.size, file.chain)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
    elif got.size == (file.width, file.height):
        matrix = got.matrix
    else:
        raise UserError(
            f"{path}: got an image of {got.size[0]} x {got.size[1]}, expected {file.sensor[0]} x "
            f"{file.sensor[1]} (the sensor) or {file.width} x {file.height} (a frame) as of "
            f"{base.path}"
        )
    names = ("fx", "fy", "cx", "cy")
    new = dict(zip(names, map(float, matrix), strict=True)) | {
        "distortion_model": got.model, "distortion": list(got.distortion),
        "method": f"imported from {path.name}", "date": today.isoformat(),
        "reprojection_error_px": got.error_px,
    }  # fmt: skip
    return check(file.model_dump(mode="json") | new, CalibrationFile, where=str(path))


def _load(text: str, path: Path) -> dict[str, Any]:
    """Plain data of a YAML file, OpenCV's dialect included."""
    text = re.sub(r"\A%YAML:1\.0\s*\n(---\s*\n)?", "", text)
    try:
        data = _OpenCvLoader(text).get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: got {short(data)}, expected a mapping of keys")
    return data


class _OpenCvLoader(yaml.SafeLoader):
    """A SafeLoader that reads OpenCV's matrices as mappings."""


_OpenCvLoader.add_constructor(OPENCV_TAG, lambda loader, node: loader.construct_mapping(node, True))  # type: ignore[arg-type]  # always a mapping


def _from_ros(data: dict[str, Any], path: Path) -> Intrinsics:
    size = _whole(data, "image_width", path), _whole(data, "image_height", path)
    name = data.get("distortion_model", "plumb_bob")
    if name not in ROS_MODELS:
        raise UserError(
            f"{path}: distortion_model: got {short(name)}; available: {listing(ROS_MODELS)}"
        )
    coefficients = _numbers(data, "distortion_coefficients", path)
    matrix = _numbers(data, "camera_matrix", path, 9)
    return _intrinsics(size, matrix, ROS_MODELS[name], coefficients, None, path)


def _from_opencv(data: dict[str, Any], path: Path) -> Intrinsics:
    size = _whole(data, "image_width", path), _whole(data, "image_height", path)
    name = "camera_matrix" if "camera_matrix" in data else "cameraMatrix"
    matrix = _numbers(data, name, path, 9)
    name = "distortion_coefficients" if "distortion_coefficients" in data else "distCoeffs"
    coefficients = _numbers(data, name, path)
    by_count = {5: "plumb_bob", 8: "rational", 4: "fisheye4"}
    if len(coefficients) not in by_count:
        raise UserError(
            f"{path}: {name}: got {len(coefficients)} coefficients, expected 5, 8 or 4 (fisheye)"
        )
    error = data.get("avg_reprojection_error")
    return _intrinsics(size, matrix, by_count[len(coefficients)], coefficients, error, path)


def _intrinsics(
    size: tuple[int, int], matrix: list[float], model: str, coefficients: list[float],
    error: float | None, path: Path,
) -> Intrinsics:  # fmt: skip
    fx, skew, cx, _, fy, cy, *_ = matrix
    if skew != 0.0:
        raise UserError(f"{path}: camera_matrix: got a skew of {skew:g}, expected 0")
    if not any(coefficients):
        model, coefficients = "none", []
    elif len(coefficients) != COEFFICIENTS[model]:
        raise UserError(
            f"{path}: got {len(coefficients)} distortion coefficients, expected "
            f"{COEFFICIENTS[model]} of {model}"
        )
    return Intrinsics(size, np.array([fx, fy, cx, cy]), model, tuple(coefficients), error)


def _whole(data: dict[str, Any], key: str, path: Path) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{path}: {key}: got {short(value)}, expected a number of pixels")
    return value


def _numbers(data: dict[str, Any], key: str, path: Path, count: int | None = None) -> list[float]:
    """`data` of the matrix `key`."""
    matrix = data.get(key)
    values = matrix.get("data") if isinstance(matrix, dict) else None
    good = isinstance(values, list) and all(
        isinstance(v, int | float) and np.isfinite(v) for v in values
    )
    if not good or (count is not None and len(values) != count):  # type: ignore[arg-type]
        many = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"{path}: {key}: got {short(matrix)}, expected a matrix with {many}")
    return [float(v) for v in values]  # type: ignore[union-attr]


# --- writing ------------------------------------------------------------------------------------


def export_calibration(file: CalibrationFile, form: Format) -> str:
    """The text of another project's file, of the frame as it is after our chain."""
    return WRITERS[form](file)


def _matrices(file: CalibrationFile) -> tuple[list[float], list[float]]:
    """(9,) camera matrix by rows, distortion coefficients; no distortion is five zeros."""
    matrix = [file.fx, 0.0, file.cx, 0.0, file.fy, file.cy, 0.0, 0.0, 1.0]
    return matrix, list(file.distortion) or [0.0] * COEFFICIENTS["plumb_bob"]


def _to_ros(file: CalibrationFile) -> str:
    matrix, coefficients = _matrices(file)
    theirs = {ours: name for name, ours in ROS_MODELS.items()}
    projection = [*matrix[:3], 0.0, *matrix[3:6], 0.0, *matrix[6:], 0.0]

    def block(rows: int, columns: int, values: list[float]) -> dict[str, Any]:
        return {"rows": rows, "cols": columns, "data": values}

    data = {
        "image_width": file.width,
        "image_height": file.height,
        "camera_name": file.name,
        "camera_matrix": block(3, 3, matrix),
        "distortion_model": theirs.get(file.distortion_model, "plumb_bob"),
        "distortion_coefficients": block(1, len(coefficients), coefficients),
        "rectification_matrix": block(3, 3, np.eye(3).ravel().tolist()),
        "projection_matrix": block(3, 4, projection),
    }
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None)


def _to_opencv(file: CalibrationFile) -> str:
    matrix, coefficients = _matrices(file)

    def block(name: str, rows: int, columns: int, values: list[float]) -> str:
        return (
            f"{name}: !!opencv-matrix\n   rows: {rows}\n   cols: {columns}\n   dt: d\n"
            f"   data: [ {', '.join(repr(v) for v in values)} ]\n"
        )

    error = file.reprojection_error_px
    return (
        "%YAML:1.0\n---\n"
        f"image_width: {file.width}\nimage_height: {file.height}\n"
        + block("camera_matrix", 3, 3, matrix)
        + block("distortion_coefficients", 1, len(coefficients), coefficients)
        + ("" if error is None else f"avg_reprojection_error: {error!r}\n")
    )


WRITERS: Mapping[str, Callable[[CalibrationFile], str]] = {"ros": _to_ros, "opencv": _to_opencv}


def our_yaml(file: CalibrationFile) -> str:
    """The text of a calibration file of ours."""
    data = file.model_dump(mode="json", exclude_defaults=True)
    data["date"] = file.date  # YAML's own type
    data["T_link_cam"] = {key: list(value) for key, value in data["T_link_cam"].items()}
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None)
