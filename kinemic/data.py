"""Clips, the folders they live in, splits by subject, shots and batches.

A `Clip` is one motion: features at 20 fps with captions, and for target data an action label, a subject and a recording
set-up. Readers check what they read and name the file, and the line where there is one, in every error. All random
choices take a `numpy.random.Generator`.

Source: HumanML3D and NTU-VIBE folder layouts; loader and split rules of the paper, corrected where a docstring says so.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kinemic import motion

# fmt: off
__all__ = [
    "NTU_NAME", "OFFICIAL", "XSUB_TRAIN", "Batch", "Caption", "Clip", "Problem", "Segment", "collate", "crop_to_unit",
    "entries", "few_shot", "lists", "ntu_classes", "official_side", "official_split", "read_captions", "read_clips",
    "read_humanml3d", "read_labels", "read_ntu_vibe", "sample_of", "subject_disjoint", "survey", "write_clip",
    "write_humanml3d", "write_tables",
]

# performers on the training side of the NTU RGB+D 120 cross-subject protocol
XSUB_TRAIN = frozenset((
    1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38, 45, 46, 47, 49, 50, 52, 53, 54,
    55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103,
))
# fmt: on

OFFICIAL = {"official-xsub": "xsub", "official-xset": "xset"}  # names of splits that no file lists -> protocol

# set-up, camera, performer, replication and action of an NTU RGB+D sample
NTU_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")
_LABEL_COLUMNS = ["name", "action", "subject", "setup"]


@dataclass(frozen=True)
class Caption:
    """A sentence about a clip, or about the part from `start` to `end` seconds; both 0 means the whole clip.

    Raises:
        ValueError: no text, text with a line break or `#` (the field separator on disk), or a time that is negative or
            not finite.
    """

    text: str
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "text", self.text.strip())
        if not self.text or "#" in self.text or len(self.text.splitlines()) != 1:
            raise ValueError(f"caption is {self.text!r}, expected one line of text without '#'")
        if not (0 <= self.start < np.inf and 0 <= self.end < np.inf):
            raise ValueError(f"caption times are {self.start} and {self.end}, expected seconds >= 0")

    @property
    def whole(self) -> bool:
        """True when the sentence is about the whole clip."""
        return self.start == 0 and self.end == 0


@dataclass(frozen=True)
class Segment:
    """Ground truth of made-up data: what happens in frames `[start, end)`."""

    label: str
    start: int
    end: int

    def __post_init__(self):
        if not 0 <= self.start < self.end:
            raise ValueError(f"segment {self.label!r} is [{self.start}, {self.end}), expected 0 <= start < end")


@dataclass(frozen=True, eq=False)
class Clip:
    """One motion at 20 fps.

    Args:
        name: unique in its set, usable as a file name.
        features: (T, 263) float32, not normalised, T >= 1.
        captions: sentences, each about the whole clip or a part of it.
        action: class name, or None.
        subject: who moves, or None.
        segments: ground truth, for made-up data.
        setup: recording set-up, or None.

    Raises:
        ValueError: a bad name, features of the wrong shape or not finite, or a segment beyond the last frame.
    """

    name: str
    features: np.ndarray
    captions: tuple[Caption, ...] = ()
    action: str | None = None
    subject: str | None = None
    segments: tuple[Segment, ...] = ()
    setup: str | None = None
    fps: ClassVar[float] = motion.FPS  # by the definition of the features; `from_joints` resamples to it

    def __post_init__(self):
        if not re.fullmatch(r"[^\s/\\.][^\s/\\]*", self.name):
            raise ValueError(f"clip name is {self.name!r}, expected a file name without spaces, slashes, leading dot")
        features = np.asarray(self.features, dtype=np.float32)
        if features.ndim != 2 or features.shape[1] != motion.NUM_FEATURES or len(features) == 0:
            found = f"clip {self.name}: features have shape {features.shape}"
            raise ValueError(f"{found}, expected (frames >= 1, {motion.NUM_FEATURES}); encode the joints")
        if not np.isfinite(features).all():
            frame = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
            raise ValueError(f"clip {self.name}: features are not finite in frame {frame}; repair or drop the clip")
        for segment in self.segments:
            if segment.end > len(features):
                raise ValueError(f"clip {self.name}: segment {segment} ends beyond the {len(features)} frames")
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "captions", tuple(self.captions))
        object.__setattr__(self, "segments", tuple(self.segments))

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def joints(self) -> np.ndarray:
        """(T, 22, 3) float32, metres: the decoded features."""
        return motion.decode(self.features).astype(np.float32)

    @classmethod
    def from_joints(
        cls, name: str, joints: np.ndarray, fps: float, *, retarget: bool = True, floor: str = "min", **rest
    ) -> Clip:
        """A clip from recorded joints `(T, 22, 3)` at `fps`; see `motion.process`. `rest` are the other fields."""
        try:
            features = motion.process(joints, fps, retarget=retarget, floor=floor)
        except ValueError as error:
            raise ValueError(f"clip {name}: {error}") from error
        return cls(name, features, **rest)

    def crop(self, start: int, stop: int) -> Clip:
        """Rows `[start, stop)`: features sliced, segments clipped and shifted, captions kept.

        Raises:
            ValueError: the rows are not in the clip, or there are none.
        """
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"clip {self.name}: rows [{start}, {stop}) are not within its {len(self)} rows")
        segments = tuple(
            Segment(s.label, max(s.start, start) - start, min(s.end, stop) - start)
            for s in self.segments
            if s.start < stop and s.end > start
        )
        return replace(self, features=self.features[start:stop], segments=segments)


def read_humanml3d(folder: str | Path, split: str = "train") -> list[Clip]:
    """Clips of one split of a HumanML3D folder, in the order of its list.

    The folder holds `<split>.txt` (one id per line), `new_joint_vecs/<id>.npy` (T, 263) and `texts/<id>.txt` (a line is
    `caption#tokens#from#to`, seconds, nan for 0). Labels and ground truth come from `labels.csv` and `segments.json`
    where `write_humanml3d` has put them. Joints are decoded from the features when they are asked for.

    `split` may also be `official-xsub/train`, `official-xsub/test`, `official-xset/train` or `official-xset/test`: the
    clips of all lists of the folder that stand on that side by their subject or set-up (see `official_split`).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that cannot be read, wrong shape, values that are not finite, a broken or double line.

    Source: HumanML3D. Tokens are not read: the method does not use them.
    """
    folder = _folder(folder)
    official = _official(split)
    if official:
        protocol, test = official
        labels = read_labels(folder / "labels.csv")
        names = list(dict.fromkeys(name for listed in lists(folder).values() for name in listed))
        names = [name for name in names if _side(name, labels.get(name, {}), protocol) is test]
        _some(names, folder, split)
    else:
        names = _lines(folder / f"{split}.txt", "one clip id per line")
        _unique(names, folder / f"{split}.txt")
    return read_clips(folder, names)


def read_clips(folder: str | Path, names: Iterable[str]) -> list[Clip]:
    """Clips of a HumanML3D folder by their names, in the order given; for the rest see `read_humanml3d`."""
    folder = _folder(folder)
    labels, segments = read_labels(folder / "labels.csv"), _read_segments(folder / "segments.json")
    return [_clip(folder, name, segments=segments.get(name, ()), **labels.get(name, {})) for name in names]


def write_humanml3d(
    folder: str | Path, splits: Mapping[str, Sequence[Clip]], normalizer: motion.Normalizer | None = None
) -> None:
    """Write clips as a HumanML3D folder that `read_humanml3d` reads back without loss.

    Adds `labels.csv` (name, action, subject, setup) when a clip has one of the three, `segments.json` when a clip has
    ground truth, `Mean.npy` and `Std.npy` when a normalizer is given. The folder appears complete or not at all.
    Tokens are the lower-cased words with the part of speech `X`: a tagger is not needed by anything here.

    Args:
        folder: must not exist, or be empty.
        splits: name of each list -> its clips; a clip may stand in several lists.

    Raises:
        ValueError: nothing to write, the folder is not empty, a split name is not a file name, or two different clips
            share a name.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; delete it first or choose another folder")
    clips: dict[str, Clip] = {}
    for split, members in splits.items():
        if not re.fullmatch(r"[\w-]+", split):
            raise ValueError(f"split name is {split!r}, expected letters, digits, '_' or '-'")
        _unique([clip.name for clip in members], f"split {split}")
        for clip in members:
            if clips.setdefault(clip.name, clip) is not clip:
                raise ValueError(f"two different clips are named {clip.name} (again in split {split}); rename one")
    if not clips:
        raise ValueError(f"there are no clips to write to {folder}, expected at least one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        for clip in clips.values():
            write_clip(draft, clip)
        listed = {split: [clip.name for clip in members] for split, members in splits.items()}
        write_tables(draft, listed, [(c.name, c.action, c.subject, c.setup) for c in clips.values()])
        if any(clip.segments for clip in clips.values()):
            table = {c.name: [[s.label, s.start, s.end] for s in c.segments] for c in clips.values() if c.segments}
            (draft / "segments.json").write_text(json.dumps(table), encoding="utf-8")
        if normalizer is not None:
            normalizer.save(draft)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_clip(folder: Path, clip: Clip) -> None:
    """Add the features, joints and captions of one clip to a HumanML3D folder; `write_tables` lists them at the end."""
    for part in ("new_joint_vecs", "new_joints", "texts"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    np.save(folder / "new_joint_vecs" / f"{clip.name}.npy", clip.features)
    np.save(folder / "new_joints" / f"{clip.name}.npy", clip.joints)
    text = "".join(f"{c.text}#{_tokens(c.text)}#{c.start!r}#{c.end!r}\n" for c in clip.captions)
    (folder / "texts" / f"{clip.name}.txt").write_text(text, encoding="utf-8", newline="\n")


def write_tables(
    folder: Path, splits: Mapping[str, Sequence[str]], labels: Sequence[tuple[str, str | None, str | None, str | None]]
) -> None:
    """Add the lists of clip names, and `labels.csv` if a clip has an action, a subject or a set-up.

    Args:
        folder: a HumanML3D folder.
        splits: name of each list -> its clip names.
        labels: (name, action, subject, setup) of each clip.
    """
    for split, names in splits.items():
        text = "".join(f"{name}\n" for name in names)
        (folder / f"{split}.txt").write_text(text, encoding="utf-8", newline="\n")
    if any(any(row[1:]) for row in labels):
        with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(_LABEL_COLUMNS)
            writer.writerows(labels)


def read_ntu_vibe(folder: str | Path, split: str = "fewshot/S0000/xsub/train") -> list[Clip]:
    """Clips of one list of an NTU-VIBE folder, in the order of the list.

    The folder holds `splits/<split>.txt` (names `SsssCcccPpppRrrrAaaa`) with 0-based labels beside it in
    `<split>_y.txt` (checked against the names where present), `new_joint_vecs`, `texts`, and the class names in
    `ntu_classes.txt` or `ntu_metadata.json`. `action` is the short class name, `subject` such as "P043", `setup` such
    as "S031".

    `split` may also be `official-xsub/train`, `official-xsub/test`, `official-xset/train` or `official-xset/test`: the
    clips in `new_joint_vecs` that their names put on that side, whatever the released lists say (`official_split`).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a name or label that does not fit the format or the class table, or a file that cannot be read.

    Source: NTU-VIBE as released by the reference implementation. The subject is the performer P; the reference reads
    the set-up S in its place.
    """
    folder = _folder(folder)
    official = _official(split)
    if official:
        protocol, test = official
        listing = folder / "new_joint_vecs"
        names = sorted(path.stem for path in listing.glob("*.npy") if NTU_NAME.fullmatch(path.stem))
        names = [name for name in names if _side(name, {}, protocol) is test]
        _some(names, folder, split)
    else:
        listing = folder / "splits" / f"{split}.txt"
        names = _lines(listing, "one clip name per line")
        _unique(names, listing)
    labels_file = listing.with_name(f"{listing.stem}_y.txt")
    labels = _lines(labels_file, "one label per line") if labels_file.is_file() else [None] * len(names)
    if len(labels) != len(names):
        found = f"{labels_file} has {len(labels)} labels"
        raise ValueError(f"{found}, expected one per name of {listing.name} ({len(names)}); copy both again")
    classes = ntu_classes(folder)
    clips = []
    for row, (name, label) in enumerate(zip(names, labels, strict=True), start=1):
        match = NTU_NAME.fullmatch(name)
        if not match:
            raise ValueError(f"{listing}, line {row}: name is {name!r}, expected the form S001C001P001R001A001")
        action = int(match[5]) - 1
        if not 0 <= action < len(classes):
            expected = f"A001 to A{len(classes):03d} of the class table"
            raise ValueError(f"{listing}, line {row}: {name} has class A{match[5]}, expected {expected}")
        if label is not None and label != str(action):
            raise ValueError(f"{labels_file}, line {row}: label is {label!r}, expected {action} (0-based) for {name}")
        clips.append(_clip(folder, name, action=classes[action], subject=f"P{match[3]}", setup=f"S{match[1]}"))
    return clips


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file of a clip: `part` is "motion", "frames", "captions" or "label"."""

    clip: str
    part: str
    said: str
    frames: tuple[int, int] | None = None


def lists(folder: str | Path) -> dict[str, list[str]]:
    """All lists of clip names of a folder: `<split>.txt` in it, or below `splits` where there is such a folder.

    Returns:
        Name of the list, such as "train" or "fewshot/S0000/xsub/val" -> names as listed. Label lists (`_y.txt`) and
        text files that hold anything but one word a line are left out.

    Raises:
        FileNotFoundError, ValueError: no folder, or no list in it.
    """
    folder = _folder(folder)
    below = folder / "splits"
    root, paths = (below, below.rglob("*.txt")) if below.is_dir() else (folder, folder.glob("*.txt"))
    found = {}
    for path in sorted(paths):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        names = [line.strip() for line in lines if line.strip()]
        if names and not path.stem.endswith("_y") and all(re.fullmatch(r"[^\s/\\.][^\s/\\]*", n) for n in names):
            found[path.relative_to(root).with_suffix("").as_posix()] = names
    if not found:
        raise ValueError(f"{root} has no list of clips, expected files such as train.txt with one clip name per line")
    return found


def survey(folder: str | Path, names: Iterable[str]) -> Iterator[tuple[Clip | None, list[Problem]]]:
    """Clips of a HumanML3D or NTU-VIBE folder one by one, for whoever wants to hear of every fault and not only one.

    The readers stop at the first fault; this goes on. What cannot be read is a `Problem`: a clip without usable motion
    comes as None, a broken caption line is left out of its clip.

    Args:
        folder: as for `read_humanml3d` or `read_ntu_vibe`.
        names: of clips; labels come from `labels.csv`, or from names `SsssCcccPpppRrrrAaaa` and the table of classes.

    Raises:
        ValueError: labels or classes of the folder that cannot be read at all.
    """
    folder = _folder(folder)
    labels, segments = read_labels(folder / "labels.csv"), _read_segments(folder / "segments.json")
    named = any((folder / table).is_file() for table in ("ntu_classes.txt", "ntu_metadata.json"))
    classes = ntu_classes(folder) if named else []
    for name in names:
        problems: list[Problem] = []
        fields = labels.get(name, {})
        sample = sample_of(name)
        if sample and classes and not fields:
            number = int(sample["action"][1:]) - 1
            fields = {"subject": sample["subject"], "setup": sample["setup"]}
            if 0 <= number < len(classes):
                fields["action"] = classes[number]
            else:
                said = f"class {sample['action']} is not among the {len(classes)} of the class table"
                problems.append(Problem(name, "label", said))
        features, bad = _motion(folder, name)
        problems += bad
        if features is None and bad[0].part == "motion":
            yield None, problems
            continue
        captions = []
        path = folder / "texts" / f"{name}.txt"
        if path.is_file():
            for row, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
                try:
                    captions += [_caption(line)] if line.strip() else []
                except ValueError as error:
                    problems.append(Problem(name, "captions", f"texts/{path.name}, line {row}: {error}"))
        else:
            problems.append(Problem(name, "captions", f"texts/{path.name} is missing"))
        known = tuple(s for s in segments.get(name, ()) if features is not None and s.end <= len(features))
        yield None if features is None else Clip(name, features, tuple(captions), segments=known, **fields), problems


def _motion(folder, name):
    """Features of a clip or None, and what is wrong with them."""
    where = f"new_joint_vecs/{name}.npy"
    try:
        features = np.load(folder / where, allow_pickle=False)
        if features.ndim != 2 or features.shape[1] != motion.NUM_FEATURES or not len(features):
            raise ValueError(f"shape {features.shape}, expected (frames >= 1, {motion.NUM_FEATURES})")
        finite = np.isfinite(features.astype(np.float32)).all(axis=1)
    except FileNotFoundError:
        return None, [Problem(name, "motion", f"{where} is missing")]
    except (ValueError, TypeError, EOFError, OSError, MemoryError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return None, [Problem(name, "motion", f"{where} cannot be read ({said})")]
    if finite.all():
        return features, []
    rows = np.flatnonzero(~finite)
    said = f"{len(rows)} of {len(finite)} frames are not finite; no other check of this clip"
    return None, [Problem(name, "frames", said, (int(rows[0]), int(rows[-1]) + 1))]


def entries(clips: Iterable[Clip], min_frames: int = 40, max_frames: int = 200) -> list[Clip]:
    """What a text-to-motion model trains on: whole clips and the captioned parts of clips, of suitable length.

    A clip takes part if `min_frames <= T < max_frames`. A caption with times makes a new entry of its rows, named by a
    letter A to W before the clip's name, if that part is of suitable length too; its caption is then about the whole
    entry. The clip itself remains with its other captions if it has any. Features of parts are sliced (`motion.recut`
    recomputes them).

    Returns:
        Entries in the order of the clips, the parts of a clip before the whole.

    Raises:
        ValueError: a clip with more than 23 captioned parts.

    Source: HumanML3D loader of the reference implementation; there the letter is drawn at random.
    """
    out = []
    for clip in clips:
        if not min_frames <= len(clip) < max_frames:
            continue
        parts = 0
        for caption in clip.captions:
            # int() as in the format's own loader: a caption may end a little after the last row
            start, stop = int(caption.start * motion.FPS), min(int(caption.end * motion.FPS), len(clip))
            if caption.whole or not min_frames <= stop - start < max_frames:
                continue
            if parts == 23:
                raise ValueError(f"clip {clip.name} has more than 23 captioned parts, expected one per letter A to W")
            name = f"{chr(ord('A') + parts)}_{clip.name}"
            out.append(replace(clip.crop(start, stop), name=name, captions=(Caption(caption.text),)))
            parts += 1
        whole = tuple(caption for caption in clip.captions if caption.whole)
        if whole:
            out.append(replace(clip, captions=whole))
    return out


def crop_to_unit(length: int, rng: np.random.Generator, unit: int = 4) -> tuple[int, int]:
    """Random window whose length is a multiple of `unit`: `(start, length)` in rows.

    With probability 2/3 the longest multiple that fits, with 1/3 one unit less, at a uniform start. A clip too short
    for one unit less keeps the longest multiple; one shorter than a unit is kept whole.

    Raises:
        ValueError: no rows.

    Source: HumanML3D loader of the reference implementation, which fails on clips shorter than two units.
    """
    if length < 1 or unit < 1:
        raise ValueError(f"length is {length} and unit {unit}, expected both >= 1")
    shorter = rng.random() < 1 / 3
    units = length // unit
    if shorter and units >= 2:
        units -= 1
    size = units * unit or length
    return int(rng.integers(length - size + 1)), size


def official_split(clips: Sequence[Clip], protocol: str = "xsub") -> tuple[list[Clip], list[Clip]]:
    """Training and test side of NTU RGB+D 120: "xsub" by performer, "xset" by set-up (even for training).

    Raises:
        ValueError: unknown protocol, or a clip whose subject ("P001") or set-up ("S001") is not of the expected form.

    Source: Liu et al., NTU RGB+D 120 (TPAMI 2020). The lists released with the reference implementation are by set-up
    for both protocols, so 23 performers occur on both sides there.
    """
    if protocol not in OFFICIAL.values():
        raise ValueError(f"protocol is {protocol!r}, expected 'xsub' or 'xset'")
    sides: tuple[list[Clip], list[Clip]] = ([], [])
    for clip in clips:
        sides[_side(clip.name, {"subject": clip.subject, "setup": clip.setup}, protocol)].append(clip)
    return sides


def sample_of(name: str) -> dict[str, str] | None:
    """What an NTU RGB+D sample name says: setup ("S001"), camera, subject ("P001"), replication, action ("A001").

    None where the name is not of the form `SsssCcccPpppRrrrAaaa`; the `M` of a mirrored copy is passed over.
    """
    match = NTU_NAME.fullmatch(name.removeprefix("M"))
    fields = ("setup", "camera", "subject", "replication", "action")
    return {k: f"{letter}{v}" for k, letter, v in zip(fields, "SCPRA", match.groups(), strict=True)} if match else None


def official_side(name: str, protocol: str, labels: Mapping[str, str | None] | None = None) -> str:
    """Side of an NTU RGB+D sample: "train" or "test".

    Args:
        name: of the sample, of the form `SsssCcccPpppRrrrAaaa` unless there are labels.
        protocol: "xsub" or "xset".
        labels: `subject` and `setup`, which count before the name.

    Raises:
        ValueError: unknown protocol, or neither labels nor name say the side.

    Source: as `official_split`.
    """
    if protocol not in OFFICIAL.values():
        raise ValueError(f"protocol is {protocol!r}, expected 'xsub' or 'xset'")
    if sample_of(name) is None and not labels:
        raise ValueError(f"name is {name!r}, expected the form S001C001P001R001A001")
    return ("train", "test")[_side(name, labels or {}, protocol)]


def few_shot(
    clips: Iterable[Clip], shots: int, rng: np.random.Generator, classes: Sequence[str] | None = None
) -> list[Clip]:
    """`shots` clips of each class, without replacement.

    The clips of a class are sorted by name and drawn by a generator of their own, made from one number of `rng` and the
    class name: neither the order of the pool nor the other classes change a draw, and the first k clips of a class in a
    larger draw with an equally seeded `rng` are its k-shot set.

    Args:
        clips: the pool; clips without an action are left out.
        shots: clips per class, >= 1.
        classes: class names, in the order wanted; by default all of the pool, sorted.

    Returns:
        Clips class by class, in the order drawn.

    Raises:
        ValueError: shots < 1, a class with too few clips, or two clips with one name.

    Source: few-shot protocol of the paper; the reference draws from one running generator in directory order.
    """
    if shots < 1:
        raise ValueError(f"shots are {shots}, expected at least 1 per class")
    pool: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.action is not None:
            pool.setdefault(clip.action, []).append(clip)
    root = int(rng.integers(2**63))
    out = []
    for label in sorted(pool) if classes is None else classes:
        members = sorted(pool.get(label, []), key=lambda clip: clip.name)
        _unique([clip.name for clip in members], f"class {label}")
        if len(members) < shots:
            found = f"class {label!r} has {len(members)} clip(s) in the pool"
            raise ValueError(f"{found}, expected at least {shots}; ask for fewer shots")
        order = np.random.default_rng([root, zlib.crc32(label.encode())]).permutation(len(members))
        out.extend(members[i] for i in order[:shots])
    return out


def subject_disjoint(train: Iterable[Clip], test: Iterable[Clip]) -> None:
    """Check that nobody moves on both sides of a split.

    Raises:
        ValueError: shared subjects, which the message names, or a clip whose subject is unknown.
    """
    sides = []
    for clips in (train, test):
        clips = list(clips)
        unknown = next((clip.name for clip in clips if clip.subject is None), None)
        if unknown is not None:
            raise ValueError(f"clip {unknown} has no subject, expected one for a split by subject")
        sides.append({clip.subject for clip in clips})
    shared = sorted(sides[0] & sides[1])
    if shared:
        raise ValueError(
            f"subjects {', '.join(shared)} are in training and test, expected no overlap; split by subject"
        )


@dataclass
class Batch:
    """Clips padded to the longest of them.

    Args:
        x: (B, T, 263) float32, normalised, zero on padding.
        lengths: (B,) int64, real frames.
        mask: (B, T) bool, True on real frames.
        action: (B,) int64 class index, -1 for none.
        captions: B sentences.
    """

    x: Tensor
    lengths: Tensor
    mask: Tensor
    action: Tensor
    captions: list[str]

    def to(self, device: str | torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        tensors = (t.to(device) for t in (self.x, self.lengths, self.mask, self.action))
        return Batch(*tensors, self.captions)


def collate(
    features: Sequence[np.ndarray], captions: Sequence[str], actions: Sequence[int | None] | None = None
) -> Batch:
    """Batch of normalised features, padded with zeros to the longest clip of the batch and no further.

    Args:
        features: B arrays (T_i, 263), normalised.
        captions: B sentences.
        actions: B class indices; None, for one clip or for all, becomes -1.

    Raises:
        ValueError: no clips, unequal numbers, or features of the wrong shape.

    Source: reference implementation, which pads to 196 frames; padded frames are masked everywhere, so the shorter
    padding changes no result.
    """
    actions = [None] * len(features) if actions is None else actions
    if len(features) == 0 or not len(features) == len(captions) == len(actions):
        found = f"{len(features)} features, {len(captions)} captions and {len(actions)} actions"
        raise ValueError(f"batch has {found}, expected equal numbers, at least 1")
    for row, item in enumerate(features):
        if item.ndim != 2 or item.shape[1] != motion.NUM_FEATURES or len(item) == 0:
            expected = f"(frames >= 1, {motion.NUM_FEATURES})"
            raise ValueError(f"row {row} of the batch has shape {tuple(item.shape)}, expected {expected}")
    lengths = torch.tensor([len(item) for item in features])
    x = torch.zeros(len(features), int(lengths.max()), motion.NUM_FEATURES)
    for row, item in enumerate(features):
        x[row, : len(item)] = torch.as_tensor(item, dtype=torch.float32)
    mask = torch.arange(x.shape[1]) < lengths[:, None]  # (B, T)
    action = torch.tensor([-1 if a is None else int(a) for a in actions])
    return Batch(x, lengths, mask, action, list(captions))


def _official(split):
    """Protocol, and whether the test side is wanted, of a split such as `official-xsub/test`; None for other names."""
    name, _, side = split.partition("/")
    if name not in OFFICIAL:
        return None
    if side not in ("train", "test"):
        raise ValueError(f"split is {split!r}, expected {name}/train or {name}/test")
    return OFFICIAL[name], side == "test"


def _side(name, labels, protocol):
    """True for the test side of a protocol: by the labels where they say it, else by the name."""
    field, letter = ("subject", "P") if protocol == "xsub" else ("setup", "S")
    value = labels.get(field) or (sample_of(name) or {}).get(field)
    if not value or not re.fullmatch(letter + r"\d{3}", value):
        raise ValueError(f"clip {name}: {field} is {value!r}, expected the form {letter}001 for {protocol}")
    number = int(value[1:])
    return number not in XSUB_TRAIN if protocol == "xsub" else number % 2 == 1


def _some(names, folder, split):
    if not names:
        raise ValueError(f"{folder} has no clip on the side {split}; take a released list, or add clips")


def _folder(path):
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder, expected the root of the data set; check the path")
    return path


def _lines(path, expected):
    """Stripped non-empty lines of a file; at least one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, expected {expected}; check the path and the split name")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}), expected {expected}; save it as UTF-8") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path} is empty, expected {expected}")
    return lines


def _unique(names, where):
    double = next((name for name, count in Counter(names).items() if count > 1), None)
    if double is not None:
        raise ValueError(f"{where}: {double} is listed twice, expected each clip once; remove one")


def _clip(folder, name, **rest):
    path = folder / "new_joint_vecs" / f"{name}.npy"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but the list names it; add the file or remove the line")
    captions = read_captions(folder / "texts" / f"{name}.txt")
    try:
        features = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read ({reason}), expected a .npy array; copy it again") from error
    try:
        return Clip(name, features, captions, **rest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_captions(path: Path) -> tuple[Caption, ...]:
    """Sentences of one file of a HumanML3D folder: lines `caption#tokens#from#to`, seconds, nan for 0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of another form, or a file that is not UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, expected lines caption#tokens#from#to; empty means no captions")
    captions = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            captions.append(_caption(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {row}: {error}; mend the line") from error
    return tuple(captions)


def _caption(line):
    fields = line.strip().split("#")
    try:
        if len(fields) != 4:
            raise ValueError(f"found {len(fields)} fields")
        start, end = (0.0 if np.isnan(float(value)) else float(value) for value in fields[2:])
        return Caption(fields[0], start, end)
    except ValueError as error:
        raise ValueError(f"{error}; expected caption#tokens#from#to with times in seconds") from error


def read_labels(path: Path) -> dict[str, dict[str, str | None]]:
    """The table `labels.csv` of `write_humanml3d`: name -> fields of `Clip`; empty where there is no such file.

    Raises:
        ValueError: other columns, or a row of another length.
    """
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not UTF-8 text with commas ({error}); save it as CSV, UTF-8") from error
    if not rows or rows[0] != _LABEL_COLUMNS:
        raise ValueError(f"{path}, line 1: columns are {rows[0] if rows else []}, expected {_LABEL_COLUMNS}")
    table = {}
    for row, values in enumerate(rows[1:], start=2):
        if len(values) != len(_LABEL_COLUMNS):
            raise ValueError(
                f"{path}, line {row}: found {len(values)} values, expected {_LABEL_COLUMNS}; mend the line"
            )
        table[values[0]] = {key: value or None for key, value in zip(_LABEL_COLUMNS[1:], values[1:], strict=True)}
    return table


def _read_segments(path):
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {name: tuple(Segment(*row) for row in rows) for name, rows in table.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}, expected name -> list of [label, start, end]; write it again") from error


def _tokens(text):
    return " ".join(f"{word}/X" for word in re.findall(r"[^\W\d_]+", text.lower().replace("-", "")))


def ntu_classes(folder: Path) -> list[str]:
    """Short class names of an NTU-VIBE folder; position is the 0-based label.

    Raises:
        FileNotFoundError: the folder has no table of classes.
        ValueError: a table that cannot be read.
    """
    if (folder / "ntu_classes.txt").is_file():
        return _lines(folder / "ntu_classes.txt", "one class name per line")
    path = folder / "ntu_metadata.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has neither ntu_classes.txt nor ntu_metadata.json, expected the class names")
    try:
        actions = json.loads(path.read_text(encoding="utf-8"))["actions"]
        names = [entry["action"] for entry in sorted(actions, key=lambda entry: entry["tag"])]
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError("an action that is no text")
        return names
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"  # its repr may hold the whole file
        raise ValueError(f"{path}: {found}, expected actions with 'action' and 'tag'; copy it again") from error
