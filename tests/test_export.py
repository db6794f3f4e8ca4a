"""Export: what other readers find in our files is the motion that went in."""

import base64
import io
import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pybvh
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from kinemic import cli, data, export, formats, motion, viz
from kinemic.export import Motion

COMPONENT = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


@st.composite
def bodies(draw):
    """Bones of constant, unequal lengths that point anywhere: no heading, tilt or joint limit is left out."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = draw(st.integers(1, 12))
    lengths = rng.uniform(0.02, 0.6, 22)
    steps = draw(st.sampled_from([0.02, 0.3, 5.0]))  # from smooth to wild
    directions = rng.normal(size=(1, 22, 3)) + steps * np.cumsum(rng.normal(size=(frames, 22, 3)), axis=0)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    joints = np.zeros((frames, 22, 3))
    joints[:, 0] = rng.uniform(-5, 5, 3) + np.cumsum(rng.normal(0, 0.05, (frames, 3)), axis=0)
    for child in range(1, 22):
        joints[:, child] = joints[:, motion.PARENTS[child]] + lengths[child] * directions[:, child]
    return Motion("drawn", joints, draw(st.sampled_from([12.5, 20, 29.97, 30, 120])))


def poses(*directions):
    """One-frame bodies whose bones all have the given directions."""
    joints = np.zeros((len(directions), 22, 3))
    for child in range(1, 22):
        joints[:, child] = joints[:, motion.PARENTS[child]] + 0.3 * np.array(directions, dtype=float)
    return Motion("poses", joints, 20)


# every bone at once along, against and across every axis: half turns, and collars in line with the neck
CORNERS = poses(*np.eye(3), *-np.eye(3))


def from_bvh(text, tmp_path):
    """Joints in metres and frame time, by the reader of pybvh."""
    path = tmp_path / "motion.bvh"
    path.write_text(text)
    read = pybvh.read_bvh_file(str(path))
    names = [node.name for node in read.nodes]
    positions = read.node_positions()[:, [names.index(name) for name in motion.JOINT_NAMES]]
    return positions / 100, read


def array(document, number):
    """Accessor of a glTF document with an embedded buffer, by the rules of the specification."""
    accessor = document["accessors"][number]
    view = document["bufferViews"][accessor["bufferView"]]
    (buffer,) = document["buffers"]
    content = base64.b64decode(buffer["uri"].removeprefix("data:application/octet-stream;base64,"), validate=True)
    assert len(content) == buffer["byteLength"]
    assert view["byteOffset"] + view["byteLength"] <= buffer["byteLength"]
    kind, width = np.dtype(COMPONENT[accessor["componentType"]]), WIDTH[accessor["type"]]
    assert view["byteOffset"] % kind.itemsize == 0
    assert accessor["count"] * width * kind.itemsize == view["byteLength"]
    values = np.frombuffer(content, kind, accessor["count"] * width, view["byteOffset"]).reshape(-1, width)
    if "min" in accessor:
        np.testing.assert_array_equal(values.min(axis=0), accessor["min"])
        np.testing.assert_array_equal(values.max(axis=0), accessor["max"])
    return values


def matrix(translation, quaternion):
    x, y, z, w = quaternion
    out = np.eye(4)
    out[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    out[:3, 3] = translation
    return out


def played(document, frame=None):
    """Name -> world matrix of every node at a key frame, or at rest."""
    nodes = [dict(node) for node in document["nodes"]]
    (animation,) = document["animations"]
    for channel in animation["channels"] if frame is not None else ():
        target = channel["target"]
        sampler = animation["samplers"][channel["sampler"]]
        nodes[target["node"]][target["path"]] = array(document, sampler["output"])[frame].astype(np.float64)
    world = {}

    def walk(number, above):
        node = nodes[number]
        here = above @ matrix(node.get("translation", (0, 0, 0)), node.get("rotation", (0, 0, 0, 1)))
        world[node["name"]] = here
        for child in node.get("children", ()):
            walk(child, here)

    for root in document["scenes"][document["scene"]]["nodes"]:
        walk(root, np.eye(4))
    assert len(world) == len(nodes), "a node is in no scene, or in two places"
    return world


def from_gltf(document, frames):
    worlds = [played(document, frame) for frame in range(frames)]
    return np.array([[world[name][:3, 3] for name in motion.JOINT_NAMES] for world in worlds])


def run(*words):
    return cli.main(["export", *map(str, words)])


@pytest.fixture
def clip(walk):
    return Motion("walk", walk(24), 20, "a person walks", "walk", "CC0")


# --- BVH


@pytest.mark.filterwarnings("ignore:Rest pose suggests world up")  # a body that tumbles
@settings(max_examples=60, deadline=None)
@given(bodies())
@example(CORNERS)
def test_another_reader_finds_the_joints_of_any_body_in_a_bvh(tmp_path_factory, drawn):
    joints, read = from_bvh(export.bvh(drawn), tmp_path_factory.mktemp("bvh"))
    np.testing.assert_allclose(joints, drawn.joints, atol=1e-4)
    assert math.isclose(read.frame_time, 1 / drawn.fps, rel_tol=1e-6)


@pytest.mark.parametrize("heading", np.deg2rad(np.arange(-180, 181, 45)))
def test_a_bvh_keeps_every_heading(tmp_path, walk, heading):
    joints = walk(20, heading=heading, turn=0.4)  # more than a whole turn on the way
    again, _ = from_bvh(export.bvh(Motion("turn", joints, 20)), tmp_path)
    np.testing.assert_allclose(again, joints, atol=1e-4)


def test_a_bvh_says_what_the_format_wants(clip):
    text = export.bvh(clip)
    head, body = text.split("MOTION\n")
    lines = [line.strip() for line in head.splitlines()]
    assert lines[:3] == ["HIERARCHY", "ROOT pelvis", "{"] and lines.count("{") == lines.count("}") == 31
    channels = [line for line in lines if line.startswith("CHANNELS")]
    assert channels[0] == "CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation"
    assert channels[1:] == ["CHANNELS 3 Zrotation Xrotation Yrotation"] * 25
    rows = body.splitlines()
    assert rows[:2] == ["Frames: 24", "Frame Time: 0.0500000000"]
    numbers = np.array([row.split() for row in rows[2:]], dtype=float)
    assert numbers.shape == (24, 6 + 3 * 25)
    assert np.abs(np.diff(numbers, axis=0)).max() < 45  # no angle jumps by a turn, so tools may interpolate


def test_real_motion_comes_back_from_a_bvh(tmp_path, shared_data):
    path = shared_data / "humanml3d-sample" / "new_joint_vecs" / "012314.npy"
    (clip,) = export.read(path)
    assert clip.fps == 20
    joints, _ = from_bvh(export.bvh(clip), tmp_path)
    np.testing.assert_allclose(joints, motion.decode(np.load(path)), atol=1e-4)


@pytest.mark.parametrize("form", ["bvh", "npz"])
def test_what_was_exported_can_be_imported_again(tmp_path, clip, form):
    (path,) = export.save([clip], form, tmp_path)
    (made,) = formats.read(path)
    assert made.fps == 20 and np.abs(made.body() - clip.joints).max() < 1e-4
    if form == "npz":
        assert made.action == "walk" and [c.text for c in made.captions] == ["a person walks"]


def test_bones_that_change_are_named_and_get_their_mean_length(tmp_path, clip):
    joints = clip.joints.copy()
    joints[::2, 20] += 0.05 * (joints[::2, 20] - joints[::2, 18]) / motion.BONE_LENGTHS[20]
    with pytest.warns(UserWarning, match=r"^walk: bones change their lengths; mean lengths .* by up to 25 mm$"):
        again, _ = from_bvh(export.bvh(Motion("walk", joints, 20)), tmp_path)
    np.testing.assert_allclose(np.linalg.norm(again - joints, axis=-1)[:, 20], 0.025, atol=1e-4)
    np.testing.assert_allclose(np.delete(again, 20, axis=1), np.delete(joints, 20, axis=1), atol=1e-4)


# --- glTF


@settings(max_examples=25, deadline=None)
@given(bodies())
@example(CORNERS)
def test_the_nodes_of_a_gltf_play_the_joints_of_any_body(drawn):
    document = json.loads(json.dumps(export.gltf(drawn)))
    np.testing.assert_allclose(from_gltf(document, len(drawn)), drawn.joints, atol=1e-4)


def test_a_gltf_keeps_the_rules_of_the_specification(clip):
    document = json.loads(json.dumps(export.gltf(clip)))
    assert document["asset"]["version"] == "2.0" and document["asset"]["copyright"] == "CC0"
    assert document["asset"]["extras"] == {"fps": 20.0, "caption": "a person walks", "label": "walk", "licence": "CC0"}
    nodes = document["nodes"]
    children = [child for node in nodes for child in node.get("children", ())]
    assert len(children) == len(set(children)), "a node has two parents"
    (skin,), (animation,) = document["skins"], document["animations"]
    assert sorted(skin["joints"]) == list(range(26)) and skin["skeleton"] in document["scenes"][0]["nodes"]
    targets = [(c["target"]["node"], c["target"]["path"]) for c in animation["channels"]]
    assert len(targets) == len(set(targets)) and {path for _, path in targets} == {"translation", "rotation"}
    used = {skin["inverseBindMatrices"]}
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        times, values = array(document, sampler["input"]), array(document, sampler["output"])
        used |= {sampler["input"], sampler["output"]}
        assert {"min", "max"} <= document["accessors"][sampler["input"]].keys()
        np.testing.assert_allclose(times[:, 0], np.arange(24) / 20, atol=1e-6)
        assert len(values) == 24
        if channel["target"]["path"] == "rotation":
            np.testing.assert_allclose(np.linalg.norm(values, axis=-1), 1, atol=1e-6)
            assert ((values[1:] * values[:-1]).sum(axis=-1) > 0).all(), "players that do not check go the long way"
    (primitive,) = document["meshes"][0]["primitives"]
    names = ("POSITION", "JOINTS_0", "WEIGHTS_0")
    corners, owners, weights = (array(document, primitive["attributes"][name]) for name in names)
    triangles = array(document, primitive["indices"])[:, 0]
    used |= {primitive["indices"], *primitive["attributes"].values()}
    assert used == set(range(len(document["accessors"]))), "an accessor that nothing uses"
    assert triangles.max() == len(corners) - 1 and len(triangles) % 3 == 0
    assert owners.max() < 26 and (weights == [1, 0, 0, 0]).all()
    # at rest the skin does nothing; every bone's body ends in its joints, in any pose
    inverse = array(document, skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
    rest = played(document)
    for number, joint in enumerate(skin["joints"]):
        np.testing.assert_allclose(rest[nodes[joint]["name"]] @ inverse[number], np.eye(4), atol=1e-5)
    world = played(document, 11)
    skinned = [
        (world[nodes[skin["joints"][owner]]["name"]] @ inverse[owner] @ [*corner, 1])[:3]
        for owner, corner in zip(owners[:, 0], corners, strict=True)
    ]
    ends = np.array(skinned).reshape(21, 6, 3)[:, [0, 5]]
    np.testing.assert_allclose(ends[:, 1], clip.joints[11, 1:], atol=1e-4)
    np.testing.assert_allclose(ends[:, 0], clip.joints[11, motion.PARENTS[1:]], atol=1e-4)
    # outward faces: the volume they enclose is positive
    a, b, c = corners[triangles.reshape(-1, 3)].astype(float).transpose(1, 0, 2)
    assert (np.einsum("ij,ij->i", a, np.cross(b, c)).reshape(21, 8).sum(axis=-1) > 0).all()


KHRONOS = """
const validator = require('gltf-validator'), documents = JSON.parse(require('fs').readFileSync(0));
Promise.all(documents.map(each => validator.validateString(JSON.stringify(each)))).then(
    reports => console.log(JSON.stringify(reports.map(each => each.issues.messages.map(found => found.code)))));
"""


@pytest.fixture(scope="module")
def khronos():
    """The validator of Khronos: `npm install --no-save gltf-validator` in the checkout, or NODE_PATH names it."""
    words, here = ["node", "-e"], Path(__file__).parents[1]
    try:
        subprocess.run([*words, "require('gltf-validator')"], cwd=here, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no Node.js with gltf-validator: npm install --no-save gltf-validator")

    def validate(documents):
        given = {"input": json.dumps(documents), "text": True}
        return json.loads(subprocess.run([*words, KHRONOS], cwd=here, check=True, capture_output=True, **given).stdout)

    return validate


def test_the_validator_of_khronos_finds_nothing(khronos, clip, walk):
    good = [clip, Motion("one frame", walk(1), 12.5), Motion("half turns", walk(40, turn=0.4), 120), CORNERS]
    broken = export.gltf(clip)
    broken["accessors"][0]["count"] += 1
    *nothing, found = khronos([*map(export.gltf, good), broken])
    assert nothing == [[]] * len(good) and any("ACCESSOR" in code for code in found)


# --- npz, JSON, pyskl


def test_an_npz_brings_everything_back(tmp_path, clip):
    (path,) = export.save([clip], "npz", tmp_path)
    with np.load(path, allow_pickle=False) as stored:
        assert sorted(stored) == ["caption", "fps", "joints", "label", "licence", "names", "parents"]
        assert stored["names"].tolist() == list(motion.JOINT_NAMES)
        assert stored["parents"].tolist() == motion.PARENTS.tolist()
    (again,) = export.read(path)
    np.testing.assert_allclose(again.joints, clip.joints, atol=1e-6)
    assert (again.name, again.fps) == ("walk", 20)
    assert (again.caption, again.label, again.licence) == ("a person walks", "walk", "CC0")
    assert export.save([again], "npz", tmp_path / "twice")[0].read_bytes() == path.read_bytes()


def test_the_json_is_what_the_viewer_embeds(tmp_path, clip):
    (path,) = export.save([clip], "json", tmp_path / "one.json")
    shown = viz.viewer(clip.joints, "walk", 20).html.split('data-motion="')[1].split('"')[0]
    assert json.loads(path.read_text()) == json.loads(shown.replace("&quot;", '"'))


class OldNumpy(pickle.Unpickler):
    """Knows only what a numpy of 2021 has, and nothing that runs code."""

    def find_class(self, module, name):
        known = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
        if (module, name) not in known and module != "_codecs":
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def test_a_pickle_has_the_fields_that_pyskl_documents(tmp_path, walk):
    motions = [
        Motion("b", walk(9), 20, label="walk", split="pool"), Motion("a", walk(5), 20, label="kick", split="test"),
        Motion("c", walk(7), 20, label="walk", split="pool"),
    ]  # fmt: skip
    path, classes = export.save(motions, "pyskl", tmp_path / "set.pkl")
    table = OldNumpy(io.BytesIO(path.read_bytes())).load()
    assert table.keys() == {"split", "annotations"}
    assert table["split"] == {"pool": ["b", "c"], "test": ["a"]}
    for made, item in zip(motions, table["annotations"], strict=True):
        assert item.keys() == {"frame_dir", "label", "keypoint", "total_frames"}
        assert item["frame_dir"] == made.name and item["total_frames"] == len(made)
        assert type(item["label"]) is int and type(item["total_frames"]) is int
        assert item["keypoint"].shape == (1, len(made), 22, 3) and item["keypoint"].flags.writeable
        np.testing.assert_array_equal(item["keypoint"][0], made.joints.astype(np.float32))
    assert [item["label"] for item in table["annotations"]] == [1, 0, 1]
    assert classes.read_text().splitlines() == ["kick", "walk"]


# --- pictures


def test_a_gif_has_every_frame_and_the_right_clock(tmp_path, walk):
    (path,) = export.save([Motion("walk", walk(31), 30)], "gif", tmp_path)
    with Image.open(path) as picture:
        stays = []
        for frame in range(picture.n_frames):
            picture.seek(frame)
            stays.append(picture.info["duration"])
    assert len(stays) == 31 and abs(sum(stays) - 31000 / 30) <= 5 and set(stays) == {30, 40}


def test_a_film_opens_with_its_frames_rate_and_size(tmp_path, clip):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    (path,) = export.save([clip], "mp4", tmp_path)
    reader = ffmpeg.read_frames(str(path))
    facts = next(reader)
    assert facts["fps"] == 20 and facts["codec"] == "h264" and facts["pix_fmt"].startswith("yuv420p")
    pictures = list(reader)
    drawn = list(viz.frames(clip.joints, 20, title=clip.caption))
    assert len(pictures) == len(drawn) == 24
    width, height = facts["size"]
    for picture, original in zip(pictures[::8], drawn[::8], strict=True):
        seen = np.frombuffer(picture, np.uint8).reshape(height, width, 3)
        assert seen.shape == original.shape and np.abs(seen.astype(int) - original).mean() < 4


@pytest.mark.parametrize("trouble", ["missing", "failing"])
def test_a_failing_encoder_loses_no_motion(tmp_path, clip, monkeypatch, capsys, trouble):
    pytest.importorskip("imageio_ffmpeg")
    if trouble == "missing":
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    else:
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", sys.executable)  # knows none of ffmpeg's options
    np.save(tmp_path / "walk.npy", clip.joints)
    assert run(tmp_path / "walk.npy", "--fps", 20, "--format", "mp4,bvh,npz", "--to", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("pip install 'kinemic[video]'" if trouble == "missing" else "ffmpeg") in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["walk.bvh", "walk.npz"]


def test_a_motion_that_one_format_refuses_is_kept_in_the_others(tmp_path, clip, walk):
    flat = walk(24)
    flat[2, 20] = flat[2, 18]  # a bone without length, which has no rotation
    motions = [Motion("flat", flat, 30), clip]
    with pytest.raises(ValueError, match=r"flat has no label.*\(4 of 10 files are not written, this is the first\)$"):
        export.save(motions, ["gltf", "gif", "pyskl", "bvh", "npz"], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "flat.gif", "flat.npz", "walk.bvh", "walk.gif", "walk.gltf", "walk.npz"]  # fmt: skip
    np.testing.assert_allclose(export.read(tmp_path / "flat.npz")[0].joints, flat, atol=1e-6)


# --- sources


def test_plain_arrays_need_their_rate_and_features_have_it(tmp_path, walk):
    joints = walk(21)
    np.save(tmp_path / "a.npy", joints)
    np.save(tmp_path / "b.npy", joints.reshape(-1, 66))
    np.save(tmp_path / "c.npy", motion.encode(motion.canonicalize(joints)))
    for name in "ab":
        (read,) = export.read(tmp_path / f"{name}.npy", fps=29.97)
        assert read.fps == 29.97 and np.array_equal(read.joints, joints)
        with pytest.raises(ValueError, match="do not say their frame rate; give it with --fps"):
            export.read(tmp_path / f"{name}.npy")
    (read,) = export.read(tmp_path / "c.npy")
    assert read.fps == 20
    np.testing.assert_allclose(read.joints, motion.canonicalize(joints)[:20], atol=1e-5)
    with pytest.raises(ValueError, match="has 20 frames per second, 30 were given"):
        export.read(tmp_path / "c.npy", fps=30)


@pytest.fixture
def folder(tmp_path, walk):
    clips = [
        data.Clip.from_joints(name, walk(30, seed=k), 20, captions=(data.Caption(f"walk {k}"),), action=action)
        for k, (name, action) in enumerate([("x", "walk"), ("y", "run"), ("z", "walk")])
    ]
    data.write_humanml3d(tmp_path / "set", {"pool": clips[:2], "test": clips[2:]})
    (tmp_path / "set" / "LICENCE.txt").write_text("CC BY 4.0\n")
    return tmp_path / "set", clips


def test_clips_of_a_folder_come_by_name_by_list_or_all(folder):
    place, clips = folder
    assert [m.name for m in export.read(place)] == ["x", "y", "z"]
    assert [(m.name, m.split) for m in export.read(place, clips=["test", "x"])] == [("z", "test"), ("x", "train")]
    (one,) = export.read(place / "y")
    assert (one.name, one.fps, one.caption, one.label, one.licence) == ("y", 20, "walk 1", "run", "CC BY 4.0")
    np.testing.assert_allclose(one.joints, clips[1].joints, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="has no clip and no list 'w'"):
        export.read(place, clips=["w"])


def test_lists_of_ntu_vibe_keep_their_classes(shared_data):
    motions = export.read(shared_data / "ntu-vibe-fewshot", clips=["fewshot/S0000/xsub/train"])
    assert len(motions) == 30 and {m.split for m in motions} == {"fewshot_S0000_xsub_train"}
    assert {m.label for m in motions} == {"run on the spot", "side kick", "stretch oneself"}
    everything = {m.name: m.label for m in export.read(shared_data / "ntu-vibe-fewshot")}
    assert everything == {m.name: m.label for m in motions}


def test_official_sides_are_lists_too(tmp_path, walk, shared_data):
    labels = {"pool": ("P001", "S002"), "test": ("P003", "S001")}
    clips = {side: data.Clip.from_joints(side, walk(30), 20, action="walk", subject=subject, setup=setup)
             for side, (subject, setup) in labels.items()}  # fmt: skip
    data.write_humanml3d(tmp_path / "set", {"all": list(clips.values())})
    for protocol in ("official-xsub", "official-xset"):
        read = export.read(tmp_path / "set", clips=[f"{protocol}/train", f"{protocol}/test"])
        assert [(m.name, m.split) for m in read] == [("pool", f"{protocol}_train"), ("test", f"{protocol}_test")]
    with pytest.raises(ValueError, match="split is 'official-xsub', expected official-xsub/train"):
        export.read(tmp_path / "set", clips=["official-xsub"])
    sides = [export.read(shared_data / "ntu-vibe-fewshot", clips=[f"official-xsub/{side}"])
             for side in ("train", "test")]  # fmt: skip
    people = [{m.name[8:12] for m in side} for side in sides]
    assert sum(map(len, sides)) == 30 and all(people) and not people[0] & people[1]


def test_clips_in_memory_are_taken_too(folder, tmp_path):
    _, clips = folder
    paths = export.save(clips, ["npz", "bvh"], tmp_path / "out")
    assert [path.name for path in paths] == ["x.npz", "y.npz", "z.npz", "x.bvh", "y.bvh", "z.bvh"]


# --- command


def test_the_command_writes_and_names_what_it_wrote(folder, tmp_path, capsys):
    place, _ = folder
    out = tmp_path / "out"
    assert run(place / "x", place / "y", "--format", "gif,npz", "--to", out, "--licence", "mine", "--no-text") == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(out / name) for name in ("x.npz", "y.npz", "x.gif", "y.gif")]
    assert printed.err == ""
    assert export.read(out / "x.npz")[0].licence == "mine"
    assert run(place, "--clips", "pool", "test", "--format", "pyskl", "--to", out / "s.pkl", "--label", "any") == 0
    assert pickle.loads((out / "s.pkl").read_bytes())["split"] == {"pool": ["x", "y"], "test": ["z"]}


def test_help_shows_the_formats_and_examples():
    shown = subprocess.run(
        [sys.executable, "-m", "kinemic.cli", "export", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(name in shown for name in export.FORMATS) and "kinemic export walk.npy --fps 30" in shown


def spoil(joints, what):
    joints = joints.copy()
    if what == "nan":
        joints[3, 5, 1] = np.nan
    if what == "flat":
        joints[2, 20] = joints[2, 18]
    return {"21 joints": joints[:, :21], "empty": joints[:0], "text": joints.astype(str), "one": joints[0],
            "complex": joints * 1j}.get(what, joints)  # fmt: skip


@pytest.mark.parametrize(
    ("what", "words", "message"),
    [
        ("", ["--format", "fbx"], "format is 'fbx', expected one of npz"),
        ("", ["--format", ""], "format is ''"),
        ("nan", ["--format", "bvh"], "not finite in frame 3"),
        ("flat", ["--format", "bvh"], "the bone to left_wrist has no length in frame 2"),
        ("flat", ["--format", "gltf"], "the bone to left_wrist has no length in frame 2"),
        ("21 joints", ["--format", "npz"], r"shape \(24, 21, 3\), expected"),
        ("one", ["--format", "npz"], r"shape \(22, 3\), expected"),
        ("empty", ["--format", "npz"], "motion.npy"),
        ("text", ["--format", "npz"], "expected numbers"),
        ("complex", ["--format", "npz"], "expected numbers"),
        ("", ["--format", "npz", "--fps", "0"], "fps is 0"),
        ("", ["--format", "npz", "--fps", "nan"], "fps is nan"),
        ("", ["--format", "pyskl"], "no label, .* --label"),
        ("", ["--format", "npz", "--to", "motion.npy/out"], "cannot be made"),
        ("", ["--format", "npz", "--to", "folder.npz"], "motion.npz: cannot be written"),
        ("", ["--format", "npz", "--clips", "x"], "is a file, but clips x"),
        ("", ["motion.npy", "--format", "npz"], "two motions are named motion"),
        ("", ["other.npy", "--format", "npz", "--to", "one.npz"], "is one file, but there are 2 motions"),
        ("", ["broken.npy", "--format", "npz"], "broken.npy: cannot be read"),
        ("", ["promise.npy", "--format", "npz"], "promise.npy: cannot be read"),
        ("", ["altered.npy", "--format", "npz"], "altered.npy: cannot be read"),
        ("", ["broken.npz", "--format", "npz"], "broken.npz: cannot be read"),
        ("", ["foreign.npz", "--format", "npz"], "foreign.npz: joints is not a file in the archive; expected an .npz"),
        ("", ["rates.npz", "--format", "npz"], "rates.npz: cannot be read"),
        ("", ["drawn", "--format", "npz"], "drawn/clips.npz: classes is not a file in the archive; draw the clips"),
        ("", ["nowhere/000021", "--format", "npz"], "no such file, folder or clip"),
        ("", ["folder.npz", "--format", "npz"], "neither new_joint_vecs nor clips.npz"),
        ("", ["walk.c3d", "--format", "npz"], "kinemic import"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_code_2(tmp_path, walk, monkeypatch, capsys, what, words, message):
    monkeypatch.chdir(tmp_path)
    np.save("motion.npy", spoil(walk(24), what))
    np.save("other.npy", walk(24))
    whole = (tmp_path / "other.npy").read_bytes()
    (tmp_path / "broken.npy").write_bytes(whole[:5000])
    (tmp_path / "promise.npy").write_bytes(whole.replace(b"(24, 22, 3), }      ", b"(99999999, 22, 3), }"))
    (tmp_path / "altered.npy").write_bytes(whole.replace(b"(24, 22, 3), }", b"(24, 22, 3, ( "))
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 no archive")
    np.savez("foreign.npz", poses=walk(3))
    np.savez("rates.npz", joints=walk(3), fps=[20, 30], names=motion.JOINT_NAMES, parents=motion.PARENTS)
    (tmp_path / "drawn").mkdir()
    np.savez("drawn/clips.npz", features=motion.encode(walk(9)), lengths=[4, 4], action=[0, 1])
    (tmp_path / "walk.c3d").write_text("")
    (tmp_path / "folder.npz" / "motion.npz").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    rate = [] if "--fps" in words else ["--fps", "20"]
    assert run("motion.npy", *words, *rate) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("kinemic: ") and printed.err.count("\n") == 1 and printed.out == ""
    assert re.search(message, printed.err)
    assert sorted(tmp_path.rglob("*")) == before


def test_rates_that_a_pickle_cannot_hold_are_refused(walk):
    motions = [Motion("a", walk(5), 20, label="x"), Motion("b", walk(5), 30, label="x")]
    with pytest.raises(ValueError, match="20, 30 frames per second, for which pyskl has no field"):
        export.pyskl(motions)
    with pytest.raises(ValueError, match="a: label 'x' is not among y"):
        export.pyskl(motions[:1], ["y"])
