"""The recogniser: its graph and network against plain loops, its sampling by brute force, and that it learns."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kinemic import har, motion

SMALL = dict(channels=4, depth=4, clip_len=16, batch_size=8, lr=0.05)  # a second of training on one core


@pytest.fixture(scope="module")
def two_actions(walk):
    """Factory of walks that bend left or right, and their labels: `two_actions(first seed, clips)`."""

    def make(seed, count=16):
        turns = [0.06 if i % 2 else -0.06 for i in range(count)]
        clips = [walk(24 + 3 * (i % 5), turn=turns[i], heading=0, seed=seed + i) for i in range(count)]
        return [clip.astype(np.float32) for clip in clips], np.arange(count) % 2

    return make


@pytest.fixture(scope="module")
def trained(two_actions):
    return har.fit(*two_actions(0), 2, updates=40, seed=3, classes=["right", "left"], **SMALL)


def test_equal_epochs_give_the_published_numbers_of_updates():
    """Real only, synthetic only, both, and all real clips of the classes, in batches of 64."""
    assert [har.epoch_updates(count, 64) for count in (30, 1152, 1182, 1112)] == [40, 1440, 1480, 1400]


def test_adjacency_has_the_published_entries_and_its_columns_sum_to_one():
    graph = har.adjacency()
    assert [int((subset != 0).sum()) for subset in graph] == [22, 36, 6]
    assert torch.argwhere(graph[2]).tolist() == [[0, 1], [0, 2], [0, 3], [1, 4], [2, 5], [3, 6]]
    assert torch.allclose(graph.sum(dim=(0, 1)), torch.ones(22))
    linked = {(parent, child) for child, parent in enumerate(motion.PARENTS) if parent >= 0}
    assert {(v, w) for _, v, w in torch.argwhere(graph).tolist() if v < w} == linked


def test_published_size_has_the_published_number_of_parameters():
    model = har.STGCN(3)
    assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith("head")) == 3_079_164
    assert model.features(torch.zeros(1, 8, 22, 3)).shape == (1, 256)


def batch_norm(x, norm):
    """Evaluation-mode batch normalisation of the last axis."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (x - norm.running_mean) * scale + norm.bias


def convolve_time(x, conv, norm):
    """Temporal convolution of (B, T, V, C), one output frame at a time, then normalisation."""
    kernel, stride = conv.weight.shape[-1], conv.stride[1]
    half, frames = kernel // 2, x.shape[1]
    out = []
    for centre in range(0, frames, stride):
        y = conv.bias + torch.zeros(x.shape[0], 22, len(conv.bias))
        for tap in range(kernel):
            if 0 <= centre + tap - half < frames:
                y = y + x[:, centre + tap - half] @ conv.weight[:, :, 0, tap].T
        out.append(y)
    return batch_norm(torch.stack(out, dim=1), norm)


def plain_features(model, x):
    """The network written as its definition: x (B, T, V, C), mix channels first, then joint by joint."""
    graph = har.adjacency()
    x = batch_norm(x.flatten(2), model.input_norm).view(x.shape)
    for index, block in enumerate(model.blocks):
        mixed = (x @ block.mix.weight.T + block.mix.bias).unflatten(-1, (3, -1))  # (B, T, V, 3, C)
        y = torch.zeros(*x.shape[:3], mixed.shape[-1])
        for k, v, w in torch.argwhere(graph).tolist():
            y[:, :, w] += graph[k, v, w] * block.edges[k, v, w] * mixed[:, :, v, k]
        y = convolve_time(torch.relu(batch_norm(y, block.mix_norm)), block.time, block.time_norm)
        if block.shortcut is not None:
            y = y + convolve_time(x, block.shortcut, block.shortcut_norm)
        elif index > 0:
            y = y + x
        x = torch.relu(y)
    return x.mean(dim=(1, 2))


def test_network_agrees_with_plain_loops_over_edges_and_frames():
    generator = torch.Generator().manual_seed(0)
    model = har.STGCN(3, channels=4, depth=6).eval()
    for value in model.state_dict().values():  # every parameter and statistic differs from its start
        if value.is_floating_point():
            value.copy_(
                0.3
                + 0.7
                * torch.rand(value.shape, generator=generator)
                * (1 if value.ndim == 1 else torch.randn(value.shape, generator=generator))
            )
    x = torch.randn(2, 11, 22, 3, generator=generator)
    with torch.no_grad():
        expected = plain_features(model, x)
        assert torch.allclose(model.features(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("length", "clip_len"), [(1, 4), (7, 10), (10, 10), (13, 10), (19, 10), (20, 10), (57, 10)])
def test_sampled_frames_follow_the_rule_for_each_length(length, clip_len):
    rng = np.random.default_rng(0)
    drawn = np.array([har.uniform_sample(length, clip_len, rng) for _ in range(300)])
    fixed = har.uniform_sample(length, clip_len)
    assert drawn.shape == (300, clip_len) and fixed.shape == (clip_len,)
    assert set(np.unique(drawn)) == set(range(length))  # every frame can be met
    if length < clip_len:
        loops = {tuple((first + i) % length for i in range(clip_len)) for first in range(length)}
        assert {tuple(row) for row in drawn.tolist()} == loops
        assert fixed.tolist() == [i % length for i in range(clip_len)]
        return
    assert fixed.tolist() == [math.floor((i + 0.5) * length / clip_len) for i in range(clip_len)]
    if clip_len < length < 2 * clip_len:  # at most one frame is dropped in a row, the ends like any other
        assert np.diff(drawn, axis=1).max() == 2
        assert set(drawn[:, 0]) == {0, 1} and set(drawn[:, -1]) == {length - 2, length - 1}
    for row in [*drawn, fixed]:
        assert (np.diff(row) > 0).all() and row[0] >= 0 and row[-1] < length
        if length >= 2 * clip_len:
            assert all(i * length // clip_len <= frame < (i + 1) * length // clip_len for i, frame in enumerate(row))


def test_pelvis_placement_only_shifts_and_forgets_where_the_clip_was(walk):
    joints = walk(20)
    placed = har.normalise(joints, "pelvis")
    assert np.allclose(placed[0, 0], 0) and placed.dtype == np.float32
    assert np.allclose(placed, har.normalise(joints + [3.0, 0.5, -2.0], "pelvis"), atol=1e-5)
    assert np.allclose(np.diff(placed, axis=0), np.diff(joints, axis=0), atol=1e-5)
    assert np.allclose(har.normalise(joints, "none"), joints, atol=1e-6)


def test_root_placement_forgets_travel_and_keeps_height(walk):
    joints = walk(20)
    placed = har.normalise(joints, "root")
    assert np.allclose(placed[:, 0, [0, 2]], 0, atol=1e-6) and placed[0, 0, 1] == 0
    assert np.allclose(placed[:, 0, 1], joints[:, 0, 1] - joints[0, 0, 1], atol=1e-6)
    slide = np.linspace(0, 3, 20)[:, None, None] * [1.0, 0.0, -2.0]
    assert np.allclose(placed, har.normalise(joints + slide, "root"), atol=1e-5)
    assert np.allclose(placed - placed[:, :1], joints - joints[:, :1], atol=1e-5)


def test_reference_placement_turns_hip_then_leg_vectors_onto_axes(walk):
    joints = walk(20, heading=0.0)
    placed = har.normalise(joints, "reference").astype(np.float64)
    assert np.allclose(placed[0, 21], 0, atol=1e-6)
    leg = placed[0, 8] - placed[0, 4]
    assert np.allclose(leg, [np.linalg.norm(leg), 0, 0], atol=1e-5)
    assert np.allclose(placed, har.normalise(joints @ np.diag([-1.0, 1, -1]) + 1, "reference"), atol=1e-4)  # half turn
    distances = np.linalg.norm(joints[:, :, None] - joints[:, None], axis=-1)
    assert np.allclose(np.linalg.norm(placed[:, :, None] - placed[:, None], axis=-1), distances, atol=1e-5)


def test_a_clip_gets_the_same_prediction_alone_and_in_a_batch(trained, two_actions):
    clips, _ = two_actions(100)
    together = trained.predict(clips)
    assert np.allclose(together[5:6], trained.predict(clips[5:6]), atol=1e-5)
    assert np.allclose(together[::-1], trained.predict(clips[::-1]), atol=1e-5)
    assert trained.embed(clips).shape == (16, 16)


def test_it_learns_actions_of_held_out_clips_and_nothing_from_shuffled_labels(trained, two_actions):
    clips, labels = two_actions(200, 40)
    assert (trained.predict(clips).argmax(1) == labels).mean() > 0.9
    train, true = two_actions(0)
    shuffled = np.repeat([0, 1], 8)  # half of each action in each class
    assert abs(np.corrcoef(shuffled, true)[0, 1]) < 1e-9
    fooled = har.fit(train, shuffled, 2, updates=40, seed=3, **SMALL)
    assert 0.2 < (fooled.predict(clips).argmax(1) == labels).mean() < 0.8


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(two_actions):
    clips, labels = two_actions(0)
    options = dict(updates=3, augment="standard", mirror=True, balance=True, sources=labels, **SMALL)
    before = torch.random.get_rng_state()
    first = har.fit(clips, labels, 2, seed=1, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(5)
    weights = [har.fit(clips, labels, 2, seed=seed, **options).model.state_dict() for seed in (1, 2)]
    assert all(torch.equal(value, weights[0][name]) for name, value in first.model.state_dict().items())
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])


def test_balance_gives_classes_and_origins_equal_shares():
    labels, sources = np.array([0, 0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 0, 1, 0, 1, 1])
    weights = har._weights(labels, True, None)
    assert np.bincount(labels, weights) == pytest.approx([1 / 3] * 3)
    weights = har._weights(labels, True, sources)
    assert np.bincount(labels, weights) == pytest.approx([1 / 3] * 3)
    assert weights[:4].sum() == pytest.approx(weights[4])
    assert np.bincount(sources, har._weights(labels, False, sources)) == pytest.approx([1 / 2] * 2)


def test_without_weights_every_clip_is_seen_once_before_any_is_seen_twice():
    batches = har._batches(None, 10, 4, np.random.default_rng(0))
    drawn = np.concatenate([next(batches) for _ in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))


def test_augmentation_turns_scales_and_mirrors_without_bending(walk):
    joints = har.normalise(walk(12))
    many = np.repeat(joints[None], 40, axis=0)
    out = har._augmented(many.copy(), "standard", True, np.random.default_rng(0))
    bones = np.linalg.norm(out[:, :, 1:] - out[:, :, motion.PARENTS[1:]], axis=-1)[..., [2, 14]]  # spine, head
    scale = bones / np.linalg.norm(joints[:, [3, 15]] - joints[:, [0, 12]], axis=-1)
    assert np.allclose(scale, scale[:, :1, :1], atol=1e-4) and scale.min() >= 0.9 - 1e-4 and scale.max() <= 1.1 + 1e-4
    assert np.allclose(out[..., 1].max(axis=(1, 2)), joints[..., 1].max() * scale[:, 0, 0], atol=1e-4)  # y stays up
    flipped = har._augmented(many.copy(), "none", True, np.random.default_rng(0))
    alternatives = [joints, motion.mirror(joints.astype(np.float64))]
    sides = {next(i for i, side in enumerate(alternatives) if np.allclose(clip, side, atol=1e-5)) for clip in flipped}
    assert sides == {0, 1}


def test_callback_sees_each_update_and_the_learning_rate_ends_at_zero(two_actions):
    clips, labels = two_actions(0)
    seen, weights = [], []

    def record(update, classifier):
        seen.append(update)
        classifier.predict(clips[:1])  # leaves evaluation mode behind; training must go on regardless
        weights.append(classifier.model.head.weight.detach().clone())

    classifier = har.fit(clips, labels, 2, updates=6, seed=0, callback=record, **SMALL)
    plain = har.fit(clips, labels, 2, updates=6, seed=0, **SMALL)
    assert seen == [1, 2, 3, 4, 5, 6] and len(classifier.losses) == 6
    assert torch.equal(classifier.model.head.weight, plain.model.head.weight)
    steps = [(b - a).norm() for a, b in zip(weights, weights[1:], strict=False)]
    assert steps[-1] < 0.5 * max(steps)


@pytest.mark.parametrize(
    "options",
    [dict(optimizer="adamw", lr=1e-3), dict(scheme="reference"), dict(scheme="none"), dict(augment="standard")],
    ids=str,
)
def test_every_option_takes_a_step(two_actions, options):
    clips, labels = two_actions(0)
    classifier = har.fit(clips, labels, 2, updates=2, seed=0, **{**SMALL, **options})
    assert np.isfinite(classifier.losses).all() and np.isfinite(classifier.predict(clips)).all()


def test_saved_and_loaded_classifier_predicts_the_same(trained, two_actions, tmp_path):
    clips, _ = two_actions(100)
    trained.save(tmp_path / "har.safetensors")
    loaded = har.Classifier.load(tmp_path / "har.safetensors")
    assert loaded.settings == trained.settings and loaded.settings["classes"] == ["right", "left"]
    assert np.array_equal(loaded.predict(clips), trained.predict(clips))
    assert [path.name for path in tmp_path.iterdir()] == ["har.safetensors"]


def test_missing_truncated_and_foreign_files_are_told_apart(trained, tmp_path):
    path = tmp_path / "har.safetensors"
    with pytest.raises(FileNotFoundError, match="no such classifier"):
        har.Classifier.load(path)
    trained.save(path)
    whole = path.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a complete safetensors file") as caught:
            har.Classifier.load(path)
        assert "\n" not in str(caught.value)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not a classifier of this package"):
        har.Classifier.load(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": har._FORMAT, "settings": '{"model": {}}'})
    with pytest.raises(ValueError, match="do not fit together"):
        har.Classifier.load(path)


def broken(clip):
    clip = clip.copy()
    clip[4, 7, 1] = np.nan
    return clip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, y: dict(clips=[*c[:-1], broken(c[-1])]), "clip 15: a value that is not finite in frame 4"),
        (lambda c, y: dict(clips=[c[0], c[1][:0], *c[2:]]), "clip 1: shape"),
        (lambda c, y: dict(clips=[c[0], c[1][:, :21], *c[2:]]), "clip 1: shape"),
        (lambda c, y: dict(clips=[], labels=[]), "no clips"),
        (lambda c, y: dict(labels=np.where(np.arange(16) == 6, 2, y)), "clip 6: label 2, expected 0 to 1"),
        (lambda c, y: dict(labels=y[:-1]), "one per clip"),
        (lambda c, y: dict(labels=y.astype(float)), "16 integers"),
        (lambda c, y: dict(sources=y[:-1]), "sources have shape"),
        (lambda c, y: dict(updates=0), "updates is 0"),
        (lambda c, y: dict(scheme="kinect"), "scheme is 'kinect'"),
        (lambda c, y: dict(augment="heavy"), "augment='heavy'"),
        (lambda c, y: dict(scheme="reference", mirror=True), "vertical axis"),
        (lambda c, y: dict(depth=3), "depth=3"),
        (lambda c, y: dict(clip_len=0), "clip_len 0"),
        (lambda c, y: dict(classes=["one"]), "1 class names for 2"),
        (lambda c, y: dict(lr=1e30, updates=5), "lower lr"),
    ],
)
def test_bad_input_raises_one_line_that_names_the_clip(two_actions, change, message):
    clips, labels = two_actions(0)
    options = {**dict(clips=clips, labels=labels, num_classes=2, updates=1, seed=0), **SMALL, **change(clips, labels)}
    with pytest.raises(ValueError, match=message) as caught:
        har.fit(**options)
    assert "\n" not in str(caught.value)


def test_wrong_shapes_and_lengths_raise(trained):
    with pytest.raises(ValueError, match="expected"):
        trained.model(torch.zeros(2, 5, 21, 3))
    with pytest.raises(ValueError, match="no clips"):
        trained.predict([])
    with pytest.raises(ValueError, match="at least 1"):
        har.uniform_sample(0, 4)
