"""The console's eyes: what stands there is what camera and perception said; a browser draws it."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from robot.console.eyes import SILENT_NS, Eyes
from robot.console.server import PAGE
from robot.messages import FrameFault
from tests.test_browser import browser  # noqa: F401  # a fixture
from tests.test_perception import CODECS, MS, Stage


@pytest.fixture(scope="module")
def seen() -> Stage:
    """A robot before a box, and one black frame."""
    stage = Stage()
    stage.live(100)
    stage.see()
    stage.live(34)
    black = stage.picture()
    black.data[:] = 0
    stage.see(black)
    return stage


def told(stage: Stage, after_ns: int = 0) -> dict:
    eyes = Eyes()
    assert eyes.to_dict(0) is None
    frame = stage.picture()
    frame.dropped = 4
    eyes.hear(frame)
    eyes.hear(stage.maps[-1])
    out = eyes.to_dict(stage.now + after_ns)
    assert out is not None
    return out


def test_picture_age_gate_and_counts_are_told(seen: Stage):
    out = told(seen, 50 * MS)
    frame, ground = out["frame"], out["map"]
    assert (frame["width"], frame["height"], frame["age_ms"], frame["dropped"]) == (64, 48, 50, 4)
    grey = np.frombuffer(base64.b64decode(frame["grey"]), np.uint8).reshape(48, 64)
    depth = seen.rays.depth(seen.data)
    np.testing.assert_allclose(grey, np.maximum(255 - 254 * depth / 3.0, 1.0), atol=1.0)
    assert ground["gate"] == ["uncertain"] and ground["refused"] == {"black": 1}
    assert ground["frames"] == 1 and len(ground["height"]) == 187


def test_a_silent_perception_is_not_trusted_and_a_strange_frame_not_drawn(seen: Stage):
    assert told(seen, SILENT_NS + MS)["map"]["gate"] == ["no word from perception"]
    eyes = Eyes()
    frame = CODECS["frame.head"].new()
    frame.width, frame.height, frame.size, frame.encoding = 2**20, 2**20, 7, 3
    eyes.hear(frame)
    out = eyes.to_dict(0)
    assert out is not None and out["frame"]["grey"] == "" and out["map"] is None


def test_a_browser_draws_it(browser, seen: Stage):  # noqa: F811
    out = told(seen)
    out["map"]["height"] = [0.0] * 187
    out["map"]["height"][0] = -0.25  # right behind, 25 cm up
    page = browser.new_page()
    page.set_content(
        "<div id=eyes hidden><p></p><canvas class=depth></canvas>"
        "<canvas class=ground></canvas><p></p></div>"
    )
    module = base64.b64encode((PAGE / "eyes.js").read_bytes()).decode()
    pixels = page.evaluate(
        """async ([module, seen]) => {
          const {Eyes} = await import("data:text/javascript;base64," + module);
          new Eyes(document.getElementById("eyes")).show(seen);
          const at = (name, x, y) => [...document.querySelector(name)
            .getContext("2d").getImageData(x, y, 1, 1).data];
          return {near: at(".depth", 32, 47), far: at(".depth", 32, 0), up: at(".ground", 10, 16),
                  flat: at(".ground", 0, 0), said: document.querySelector("p").textContent,
                  more: document.querySelectorAll("p")[1].textContent};
        }""",
        [module, out],
    )
    page.close()
    assert pixels["near"][0] > pixels["far"][0] > 0 and pixels["up"] == [255, 190, 60, 255]
    assert pixels["flat"] == [60, 60, 60, 255]
    assert pixels["said"] == "flat ground is assumed: uncertain"
    assert "dropped: 1 black" in pixels["more"] and FrameFault.BLACK.name == "BLACK"
