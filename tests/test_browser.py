"""A real browser, headless: drill, arm, walk by key and by stick, STOP; what lets go; a phone.

It needs Chromium (Debian: `apt-get install chromium`). Where there is none these tests are skipped,
but not in continuous integration. Pictures of what was seen are kept in runs/browser/.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from playwright.sync_api import Browser, Page, expect, sync_playwright

from robot.bus import Subscriber
from robot.console.access import Role
from robot.console.hands import Hands
from robot.console.poses import load_arms
from robot.messages import Command, Mode, PolicyInput, Status, Truth, policy_id
from robot.model import load_robot
from robot.node import CONSOLE_FILE
from robot.runs import shipped_policies
from robot.topics import make_codecs
from tests.conftest import ROOT, eventually

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
ELBOW = ROBOT.joint_names.index("left_elbow_joint")
PICTURES = ROOT / "runs" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome")
# Software draws in a test: WebGL by SwiftShader, and the page put together by the processor, as
# Chromium does by itself without a graphics processor. --use-angle=swiftshader would emulate one
# for the page too: an empty WebGL loop then reached 25 pictures per second instead of 60. The
# sandbox needs a user that is not root.
SWITCHES = ["--no-sandbox", "--enable-unsafe-swiftshader"]
PATIENT_MS = 60_000  # of the page, on a machine with other things to do

RUN = """
robot: g1
driver: {driver}
control_hz: 500
timing_factor: 30.0
viewer: false
operator: {{automatic: false, keyboard: false}}
console: {{port: 0}}
sim: {{actuator_delay_ms: 2.0, corner_speed: 0.8}}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        text = "no Chromium here, so no browser drives the console: apt-get install chromium"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
    PICTURES.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENT_MS)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield made
        made.close()


class Bus:
    """What the robot says, beside the page."""

    def __init__(self, folder: Path) -> None:
        self.context = zmq.Context()
        topics = ("status", "truth", "policy_input", "command.console")
        codecs = {topic: CODECS[topic] for topic in topics}
        self.subscriber = Subscriber(self.context, folder, codecs, every=True)
        self.modes: list[Mode] = []
        self.reason, self.policy = "", 0
        self.released = False  # by the gantry
        self.place = np.zeros(2)  # m
        self.wish = np.zeros(3)  # newest command
        self.arms = np.zeros(0)  # rad, as the policy is told
        self.elbow = 0.0  # rad, the left one's true angle

    def hear(self) -> Bus:
        while message := self.subscriber.receive():
            if isinstance(message, Status):
                self.reason, self.policy = message.reason, message.policy_id
                if not self.modes or self.modes[-1] != message.mode:
                    self.modes.append(Mode(message.mode))
            elif isinstance(message, Truth):
                self.place, self.released = message.base_pos_w[:2].copy(), bool(message.released)
                self.elbow = float(message.joint_pos[ELBOW])
            elif isinstance(message, PolicyInput):
                self.arms = message.arm_joint_pos.copy()
            elif isinstance(message, Command):
                self.wish = message.velocity.copy()
        return self

    @property
    def mode(self) -> Mode | None:
        self.hear()
        return self.modes[-1] if self.modes else None

    def close(self) -> None:
        self.subscriber.close()
        self.context.term()


@pytest.fixture
def house(launch, tmp_path: Path, runtime_dir: Path, browser: Browser) -> Iterator[Any]:
    """Starts a run with a console, opens its page; ends with the test."""
    opened: list[Any] = []

    def start(driver: str, policy: Path, log: str = "no") -> tuple[Page, Bus]:
        file = tmp_path / "run.yaml"
        file.write_text(RUN.format(driver=driver))
        run = launch("run", str(file), "--policy", str(policy), "--log", log)
        address = runtime_dir / CONSOLE_FILE
        eventually(lambda: address.exists() or run.process.poll() is not None, 60.0)
        assert run.process.poll() is None, run.err
        context = browser.new_context(viewport={"width": 1280, "height": 860})
        page = context.new_page()
        page.set_default_timeout(PATIENT_MS)
        mistakes: list[str] = []
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        bus = Bus(runtime_dir)
        opened.append((context, bus, mistakes))
        page.goto(address.read_text().strip())
        expect(page.locator("#chip-link")).to_have_text("connected", timeout=PATIENT_MS)
        return page, bus

    yield start
    for context, bus, mistakes in opened:
        context.close()
        bus.close()
        assert not mistakes


def picture(page: Page, name: str, full: bool = False) -> None:
    page.screenshot(path=PICTURES / f"{name}.png", full_page=full)


def press(page: Page, ask: str) -> None:
    """A button, once it is allowed."""
    button = page.locator(f"#ask-{ask}")
    expect(button).to_be_enabled(timeout=PATIENT_MS)
    button.click()


def sees(page: Page, mode: str) -> None:
    expect(page.locator("#mode-word")).to_have_text(mode, timeout=PATIENT_MS)


def may_move(page: Page) -> None:
    """The page has let go of everything since the mode changed, and control knows."""
    text = "Hold a key or stick to move."
    expect(page.locator("#deadman")).to_have_text(text, timeout=PATIENT_MS)


def into_policy(page: Page, bus: Bus) -> None:
    """Drill, then all the way into the policy."""
    expect(page.locator("#ask-ARM")).to_be_disabled()
    page.locator("#stop").click()
    sees(page, "ESTOP")
    expect(page.locator("#note")).to_contain_text("STOP acknowledged by control after")
    press(page, "ACQUIRE")
    expect(page.locator("#chip-driver")).to_have_text("you drive", timeout=PATIENT_MS)
    for ask, mode in (("RESET", "PASSIVE"), ("ARM", "DAMP")):
        press(page, ask)
        sees(page, mode)
    press(page, "STAND_UP")
    sees(page, "STAND")


def start_policy(page: Page) -> None:
    """From STAND into the policy, which may be moved."""
    press(page, "START_POLICY")
    sees(page, "POLICY")
    may_move(page)


def walk_until(bus: Bus, metres: float, most_s: float = 60.0) -> float:
    """Wait until the robot has come so far from where it is, or stops walking; returns how far."""
    start = bus.hear().place.copy()
    deadline = time.monotonic() + most_s
    far = 0.0
    while far < metres and time.monotonic() < deadline and bus.mode in (Mode.POLICY, Mode.HOLD):
        time.sleep(0.02)
        far = float(np.linalg.norm(bus.hear().place - start))
    return far


def test_a_person_arms_walks_a_metre_by_key_and_by_stick_and_stops(
    house, public_policy: Callable[[str], Path]
):
    page, bus = house("sim", public_policy("ppo"))
    into_policy(page, bus)
    eventually(lambda: bus.hear().released, 60.0)
    start_policy(page)
    page.locator("#speed").fill("60")
    time.sleep(2.5)  # the ramp into the policy: until it ends, commands wait
    page.keyboard.down("KeyW")
    by_key = walk_until(bus, 1.0)
    picture(page, "walking-by-key")
    page.keyboard.up("KeyW")
    sees(page, "HOLD")
    stick = page.locator("#stick-drive").bounding_box()
    assert stick
    x, y = stick["x"] + stick["width"] / 2, stick["y"] + stick["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 60, steps=4)
    by_stick = walk_until(bus, 1.0)
    assert bus.mode == Mode.POLICY, bus.reason
    picture(page, "walking-by-stick")
    page.keyboard.press("Space")
    sees(page, "ESTOP")
    expect(page.locator("#mode-what")).to_contain_text("DAMP")
    page.mouse.up()
    assert bus.mode == Mode.ESTOP and Mode.FAULT not in bus.modes
    picture(page, "stopped", full=True)
    assert by_key >= 1.0 and by_stick >= 1.0


def drag(page: Page, selector: str, by: tuple[float, float]) -> None:
    """Press in the middle of an element and pull; the button stays down."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by[0] * box["width"], y + by[1] * box["height"], steps=4)


def test_arms_follow_a_slider_while_walking_and_stop_ends_both(house):
    page, bus = house("sim", shipped_policies()["walk"])
    into_policy(page, bus)
    eventually(lambda: bus.hear().released, 60.0)
    start_policy(page)
    time.sleep(2.5)  # the ramp into the policy: until it ends, commands wait
    page.keyboard.down("KeyW")
    begin, elbow = bus.hear().place.copy(), bus.elbow
    drag(page, "#arm-left_elbow_joint", (0.4, 0.0))
    eventually(lambda: bus.hear().elbow > elbow + 0.5, 60.0)
    eventually(lambda: np.linalg.norm(bus.hear().place - begin) > 0.2, 60.0)
    assert bus.mode == Mode.POLICY, bus.reason
    picture(page, "arms-while-walking")
    page.mouse.up()
    page.locator("#arm-poses button").nth(4).hover()
    page.mouse.down()
    moving = bus.hear().arms
    eventually(lambda: np.abs(bus.hear().arms - moving).max() > 0.1, 30.0)
    page.keyboard.press("Escape")
    sees(page, "ESTOP")
    eventually(lambda: bus.mode == Mode.ESTOP, 20.0)
    still = bus.hear().arms
    time.sleep(1.0)
    np.testing.assert_array_equal(bus.hear().arms, still)
    assert Mode.FAULT not in bus.modes
    page.mouse.up()


def test_a_hand_is_dragged_in_the_picture_and_let_go_with_the_window(house, standing_policy: Path):
    page, bus = house("loopback", standing_policy)
    hands = Hands(ROBOT, list(load_arms(ROBOT).hands.values()))
    into_policy(page, bus)
    start_policy(page)
    before = hands.points(bus.hear().arms)
    drag(page, "#hand-left", (0.0, -2.0))
    eventually(lambda: hands.points(bus.hear().arms)[0][2] > before[0][2] + 0.1, 30.0)
    after = hands.points(bus.hear().arms)
    picture(page, "hand-dragged")
    assert np.linalg.norm(after[1] - before[1]) < 0.01, "the other hand stays"
    assert bus.mode == Mode.POLICY and not bus.wish.any()
    page.evaluate("window.dispatchEvent(new Event('blur'))")
    eventually(lambda: bus.mode == Mode.HOLD, 30.0)
    still = bus.hear().arms
    page.mouse.move(300, 300, steps=3)
    time.sleep(1.0)
    np.testing.assert_array_equal(bus.hear().arms, still, "the button is still down")
    page.mouse.up()


def test_whatever_takes_hands_away_lets_go(house, standing_policy: Path):
    page, bus = house("loopback", standing_policy)
    into_policy(page, bus)
    start_policy(page)
    lost = {
        "focus": "window.dispatchEvent(new Event('blur'))",
        "page": "window.dispatchEvent(new Event('pagehide'))",
    }
    for what, script in lost.items():
        page.keyboard.down("KeyW")
        eventually(lambda: bus.hear().wish[0] > 0.0 and bus.mode == Mode.POLICY, 30.0)
        page.evaluate(script)
        eventually(lambda: bus.mode == Mode.HOLD and not bus.hear().wish.any(), 30.0)
        # The operating system repeats a key that is still down; that is no new press.
        page.evaluate("""window.dispatchEvent(new KeyboardEvent('keydown',
            {code: 'KeyW', repeat: true, bubbles: true}))""")
        time.sleep(0.5)
        assert bus.mode == Mode.HOLD and not bus.hear().wish.any(), what
        page.keyboard.up("KeyW")
    # Another tab in front: this one is hidden, or has no focus any more.
    page.keyboard.down("KeyW")
    eventually(lambda: bus.hear().wish[0] > 0.0 and bus.mode == Mode.POLICY, 30.0)
    page.context.close()
    eventually(lambda: bus.mode == Mode.HOLD, 30.0)


def test_a_killed_console_is_a_hold_and_its_page_says_so(house, runtime_dir, standing_policy: Path):
    page, bus = house("loopback", standing_policy)
    into_policy(page, bus)
    start_policy(page)
    page.keyboard.down("KeyW")
    eventually(lambda: bus.hear().wish[0] > 0.0 and bus.mode == Mode.POLICY, 30.0)
    rows = json.loads((runtime_dir / "nodes.json").read_text())["nodes"]
    os.kill(next(row["pid"] for row in rows if row["name"] == "console"), signal.SIGKILL)
    eventually(lambda: bus.mode == Mode.HOLD, 30.0)
    sees(page, "NO LINK")
    picture(page, "cut-off")
    time.sleep(1.0)
    assert bus.mode == Mode.HOLD, "the key is still down, and moves nothing"


def test_a_person_marks_a_moment_and_replays_an_earlier_run_in_which_nobody_drives(
    house, log_dir: Path, standing_policy: Path
):
    name = "20261124T033000Z-sim-1a2b"
    shutil.copytree(ROOT / "tests" / "data" / "logs" / "walk", log_dir / name)
    page, bus = house("loopback", standing_policy, log="yes")
    expect(page.locator("#mark")).to_be_enabled(timeout=PATIENT_MS)
    page.locator("#mark-note").click()
    page.keyboard.type("a wet floor")
    page.keyboard.press("Enter")
    said = "browser 1 marked: a wet floor"
    expect(page.locator("#events")).to_contain_text(said, timeout=PATIENT_MS)
    assert bus.mode == Mode.PASSIVE, "in a note a space is no STOP"
    page.locator("#episode").click()
    expect(page.locator("#episode")).to_have_text("End the episode", timeout=PATIENT_MS)

    page.locator("#runs summary").click()
    row = page.locator("#runs tbody tr", has_text=name)
    row.get_by_role("button", name="Replay").click()
    expect(page.locator("#replay-name")).to_have_text(name, timeout=PATIENT_MS)
    expect(page.locator("#replay-mode")).to_have_text("POLICY", timeout=PATIENT_MS)
    picture(page, "replay")
    page.locator("#replay-play").click()
    page.locator("#replay-line").fill("0.5")
    expect(page.locator("#replay-time")).to_have_text("0.5 of 9.0 s", timeout=PATIENT_MS)
    expect(page.locator("#replay-mode")).to_have_text("STANDUP", timeout=PATIENT_MS)
    expect(page.locator("#ask-ACQUIRE")).to_contain_text("this page shows a replay")
    expect(page.locator("#ask-ACQUIRE")).to_be_disabled()
    expect(page.locator("#stick-drive")).to_be_hidden()
    with page.expect_download() as loaded:
        row.get_by_role("link", name="Download").click()
    assert loaded.value.suggested_filename == f"{name}.tar"
    assert loaded.value.path().stat().st_size > 1_500_000
    page.keyboard.press("Space")
    eventually(lambda: bus.mode == Mode.ESTOP, 20.0)
    page.locator("#replay-close").click()
    expect(page.locator("#ask-ACQUIRE")).to_be_enabled(timeout=PATIENT_MS)
    press(page, "ACQUIRE")
    expect(page.locator("#chip-driver")).to_have_text("you drive", timeout=PATIENT_MS)
    expect(row.get_by_role("button", name="Replay")).to_be_disabled(timeout=PATIENT_MS)


def test_another_policy_is_picked_while_standing_and_walks(house):
    page, bus = house("sim", shipped_policies()["walk"])
    expect(page.locator("#policy-now")).to_have_text("walk on cpu", timeout=PATIENT_MS)
    page.locator("#policies summary").first.click()
    expect(page.locator("#policies-why")).to_have_text("Not now: take control first.")
    other = page.locator(".policy", has_text="terrain-walk").get_by_role("button")
    expect(other).to_have_text("Load", timeout=PATIENT_MS)
    expect(other).to_be_disabled()
    into_policy(page, bus)
    eventually(lambda: bus.hear().released, 60.0)
    walk = page.locator(".policy").filter(has_not_text="terrain-walk").get_by_role("button").first
    expect(walk).to_have_text("loaded")
    other.click()
    expect(page.locator("#policy-change")).to_contain_text("loading another: ")
    expect(page.locator("#ask-START_POLICY")).to_contain_text("a policy is being loaded")
    picture(page, "policy-loading")
    expect(page.locator("#policy-now")).to_have_text("terrain-walk on cpu", timeout=PATIENT_MS)
    expect(other).to_have_text("loaded")
    expect(page.locator("#events")).to_contain_text("policy: terrain-walk is loaded")
    assert bus.mode == Mode.STAND
    start_policy(page)
    text = "Not now: in POLICY the policy moves the robot"
    expect(page.locator("#policies-why")).to_contain_text(text)
    expect(walk).to_be_disabled()
    time.sleep(2.5)  # the ramp into the policy: until it ends, commands wait
    page.keyboard.down("KeyW")
    assert walk_until(bus, 0.3) >= 0.3, bus.reason
    picture(page, "another-policy-walks", full=True)
    page.keyboard.up("KeyW")
    sees(page, "HOLD")
    expect(page.locator("#policies-why")).to_contain_text("Not now: in HOLD")
    assert bus.policy == policy_id(shipped_policies()["terrain-walk"].read_bytes())
    assert Mode.FAULT not in bus.modes


def test_others_watch_from_a_phone_and_may_stop(house, browser: Browser, standing_policy: Path):
    page, bus = house("loopback", standing_policy)
    page.locator(f"#invite-{Role.OBSERVE.name.lower()}").click()
    link = page.locator("#invite-link")
    expect(link).to_contain_text("token=", timeout=PATIENT_MS)
    address = (link.text_content() or "").split()[0]
    phone = browser.new_context(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True,
        has_touch=True,
    ).new_page()  # fmt: skip
    phone.goto(address, timeout=PATIENT_MS)
    expect(phone.locator("#chip-link")).to_have_text("connected", timeout=PATIENT_MS)
    expect(phone.locator("#ask-ACQUIRE")).to_contain_text("this page may observe only")
    expect(phone.locator("#ask-ACQUIRE")).to_be_disabled()
    assert "token" not in phone.url
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "nothing sticks out to the side"
    picture(phone, "phone")
    phone.locator("#stop").tap()
    eventually(lambda: bus.mode == Mode.ESTOP, 20.0)
    sees(page, "ESTOP")
    phone.context.close()
