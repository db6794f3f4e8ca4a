"""Numbers that judge motions, windows and classifiers, with their intervals; arrays in, plain numbers out.

Shares and rates are fractions in [0, 1], never percent. Nothing here draws from global randomness.
"""

from __future__ import annotations

import numpy as np
from scipy import signal, stats
from scipy.spatial.distance import pdist

from kinemic.motion import FPS, PARENTS

__all__ = [
    "accuracy",
    "average_precision",
    "balanced_accuracy",
    "bone_length_drift",
    "confusion",
    "diversity",
    "foot_slip",
    "frechet_distance",
    "high_frequency_share",
    "in_class_frames",
    "jerk",
    "joint_speed",
    "kernel_distance",
    "mean_interval",
    "multimodality",
    "oracle_iou",
    "paired_interval",
    "per_class",
    "proportion_interval",
    "random_iou",
    "retrieval_precision",
    "window_iou",
]

TOES = [10, 11]
CONTACT_HEIGHT = 0.05  # metres above the lowest point of that toe in the clip


# Sets of features -----------------------------------------------------------------------------------------------------


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    r"""Squared Frechet distance of two Gaussians, :math:`|\mu_a-\mu_b|^2+tr(S_a+S_b-2(S_aS_b)^{1/2})`.

    Args:
        a: (N, D) features, N >= 2.
        b: (M, D) features, M >= 2.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite.

    Source: paper, intrinsic metrics; unbiased covariances as in the reference implementation. The trace is taken from
    the symmetric product S_a^(1/2) S_b S_a^(1/2), which needs no complex numbers and no term added to the diagonal
    when there are fewer items than dimensions. With few items the value is biased upwards: see `kernel_distance`.
    """
    a, b = _two_sets(a, b)
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.clip(values, 0, None))  # root @ root.T is cov_a
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root.T @ cov_b @ root), 0, None)).sum()
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return float(max(distance, 0.0))


def kernel_distance(a: np.ndarray, b: np.ndarray, degree: int = 3) -> float:
    """Unbiased squared maximum mean discrepancy (KID) with the kernel (x.y / D + 1)^degree.

    Args:
        a: (N, D) features, N >= 2.
        b: (M, D) features, M >= 2.
        degree: of the polynomial.

    Returns:
        Around 0 for equal distributions, whatever N and M; may be slightly negative.

    Source: Binkowski et al. 2018; all pairs in place of random subsets. Not in the paper, which uses 320 items in 256
    dimensions, too few for the Frechet distance.
    """
    a, b = _two_sets(a, b)

    def kernel(x, y):
        return (x @ y.T / a.shape[1] + 1.0) ** degree

    def within(x):
        gram = kernel(x, x)
        return (gram.sum() - np.trace(gram)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def diversity(features: np.ndarray, rng: np.random.Generator, pairs: int = 300) -> float:
    """Mean Euclidean distance of random pairs.

    Args:
        features: (N, D), N >= 2.
        rng: draws two independent orders without replacement, so a pair may hold one item twice.
        pairs: pairs compared; with N < pairs items the exact mean over all distinct pairs is taken.

    Source: reference implementation.
    """
    features = _features(features, "features")
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}, must be at least 1")
    if len(features) < pairs:
        return float(pdist(features).mean())
    first, second = (rng.permutation(len(features))[:pairs] for _ in range(2))
    return float(np.linalg.norm(features[first] - features[second], axis=1).mean())


def multimodality(features: np.ndarray, labels: np.ndarray, rng: np.random.Generator, pairs: int = 10) -> float:
    """Mean over conditions of the `diversity` among repeats of one condition.

    Args:
        features: (N, D).
        labels: (N,) condition of each item; every condition needs at least 2.
        rng, pairs: see `diversity`.

    Source: reference implementation as intended: every condition counts, where its condition is inverted by mistake.
    """
    features, labels = _features(features, "features"), np.asarray(labels)
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape}, expected ({len(features)},), one per item")
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise ValueError(f"condition {names[counts.argmin()]} has one item, need at least 2 to compare")
    return float(np.mean([diversity(features[labels == name], rng, pairs) for name in names]))


# Classification -------------------------------------------------------------------------------------------------------


def accuracy(logits: np.ndarray, labels: np.ndarray, top: int = 1) -> float:
    """Share of items whose label is among the `top` highest logits; ties go to the lower class.

    Args:
        logits: (N, K).
        labels: (N,) int in [0, K).
        top: 1 to K.
    """
    logits, labels = _logits(logits, labels)
    if not 1 <= top <= logits.shape[1]:
        raise ValueError(f"top is {top}, expected 1 to {logits.shape[1]}")
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > true) | ((logits == true) & earlier)).sum(axis=1)
    return float((rank < top).mean())


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (K, K) int64: row true class, column predicted class."""
    logits, labels = _logits(logits, labels)
    counts = np.zeros((logits.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
    return counts


def per_class(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy of each class (K,); NaN for a class without items."""
    counts = confusion(logits, labels)
    total = counts.sum(axis=1)
    return np.where(total > 0, counts.diagonal() / np.maximum(total, 1), np.nan)


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `per_class` over the classes that have items."""
    return float(np.nanmean(per_class(logits, labels)))


# Intervals ------------------------------------------------------------------------------------------------------------


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over independent runs with its Student t interval: (mean, low, high).

    Args:
        values: (R,) one number per run, R >= 2. A run should redraw everything that may vary (shots, generator and
            classifier seeds), or the interval speaks of less than it seems to.
        confidence: in (0, 1).
    """
    values = _numbers(values, "values", 2)
    mean, spread = values.mean(), stats.sem(values)
    half = spread * stats.t.ppf(0.5 + confidence / 2, len(values) - 1)
    return float(mean), float(mean - half), float(mean + half)


def proportion_interval(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """Proportion with its Wilson interval: (hits / total, low, high)."""
    if not 0 <= hits <= total or total < 1:
        raise ValueError(f"hits is {hits} of {total}, expected 0 <= hits <= total and total >= 1")
    interval = stats.binomtest(int(hits), int(total)).proportion_ci(confidence, method="wilson")
    return hits / total, float(interval.low), float(interval.high)


def paired_interval(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean of a - b with its bootstrap percentile interval: (difference, low, high).

    Args:
        a: (N,) score of each test item under one method, e.g. 1.0 where it is right; N >= 2.
        b: (N,) score of the same items under the other.
        rng: draws the resamples; items are drawn with replacement, both scores of an item together.
        confidence: in (0, 1).
        resamples: number of resamples.
    """
    a, b = _numbers(a, "a", 2), _numbers(b, "b", 2)
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} items and b {len(b)}, expected scores of the same items")
    difference = a - b
    result = stats.bootstrap(
        (difference,),
        np.mean,
        n_resamples=resamples,
        batch=100,
        confidence_level=confidence,
        method="percentile",
        rng=rng,
    )
    return float(difference.mean()), float(result.confidence_interval.low), float(result.confidence_interval.high)


# Windows and retrieval ------------------------------------------------------------------------------------------------


def window_iou(start: np.ndarray, length: np.ndarray, truth_start: np.ndarray, truth_end: np.ndarray) -> np.ndarray:
    """Intersection over union of [start, start + length) and [truth_start, truth_end), in frames.

    Args:
        start, length, truth_start, truth_end: shapes that broadcast; both intervals hold at least one frame.

    Returns:
        float64 of the broadcast shape, in [0, 1].
    """
    start, length, truth_start, truth_end = np.broadcast_arrays(start, length, truth_start, truth_end)
    if (length < 1).any() or (truth_end <= truth_start).any():
        raise ValueError("an interval holds no frame, expected length >= 1 and truth_end > truth_start")
    end = start + length
    shared = np.clip(np.minimum(end, truth_end) - np.maximum(start, truth_start), 0, None)
    return shared / (length + (truth_end - truth_start) - shared)


def oracle_iou(num_frames: int, length: int, truth_start: int, truth_end: int) -> float:
    """Best `window_iou` that a window of this length can reach inside a clip of num_frames."""
    return float(_all_starts(num_frames, length, truth_start, truth_end).max())


def random_iou(num_frames: int, length: int, truth_start: int, truth_end: int) -> float:
    """Expected `window_iou` of a start drawn uniformly from 0 to num_frames - length; exact."""
    return float(_all_starts(num_frames, length, truth_start, truth_end).mean())


def in_class_frames(start: np.ndarray, length: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """Share of a window's frames that lie in at least one interval of its class.

    Args:
        start, length: shapes that broadcast; frames, start >= 0, length >= 1.
        intervals: (S, 2) int, half-open [start, end) frames of one clip; may overlap; S may be 0.

    Returns:
        float64 of the broadcast shape, in [0, 1].
    """
    start, length = np.broadcast_arrays(start, length)
    intervals = np.asarray(intervals, dtype=np.int64).reshape(-1, 2)
    if (start < 0).any() or (length < 1).any() or (intervals < 0).any() or (intervals[:, 1] < intervals[:, 0]).any():
        raise ValueError("expected start >= 0, length >= 1 and intervals 0 <= start <= end, in frames")
    inside = np.zeros(max(int((start + length).max(initial=0)), int(intervals.max(initial=0))), dtype=np.int64)
    for first, last in intervals:
        inside[first:last] = 1
    total = np.concatenate([[0], np.cumsum(inside)])
    return (total[start + length] - total[start]) / length


def retrieval_precision(indices: np.ndarray, relevance: np.ndarray, k: int) -> np.ndarray:
    """Share of relevant items among the first k retrieved, per query.

    Args:
        indices: (N, k') int, items in order of retrieval, k' >= k.
        relevance: (N, M) bool.
        k: at least 1.

    Returns:
        (N,) float64.
    """
    indices, relevance = np.asarray(indices), np.asarray(relevance, dtype=bool)
    if indices.ndim != 2 or relevance.ndim != 2 or len(indices) != len(relevance) or len(indices) == 0:
        raise ValueError(f"indices {indices.shape} and relevance {relevance.shape}, expected (N, k') and (N, M)")
    if not 1 <= k <= indices.shape[1]:
        raise ValueError(f"k is {k}, expected 1 to {indices.shape[1]}, the number of retrieved items")
    if indices.min() < 0 or indices.max() >= relevance.shape[1]:
        raise ValueError(f"indices from {indices.min()} to {indices.max()}, expected 0 to {relevance.shape[1] - 1}")
    return np.take_along_axis(relevance, indices[:, :k], axis=1).mean(axis=1)


def average_precision(scores: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Mean of the precision at the rank of each relevant item, per query; ties keep the order of the items.

    Args:
        scores: (N, M), higher is retrieved earlier.
        relevance: (N, M) bool.

    Returns:
        (N,) float64; NaN for a query without a relevant item.
    """
    scores, relevance = np.asarray(scores, dtype=np.float64), np.asarray(relevance, dtype=bool)
    if scores.ndim != 2 or scores.shape != relevance.shape:
        raise ValueError(f"scores {scores.shape} and relevance {relevance.shape}, expected one shape (N, M)")
    hits = np.take_along_axis(relevance, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    total = hits.sum(axis=1)
    return np.where(total > 0, (precision * hits).sum(axis=1) / np.maximum(total, 1), np.nan)


# Kinematics -----------------------------------------------------------------------------------------------------------


def joint_speed(joints: np.ndarray, fps: float = FPS) -> np.ndarray:
    """Speed (T - 1, J) in m/s of positions (T, J, 3) in metres."""
    return np.linalg.norm(_difference(joints, fps, 1), axis=-1)


def jerk(joints: np.ndarray, fps: float = FPS) -> np.ndarray:
    """Size (T - 3, J) in m/s^3 of the third derivative of positions (T, J, 3) in metres."""
    return np.linalg.norm(_difference(joints, fps, 3), axis=-1)


def high_frequency_share(joints: np.ndarray, fps: float = FPS, cutoff: float = 5.0) -> float:
    """Share of the velocity's energy above a frequency: large for shaky motion.

    Args:
        joints: (T, J, 3) metres, T >= 3.
        fps: frames per second.
        cutoff: Hz, below fps / 2. People rarely move faster than 5 Hz.

    Returns:
        In [0, 1], over all joints together; 0 for a body that does not move.
    """
    if not 0 < cutoff < fps / 2:
        raise ValueError(f"cutoff is {cutoff} Hz, expected above 0 and below {fps / 2} Hz, half the frame rate")
    velocity = _difference(joints, fps, 1, minimum=3)
    frequency, power = signal.periodogram(velocity, fps, axis=0, detrend=False)
    total = power.sum()
    return float(power[frequency > cutoff].sum() / total) if total > 0 else 0.0


def foot_slip(joints: np.ndarray, fps: float = FPS) -> float:
    """Mean horizontal speed in m/s of a toe while it is on the ground.

    Args:
        joints: (T, 22, 3) metres, y up, T >= 2. A toe counts as grounded in a step from one frame to the next if it
            is less than 5 cm above its lowest point of the clip in both.
        fps: frames per second.

    Returns:
        NaN where no toe is grounded for two frames in a row.
    """
    velocity = _difference(joints, fps, 1)[:, TOES]
    height = np.asarray(joints)[:, TOES, 1]
    low = height < height.min(axis=0) + CONTACT_HEIGHT
    grounded = low[1:] & low[:-1]
    speed = np.hypot(velocity[..., 0], velocity[..., 2])
    return float(speed[grounded].mean()) if grounded.any() else float("nan")


def bone_length_drift(joints: np.ndarray) -> np.ndarray:
    """Largest relative change of each bone against its mean length in the clip: (21,), bone to parent of joints 1..21.

    Args:
        joints: (T, 22, 3) metres.
    """
    joints = _positions(joints, 1)
    if joints.shape[1] != len(PARENTS):
        raise ValueError(f"joints have shape {joints.shape}, expected (T, {len(PARENTS)}, 3)")
    length = np.linalg.norm(joints[:, 1:] - joints[:, PARENTS[1:]], axis=-1)
    mean = length.mean(axis=0)
    return np.abs(length - mean).max(axis=0) / np.maximum(mean, 1e-9)


# Checks ---------------------------------------------------------------------------------------------------------------


def _features(features, name):
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise ValueError(f"{name} have shape {features.shape}, expected (N, D) with N >= 2")
    if not np.isfinite(features).all():
        row = int(np.argwhere(~np.isfinite(features))[0, 0])
        raise ValueError(f"{name}: a value that is not finite in row {row}; leave the item out or mend its clip")
    return features


def _two_sets(a, b):
    a, b = _features(a, "a"), _features(b, "b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a has {a.shape[1]} dimensions and b {b.shape[1]}, expected features of one network")
    return a, b


def _logits(logits, labels):
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0 or labels.dtype.kind not in "iu":
        raise ValueError(f"logits {logits.shape}, labels {labels.shape} {labels.dtype}, expected (N, K) and N integers")
    if np.isnan(logits).any():
        raise ValueError(f"logits: NaN in row {int(np.argwhere(np.isnan(logits))[0, 0])}; the classifier has diverged")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 0 to {logits.shape[1] - 1}")
    return logits, labels


def _numbers(values, name, minimum):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < minimum or not np.isfinite(values).all():
        raise ValueError(f"{name}: shape {values.shape}, expected at least {minimum} finite numbers in one row")
    return values


def _positions(joints, minimum):
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 3 or joints.shape[2] != 3 or len(joints) < minimum:
        raise ValueError(f"joints have shape {joints.shape}, expected (T, J, 3) with T >= {minimum}")
    if not np.isfinite(joints).all():
        row = int(np.argwhere(~np.isfinite(joints))[0, 0])
        raise ValueError(f"joints: a value that is not finite in frame {row}; repair or leave out the clip")
    return joints


def _difference(joints, fps, order, minimum=None):
    if not fps > 0:
        raise ValueError(f"fps is {fps}, expected frames per second above 0")
    return np.diff(_positions(joints, minimum or order + 1), n=order, axis=0) * float(fps) ** order


def _all_starts(num_frames, length, truth_start, truth_end):
    if not 1 <= length <= num_frames or not 0 <= truth_start < truth_end <= num_frames:
        raise ValueError(
            f"window of {length} and truth [{truth_start}, {truth_end}) in a clip of {num_frames} frames: "
            "expected both to hold a frame and to fit into the clip"
        )
    return window_iou(np.arange(num_frames - length + 1), length, truth_start, truth_end)
