"""From joints to HumanML3D features: `motion.process` against a plain loop over frames, in the same run.

    python benchmarks/encode.py [--quick] [--out FILE]

The baseline below is written from the specification of the features alone, one frame and one bone at a time, with
quaternions as tuples of numbers; it uses nothing of the package. Both do the same steps on the same clips: reference
bones, floor, origin, facing, contacts, inverse kinematics with a smoothed heading, features. Results must agree within
1e-5, or the script stops. Clips come from the embedded world; they are at 20 frames per second already. Runs alternate,
the median counts; the loop is timed on the first clips only, because it is slow, and compared per frame.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from kinemic import motion, world
from kinemic.artefacts import RECORD, environment, write_json

# the skeleton of the specification: parent, rest direction and length in metres of the bone that ends in each joint
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
DIRECTIONS = (
    (0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, -1, 0), (0, 1, 0), (0, -1, 0), (0, -1, 0), (0, 1, 0),
    (0, 0, 1), (0, 0, 1), (0, 1, 0), (1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, -1, 0), (0, -1, 0), (0, -1, 0), (0, -1, 0),
    (0, -1, 0), (0, -1, 0),
)  # fmt: skip
LENGTHS = (0, 0.103074, 0.109883, 0.131568, 0.393623, 0.390188, 0.143190, 0.432433, 0.425643, 0.057365, 0.143382,
           0.149419, 0.219360, 0.137487, 0.143383, 0.103039, 0.131614, 0.122984, 0.256840, 0.263092, 0.266012,
           0.269876)  # fmt: skip
CHAINS = ((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21), (9, 13, 16, 18, 20))
FEET, CONTACT = (7, 10, 8, 11), 0.002


def add(a, b):
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def sub(a, b):
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a, b):
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def scale(a, s):
    return tuple(x * s for x in a)


def unit(a):
    return scale(a, 1 / math.sqrt(sum(x * x for x in a)))


def times(p, q):
    w = p[0] * q[0] - dot(p[1:], q[1:])
    x = add(add(scale(q[1:], p[0]), scale(p[1:], q[0])), cross(p[1:], q[1:]))
    return (w, *x)


def conjugate(q):
    return (q[0], -q[1], -q[2], -q[3])


def rotate(q, v):
    return times(times(q, (0.0, *v)), conjugate(q))[1:]


def between(u, v):
    """The shortest rotation from u to v, both of length 1."""
    w = 1 + dot(u, v)
    return (0.0, 1.0, 0.0, 0.0) if w < 1e-6 else unit((w, *cross(u, v)))


def forward(pose, hips):
    """Facing of a pose, shorter than 1 where the shoulders are not level; `hips` is -1 for the heading of inverse
    kinematics, which has their names exchanged."""
    across = add(scale(sub(pose[2], pose[1]), hips), sub(pose[17], pose[16]))
    return cross((0.0, 1.0, 0.0), unit(across))


def smoothed(vectors, sigma=20.0):
    """A Gaussian along time, cut at four standard deviations, ends repeated."""
    radius = int(4 * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    total, out = sum(weights), []
    for t in range(len(vectors)):
        value = (0.0, 0.0, 0.0)
        for k, weight in zip(range(-radius, radius + 1), weights, strict=True):
            value = add(value, scale(vectors[min(max(t + k, 0), len(vectors) - 1)], weight / total))
        out.append(unit(value))
    return out


def loop(joints: np.ndarray) -> np.ndarray:
    """Features (T, 263) of joints (T + 1, 22, 3), one frame at a time."""
    poses = [[tuple(map(float, joint)) for joint in pose] for pose in joints]
    # reference bones
    length = [math.dist(poses[0][j], poses[0][PARENTS[j]]) if j else 0.0 for j in range(22)]
    ratio = (LENGTHS[5] + LENGTHS[8]) / (length[5] + length[8])
    body = []
    for pose in poses:
        new = [scale(pose[0], ratio)] + [None] * 21
        for j in range(1, 22):
            bone = unit(sub(pose[j], pose[PARENTS[j]]))
            new[j] = add(new[PARENTS[j]], scale(bone, LENGTHS[j]))
        body.append(new)
    # floor, origin, facing
    floor = min(joint[1] for pose in body for joint in pose)
    start = (body[0][0][0], floor, body[0][0][2])
    body = [[sub(joint, start) for joint in pose] for pose in body]
    turn = between(unit(forward(body[0], 1)), (0.0, 0.0, 1.0))
    body = [[rotate(turn, joint) for joint in pose] for pose in body]
    # inverse kinematics
    facing = smoothed([forward(pose, -1) for pose in body])
    root = [between(f, (0.0, 0.0, 1.0)) for f in facing]
    root[0] = (1.0, 0.0, 0.0, 0.0)
    turns = []
    for pose, q in zip(body, root, strict=True):
        local = [None] * 22
        for chain in CHAINS:
            above = q
            for a, b in zip(chain[:-1], chain[1:], strict=True):
                local[b] = times(conjugate(above), between(DIRECTIONS[b], unit(sub(pose[b], pose[a]))))
                above = times(above, local[b])
        turns.append(local)
    # features
    out = np.empty((len(body) - 1, 263), dtype=np.float32)
    for t in range(len(body) - 1):
        pose, after, q = body[t], body[t + 1], root[t]
        step = [sub(b, a) for a, b in zip(pose, after, strict=True)]
        travel = rotate(root[t + 1], step[0])
        yaw = times(root[t + 1], conjugate(q))
        sign = math.copysign(1.0, yaw[0])  # the short way round, also where a body turns through its back
        row = [math.asin(max(-1.0, min(1.0, sign * yaw[2]))), travel[0], travel[2], pose[0][1]]
        below = (pose[0][0], 0.0, pose[0][2])
        for joint in pose[1:]:
            row += rotate(q, sub(joint, below))
        for w, x, y, z in turns[t][1:]:
            row += (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
            row += (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
        for joint in step:
            row += rotate(q, joint)
        row += [float(dot(step[j], step[j]) < CONTACT) for j in FEET]
        out[t] = row
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few clips, one repetition: does it run?")
    parser.add_argument("--out", type=Path, default=RECORD / "benchmarks" / "encode.json")
    options = parser.parse_args(argv)
    many, few, repetitions = (12, 2, 1) if options.quick else (200, 10, 5)

    made = world.make_world(source_clips=many, pool_clips=1, test_clips=1)
    clips = [motion.decode(clip.features, extra_pose=True) for clip in made.source[:many]]
    worst = 0.0
    for joints in clips[:few]:
        worst = max(worst, float(np.abs(loop(joints) - motion.process(joints, motion.FPS)).max()))
    if worst > 1e-5:
        raise SystemExit(f"the loop and motion.process differ by {worst}, expected at most 1e-5")

    seconds = {"loop": [], "vectorised": []}
    for _ in range(repetitions):
        for name, work, part in (
            ("loop", loop, clips[:few]),
            ("vectorised", lambda joints: motion.process(joints, motion.FPS), clips),
        ):
            started = time.perf_counter()
            for joints in part:
                work(joints)
            seconds[name].append((time.perf_counter() - started) / sum(map(len, part)))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [{"encoding": name, "clips": count, "frames": sum(map(len, clips[:count])),
             "microseconds per frame": 1e6 * median[name], "frames per second": 1 / median[name],
             "speed-up": median["loop"] / median[name]}
            for name, count in (("loop", few), ("vectorised", many))]  # fmt: skip
    summary = {
        "speed-up": median["loop"] / median["vectorised"],
        "frames per second": 1 / median["vectorised"],
        "largest difference": worst,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {
        "name": "encode", "made": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment(),
        "settings": {"clips": many, "clips of the loop": few, "repetitions": repetitions, "quick": options.quick},
        "rows": rows, "summary": summary,
    })  # fmt: skip
    sys.stdout.write(f"{options.out}: {summary}\n")


if __name__ == "__main__":
    main()
