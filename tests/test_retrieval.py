"""Soft positive search against scikit-learn and plain loops."""

import weakref

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from kinemic import retrieval
from kinemic.retrieval import caption_means, sample_partners, soft_positives, unit_rows


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


@pytest.fixture
def corners():
    """Corners of a cube: their cosines are exact multiples of 1/16 in any order of summation, with hundreds of ties."""
    rng = np.random.default_rng(2)
    return rng.choice([-1.0, 1.0], size=(3, 16)), rng.choice([-1.0, 1.0], size=(1000, 16))


def by_full_sort(queries, bank, k):
    """Integers, so no rounding; Python's sort is stable."""
    scores = (queries @ bank.T).astype(int).tolist()
    return [sorted(range(len(bank)), key=lambda j, row=row: -row[j])[:k] for row in scores]


@pytest.mark.parametrize("k", [1, 7, 125, 126, 999, 1000])
@pytest.mark.parametrize("rows", [40, 256, 16_384])
def test_ties_keep_the_order_of_the_bank_also_at_the_borders_of_chunks(corners, monkeypatch, rows, k):
    queries, bank = corners
    monkeypatch.setattr(retrieval, "ROWS", rows)
    assert soft_positives(queries, bank, k).indices.tolist() == by_full_sort(queries, bank, k)


def test_a_bank_of_equal_vectors_is_listed_in_order_over_all_chunks():
    chunks = (np.ones((size, 4)) for size in (5, 0, 1, 90, 4))
    assert soft_positives(np.ones((2, 4)), chunks, 100).indices.tolist() == [list(range(100))] * 2


def test_array_memmap_and_stream_of_uneven_chunks_find_the_same(corners, tmp_path, monkeypatch):
    queries, bank = corners
    exact = soft_positives(queries, bank, 50)
    stored = np.memmap(tmp_path / "bank.f16", np.float16, "w+", shape=bank.shape)
    stored[:] = bank
    cuts = [0, 1, 49, 50, 400, 401, 1000]
    stream = (bank[a:b] for a, b in zip(cuts, cuts[1:], strict=False))
    monkeypatch.setattr(retrieval, "ROWS", 128)
    for found in (
        soft_positives(queries, stored, 50),
        soft_positives(queries, stream, 50),
        soft_positives(queries, unit_rows(bank), 50, normalised=True),
    ):
        assert np.array_equal(found.indices, exact.indices) and np.array_equal(found.scores, exact.scores)


def test_a_long_stream_is_never_held_whole():
    def chunks():
        nonlocal alive, most
        for i in range(40):
            chunk = np.random.default_rng(i).standard_normal((500, 8), np.float32)
            weakref.finalize(chunk, lambda: freed.append(1))
            alive += 1
            most = max(most, alive - len(freed))
            yield chunk
            del chunk

    alive, most, freed = 0, 0, []
    queries = np.random.default_rng(99).standard_normal((3, 8))
    found = soft_positives(queries, chunks(), 20)
    whole = np.concatenate([np.random.default_rng(i).standard_normal((500, 8), np.float32) for i in range(40)])
    _, index = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute").fit(whole).kneighbors(queries)
    assert np.array_equal(found.indices, index)
    assert alive == 40 and most <= 3


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
    (lambda q, b: soft_positives(q, b, 0), "top_k is 0: choose 1 or more"),
    (lambda q, b: soft_positives(q * np.nan, b, 3), "finite"),
    (lambda q, b: soft_positives(q, np.vstack([b, 0 * b[:1]]), 3), "row 30 is zero"),
    (lambda q, b: soft_positives(q, iter([b, np.vstack([b[:4], 0 * b[:1]])]), 3), "source bank: row 34 is zero"),
    (lambda q, b: soft_positives(q, iter([b, b]), 61), "top_k is 61, the source has 60 motions: choose 1 to 60"),
    (lambda q, b: soft_positives(q, iter([]), 1), "the source has 0 motions"),
    (lambda q, b: soft_positives(q[:, :5], b, 3), "queries have 5 features, the source bank 6: take both"),
    (lambda q, b: soft_positives(q, iter([b[0]]), 3, normalised=True), "queries have 6 features, the source bank"),
    (lambda q, b: caption_means(b, [30, 0]), "motion 1 has no caption"),
    (lambda q, b: caption_means(b, [3]), "30 caption features for 3"),
])  # fmt: skip
def test_impossible_searches_are_refused(vectors, call, said):
    with pytest.raises(ValueError, match=said):
        call(*vectors)
