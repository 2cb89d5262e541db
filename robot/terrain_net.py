"""Runs TerrainNet: what it is shown of a frame, the file it comes in, and what that must promise.

The file is an ONNX graph with a memory that goes from frame to frame, and one line of metadata that
says for which camera and grid it was made. Whatever does not fit is refused with a sentence.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from robot.calibration import Calibration
from robot.config import UserError, listing
from robot.geomap import SCAN_X, SCAN_XY, SCAN_Y
from robot.rotations import rotation_matrix

FloatArray = NDArray[np.float64]
Inputs = dict[str, NDArray[np.float32]]

NEAR_M, FAR_M = 0.2, 3.0  # depth is clipped to between them and divided by the latter
MEMORY = 256
STATE = 19  # gravity 3, angular and linear velocity 3 each, camera 6 + 3, time 1
CELLS = len(SCAN_XY)
METADATA = "plexus.terrain"
GRID = {"x_m": SCAN_X.tolist(), "y_m": SCAN_Y.tolist(), "order": "y outer, x inner"}
FRAME = "yaw frame at the pelvis; pelvis z minus terrain z"
UNITS = {"height": "m", "logvar": "ln m^2", "depth": "clip(z, 0.2 m, 3 m) / 3 m, 0 is invalid"}
PRIOR = ("prior_height", "prior_std", "prior_age")  # GeoMap's scan: m, m, s
OUTPUTS = {"height": [1, CELLS], "logvar": [1, CELLS], "h_out": [1, 1, MEMORY]}
GOLDEN_FRAMES, GOLDEN_TOLERANCE = 3, 1e-3  # m; other processors round otherwise
BYTES_MAX = 3_000_000


def input_shapes(prior: bool, picture: tuple[int, int] = (48, 64)) -> dict[str, list[int]]:
    """Name -> shape, of a network that is shown GeoMap's scan, or is not."""
    shapes = {"depth": [1, 1, *picture], "valid": [1, 1, *picture], "state": [1, STATE],
              "h_in": [1, 1, MEMORY]}  # fmt: skip
    return shapes | ({name: [1, CELLS] for name in PRIOR} if prior else {})


def depth_inputs(z: NDArray[np.floating], valid: NDArray[np.bool_]) -> Inputs:
    """The picture as the network takes it.

    Args:
        z: (..., H, W) z-depth in m.
        valid: (..., H, W) whether it counts.
    """
    depth = np.clip(z, NEAR_M, FAR_M) / FAR_M
    return {
        "depth": np.where(valid, depth, 0.0).astype(np.float32),
        "valid": valid.astype(np.float32),
    }


def state_input(
    quat_wxyz: ArrayLike,
    gyro: ArrayLike,
    velocity_b: ArrayLike,
    rotation_w: FloatArray,
    lever_w: FloatArray,
    since_s: float,
) -> NDArray[np.float32]:
    """(19,) the robot now, and where the camera was then.

    The camera's pose is that of the exposure, in the pelvis frame of now: heights are wanted where
    the robot is now, and odometry knows how far it went meanwhile.

    Args:
        quat_wxyz: (4,) orientation of the pelvis now.
        gyro: (3,) rad/s, pelvis frame.
        velocity_b: (3,) m/s, pelvis frame.
        rotation_w: (3, 3) optical axes of the camera in the odometry frame.
        lever_w: (3,) m, from the pelvis now to the camera, odometry frame.
        since_s: since the frame before; 0 for the first.
    """
    to_pelvis = rotation_matrix(quat_wxyz).T
    turn = to_pelvis @ rotation_w
    parts = (
        -to_pelvis[:, 2], gyro, velocity_b, turn[:, 0], turn[:, 1], to_pelvis @ lever_w, [since_s],
    )  # fmt: skip
    return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True)
class NetFile:
    """What a file says of itself; checked."""

    path: Path
    data: bytes
    prior: bool
    """it is shown GeoMap's scan"""
    camera: int
    """calib_hash of the camera it was trained for"""
    about: dict[str, Any]
    """its metadata, whole"""


def weights_sha256(model: onnx.ModelProto) -> str:
    """Hash over names and bytes of all weights."""
    hashed = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        hashed.update(tensor.name.encode())
        hashed.update(onnx.numpy_helper.to_array(tensor).tobytes())
    return hashed.hexdigest()


def read_net(path: Path) -> NetFile:
    """Read and check a network's file.

    Raises:
        UserError: there is none, it is none, or it breaks the contract.
    """
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception:  # protobuf raises kinds of its own
        raise UserError(f"{path}: is no ONNX file; expected a TerrainNet") from None
    raw = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA)
    try:
        about = json.loads(raw or "")
        prior, camera = bool(about["prior"]), int(about["camera"]["calib_hash"], 16)
        told = {key: about[key] for key in ("grid", "frame", "units", "weights_sha256", "golden")}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: has no metadata {METADATA!r}; expected a TerrainNet as `plexus train "
            "terrain` leaves it"
        ) from None
    for key, expected in (("grid", GRID), ("frame", FRAME), ("units", UNITS)):
        if told[key] != expected:
            raise UserError(f"{path}: {key}: got {told[key]}, expected {expected}")
    for kind, values, shapes in (
        ("input", model.graph.input, input_shapes(prior)), ("output", model.graph.output, OUTPUTS),
    ):  # fmt: skip
        got = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        for name, shape in shapes.items():
            if got.get(name) != shape:
                raise UserError(
                    f"{path}: {kind} {name}: got {got.get(name, 'none')}, expected {shape}; "
                    f"available: {listing(got)}"
                )
        if len(got) != len(shapes):
            raise UserError(f"{path}: {kind}s: got {listing(got)}, expected {listing(shapes)}")
    if weights_sha256(model) != told["weights_sha256"]:
        raise UserError(f"{path}: its weights are not those that it was written with")
    return NetFile(path, data, prior, camera, about)


class TerrainNet:
    """The network with its memory.

    Args:
        file: a checked file.
    """

    def __init__(self, file: NetFile) -> None:
        self.file = file
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            file.data, options, providers=["CPUExecutionProvider"]
        )
        self.reset()

    def reset(self) -> None:
        """Remember nothing."""
        self.h = np.zeros((1, 1, MEMORY), np.float32)

    def run(
        self, seen: Inputs, state: NDArray[np.float32], prior: tuple[NDArray, ...]
    ) -> tuple[FloatArray, FloatArray]:
        """One frame.

        Args:
            seen: depth_inputs of (H, W).
            state: (19,) state_input.
            prior: (187,) each, GeoMap's heights (m), standard deviations (m) and ages (s).

        Returns:
            (187,) heights and standard deviations in m.
        """
        feeds = {"depth": seen["depth"][None, None], "valid": seen["valid"][None, None],
                 "state": state[None], "h_in": self.h}  # fmt: skip
        if self.file.prior:
            feeds |= {
                name: np.asarray(values, np.float32)[None]
                for name, values in zip(PRIOR, prior, strict=True)
            }
        out: list[Any] = list(self._session.run(list(OUTPUTS), feeds))
        height, logvar, self.h = out
        return height[0].astype(np.float64), np.exp(0.5 * logvar[0].astype(np.float64))


def golden_inputs(prior: bool) -> list[tuple[Inputs, NDArray[np.float32], tuple[NDArray, ...]]]:
    """Frames that a file is tried with: random ones, so that nothing in it is left out."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(GOLDEN_FRAMES):
        z, valid = rng.uniform(0.1, 3.5, (48, 64)), rng.uniform(size=(48, 64)) < 0.8
        state = rng.normal(size=STATE).astype(np.float32)
        scan = (
            rng.normal(0.76, 0.1, CELLS),
            rng.uniform(0.005, 0.4, CELLS),
            rng.uniform(0, 5, CELLS),
        )
        out.append((depth_inputs(z, valid), state, scan if prior else ()))
    return out


def load_net(path: Path, calibration: Calibration) -> TerrainNet:
    """A network that is ready to run, for this camera.

    Raises:
        UserError: see read_net; or it is for another camera, or says other things here than
            where it was made.
    """
    file = read_net(path)
    if file.camera != calibration.calib_hash:
        raise UserError(
            f"{path}: was trained for a camera with calibration {file.camera:016x} "
            f"({file.about['camera'].get('file', '?')}), got {calibration.calib_hash:016x} of "
            f"{calibration.path.name}; train again, or use that calibration"
        )
    net = TerrainNet(file)
    for (seen, state, scan), expected in zip(
        golden_inputs(file.prior), file.about["golden"], strict=True
    ):
        off = float(np.abs(net.run(seen, state, scan)[0] - expected).max())
        if not off <= GOLDEN_TOLERANCE:
            raise UserError(
                f"{path}: its test vectors are off by {off:g} m here, expected at most "
                f"{GOLDEN_TOLERANCE:g}"
            )
    net.reset()
    return net
