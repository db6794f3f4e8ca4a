"""Broken files: whatever is done to a file, it is imported or refused in one line, and nothing else remains.

Each importer gets 200 files of a seeded mutator. The outcome of a single one is not known, so the test is about what
holds for all: one line that names the file, no folder, no draft, no growing memory, no non-finite number.
"""

import io
import json
import os
import pickle
import random
import resource
import shutil
import zipfile

import numpy as np
import pytest
import recordings

from kinemic import importing

COUNT = 200
WORDS = ["nan", "inf", "-inf", "1e400", "-1e308", "1e30", "9999999999", "-1", "0", "",
         "abc", "{", "}", "\x00", "é", "1_0",
         "0x10", "../../evil", "%s%n", "99999999999999999999999999", "#", "１２"]  # fmt: skip


def mutate_text(raw, rng):
    """One to three wounds to a text file."""
    for _ in range(rng.randint(1, 3)):
        lines, kind = raw.split(b"\n"), rng.randrange(12)
        at, length = rng.randrange(len(raw) + 1), rng.randrange(1, 1 + max(1, len(raw) // 3))
        row = rng.randrange(len(lines))
        words = lines[row].split()
        word = rng.choice(WORDS).encode()
        if kind == 0:
            raw = raw[:at]
        elif kind == 1:
            raw = raw[:at] + raw[at + length :]
        elif kind == 2:
            raw = raw[:at] + raw[at : at + length] + raw[at:]
        elif kind == 3:
            raw = raw[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20))) + raw[at:]
        elif kind in (4, 5, 6) and words:
            words[rng.randrange(len(words))] = word
            raw = b"\n".join([*lines[:row], b" ".join(words), *lines[row + 1 :]])
        elif kind == 7:
            raw = b"\n".join(lines[:row] + lines[row + 1 :])
        elif kind == 8:
            other = rng.randrange(len(lines))
            lines[row], lines[other] = lines[other], lines[row]
            raw = b"\n".join(lines)
        elif kind == 9:
            raw = raw.decode("latin-1").encode(rng.choice(["utf-16", "utf-32", "cp037"]))
        elif kind == 10:
            numbers = [i for i, line in enumerate(lines) if line.strip()[-1:].isdigit()]
            if numbers:  # the counts of a format stand at the ends of short lines
                row = min(rng.sample(numbers, min(5, len(numbers))), key=lambda i: len(lines[i]))
                lines[row] = b" ".join([*lines[row].split()[:-1], word])
                raw = b"\n".join(lines)
        elif rng.random() < 0.3:
            raw = rng.choice([b"", b" \n\t\n", b"\0" * 100, os.urandom(0) + bytes(range(256)) * 4])
    return raw


def mutate_bytes(raw, rng):
    """One to three wounds to a binary file."""
    for _ in range(rng.randint(1, 3)):
        kind, at = rng.randrange(6), rng.randrange(len(raw) + 1)
        if kind == 0:
            raw = raw[:at]
        elif kind == 1:
            raw = raw[:at] + raw[at + rng.randrange(1, 64) :]
        elif kind in (2, 3):
            near = rng.randrange(min(300, len(raw) + 1))  # headers and opcodes
            raw = raw[:near] + bytes([rng.randrange(256)]) + raw[near + 1 :]
        elif kind == 4:
            raw = raw[:at] + bytes(rng.randrange(256) for _ in range(8)) + raw[at + 8 :]
        elif rng.random() < 0.3:
            raw = rng.choice([b"", b"\0" * 64, b"\x93NUMPY", b"PK\x05\x06", b"not a file", bytes(range(256))])
    return raw


def spoil(array, rng):
    """The same array with bad numbers, another shape or another type."""
    array = np.atleast_1d(np.array(array))
    if array.dtype.kind == "f" and array.size and rng.random() < 0.4:
        array = array.astype(np.float64)
        array.flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, 1e300, -1e9, 1e38])
        return array
    return rng.choice([array[:1], array[:0], array.reshape(-1), array[None], np.zeros((9, 66), complex), np.array("x"),
                       array.astype(str), np.array({"a": 1}, dtype=object), np.zeros((9, 66), np.int8),
                       np.zeros((0, 22, 3)), np.array(-5.0), np.array(1e-9), np.array(np.nan)])  # fmt: skip


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(shape, dtype="<f8"):
    """A .npy file that declares more than it holds."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(100)


LARGE = [(10**10, 22, 3), (2**62, 22, 3), (-1, 22, 3), (10**8, 156), (0, 22, 3), (2**40,), (10**30, 3)]


def mutate_npy(raw, rng):
    if rng.random() < 0.3:
        return header(rng.choice(LARGE), rng.choice(["<f8", "<f4", "|O", "|V9", "<U5", "<c16"]))
    if rng.random() < 0.5:
        return npy(spoil(np.load(io.BytesIO(raw)), rng))
    return mutate_bytes(raw, rng)


def mutate_npz(raw, rng):
    if rng.random() < 0.4:
        return mutate_bytes(raw, rng)
    with np.load(io.BytesIO(raw)) as stored:
        members = {f"{key}.npy": npy(stored[key]) for key in stored.files}
    for _ in range(rng.randint(1, 2)):
        key, kind = rng.choice(sorted(members)), rng.randrange(6)
        if kind == 0:
            members.pop(key)
        elif kind == 1:
            members[key] = header(rng.choice(LARGE))
        elif kind == 2:
            members["../../../evil.npy"] = members.pop(key)
        elif kind == 3:
            members[key] = mutate_bytes(members[key], rng)
        else:
            with np.load(io.BytesIO(raw)) as stored:
                members[key] = npy(spoil(stored.get(key[:-4], np.zeros(3)), rng))
        if not members:
            break
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for key, value in members.items():
            archive.writestr(key, value)
    return stream.getvalue()


class Evil:
    """Would make a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def mutate_pickle(raw, rng, trap):
    if rng.random() < 0.4:
        return mutate_bytes(raw, rng)
    table = pickle.loads(raw)
    for _ in range(rng.randint(1, 2)):
        item, kind = rng.choice(table["annotations"]) if table["annotations"] else {}, rng.randrange(8)
        if kind == 0 and item:
            item.pop(rng.choice(sorted(item)))
        elif kind == 1:
            item["frame_dir"] = rng.choice(
                ["../../evil", "/nowhere/evil", "a\\b", "", ".x", "a b", "x" * 300, 7, None, "a\0b"]
            )
        elif kind == 2 and "keypoint" in item:
            item["keypoint"] = spoil(item["keypoint"], rng)
        elif kind == 3:
            item[rng.choice(["label", "total_frames", "keypoint"])] = rng.choice([-1, 10**12, "x", None, [1], 2.5])
        elif kind == 4:
            table["split"] = rng.choice([None, [], {"a": None}, {"../evil": ["a"]}, {3: []}, {"x": [1, None]}])
        elif kind == 5:
            table["annotations"] = rng.choice([None, {}, [], "x", [None], [[]]])
            break
        else:
            item["extra"] = rng.choice([Evil(trap), np.dtype("O"), np.zeros(2, dtype=object), {1, 2}, range(3), print])
    return pickle.dumps(table, protocol=rng.choice([2, 3, 4, 5]))


def run(base, target, mutate, tmp_path, least=0.25, **options):
    """Import COUNT mutations of one file of a source; `base` is what is imported, `target` the file that is broken."""
    original, refused, imported = target.read_bytes(), 0, 0
    work = tmp_path / "work"
    work.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(COUNT):
        target.write_bytes(mutate(original, random.Random(seed)))
        try:
            report = importing.convert(base, work / "out", **options)
        except (ValueError, OSError) as error:
            message = str(error)
            assert "\n" not in message and len(message) < 900, (seed, message)
            assert target.name in message, (seed, message)
            assert not list(work.iterdir()), (seed, list(work.iterdir()))
            refused += 1
        else:
            for path in (work / "out" / "new_joint_vecs").iterdir():
                assert np.isfinite(np.load(path)).all(), seed
            assert report["clips"] >= 1
            assert [path.name for path in work.iterdir()] == ["out"]
            shutil.rmtree(work / "out")
            imported += 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "base") == ["work"]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000, f"peak memory grew by {grown} kB"
    assert refused > least * COUNT, f"only {refused} of {COUNT} files were refused"
    return refused, imported


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


def test_bvh(base, tmp_path):
    path = base / "walk.bvh"
    recordings.write_bvh(path)
    run(path, path, mutate_text, tmp_path)


@pytest.mark.parametrize("broken", ["07_01.amc", "07.asf"])
def test_asf_and_amc(base, tmp_path, broken):
    path = recordings.write_amc(base)
    run(path, base / broken, mutate_text, tmp_path, fps=60)


def test_amass(base, tmp_path):
    path = base / "walk_poses.npz"
    np.savez(path, **recordings.amass_arrays())
    run(path, path, mutate_npz, tmp_path)


def test_arrays_with_keys(base, tmp_path, walk):
    path = base / "walk.npz"
    np.savez(path, joints=walk(24), fps=20, action="walk")
    run(path, path, mutate_npz, tmp_path)


def test_plain_arrays(base, tmp_path, walk):
    path = base / "walk.npy"
    np.save(path, walk(24))
    run(path, path, mutate_npy, tmp_path, fps=20)


@pytest.mark.parametrize("broken", ["new_joint_vecs/a1.npy", "texts/a1.txt", "train.txt", "labels.csv"])
def test_humanml3d(base, tmp_path, walk, broken):
    folder = base / "a1_set"
    recordings.write_vectors(folder, walk)
    (folder / "labels.csv").write_text("name,action,subject,setup\na1,walk,P1,\n")
    if broken == "train.txt":  # a list cannot break an import, only lose a name
        for seed in range(20):
            (folder / broken).write_bytes(mutate_text(b"a1\n../../evil\n", random.Random(seed)))
            importing.convert(folder, tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
        return
    run(folder, folder / broken, mutate_npy if broken.endswith("npy") else mutate_text, tmp_path, least=0.1)


def test_kit(base, tmp_path, walk):
    folder = base / "kit"
    recordings.write_vectors(folder, walk)
    rows = np.load(folder / "new_joint_vecs" / "a1.npy")[:, :251]
    np.save(folder / "new_joint_vecs" / "a1.npy", rows / [1, *[0.0015625] * 250])
    run(folder, folder / "new_joint_vecs" / "a1.npy", mutate_npy, tmp_path)


@pytest.mark.parametrize("broken", ["new_joint_vecs", "texts", "ntu_classes.txt", "ntu_metadata.json", "splits"])
def test_ntu_vibe(base, tmp_path, walk, broken):
    folder, name = base / "ntu", "S001C001P001R001A002"
    recordings.write_vectors(folder, walk, (name,))
    (folder / "splits" / "few").mkdir(parents=True)
    (folder / "splits" / "few" / "train.txt").write_text(f"{name}\n")
    actions = [{"tag": tag, "action": action} for tag, action in (("A001", "drink"), ("A002", "eat"))]
    if broken == "ntu_metadata.json":
        (folder / broken).write_text(json.dumps({"actions": actions}, indent=1))
    else:
        (folder / "ntu_classes.txt").write_text("drink\neat\n")
    target = folder / broken
    if target.is_dir():
        target = next(path for path in target.rglob("*") if path.is_file())
    # a list cannot break an import, only lose a name; nor can a class name that is another word
    least = {"splits": -1, "new_joint_vecs": 0.25}.get(broken, 0)
    run(folder, target, mutate_npy if broken == "new_joint_vecs" else mutate_text, tmp_path, least)


def test_tables_that_are_nested_without_end(base, tmp_path, walk):
    recordings.write_vectors(base / "ntu", walk, ("S001C001P001R001A001",))
    (base / "ntu" / "splits").mkdir()
    (base / "ntu" / "ntu_metadata.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="ntu_metadata.json: .*expected actions"):
        importing.convert(base / "ntu", tmp_path / "out")


def test_ntu(base, tmp_path):
    path = base / "S001C001P001R001A023.skeleton"
    body = recordings.kinect_body()
    recordings.write_ntu(path, {"72057594037931691": dict(enumerate(body))})
    run(path, path, mutate_text, tmp_path)


def test_pyskl(base, tmp_path):
    path = base / "ntu.pkl"
    items = [(f"S001C001P001R001A{i:03d}", i - 1, recordings.kinect_body(seed=i)[None]) for i in (1, 2)]
    recordings.write_pyskl(path, items)
    trap = tmp_path / "evil"
    run(path, path, lambda raw, rng: mutate_pickle(raw, rng, str(trap)), tmp_path)
    assert not trap.exists()


def test_label_tables(base, tmp_path, walk):
    path = base / "walk.npy"
    np.save(path, walk(24))
    table = base / "labels.csv"
    table.write_text(
        'name,caption,action,split\nwalk,"a person walks, slowly",walk,train\nwalk,somebody walks,walk,train\n'
    )
    run(path, table, mutate_text, tmp_path, fps=20, labels=table)


def test_skeleton_files(base, tmp_path):
    path = base / "walk.bvh"
    recordings.write_bvh(path)
    table = base / "own.yaml"
    table.write_text("base: mixamo\nmetres_per_unit: 0.01\nup: y\nmapping:\n  spine1: {Hips: 0.5, Spine: 0.5}\n")
    original = table.read_bytes()
    for seed in range(COUNT):
        table.write_bytes(mutate_text(original, random.Random(seed)))
        try:
            importing.convert(path, tmp_path / "out", skeleton=table)
        except (ValueError, OSError) as error:
            assert "\n" not in str(error) and len(str(error)) < 1500, (seed, str(error))
            assert not (tmp_path / "out").exists()
        else:
            shutil.rmtree(tmp_path / "out")
