"""Soft positives: source motions whose captions are near a target class in the space of a text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Neighbours", "caption_means", "sample_partners", "soft_positives", "unit_rows"]

ROWS = 49_152  # of the bank at a time: 100 MB of 512 features


@dataclass(frozen=True)
class Neighbours:
    """Nearest source motions of each query.

    Attributes:
        indices: (N, k) int64 rows of the source bank, most similar first.
        scores: (N, k) float32 cosines.
    """

    indices: np.ndarray
    scores: np.ndarray


def unit_rows(x: np.ndarray, what: str = "features", first: int = 0) -> np.ndarray:
    """Rows divided by their length.

    Args:
        x: (N, E) vectors.
        what: name of the vectors in messages.
        first: number of the first row in messages.

    Returns:
        (N, E) float32.

    Raises:
        ValueError: not two-dimensional, not finite, or a row is zero.
    """
    x = np.asarray(x, np.float32)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"{what} must be a finite (N, E) array, found shape {x.shape}")
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if (norm == 0).any():
        raise ValueError(f"{what}: row {first + int((norm == 0).argmax())} is zero, so it has no direction")
    return x / norm


def caption_means(features: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """One vector per motion: the mean of its normalised caption features, not normalised again.

    Args:
        features: (sum of counts, E) caption features, motion by motion.
        counts: captions per motion, at least one each.

    Returns:
        (N, E) float32.

    Source: paper, soft positive search.
    """
    counts = np.asarray(counts)
    if (counts < 1).any():
        raise ValueError(f"motion {int((counts < 1).argmax())} has no caption: leave it out of the source bank")
    if counts.sum() != len(features):
        raise ValueError(f"{len(features)} caption features for {counts.sum()} captions")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(unit_rows(features, "caption features"), starts, axis=0) / counts[:, None].astype(np.float32)


def _merge(best: Neighbours, scores: np.ndarray, first: int, k: int) -> Neighbours:
    """The k best of those so far and of the scores (N, m) of the bank's rows from `first` on; all if they are fewer."""
    N, M = scores.shape
    known = best.scores.shape[1]
    bounds = np.full(N, -np.inf, np.float32) if known < k else best.scores[:, -1]
    if M > 8 * k:
        # Of 4k groups of columns, k have a member that reaches the k-th highest group maximum. What lies below this
        # bound is not among the k highest; what remains, little more than k, is sorted instead of all M.
        groups = M // (4 * k)
        maxima = scores[:, : groups * 4 * k].reshape(N, groups, 4 * k).max(axis=1)
        bounds = np.maximum(bounds, np.partition(maxima, 3 * k, axis=1)[:, 3 * k])
    found = [np.flatnonzero(row >= bound) for row, bound in zip(scores, bounds, strict=True)]
    # The best so far stand first, so at equal scores the earlier row of the bank stays ahead.
    values = np.full((N, known + max(map(len, found))), -np.inf, np.float32)
    rows = np.zeros(values.shape, np.int64)
    values[:, :known], rows[:, :known] = best.scores, best.indices
    for i, columns in enumerate(found):
        values[i, known : known + len(columns)] = scores[i, columns]
        rows[i, known : known + len(columns)] = columns + first
    order = np.argsort(-values, axis=1, kind="stable")[:, : min(k, known + M)]
    return Neighbours(np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1))


def _chunks(bank: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    if isinstance(bank, np.ndarray):
        yield from (bank[first : first + ROWS] for first in range(0, len(bank), ROWS))
    else:
        yield from bank


def soft_positives(
    queries: np.ndarray, bank: np.ndarray | Iterable[np.ndarray], k: int, *, normalised: bool = False
) -> Neighbours:
    """Exact top-k by cosine; equal scores keep the order of the bank.

    The bank is read once, a chunk at a time, and only the k best so far are kept: besides one chunk, memory does not
    grow with the bank.

    Args:
        queries: (N, E) features of the target captions.
        bank: (M, E) one vector per source motion, of any floating type, also a `np.memmap`; or an iterable of chunks
            (m, E) in order, where the bank has no single array.
        k: neighbours per query, at most M.
        normalised: the rows of the bank have length one already (`unit_rows`), which saves looking at them again
            when one bank answers many calls; they are then not checked either.

    Raises:
        ValueError: k is not in 1..M, a vector is zero or not finite, or the widths differ.

    Source: paper, soft positive search, k = 250.
    """
    if k < 1:
        raise ValueError(f"top_k is {k}: choose 1 or more")
    wanted = unit_rows(queries, "queries")
    best = Neighbours(*(np.empty((len(wanted), 0), kind) for kind in (np.int64, np.float32)))
    total = 0
    for chunk in _chunks(bank):
        unit = np.asarray(chunk, np.float32) if normalised else unit_rows(chunk, "source bank", total)
        if unit.ndim != 2 or unit.shape[1] != wanted.shape[1]:
            raise ValueError(
                f"queries have {wanted.shape[1]} features, the source bank {' x '.join(map(str, unit.shape[1:]))}: "
                "take both from the same text encoder"
            )
        best = _merge(best, wanted @ unit.T, total, k)
        total += len(unit)
    if k > total:
        raise ValueError(f"top_k is {k}, the source has {total} motions: choose 1 to {total}")
    return best


def sample_partners(lists: Sequence[Sequence[np.ndarray]], rng: np.random.Generator) -> np.ndarray:
    """One source motion per target clip.

    Args:
        lists: per target clip, one array of source indices per caption.
        rng: source of randomness.

    Returns:
        (N,) int64: for each clip a list drawn uniformly, then a member drawn uniformly.

    Source: paper, pair sampling.
    """
    chosen = [own[rng.integers(len(own))] for own in lists]
    return np.array([members[rng.integers(len(members))] for members in chosen], dtype=np.int64)
