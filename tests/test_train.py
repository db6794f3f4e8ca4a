"""Training: every alternative takes a step, gradients go where they belong, runs resume to the bit, models learn."""

import copy
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors import safe_open

from kinemic import motion, train
from kinemic.config import ABLATIONS, AdaptSettings, Experiment
from kinemic.denoiser import Denoiser
from kinemic.diffusion import Diffusion
from kinemic.mining import MIC

SIZE = dict(num_features=263, text_dim=6, dim=16, layers=1, heads=2, ff=16, dropout=0.0)
DIFFUSION = Diffusion(10)
LOOP = {"steps", "accumulate", "max_grad_norm", "ema_decay", "save_every", "progress"}  # of `adapt`, not `Adaptation`


def options(**changed):
    fields = AdaptSettings(**{"steps": 2, "rank": 2, "alpha": 4, **changed}).model_dump()
    fields["window_weight_rule"] = fields.pop("window_weight")
    return {**fields, "num_actions": 2, "mic_dim": 8, "progress": ""}


@pytest.fixture(scope="module")
def streams(walk):
    source = [motion.encode(walk(frames=n, turn=0.01 * i, seed=i)) for i, n in enumerate((61, 50, 45, 70, 22, 90))]
    shots = [motion.encode(walk(frames=n, heading=0.0, turn=0.0, seed=10 + i)) for i, n in enumerate((26, 31, 24, 29))]
    normalizer = motion.Normalizer.fit(source)
    rng = np.random.default_rng(0)

    def text(counts):
        return [rng.normal(size=(n, 6)).astype(np.float32) for n in counts]

    return (
        train.Stream(source, text((2, 1, 3, 1, 1, 2)), np.full(6, -1), normalizer),
        train.Stream(shots, text((1, 1, 1, 1)), np.array([0, 0, 1, 1]), normalizer),
        [[np.array([0, 1, 4])], [np.array([0, 1, 4])], [np.array([2, 3, 5])], [np.array([2, 3, 5])]],
    )


@pytest.fixture
def prior():
    torch.manual_seed(0)
    return Denoiser(**SIZE)


ALTERNATIVES = {
    **ABLATIONS,
    "naive": {"method": "naive"}, "scratch": {"method": "scratch"},
    "reference dropout": {"condition_dropout": "independent"},
    "teacher in training": {"teacher_mode": "train"}, "sliced windows": {"window_features": "sliced"},
    "frozen frames": {"short_source": "repeat"}, "normal actions": {"action_init": "normal"},
    "100 steps": {"num_timesteps": 20},
    "100 steps, ceil": {"num_timesteps": 20, "time_map": "ceil"}, "distillation": {"weight_dist": 0.5},
    "warm-up": {"warmup_steps": 1}, "nothing but reconstruction": {"weight_con": 0.0, "weight_win": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_alternative_takes_its_steps_and_leaves_the_prior_alone(streams, prior, name):
    source, shots, lists = streams
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    made = train.adapt(prior, DIFFUSION, shots, source, lists, **options(**ALTERNATIVES[name]))
    assert all(torch.equal(v, before[k]) for k, v in prior.state_dict().items())
    assert all(np.isfinite(list(row.values())).all() for row in made.log) and made.log[-1]["step"] == 2
    moved = any(not torch.equal(v, before[k]) for k, v in made.model.state_dict().items() if k in before)
    assert moved and isinstance(made.model, Denoiser)
    changed = ALTERNATIVES[name]
    expects_windows = changed.get("window") != "none" and changed.get("method", "kinemic") == "kinemic"
    assert (len(made.windows) == 2 * 4) == expects_windows
    table = made.model.embed_action.weight
    assert (float(table.detach().abs().max()) > 0) == (changed.get("condition") != "text")


def test_windows_lie_inside_their_source_and_fit_their_target(streams, prior):
    source, shots, lists = streams
    made = train.adapt(prior, DIFFUSION, shots, source, lists, **options(steps=5))
    step, row, start, length, shot, gamma = made.windows.T
    total = np.array([len(source.features[int(i)]) for i in row])
    wanted = np.array([len(shots.features[int(i)]) for i in shot])
    assert (start >= 0).all() and (start + length <= total).all() and (length <= wanted).all()
    assert all(int(i) in lists[int(j)][0] for i, j in zip(row, shot, strict=True))
    assert ((gamma >= 0) & (gamma <= 1)).all() and set(step) == set(range(5))


def test_frozen_parts_stay_and_adapters_move_with_lora(streams, prior):
    source, shots, lists = streams
    made = train.adapt(prior, DIFFUSION, shots, source, lists, **options())
    for name, value in prior.state_dict().items():
        adapted = not (".norm" in name or name.startswith("embed_text") or name.endswith("bias"))
        assert torch.equal(made.model.state_dict()[name], value) != adapted, name


def test_streams_in_one_batch_give_the_loss_of_two_passes(streams, prior):
    """With no dropout and no dropped condition the joint pass is the two passes of the method, clip by clip."""
    _, shots, _ = streams
    model = prior.with_actions(2).eval()
    a, text, _ = shots.draw([0, 1, 2, 3], np.random.default_rng(0))
    t, both = torch.tensor([1, 3, 5, 9]), torch.cat
    with torch.no_grad():
        first = model(a.x, t, mask=a.mask, text=text, action=a.action)
        second = model(a.x.flip(0), t, mask=a.mask.flip(0), text=text, action=a.action)
        joint = model(both([a.x, a.x.flip(0)]), t.repeat(2), mask=both([a.mask, a.mask.flip(0)]),
                      text=text.repeat(2, 1), action=a.action.repeat(2))  # fmt: skip
    assert torch.allclose(joint, both([first, second]), atol=1e-6)


def test_an_undisturbed_run_and_a_resumed_one_are_equal_to_the_bit(streams, prior, tmp_path):
    source, shots, lists = streams
    whole = train.adapt(prior, DIFFUSION, shots, source, lists, **options(steps=6, ema_decay=0.5))

    class Stop(Exception):
        pass

    class Stopping(train._Run):
        def save(self, path):
            super().save(path)
            raise Stop

    checkpoint = tmp_path / "training.safetensors"
    original = train._Run
    train._Run = Stopping
    try:
        with pytest.raises(Stop):
            train.adapt(prior, DIFFUSION, shots, source, lists, checkpoint=checkpoint,
                        **options(steps=6, ema_decay=0.5, save_every=3))  # fmt: skip
    finally:
        train._Run = original
    resumed = train.adapt(prior, DIFFUSION, shots, source, lists, checkpoint=checkpoint,
                          **options(steps=6, ema_decay=0.5, save_every=3))  # fmt: skip
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    for key, value in whole.mic.state_dict().items():
        assert torch.equal(value, resumed.mic.state_dict()[key]), key
    assert np.array_equal(whole.windows, resumed.windows)


def test_a_killed_pretraining_resumes_to_the_same_weights(tmp_path):
    """The process gets SIGKILL in the middle; the second run ends where an undisturbed third one does."""
    script = textwrap.dedent("""
        import os, signal, sys
        import numpy as np, torch
        from kinemic import motion, train
        from kinemic.denoiser import Denoiser
        from kinemic.diffusion import Diffusion
        kill_at, checkpoint, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
        rng = np.random.default_rng(0)
        x = [rng.normal(size=(n, 263)).astype(np.float32) for n in (41, 52, 60, 44, 48)]
        text = [rng.normal(size=(2, 6)).astype(np.float32) for _ in x]
        stream = train.Stream(x, text, np.full(5, -1), motion.Normalizer(np.zeros(263), np.ones(263)))
        save = train._Run.save
        def dying(self, path):
            save(self, path)
            if self.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        train._Run.save = dying
        torch.manual_seed(1)
        model = Denoiser(263, 6, dim=16, layers=1, heads=2, ff=16, dropout=0.1)
        train.pretrain(model, Diffusion(10), stream, steps=8, batch=2, ema_decay=0.9, save_every=2,
                       checkpoint=checkpoint, progress="")
        train.save_model(out, "denoiser", model, model.settings)
    """)

    def run(kill_at, checkpoint, out):
        words = [sys.executable, "-c", script, str(kill_at), str(tmp_path / checkpoint), str(tmp_path / out)]
        return subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode  # fmt: skip

    assert run(4, "a", "first") == -signal.SIGKILL and (tmp_path / "a").is_file() and not (tmp_path / "first").exists()
    assert run(0, "a", "first") == 0 and run(0, "b", "second") == 0
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == (
        tmp_path / "second" / "model.safetensors"
    ).read_bytes()


def curve(prior, streams, **changed):
    source, shots, lists = streams
    made = train.adapt(copy.deepcopy(prior), DIFFUSION, shots, source, lists, **options(steps=40, lr=1e-3, **changed))
    return np.array([row["loss"] for row in made.log]).reshape(4, -1).mean(axis=1)


def test_bfloat16_follows_the_float32_curve_within_the_noise_of_seeds(streams, prior):
    full = curve(prior, streams)
    others = [curve(prior, streams, seed=seed) for seed in (11, 12, 13)]
    noise = np.std([full, *others], axis=0, ddof=1)
    half = curve(prior, streams, precision="bf16")
    assert (half != full).any() and (np.abs(half - full) < noise).all()


def test_bfloat16_reaches_the_denoiser_and_not_the_weights_or_losses(streams, prior, monkeypatch):
    source, _, _ = streams
    seen = []
    loss = train.masked_mse
    monkeypatch.setattr(train, "masked_mse", lambda a, b, m: seen.append(a.dtype) or loss(a, b, m))
    inside = []
    prior.output_proj.register_forward_hook(lambda module, args, out: inside.append(out.dtype))
    train.pretrain(prior, DIFFUSION, source, steps=1, batch=3, precision="bf16", progress="")
    assert inside == [torch.bfloat16] and seen == [torch.float32]
    assert {p.dtype for p in prior.parameters()} == {torch.float32}


def test_a_device_without_bfloat16_is_named(monkeypatch):
    import accelerate.utils

    monkeypatch.setattr(accelerate.utils, "is_bf16_available", lambda ignore_tpu: False)
    with pytest.raises(ValueError, match="device 'cuda' has no bfloat16; set precision to 'no'"):
        train._autocast("cuda", "bf16")
    with pytest.raises(ValueError, match="precision is 'fp8'"):
        train._autocast("cpu", "fp8")


def test_accumulated_batches_take_the_step_of_their_mean_gradient(streams, prior):
    """One update from two draws against plain gradient descent by hand on the same two draws."""
    source, shots, lists = streams
    given = {k: v for k, v in options(accumulate=2, steps=1).items() if k not in LOOP}
    hand = train.Adaptation(prior, DIFFUSION, shots, source, lists, **given)
    for _ in range(2):
        (hand.losses(hand.draw())["loss"] / 2).backward()
    assert len(hand.memory.keys) == 8  # both draws of four went into the bank
    parameters = list(hand.run.named().values())
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    hand.run.optimizer.step()
    made = train.adapt(prior, DIFFUSION, shots, source, lists, **options(accumulate=2, steps=1))
    for key, value in hand.mic.state_dict().items():
        assert torch.equal(value, made.mic.state_dict()[key]), key
    assert len(made.windows) == 8 and len(made.log) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from kinemic import train
torch.set_num_threads(1)
kill_at, how, checkpoint, out = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
given = torch.load(sys.argv[5], weights_only=False)
fit, save_file = train._fit, train.save_file
def stop():
    os.kill(os.getpid(), signal.SIGKILL)
def writing(tensors, path, **rest):  # dies when half of the file is on the disk
    save_file(tensors, path, **rest)
    if kill_at and how == "writing" and Path(checkpoint).exists():  # one good checkpoint is there
        os.truncate(path, os.path.getsize(path) // 2)
        stop()
def watched(run, losses, steps, **rest):
    def counted(step):
        if kill_at and how == "step" and step == kill_at:
            stop()
        return losses(step)
    fit(run, counted, steps, **rest)
    run.save(Path(out))
train.save_file, train._fit = writing, watched
train.adapt(*given["models"], checkpoint=checkpoint, **given["options"])
"""


def test_an_adaptation_killed_twice_resumes_to_the_same_state(streams, prior, tmp_path):
    """SIGKILL at a random step, then while a checkpoint is written; the third run ends in the state of a whole one.

    Compared is a checkpoint after the last step: weights, optimiser, average, bank, generators, windows, order of data.
    """
    source, shots, lists = streams
    given = {"models": (prior, DIFFUSION, shots, source, lists), "options": options(
        steps=9, batch=3, save_every=2, ema_decay=0.5, lora_dropout=0.2, accumulate=2)}  # fmt: skip
    torch.save(given, tmp_path / "given")

    def run(kill_at, checkpoint, how="step"):
        words = [sys.executable, "-c", KILLED, kill_at, how, tmp_path / checkpoint, tmp_path / f"{checkpoint}.end",
                 tmp_path / "given"]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([str(w) for w in words], env=environment, check=False).returncode

    at = int(np.random.default_rng(5).integers(3, 7))
    assert run(at, "a") == -signal.SIGKILL and (tmp_path / "a").is_file()
    good = (tmp_path / "a").read_bytes()
    assert run(at, "a", "writing") == -signal.SIGKILL and not (tmp_path / "a.end").exists()
    assert (tmp_path / "a").read_bytes() == good and 0 < (tmp_path / "a.partial").stat().st_size < len(good)
    assert run(0, "a") == 0 and run(0, "b") == 0
    with safe_open(tmp_path / "a.end", "pt") as a, safe_open(tmp_path / "b.end", "pt") as b:
        assert a.metadata() == b.metadata() and json.loads(a.metadata()["state"])["step"] == 9
        names = set(a.keys())
        assert names == set(b.keys()) and {"bank.keys", "rng.global", "rng.generator", "windows"} <= names
        for name in names:
            assert torch.equal(a.get_tensor(name), b.get_tensor(name)), name


def test_a_full_disk_does_not_stop_the_training_nor_harm_the_last_checkpoint(
    streams, prior, tmp_path, caplog, monkeypatch
):
    """The third checkpoint breaks off half-way; the second one stays, and the result is that without checkpoints."""
    source, shots, lists = streams
    checkpoint, kept, save_file = tmp_path / "training.safetensors", [], train.save_file

    def full(tensors, path, **rest):
        if checkpoint.is_file():
            kept.append(checkpoint.read_bytes())
        save_file(tensors, path, **rest)
        if len(kept) == 2:
            os.truncate(path, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    given = options(steps=5, save_every=1)
    whole = train.adapt(prior, DIFFUSION, shots, source, lists, **given)
    monkeypatch.setattr(train, "save_file", full)
    made = train.adapt(prior, DIFFUSION, shots, source, lists, checkpoint=checkpoint, **given)
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "checkpoint of step 3 could not be written ([Errno 28]" in said and "make room" in said and "\n" not in said
    assert len(kept) == 3 and kept[2] == kept[1] != kept[0]
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.name] and checkpoint.read_bytes() != kept[2]
    assert all(torch.equal(v, made.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't allocate memory"])
def test_too_little_memory_is_one_line_that_names_the_mend(streams, prior, monkeypatch, words):
    source, _, _ = streams

    def fail(*args, **kwargs):
        raise RuntimeError(words)

    monkeypatch.setattr(prior, "forward", fail)
    with pytest.raises(MemoryError, match="step 0 does not fit .*smaller.*accumulate.*'bf16'") as caught:
        train.pretrain(prior, DIFFUSION, source, steps=1, batch=2, progress="")
    assert "\n" not in str(caught.value)
    words = "something else"
    with pytest.raises(RuntimeError, match="something else"):
        train.pretrain(prior, DIFFUSION, source, steps=1, batch=2, progress="")


def test_pretraining_learns_one_batch(streams):
    source, _, _ = streams
    torch.manual_seed(0)
    model = Denoiser(**{**SIZE, "dim": 32, "ff": 64})
    log = train.pretrain(model, DIFFUSION, source, steps=150, batch=6, lr=3e-3, ema_decay=0, progress="")
    assert np.mean([r["loss"] for r in log[-20:]]) < 0.6 * np.mean([r["loss"] for r in log[:5]])


@pytest.mark.parametrize(("high_noise", "seen"), [(0.0, range(50)), (0.5, range(50)), (1.0, range(40, 50))])
def test_noise_levels_of_pretraining_come_as_often_as_was_asked_for(streams, monkeypatch, high_noise, seen):
    drawn, q_sample = [], Diffusion.q_sample
    monkeypatch.setattr(
        Diffusion, "q_sample", lambda self, x, t, noise: drawn.extend(t.tolist()) or q_sample(self, x, t, noise)
    )
    train.pretrain(Denoiser(**SIZE), Diffusion(50), streams[0], steps=100, batch=6, high_noise=high_noise, progress="")
    assert set(drawn) == set(seen)
    late = np.mean(np.array(drawn) >= 40)
    assert late == pytest.approx(high_noise + (1 - high_noise) / 5, abs=0.1)


def test_attention_over_whole_clips_is_a_distribution_per_frame(streams, prior):
    source, _, _ = streams
    mic = MIC(16, 8).eval()
    found = train.mine(prior, mic, DIFFUSION, source, [0, 4, 5], timesteps=(1, 5), batch=2)
    assert [len(a) for a in found] == [len(source.features[i]) for i in (0, 4, 5)]
    np.testing.assert_allclose([a.sum() for a in found], 1, atol=1e-5)
    alone = train.mine(prior, mic, DIFFUSION, source, [0], timesteps=(1, 5))
    assert found[0].shape == alone[0].shape


def test_models_round_trip_and_bad_checkpoints_are_named(tmp_path, prior):
    folder = tmp_path / "prior"
    train.save_model(folder, "denoiser", prior, prior.settings)
    again = train.load_model(folder)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in prior.state_dict().items())
    with pytest.raises(ValueError, match="holds a 'denoiser', a 'mic' was expected"):
        train.load_model(folder, "mic")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.safetensors: truncated or damaged"):
        train.load_model(folder)
    file.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="weights of another model"):
        train.load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not a checkpoint's configuration"):
        train.load_model(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors: missing"):
        train.load_model(folder)


def test_a_larger_prior_goes_on_from_a_smaller_one(tmp_path, prior, streams):
    source, _, _ = streams
    train.save_model(tmp_path, "denoiser", prior, prior.settings)
    larger = Denoiser(**{**prior.settings, "text_knots": 3}).eval()
    digest = train.begin_with(larger, tmp_path)
    assert digest == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    drawn, text, _ = source.draw([0, 1], np.random.default_rng(0))
    same = dict(t=torch.tensor([0, 5]), mask=drawn.mask, text=text)
    assert torch.allclose(larger(drawn.x, **same), prior(drawn.x, **same), atol=1e-6)
    wider = Denoiser(**{**prior.settings, "ff": prior.settings["ff"] * 2})
    with pytest.raises(ValueError, match=r"does not fit the denoiser .*layers\.0\.linear1\.bias.*change denoiser"):
        train.begin_with(wider, tmp_path)
    deeper = Denoiser(**{**prior.settings, "layers": prior.settings["layers"] + 1})
    with pytest.raises(ValueError, match=r"does not fit the denoiser .*layers\.\d\.k_proj\.bias"):
        train.begin_with(deeper, tmp_path)
    with pytest.raises(FileNotFoundError, match="config.json: missing"):
        train.begin_with(larger, tmp_path / "nowhere")


def test_a_foreign_training_checkpoint_is_refused(streams, prior, tmp_path):
    _, shots, _ = streams
    checkpoint = tmp_path / "training.safetensors"
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="training.safetensors: not a checkpoint of this run.*delete it"):
        train.adapt(prior, DIFFUSION, shots, checkpoint=checkpoint, **options(method="naive"))


def test_streams_refuse_nan_and_emptiness(streams):
    source, _, _ = streams
    with pytest.raises(ValueError, match="without clips"):
        train.Stream([], [], np.zeros(0, int), source.normalizer)
    with pytest.raises(ValueError, match="clip 1 .*NaN"):
        train.Stream(
            [source.features[0], source.features[1] * np.nan], source.captions[:2], np.zeros(2), source.normalizer
        )


@pytest.mark.slow
def test_the_papers_configuration_takes_real_steps(walk):
    """Official shapes with random weights and few clips: what runs on a GPU at full batch runs here."""
    cfg, rng = Experiment.load("paper"), np.random.default_rng(0)
    normalizer = motion.Normalizer(np.zeros(263), np.ones(263))

    def stream(lengths, actions):
        clips = [motion.encode(walk(frames=n + 1, seed=n)) for n in lengths]
        return train.Stream(clips, [rng.normal(size=(1, 512)).astype(np.float32) for _ in clips], actions, normalizer)

    torch.manual_seed(0)
    prior = Denoiser(263, 512, **cfg.denoiser.model_dump())
    given = cfg.adapt.model_dump() | {"steps": 2, "progress": "", "mic_dim": cfg.mining.dim, "bank": cfg.mining.bank}
    given["window_weight_rule"] = given.pop("window_weight")
    shots, source = stream((24, 40, 33), np.arange(3)), stream((100, 60, 80), np.full(3, -1))
    lists = [[np.array([k])] for k in range(3)]
    count = {k: v for k, v in given.items() if k not in LOOP}
    started = train.Adaptation(prior, Diffusion(50), shots, source, lists, num_actions=3, **count)
    trained = sum(p.numel() for p in started.run.named().values())
    assert (sum(p.numel() for p in prior.parameters()), trained) == (17_880_327, 5_706_978)
    made = train.adapt(prior, Diffusion(50), shots, source, lists, num_actions=3, **given)
    assert [row["step"] for row in made.log] == [1, 2] and np.isfinite([row["loss"] for row in made.log]).all()
    assert made.model.settings["dim"] == 512 and made.windows.shape == (6, 6)


def test_kinemic_without_source_is_refused(streams, prior):
    _, shots, _ = streams
    with pytest.raises(ValueError, match="needs source clips"):
        train.adapt(prior, DIFFUSION, shots, **options())
