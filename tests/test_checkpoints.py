"""Foreign formats: MDM's checkpoint against an encoder of torch written from its description, adapters against peft."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from kinemic._torchvision import ensure_torchvision
from kinemic.artefacts import Store
from kinemic.checkpoints import find_mdm, load_adapter, load_mdm, save_adapter, save_mdm
from kinemic.config import PARAMS, Experiment
from kinemic.denoiser import Denoiser, adapter_of, add_lora, merge_lora
from kinemic.diffusion import Diffusion
from kinemic.pipeline import Lab

FRAMES = 11


# --- MDM, independently: torch's own encoder, time first, condition token in front ---


def code_of_positions(rows, dim):
    table = torch.zeros(rows, 1, dim)
    for column in range(0, dim, 2):
        angle = torch.arange(rows, dtype=torch.float64) * math.exp(-column * math.log(10_000.0) / dim)
        table[:, 0, column], table[:, 0, column + 1] = angle.sin(), angle.cos()
    return table


def linear_pair(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def published_shapes(features, text, dim, ff, layers, actions=0):
    """Names and shapes of `humanml_enc_512_50steps`, from its specification."""
    shapes = linear_pair("input_process.poseEmbedding", dim, features)
    shapes |= {k: (5000, 1, dim) for k in ("sequence_pos_encoder.pe", "embed_timestep.sequence_pos_encoder.pe")}
    for i in (0, 2):
        shapes |= linear_pair(f"embed_timestep.time_embed.{i}", dim, dim)
    shapes |= linear_pair("embed_text", dim, text)
    for i in range(layers):
        name = f"seqTransEncoder.layers.{i}"
        shapes |= {f"{name}.self_attn.in_proj_weight": (3 * dim, dim), f"{name}.self_attn.in_proj_bias": (3 * dim,)}
        shapes |= linear_pair(f"{name}.self_attn.out_proj", dim, dim)
        shapes |= linear_pair(f"{name}.linear1", ff, dim) | linear_pair(f"{name}.linear2", dim, ff)
        for norm in ("norm1", "norm2"):
            shapes |= {f"{name}.{norm}.weight": (dim,), f"{name}.{norm}.bias": (dim,)}
    shapes |= linear_pair("output_process.poseFinal", features, dim)
    return shapes | ({"embed_action.action_embedding": (actions, dim)} if actions else {})


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith(".pe"):
            state[name] = code_of_positions(shape[0], shape[2])
            continue
        state[name] = torch.randn(shape, generator=generator) / (shape[-1] ** 0.5 if len(shape) > 1 else 5)
        if "norm" in name and name.endswith("weight"):
            state[name] += 1
    return state


class PlainMDM:
    """The published architecture on a state dict, with `nn.TransformerEncoder` and nothing of the package."""

    def __init__(self, state, heads):
        self.s = state
        prefix = "seqTransEncoder."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        dim, ff = own["layers.0.linear2.weight"].shape
        layer = nn.TransformerEncoderLayer(dim, heads, ff, 0.1, activation="gelu", batch_first=False, norm_first=False)
        self.encoder = nn.TransformerEncoder(
            layer, 1 + max(int(k.split(".")[1]) for k in own), enable_nested_tensor=False
        )
        self.encoder.load_state_dict(own)
        self.encoder.eval()

    def apply(self, name, x):
        return x @ self.s[f"{name}.weight"].T + self.s[f"{name}.bias"]

    @torch.no_grad()
    def __call__(self, x, t, lengths, text, keep_text, action=None, keep_action=None):
        """(B, T, D) noised -> (B, T, D) clean."""
        time = self.apply("embed_timestep.time_embed.0", self.s["sequence_pos_encoder.pe"][t, 0])
        time = self.apply("embed_timestep.time_embed.2", time * torch.sigmoid(time))
        condition = time + self.apply("embed_text", text * keep_text.float()[:, None])
        if action is not None:
            condition = condition + self.s["embed_action.action_embedding"][action] * keep_action.float()[:, None]
        frames = self.apply("input_process.poseEmbedding", x).permute(1, 0, 2)
        tokens = torch.cat([condition[None], frames])  # (1 + T, B, d)
        tokens = tokens + self.s["sequence_pos_encoder.pe"][: len(tokens)]
        hidden = torch.arange(len(tokens))[None] > lengths[:, None]  # token 0 is the condition, never hidden
        out = self.encoder(tokens, src_key_padding_mask=hidden)[1:]
        return self.apply("output_process.poseFinal", out).permute(1, 0, 2)


SMALL = dict(features=263, text=384, dim=16, ff=24, layers=2)
OFFICIAL = dict(features=263, text=512, dim=512, ff=1024, layers=8)


def write(folder, state, **args):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model000750000.pt"
    torch.save({"model": {k: v + 1 for k, v in state.items()}, "model_avg": state}, path)
    given = {"diffusion_steps": 50, "arch": "trans_enc", "noise_schedule": "cosine", "latent_dim": 512, **args}
    (folder / "args.json").write_text(json.dumps(given))
    return path


@pytest.fixture(scope="module")
def small_state():
    return random_state(published_shapes(**SMALL))


@pytest.mark.parametrize(("sizes", "actions"), [(SMALL, 0), (SMALL, 3), (OFFICIAL, 0)])
def test_converted_model_equals_an_independent_one(tmp_path, sizes, actions):
    state = random_state(published_shapes(**sizes, actions=actions), seed=1)
    ours, args = load_mdm(write(tmp_path, state))
    theirs = PlainMDM(state, heads=4)
    torch.manual_seed(2)
    lengths = torch.tensor([FRAMES, 4, 7, 1])
    x, t = torch.randn(4, FRAMES, sizes["features"]), torch.tensor([0, 49, 13, 30])
    text = torch.randn(4, sizes["text"])
    mask = torch.arange(FRAMES)[None] < lengths[:, None]
    for keep_text, keep_action in (([1, 1, 1, 1], [1, 1, 1, 1]), ([1, 0, 0, 1], [0, 1, 0, 1]), ([0] * 4, [0] * 4)):
        k, a = torch.tensor(keep_text, dtype=torch.bool), torch.tensor(keep_action, dtype=torch.bool)
        mixed = {"action": torch.tensor([0, 2, 1, 1]), "keep_action": a} if actions else {}
        found = ours(x, t, mask=mask, text=text, keep_text=k, **mixed)
        expected = theirs(x, t, lengths, text, k, **mixed)
        torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=1e-5)
    assert args["diffusion_steps"] == 50 and ours.settings["heads"] == 4 and not ours.training


def test_guidance_equals_two_separate_passes(tmp_path, small_state):
    ours, _ = load_mdm(write(tmp_path, small_state))
    theirs = PlainMDM(small_state, heads=4)
    lengths, text = torch.tensor([9, 5, 9]), torch.randn(3, 384, generator=torch.Generator().manual_seed(1))
    seen = []
    Diffusion(50).sample(
        ours, lengths, 263, text=text, guidance_scale=2.5, steps=4, generator=torch.Generator().manual_seed(3),
        callback=lambda i, x: seen.append(x),
    )  # fmt: skip
    x = torch.randn(3, 9, 263, generator=torch.Generator().manual_seed(3))
    t, yes = torch.full((3,), 49), torch.ones(3, dtype=torch.bool)
    conditional, unconditional = (theirs(x, t, lengths, text, keep) for keep in (yes, ~yes))
    expected = unconditional + 2.5 * (conditional - unconditional)
    real = torch.arange(9)[None] < lengths[:, None]
    torch.testing.assert_close(seen[0][real], expected[real], atol=2e-5, rtol=1e-5)
    assert not torch.allclose(conditional[real], unconditional[real], atol=1e-3)


@pytest.mark.parametrize("actions", [0, 3])
def test_round_trips_are_exact_and_keep_the_published_layout(tmp_path, actions):
    shapes = published_shapes(**SMALL, actions=actions)
    state = random_state(shapes)
    model, args = load_mdm(write(tmp_path / "in", state, dataset="humanml"))
    path = save_mdm(tmp_path / "out", model, args)
    written = torch.load(path, weights_only=True)
    for part in ("model", "model_avg"):
        assert {k: tuple(v.shape) for k, v in written[part].items()} == shapes
    for key, value in state.items():
        if key.endswith(".pe"):
            torch.testing.assert_close(written["model_avg"][key], value, atol=1e-3, rtol=0)
        else:
            assert torch.equal(written["model_avg"][key], value), key
    assert json.loads((path.parent / "args.json").read_text())["dataset"] == "humanml"
    again, _ = load_mdm(path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert sorted(p.name for p in path.parent.iterdir()) == ["args.json", path.name]


def test_file_folder_and_plain_state_dict_are_all_found(tmp_path, small_state):
    path = write(tmp_path, small_state)
    assert find_mdm(tmp_path) == find_mdm(path) == path
    torch.save({**small_state, "clip_model.visual.proj": torch.ones(2)}, path)  # a tower that is left aside on purpose
    torch.save({}, tmp_path / "opt000750000.pt")
    model, _ = load_mdm(tmp_path)
    assert torch.equal(model.embed_text.weight, small_state["embed_text.weight"])
    (tmp_path / "model000800000.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 2 checkpoints .*name one file"):
        load_mdm(tmp_path)


def test_tables_may_be_missing_but_not_different(tmp_path, small_state):
    bare = {k: v for k, v in small_state.items() if not k.endswith(".pe")}
    load_mdm(write(tmp_path, bare))
    other = small_state | {"sequence_pos_encoder.pe": small_state["sequence_pos_encoder.pe"].flip(0)}
    with pytest.raises(ValueError, match=r"sequence_pos_encoder\.pe is not the sinusoidal table"):
        load_mdm(write(tmp_path, other))


def refused(folder, state, said):
    with pytest.raises(ValueError, match=said) as caught:
        load_mdm(write(folder, state))
    assert "\n" not in str(caught.value) and "model000750000.pt" in str(caught.value)
    return str(caught.value)


def test_every_key_that_does_not_fit_is_named(tmp_path, small_state):
    state = dict(small_state)
    del state["embed_text.bias"], state["seqTransEncoder.layers.1.norm2.weight"]
    state["seqTransEncoder.norm.weight"] = torch.ones(16)
    state["extra"] = torch.ones(1)
    state["output_process.poseFinal.weight"] = torch.ones(263, 15)
    state["embed_timestep.time_embed.0.bias"] = torch.full((16,), torch.nan)
    said = refused(tmp_path, state, "not the weights of MDM's text-to-motion encoder")
    for part in ("embed_text.bias is missing", "seqTransEncoder.layers.1.norm2.weight is missing",
                 "seqTransEncoder.norm.weight is unknown", "extra is unknown",
                 "output_process.poseFinal.weight has shape (263, 15), expected (263, 16)",
                 "embed_timestep.time_embed.0.bias holds NaN"):  # fmt: skip
        assert part in said
    refused(tmp_path, {"weight": torch.ones(2)}, "not an MDM checkpoint, it has no matrix input_process")
    refused(tmp_path, {"state": 3}, "no table of tensors")


class Opens:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_truncated_foreign_and_harmful_files_are_one_line(tmp_path, small_state):
    whole = write(tmp_path, small_state).read_bytes()
    path = tmp_path / "model000750000.pt"
    for bad in (whole[: len(whole) // 2], whole[:100], b"", b"<html>not found</html>"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"model000750000\.pt: .*fetch it again") as caught:
            load_mdm(path)
        assert "\n" not in str(caught.value)
    torch.save(small_state, path, _use_new_zipfile_serialization=False)  # the format before torch 1.6
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="fetch it again"):
        load_mdm(path)
    harmful = {"model": small_state, "more": Opens(str(tmp_path / "made"))}
    for new in (True, False):
        torch.save(harmful, path, _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match="pickled code, which is refused") as caught:
            load_mdm(path)
        assert "\n" not in str(caught.value) and not (tmp_path / "made").exists()


@pytest.mark.parametrize(("args", "said"), [
    ({"arch": "trans_dec"}, "arch is 'trans_dec', only 'trans_enc'"),
    ({"noise_schedule": "linear"}, "noise_schedule is 'linear'"),
    ({"diffusion_steps": None}, "without diffusion_steps"),
])  # fmt: skip
def test_other_trainings_are_refused(tmp_path, small_state, args, said):
    with pytest.raises(ValueError, match=said):
        load_mdm(write(tmp_path, small_state, **args))


def test_missing_files_and_patches_are_named(tmp_path, small_state):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such checkpoint"):
        load_mdm(tmp_path / "nowhere.pt")
    write(tmp_path, small_state)
    (tmp_path / "args.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"args\.json: missing; it comes with the checkpoint"):
        load_mdm(tmp_path)
    for part in ({"patch": 2}, {"text_knots": 3}):
        (name, value), = part.items()
        with pytest.raises(ValueError, match=f"a model with {name} {value} has no MDM layout: train one with"):
            save_mdm(tmp_path, Denoiser(dim=16, heads=2, **part), {"diffusion_steps": 50})


# --- the published prior in an experiment ---


TINY = {
    "world": {"source_clips": 24, "pool_clips": 3, "test_clips": 2}, "mining": {"top_k": 6, "dim": 8},
    "adapt": {"steps": 2, "rank": 2}, "synthesis": {"per_class": 2, "batch": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def lab_with(store, path, **sections):
    settings = {**TINY, **sections, "pretrain": {"checkpoint": path and str(path), "steps": 3}}
    return Lab(Experiment.load("smoke", settings=settings), store, progress=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory, small_state):
    folder = tmp_path_factory.mktemp("published")
    write(folder, small_state)
    return folder


def test_an_experiment_takes_the_published_prior_and_converts_it_once(store, published, small_state):
    lab = lab_with(store, published)
    assert torch.equal(lab.prior_model.output_proj.weight, small_state["output_process.poseFinal.weight"])
    assert lab_with(store, published / "model000750000.pt").prior.key == lab.prior.key
    clips = lab.load_clips(lab.synthesize(lab.adapt(0), 0))
    assert len(clips) == 2 * len(lab.data.classes) and all(np.isfinite(c.features).all() for c in clips)


@pytest.mark.parametrize(("state", "args", "said"), [
    ({"text": 512}, {}, r"text_dim 512, this experiment 384 \(encoder 'minilm': change text.encoder\)"),
    ({"features": 251}, {}, "num_features 251, this experiment 263"),
    ({}, {"diffusion_steps": 1000}, r"diffusion_steps 1000, this experiment 50 \(change diffusion.num_timesteps\)"),
])  # fmt: skip
def test_a_prior_that_does_not_fit_the_experiment_is_refused(store, tmp_path, state, args, said):
    path = write(tmp_path, random_state(published_shapes(**{**SMALL, **state})), **args)
    with pytest.raises(ValueError, match=said) as caught:
        lab_with(store, path).prior  # noqa: B018 (the property loads)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_chapter_four_takes_real_steps_at_paper_size_on_a_cpu(tmp_path, monkeypatch):
    """Published sizes with random values: prior of 17.9 million parameters, CLIP's text tower as encoder."""
    ensure_torchvision()
    from open_clip.model import QuickGELU
    from open_clip.transformer import TextTransformer
    from safetensors.torch import save_file

    tower = TextTransformer(width=512, heads=8, layers=12, output_dim=512, act_layer=QuickGELU)
    weights = {k: v.detach().half().contiguous() for k, v in tower.named_parameters()}
    save_file(weights, tmp_path / "clip.safetensors")
    write(tmp_path / "prior", random_state(published_shapes(**OFFICIAL)))
    parameters = {"source": "embedded", "target": "embedded", "shots": 1, "draws": 1, "device": "cpu", "settings": {
        "world": {"source_clips": 6, "pool_clips": 2, "test_clips": 2}, "mining": {"top_k": 3},
        "text": {"encoder": "clip", "weights": str(tmp_path / "clip.safetensors")},
        "pretrain": {"checkpoint": str(tmp_path / "prior")}, "adapt": {"steps": 2},
        "diffusion": {"sampling_steps": 1}, "synthesis": {"per_class": 2},
        "har": {"updates": 2, "clip_len": 16, "channels": 8, "depth": 4, "seeds": 1},
    }}  # fmt: skip
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(parameters))
    monkeypatch.setenv("KINEMIC_CACHE", str(tmp_path / "cache"))
    notebooks = Path(__file__).resolve().parents[1] / "notebooks"
    words = ["papermill", "--cwd", notebooks, "-k", "python3", "--no-progress-bar", "-f", PARAMS / "paper.yaml",
             "-f", tmp_path / "given.yaml", notebooks / "04_finetuning.ipynb", tmp_path / "out.ipynb"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    lab = Lab(Experiment.load("paper", **parameters), progress=False)
    with lab.store.loading_only():
        made = lab.adapt(0)
    log = json.loads((made.folder / "log.json").read_text())
    assert log[-1]["step"] == 2 and all(np.isfinite(list(row.values())).all() for row in log)
    assert lab.prior.manifest["metrics"]["parameters"] == 17_880_327
    before, after = lab.prior_model.state_dict(), load_adapter(made.folder / "adapter", lab.prior_model).state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.split(".")[-2] for k in moved} >= {"q_proj", "linear2", "output_proj", "input_proj"}
    assert not any("norm" in k or "embed_text" in k or k.endswith("bias") for k in moved)


# --- adapters ---


@pytest.fixture
def tuned():
    """A prior, its adapted and not yet merged copy, and inputs."""
    torch.manual_seed(5)
    prior = Denoiser(6, 5, dim=16, layers=2, heads=2, ff=24).eval()
    student = add_lora(prior.with_actions(3), rank=3, alpha=6, dropout=0.1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name or "embed_action" in name:
                parameter.normal_(0, 0.2)
    mask = torch.arange(7)[None] < torch.tensor([7, 3, 5])[:, None]
    inputs = dict(x=torch.randn(3, 7, 6), t=torch.tensor([0, 3, 49]), mask=mask, text=torch.randn(3, 5),
                  action=torch.tensor([0, 2, 1]))  # fmt: skip
    return prior, student, inputs


def test_peft_reads_the_adapter_and_gives_the_merged_models_outputs(tmp_path, tuned):
    ensure_torchvision()
    from peft import PeftConfig, PeftModel
    from safetensors.torch import load_file

    prior, student, inputs = tuned
    adapter = adapter_of(student)
    merged = merge_lora(student).eval()
    save_adapter(tmp_path, adapter, "card")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert PeftConfig.from_pretrained(tmp_path).r == 3
    assert sum(v.numel() for k, v in load_file(tmp_path / "adapter_model.safetensors").items() if "action" in k) == 48
    theirs = PeftModel.from_pretrained(prior.with_actions(3), tmp_path).eval()
    with torch.no_grad():
        expected = merged(**inputs)
        torch.testing.assert_close(theirs(**inputs), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(load_adapter(tmp_path, prior)(**inputs), expected, atol=1e-6, rtol=1e-6)
        plain = prior.with_actions(3).eval()(**inputs)
    assert float((plain - expected).abs().max()) > 0.05
    assert set(load_adapter(tmp_path, prior).state_dict()) == set(merged.state_dict())


def test_an_adapter_of_another_prior_or_none_is_one_line(tmp_path, tuned):
    prior, student, _ = tuned
    save_adapter(tmp_path, adapter_of(student), "card")
    other = Denoiser(6, 5, dim=32, layers=2, heads=2, ff=24)
    with pytest.raises(ValueError, match="does not fit this prior") as caught:
        load_adapter(tmp_path, other)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="with tuning 'full' there is none"):
        load_adapter(tmp_path / "nowhere", prior)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="or is damaged"):
        load_adapter(tmp_path, prior)


def test_an_adaptation_leaves_its_adapter_with_a_card(store, published):
    lab = lab_with(store, published)
    made = lab.adapt(0)
    x, t = torch.randn(2, 40, 263), torch.tensor([3, 40])
    text = torch.randn(2, 384)
    inputs = dict(mask=torch.ones(2, 40, dtype=torch.bool), text=text, action=torch.tensor([0, 7]))
    from kinemic.train import load_model

    merged = load_model(made.folder / "generator")
    with torch.no_grad():
        found = load_adapter(made.folder / "adapter", lab.prior_model)(x, t, **inputs)
        torch.testing.assert_close(found, merged(x, t, **inputs), atol=1e-6, rtol=1e-5)
    card = (made.folder / "adapter" / "README.md").read_text()
    assert all(f"| {i} | {name} |" in card for i, name in enumerate(lab.data.classes))
    for word in ("license: other", "non-commercial", "library_name: peft", "2 per class", "minilm", "| rank | 2 |",
                 "Intended use", "Limits", published.name, lab.prior.key):  # fmt: skip
        assert word in card
    assert str(published.parent) not in card
    assert str(published.parent) not in (made.folder / "adapter" / "adapter_config.json").read_text()


def test_cards_tell_full_tuning_and_terms(store, published):
    made = lab_with(store, published).adapt(0, tuning="full", method="naive")
    assert not (made.folder / "adapter").exists()
    own = lab_with(store, None).adapt(0, method="naive")  # everything simulated: only then are the terms ours
    assert "license: mit" in (own.folder / "adapter" / "README.md").read_text()
    assert "there is no adapter" in (made.folder / "generator" / "README.md").read_text()
