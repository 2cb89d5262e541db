"""Other projects' calibrations: OpenCV itself reads what we write and we what it writes."""

# ruff: noqa: E501 - sentences stand on one line, as they are printed

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml

from robot.calibration import CalibrationFile, load_calibration
from robot.calibration_formats import export_calibration, import_calibration, our_yaml
from robot.config import CONFIGS, UserError

HEAD = load_calibration(CONFIGS / "g1" / "head_camera.yaml")
TODAY = date(2026, 11, 26)
# What a calibration of the 480 x 270 sensor might find.
FOUND = {"fx": 242.5, "fy": 241.9, "cx": 238.7, "cy": 136.1}
BENT = [0.05, -0.11, 0.0003, -0.0004, 0.02]


def ros(**changes) -> str:
    data = {
        "image_width": 480, "image_height": 270, "camera_name": "narrow", "distortion_model": "plumb_bob",
        "camera_matrix": {"rows": 3, "cols": 3, "data": [FOUND["fx"], 0, FOUND["cx"], 0, FOUND["fy"], FOUND["cy"], 0, 0, 1]},
        "distortion_coefficients": {"rows": 1, "cols": 5, "data": BENT},
    } | changes  # fmt: skip
    return yaml.safe_dump(data)


def test_ros_intrinsics_of_the_sensor_become_those_of_the_frame(tmp_path: Path):
    path = tmp_path / "camera_info.yaml"
    path.write_text(ros())
    file = import_calibration(path, HEAD, TODAY)
    assert file.fx == pytest.approx(242.5 * 64 / 480) and file.cy == pytest.approx(136.1 * 48 / 270)
    assert (file.distortion_model, list(file.distortion)) == ("plumb_bob", BENT)
    assert file.date == TODAY and file.method == "imported from camera_info.yaml"
    assert file.T_link_cam == HEAD.file.T_link_cam and file.encoding == "z16"


def test_what_is_written_is_read_again(tmp_path: Path):
    path = tmp_path / "ours.yaml"
    path.write_text(our_yaml(HEAD.file))
    assert load_calibration(path).file == HEAD.file
    for form in ("ros", "opencv"):
        path.write_text(export_calibration(HEAD.file, form))
        back = import_calibration(path, HEAD, HEAD.file.date)
        assert back == HEAD.file.model_copy(update={"method": "imported from ours.yaml"})


def test_opencv_reads_ours_and_we_read_opencvs(tmp_path: Path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "camera.yml"
    bent = HEAD.file.model_copy(
        update={
            "distortion_model": "plumb_bob",
            "distortion": tuple(BENT),
            "reprojection_error_px": 0.21,
        }
    )
    path.write_text(export_calibration(bent, "opencv"))
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    matrix = storage.getNode("camera_matrix").mat()
    np.testing.assert_array_equal(matrix, [[bent.fx, 0, bent.cx], [0, bent.fy, bent.cy], [0, 0, 1]])
    np.testing.assert_array_equal(storage.getNode("distortion_coefficients").mat().ravel(), BENT)
    assert storage.getNode("image_width").real() == 64
    storage.release()

    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write("image_width", 480)
    storage.write("image_height", 270)
    theirs = np.array([[FOUND["fx"], 0, FOUND["cx"]], [0, FOUND["fy"], FOUND["cy"]], [0, 0, 1.0]])
    storage.write("cameraMatrix", theirs)
    storage.write("distCoeffs", np.array([[0.1, 0.2, 0.3, 0.4]]))
    storage.release()
    file = import_calibration(path, HEAD, TODAY)
    assert file.fx == pytest.approx(242.5 * 64 / 480) and file.distortion_model == "fisheye4"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ros(image_width=640, image_height=480), "in.yaml: got an image of 640 x 480, expected 480 x 270 (the sensor) or 64 x 48 (a frame) as of "),
        (ros(image_width="wide"), "in.yaml: image_width: got 'wide', expected a number of pixels"),
        (ros(distortion_model="mei"), "in.yaml: distortion_model: got 'mei'; available: plumb_bob, rational_polynomial, equidistant"),
        (ros(camera_matrix={"data": [1.0]}), "in.yaml: camera_matrix: got {'data': [1.0]}, expected a matrix with 9 numbers"),
        (ros(distortion_coefficients={"data": [0.1, 0.2]}), "in.yaml: got 2 distortion coefficients, expected 5 of plumb_bob"),
        (ros(camera_matrix={"data": [1.0, 0.5, 1.0, 0, 1.0, 1.0, 0, 0, 1]}), "in.yaml: camera_matrix: got a skew of 0.5, expected 0"),
        ("- 1\n", "in.yaml: got [1], expected a mapping of keys"),
        ("a: [\n", "in.yaml: not valid YAML: "),
        ("image_width: 64\nimage_height: 48\n", "in.yaml: cameraMatrix: got None, expected a matrix with 9 numbers"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "in.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        import_calibration(path, HEAD, TODAY)
    assert str(error.value).replace(f"{tmp_path}/", "").startswith(sentence)


def test_nothing_of_a_foreign_file_is_executed(tmp_path: Path):
    path = tmp_path / "in.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="not valid YAML"):
        import_calibration(path, HEAD, TODAY)
    assert isinstance(HEAD.file, CalibrationFile)
