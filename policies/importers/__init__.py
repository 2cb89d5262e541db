"""Knows the formats of other projects' policy files, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from onnx import ModelProto

from policies.importers import holosoma
from policies.manifest import Manifest, parse_onnx, read_bytes
from robot.config import UserError
from robot.model import Robot


class Importer(NamedTuple):
    """One format."""

    detect: Callable[[ModelProto], str | None]
    """None if the file has this format, else what is missing for it"""
    convert: Callable[[ModelProto, bytes, Path, Robot, str], tuple[ModelProto, Manifest]]
    """model, its bytes, path for messages, robot, name of the new policy"""


IMPORTERS: dict[str, Importer] = {
    "holosoma": Importer(holosoma.detect, holosoma.convert),
}


def import_policy(path: Path, robot: Robot, name: str | None = None) -> tuple[ModelProto, Manifest]:
    """Convert another project's policy file; write_policy makes the file of the result.

    Args:
        path: their file.
        robot: what it shall drive.
        name: of the new policy; without it the file's own.

    Raises:
        UserError: unknown format (with what each known one misses), or it does not fit the robot.
    """
    data = read_bytes(path)
    model = parse_onnx(data, path)
    missing: list[str] = []
    for format_name, importer in IMPORTERS.items():
        lack = importer.detect(model)
        if lack is None:
            return importer.convert(model, data, path, robot, name or path.stem)
        missing.append(f"{format_name} (missing: {lack})")
    raise UserError(f"{path}: unknown format; known: {'; '.join(missing)}")
