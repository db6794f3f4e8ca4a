"""Readers of motion files, against joints that are known otherwise: from 4 x 4 matrices, from a pack of the clips."""

import csv
import os
import pickle
import tracemalloc

import numpy as np
import pytest
import recordings

from kinemic import formats, motion, skeletons


def only(made):
    (recording,) = made
    return recording


def unpack(path):
    """Joints (F, 22, 3) in metres and the clip offsets of a coded pack, as its README reads it."""
    with np.load(path) as pack:
        joints = np.cumsum(pack["delta"], axis=1, dtype=np.int16).T.reshape(-1, 22, 3).astype(np.float64)
        joints[..., [0, 2]] += np.cumsum(pack["root_delta"], axis=1, dtype=np.int32).T[:, None]
        return joints * 1e-4, pack["offsets"]


# ---- BVH


@pytest.mark.parametrize("order", ["XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX"])
def test_bvh_joints_are_those_of_matrices_for_any_order_of_channels(tmp_path, order):
    names, joints = recordings.write_bvh(tmp_path / "a.bvh", order=order, moving=("LeftArm", "Spine2"))
    made = only(formats.read(tmp_path / "a.bvh"))
    assert (made.skeleton.name, made.fps, made.format) == ("mixamo", 30, "bvh")
    kept = [made.names.index(name) for name in names]
    np.testing.assert_allclose(made.joints[:, kept], joints * 0.01, atol=1e-9)
    arm = names.index("LeftArm")
    np.testing.assert_allclose(made.body()[:, 16], joints[:, arm] * 0.01, atol=1e-9)


def test_bvh_of_windows_with_tabs_and_trailing_blanks_is_the_same(tmp_path):
    _, joints = recordings.write_bvh(tmp_path / "a.bvh")
    recordings.write_bvh(tmp_path / "b.bvh", indent="\t", newline="\r\n", extra="\t ")
    raw = (tmp_path / "b.bvh").read_bytes()
    (tmp_path / "b.bvh").write_bytes(b"\xef\xbb\xbf" + raw.replace(b"ROOT Hips\r\n{", b"ROOT Hips {"))
    first, second = (only(formats.read(tmp_path / name)) for name in ("a.bvh", "b.bvh"))
    np.testing.assert_array_equal(first.joints, second.joints)


def test_bvh_names_may_hold_spaces_and_end_sites_can_be_mapped(tmp_path):
    path = tmp_path / "a.bvh"
    recordings.write_bvh(path)
    path.write_text(path.read_text().replace("LeftHand", "Bip01 L Hand"))
    with pytest.raises(ValueError, match="nearest is mixamo, which needs LeftHand; write a table"):
        formats.read(path)
    (tmp_path / "own.yaml").write_text("base: mixamo\nmapping: {left_wrist: Bip01 L Hand_end}\n")
    made = only(formats.read(path, skeletons.load(tmp_path / "own.yaml")))
    hand = made.joints[:, made.names.index("Bip01 L Hand")]
    np.testing.assert_allclose(np.linalg.norm(made.body()[:, 20] - hand, axis=1), 0.01, atol=1e-9)  # OFFSET 0 1 0


@pytest.mark.parametrize(
    "frame_time, fps",
    [("0.0333333", 30), ("0.0333", 30), ("0.033", 30), ("0.008333", 120), ("0.0083333", 120), ("0.05", 20),
     ("0.0333667", 1 / 0.0333667), (".01", 100), ("4.16667e-2", 1 / 0.0416667)],
)  # fmt: skip
def test_a_frame_time_is_the_whole_rate_that_rounds_to_it(tmp_path, frame_time, fps):
    recordings.write_bvh(tmp_path / "a.bvh", frames=3, frame_time=frame_time)
    assert only(formats.read(tmp_path / "a.bvh")).fps == pytest.approx(fps, rel=1e-12)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("Frames: 24", "Frames: 9999999999", "line 133 declares 9999999999 frames, but there are 24"),
        ("Frames: 24", "Frames: many", "line 133: `Frames:` is many"),
        ("Frame Time: 0.0333333", "Frame Time: 0", "line 134: `Frame Time:` is '0'"),
        ("Frame Time: 0.0333333\n", "", r"does not state its frame rate \(`Frame Time:`\); pass it"),
        ("MOTION", "MOVES", "there is no line MOTION"),
        ("CHANNELS 6", "CHANNELS 5", "line 5: CHANNELS are '5 Xposition"),
        ("Zrotation", "Wrotation", "line 5: CHANNELS"),
        ("OFFSET 0 95 0", "OFFSET 0 95", "line 4: OFFSET is '0 95'"),
        ("}\nMOTION", "MOTION", "hierarchy before MOTION is not complete"),
        ("JOINT Neck", "ROOT Neck", "ROOT Neck stands in the wrong place"),
        ("0 95 0", "0 1e300 0", "is at"),
        ("0 95 0", "0 nan 0", "is at"),
    ],
)
def test_bvh_mistakes_are_named_with_their_line(tmp_path, old, new, message):
    path = tmp_path / "a.bvh"
    recordings.write_bvh(path)
    text = path.read_text()
    assert old in text
    text = text.replace(old, new, 1)
    if "e300" in new or "nan" in new:  # the root has position channels: its OFFSET does not count, another's does
        text = text.replace(new, old, 1).replace("OFFSET 0 12 0", f"OFFSET {new}", 1)
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        formats.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_number_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.bvh"
    recordings.write_bvh(path)
    lines = path.read_text().splitlines()
    lines[140] = lines[140].replace(lines[140].split()[3], "1,5", 1)
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line 141: '1,5' is no number"):
        formats.read(path)
    lines[140] = "1 2 3"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line 141 has 3 numbers, expected 69"):
        formats.read(path)


def test_a_rate_of_the_caller_overrides_the_file_and_says_so(tmp_path):
    recordings.write_bvh(tmp_path / "a.bvh")
    made = only(formats.read(tmp_path / "a.bvh", fps=60))
    assert made.fps == 60 and made.notes == ("frame rate 60 as asked, the file says 30",)


def test_a_wrong_unit_is_found_by_the_legs(tmp_path):
    recordings.write_bvh(tmp_path / "a.bvh")
    (tmp_path / "own.yaml").write_text("base: mixamo\nmetres_per_unit: 1\n")
    made = only(formats.read(tmp_path / "a.bvh", skeletons.load(tmp_path / "own.yaml")))
    message = "the right leg is 85 m long with metres_per_unit 1, expected 0.2 to 2; .* metres_per_unit about 0.01"
    with pytest.raises(ValueError, match=message):
        made.body()


def pack(folder, name):
    """Function from the name of a clip to its joints in a pack."""
    joints, offsets = unpack(folder / name)
    with open(folder / "index.csv", newline="") as stream:
        clip = {row["name"]: int(row["clip"]) for row in csv.DictReader(stream)}
    return lambda which: joints[offsets[clip[which]] : offsets[clip[which] + 1]]


@pytest.mark.data
def test_raw_bandai_files_agree_with_the_pack(shared_data):
    known_of = pack(shared_data / "bandai", "bandai_joints22_30fps.npz")
    paths = sorted(shared_data.glob("bandai/raw/*/data/*.bvh"))
    assert len(paths) == 48
    for path in paths:
        made = only(formats.read(path))
        known = known_of(path.stem)
        assert (made.fps, made.skeleton.name) == (30, "bandai")
        assert np.abs(made.body() - known).max() < 1e-4, path.name


# ---- ASF and AMC


@pytest.mark.data
def test_cmu_trials_agree_with_the_pack(shared_data):
    known_of = pack(shared_data / "extra-mocap", "extra_joints22_30fps.npz")
    paths = sorted(shared_data.glob("cmu-sample/*.amc"))
    assert len(paths) == 4
    for path in paths:
        made = only(formats.read(path, fps=120))
        assert (made.subject, made.skeleton.name, made.fps) == ("02", "cmu", 120)
        known = known_of(f"cmu_{path.stem}")
        body = made.body()[::4]
        shift = (body[0, 0] - known[0, 0]) * [1, 0, 1]  # the pack starts at x = z = 0
        assert np.abs(body - shift - known).max() < 1e-4, path.name


def test_amc_in_radians_and_with_bones_in_another_order_is_the_same(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    paths = [recordings.write_amc(tmp_path / name) for name in ("a", "b")]
    text = paths[1].read_text().splitlines()
    out = []
    for line in text:
        words = line.split()
        if len(words) > 1 and words[0] != "root" and words[0] not in ("#",):
            line = " ".join([words[0], *(repr(float(np.radians(float(x)))) for x in words[1:])])
        if words[0] == "root":
            line = " ".join(words[:4] + [repr(float(np.radians(float(x)))) for x in words[4:]])
        out.append(line)
    frame = out.index("1"), out.index("2")
    size = frame[1] - frame[0]
    for start in range(frame[0], len(out), size):
        out[start + 1 : start + size] = out[start + 1 : start + size][::-1]
    paths[1].write_text("\n".join(out))
    asf = (tmp_path / "b" / "07.asf").read_text().replace("angle deg", "angle rad").splitlines()
    for i, line in enumerate(asf):
        words = line.split()
        if words[:1] == ["axis"] and len(words) == 5:
            asf[i] = " ".join(["axis", *(repr(float(np.radians(float(x)))) for x in words[1:4]), words[4]])
    (tmp_path / "b" / "07.asf").write_text("\n".join(asf))
    first, second = (only(formats.read(path, fps=60)) for path in paths)
    np.testing.assert_allclose(first.joints, second.joints, atol=1e-6)


def test_amc_needs_its_skeleton_and_a_rate(tmp_path):
    path = recordings.write_amc(tmp_path)
    with pytest.raises(ValueError, match="does not state its frame rate .*AMC files never do"):
        formats.read(path)
    (tmp_path / "07.asf").unlink()
    with pytest.raises(ValueError, match="has no ASF file beside it, expected 07.asf"):
        formats.read(path, fps=120)


# ---- AMASS


def test_amass_stands_walks_and_raises_an_arm_where_it_should(tmp_path):
    arrays = recordings.amass_arrays(frames=5)
    arrays["poses"][:] = 0
    arrays["poses"][:, 0] = np.pi / 2  # the body's y becomes the z of the room
    arrays["poses"][:, 3 * 16 + 2] = np.pi / 2  # left shoulder about z: the arm goes up from its side
    np.savez(tmp_path / "a.npz", **arrays)
    made = only(formats.read(tmp_path / "a.npz"))
    body = made.body()
    assert made.fps == 60 and made.skeleton.name == "smpl22"
    up = body[0] - body[0, 0]
    assert up[15, 1] > 0.5 and up[10, 1] < -0.7  # head above, feet below
    assert up[1, 0] * up[2, 0] < 0 and abs(up[20, 1] - up[18, 1] - motion.BONE_LENGTHS[20]) < 0.01  # wrist over elbow
    assert abs(up[21, 1] - up[19, 1]) < 0.03  # the other arm is held out
    lengths = np.linalg.norm(body[:, 1:] - body[:, motion.PARENTS[1:]], axis=-1)
    np.testing.assert_allclose(lengths, np.tile(motion.BONE_LENGTHS[1:], (5, 1)), atol=1e-12)
    np.testing.assert_allclose(body[1, 0] - body[0, 0], [0.01, 0, 0], atol=1e-12)
    left = np.cross([0, 1, 0], up[10] - up[7])  # y cross forward
    assert left @ (up[1] - up[2]) > 0, "left is on the side that the feet say"


def test_amass_without_a_rate_asks_for_it_and_shape_files_hold_no_motion(tmp_path):
    arrays = recordings.amass_arrays()
    arrays.pop("mocap_framerate")
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"does not state its frame rate \(mocap_framerate\); pass it"):
        formats.read(tmp_path / "a.npz")
    assert only(formats.read(tmp_path / "a.npz", fps=100)).fps == 100
    np.savez(tmp_path / "b.npz", **arrays, mocap_frame_rate=120)
    assert only(formats.read(tmp_path / "b.npz")).fps == 120
    np.savez(tmp_path / "shape.npz", betas=np.zeros(16), gender="male")
    assert formats.read(tmp_path / "shape.npz") == []


# ---- arrays


def test_arrays_of_joints_flat_or_not_and_with_names(tmp_path, walk):
    joints = walk(30)
    np.save(tmp_path / "a.npy", joints)
    np.save(tmp_path / "b.npy", joints.reshape(30, 66))
    np.savez(tmp_path / "c.npz", joints=joints[:, ::-1], names=motion.JOINT_NAMES[::-1], fps=25.0, action="walk")
    for name in ("a.npy", "b.npy", "c.npz"):
        made = only(formats.read(tmp_path / name, fps=None if name == "c.npz" else 25))
        np.testing.assert_allclose(made.body(), joints, atol=1e-12)
        assert made.fps == 25
    assert made.action == "walk"
    with pytest.raises(ValueError, match="does not state its frame rate"):
        formats.read(tmp_path / "a.npy")


def test_arrays_without_names_need_a_skeleton_unless_they_have_22_joints(tmp_path):
    np.save(tmp_path / "a.npy", recordings.kinect_body())
    with pytest.raises(ValueError, match=r"25 joints without names; say which \(--skeleton one of kinect25\)"):
        formats.read(tmp_path / "a.npy", fps=30)
    assert only(formats.read(tmp_path / "a.npy", skeletons.load("kinect25"), 30)).body().shape == (24, 22, 3)
    with pytest.raises(ValueError, match="25 joints, skeleton kit21 lists 21"):
        formats.read(tmp_path / "a.npy", skeletons.load("kit21"), 30)


def test_objects_are_never_loaded_and_large_claims_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="objects are never loaded"):
        formats.read(tmp_path / "a.npy", fps=20)
    with open(tmp_path / "b.npy", "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**10, 22, 3)})
    with pytest.raises(ValueError, match=r"b.npy declares \(10000000000, 22, 3\) of float64 .* cut off or broken"):
        formats.read(tmp_path / "b.npy", fps=20)


# ---- folders


def test_a_humanml3d_folder_comes_back_with_texts_lists_and_labels(tmp_path, walk):
    made = recordings.write_vectors(tmp_path / "set", walk, ("a1", "b2"))
    (tmp_path / "set" / "test.txt").write_text("b2\nmissing\n")
    (tmp_path / "set" / "labels.csv").write_text("name,action,subject,setup\nb2,walk,P7,\n")
    found, ignored = formats.sources(tmp_path / "set")
    assert [source.name for source in found] == ["a1", "b2"] and not ignored
    second = only(formats.read(found[1]))
    assert (second.fps, second.action, second.subject, second.splits) == (20, "walk", "P7", ("test", "train"))
    assert second.captions[0].text == "a person walks"
    again = motion.process(second.body(), 20)
    np.testing.assert_allclose(again, made["b2"], atol=5e-5)


def test_kit_features_decode_to_the_joints_behind_them(tmp_path, walk):
    """No file of KIT-ML is at hand: rows are laid out here as specified, from a walk with one joint less."""
    joints = walk(30)[:, :21]
    wide = np.concatenate([joints, joints[:, 20:]], axis=1)  # the last joint only fills the place
    whole = motion.encode(motion.canonicalize(wide + np.linspace(0, 1e-3, 22)[:, None]))
    rows = np.concatenate([whole[:, :4], whole[:, 4:64], whole[:, 67:187], whole[:, 193:256], whole[:, 259:]], axis=1)
    assert rows.shape[1] == 251
    rows[:, 1:64] /= 0.0015625
    rows[:, 184:247] /= 0.0015625
    (tmp_path / "new_joint_vecs").mkdir()
    np.save(tmp_path / "new_joint_vecs" / "00001.npy", rows.astype(np.float32))
    made = only(formats.read(formats.sources(tmp_path)[0][0]))
    assert (made.fps, made.skeleton.name, made.format) == (12.5, "kit21", "KIT-ML features")
    np.testing.assert_allclose(made.joints, motion.decode(whole, extra_pose=True)[:, :21], atol=1e-5)


@pytest.mark.data
@pytest.mark.parametrize("folder", ["ntu-vibe-fewshot", "humanml3d-sample"])
def test_released_vectors_are_reproduced_from_their_joints(shared_data, folder):
    """With the pose behind the last row, which the velocities give, all features come back, on the clip's own bones.

    From the stored joints alone one pose is missing: the heading filter (80 frames to either side) sees another end,
    and so does the floor, a mean of the 20 lowest heights. Positions then differ by millimetres, rotations by more.
    """
    found, _ = formats.sources(shared_data / folder)
    assert len(found) == (30 if folder == "ntu-vibe-fewshot" else 2)
    for source in found:
        made, vectors = only(formats.read(source)), np.load(source.path)
        again = motion.process(made.body(), made.fps, retarget=False, floor=made.floor)
        np.testing.assert_allclose(again, vectors, atol=1e-5)
        stored = np.load(shared_data / folder / "new_joints" / source.path.name).reshape(-1, 22, 3)
        np.testing.assert_allclose(made.body()[:-1], stored, atol=1e-6)
        alone = motion.process(stored, 20, retarget=False, floor=made.floor)
        assert np.abs(motion.decode(alone) - stored[:-1]).max() < 5e-3
    if folder == "ntu-vibe-fewshot":
        assert (made.format, made.floor, made.action, made.subject) == ("NTU-VIBE", "lowest", "side kick", "P097")


# ---- NTU RGB+D


def test_ntu_takes_the_body_that_moves_and_not_the_furniture(tmp_path):
    person, still = recordings.kinect_body(40, size=0.1), recordings.kinect_body(40, seed=1, size=0.001)
    table = recordings.kinect_body(40, seed=2, size=2.0) * [3, 0.1, 1]  # wider than high, and trembling
    path = tmp_path / "S012C001P007R002A023.skeleton"
    tracks = {"72057594037931691": still, "72057594037931692": person, "72057594037931693": table}
    recordings.write_ntu(path, {name: dict(enumerate(track)) for name, track in tracks.items()})
    made = only(formats.read(path))
    np.testing.assert_allclose(made.joints, person, atol=1e-6)
    assert (made.fps, made.subject, made.setup, made.action, made.floor) == (30, "P007", "S012", "A023", "lowest")
    assert "2 bodies, the one that moves most is kept" in made.notes


def test_ntu_bridges_short_gaps_and_keeps_the_longest_stretch(tmp_path):
    person = np.linspace(0, 1, 60)[:, None, None] + recordings.kinect_body(60, size=0.0)  # moves evenly
    path = tmp_path / "a.skeleton"
    recordings.write_ntu(path, {"1": {i: person[i] for i in range(60) if i not in (20, 21, 22)}})
    made = only(formats.read(path))
    np.testing.assert_allclose(made.joints, person, atol=1e-6)
    assert made.notes == ("3 missing frames were interpolated",)
    recordings.write_ntu(path, {"1": {i: person[i] for i in range(60) if not 10 <= i < 30}}, frames=70)
    made = only(formats.read(path))
    np.testing.assert_allclose(made.joints, person[30:], atol=1e-6)
    assert made.notes == ("frames 30 to 59 of 70 are kept, the body is missing in others",)


def test_ntu_joins_a_body_that_was_lost_and_found(tmp_path):
    person = recordings.kinect_body(60)
    path = tmp_path / "S001C001P001R001A055.skeleton"
    recordings.write_ntu(path, {"1": {i: person[i] for i in range(35)}, "2": {i: person[i] for i in range(37, 60)}})
    made = only(formats.read(path))
    assert len(made.joints) == 60 and np.abs(made.joints[40:] - person[40:]).max() < 1e-6
    assert any("joined at frame 37" in note for note in made.notes)
    assert any("A055 is an action of two people" in note for note in made.notes)


def test_ntu_files_that_lie_about_their_counts(tmp_path):
    path = tmp_path / "a.skeleton"
    recordings.write_ntu(path, {"1": dict(enumerate(recordings.kinect_body(5)))})
    text = path.read_text()
    for old, new, message in (
        ("5\n", "1000000000000\n", "line 1 is '1000000000000'"),
        ("5\n", "99999999\n", "line 1 declares 99999999 frames"),
        ("5\n", "9\n", "line 142: the file ends within frame 5"),
        ("5\n", "4\n", "words follow after the 4 frames"),
        ("\n25\n", "\n24\n", "line 4: a body has '24' joints"),
    ):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            formats.read(path)
    path.write_text("3\n0\n0\n0\n")
    with pytest.raises(ValueError, match="no frame has a body"):
        formats.read(path)


# ---- pyskl


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pyskl_pickles_of_every_protocol(tmp_path, protocol, dtype):
    first, second = recordings.kinect_body(20), recordings.kinect_body(25, seed=5)
    padded = np.stack([second, np.zeros_like(second)])
    items = [("S001C002P003R001A004", 3, first[None].astype(dtype)), ("other", np.int64(7), padded.astype(dtype))]
    split = {"xsub/train": ["S001C002P003R001A004"], "xsub_val": ["other", "S001C002P003R001A004"]}
    recordings.write_pyskl(tmp_path / "a.pkl", items, protocol, split)
    with pytest.raises(ValueError, match=r"annotations\[1\] \('other'\): the file does not state its frame rate"):
        formats.read(tmp_path / "a.pkl")
    made = formats.read(tmp_path / "a.pkl", fps=30)
    for recording, joints in zip(made, (first, second), strict=True):
        np.testing.assert_allclose(recording.joints, joints.astype(dtype).astype(float), atol=1e-12)
    assert made[0].splits == ("xsub-train", "xsub_val") and made[0].action == "A004"
    assert made[1].action == "class 7" and made[1].subject is None


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "evil",
    [Call(os.system, "touch evil"), Call(eval, "1"), Call(bytearray, 10**10), Call(np.zeros, 10**10),
     Call(np.ndarray, (10**10,)), Call(np.dtype, "V1000000000"), np.array([{}], dtype=object), range(10**9), object()],
    ids=["system", "eval", "bytearray", "zeros", "ndarray", "dtype", "objects", "range", "object"],
)  # fmt: skip
def test_nothing_in_a_pickle_is_called(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"annotations": [evil]}))
    with pytest.raises(ValueError, match=r"a.pkl: byte \d+: the pickle cannot be read \(.*\)") as caught:
        formats.read(tmp_path / "a.pkl")
    assert not (tmp_path / "evil").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [b"\x80\x04r\xff\xff\xff\xff.", b"\x80\x04N" + b"r\xff\xff\xff\x7f" + b".",
     b"\x80\x04\x8e" + (10**10).to_bytes(8, "little") + b"abc.",
     b"\x80\x05\x96" + (10**10).to_bytes(8, "little") + b"a.",
     b"\x80\x04\x95" + (10**10).to_bytes(8, "little") + b"N."],
    ids=["memo", "memo of none", "bytes", "bytearray", "frame"],
)  # fmt: skip
def test_sizes_that_a_pickle_declares_are_not_allocated(tmp_path, raw):
    (tmp_path / "a.pkl").write_bytes(raw)
    tracemalloc.start()
    with pytest.raises(ValueError, match="a.pkl"):
        formats.read(tmp_path / "a.pkl")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


# ---- sources


def test_a_folder_is_searched_in_order_and_equal_names_are_told_apart(tmp_path, walk):
    for name in ("b/take.npy", "a/take.npy", "a/my walk.npy", "a/._junk.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, walk(30))
    (tmp_path / "readme.md").write_text("x")
    found, ignored = formats.sources(tmp_path)
    assert [source.name for source in found] == ["my_walk", "a_take", "b_take"] and ignored == {".md": 1}
    (tmp_path / "a" / "new_joint_vecs").mkdir()
    with pytest.raises(ValueError, match="is a data set folder inside the source"):
        formats.sources(tmp_path)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing, expected a file of motion"):
        formats.sources(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no file of motion"):
        formats.sources(tmp_path)
    (tmp_path / "a.fbx").write_text("x")
    with pytest.raises(ValueError, match="a.fbx is of no known kind, expected one of .bvh"):
        formats.sources(tmp_path / "a.fbx")
