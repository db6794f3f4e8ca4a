"""Laws of clips, folders, splits and batches, on hand-made clips and on released lists where they are at hand."""

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemic import data, motion
from kinemic.data import Caption, Clip, Segment


def clip(name="a", frames=50, seed=0, **rest):
    """A clip whose features are random numbers: enough for everything that does not look at poses."""
    features = np.random.default_rng(seed).normal(size=(frames, 263)).astype(np.float32)
    return Clip(name, features, **rest)


def pool(per_class=8, classes=("jump", "kick", "wave")):
    return [
        clip(f"{label}{i:02d}", 1, action=label, subject=f"P{i:03d}") for label in classes for i in range(per_class)
    ]


def names(clips):
    return [c.name for c in clips]


# --- clips


def test_joints_of_a_clip_are_the_decoded_features(walk):
    poses = motion.canonicalize(walk(31))
    made = Clip.from_joints("w", walk(31), 20, action="walk", subject="P001")
    assert len(made) == 30 and made.action == "walk" and made.features.dtype == np.float32
    assert made.joints.dtype == np.float32 and made.joints is made.joints
    np.testing.assert_allclose(made.joints, poses[:-1], atol=1e-5)


def test_crop_slices_features_and_shifts_ground_truth():
    whole = clip(frames=50, captions=(Caption("x"),), segments=(Segment("a", 0, 10), Segment("b", 10, 30)))
    part = whole.crop(5, 20)
    np.testing.assert_array_equal(part.features, whole.features[5:20])
    assert part.segments == (Segment("a", 0, 5), Segment("b", 5, 15))
    assert part.captions == whole.captions and part.name == whole.name
    assert whole.crop(30, 50).segments == ()


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (0, 51), (50, 60)])
def test_a_crop_outside_the_clip_is_refused(start, stop):
    with pytest.raises(ValueError, match="clip a: rows .* its 50 rows"):
        clip().crop(start, stop)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip("a", np.zeros((5, 262))), r"clip a: features have shape \(5, 262\)"),
        (lambda: Clip("a", np.zeros((0, 263))), r"clip a: features have shape \(0, 263\)"),
        (lambda: Clip("a", np.full((5, 263), np.nan)), "clip a: features are not finite in frame 0"),
        (lambda: Clip("a/b", np.zeros((5, 263))), "clip name is 'a/b'"),
        (lambda: clip(frames=5, segments=(Segment("x", 0, 6),)), "beyond the 5 frames"),
        (lambda: Clip.from_joints("a", np.zeros((1, 22, 3)), 20), "clip a: "),
        (lambda: Clip.from_joints("a", np.zeros((0, 22, 3)), 20), r"clip a: joints have 0 frame\(s\)"),
        (lambda: Clip.from_joints("a", np.zeros((9, 66)), 20), r"clip a: joints have shape \(9, 66\)"),
        (lambda: Caption("  "), "caption is ''"),
        (lambda: Caption("a#b"), "without '#'"),
        (lambda: Caption("a", -1.0, 2.0), "caption times are -1.0 and 2.0"),
        (lambda: Segment("x", 5, 5), "expected 0 <= start < end"),
    ],
)
def test_a_bad_clip_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# --- HumanML3D folders


def test_writing_then_reading_a_folder_loses_nothing(tmp_path, walk):
    train = [
        Clip.from_joints("w0", walk(45), 20, captions=(Caption("a person walks"), Caption("they stop", 0.1, 1 / 3))),
        clip("x1", 12, action="kick, high", subject="P001", setup="S002", segments=(Segment("kick", 2, 9),)),
    ]
    test = [clip("y2", 3, seed=4, captions=(Caption('a naïve, well-worn "turn"'),)), train[1]]
    normalizer = motion.Normalizer.fit([c.features for c in train])
    data.write_humanml3d(tmp_path / "set", {"train": train, "test": test}, normalizer)
    for split, originals in (("train", train), ("test", test)):
        for original, again in zip(originals, data.read_humanml3d(tmp_path / "set", split), strict=True):
            np.testing.assert_array_equal(again.features, original.features)
            np.testing.assert_array_equal(np.load(tmp_path / "set/new_joints" / f"{again.name}.npy"), original.joints)
            for field in ("name", "captions", "action", "subject", "setup", "segments"):
                assert getattr(again, field) == getattr(original, field)
    np.testing.assert_array_equal(motion.Normalizer.load(tmp_path / "set").std, normalizer.std)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]  # no draft left beside it
    text = (tmp_path / "set/texts/w0.txt").read_text().splitlines()
    assert text[0] == "a person walks#a/X person/X walks/X#0.0#0.0"


def test_labels_and_ground_truth_are_written_only_where_there_are_any(tmp_path):
    data.write_humanml3d(tmp_path / "set", {"train": [clip()]})
    found = {p.name for p in (tmp_path / "set").iterdir()}
    assert found == {"train.txt", "new_joint_vecs", "new_joints", "texts"}


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_tokens", lambda text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        data.write_humanml3d(tmp_path / "set", {"train": [clip(captions=(Caption("x"),))]})
    assert list(tmp_path.iterdir()) == []


def test_write_refuses_what_it_could_not_read_back(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(ValueError, match="not empty"):
        data.write_humanml3d(tmp_path / "full", {"train": [clip()]})
    with pytest.raises(ValueError, match="no clips"):
        data.write_humanml3d(tmp_path / "new", {"train": []})
    with pytest.raises(ValueError, match="two different clips are named a"):
        data.write_humanml3d(tmp_path / "new", {"train": [clip()], "test": [clip(seed=1)]})
    with pytest.raises(ValueError, match="split train: a is listed twice"):
        data.write_humanml3d(tmp_path / "new", {"train": [clip()] * 2})
    with pytest.raises(ValueError, match="split name is '../x'"):
        data.write_humanml3d(tmp_path / "new", {"../x": [clip()]})


def test_the_official_sample_reads(shared_data, tmp_path):
    for part in ("new_joint_vecs", "texts"):
        (tmp_path / part).symlink_to(shared_data / "humanml3d-sample" / part)
    (tmp_path / "train.txt").write_text("000000\n")
    (only,) = data.read_humanml3d(tmp_path)
    assert len(only) == 116 and only.action is None
    assert len(only.captions) >= 3 and all(c.whole for c in only.captions)
    assert only.captions[0].text == "a man kicks something or someone with his left leg."
    stored = np.load(shared_data / "humanml3d-sample/new_joints/000000.npy").reshape(-1, 22, 3)
    np.testing.assert_allclose(only.joints, stored, atol=1e-6)


@pytest.fixture
def folder(tmp_path):
    """A small healthy folder to damage."""
    data.write_humanml3d(
        tmp_path / "set",
        {"train": [clip("a", 6, captions=(Caption("x"),), action="kick", segments=(Segment("k", 0, 2),))]},
    )
    return tmp_path / "set"


def damage(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def npy(array, tmp):
    np.save(tmp / "x.npy", array)
    return (tmp / "x.npy").read_bytes()


def test_clips_can_be_read_by_name_without_a_list(folder):
    (listed,) = data.read_humanml3d(folder)
    (folder / "train.txt").unlink()
    (named,) = data.read_clips(folder, [listed.name])
    assert np.array_equal(named.features, listed.features) and named.captions == listed.captions
    with pytest.raises(FileNotFoundError, match="nobody.npy is missing"):
        data.read_clips(folder, ["nobody"])


@pytest.mark.parametrize("nan", ["nan", "NaN"])
def test_nan_times_count_as_zero(folder, nan):
    damage(folder / "texts/a.txt", f"they jump#they/X#{nan}#{nan}\r\n\nthey kick#they/X#0.5#1.0")
    assert data.read_humanml3d(folder)[0].captions == (Caption("they jump"), Caption("they kick", 0.5, 1.0))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("texts/a.txt", "fine#x/X#0.0#0.0\nno tokens#0.0#0.0\n", r"a\.txt, line 2: found 3 fields"),
        ("texts/a.txt", "fine#x/X#0.0#soon\n", r"a\.txt, line 1: could not convert"),
        ("texts/a.txt", "\n#x/X#0.0#0.0\n", r"a\.txt, line 2: caption is ''"),
        ("texts/a.txt", "fine#x/X#-1#0.0\n", r"a\.txt, line 1: caption times are -1.0"),
        ("train.txt", "\n", r"train\.txt is empty"),
        ("train.txt", "a\na\n", r"train\.txt: a is listed twice"),
        ("new_joint_vecs/a.npy", b"", r"a\.npy cannot be read"),
        ("new_joint_vecs/a.npy", b"\x93NUMPY\x01\x00v\x00", r"a\.npy cannot be read"),
        ("labels.csv", "name,label\na,kick\n", r"labels\.csv, line 1: columns are \['name', 'label'\]"),
        ("labels.csv", "name,action,subject,setup\na,kick\n", r"labels\.csv, line 2: found 2 values"),
        ("segments.json", "{", r"segments\.json: .*expected name -> list"),
        ("segments.json", '{"a": [["k", 0, 7]]}', r"a\.npy: clip a: segment"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(folder, file, content, message):
    damage(folder / file, content)
    with pytest.raises(ValueError, match=message) as error:
        data.read_humanml3d(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_array_is_named(folder, tmp_path):
    path = folder / "new_joint_vecs/a.npy"
    whole = path.read_bytes()
    damage(path, whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.npy cannot be read .* copy it again"):
        data.read_humanml3d(folder)
    for array, message in [
        (np.zeros((6, 66)), r"shape \(6, 66\)"),
        (np.zeros((0, 263)), r"shape \(0, 263\)"),
        (np.full((6, 263), np.nan), "not finite in frame 0"),
    ]:
        damage(path, npy(array, tmp_path))
        with pytest.raises(ValueError, match=r"a\.npy: clip a: features .*" + message):
            data.read_humanml3d(folder)


def test_a_missing_file_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        data.read_humanml3d(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"val\.txt is missing"):
        data.read_humanml3d(folder, "val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train\.txt is missing"):
        data.read_humanml3d(tmp_path / "empty")
    for file in ("texts/a.txt", "new_joint_vecs/a.npy"):
        (folder / file).rename(tmp_path / "aside")
        with pytest.raises(FileNotFoundError, match=r"a\.(txt|npy) is missing"):
            data.read_humanml3d(folder)
        (tmp_path / "aside").rename(folder / file)


# --- loader rules


@pytest.mark.parametrize(("frames", "kept"), [(39, False), (40, True), (199, True), (200, False)])
def test_entries_keep_clips_of_suitable_length(frames, kept):
    assert bool(data.entries([clip(frames=frames, captions=(Caption("x"),))])) == kept


def test_entries_turn_timed_captions_into_clips():
    captions = (
        Caption("turns", 1.0, 3.5),  # rows 20:70
        Caption("walks"),
        Caption("blinks", 1.0, 2.95),  # 39 rows: too short
        Caption("stands", 4.0, 99.0),  # rows 80:120, cut at the end
        Caption("strolls"),
    )
    whole = clip("007", 120, captions=captions, action="act", segments=(Segment("s", 60, 90),))
    first, second, rest = data.entries([whole])
    assert names([first, second, rest]) == ["A_007", "B_007", "007"]
    np.testing.assert_array_equal(first.features, whole.features[20:70])
    np.testing.assert_array_equal(second.features, whole.features[80:120])
    assert first.captions == (Caption("turns"),) and second.captions == (Caption("stands"),)
    assert rest.captions == (Caption("walks"), Caption("strolls")) and len(rest) == 120
    assert first.segments == (Segment("s", 40, 50),) and second.segments == (Segment("s", 0, 10),)
    assert first.action == "act"


def test_entries_drop_a_clip_without_a_caption_of_its_own():
    only_timed = clip("b", 120, captions=(Caption("turns", 1.0, 3.5),))
    assert names(data.entries([clip("a", 60), only_timed])) == ["A_b"]


def test_entries_run_out_of_letters():
    captions = tuple(Caption(f"c{i}", 0.0, 2.0 + i / 20) for i in range(24))
    assert names(data.entries([clip("a", 120, captions=captions[:23])]))[-1] == "W_a"
    with pytest.raises(ValueError, match="clip a has more than 23"):
        data.entries([clip("a", 120, captions=captions)])


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
def test_crops_stay_in_the_clip_and_are_multiples_of_the_unit(length, seed):
    start, size = data.crop_to_unit(length, np.random.default_rng(seed))
    assert 1 <= size and 0 <= start <= length - size
    assert size % 4 == 0 if length >= 4 else (start, size) == (0, length)
    assert length < 8 or length - size < 8


def test_one_crop_in_three_is_a_unit_shorter_and_starts_are_uniform():
    rng = np.random.default_rng(0)
    crops = [data.crop_to_unit(43, rng) for _ in range(3000)]
    shorter = np.mean([size == 36 for _, size in crops])
    assert {size for _, size in crops} == {36, 40}
    assert abs(shorter - 1 / 3) < 0.03
    assert {start for start, size in crops if size == 40} == {0, 1, 2, 3}


# --- NTU


def ntu_folder(root, lines=("S001C001P003R001A002",), labels=("1",), classes=("sit", "stand"), vectors=None):
    for part in ("splits/few", "new_joint_vecs", "texts"):
        (root / part).mkdir(parents=True)
    (root / "splits/few/train.txt").write_text("\n".join(lines))
    (root / "splits/few/train_y.txt").write_text("\n".join(labels))
    (root / "ntu_classes.txt").write_text("\n".join(classes))
    for name in lines:
        np.save(root / "new_joint_vecs" / f"{name}.npy", np.zeros((4, 263), np.float32))
        (root / "texts" / f"{name}.txt").write_text("a person stands.#a/DET#0.0#0.0")
    return root


def test_the_released_shots_read(shared_data):
    clips = data.read_ntu_vibe(shared_data / "ntu-vibe-fewshot")
    assert len(clips) == 30 and len({c.subject for c in clips}) == 20
    counts = {label: sum(c.action == label for c in clips) for label in {c.action for c in clips}}
    assert sorted(counts.values()) == [10, 10, 10]
    captions = {c.name[-4:]: c.captions[0].text for c in clips}
    assert captions["A102"] == "a person does a side kick."
    assert all(c.name.startswith(c.setup) and c.subject in c.name for c in clips)


def test_class_names_come_from_the_metadata_where_the_list_is_missing(tmp_path):
    root = ntu_folder(tmp_path / "ntu")
    (root / "ntu_classes.txt").unlink()
    table = [{"action": "stand", "tag": "A002"}, {"action": "sit", "tag": "A001"}]
    (root / "ntu_metadata.json").write_text(json.dumps({"actions": table}))
    (only,) = data.read_ntu_vibe(root, "few/train")
    assert (only.action, only.subject, only.setup) == ("stand", "P003", "S001")
    (root / "ntu_metadata.json").unlink()
    with pytest.raises(FileNotFoundError, match="neither ntu_classes.txt nor ntu_metadata.json"):
        data.read_ntu_vibe(root, "few/train")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (dict(lines=["S001C001P003R001A121"], labels=["120"]), r"train\.txt, line 1: .* A121, expected A001 to A002"),
        (dict(lines=["S001C001P003R001A002"], labels=["2"]), r"train_y\.txt, line 1: label is '2', expected 1"),
        (dict(lines=["walk"], labels=["1"]), r"train\.txt, line 1: name is 'walk'"),
        (dict(labels=["1", "1"]), r"train_y\.txt has 2 labels, expected one per name"),
    ],
)
def test_a_label_outside_the_table_is_named(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        data.read_ntu_vibe(ntu_folder(tmp_path / "ntu", **parts), "few/train")


def listed(shared_data, split):
    return (shared_data / "ntu-vibe-fewshot/splits" / split).read_text().split()


def light(names):
    row = np.zeros((1, 263), np.float32)
    return [Clip(name, row, action=name[-4:], subject=name[8:12], setup=name[:4]) for name in names]


def test_official_protocols_have_the_known_sizes(shared_data):
    clips = light(listed(shared_data, "default/xsub/train.txt") + listed(shared_data, "default/xsub/val.txt"))
    for protocol, sizes in (("xsub", (1150, 1725)), ("xset", (1401, 1474))):
        train, test = data.official_split(clips, protocol)
        assert (len(train), len(test)) == sizes
    data.subject_disjoint(*data.official_split(clips, "xsub"))
    assert len(data.XSUB_TRAIN) == 53


def test_released_split_shares_performers(shared_data):
    train, test = (light(listed(shared_data, f"default/xsub/{side}.txt")) for side in ("train", "val"))
    with pytest.raises(ValueError, match="subjects P0.* are in training and test") as error:
        data.subject_disjoint(train, test)
    assert str(error.value).count("P") == 23


def test_the_released_shots_follow_the_documented_rule(shared_data):
    outliers = set((shared_data / "ntu-vibe-fewshot/outliers.txt").read_text().split())
    rng = random.Random(42)  # not re-seeded between the two protocols
    for protocol in ("xset", "xsub"):
        members = [n for n in listed(shared_data, f"default/{protocol}/train.txt") if n not in outliers]
        drawn = [
            n for label in ("A099", "A102", "A104") for n in rng.sample([m for m in members if m.endswith(label)], 10)
        ]
        assert sorted(drawn) == sorted(listed(shared_data, f"fewshot/S0000/{protocol}/train.txt"))


def test_official_sides_are_chosen_by_name_in_both_readers(tmp_path):
    people = {"S001C001P001R001A001": "train", "S002C001P003R001A002": "test"}  # performer 1 trains, 3 tests
    root = ntu_folder(tmp_path / "ntu", tuple(people), ("0", "1"))
    for name, side in people.items():
        assert data.official_side(name, "xsub") == side != data.official_side(name, "xset")
        assert names(data.read_ntu_vibe(root, f"official-xsub/{side}")) == [name]
        assert names(data.read_ntu_vibe(root, f"official-xset/{side}")) != [name]
    clips = [replace(clip(n), subject=n[8:12], setup=n[:4], name=f"clip_{k}") for k, n in enumerate(people)]
    data.write_humanml3d(tmp_path / "own", {"pool": clips[:1], "test": clips})
    assert names(data.read_humanml3d(tmp_path / "own", "official-xsub/test")) == ["clip_1"]
    assert names(data.read_humanml3d(tmp_path / "own", "official-xset/train")) == ["clip_1"]
    with pytest.raises(ValueError, match="expected official-xsub/train or official-xsub/test"):
        data.read_ntu_vibe(root, "official-xsub/val")
    (root / "new_joint_vecs" / "S002C001P003R001A002.npy").unlink()
    with pytest.raises(ValueError, match="no clip on the side official-xsub/test"):
        data.read_ntu_vibe(root, "official-xsub/test")


def test_a_survey_goes_on_where_a_reader_stops(tmp_path):
    root = ntu_folder(tmp_path / "ntu", ("S001C001P003R001A002", "S001C001P003R001A009", "S001C001P003R001A001"))
    (root / "texts" / "S001C001P003R001A002.txt").write_text("walks\na person walks.#a/X#0.0#0.0\n")
    np.save(root / "new_joint_vecs" / "S001C001P003R001A001.npy", np.full((4, 263), np.nan))
    assert data.lists(root) == {"few/train": [f"S001C001P003R001A{k:03d}" for k in (2, 9, 1)]}
    found = list(data.survey(root, [*data.lists(root)["few/train"], "gone"]))
    assert [c and (c.action, c.subject, len(c.captions)) for c, _ in found] == [
        ("stand", "P003", 1), (None, "P003", 1), None, None]  # fmt: skip
    assert [(p.part, p.frames) for _, problems in found for p in problems] == [
        ("captions", None), ("label", None), ("frames", (0, 4)), ("motion", None)]  # fmt: skip


def test_official_split_needs_subjects_and_a_known_protocol():
    with pytest.raises(ValueError, match="protocol is 'xview'"):
        data.official_split([], "xview")
    with pytest.raises(ValueError, match="clip a: subject is None"):
        data.official_split([clip()], "xsub")
    with pytest.raises(ValueError, match="clip a: setup is '7'"):
        data.official_split([clip(setup="7")], "xset")


def test_subject_disjoint_accepts_a_split_by_subject_and_names_the_rest():
    one, two, nobody = clip(subject="P001"), clip(subject="P002"), clip("n")
    assert data.subject_disjoint([one], [two]) is None
    with pytest.raises(ValueError, match="subjects P001 are"):
        data.subject_disjoint([one, two], [one])
    with pytest.raises(ValueError, match="clip n has no subject"):
        data.subject_disjoint([one], [nobody])


# --- shots


def draw(clips, shots, seed=0, classes=None):
    return names(data.few_shot(clips, shots, np.random.default_rng(seed), classes))


def test_shots_are_balanced_distinct_and_from_the_pool():
    drawn = data.few_shot(pool(), 3, np.random.default_rng(0))
    assert [c.action for c in drawn] == ["jump"] * 3 + ["kick"] * 3 + ["wave"] * 3
    assert len(set(names(drawn))) == 9


def test_equal_seeds_give_equal_shots_in_any_order_of_the_pool():
    shuffled = pool()
    random.Random(1).shuffle(shuffled)
    assert draw(pool(), 4) == draw(shuffled, 4)
    assert draw(pool(), 4, seed=0) != draw(pool(), 4, seed=1)


def test_smaller_draws_are_the_beginning_of_larger_ones():
    large = draw(pool(), 8)
    for shots in (1, 3, 5):
        assert draw(pool(), shots) == [n for k in range(3) for n in large[8 * k : 8 * k + shots]]


def test_a_class_draws_the_same_whatever_the_others_hold():
    alone = draw(pool(classes=("kick",)), 4)
    mixed = pool(classes=("jump",), per_class=5) + pool(classes=("kick",)) + pool(classes=("zigzag",), per_class=20)
    assert draw(mixed, 4)[4:8] == alone
    assert draw(mixed, 4, classes=["kick"]) == alone
    assert draw(mixed, 4, classes=["zigzag", "kick"])[4:] == alone


def test_every_clip_can_be_drawn():
    drawn = {name for seed in range(60) for name in draw(pool(classes=("kick",)), 1, seed)}
    assert len(drawn) == 8


def test_more_shots_than_clips_are_refused():
    with pytest.raises(ValueError, match=r"class 'jump' has 8 clip\(s\) in the pool, expected at least 9"):
        draw(pool(), 9)
    with pytest.raises(ValueError, match=r"class 'fly' has 0 clip\(s\)"):
        draw(pool(), 1, classes=["fly"])
    with pytest.raises(ValueError, match="shots are 0"):
        draw(pool(), 0)
    with pytest.raises(ValueError, match="class kick: kick00 is listed twice"):
        draw(pool(classes=("kick",)) * 2, 1)


# --- batches


def test_a_batch_is_as_long_as_its_longest_clip():
    clips = [clip(str(i), frames, seed=i).features for i, frames in enumerate((5, 9, 2))]
    batch = data.collate(clips, ["a", "b", "c"], [2, None, 0])
    assert batch.x.shape == (3, 9, 263) and batch.x.dtype == torch.float32
    assert batch.lengths.tolist() == [5, 9, 2] and batch.mask.sum(1).tolist() == [5, 9, 2]
    assert batch.action.tolist() == [2, -1, 0] and batch.captions == ["a", "b", "c"]
    for row, features in enumerate(clips):
        np.testing.assert_array_equal(batch.x[row, : len(features)], features)
        assert batch.mask[row, : len(features)].all()
    assert (batch.x[~batch.mask] == 0).all()


def test_permuting_a_batch_permutes_its_rows():
    clips = [clip(str(i), frames, seed=i).features for i, frames in enumerate((5, 9, 2))]
    order = [2, 0, 1]
    one = data.collate(clips, list("abc"), [0, 1, 2])
    two = data.collate([clips[i] for i in order], [list("abc")[i] for i in order], order)
    for field in ("x", "lengths", "mask", "action"):
        assert torch.equal(getattr(one, field)[order], getattr(two, field))


def test_a_batch_moves_as_a_whole():
    batch = data.collate([clip().features], ["x"]).to("meta")
    assert {t.device.type for t in (batch.x, batch.lengths, batch.mask, batch.action)} == {"meta"}
    assert batch.captions == ["x"]


def test_a_batch_of_unequal_parts_is_refused():
    with pytest.raises(ValueError, match="batch has 0 features"):
        data.collate([], [])
    with pytest.raises(ValueError, match="1 features, 2 captions and 1 actions"):
        data.collate([clip().features], ["x", "y"])
    with pytest.raises(ValueError, match=r"row 1 of the batch has shape \(4, 66\)"):
        data.collate([clip().features, np.zeros((4, 66))], ["x", "y"])


# --- the converter in tools/


def fake_pack(root, walk):
    """A pack of five clips in the coding of the real one."""
    root.mkdir()
    clips = [walk(frames, heading=seed, seed=seed) for seed, frames in enumerate((40, 650, 50, 60, 40))]
    rows = [
        ("walk", "1P", ""),
        ("walk", "1P", ""),
        ("wave-left", "2A", ""),
        ("wave-left", "2B", ""),
        ("walk", "1P", "c0"),
    ]
    units = np.round(np.concatenate(clips) * 1e4).astype(np.int64)
    origin = units[:, 0][:, [0, 2]]
    units[..., [0, 2]] -= origin[:, None]
    flat = units.reshape(len(units), 66).T
    offsets = np.cumsum([0] + [len(c) for c in clips]).astype(np.int32)
    np.savez(
        root / "bandai_joints22_30fps.npz",
        delta=np.diff(flat, axis=1, prepend=0).astype(np.int16),
        root_delta=np.diff(origin.T, axis=1, prepend=0).astype(np.int32),
        offsets=offsets,
        fps=30,
    )
    table = "name,content,style,subject_group,near_duplicate_of\n"
    table += "".join(f"c{i},{content},normal,{actor},{double}\n" for i, (content, actor, double) in enumerate(rows))
    (root / "index.csv").write_text(table)
    captions = {"contents": {"walk": ["a person walks"], "wave-left": ["a person waves"]}, "styles": {"normal": ""}}
    (root / "captions.json").write_text(json.dumps(captions))
    return clips


@pytest.fixture(scope="module")
def converter():
    path = Path(__file__).resolve().parents[1] / "tools" / "convert_bandai.py"
    spec = importlib.util.spec_from_file_location("convert_bandai", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("video", [False, True])
def test_a_pack_becomes_a_source_and_a_target_folder(tmp_path, walk, converter, video):
    originals = fake_pack(tmp_path / "pack", walk)
    options = ["--pack", str(tmp_path / "pack"), "--out", str(tmp_path / "out"), "--train-group", "2A"]
    converter.main([*options, "--target-contents", "wave-left", *(["--video-like"] if video else [])])
    source = data.read_humanml3d(tmp_path / "out/source")
    (pool_clip,), (test_clip,) = (data.read_humanml3d(tmp_path / "out/target", split) for split in ("pool", "test"))
    assert names(source) == ["c0", "c1_part00", "c1_part01", "c1_part02"]  # c4 repeats c0
    assert max(map(len, source)) <= 196 and source[0].captions == (Caption("a person walks"),)
    expected = motion.process(originals[0], 30)
    np.testing.assert_allclose(source[0].joints, motion.decode(expected), atol=5e-4)  # the pack rounds to 0.1 mm
    assert (pool_clip.action, pool_clip.subject, test_clip.subject) == ("wave left", "2A", "2B")
    travel = np.linalg.norm(np.ptp(pool_clip.joints[:, 0, [0, 2]], axis=0))
    assert travel < 1e-3 if video else travel > 0.5


def test_the_converter_names_what_is_wrong(tmp_path, walk, converter, capsys):
    fake_pack(tmp_path / "pack", walk)
    options = ["--pack", str(tmp_path / "pack"), "--out", str(tmp_path / "out"), "--train-group", "2A"]
    for contents, message in ((["fly"], "content fly is not in the index"), (["walk"], "0 pool")):
        with pytest.raises(SystemExit):
            converter.main([*options, "--target-contents", *contents])
        assert message in capsys.readouterr().err
