"""Motions leave: files that other tools open.

`read` takes what there is on disk (arrays, folders of clips, generated clips), `save` writes it in the formats of
`FORMATS`. A motion knows its frame rate; one that does not say it is refused, not guessed. Data are written before
pictures are drawn, and every file appears whole or not at all.

BVH and glTF want rotations, under which all bones that leave a joint turn as one piece; positions allow more: hips that
move against the spine, collars against the neck. The skeleton of both files therefore has four more joints, without
length, one for each hip and each collar, as CMU's skeletons have them at the hips. With them the positions of every
motion whose bones keep their lengths come back exactly. The rest pose is a T. Positions do not show how a limb turns
about itself; the files have the shortest rotation.

Source: BVH as Biovision published it; glTF 2.0 (Khronos); pickles of annotations as pyskl and MMAction2 document them.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import pickletools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

import kinemic
from kinemic.data import OFFICIAL, Clip, ntu_classes, read_clips, read_humanml3d, read_ntu_vibe, sample_of
from kinemic.motion import DIRECTIONS, FPS, JOINT_NAMES, NUM_FEATURES, NUM_JOINTS, PARENTS, decode

__all__ = ["FORMATS", "Motion", "bvh", "gltf", "pyskl", "read", "save"]

# in the order of writing: first what takes the joints as they are, then what may refuse them, pictures last
FORMATS = {
    "npz": ".npz", "json": ".json", "pyskl": ".pkl", "bvh": ".bvh", "gltf": ".gltf", "gif": ".gif", "mp4": ".mp4",
}  # fmt: skip
_PICTURES = ("gif", "mp4")

# Direction of the bone that ends in a joint, in the rest pose: those of the features, but with arms and head as tools
# that transfer motions to other bodies expect them.
_REST = DIRECTIONS.copy()
_REST[[16, 18, 20]], _REST[[17, 19, 21]], _REST[15] = [1, 0, 0], [-1, 0, 0], [0, 1, 0]
# Nodes of the files: the 22 joints, then a base for each bone that moves against its neighbours.
_BASES = {1: 22, 2: 23, 13: 24, 14: 25}
_NODES = (*JOINT_NAMES, *(f"{JOINT_NAMES[joint]}_base" for joint in _BASES))
_NODE_PARENTS = [_BASES.get(joint, int(PARENTS[joint])) for joint in range(NUM_JOINTS)]
_NODE_PARENTS += [int(PARENTS[joint]) for joint in _BASES]
# joints from which several bones leave: the bone that is up, the two ends of the line to the left
_FRAMES = {0: (3, 1, 2), 9: (12, 13, 14)}


@dataclass(frozen=True, eq=False)
class Motion:
    """Joint positions with all that a file should say about them.

    Args:
        name: usable as a file name.
        joints: (T, 22, 3) metres, y up, in the order of `motion.JOINT_NAMES`; (T, 66) is reshaped.
        fps: frames per second, in (0, 1000].
        caption, label, licence: texts, or None.
        split: list of a data set that it belongs to.

    Raises:
        ValueError: no name, another shape, no frames, values that are not finite, or no possible frame rate.
    """

    name: str
    joints: np.ndarray
    fps: float
    caption: str | None = None
    label: str | None = None
    licence: str | None = None
    split: str = "train"

    def __post_init__(self):
        joints = np.asarray(self.joints)
        if not re.fullmatch(r"[^\s/\\.][^/\\\n]*", self.name):
            raise ValueError(f"motion name is {self.name!r}, expected a file name")
        if joints.dtype.kind not in "fiu":
            raise ValueError(f"{self.name}: joints are of type {joints.dtype}, expected numbers")
        if joints.ndim == 2 and joints.shape[1] == 3 * NUM_JOINTS:
            joints = joints.reshape(-1, NUM_JOINTS, 3)
        if joints.ndim != 3 or joints.shape[1:] != (NUM_JOINTS, 3) or not len(joints):
            expected = f"(frames >= 1, {NUM_JOINTS}, 3) or (frames >= 1, {3 * NUM_JOINTS})"
            raise ValueError(f"{self.name}: joints have shape {joints.shape}, expected {expected}")
        joints = joints.astype(np.float64)
        if not np.isfinite(joints).all():
            frame = int(np.argmin(np.isfinite(joints).all(axis=(1, 2))))
            raise ValueError(f"{self.name}: joints are not finite in frame {frame}; repair the frame or drop the clip")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"{self.name}: fps is {self.fps}, expected frames per second above 0 and up to 1000")
        object.__setattr__(self, "joints", joints)
        object.__setattr__(self, "fps", float(self.fps))

    @classmethod
    def of(cls, clip: Clip, **rest) -> Motion:
        """The joints of a clip, its first caption and its action; `rest` are the other fields."""
        caption = clip.captions[0].text if clip.captions else None
        return cls(clip.name, clip.joints, clip.fps, **{"caption": caption, "label": clip.action} | rest)

    def __len__(self) -> int:
        return len(self.joints)


# --- in ---


def read(source: str | Path, fps: float | None = None, clips: Sequence[str] = ()) -> list[Motion]:
    """Motions of a file or folder.

    Args:
        source: one of

            - a `.npy` of joints (T, 22, 3) or (T, 66) in metres, with `fps`; or of features (T, 263), which are 20 fps
              by the definition of their format;
            - a `.npz` that `save` wrote;
            - a folder in the layout of HumanML3D or NTU-VIBE, or FOLDER/NAME for one clip of it;
            - a folder `synthesize/KEY` of the cache, with generated clips.
        fps: frame rate of plain joints; only they need it.
        clips: of a folder: names of clips, or of lists (`train` for `train.txt`, `fewshot/S0000/xsub/train` for
            NTU-VIBE; `official-xsub/train`, `official-xset/test` and so on by the official protocols), which become
            the split of their clips; none means all clips.

    Raises:
        FileNotFoundError: there is no such file, clip or list.
        ValueError: a file that cannot be read as one of these; a frame rate that is missing or contradicts the file.
    """
    path = Path(source)
    if path.is_dir():
        motions = _generated(path, clips) if (path / "clips.npz").is_file() else _folder(path, clips)
    elif path.suffix in (".npy", ".npz") and path.is_file():
        if clips:
            raise ValueError(f"{path}: is a file, but clips {', '.join(clips)} are asked for; give its folder")
        return [_file(path, fps)]
    elif (path.parent / "new_joint_vecs" / f"{path.name}.npy").is_file():
        motions = _folder(path.parent, [path.name])
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such file, folder or clip; check the path")
    else:
        raise ValueError(f"{path}: expected .npy, .npz or a folder of clips; `kinemic import` reads other formats")
    _own_rate(path, fps, FPS)
    return motions


def _own_rate(path: Path, asked: float | None, own: float) -> None:
    if asked is not None and asked != own:
        raise ValueError(f"{path}: has {own:g} frames per second, {asked:g} were given; leave --fps out")


@contextmanager
def _loading(path: Path, otherwise: str = "copy it again") -> Iterator[None]:
    """Whatever numpy says about a file, in one line that names it and, where arrays are missing, what to do."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]}; {otherwise}") from error
    except Exception as error:  # numpy promises no list: cut or altered files raise even TokenError and zlib.error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read ({reason}), expected numpy arrays; copy it again") from error


def _file(path: Path, fps: float | None) -> Motion:
    rest = {}
    if path.suffix == ".npy":
        with _loading(path):
            # mapped: a header that promises more than the file holds is noticed before anything is allocated
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim == 2 and array.shape[1] == NUM_FEATURES:
            _own_rate(path, fps, FPS)
            try:
                return Motion(path.stem, decode(array), FPS)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {error}") from error
        if fps is None and array.shape[1:] in ((NUM_JOINTS, 3), (3 * NUM_JOINTS,)):
            raise ValueError(f"{path}: plain joints do not say their frame rate; give it with --fps")
    else:
        expected = "expected an .npz that `kinemic export` wrote"
        with _loading(path, expected), np.load(path, allow_pickle=False) as stored:
            array, own = stored["joints"], float(stored["fps"])
            names, parents = stored["names"].tolist(), stored["parents"].tolist()
            rest = {key: str(stored[key]) or None for key in ("caption", "label", "licence") if key in stored}
        if (names, parents) != (list(JOINT_NAMES), PARENTS.tolist()):
            raise ValueError(f"{path}: holds another skeleton, expected the {NUM_JOINTS} joints of HumanML3D")
        _own_rate(path, fps, own)
        fps = own
    try:
        return Motion(path.stem, array, 0 if fps is None else fps, **rest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _folder(folder: Path, clips: Sequence[str]) -> list[Motion]:
    vectors = folder / "new_joint_vecs"
    if not vectors.is_dir():
        raise ValueError(f"{folder}: has neither new_joint_vecs nor clips.npz, expected a folder of clips")
    terms = folder / "LICENCE.txt"  # where `kinemic import` notes them
    licence = terms.read_text(encoding="utf-8", errors="replace").strip() if terms.is_file() else None
    ntu = any((folder / name).is_file() for name in ("ntu_classes.txt", "ntu_metadata.json"))
    classes = ntu_classes(folder) if ntu else []
    if not clips:
        names = sorted(path.stem for path in vectors.glob("*.npy"))
        if not names:
            raise ValueError(f"{vectors}: holds no .npy, expected at least one clip")
        return [Motion.of(clip, licence=licence, label=_label(clip, classes)) for clip in read_clips(folder, names)]
    motions = []
    for name in clips:
        listing = folder / ("splits" if ntu else "") / f"{name}.txt"
        if listing.is_file() or name.partition("/")[0] in OFFICIAL:
            listed = read_ntu_vibe(folder, name) if ntu else read_humanml3d(folder, name)
            motions += [Motion.of(clip, licence=licence, split=name.replace("/", "_")) for clip in listed]
        elif (vectors / f"{name}.npy").is_file():
            (clip,) = read_clips(folder, [name])
            motions.append(Motion.of(clip, licence=licence, label=_label(clip, classes)))
        else:
            raise FileNotFoundError(f"{folder}: has no clip and no list {name!r}; check --clips")
    return motions


def _label(clip: Clip, classes: Sequence[str]) -> str | None:
    """Action of a clip; where only its name says it, as in NTU-VIBE, from the table of classes."""
    sample = sample_of(clip.name)
    number = int(sample["action"][1:]) if sample else 0
    return clip.action or (classes[number - 1] if 0 < number <= len(classes) else None)


def _generated(folder: Path, clips: Sequence[str]) -> list[Motion]:
    """Clips that `pipeline.Lab.synthesize` drew, named as `Lab.load_clips` names them."""
    path = folder / "clips.npz"
    with _loading(path, "draw the clips again"), np.load(path, allow_pickle=False) as stored:
        pieces = np.split(stored["features"], np.cumsum(stored["lengths"])[:-1])
        action, classes, captions = (stored[key].tolist() for key in ("action", "classes", "captions"))
        motions = {
            f"synth_{row:06d}": Motion(f"synth_{row:06d}", decode(features), FPS, captions[k], classes[k])
            for row, (features, k) in enumerate(zip(pieces, action, strict=True))
        }
    unknown = next((name for name in clips if name not in motions), None)
    if unknown is not None:
        raise FileNotFoundError(f"{path}: has no clip {unknown!r}, expected {min(motions)} to {max(motions)}")
    return [motions[name] for name in clips or motions]


# --- out ---


def save(
    motions: Iterable[Motion | Clip], formats: str | Sequence[str], to: str | Path = ".", *, text: bool = True
) -> list[Path]:
    """Write motions in one format or several, data of all motions before any picture.

    A file that cannot be written costs only itself: all others are tried before the error is raised.

    Args:
        motions: with different names; a `data.Clip` is one at 20 fps.
        formats: keys of `FORMATS`. `pyskl` is one file for all motions, with the names of its classes beside it, one a
            line; the others are a file for each.
        to: folder, made if needed; or the file itself, when there is only one and `to` ends as its format does.
        text: whether pictures show the caption, or else the label.

    Returns:
        The files.

    Raises:
        ValueError: no motions, equal names, an unknown format, a motion or place that cannot be written, an encoder
            that is missing or fails (the first of several). All other files are there.

    Warns:
        UserWarning: a motion whose bones change their lengths goes into BVH or glTF with mean lengths.
    """
    motions = [Motion.of(item) if isinstance(item, Clip) else item for item in motions]
    formats = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    unknown = next((name for name in formats if name not in FORMATS), None)
    if unknown is not None or not formats:
        raise ValueError(f"format is {unknown or ''!r}, expected one of {', '.join(FORMATS)}")
    if not motions:
        raise ValueError("there are no motions to export, expected at least one")
    double = next((name for name, count in Counter(m.name for m in motions).items() if count > 1), None)
    if double is not None:
        raise ValueError(f"two motions are named {double}; export them into different folders")
    to = Path(to)
    single = len(formats) == 1 and to.suffix == FORMATS[formats[0]] and not to.is_dir()
    if single and len(motions) > 1 and formats != ["pyskl"]:
        raise ValueError(f"{to}: is one file, but there are {len(motions)} motions; give a folder")
    folder = to.parent if single else to
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made ({error.strerror}); choose another --to") from error
    jobs: list[tuple[Path, Callable[[Path], Any]]] = []
    for form in sorted(formats, key=list(FORMATS).index):
        if form == "pyskl":
            path = to if single else folder / "motions.pkl"
            jobs.append((path, partial(_pickle, motions)))
            jobs.append((path.with_suffix(".classes.txt"), partial(_class_list, motions)))
            continue
        for motion in motions:
            path = to if single else folder / f"{motion.name}{FORMATS[form]}"
            title = (motion.caption or motion.label) if text and form in _PICTURES else None
            jobs.append((path, partial(_WRITERS[form], motion, title)))
    errors = []
    for path, write in jobs:
        try:
            with _whole(path) as draft:
                write(draft)
        except ValueError as error:
            errors.append(error)
    if errors:
        more = f" ({len(errors)} of {len(jobs)} files are not written, this is the first)" if len(errors) > 1 else ""
        raise ValueError(f"{errors[0]}{more}") from errors[0]
    return [path for path, _ in jobs]


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place to write, which becomes the file when all of it is there."""
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be written ({reason}); choose another --to or free the place") from error
    finally:
        try:
            draft.unlink(missing_ok=True)
        except OSError:  # a folder that never was
            pass


def _npz(motion: Motion, _, draft: Path) -> None:
    texts = {key: getattr(motion, key) or "" for key in ("caption", "label", "licence")}
    joints = motion.joints.astype(np.float32)
    with draft.open("wb") as file:
        np.savez(file, joints=joints, fps=motion.fps, names=JOINT_NAMES, parents=PARENTS, **texts)


def _json(motion: Motion, _, draft: Path) -> None:
    from kinemic import viz

    draft.write_text(json.dumps(viz.viewer_data(motion.joints, motion.name, motion.fps)))


# --- the skeleton of BVH and glTF ---


@dataclass(frozen=True, eq=False)
class _Pose:
    """Rest offsets (26, 3) and root path (T, 3) in metres; for each node, its T rotations against its parent."""

    offsets: np.ndarray
    root: np.ndarray
    local: list[Rotation]


def _pose(motion: Motion) -> _Pose:
    """Rotations of the nodes that give the joints of a motion; where bones change their lengths, with mean lengths."""
    joints = motion.joints
    bones = np.zeros_like(joints)
    bones[:, 1:] = joints[:, 1:] - joints[:, PARENTS[1:]]
    each = np.linalg.norm(bones, axis=-1)
    if each[:, 1:].min() < 1e-6:
        frame, bone = np.unravel_index(each[:, 1:].argmin(), each[:, 1:].shape)
        end = JOINT_NAMES[bone + 1]
        raise ValueError(f"{motion.name}: the bone to {end} has no length in frame {frame}; repair it or drop the clip")
    lengths = each.mean(axis=0)
    directions = bones / np.maximum(each, 1e-6)[..., None]
    error = directions * (lengths - each)[..., None]
    for joint in range(1, NUM_JOINTS):
        error[:, joint] += error[:, PARENTS[joint]]
    moved = np.linalg.norm(error, axis=-1).max()
    if moved > 1e-3:
        found = f"{motion.name}: bones change their lengths; mean lengths move joints by up to {1000 * moved:.0f} mm"
        warnings.warn(found, stacklevel=4)
    offsets = np.zeros((len(_NODES), 3))
    offsets[:NUM_JOINTS] = lengths[:, None] * _REST
    whole: dict[int, Rotation] = {}  # of the node against the world
    local = [Rotation.identity(len(joints))] * len(_NODES)

    def turn(node: int, rotation: Rotation) -> None:
        parent = _NODE_PARENTS[node]
        local[node] = rotation if parent < 0 else whole[parent].inv() * rotation
        whole[node] = rotation

    for joint in range(NUM_JOINTS):  # parents come before their children
        node = _NODE_PARENTS[joint]  # it carries the bone that ends here
        if node >= 0 and node not in whole:
            before = whole[_NODE_PARENTS[node]]
            turn(node, before * _arc(_REST[joint], before.inv().apply(directions[:, joint])))
        if joint in _FRAMES:
            up, left, right = _FRAMES[joint]
            turn(joint, _frame(directions[:, up], joints[:, left] - joints[:, right]))
    return _Pose(offsets, joints[:, 0], local)


def _frame(up: np.ndarray, across: np.ndarray) -> Rotation:
    """Rotations that carry +y to `up` (T, 3), and +x towards `across` (T, 3) as far as that allows."""
    across = across - (across * up).sum(axis=-1, keepdims=True) * up
    flat = np.linalg.norm(across, axis=-1) < 1e-6
    across[flat] = np.cross(up[flat], np.eye(3)[np.abs(up[flat]).argmin(axis=-1)])
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    return Rotation.from_matrix(np.stack([across, up, np.cross(across, up)], axis=-1))


def _arc(rest: np.ndarray, directions: np.ndarray) -> Rotation:
    """Shortest rotations that carry the unit vector `rest` (3,) to the unit vectors `directions` (T, 3)."""
    quats = np.concatenate([np.cross(rest, directions), 1 + directions @ rest[:, None]], axis=-1)
    opposite = np.linalg.norm(quats, axis=-1) < 1e-9
    quats[opposite, :3], quats[opposite, 3] = np.roll(rest, 1), 0.0  # half a turn about an axis at a right angle
    return Rotation.from_quat(quats)


def bvh(motion: Motion) -> str:
    """A motion as the text of a BVH file.

    Lengths are centimetres, y is up, a body that faces +z has its left at +x. The root has position and rotation, the
    other joints rotation only, all in the order z, x, y.

    Raises:
        ValueError: a bone without length.

    Warns:
        UserWarning: bones change their lengths.
    """
    pose = _pose(motion)
    lines, order = ["HIERARCHY"], []

    def write(node: int, depth: int) -> None:
        order.append(node)
        children = [child for child, parent in enumerate(_NODE_PARENTS) if parent == node]
        offset = "{:.6f} {:.6f} {:.6f}".format(*(100 * pose.offsets[node]))
        kind, position = ("JOINT", "") if depth else ("ROOT", "Xposition Yposition Zposition ")
        pad = "\t" * depth
        lines.extend((f"{pad}{kind} {_NODES[node]}", f"{pad}{{", f"{pad}\tOFFSET {offset}"))
        lines.append(f"{pad}\tCHANNELS {6 if position else 3} {position}Zrotation Xrotation Yrotation")
        for child in children:
            write(child, depth + 1)
        if not children:  # half as long as the bone before it, so that tools which draw bones have one to draw
            end = "{:.6f} {:.6f} {:.6f}".format(*(50 * pose.offsets[node]))
            lines.extend((f"{pad}\tEnd Site", f"{pad}\t{{", f"{pad}\t\tOFFSET {end}", f"{pad}\t}}"))
        lines.append(f"{pad}}}")

    write(0, 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gimbal lock")  # the angles that scipy then chooses are right
        angles = [pose.local[node].as_euler("ZXY") for node in order]
    # continuous in time, so that tools which interpolate angles do not spin
    columns = [100 * pose.root, *(np.rad2deg(np.unwrap(angle, axis=0)) for angle in angles)]
    rows = io.StringIO()
    np.savetxt(rows, np.concatenate(columns, axis=-1), fmt="%.6f")
    lines += ["MOTION", f"Frames: {len(motion)}", f"Frame Time: {1 / motion.fps:.10f}", rows.getvalue()]
    return "\n".join(lines)


def gltf(motion: Motion) -> dict[str, Any]:
    """A motion as glTF 2.0 with its buffer inside: a skin of 26 joints, its animation, and a body of plain bones.

    Lengths are metres, y is up. Frame rate, caption, label and licence stand in `asset.extras`, the licence also in
    `asset.copyright`.

    Raises:
        ValueError: a bone without length.

    Warns:
        UserWarning: bones change their lengths.

    Source: glTF 2.0 specification, Khronos; times, translations and unit quaternions (x, y, z, w) are 32-bit floats.
    """
    pose = _pose(motion)
    data, views, accessors = bytearray(), [], []

    def store(array: np.ndarray, kind: str, target: int | None = None, *, bounds: bool = False) -> int:
        """Put an array into the buffer and return the number of its accessor."""
        array = np.ascontiguousarray(array)
        codes = {"float32": 5126, "uint16": 5123, "uint8": 5121}
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": array.nbytes})
        accessors.append({"bufferView": len(views) - 1, "componentType": codes[array.dtype.name], "type": kind,
                          "count": array.size if kind == "SCALAR" else len(array)})  # fmt: skip
        if target:
            views[-1]["target"] = target
        if bounds:
            table = array.reshape(len(array), -1)
            accessors[-1] |= {"min": table.min(axis=0).tolist(), "max": table.max(axis=0).tolist()}
        data.extend(array.tobytes())
        data.extend(bytes(-len(data) % 4))  # every view begins at a multiple of its numbers' size
        return len(accessors) - 1

    rest = np.zeros_like(pose.offsets)
    for joint in sorted(range(len(_NODES)), key=_depth):
        rest[joint] = pose.offsets[joint] + (rest[_NODE_PARENTS[joint]] if joint else 0)
    stand = np.array([0, -rest[:, 1].min(), 0])  # the rest pose has its feet on the floor
    rest += stand
    corners, owners, triangles = _body(rest)
    bind = np.tile(np.eye(4), (len(rest), 1, 1))
    bind[:, 3, :3] = -rest  # matrices are stored by columns
    weights = np.zeros((len(corners), 4))
    weights[:, 0] = 1
    joints = np.zeros((len(corners), 4))
    joints[:, 0] = owners
    attributes = {
        "POSITION": store(corners.astype(np.float32), "VEC3", 34962, bounds=True),
        "JOINTS_0": store(joints.astype(np.uint8), "VEC4", 34962),
        "WEIGHTS_0": store(weights.astype(np.float32), "VEC4", 34962),
    }
    indices = store(triangles.astype(np.uint16).ravel(), "SCALAR", 34963)
    inverse = store(bind.astype(np.float32), "MAT4")
    times = store((np.arange(len(motion)) / motion.fps).astype(np.float32), "SCALAR", bounds=True)
    outputs = {(0, "translation"): store(pose.root.astype(np.float32), "VEC3")}
    for node in sorted(set(_NODE_PARENTS) - {-1}):  # ends of limbs carry nothing
        quats = pose.local[node].as_quat()
        flips = np.cumprod(np.where((quats[1:] * quats[:-1]).sum(axis=-1) < 0, -1, 1))
        quats[1:] *= flips[:, None]  # q and -q are one rotation; neighbours have one sign
        outputs[node, "rotation"] = store(quats.astype(np.float32), "VEC4")
    nodes: list[dict[str, Any]] = [{"name": name, "translation": offset.tolist()}
                                   for name, offset in zip(_NODES, pose.offsets, strict=True)]  # fmt: skip
    nodes[0]["translation"] = stand.tolist()
    for node, parent in enumerate(_NODE_PARENTS):
        if parent >= 0:
            nodes[parent].setdefault("children", []).append(node)
    nodes.append({"name": "body", "mesh": 0, "skin": 0})
    texts = {key: getattr(motion, key) for key in ("caption", "label", "licence") if getattr(motion, key)}
    asset = {"version": "2.0", "generator": f"kinemic {kinemic.__version__}", "extras": {"fps": motion.fps} | texts}
    return {
        "asset": asset | ({"copyright": motion.licence} if motion.licence else {}),
        "scene": 0,
        "scenes": [{"nodes": [0, len(_NODES)]}],
        "nodes": nodes,
        "meshes": [{"name": "bones", "primitives": [{"attributes": attributes, "indices": indices}]}],
        "skins": [{"inverseBindMatrices": inverse, "skeleton": 0, "joints": list(range(len(_NODES)))}],
        "animations": [{
            "name": motion.name,
            "samplers": [{"input": times, "output": output, "interpolation": "LINEAR"} for output in outputs.values()],
            "channels": [{"sampler": k, "target": {"node": node, "path": path}}
                         for k, (node, path) in enumerate(outputs)],
        }],
        "buffers": [{"byteLength": len(data),
                     "uri": "data:application/octet-stream;base64," + base64.b64encode(data).decode()}],
        "bufferViews": views,
        "accessors": accessors,
    }  # fmt: skip


def _depth(node: int) -> int:
    return 0 if _NODE_PARENTS[node] < 0 else 1 + _depth(_NODE_PARENTS[node])


def _body(rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A double pyramid for each bone of the rest pose (26, 3): corners (126, 3), their nodes, triangles (168, 3)."""
    corners, owners, triangles = [], [], []
    for joint in range(1, NUM_JOINTS):
        start, along = rest[_NODE_PARENTS[joint]], rest[joint] - rest[_NODE_PARENTS[joint]]
        side = np.roll(_REST[joint], 1) * min(0.12 * np.linalg.norm(along), 0.03)
        ring = [side, np.cross(_REST[joint], side), -side, -np.cross(_REST[joint], side)]
        first = 6 * (joint - 1)
        for k in range(4):
            a, b = first + 1 + k, first + 1 + (k + 1) % 4
            triangles += [(first, b, a), (first + 5, a, b)]
        corners += [start, *(start + 0.2 * along + edge for edge in ring), rest[joint]]
        owners += [_NODE_PARENTS[joint]] * 6
    return np.array(corners), np.array(owners), np.array(triangles)


# --- pyskl ---


def _classes(motions: Sequence[Motion]) -> list[str]:
    """Labels, sorted, of motions that fit into one pickle."""
    missing = next((motion.name for motion in motions if motion.label is None), None)
    if missing is not None:
        raise ValueError(f"{missing} has no label, which pyskl wants for each motion; give it with --label")
    rates = sorted({motion.fps for motion in motions})
    if len(rates) > 1:
        found = ", ".join(f"{rate:g}" for rate in rates)
        raise ValueError(f"motions have {found} frames per second, for which pyskl has no field; export them apart")
    return sorted({motion.label for motion in motions})


def pyskl(motions: Sequence[Motion], classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Motions as the table of annotations that pyskl and MMAction2 train on (one person, three dimensions).

    Args:
        motions: with labels, all at one frame rate, for which the format has no field.
        classes: names in the order of the class ids; default the labels of the motions, sorted.

    Returns:
        split (name -> list of frame_dir) and annotations, each with frame_dir (the motion's name), label (0-based),
        total_frames, and keypoint (1, T, 22, 3) float32 metres.

    Raises:
        ValueError: a motion without label, a label that is no class, or motions of different frame rates.
    """
    labels = _classes(motions)
    classes = labels if classes is None else list(classes)
    split: dict[str, list[str]] = {}
    annotations = []
    for motion in motions:
        if motion.label not in classes:
            raise ValueError(f"{motion.name}: label {motion.label!r} is not among {', '.join(classes)}")
        split.setdefault(motion.split, []).append(motion.name)
        annotations.append({
            "frame_dir": motion.name, "label": classes.index(motion.label), "total_frames": len(motion),
            "keypoint": motion.joints[None].astype(np.float32),
        })  # fmt: skip
    return {"split": split, "annotations": annotations}


def _pickle(motions: Sequence[Motion], draft: Path) -> None:
    """A pickle that numpy 1 reads too: pyskl lives in environments where `numpy._core` is still `numpy.core`."""
    content = pickle.dumps(pyskl(motions), protocol=3)  # the last one that writes names of modules as plain lines
    out, done = b"", 0
    for code, name, place in pickletools.genops(content):
        if code.name == "GLOBAL" and name.startswith("numpy._core."):
            out += content[done:place] + b"cnumpy.core."
            done = place + len(b"cnumpy._core.")
    draft.write_bytes(out + content[done:])


def _class_list(motions: Sequence[Motion], draft: Path) -> None:
    draft.write_text("".join(f"{name}\n" for name in _classes(motions)), encoding="utf-8")


# --- pictures ---


def _gif(motion: Motion, title: str | None, draft: Path) -> None:
    from PIL import Image

    from kinemic import viz

    thin = int(np.ceil(motion.fps / 50))  # players slow down pictures that stay for less than 20 ms
    rate = motion.fps / thin
    images = (Image.fromarray(frame) for frame in viz.frames(motion.joints[::thin], rate, title=title))
    first = next(images).quantize(64)
    rest = [image.quantize(palette=first, dither=Image.Dither.NONE) for image in images]
    # GIF counts hundredths of a second; rounding the ends, not the durations, keeps the clock right
    ends = np.round(np.arange(len(rest) + 2) * 100 / rate)
    stays = (10 * np.diff(ends)).astype(int).tolist()
    first.save(draft, "GIF", save_all=True, append_images=rest, duration=stays, loop=0)


def _mp4(motion: Motion, title: str | None, draft: Path) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise ValueError(
            "format mp4 needs imageio-ffmpeg: `pip install 'kinemic[video]'`, or take the format gif"
        ) from None
    from kinemic import viz

    images = viz.frames(motion.joints, motion.fps, title=title)
    first = next(images)
    height, width = first.shape[:2]
    try:
        encoder = imageio_ffmpeg.write_frames(
            str(draft), (width, height), fps=motion.fps, quality=8, macro_block_size=2, ffmpeg_log_level="quiet"
        )
        encoder.send(None)
        for image in (first, *images):
            encoder.send(image.tobytes())
        encoder.close()
        count, _ = imageio_ffmpeg.count_frames_and_secs(draft)  # closing does not tell whether ffmpeg came to its end
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{motion.name}: ffmpeg failed ({reason}); check the disk, or take the format gif") from error
    if count != len(motion):
        raise ValueError(f"{motion.name}: ffmpeg wrote {count} of {len(motion)} frames; check the disk")


_WRITERS: dict[str, Callable[[Motion, str | None, Path], Any]] = {
    "bvh": lambda motion, _, draft: draft.write_text(bvh(motion), encoding="utf-8"),
    "gltf": lambda motion, _, draft: draft.write_text(json.dumps(gltf(motion)), encoding="utf-8"),
    "npz": _npz,
    "json": _json,
    "gif": _gif,
    "mp4": _mp4,
}
