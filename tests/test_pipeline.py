"""The whole chain on a tiny world: cached, reproducible, honest about what it reads, and clear about bad input."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kinemic import data, export, har, motion
from kinemic.artefacts import Store
from kinemic.config import Experiment
from kinemic.pipeline import Lab

TINY = {
    "world": {"source_clips": 24, "pool_clips": 3, "test_clips": 2}, "mining": {"top_k": 6, "dim": 8},
    "denoiser": {"dim": 16, "layers": 1, "heads": 2, "ff": 16}, "pretrain": {"steps": 3, "batch": 4},
    "adapt": {"steps": 2, "rank": 2}, "synthesis": {"per_class": 2, "batch": 8}, "har": {"updates": 2, "seeds": 1},
}  # fmt: skip


def experiment(**changed):
    return Experiment.load("smoke", **{"settings": TINY, **changed})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def lab(store):
    return Lab(experiment(), store, progress=False)


@pytest.fixture(scope="module")
def chain(lab):
    adapted = lab.adapt(0)
    return adapted, lab.synthesize(adapted, 0)


def test_source_and_target_are_disjoint_and_truth_covers_the_classes(lab):
    d = lab.data
    assert len(d.classes) == len(d.captions) == len(d.truth) == 8
    data.subject_disjoint(d.pool, d.test)
    assert not {c.subject for c in d.source} & {c.subject for c in d.pool + d.test}
    shown = {s.label for c in d.source for s in c.segments}
    assert all(set(labels) <= shown | set(d.classes) for labels in d.truth.values())
    fitted = motion.Normalizer.fit([c.features for c in data.read_humanml3d(d.origin[0].folder / "source")])
    np.testing.assert_allclose(d.normalizer.mean, fitted.mean, atol=1e-4)


def test_synthesis_reads_lengths_and_counts_from_the_shots_alone(lab, chain):
    clips = lab.load_clips(chain[1])
    shots = lab.shots(0)
    for name in lab.data.classes:
        own = {len(c) for c in shots if c.action == name}
        made = [c for c in clips if c.action == name]
        assert len(made) == 2 and {len(c) for c in made} <= own
    assert all(np.isfinite(c.features).all() for c in clips)


def test_generated_clips_can_be_exported_from_their_folder(lab, chain):
    clips, motions = lab.load_clips(chain[1]), export.read(chain[1].folder)
    assert [m.name for m in motions] == [c.name for c in clips] and {m.fps for m in motions} == {20}
    for made, clip in zip(motions, clips, strict=True):
        assert (made.label, made.caption) == (clip.action, lab.data.captions[clip.action])
        np.testing.assert_allclose(made.joints, clip.joints, atol=1e-6)
    assert [m.name for m in export.read(chain[1].folder, clips=[clips[3].name])] == [clips[3].name]
    with pytest.raises(FileNotFoundError, match="has no clip 'synth_9'"):
        export.read(chain[1].folder, clips=["synth_9"])


def test_a_second_lab_loads_everything_and_computes_nothing(lab, chain, store, monkeypatch):
    training = lab.training_set(lab.load_clips(chain[1]), synthetic=True)
    first = lab.evaluate(lab.training_set(lab.shots(0)) + training)

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    again = Lab(experiment(), Store(store.root), progress=False)
    for name in ("kinemic.pipeline.train.adapt", "kinemic.pipeline.train.pretrain", "kinemic.pipeline.har.fit",
                 "kinemic.pipeline.embedded.make_world", "kinemic.diffusion.Diffusion.sample"):  # fmt: skip
        monkeypatch.setattr(name, refuse)
    synthetic = again.synthesize(again.adapt(0), 0)
    assert synthetic.key == chain[1].key
    second = again.evaluate(again.training_set(again.shots(0)) + again.training_set(again.load_clips(synthetic), True))
    assert np.array_equal(first["predictions"], second["predictions"])
    with pytest.raises(AssertionError, match="computed again"):
        again.adapt(0, method="naive")


def test_each_computes_only_what_lacks_and_keeps_the_order(lab, store, chain, monkeypatch):
    calls = [{"draw": 1, "method": "naive"}, {"draw": 0}, {"draw": 0, "method": "naive"}]
    made = lab.each("adapt", calls)
    assert made[1].key == chain[0].key and len({a.key for a in made}) == 3
    assert [a.manifest["settings"]["draw"] for a in made] == [1, 0, 0]
    # a process with one thread does what this process with one thread does
    fresh = Lab(experiment(), Store(store.root.with_name("alone")), progress=False)
    with monkeypatch.context() as patched:
        patched.setattr("kinemic.pipeline.joblib.cpu_count", lambda: 1)
        alone = fresh.each("adapt", calls[:1])[0]
    ours, theirs = (load_file(a.folder / "generator" / "model.safetensors") for a in (made[0], alone))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr("kinemic.pipeline.joblib.Parallel", refuse)
    assert [a.key for a in lab.each("adapt", calls)] == [a.key for a in made]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="text"):  # an error in another process arrives as itself
        lab.each("adapt", [{"draw": 0, "condition": "words"}])
    assert lab.each("adapt", calls)[2].key == made[2].key  # and the store computes again


def test_equal_epochs_give_each_set_its_own_number_of_updates(lab, store, monkeypatch):
    asked = []
    real = har.fit
    monkeypatch.setattr("kinemic.pipeline.har.fit", lambda *a, **k: asked.append(k) or real(*a, **k))
    pool = lab.data.pool
    for budget, wanted in (("updates", (2, 2)), ("epochs", (20, 80))):
        cfg = lab.cfg.override(har={"budget": budget, "batch": 32})
        own = Lab(cfg, store, progress=False)
        for part, updates in zip((pool[:8], pool[:24] + pool[:6]), wanted, strict=True):
            own.evaluate(own.training_set(part))
            assert asked[-1]["updates"] == updates
            assert asked[-1].get("balance", False) == (budget == "updates")  # epochs pass over the set as it is


def test_the_best_epoch_is_the_maximum_over_the_test_list(lab, store):
    own = Lab(lab.cfg.override(har={"report": "best", "updates": 40, "seeds": 2}), store, progress=False)
    last = Lab(lab.cfg.override(har={"updates": 40, "seeds": 2}), store, progress=False)
    training, h = own.training_set(own.shots(0)), own.cfg.har
    labels, clips = own.data.labels(own.data.test), [c.joints for c in own.data.test]
    for seed in range(2):
        curve = []
        har.fit(
            training.joints, training.labels, 8, updates=40, seed=seed, batch_size=h.batch, lr=h.lr, scheme=h.scheme,
            weight_decay=h.weight_decay, optimizer=h.optimizer, clip_len=h.clip_len, channels=h.channels,
            depth=h.depth, augment=h.augment, balance=True, sources=training.synthetic * 1,
            callback=lambda u, c, curve=curve: u % 2 or curve.append((c.predict(clips).argmax(1) == labels).mean()),
        )  # fmt: skip
        assert len(curve) == 20
        assert own.evaluate(training)["top1"][seed] == max(curve)
        assert last.evaluate(training)["top1"][seed] == curve[-1]


def test_one_referee_judges_every_behaviour(lab, store):
    # bodies stay the corrected ones, since the referee is trained on the target
    settings = {**TINY, "behaviour": "reference", "data": {"retarget": True}}
    theirs = Experiment.load("smoke", settings=settings)
    assert theirs.har.scheme == "reference"
    own = Lab(theirs, store, progress=False)
    clips = [c.joints for c in lab.data.test]
    assert np.array_equal(own.referee.predict(clips), lab.referee.predict(clips))
    made = own.synthesize(own.adapt(0), 0)
    top1 = own.evaluate(own.training_set(own.shots(0)) + own.training_set(own.load_clips(made), True))["top1"]
    assert top1.shape == (1,) and made.key != lab.synthesize(lab.adapt(0), 0).key


def test_draws_differ_and_repeat(lab):
    names = [[c.name for c in lab.shots(i)] for i in (0, 1, 0)]
    assert names[0] == names[2] != names[1]


def test_an_oracle_window_is_never_worse_than_the_mean_and_bounds_hold(lab):
    for choose in ("attention", "random", "oracle"):
        windows = lab.mine(0, per_class=3, choose=choose)
        total = np.array([len(lab.data.source[r]) for r in windows.rows])
        assert (windows.start >= 0).all() and (windows.start + windows.length <= total).all()
        quality = lab.window_quality(windows)
        known = ~np.isnan(quality["iou"])
        assert (quality["iou"][known] <= quality["oracle"][known] + 1e-9).all()
        if choose == "oracle":
            assert known.all() and np.array_equal(quality["iou"], quality["oracle"])
        assert len(lab.window_set(windows).joints) == len(windows.rows)


def test_judgement_of_real_clips_by_themselves_is_near_zero_distance(lab):
    judged = lab.judge(lab.training_set(lab.data.test))
    assert abs(judged["frechet"]) < 1e-3 and judged["n"] == len(lab.data.test)
    assert 0.1 < judged["speed"] < 2.0


@pytest.fixture(scope="module")
def folders(lab, tmp_path_factory):
    """The same motions as a HumanML3D folder and a labelled folder of somebody's own."""
    root = tmp_path_factory.mktemp("folders")
    d = lab.data
    source = data.read_humanml3d(d.origin[0].folder / "source")
    plain = [data.Clip(c.name, c.features, c.captions) for c in source]
    data.write_humanml3d(root / "source", {"train": plain}, d.normalizer)
    data.write_humanml3d(root / "target", {"pool": d.pool, "test": d.test})
    return root


def test_the_chain_runs_on_folders_as_on_the_embedded_world(folders, store, lab):
    own = Lab(experiment(source=str(folders / "source"), target=str(folders / "target")), store, progress=False)
    assert own.data.truth == {} and own.data.classes == lab.data.classes
    assert len(own.data.source) == len(lab.data.source)
    made = own.synthesize(own.adapt(0), 0)
    assert own.evaluate(own.training_set(own.load_clips(made), True))["top1"].shape == (1,)
    with pytest.raises(ValueError, match="ground-truth segments"):
        own.relevance()


def test_the_official_protocols_are_chosen_by_name(shared_data, store):
    for split, disjoint in (("official-xsub", "subject"), ("official-xset", "setup")):
        settings = {**TINY, "data": {"split": split}}
        d = Lab(experiment(target=str(shared_data / "ntu-vibe-fewshot"), settings=settings), store, progress=False).data
        assert d.pool and d.test and len(d.pool) + len(d.test) == 30 and len(d.classes) == 3
        assert not {getattr(c, disjoint) for c in d.pool} & {getattr(c, disjoint) for c in d.test}


def test_the_chain_runs_on_the_released_ntu_vibe_shots(shared_data, store):
    lab = Lab(experiment(target=str(shared_data / "ntu-vibe-fewshot"), shots=10), store, progress=False)
    for clip in lab.data.pool:  # the released clips have other proportions than the source
        bones = np.linalg.norm(clip.joints[:, 1:] - clip.joints[:, motion.PARENTS[1:]], axis=-1)
        np.testing.assert_allclose(bones, np.broadcast_to(motion.BONE_LENGTHS[1:], bones.shape), atol=1e-4)
    assert len(lab.data.classes) == 3 and len(lab.shots(0)) == 30 and lab.data.test == []
    judged = lab.judge(lab.training_set(lab.load_clips(lab.synthesize(lab.adapt(0), 0)), True))
    assert judged["n"] == 6 and np.isfinite(judged["frechet"])
    with pytest.raises(ValueError, match="no test clips of other subjects"):
        lab.evaluate(lab.training_set(lab.shots(0)))


@pytest.mark.parametrize(("changed", "error", "said"), [
    ({"source": "nowhere"}, FileNotFoundError, "nowhere: no such folder"),
    ({"settings": {**TINY, "mining": {"top_k": 9999}}}, ValueError, "top_k is 9999, the source has"),
    ({"shots": 4}, ValueError, "4 .*3|3 .*4"),
    ({"device": "cuda"}, ValueError, "'cuda' is not available"),
    ({"settings": {**TINY, "pretrain": {"checkpoint": "nowhere"}}}, FileNotFoundError, "config.json: missing"),
])  # fmt: skip
def test_bad_input_is_one_line_that_says_what_to_do(store, monkeypatch, changed, error, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(error, match=said) as caught:
        Lab(experiment(**changed), store, progress=False).adapt(0)
    assert "\n" not in str(caught.value).strip("'")


def test_a_label_outside_the_table_is_named(lab):
    stranger = data.Clip("odd", lab.data.pool[0].features, action="juggle")
    with pytest.raises(ValueError, match="clip odd: label 'juggle' is not in the table"):
        lab.data.labels([stranger])


def test_unknown_window_choice_is_refused(lab):
    with pytest.raises(ValueError, match="attention, random, oracle"):
        lab.mine(0, per_class=1, choose="best")


def test_the_shipped_prior_is_whole_and_refuses_another_world(store):
    lab = Lab(Experiment.load("embedded"), store, progress=False)
    assert lab.prior.manifest["world"] == lab.source_identity
    assert sum(p.numel() for p in lab.prior_model.parameters()) == lab.prior.manifest["metrics"]["parameters"]
    other = Experiment.load("embedded", settings={"world": {"source_clips": 99}})
    with pytest.raises(ValueError, match="trained on another embedded world.*make prior"):
        Lab(other, store, progress=False).prior  # noqa: B018 (the property loads)
