"""Files of recorded motion, read into one plain object: joints in metres with y up, and their frame rate.

    sources(path)  what there is to read: one file, a folder of files, or a data set folder
    read(source)   its recordings

Nothing is guessed in silence: a file that does not state its frame rate needs one from the caller, a skeleton that is
recognised by its joint names is named in the recording, and what was repaired is listed in its notes. Readers check
before they allocate: a file that declares more frames than it holds is refused. Every mistake of a file is a ValueError
in one line that names the file, the place in it and what to do.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from kinemic import data, motion, skeletons
from kinemic.skeletons import Skeleton

__all__ = ["Recording", "Source", "read", "sources"]

MAX_TEXT = 2**28  # bytes of a text file
MAX_ARRAY = 2**30  # bytes of an array
MAX_METRES = 1e4  # nobody is recorded farther than this from the origin
MAX_GAP = 0.5  # seconds that may be bridged where a body is missing
NTU_FPS, HUMANML3D_FPS, KIT_FPS = 30.0, 20.0, 12.5  # what these formats prescribe; their files do not repeat it

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
        good = np.abs(self.joints) < MAX_METRES  # False for nan
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
            table = f"base: {self.skeleton.name} and another metres_per_unit"
            raise ValueError(f"{found}, expected 0.2 to 2; pass a skeleton file with `{table}`")
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
        for name in sorted(files):
            if Path(name).suffix.lower() in _BY_SUFFIX:
                found.append(Path(folder, name))
            elif Path(name).suffix.lower() != ".asf":  # read with its trials
                ignored[Path(name).suffix.lower() or "none"] += 1
    if not found:
        raise ValueError(f"{path} holds no file of motion, expected some of {', '.join(_BY_SUFFIX)}")
    stems = Counter(_clean(file.stem) for file in found)
    relative = [file.relative_to(path).with_suffix("") for file in found]
    names = [
        file.stem if stems[_clean(file.stem)] == 1 else "_".join(whole.parts)
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
    return Source(path, kind, _clean(name), files, _from_ntu_name(name) | given)


def _clean(name):
    """File names become clip names: no spaces, no leading dot, nothing that some file system forbids."""
    return re.sub(r'[\s<>:"/\\|?*\x00-\x1f]+', "_", name).lstrip(".")[:150] or "_"


def _from_ntu_name(name):
    found = data.NTU_NAME.search(name)
    if not found:
        return {}
    setup, _, performer, _, action = found.groups()
    return {"setup": f"S{setup}", "subject": f"P{performer}", "action": f"A{action}"}


def _line(error):
    """What an error of a library says, in one short line."""
    return " ".join(str(error).split())[:150] or type(error).__name__


# ---- rates ----------------------------------------------------------------------------------------------------------


def _rate(stated, asked, where=""):
    """Frames per second and notes: the caller's word counts more than the file's, and one of them must be there."""
    if asked is not None:
        differs = stated is not None and abs(stated - asked) > 0.01 * asked
        return float(asked), (f"frame rate {asked:g} as asked, the file says {stated:g}",) if differs else ()
    if stated is None:
        raise ValueError(f"the file does not state its frame rate{where}; pass it (--fps F)")
    return float(stated), ()


def _whole_rate(frame_time: str) -> float:
    """Frames per second of a printed frame time: the whole rate that rounds to it, if there is one."""
    seconds = float(frame_time)
    if not 0 < seconds < np.inf:
        return seconds and 1 / seconds
    rate = round(1 / seconds) if seconds > 1e-6 else 0
    digits = len(frame_time.partition(".")[2]) if re.fullmatch(r"\d*\.\d+", frame_time) else 9
    return float(rate) if rate and abs(round(1 / rate, digits) - seconds) < 1e-12 else 1 / seconds


# ---- text -----------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise ValueError(f"{path} has {size} bytes, expected at most {MAX_TEXT}; cut it into parts")
    raw = path.read_bytes()
    if not raw.strip():
        raise ValueError(f"{path} is empty; copy it again")
    if b"\0" in raw:
        raise ValueError(f"{path} is not plain text (byte {raw.index(0)} is zero); save it as UTF-8 text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # old exporters write comments and names in the encoding of their country
        return raw.decode("latin-1")


def _numbers(text: str, first_line: int, width: int) -> np.ndarray:
    """All numbers of a block of text, `(rows, width)`; on any trouble the first line that is at fault is named."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy stops at what is no number and only warns
        try:
            values = np.fromstring(text, sep=" ")
        except ValueError:
            values = np.empty(0)
    # what comes after the last number must not be skipped in silence
    if values.size % width == 0 and values.size == len(text.split()):
        return values.reshape(-1, width)
    for line, row in enumerate(text.splitlines(), start=first_line):
        words = row.split()
        for word in words:
            if not _is_number(word):
                raise ValueError(f"line {line}: {word[:40]!r} is no number; mend the line")
        if words and len(words) != width:
            raise ValueError(f"line {line} has {len(words)} numbers, expected {width}; mend or remove the line")
    raise ValueError(f"line {first_line}: the numbers cannot be read, expected {width} a line; write the file again")


def _is_number(word):
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word


def _floats(words: Sequence[str], count: int, line: int, what: str) -> list[float]:
    if len(words) != count or not all(map(_is_number, words)):
        raise ValueError(f"line {line}: {what} is {' '.join(words)[:60]!r}, expected {count} numbers; mend the line")
    return [float(word) for word in words]


# ---- BVH ------------------------------------------------------------------------------------------------------------

_POSITION, _ROTATION = ("Xposition", "Yposition", "Zposition"), ("Xrotation", "Yrotation", "Zrotation")


@dataclass
class _Bone:
    name: str
    parent: int
    offset: list[float]
    channels: list[str]
    first: int = 0  # column of its first channel


def _read_bvh(source, skeleton, fps):
    text = _text(source.path)
    found = re.search(r"(?m)^[ \t]*MOTION\b.*$", text)
    if found is None:
        raise ValueError("there is no line MOTION, expected the frames after it; the file is cut off or no BVH")
    bones = _hierarchy(text[: found.start()])
    line = text.count("\n", 0, found.end()) + 1
    block = text[found.end() :]
    # both lines stand before the numbers, in either order
    head = re.match(r"\s*(?:(?:Frames\s*:[^\n]*|Frame\s+Time\s*:[^\n]*)\s*)*", block)[0]
    declared = re.search(r"Frames\s*:[ \t]*(\S*)", head)
    spacing = re.search(r"Frame\s+Time\s*:[ \t]*(\S*)", head)
    if declared is None or not declared[1].isdecimal() or len(declared[1]) > 12:
        said = declared[1] if declared else "missing"
        raise ValueError(f"line {line + 1}: `Frames:` is {said[:40]}, expected a whole number; mend the line")
    if spacing is not None and not (_is_number(spacing[1]) and float(spacing[1]) > 0):
        place = line + head.count("\n", 0, spacing.start())
        raise ValueError(f"line {place}: `Frame Time:` is {spacing[1][:40]!r}, expected seconds > 0; mend the line")
    rate, notes = _rate(_whole_rate(spacing[1]) if spacing else None, fps, f" after line {line} (`Frame Time:`)")
    width = sum(len(bone.channels) for bone in bones)
    if width == 0:
        raise ValueError("no joint has channels, expected rotations at least; the file holds no motion")
    values = _numbers(block[len(head) :], line + head.count("\n"), width)
    if len(values) != int(declared[1]):
        said = f"line {line + 1} declares {int(declared[1])} frames, but there are {len(values)}"
        raise ValueError(f"{said}; the file is cut off, or mend the number")
    if len(values) == 0:
        raise ValueError(f"line {line + 1}: there are no frames; nothing to read")
    names = tuple(bone.name for bone in bones)
    skeleton = skeleton or skeletons.recognise(names)
    joints = skeleton.upright(_pose_bvh(bones, values))
    yield Recording(source.name, joints, rate, names, skeleton, "bvh", notes=notes)


def _hierarchy(text):
    """The joints of a BVH file, parents first; end sites take part as `<parent>_end`."""
    bones: list[_Bone] = []
    open_ = []  # indices of the joints whose braces are open
    waiting = None  # a name that waits for its brace
    for line, row in enumerate(text.splitlines(), start=1):
        for part in re.split(r"([{}])", row):
            words = part.split()
            if not words:
                continue
            key = words[0].upper()
            name = part.strip()[len(words[0]) :].strip()
            if part == "{":
                if waiting is None:
                    raise ValueError(f"line {line}: a brace without a joint before it; mend the line")
                bones.append(_Bone(waiting, open_[-1] if open_ else -1, [], []))
                open_.append(len(bones) - 1)
                waiting = None
            elif part == "}":
                if not open_:
                    raise ValueError(f"line {line}: a closing brace too many; mend the line")
                if not bones[open_.pop()].offset:
                    raise ValueError(f"line {line}: the joint that ends here has no OFFSET; add one")
            elif key == "HIERARCHY" and not bones:
                continue
            elif key in ("ROOT", "JOINT") and name:
                if (key == "ROOT") != (not open_) or (key == "ROOT" and bones):
                    raise ValueError(f"line {line}: {key} {name[:40]} stands in the wrong place, expected one ROOT")
                waiting = name
            elif key == "END" and open_:
                waiting = f"{bones[open_[-1]].name}_end"
            elif key == "OFFSET" and open_:
                bones[open_[-1]].offset = _floats(words[1:], 3, line, "OFFSET")
            elif key == "CHANNELS" and open_:
                bones[open_[-1]].channels = _channels(words, line)
            else:
                raise ValueError(f"line {line}: {part.strip()[:40]!r} is not part of a BVH hierarchy; mend the line")
        if len(bones) > 1000:
            raise ValueError(f"line {line}: more than 1000 joints, expected one person; the file is broken")
    if open_ or waiting or not bones:
        raise ValueError("the hierarchy before MOTION is not complete; the file is cut off or no BVH")
    first = 0
    for bone in bones:
        bone.first, first = first, first + len(bone.channels)
    return bones


def _channels(words, line):
    known = {name.lower(): name for name in (*_POSITION, *_ROTATION)}
    names = [known.get(word.lower()) for word in words[2:]]
    if len(words) < 2 or words[1] != str(len(names)) or None in names or len(set(names)) != len(names):
        expected = "their number and so many of Xposition ... Zrotation, each once"
        raise ValueError(f"line {line}: CHANNELS are {' '.join(words[1:])[:80]!r}, expected {expected}; mend the line")
    return names


def _pose_bvh(bones, values):
    """Joints (T, J, 3) in file units. A position channel takes the place of the OFFSET's coordinate."""
    frames = len(values)
    joints = np.empty((frames, len(bones), 3))
    turns = []  # of each joint in the world, (T, 3, 3); None where nothing above it turns
    for index, bone in enumerate(bones):
        here = values[:, bone.first : bone.first + len(bone.channels)]
        step = np.tile(np.array(bone.offset), (frames, 1))
        for column, channel in enumerate(bone.channels):
            if channel in _POSITION:
                step[:, _POSITION.index(channel)] = here[:, column]
        above = turns[bone.parent] if bone.parent >= 0 else None
        if above is not None:
            step = np.einsum("tij,tj->ti", above, step)
        joints[:, index] = step + (joints[:, bone.parent] if bone.parent >= 0 else 0)
        spin = [column for column, channel in enumerate(bone.channels) if channel in _ROTATION]
        if spin:
            order = "".join(bone.channels[column][0] for column in spin)  # upper case: about the axes as they turn
            own = _turns(order, here[:, spin])
            above = own if above is None else above @ own
        turns.append(above)
    return joints


def _turns(order, degrees):
    """Rotation matrices (T, 3, 3) of Euler angles (T, n); places that are not finite stay so."""
    degrees = np.where(np.abs(degrees) < 1e9, degrees, np.nan)  # no motion turns a million times: a broken number
    bad = ~np.isfinite(degrees).all(axis=1)
    matrices = Rotation.from_euler(order, np.where(bad[:, None], 0.0, degrees), degrees=True).as_matrix()
    matrices[bad] = np.nan
    return matrices


# ---- ASF and AMC ----------------------------------------------------------------------------------------------------


def _asf_beside(path):
    """The skeleton of a trial: `02.asf` for `02_01.amc`, else the only one in the folder."""
    here = sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".asf") if path.parent.is_dir() else []
    same = [p for p in here if p.stem in (path.stem, path.stem.split("_")[0])]
    return (same or here)[:1] if len(same or here) == 1 else []


def _read_amc(source, skeleton, fps):
    if len(source.files) != 2:
        subject = source.path.stem.split("_")[0]
        raise ValueError(f"{source.path} has no ASF file beside it, expected {subject}.asf with its skeleton; copy it")
    rate, notes = _rate(None, fps, " (AMC files never do; most CMU trials have 120)")
    try:
        bones = _asf(_text(source.files[1]))
    except ValueError as error:
        raise ValueError(f"{source.files[1]}: {error}") from error
    values = _amc(_text(source.path), bones)
    names = tuple(bones)
    skeleton = skeleton or skeletons.recognise(names)
    frames = len(next(iter(values.values())))
    joints, turns = np.empty((frames, len(names), 3)), {}
    for index, (name, bone) in enumerate(bones.items()):
        letters = [channel[1] for channel in bone["dof"] if channel[0] == "r"]
        spin = [column for column, channel in enumerate(bone["dof"]) if channel[0] == "r"]
        # lower case: about fixed axes, in the order of `axis`; angles refer to the bone's own frame, C M C^-1
        sorted_ = sorted(range(len(spin)), key=lambda i: bone["order"].index(letters[i]))  # noqa: B023
        local = np.eye(3)
        if spin:
            frame = Rotation.from_euler(bone["order"], bone["axis"], degrees=True).as_matrix()
            order = "".join(letters[i] for i in sorted_)
            local = frame @ _turns(order, values[name][:, [spin[i] for i in sorted_]]) @ frame.T
        if bone["parent"] is None:
            turns[name] = np.broadcast_to(local, (frames, 3, 3))
            joints[:, index] = values[name][:, [bone["dof"].index(f"t{axis}") for axis in "xyz"]]
        else:
            turns[name] = turns[bone["parent"]] @ local
            joints[:, index] = joints[:, names.index(bone["parent"])] + turns[name] @ np.array(bone["offset"])
    subject = re.fullmatch(r"(\d+)_\d+", source.path.stem)
    subject = subject and subject[1]
    joints = skeleton.upright(joints)
    yield Recording(source.name, joints, rate, names, skeleton, "amc", subject=subject, notes=notes)


def _asf(text):
    """Bones of an ASF file, parents first: parent, offset of the end in the rest pose, axis in degrees, dof."""
    bones: dict[str, dict[str, Any]] = {}
    parents: dict[str, str] = {}
    section, bone, degrees = "", None, True
    for line, row in enumerate(text.splitlines(), start=1):
        words = row.split()
        if not words or words[0].startswith("#"):
            continue
        key = words[0].lower()
        if key.startswith(":"):
            section = key
            if key == ":root":
                bone = bones["root"] = {"parent": None, "offset": [0.0] * 3, "axis": [0.0] * 3, "order": "xyz"}
        elif section == ":units" and key == "angle":
            degrees = words[1:2] != ["rad"]
        elif section == ":root" and key == "order":
            bone["dof"] = [word.lower() for word in words[1:]]
            if sorted(bone["dof"]) != ["rx", "ry", "rz", "tx", "ty", "tz"]:
                raise ValueError(f"line {line}: order is {' '.join(words[1:])[:40]!r}, expected TX TY TZ RX RY RZ")
        elif section == ":root" and key == "axis":
            bone["order"] = _axes(words[1:], line)
        elif section == ":root" and key == "orientation":
            bone["axis"] = _floats(words[1:], 3, line, "orientation")
        elif section == ":bonedata" and key == "begin":
            bone = {"dof": []}
        elif section == ":bonedata" and bone is not None:
            if key == "name" and len(words) == 2:
                if words[1] in bones:
                    raise ValueError(f"line {line}: a second bone is named {words[1][:40]}; rename one")
                bones[words[1]] = bone
            elif key == "direction":
                bone["direction"] = _floats(words[1:], 3, line, "direction")
            elif key == "length":
                (bone["length"],) = _floats(words[1:], 1, line, "length")
            elif key == "axis":
                bone["axis"] = _floats(words[1:4], 3, line, "axis")
                bone["order"] = _axes(words[4:], line)
            elif key == "dof":
                bone["dof"] = [word.lower() for word in words[1:]]
                if not set(bone["dof"]) <= {"rx", "ry", "rz"} or len(set(bone["dof"])) != len(bone["dof"]):
                    raise ValueError(f"line {line}: dof are {' '.join(words[1:])[:40]!r}, expected some of rx ry rz")
        elif section == ":hierarchy" and key not in ("begin", "end"):
            for child in words[1:]:
                if child not in bones or words[0] not in bones or child in parents or child == "root":
                    raise ValueError(f"line {line}: {child[:40]} under {words[0][:40]}, expected each bone once")
                parents[child] = words[0]
        if len(bones) > 1000:
            raise ValueError(f"line {line}: more than 1000 bones, expected one person; the file is broken")
    if not parents or "dof" not in bones.get("root", {}):
        raise ValueError("there is no :root with its order, or no :hierarchy; the file is cut off or no ASF")
    scale = 1.0 if degrees else 180 / np.pi
    for name, bone in bones.items():
        if name != "root" and not {"direction", "length", "axis"} <= bone.keys():
            raise ValueError(f"bone {name} lacks direction, length or axis; mend the file")
        if name != "root":
            bone["offset"] = [bone["length"] * x for x in bone["direction"]]
        bone["axis"], bone["scale"] = [scale * x for x in bone["axis"]], scale
        if not np.isfinite([*bone["axis"], *bone["offset"]]).all():
            raise ValueError(f"bone {name} has numbers that are not finite; mend the file")
    ordered, children = {"root": bones["root"]}, {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    queue = ["root"]
    for parent in queue:  # grows as it is walked; a bone outside the tree is never reached
        for child in children.get(parent, ()):
            ordered[child] = bones[child] | {"parent": parent}
            queue.append(child)
    return ordered


def _axes(words, line):
    if len(words) != 1 or sorted(words[0].lower()) != ["x", "y", "z"]:
        raise ValueError(f"line {line}: axis order is {' '.join(words)[:40]!r}, expected three letters such as XYZ")
    return words[0].lower()


def _amc(text, bones):
    """Channels of each bone that has some, (T, n), degrees."""
    words, lines = [], []
    skip = True
    for line, row in enumerate(text.splitlines(), start=1):
        parts = row.split()
        if skip and (not parts or parts[0][0] in "#:"):
            continue
        skip = False
        words += parts
        lines += [line] * len(parts)
    wanted = {name: len(bone["dof"]) for name, bone in bones.items() if bone["dof"]}
    order, at = [], 1  # bones in the order of the first frame
    while at < len(words) and words[at] in wanted and len(order) <= len(wanted):
        order.append(words[at])
        at += 1 + wanted[words[at]]
    if sorted(order) != sorted(wanted):
        found = f"{words[at][:40]!r}" if at < len(words) else "its end"
        missing = sorted(set(wanted) - set(order))
        raise ValueError(
            f"line {lines[min(at, len(lines) - 1)] if lines else 1}: the first frame has {found}, expected each bone "
            f"of the ASF once, as many numbers as it has dof{'; missing ' + ', '.join(missing[:5]) if missing else ''}"
        )
    width = at
    for start in range(0, len(words), width):
        frame, column = words[start : start + width], 1
        for name in order:
            if frame[column : column + 1] != [name] or len(frame) < column + 1 + wanted[name]:
                place = lines[min(start + column, len(lines) - 1)]
                raise ValueError(f"line {place}: frame {start // width + 1} is not complete at {name}; mend the file")
            column += 1 + wanted[name]
    grid = np.array(words, dtype=object).reshape(-1, width)
    keep, column, columns = [], 1, {}
    for name in order:
        columns[name] = slice(len(keep), len(keep) + wanted[name])
        keep += range(column + 1, column + 1 + wanted[name])
        column += 1 + wanted[name]
    try:
        values = grid[:, keep].astype(np.float64)
    except ValueError:
        for row, column in np.ndindex(grid.shape[0], len(keep)):
            word = grid[row, keep[column]]
            if not _is_number(word):
                place = lines[row * width + keep[column]]
                raise ValueError(f"line {place}: {word[:40]!r} is no number; mend the line") from None
        raise
    scale = bones["root"]["scale"]
    turn = np.array([dof[0] == "r" for name in order for dof in bones[name]["dof"]])
    values[:, turn] *= scale
    return {name: values[:, columns[name]] for name in order}


# ---- arrays ---------------------------------------------------------------------------------------------------------


def _npy(stream, size, what):
    """One .npy array of numbers from a stream of `size` bytes; the header is believed only as far as bytes follow."""
    try:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in header:
            raise ValueError(f"version {version} of the format is not known")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files written by Python 2
            shape, fortran, dtype = header[version](stream)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} cannot be read ({_line(error)}); copy it again") from error
    if dtype.hasobject or dtype.kind not in "fiubUS":
        raise ValueError(f"{what} holds {dtype}, expected numbers; objects are never loaded, save it as numbers")
    count = 1
    for length in shape:
        count *= length
    needed = count * dtype.itemsize
    if min(shape, default=0) < 0 or needed > MAX_ARRAY or needed > size - stream.tell():
        found = f"{what} declares {shape} of {dtype} ({needed} bytes)"
        raise ValueError(f"{found}, expected at most what the file holds and {MAX_ARRAY}; it is cut off or broken")
    values = np.frombuffer(stream.read(needed), dtype, count=count) if count else np.empty(0, dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def _load_npy(path):
    with open(path, "rb") as stream:
        return _npy(stream, path.stat().st_size, str(path))


def _npz(path):
    """Arrays of a .npz by key; others than small ones are read when asked for."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}
        if not members:
            raise ValueError("there are no arrays in it")
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no archive of arrays ({_line(error)}); copy it again") from error

    def array(key):
        info = members.get(key)
        if info is None:
            return None
        what = f"{path}, array {key}"
        if info.file_size > MAX_ARRAY:
            raise ValueError(f"{what} declares {info.file_size} bytes, expected at most {MAX_ARRAY}; cut it into parts")
        try:
            with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
                raw = stream.read(info.file_size)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, OSError) as error:
            raise ValueError(f"{what} cannot be read ({_line(error)}); copy it again") from error
        return _npy(io.BytesIO(raw), len(raw), what)

    return sorted(members), array


def _scalar(values, what, kind):
    if values is None:
        return None
    if values.size != 1 or (kind is float and values.dtype.kind not in "fiu"):
        raise ValueError(f"{what} has shape {values.shape} of {values.dtype}, expected one value; write the file again")
    return kind(values.reshape(-1)[0])


def _read_npy(source, skeleton, fps):
    values = _load_npy(source.path)
    yield _from_array(source, values, skeleton, fps)


def _read_npz(source, skeleton, fps):
    keys, array = _npz(source.path)
    if "poses" in keys:
        yield from _read_amass(source, array, skeleton, fps)
    elif "joints" in keys:
        names = array("names")
        if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
            raise ValueError(f"array names has shape {names.shape} of {names.dtype}, expected one text per joint")
        names = None if names is None else tuple(str(name) for name in names)
        stated = _scalar(array("fps"), "array fps", float)
        labels = {key: _scalar(array(key), f"array {key}", str) for key in ("action", "subject", "setup")}
        labels = {key: value for key, value in labels.items() if value}
        yield replace(_from_array(source, array("joints"), skeleton, fps, stated, names), **labels)
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
        rate, notes = _rate(stated or (KIT_FPS if kit else HUMANML3D_FPS), fps)
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


_KIT_FEATURES, _KIT_JOINTS = 251, 21


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
    notes += ("AMASS rotations on a standard body, not on the body model: limbs are within a few centimetres",)
    joints = table.upright(joints)
    yield Recording(source.name, joints, rate, motion.JOINT_NAMES, table, "AMASS", notes=notes)


# ---- folders of the HumanML3D layout --------------------------------------------------------------------------------


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
        if split.endswith("_y") or not re.fullmatch(r"[\w-]+", split) or path.stat().st_size > MAX_TEXT:
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
        out.append(Source(path, "vectors", _clean(name), (path, *extra), given))
    return out


def _has_ntu_names(files):
    return all(data.NTU_NAME.fullmatch(path.stem) for path in files[:10])


def _has_classes(folder):
    return (folder / "ntu_classes.txt").is_file() or (folder / "ntu_metadata.json").is_file()


def _read_vectors(source, skeleton, fps):
    values = _load_npy(source.path)
    if values.ndim != 2 or values.shape[1] not in (motion.NUM_FEATURES, _KIT_FEATURES):
        raise ValueError(f"the array has shape {values.shape}, expected (rows, 263) or (rows, 251) in new_joint_vecs")
    made = _from_array(source, values, None, fps)
    captions = data.read_captions(source.files[1]) if len(source.files) > 1 else ()
    vibe = source.given.get("format")
    kind = {"floor": "lowest", "format": vibe} if vibe else {}
    yield replace(made, captions=captions, **kind)


# ---- NTU RGB+D ------------------------------------------------------------------------------------------------------

_KINECT = 25
_TWO_PEOPLE = frozenset((*range(50, 61), *range(106, 121)))  # actions of NTU RGB+D 120 for two


def _read_ntu(source, skeleton, fps):
    words = _text(source.path).split()
    if not words[0].isdecimal() or len(words[0]) > 9:
        raise ValueError(f"line 1 is {words[0][:40]!r}, expected the number of frames; is this an NTU .skeleton file?")
    declared, at = int(words[0]), 1
    if declared > len(words):
        raise ValueError(f"line 1 declares {declared} frames, but only {len(words)} words follow; the file is cut off")
    tracks: dict[str, dict[int, np.ndarray]] = {}
    lines = 1

    def take(count, what):
        nonlocal at
        if at + count > len(words):
            raise ValueError(f"line {lines + 1}: the file ends within {what}; it is cut off, copy it again")
        at += count
        return words[at - count : at]

    for frame in range(declared):
        (bodies,) = take(1, f"frame {frame}")
        lines += 1
        if not bodies.isdecimal() or int(bodies[:4]) > 20:
            raise ValueError(f"line {lines}: frame {frame} has {bodies[:40]!r} bodies, expected 0 to 20; mend the file")
        for _ in range(int(bodies)):
            body, *_ = take(10, f"a body of frame {frame}")
            (count,) = take(1, f"a body of frame {frame}")
            lines += 2
            if count != str(_KINECT):
                raise ValueError(f"line {lines}: a body has {count[:40]!r} joints, expected {_KINECT}; mend the file")
            rows = take(12 * _KINECT, f"a body of frame {frame}")
            try:
                values = np.array(rows, dtype=object).astype(np.float64).reshape(_KINECT, 12)[:, :3]
            except ValueError:
                bad = next(i for i, word in enumerate(rows) if not _is_number(word))
                raise ValueError(
                    f"line {lines + 1 + bad // 12}: {rows[bad][:40]!r} is no number; mend the line"
                ) from None
            if not (np.abs(values) < MAX_METRES).all():
                row = int(np.argmin((np.abs(values) < MAX_METRES).all(axis=1)))
                raise ValueError(f"line {lines + 1 + row}: {values[row]} is no position in metres; mend the line")
            lines += _KINECT
            tracks.setdefault(body, {})[frame] = values
    if at != len(words):
        raise ValueError(f"line {lines + 1}: words follow after the {declared} frames of line 1; mend the number")
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


# ---- pyskl ----------------------------------------------------------------------------------------------------------


class _Dtype:
    """Stands for numpy.dtype in a pickle: a plain kind of number, nothing else."""

    def __init__(self, code, *_):
        self.dtype = np.dtype(code) if re.fullmatch(r"[<>|=]?[fiub][1248]", str(code)) else None
        if self.dtype is None:
            raise ValueError(f"arrays of {str(code)[:40]!r} are not read, expected numbers")

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array in a pickle: bytes with a shape, checked against each other."""

    value: np.ndarray

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        self.value = self._from(raw, dtype, shape, "F" if fortran else "C")

    @staticmethod
    def _from(raw, dtype, shape, order):
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise ValueError("an array is not made of numbers")
        if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
            raise ValueError(f"an array has the shape {str(shape)[:40]}")
        return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _new_array(*_):
    return _Array()


def _buffer_array(raw, dtype, shape, order):
    made = _Array()
    made.value = _Array._from(raw, dtype, shape, order)
    return made


def _number(dtype, raw):
    return _Array._from(raw, dtype, (1,), "C")[0].item()


def _latin(text, encoding):
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError(f"text in the encoding {str(encoding)[:40]!r}")
    return text.encode("latin-1")


class _Nothing:
    """Stands for the type numpy.ndarray, which a pickle names and must not call."""


class _Unpickler(pickle._Unpickler):
    """Reads plain data and arrays of numbers, and runs nothing of what a file names.

    The interpreter in Python serves, because that in C allocates what a broken file declares. Names of numpy stand for
    the small classes above; no function of numpy is ever called with what a file says.
    """

    _names = {("numpy", "dtype"): _Dtype, ("numpy", "ndarray"): _Nothing, ("_codecs", "encode"): _latin}
    for _module in ("numpy.core.", "numpy._core."):
        _names[_module + "multiarray", "_reconstruct"] = _new_array
        _names[_module + "multiarray", "scalar"] = _number
        _names[_module + "numeric", "_frombuffer"] = _buffer_array
    # those that make objects of any class, refer outside of the file, or allocate by a declared size
    dispatch = {
        code: call
        for code, call in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.PERSID, pickle.BINPERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ,
                                 pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8,
                                 pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
    }  # fmt: skip

    def find_class(self, module, name):
        if (module, name) not in self._names:
            raise ValueError(f"it names {module}.{name}"[:80] + ", expected arrays of numpy and plain data only")
        return self._names[module, name]

    def load_reduce(self):
        arguments, call = self.stack.pop(), self.stack[-1]
        if call not in self._names.values() or call is _Nothing or not isinstance(arguments, tuple):
            raise ValueError("it calls something that is no array of numpy")
        self.stack[-1] = call(*arguments)

    def load_build(self):
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, _Array | _Dtype):
            raise ValueError("it sets the state of something that is no array of numpy")
        made.__setstate__(state)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


class _Bounded:
    """A file that is never asked for more bytes than it has."""

    def __init__(self, stream, size):
        self.stream, self.size = stream, size

    def read(self, count):
        if count > self.size - self.stream.tell():
            raise EOFError(f"{count} bytes are declared, fewer follow")
        return self.stream.read(count)

    def readline(self):
        return self.stream.readline(2**20)


def _unpickle(path):
    with open(path, "rb") as stream:
        try:
            return _Unpickler(_Bounded(stream, path.stat().st_size)).load()
        except MemoryError:
            raise
        except Exception as error:  # a broken pickle may fail anywhere in the interpreter: one line says where
            raise ValueError(
                f"byte {stream.tell()}: the pickle cannot be read ({_line(error)}); it is broken, or holds more than "
                "annotations: save dict(split, annotations) of numbers, texts and numpy arrays"
            ) from error


def _read_pyskl(source, skeleton, fps):
    table = _unpickle(source.path)
    split, items = (table.get("split", {}), table.get("annotations")) if isinstance(table, dict) else ({}, table)
    if not isinstance(items, list) or not items or not isinstance(split, dict):
        raise ValueError("the pickle is no dict(split=..., annotations=[...]) of pyskl; write it in that form")
    member: dict[str, list[str]] = {}
    for name, ids in split.items():
        if not isinstance(name, str) or not isinstance(ids, list | tuple):
            raise ValueError(f"split {str(name)[:40]!r} is no list of names; mend the key split")
        for each in ids:
            if isinstance(each, str):
                member.setdefault(each, []).append(re.sub(r"[^\w-]+", "-", name))
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
    if not isinstance(name, str) or not re.fullmatch(r"[^\s/\\.][^\s/\\]{0,149}", name) or name != _clean(name):
        raise ValueError(f"frame_dir is {str(name)[:60]!r}, expected a plain name that can be a file name; rename it")
    if not isinstance(points, _Array) or points.value.ndim != 4 or points.value.shape[3] != 3:
        shape = points.value.shape if isinstance(points, _Array) else type(points).__name__
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
    rate, notes = _rate(NTU_FPS if told and joints == _KINECT else None, fps, " (pyskl annotations never do)")
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
