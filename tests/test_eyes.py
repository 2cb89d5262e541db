"""The console's eyes: what stands there is what camera and perception said; a browser draws it."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from robot.console.eyes import SILENT_NS, Eyes, picture
from robot.console.server import PAGE
from robot.messages import Encoding, Frame, FrameFault
from tests.test_browser import browser  # noqa: F401  # a fixture
from tests.test_perception import CODECS, MS, Stage

RED, BLUE = (220, 30, 20), (20, 30, 220)


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


def ground(stage: Stage, after_ns: int = 0) -> dict:
    eyes = Eyes()
    assert eyes.ground(0) is None and not eyes.frames
    eyes.hear(stage.maps[-1])
    out = eyes.ground(stage.now + after_ns)
    assert out is not None
    return out


def painted(encoding: Encoding) -> Frame:
    """Red on the left, blue on the right."""
    rgb = np.array([[RED] * 8 + [BLUE] * 8] * 16, np.uint8)
    frame: Frame = CODECS["frame.head"].new()
    frame.width, frame.height, frame.encoding = 16, 16, int(encoding)
    if encoding == Encoding.JPEG:
        memory = io.BytesIO()
        Image.fromarray(rgb).save(memory, "JPEG", quality=95, subsampling=0)
        data = np.frombuffer(memory.getvalue(), np.uint8)
    else:
        data = (rgb[..., ::-1] if encoding == Encoding.BGR8 else rgb).reshape(-1)
    frame.size = len(data)
    frame.data[: frame.size] = data
    return frame


def test_depth_is_grey_near_is_bright(seen: Stage):
    frame = seen.picture()
    frame.camera_id, frame.dropped = "head", 4
    out = picture(frame)
    assert (out["camera"], out["width"], out["height"], out["dropped"]) == ("head", 64, 48, 4)
    grey = np.frombuffer(base64.b64decode(out["grey"]), np.uint8).reshape(48, 64)
    depth = seen.rays.depth(seen.data)
    np.testing.assert_allclose(grey, np.maximum(255 - 254 * depth / 3.0, 1.0), atol=1.0)


def test_gate_and_counts_are_told(seen: Stage):
    out = ground(seen, 50 * MS)
    assert out["gate"] == ["uncertain"] and out["refused"] == {"black": 1}
    assert out["frames"] == 1 and len(out["height"]) == 187


def test_a_silent_perception_is_not_trusted_and_a_strange_frame_not_drawn(seen: Stage):
    assert ground(seen, SILENT_NS + MS)["gate"] == ["no word from perception"]
    frame: Frame = CODECS["frame.head"].new()
    frame.width, frame.height = 2**20, 2**20
    for frame.encoding, frame.size in ((3, 7), (0, 7), (3, 0), (4, 2**20)):
        assert picture(frame).keys() == {"camera", "width", "height", "dropped"}


@pytest.mark.parametrize("encoding", [Encoding.RGB8, Encoding.BGR8, Encoding.JPEG])
def test_red_stays_red(encoding: Encoding):
    jpeg = base64.b64decode(picture(painted(encoding))["jpeg"])
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)
    np.testing.assert_allclose(pixels[8, 2], RED, atol=25)
    np.testing.assert_allclose(pixels[8, 13], BLUE, atol=25)


def test_a_browser_draws_it(browser, seen: Stage):  # noqa: F811
    out = ground(seen)
    out["height"] = [0.0] * 187
    out["height"][0] = -0.25  # right behind, 25 cm up
    red = picture(painted(Encoding.BGR8)) | {"camera": "head_rgb"}
    page = browser.new_page()
    page.set_content(
        "<div id=eyes hidden><p></p><div class=row>"
        "<figure><canvas class=ground></canvas></figure></div><p></p></div>"
    )
    module = base64.b64encode((PAGE / "eyes.js").read_bytes()).decode()
    pixels = page.evaluate(
        """async ([module, ground, depth, red]) => {
          const {Eyes} = await import("data:text/javascript;base64," + module);
          const seen = [], card = document.getElementById("eyes");
          const eyes = new Eyes(card, (name) => seen.push(name));
          const taken = performance.now() - 1000;
          await eyes.camera({...depth, taken});
          await eyes.camera({...red, taken});
          await eyes.camera({...red, taken, camera: "broken", jpeg: "AAAA"});
          eyes.show(ground);
          const at = (name, x, y) => [...document.querySelector(name)
            .getContext("2d").getImageData(x, y, 1, 1).data];
          return {near: at("#eye-head", 32, 47), far: at("#eye-head", 32, 0),
                  up: at(".ground", 10, 16), flat: at(".ground", 0, 0),
                  red: at("#eye-head_rgb", 2, 8), blue: at("#eye-head_rgb", 13, 8), seen,
                  words: [...document.querySelectorAll("figcaption")].map((e) => e.textContent),
                  said: document.querySelector("p").textContent,
                  more: document.querySelectorAll("p")[1].textContent};
        }""",
        [module, out, picture(seen.picture()) | {"camera": "head"}, red],
    )
    page.close()
    assert pixels["near"][0] > pixels["far"][0] > 0 and pixels["up"] == [255, 190, 60, 255]
    assert pixels["flat"] == [60, 60, 60, 255]
    np.testing.assert_allclose(pixels["red"], (*RED, 255), atol=30)
    np.testing.assert_allclose(pixels["blue"], (*BLUE, 255), atol=30)
    assert pixels["seen"] == ["head", "head_rgb", "broken"], "the next ones may come"
    assert any(w.startswith("depth, 1") and w.endswith(" ms old") for w in pixels["words"])
    assert "colour, unreadable" in pixels["words"]
    assert pixels["said"] == "flat ground is assumed: uncertain"
    assert "dropped: 1 black" in pixels["more"] and FrameFault.BLACK.name == "BLACK"
