"""Calibration files: what they mean, what is refused, and that MuJoCo's camera is made from them."""

# ruff: noqa: E501 - sentences stand on one line, as they are printed

from __future__ import annotations

import dataclasses
from pathlib import Path

import mujoco
import numpy as np
import pytest

from robot.calibration import (
    TO_MUJOCO,
    Step,
    add_camera,
    apply_chain,
    check_pinhole,
    load_calibration,
    make_calibration,
    mjcf_size,
    through_chain,
)
from robot.config import CONFIGS, UserError
from robot.messages import DepthKind, Encoding
from robot.model import compile_model, load_robot

PATH = CONFIGS / "g1" / "head_camera.yaml"
TEXT = PATH.read_text()
HEAD = load_calibration(PATH)


def said(folder: Path, old: str, new: str) -> str:
    """What is told about the file with one thing changed."""
    assert old in TEXT
    path = folder / "camera.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(UserError) as error:
        load_calibration(path)
    return str(error.value).replace(f"{folder}/", "")


def test_the_g1s_head_camera_is_as_the_facts_say():
    file = HEAD.file
    assert HEAD.shape == (48, 64) and file.frame_bytes == 6144 and file.stride == 128
    assert HEAD.encoding == Encoding.Z16 and HEAD.depth_kind == DepthKind.Z
    fx, fy, cx, cy = HEAD.intrinsics
    assert np.degrees(2 * np.arctan(cx / fx)) == pytest.approx(89.5, abs=1e-4)
    assert np.degrees(2 * np.arctan(cy / fy)) == pytest.approx(58.3, abs=1e-4)
    right, down, ahead = HEAD.rotation.T
    np.testing.assert_allclose(right, [0, -1, 0], atol=1e-12)
    assert np.degrees(np.arcsin(-ahead[2])) == pytest.approx(47.6, abs=0.01)
    np.testing.assert_allclose(np.cross(right, down), ahead, atol=1e-12)


def test_the_robot_has_it_and_its_scene_is_made_from_it():
    robot = load_robot("g1")
    assert list(robot.cameras) == ["head", "head_rgb"] and robot.dims["frame_bytes"] == 6144
    model = compile_model(robot)
    camera = model.camera("head")
    assert model.body(camera.bodyid[0]).name == HEAD.file.link
    np.testing.assert_allclose(camera.pos, HEAD.position, atol=1e-12)
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, camera.quat)
    np.testing.assert_allclose(turn.reshape(3, 3), HEAD.rotation @ TO_MUJOCO, atol=1e-12)
    assert tuple(model.cam_resolution[camera.id]) == (64, 48)
    pixel = model.cam_sensorsize[camera.id] / (64, 48)
    np.testing.assert_allclose(
        model.cam_intrinsic[camera.id][:2] / pixel, HEAD.intrinsics[:2], rtol=1e-6
    )
    np.testing.assert_array_equal(model.cam_intrinsic[camera.id][2:], 0.0)


def test_an_image_whose_centre_is_not_in_its_middle_is_a_crop_of_a_larger_one():
    file = HEAD.file.model_copy(update={"cx": 20.0, "cy": 30.5})
    assert mjcf_size(file) == (88, 61)
    spec = mujoco.MjSpec()
    spec.worldbody.add_body(name="torso_link")
    add_camera(spec, make_calibration(file, PATH))
    model = spec.compile()
    assert tuple(model.cam_resolution[0]) == (88, 61)
    np.testing.assert_array_equal(model.cam_intrinsic[0][2:], 0.0)


def test_the_hash_is_of_what_decides_where_a_pixel_looks():
    def hash_with(**changes) -> int:
        return make_calibration(HEAD.file.model_copy(update=changes), PATH).calib_hash

    assert hash_with(method="again", serial="7", rate_hz=60.0) == HEAD.calib_hash
    turned = HEAD.file.T_link_cam.model_copy(update={"pos": (0.0576235, 0.01753, 0.43)})
    others = [
        hash_with(fx=32.0),
        hash_with(link="pelvis"),
        hash_with(depth_scale_m=0.002),
        hash_with(T_link_cam=turned),
    ]
    assert len({HEAD.calib_hash, *others}) == 5


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("fx: 32.280478", "fx: 0.0", "camera.yaml:6: fx: got 0.0, expected greater than 0"),
        ("cx: 32.0", "cx: 64.0", "camera.yaml: (whole file): cx, cy: got 64, 24, expected within the image of 64 x 48"),
        ("name: head", "name: Head!", "camera.yaml:2: name: got 'Head!', String should match pattern '^[a-z][a-z0-9_]{0,14}$'"),
        ("distortion_model: none", "distortion_model: plumb_bob",
         "camera.yaml: (whole file): distortion: got 0 coefficients, expected 5 of model plumb_bob"),
        ("depth_kind: z ", "depth_kind: none ",
         "camera.yaml: (whole file): encoding z16 with depth_kind none and depth_scale_m 0.001; expected both with z16 and with z16 alone"),
        ("  quat_wxyz: [0.25570718574871737,", "  quat_wxyz: [0.3,",
         "camera.yaml:17: T_link_cam: quat_wxyz has length 1.012232, expected 1"),
        ("resize: [64, 48]", "resize: [64, 40]",
         "camera.yaml: (whole file): chain: makes 64 x 40 of the sensor's 480 x 270, expected 64 x 48, and no chain with jpeg"),
        ("resize: [64, 48]", "crop: [450, 0, 64, 48]",
         "camera.yaml: (whole file): chain: crop [450, 0, 64, 48] of an image of 480 x 270, expected left, top, width, height within it"),
        ("method: nominal", "rate: 30.0\nmethod: nominal", "camera.yaml:23: rate: unknown key (did you mean 'date'?); available: name, width, "),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, old: str, new: str, sentence: str):
    assert said(tmp_path, old, new).startswith(sentence)


def test_a_raw_frame_that_does_not_fit_the_bus_is_refused(tmp_path: Path):
    text = TEXT.replace("width: 64", "width: 640").replace("height: 48", "height: 480")
    path = tmp_path / "camera.yaml"
    path.write_text(text.replace("resize: [64, 48]", "resize: [640, 480]"))
    with pytest.raises(
        UserError, match=r"a frame of 614400 bytes \(640 x 480 z16\), expected 60000 at most"
    ):
        load_calibration(path)


def test_a_robot_names_its_camera_and_the_link_that_carries_it(tmp_path: Path):
    for name in ("robot.yaml", "g1.xml", "head_rgb_camera.yaml"):
        (tmp_path / name).write_text((PATH.parent / name).read_text())
    for change, sentence in (
        (
            ("name: head", "name: chest"),
            "cameras.head: head_camera.yaml is of 'chest', expected 'head'",
        ),
        (
            ("link: torso_link", "link: neck"),
            "cameras.head: head_camera.yaml: link 'neck': expected a body of g1.xml; available: pelvis, ",
        ),
    ):
        (tmp_path / "head_camera.yaml").write_text(TEXT.replace(*change))
        with pytest.raises(UserError) as error:
            load_robot(tmp_path / "robot.yaml")
        assert sentence in str(error.value)


def test_bent_rays_are_refused_where_straight_ones_are_needed():
    check_pinhole(HEAD, "the test")
    bent = dataclasses.replace(
        HEAD, file=HEAD.file.model_copy(update={"distortion_model": "fisheye4"})
    )
    with pytest.raises(
        UserError,
        match="distortion_model: got fisheye4, expected none: the test works with rectified images",
    ):
        check_pinhole(bent, "the test")


def test_a_chain_moves_pixels_and_intrinsics_alike():
    """A landmark at a known place of the sensor's image is where the frame's intrinsics say."""
    chain = (Step(crop=(40, 10, 400, 240)), Step(resize=(100, 60)))
    matrix, size = through_chain(np.array([240.0, 250.0, 239.0, 140.0]), (480, 270), chain)
    np.testing.assert_allclose(matrix, [60.0, 62.5, (239 - 40) / 4, (140 - 10) / 4])
    assert size == (100, 60)
    image = np.zeros((270, 480), np.uint8)
    image[10 + 4 * 30 : 10 + 4 * 31, 40 + 4 * 70 : 40 + 4 * 71] = (
        9  # exactly one pixel of the frame
    )
    frame = apply_chain(image, chain)
    assert frame.shape == (60, 100) and frame[30, 70] == 9 and np.count_nonzero(frame) == 1
