"""What the robot sees, as pages show it: its cameras' newest pictures, the ground and its gate."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robot.messages import Encoding, Frame, FrameFault, HeightMap, Message
from robot.perception import camera_in_words, gate_names

FAR_M = 3.0  # darkest; nothing farther helps a foot
SILENT_NS = 1_000_000_000  # perception speaks also when the camera does not
QUALITY = 80  # of JPEG, where a camera gives plain pixels
PLAIN = {int(Encoding.RGB8): 3, int(Encoding.BGR8): 3, int(Encoding.GRAY8): 1}  # bytes of a pixel


class Eyes:
    """Keeps the newest pictures and map."""

    def __init__(self) -> None:
        self.frames: dict[str, Frame] = {}
        """newest of each camera, by its name"""
        self._map: HeightMap | None = None

    def hear(self, message: Message) -> None:
        """Remember a message, which must stay as it is."""
        if isinstance(message, Frame):
            self.frames[message.camera_id] = message
        elif isinstance(message, HeightMap):
            self._map = message

    def ground(self, now_ns: int) -> dict[str, Any] | None:
        """What perception says now; None where there is none."""
        out = self._map
        if out is None:
            return None
        names = [fault.name.lower() for fault in FrameFault]
        refused = dict(zip(names, out.refused.tolist(), strict=True))
        gate = gate_names(int(out.gate))
        if now_ns - out.now_ns > SILENT_NS:
            gate = ["no word from perception"]
        return {
            "height": [round(float(v), 3) for v in out.height - out.base_height],
            "gate": gate, "std": round(float(out.mean_std), 3), "age_ms": round(float(out.age_ms)),
            "frames": int(out.frames), "missed": int(out.missed),
            "camera": camera_in_words(float(out.camera_pitch)),
            "refused": {name: count for name, count in refused.items() if count},
        }  # fmt: skip


def picture(frame: Frame) -> dict[str, Any]:
    """A frame for a page: camera, width, height, dropped; and grey or jpeg, in base64.

    A frame that is not what it says has neither.
    """
    told = {
        "camera": frame.camera_id, "width": int(frame.width), "height": int(frame.height),
        "dropped": int(frame.dropped),
    }  # fmt: skip
    encoding, pixels = int(frame.encoding), int(frame.width) * int(frame.height)
    if not 0 < frame.size <= len(frame.data):
        return told
    data = frame.data[: frame.size]
    if encoding == Encoding.JPEG:
        told["jpeg"] = _base64(data.tobytes())
    elif encoding == Encoding.Z16 and frame.size == 2 * pixels:
        depth = data.view("<u2") * frame.depth_scale_m
        # 0: no depth; else 255 near and 1 far.
        grey = np.clip(np.round(255 - 254 * depth / FAR_M), 1, 255) * (depth > 0)
        told["grey"] = _base64(grey.astype(np.uint8).tobytes())
    elif encoding in PLAIN and frame.size == PLAIN[encoding] * pixels:
        told["jpeg"] = _base64(_jpeg(data.reshape(frame.height, frame.width, -1), encoding))
    return told


def _jpeg(pixels: NDArray[np.uint8], encoding: int) -> bytes:
    """(height, width, 3 or 1) as JPEG, which wants red first."""
    ordered = pixels[..., ::-1] if encoding == Encoding.BGR8 else pixels
    memory = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(ordered.squeeze()))
    image.save(memory, "JPEG", quality=QUALITY)
    return memory.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
