"""A small world of captioned movement: a procedural stand-in for a large text-to-motion corpus and a small target set.

Two domains are made from one table of parametric actions (`kinemic.acting`):

* **source**: clean clips of 4 to 9.8 s with one to four actions, planted feet, captions of the clip and of its parts,
  each clip also mirrored, with left and right exchanged in its captions;
* **target**: clips of 0.8 to 3 s with one action each, by other subjects in another manner, with the errors of poses
  that were estimated from video (jitter, slow drift, tilt, lost root translation).

Every frame of a source clip carries its true action (`Clip.segments`), so mined windows can be judged.
It is a simulation: what is measured on it says how a method behaves, nothing about people.

`HARD_CASES` names the actions on which words and movement disagree.
"""

import itertools
import re
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from kinemic.acting import PRIMITIVES, Actor, lap, perform, stage, turned
from kinemic.data import Caption, Clip, Segment
from kinemic.motion import BONE_LENGTHS, FPS, PARENTS, mirror
from kinemic.motion import retarget as with_bones

__all__ = [
    "CLASSES", "ERRORS", "HARD_CASES", "PRIMITIVES", "VERSION", "World", "as_from_video", "make_world", "perform",
]  # fmt: skip

VERSION = "2"
MIN_ROWS, MAX_ROWS, SUBCAPTION_ROWS = 80, 196, 40  # feature rows of a source clip, and of a part with its own caption


@dataclass(frozen=True)
class World:
    """The corpus: `source` clips, subject-disjoint target `pool` and `test`, class names and their sentences."""

    source: list[Clip]
    pool: list[Clip]
    test: list[Clip]
    classes: tuple[str, ...]
    captions: dict[str, tuple[str, ...]]


CLASSES: dict[str, tuple[str, ...]] = {
    "run on the spot": ("a person runs on the spot.",),
    "butt kicks": ("a person does butt kicks.",),
    "side kick": ("a person does a side kick.",),
    "front kick": ("a person does a front kick.",),
    "punch": ("a person throws a punch.",),
    "throw": ("a person throws something.",),
    "stretch oneself": ("a person stretches.",),
    "hand waving": ("a person waves a hand.",),
    "pick up": ("a person picks something up.",),
    "squat down": ("a person squats down.",),
}

HARD_CASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "near in words, far in motion": (("punch", "front kick"), ("butt kicks", "front kick")),
    "far in words, near in motion": (
        ("stretch oneself", "raise arms"),
        ("butt kicks", "run on the spot"),
        ("throw", "chop"),
    ),
    "absent from the source": (("butt kicks",),),
    "only in company": (("throw",),),
    "rarely called by its name": (("stretch oneself",),),
}
"""Kind of difficulty -> groups of actions that have it; at least one of each group is a target class."""

_PEOPLE = ("a person", "a person", "someone", "the person", "a man", "a woman", "a figure", "this person", "he", "she")
_AFTER = (" and then ", ", then ", " then ", ", and after that ", " and afterwards ", " and ", ", ", " before {they} ")
_PRONOUNS = {"a man": "he", "a woman": "she", "he": "he", "she": "she"}  # others are guessed
_HEDGES = ("it looks like ", "it seems that ", "apparently ", "maybe ")
_DISTRACTORS = (
    " as if greeting a friend",
    " as if warming up",
    " while looking ahead",
    " like in a game",
    " as if somebody was watching",
    " like a dancer on a stage",
)
# Manner of a whole clip: factors on tempo and amplitude, extra bend of the spine, words for it.
_STYLES = (
    (1.0, 1.0, 0.0, ()),
    (0.85, 1.0, 0.0, ("slowly", "at a slow pace", "without haste")),
    (1.12, 1.02, 0.0, ("quickly", "in a hurry", "fast")),
    (1.06, 1.08, -0.04, ("energetically", "with a lot of force", "with big movements")),
    (0.9, 0.88, 0.1, ("tiredly", "in a relaxed way", "wearily")),
    (0.92, 0.92, 0.03, ("carefully", "cautiously")),
)
ERRORS = {"left and right confused": 0.04, "action left out": 0.15, "wrong count": 0.05, "letter lost": 0.02}
"""Shares of the sentences of source captions with an error of people; an action is left out of the whole only."""

_COUNTS = (" twice", " three times", " four times")


def _swapped(text):
    """The text with the words left and right exchanged."""
    return re.sub(r"\b(left|right)\b", lambda found: {"left": "right", "right": "left"}[found[0]], text)


def _phrase(name, act, rng):
    phrases = PRIMITIVES[name].phrases
    # the last phrase of each action is its plain name; for stretching it is rare, as people describe what they see
    plain = 0.06 if name == "stretch oneself" else 1 / len(phrases)
    odds = np.full(len(phrases), (1 - plain) / (len(phrases) - 1))
    odds[-1] = plain
    text = phrases[rng.choice(len(phrases), p=odds)].format(**act.words)
    if rng.random() < ERRORS["left and right confused"]:
        text = _swapped(text)
    if rng.random() < ERRORS["wrong count"] and any(count in text for count in _COUNTS):
        text = re.sub("|".join(_COUNTS), str(rng.choice(_COUNTS)), text)
    return text


def _sentence(names, acts, rng, manner=(), whole=False):
    """One caption of these actions, in order; sometimes one is left out, hedged, embellished or misspelt."""
    parts = [_phrase(name, act, rng) for name, act in zip(names, acts, strict=True)]
    if whole and len(parts) > 1 and rng.random() < ERRORS["action left out"]:
        parts.pop(int(rng.integers(len(parts))))
    k = int(rng.integers(len(parts)))
    if manner and rng.random() < 0.6:
        parts[k] += f" {rng.choice(manner)}"
    elif rng.random() < 0.15:
        parts[k] += str(rng.choice(_DISTRACTORS))
    who = str(rng.choice(_PEOPLE))
    they = _PRONOUNS.get(who) or str(rng.choice(("he", "she")))
    text = f"{who} {parts[0]}"
    for part in parts[1:]:
        text += str(rng.choice(_AFTER)).format(they=they) + part
    text = f"{rng.choice(_HEDGES) if rng.random() < 0.08 else ''}{text}."
    if rng.random() < ERRORS["letter lost"]:
        k = int(rng.integers(2, len(text) - 1))
        text = text[:k] + text[k + 1 :]
    return text


# ---------------------------------------------------------------------------------------------- subjects and domains

_SOURCE, _POOL, _TEST = range(3)
_SPREAD = 5.5  # how much wider than a source subject a target subject varies from clip to clip
_FIDGET = 5.0  # largest factor on the idle movement of a target subject's arms
_SUBJECTS = {_SOURCE: ("S", 14), _POOL: ("P", 16), _TEST: ("T", 16)}


def _actor(domain, index, seed):
    """Subject number `index` of a domain."""
    rng = np.random.default_rng([seed, 7, domain, index])
    size = rng.uniform(0.88, 1.1)
    arms, trunk, shoulders, hips = rng.uniform((0.93, 0.94, 0.88, 0.94), (1.08, 1.07, 1.1, 1.06))
    if domain != _SOURCE:
        arms, shoulders = 0.97 * arms, 0.9 * shoulders
    factor = np.ones(22)  # legs keep the thigh-to-shin ratio of the reference, so retargeting keeps feet planted
    factor[[18, 19, 20, 21]], factor[[3, 6, 9, 12]] = arms, trunk
    factor[[13, 14, 16, 17]], factor[[1, 2]] = shoulders, hips
    bones = BONE_LENGTHS * factor * size
    prefix, _ = _SUBJECTS[domain]
    if domain == _SOURCE:
        low, high = (0.88, 0.9, 0.0, 0.075, 0.05, 0.4, 1.0), (1.12, 1.1, 0.12, 0.105, 0.2, 0.9, 1.0)
    else:
        low, high = (0.8, 0.5, 0.05, 0.07, 0.0, 0.0, 2.0), (1.1, 0.9, 0.3, 0.15, 0.35, 0.9, 4.0)
    tempo, amplitude, hunch, stance, toe_out, guard, sway = rng.uniform(low, high)
    arm = (0.04, 0.13, 0.25, rng.uniform(0.2, 0.5))
    return Actor(
        f"{prefix}{index + 1:02d}",
        bones,
        tempo=tempo,
        amplitude=amplitude,
        hunch=hunch,
        arm=arm,
        sway=sway,
        stance=stance,
        toe_out=toe_out,
        guard=guard,
        brief=domain != _SOURCE,
    )


def _today(actor, rng, spread):
    """The same subject in the mood of one clip: `spread` widens the manner (source 1, target more)."""
    tempo, amplitude = np.exp(spread * rng.uniform(-0.075, 0.075, 2))
    arm = np.array(actor.arm)
    if spread > 1:  # people wait with their arms in many ways
        arm = arm + rng.uniform(0, 1) * (_WAITING[int(rng.integers(len(_WAITING)))] - arm)
    return replace(
        actor,
        tempo=actor.tempo * tempo,
        amplitude=actor.amplitude * amplitude,
        hunch=actor.hunch + rng.uniform(-0.03, 0.03) * spread,
        guard=actor.guard + rng.uniform(-0.1, 0.1) * spread,
        arm=tuple(arm),
        fidget=1.0 if spread == 1 else rng.uniform(1.0, _FIDGET),
    )


# Arms that hang, rest on the hips, meet before the belly, are half raised: fore, out, twist, elbow in radians.
_WAITING = np.array([[0.0, 0.1, 0.2, 0.2], [-0.3, 0.7, 0.9, 1.5], [0.25, 0.1, 0.75, 1.1], [0.4, 0.3, 0.3, 1.9]])


def _choose(actor, rng):
    """Names and acts of a source clip: one to four that fit into it, in random order."""
    names = list(PRIMITIVES)
    odds = np.array([PRIMITIVES[name].weight for name in names])
    alone = np.array([PRIMITIVES[name].alone for name in names])
    wanted = int(rng.choice((1, 2, 3, 4), p=(0.3, 0.35, 0.24, 0.11)))
    chosen, used = [], 0
    for _ in range(24):  # tries, as a long act may not fit behind the others
        # the first may stand alone; actions that never do are therefore always in company
        share = odds * alone if not chosen else odds
        name = str(rng.choice(names, p=share / share.sum()))
        act = PRIMITIVES[name].act(actor, rng)
        if used + act.frames > MAX_ROWS - 3:
            continue
        chosen.append((name, act))
        used += act.frames
        # a single short act gets company, so that no clip is mostly standing
        if len(chosen) >= wanted and (used >= 0.5 * MIN_ROWS or len(chosen) == 4):
            break
    order = rng.permutation(len(chosen))
    return [chosen[k][0] for k in order], [chosen[k][1] for k in order]


def _source_clips(index, seed, actors):
    """One performance and its mirror image, each a clip."""
    rng = np.random.default_rng([seed, 1, index])
    tempo, amplitude, bend, manner = _STYLES[int(rng.choice(len(_STYLES), p=(0.6, 0.08, 0.08, 0.08, 0.08, 0.08)))]
    actor = _today(actors[int(rng.integers(len(actors)))], rng, 1.0)
    actor = replace(
        actor, tempo=actor.tempo * tempo, amplitude=actor.amplitude * amplitude, hunch=actor.hunch + bend
    )
    chosen, acts = _choose(actor, rng)
    used = sum(act.frames for act in acts)
    spare = max(MIN_ROWS + 1 - used, int(min(rng.integers(4, 28), MAX_ROWS + 1 - used)))
    share = rng.dirichlet(np.r_[1.5, np.full(len(acts) - 1, 0.4), 1.5])
    gaps = np.floor(share * spare).astype(int)
    for k, pair in enumerate(itertools.pairwise(acts), start=1):  # often the next action begins before one is over
        if rng.random() < 0.5:
            gaps[k] = -int(rng.integers(lap(*pair) + 1))
    gaps[-1] += max(spare - gaps.sum(), 0)
    joints, spans = stage(actor, acts, gaps.tolist(), rng)
    rows = len(joints) - 1
    spans = [(start, min(end, rows)) for start, end in spans]
    segments = _segments(chosen, spans, rows)
    texts, wanted = [], int(rng.integers(2, 4))
    while len(texts) < wanted:  # every caption differs from the others of its clip
        text = _sentence(chosen, acts, rng, manner, whole=True)
        if text not in texts:
            texts.append(text)
    captions = [Caption(text) for text in texts]
    if len(acts) > 1:
        parts = [(k, k + 1) for k in range(len(acts))]
        if len(acts) > 2 and rng.random() < 0.5:
            first = int(rng.integers(len(acts) - 1))
            parts.append((first, first + 2))
        for first, last in parts:
            start, end = _room(spans, first, last, rows)
            if end - start >= SUBCAPTION_ROWS:
                text = _sentence(chosen[first:last], acts[first:last], rng, manner)
                captions.append(Caption(text, start / FPS, end / FPS))
    return [
        Clip.from_joints(name, poses, FPS, captions=tuple(said), subject=actor.name, segments=segments)
        for name, poses, said in (
            (f"{index:06d}", joints, captions),
            (f"M{index:06d}", mirror(joints), [replace(c, text=_swapped(c.text)) for c in captions]),
        )
    ]


def _segments(names, spans, rows):
    """Segments that tile the clip; where acts overlap, the middle parts them."""
    segments, cursor = [], 0
    for k, (name, (start, end)) in enumerate(zip(names, spans, strict=True)):
        if k + 1 < len(spans):
            end = min(end, (end + spans[k + 1][0]) // 2)
        if start > cursor:
            segments.append(Segment("stand", cursor, start))
        segments.append(Segment(name, cursor if start < cursor else start, end))
        cursor = end
    if cursor < rows:
        segments.append(Segment("stand", cursor, rows))
    return tuple(segments)


def _room(spans, first, last, rows):
    """Rows of acts `first` to `last - 1`; short ones take standing around them in, until they are long enough."""
    start, end = spans[first][0], spans[last - 1][1]
    low = spans[first - 1][1] if first else 0
    high = spans[last][0] if last < len(spans) else rows
    lack = SUBCAPTION_ROWS - (end - start)
    if lack > 0:
        end = max(end, min(high, end + lack))
        start = min(start, max(low, end - SUBCAPTION_ROWS))
    return start, end


# Slow and fast errors, metres per axis, of (knees to toes and elbows to wrists, other joints).
_DRIFT, _JITTER = (0.04, 0.014), (0.0050, 0.0027)
# Error of the camera's pitch and roll, radians; share of clips with a hidden limb.
_TILT, _HIDDEN = 0.18, 0.5
# Factor of the fast error at rest, and what each m/s adds; frames over which an estimator smooths.
_BLUR, _SMOOTHING = (0.55, 0.75), 1.3


def as_from_video(joints, rng):
    """Give clean joints the errors of a body estimated from video: no root translation, tilt, drift, jitter.

    A simulation, tuned so that jerk, the share of velocity energy above 5 Hz and foot slip are like those of skeletons
    that VIBE estimated for NTU RGB+D.
    """
    poses = len(joints)
    # estimators look at many frames at once, which takes the edge off fast moves
    joints = gaussian_filter1d(joints - joints[:, :1] * [1, 0, 1], _SMOOTHING, axis=0, mode="nearest")
    pitch, roll = rng.normal(0, _TILT, 2)
    joints = joints @ turned(np.array([pitch, rng.uniform(-0.3, 0.3), roll])).T
    joints = joints * [1, 1, rng.uniform(0.8, 1.1)]
    limbs = np.zeros(22, dtype=bool)
    limbs[[4, 5, 7, 8, 10, 11, 18, 19, 20, 21]] = True
    slow = np.where(limbs, _DRIFT[0], _DRIFT[1])[:, None] * rng.standard_normal((poses, 22, 3))
    # estimates shake most where the image is blurred: the jitter grows with the speed of the joint
    speed = np.linalg.norm(np.gradient(joints, axis=0), axis=-1) * FPS
    blur = _BLUR[0] + _BLUR[1] * gaussian_filter1d(speed, 2.0, axis=0, mode="nearest")
    fast = (np.where(limbs, _JITTER[0], _JITTER[1]) * blur)[..., None] * rng.standard_normal((poses, 22, 3))
    drift = np.empty_like(slow)
    drift[0] = slow[0]
    for t in range(1, poses):
        drift[t] = 0.97 * drift[t - 1] + np.sqrt(1 - 0.97**2) * slow[t]
    noise = drift + fast
    noise[:, 0] = 0.0
    joints = joints + noise
    if rng.random() < _HIDDEN:  # a hidden limb keeps its last pose for a while
        root, chain = (((1, (4, 7, 10)), (2, (5, 8, 11)), (16, (18, 20)), (17, (19, 21))))[int(rng.integers(4))]
        length = min(int(rng.integers(8, 21)), poses - 1)
        start = int(rng.integers(0, poses - length))
        for joint in chain:
            held = joints[start, joint] - joints[start, root]
            joints[start : start + length, joint] = joints[start : start + length, root] + held
    return joints


# What people do before and after the action they were asked for; the clip shows a little of it.
_FILLERS = ("turn", "turn", "sidestep", "walk forward", "walk backward", "point", "raise arms", "bow", "salute", "clap")
_FILLED, _SEEN = 0.85, (4, 15)  # share of clips with such company on either side, and its frames


def _target_clip(domain, name, index, seed, actors, retarget):
    rng = np.random.default_rng([seed, 2 + domain, list(CLASSES).index(name), index])
    actor = _today(actors[index % len(actors)], rng, _SPREAD)
    while True:
        act = PRIMITIVES[name].act(actor, rng)
        if act.frames > 70:
            continue
        before, after = ([_filler(actor, rng)] if rng.random() < _FILLED else [] for _ in range(2))
        acts = [*before, act, *after]
        joints, spans = stage(actor, acts, rng.integers(0, 4, len(acts) + 1).tolist(), rng)
        start, end = spans[len(before)]
        head, tail = np.floor(rng.uniform(0, 0.27, 2) * (end - start)).astype(int)
        head, tail = (-int(rng.integers(*_SEEN)) if some else cut for some, cut in ((before, head), (after, tail)))
        joints = joints[max(start + head, 0) : end - tail]
        if 17 <= len(joints) <= 61:
            break
    joints = as_from_video(joints, rng)
    if not retarget:  # estimators of bodies hold their bones constant over a clip, as in its first frame
        joints = with_bones(joints, joints[0] - joints[0, np.maximum(PARENTS, 0)])
    prefix = "pool" if domain == _POOL else "test"
    return Clip.from_joints(
        f"{prefix}_{name.replace(' ', '-')}_{index:03d}",
        joints,
        FPS,
        retarget=retarget,
        floor="lowest",
        action=name,
        captions=tuple(Caption(text) for text in CLASSES[name]),
        subject=actor.name,
    )


def _filler(actor, rng):
    return PRIMITIVES[str(rng.choice(_FILLERS))].act(actor, rng)


def make_world(source_clips=1200, pool_clips=30, test_clips=60, seed=0, *, retarget=True):
    """Make the corpus.

    Every clip has a random stream of its own: clip i of a set does not depend on how many clips are asked for.

    Args:
        source_clips: number of captioned source performances, at least 1; each gives a clip and its mirror image.
        pool_clips: target clips of each class for the few-shot pool, at least 1.
        test_clips: target clips of each class for the test, by other subjects than the pool, at least 1.
        seed: non-negative whole number.
        retarget: give target clips the reference bones; False keeps the bones that the estimate has in frame 0.

    Returns:
        `World`.

    Raises:
        ValueError: a count below 1 or a negative seed.
    """
    for label, value, least in (
        ("source_clips", source_clips, 1),
        ("pool_clips", pool_clips, 1),
        ("test_clips", test_clips, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{label} is {value!r}: expected a whole number of at least {least}")
    actors = {d: [_actor(d, i, seed) for i in range(count)] for d, (_, count) in _SUBJECTS.items()}
    source = [clip for i in range(source_clips) for clip in _source_clips(i, seed, actors[_SOURCE])]
    pool, test = (
        [_target_clip(d, name, i, seed, actors[d], retarget) for name in CLASSES for i in range(count)]
        for d, count in ((_POOL, pool_clips), (_TEST, test_clips))
    )
    return World(source, pool, test, tuple(CLASSES), dict(CLASSES))
