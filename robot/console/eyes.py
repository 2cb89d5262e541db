"""What the robot sees, as pages show it: the newest depth picture, the height map and its gate."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from robot.messages import Encoding, Frame, FrameFault, HeightMap, Message
from robot.perception import gate_names

FAR_M = 3.0  # darkest; nothing farther helps a foot
SILENT_NS = 1_000_000_000  # perception speaks also when the camera does not


class Eyes:
    """Keeps the newest picture and map."""

    def __init__(self) -> None:
        self._frame: Frame | None = None
        self._map: HeightMap | None = None

    def hear(self, message: Message) -> None:
        """Remember a message, which must stay as it is."""
        if isinstance(message, Frame):
            self._frame = message
        elif isinstance(message, HeightMap):
            self._map = message

    def to_dict(self, now_ns: int) -> dict[str, Any] | None:
        """What to show now; None while there is neither camera nor perception."""
        if self._frame is None and self._map is None:
            return None
        return {"frame": self._picture(now_ns), "map": self._ground(now_ns)}

    def _picture(self, now_ns: int) -> dict[str, Any] | None:
        frame = self._frame
        if frame is None:
            return None
        count = 2 * frame.width * frame.height
        shown = ""
        if frame.encoding == Encoding.Z16 and count == frame.size <= len(frame.data):
            depth = frame.data[:count].view("<u2") * frame.depth_scale_m
            # 0: no depth; else 255 near and 1 far.
            grey = np.clip(np.round(255 - 254 * depth / FAR_M), 1, 255) * (depth > 0)
            shown = base64.b64encode(grey.astype(np.uint8).tobytes()).decode()
        return {
            "width": int(frame.width), "height": int(frame.height), "grey": shown,
            "age_ms": round((now_ns - frame.t_mid_ns) * 1e-6), "dropped": int(frame.dropped),
        }  # fmt: skip

    def _ground(self, now_ns: int) -> dict[str, Any] | None:
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
            "refused": {name: count for name, count in refused.items() if count},
        }  # fmt: skip
