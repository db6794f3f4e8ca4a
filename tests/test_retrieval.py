"""Soft positive search against scikit-learn and plain loops."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from kinemic.retrieval import caption_means, sample_partners, soft_positives


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(30, 6)).astype(np.float32)


def test_top_k_equals_the_exact_search_of_scikit_learn(vectors):
    queries, bank = vectors
    found = soft_positives(queries, bank, 7)
    distance, index = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(bank).kneighbors(queries)
    assert np.array_equal(found.indices, index)
    np.testing.assert_allclose(found.scores, 1 - distance, atol=1e-6)


def test_length_of_vectors_does_not_matter_and_ties_keep_their_order(vectors):
    queries, bank = vectors
    scaled = soft_positives(3 * queries, bank * np.linspace(1, 9, 30)[:, None], 30)
    assert np.array_equal(scaled.indices, soft_positives(queries, bank, 30).indices)
    assert soft_positives(np.ones((1, 2)), np.ones((5, 2)), 5).indices.tolist() == [[0, 1, 2, 3, 4]]


def test_caption_means_equal_a_loop_over_motions():
    rng = np.random.default_rng(1)
    x, counts = rng.normal(size=(9, 4)).astype(np.float32), [3, 1, 5]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    loop = [unit[:3].mean(0), unit[3], unit[4:].mean(0)]
    np.testing.assert_allclose(caption_means(x, counts), loop, atol=1e-6)
    assert np.linalg.norm(caption_means(x, counts)[0]) < 1  # the mean is not normalised again


def test_partners_come_from_the_clips_own_lists_uniformly():
    lists = [[np.array([1, 2]), np.array([3])], [np.array([9])]]
    rng = np.random.default_rng(0)
    drawn = np.array([sample_partners(lists, rng) for _ in range(4000)])
    assert set(drawn[:, 1]) == {9}
    share = [float((drawn[:, 0] == i).mean()) for i in (1, 2, 3)]  # a list first, then a member
    np.testing.assert_allclose(share, [0.25, 0.25, 0.5], atol=0.03)
    again = sample_partners(lists, np.random.default_rng(5)), sample_partners(lists, np.random.default_rng(5))
    assert np.array_equal(*again)


@pytest.mark.parametrize(("call", "said"), [
    (lambda q, b: soft_positives(q, b, 31), "top_k is 31, the source has 30"),
    (lambda q, b: soft_positives(q, b, 0), "choose 1 to 30"),
    (lambda q, b: soft_positives(q * np.nan, b, 3), "finite"),
    (lambda q, b: soft_positives(q, np.vstack([b, 0 * b[:1]]), 3), "row 30 is zero"),
    (lambda q, b: caption_means(b, [30, 0]), "motion 1 has no caption"),
    (lambda q, b: caption_means(b, [3]), "30 caption features for 3"),
])  # fmt: skip
def test_impossible_searches_are_refused(vectors, call, said):
    with pytest.raises(ValueError, match=said):
        call(*vectors)
