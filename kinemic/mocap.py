"""Text files of motion capture: BVH, ASF with AMC, and the Kinect skeletons of NTU RGB+D.

Each function reads one file into arrays in the units and axes of the file; `kinemic.formats` gives them a meaning. Text
is parsed first and counted then, so a file cannot ask for memory by declaring a number. Errors are ValueError with the
line.

Sources: the BVH convention that position channels replace the OFFSET, as in files of Bandai-Namco Research; the ASF and
AMC convention L = C M C^-1 of the CMU database; the layout of `.skeleton` files as read by pyskl.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

__all__ = ["MAX_METRES", "MAX_TEXT", "read_asf_amc", "read_bvh", "read_ntu", "read_text"]

MAX_TEXT = 2**28  # bytes of a text file
MAX_METRES = 1e4  # nobody is recorded farther than this from the origin
KINECT = 25  # joints of a body

# ---- text ------------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of a file of at most `MAX_TEXT` bytes.

    Raises:
        ValueError: an empty, binary or too large file.
    """
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise ValueError(f"{path} has {size} bytes, expected at most {MAX_TEXT}; cut it into parts")
    raw = path.read_bytes()
    if not raw.strip():
        raise ValueError(f"{path} is empty; copy it again")
    if b"\0" in raw:
        raise ValueError(f"{path} is not plain text (byte {raw.index(0)} is zero); save it as UTF-8 text")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # old exporters write comments and names in the encoding of their country
        text = raw.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


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


# ---- BVH -------------------------------------------------------------------------------------------------------------

_POSITION, _ROTATION = ("Xposition", "Yposition", "Zposition"), ("Xrotation", "Yrotation", "Zrotation")


@dataclass
class _Bone:
    name: str
    parent: int
    offset: list[float]
    channels: list[str]
    first: int = 0  # column of its first channel


def read_bvh(path: Path) -> tuple[list[str], np.ndarray, float | None]:
    """Joint names, joints (T, J, 3) in the units and axes of the file, frames per second (None if it does not say).

    Any order of channels; a position channel takes the place of the OFFSET's coordinate, for every joint. End sites are
    joints named `<parent>_end`.
    """
    text = read_text(path)
    found = re.search(r"(?m)^[ \t]*MOTION\b.*$", text)
    if found is None:
        raise ValueError("there is no line MOTION, expected the frames after it; the file is cut off or no BVH")
    bones = _hierarchy(text[: found.start()])
    line = text.count("\n", 0, found.end()) + 1
    block = text[found.end() :]
    # both lines stand before the numbers, in either order
    head = re.match(r"\s*(?:(?:Frames\s*:[^\n]*|Frame\s+Time\s*:[^\n]*)\s*)*", block)[0]

    def place(match):
        return f"line {line + head.count(chr(10), 0, match.start())}" if match else f"line {line + 1}"

    declared = re.search(r"Frames\s*:[ \t]*(\S*)", head)
    spacing = re.search(r"Frame\s+Time\s*:[ \t]*(\S*)", head)
    if declared is None or not declared[1].isdecimal() or len(declared[1]) > 12:
        said = declared[1] if declared else "missing"
        raise ValueError(f"{place(declared)}: `Frames:` is {said[:40]}, expected a whole number; mend the line")
    if spacing is not None and not (_is_number(spacing[1]) and float(spacing[1]) > 0):
        raise ValueError(f"{place(spacing)}: `Frame Time:` is {spacing[1][:40]!r}, expected seconds > 0; mend the line")
    rate = _whole_rate(spacing[1]) if spacing else None
    width = sum(len(bone.channels) for bone in bones)
    if width == 0:
        raise ValueError("no joint has channels, expected rotations at least; the file holds no motion")
    values = _numbers(block[len(head) :], line + head.count("\n"), width)
    if len(values) != int(declared[1]):
        said = f"{place(declared)} declares {int(declared[1])} frames, but there are {len(values)}"
        raise ValueError(f"{said}; the file is cut off, or mend the number")
    if len(values) == 0:
        raise ValueError(f"{place(declared)}: there are no frames; leave the file out")
    return [bone.name for bone in bones], _pose_bvh(bones, values), rate


def _whole_rate(frame_time: str) -> float:
    """Frames per second of a printed frame time: the whole rate that rounds to it, if there is one."""
    seconds = float(frame_time)
    if not 0 < seconds < np.inf:
        return seconds and 1 / seconds
    rate = round(1 / seconds) if seconds > 1e-6 else 0
    digits = len(frame_time.partition(".")[2]) if re.fullmatch(r"\d*\.\d+", frame_time) else 9
    return float(rate) if rate and abs(round(1 / rate, digits) - seconds) < 1e-12 else 1 / seconds


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


# ---- ASF and AMC -----------------------------------------------------------------------------------------------------


def read_asf_amc(asf: Path, amc: Path) -> tuple[list[str], np.ndarray]:
    """Bone names and joints (T, J, 3) in the units of the file; a joint is the end of the bone it is named after."""
    try:
        bones = _asf(read_text(asf))
    except ValueError as error:
        raise ValueError(f"{asf}: {error}") from error
    values = _amc(read_text(amc), bones, asf.name)
    names = tuple(bones)
    frames = len(next(iter(values.values())))
    joints, turns = np.empty((frames, len(names), 3)), {}
    for index, (name, bone) in enumerate(bones.items()):
        # lower case: about fixed axes, in the order of `axis`; angles refer to the bone's own frame, C M C^-1
        spin = sorted((bone["order"].index(dof[1]), i) for i, dof in enumerate(bone["dof"]) if dof[0] == "r")
        local = np.eye(3)
        if spin:
            frame = Rotation.from_euler(bone["order"], bone["axis"], degrees=True).as_matrix()
            order = "".join(bone["order"][place] for place, _ in spin)
            local = frame @ _turns(order, values[name][:, [column for _, column in spin]]) @ frame.T
        if bone["parent"] is None:
            turns[name] = np.broadcast_to(local, (frames, 3, 3))
            joints[:, index] = values[name][:, [bone["dof"].index(f"t{axis}") for axis in "xyz"]]
        else:
            turns[name] = turns[bone["parent"]] @ local
            joints[:, index] = joints[:, names.index(bone["parent"])] + turns[name] @ np.array(bone["offset"])
    return list(bones), joints


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


def _amc(text, bones, asf):
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
            f"of {asf} once, as many numbers as it has dof{'; missing ' + ', '.join(missing[:5]) if missing else ''}"
        )
    width = at
    for start in range(0, len(words), width):
        frame, column = words[start : start + width], 1
        for name in order:
            if frame[column : column + 1] != [name] or len(frame) < column + 1 + wanted[name]:
                place = lines[min(start + column, len(lines) - 1)]
                raise ValueError(f"line {place}: frame {start // width + 1} is not as in {asf} at {name}; mend it")
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


# ---- NTU RGB+D -------------------------------------------------------------------------------------------------------


def read_ntu(path: Path) -> tuple[int, dict[str, dict[int, np.ndarray]]]:
    """Number of frames, and of each body {frame: joints (25, 3)} in metres, in the axes of the camera."""
    words = read_text(path).split()
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
            if count != str(KINECT):
                raise ValueError(f"line {lines}: a body has {count[:40]!r} joints, expected {KINECT}; mend the file")
            rows = take(12 * KINECT, f"a body of frame {frame}")
            try:
                values = np.array(rows, dtype=object).astype(np.float64).reshape(KINECT, 12)[:, :3]
            except ValueError:
                bad = next(i for i, word in enumerate(rows) if not _is_number(word))
                raise ValueError(
                    f"line {lines + 1 + bad // 12}: {rows[bad][:40]!r} is no number; mend the line"
                ) from None
            if not (np.abs(values) < MAX_METRES).all():
                row = int(np.argmin((np.abs(values) < MAX_METRES).all(axis=1)))
                raise ValueError(f"line {lines + 1 + row}: {values[row]} is no position in metres; mend the line")
            lines += KINECT
            tracks.setdefault(body, {})[frame] = values
    if at != len(words):
        raise ValueError(f"line {lines + 1}: words follow after the {declared} frames of line 1; mend the number")
    return declared, tracks
