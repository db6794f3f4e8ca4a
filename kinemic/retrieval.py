"""Soft positives: source motions whose captions are near a target class in the space of a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Neighbours", "caption_means", "sample_partners", "soft_positives"]


@dataclass(frozen=True)
class Neighbours:
    """Nearest source motions of each query.

    Attributes:
        indices: (N, k) int64 rows of the source bank, most similar first.
        scores: (N, k) float32 cosines.
    """

    indices: np.ndarray
    scores: np.ndarray


def _unit(x: np.ndarray, what: str) -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"{what} must be a finite (N, E) array, found shape {x.shape}")
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if (norm == 0).any():
        raise ValueError(f"{what}: row {int((norm == 0).argmax())} is zero, so it has no direction")
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
    return np.add.reduceat(_unit(features, "caption features"), starts, axis=0) / counts[:, None].astype(np.float32)


def soft_positives(queries: np.ndarray, bank: np.ndarray, k: int) -> Neighbours:
    """Exact top-k by cosine; equal scores keep the order of the bank.

    Args:
        queries: (N, E) features of the target captions.
        bank: (M, E) one vector per source motion.
        k: neighbours per query, at most M.

    Raises:
        ValueError: k is not in 1..M, or a vector is zero or not finite.

    Source: paper, soft positive search, k = 250.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"top_k is {k}, the source has {len(bank)} motions: choose 1 to {len(bank)}")
    scores = _unit(queries, "queries") @ _unit(bank, "source bank").T
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Neighbours(indices, np.take_along_axis(scores, indices, axis=1))


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
