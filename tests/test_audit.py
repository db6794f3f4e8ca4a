"""Every defect planted in a clip is found there and nothing in clean data; splits are judged by their names alone."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from kinemic import audit, cli, data, motion, world
from kinemic.data import Caption, Clip

SWAP = np.arange(22)
for _left, _right in motion.MIRROR_PAIRS:
    SWAP[[_left, _right]] = _right, _left
LEFT_ARM = [18, 20]


@pytest.fixture(scope="module", params=[0, 5])
def made(request):
    """A small world whose captions never confuse left and right."""
    with pytest.MonkeyPatch.context() as patch:
        truthful = lambda name, act, rng: str(rng.choice(world.PRIMITIVES[name].phrases)).format(**act.words)  # noqa: E731
        patch.setattr(world, "_phrase", truthful)
        return world.make_world(60, 3, 3, seed=request.param)


@pytest.fixture(scope="module")
def walker():
    """A clean walk of 100 frames: joints, and a function that makes a clip of them."""
    tries = (world.perform("walk forward", np.random.default_rng(seed)) for seed in range(200))
    joints = next(j for j in tries if len(j) >= 100)[:100]
    return joints, lambda j, name="walk": Clip(
        name, motion.encode(motion.canonicalize(j)), (Caption("a person walks."),)
    )


def found(report, check=None):
    return [f for f in report.findings if check in (None, f.check)]


def test_clean_data_has_no_finding(made):
    report = audit.audit(made.source)
    assert report.clean and not found(report) and len(report.clips) == len(made.source)
    assert report.spectrum.sum() == pytest.approx(1, abs=1e-6) and report.spectrum[:21].sum() > 0.9


def test_target_data_has_only_the_defects_that_are_simulated_in_it(made):
    splits = {"pool": [c.name for c in made.pool], "test": [c.name for c in made.test]}
    checks = {f.check for f in audit.audit(made.pool + made.test, splits).findings}
    assert {"jitter"} <= checks <= {"jitter", "skating", "frozen", "jump"}


# --- one defect in one clip


def missing(j):
    features = motion.encode(motion.canonicalize(j))
    features[40:46] = 0
    return features


def held(j, joints=slice(None)):
    j[40:52, joints] = j[40, joints] if joints == slice(None) else j[40:52, [16]] + (j[40, joints] - j[40, 16])
    return j


def arm_flips(j):
    j[40, LEFT_ARM] = 2 * j[40, 16] - j[40, LEFT_ARM]
    return j


def teleports(j):
    j[40:, :, 0] += 0.5
    return j


def exchanged(j, frames=slice(40, 50), joints=SWAP):
    j[frames] = j[frames][:, joints]
    return j


def legs_only():
    order = np.arange(22)
    order[audit._SIDED["legs"]] = SWAP[audit._SIDED["legs"]]
    return order


def forearm_grows(j):
    j[:, 20] += (j[:, 20] - j[:, 18]) * 0.1 * np.sin(np.arange(len(j)) / 5)[:, None]
    return j


def trembles(j):
    return j + np.random.default_rng(0).normal(0, 0.01, j.shape)


def slides(j):
    standing = np.repeat(j[:1], len(j), axis=0)
    standing[:, :, 0] += np.clip(np.arange(len(j)) - 40, 0, 30)[:, None] * 0.5 / 20
    return standing


PLANTED = {
    "missing": (missing, "missing", (40, 46)),
    "held body": (held, "frozen", (40, 52)),
    "held arm": (lambda j: held(j, LEFT_ARM), "frozen", (40, 52)),
    "arm out of place": (arm_flips, "jump", (39, 41)),
    "another place": (teleports, "root-jump", (39, 41)),
    "frames left out": (lambda j: np.delete(j, range(40, 50), axis=0), "root-jump", (39, 41)),
    "sides exchanged": (exchanged, "swap", (40, 50)),
    "legs exchanged": (lambda j: exchanged(j, joints=legs_only()), "swap", (40, 50)),
    "sides exchanged at the end": (lambda j: exchanged(j, slice(80, None)), "swap", (80, 99)),
    "sides exchanged throughout": (lambda j: exchanged(j, slice(None)), "facing", (0, 99)),
    "bone": (forearm_grows, "bones", None),
    "noise": (trembles, "jitter", (0, 99)),
    "slide": (slides, "skating", (40, 70)),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_defect_is_found_with_its_clip_and_frames(walker, kind):
    joints, clip = walker
    plant, check, frames = PLANTED[kind]
    spoiled = plant(joints.copy())
    bad = replace(clip(joints), name="bad", features=spoiled) if spoiled.ndim == 2 else clip(spoiled, "bad")
    report = audit.audit([bad, clip(joints[:60])], thresholds={"duplicate": np.inf})
    hits = found(report, check)
    assert hits and {f.clip for f in report.findings} == {"bad"}, [str(f) for f in report.findings]
    if frames:
        assert abs(hits[0].frames[0] - frames[0]) <= 2 and abs(hits[0].frames[1] - frames[1]) <= 4, hits
    # what a defect brings along may be reported too, but a break in the recording is one finding and not three
    if check in ("missing", "jump", "root-jump", "swap", "facing"):
        assert {f.check for f in found(report) if f.clip == "bad"} - {"frozen"} == {check}


def test_a_threshold_is_the_largest_value_that_is_accepted(walker):
    joints, clip = walker
    noisy = [clip(trembles(joints.copy()))]
    value = found(audit.audit(noisy), "jitter")[0].value
    assert not found(audit.audit(noisy, thresholds={"jitter": value}), "jitter")
    assert found(audit.audit(noisy, thresholds={"jitter": value - 1e-6}), "jitter")


# --- duplicates


def liveliness(clip):
    return float(np.abs(np.diff(clip.joints, axis=0)).mean())


def test_copies_are_found_under_another_heading_place_length_and_some_noise(made):
    clips, rng = made.source, np.random.default_rng(0)
    origin = max((c for c in clips if len(c) > 150), key=liveliness)
    angle = 2.0
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    part = origin.joints[30:130] @ turn.T + [3.0, 0.0, -2.0] + rng.normal(0, 0.002, (100, 22, 3))
    copy = Clip("copy", motion.encode(motion.canonicalize(part)), origin.captions[:1])
    (hit,) = found(audit.audit([*clips, copy]), "duplicate")
    assert {hit.clip, hit.other} == {origin.name, "copy"}
    assert abs(hit.frames[0] - 30) <= 1 and abs(hit.frames[1] - 129) <= 1 and "frames 0 to 98 of copy" in hit.said
    splits = {"train": [c.name for c in clips], "test": ["copy"]}
    assert "in train and test" in found(audit.audit([*clips, copy], splits), "duplicate")[0].said


def test_a_mirrored_copy_is_known_by_its_name(made):
    first = made.source[0]
    twins = [first, replace(first, name=f"M{first.name}")]
    assert not found(audit.audit(twins), "duplicate")
    assert found(audit.audit([twins[0], replace(twins[1], name="again")]), "duplicate")
    names = [twins[0].name, twins[1].name]
    (hit,) = found(audit.audit(twins, {"train": names[:1], "test": names[1:]}), "shared")
    assert hit.clip == "test" and hit.value == 1
    assert audit.audit(twins, {"train": names, "train_val": names}).clean


# --- captions, labels, classes


def test_captions_that_lack_leave_the_clip_or_name_the_other_side(walker):
    joints, clip = walker
    waving = np.repeat(joints[:1], 80, axis=0)
    angle = np.sin(np.arange(80) / 2)
    x, y = (joints[0, 20] - joints[0, 18])[:2]
    waving[:, 20, 0] = waving[:, 18, 0] + np.cos(angle) * x - np.sin(angle) * y
    waving[:, 20, 1] = waving[:, 18, 1] + np.sin(angle) * x + np.cos(angle) * y
    waving = clip(waving)
    clips = [
        replace(waving, captions=(Caption("a person waves the left hand."),)),
        replace(waving, name="swapped", captions=(Caption("a person waves the right hand."),)),
        replace(waving, name="none", captions=()),
        replace(waving, name="late", captions=(Caption("a person waves.", 0.0, len(waving) / 20 + 3),)),
    ]
    report = audit.audit(clips, thresholds={"duplicate": np.inf, "frozen": np.inf})
    expected = [("caption", "none"), ("caption", "late"), ("side", "swapped")]
    assert [(f.check, f.clip) for f in report.findings] == expected


def test_who_stands_on_a_leg_need_not_move_it():
    for text, count in (("a person hops on the left leg", 0), ("she kicks with the left leg", 1)):
        assert sum(not m[1] for m in audit._LIMB.finditer(text)) == count
    assert audit._LIMB.search("kicks with the left and right foot")[3]


def test_labels_lengths_speeds_and_captions_are_judged_within_their_class(made):
    pool = [*made.pool, *made.test]
    quick = {"jitter": np.inf, "skating": np.inf, "frozen": np.inf, "jump": np.inf}
    assert audit.audit(pool, thresholds=quick).clean
    one, two = (next(i for i, c in enumerate(pool) if c.action == name) for name in made.classes[:2])
    slow = motion.resample(pool[one].joints, 20 / 8)
    spoiled = [
        *pool,
        replace(pool[one], name="short", features=pool[one].features[:6]),
        Clip("slow", motion.encode(slow), pool[one].captions, pool[one].action),
        replace(pool[one], name="stray", captions=pool[two].captions),
        replace(pool[one], name="bare", action=None),
    ]
    report = audit.audit(spoiled, thresholds=quick | {"duplicate": np.inf, "bones": np.inf})
    assert {(f.check, f.clip) for f in report.findings} == {
        ("length", "short"), ("length", "slow"), ("speed", "slow"), ("class", "stray"), ("label", "bare"),
    }  # fmt: skip
    assert made.classes[1] in found(report, "class")[0].said
    table = report.classes()
    assert table.loc[made.classes[0], "shortest"] == 0.3 and table["clips"].sum() == len(spoiled)


# --- splits


def test_splits_are_judged_by_names_alone():
    names = {p: f"S001C001P{p:03d}R001A001" for p in (1, 2, 3, 6)}  # 1 and 2 are official training performers
    splits = {
        "mine/xsub/train": [names[1], names[3]],
        "mine/xsub/val": [names[2], names[1].replace("C001", "C002"), names[3]],
        "mine/xset/train": [names[3], names[1]],
    }
    report = audit.audit([], splits)
    assert [(f.check, f.clip, round(f.value, 2)) for f in report.findings] == [
        ("shared", "mine/xsub/val", 0.33),
        ("subjects", "mine/xsub/val", 0.67),
        ("same-list", "mine/xset/train", 1),
        ("protocol", "mine/xsub/train", 0.5),
        ("protocol", "mine/xsub/val", 0.67),
        ("protocol", "mine/xset/train", 1),
    ]
    good = {"xsub/train": [names[1], names[2]], "xsub/test": [names[3], names[6]]}
    assert audit.audit([], good).clean


def test_the_released_lists_are_found_out(shared_data):
    report = audit.audit_folder(shared_data / "ntu-vibe-fewshot", thresholds={"skating": np.inf, "jitter": np.inf})
    assert {"file", "subjects", "same-list", "protocol"} <= {f.check for f in report.findings} <= {
        "file", "subjects", "same-list", "protocol", "jump"}  # fmt: skip
    people = {f.clip: f.said for f in found(report, "subjects")}
    assert people["default/xsub/val"] == "23 subjects are in default/xsub/train too: 935 of 1763 clips show one of them"
    assert "13 subjects" in people["fewshot/S0000/xsub/val"] and "404 of 1706" in people["fewshot/S0000/xsub/val"]
    assert {(f.clip, f.other) for f in found(report, "same-list")} >= {
        ("default/xsub/train", "default/xset/train"), ("default/xsub/val", "default/xset/val")}  # fmt: skip
    official = {f.clip: f.said for f in found(report, "protocol")}
    assert official["default/xsub/train"].startswith(f"{1112 - 520} of 1112 clips")
    assert found(report, "file")[0].value == 2875 - 30
    for name in data.OFFICIAL:
        own = audit.audit_folder(shared_data / "ntu-vibe-fewshot", [name])
        assert not {f.check for f in own.findings} & {"subjects", "protocol", "shared", "same-list"}


def test_real_recordings_have_the_known_repetitions_and_hardly_anything_else(shared_data):
    folder = shared_data / "bandai"
    with np.load(folder / "bandai_joints22_30fps.npz") as pack, open(folder / "index.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
        joints = np.cumsum(pack["delta"], axis=1, dtype=np.int16).T.reshape(-1, 22, 3).astype(np.float64)
        joints[..., [0, 2]] += np.cumsum(pack["root_delta"], axis=1, dtype=np.int32).T[:, None]
    chosen = [r for r in rows if r["name"].startswith("dataset-2_walk-turn") and r["style"] == "normal"]
    clips = [
        Clip.from_joints(r["name"], joints[int(r["start"]) : int(r["start"]) + int(r["frames"])] * 1e-4, 30,
                         captions=(Caption("a person turns."),), action=r["content"], subject=r["subject_group"])
        for r in chosen
    ]  # fmt: skip
    report = audit.audit(clips)
    known = {(r["near_duplicate_of"], r["name"]) for r in chosen if r["near_duplicate_of"]}
    assert len(known) == 8 and len(clips) > 60
    assert {(f.clip, f.other) for f in report.findings} == known and {f.check for f in report.findings} == {"duplicate"}


def test_official_sides_are_read_from_labels_where_names_do_not_say_them(tmp_path, made):
    people = [("P001", "S001"), ("P003", "S002"), ("P001", "S002")]
    clips = [replace(clip, name=f"take_part{k:02d}", subject=subject, setup=setup)
             for k, (clip, (subject, setup)) in enumerate(zip(made.source, people, strict=False))]  # fmt: skip
    data.write_humanml3d(tmp_path / "set", {"train": clips})
    for name, sizes in (("official-xsub", (2, 1)), ("official-xset", (2, 1))):
        report = audit.audit_folder(tmp_path / "set", [name])
        (row,) = report.splits[["clips", "clips of second"]].itertuples(index=False)
        assert tuple(row) == sizes and not {f.check for f in report.findings} & {"subjects", "protocol", "shared"}


# --- folders, the command, bad input


@pytest.fixture
def folder(tmp_path, made):
    data.write_humanml3d(tmp_path / "set", {"train": made.source[:6], "test": made.source[6:9]})
    return tmp_path / "set"


def test_the_command_tells_by_its_exit_code_and_writes_the_report(folder, tmp_path, capsys, made):
    people = ["--threshold", "subjects=1"]
    assert cli.main(["audit", str(folder), *people]) == 0
    assert "no findings" in capsys.readouterr().out
    name = made.source[0].name
    spoiled = made.source[0].features.copy()
    spoiled[20:23, 5] = np.nan
    np.save(folder / "new_joint_vecs" / f"{name}.npy", spoiled)
    with open(folder / "new_joint_vecs" / f"{made.source[1].name}.npy", "wb") as stream:  # declares 100 TB
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**11, 263)})
    (folder / "texts" / f"{made.source[2].name}.txt").write_text("walks\n")
    (folder / "new_joint_vecs" / f"{made.source[3].name}.npy").unlink()
    report, pictures = tmp_path / "report.json", tmp_path / "pictures"
    words = [*people, "--json", str(report), "--figures", str(pictures)]
    assert cli.main(["audit", str(folder), *words]) == 1
    said = capsys.readouterr().out
    assert f"{name}, frames 20 to 22: 3 of {len(spoiled)} frames are not finite" in said
    written = json.loads(report.read_text())
    assert not written["clean"] and written["checks"]["missing"]["findings"] == 1
    assert [(f["check"], f["clip"]) for f in written["findings"]] == [
        ("file", made.source[1].name), ("file", made.source[3].name), ("missing", name),
        ("caption", made.source[2].name),
    ]  # fmt: skip
    assert len(written["spectrum"]) == 41 and written["classes"][0]["clips"] == len(written["clips"]) == 6
    assert {p.name for p in pictures.iterdir()} == {"lengths.png", "speeds.png", "spectrum.png"}


@pytest.mark.parametrize(("words", "said"), [
    (["nowhere"], "nowhere is not a folder"),
    (["{}", "--split", "val"], "has no list 'val', expected one of test, train"),
    (["{}", "--split", "official-xsub"], "expected the form P001 for xsub"),
    (["{}", "--threshold", "shake=1"], "threshold 'shake' is unknown"),
    (["{}", "--threshold", "jitter=-1"], "expected a number >= 0"),
])  # fmt: skip
def test_bad_input_is_one_line_and_code_2(folder, capsys, words, said):
    assert cli.main(["audit", *(w.format(folder) for w in words)]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_a_threshold_needs_a_number(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["audit", str(folder), "--threshold", "jitter"])
    assert stopped.value.code == 2 and "expected NAME=VALUE" in capsys.readouterr().err


def test_two_clips_with_one_name_are_refused(made):
    with pytest.raises(ValueError, match="comes twice"):
        audit.audit([made.source[0], made.source[0]])


def test_every_check_says_its_threshold_and_where_it_comes_from(capsys):
    with pytest.raises(SystemExit):
        cli.main(["audit", "--checks"])
    said = capsys.readouterr().out
    assert all(name in said and check.origin in said for name, check in audit.CHECKS.items())
