"""The transformer against torch's own encoder, its adapters against algebra, its masks against shorter batches."""

import copy

import pytest
import torch
from torch import nn

from kinemic.denoiser import Denoiser, add_lora, dropout, merge_lora, sinusoidal_table, trainable_parameters

SMALL = dict(num_features=6, text_dim=5, dim=16, layers=2, heads=2, ff=24, dropout=0.0)


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    lengths = torch.tensor([7, 4, 5])
    return dict(x=torch.randn(3, 7, 6), t=torch.tensor([0, 3, 49]), mask=torch.arange(7)[None] < lengths[:, None],
                text=torch.randn(3, 5), action=torch.tensor([0, 1, 1]))  # fmt: skip


def test_parameter_counts_are_the_papers():
    prior = Denoiser()
    assert sum(p.numel() for p in prior.parameters()) == 17_880_327
    adapted = add_lora(prior.with_actions(3))
    count = {n: p.numel() for n, p in trainable_parameters(adapted)}
    assert sum(v for n, v in count.items() if "lora" in n) == 975_072
    assert sum(count.values()) == 975_072 + 3 * 512


def test_forward_equals_an_encoder_of_torch_with_the_same_weights(inputs):
    torch.manual_seed(1)
    ours = Denoiser(**SMALL, num_actions=2, action_init="normal").eval()
    layer = nn.TransformerEncoderLayer(16, 2, 24, 0.0, activation="gelu", batch_first=False)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    state = {}
    for i in range(2):
        own = {k.removeprefix(f"layers.{i}."): v for k, v in ours.state_dict().items() if k.startswith(f"layers.{i}.")}
        for kind in ("weight", "bias"):
            state[f"layers.{i}.self_attn.in_proj_{kind}"] = torch.cat([own[f"{p}_proj.{kind}"] for p in "qkv"])
            state[f"layers.{i}.self_attn.out_proj.{kind}"] = own[f"out_proj.{kind}"]
            for name in ("linear1", "linear2", "norm1", "norm2"):
                state[f"layers.{i}.{name}.{kind}"] = own[f"{name}.{kind}"]
    theirs.load_state_dict(state)
    c = ours.time_mlp(ours.table[inputs["t"]]) + ours.embed_text(inputs["text"]) + ours.embed_action(inputs["action"])
    h = torch.cat([c[None], ours.input_proj(inputs["x"]).transpose(0, 1)]) + ours.table[:8, None]
    padding = torch.cat([torch.zeros(3, 1, dtype=torch.bool), ~inputs["mask"]], dim=1)
    expected = theirs(h, src_key_padding_mask=padding)[1:].transpose(0, 1)
    out, latent = ours(**inputs, return_latent=True)
    real = inputs["mask"]
    assert torch.allclose(latent[real], expected[real], atol=1e-5)
    assert torch.allclose(out[real], ours.output_proj(expected)[real], atol=1e-5)


def spoken(model):
    """The same model whose knots, which begin as zeros, have something to say."""
    for name, parameter in model.named_parameters():
        if "text_track.2" in name:
            nn.init.normal_(parameter, 0, 0.3)
    return model.eval()


@pytest.mark.parametrize("parts", [{}, {"patch": 2}, {"patch": 3}, {"patch": 2, "text_knots": 3}], ids=str)
def test_padding_and_neighbours_do_not_change_a_clip(inputs, parts):
    torch.manual_seed(1)
    model = spoken(Denoiser(**SMALL, num_actions=2, **parts))
    together = model(**inputs)
    for i, n in enumerate((7, 4, 5)):
        alone = model(**{k: (v[i : i + 1, :n] if k in ("x", "mask") else v[i : i + 1]) for k, v in inputs.items()})
        assert torch.allclose(together[i, :n], alone[0], atol=1e-5)
        assert alone.shape == (1, n, 6)


def test_dropped_conditions_leave_no_trace(inputs):
    torch.manual_seed(1)
    model = Denoiser(**SMALL, num_actions=2, action_init="normal").eval()
    never = torch.zeros(3, dtype=torch.bool)
    hidden = dict(keep_text=never, keep_action=never)
    out = model(**inputs, **hidden)
    other = model(**{**inputs, "text": torch.randn(3, 5), "action": 1 - inputs["action"]}, **hidden)
    assert torch.equal(out, other)
    assert not torch.allclose(out, model(**inputs))


@pytest.mark.parametrize("patch", [1, 2])
def test_knots_of_text_lie_evenly_along_each_clip(inputs, patch):
    torch.manual_seed(1)
    model = spoken(Denoiser(**SMALL, patch=patch, text_knots=3))
    added = []
    hook = model.layers[0].register_forward_pre_hook(lambda _, given: added.append(given[0]))
    seen = {k: v for k, v in inputs.items() if k != "action"}
    model(**seen)
    model.text_track = None
    model(**seen)
    hook.remove()
    spread, real = (added[0] - added[1]).detach(), seen["mask"][:, ::patch].sum(1)
    assert spread.abs().max() > 0.1
    starts = torch.cat([torch.zeros(1), (real + 1).cumsum(0)]).long()  # packed rows: a condition token, then the frames
    for i, n in enumerate(real):
        assert not spread[starts[i]].any()
        own = spread[starts[i] + 1 : starts[i] + 1 + n]
        straight = own[: int(n / 2)].diff(n=2, dim=0)  # no bend before the middle knot
        assert torch.allclose(straight, torch.zeros_like(straight), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(kind):
    torch.manual_seed(0)
    x = torch.full((301, 999), 2.0, dtype=kind, requires_grad=True)
    y = dropout(x, 0.1, True)
    kept = y != 0
    assert abs(float(kept.float().mean()) - 0.9) < 4 * (0.09 / x.numel()) ** 0.5
    assert (y[kept] * 0.9 / 2 - 1).abs().max() < (1e-4 if kind == torch.float32 else 1e-2)
    # neighbours that share a draw of the generator are independent of each other
    four = kept.flatten()[: kept.numel() // 4 * 4].view(-1, 4).float()
    assert (torch.corrcoef(four.T) - torch.eye(4)).abs().max() < 0.02
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(slope != 0, kept)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.1, True), y) and not torch.equal(dropout(x, 0.1, True), y)
    assert dropout(x, 0.1, False) is x or torch.equal(dropout(x, 0.1, False), x)
    assert torch.equal(dropout(x, 0.0, True), x) and not dropout(x, 1.0, True).any()


def test_sinusoidal_table_follows_its_formula():
    import math

    table = sinusoidal_table(10, 8)
    for p, i in ((0, 0), (3, 1), (9, 3)):
        angle = p * math.exp(-2 * i * math.log(1e4) / 8)
        assert float(table[p, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-6)
        assert float(table[p, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-6)


def test_a_zero_action_table_leaves_the_prior_undisturbed(inputs):
    prior = Denoiser(**SMALL).eval()
    adapted = prior.with_actions(2).eval()
    without = {k: v for k, v in inputs.items() if k != "action"}
    assert torch.allclose(prior(**without), adapted(**inputs))
    assert not torch.allclose(prior(**without), prior.with_actions(2, "normal").eval()(**inputs))


@pytest.fixture
def adapted():
    torch.manual_seed(2)
    model = add_lora(Denoiser(**SMALL).with_actions(2), rank=3, alpha=6, dropout=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


def test_adapters_start_as_the_identity_and_then_change_evaluation_outputs(inputs, adapted):
    torch.manual_seed(2)
    base = Denoiser(**SMALL).with_actions(2).eval()
    fresh = add_lora(copy.deepcopy(base)).eval()
    assert torch.allclose(fresh(**inputs), base(**inputs), atol=1e-6)
    with torch.no_grad():
        evaluated, trained = adapted.eval()(**inputs), adapted.train()(**inputs)
    assert torch.allclose(evaluated, trained, atol=1e-6)  # no dropout: both modes must use the adapters
    assert float((evaluated - base(**inputs)).detach().abs().max()) > 1e-2


def test_merging_is_exact(inputs, adapted):
    before = adapted.eval()(**inputs)
    merged = merge_lora(adapted)
    assert torch.allclose(merged(**inputs), before, atol=1e-6)
    assert set(merged.state_dict()) == set(Denoiser(**SMALL, num_actions=2).state_dict())


def test_every_targeted_projection_receives_a_gradient(inputs, adapted):
    adapted.train()(**inputs).square().mean().backward()
    moving = dict(trainable_parameters(adapted))
    assert len([n for n in moving if "lora_A" in n]) == 2 * 6 + 4
    for name, parameter in moving.items():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)


def test_attention_adapters_have_no_dropout():
    model = add_lora(Denoiser(**SMALL).with_actions(2), dropout=0.5)
    kinds = {
        n: type(m.lora_dropout["default"]).__name__ for n, m in model.named_modules() if hasattr(m, "lora_dropout")
    }
    assert {kind for n, kind in kinds.items() if n.endswith(("q_proj", "k_proj", "v_proj", "out_proj"))} == {"Identity"}
    assert {kind for n, kind in kinds.items() if n.endswith(("linear1", "input_proj"))} == {"Dropout"}


@pytest.mark.parametrize("wrong", [dict(dim=15), dict(heads=3), dict(action_init="one")])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError):
        Denoiser(**{**SMALL, **wrong})


def test_an_action_without_table_is_refused(inputs):
    with pytest.raises(ValueError, match="num_actions"):
        Denoiser(**SMALL)(**inputs)
