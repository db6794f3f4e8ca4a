"""Laws of the skeleton and the features; the oracle is the official vectors where they are at hand."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemic import motion


def released(shared_data):
    """(path, vectors, stored joints) of every released clip."""
    for folder in ("humanml3d-sample", "ntu-vibe-fewshot"):
        for path in sorted((shared_data / folder / "new_joint_vecs").glob("*.npy")):
            joints = np.load(shared_data / folder / "new_joints" / path.name)
            yield path, np.load(path), joints.reshape(-1, 22, 3)


def yawed(joints, angle):
    c, s = np.cos(angle), np.sin(angle)
    return joints @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def bone_lengths(joints):
    return np.stack([np.linalg.norm(joints[:, b] - joints[:, a], axis=-1) for a, b in motion.BONES], axis=-1)


def placed(joints):
    """Canonical placement of poses whose heights stay: written anew, with a rotation matrix, as an oracle."""
    joints = joints - joints[0, 0] * [1, 0, 1]
    across = joints[0, 2] - joints[0, 1] + joints[0, 17] - joints[0, 16]
    forward = np.cross([0, 1, 0], across)
    return yawed(joints, -np.arctan2(forward[0], forward[2]))


# --- skeleton


def test_chains_cover_every_bone_once():
    bones = [(a, b) for chain in motion.CHAINS for a, b in zip(chain[:-1], chain[1:], strict=True)]
    assert sorted(bones) == sorted(motion.BONES)
    assert all(motion.PARENTS[b] == a for a, b in motion.BONES)


def test_mirror_pairs_are_left_and_right_of_one_name():
    for left, right in motion.MIRROR_PAIRS:
        assert motion.JOINT_NAMES[left] == motion.JOINT_NAMES[right].replace("right", "left")


def test_feature_blocks_tile_the_vector():
    blocks = [motion.ROOT, motion.RIC, motion.ROTATIONS, motion.VELOCITIES, motion.CONTACTS]
    assert [i for block in blocks for i in range(motion.NUM_FEATURES)[block]] == list(range(motion.NUM_FEATURES))


# --- official vectors


def test_encode_returns_the_official_vectors(shared_data):
    vectors = np.load(shared_data / "humanml3d-sample" / "new_joint_vecs" / "012314.npy")
    again = motion.encode(motion.decode(vectors))
    # the heading filter of the last 80 rows saw a pose that positions alone do not hold
    np.testing.assert_allclose(again[:-80], vectors[: len(again) - 80], atol=1e-5)
    np.testing.assert_array_equal(again[:, motion.CONTACTS], vectors[:-1, motion.CONTACTS])


def test_with_the_extra_pose_every_official_row_comes_back(shared_data):
    for path, vectors, _ in released(shared_data):
        again = motion.encode(motion.decode(vectors, extra_pose=True))
        np.testing.assert_allclose(again, vectors, atol=1e-5, err_msg=path.name)


def test_decode_returns_the_stored_joints(shared_data):
    count = 0
    for path, vectors, joints in released(shared_data):
        np.testing.assert_allclose(motion.decode(vectors), joints, atol=1e-6, err_msg=path.name)
        count += 1
    assert count == 32


def test_released_bodies_have_the_reference_bones(shared_data):
    joints = motion.decode(np.load(shared_data / "humanml3d-sample" / "new_joint_vecs" / "012314.npy"))
    np.testing.assert_allclose(bone_lengths(joints), np.tile(motion.BONE_LENGTHS[1:], (len(joints), 1)), atol=1e-5)


def test_both_inverses_agree_on_released_clips(shared_data):
    for path, vectors, joints in released(shared_data):
        offsets = motion.DIRECTIONS * np.append(0, bone_lengths(joints[:1].astype(np.float64))[0])[:, None]
        rebuilt = motion.decode_rotations(vectors, offsets)
        np.testing.assert_allclose(rebuilt, motion.decode(vectors), atol=1e-5, err_msg=path.name)


OFFICIAL_STD = [0.01282556, 0.01692710, 0.15376593, 0.12224359, 0.29969180, 0.01947031, 0.35593265]
GROUPS = [(0, 1), (1, 3), (3, 4), (4, 67), (67, 193), (193, 259), (259, 263)]


def test_official_std_is_constant_in_the_groups_of_fit(shared_data):
    official = motion.Normalizer.load(shared_data / "humanml3d-sample")
    for (start, stop), value in zip(GROUPS, OFFICIAL_STD, strict=True):
        np.testing.assert_allclose(official.std[start:stop], value, rtol=1e-5)
    # frames at mean +- std have the official statistics, so fitting them must return the official table
    frames = np.stack([official.mean - official.std, official.mean + official.std]).astype(np.float64)
    again = motion.Normalizer.fit([frames])
    np.testing.assert_allclose(again.mean, official.mean, atol=1e-6)
    np.testing.assert_allclose(again.std, official.std, rtol=1e-5)


# --- laws of the transform


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    frames=st.integers(2, 90),
    heading=st.floats(-10, 10),
    turn=st.floats(-0.5, 0.5),
    start=st.tuples(st.floats(-50, 50), st.floats(-5, 5), st.floats(-50, 50)),
)
def test_decode_inverts_encode_for_any_heading_and_start(walk, seed, frames, heading, turn, start):
    noise = np.random.default_rng(seed).normal(0, 0.02, (frames, 22, 3))
    joints = walk(frames=frames, heading=heading, turn=turn, seed=seed) + noise
    joints = motion.retarget(joints) + np.array(start)
    canonical = motion.canonicalize(joints)
    features = motion.encode(canonical)
    np.testing.assert_allclose(motion.decode(features, extra_pose=True), canonical, atol=1e-5)
    np.testing.assert_allclose(motion.decode(features), canonical[:-1], atol=1e-5)
    np.testing.assert_allclose(motion.decode_rotations(features), canonical[:-1], atol=1e-5)


def test_start_and_heading_change_nothing(walk):
    joints = walk(50, heading=0.0)
    moved = yawed(joints, 2.3) + [7.0, -0.4, 3.0]
    expected = motion.encode(motion.canonicalize(joints))
    np.testing.assert_allclose(motion.encode(motion.canonicalize(moved)), expected, atol=1e-6)


def test_a_body_that_turns_right_round_keeps_its_yaw_rate(walk):
    # 200 frames at 0.04 rad make 1.3 turns, through the direction opposite to the first
    features = motion.encode(motion.canonicalize(walk(201, turn=0.04)))
    np.testing.assert_allclose(features[80:120, 0], -0.02, atol=2e-3)  # half angle
    assert (features[1:, 0] < 0).all()


def test_blocks_without_heading_do_not_see_a_later_turn(walk):
    straight, curved = (motion.encode(motion.canonicalize(walk(200, turn=turn))) for turn in (0.0, 0.02))
    rows = slice(90, 110)  # far from both ends of the heading filter
    np.testing.assert_allclose(curved[rows, motion.RIC], straight[rows, motion.RIC], atol=0.01)
    assert np.abs(curved[rows, motion.ROTATIONS] - straight[rows, motion.ROTATIONS]).mean() > 0.1


def test_walking_ahead_is_positive_z_velocity_at_the_right_speed(walk):
    features = motion.encode(motion.canonicalize(walk(40, heading=1.0, turn=0.0)))
    np.testing.assert_allclose(features[5:-5, 2], 0.05, atol=0.01)  # 0.05 m per frame by construction
    np.testing.assert_allclose(features[5:-5, 1], 0.0, atol=0.01)


def test_contacts_mark_slow_feet():
    body = motion.forward_kinematics(np.tile([1.0, 0, 0, 0], (3, 22, 1)), np.tile([0, 0.93, 0], (3, 1)))
    body[2, 7] += [0.0, 0.0, 0.05]  # the left ankle moves 5 cm, above the threshold of 4.5 cm
    contacts = motion.encode(body)[:, motion.CONTACTS]
    np.testing.assert_array_equal(contacts, [[1, 1, 1, 1], [0, 1, 1, 1]])


def test_kinematics_agree_with_a_hand_set_elbow():
    quats = np.tile([1.0, 0, 0, 0], (1, 22, 1))
    quats[0, 18] = [
        np.sqrt(0.5),
        -np.sqrt(0.5),
        0,
        0,
    ]  # the left upper arm, hanging at rest, swings forward by 90 degrees
    joints = motion.forward_kinematics(quats, np.zeros((1, 3)))
    np.testing.assert_allclose(joints[0, 18] - joints[0, 16], [0, 0, motion.BONE_LENGTHS[18]], atol=1e-12)
    np.testing.assert_allclose(joints[0, 20] - joints[0, 18], [0, 0, motion.BONE_LENGTHS[20]], atol=1e-12)


@pytest.mark.parametrize("smooth", [False, True])
def test_forward_inverts_inverse_kinematics(walk, smooth):
    joints = walk(30)
    quats = motion.inverse_kinematics(joints, smooth)
    np.testing.assert_allclose(np.linalg.norm(quats, axis=-1), 1.0, atol=1e-12)
    np.testing.assert_allclose(motion.forward_kinematics(quats, joints[:, 0]), joints, atol=1e-9)


def test_a_bone_opposite_to_its_rest_direction_is_encoded(walk):
    joints = walk(10)
    joints[:, 18] = joints[:, 16] + [0, motion.BONE_LENGTHS[18], 0]  # arm straight up, rest direction straight down
    joints[:, 20] = joints[:, 18] + [0, motion.BONE_LENGTHS[20], 0]
    features = motion.encode(joints)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(motion.decode_rotations(features), motion.decode(features), atol=1e-5)


# --- placement, bones, grid


def test_canonical_first_frame_stands_on_the_origin_and_faces_z(walk):
    joints = motion.canonicalize(walk(20, heading=-2.0) + [3.0, 1.0, -4.0])
    assert joints[..., 1].min() == 0
    np.testing.assert_allclose(joints[0, 0, [0, 2]], 0, atol=1e-12)
    across = joints[0, 1] - joints[0, 2] + joints[0, 16] - joints[0, 17]
    assert across[0] > 0
    np.testing.assert_allclose(across[2], 0, atol=1e-12)


def test_lowest_floor_is_the_mean_of_twenty_heights(walk):
    joints = walk(20)
    joints[5, 10, 1] -= 1.0  # one bad foot must not lift the whole body by a metre
    expected = np.sort(joints[..., 1].ravel())[:20].mean()
    np.testing.assert_allclose(motion.canonicalize(joints, "lowest")[..., 1], joints[..., 1] - expected, atol=1e-12)


def test_retarget_gives_the_reference_bones_and_keeps_directions(walk):
    rng = np.random.default_rng(0)
    child = walk(30) * 0.6
    child[:, 20] += 0.05 * rng.normal(size=(30, 3))
    adult = motion.retarget(child)
    np.testing.assert_allclose(bone_lengths(adult), np.tile(motion.BONE_LENGTHS[1:], (30, 1)), atol=1e-12)
    np.testing.assert_allclose(adult[:, 0], child[:, 0] / 0.6, atol=1e-9)
    # oracle: the long way round, through rotations
    rebuilt = motion.forward_kinematics(motion.inverse_kinematics(child), child[:, 0] / 0.6)
    np.testing.assert_allclose(adult, rebuilt, atol=1e-9)


def test_mirror_twice_is_the_identity_and_once_swaps_sides(walk):
    joints = walk(12)
    mirrored = motion.mirror(joints)
    np.testing.assert_array_equal(motion.mirror(mirrored), joints)
    np.testing.assert_array_equal(mirrored[:, 20], joints[:, 21] * [-1, 1, 1])
    np.testing.assert_array_equal(mirrored[:, 15], joints[:, 15] * [-1, 1, 1])


@pytest.mark.parametrize(
    ("fps", "frames", "expected"), [(30, 31, 21), (30, 30, 20), (120, 7, 2), (20, 9, 9), (25, 2, 1)]
)
def test_resample_uses_the_exact_grid(fps, frames, expected):
    ramp = np.arange(frames)[:, None, None] / fps * np.ones((1, 22, 3))  # every coordinate is the time in seconds
    resampled = motion.resample(ramp, fps)
    assert len(resampled) == expected
    np.testing.assert_allclose(resampled[:, 0, 0], np.arange(expected) / 20, atol=1e-12)


def test_resample_at_the_same_rate_is_the_identity(walk):
    np.testing.assert_array_equal(motion.resample(walk(33), 20), walk(33))


def test_process_is_its_four_steps(walk):
    joints = walk(40) * 0.9 + [1.0, 2.0, 3.0]
    steps = motion.encode(motion.canonicalize(motion.retarget(motion.resample(joints, 30)), "lowest"))
    np.testing.assert_array_equal(motion.process(joints, 30, floor="lowest"), steps)
    own = motion.decode(motion.process(joints, 20, retarget=False))
    np.testing.assert_allclose(bone_lengths(own), np.tile(0.9 * motion.BONE_LENGTHS[1:], (len(own), 1)), atol=1e-5)


# --- windows


@pytest.mark.parametrize(("start", "length"), [(0, 59), (17, 30), (40, 19), (58, 1)])
def test_recut_of_a_turned_source_is_a_fresh_transform(walk, start, length):
    poses = motion.canonicalize(walk(60, turn=0.06)) + [0.0, 0.3, 0.0]  # in mid-air: heights must stay
    window = motion.recut(motion.encode(poses), start, length)
    fresh = motion.encode(placed(poses[start : start + length + 1]))
    np.testing.assert_allclose(window, fresh, atol=1e-5)


def test_a_slice_of_a_turned_source_is_not_a_fresh_transform(walk):
    features = motion.encode(motion.canonicalize(walk(60, turn=0.06)))
    window = motion.recut(features, 30, 20)
    assert np.abs(window - features[30:50])[:, motion.ROTATIONS].mean() > 0.1
    assert np.abs(window - features[30:50])[:, motion.RIC].max() < 0.15


def test_recut_of_the_whole_clip_is_the_clip(shared_data, walk):
    made = motion.encode(motion.canonicalize(walk(60)))
    for vectors in [made, *(vectors for _, vectors, _ in released(shared_data))]:
        np.testing.assert_allclose(motion.recut(vectors, 0, len(vectors)), vectors, atol=1e-5)


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, 0), (5, 6), (10, 1)])
def test_a_window_outside_the_clip_is_refused(walk, start, length):
    features = motion.encode(walk(11))
    with pytest.raises(ValueError, match="10 rows"):
        motion.recut(features, start, length)


# --- statistics


def test_fit_averages_the_population_std_inside_groups():
    clips = [np.random.default_rng(seed).normal(seed, 1 + seed, (20 + seed, 263)) for seed in range(3)]
    normalizer = motion.Normalizer.fit(clips)
    frames = np.concatenate(clips)
    np.testing.assert_allclose(normalizer.mean, frames.mean(0), rtol=1e-5)
    for start, stop in GROUPS:
        np.testing.assert_allclose(normalizer.std[start:stop], frames.std(0)[start:stop].mean(), rtol=1e-5)


def test_normalizer_survives_the_disk_and_serves_numpy_and_torch(tmp_path):
    rng = np.random.default_rng(0)
    normalizer = motion.Normalizer(rng.normal(size=263), rng.uniform(0.1, 2, 263))
    normalizer.save(tmp_path / "new")
    again = motion.Normalizer.load(tmp_path / "new")
    np.testing.assert_array_equal(again.std, normalizer.std)
    x = rng.normal(size=(2, 5, 263)).astype(np.float32)
    z = again.normalize(x)
    assert z.dtype == np.float32
    np.testing.assert_allclose(again.denormalize(z), x, atol=1e-5)
    tensor = again.normalize(torch.from_numpy(x))
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy(), z, atol=1e-6)


def test_normalizer_refuses_bad_statistics(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Mean\.npy is missing"):
        motion.Normalizer.load(tmp_path)
    with pytest.raises(ValueError, match="std of feature 0 is 0.0"):
        motion.Normalizer(np.zeros(263), np.zeros(263))
    with pytest.raises(ValueError, match="no clips"):
        motion.Normalizer.fit([])


# --- bad input


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 200


def nan_at(frame):
    joints = np.zeros((5, 22, 3))
    joints[frame, 3, 1] = np.nan
    return joints


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: motion.encode(np.zeros((5, 21, 3))), r"shape \(5, 21, 3\), expected \(frames, 22, 3\)"),
        (lambda: motion.encode(nan_at(3)), "not finite in frame 3"),
        (lambda: motion.encode(np.zeros((1, 22, 3))), "1 frame.*expected at least 2"),
        (lambda: motion.encode(np.zeros((0, 22, 3))), "0 frame"),
        (lambda: motion.encode(np.zeros((4, 22, 3))), "no length in frame 0|no heading"),
        (lambda: motion.process(np.random.default_rng(0).normal(size=(2, 22, 3)), 30), "1 frame"),
        (lambda: motion.decode(np.zeros((4, 262))), r"expected \(frames, 263\)"),
        (lambda: motion.decode(np.full((4, 263), np.inf)), "not finite in frame 0"),
        (lambda: motion.resample(np.zeros((4, 22, 3)), 0), "frame rates are 0 and 20"),
        (lambda: motion.canonicalize(np.zeros((4, 22, 3)), "mean"), "floor is 'mean'"),
        (lambda: motion.retarget(np.zeros((4, 22, 3))), "no length in frame 0"),
        (lambda: motion.forward_kinematics(np.ones((4, 22, 4)), np.zeros((3, 3))), "4 frames, root positions 3"),
    ],
)
def test_bad_input_gives_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert one_line(error)


def test_encode_is_fast_enough_for_the_training_loop(walk):
    joints = walk(46)
    seconds = []
    for _ in range(30):
        begin = time.perf_counter()
        motion.encode(joints)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1.5e-3  # the best of many, so that a busy machine does not fail the test


def test_reconcile_returns_the_features_of_a_real_body_unchanged(walk):
    features = motion.encode(walk(frames=60, heading=0.0, turn=0.03))
    again = motion.reconcile(features)
    # The smoothed heading of the last rows sees one pose more or less; everything else is the same.
    np.testing.assert_allclose(motion.decode(again), motion.decode(features), atol=1e-4)
    np.testing.assert_allclose(again[:, motion.VELOCITIES], features[:, motion.VELOCITIES], atol=1e-4)


def test_reconcile_bends_the_legs_where_a_thigh_is_too_long(walk):
    features = motion.encode(walk(frames=60, heading=0.0, turn=0.0)).astype(np.float64)
    joints = motion.decode(features)
    knees = features[:, motion.RIC].reshape(len(features), 21, 3)[:, [3, 4]]
    knees += 0.2 * (joints[:, [4, 5]] - joints[:, [1, 2]])  # no turn: local axes are global ones
    wrong = features.copy()
    wrong[:, motion.RIC].reshape(len(features), 21, 3)[:, [3, 4]] = knees
    wrong[:-1, motion.VELOCITIES].reshape(len(features) - 1, 22, 3)[:, [4, 5]] += 0.2 * np.diff(
        joints[:, [4, 5]] - joints[:, [1, 2]], axis=0
    )
    mended = motion.decode(motion.reconcile(wrong))
    ankles = [7, 8]
    assert np.linalg.norm(motion.decode(wrong)[:, 4] - joints[:, 4], axis=-1).min() > 0.05
    np.testing.assert_allclose(mended[:, ankles], joints[:, ankles], atol=2e-3)
    bones = np.linalg.norm(mended[:, 1:] - mended[:, motion.PARENTS[1:]], axis=-1)
    np.testing.assert_allclose(bones, np.broadcast_to(motion.BONE_LENGTHS[1:], bones.shape), atol=1e-5)


def test_reconcile_removes_contradictions_of_a_noised_vector(walk):
    """Noise of a tenth of a standard deviation in every feature, as a small generator leaves it."""
    features = motion.encode(walk(frames=60, heading=0.0, turn=0.0)).astype(np.float64)
    rng = np.random.default_rng(0)
    noised = features.copy()
    for block, std in ((motion.RIC, 0.122), (motion.ROTATIONS, 0.3), (motion.VELOCITIES, 0.0195)):
        noised[:, block] += 0.1 * std * rng.standard_normal(features[:, block].shape)
    mended = motion.reconcile(noised)
    clean, before, after = (motion.decode(f) for f in (features, noised, mended))

    def roughness(joints):
        return np.linalg.norm(np.diff(joints, 3, axis=0), axis=-1).mean()

    assert roughness(after) < 0.4 * roughness(before)
    assert np.linalg.norm(after - clean, axis=-1).mean() < 0.7 * np.linalg.norm(before - clean, axis=-1).mean()
    bones = np.linalg.norm(after[:, 1:] - after[:, motion.PARENTS[1:]], axis=-1)
    np.testing.assert_allclose(bones, np.broadcast_to(motion.BONE_LENGTHS[1:], bones.shape), atol=1e-5)
    velocity = np.diff(after, axis=0)[:, 0, 1]
    np.testing.assert_allclose(mended[:-1, motion.VELOCITIES][:, 1], velocity, atol=1e-5)
