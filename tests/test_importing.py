"""The import as a whole: what is written, that it resumes, that nothing remains after an error, what a user is told."""

import json

import numpy as np
import pytest
import recordings

from kinemic import data, formats, importing, motion
from kinemic.cli import main


def takes(folder, walk, count=3):
    """A folder of `count` arrays at 25 fps, of which the second is long."""
    folder.mkdir()
    for i in range(count):
        np.savez(folder / f"take{i}.npz", joints=walk(600 if i == 1 else 80, seed=i), fps=25)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_import_is_read_back_with_labels_captions_and_lists(tmp_path, walk):
    source = takes(tmp_path / "in", walk)
    (tmp_path / "labels.csv").write_text(
        "name,caption,action,subject,split\n"
        "take0.npz,a person walks,walk,P1,pool\ntake0,someone walks on,walk,P1,pool\n"
        'take1,"a person walks, and walks",walk,P2,test\nnobody,a,b,c,pool\n'
    )
    report = importing.convert(source, tmp_path / "out", labels=tmp_path / "labels.csv", licence="CC0, me")
    (pool,) = data.read_humanml3d(tmp_path / "out", "pool")
    assert [c.text for c in pool.captions] == ["a person walks", "someone walks on"]
    assert (pool.name, pool.action, pool.subject) == ("take0", "walk", "P1")
    expected = motion.process(walk(80, seed=0), 25)
    np.testing.assert_array_equal(pool.features, expected)
    test = data.read_humanml3d(tmp_path / "out", "test")
    assert [len(c) for c in test] == [160, 159, 160] and [c.name for c in test][2] == "take1_part02"
    assert [c.name for c in data.read_humanml3d(tmp_path / "out", "train")] == ["take2"]
    assert (tmp_path / "out" / "LICENCE.txt").read_text() == "CC0, me\n"
    assert report == json.loads((tmp_path / "out" / "import.json").read_text())
    assert report["labels without a clip"] == ["nobody"] and report["lists"] == {"pool": 1, "test": 3, "train": 1}
    entry = report["files"][1]
    assert (entry["fps"], entry["frames"], entry["rows"], entry["notes"]) == (25, 600, 479, ["cut into 3 pieces"])
    motion.Normalizer.load(tmp_path / "out")


def test_statistics_are_those_of_the_training_list(tmp_path, walk):
    source = takes(tmp_path / "in", walk)
    importing.convert(source, tmp_path / "out")
    fitted = motion.Normalizer.fit([c.features for c in data.read_humanml3d(tmp_path / "out")])
    read = motion.Normalizer.load(tmp_path / "out")
    np.testing.assert_allclose(read.mean, fitted.mean, atol=1e-6)
    np.testing.assert_allclose(read.std, fitted.std, rtol=1e-5)


@pytest.mark.parametrize("jobs", [1, 2])
def test_two_imports_are_equal_to_the_byte(tmp_path, walk, jobs):
    source = takes(tmp_path / "in", walk)
    importing.convert(source, tmp_path / "a")
    importing.convert(source, tmp_path / "deeper" / "b", jobs=jobs)
    assert contents(tmp_path / "a") == contents(tmp_path / "deeper" / "b")


def test_an_import_that_stopped_goes_on_where_it_was(tmp_path, walk, monkeypatch):
    source = takes(tmp_path / "in", walk)
    good = (source / "take2.npz").read_bytes()
    importing.convert(source, tmp_path / "whole")
    (source / "take2.npz").write_bytes(good[:500])
    with pytest.raises(
        ValueError, match=r"take2.npz is no archive .*\(2 of 3 files are kept for the next run; --skip-bad"
    ):
        importing.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.importing").is_dir()
    (source / "take2.npz").write_bytes(good)
    read = []
    reader = formats.read
    monkeypatch.setattr(formats, "read", lambda item, *rest: read.append(item.name) or reader(item, *rest))
    importing.convert(source, tmp_path / "out")
    assert read == ["take2"]
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")
    assert not (tmp_path / ".out.importing").exists()


def test_a_draft_forgets_what_changed(tmp_path, walk):
    source = takes(tmp_path / "in", walk)
    (source / "take3.npz").write_bytes(b"broken")
    with pytest.raises(ValueError):
        importing.convert(source, tmp_path / "out")
    (source / "take3.npz").unlink()
    (source / "take1.npz").unlink()  # its three pieces are in the draft
    np.savez(source / "take0.npz", joints=walk(90, seed=9), fps=25)
    importing.convert(source, tmp_path / "out")
    importing.convert(source, tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == contents(tmp_path / "out")


def test_labels_that_changed_are_taken_up(tmp_path, walk):
    source = takes(tmp_path / "in", walk, 2)
    (source / "x.npz").write_bytes(b"broken")
    labels = tmp_path / "labels.csv"
    labels.write_text("name,caption\ntake0,first\n")
    with pytest.raises(ValueError):
        importing.convert(source, tmp_path / "out", labels=labels)
    labels.write_text("name,caption\ntake0,second\n")
    importing.convert(source, tmp_path / "out", labels=labels, skip_bad=True)
    assert data.read_humanml3d(tmp_path / "out")[0].captions[0].text == "second"


def test_bad_files_can_be_left_out_and_are_listed(tmp_path, walk):
    source = takes(tmp_path / "in", walk)
    (source / "bad.bvh").write_text("HIERARCHY\n")
    np.savez(source / "shape.npz", betas=np.zeros(10))
    report = importing.convert(source, tmp_path / "out", skip_bad=True)
    skipped = {each["file"]: each["why"] for each in report["skipped"]}
    assert skipped["shape.npz"] == "holds no motion" and skipped["bad.bvh"].startswith(
        "bad.bvh: there is no line MOTION"
    )
    assert report["clips"] == 5
    shown = importing.summary(report)
    assert "skipped bad.bvh" in shown and "no licence was given" in shown


def test_nothing_good_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.bvh").write_text("HIERARCHY\n")
    with pytest.raises(ValueError, match="nothing of in could be read; the first: bad.bvh"):
        importing.convert(tmp_path / "in", tmp_path / "out", skip_bad=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_existing_folder_is_not_touched(tmp_path, walk):
    source = takes(tmp_path / "in", walk, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="exists and is not empty"):
        importing.convert(source, tmp_path / "out")
    assert contents(tmp_path / "out") == {"mine.txt": b"x"}


def test_two_clips_of_one_name_are_refused(tmp_path, walk):
    one = formats.read(takes(tmp_path / "in", walk, 1) / "take0.npz")
    with pytest.raises(ValueError, match="both give a clip take0|gives two clips"):
        importing.convert([*one, *one], tmp_path / "out")


def test_captions_with_times_follow_their_piece(walk):
    whole = formats.Recording(
        "a", walk(500), 20, motion.JOINT_NAMES, formats.skeletons.load("humanml3d"), "joints",
        captions=(data.Caption("all"), data.Caption("late", 15, 24), data.Caption("middle", 7, 9)),
    )  # fmt: skip
    clips = importing.cut(whole, max_frames=199)
    assert [len(c) for c in clips] == [166, 167, 166]
    told = [[(c.text, c.start, c.end) for c in clip.captions] for clip in clips]
    assert told[0] == [("all", 0, 0), ("middle", 7, 8.3)]
    assert told[1] == [("all", 0, 0), ("late", 6.7, 8.35), ("middle", 0, 0.7)]
    assert told[2] == [("all", 0, 0), ("late", 0, 7.35)]


def test_doubts_about_axes_and_sides_are_said(tmp_path, walk):
    joints = walk(60)
    for name, turned, message in (
        ("a", joints[..., [1, 0, 2]] * [1, -1, 1], "the trunk lies"),
        ("b", joints * [1, -1, -1], "the head is below the hips"),
        ("c", joints * [-1, 1, 1], "left and right look exchanged"),
        ("d", joints, ""),
    ):
        np.savez(tmp_path / f"{name}.npz", joints=turned, fps=20)
        report = importing.convert(tmp_path / f"{name}.npz", tmp_path / name)
        assert "; ".join(report["files"][0]["notes"]).startswith(message) and bool(message) == bool(
            report["files"][0]["notes"]
        )


@pytest.mark.parametrize(
    "text, message",
    [
        ("file,caption\na,b\n", r"line 1: columns are \['file', 'caption'\], expected name"),
        ("name,caption\na\n", "line 2: found 1 values, expected 2"),
        ("name,caption\na,b, c\n", "a caption with a comma needs quotes"),
        ("name,caption\n,b\n", "line 2: name is empty"),
        ("name,caption\na,b#c\n", "line 2: caption is 'b#c'"),
        ("name,split\na,../x\n", r"line 2: split is '../x'"),
        ("name,action\na,walk\na,run\n", "line 3: another action than in a row above"),
    ],
)
def test_mistakes_in_a_label_table_are_named(tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        importing.read_label_table(tmp_path / "labels.csv")


def test_the_command_of_one_who_is_new(tmp_path, capsys):
    recordings.write_bvh(tmp_path / "dance.bvh", frames=121, prefix="mixamorig:")
    assert main(["import", str(tmp_path / "dance.bvh"), "--to", str(tmp_path / "mine"), "--licence", "CC0"]) == 0
    out = capsys.readouterr().out
    assert "bvh" in out and "mixamo" in out and "1 clips, 4.0 seconds; report in import.json" in out
    assert main(["import", str(tmp_path / "dance.bvh"), "--to", str(tmp_path / "mine")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "exists and is not empty" in error
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    assert "examples:" in capsys.readouterr().out


def test_a_strange_file_is_imported_by_what_help_and_messages_say(tmp_path, capsys):
    """Poser's names, millimetres, tabs, Windows line ends; the table is the example of the help, but for the unit."""
    sides = [(s + name, s + parent if parent else "hip" if name == "Thigh" else "chest", (x * a, b, c))
             for s, x in (("l", 10), ("r", -10))
             for name, parent, (a, b, c) in (
                 ("Thigh", "", (9, -50, 0)), ("Shin", "Thigh", (0, -420, 0)), ("Foot", "Shin", (0, -420, -20)),
                 ("Toe", "Foot", (0, -70, 130)), ("Collar", "", (3, 180, 0)), ("Shldr", "Collar", (14, 0, 0)),
                 ("ForeArm", "Shldr", (27, 0, 0)), ("Hand", "ForeArm", (25, 0, 0)))]  # fmt: skip
    trunk = [("hip", None, (0, 950, 0)), ("abdomen", "hip", (0, 120, -10)), ("chest", "abdomen", (0, 200, 0)),
             ("neck", "chest", (0, 240, 0)), ("head", "neck", (0, 90, 20))]  # fmt: skip
    path, table = tmp_path / "strange.bvh", tmp_path / "strange.yaml"
    names, joints = recordings.write_bvh(
        path, [*trunk, *sides], 150, order="YXZ", moving=("chest", "lShldr"), frame_time="0.016667", indent="\t",
        newline="\r\n", extra="\t",
    )  # fmt: skip
    words = ["import", str(path), "--to", str(tmp_path / "mine")]
    assert main(words) == 2
    assert "an example: kinemic import --help" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    example = capsys.readouterr().out.split("  metres_per_unit", 1)[1].split("Known skeletons", 1)[0]
    table.write_text("  metres_per_unit" + example)
    words += ["--skeleton", str(table)]
    assert main(words) == 2
    assert "metres_per_unit about 0.001" in capsys.readouterr().err
    table.write_text(table.read_text().replace("0.01", "0.001"))
    assert main(words) == 0
    assert " 60 " in capsys.readouterr().out
    (made,) = formats.read(path, formats.skeletons.load(table))
    np.testing.assert_allclose(made.body()[:, 21], joints[:, names.index("rHand")] / 1000, atol=1e-8)
    assert main(["export", str(tmp_path / "mine" / "strange"), "--format", "npz", "--to", str(tmp_path)]) == 0


def test_the_command_says_what_to_do_with_unknown_bones(tmp_path, capsys):
    path = tmp_path / "odd.bvh"
    recordings.write_bvh(path, frames=60)
    path.write_text(path.read_text().replace("Arm", "Flipper"))
    assert main(["import", str(path), "--to", str(tmp_path / "mine")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nearest is mixamo, which needs" in error and "--skeleton FILE.yaml" in error
    (tmp_path / "own.yaml").write_text(
        "base: mixamo\nmapping: {left_shoulder: LeftFlipper, left_elbow: LeftForeFlipper, "
        "right_shoulder: RightFlipper, right_elbow: RightForeFlipper}\n"
    )
    assert main(["import", str(path), "--to", str(tmp_path / "mine"), "--skeleton", str(tmp_path / "own.yaml")]) == 0
    assert not list(tmp_path.glob(".*"))
