"""Laws of the made-up corpus: physics of the actions, truth of labels, separation of subjects, size of the noise."""

import itertools
import re

import numpy as np
import pytest

from kinemic import acting, metrics, motion, world
from kinemic.data import entries, few_shot, read_humanml3d, subject_disjoint, write_humanml3d

SMALL = {"source_clips": 16, "pool_clips": 2, "test_clips": 2}


@pytest.fixture(scope="module")
def small():
    return world.make_world(**SMALL, seed=3)


def performed(name, seed=0, subject=None):
    """One performance, by an average person or by a subject of the source."""
    actor = None if subject is None else world._actor(world._SOURCE, subject, 0)
    return world.perform(name, np.random.default_rng([17, seed]), actor)


def turned_to_body(joints):
    """Joints seen from the heading of frame 0, pelvis of frame 0 at x = z = 0."""
    return motion.canonicalize(joints)


def jerk(joints):
    """Mean size of the third derivative of the pelvis-centred joints, m/s^3."""
    return np.linalg.norm(np.diff(joints - joints[:, :1], n=3, axis=0), axis=-1).mean() * motion.FPS**3


def contact_slip(joints):
    """Horizontal speed (m/s) of the slower of ankle and toe of each foot, wherever that foot is on the floor."""
    speeds = []
    for ankle, toe in ((7, 10), (8, 11)):
        pair = joints[:, [ankle, toe]]
        speed = np.linalg.norm(np.diff(pair[..., [0, 2]], axis=0), axis=-1).min(axis=1) * motion.FPS
        height = (pair[..., 1] - np.quantile(pair[..., 1], 0.05, axis=0)).min(axis=1)
        speeds.append(speed[np.maximum(height[1:], height[:-1]) < 0.008])
    return np.concatenate(speeds)


# ------------------------------------------------------------------------------------------ every action


@pytest.mark.parametrize("name", world.PRIMITIVES)
def test_bones_keep_their_length(name):
    joints = performed(name)
    lengths = np.linalg.norm(joints[:, 1:] - joints[:, motion.PARENTS[1:]], axis=-1)
    assert np.isfinite(joints).all()
    np.testing.assert_allclose(lengths, np.broadcast_to(motion.BONE_LENGTHS[1:], lengths.shape), atol=1e-9)


@pytest.mark.parametrize("name", world.PRIMITIVES)
def test_feet_stay_above_the_floor_and_do_not_slide_on_it(name):
    for seed in range(3):
        joints = performed(name, seed)
        assert joints[..., 1].min() > -0.02
        slip = contact_slip(joints)
        assert len(slip) > 10
        assert slip.max() < 0.25 and slip.mean() < 0.03


@pytest.mark.parametrize("name", world.PRIMITIVES)
def test_knees_bend_forward_and_never_flip(name):
    for seed in range(3):
        joints = performed(name, seed)
        for hip, knee, ankle in ((1, 4, 7), (2, 5, 8)):
            hinge = np.cross(joints[:, knee] - joints[:, hip], joints[:, ankle] - joints[:, knee])
            assert hinge[0] @ (joints[0, 1] - joints[0, 2]) > 0  # standing, the axis points to the body's left
            bent = np.linalg.norm(hinge, axis=1) > 0.03
            axis = hinge[bent] / np.linalg.norm(hinge[bent], axis=1, keepdims=True)
            assert ((axis[1:] * axis[:-1]).sum(1) > 0.3).all()


@pytest.mark.parametrize("name", world.PRIMITIVES)
def test_hands_and_elbows_stay_out_of_the_trunk(name):
    for seed in range(4):
        joints = performed(name, seed, subject=3 * seed)
        lateral = joints[:, 16] - joints[:, 17]
        lateral /= np.linalg.norm(lateral, axis=1, keepdims=True)
        up = joints[:, 12] - joints[:, 0]
        height = np.linalg.norm(up, axis=1)
        up /= height[:, None]
        front = np.cross(lateral, up)
        for joint, sides in ((20, 0.13), (21, 0.13), (18, 0.12), (19, 0.12)):
            arm = joints[:, joint] - joints[:, 0]
            share = (arm * up).sum(1) / height
            # half axes of an adult trunk: 0.13 m to the side, 0.09 m to the front
            outside = np.hypot((arm * lateral).sum(1) / sides, (arm * front).sum(1) / 0.09)
            assert (outside[(share > 0) & (share < 0.95)] > 1).all()


@pytest.mark.parametrize("name", world.PRIMITIVES)
def test_joints_keep_within_the_limits_of_people(name):
    def bend(joints, a, b, c):
        upper, lower = joints[:, b] - joints[:, a], joints[:, c] - joints[:, b]
        cosine = (upper * lower).sum(1) / np.linalg.norm(upper, axis=1) / np.linalg.norm(lower, axis=1)
        return np.arccos(np.clip(cosine, -1, 1))

    for seed in range(3):
        joints = performed(name, seed, subject=seed)
        for chain in ((1, 4, 7), (2, 5, 8)):  # knees: hardly straighter than 3 degrees, heel to the seat at most
            assert 0.02 < bend(joints, *chain).min() and bend(joints, *chain).max() < 2.75
        for chain in ((16, 18, 20), (17, 19, 21)):
            assert bend(joints, *chain).max() < 2.65
        trunk = bend(joints, 0, 6, 12)
        assert trunk.max() < 1.3


@pytest.mark.parametrize("name", world.PRIMITIVES)
def test_movements_are_smooth(name):
    # a foot that stops at the end of a kick brakes with some 20 g; a pelvis that is carried never jerks
    for seed in range(3):
        joints = performed(name, seed, subject=seed + 4)
        size = np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1) * motion.FPS**2
        assert size.max() < 230
        assert size[:, [0, 3, 6, 9, 12, 15]].max() < 60


def test_actions_move_as_their_names_say():
    def feet(x):
        return np.minimum(x[:, 10, 1], x[:, 7, 1] - 0.05), np.minimum(x[:, 11, 1], x[:, 8, 1] - 0.05)

    for seed in range(4):
        x = {name: turned_to_body(performed(name, seed)) for name in world.PRIMITIVES}
        travel = {name: joints[-1, 0] - joints[0, 0] for name, joints in x.items()}
        drop = {name: joints[0, 0, 1] - joints[:, 0, 1].min() for name, joints in x.items()}
        assert travel["walk forward"][2] > 0.8 and travel["jog"][2] > 1.5
        assert travel["walk backward"][2] < -0.6
        assert abs(travel["sidestep"][0]) > 0.4 and abs(travel["sidestep"][2]) < 0.2
        for name in ("run on the spot", "march", "front kick", "side kick", "punch", "clap", "squat down", "kneel"):
            assert np.linalg.norm(travel[name][[0, 2]]) < 0.1, name
        # the hips turn by a quarter at least at some time (a full circle ends where it began)
        across = x["turn"][:, 1] - x["turn"][:, 2]
        assert ((across * across[0]).sum(1) / (across**2).sum(1)).min() < 0.2
        run = x["run on the spot"]
        lifted = run[:, 7, 1] - run[:, 8, 1]
        changes = np.flatnonzero(np.diff(np.sign(np.where(np.abs(lifted) > 0.03, lifted, 1e-9 * lifted))))
        assert 2.2 < (len(changes) - 1) / np.ptp(changes) * motion.FPS < 3.4  # steps a second
        side, front = x["side kick"], x["front kick"]
        leg = side[:, [7, 8]] - side[:, [1, 2]]
        assert side[:, [7, 8], 1].max() > 0.5 and np.abs(leg[..., 0]).max() > 0.6
        leg = front[:, [7, 8]] - front[:, [1, 2]]
        assert front[:, [7, 8], 1].max() > 0.5 and leg[..., 2].max() > 0.55
        reach = x["punch"][:, [20, 21]] - x["punch"][:, [16, 17]]
        assert reach[..., 2].max() > 0.3
        for name in ("stretch oneself", "raise arms", "jumping jacks"):
            assert x[name][:, [20, 21], 1].max() > x[name][:, [16, 17], 1].max() + 0.02, name
        assert np.linalg.norm(x["clap"][:, 20] - x["clap"][:, 21], axis=-1).min() < 0.12
        assert drop["squat down"] > 0.2 and drop["sit down"] > 0.25 and drop["kneel"] > 0.3
        assert x["bow"][:, 15, 1].min() < x["bow"][0, 15, 1] - 0.12
        floor = [height.min() for height in feet(x["jump"])]
        both = np.minimum(feet(x["jump"])[0] - floor[0], feet(x["jump"])[1] - floor[1])
        assert both.max() > 0.08


@pytest.mark.parametrize(("names", "joints", "low", "high"), [
    (("punch", "throw", "chop"), [20, 21], 4.5, 12.0), (("push", "hand waving"), [20, 21], 2.5, 8.0),
    (("front kick", "side kick"), [7, 8], 5.0, 11.0), (("walk forward", "march"), [7, 8], 1.5, 6.0),
    (("jog",), [7, 8], 4.0, 9.0), (("bow", "squat down", "kneel", "sit down", "lunge", "pick up"), [0, 15], 0.3, 2.6)])
# fmt: skip
def test_peak_speeds_are_those_of_people(names, joints, low, high):
    for name in names:
        moved = [performed(name, seed)[:, joints] for seed in range(6)]
        peak = np.median([metrics.joint_speed(x).max() for x in moved])
        assert low < peak < high, name


@pytest.mark.parametrize("name", ["side kick", "punch"])
def test_a_foot_that_pivots_keeps_its_ball_on_the_spot(name):
    """The supporting foot turns: the ankle goes round the toe joint, which does not move."""
    turned = 0
    for seed in range(8):
        joints = performed(name, seed)
        for ankle, toe in ((7, 10), (8, 11)):
            foot = joints[:, toe] - joints[:, ankle]
            yaw = np.unwrap(np.arctan2(foot[:, 0], foot[:, 2]))
            still = np.linalg.norm(joints[:, toe] - joints[0, toe], axis=1) < 0.02
            turned += np.ptp(yaw[still]) > 0.35
    assert turned >= 3


def test_hard_cases_are_near_and_far_in_motion_as_named():
    def look(name):
        poses = []
        for seed in range(8):
            joints = motion.canonicalize(performed(name, seed))
            for x in (joints, motion.mirror(joints)):
                x = x - x[:, :1] * [1, 0, 1]
                poses.append(np.r_[x.mean(0).ravel(), x.std(0).ravel()])
        return np.mean(poses, axis=0)

    seen = {name: look(name) for name in world.PRIMITIVES}
    for kind, low, high in (("far in words, near in motion", 0, 2), ("near in words, far in motion", 4, 27)):
        for a, b in world.HARD_CASES[kind]:
            distance = {c: np.linalg.norm(seen[a] - seen[c]) for c in seen if c != a}
            assert low <= sorted(distance, key=distance.get).index(b) <= high, (kind, a, b)
    for groups in world.HARD_CASES.values():
        assert all(set(group) <= set(world.PRIMITIVES) and set(group) & set(world.CLASSES) for group in groups)


# ------------------------------------------------------------------------------------------ the corpus


def test_equal_seeds_give_equal_clips_and_sizes_do_not_matter(small):
    other = world.make_world(5, 1, 1, seed=3)
    for a, b in zip(other.source, small.source, strict=False):
        assert a.name == b.name and a.captions == b.captions and a.segments == b.segments
        np.testing.assert_array_equal(a.features, b.features)
    by_name = {clip.name: clip for clip in small.pool + small.test}
    for clip in other.pool + other.test:
        np.testing.assert_array_equal(clip.features, by_name[clip.name].features)
    third = world.make_world(1, 1, 1, seed=4)
    assert third.source[0].features.shape != other.source[0].features.shape or not np.array_equal(
        third.source[0].features, other.source[0].features
    )


def test_without_retargeting_target_clips_keep_constant_bones_of_their_own(small):
    own = world.make_world(1, 2, 2, seed=3, retarget=False)
    np.testing.assert_array_equal(own.source[0].features, small.source[0].features)
    for clip, retargeted in zip(own.pool, small.pool, strict=True):
        bones = [np.linalg.norm(c.joints[:, 1:] - c.joints[:, motion.PARENTS[1:]], axis=-1) for c in (clip, retargeted)]
        np.testing.assert_allclose(bones[0], np.broadcast_to(bones[0][0], bones[0].shape), atol=1e-4)
        assert np.abs(bones[0][0] / motion.BONE_LENGTHS[1:] - 1).max() > 0.03
        np.testing.assert_allclose(bones[1][0], motion.BONE_LENGTHS[1:], atol=1e-4)
        assert (clip.name, clip.action, len(clip)) == (retargeted.name, retargeted.action, len(retargeted))


def test_segments_tile_the_clip_and_parts_with_captions_are_segments(small):
    parts = 0
    for clip in small.source:
        assert world.MIN_ROWS <= len(clip) <= world.MAX_ROWS
        edges = [(s.start, s.end) for s in clip.segments]
        assert edges[0][0] == 0 and edges[-1][1] == len(clip)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))
        acts = [s for s in clip.segments if s.label != "stand"]
        groups = [acts[i:j] for i, j in itertools.combinations(range(len(acts) + 1), 2) if j - i <= 2]
        assert {s.label for s in clip.segments} <= {*world.PRIMITIVES, "stand"}
        assert 1 <= sum(s.label != "stand" for s in clip.segments) <= 4
        whole = [c for c in clip.captions if c.end == 0]
        assert 2 <= len(whole) <= 3 and len({c.text for c in whole}) == len(whole)
        for caption in clip.captions[len(whole) :]:
            start, end = round(caption.start * motion.FPS), round(caption.end * motion.FPS)
            assert 0 <= start and end <= len(clip) and end - start >= world.SUBCAPTION_ROWS
            # it holds one or two whole acts, and of others no more than half of an overlap
            held = [g for g in groups if start <= g[0].start and g[-1].end <= end]
            assert any(
                sum(max(0, min(end, s.end) - max(start, s.start)) for s in acts if s not in g) <= 8 for g in held
            )
            parts += 1
    assert parts > 20


def test_most_acts_have_a_caption_that_says_just_what_they_are(small):
    told = [{s.label for s in entry.segments} - {"stand"} for entry in entries(small.source)]
    timed = sum(not c.whole for clip in small.source for c in clip.captions)
    acts = [sum(s.label != "stand" for s in clip.segments) for clip in small.source]
    assert timed > 0.8 * sum(n for n in acts if n > 1)
    assert np.mean([len(labels) <= 2 for labels in told]) > 0.7


def test_every_clip_has_its_mirror_image(small):
    by_name = {clip.name: clip for clip in small.source}
    assert len(by_name) == 2 * SMALL["source_clips"]
    words = 0
    for name, image in by_name.items():
        if not name.startswith("M"):
            continue
        clip = by_name[name[1:]]
        assert image.segments == clip.segments and image.subject == clip.subject
        # both went onto the reference bones, whose sides differ by millimetres
        np.testing.assert_allclose(motion.mirror(clip.joints)[:40], image.joints[:40], atol=0.06)
        for a, b in zip(clip.captions, image.captions, strict=True):
            assert (a.start, a.end) == (b.start, b.end)
            swap = {"left": "right", "right": "left"}
            assert [swap.get(w, w) for w in re.findall(r"\w+", a.text)] == re.findall(r"\w+", b.text)
            words += a.text != b.text
    assert words > 5


def test_a_folder_gives_the_world_back(small, tmp_path):
    write_humanml3d(tmp_path / "source", {"train": small.source[:4]})
    for a, b in zip(read_humanml3d(tmp_path / "source"), small.source[:4], strict=True):
        assert (a.name, a.captions, a.segments, a.subject) == (b.name, b.captions, b.segments, b.subject)
        np.testing.assert_array_equal(a.features, b.features)


def test_errors_of_captions_have_their_stated_rates():
    rng = np.random.default_rng(0)
    act = acting.Act(40, {}, words={"side": "left", "count": "", "hand": "the left hand"})
    said = [world._phrase("point", acting.Act(40, {}, words={"side": "left", "where": "forward"}), rng)
            for _ in range(3000)]  # fmt: skip
    sided = [text for text in said if "left" in text or "right" in text]
    assert abs(np.mean(["right" in text for text in sided]) - world.ERRORS["left and right confused"]) < 0.015
    acts = [act, acting.Act(40, {}, words={"depth": "low"})]
    lost = [not re.search("clap|appl|hands|brings", world._sentence(["clap", "bow"], acts, rng, whole=w))
            for w in (True, False) for _ in range(1000)]  # fmt: skip
    # half of the omissions leave out the clapping; a lost letter may hide the word, too
    assert 0.04 < np.mean(lost[:1000]) < 0.13 and np.mean(lost[1000:]) < 0.02


def test_target_clips_are_short_and_of_known_classes(small):
    assert set(small.classes) == set(small.captions) and len(small.classes) == 10
    for clips, count in ((small.pool, 2), (small.test, 2)):
        assert [c.action for c in clips] == [name for name in small.classes for _ in range(count)]
        for clip in clips:
            assert 16 <= len(clip) <= 60
            assert tuple(c.text for c in clip.captions) == small.captions[clip.action]
            # estimates from video lose the place of the body; a tilted camera leaves centimetres
            assert np.ptp(clip.joints[:, 0, [0, 2]], axis=0).max() < 0.15
    assert len(few_shot(small.pool, 2, np.random.default_rng(0))) == 20


def test_pool_test_and_source_share_no_subject(small):
    subject_disjoint(small.pool, small.test)
    subject_disjoint(small.source, small.pool + small.test)


def test_source_holds_throws_only_among_other_actions():
    assert not world.PRIMITIVES["throw"].alone
    actor = acting.Actor("a", motion.BONE_LENGTHS)
    rng = np.random.default_rng(5)
    clips = [set(world._choose(actor, rng)[0]) for _ in range(200)]
    assert sum("throw" in labels for labels in clips) > 5
    assert {"throw"} not in clips
    assert world.HARD_CASES["only in company"] == (("throw",),)


def test_one_class_does_not_occur_in_the_source(small):
    ((absent,),) = world.HARD_CASES["absent from the source"]
    assert absent in small.classes and world.PRIMITIVES[absent].weight == 0
    assert all(absent != s.label for clip in small.source for s in clip.segments)
    told = " ".join(c.text for clip in small.source for c in clip.captions)
    assert "butt" not in told and "heels" not in told


def test_stretching_is_rarely_called_so():
    rng = np.random.default_rng(0)
    act = acting.PRIMITIVES["stretch oneself"].act(acting.Actor("a", motion.BONE_LENGTHS), rng)
    named = sum("stretch" in world._phrase("stretch oneself", act, rng) for _ in range(300))
    assert 0 < named < 60


def test_every_phrase_can_be_filled():
    rng = np.random.default_rng(1)
    actor = acting.Actor("a", motion.BONE_LENGTHS)
    for name, primitive in world.PRIMITIVES.items():
        act = primitive.act(actor, rng)
        for phrase in primitive.phrases:
            text = phrase.format(**act.words)
            assert text and "{" not in text and "  " not in text, name


def test_target_is_noisier_than_source(small):
    source = np.mean([jerk(c.joints) for c in small.source])
    target = np.mean([jerk(c.joints) for c in small.pool + small.test])
    assert target > 2.5 * source
    assert 180 < target < 380  # skeletons estimated from video: 265
    assert source < 110  # motion capture: 50 to 80


def test_feet_of_the_encoded_source_do_not_slide(small):
    slip = np.concatenate([contact_slip(clip.joints) for clip in small.source])
    assert slip.mean() < 0.05
    assert np.mean(slip > 0.2) < 0.05


@pytest.mark.parametrize("bad", [{"source_clips": 0}, {"pool_clips": -1}, {"test_clips": 2.5}, {"seed": -1}])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        world.make_world(**(SMALL | bad))


def test_an_unknown_action_is_refused():
    with pytest.raises(KeyError, match="no primitive 'fly'"):
        world.perform("fly", np.random.default_rng(0))


def test_gaps_that_do_not_fit_the_acts_are_refused():
    actor = acting.Actor("a", motion.BONE_LENGTHS)
    act = acting.PRIMITIVES["bow"].act(actor, np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected 2 counts"):
        acting.stage(actor, [act], [3], np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least"):
        acting.stage(actor, [act, act], [3, -acting.lap(act, act) - 1, 3], np.random.default_rng(0))


def test_acts_follow_each_other_without_a_jump():
    # a jump of 5 cm from one frame to the next would show as 20 m/s^2
    actor = acting.Actor("a", motion.BONE_LENGTHS)
    for seed, (first, second) in enumerate((("walk forward", "bow"), ("turn", "punch"), ("squat down", "jog"))):
        rng = np.random.default_rng(seed)
        acts = [acting.PRIMITIVES[name].act(actor, rng) for name in (first, second)]
        lap = acting.lap(*acts) * (seed > 0)
        joints, spans = acting.stage(actor, acts, [4, -lap, 4], rng)
        assert spans[0][1] - lap == spans[1][0]
        above = joints[:, [0, 3, 6, 9, 12, 15]]  # feet and arms may set out at once
        size = np.linalg.norm(np.diff(above, 2, axis=0), axis=-1).max(axis=1) * motion.FPS**2
        seam = spans[0][1]
        assert size[seam - lap - 3 : seam].max() < 12
