"""Delays, jitters and loses an operator's samples, to rehearse and to test bad networks."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Chaos:
    """How bad the way is.

    Attributes:
        delay_ms: added to every sample.
        jitter_ms: most that is added on top, drawn evenly; samples may overtake each other.
        loss: share of samples that get lost, 0 to 1.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0

    def fate_ns(self, draw: random.Random) -> int | None:
        """ns by which the next sample is late; None: it is lost."""
        if self.loss and draw.random() < self.loss:
            return None
        return round((self.delay_ms + draw.random() * self.jitter_ms) * 1e6)
