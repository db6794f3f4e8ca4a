"""The motion diffusion model: a transformer encoder that predicts the clean motion from a noised one.

One condition token (time + text + action) stands before the frames; its sum of embeddings is the only place where
the condition enters, unless the text is also spread along the clip (`text_knots`). Attention is written with four plain
Linears, so that low-rank adapters of `peft` are exact on each projection (on `nn.MultiheadAttention` they are not: the
fused kernel reads the base weights).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinemic._torchvision import ensure_torchvision

__all__ = ["LORA_TARGETS", "Denoiser", "adapter_of", "add_lora", "merge_lora", "trainable_parameters"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
LORA_TARGETS = (*ATTENTION, "linear1", "linear2", "input_proj", "output_proj", "time_mlp.0", "time_mlp.2")


def sinusoidal_table(rows: int, dim: int) -> Tensor:
    """(rows, dim) sines at even and cosines at odd columns, wavelengths from 2 pi to 10^4 * 2 pi."""
    frequency = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angle = torch.arange(rows)[:, None] * frequency[None]
    return torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(rows, dim)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`, at a third of its cost on a CPU, where drawing the mask is what takes the time.

    A number of the global generator is good for four elements there: each gets 16 of its bits, so `p` is met to 2^-16.
    """
    if not training or not 0 < p < 1 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    dropped = int(p * 2**16)  # of the 2^16 values of 16 bits
    keep = (bits.view(torch.int16)[: x.numel()] >= dropped - 2**15).view(x.shape)
    return x * keep.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Dropout):
    """The module of `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


class EncoderLayer(nn.Module):
    """Post-norm transformer encoder layer with exact GELU; dropout also on the attention weights."""

    def __init__(self, dim: int, heads: int, ff: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.linear1, self.linear2 = nn.Linear(dim, ff), nn.Linear(ff, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, keep: Tensor, rows: Tensor) -> Tensor:
        """One layer over the tokens that count.

        Args:
            x: (M, d), the tokens of all clips without padding, one after the other.
            keep: (B, N) bool, True on tokens that attention may read.
            rows: (M,) long, where in (B * N) the tokens stand.
        """
        (B, N), d = keep.shape, x.shape[-1]
        q, k, v = (
            _spread(p(x), rows, B * N).view(B, N, self.heads, -1).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        p = self.dropout if self.training else 0.0
        a = F.scaled_dot_product_attention(
            q, k, v, attn_mask=keep[:, None, None], dropout_p=p
        )  # (B, heads, N, d/heads)
        a = self.out_proj(a.transpose(1, 2).reshape(B * N, d)[rows])
        x = self.norm1(x + dropout(a, self.dropout, self.training))
        h = self.linear2(dropout(F.gelu(self.linear1(x)), self.dropout, self.training))
        return self.norm2(x + dropout(h, self.dropout, self.training))


def _spread(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """(count, d) with x at some rows and zero elsewhere."""
    return x.new_zeros(count, x.shape[-1]).index_copy(0, rows, x)


class Denoiser(nn.Module):
    """Transformer encoder that maps a noised motion to an estimate of the clean one.

    Args:
        num_features: D, motion features per frame.
        text_dim: E, size of a text feature.
        num_actions: K, rows of the action table; 0 for a text-only prior.
        dim: width of the model (paper 512).
        layers, heads, ff: depth, attention heads and feed-forward width (paper 8, 4, 1024).
        dropout: probability in the layers and after the positional code.
        patch: consecutive frames that share a token; 1 in the paper, 2 halves the cost of the embedded world.
        text_knots: K, how many vectors a second, small network makes of the text, to be spread evenly along the clip
            and added to its tokens, linear in between. 0 in the paper, where the one token that carries the text says
            the same to every frame, and a model learns late which action comes first.
        action_init: 'zero' leaves the pre-trained model undisturbed at the first step; 'normal' draws the table from
            N(0, 1) as the reference implementation does.

    Source: MDM (Tevet et al. 2023), arch 'trans_enc'; 17,880,327 parameters at paper size without actions.
    """

    pack = True  # False computes the padding too: for comparison

    def __init__(
        self,
        num_features: int = 263,
        text_dim: int = 512,
        num_actions: int = 0,
        *,
        dim: int = 512,
        layers: int = 8,
        heads: int = 4,
        ff: int = 1024,
        dropout: float = 0.1,
        patch: int = 1,
        text_knots: int = 0,
        action_init: str = "zero",
    ):
        super().__init__()
        if dim % (2 * heads):
            raise ValueError(f"width {dim} cannot be split into {heads} heads of even size: change dim or heads")
        if action_init not in ("zero", "normal"):
            raise ValueError(f"action_init is {action_init!r}: choose 'zero' or 'normal'")
        self.settings = dict(
            num_features=num_features,
            text_dim=text_dim,
            num_actions=num_actions,
            dim=dim,
            layers=layers,
            heads=heads,
            ff=ff,
            dropout=dropout,
            patch=patch,
            text_knots=text_knots,
            action_init=action_init,
        )
        self.num_features, self.patch, self.dropout = num_features, patch, dropout
        self.input_proj = nn.Linear(num_features * patch, dim)
        self.time_mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.embed_text = nn.Linear(text_dim, dim)
        self.text_track = None
        if text_knots:
            self.text_track = nn.Sequential(nn.Linear(text_dim, dim), nn.SiLU(), nn.Linear(dim, text_knots * dim))
            nn.init.zeros_(self.text_track[-1].weight)  # added to a trained model, it changes nothing at first
            nn.init.zeros_(self.text_track[-1].bias)
        self.embed_action = nn.Embedding(num_actions, dim) if num_actions else None
        if num_actions and action_init == "zero":
            nn.init.zeros_(self.embed_action.weight)
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, ff, dropout) for _ in range(layers))
        self.output_proj = nn.Linear(dim, num_features * patch)
        self.register_buffer("table", sinusoidal_table(1024, dim), persistent=False)

    def with_actions(self, num_actions: int, action_init: str = "zero") -> Denoiser:
        """Copy of this prior, same weights, with a fresh action table of `num_actions` rows."""
        made = Denoiser(**{**self.settings, "num_actions": num_actions, "action_init": action_init})
        missing, unexpected = made.load_state_dict(
            {k: v for k, v in self.state_dict().items() if not k.startswith("embed_action")}, strict=False
        )
        if unexpected or set(missing) - {"embed_action.weight"}:
            raise ValueError(f"prior does not fit: missing {missing}, unexpected {unexpected}; was it already adapted?")
        return made.to(self.table.device)

    def tokens(self, lengths: Tensor) -> Tensor:
        """Number of tokens that hold frames of clips with these lengths."""
        return (lengths + self.patch - 1) // self.patch

    def _along(self, track: Tensor, real: Tensor) -> Tensor:
        """(B, N, d): knots (B, K * d), evenly spaced over each clip's real tokens, linear in between."""
        knots = track.view(len(track), -1, self.table.shape[1])
        K, N = knots.shape[1], real.shape[1]
        place = (torch.arange(N, device=track.device) + 0.5) / real.sum(1, keepdim=True)  # (B, N), 0 to 1 where real
        near = 1 - (place[..., None] * (K - 1) - torch.arange(K, device=track.device)).abs()
        return near.clamp(min=0).to(knots.dtype) @ knots

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        mask: Tensor,
        text: Tensor | None = None,
        action: Tensor | None = None,
        keep_text: Tensor | None = None,
        keep_action: Tensor | None = None,
        return_latent: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Estimate of the clean motion.

        Args:
            x: (B, T, D) noised motion.
            t: (B,) long diffusion steps.
            mask: (B, T) bool, True on real frames; the others are hidden from attention.
            text: (B, E) text features or None.
            action: (B,) long or None.
            keep_text: (B,) bool, False drops the text of that clip: its feature is zeroed before the projection, so
                the bias remains, as in the prior's training.
            keep_action: (B,) bool, False zeroes the action's embedding.
            return_latent: also return the last layer's states, which Mining In Context reads.

        Returns:
            (B, T, D) estimate, and if asked for (B, N, dim) latents, N = tokens (T at patch 1).
        """
        B, T, _ = x.shape
        c = self.time_mlp(self.table[t])  # (B, d)
        if text is not None:
            text = text if keep_text is None else text * keep_text[:, None]
            c = c + self.embed_text(text)
        if action is not None:
            if self.embed_action is None:
                raise ValueError("an action was given to a model without action table: build it with num_actions > 0")
            a = self.embed_action(action)
            c = c + (a if keep_action is None else a * keep_action[:, None])
        if T % self.patch:
            x = F.pad(x, (0, 0, 0, self.patch - T % self.patch))
            mask = F.pad(mask, (0, self.patch - T % self.patch))
        if self.patch > 1:  # a token may hold the end of a clip and padding, whose noise must not be seen
            x = x * mask[..., None]
        N = x.shape[1] // self.patch
        h = self.input_proj(x.reshape(B, N, -1))
        keep = F.pad(mask.view(B, N, self.patch).any(-1), (1, 0), value=True)  # (B, 1 + N)
        if text is not None and self.text_track is not None:
            h = h + self._along(self.text_track(text), keep[:, 1:])
        h = torch.cat([c[:, None], h], dim=1) + self.table[: N + 1]
        # Only attention needs clips side by side; everything else runs over the real tokens alone.
        count = keep.numel()
        rows = keep.flatten().nonzero().squeeze(1) if self.pack else torch.arange(count, device=keep.device)
        h = dropout(h.flatten(0, 1)[rows], self.dropout, self.training)
        for layer in self.layers:
            h = layer(h, keep, rows)
        latent = _spread(h, rows, count).view(B, N + 1, -1)[:, 1:]
        out = self.output_proj(latent).reshape(B, N * self.patch, self.num_features)[:, :T]
        return (out, latent) if return_latent else out


def add_lora(model: Denoiser, *, rank: int = 16, alpha: float = 32, dropout: float = 0.1) -> Denoiser:
    """Freeze a denoiser and add low-rank adapters to its attention, feed-forward, time, input and output Linears.

    Args:
        model: changed in place.
        rank, alpha: y = Wx + b + (alpha / rank) B A x.
        dropout: on the input of the adapters outside attention; the reference builds the attention's product in weight
            space, where dropout has no place, so none is applied there.

    Returns:
        The same model; adapters and the action table are trainable, nothing else.

    Source: Hu et al. (2022); 975,072 adapter parameters at paper size, rank 16.
    """
    ensure_torchvision()
    from peft import LoraConfig, inject_adapter_in_model  # slow import

    model.requires_grad_(False)
    targets = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(LORA_TARGETS)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets), model)
    for name, module in model.named_modules():
        if name.endswith(LORA_TARGETS):
            module.lora_dropout["default"] = nn.Identity() if name.endswith(ATTENTION) else Dropout(dropout)
    if model.embed_action is not None:
        model.embed_action.requires_grad_(True)
    return model


def adapter_of(model: Denoiser) -> tuple[Any, dict[str, Tensor]]:
    """Adapters of a denoiser as `peft` would save them, before they are merged.

    Returns:
        `peft.LoraConfig`, and copies of the weights under the names that `peft.PeftModel` gives them. The action table
        is among them, as a module that is saved whole.
    """
    ensure_torchvision()
    from peft import get_peft_model_state_dict

    config = copy(model.peft_config["default"])
    config.inference_mode = True
    weights = get_peft_model_state_dict(model)
    if model.embed_action is not None:
        config.modules_to_save = ["embed_action"]
        weights["embed_action.weight"] = model.embed_action.weight
    return config, {f"base_model.model.{k}": v.detach().cpu().clone() for k, v in weights.items()}


def merge_lora(model: Denoiser) -> Denoiser:
    """Fold the adapters into the base weights, in place; the result is a plain `Denoiser`."""
    ensure_torchvision()
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)  # refuses weights that are not finite
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters that receive gradients."""
    return ((n, p) for n, p in model.named_parameters() if p.requires_grad)
