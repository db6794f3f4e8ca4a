"""Actions of a made-up person: parametric movements, and the stage that turns them into joints.

An action is an `Act`: foot steps, angles of arms and spine, pelvis shifts and, for kicks, angles of a leg that is off
the floor. `stage` lays acts on one time line, plans both feet, lets the pelvis follow the supporting feet, and solves
the legs by two-bone inverse kinematics. A planted toe or ankle therefore does not move, and bones keep their lengths.
`PRIMITIVES` is the table of all actions; a new one is a function that returns an `Act`, and a line in that table.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d, minimum_filter1d

from kinemic.motion import BONE_LENGTHS, FPS, PARENTS, two_bones

__all__ = ["PRIMITIVES", "Act", "Actor", "Primitive", "Step", "lap", "perform", "stage", "turned"]

# Direction of each bone in the frame of the segment that carries it, for a person who stands upright (left is +x).
_REST = np.array(
    [
        [0, 0, 0],
        [0.60, -0.80, -0.05],
        [-0.60, -0.80, -0.05],
        [0, 0.96, -0.26],
        [0, -1, 0],
        [0, -1, 0],
        [0, 0.97, 0.22],
        [0, -1, 0],
        [0, -1, 0],
        [0, 0.98, 0.18],
        [0.10, -0.30, 0.95],
        [-0.10, -0.30, 0.95],
        [0, 1, -0.06],
        [0.53, 0.84, -0.10],
        [-0.53, 0.84, -0.10],
        [0, 0.87, 0.49],
        [0.92, -0.37, -0.13],
        [-0.92, -0.37, -0.13],
        [0, -1, 0],
        [0, -1, 0],
        [0, -1, 0],
        [0, -1, 0],
    ],
    dtype=float,
)
_REST /= np.maximum(np.linalg.norm(_REST, axis=1, keepdims=True), 1e-9)
_LEFT, _RIGHT = 1, -1
_LEG = {_LEFT: (1, 4, 7, 10), _RIGHT: (2, 5, 8, 11)}  # hip, knee, ankle, toe
_ARM = {_LEFT: (13, 16, 18, 20), _RIGHT: (14, 17, 19, 21)}  # collar, shoulder, elbow, wrist
_SIDE = {_LEFT: "left", _RIGHT: "right"}
_REACH = 0.995  # a standing leg is never quite straight
_DOWN, _AHEAD = np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class Actor:
    """A body and its manner.

    Attributes:
        name: subject label.
        bones: (22,) bone lengths, metres.
        tempo, amplitude: factors on speed and size of every action, 1 is average.
        hunch: forward bend of the resting spine, radians.
        arm: (4,) resting arm: swing forward and outward, twist inward, elbow flexion, radians.
        sway: factor on the slow movements that nobody intends. fidget: extra factor on those of the arms.
        stance: half the distance between the ankles, metres. toe_out: radians.
        guard: 0 (hands low) to 1 (hands at the face) while striking and kicking.
        brief: fewer repetitions, as in clips cut to one action.
    """

    name: str
    bones: np.ndarray
    tempo: float = 1.0
    amplitude: float = 1.0
    hunch: float = 0.05
    arm: tuple[float, float, float, float] = (0.04, 0.13, 0.25, 0.3)
    sway: float = 1.0
    fidget: float = 1.0
    stance: float = 0.09
    toe_out: float = 0.12
    guard: float = 0.7
    brief: bool = False

    def neutral(self) -> dict[str, np.ndarray]:
        """Resting value of every channel."""
        arm = np.array(self.arm)
        return {
            "left_arm": arm,  # fore, out: components of the swing of the upper arm; twist inward; elbow flexion
            "right_arm": arm,
            "spine": np.array([self.hunch, 0.0, 0.0]),  # bend forward, lean to the left, twist to the left
            "head": np.array([-0.6 * self.hunch, 0.0]),  # nod, look to the left
            "pelvis": np.array([0.4 * self.hunch, 0.0, 0.0]),  # pitch forward, lean to the left, yaw to the left
            "shift": np.zeros(3),  # metres to the left, up, ahead
        }


@dataclass(frozen=True)
class Step:
    """One step: `side` leaves the floor at `lift` and lands at `land` (seconds from the start of the act).

    `home` is (x, z, heading) of the body that stands over the landing place, relative to the start of the act. `out`
    and `ahead` (metres) move the foot away from its normal place under that body, `turn` is its extra yaw. `rise` is
    the apex of the ankle, `sweep` how far ahead of the straight path it is there (metres). `heel` is the heel rise at
    push-off, `strike` the toe lift at landing, `tiptoe` a heel rise that is kept until the foot steps again (radians).
    `ballistic` steps are those of a jump. In a `pivot` the foot stays loaded and turns on its ball.
    """

    side: int
    lift: float
    land: float
    home: tuple[float, float, float] = (0.0, 0.0, 0.0)
    out: float = 0.0
    ahead: float = 0.0
    rise: float = 0.06
    sweep: float = 0.0
    heel: float = 0.15
    strike: float = 0.0
    turn: float = 0.0
    tiptoe: float = 0.0
    ballistic: bool = False
    pivot: bool = False


@dataclass(frozen=True, eq=False)
class Act:
    """What an action asks of the body: `frames` poses, channel curves (frames, channels), steps, free legs, words.

    `legs` holds (side, weight (frames,), angles (frames, 4)): hip fore and out, twist inward, knee flexion, applied
    with that weight in place of the planned foot. `end` is the place and heading at the end, relative to the start.
    """

    frames: int
    curves: dict[str, np.ndarray]
    steps: tuple[Step, ...] = ()
    legs: tuple[tuple[int, np.ndarray, np.ndarray], ...] = ()
    end: tuple[float, float, float] = (0.0, 0.0, 0.0)
    words: dict[str, str] = field(default_factory=dict)

    @property
    def settled(self) -> tuple[int, int]:
        """Frames at the beginning and at the end in which both feet stand where they do at rest."""
        if not self.steps:
            return self.frames // 2, self.frames // 2
        first, last = min(step.lift for step in self.steps), max(step.land for step in self.steps)
        return max(int(first * FPS), 0), max(self.frames - int(np.ceil(last * FPS)) - 1, 0)


@dataclass(frozen=True, eq=False)
class Primitive:
    """An action: `act(actor, rng)` draws one performance, `phrases` are verb phrases with `{fields}` of `Act.words`.

    `weight` is its share among source actions; `alone` says whether it may be the only action of a source clip.
    """

    family: str
    act: Callable[[Actor, np.random.Generator], Act]
    phrases: tuple[str, ...]
    weight: float = 1.0
    alone: bool = True


# ---------------------------------------------------------------------------------------------- curves


def _ease(u):
    """Minimum-jerk step from 0 (u <= 0) to 1 (u >= 1)."""
    u = np.clip(u, 0.0, 1.0)
    return u * u * u * (10.0 - 15.0 * u + 6.0 * u * u)


def _keys(frames, *keys):
    """Smooth curve through (second, value) keys: (frames,) + shape of a value.

    Between two keys it is the quintic with no acceleration at either. Where a value turns or rests at a key its speed
    is zero there (a minimum-jerk move), where it goes on in the same direction it flows through at the harmonic mean
    of the speeds on both sides, which cannot overshoot.
    """
    times = np.array([key[0] for key in keys], dtype=float)
    values = np.array([key[1] for key in keys], dtype=float)
    now = np.arange(frames) / FPS
    column = (-1, *[1] * (values.ndim - 1))
    width = np.maximum(np.diff(times), 1e-6).reshape(column)
    slope = np.diff(values, axis=0) / width
    before, after = slope[:-1], slope[1:]
    same = before * after > 0
    speed = np.zeros_like(values)
    speed[1:-1] = np.where(same, 2 * before * after / np.where(same, before + after, 1.0), 0.0)
    i = np.clip(np.searchsorted(times, now, side="right") - 1, 0, len(times) - 2)
    h = width[i]
    u = np.clip((now - times[i]).reshape(column) / h, 0.0, 1.0)
    leave = u * (1 + u * u * (-6 + u * (8 - 3 * u)))
    arrive = u * u * u * (-4 + u * (7 - 3 * u))
    return values[i] + _ease(u) * (values[i + 1] - values[i]) + h * (leave * speed[i] + arrive * speed[i + 1])


def _clock(seconds):
    """Number of frames of an act and the time of each, seconds."""
    frames = max(int(np.ceil(seconds * FPS)), 8)
    return frames, np.arange(frames) / FPS


def _swings(actor, times, phase, size, *, elbow=0.35, bias=0.05, out=0.14, bend=0.0, sway=0.1):
    """Arms and spine that swing against the legs: `phase` 0 when the left foot is ahead."""
    beat = np.cos(phase)
    flat = np.zeros_like(times)
    arms = {
        _SIDE[s]: np.stack(
            [bias - s * size * beat, flat + out, flat + 0.25, elbow + 0.35 * size * (1 - s * beat)], axis=1
        )
        for s in (_LEFT, _RIGHT)
    }
    return {
        "left_arm": arms["left"],
        "right_arm": arms["right"],
        "spine": np.stack([flat + actor.hunch + bend, flat, 1.6 * sway * beat], axis=1),
        "pelvis": np.stack([flat + 0.4 * (actor.hunch + bend), flat, -sway * beat], axis=1),
    }


def _count(repeats):
    return {1: "", 2: " twice", 3: " three times", 4: " four times"}.get(repeats, " several times")


# Rows of key poses and of phrases read better than columns, so the actions are laid out by hand.
# fmt: off
# ---------------------------------------------------------------------------------------------- locomotion


def _travel(actor, rng, *, steps, period, stride, swing, curve=0.0, rise=0.05, sweep=0.0, heel=0.6, strike=0.25,
            **arms):
    """Steps along a gentle curve; `stride` may be negative. Starts and ends with both feet side by side."""
    first = int(rng.choice((_LEFT, _RIGHT)))
    start, place, plan = 0.1, np.zeros(3), []
    for k in range(steps + 1):
        ahead = (0.5 if k == 0 else 1.0) * stride if k < steps else 0.0
        place = place + [ahead * np.sin(place[2]), ahead * np.cos(place[2]), curve if k < steps else 0.0]
        lift = start + k * period
        end_step = k == steps
        plan.append(Step(first * (-1) ** k, lift, lift + swing * period, tuple(place),
                         rise=0.6 * rise if end_step else rise, sweep=0.0 if end_step else sweep,
                         heel=heel * (0.5 if k == 0 else 1.0), strike=0.0 if end_step else strike))
    frames, times = _clock(start + (steps + 1) * period + 0.35)
    phase = np.pi * (times - start - swing * period) / period + (0.0 if first == _LEFT else np.pi)
    return Act(frames, _swings(actor, times, phase, **arms), tuple(plan), end=tuple(place))


def _walk(actor, rng):
    period = rng.uniform(0.47, 0.58) / actor.tempo
    curve = rng.uniform(-0.16, 0.16) * (rng.random() < 0.5)
    act = _travel(actor, rng, steps=int(rng.integers(3, 8)), period=period, swing=0.84, curve=curve,
                  stride=rng.uniform(0.50, 0.66) * actor.amplitude, size=rng.uniform(0.2, 0.5), sway=0.09)
    way = " in a curve to the left" if curve > 0.06 else " in a curve to the right" if curve < -0.06 else ""
    return replace(act, words={"way": way})


def _walk_back(actor, rng):
    period = rng.uniform(0.5, 0.65) / actor.tempo
    return _travel(actor, rng, steps=int(rng.integers(3, 6)), period=period, swing=0.78,
                   stride=-rng.uniform(0.32, 0.46) * actor.amplitude, heel=0.15, strike=-0.15,
                   size=rng.uniform(0.08, 0.22), sway=0.04)


def _jog(actor, rng):
    return _travel(actor, rng, steps=int(rng.integers(5, 9)), period=rng.uniform(0.33, 0.39) / actor.tempo, swing=1.18,
                    stride=rng.uniform(0.68, 0.90) * actor.amplitude, rise=rng.uniform(0.14, 0.24), heel=0.9,
                   strike=0.05, size=rng.uniform(0.45, 0.7), elbow=1.25, bias=0.1, out=0.2,
                   bend=rng.uniform(0.05, 0.15), sway=0.14)


def _sidestep(actor, rng):
    side, pairs = int(rng.choice((_LEFT, _RIGHT))), int(rng.integers(2, 5))
    period, width = rng.uniform(0.36, 0.48) / actor.tempo, rng.uniform(0.28, 0.42) * actor.amplitude
    plan = []
    for k in range(pairs):
        for half, foot in enumerate((side, -side)):
            lift = 0.15 + (2 * k + half) * period
            plan.append(Step(foot, lift, lift + 0.8 * period, (side * width * (k + 1), 0.0, 0.0), rise=0.07, heel=0.2))
    frames, times = _clock(0.15 + 2 * pairs * period + 0.35)
    raised = rng.random() < 0.4
    beat = 0.5 - 0.5 * np.cos(np.pi * (times - 0.15) / period)
    arm = np.stack([0.1 + 0 * times, (0.9 if raised else 0.2) + 0.12 * beat, 0.2 + 0 * times, 0.4 + 0 * times], axis=1)
    spine = np.stack([0.08 + 0 * times, 0.05 * side * beat, 0 * times], axis=1)
    return Act(frames, {"left_arm": arm, "right_arm": arm, "spine": spine}, tuple(plan),
               end=(side * width * pairs, 0.0, 0.0), words={"side": _SIDE[side]})


def _turn(actor, rng):
    side, angle = int(rng.choice((_LEFT, _RIGHT))), float(rng.choice((np.pi / 2, np.pi, 2 * np.pi), p=(0.4, 0.5, 0.1)))
    parts = max(2, round(angle / rng.uniform(0.6, 0.95)))
    period, plan = rng.uniform(0.34, 0.46) / actor.tempo, []
    for k in range(2 * parts):
        lift = 0.15 + k * period
        # the foot on the inside of the turn opens first, the other one follows to the same heading
        heading = side * angle * (k // 2 + 1) / parts
        plan.append(Step(side * (-1) ** k, lift, lift + 0.8 * period, (0.0, 0.0, heading), rise=0.06, heel=0.25))
    frames, times = _clock(0.15 + 2 * parts * period + 0.3)
    look = _keys(frames, (0, (0, 0)), (0.35, (0, 0.35 * side)), (times[-1] - 0.5, (0, 0.2 * side)), (times[-1], (0, 0)))
    amount = "around" if angle > 2 and angle < 4 else "in a full circle" if angle > 4 else f"to the {_SIDE[side]}"
    twist = _keys(frames, (0, (0, 0, 0)), (0.35, (0.04, 0, 0.2 * side)), (times[-1], (0, 0, 0)))
    return Act(frames, {"head": look, "spine": twist}, tuple(plan), end=(0.0, 0.0, side * angle),
               words={"amount": amount, "side": _SIDE[side]})


# ---------------------------------------------------------------------------------------------- on the spot


def _on_the_spot(actor, rng, *, steps, period, swing, rise, sweep, bob, **arms):
    first = int(rng.choice((_LEFT, _RIGHT)))
    plan = tuple(Step(first * (-1) ** k, 0.1 + k * period, 0.1 + (k + swing) * period, rise=rise, sweep=sweep,
                      heel=0.45) for k in range(steps))
    frames, times = _clock(0.1 + (steps + swing - 1) * period + 0.3)
    phase = np.pi * (times - 0.1 - 0.5 * swing * period) / period + (0.0 if first == _LEFT else np.pi)
    curves = _swings(actor, times, phase, **arms)
    busy = _ease((times - 0.1) / 0.2) * _ease((times[-1] - 0.3 - times) / 0.2)
    lift = bob * busy * np.cos(2 * (phase + np.pi / 2) + 0.4)
    return Act(frames, curves | {"shift": np.stack([0 * lift, lift - 0.6 * bob * busy, 0 * lift], axis=1)}, plan)


def _run_on_the_spot(actor, rng):
    cadence = rng.uniform(2.5, 3.1) * np.sqrt(actor.tempo)
    seconds = rng.uniform(1.5, 2.4) if actor.brief else rng.uniform(2.4, 4.0)
    knees_high = rng.random() < 0.5
    rise = rng.uniform(0.22, 0.38) * actor.amplitude
    act = _on_the_spot(actor, rng, steps=max(4, round(seconds * cadence)), period=1 / cadence, swing=1.15, rise=rise,
                       sweep=rng.uniform(0.02, 0.14) if knees_high else -rng.uniform(0.08, 0.22), bob=0.03,
                       size=rng.uniform(0.35, 0.7) * actor.amplitude, elbow=1.3, bias=0.1, out=0.2,
                       bend=rng.uniform(0.0, 0.12), sway=0.06)
    return replace(act, words={"knees": " with high knees" if knees_high else ""})


def _butt_kicks(actor, rng):
    cadence = rng.uniform(2.2, 3.0) * np.sqrt(actor.tempo)
    seconds = rng.uniform(1.5, 2.4) if actor.brief else rng.uniform(2.4, 4.0)
    act = _on_the_spot(actor, rng, steps=max(4, round(seconds * cadence)), period=1 / cadence, swing=1.12,
                       rise=rng.uniform(0.38, 0.5) * np.clip(actor.amplitude, 0.7, 1.05),
                       sweep=-rng.uniform(0.24, 0.34), bob=0.025, size=rng.uniform(0.1, 0.5) * actor.amplitude,
                       elbow=rng.uniform(0.4, 1.3), bias=0.05, out=0.2, bend=rng.uniform(-0.02, 0.1), sway=0.05)
    if rng.random() < 0.35:  # hands on the hips
        act.curves.update(dict.fromkeys(("left_arm", "right_arm"), np.tile([-0.3, 0.72, 0.9, 1.5], (act.frames, 1))))
    return act


def _march(actor, rng):
    return _on_the_spot(actor, rng, steps=int(rng.integers(5, 9)), period=rng.uniform(0.5, 0.62) / actor.tempo,
                        swing=0.8, rise=rng.uniform(0.26, 0.38) * actor.amplitude, sweep=rng.uniform(0.1, 0.2),
                        bob=0.0, size=rng.uniform(0.4, 0.7) * actor.amplitude, elbow=0.25, bend=-0.04, sway=0.04)


# ---------------------------------------------------------------------------------------------- kicks


def _guard(actor, rng):
    """Arms while striking and kicking: (4,) angles between hands at the hips and fists before the face."""
    g = np.clip(actor.guard + rng.uniform(-0.25, 0.25), 0.0, 1.0)
    return (1 - g) * np.array([0.1, 0.28, 0.3, 0.7]) + g * np.array([0.62, 0.24, 0.35, 2.1])


def _kick(actor, rng, *, chamber, extend, lean, roll, push, pivot, turn=0.0, look=0.0):
    """Load the supporting leg, lift the knee, snap the foot out, pull it back, put it down; once or more often.

    `push` (metres: towards the kicking side, up, ahead) is what the pelvis adds to the kick, `pivot` the turn of the
    supporting foot away from it (radians).
    """
    repeats = 1 if actor.brief else int(rng.choice((1, 2, 3), p=(0.5, 0.35, 0.15)))
    side, swap = int(rng.choice((_LEFT, _RIGHT))), repeats > 1 and rng.random() < 0.4
    guard, slow = _guard(actor, rng), 1 / actor.tempo
    behind = 0.0 if swap else rng.uniform(0.15, 0.36) * (rng.random() < 0.6)  # from a fighting stance, or feet together
    snap, hold = rng.uniform(0.15, 0.19) * np.sqrt(slow), rng.uniform(0.0, 0.06)
    lift, up = (0.45 if behind else 0.2) + 0.12 * slow, rng.uniform(0.28, 0.38) * slow
    pull, down = rng.uniform(0.18, 0.26) * slow, rng.uniform(0.3, 0.38) * slow
    cycle = up + snap + hold + pull + down + 0.2
    frames, times = _clock(lift + repeats * cycle + 0.25)
    rest, stance = np.array([0.0, 0.02, 0.0, 0.06]), 0.02 + rng.uniform(0.0, 0.05)
    spine, pelvis, shift, head = [(0, (0, 0, 0))], [(0, (0, 0, 0))], [(0, (0, 0, 0))], [(0, (0, 0))]
    arm, plan, legs = {_LEFT: [(0, guard)], _RIGHT: [(0, guard)]}, [], []
    if behind:
        plan.append(Step(side, 0.06, 0.06 + 0.36, ahead=-behind, turn=side * 0.35, rise=0.06, heel=0.2))
    for k in range(repeats):
        s = side * (-1) ** k if swap else side
        t0 = k * cycle + lift
        t1, t2, t3, t4 = t0 + up, t0 + up + snap, t0 + up + snap + hold, t0 + up + snap + hold + pull
        t5, last = t4 + down, k == repeats - 1
        angles = _keys(frames, (0, rest), (t0, rest), (t1, chamber), (t2, extend), (t3, extend), (t4, 0.9 * chamber),
                       (t5, rest))
        legs.append((s, _ease((times - t0) / (0.6 * up)) * (1 - _ease((times - t4) / (0.85 * down))), angles))
        home = {} if last else {"ahead": -behind, "turn": side * 0.35 * (behind > 0)}
        plan += [Step(s, t0 - 0.04, t5, rise=0.1, heel=0.3, **home),
                 Step(-s, t0 + 0.3 * up, t2, turn=-s * pivot, heel=0.12, pivot=True),
                 Step(-s, t4, t5, heel=0.12, pivot=True)]
        full, half = np.array([lean, -s * roll, s * turn]), np.array([0.4 * lean, -0.35 * s * roll, 0.5 * s * turn])
        spine += [(t0 - 0.08, (0.09, 0, -0.3 * s * turn)), (t1, 0.7 * half), (t2, full), (t3 + 0.03, full),
                  (t4 + 0.06, half), (t5, (0.07, 0, 0))]
        pelvis += [(t0 - 0.1, (0.02, 0, -0.3 * s * turn)), (t1, half), (t2 - 0.03, full), (t3, full), (t4, half),
                   (t5, (0.02, 0, 0))]
        shift += [(t0 - 0.1, (0, -stance, 0)), (t1, (-0.3 * s * push[0], -stance - 0.01, -0.3 * push[2])),
                  (t2, (s * push[0], push[1] - 0.5 * stance, push[2])), (t4, (0, -stance, 0)),
                  (t5, (0, -stance - 0.02, 0))]
        head += [(t0 - 0.1, (0.05, s * look)), (t5, (0.05, s * look))]
        for a, balance in ((s, np.array([-0.65, 0.4, 0, -0.75])), (-s, np.array([0.2, 0.08, 0.1, 0.1]))):
            arm[a] += [(t0, guard), (t1, guard + 0.25 * balance), (t2 + 0.02, guard + balance), (t5 - 0.1, guard)]
    seconds = times[-1]
    curves = {"spine": _keys(frames, *spine, (seconds, (0, 0, 0))), "head": _keys(frames, *head, (seconds, (0, 0))),
              "pelvis": _keys(frames, *pelvis, (seconds, (0, 0, 0))),
              "shift": _keys(frames, *shift, (seconds, (0, 0, 0))), "left_arm": _keys(frames, *arm[_LEFT]),
              "right_arm": _keys(frames, *arm[_RIGHT])}
    word = "left and right" if swap else _SIDE[side]
    return Act(frames, curves, tuple(plan), tuple(legs), words={"side": word, "count": _count(repeats)})


def _front_kick(actor, rng):
    reach = min(rng.uniform(1.1, 1.6) * actor.amplitude, 1.75)
    out = rng.uniform(-0.05, 0.25)
    return _kick(actor, rng, chamber=np.array([min(reach * rng.uniform(0.85, 1.1), 1.75), out, 0.0, 1.85]),
                 extend=np.array([reach, out, 0.0, 0.1]), lean=-rng.uniform(0.05, 0.3), roll=0.06,
                 turn=-rng.uniform(0.1, 0.3), push=(0.0, 0.01, rng.uniform(0.02, 0.1)), pivot=rng.uniform(0.15, 0.6))


def _side_kick(actor, rng):
    reach, fore = min(rng.uniform(0.95, 1.3) * actor.amplitude, 1.4), rng.uniform(-0.15, 0.3)
    chamber = np.array([0.8 + 0.4 * actor.amplitude, 0.55, 0.3, 2.1])
    return _kick(actor, rng, chamber=chamber, extend=np.array([fore, reach, 0.25, 0.1]), lean=rng.uniform(0.0, 0.12),
                 roll=rng.uniform(0.25, 0.5), turn=-rng.uniform(0.0, 0.2), look=rng.uniform(0.3, 0.8),
                 push=(rng.uniform(0.02, 0.08), 0.01, 0.0), pivot=rng.uniform(0.5, 1.1))


# ---------------------------------------------------------------------------------------------- strikes


def _strike(actor, *, ready, blows, twist, bend, front=0, step=0.0, stride=None, crouch=0.0, blade=0.0, drive=0.05):
    """Arms in `ready`, then blows [(side, [(seconds after the previous key, arm angles)], wind-up share)].

    The middle key of a blow is the hit. Hips lead the trunk, the trunk leads the arm, and weight goes back in the
    wind-up and ahead with the hit by `drive` metres. With `front` that foot steps ahead by `step` (in the `stride`,
    seconds from the first wind-up, else before it), the trunk is turned away from it by `blade` radians, and the other
    foot turns on its ball when its hand strikes. `crouch` lowers the body (metres).
    """
    lift = (0.4 if front and not stride else 0.25) / actor.tempo
    arm = {s: [(0, ready[s]), (lift - 0.05, ready[s])] for s in (_LEFT, _RIGHT)}
    guarded = np.array([0.25 * bend, 0.0, -0.5 * front * blade])
    spine, pelvis = [(0, (0, 0, 0)), (lift - 0.04, guarded)], [(0, (0, 0, 0)), (lift - 0.08, [0, 0, guarded[2]])]
    shift, plan, now = [(0, (0, 0, 0)), (lift - 0.06, (0, -crouch, 0))], [], lift
    for s, keys, wind in blows:
        rear = s != front  # the hand of the rear foot has the whole turn of the body, the leading one half of it
        share = 1.0 if rear else 0.5
        moments = now + np.cumsum([wait for wait, _ in keys])
        for i, (moment, (_, angles)) in enumerate(zip(moments, keys, strict=True)):
            part = (-wind, 1.0, 0.25, 0.0)[min(i, 3)] * share
            arm[s].append((moment, angles))
            yaw = guarded[2] - s * twist * part
            spine.append((moment - 0.02, (bend * max(part, 0.25), 0.04 * s * part, yaw)))
            pelvis.append((moment - 0.06, (0.4 * bend * max(part, 0.0), 0.0, 0.6 * yaw)))
            shift.append((moment - 0.03, (0, -crouch - 0.015 * max(part, 0.0), drive * part)))
        if front and rear:
            plan += [Step(s, moments[0] - 0.06, moments[1], turn=-s * 0.6, heel=0.5, pivot=True),
                     Step(s, moments[1] + 0.05, moments[2], heel=0.25, pivot=True)]
        now = moments[-1] + 0.03
        arm[s].append((now + 0.1, keys[-1][1]))
        arm[-s].append((now, ready[-s]))
    end = now + 0.45
    if front and step:
        a, b = (lift + stride[0], lift + stride[1]) if stride else (0.06, lift)
        plan += [Step(front, a, b, ahead=step, rise=0.07 + 0.1 * bool(stride), heel=0.2, strike=0.1),
                 Step(front, now + 0.1, now + 0.5, rise=0.06, heel=0.2)]
        end += 0.2
    frames, _ = _clock(end)
    for curve in (spine, pelvis, shift):
        curve.append((end, (0, 0, 0)))
    return Act(frames, {"left_arm": _keys(frames, *arm[_LEFT]), "right_arm": _keys(frames, *arm[_RIGHT]),
                        "spine": _keys(frames, *spine), "pelvis": _keys(frames, *pelvis),
                        "shift": _keys(frames, *shift)}, tuple(plan))


def _punch(actor, rng):
    side, repeats = int(rng.choice((_LEFT, _RIGHT))), int(rng.integers(1, 3 if actor.brief else 5))
    swap, guard, slow = rng.random() < 0.6, _guard(actor, rng), 1 / actor.tempo
    height, reach = rng.uniform(1.15, 1.65), rng.uniform(0.05, 0.3) + 0.5 * max(0.0, 1 - actor.amplitude)
    manner, blows = rng.choice(("straight", "hook", "uppercut"), p=(0.65, 0.2, 0.15)), []
    for k in range(repeats):
        s = side * (-1) ** k if swap else side
        pull, hit = guard + np.array([-0.75, 0.08, 0.0, 0.2]), np.array([height, -0.02, 0.55, reach])
        if manner == "hook":
            pull, hit = guard + np.array([-0.2, 0.6, 0.3, -0.2]), np.array([1.1, -0.1, 1.3, 1.1])
        if manner == "uppercut":
            pull, hit = guard + np.array([-0.9, 0.1, 0.0, -0.4]), np.array([1.2, 0.0, 0.3, 1.3])
        keys = [(rng.uniform(0.14, 0.2) * slow, pull), (rng.uniform(0.15, 0.2) * np.sqrt(slow), hit),
                (rng.uniform(0.2, 0.28) * slow, guard)]
        blows.append((s, keys, 0.5))
    fighting = rng.random() < 0.75
    front = (-side if rng.random() < 0.65 else side) if fighting else 0
    act = _strike(actor, ready={_LEFT: guard, _RIGHT: guard}, blows=blows, twist=rng.uniform(0.3, 0.55), bend=0.12,
                  front=front, step=rng.uniform(0.18, 0.36), crouch=rng.uniform(0.01, 0.07) * (1 + fighting),
                  blade=rng.uniform(0.1, 0.5), drive=rng.uniform(0.03, 0.09))
    return replace(act, words={"side": "left and right" if swap and repeats > 1 else _SIDE[side],
                               "count": _count(repeats)})


def _throw(actor, rng):
    side, slow, a = int(rng.choice((_LEFT, _RIGHT))), 1 / actor.tempo, actor.amplitude
    rest = actor.neutral()["left_arm"]
    if rng.random() < 0.72:
        way, wind = "overhand", np.array([0.15, 1.4, -1.1, 1.7])
        hit, past = np.array([rng.uniform(1.6, 2.2) * a, 0.4, 0.1, 0.3]), np.array([0.55, -0.2, 0.5, 0.35])
    else:
        way, wind = "underhand", np.array([-0.9 * a, 0.2, 0.1, 0.2])
        hit, past = np.array([1.15 * a, 0.1, 0.1, 0.25]), np.array([1.75 * a, 0.0, 0.2, 0.4])
    windup = rng.uniform(0.4, 0.55) * slow
    keys = [(windup, wind), (rng.uniform(0.24, 0.32) * np.sqrt(slow), hit), (rng.uniform(0.2, 0.28) * slow, past),
            (0.35 * slow, rest)]
    ready = {side: rest + np.array([0.5, 0.05, 0.3, 1.1]), -side: rest + np.array([0.55, 0.05, 0.35, 1.0])}
    striding = rng.random() < 0.75
    act = _strike(actor, ready=ready, blows=[(side, keys, 1.0)], twist=rng.uniform(0.4, 0.65), bend=0.24,
                  front=-side * striding, step=rng.uniform(0.25, 0.5) * a, stride=(0.3 * windup, 1.05 * windup),
                  crouch=rng.uniform(0.0, 0.05), drive=rng.uniform(0.05, 0.1))
    # the free arm points ahead in the wind-up and is pulled in as the other one comes round
    t, free = 0.25 / actor.tempo, ready[-side]
    balance = _keys(act.frames, (0, free), (t + 0.15, free), (t + windup, [1.1, 0.35, 0.3, 0.5]),
                    (t + windup + 0.3, [0.1, 0.35, 0.3, 1.1]), (t + windup + 0.9, rest))
    return replace(act, curves=act.curves | {f"{_SIDE[-side]}_arm": balance},
                   words={"side": _SIDE[side], "way": way})


def _chop(actor, rng):
    side, slow, a = int(rng.choice((_LEFT, _RIGHT))), 1 / actor.tempo, actor.amplitude
    repeats, flat = int(rng.integers(1, 4)), rng.random() < 0.4
    guard = _guard(actor, rng)
    up = np.array([0.5, 1.35, -0.3, 0.9]) if flat else np.array([2.3 * a, 0.25, 0.0, 1.3])
    down = np.array([1.2, -0.45, 0.3, 0.35]) if flat else np.array([0.75, 0.0, 0.2, 0.25])
    keys = [(rng.uniform(0.26, 0.36) * slow, up), (rng.uniform(0.25, 0.33) * np.sqrt(slow), down), (0.3 * slow, guard)]
    act = _strike(actor, ready={_LEFT: guard, _RIGHT: guard}, blows=[(side, keys, 0.6)] * repeats, twist=0.35,
                  bend=0.2, front=-side * (rng.random() < 0.6), step=rng.uniform(0.15, 0.3), crouch=0.03)
    return replace(act, words={"side": _SIDE[side], "count": _count(repeats),
                               "verb": "slaps" if flat else "chops down"})


def _push(actor, rng):
    repeats, slow, a = int(rng.integers(1, 3)), 1 / actor.tempo, actor.amplitude
    front, step = int(rng.choice((_LEFT, _RIGHT))), rng.uniform(0.2, 0.4) * (rng.random() < 0.7)
    ready, pull = np.array([0.35, 0.3, 0.4, 1.9]), np.array([0.05, 0.4, 0.4, 2.2])
    hit = np.array([rng.uniform(1.1, 1.45), 0.0, 0.3, 0.2 + 0.5 * max(0.0, 1 - a)])
    rest, now = actor.neutral()["left_arm"], 0.4 * slow
    arm, lean, plan = [(0, rest), (now, ready)], [(0, (0, 0)), (now, (0.03, 0))], []
    if step:
        plan.append(Step(front, 0.06, now, ahead=step, rise=0.07, heel=0.2, strike=0.1))
    for _ in range(repeats):
        t1 = now + rng.uniform(0.18, 0.26) * slow
        t2, t3 = t1 + rng.uniform(0.2, 0.3) * slow, t1 + rng.uniform(0.32, 0.55)
        now = t3 + 0.3 * slow
        arm += [(t1, pull), (t2, hit), (t3, hit), (now, ready)]
        lean += [(t1, (-0.05, -0.05)), (t2, (0.2, 0.1)), (t3, (0.18, 0.1)), (now, (0.03, 0))]
    if step:
        plan.append(Step(front, now + 0.05, now + 0.42, rise=0.06, heel=0.2))
    frames, times = _clock(now + 0.5)
    arm, lean = _keys(frames, *arm, (times[-1], rest)), _keys(frames, *lean, (times[-1], (0, 0)))
    tip, low = lean[:, :1], _keys(frames, (0, 0), (0.35, 1), (now, 1), (times[-1], 0))[:, None]
    return Act(frames, {"left_arm": arm, "right_arm": arm, "spine": tip * [1, 0, 0], "pelvis": tip * [0.6, 0, 0],
                        "shift": lean[:, 1:] * [0, 0, 1] - low * [0, 0.04, 0]}, tuple(plan),
               words={"count": _count(repeats)})


# ---------------------------------------------------------------------------------------------- arm gestures


def _gesture(seconds, arms, *, spine=None, head=None, words=None):
    """Standing act from arm curves {side: (frames, 4)} and optional curves of spine and head."""
    frames, _ = _clock(seconds)
    curves = {f"{_SIDE[side]}_arm": curve for side, curve in arms.items()}
    curves |= {name: curve for name, curve in (("spine", spine), ("head", head)) if curve is not None}
    return Act(frames, curves, words=words or {})


def _wave(actor, rng):
    side, both = int(rng.choice((_LEFT, _RIGHT))), rng.random() < (0.05 if actor.brief else 0.15)
    rate, beats = rng.uniform(1.5, 2.4) * actor.tempo, int(rng.integers(2, 4) if actor.brief else rng.integers(3, 7))
    seconds, width = 0.9 + beats / rate, rng.uniform(0.28, 0.5) * actor.amplitude
    frames, times = _clock(seconds)
    rest = actor.neutral()["left_arm"]
    big = rng.random() < 0.35  # whole arm above the head, else forearm beside the shoulder
    top = np.array([0.7, rng.uniform(1.9, 2.3), -0.3, 0.5]) if big else np.array([0.75, rng.uniform(0.7, 1.2), -1.0,
                                                            1.75])
    arm = _keys(frames, (0, rest), (0.45, top), (seconds - 0.45, top), (seconds, rest))
    busy = _ease((times - 0.35) / 0.2) * _ease((seconds - 0.4 - times) / 0.2)
    beat = width * busy * np.sin(2 * np.pi * rate * (times - 0.4))
    arm = arm + beat[:, None] * (np.array([0.0, 0.8, 0.0, 0.5]) if big else np.array([0.0, 0.25, 1.0, 0.25]))
    lean = _keys(frames, (0, (0, 0, 0)), (0.45, (0, -0.05 * side, 0.06 * side)), (seconds, (0, 0, 0)))
    return _gesture(seconds, {side: arm, -side: arm} if both else {side: arm}, spine=lean,
                    words={"hand": "both hands" if both else f"the {_SIDE[side]} hand"})


def _raise_arms(actor, rng):
    which = ((_LEFT,), (_RIGHT,), (_LEFT, _RIGHT))[int(rng.choice(3, p=(0.25, 0.25, 0.5)))]
    up, hold, down = (np.array([rng.uniform(0.75, 1.15), rng.uniform(0.3, 1.0), rng.uniform(0.7, 1.0)])) / actor.tempo
    height, aside = rng.uniform(2.3, 2.8) * min(actor.amplitude, 1.08), rng.random() < 0.5
    top = np.array([0.3, height, 0.0, 0.25]) if aside else np.array([height, 0.3, 0.0, 0.25])
    rest, seconds = actor.neutral()["left_arm"], up + hold + down
    arm = _keys(_clock(seconds)[0], (0, rest), (up, top), (up + hold, top), (seconds, rest))
    name = "both arms" if len(which) == 2 else f"the {_SIDE[which[0]]} arm"
    return _gesture(seconds, dict.fromkeys(which, arm),
                    words={"arms": name, "way": " to the side" if aside else ""})


def _clap(actor, rng):
    rate, beats = rng.uniform(1.8, 3.0) * actor.tempo, int(rng.integers(4, 10))
    seconds = 0.9 + beats / rate
    frames, times = _clock(seconds)
    rest, height = actor.neutral()["left_arm"], rng.uniform(0.45, 0.85)
    meet = np.array([height, -0.08, 0.60, 1.45])
    apart = rng.uniform(0.3, 0.6) * actor.amplitude
    busy = _ease((times - 0.35) / 0.15) * _ease((seconds - 0.4 - times) / 0.15)
    open_ = apart * (0.5 + 0.5 * np.cos(2 * np.pi * rate * (times - 0.4) * busy))
    arm = _keys(frames, (0, rest), (0.4, meet), (seconds - 0.45, meet), (seconds, rest))
    arm = arm + (busy * open_)[:, None] * np.array([0.0, 0.25, -1.0, -0.1])
    return _gesture(seconds, {_LEFT: arm, _RIGHT: arm})


def _stretch(actor, rng):
    up, hold, down = np.array([rng.uniform(0.8, 1.2), rng.uniform(0.7, 1.6), rng.uniform(0.7, 1.0)]) / actor.tempo
    if actor.brief:
        up, hold, down = 0.8 * up, 0.6 * hold, 0.8 * down
    seconds, manner = up + hold + down, rng.choice(3, p=(0.5, 0.3, 0.2))
    frames, times = _clock(seconds)
    rest = actor.neutral()["left_arm"]
    a = max(actor.amplitude, 0.75)  # who hardly lifts the arms does not stretch
    middle, back = up + 0.5 * hold, rng.uniform(0.12, 0.32) * a
    # overhead, hands apart or close together
    top = np.array([min(2.75 * a, 2.9), *((0.2, 0.5, 0.35) if rng.random() < 0.4 else (-0.05, 1.3, 0.65))])
    if manner == 2:
        top = np.array([0.25, 1.55 * a, -0.4, 0.2])  # arms spread wide, chest open
    arm = _keys(frames, (0, rest), (0.45 * up, [1.3, 0.35, 0.6, 1.5] if manner != 2 else [0.9, 0.7, 0.4, 1.9]),
                (up, top), (up + hold, 0.98 * top), (up + hold + 0.6 * down, [0.5, 1.4, 0.2, 0.4]), (seconds, rest))
    lean = rng.uniform(0.2, 0.4) * a * (manner == 1) * int(rng.choice((_LEFT, _RIGHT)))
    spine = _keys(frames, (0, (0, 0, 0)), (0.5 * up, (0.05, 0, 0)), (up, (-back, 0.7 * lean, 0)),
                  (middle, (-back, lean, 0)), (up + hold, (-back, -lean, 0)), (seconds, (0, 0, 0)))
    head = _keys(frames, (0, (0, 0)), (up, (-0.35, 0)), (up + hold, (-0.3, 0)), (seconds, (0, 0)))
    return _gesture(seconds, {_LEFT: arm, _RIGHT: arm}, spine=spine, head=head,
                    words={"end": (" and leans back", " and bends to both sides", " and opens the chest")[manner]})


def _point(actor, rng):
    side, slow = int(rng.choice((_LEFT, _RIGHT))), 1 / actor.tempo
    out, height = rng.uniform(-0.1, 1.1), rng.uniform(1.15, 1.65)
    up, hold, down = rng.uniform(0.45, 0.7) * slow, rng.uniform(0.5, 1.4), rng.uniform(0.5, 0.7) * slow
    rest, top = actor.neutral()["left_arm"], np.array([height * np.cos(0.6 * out), out, 0.3, 0.12])
    seconds = up + hold + down
    frames, _ = _clock(seconds)
    arm = _keys(frames, (0, rest), (up, top), (up + hold, top), (seconds, rest))
    look = _keys(frames, (0, (0, 0)), (0.8 * up, (0, 0.5 * side * out)), (up + hold, (0, 0.5 * side * out)),
                 (seconds, (0, 0)))
    where = "forward" if out < 0.45 else f"to the {_SIDE[side]}"
    return _gesture(seconds, {side: arm}, head=look, words={"side": _SIDE[side], "where": where})


def _salute(actor, rng):
    side, slow = int(rng.choice((_LEFT, _RIGHT), p=(0.2, 0.8))), 1 / actor.tempo
    up, hold, down = rng.uniform(0.4, 0.65) * slow, rng.uniform(0.5, 1.4), rng.uniform(0.4, 0.65) * slow
    rest, seconds = actor.neutral()["left_arm"], up + hold + down
    top = np.array([rng.uniform(0.7, 0.9), rng.uniform(0.9, 1.2), 0.15, 2.35])
    frames, _ = _clock(seconds)
    arm = _keys(frames, (0, rest), (up, top), (up + hold, top), (seconds, rest))
    upright = _keys(frames, (0, 0), (up, 1), (up + hold, 1), (seconds, 0))[:, None]
    return _gesture(seconds, {side: arm}, spine=upright * [-0.06, 0, 0], words={"side": _SIDE[side]})


# ---------------------------------------------------------------------------------------------- whole body


def _drop(heights):
    """Shift channel from a height curve (frames,) and a lean-back curve that keeps the weight over the feet."""
    return np.stack([0 * heights, heights, 0.12 * heights], axis=1)


def _jump(actor, rng):
    repeats, ahead = int(rng.integers(1, 4)), rng.uniform(0.2, 0.6) * (rng.random() < 0.35)
    apex, crouch = rng.uniform(0.16, 0.32) * actor.amplitude, rng.uniform(0.16, 0.28)
    flight, slow = 2 * np.sqrt(2 * apex / 9.81), 1 / actor.tempo
    load, rise, land = 0.38 * slow, 0.2, 0.18
    cycle = load + rise + flight + land + 0.28 * slow
    frames, times = _clock(repeats * cycle + 0.25)
    height, plan, rest = np.zeros(frames), [], actor.neutral()["left_arm"]
    arm, spine, place = [(0, rest)], [(0, (0, 0, 0))], 0.0
    for k in range(repeats):
        t0 = k * cycle + load
        t1, t2 = t0 + rise, t0 + rise + flight
        u = (times - t1) / flight
        height += np.where((u > 0) & (u < 1), 4 * apex * u * (1 - u), 0.0)
        # push-off: the pelvis leaves the crouch with growing speed, and sinks again after the landing
        dip = -crouch * _ease((times - t0 + load) / load) * (1 - np.clip((times - t0) / rise, 0, 1) ** 1.7)
        sink = -0.7 * crouch * _ease((times - t2) / land) * (1 - _ease((times - t2 - land) / (0.28 * slow)))
        height += np.where(times >= t0 - load, dip, 0.0) + np.where(times > t2, sink, 0.0)
        place += ahead
        plan += [Step(s, t1, t2, (0.0, place, 0.0), rise=apex * 1.02, heel=0.75, strike=0.0,
                      ballistic=True) for s in (_LEFT, _RIGHT)]
        arm += [(t0 - 0.08, [-0.6, 0.2, 0.1, 0.3]), (t1 + 0.16, [1.5 * actor.amplitude, 0.3, 0.1, 0.6]),
                (t2 + land, [0.4, 0.3, 0.2, 0.6])]
        spine += [(t0, (0.32, 0, 0)), (t1, (-0.02, 0, 0)), (t2, (0.05, 0, 0)), (t2 + land, (0.3, 0, 0))]
    arm, spine = _keys(frames, *arm, (times[-1], rest)), _keys(frames, *spine, (times[-1], (0, 0, 0)))
    pelvis = spine * [0.6, 0, 0]
    curves = {"left_arm": arm, "right_arm": arm, "spine": spine, "pelvis": pelvis, "shift": _drop(height)}
    return Act(frames, curves, tuple(plan), end=(0.0, place, 0.0),
               words={"count": _count(repeats), "way": " forward" if ahead else " up"})


def _hop(actor, rng):
    side, repeats = int(rng.choice((_LEFT, _RIGHT))), int(rng.integers(3, 7))
    apex, ahead = rng.uniform(0.06, 0.13) * actor.amplitude, rng.uniform(0.15, 0.35) * (rng.random() < 0.4)
    flight, ground, start = 2 * np.sqrt(2 * apex / 9.81), rng.uniform(0.24, 0.34) / actor.tempo, 0.75
    cycle, crouch = flight + ground, rng.uniform(0.05, 0.09)
    end = start + repeats * cycle
    frames, times = _clock(end + 0.75)
    height, plan, place = np.zeros(frames), [], 0.0
    for k in range(repeats):
        t1, t2 = start + k * cycle, start + k * cycle + flight
        u, v = np.clip((times - t1) / flight, 0, 1), np.clip((times - t2) / ground, 0, 1)
        height += 4 * apex * u * (1 - u) - crouch * np.sin(np.pi * v)
        place += ahead
        plan.append(Step(side, t1, t2, (0.0, place, 0.0), rise=apex * 1.02, heel=0.5, ballistic=True))
    height -= crouch * np.sin(np.pi * np.clip((times - start + 0.35) / 0.35, 0, 1))
    # the other foot hangs behind or before the body all the while
    plan.append(Step(-side, 0.2, end + 0.4, (0.0, place, 0.0), rise=0.5))
    free = np.array([rng.uniform(-0.1, 0.7), 0.05, 0.0, rng.uniform(1.0, 1.5)])
    angles = _keys(frames, (0, [0, 0.02, 0, 0.06]), (0.25, [0, 0.02, 0, 0.06]), (0.7, free), (end, free),
                   (end + 0.4, [0, 0.02, 0, 0.06]))
    weight = _ease((times - 0.22) / 0.3) * (1 - _ease((times - end) / 0.38))
    beat = gaussian_filter1d(height, 1.5)[:, None]
    up = _keys(frames, (0, 0), (start, 1), (end, 1), (times[-1], 0))[:, None]
    arm = actor.neutral()["left_arm"] + up * [0.15, rng.uniform(0.25, 0.7), 0.0, rng.uniform(0.3, 0.9)]
    arm = arm + beat * [0.8, 1.2, 0.0, 0.5] * actor.amplitude
    lean = up * [0.1, 0.08 * side, 0.0] - beat * [0.6, 0, 0]
    return Act(frames, {"left_arm": arm, "right_arm": arm, "spine": lean, "shift": _drop(height)}, tuple(plan),
               ((-side, weight, angles),), end=(0.0, place, 0.0),
               words={"side": _SIDE[side], "way": " forward" if ahead else " on the spot"})


def _jumping_jacks(actor, rng):
    repeats, half = int(rng.integers(2, 6)), rng.uniform(0.4, 0.52) / actor.tempo
    wide, apex = rng.uniform(0.17, 0.28) * actor.amplitude, 0.07
    frames, times = _clock(0.25 + 2 * repeats * half + 0.3)
    plan, height = [], np.zeros(frames)
    rest, top = np.array([0.05, 0.15, 0.1, 0.2]), np.array([0.2, 2.6 * min(actor.amplitude, 1.05), 0.0, 0.25])
    arm = [(0, rest), (0.2, rest)]
    for k in range(2 * repeats):
        lift = 0.25 + k * half
        land = lift + 0.55 * half
        plan += [Step(s, lift, land, out=wide * (k % 2 == 0), rise=apex, heel=0.5, ballistic=True) for s in (_LEFT,
                                                            _RIGHT)]
        u = np.clip((times - lift) / (land - lift), 0, 1)
        v = np.clip((times - land) / (lift + half - land), 0, 1)
        height += 4 * apex * u * (1 - u) - 0.06 * np.sin(np.pi * v)
        arm.append((lift + 0.8 * half, top if k % 2 == 0 else rest))
    arm = _keys(frames, *arm, (times[-1], rest))
    return Act(frames, {"left_arm": arm, "right_arm": arm, "shift": _drop(height)}, tuple(plan),
               words={"count": _count(repeats)})


def _squat(actor, rng):
    repeats = 1 if actor.brief else int(rng.choice((1, 2, 3), p=(0.5, 0.3, 0.2)))
    down, hold, up = np.array([rng.uniform(0.6, 0.9), rng.uniform(0.1, 0.5), rng.uniform(0.55, 0.85)]) / actor.tempo
    deep, wide = rng.uniform(0.3, 0.5) * max(actor.amplitude, 0.65), rng.uniform(0.04, 0.12)
    ready = [0.0, rng.uniform(0.9, 1.5), rng.choice((0.3, 0.9, 1.4))]
    low = np.array([ready[2], 0.15, 0.5, 0.3 if ready[2] > 1 else 1.0])
    rest, t = actor.neutral()["left_arm"], 0.45
    keys = {"arm": [(0, rest), (t, rest)], "shift": [(0, (0, 0, 0)), (t, (0, -0.02, 0))],
            "spine": [(0, (0, 0, 0)), (t, (0, 0, 0))]}
    for _ in range(repeats):
        for moment, u in ((t + down, 1.0), (t + down + hold, 1.0), (t + down + hold + up, 0.0)):
            keys["arm"].append((moment, rest + u * (low - rest)))
            keys["shift"].append((moment, (0, -0.02 - u * deep, -0.22 * u * deep)))
            keys["spine"].append((moment, (u * 0.7 * deep + 0.1 * u, 0, 0)))
        t += down + hold + up + 0.1
    frames, _ = _clock(t + 0.45)
    arm, spine = _keys(frames, *keys["arm"], (t + 0.4, rest)), _keys(frames, *keys["spine"], (t + 0.4, (0, 0, 0)))
    plan = tuple(Step(s, t0, t0 + 0.24, out=o, rise=0.03, heel=0.1, turn=turn) for s, t0, o,
                 turn in ((_LEFT, 0.05, wide, 0.25), (_RIGHT, 0.25, wide, -0.25), (_LEFT, t - 0.05, 0, 0),
                          (_RIGHT, t + 0.15, 0, 0)))
    return Act(frames, {"left_arm": arm, "right_arm": arm, "spine": spine, "pelvis": spine * [0.9, 0, 0],
                        "shift": _keys(frames, *keys["shift"], (t + 0.4, (0, 0, 0)))}, plan,
               words={"count": _count(repeats)})


def _pick_up(actor, rng):
    down, hold, up = np.array([rng.uniform(0.65, 0.95), rng.uniform(0.08, 0.35), rng.uniform(0.65, 0.95)]) / actor.tempo
    side, both, stoop = int(rng.choice((_LEFT, _RIGHT))), rng.random() < 0.35, rng.uniform(0.0, 1.0)
    # between squatting with an upright trunk (0) and stooping over straighter knees (1)
    size = np.clip(actor.amplitude, 0.75, 1.05)
    low, tip = (0.48 - 0.2 * stoop) * size, (0.9 + 0.35 * stoop) * size
    start = rng.choice((0.1, 0.5), p=(0.5, 0.5))
    seconds = start + down + hold + up + 0.5
    frames, _ = _clock(seconds)
    bent = _keys(frames, (0, 0), (start, 0), (start + down, 1), (start + down + hold, 1), (start + down + hold + up, 0),
                 (seconds, 0))[:, None]
    rest, grip = actor.neutral()["left_arm"], np.array([1.25 * tip + 0.2, 0.05, 0.2, 0.1])
    held = rest + np.array([0.25, 0.0, 0.35, 1.1])
    reach = _keys(frames, (0, rest), (start + 0.1, rest), (start + down, grip), (start + down + hold, grip),
                  (start + down + hold + 0.9 * up, held), (seconds, rest))
    other = rest + bent * np.array([0.5, 0.15, 0.2, 0.4])
    arms = {_SIDE[s] + "_arm": reach if both or s == side else other for s in (_LEFT, _RIGHT)}
    plan = ()
    if start > 0.2:  # one foot steps to the thing
        plan = (Step(-side, 0.06, 0.46, ahead=rng.uniform(0.12, 0.3), rise=0.06, heel=0.2),
                Step(-side, seconds - 0.5, seconds - 0.1, rise=0.06, heel=0.2))
    lean = 0.0 if both else 0.15 * side
    return Act(frames, arms | {"spine": bent * [0.7 * tip, lean, 0.5 * lean], "pelvis": bent * [0.55 * tip, 0, 0],
                               "shift": bent * [0, -low, -0.1 - 0.08 * stoop], "head": bent * [0.25, 0]}, plan,
               words={"hand": "both hands" if both else f"the {_SIDE[side]} hand"})


def _lunge(actor, rng):
    side, slow, repeats = int(rng.choice((_LEFT, _RIGHT))), 1 / actor.tempo, int(rng.integers(1, 3))
    far, deep = rng.uniform(0.55, 0.75) * actor.amplitude, rng.uniform(0.18, 0.28) * actor.amplitude
    hips = rng.random() < 0.5
    plan, low, now = [], [(0, 0)], 0.12
    for k in range(repeats):
        s = side * (-1) ** k
        land = now + 0.55 * slow
        bottom = land + rng.uniform(0.3, 0.45) * slow
        back = bottom + rng.uniform(0.1, 0.4)
        # the rear heel comes up while the front leg takes the weight
        plan += [Step(s, now, land, ahead=far, rise=0.1, heel=0.3, strike=0.2),
                 Step(s, back + 0.2 * slow, back + 0.8 * slow, rise=0.1, heel=0.4)]
        low += [(now + 0.1, 0), (bottom, 1), (back, 1), (back + 0.6 * slow, 0.05)]
        now = back + 0.95 * slow
    frames, times = _clock(now + 0.3)
    low = _keys(frames, *low, (times[-1], 0))[:, None]
    rest = actor.neutral()["left_arm"]
    held = np.array([-0.3, 0.72, 0.9, 1.5]) if hips else rest + np.array([0.3, 0.1, 0.1, 0.6])
    arm = rest + _ease(times / 0.6)[:, None] * _ease((times[-1] - times) / 0.6)[:, None] * (held - rest)
    return Act(frames, {"left_arm": arm, "right_arm": arm, "spine": low * [0.1, 0, 0],
                        "shift": low * [0, -deep, 0.06]}, tuple(plan), words={"side": _SIDE[side]})


def _bow(actor, rng):
    down, hold, up = np.array([rng.uniform(0.7, 1.0), rng.uniform(0.2, 0.9), rng.uniform(0.7, 1.0)]) / actor.tempo
    deep, seconds = rng.uniform(0.5, 1.0) * actor.amplitude, down + hold + up
    frames, _ = _clock(seconds)
    bent = _keys(frames, (0, 0), (down, 1), (down + hold, 1), (seconds, 0))[:, None]
    rest = actor.neutral()["left_arm"]
    arm = rest + bent * np.array([0.75 * deep, 0.0, 0.1, 0.1])  # the arms hang while the trunk tips
    return Act(frames, {"left_arm": arm, "right_arm": arm, "spine": bent * [0.75 * deep, 0, 0],
                        "pelvis": bent * [0.55 * deep, 0, 0], "head": bent * [0.3, 0],
                        "shift": bent * [0, -0.02, -0.14 * deep]},
               words={"depth": "deeply" if deep > 0.8 else "slightly" if deep < 0.6 else "politely"})


def _sit(actor, rng):
    down, hold, up = np.array([rng.uniform(0.9, 1.2), rng.uniform(0.5, 1.3), rng.uniform(0.8, 1.1)]) / actor.tempo
    seconds, deep = down + hold + up, rng.uniform(0.36, 0.44)
    frames, _ = _clock(seconds)
    low = _keys(frames, (0, 0), (0.95 * down, 1), (down + hold, 1), (seconds - 0.05, 0))[:, None]
    # the trunk tips forward while the weight moves between feet and seat, and is upright on the seat
    tip = _keys(frames, (0, 0), (0.6 * down, 1), (1.15 * down, 0.1), (down + hold - 0.2, 0.15),
                (down + hold + 0.4 * up, 1), (seconds, 0))
    arm = actor.neutral()["left_arm"] + low * np.array([0.35, 0.05, 0.35, 0.75])
    spine = np.stack([0.4 * tip, 0 * tip, 0 * tip], axis=1)
    return Act(frames, {"left_arm": arm, "right_arm": arm, "spine": spine, "pelvis": 1.2 * spine,
                        "shift": low * [0, -deep, -0.9 * deep]})


def _kneel(actor, rng):
    side, slow = int(rng.choice((_LEFT, _RIGHT))), 1 / actor.tempo
    hold, back, deep = rng.uniform(0.5, 1.4), 0.62, 0.41
    down, up = rng.uniform(0.75, 1.0) * slow, rng.uniform(0.75, 1.0) * slow
    start, low, rise = 0.15, 0.15 + 0.45 + down, 0.15 + 0.45 + down + hold
    seconds = rise + up + 0.55
    frames, times = _clock(seconds)
    shift = _keys(frames, (0, (0, 0, 0)), (start + 0.1, (0, 0, 0)), (low, (0, -deep, 0.02)), (rise, (0, -deep, 0.02)),
                  (rise + up, (0, 0, 0)))
    spine = _keys(frames, (0, (0, 0, 0)), (low - 0.3, (0.3, 0, 0)), (low, (0.06, 0, 0)), (rise, (0.06, 0, 0)),
                  (rise + 0.4 * up, (0.35, 0, 0)), (seconds, (0, 0, 0)))
    arm = actor.neutral()["left_arm"] + _keys(frames, (0, 0), (low, 1), (rise, 1), (rise + up, 0))[:, None] * [0.35,
        0.02, 0.3, 0.8]
    # the rear heel stays up, on the ball of the foot, as long as the knee is on the floor
    plan = (Step(side, start, start + 0.45, ahead=-back, rise=0.08, heel=0.2, tiptoe=1.15),
            Step(side, rise + 0.75 * up, rise + up + 0.35, rise=0.08, heel=0.0))
    return Act(frames, {"left_arm": arm, "right_arm": arm, "spine": spine, "shift": shift}, plan,
               words={"side": _SIDE[side]})


# fmt: on

# ---------------------------------------------------------------------------------------------- from acts to joints


def turned(vectors):
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors, -1, 0)
    cross = np.zeros((*vectors.shape, 3))
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -z, y, -x
    cross[..., 1, 0], cross[..., 2, 0], cross[..., 2, 1] = z, -y, x
    first = np.sinc(angle / np.pi)  # sin(a) / a, also at 0
    second = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def _about_y(angle):
    """Rotation matrices (T, 3, 3) about the vertical; positive turns +z towards +x (to the left)."""
    zero = np.zeros_like(angle)
    return turned(np.stack([zero, angle, zero], axis=-1))


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _beyond(home, local):
    """Place (x, z, heading) given relative to `home`, in the frame of `home`."""
    c, s = np.cos(home[2]), np.sin(home[2])
    return np.array([home[0] + c * local[0] + s * local[1], home[1] - s * local[0] + c * local[1], home[2] + local[2]])


def _plan_foot(actor, side, steps, now, rest_height, toe):
    """Motion of one foot from its steps (world seconds and places): ankle (T, 3), yaw, pitch, planted, rise (T,)."""

    def stand(step):
        local = (side * (actor.stance + step.out), step.ahead, side * actor.toe_out + step.turn)
        return _beyond(np.array(step.home), local)

    place = stand(Step(side, 0.0, 0.0))
    frames = len(now)
    track, rise, pitch = np.tile(place, (frames, 1)), np.zeros(frames), np.zeros(frames)
    sweep, planted, tiptoe = np.zeros((frames, 2)), np.ones(frames, dtype=bool), 0.0
    for step in steps:
        swing = step.land - step.lift
        u = np.clip((now - step.lift) / swing, 0.0, 1.0)
        if step.pivot:
            yaw = place[2] + _ease(u) * (step.turn + step.home[2] + side * actor.toe_out - place[2])
            ahead = np.stack([np.sin(yaw), np.cos(yaw)], axis=1)
            spot = place[:2] + toe[2] * np.array([np.sin(place[2]), np.cos(place[2])])  # the ball stays here
            track += np.concatenate([spot - toe[2] * ahead, yaw[:, None]], axis=1) - place
            pitch += step.heel * np.sin(np.pi * u) ** 2
            place = np.array([*(spot - toe[2] * ahead[-1]), yaw[-1]])
            continue
        goal = stand(step)
        move = u if step.ballistic else _ease(u)
        track += move[:, None] * (goal - place)
        arc = 4 * u * (1 - u) if step.ballistic else np.sin(np.pi * u) ** 1.15
        rise += step.rise * arc
        sweep += step.sweep * (np.sin(np.pi * u) ** 2)[:, None] * [np.sin(goal[2]), np.cos(goal[2])]
        push = min(0.28, 0.9 * swing)
        up = _ease((now - step.lift + push) / (push + 0.25 * swing))
        pitch += step.heel * (up - _ease((now - step.lift - 0.25 * swing) / (0.65 * swing)))
        pitch -= step.strike * (
            _ease((now - step.lift - 0.45 * swing) / (0.5 * swing)) - _ease((now - step.land) / 0.12)
        )
        pitch += (step.tiptoe - tiptoe) * u
        planted &= (u <= 0) | (u >= 1)
        place, tiptoe = goal, step.tiptoe
    # heel rise turns the foot about its toe, so a planted toe stays where it is
    p = np.maximum(pitch, 0.0)
    y, z = toe[1], toe[2]
    lift, slide = y - (y * np.cos(p) - z * np.sin(p)), z - (y * np.sin(p) + z * np.cos(p))
    yaw = track[:, 2]
    ankle = np.stack(
        [
            track[:, 0] + sweep[:, 0] + slide * np.sin(yaw),
            rest_height + rise + lift,
            track[:, 1] + sweep[:, 1] + slide * np.cos(yaw),
        ],
        axis=1,
    )
    return ankle, yaw - side * actor.toe_out, pitch, planted, rise, track[:, :2]


def _sway(rng, frames, width, sizes):
    """Slow smooth noise (frames, len(sizes)) with standard deviations `sizes`; `width` is its time scale in frames."""
    noise = gaussian_filter1d(rng.standard_normal((frames + 8 * width, len(sizes))), width, axis=0, mode="nearest")
    return noise[4 * width : 4 * width + frames] * (1.9 * np.sqrt(width)) * np.asarray(sizes)


def lap(first, second):
    """Frames for which `second` may begin before `first` ends: at most 0.4 s, while all feet are down."""
    return min(first.settled[1] + second.settled[0], 8, first.frames // 3, second.frames // 3)


def stage(actor, acts, gaps, rng):
    """Joints of acts performed one after the other.

    Args:
        actor: body and manner.
        acts: list of `Act`.
        gaps: frames of standing before each act and after the last one, len(acts) + 1. A negative gap lets an act begin
            while the one before it ends, which is safe for as many frames as `lap` says.

    Returns:
        joints (P, 22, 3) metres with the floor near 0, and [(start, end)] frames of each act.

    Raises:
        ValueError: the number of gaps does not fit the acts, or a gap is too negative.
    """
    least = [0, *(-lap(a, b) for a, b in itertools.pairwise(acts)), 0]
    if len(gaps) != len(acts) + 1 or any(gap < low for gap, low in zip(gaps, least, strict=True)):
        raise ValueError(f"gaps are {list(gaps)}: expected {len(acts) + 1} counts of at least {least}")
    frames = sum(gaps) + sum(act.frames for act in acts)
    now = np.arange(frames) / FPS
    channels = {name: np.tile(value, (frames, 1)) for name, value in actor.neutral().items()}
    channels["spine"] += actor.sway * _sway(rng, frames, 12, (0.02, 0.02, 0.03))
    channels["head"] += actor.sway * _sway(rng, frames, 10, (0.05, 0.10))
    channels["shift"] += actor.sway * _sway(rng, frames, 14, (0.012, 0.0, 0.008))
    # weight moves from foot to foot, and the hip over the loaded leg comes up
    loaded = actor.sway * _sway(rng, frames, 30, (0.012,))
    channels["shift"] += loaded * [1, 0, 0]
    channels["pelvis"] += loaded * [0, 1.5, 0]
    channels["spine"] -= loaded * [0, 1.5, 0]
    for name in ("left_arm", "right_arm"):
        channels[name] += actor.sway * actor.fidget * _sway(rng, frames, 10, (0.04, 0.02, 0.05, 0.06))
    home, start, spans = np.zeros(3), 0, []
    steps, free = {_LEFT: [], _RIGHT: []}, []
    for gap, act in zip(gaps[:-1], acts, strict=True):
        start += gap
        span = slice(start, start + act.frames)
        local = np.arange(act.frames) / FPS
        # every act fades in and out of the resting posture, so acts follow each other without a jump
        fade = _ease(local / 0.42) * _ease((local[-1] - local) / 0.42)
        for name, curve in act.curves.items():
            # nobody is quite symmetric
            size = 1.0 if name not in ("left_arm", "right_arm") else rng.normal(1.0, 0.03, 4).clip(0.93, 1.07)
            channels[name][span] += fade[:, None] * size * (curve - actor.neutral()[name])
        for step in act.steps:
            place = tuple(_beyond(home, step.home))
            steps[step.side].append(
                replace(step, lift=step.lift + start / FPS, land=step.land + start / FPS, home=place)
            )
        free += [(span, side, fade * weight, angles) for side, weight, angles in act.legs]
        home = _beyond(home, act.end)
        spans.append((start, start + act.frames))
        start += act.frames
    # the trunk gives way to the weight of arms that are held out
    left, right = (channels[name][:, :2] - actor.arm[:2] for name in ("left_arm", "right_arm"))
    tilt = np.stack([-0.035 * (left[:, 0] + right[:, 0]), 0.04 * (right[:, 1] - left[:, 1])], axis=1)
    channels["spine"][:, :2] += gaussian_filter1d(tilt, 3.0, axis=0, mode="nearest")
    return _solve(actor, channels, steps, free, now), spans


def _solve(actor, channels, steps, free, now):
    """Joints (T, 22, 3) from channels, steps of each foot and free legs: feet, pelvis over them, legs, trunk, arms."""
    frames, bones = len(now), actor.bones
    offset = _REST * bones[:, None]
    feet = {}
    for side, (*_, toe) in _LEG.items():
        order = sorted(steps[side], key=lambda step: step.lift)
        sole = np.array([0.0, offset[toe, 1], np.hypot(offset[toe, 0], offset[toe, 2])])
        feet[side] = _plan_foot(actor, side, order, now, 0.012 - offset[toe, 1], sole)

    # the pelvis follows the middle of the feet that carry it, a little in advance, as people do
    planted = np.stack([feet[s][3] for s in (_LEFT, _RIGHT)], axis=1).astype(float)
    spots = np.stack([feet[s][5] for s in (_LEFT, _RIGHT)], axis=1)
    loads = planted.sum(1)
    support = (planted[..., None] * spots).sum(1) / np.maximum(loads, 1)[:, None]
    carried = np.flatnonzero(loads)
    support = np.stack([np.interp(now, now[carried], support[carried, i]) for i in range(2)], axis=1)
    centre = gaussian_filter1d(support, 5, axis=0, mode="nearest")
    heading = gaussian_filter1d(0.5 * (feet[_LEFT][1] + feet[_RIGHT][1]), 4, mode="nearest")
    facing = _about_y(heading)
    pelvis_turn = facing @ turned(channels["pelvis"][:, [0, 2, 1]] * [1, 1, -1])
    # the hip joints stand a little ahead of the ankles
    shift = np.einsum("tij,tj->ti", facing, channels["shift"] * [1, 0, 1] + [0, 0, 0.03])
    joints = np.zeros((frames, 22, 3))
    joints[:, 0, 0], joints[:, 0, 2] = centre[:, 0] + shift[:, 0], centre[:, 1] + shift[:, 2]

    hips = {s: pelvis_turn @ offset[_LEG[s][0]] for s in (_LEFT, _RIGHT)}
    reach = {s: _REACH * (bones[_LEG[s][1]] + bones[_LEG[s][2]]) for s in (_LEFT, _RIGHT)}
    weight = {s: np.zeros(frames) for s in (_LEFT, _RIGHT)}
    angles = {s: np.zeros((frames, 4)) for s in (_LEFT, _RIGHT)}
    for span, side, share, curve in free:
        angles[side][span] += share[:, None] * curve
        weight[side][span] += share
    for side in angles:  # several kicks of one leg in one act do not overlap
        angles[side] /= np.maximum(weight[side], 1e-6)[:, None]
    rest_ankle = 0.012 - offset[_LEG[_LEFT][3], 1]
    height = rest_ankle + reach[_LEFT] - offset[1, 1] - 0.012 + channels["shift"][:, 1]
    for s, (ankle, *_) in feet.items():
        flat = ankle[:, [0, 2]] - joints[:, 0, ::2] - hips[s][:, ::2]
        top = ankle[:, 1] + np.sqrt(np.maximum(reach[s] ** 2 - (flat**2).sum(1), 0.02)) - hips[s][:, 1]
        height = np.minimum(height, top + 2.0 * weight[s])
    # lowest value nearby, then smooth: a smooth height that no leg has to overstretch for
    joints[:, 0, 1] = gaussian_filter1d(minimum_filter1d(height, 3, mode="nearest"), 1.0, mode="nearest")

    for side, (hip, knee, ankle, toe) in _LEG.items():
        goal, yaw, pitch, _, rise, _ = feet[side]
        joints[:, hip] = joints[:, 0] + hips[side]
        fore, out, twist, bend = angles[side].T
        zero = np.zeros(frames)
        thigh = pelvis_turn @ turned(np.stack([-fore, zero, side * out], axis=1)) @ _about_y(-side * twist)
        shin = thigh @ turned(np.stack([bend, zero, zero], axis=1))
        w = np.clip(weight[side], 0.0, 1.0)[:, None]
        kicked = joints[:, hip] + thigh @ offset[knee] + shin @ offset[ankle]
        low = goal[:, 1].copy()
        goal = goal + w * (kicked - goal)
        # a kicking foot clears the floor, also while it leaves and lands
        goal[:, 1] = np.maximum(goal[:, 1], low + 0.08 * w[:, 0])
        foot_frame = _about_y(yaw)
        lateral = _unit(pelvis_turn[:, :, 0] + foot_frame[:, :, 0])
        line = goal - joints[:, hip]
        distance = np.linalg.norm(line, axis=1, keepdims=True)
        line = line / np.maximum(distance, 1e-9)
        pole = (1 - w) * _unit(np.cross(line, lateral)) + w * thigh[:, :, 2]
        pole = _unit(pole - (pole * line).sum(1, keepdims=True) * line)
        a, b = bones[knee], bones[ankle]
        distance = np.clip(distance, abs(a - b) + 0.12, 0.9995 * (a + b))
        joints[:, knee], joints[:, ankle] = two_bones(joints[:, hip], line, distance, pole, a, b)
        # the sole follows the floor when planted and the shin when the foot is high
        up = _unit(joints[:, knee] - joints[:, ankle])
        right = _unit(lateral - (lateral * up).sum(1, keepdims=True) * up)
        relaxed = np.stack([right, up, np.cross(right, up)], axis=2) @ turned(np.array([0.35, 0.0, 0.0]))
        level = _about_y(yaw + side * actor.toe_out) @ turned(np.stack([pitch, zero, zero], axis=1))
        loose = np.maximum(w, _ease((rise[:, None] - 0.06) / 0.2))
        sole = np.array([0.0, offset[toe, 1], np.hypot(offset[toe, 0], offset[toe, 2])])
        foot = _unit((1 - loose) * (level @ sole) + loose * (relaxed @ sole))
        # toes that hang would reach through the floor: tip the foot up just enough
        steep = np.clip((0.012 - joints[:, ankle, 1]) / bones[toe], foot[:, 1], 0.9)
        foot[:, ::2] *= (np.sqrt(1 - steep**2) / np.maximum(np.hypot(foot[:, 0], foot[:, 2]), 1e-6))[:, None]
        foot[:, 1] = steep
        joints[:, toe] = joints[:, ankle] + bones[toe] * foot

    third = turned(channels["spine"][:, [0, 2, 1]] * [1, 1, -1] / 3)
    segment = pelvis_turn
    for joint in (3, 6, 9):
        joints[:, joint] = joints[:, PARENTS[joint]] + segment @ offset[joint]
        segment = segment @ third
    chest = segment
    nod = np.concatenate([channels["head"], np.zeros((frames, 1))], axis=1)
    joints[:, 12] = joints[:, 9] + (chest @ turned(0.35 * nod)) @ offset[12]
    joints[:, 15] = joints[:, 12] + (chest @ turned(nod)) @ offset[15]
    for side, (collar, shoulder, elbow, wrist) in _ARM.items():
        fore, out, twist, bend = channels[f"{_SIDE[side]}_arm"].T
        zero = np.zeros(frames)
        shrug = 0.36 * np.clip(np.hypot(fore, out) - 0.9, 0.0, 2.0)
        upper = chest @ turned(np.stack([-fore, zero, side * out], axis=1)) @ _about_y(-side * twist)
        lower = upper @ turned(np.stack([-np.maximum(bend, 0.03), zero, zero], axis=1))
        joints[:, collar] = joints[:, 9] + chest @ offset[collar]
        lifted = chest @ turned(np.stack([zero, zero, side * shrug], axis=1))
        joints[:, shoulder] = joints[:, collar] + lifted @ offset[shoulder]
        joints[:, elbow] = joints[:, shoulder] + upper @ offset[elbow]
        joints[:, wrist] = joints[:, elbow] + lower @ offset[wrist]
    return joints


# ---------------------------------------------------------------------------------------------- the table of actions

# fmt: off
PRIMITIVES: dict[str, Primitive] = {
    "walk forward": Primitive("locomotion", _walk, (
        "walks forward{way}", "walks ahead{way}", "takes a few steps forward{way}", "strolls forward{way}",
        "walks{way}"), 1.5),
    "walk backward": Primitive("locomotion", _walk_back, (
        "walks backward", "steps back a few times", "takes several steps backwards", "backs away")),
    "sidestep": Primitive("locomotion", _sidestep, (
        "sidesteps to the {side}", "steps sideways to the {side}", "shuffles to the {side}", "moves sideways")),
    "jog": Primitive("locomotion", _jog, (
        "jogs forward", "runs ahead", "runs forward a few steps", "jogs", "goes for a short run", "runs"), 1.2),
    "turn": Primitive("locomotion", _turn, (
        "turns {amount}", "turns {amount} with small steps", "changes direction", "turns"), 1.2),
    "run on the spot": Primitive("locomotion", _run_on_the_spot, (
        "runs in place{knees}", "jogs on the spot{knees}", "runs without moving forward", "is running in place",
        "does a running motion while staying where they are", "jogs{knees}")),
    "march": Primitive("locomotion", _march, (
        "marches in place", "marches on the spot", "lifts the knees one after the other", "walks in place")),
    "butt kicks": Primitive("locomotion", _butt_kicks, (
        "does butt kicks", "kicks the heels up behind", "runs on the spot with the heels to the buttocks"), 0.0),
    "front kick": Primitive("kick", _front_kick, (
        "kicks forward with the {side} foot{count}", "does a front kick{count}", "throws a kick to the front{count}",
        "strikes forward with the {side} foot", "kicks something in front of them{count}", "kicks{count}",
        "kicks with the {side} leg{count}")),
    "side kick": Primitive("kick", _side_kick, (
        "kicks to the side with the {side} leg{count}", "does a side kick{count}", "throws a kick to the {side}",
        "lifts the {side} knee and thrusts the foot out sideways", "kicks sideways{count}", "kicks{count}",
        "kicks with the {side} foot{count}")),
    "punch": Primitive("strike", _punch, (
        "punches with the {side} hand{count}", "throws a punch{count}", "strikes forward with the {side} fist",
        "boxes in the air", "hits something in front of them{count}", "punches{count}")),
    "throw": Primitive("strike", _throw, (
        "throws something with the {side} hand", "throws a ball {way}", "pitches a ball", "hurls an object away",
        "winds up and tosses something forward"), 1.4, alone=False),
    "chop": Primitive("strike", _chop, (
        "{verb} with the {side} hand{count}", "swings the {side} arm as if hitting someone", "{verb}{count}",
        "hits something with the {side} hand{count}")),
    "push": Primitive("strike", _push, (
        "pushes something away with both hands{count}", "shoves someone{count}", "thrusts both palms forward{count}",
        "pushes forward{count}")),
    "hand waving": Primitive("arm gesture", _wave, (
        "waves with {hand}", "waves {hand}", "waves hello", "greets someone", "signals goodbye to someone",
        "moves {hand} from side to side in the air", "swings {hand} back and forth")),
    "raise arms": Primitive("arm gesture", _raise_arms, (
        "raises {arms}{way}", "lifts {arms}{way} for a moment", "puts {arms} up", "holds {arms} in the air")),
    "clap": Primitive("arm gesture", _clap, (
        "claps", "claps their hands", "applauds", "claps several times", "brings both hands together repeatedly")),
    "stretch oneself": Primitive("arm gesture", _stretch, (
        "raises both arms over the head{end}", "reaches up high with both hands{end}", "lifts the arms{end}",
        "yawns and loosens up", "reaches for the sky{end}", "extends both arms and the back", "stretches{end}")),
    "point": Primitive("arm gesture", _point, (
        "points {where} with the {side} hand", "points at something", "extends the {side} arm {where}",
        "stretches out the {side} arm {where}", "shows the way with the {side} hand")),
    "salute": Primitive("arm gesture", _salute, (
        "salutes with the {side} hand", "salutes", "brings the {side} hand to the forehead", "greets an officer",
        "shades the eyes with the {side} hand")),
    "jump": Primitive("whole body", _jump, (
        "jumps{way}{count}", "hops{way} with both feet{count}", "leaps{way}", "jumps{count}")),
    "hop on one leg": Primitive("whole body", _hop, (
        "hops on the {side} leg{way}", "jumps on one foot{way}", "hops on one leg", "bounces on the {side} foot")),
    "jumping jacks": Primitive("whole body", _jumping_jacks, (
        "does jumping jacks", "does a few jumping jacks", "jumps while spreading arms and legs{count}",
        "does star jumps")),
    "squat down": Primitive("posture", _squat, (
        "squats down{count}", "does a squat{count}", "bends the knees deeply and comes up again", "crouches{count}",
        "lowers the body and stands back up{count}")),
    "pick up": Primitive("posture", _pick_up, (
        "picks something up with {hand}", "picks up an object from the floor", "squats down to get something",
        "bends down and takes something from the ground with {hand}", "reaches down to the floor",
        "crouches to collect something")),
    "lunge": Primitive("posture", _lunge, (
        "does a lunge", "lunges forward", "takes a long step with the {side} leg and bends the knees",
        "steps far forward and back again")),
    "bow": Primitive("posture", _bow, (
        "bows {depth}", "bows", "bends forward at the waist", "takes a bow", "leans forward and straightens up",
        "bends down {depth} and comes up again")),
    "sit down": Primitive("posture", _sit, (
        "sits down and stands up again", "sits down on a chair", "takes a seat and gets up", "sits and rises",
        "lowers themselves onto a seat and stands back up")),
    "kneel": Primitive("posture", _kneel, (
        "kneels on the {side} knee", "goes down on one knee", "kneels down and gets up", "takes a knee")),
}
# fmt: on


def perform(name, rng, actor=None):
    """One performance of a primitive, clean and with a little standing before and after.

    Args:
        name: key of `PRIMITIVES`.
        rng: `numpy.random.Generator`.
        actor: `Actor`; an average one of reference proportions by default.

    Returns:
        (P, 22, 3) float64 joints, metres at 20 fps, floor near y = 0, starting at the origin and facing +z.

    Raises:
        KeyError: there is no such primitive.
    """
    if name not in PRIMITIVES:
        raise KeyError(f"no primitive '{name}': expected one of {', '.join(PRIMITIVES)}")
    actor = actor or Actor("reference", np.asarray(BONE_LENGTHS, dtype=float))
    act = PRIMITIVES[name].act(actor, rng)
    return stage(actor, [act], [6, 6], rng)[0]
