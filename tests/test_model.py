"""The G1's model against its published figures; robot.yaml against the model; it stands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from robot.config import CONFIGS, UserError
from robot.model import Robot, build_spec, compile_model, load_robot, motor_gains

G1 = CONFIGS / "g1"
FIGURES: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "g1_figures.json").read_text(encoding="utf-8")
)
LINKS: dict[str, dict[str, Any]] = {link["name"]: link for link in FIGURES["links"]}
HINGED = [link for link in FIGURES["links"] if "axis" in link["joint"]]
EXACT = {"rtol": 0, "atol": 1e-9}
FOOT_LENGTH = (-0.064, 0.142)  # m, in the frame of the ankle roll link


@pytest.fixture(scope="module")
def g1() -> Robot:
    return load_robot("g1")


@pytest.fixture(scope="module")
def model(g1: Robot) -> mujoco.MjModel:
    return compile_model(g1)


def rotation(quat_wxyz: Any) -> np.ndarray:
    flat = np.zeros(9)
    quat = np.array(quat_wxyz, dtype=float)
    mujoco.mju_quat2Mat(flat, quat / np.linalg.norm(quat))
    return flat.reshape(3, 3)


def lowest_of_feet(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Height of the lowest point of the foot capsules, m."""
    lowest = np.inf
    for i in feet(model):
        radius, half = model.geom_size[i, :2]
        tilt = abs(data.geom_xmat[i].reshape(3, 3)[2, 2])
        lowest = min(lowest, data.geom_xpos[i, 2] - half * tilt - radius)
    return lowest


def feet(model: mujoco.MjModel) -> list[int]:
    return [i for i in range(model.ngeom) if "_foot" in model.geom(i).name]


# The model is the robot of the figures.


def test_the_model_has_the_size_and_mass_of_the_figures(model: mujoco.MjModel) -> None:
    assert (model.nq, model.nv, model.nu, model.nbody) == (36, 35, 29, 31)
    assert model.body_mass.sum() == pytest.approx(33.341, abs=0.0005)
    assert model.body_mass.sum() == pytest.approx(FIGURES["total_mass"], abs=1e-9)
    assert [model.body(i).name for i in range(1, 31)] == list(LINKS)


@pytest.mark.parametrize("link", FIGURES["links"], ids=list(LINKS))
def test_every_link_is_as_published(model: mujoco.MjModel, link: dict[str, Any]) -> None:
    body = model.body(link["name"])
    assert model.body(body.parentid[0]).name == (link["parent"] or "world")
    np.testing.assert_allclose(body.pos, link["pos"], **EXACT)
    np.testing.assert_allclose(rotation(body.quat), rotation(link["quat_wxyz"]), **EXACT)
    assert body.mass[0] == pytest.approx(link["mass"], abs=1e-9)
    np.testing.assert_allclose(body.ipos, link["com"], **EXACT)
    np.testing.assert_allclose(body.inertia, link["diaginertia"], **EXACT)
    turn = rotation(body.iquat)
    tensor = turn @ np.diag(body.inertia) @ turn.T
    order = ([0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2])
    published = link["fullinertia_xx_yy_zz_xy_xz_yz"]
    np.testing.assert_allclose(tensor[order], published, rtol=0, atol=1e-9)


@pytest.mark.parametrize("link", HINGED, ids=[link["joint"]["name"] for link in HINGED])
def test_every_joint_is_as_published(
    g1: Robot, model: mujoco.MjModel, link: dict[str, Any]
) -> None:
    figures = link["joint"]
    joint, actuator = model.joint(figures["name"]), model.actuator(figures["name"])
    assert model.body(joint.bodyid[0]).name == link["name"]
    assert joint.type[0] == mujoco.mjtJoint.mjJNT_HINGE
    np.testing.assert_allclose(joint.pos, [0, 0, 0], **EXACT)
    np.testing.assert_allclose(joint.axis, figures["axis"], **EXACT)
    np.testing.assert_allclose(joint.range, figures["range"], **EXACT)
    assert joint.armature[0] == pytest.approx(figures["armature"], rel=1e-6)
    assert (joint.damping[0], joint.frictionloss[0]) == (0, 0)
    assert model.jnt_limited[joint.id] == 1
    np.testing.assert_allclose(actuator.forcerange, figures["effort_limit"] * np.array([-1, 1]))
    at = g1.joint_names.index(figures["name"])
    np.testing.assert_allclose(g1.position_limit[at], figures["range"], **EXACT)
    assert g1.effort_limit[at] == figures["effort_limit"]
    assert g1.velocity_limit[at] == figures["velocity_limit"]


@pytest.mark.parametrize("link", [x for x in FIGURES["links"] if x["collision_geoms"]])
def test_collision_shapes_are_the_published_primitives_and_no_others(
    model: mujoco.MjModel, link: dict[str, Any]
) -> None:
    body = model.body(link["name"])
    shapes = [model.geom(i) for i in range(model.ngeom) if model.geom_bodyid[i] == body.id]
    solid = [g for g in shapes if model.geom_contype[g.id] or model.geom_conaffinity[g.id]]
    assert [g.name for g in solid] == [g["name"] for g in link["collision_geoms"]]
    assert all(model.geom_group[g.id] == 3 for g in solid)
    assert all(model.geom_group[g.id] == 2 for g in shapes if g.id not in {s.id for s in solid})
    kinds = {"sphere": mujoco.mjtGeom.mjGEOM_SPHERE, "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE}
    for geom, figures in zip(solid, link["collision_geoms"], strict=True):
        assert geom.type[0] == kinds[figures["type"]]
        np.testing.assert_allclose(geom.size, figures["size"], **EXACT)
        np.testing.assert_allclose(geom.pos, figures["pos"], **EXACT)
        np.testing.assert_allclose(
            rotation(geom.quat), rotation(figures["quat_wxyz"]), rtol=0, atol=1e-6
        )


def test_links_without_published_collision_shapes_touch_nothing(model: mujoco.MjModel) -> None:
    solid = {model.body(model.geom_bodyid[i]).name for i in np.flatnonzero(model.geom_contype)}
    assert solid == {"world"} | {x["name"] for x in FIGURES["links"] if x["collision_geoms"]}


def test_each_foot_is_seven_thin_capsules_of_friction_0_6(model: mujoco.MjModel) -> None:
    names = [f"{side}_foot{n}_collision" for side in ("left", "right") for n in range(1, 8)]
    assert sorted(model.geom(i).name for i in feet(model)) == sorted(names)
    for i in feet(model):
        assert model.geom_type[i] == mujoco.mjtGeom.mjGEOM_CAPSULE
        assert model.geom_size[i, 0] == 0.01
        assert (model.geom_condim[i], model.geom_friction[i, 0]) == (3, 0.6)
        assert model.geom_priority[i] > model.geom("floor").priority[0]
        turn, half = rotation(model.geom_quat[i]), model.geom_size[i, 1]
        ends = model.geom_pos[i] + np.outer([-half, half], turn[:, 2])
        assert ends[:, 2].min() - 0.01 == pytest.approx(-0.035, abs=1e-5)  # the sole
        assert ends[:, 0].min() - 0.01 >= FOOT_LENGTH[0] - 1e-6
        assert ends[:, 0].max() + 0.01 <= FOOT_LENGTH[1] + 1e-6


def test_neighbours_that_may_overlap_are_excluded(model: mujoco.MjModel) -> None:
    pairs = set()
    for signature in model.exclude_signature:
        pairs.add(frozenset(model.body(int(i)).name for i in divmod(int(signature), 1 << 16)))
    assert pairs == {frozenset(pair) for pair in FIGURES["contact_excludes"]}


@pytest.mark.parametrize(
    ("link", "site"), [(x["name"], s) for x in FIGURES["links"] for s in x["sites"]]
)
def test_sites_are_as_published(model: mujoco.MjModel, link: str, site: dict[str, Any]) -> None:
    found = model.site(site["name"])
    assert model.body(found.bodyid[0]).name == link
    np.testing.assert_allclose(found.pos, site["pos"], **EXACT)
    np.testing.assert_allclose(found.quat, site["quat_wxyz"], **EXACT)


def test_the_sites_that_drivers_read_exist(model: mujoco.MjModel) -> None:
    names = {model.site(i).name for i in range(model.nsite)}
    assert names >= {"imu_in_pelvis", "imu_in_torso", "left_foot", "right_foot"}
    sensors = {model.sensor(i).name for i in range(model.nsensor)}
    kinds = ("quat", "gyro", "accel")
    assert sensors == {f"{imu}_{kind}" for imu in ("pelvis", "torso") for kind in kinds}


@pytest.mark.parametrize("pose", ["knees_bent", "home"])
def test_feet_and_centre_of_mass_are_where_the_key_poses_say(g1: Robot, pose: str) -> None:
    figures = FIGURES["keyframes"][pose]
    model = compile_model(g1)
    data = mujoco.MjData(model)
    data.qpos[:] = figures["qpos"]
    mujoco.mj_forward(model, data)
    assert lowest_of_feet(model, data) == pytest.approx(figures["lowest_foot_geom_z"], abs=1e-6)
    np.testing.assert_allclose(data.subtree_com[1], figures["com"], rtol=0, atol=1e-6)
    foot = data.site("left_foot").xpos
    np.testing.assert_allclose(foot, figures["left_foot_site"], rtol=0, atol=1e-6)


def test_the_head_camera_looks_forward_and_47_6_degrees_down(model: mujoco.MjModel) -> None:
    mount = FIGURES["head_camera"]
    camera = model.camera("head")
    assert model.body(camera.bodyid[0]).name == mount["parent"]
    np.testing.assert_allclose(camera.pos, mount["xyz"], **EXACT)
    turn = rotation(camera.quat)
    right, up, ahead = turn[:, 0], turn[:, 1], -turn[:, 2]
    pitch = mount["rpy"][1]
    assert np.degrees(pitch) == pytest.approx(47.6, abs=0.01)
    np.testing.assert_allclose(ahead, [np.cos(pitch), 0, -np.sin(pitch)], rtol=0, atol=1e-8)
    np.testing.assert_allclose(right, [0, -1, 0], rtol=0, atol=1e-8)
    assert up[2] > 0


def test_no_part_of_the_robot_hides_the_view_of_the_head_camera(model: mujoco.MjModel) -> None:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = data.camera("head")
    hit = np.full(1, -1, dtype=np.int32)
    ahead = -camera.xmat.reshape(3, 3)[:, 2]
    distance = mujoco.mj_ray(model, data, camera.xpos, ahead, [1, 0, 1, 0, 0, 0], 1, -1, hit)
    assert model.geom(int(hit[0])).name == "floor"
    assert distance == pytest.approx(camera.xpos[2] / -ahead[2])


def test_the_tracking_camera_follows_the_robot(model: mujoco.MjModel) -> None:
    figures, camera = FIGURES["tracking_camera"], model.camera("tracking")
    assert camera.mode[0] == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
    assert model.body(camera.bodyid[0]).name == figures["body"]
    np.testing.assert_allclose(camera.pos, figures["pos"], **EXACT)
    np.testing.assert_allclose(camera.quat, figures["quat_wxyz"], rtol=0, atol=1e-6)


# Left and right.


def mirrored(name: str) -> str:
    return name.replace("left", "right")


@pytest.mark.parametrize("name", [name for name in LINKS if name.startswith("left")])
def test_the_right_side_mirrors_the_left(model: mujoco.MjModel, name: str) -> None:
    left, right = model.body(name), model.body(mirrored(name))
    flip = np.array([1, -1, 1])
    assert left.mass[0] == right.mass[0]
    np.testing.assert_allclose(left.pos * flip, right.pos, rtol=0, atol=1.1e-5)
    np.testing.assert_allclose(left.ipos * flip, right.ipos, rtol=0, atol=1e-6)
    np.testing.assert_allclose(left.inertia, right.inertia, rtol=0.008)  # the knees
    places = {}
    for side, body in (("left", left), ("right", right)):
        mine = np.flatnonzero(model.geom_bodyid == body.id)
        places[side] = np.column_stack([model.geom_type[mine], model.geom_pos[mine]])
    flipped = places["left"] * [1, 1, -1, 1]
    assert len(flipped) == len(places["right"])
    for shape in flipped:  # the outermost capsules of a foot differ by half a millimetre
        assert np.abs(places["right"] - shape).max(axis=1).min() < 6e-4


def test_limits_and_poses_mirror(g1: Robot) -> None:
    model = compile_model(g1)
    for at, name in enumerate(g1.joint_names):
        if not name.startswith("left"):
            continue
        other = g1.joint_names.index(mirrored(name))
        sign = 1 if model.joint(name).axis[1] == 1 else -1  # roll and yaw change sign
        limit = g1.position_limit[other]
        expected = limit if sign == 1 else -limit[::-1]
        np.testing.assert_array_equal(g1.position_limit[at], expected)
        for pose in (g1.stand_joint_pos, g1.crouch_joint_pos):
            assert pose[at] == sign * pose[other]
        for gain in (g1.stand_stiffness, g1.stand_damping, g1.damp_damping, g1.effort_limit):
            assert gain[at] == gain[other]


# What the robot is to the rest of the program.


def test_the_record_is_in_motor_order_and_cannot_be_changed(g1: Robot) -> None:
    assert g1.name == "g1"
    assert g1.joint_names == tuple(FIGURES["joint_order"])
    assert g1.dims == {"joints": 29, "arm_joints": 14, "frame_bytes": 6144}
    assert g1.arm_joints.tolist() == list(range(15, 29))
    with pytest.raises(ValueError, match="read-only"):
        g1.stand_joint_pos[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        g1.arm_joints[0] = 1


def test_the_stand_pose_is_knees_bent(g1: Robot) -> None:
    np.testing.assert_array_equal(
        g1.stand_joint_pos, FIGURES["keyframes"]["knees_bent"]["qpos"][7:]
    )


def test_the_robot_id_is_of_the_name_and_the_joints(g1: Robot, tmp_path: Path) -> None:
    assert g1.robot_id == 0x5CEAC0D31CA89556
    other = load_robot(changed(tmp_path, "name: g1\n", "name: g2\n"))
    assert other.robot_id != g1.robot_id


def test_gains_of_public_policies_are_allowed(g1: Robot) -> None:
    leg = [[350, 200, 200, 300, 300, 150], [5, 6.31, 5, 10, 5, 5]]
    waist, arm = [[400] * 3, [5] * 3], [[100, 100, 50, 60, 40, 40, 40], [10] * 7]
    for column, most in enumerate((g1.stiffness_max, g1.damping_max)):
        largest = [*leg[column] * 2, *waist[column], *arm[column] * 2]
        assert (most >= largest).all()


@pytest.mark.parametrize("motor", FIGURES["motors"])
def test_motor_gains_equal_the_published_ones(motor: str) -> None:
    figures = FIGURES["motors"][motor]
    stiffness, damping = motor_gains(figures["reflected_inertia"])
    assert stiffness == pytest.approx(figures["kp_10Hz"], rel=1e-12)
    assert damping == pytest.approx(figures["kd_zeta2"], rel=1e-12)


def test_motor_gains_by_hand() -> None:
    stiffness, damping = motor_gains([1.0, 2.0], natural_frequency_hz=0.5, damping_ratio=1.0)
    np.testing.assert_allclose(stiffness, [np.pi**2, 2 * np.pi**2])
    np.testing.assert_allclose(damping, [2 * np.pi, 4 * np.pi])


def test_the_gains_in_the_xml_are_the_motor_gains(model: mujoco.MjModel) -> None:
    stiffness, damping = motor_gains(model.dof_armature[6:])
    np.testing.assert_allclose(model.actuator_gainprm[:, 0], stiffness, rtol=1e-6)
    np.testing.assert_allclose(model.actuator_biasprm[:, 1], -stiffness, rtol=1e-6)
    np.testing.assert_allclose(model.actuator_biasprm[:, 2], -damping, rtol=1e-6)


def test_damp_is_stable_even_when_it_acts_one_tick_late(g1: Robot, model: mujoco.MjModel) -> None:
    data = mujoco.MjData(model)
    data.qpos[7:] = g1.stand_joint_pos
    mujoco.mj_forward(model, data)
    full = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, full)
    # v' = v - (kd dt / I) v_before has its roots within the unit circle for kd dt < I.
    assert (g1.damp_damping * model.opt.timestep < np.diag(full)[6:]).all()


# Collisions.


def test_feet_variant_lets_only_outer_feet_and_floor_touch(g1: Robot) -> None:
    model = compile_model(g1, "feet")
    floor = model.geom("floor").id
    touching = [
        {i, j}
        for i in range(model.ngeom)
        for j in range(i)
        if model.geom_contype[i] & model.geom_conaffinity[j]
        or model.geom_contype[j] & model.geom_conaffinity[i]
    ]
    outer = [i for i in feet(model) if model.geom(i).name[-11] in "1267"]
    assert sorted(map(sorted, touching)) == sorted(sorted({floor, foot}) for foot in outer)


def test_without_the_inner_geoms_a_sole_is_hardly_smaller(g1: Robot) -> None:
    """Support of a foot on a flat floor: corners of contact, in all directions."""
    reach = {}
    for collisions in ("full", "feet"):
        model = compile_model(g1, collisions)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        data.qpos[2] -= lowest_of_feet(model, data) + 0.001
        mujoco.mj_forward(model, data)
        left = [c.pos[:2] for c in data.contact if c.pos[1] > 0.05]
        angles = np.linspace(0, 2 * np.pi, 36)
        away = np.stack([np.cos(angles), np.sin(angles)])
        reach[collisions] = (np.array(left) @ away).max(0)
    lacking = reach["full"] - reach["feet"]
    assert lacking.min() > -1e-9 and lacking.max() < 0.011


def test_full_variant_stops_a_hand_in_the_thigh_and_the_feet_variant_does_not(g1: Robot) -> None:
    contacts = {}
    for collisions in ("full", "feet"):
        model = compile_model(g1, collisions)
        data = mujoco.MjData(model)
        data.qpos[7:] = g1.stand_joint_pos
        data.joint("left_shoulder_roll_joint").qpos[0] = -0.4
        mujoco.mj_forward(model, data)
        contacts[collisions] = data.ncon
    assert contacts["full"] > 0
    assert contacts["feet"] == 0


@pytest.mark.parametrize("pose", ["stand_joint_pos", "crouch_joint_pos"])
def test_the_robots_own_poses_touch_nothing(g1: Robot, model: mujoco.MjModel, pose: str) -> None:
    data = mujoco.MjData(model)
    data.qpos[2] = 2.0
    data.qpos[7:] = getattr(g1, pose)
    mujoco.mj_forward(model, data)
    assert data.ncon == 0


def test_the_floor_can_be_replaced(g1: Robot) -> None:
    spec = build_spec(g1, "feet")
    spec.delete(spec.geom("floor"))
    spec.worldbody.add_geom(name="step", type=mujoco.mjtGeom.mjGEOM_BOX, size=[1, 1, 0.1])
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[2] = 0.1 + 0.755
    data.qpos[7:] = g1.stand_joint_pos
    mujoco.mj_forward(model, data)
    assert data.ncon > 0
    assert {"step"} == {
        name for c in data.contact for i in c.geom if "_foot" not in (name := model.geom(i).name)
    }


# It stands.


def standing(g1: Robot) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """In the stand pose with its gains, soles on the floor."""
    model = compile_model(g1)
    data = mujoco.MjData(model)
    data.qpos[7:] = data.ctrl[:] = g1.stand_joint_pos
    mujoco.mj_forward(model, data)
    data.qpos[2] -= lowest_of_feet(model, data)
    use_gains(model, g1.stand_stiffness, g1.stand_damping)
    return model, data


def use_gains(model: mujoco.MjModel, stiffness: Any, damping: Any) -> None:
    model.actuator_gainprm[:, 0] = stiffness
    model.actuator_biasprm[:, 1] = -np.asarray(stiffness)
    model.actuator_biasprm[:, 2] = -np.asarray(damping)


def test_it_stands_with_the_stand_gains(g1: Robot) -> None:
    model, data = standing(g1)
    start = data.qpos[:3].copy()
    mujoco.mj_step(model, data, nstep=1500)
    np.testing.assert_allclose(data.qpos[:2], start[:2], rtol=0, atol=0.005)
    assert start[2] - data.qpos[2] == pytest.approx(0.0045, abs=0.002)  # sag under its weight
    assert np.abs(data.qvel).max() < 0.02
    assert np.abs(data.actuator_force / g1.effort_limit).max() < 0.2


@pytest.mark.parametrize("force", [(20, 0), (-20, 0), (0, 20)])
def test_it_stands_after_a_push_of_4_newton_seconds(g1: Robot, force: tuple[int, int]) -> None:
    model, data = standing(g1)
    mujoco.mj_step(model, data, nstep=100)
    push = data.body("torso_link").xfrc_applied
    push[:2] = force
    mujoco.mj_step(model, data, nstep=100)
    assert np.abs(data.qvel[:3]).max() > 0.05  # it was felt
    push[:2] = 0.0
    mujoco.mj_step(model, data, nstep=2000)
    assert data.qpos[2] > 0.74
    assert np.abs(data.qvel[:3]).max() < 0.05


def test_it_falls_without_torque_and_with_the_soft_gains_of_policies(g1: Robot) -> None:
    model, data = standing(g1)
    use_gains(model, 0.0, 0.0)
    mujoco.mj_step(model, data, nstep=300)
    assert data.qpos[2] < 0.4
    model, data = standing(g1)
    use_gains(model, *motor_gains(model.dof_armature[6:]))
    mujoco.mj_step(model, data, nstep=1250)
    assert data.qpos[2] < 0.5


def test_it_reaches_the_crouch_in_2_5_s_and_keeps_it(g1: Robot) -> None:
    model, data = standing(g1)
    way = g1.crouch_joint_pos - g1.stand_joint_pos
    for step in range(125):
        data.ctrl[:] = g1.stand_joint_pos + way * (step + 1) / 125
        mujoco.mj_step(model, data, nstep=10)
    mujoco.mj_step(model, data, nstep=750)
    assert data.qpos[2] == pytest.approx(0.519, abs=0.01)
    assert np.abs(data.qvel).max() < 0.05
    ankles = (data.body("left_ankle_roll_link").xpos + data.body("right_ankle_roll_link").xpos) / 2
    ahead = data.subtree_com[1, 0] - ankles[0]
    assert FOOT_LENGTH[0] + 0.06 < ahead < FOOT_LENGTH[1] - 0.06


def test_the_gantry_pulls_above_the_centre_of_mass(g1: Robot) -> None:
    model, data = standing(g1)
    mujoco.mj_forward(model, data)
    body = data.body(g1.gantry.body)
    point = body.xpos + body.xmat.reshape(3, 3) @ g1.gantry.point
    np.testing.assert_allclose(point[:2], data.subtree_com[1, :2], rtol=0, atol=0.005)
    assert point[2] > data.subtree_com[1, 2] + 0.3
    weight = model.body_mass.sum() * 9.81
    assert weight / g1.gantry.stiffness == pytest.approx(0.065, abs=0.001)  # m of sag


# Mistakes.


def changed(folder: Path, old: str, new: str) -> Path:
    """A copy of the robot in `folder`, with the first `old` of its robot.yaml replaced."""
    text = (G1 / "robot.yaml").read_text(encoding="utf-8")
    assert old in text
    (folder / "robot.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    for name in ("g1.xml", "head_camera.yaml", "head_rgb_camera.yaml"):
        shutil.copy(G1 / name, folder / name)
    return folder / "robot.yaml"


def line_of(text: str) -> int:
    """Line, from 1, of the first place of `text` in the shipped robot.yaml."""
    before, _, _ = (G1 / "robot.yaml").read_text(encoding="utf-8").partition(text)
    return before.count("\n") + 1


KNEE = "  - {name: left_knee_joint, "
MISTAKES = {
    "unknown joint": (
        "name: left_knee_joint, ",
        "name: left_knee, ",
        'joint "left_knee" is unknown; expected a joint of g1.xml; available: left_knee_joint, '
        "left_hip_pitch_joint, left_hip_roll_joint, left_hip_yaw_joint, left_ankle_pitch_joint, "
        "left_ankle_roll_joint, right_hip_pitch_joint, right_hip_roll_joint, right_hip_yaw_joint, "
        "right_knee_joint, right_ankle_pitch_joint, right_ankle_roll_joint and 17 more",
    ),
    "joint given twice": (
        "name: left_hip_yaw_joint, ",
        "name: left_hip_roll_joint,",
        'joint "left_hip_roll_joint" is given twice, first in row 1',
    ),
    "doubled index": (
        "index: 3, ",
        "index: 2, ",
        'joint "left_knee_joint": index 2 is taken by "left_hip_yaw_joint"; expected 3',
    ),
    "index of another row": (
        "index: 3, ",
        "index: 31, ",
        'joint "left_knee_joint": index 31, expected 3, its row',
    ),
    "unknown motor": (
        'motor: "7520_22", group: leg',
        'motor: "7520", group: leg',
        'joint "left_hip_roll_joint": motor "7520" is unknown; expected one of motors; '
        "available: 5020, 2x5020, 7520_14, 7520_22, 4010",
    ),
    "motor of another joint": (
        'motor: "7520_22", group: leg',
        'motor: "7520_14", group: leg',
        'joint "left_hip_roll_joint": effort_limit of motor 7520_14: got [-88, 88], expected '
        "[-139, 139] N m as in g1.xml",
    ),
    "wrong inertia": (
        "reflected_inertia: 0.003609725",
        "reflected_inertia: 0.01",
        'joint "left_shoulder_pitch_joint": reflected_inertia of motor 5020: got 0.01, expected '
        "0.003609725 kg m^2 as in g1.xml",
    ),
    "lower limit above the upper": (
        "position_limit: [-0.087267, 2.8798]",
        "position_limit: [2.8798, -0.087267]",
        "joints.3: left_knee_joint: position_limit [2.8798, -0.087267], expected lower < upper",
    ),
    "limit not that of the model": (
        "position_limit: [-0.087267, 2.8798]",
        "position_limit: [-0.087267, 2.88]",
        'joint "left_knee_joint": position_limit: got [-0.087267, 2.88], expected '
        "[-0.087267, 2.8798] rad as in g1.xml",
    ),
    "degrees": (
        "position_limit: [-0.087267, 2.8798]",
        "position_limit: [-5.0, 165.0]",
        "joints.3.position_limit.1: got 165.0, expected rad within one turn (are these degrees?)",
    ),
    "pose beyond the limit": (
        "stand: 0.669, ",
        "stand: 3.1, ",
        "joints.3: left_knee_joint: stand at 3.1, expected within [-0.087267, 2.8798]",
    ),
    "pose in degrees": (
        "stand: 0.669, ",
        "stand: 38.3, ",
        "joints.3.stand: got 38.3, expected rad within one turn (are these degrees?)",
    ),
    "negative gain": (
        "stand_stiffness: 350",
        "stand_stiffness: -350",
        "joints.0.stand_stiffness: got -350, expected greater than or equal to 0",
    ),
    "gain above the motor's": (
        "stand_stiffness: 350",
        "stand_stiffness: 3500",
        'joint "left_hip_pitch_joint": stand_stiffness 3500.0, expected at most 400.0 as of '
        "motor 7520_14",
    ),
    "not a number": (
        "stand_damping: 5, ",
        "stand_damping: .nan, ",
        "joints.0.stand_damping: got nan, expected a finite number",
    ),
    "text for a number": (
        "damp: 3}",
        "damp: soft}",
        "joints.0.damp: got 'soft', expected a valid number",
    ),
    "unknown key": (
        "damp: 3}",
        "damp: 3, damping: 3}",
        "joints.0.damping: unknown key (did you mean 'damp'?); available: name, index, motor, "
        "group, position_limit, stand, crouch, stand_stiffness, stand_damping, damp",
    ),
    "missing key": (
        " crouch: -1.25,",
        "",
        "joints.0.crouch: missing; expected a value here",
    ),
    "zero braking": (
        "braking_acceleration: 40",
        "braking_acceleration: 0",
        "safety.braking_acceleration: got 0, expected greater than 0",
    ),
    "unknown imu": (
        "imu: pelvis",
        "imu: head",
        "imu: 'head' is unknown; expected a site imu_in_... of g1.xml; available: pelvis, torso",
    ),
    "missing model": (
        "model: g1.xml",
        "model: g2.xml",
        "model: no such file 'g2.xml'; available there: g1.xml",
    ),
}

PLACES = {  # where the message points, if not at what was changed
    "wrong inertia": "  - {name: left_shoulder_pitch_joint",
    "lower limit above the upper": KNEE,
    "missing key": "  - {name: left_hip_pitch_joint",
    "pose beyond the limit": KNEE,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_with_place_and_remedy(name: str, tmp_path: Path) -> None:
    old, new, sentence = MISTAKES[name]
    path = changed(tmp_path, old, new)
    with pytest.raises(UserError) as caught:
        load_robot(path)
    place, _, rest = str(caught.value).partition(": ")
    assert rest == sentence
    line = int(place.removeprefix(f"{path}:"))
    assert line == line_of(PLACES.get(name, old))


def test_a_missing_row_is_named(tmp_path: Path) -> None:
    text = (G1 / "robot.yaml").read_text(encoding="utf-8")
    start = text.index("  - {name: right_wrist_yaw_joint")
    path = changed(tmp_path, text[start : text.index("\n\n", start)], "")
    with pytest.raises(UserError) as caught:
        load_robot(path)
    line = line_of("joints:\n")
    sentence = 'joints: "right_wrist_yaw_joint" of g1.xml has no row; expected one'
    assert str(caught.value) == f"{path}:{line}: {sentence}"


def test_rows_in_another_order_than_the_model_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, "name: left_hip_roll_joint, ", "name: SWAP, ")
    text = path.read_text(encoding="utf-8")
    text = text.replace("name: left_hip_yaw_joint, ", "name: left_hip_roll_joint, ")
    path.write_text(text.replace("name: SWAP, ", "name: left_hip_yaw_joint, "), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_robot(path)
    assert str(caught.value).endswith(
        'joint "left_hip_yaw_joint" is out of order; expected "left_hip_roll_joint", the order of '
        "g1.xml"
    )


def test_actuators_of_another_order_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, "name: g1", "name: g1")
    text = (tmp_path / "g1.xml").read_text(encoding="utf-8")
    text = text.replace('name="left_hip_yaw_joint" joint=', 'name="third" joint=')
    (tmp_path / "g1.xml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_robot(path)
    sentence = "g1.xml: expected one actuator per joint, named and ordered alike"
    assert str(caught.value) == f"{path}:{line_of('model: g1.xml')}: {sentence}"


def test_a_model_that_does_not_compile_is_a_users_mistake(tmp_path: Path) -> None:
    path = changed(tmp_path, "name: g1", "name: g1")
    (tmp_path / "g1.xml").write_text("<mujoco><worldbody></mujoco>", encoding="utf-8")
    with pytest.raises(UserError, match=r":\d+: g1.xml does not compile: XML parse error"):
        load_robot(path)


def test_an_unknown_gantry_body_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, "body: torso_link", "body: torso")
    with pytest.raises(UserError, match=r"gantry.body: 'torso' is unknown; expected a body of g1"):
        load_robot(path)


def test_an_unknown_robot_lists_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        load_robot("h1")
    assert str(caught.value) == "robot 'h1' is unknown; available: g1"


def test_messages_about_shipped_files_name_them_from_the_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = changed(tmp_path, "index: 3, ", "index: 31, ")
    monkeypatch.setattr("robot.model.REPOSITORY", tmp_path.parent)
    with pytest.raises(UserError) as caught:
        load_robot(path)
    assert str(caught.value).startswith(f"{tmp_path.name}/robot.yaml:{line_of(KNEE)}: ")
