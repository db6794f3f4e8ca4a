"""What is wrong with a collection of motions: checks with named thresholds, and a report.

Clips are looked at one by one, so that a collection need not fit into memory; only a few numbers per frame are kept,
for the search for duplicates. A check that finds something names the clip, the frames, the measured value and the
threshold that it crossed. Whether a finding is an error or a property of the data (a body estimated from video trembles
throughout) is for the reader to say: every threshold can be changed.

Source: ours; the defects are those that users of skeleton data report. The defaults are the largest values of clean
data with a margin; `CHECKS` says which data, and what they had.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import signal
from scipy.ndimage import minimum_filter1d
from scipy.spatial import cKDTree

from kinemic import metrics
from kinemic.artefacts import environment
from kinemic.data import OFFICIAL, Caption, Clip, lists, official_side, read_labels, sample_of, survey
from kinemic.motion import FPS, JOINT_NAMES, MIRROR_PAIRS, NUM_JOINTS

__all__ = ["CHECKS", "CLEAN", "Check", "Finding", "Report", "audit", "audit_folder"]


@dataclass(frozen=True)
class Check:
    """What is measured, in which unit, and the value that may not be exceeded; `origin` says where that comes from."""

    threshold: float
    unit: str
    what: str
    origin: str


CLEAN = "source clips of the embedded world, 3,076 clips of Bandai-Namco, two of HumanML3D"

CHECKS: dict[str, Check] = {
    # files and captions
    "file": Check(0, "files", "motion that is listed but missing or unreadable", "none is expected"),
    "missing": Check(0, "frames", "frames without numbers, or whose joints fall into one spot", "none is expected"),
    "caption": Check(0, "faults", "clips without caption; broken lines, times outside of the clip", "none is expected"),
    "label": Check(0, "faults", "a label that is missing or not in the table of classes", "none is expected"),
    # motion
    "frozen": Check(0.3, "s", "body or limb that does not move by 0.01 mm, while it should", "clean data had 0.1"),
    "jump": Check(0.8, "m", "step of a joint beyond those around it", "clean data had 0.62, recordings 0.32"),
    "root-jump": Check(0.12, "m", "step of the pelvis beyond those around it", "clean data had 0.08, recordings 0.04"),
    "swap": Check(1.5, "times", "nearness of two poses with left and right exchanged", "clean data had 0.8, CMU 1.2"),
    "facing": Check(0.25, "of frames", "upright frames with both feet against the heading", "clean data had 0"),
    "bones": Check(0.01, "of length", "change of a bone's length", "clean data had 0.0001"),
    "jitter": Check(0.2, "of energy", "velocity energy above 5 Hz", "clean data had 0.17, recordings 0.09"),
    "skating": Check(0.15, "m/s", "slide of the supporting foot for 0.4 s", "clean data had 0.1, but for two clips"),
    # the collection
    "duplicate": Check(0.95, "of overlap", "frames that agree within 2 cm in all joints", "two takes had 0.92"),
    "length": Check(4, "times", "length against the median of the class, or its inverse", "NTU-VIBE had 1.9"),
    "speed": Check(5, "times", "joint speed against the median of the class, or its inverse", "NTU-VIBE had 1.9"),
    "class": Check(0, "captions", "a caption that belongs to another class", "none is expected"),
    "side": Check(2, "times", "speed of the other limb against that named by a caption", "true captions had 1.5"),
    # splits
    "shared": Check(0, "of clips", "clips, or their mirrored copies, on two sides of a split", "none is expected"),
    "subjects": Check(0, "of clips", "clips whose subject is on the other side of a split too", "none is expected"),
    "same-list": Check(0, "lists", "splits by different protocols that are one list", "none is expected"),
    "protocol": Check(0, "of clips", "clips that the official protocol puts on the other side", "none is expected"),
}
"""Name of each check -> what it measures. A finding is a value above the threshold; clean data are `CLEAN`."""

_ENDS = [7, 8, 18, 19, 20, 21]  # ankles, elbows, wrists: what tells two motions apart
_FEET = [7, 8, 10, 11]
_PARTS = {"left leg": (1, (4, 7)), "right leg": (2, (5, 8)), "left arm": (16, (18, 20)), "right arm": (17, (19, 21))}
_SIDED = {"legs": [1, 2, 4, 5, 7, 8, 10, 11], "arms": [13, 14, 16, 17, 18, 19, 20, 21]}
_OTHER = np.arange(NUM_JOINTS)
for _left, _right in MIRROR_PAIRS:
    _OTHER[[_left, _right]] = _right, _left

_STILL = 1e-5  # metres per frame: less than the noise of any recording, more than rounding
_EXTENT = 0.3  # metres: a person who lies curled up is larger
_UNIONS = {"all", "train_val", "trainval", "incremental"}  # lists made of other lists
_FIRST = {"train": 0, "pool": 0}  # sides that come first
_SPAN = (0, 6, 12)  # frames of a pose window in the search for duplicates
_STRIDE = 10  # every how many frames a window is looked up
_NEAR, _AGREE, _OVERLAP = 0.02, 0.02, 20  # metres, metres, frames
_LIMB = re.compile(
    r"\b(on (?:the |his |her |their )?)?(left|right)( (?:and|or) (?:left|right))? "
    r"(hand|arm|fist|wrist|elbow|foot|leg|ankle)s?\b"
)
_ARM = {"hand", "arm", "fist", "wrist", "elbow"}
_COLUMNS = (
    "frames", "joint speed", "jerk", "jitter", "skating", "travel", "jump", "root-jump", "swap", "bones", "frozen",
)  # fmt: skip
_FREQUENCIES = np.linspace(0, FPS / 2, 41)


@dataclass(frozen=True)
class Finding:
    """One crossed threshold: `value` of `check` in `frames` [start, stop) of `clip` (or a list), maybe with `other`."""

    check: str
    clip: str
    value: float
    said: str
    frames: tuple[int, int] | None = None
    other: str | None = None

    def __str__(self) -> str:
        where = f", frames {self.frames[0]} to {self.frames[1] - 1}" if self.frames else ""
        return f"{self.clip}{where}: {self.said}"


@dataclass(frozen=True)
class Report:
    """What `audit` found.

    Attributes:
        findings: in the order of `CHECKS`, then of the clips.
        clips: one row per clip: class, subject, frames and the measured values; NaN where a value is not defined.
        splits: one row per pair of lists that should be disjoint.
        spectrum: (41,) mean share of velocity energy per band from 0 to 10 Hz, over clips; see `frequencies`.
        thresholds: name of each check -> value used.
    """

    findings: tuple[Finding, ...]
    clips: pd.DataFrame
    splits: pd.DataFrame
    spectrum: np.ndarray
    thresholds: dict[str, float]
    frequencies: np.ndarray = field(default_factory=lambda: _FREQUENCIES)

    @property
    def clean(self) -> bool:
        """True where no threshold is crossed."""
        return not self.findings

    def table(self) -> pd.DataFrame:
        """One row per check: findings, clips or lists concerned, worst value, threshold."""
        rows = {}
        for name, check in CHECKS.items():
            found = [f for f in self.findings if f.check == name]
            worst = max((f.value for f in found), default=np.nan)
            rows[name] = {"findings": len(found), "clips": len({f.clip for f in found}), "worst": worst,
                          "threshold": self.thresholds[name], "unit": check.unit}  # fmt: skip
        return pd.DataFrame(rows).T.infer_objects()

    def classes(self) -> pd.DataFrame:
        """One row per class (clips without one together): clips, subjects, median and range of seconds and speed."""
        names = self.clips["class"].fillna("(no class)")
        rows = {}
        for name, group in self.clips.groupby(names, sort=True):
            seconds, speed = group["frames"] / FPS, group["joint speed"]
            rows[name] = {
                "clips": len(group), "subjects": group["subject"].nunique(), "seconds": seconds.median(),
                "shortest": seconds.min(), "longest": seconds.max(), "joint speed": speed.median(),
                "slowest": speed.min(), "fastest": speed.max(),
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index")

    def record(self) -> dict[str, Any]:
        """The whole report as plain data for JSON."""
        findings = [
            {"check": f.check, "clip": f.clip, "frames": f.frames and list(f.frames), "other": f.other,
             "value": round(float(f.value), 6), "said": f.said} for f in self.findings
        ]  # fmt: skip
        counts = Counter(f.check for f in self.findings)
        checks = {
            name: {"threshold": limit if np.isfinite(limit := self.thresholds[name]) else None, "unit": check.unit,
                   "what": check.what, "findings": counts[name]} for name, check in CHECKS.items()
        }  # fmt: skip
        plain = {"classes": _plain(self.classes()), "splits": _plain(self.splits), "clips": _plain(self.clips)}
        spectrum = pd.DataFrame({"frequency (Hz)": self.frequencies, "share of velocity energy": self.spectrum})
        plain["spectrum"] = _plain(spectrum)
        return {"clean": self.clean, "checks": checks, "findings": findings, **plain, **environment()}

    def figures(self) -> dict[str, Any]:
        """Figures by name: lengths and speeds per class, and the spectrum of the motion."""
        from kinemic import viz  # matplotlib is slow to load, and a report without pictures does not need it

        names = self.clips["class"].fillna("(no class)")
        seconds = pd.DataFrame({"class": names, "length (s)": self.clips["frames"] / FPS})
        speed = pd.DataFrame({"class": names, "joint speed (m/s)": self.clips["joint speed"]})
        spectrum = {"all clips": (self.frequencies, self.spectrum)}
        return {
            "lengths": viz.distributions(seconds, "length (s)", "class"),
            "speeds": viz.distributions(speed, "joint speed (m/s)", "class"),
            "spectrum": viz.curves(spectrum, xlabel="frequency (Hz)", ylabel="share of velocity energy", log=True),
        }


def audit(
    clips: Iterable[Clip],
    splits: Mapping[str, Sequence[str]] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Report:
    """Check a collection of clips.

    Args:
        clips: at 20 fps; read once, one after the other. A clip named `M` + the name of another is its mirrored copy.
        splits: name of each list -> names of clips. Lists that share the part of their name before the last `/` are
            sides of one split and should be disjoint, except `all`, `train_val` and `incremental`, which are made of
            others. A part `xsub` or `xset` promises a protocol of NTU RGB+D. Clips of a list need not be in `clips`:
            names of the form `SsssCcccPpppRrrrAaaa` say subject and set-up themselves.
        thresholds: name of a check -> value instead of the default in `CHECKS`; infinity turns a check off.

    Raises:
        ValueError: an unknown check, a threshold that is not a number >= 0, or two clips with one name.
    """
    return _audit(((clip, ()) for clip in clips), splits or {}, _thresholds(thresholds))


def audit_folder(
    folder: str | Path, splits: Sequence[str] | None = None, thresholds: Mapping[str, float] | None = None
) -> Report:
    """Check a HumanML3D or NTU-VIBE folder, whatever is wrong with its files.

    Args:
        folder: as for `data.read_humanml3d` or `data.read_ntu_vibe`.
        splits: names of lists, or `official-xsub`, `official-xset` (both sides, of all clips listed); default all
            lists.
        thresholds: see `audit`.

    Raises:
        FileNotFoundError, ValueError: no such folder or list, unreadable labels, unknown thresholds.
    """
    limits = _thresholds(thresholds)
    found = lists(folder)
    everything = list(dict.fromkeys(name for names in found.values() for name in names))
    labels = read_labels(Path(folder) / "labels.csv")
    chosen: dict[str, list[str]] = {}
    for name in found if splits is None else splits:
        if name in OFFICIAL:
            for side in ("train", "test"):
                sided = (n for n in everything if official_side(n, OFFICIAL[name], labels.get(n)) == side)
                chosen[f"{name}/{side}"] = list(sided)
        elif name in found:
            chosen[name] = found[name]
        else:
            known = ", ".join([*found, *OFFICIAL])
            raise ValueError(f"{folder} has no list {name!r}, expected one of {known}")
    names = list(dict.fromkeys(name for listed in chosen.values() for name in listed))
    return _audit(((clip, problems) for clip, problems in survey(folder, names)), chosen, limits)


def _thresholds(given):
    limits = {name: float(check.threshold) for name, check in CHECKS.items()}
    for name, value in (given or {}).items():
        if name not in limits:
            raise ValueError(f"threshold {name!r} is unknown, expected one of {', '.join(limits)}")
        if not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"threshold {name!r} is {value!r}, expected a number >= 0 or inf")
        limits[name] = float(value)
    return limits


def _audit(stream, splits, limits) -> Report:
    findings: list[Finding] = []

    def find(check, clip, value, said, frames=None, other=None):
        if value > limits[check]:
            frames = frames and (int(frames[0]), int(frames[1]))
            findings.append(Finding(check, clip, float(value), said, frames, other))

    rows: dict[str, dict[str, Any]] = {}
    said: dict[str, list[str]] = {}
    spectra, copies = [], _Copies()
    search = limits["duplicate"] < 1
    gone: list[str] = []
    for clip, problems in stream:
        for problem in problems:
            if problem.part == "motion" and problem.said.endswith("is missing"):
                gone.append(problem.clip)
                continue
            check = {"motion": "file", "frames": "missing", "captions": "caption", "label": "label"}[problem.part]
            span = problem.frames
            find(check, problem.clip, span[1] - span[0] if span else 1, problem.said, span)
        if clip is None:
            continue
        if clip.name in rows:
            raise ValueError(f"clip {clip.name} comes twice, expected each name once; rename one")
        values, spectrum, good = _look(clip, partial(find, clip=clip.name), limits)
        rows[clip.name] = {"class": clip.action, "subject": clip.subject, "setup": clip.setup, **values}
        spectra += [] if spectrum is None else [spectrum]
        said[clip.name] = [caption.text for caption in clip.captions]
        if search:
            copies.add(clip.name, clip.joints, good)
        _captions(clip, any(p.part == "captions" for p in problems), partial(find, clip=clip.name))
    if gone:  # one line for what may be thousands: split lists travel without their clips
        more = f", nor of {len(gone) - 1} more" if len(gone) > 1 else ""
        find("file", gone[0], len(gone), f"listed, but there is no motion file of it{more}")
    columns = ["class", "subject", "setup", *_COLUMNS]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    _classes(table, said, find)
    where: dict[str, list[str]] = {}
    for name, names in splits.items():
        for clip in names if name.rpartition("/")[2] not in _UNIONS else ():
            where.setdefault(clip, []).append(name)
    for a, b, start, stop, shift, share in copies.pairs():
        place = [", ".join(where.get(name, [])) for name in (a, b)]
        across = f"; in {place[0]} and {place[1]}" if place[0] != place[1] and all(place) else ""
        frames = f"frames {start + shift:.0f} to {stop - 1 + shift:.0f} of {b}"
        find("duplicate", a, share, f"the same motion as {frames}{across}", (start, stop), b)
    sides = _splits(table, splits, find)
    order = {name: i for i, name in enumerate(CHECKS)}
    findings.sort(key=lambda f: order[f.check])
    spectrum = np.mean(spectra, axis=0) if spectra else np.full(len(_FREQUENCIES), np.nan)
    return Report(tuple(findings), table, sides, spectrum, limits)


# One clip -------------------------------------------------------------------------------------------------------------


def _runs(mask):
    """Half-open intervals in which a mask is true."""
    edges = np.diff(np.r_[0, np.asarray(mask, dtype=int), 0])
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def _look(clip, find, limits):
    """Measures of one clip, the spectrum of its velocity, and which steps from frame to frame are sound."""
    joints = clip.joints.astype(np.float64)
    local = joints - joints[:, :1]
    frames = len(joints)
    values: dict[str, Any] = dict.fromkeys(_COLUMNS, np.nan) | {"frames": frames}
    fallen = np.ptp(joints, axis=1).max(axis=1) < _EXTENT
    for start, stop in _runs(fallen):
        find("missing", value=stop - start, said="the joints fall into one spot", frames=(start, stop))
    broken = fallen[1:] | fallen[:-1]  # steps from frame to frame
    if frames > 1:
        # what explains a break comes first: legs half a cycle later look exchanged, exchanged arms look like a jump
        beyond = _excess(joints)
        broken |= _jumps(beyond[:, :1], "root-jump", "the pelvis jumps", values, find, limits, broken)
        broken |= _swaps(local, values, find, limits, broken)
        broken |= _jumps(beyond, "jump", "a joint jumps", values, find, limits, broken)
        _frozen(joints, values, find, fallen)
    _facing(joints, find, ~fallen)
    sound = _runs(~broken)
    _bones([joints[start : stop + 1] for start, stop in sound], values, find)
    start, stop = max(sound, key=lambda run: run[1] - run[0], default=(0, 0))
    if stop - start < 3:
        return values, None, ~broken
    joints, local = joints[start : stop + 1], local[start : stop + 1]
    values["joint speed"] = metrics.joint_speed(local).mean()
    values["jerk"] = metrics.jerk(joints).mean()
    path = np.linalg.norm(np.diff(joints[:, 0, [0, 2]], axis=0), axis=1)
    values["travel"] = path.mean() * FPS
    if stop - start >= 12:  # a shorter one has too few frequencies
        values["jitter"] = share = metrics.high_frequency_share(local)
        found = f"{share:.2f} of the velocity's energy is above 5 Hz"
        find("jitter", value=share, said=found, frames=(start, stop + 1))
        _skating(joints, start, values, find, limits)
    velocity = np.diff(local, axis=0)
    frequency, power = signal.periodogram(velocity, FPS, axis=0, detrend=False)
    power = power.sum(axis=(1, 2))
    density = np.interp(_FREQUENCIES, frequency, power)
    return values, density / density.sum() if density.sum() > 0 else None, ~broken


def _swaps(local, values, find, limits, broken):
    """Steps after which a limb's joints lie nearer with left and right exchanged; returns them as a mask."""
    length, mask, worst = len(local), np.zeros(len(local) - 1, dtype=bool), 0.0
    for part, members in _SIDED.items():
        same = np.linalg.norm(np.diff(local[:, members], axis=0), axis=-1).mean(axis=1)
        crossed = np.linalg.norm(local[1:, _OTHER][:, members] - local[:-1, members], axis=-1).mean(axis=1)
        nearer = np.where(broken, 0, same / np.maximum(crossed, 1e-3))
        worst = max(worst, float(nearer.max()))
        steps = np.flatnonzero(nearer > limits["swap"])
        mask[steps] = True
        # exchanged from one such step to the next; a last one without partner reaches to the nearer end of the clip
        bounds = (steps + 1).tolist()
        if len(bounds) % 2:
            bounds = [*bounds, length] if length - bounds[-1] <= bounds[0] else [0, *bounds]
        for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
            edges = [k - 1 for k in (start, stop) if 0 < k < length]
            find("swap", value=nearer[edges].max(), said=f"left and right {part} are exchanged", frames=(start, stop))
    values["swap"] = worst
    return mask


def _frozen(joints, values, find, fallen):
    """Stretches in which the body, or a limb seen from its root while the body moves, keeps its place exactly."""
    step = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
    body = step.max(axis=1) < _STILL
    body &= ~(fallen[1:] | fallen[:-1])
    held = {"the body": body}
    for part, (root, chain) in _PARTS.items():
        bone = joints[:, chain] - joints[:, [root]]
        still = np.linalg.norm(np.diff(bone, axis=0), axis=-1).max(axis=1) < _STILL
        held[f"the {part}"] = still & ~body & ~(fallen[1:] | fallen[:-1])
    values["frozen"] = max((b - a for mask in held.values() for a, b in _runs(mask)), default=0) / FPS
    for part, mask in held.items():
        for start, stop in _runs(mask):
            seconds = (stop - start) / FPS
            find("frozen", value=seconds, said=f"{part} is held for {seconds:.2f} s", frames=(start, stop + 1))


def _excess(joints):
    """How much longer each step (T - 1, 22) is than those around it, metres.

    A step is compared with the smaller of the two steps on either side, so that one frame out of place, which is two
    long steps in a row, counts as well.
    """
    step = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
    if len(step) < 5:
        return np.zeros_like(step)
    padded = np.pad(step, ((2, 2), (0, 0)), mode="reflect")
    return step - np.maximum(np.minimum(padded[:-4], padded[1:-3]), np.minimum(padded[3:-1], padded[4:]))


def _jumps(beyond, check, said, values, find, limits, broken):
    """Steps that are too long, as a mask."""
    worst = np.where(broken, 0, beyond.max(axis=1))
    values[check] = worst.max()
    mask = worst > limits[check]
    for start, stop in _runs(mask):
        size = worst[start:stop].max()
        find(check, value=size, said=f"{said} by {size:.2f} m", frames=(start, stop + 1))
    return mask


def _facing(joints, find, known):
    """A body whose left and right are exchanged throughout walks against its toes."""
    across = joints[:, 1] - joints[:, 2] + joints[:, 16] - joints[:, 17]
    forward = np.cross(across, [0.0, 1.0, 0.0])
    forward /= np.maximum(np.linalg.norm(forward, axis=1, keepdims=True), 1e-9)
    toes = np.stack([joints[:, 10] - joints[:, 7], joints[:, 11] - joints[:, 8]], axis=1)
    toes /= np.maximum(np.linalg.norm(toes, axis=-1, keepdims=True), 1e-9)
    trunk = joints[:, 12] - joints[:, 0]
    upright = trunk[:, 1] > 0.7 * np.linalg.norm(trunk, axis=1)
    backward = (np.einsum("tfc,tc->tf", toes, forward) < -0.5).all(axis=1)
    share = float((upright & backward & known).mean())
    find("facing", value=share, said="the feet point backwards: left and right are exchanged in the whole clip",
         frames=(0, len(joints)))  # fmt: skip


def _bones(stretches, values, find):
    """Drift within stretches without a break: exchanged sides have other bones, and are reported as such."""
    drifts = [metrics.bone_length_drift(joints) for joints in stretches]
    if drifts:
        drift = np.max(drifts, axis=0)
        values["bones"] = worst = drift.max()
        bone = JOINT_NAMES[int(drift.argmax()) + 1].replace("_", " ")
        find("bones", value=worst, said=f"the bone that ends at the {bone} changes its length by {worst:.1%}")


def _skating(joints, offset, values, find, limits):
    """Slide of whatever supports the body: the slowest of ankles and toes within 3 cm of their lowest place."""
    feet = joints[:, _FEET]
    speed = np.linalg.norm(np.diff(feet[..., [0, 2]], axis=0), axis=-1) * FPS
    low = feet[..., 1] < feet[..., 1].min(axis=0) + 0.03
    slowest = np.where(low[1:] & low[:-1], speed, np.inf).min(axis=1)
    slowest[np.isinf(slowest)] = 0  # in the air
    length = round(0.4 * FPS)
    lasting = minimum_filter1d(slowest, length, mode="constant", cval=0)  # of a window of 0.4 s, at its middle
    values["skating"] = lasting.max()
    for start, stop in _runs(lasting > limits["skating"]):
        frames = (offset + max(start - length // 2, 0), offset + min(stop + length // 2, len(joints)))
        worst = lasting[start:stop].max()
        find("skating", value=worst, said=f"no foot stands still, the slowest slides at {worst:.2f} m/s", frames=frames)


def _captions(clip, faulty, find):
    """Captions of one clip: are there any, do they lie within it, and do the sides they name move."""
    if not clip.captions and not faulty:
        find("caption", value=1, said="no caption")
    for caption in clip.captions:
        if caption.whole:
            start, stop = 0, len(clip)
        else:
            start, stop = int(caption.start * FPS), int(caption.end * FPS)
            # the format's own captions may end a little after the last row
            if start >= min(stop, len(clip)) or stop > len(clip) + FPS // 2:
                found = f"{caption.text!r} is about {caption.start:g} to {caption.end:g} s of {len(clip) / FPS:g} s"
                find("caption", value=1, said=f"caption {found}")
                continue
        _sides(clip, caption, start, min(stop, len(clip)), find)


def _sides(clip, caption: Caption, start, stop, find):
    named: dict[bool, set[str]] = {True: set(), False: set()}
    for match in _LIMB.finditer(caption.text.lower()):
        standing, side, also, limb = match.groups()
        if not standing:  # who hops on the left leg moves the right one
            named[limb in _ARM] |= {"left", "right"} if also else {side}
    for arm, sides in named.items():
        if len(sides) != 1 or stop - start < 4:
            continue
        speeds = {}
        for side in ("left", "right"):
            root, chain = _PARTS[f"{side} {'arm' if arm else 'leg'}"]
            path = np.diff(clip.joints[start:stop, chain[-1]] - clip.joints[start:stop, root], axis=0)
            # most of the time, and at the fastest moment: one kick among many steps is a moment
            speeds[side] = np.quantile(np.linalg.norm(path, axis=-1), [0.9, 1.0]) * FPS
        side = sides.pop()
        other = "right" if side == "left" else "left"
        ratio = (speeds[other] / np.maximum(speeds[side], 0.05)).min()
        limb = "arm" if arm else "leg"
        found = f"caption {caption.text!r}, but the {other} {limb} moves {ratio:.1f} times as fast"
        find("side", value=ratio, said=found, frames=(start, stop))


# The collection -------------------------------------------------------------------------------------------------------


def _classes(table, said, find):
    """Lengths and speeds far from those of the class; labels that lack; captions of other classes."""
    labelled = table["class"].notna()
    if labelled.any():
        for name in table.index[~labelled]:
            find("label", name, 1, "no label, while other clips have one")
    for label, group in table[labelled].groupby("class"):
        if len(group) < 5:  # too few for a median
            continue
        for check, column, unit in (("length", "frames", "frames"), ("speed", "joint speed", "m/s")):
            middle = group[column].median()
            for name, value in group[column].dropna().items():
                factor = max(value / middle, middle / max(value, 1e-9))
                find(check, name, factor, f"{value:.3g} {unit}, the median of {label!r} is {middle:.3g}")
    uses: dict[str, Counter] = {}
    for name, texts in said.items():
        for text in {" ".join(text.lower().split()) for text in texts}:
            uses.setdefault(text, Counter())[table.at[name, "class"]] += 1
    for name, texts in said.items():
        own = table.at[name, "class"]
        for text in dict.fromkeys(texts) if own is not None and own == own else ():
            counts = uses[" ".join(text.lower().split())]
            usual, count = counts.most_common(1)[0]
            # one stray clip among many of another class, not a sentence that two classes share
            if usual not in (own, None) and count >= 3 and counts[own] <= 0.2 * count:
                found = f"caption {text!r} is one of {usual!r}, the clip is labelled {own!r}"
                find("class", name, 1, found, other=usual)


class _Copies:
    """Search for recordings that occur twice, whole or in part, whatever their place and heading.

    Poses are brought into the frame of pelvis and heading. Windows of three poses over 0.6 s in which the limbs move
    are reduced to ten principal components, which cannot enlarge a distance, and every tenth is looked up in a k-d tree
    of all; only what is near there is compared in full: at the shift of the match, refined to sixths of a frame
    (clips cut from one recording and resampled do not share a grid), all joints must agree within 2 cm in most frames
    of the whole overlap. The cost grows as n log n in the number of frames.
    """

    def __init__(self):
        self.names, self.poses, self.windows, self.owner, self.start = [], [], [], [], []

    def add(self, name, joints, sound):
        across = (joints[:, 1] - joints[:, 2] + joints[:, 16] - joints[:, 17])[:, [0, 2]]
        c, s = (across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)).T[:, :, None]
        place = joints - joints[:, :1] * [1, 0, 1]
        x, z = place[..., 0], place[..., 2]
        poses = np.stack([c * x + s * z, place[..., 1], c * z - s * x], axis=-1).astype(np.float32)
        index = len(self.names)
        self.names.append(name)
        self.poses.append(poses)
        count = len(poses) - _SPAN[-1]
        if count < 1:
            return
        window = np.stack([poses[k : k + count, _ENDS] for k in _SPAN], axis=1)  # (count, 3, 6, 3)
        moving = np.linalg.norm(window - window.mean(axis=1, keepdims=True), axis=-1).mean(axis=(1, 2)) > 0.03
        intact = np.lib.stride_tricks.sliding_window_view(sound, _SPAN[-1]).all(axis=1)
        start = np.flatnonzero(moving & intact)
        self.windows.append(window[start].reshape(len(start), len(_SPAN) * len(_ENDS) * 3))
        self.owner.append(np.full(len(start), index))
        self.start.append(start)

    def pairs(self):
        """(name, name, start, stop, shift, share): frames [start, stop) of the first are the second's + shift."""
        if not self.windows:
            return
        scale = np.sqrt(len(_SPAN) * len(_ENDS))  # distances become the root mean square over the limbs
        windows, owner = np.concatenate(self.windows) / scale, np.concatenate(self.owner)
        start = np.concatenate(self.start)
        if len(windows) < 2:
            return
        _, axes = np.linalg.eigh(np.cov(windows.T))
        points = (windows - windows.mean(axis=0)) @ axes[:, -10:]
        asked = np.flatnonzero(start % _STRIDE == 0)
        distance, found = cKDTree(points).query(points[asked], k=min(24, len(points)), distance_upper_bound=_NEAR)
        row, column = np.nonzero(np.isfinite(distance))
        a, b = asked[row], found[row, column]
        other = owner[a] != owner[b]
        a, b = a[other], b[other]
        near = np.linalg.norm(windows[a] - windows[b], axis=1) < _NEAR
        shifts: dict[tuple[int, int], Counter] = {}
        for i, j, shift in zip(owner[a[near]], owner[b[near]], (start[b] - start[a])[near], strict=True):
            if i > j:
                i, j, shift = j, i, -shift
            if not self._mirrored(self.names[i], self.names[j]):
                shifts.setdefault((int(i), int(j)), Counter())[int(shift)] += 1
        for (i, j), counts in sorted(shifts.items()):
            tried = (self._compare(self.poses[i], self.poses[j], shift) for shift, _ in counts.most_common(2))
            best = max((t for t in tried if t), key=lambda t: t[3], default=None)
            if best:
                yield (self.names[i], self.names[j], *best)

    @staticmethod
    def _mirrored(a, b):
        return a == f"M{b}" or b == f"M{a}"

    @staticmethod
    def _compare(a, b, shift):
        """Frames of `a` that lie in `b` + shift, the refined shift, and the share of them that agree; None if few."""
        best = None
        for sixth in (0, -1, 1, -2, 2, -3, 3):
            offset = shift + sixth / 6
            low, high = max(0, int(np.ceil(-offset))), min(len(a), int(np.floor(len(b) - 1 - offset)) + 1)
            if high - low < min(_OVERLAP, len(a), len(b)):
                continue
            if sixth == 0:  # what is far apart at a few frames need not be refined
                few = np.linspace(low, high - 1, 8).astype(int)
                if np.median(np.linalg.norm(a[few] - b[few + shift], axis=-1).max(axis=1)) > 0.1:
                    return None
            place = np.arange(low, high) + offset
            left = np.floor(place).astype(int)
            part = (place - left)[:, None, None].astype(np.float32)
            there = b[left] * (1 - part) + b[np.minimum(left + 1, len(b) - 1)] * part
            share = float((np.linalg.norm(a[low:high] - there, axis=-1).max(axis=1) < _AGREE).mean())
            if best is None or share > best[3]:
                best = (low, high, offset, share)
            if sixth == 0 and share == 1:
                break
        return best


# Splits ---------------------------------------------------------------------------------------------------------------


def _splits(table, splits, find):
    """Pairs of lists that should be disjoint; lists that should differ; sides that are not the official ones."""
    known = {name for names in splits.values() for name in names}

    def base(name):  # a mirrored copy is the same recording
        return name[1:] if name.startswith("M") and name[1:] in known else name

    def fact(name, column):
        value = table.at[name, column] if name in table.index else None
        return value if isinstance(value, str) else (sample_of(name) or {}).get(column)

    groups: dict[str, list[str]] = {}
    for name in splits:
        group, _, side = name.rpartition("/")
        if side not in _UNIONS:
            groups.setdefault(group, []).append(name)
    rows = []
    for group, names in groups.items():
        promised = next((part for part in group.split("/") if part in ("xsub", "xset", *OFFICIAL)), "")
        promised = OFFICIAL.get(promised, promised)
        names.sort(key=lambda name: (_FIRST.get(name.rpartition("/")[2], 1), name))
        for a, b in combinations(names, 2):
            first = {base(name) for name in splits[a]}
            shared = [name for name in splits[b] if base(name) in first]
            find("shared", b, len(shared) / max(len(splits[b]), 1), f"{len(shared)} clips are in {a} too", other=a)
            row = {"first": a, "second": b, "clips": len(splits[a]), "clips of second": len(splits[b]),
                   "shared clips": len(shared)}  # fmt: skip
            for column in ("subject", "setup"):
                people = {fact(name, column) for name in splits[a]} - {None}
                theirs = [fact(name, column) for name in splits[b]]
                both = people & set(theirs)
                leaking = sum(value in both for value in theirs)
                row |= {f"shared {column}s": len(both), f"clips of a shared {column}": leaking}
                # the cross-setup protocol has people on both sides by design, and promises other set-ups
                if column == ("setup" if promised == "xset" else "subject"):
                    found = f"{len(both)} {column}s are in {a} too: {leaking} of {len(theirs)} clips show one of them"
                    find("subjects", b, leaking / max(len(theirs), 1), found, other=a)
            rows.append(row)
        for name in names if promised else ():
            side = "train" if name.rpartition("/")[2] in _FIRST else "test"
            samples = [n for n in splits[name] if sample_of(n)]
            wrong = sum(official_side(n, promised) != side for n in samples)
            found = f"{wrong} of {len(samples)} clips are on the other side of the official {promised} protocol"
            find("protocol", name, wrong / max(len(samples), 1), found)
    ordered = [name for names in groups.values() for name in names]
    sets = {name: frozenset(splits[name]) for name in ordered}
    seen: dict[tuple[str, frozenset], str] = {}
    for name in ordered:
        key = (name.rpartition("/")[2], sets[name])
        if key in seen:
            find("same-list", name, 1, f"holds the same {len(sets[name])} clips as {seen[key]}", other=seen[key])
        seen.setdefault(key, name)
    return pd.DataFrame(rows)


def _plain(frame):
    """Rows of a frame as plain data; what is not a number becomes null."""
    named = frame if isinstance(frame.index, pd.RangeIndex) else frame.rename_axis("name").reset_index()
    return [
        {key: None if value is None or value != value else value if isinstance(value, str) else round(float(value), 6)
         for key, value in row.items()} for row in named.to_dict("records")
    ]  # fmt: skip
