"""Files of recorded motion, read into one plain object: joints in metres with y up, and their frame rate.

    sources(path)  what there is to read: one file, a folder of files, or a data set folder
    read(source)   its recordings

Nothing is guessed in silence: a file that does not state its frame rate needs one from the caller, a skeleton that is
recognised by its joint names is named in the recording, and what was repaired is listed in its notes. Readers check
before they allocate: a file that declares more frames than it holds is refused. Every mistake of a file is a ValueError
in one line that names the file, the place in it and what to do.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from kinemic import data, mocap, motion, skeletons, untrusted
from kinemic.skeletons import Skeleton

__all__ = ["Recording", "Source", "clip_name", "read", "sources"]

MAX_GAP = 0.5  # seconds that may be bridged where a body is missing
NTU_FPS, HUMANML3D_FPS, KIT_FPS = 30.0, 20.0, 12.5  # what these formats prescribe; their files do not repeat it
_KIT_FEATURES, _KIT_JOINTS = 251, 21

# Rest pose of a person who stands with the arms held out, for axis-angle poses without their body model: directions of
# the bones to one decimal, ours, with the lengths of HumanML3D's reference body.
_ARMS_OUT = {
    "left_hip": (0.6, -0.8, 0), "right_hip": (-0.6, -0.8, 0), "spine1": (0, 1, -0.2),
    "left_knee": (0.1, -1, 0), "right_knee": (-0.1, -1, 0), "spine2": (0, 1, 0),
    "left_ankle": (0, -1, -0.1), "right_ankle": (0, -1, -0.1), "spine3": (0, 0.9, 0.4),
    "left_foot": (0.2, -0.4, 0.9), "right_foot": (-0.2, -0.4, 0.9), "neck": (0, 1, -0.2),
    "left_collar": (0.5, 0.8, -0.2), "right_collar": (-0.5, 0.8, -0.2), "head": (0, 0.8, 0.6),
    "left_shoulder": (0.9, 0.3, -0.1), "right_shoulder": (-0.9, 0.3, -0.1),
    "left_elbow": (1, 0, -0.1), "right_elbow": (-1, 0, -0.1), "left_wrist": (1, 0, 0), "right_wrist": (-1, 0, 0),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Recording:
    """One recorded motion of one person.

    Args:
        name: of the clip, a file name.
        joints: (T, J, 3) float64, metres, y up.
        fps: frames per second of `joints`, 1 to 1000.
        names: J joint names, as in the file.
        skeleton: what turns them into the 22 joints.
        format: kind of file.
        captions, action, subject, setup: as in `data.Clip`.
        splits: lists that the recording belongs to.
        floor: rule that finds the floor, see `motion.canonicalize`.
        notes: what a user should know about the reading: repairs, assumptions.

    Raises:
        ValueError: a wrong shape, values that are not finite or not within 10 km, or an impossible frame rate.
    """

    name: str
    joints: np.ndarray
    fps: float
    names: tuple[str, ...]
    skeleton: Skeleton
    format: str
    captions: tuple[data.Caption, ...] = ()
    action: str | None = None
    subject: str | None = None
    setup: str | None = None
    splits: tuple[str, ...] = ()
    floor: str = "min"
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        shape = np.shape(self.joints)
        if len(shape) != 3 or shape[0] < 1 or shape[1:] != (len(self.names), 3):
            raise ValueError(f"joints have shape {shape}, expected (frames >= 1, {len(self.names)}, 3)")
        good = np.abs(self.joints) < mocap.MAX_METRES  # False for nan
        if not good.all():
            frame, joint, axis = (int(i) for i in np.argwhere(~good)[0])
            found = f"{self.names[joint]} is at {self.joints[frame, joint, axis]:.3g} m in frame {frame}"
            raise ValueError(f"{found}, expected positions below 10 km; repair the frame, or check the unit")
        if not 1 <= self.fps <= 1000:
            raise ValueError(f"the frame rate is {self.fps:g}, expected 1 to 1000 frames per second; check it")

    def body(self) -> np.ndarray:
        """The 22 joints, (T, 22, 3) float64, metres, y up.

        Raises:
            ValueError: a joint that is missing, or legs of a length that no person has: the unit is wrong.
        """
        body = self.skeleton.body(self.joints, self.names)
        thigh, shin = (np.linalg.norm(body[:, b] - body[:, a], axis=-1) for a, b in ((2, 5), (5, 8)))
        leg = float(np.median(thigh + shin))
        if not 0.2 < leg < 2:
            found = f"the right leg is {leg:.3g} m long with metres_per_unit {self.skeleton.unit:g}"
            fit = f"about {0.85 * self.skeleton.unit / leg:.1g}" if leg > 0 else "another"
            raise ValueError(f"{found}, expected 0.2 to 2; pass a skeleton file with metres_per_unit {fit}")
        return body


@dataclass(frozen=True)
class Source:
    """Something to read.

    Args:
        path: file with the motion.
        kind: format.
        name: of the clip, or of the file that holds several.
        files: all files that the result depends on.
        given: fields of `Recording` that the surroundings of the file tell.
    """

    path: Path
    kind: str
    name: str
    files: tuple[Path, ...]
    given: Mapping[str, Any]


def sources(path: str | Path) -> tuple[list[Source], Counter]:
    """What can be read at a path, in a fixed order, and the number of files of each ending that cannot.

    Args:
        path: a file; a folder in the layout of HumanML3D, KIT-ML or NTU-VIBE; or a folder that is searched for files.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file of an unknown kind, or a folder without any motion.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() not in _BY_SUFFIX:
            raise ValueError(f"{path} is of no known kind, expected one of {', '.join(_BY_SUFFIX)} or a folder")
        return [_source(path, path.stem)], Counter()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing, expected a file of motion or a folder of them; check the path")
    if (path / "new_joint_vecs").is_dir():
        return _data_set(path), Counter()
    found, ignored = [], Counter()
    for folder, folders, files in os.walk(path):
        folders.sort()
        if "new_joint_vecs" in folders:
            raise ValueError(f"{folder} is a data set folder inside the source; import it by itself")
        for name in sorted(file for file in files if not file.startswith(".")):
            if Path(name).suffix.lower() in _BY_SUFFIX:
                found.append(Path(folder, name))
            elif Path(name).suffix.lower() != ".asf":  # read with its trials
                ignored[Path(name).suffix.lower() or "none"] += 1
    if not found:
        raise ValueError(f"{path} holds no file of motion, expected some of {', '.join(_BY_SUFFIX)}")
    stems = Counter(clip_name(file.stem) for file in found)
    relative = [file.relative_to(path).with_suffix("") for file in found]
    names = [
        file.stem if stems[clip_name(file.stem)] == 1 else "_".join(whole.parts)
        for file, whole in zip(found, relative, strict=True)
    ]
    return [_source(file, name) for file, name in zip(found, names, strict=True)], ignored


def read(source: Source | str | Path, skeleton: Skeleton | None = None, fps: float | None = None) -> list[Recording]:
    """The recordings of one source; none for a file that holds no motion, such as the body shape beside AMASS clips.

    Args:
        source: from `sources`, or the path of a file.
        skeleton: meaning of the joints; by default recognised by their names.
        fps: frames per second, for files that do not state it; it overrides what a file states, with a note.

    Raises:
        ValueError: in one line, with file, place and what to do.
    """
    if not isinstance(source, Source):
        source = _source(Path(source), Path(source).stem)
    reader = _READERS[source.kind]
    try:
        with np.errstate(all="ignore"):  # overflow ends as a position that is not finite, and is refused there
            return [replace(made, **_known(source, made)) for made in reader(source, skeleton, fps)]
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        named = any(str(path) in message for path in source.files)
        raise ValueError(message if named else f"{source.path}: {message}") from error
    except MemoryError as error:
        raise ValueError(f"{source.path}: the file asks for more memory than there is; it is broken") from error


def _known(source, made):
    """What surroundings tell about a recording, where the file itself does not."""
    return {key: value for key, value in source.given.items() if not getattr(made, key)}


def _source(path, name, **given):
    if path.suffix.lower() not in _BY_SUFFIX:
        raise ValueError(f"{path} is of no known kind, expected one of {', '.join(_BY_SUFFIX)}")
    kind = _BY_SUFFIX[path.suffix.lower()]
    files = (path,)
    if kind == "amc":
        files += tuple(_asf_beside(path))
    return Source(path, kind, clip_name(name), files, _from_ntu_name(name) | given)


def clip_name(name: str) -> str:
    """The name of a clip for that of a file, with or without ending: no spaces, no leading dot, nothing that some file
    system forbids."""
    if Path(name).suffix.lower() in _BY_SUFFIX:
        name = name[: -len(Path(name).suffix)]
    return re.sub(r'[\s<>:"/\\|?*\x00-\x1f]+', "_", name).lstrip(".")[:150] or "_"


def _from_ntu_name(name):
    found = data.NTU_NAME.search(name)
    if not found:
        return {}
    setup, _, performer, _, action = found.groups()
    return {"setup": f"S{setup}", "subject": f"P{performer}", "action": f"A{action}"}


# ---- rates -----------------------------------------------------------------------------------------------------------


def _rate(stated, asked, where=""):
    """Frames per second and notes: the caller's word counts more than the file's, and one of them must be there."""
    if asked is not None:
        differs = stated is not None and abs(stated - asked) > 0.01 * asked
        return float(asked), (f"frame rate {asked:g} as asked, the file says {stated:g}",) if differs else ()
    if stated is None:
        raise ValueError(f"the file does not state its frame rate{where}; pass it (--fps F)")
    return float(stated), ()


# ---- hierarchies -----------------------------------------------------------------------------------------------------


def _read_bvh(source, skeleton, fps):
    names, joints, stated = mocap.read_bvh(source.path)
    rate, notes = _rate(stated, fps, " (`Frame Time:`)")
    skeleton = skeleton or skeletons.recognise(names)
    yield Recording(source.name, skeleton.upright(joints), rate, tuple(names), skeleton, "bvh", notes=notes)


def _read_amc(source, skeleton, fps):
    if len(source.files) != 2:
        subject = source.path.stem.split("_")[0]
        raise ValueError(f"{source.path} has no ASF file beside it, expected {subject}.asf with its skeleton; copy it")
    rate, notes = _rate(None, fps, " (AMC files never do; most CMU trials have 120)")
    names, joints = mocap.read_asf_amc(source.files[1], source.path)
    skeleton = skeleton or skeletons.recognise(names)
    trial = re.fullmatch(r"(\d+)_\d+", source.path.stem)
    made = Recording(source.name, skeleton.upright(joints), rate, tuple(names), skeleton, "amc", notes=notes)
    yield replace(made, subject=trial and trial[1])


def _asf_beside(path):
    """The skeleton of a trial: `02.asf` for `02_01.amc`, else the only one in the folder."""
    here = sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".asf") if path.parent.is_dir() else []
    same = [p for p in here if p.stem in (path.stem, path.stem.split("_")[0])]
    return (same or here)[:1] if len(same or here) == 1 else []


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _scalar(values, what, kind):
    if values is None:
        return None
    if values.size != 1 or (kind is float and values.dtype.kind not in "fiu"):
        raise ValueError(f"{what} has shape {values.shape} of {values.dtype}, expected one value; write the file again")
    return kind(values.reshape(-1)[0])


def _read_npy(source, skeleton, fps):
    values = untrusted.load_npy(source.path)
    yield _from_array(source, values, skeleton, fps)


def _read_npz(source, skeleton, fps):
    keys, array = untrusted.load_npz(source.path)
    if "poses" in keys:
        yield from _read_amass(source, array, skeleton, fps)
    elif "joints" in keys:
        names = array("names")
        if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
            raise ValueError(f"array names has shape {names.shape} of {names.dtype}, expected one text per joint")
        names = None if names is None else tuple(str(name) for name in names)
        stated = _scalar(array("fps"), "array fps", float)
        texts = ("action", "label", "caption", "subject", "setup")
        told = {key: _scalar(array(key), f"array {key}", str) for key in texts}
        told = {key: value for key, value in told.items() if value}
        if "label" in told:  # as `kinemic export` calls the action
            told.setdefault("action", told.pop("label"))
        if "caption" in told:
            told["captions"] = (data.Caption(told.pop("caption")),)
        yield replace(_from_array(source, array("joints"), skeleton, fps, stated, names), **told)
    elif "betas" not in keys:  # a file with betas and without poses is the body shape beside AMASS clips
        raise ValueError(f"there is no array joints (or poses, of AMASS), found {', '.join(keys[:10])}; rename one")


def _from_array(source, values, skeleton, fps, stated=None, names=None):
    """A recording of joints (T, J, 3), flat joints (T, 3 J), or feature rows of HumanML3D (263) or KIT-ML (251)."""
    if values.dtype.kind not in "fiu" or values.ndim not in (2, 3) or len(values) == 0:
        expected = "(frames, joints, 3), (frames, 3 x joints), (frames, 263) or (frames, 251)"
        raise ValueError(f"the array has shape {values.shape} of {values.dtype}, expected numbers {expected}")
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] in (motion.NUM_FEATURES, _KIT_FEATURES):
        kit = values.shape[1] == _KIT_FEATURES
        rate, notes = _rate((KIT_FPS if kit else HUMANML3D_FPS) if stated is None else stated, fps)
        skeleton = skeletons.load("kit21" if kit else "humanml3d")
        joints = skeleton.upright(_from_kit(values) if kit else motion.decode(values, extra_pose=True))
        kind = "KIT-ML features" if kit else "HumanML3D features"
        return Recording(source.name, joints, rate, tuple(skeleton.joints), skeleton, kind, notes=notes)
    if values.ndim == 2 and values.shape[1] % 3 == 0:
        values = values.reshape(len(values), -1, 3)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"the array has shape {values.shape}, expected (frames, joints, 3); reorder it")
    if names is not None:
        skeleton = skeleton or skeletons.recognise(names)
    elif skeleton is None:
        fitting = [s.name for s in skeletons.known().values() if len(s.joints) == values.shape[1]]
        if values.shape[1] != motion.NUM_JOINTS:
            hint = f"one of {', '.join(fitting)}" if fitting else "a table of your own"
            raise ValueError(f"the array has {values.shape[1]} joints without names; say which (--skeleton {hint})")
        skeleton = skeletons.load("humanml3d")
    if names is None:
        names = tuple(skeleton.joints)
        if len(names) != values.shape[1]:
            found = f"the array has {values.shape[1]} joints, skeleton {skeleton.name} lists {len(names)}"
            raise ValueError(f"{found}; give the skeleton of this array, with all its joints in order")
    rate, notes = _rate(stated, fps, " (an array cannot)")
    return Recording(source.name, skeleton.upright(values), rate, names, skeleton, "joints", notes=notes)


def _from_kit(rows):
    """Joints (T + 1, 21, 3) of KIT-ML rows: the layout of HumanML3D with one joint less, so its decoder serves."""
    wide = np.zeros((len(rows), motion.NUM_FEATURES))
    wide[:, motion.ROOT] = rows[:, motion.ROOT]
    wide[:, motion.RIC.start : motion.RIC.start + 60] = rows[:, 4:64]
    wide[:, motion.VELOCITIES.start : motion.VELOCITIES.start + 63] = rows[:, 184:247]
    return motion.decode(wide, extra_pose=True)[:, :_KIT_JOINTS]


def _read_amass(source, array, skeleton, fps):
    poses, trans = array("poses"), array("trans")
    for name, values, least in (("poses", poses, 66), ("trans", trans, 3)):
        if values is None or values.ndim != 2 or values.dtype.kind not in "fiu" or values.shape[1] < least:
            found = "missing" if values is None else f"{values.shape} of {values.dtype}"
            raise ValueError(f"array {name} is {found}, expected (frames, {least} or more) numbers; is this AMASS?")
    if len(poses) != len(trans) or len(poses) == 0:
        raise ValueError(f"poses have {len(poses)} frames and trans {len(trans)}, expected equal numbers, at least 1")
    stated = _scalar(array("mocap_framerate"), "array mocap_framerate", float)
    if stated is None:
        stated = _scalar(array("mocap_frame_rate"), "array mocap_frame_rate", float)  # as later releases call it
    rate, notes = _rate(stated, fps, " (mocap_framerate)")
    table = skeleton or skeletons.load("smpl22")
    if skeleton is not None and tuple(skeleton.sources) != motion.JOINT_NAMES:
        raise ValueError(f"skeleton {skeleton.name} does not fit AMASS; leave it out")
    turns = np.asarray(poses[:, :66], dtype=np.float64).reshape(-1, 22, 3)
    good = np.isfinite(turns).all(axis=(1, 2))
    if not good.all() or np.abs(turns).max() > 1e3:
        frame = int(np.argmin(good & (np.abs(turns).max(axis=(1, 2)) <= 1e3)))
        raise ValueError(f"poses of frame {frame} are no rotations in radians; repair or cut the frame")
    local = Rotation.from_rotvec(turns.reshape(-1, 3)).as_matrix().reshape(-1, 22, 3, 3)
    joints = np.empty((len(local), 22, 3))
    joints[:, 0] = trans[:, :3]
    world = local.copy()
    for child in range(1, 22):
        parent, name = motion.PARENTS[child], motion.JOINT_NAMES[child]
        bone = np.array(_ARMS_OUT[name])
        bone = bone * (motion.BONE_LENGTHS[child] / np.linalg.norm(bone))
        joints[:, child] = joints[:, parent] + world[:, parent] @ bone
        world[:, child] = world[:, parent] @ local[:, child]
    notes += ("AMASS rotations on a standard body of ours, not on its body model: positions are approximate",)
    joints = table.upright(joints)
    yield Recording(source.name, joints, rate, motion.JOINT_NAMES, table, "AMASS", notes=notes)


# ---- folders of the HumanML3D layout ---------------------------------------------------------------------------------


def _data_set(folder):
    """Clips of a HumanML3D, KIT-ML or NTU-VIBE folder, each with its texts, lists and labels."""
    files = sorted(p for p in (folder / "new_joint_vecs").iterdir() if p.suffix == ".npy")
    if not files:
        raise ValueError(f"{folder / 'new_joint_vecs'} holds no .npy file, expected feature vectors; check the folder")
    vibe = (folder / "splits").is_dir() and ((folder / "ntu_classes.txt").is_file() or _has_ntu_names(files))
    lists = folder / "splits" if vibe else folder
    member: dict[str, list[str]] = {}
    for path in sorted(lists.rglob("*.txt") if vibe else lists.glob("*.txt")):
        split = "-".join(path.relative_to(lists).with_suffix("").parts)
        if split.endswith("_y") or not re.fullmatch(r"[\w-]+", split) or path.stat().st_size > mocap.MAX_TEXT:
            continue
        for name in dict.fromkeys(path.read_text(encoding="utf-8", errors="replace").split()):
            member.setdefault(name, []).append(split)
    classes = data.ntu_classes(folder) if vibe and _has_classes(folder) else []
    labels = folder / "labels.csv"
    labels = data.read_labels(labels) if labels.is_file() else {}
    out = []
    for path in files:
        name, texts = path.stem, folder / "texts" / f"{path.stem}.txt"
        given = _from_ntu_name(name) if vibe else {}
        if given and int(given["action"][1:]) <= len(classes):
            given["action"] = classes[int(given["action"][1:]) - 1]
        given |= {key: value for key, value in labels.get(name, {}).items() if value}
        given["splits"] = tuple(member.get(name, ()))
        given["format"] = "NTU-VIBE" if vibe else ""
        extra = (texts,) if texts.is_file() else ()
        out.append(Source(path, "vectors", clip_name(name), (path, *extra), given))
    return out


def _has_ntu_names(files):
    return all(data.NTU_NAME.fullmatch(path.stem) for path in files[:10])


def _has_classes(folder):
    return (folder / "ntu_classes.txt").is_file() or (folder / "ntu_metadata.json").is_file()


def _read_vectors(source, skeleton, fps):
    if skeleton is not None:
        raise ValueError("a data set folder has its own skeleton; leave --skeleton out")
    values = untrusted.load_npy(source.path)
    if values.ndim != 2 or values.shape[1] not in (motion.NUM_FEATURES, _KIT_FEATURES):
        raise ValueError(f"the array has shape {values.shape}, expected (rows, 263) or (rows, 251) in new_joint_vecs")
    made = _from_array(source, values, None, fps)
    captions = data.read_captions(source.files[1]) if len(source.files) > 1 else ()
    vibe = source.given.get("format")
    kind = {"floor": "lowest", "format": vibe} if vibe else {}
    yield replace(made, captions=captions, **kind)


# ---- NTU RGB+D -------------------------------------------------------------------------------------------------------

# actions of NTU RGB+D 120 for two
_TWO_PEOPLE = frozenset((*range(50, 61), *range(106, 121)))


def _read_ntu(source, skeleton, fps):
    declared, tracks = mocap.read_ntu(source.path)
    table = skeleton or skeletons.load("kinect25")
    rate, notes = _rate(NTU_FPS, fps)
    chosen, more = _choose(tracks.values())
    joints, gaps = _bridge(chosen, declared, rate)
    found = data.NTU_NAME.search(source.path.stem)
    if found and int(found[5]) in _TWO_PEOPLE:
        more += (f"A{found[5]} is an action of two people, one of them is kept",)
    yield _kinect(source.name, joints, rate, table, "NTU .skeleton", notes + more + gaps)


def _kinect(name, joints, rate, table, kind, notes):
    names = tuple(table.joints)
    if len(names) != joints.shape[1]:
        raise ValueError(f"a body has {joints.shape[1]} joints, skeleton {table.name} {len(names)}; choose another")
    return Recording(name, table.upright(joints), rate, names, table, kind, notes=notes, floor="lowest")


def _choose(tracks: Iterable[Mapping[int, np.ndarray]]):
    """The body that moves most, with later tracks of the same person, as {frame: (J, 3)}, and notes.

    Source: rules of pyskl. Of several tracks, short ones and those that are wider than high, as furniture is, do not
    count; the score is the sum of the variances of all coordinates.
    """
    tracks = [dict(track) for track in tracks]
    if not tracks:
        raise ValueError("no frame has a body; leave the file out")
    notes = ()
    if len(tracks) > 1:
        for keep in (lambda t: len(t) > 11, lambda t: not _is_wide(t)):
            tracks = [track for track in tracks if keep(track)] or tracks
        tracks.sort(key=lambda t: np.stack(list(t.values())).var(axis=0).sum(), reverse=True)
    best, *others = tracks
    for other in others:  # a body that was lost and found again has a new number
        if best.keys().isdisjoint(other):
            near = min((abs(a - b), a, b) for a in (min(best), max(best)) for b in (min(other), max(other)))
            if np.linalg.norm(best[near[1]][0] - other[near[2]][0]) < 0.5:
                best = best | other
                notes += (f"two tracks of one body were joined at frame {max(near[1:])}",)
    if others:
        notes = (f"{len(others) + 1} bodies, the one that moves most is kept", *notes)
    return best, notes


def _is_wide(track):
    extents = np.stack([np.ptp(body, axis=0) for body in track.values()])
    return (extents[:, 0] > 0.8 * extents[:, 1]).mean() >= 0.69754


def _bridge(track, declared, fps):
    """Joints (T, J, 3) of the longest stretch without a long gap; short gaps are interpolated. With notes."""
    frames = np.array(sorted(track))
    cuts = np.flatnonzero(np.diff(frames) - 1 > MAX_GAP * fps) + 1
    stretch = max(np.split(frames, cuts), key=len)
    wanted = np.arange(stretch[0], stretch[-1] + 1)
    known = np.stack([track[frame] for frame in stretch]).reshape(len(stretch), -1)
    place = np.interp(wanted, stretch, np.arange(len(stretch)))
    before = np.minimum(place.astype(int), len(stretch) - 1)
    after = np.minimum(before + 1, len(stretch) - 1)
    weight = (place - before)[:, None]
    joints = ((1 - weight) * known[before] + weight * known[after]).reshape(len(wanted), -1, 3)
    notes = ()
    if len(wanted) > len(stretch):
        notes += (f"{len(wanted) - len(stretch)} missing frames were interpolated",)
    if len(wanted) < declared:
        notes += (f"frames {wanted[0]} to {wanted[-1]} of {declared} are kept, the body is missing in others",)
    return joints, notes


# ---- pyskl -----------------------------------------------------------------------------------------------------------


def _read_pyskl(source, skeleton, fps):
    table = untrusted.load_pickle(source.path)
    split, items = (table.get("split", {}), table.get("annotations")) if isinstance(table, dict) else ({}, table)
    if not isinstance(items, list) or not items or not isinstance(split, dict):
        raise ValueError("the pickle is no dict(split=..., annotations=[...]) of pyskl; write it in that form")
    member: dict[str, list[str]] = {}
    for name, ids in split.items():
        if not isinstance(name, str) or not isinstance(ids, list | tuple):
            raise ValueError(f"split {str(name)[:40]!r} is no list of names; mend the key split")
        for each in ids:
            if isinstance(each, str):
                member.setdefault(each, []).append(re.sub(r"[^\w-]+", "-", name)[:100] or "unnamed")
    for row, item in enumerate(items):
        try:
            yield _pyskl_item(item, member, skeleton, fps)
        except (ValueError, TypeError) as error:
            name = item.get("frame_dir") if isinstance(item, dict) else None
            raise ValueError(f"{source.path}, annotations[{row}] ({str(name)[:60]!r}): {error}") from error


def _pyskl_item(item, member, skeleton, fps):
    if not isinstance(item, dict) or not {"frame_dir", "keypoint"} <= item.keys():
        raise ValueError("an annotation lacks frame_dir or keypoint; add them")
    name, points, label = item["frame_dir"], item["keypoint"], item.get("label")
    if not isinstance(name, str) or not re.fullmatch(r"[^\s/\\.][^\s/\\]{0,149}", name) or name != clip_name(name):
        raise ValueError(f"frame_dir is {str(name)[:60]!r}, expected a plain name that can be a file name; rename it")
    if not isinstance(points, untrusted.Array) or points.value.ndim != 4 or points.value.shape[3] != 3:
        shape = points.value.shape if isinstance(points, untrusted.Array) else type(points).__name__
        raise ValueError(f"keypoint is {shape}, expected an array (persons, frames, joints, 3), with depth")
    if label is not None and type(label) is not int:
        raise ValueError(f"label is {str(label)[:40]!r}, expected a whole number")
    points = np.asarray(points.value, dtype=np.float64)
    persons, frames, joints, _ = points.shape
    total = item.get("total_frames", frames)
    if total != frames or persons == 0 or frames == 0:
        raise ValueError(f"keypoint has {frames} frames of {persons} persons, total_frames is {str(total)[:40]}")
    if skeleton is None:
        table = {25: "kinect25", 22: "humanml3d"}.get(joints)
        if table is None:
            raise ValueError(f"keypoint has {joints} joints, expected 25 (NTU) or 22; say which (--skeleton)")
        skeleton = skeletons.load(table)
    told = _from_ntu_name(name)
    rate, notes = _rate(NTU_FPS if told and joints == mocap.KINECT else None, fps, " (pyskl annotations never do)")
    tracks = []
    for person in points:  # frames without a body are zero
        there = np.flatnonzero(np.abs(person).max(axis=(1, 2)) > 0)
        if len(there):
            tracks.append({int(frame): person[frame] for frame in there})
    chosen, more = _choose(tracks)
    kept, gaps = _bridge(chosen, frames, rate)
    made = _kinect(name, kept, rate, skeleton, "pyskl", notes + more + gaps)
    told.setdefault("action", None if label is None else f"class {label}")
    return replace(made, splits=tuple(member.get(name, ())), **told)


_BY_SUFFIX = {".bvh": "bvh", ".amc": "amc", ".npz": "npz", ".npy": "npy", ".skeleton": "ntu", ".pkl": "pyskl",
              ".pickle": "pyskl"}  # fmt: skip
_READERS = {"bvh": _read_bvh, "amc": _read_amc, "npz": _read_npz, "npy": _read_npy, "vectors": _read_vectors,
            "ntu": _read_ntu, "pyskl": _read_pyskl}  # fmt: skip
