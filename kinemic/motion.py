"""The skeleton, the canonical pose and the 263 features of a frame.

A motion is an array of joint positions `(T, 22, 3)`: metres, y up, 20 frames per second; a body that faces +z has its
left side at +x. Models do not see positions but HumanML3D feature rows `(T, 263)`, which describe each frame relative
to the root and its heading:

    joints --resample--> 20 fps --retarget--> reference bones --canonicalize--> floor, origin, facing --encode-->
    features

`T + 1` poses give `T` rows, because velocities need the next pose. `decode` inverts `encode` exactly, up to the
canonical placement. A heading is a yaw angle here (the root quaternion of the format is a pure yaw); quaternions are
`(w, x, y, z)`. Every function raises ValueError, in one line, for an array of the wrong shape, without frames or with
values that are not finite; `Raises` sections name only what comes on top.

Source: HumanML3D (Guo et al., CVPR 2022) as used by the reference implementation. Two of its quirks are kept, because
its vectors, statistics and pre-trained weights contain them: the hips enter the heading of `encode` with the opposite
sign, and the heading of the first frame is overwritten by 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.linalg import solveh_banded
from scipy.ndimage import gaussian_filter1d

# fmt: off
__all__ = [
    "BONES", "BONE_LENGTHS", "CHAINS", "CONTACTS", "DIRECTIONS", "FPS", "JOINT_NAMES", "MIRROR_PAIRS",
    "NUM_FEATURES", "NUM_JOINTS", "OFFSETS", "PARENTS", "RIC", "ROOT", "ROTATIONS", "VELOCITIES", "Normalizer",
    "canonicalize", "decode", "decode_rotations", "encode", "forward_kinematics", "inverse_kinematics", "mirror",
    "process", "reconcile", "recut", "resample", "retarget", "two_bones",
]
# fmt: on

FPS = 20
NUM_JOINTS = 22
NUM_FEATURES = 263

# joint, parent, direction of the bone that ends here (rest pose), its length in metres (HumanML3D's reference body)
_SKELETON = (
    ("pelvis", -1, (0, 0, 0), 0.0),
    ("left_hip", 0, (1, 0, 0), 0.103074),
    ("right_hip", 0, (-1, 0, 0), 0.109883),
    ("spine1", 0, (0, 1, 0), 0.131568),
    ("left_knee", 1, (0, -1, 0), 0.393623),
    ("right_knee", 2, (0, -1, 0), 0.390188),
    ("spine2", 3, (0, 1, 0), 0.143190),
    ("left_ankle", 4, (0, -1, 0), 0.432433),
    ("right_ankle", 5, (0, -1, 0), 0.425643),
    ("spine3", 6, (0, 1, 0), 0.057365),
    ("left_foot", 7, (0, 0, 1), 0.143382),
    ("right_foot", 8, (0, 0, 1), 0.149419),
    ("neck", 9, (0, 1, 0), 0.219360),
    ("left_collar", 9, (1, 0, 0), 0.137487),
    ("right_collar", 9, (-1, 0, 0), 0.143383),
    ("head", 12, (0, 0, 1), 0.103039),
    ("left_shoulder", 13, (0, -1, 0), 0.131614),
    ("right_shoulder", 14, (0, -1, 0), 0.122984),
    ("left_elbow", 16, (0, -1, 0), 0.256840),
    ("right_elbow", 17, (0, -1, 0), 0.263092),
    ("left_wrist", 18, (0, -1, 0), 0.266012),
    ("right_wrist", 19, (0, -1, 0), 0.269876),
)
JOINT_NAMES = tuple(row[0] for row in _SKELETON)
PARENTS = np.array([row[1] for row in _SKELETON])
DIRECTIONS = np.array([row[2] for row in _SKELETON], dtype=np.float64)
BONE_LENGTHS = np.array([row[3] for row in _SKELETON])
OFFSETS = BONE_LENGTHS[:, None] * DIRECTIONS
BONES = tuple((int(parent), child) for child, parent in enumerate(PARENTS) if parent >= 0)
CHAINS = ([0, 2, 5, 8, 11], [0, 1, 4, 7, 10], [0, 3, 6, 9, 12, 15], [9, 14, 17, 19, 21], [9, 13, 16, 18, 20])
MIRROR_PAIRS = ((1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21))

ROOT = slice(0, 4)  # yaw rate (half angle, rad per frame), velocity x and z (m per frame), height (m)
RIC = slice(4, 67)  # joints 1..21, root-centred in x and z, heading removed, height above the floor
ROTATIONS = slice(67, 193)  # joints 1..21, first two columns of the rotation matrix
VELOCITIES = slice(193, 259)  # joints 0..21, heading removed, m per frame
CONTACTS = slice(259, 263)  # left ankle, left foot, right ankle, right foot
_STD_GROUPS = (slice(0, 1), slice(1, 3), slice(3, 4), RIC, ROTATIONS, VELOCITIES, CONTACTS)

_FEET = [7, 10, 8, 11]
_CONTACT_SPEED2 = 0.002  # squared metres per frame: a foot slower than about 4.5 cm per frame counts as planted
_SMOOTHING = 20.0  # frames, standard deviation of the Gaussian over the heading
# The arm chains start at joint 9, but their accumulated rotation starts from the root: rotation parent 0, not 9.
_ROTATION_PARENTS = PARENTS.copy()
_ROTATION_PARENTS[[13, 14]] = 0
_SWAP = np.arange(NUM_JOINTS)
for _left, _right in MIRROR_PAIRS:
    _SWAP[[_left, _right]] = _right, _left


def _check(array, tail, name, minimum=1):
    """Float64 copy-free view of a finite `(T, *tail)` array with at least `minimum` frames, or one clear ValueError."""
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != len(tail) + 1 or array.shape[1:] != tail:
        expected = ", ".join(map(str, ("frames", *tail)))
        raise ValueError(f"{name} have shape {array.shape}, expected ({expected}); reorder or reshape them first")
    if len(array) < minimum:
        raise ValueError(f"{name} have {len(array)} frame(s), expected at least {minimum}; drop the clip")
    if not np.isfinite(array).all():
        frame = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
        raise ValueError(f"{name} are not finite in frame {frame}; repair the frame or drop the clip")
    return array


def _check_joints(joints, minimum=1):
    return _check(joints, (NUM_JOINTS, 3), "joints", minimum)


def _check_features(features):
    return _check(features, (NUM_FEATURES,), "features")


def _bones(joints):
    """Unit directions `(T, 21, 3)` and lengths `(T, 21, 1)` of the bones that end in joints 1..21."""
    bones = joints[:, 1:] - joints[:, PARENTS[1:]]
    lengths = np.sqrt(np.einsum("tjc,tjc->tj", bones, bones))[..., None]
    if lengths.min() < 1e-9:
        frame, bone = np.unravel_index(lengths[..., 0].argmin(), lengths.shape[:2])
        end = JOINT_NAMES[bone + 1]
        raise ValueError(f"the bone to {end} has no length in frame {frame}, expected distinct joints; drop the clip")
    return bones / lengths, lengths


def _yaw(joints, hips):
    """Vector `(T, 2)` per pose whose `arctan2(first, second)` is the yaw that turns it to +z.

    `hips` is +1 for the canonical heading (right minus left for hips and shoulders) and -1 for the heading of inverse
    kinematics.
    """
    across = hips * (joints[:, 2] - joints[:, 1]) + joints[:, 17] - joints[:, 16]
    norm = np.linalg.norm(across, axis=-1, keepdims=True)
    if norm.min() < 1e-9:
        frame = int(norm.argmin())
        raise ValueError(f"hips and shoulders of frame {frame} give no heading; retarget the clip or drop it")
    # forward = y cross across = (across_z, 0, -across_x); turning it to +z takes the angle atan2(-forward_x, forward_z)
    return -(across / norm)[:, [2, 0]]


def _turn(points, yaw):
    """Rotate `(..., 3)` points about y by `yaw` (radians, broadcast against the leading axes)."""
    c, s = np.cos(yaw), np.sin(yaw)
    x, z = points[..., 0], points[..., 2]
    return np.stack([c * x + s * z, points[..., 1], c * z - s * x], axis=-1)


def _multiply(p, q):
    pw, px, py, pz = np.moveaxis(p, -1, 0)
    qw, qx, qy, qz = np.moveaxis(q, -1, 0)
    return np.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ],
        axis=-1,
    )


def _columns(quats):
    """First and second column of the rotation matrices of unit quaternions: `(..., 4)` -> `(..., 6)`."""
    w, x, y, z = np.moveaxis(quats, -1, 0)
    first = [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)]
    second = [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)]
    return np.stack(first + second, axis=-1)


def _chain_up(matrices, root, offsets):
    """Joints `(T, 22, 3)` from per-joint matrices `(T, 22, 3, 3)`; entry 0 is the root's own rotation."""
    world, joints = matrices.copy(), np.empty((len(matrices), NUM_JOINTS, 3))
    joints[:, 0] = root
    for child in range(1, NUM_JOINTS):  # parents come before their children
        world[:, child] = world[:, _ROTATION_PARENTS[child]] @ matrices[:, child]
        joints[:, child] = joints[:, PARENTS[child]] + world[:, child] @ offsets[child]
    return joints


def _place(joints):
    """Steps C and D: the first frame's root at x = z = 0, its canonical heading turned to +z."""
    joints = joints - joints[0, 0] * [1.0, 0.0, 1.0]
    return _turn(joints, np.arctan2(*_yaw(joints[:1], hips=1)[0]))


def _hang(root, directions, lengths):
    """Joints of a body with these bones, hung from its root."""
    out = np.empty((len(root), NUM_JOINTS, 3))
    out[:, 0] = root
    for parent, child in BONES:
        out[:, child] = out[:, parent] + lengths[child] * directions[:, child - 1]
    return out


def two_bones(root, line, distance, pole, upper, lower):
    """Middle and end joint of a limb of two bones that reaches from its root along a line.

    Args:
        root: (T, 3) joint that the limb hangs from.
        line: (T, 3) unit vectors towards the end.
        distance: (T, 1) from root to end, between the difference and the sum of the bones.
        pole: (T, 3) unit vectors, orthogonal to `line`, to which the middle joint bends.
        upper, lower: lengths of the bones.

    Returns:
        (T, 3) twice. The law of cosines.
    """
    along = (upper * upper - lower * lower + distance**2) / (2 * distance)
    middle = root + along * line + np.sqrt(np.maximum(upper * upper - along**2, 0.0)) * pole
    return middle, root + distance * line


def _keep_feet(hung, wanted, lengths):
    """Bend the legs of `hung`, in place, so that ankles stand where `wanted` has them, as far as the legs reach."""
    for hip, knee, ankle, toe in ((1, 4, 7, 10), (2, 5, 8, 11)):
        upper, lower = lengths[knee], lengths[ankle]
        line = wanted[:, ankle] - hung[:, hip]
        distance = np.linalg.norm(line, axis=1, keepdims=True)
        line /= np.maximum(distance, 1e-9)
        pole = wanted[:, knee] - hung[:, hip]
        pole -= (pole * line).sum(1, keepdims=True) * line
        pole /= np.maximum(np.linalg.norm(pole, axis=1, keepdims=True), 1e-9)  # a straight leg needs none
        distance = np.clip(distance, abs(upper - lower) + 1e-6, upper + lower)
        hung[:, knee], hung[:, ankle] = two_bones(hung[:, hip], line, distance, pole, upper, lower)
        foot = wanted[:, toe] - hung[:, ankle]
        hung[:, toe] = hung[:, ankle] + lengths[toe] * foot / np.linalg.norm(foot, axis=1, keepdims=True)
    return hung


def _rescale(joints, offsets):
    directions, lengths = _bones(joints)
    target = np.linalg.norm(offsets, axis=-1)
    # size ratio of the right leg, so that steps stay as long as the legs that make them
    ratio = (target[5] + target[8]) / (lengths[0, 4, 0] + lengths[0, 7, 0])
    return _hang(joints[:, 0] * ratio, directions, target)


def resample(joints: np.ndarray, fps: float, to: float = FPS) -> np.ndarray:
    """Joints at the instants 0, 1/to, 2/to, ... by linear interpolation, never beyond the last frame.

    Args:
        joints: (T, 22, 3) metres, at `fps`.
        fps: float > 0, frames per second of `joints`.
        to: float > 0, frames per second wanted.

    Returns:
        (floor((T - 1) * to / fps) + 1, 22, 3) float64, metres.

    Raises:
        ValueError: a rate that is not positive.

    Source: our own grid. The reference spreads its instants over the whole duration, so its true rate lies up to one
    frame per clip below 20 fps.
    """
    joints = _check_joints(joints)
    if not (np.isfinite(fps) and np.isfinite(to) and fps > 0 and to > 0):
        raise ValueError(f"frame rates are {fps} and {to}, expected positive frames per second; pass the recorded rate")
    last = len(joints) - 1
    position = np.arange(int(np.floor(last * to / fps + 1e-9)) + 1) * (fps / to)
    position = np.minimum(position, last)
    before = np.minimum(np.floor(position + 1e-9).astype(int), last)
    after = np.minimum(before + 1, last)
    weight = np.maximum(position - before, 0.0)[:, None, None]
    return (1 - weight) * joints[before] + weight * joints[after]


def retarget(joints: np.ndarray, offsets: np.ndarray = OFFSETS) -> np.ndarray:
    """The same bone directions with the lengths of `offsets`; the root path is scaled by the ratio of the right legs.

    Args:
        joints: (T, 22, 3) metres.
        offsets: (22, 3) metres, bone vectors of the target skeleton in its rest pose; only their lengths matter.

    Returns:
        (T, 22, 3) float64, metres.

    Raises:
        ValueError: a bone without length.

    Source: HumanML3D's uniform skeleton. There it is written as forward kinematics of inverse kinematics; the
    rotations cancel and leave this.
    """
    return _rescale(_check_joints(joints), _check(offsets, (3,), "offsets", NUM_JOINTS))


def canonicalize(joints: np.ndarray, floor: str = "min") -> np.ndarray:
    """Put a motion on the floor, its first frame at the origin and facing +z.

    Args:
        joints: (T, 22, 3) metres.
        floor: "min" takes the lowest height of any joint in any frame as the floor; "lowest" the mean of the 20 lowest
            heights, for noisy joints.

    Returns:
        (T, 22, 3) float64, metres.

    Raises:
        ValueError: no heading in the first frame, or an unknown floor rule.

    Source: HumanML3D preprocessing; "lowest" is the rule of the reference implementation for video joints.
    """
    joints = _check_joints(joints)
    if floor not in ("min", "lowest"):
        raise ValueError(f"floor is {floor!r}, expected 'min' or 'lowest'")
    heights = joints[..., 1].ravel()
    height = heights.min() if floor == "min" else np.sort(heights)[:20].mean()
    return _place(joints - [0.0, height, 0.0])


def mirror(joints: np.ndarray) -> np.ndarray:
    """Left and right exchanged: x negated, paired joints swapped. `(T, 22, 3)` -> `(T, 22, 3)` float64, metres.

    Source: HumanML3D augmentation. Captions and labels that name a side must be swapped by the caller.
    """
    return _check_joints(joints)[:, _SWAP] * [-1.0, 1.0, 1.0]


def inverse_kinematics(joints: np.ndarray, smooth: bool = False) -> np.ndarray:
    """Rotations that carry the rest pose's bone directions to the pose's.

    Args:
        joints: (T, 22, 3) metres.
        smooth: filter the heading along time (Gaussian, 20 frames), as `encode` does.

    Returns:
        (T, 22, 4) float64 unit quaternions. Entry 0 turns the heading to +z (identity in frame 0); entry b rotates
        bone b relative to the bone before it in its chain. Twist about a bone is not represented.

    Raises:
        ValueError: a bone without length, or a pose without heading.

    Source: HumanML3D skeleton code. Difference: yaw is continuous in time, where the reference restricts it to half a
    turn either way and so gets the sign of one yaw rate wrong when a body turns through the direction opposite to its
    first heading.
    """
    joints = _check_joints(joints)
    forward = _yaw(joints, hips=-1)
    if smooth:
        forward = gaussian_filter1d(forward, _SMOOTHING, axis=0, mode="nearest")
    yaw = np.arctan2(forward[:, 0], forward[:, 1])
    yaw[0] = 0.0
    yaw = np.unwrap(yaw)
    rest, directions = DIRECTIONS[1:], _bones(joints)[0]
    world = np.zeros((len(joints), NUM_JOINTS, 4))
    world[:, 0, 0], world[:, 0, 2] = np.cos(yaw / 2), np.sin(yaw / 2)
    # shortest rotation from e to u: (1 + e.u, e x u), normalised
    world[:, 1:, 0] = 1 + np.einsum("jc,tjc->tj", rest, directions)
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        world[:, 1:, i + 1] = rest[:, j] * directions[..., k] - rest[:, k] * directions[..., j]
    opposite = world[..., 0] < 1e-6
    opposite[:, 0] = False
    if opposite.any():  # half a turn about any axis at a right angle to the bone; rest directions are coordinate axes
        world[opposite] = 0.0
        world[..., 1:][opposite] = np.roll(DIRECTIONS, 1, axis=-1)[np.nonzero(opposite)[1]]
    world /= np.sqrt(np.einsum("tjc,tjc->tj", world, world))[..., None]
    local = _multiply(world[:, _ROTATION_PARENTS[1:]] * [1.0, -1.0, -1.0, -1.0], world[:, 1:])
    return np.concatenate([world[:, :1], local], axis=1)


def forward_kinematics(quats: np.ndarray, root: np.ndarray, offsets: np.ndarray = OFFSETS) -> np.ndarray:
    """Joints from rotations: the inverse of `inverse_kinematics` for a body with the given bones.

    Args:
        quats: (T, 22, 4) unit quaternions, w first; entry 0 is the root's.
        root: (T, 3) metres, root positions.
        offsets: (22, 3) metres, bone vectors in the rest pose.

    Returns:
        (T, 22, 3) float64, metres.

    Raises:
        ValueError: quaternions and root of different length.
    """
    quats, root = _check(quats, (NUM_JOINTS, 4), "quaternions"), _check(root, (3,), "root positions")
    if len(quats) != len(root):
        raise ValueError(f"quaternions have {len(quats)} frames, root positions {len(root)}, expected equal numbers")
    return _chain_up(_matrices(_columns(quats)), root, _check(offsets, (3,), "offsets", NUM_JOINTS))


def _matrices(columns):
    """Rotation matrices from two columns each, made orthonormal (first column kept): `(..., 6)` -> `(..., 3, 3)`."""
    x = columns[..., :3] / np.linalg.norm(columns[..., :3], axis=-1, keepdims=True)
    z = np.cross(x, columns[..., 3:])
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=-1)


def encode(joints: np.ndarray) -> np.ndarray:
    """Features of a motion that is already at 20 fps and in canonical placement.

    Args:
        joints: (T + 1, 22, 3) metres, T >= 1.

    Returns:
        (T, 263) float32. Computed in float64 throughout.

    Raises:
        ValueError: fewer than two frames, a bone without length, or a pose without heading.

    Source: HumanML3D vectors, reproduced to 1e-5. The yaw rate is a half angle; the root velocity is expressed in the
    heading of the next frame, joint velocities in that of their own; rotations include the heading turned since frame
    0. See `inverse_kinematics` for the one difference.
    """
    joints = _check_joints(joints, minimum=2)
    quats = inverse_kinematics(joints, smooth=True)
    half = np.unwrap(np.arctan2(quats[:, 0, 2], quats[:, 0, 0]))
    yaw, step = 2 * half, np.diff(joints, axis=0)
    frames = len(step)
    local = joints[:-1] - joints[:-1, :1] * [1.0, 0.0, 1.0]
    out = np.empty((frames, NUM_FEATURES))
    out[:, 0] = np.diff(half)
    out[:, 1:3] = _turn(step[:, 0], yaw[1:])[:, [0, 2]]
    out[:, 3] = joints[:-1, 0, 1]
    out[:, RIC] = _turn(local[:, 1:], yaw[:-1, None]).reshape(frames, -1)
    out[:, ROTATIONS] = _columns(quats[:-1, 1:]).reshape(frames, -1)
    out[:, VELOCITIES] = _turn(step, yaw[:-1, None]).reshape(frames, -1)
    out[:, CONTACTS] = (step[:, _FEET] ** 2).sum(axis=-1) < _CONTACT_SPEED2
    return out.astype(np.float32)


def _root_path(features):
    """Yaw to +z `(T,)` in radians and root positions `(T, 3)` in metres."""
    yaw = np.concatenate([[0.0], 2 * np.cumsum(features[:-1, 0])])
    step = np.zeros((len(features), 3))
    step[1:, [0, 2]] = features[:-1, 1:3]
    root = np.cumsum(_turn(step, -yaw), axis=0)
    root[:, 1] = features[:, 3]
    return yaw, root


def decode(features: np.ndarray, *, extra_pose: bool = False) -> np.ndarray:
    """Joint positions from the root and RIC blocks.

    Args:
        features: (T, 263), not normalised.
        extra_pose: append the pose after the last row, from that row's velocities. With it all `T + 1` poses behind
            `T` rows come back.

    Returns:
        (T, 22, 3) float64, metres, or (T + 1, 22, 3). The first frame stands at x = z = 0 with yaw 0.

    Source: HumanML3D `recover_from_ric`; the files `new_joints` hold exactly this, without the extra pose.
    """
    features = _check_features(features)
    yaw, root = _root_path(features)
    joints = np.empty((len(features), NUM_JOINTS, 3))
    joints[:, 0] = root
    joints[:, 1:] = _turn(features[:, RIC].reshape(-1, NUM_JOINTS - 1, 3), -yaw[:, None])
    joints[:, 1:] += root[:, None] * [1.0, 0.0, 1.0]
    if extra_pose:
        step = _turn(features[-1, VELOCITIES].reshape(NUM_JOINTS, 3), -yaw[-1])
        joints = np.concatenate([joints, joints[-1:] + step])
    return joints


def decode_rotations(features: np.ndarray, offsets: np.ndarray = OFFSETS) -> np.ndarray:
    """Joint positions from the root and rotation blocks: exact bone lengths, even for features that a model made.

    Args:
        features: (T, 263), not normalised.
        offsets: (22, 3) metres, bones to rebuild the body with.

    Returns:
        (T, 22, 3) float64, metres.

    Source: HumanML3D `recover_from_rot`. The root enters with its own yaw, not the inverse: rotations of the format
    include the heading.
    """
    features, offsets = _check_features(features), _check(offsets, (3,), "offsets", NUM_JOINTS)
    yaw, root = _root_path(features)
    zero = np.zeros_like(yaw)
    columns = np.empty((len(features), NUM_JOINTS, 6))
    columns[:, 0] = np.stack([np.cos(yaw), zero, -np.sin(yaw), zero, zero + 1, zero], axis=-1)
    columns[:, 1:] = features[:, ROTATIONS].reshape(-1, NUM_JOINTS - 1, 6)
    return _chain_up(_matrices(columns), root, offsets)


def process(joints: np.ndarray, fps: float, *, retarget: bool = True, floor: str = "min") -> np.ndarray:
    """From recorded joints to features: resample, retarget, canonicalize, encode.

    Args:
        joints: (T, 22, 3) metres, at `fps`, any placement and heading.
        fps: float > 0, frames per second of `joints`.
        retarget: give the body the reference bones; False keeps its own.
        floor: see `canonicalize`.

    Returns:
        (T' - 1, 263) float32 for T' frames at 20 fps.

    Raises:
        ValueError: as the four steps; at least two frames must remain at 20 fps.

    Source: HumanML3D `process_file`. The reference implementation keeps the bones of video subjects; here every body
    gets the reference bones by default, so that proportions tell nothing about the person and features stay within the
    statistics of the source data.
    """
    joints = resample(joints, fps)
    return encode(canonicalize(_rescale(joints, OFFSETS) if retarget else joints, floor))


def recut(features: np.ndarray, start: int, length: int) -> np.ndarray:
    """A window of a clip, with the features that a fresh transform of its poses would give.

    Slicing rows is not enough: the rotation block contains the heading turned since frame 0 of the clip, so a slice of
    a clip that turns has rotations unlike those of any clip that starts there. The window is placed by its own first
    frame (x, z and heading); its heights stay, because the floor is known from the whole clip and a window in mid-jump
    must not be pulled down to it.

    Args:
        features: (T, 263), not normalised.
        start: int in [0, T - 1], first row.
        length: int in [1, T - start], rows.

    Returns:
        (length, 263) float32.

    Raises:
        ValueError: a window that leaves the clip.

    Source: our correction; the reference implementation slices. The pose after the window comes from the next row or,
    at the end of the clip, from the last row's velocities, so that row's velocities and contacts are the original
    ones.
    """
    features = _check_features(features)
    total, stop = len(features), start + length
    if start < 0 or length < 1 or stop > total:
        raise ValueError(f"a window of {length} rows from row {start} is not within the {total} rows of the clip")
    poses = decode(features[start : stop + 1]) if stop < total else decode(features[start:], extra_pose=True)
    return encode(_place(poses))


def reconcile(features: np.ndarray, position_std: float = 0.1222436, velocity_std: float = 0.0194703) -> np.ndarray:
    r"""The nearest features of a real body to features that a model made.

    A vector says where each joint is and, again, how fast it moves; on generated vectors the two disagree. An error of
    a tenth of a standard deviation is a centimetre in a position, which trembles from frame to frame, but only two
    millimetres in a velocity. Poses are therefore the least-squares solution of both,
    :math:`\min_p\sum_t|p_t-\hat p_t|^2/\sigma_p^2+|p_{t+1}-p_t-\hat v_t|^2/\sigma_v^2`, per joint; then every bone
    gets its reference length along its direction, legs bend so that the feet stay where the solution has them, and the
    features are made again.

    Args:
        features: (T, 263), not normalised.
        position_std, velocity_std: metres and metres per frame, how far apart the two blocks spread in the data the
            model was trained on; by default the official statistics of HumanML3D.

    Returns:
        (T, 263) float32. Features of a real clip on the reference bones come back as they are, up to rounding.

    Source: ours. The reference implementation takes the positions and leaves the contradiction.
    """
    features = _check_features(features)
    rows = len(features)
    yaw, _ = _root_path(features)
    step = (
        _turn(features[:, VELOCITIES].reshape(rows, NUM_JOINTS, 3), -yaw[:, None]).reshape(rows, -1) / velocity_std**2
    )
    # T positions and T velocities determine T + 1 poses, of which the last has no position of its own.
    right = np.zeros((rows + 1, 3 * NUM_JOINTS))
    right[:-1] = decode(features).reshape(rows, -1) / position_std**2 - step
    right[1:] += step
    banded = np.zeros((2, rows + 1))
    banded[0, 1:] = -1 / velocity_std**2
    banded[1, :-1] = 1 / position_std**2 + 1 / velocity_std**2
    banded[1, 1:] += 1 / velocity_std**2
    joints = solveh_banded(banded, right).reshape(rows + 1, NUM_JOINTS, 3)
    return encode(_keep_feet(_hang(joints[:, 0], _bones(joints)[0], BONE_LENGTHS), joints, BONE_LENGTHS))


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Mean and standard deviation of the features; works on numpy arrays and torch tensors `(..., 263)` alike.

    Args:
        mean: (263,) float32.
        std: (263,) float32, positive, equal inside each group of features.

    Raises:
        ValueError: wrong shape, not finite, or a standard deviation that is not positive.

    Source: HumanML3D `Mean.npy` and `Std.npy`. Target data are normalised with the statistics of the source, so that
    pre-trained weights keep their meaning.
    """

    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self):
        for name in ("mean", "std"):
            value = np.asarray(getattr(self, name), dtype=np.float32)
            if value.shape != (NUM_FEATURES,) or not np.isfinite(value).all():
                raise ValueError(f"{name} has shape {value.shape}, expected ({NUM_FEATURES},) of finite numbers")
            object.__setattr__(self, name, value)
        if self.std.min() <= 0:
            worst = int(self.std.argmin())
            raise ValueError(f"std of feature {worst} is {self.std[worst]}, expected positive; fit on clips that move")

    @classmethod
    def fit(cls, clips):
        """Mean and population std over all frames of `(T, 263)` arrays; std is averaged inside each feature group."""
        clips = [_check_features(features) for features in clips]
        if not clips:
            raise ValueError("there are no clips to fit statistics on, expected at least one")
        frames = np.concatenate(clips)
        return cls.grouped(frames.mean(axis=0), frames.std(axis=0))

    @classmethod
    def grouped(cls, mean, std):
        """From the mean and population std `(263,)` of each feature; std is averaged inside each feature group."""
        return cls(mean, _group(std))

    @classmethod
    def load(cls, folder):
        """Read `Mean.npy` and `Std.npy` from a folder."""
        arrays = []
        for name in ("Mean.npy", "Std.npy"):
            path = Path(folder) / name
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing, expected the statistics of the features; fit and save them"
                )
            arrays.append(np.load(path, allow_pickle=False))
        return cls(*arrays)

    def save(self, folder):
        """Write `Mean.npy` and `Std.npy` into a folder, which is made if needed."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.save(Path(folder) / "Mean.npy", self.mean)
        np.save(Path(folder) / "Std.npy", self.std)

    def normalize(self, x):
        """(x - mean) / std."""
        return (x - _like(self.mean, x)) / _like(self.std, x)

    def denormalize(self, x):
        """x * std + mean."""
        return x * _like(self.std, x) + _like(self.mean, x)


def _group(std):
    """Each feature's std replaced by the average of its group, so that small joints are not blown up to unit noise."""
    out = np.empty(NUM_FEATURES)
    for group in _STD_GROUPS:
        out[group] = std[group].mean()
    return out


def _like(values, x):
    return x.new_tensor(values) if hasattr(x, "new_tensor") else values
