"""Skeleton tables: the known ones are complete, mixes are what they say, a user's mistakes are named."""

import numpy as np
import pytest
import recordings

from kinemic import motion, skeletons

OWN = "metres_per_unit: 0.01\nup: z\nmapping:\n" + "".join(f"  {name}: b_{name}\n" for name in motion.JOINT_NAMES)


def test_known_skeletons_are_trees_with_all_22_joints():
    assert set(skeletons.known()) == {
        "humanml3d", "kinemic", "smpl22", "smplh", "kinect25", "kit21", "bandai", "cmu", "mixamo"
    }  # fmt: skip
    sizes = {"kinemic": 26, "smplh": 52, "kinect25": 25, "kit21": 21, "cmu": 31}
    for name, skeleton in skeletons.known().items():
        assert len(skeleton.joints) == sizes.get(name, 22)
        for joint in skeleton.joints:
            steps = 0
            while joint is not None:
                joint, steps = skeleton.joints[joint], steps + 1
                assert steps < 20, f"{name} has a loop"
        assert sum(parent is None for parent in skeleton.joints.values()) == 1


@pytest.mark.parametrize("up", ["x", "y", "z", "-x", "-y", "-z"])
def test_turning_the_up_axis_is_a_rotation(up):
    made = skeletons.Skeleton("own", {name: {name: 1.0} for name in motion.JOINT_NAMES}, 0.01, up)
    turned = made.upright(np.eye(3)) * 100
    axis, sign = "xyz".index(up[-1]), -1 if up[0] == "-" else 1
    np.testing.assert_allclose(turned[axis] * sign, [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turned), 1)  # no reflection: left stays left


def test_kinect_spine_and_collars_are_those_of_the_reference():
    """Section 3.4 of the format as published: weights and directions written out here by hand."""
    body = recordings.kinect_body(6, seed=3)
    skeleton = skeletons.load("kinect25")
    made = skeleton.body(body, tuple(skeleton.joints))
    base, mid, left, right, top = (body[:, i] for i in (0, 1, 4, 8, 20))
    up = (top - base) / np.linalg.norm(top - base, axis=1, keepdims=True)
    across = (right - left) / np.linalg.norm(right - left, axis=1, keepdims=True)
    forward = np.cross(up, across)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    spine1 = (mid + base) / 2 - 0.06 * forward - 0.06 * up
    spine3 = (mid + top) / 2
    expected = {3: spine1, 9: spine3, 13: top + 0.4 * (left - top), 14: top + 0.4 * (right - top)}
    for joint, points in expected.items():
        np.testing.assert_allclose(made[:, joint], points, atol=1e-12)
    spine2 = spine3 + 0.1 * (spine1 - spine3) - 0.02 * forward - 0.02 * up
    np.testing.assert_allclose(made[:, 6], spine2, atol=1e-12)
    copied = {0: 0, 2: 12, 3: 15, 4: 16, 5: 18, 6: 20, 8: 17, 9: 19, 10: 21, 12: 1, 13: 4, 14: 7, 15: 10, 16: 2, 17: 5,
              18: 8, 19: 11}  # fmt: skip
    for kinect, ours in copied.items():
        np.testing.assert_array_equal(made[:, ours], body[:, kinect])


def test_names_are_recognised_with_and_without_a_prefix():
    names = [name for name, *_ in recordings.MIXAMO]
    assert skeletons.recognise(names).name == "mixamo"
    for prefix in ("mixamorig:", "mixamorig1:", "mixamorig_", "Armature|hero:"):
        found = skeletons.recognise([prefix + name for name in names])
        assert found.name == "mixamo" and found.find([prefix + name for name in names])["Hips"] == 0
    for name in ("bandai", "cmu", "humanml3d", "kinemic"):
        assert skeletons.recognise(list(skeletons.known()[name].joints)).name == name
    with pytest.raises(ValueError, match="fits the joints hip, chest; write a table that maps the 22 joints to them"):
        skeletons.recognise(["hip", "chest"])
    with pytest.raises(ValueError, match="nearest is mixamo, which needs Hips; write a table with `base: mixamo`"):
        skeletons.recognise(["pelvis", *names[1:]])
    with pytest.raises(ValueError, match="Hips is there 2 times"):
        skeletons.load("mixamo").find([f"{who}:{name}" for who in "ab" for name in names])


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text(OWN)
    made = skeletons.load(path)
    assert (made.name, made.unit, made.up, made.sources[0]) == ("robot", 0.01, "z", "b_pelvis")
    path.write_text("base: mixamo\nmetres_per_unit: 1.0\nmapping:\n  spine1: {Hips: 0.4, Spine: 0.6}\n")
    made = skeletons.load(path)
    assert made.unit == 1 and made.up == "y" and made.mapping["head"] == {"Head": 1.0}
    names = [name for name, *_ in recordings.MIXAMO]
    body = made.body(np.eye(22)[None, :, :3], names)
    np.testing.assert_allclose(body[0, 3], [0.4, 0.6, 0])
    path.write_text("base: mixamo\nmapping:\n  head: {Head: 1, Spine: 0.5, Hips: -0.5}\n")
    np.testing.assert_allclose(skeletons.load(path).body(np.eye(22)[None, :, :3], names)[0, 15], [-0.5, 0.5, 0])


@pytest.mark.parametrize(
    "text, message",
    [
        ("- a\n", "the table is list"),
        ("a: [b\n", "is not YAML"),
        (OWN + "scale: 3\n", "unknown key 'scale'"),
        (OWN.replace("0.01", "cm"), "metres_per_unit is 'cm'"),
        (OWN.replace("0.01", "0"), "metres_per_unit is 0.0"),
        (OWN.replace("up: z", "up: upwards"), "up is 'upwards'"),
        (OWN.replace("  head: b_head\n", ""), "mapping lacks head"),
        (OWN + "  tail: b_tail\n", "mapping has tail"),
        (OWN.replace("head: b_head", "head: {b_neck: 0.5, b_top: 0.6}"), "weights of head add up to 1.1"),
        (OWN.replace("head: b_head", "head: [b_head]"), "mapping of head is"),
        (OWN + "joints: {b_pelvis: null}\n", "mapping uses b_head"),
        (OWN + "joints: {b_pelvis: nobody}\n", "has parent 'nobody'"),
        (OWN + "trunk: [a, b]\n", "trunk has 2 names"),
        (OWN + "base: robot\n", "base is 'robot'"),
        (OWN + "base: [mixamo]\n", "base is"),
        (OWN.replace("up: z", "up: [z]"), "up is"),
        (OWN + "  1: b_tail\n", "mapping has 1"),
        ("a: &x [1]\nb: *x\n", "YAML aliases"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path, text, message):
    path = tmp_path / "robot.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        skeletons.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="no skeleton 'blender', expected one of humanml3d"):
        skeletons.load("blender")
    with pytest.raises(FileNotFoundError, match="robot.yaml is missing"):
        skeletons.load(tmp_path / "robot.yaml")
