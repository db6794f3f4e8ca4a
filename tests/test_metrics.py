"""Each metric against a closed form, a library, or a plain loop."""

import numpy as np
import pytest
from scipy import linalg, stats
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from kinemic import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def spread_points(mean, deviations):
    """2 D points with exactly this mean and, as unbiased covariance, the diagonal of deviations**2."""
    mean, deviations = np.asarray(mean, float), np.asarray(deviations, float)
    n = 2 * len(mean)
    steps = np.diag(deviations) * np.sqrt((n - 1) / 2)
    return mean + np.concatenate([steps, -steps])


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    a, b = spread_points([0, 1, 2], [1, 2, 3]), spread_points([1, 1, 0], [2, 2, 0.5])
    closed = (1 + 0 + 4) + (1 - 2) ** 2 + 0 + (3 - 0.5) ** 2
    assert metrics.frechet_distance(a, b) == pytest.approx(closed, rel=1e-10)


def test_frechet_distance_agrees_with_a_matrix_square_root(rng):
    a, b = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(40, 6)) + 0.3
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_a_set_to_itself_is_zero_even_with_fewer_items_than_dimensions(rng):
    a = rng.normal(size=(10, 30))
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert metrics.frechet_distance(a, a + 2) == pytest.approx(4 * 30, rel=1e-6)


def test_frechet_distance_does_not_depend_on_order(rng):
    a, b = rng.normal(size=(20, 5)), rng.normal(size=(30, 5)) * 2
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a), rel=1e-9)


def test_kernel_distance_is_unbiased_where_frechet_distance_is_not(rng):
    kernel, frechet = [], []
    for _ in range(60):
        a, b = rng.normal(size=(25, 8)), rng.normal(size=(25, 8))
        kernel.append(metrics.kernel_distance(a, b))
        frechet.append(metrics.frechet_distance(a, b))
    assert abs(np.mean(kernel)) < 4 * stats.sem(kernel)
    assert np.mean(frechet) > 10 * stats.sem(frechet)
    assert metrics.kernel_distance(a, b + 1) > 10 * np.std(kernel)


def test_kernel_distance_is_the_sum_over_pairs(rng):
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    aa = np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    bb = np.mean([kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    ab = np.mean([kernel(x, y) for x in a for y in b])
    assert metrics.kernel_distance(a, b) == pytest.approx(aa + bb - 2 * ab)


def test_diversity_of_few_items_is_the_mean_over_all_pairs(rng):
    points = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    assert metrics.diversity(points, rng) == pytest.approx((5 + 4 + 3) / 3)


def test_diversity_of_many_items_comes_close_to_the_exact_mean_and_is_fixed_by_the_seed(rng):
    points = rng.normal(size=(400, 3))
    drawn = metrics.diversity(points, np.random.default_rng(1))
    assert drawn == metrics.diversity(points, np.random.default_rng(1))
    assert drawn == pytest.approx(metrics.diversity(points, rng, pairs=401), rel=0.1)


def test_multimodality_looks_inside_conditions_only(rng):
    points = np.array([[0.0], [2.0], [100.0], [104.0]])
    assert metrics.multimodality(points, [0, 0, 1, 1], rng) == pytest.approx(3)
    with pytest.raises(ValueError, match="condition 1 has one item"):
        metrics.multimodality(points, [0, 0, 0, 1], rng)


def test_classification_scores_agree_with_scikit_learn(rng):
    logits, labels = rng.normal(size=(90, 4)), rng.integers(0, 4, 90)
    predicted = logits.argmax(1)
    assert metrics.accuracy(logits, labels) == pytest.approx((predicted == labels).mean())
    assert metrics.accuracy(logits, labels, top=2) == pytest.approx(top_k_accuracy_score(labels, logits, k=2))
    assert metrics.balanced_accuracy(logits, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert np.array_equal(metrics.confusion(logits, labels), confusion_matrix(labels, predicted))


def test_top1_agrees_with_argmax_on_ties_and_a_class_without_items_is_nan():
    logits, labels = np.zeros((3, 3)), np.array([0, 1, 1])
    assert metrics.accuracy(logits, labels) == pytest.approx(1 / 3)
    assert metrics.accuracy(logits, labels, top=2) == 1
    assert np.array_equal(metrics.per_class(logits, labels), [1, 0, np.nan], equal_nan=True)
    assert metrics.balanced_accuracy(logits, labels) == pytest.approx(0.5)


def test_mean_interval_is_the_student_interval():
    values = np.array([0.5, 0.6, 0.8])
    low, high = stats.t.interval(0.95, 2, values.mean(), values.std(ddof=1) / np.sqrt(3))
    assert metrics.mean_interval(values) == pytest.approx((values.mean(), low, high))


def test_proportion_interval_is_wilsons_formula():
    hits, n, z = 8, 30, stats.norm.ppf(0.975)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert metrics.proportion_interval(hits, n) == pytest.approx((p, centre - half, centre + half))
    assert metrics.proportion_interval(30, 30)[2] == pytest.approx(1)


def test_paired_interval_uses_the_pairing(rng):
    hard = rng.normal(size=200)  # difficulty of an item, shared by both methods
    a, b = hard + 0.1 + 0.05 * rng.normal(size=200), hard
    difference, low, high = metrics.paired_interval(a, b, np.random.default_rng(0))
    assert low < difference < high and 0.08 < low and high < 0.12
    assert (difference, low, high) == metrics.paired_interval(a, b, np.random.default_rng(0))
    assert metrics.paired_interval(b, b, rng) == (0, 0, 0)
    with pytest.raises(ValueError, match="same items"):
        metrics.paired_interval(a, b[:-1], rng)


def test_window_scores_agree_with_counting_frames():
    for frames, length, first, last in [(12, 4, 3, 9), (12, 9, 3, 5), (7, 7, 0, 7), (10, 3, 9, 10)]:
        truth, scores = set(range(first, last)), []
        for start in range(frames - length + 1):
            window = set(range(start, start + length))
            scores.append(len(window & truth) / len(window | truth))
            share = metrics.in_class_frames(start, length, [[first, last - 1], [last - 1, last], [first, last]])
            assert share == pytest.approx(len(window & truth) / length)
        assert metrics.window_iou(np.arange(len(scores)), length, first, last) == pytest.approx(scores)
        assert metrics.oracle_iou(frames, length, first, last) == pytest.approx(max(scores))
        assert metrics.random_iou(frames, length, first, last) == pytest.approx(np.mean(scores))
    assert metrics.in_class_frames(2, 3, []) == 0


def test_retrieval_scores_agree_with_loops_and_scikit_learn(rng):
    scores, relevance = rng.normal(size=(6, 15)), rng.random((6, 15)) < 0.4
    relevance[:, 0] = True
    order = np.argsort(-scores, axis=1)
    counted = [np.mean([relevance[n, i] for i in order[n, :5]]) for n in range(6)]
    assert metrics.retrieval_precision(order, relevance, 5) == pytest.approx(counted)
    expected = [average_precision_score(relevance[n], scores[n]) for n in range(6)]
    assert metrics.average_precision(scores, relevance) == pytest.approx(expected)
    assert np.isnan(metrics.average_precision(scores[:1], np.zeros((1, 15), bool)))[0]


def test_speed_and_jerk_of_a_cubic_path_are_its_derivatives():
    t = np.arange(20) / 20
    joints = np.zeros((20, 22, 3))
    joints[:, 3, 0], joints[:, 5, 2] = 2 * t, t**3
    assert metrics.joint_speed(joints)[:, 3] == pytest.approx(2)
    assert metrics.jerk(joints)[:, 5] == pytest.approx(6)
    assert metrics.jerk(joints)[:, 3] == pytest.approx(0, abs=1e-9)


def test_high_frequency_share_tells_slow_from_fast_oscillation():
    t = np.arange(201) / 20  # 200 velocities: whole periods of both oscillations
    slow, fast = np.zeros((201, 22, 3)), np.zeros((201, 22, 3))
    slow[:, 20, 1], fast[:, 20, 1] = np.sin(2 * np.pi * t), 0.1 * np.sin(2 * np.pi * 8 * t)
    assert metrics.high_frequency_share(slow) == pytest.approx(0, abs=1e-9)
    assert metrics.high_frequency_share(fast) == pytest.approx(1)
    velocity = [np.sum(np.diff(x[:, 20, 1]) ** 2) for x in (slow, fast)]
    assert metrics.high_frequency_share(slow + fast) == pytest.approx(velocity[1] / sum(velocity))
    assert metrics.high_frequency_share(np.ones((9, 22, 3))) == 0


def test_foot_slip_counts_horizontal_speed_of_grounded_toes_only():
    joints = np.zeros((21, 22, 3))
    joints[:, 10, 0] = 0.3 * np.arange(21) / 20  # left toe slides at 0.3 m/s
    joints[1:-1, 11, 1] = 1.0  # right toe is on the ground in the first and last frame only
    joints[:, 11, 2] = np.arange(21)
    assert metrics.foot_slip(joints) == pytest.approx(0.3)


def test_bones_of_a_rigid_walk_do_not_drift_and_a_stretched_one_does(walk):
    joints = walk()
    assert metrics.bone_length_drift(joints).max() < 1e-9
    joints[:, 15] += 0.02 * np.arange(len(joints))[:, None] / len(joints)
    drift = metrics.bone_length_drift(joints)
    assert drift[14] > 0.01 and np.delete(drift, 14).max() < 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.frechet_distance(np.zeros((1, 3)), np.zeros((5, 3))), "a have shape"),
        (lambda: metrics.frechet_distance(np.zeros((4, 3)), np.zeros((5, 2))), "3 dimensions"),
        (lambda: metrics.kernel_distance(np.zeros((4, 1)), np.array([[0], [np.nan]])), "row 1"),
        (lambda: metrics.accuracy(np.zeros((2, 3)), [0, 3]), "expected 0 to 2"),
        (lambda: metrics.accuracy(np.zeros((2, 3)), [0.0, 1.0]), "N integers"),
        (lambda: metrics.accuracy(np.full((2, 3), np.nan), [0, 1]), "NaN in row 0"),
        (lambda: metrics.accuracy(np.zeros((2, 3)), [0, 1], top=4), "top is 4"),
        (lambda: metrics.mean_interval([0.5]), "at least 2"),
        (lambda: metrics.proportion_interval(4, 3), "hits is 4 of 3"),
        (lambda: metrics.window_iou(0, 0, 0, 3), "holds no frame"),
        (lambda: metrics.random_iou(5, 6, 0, 3), "fit into the clip"),
        (lambda: metrics.in_class_frames(-1, 3, []), "start >= 0"),
        (lambda: metrics.retrieval_precision(np.zeros((1, 2), int), np.ones((1, 4)), 3), "k is 3"),
        (lambda: metrics.joint_speed(np.zeros((1, 22, 3))), "T >= 2"),
        (lambda: metrics.jerk(np.full((9, 22, 3), np.inf)), "frame 0"),
        (lambda: metrics.high_frequency_share(np.zeros((9, 22, 3)), cutoff=10), "half the frame rate"),
        (lambda: metrics.bone_length_drift(np.zeros((9, 5, 3))), "expected"),
    ],
)
def test_bad_input_raises_one_line_that_says_what_was_found(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
