r"""Mining In Context: find, inside a long source motion, the window that moves like a short target clip.

An attention BiGRU reads the latents of the diffusion model and returns an embedding :math:`z` and a weight per frame.
A soft nearest neighbour loss pulls a target's embedding towards source embeddings that were retrieved for its class;
the attention then says where in the source the resemblance is, and the window that gathers most of it becomes
training data, weighted by :math:`\gamma=\frac12(1+\cos(z^g,z^w))`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["MIC", "MemoryBank", "best_window", "gather_window", "soft_nearest_neighbour_loss", "window_weight"]

MAX_LOG_SCALE = math.log(100.0)  # the temperature's inverse is kept in [1, 100]


class MIC(nn.Module):
    """Attention BiGRU over diffusion latents; one instance serves both streams.

    Args:
        input_dim: width of the latents (paper 512).
        dim: width of the GRU per direction and of the embedding (paper 512).
        temperature: initial temperature of the contrastive loss; its inverse's logarithm is learned.

    Source: paper, MIC module; layer order, sizes and initialisation of the reference implementation (4,730,369
    parameters at 512). The initial hidden state is learned, drawn from N(0, 1).
    """

    def __init__(self, input_dim: int = 512, dim: int = 512, temperature: float = 0.07):
        super().__init__()
        self.settings = dict(input_dim=input_dim, dim=dim, temperature=temperature)
        self.input_proj = nn.Linear(input_dim, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True, bidirectional=True)
        self.initial_state = nn.Parameter(torch.randn(2, 1, dim))
        self.score = nn.Sequential(nn.Linear(2 * dim, dim), nn.LayerNorm(dim), nn.LeakyReLU(0.2), nn.Linear(dim, 1))
        self.head = nn.Sequential(nn.Linear(2 * dim, dim), nn.LayerNorm(dim), nn.LeakyReLU(0.2), nn.Linear(dim, dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, latent: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding and attention.

        Args:
            latent: (B, N, input_dim), one row per token, without the condition token.
            lengths: (B,) long, real tokens per clip.

        Returns:
            z (B, dim) and attention (B, N), a distribution over the real tokens, zero on padding.
        """
        real = torch.arange(latent.shape[1], device=latent.device)[None] < lengths[:, None]
        recur = self._own if latent.device.type == "cpu" else self._packed
        h = recur(self.input_proj(latent), lengths)
        attention = self.score(h).squeeze(-1).masked_fill(~real, -torch.inf).softmax(dim=1)
        return self.head((attention[..., None] * h).sum(dim=1)), attention

    def _packed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, N, 2 dim) states in both directions, zero on padding."""
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        state = self.initial_state.expand(-1, len(x), -1).contiguous()
        return pad_packed_sequence(self.gru(packed, state)[0], batch_first=True, total_length=x.shape[1])[0]

    def _own(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The same by `_Recurrence`, which on the CPU takes half the time: no padding, both directions in one product,
        and weights whose gradient is taken once, not at every step."""
        count, width, _ = x.shape
        order = lengths.argsort(descending=True, stable=True)
        place = torch.arange(width)[:, None]
        real = place < lengths[order]
        # rows of the flattened batch, all first tokens, then all second ones, ...; longest clips first
        ahead = (order * width + place)[real]
        behind = (order * width + lengths[order] - 1 - place)[real]
        weight_ih, weight_hh, bias_ih, bias_hh = (
            torch.stack([getattr(self.gru, f"{kind}_l0{way}") for way in ("", "_reverse")])
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        flat = x.flatten(0, 1)
        gates = torch.baddbmm(bias_ih[:, None], torch.stack([flat[ahead], flat[behind]]), weight_ih.mT)
        sizes = [n for n in real.sum(1).tolist() if n]
        states = _Recurrence.apply(gates, self.initial_state, weight_hh, bias_hh[:, None], sizes)
        empty = x.new_zeros(len(flat), states.shape[-1])
        both = [empty.index_copy(0, rows, part) for rows, part in zip((ahead, behind), states, strict=True)]
        return torch.cat(both, dim=-1).unflatten(0, (count, width))


class _Recurrence(torch.autograd.Function):
    """The recurrent half of a bidirectional GRU over packed sequences.

    Autograd through a loop would multiply and add up the gradient of the recurrent weights at every step. Here the
    loop backwards only carries the gradient of the state; the weights' is one product over all steps at its end.

    Args of `apply`:
        gates: (2, R, 3H), what the input adds to the reset, update and new gates of both directions. Rows are steps of
            clips: all first steps, then all second steps, ..., in every step the longest clips first.
        first: (2, 1, H), initial state of all clips.
        weight, bias: (2, 3H, H) and (2, 1, 3H), recurrent ones.
        sizes: clips that have a first, second, ... step.

    Returns:
        (2, R, H) states. Source: `torch.nn.GRU`, documentation, equations; their derivatives are ours.
    """

    @staticmethod
    def forward(ctx, gates: Tensor, first: Tensor, weight: Tensor, bias: Tensor, sizes: list[int]) -> Tensor:
        dim = first.shape[-1]
        before, hidden, new, states = (gates.new_empty(2, gates.shape[1], dim) for _ in range(4))
        turns = gates.new_empty(2, gates.shape[1], 2 * dim)
        state, begin = first.expand(-1, sizes[0], -1), 0
        for count in sizes:
            now = slice(begin, begin + count)
            before[:, now] = state = state[:, :count]
            read, hidden[:, now] = torch.baddbmm(bias, state, weight.mT).split((2 * dim, dim), dim=-1)
            turns[:, now] = turn = torch.sigmoid(gates[:, now, : 2 * dim] + read)
            reset, update = turn.chunk(2, dim=-1)
            new[:, now] = candidate = torch.tanh(torch.addcmul(gates[:, now, 2 * dim :], reset, hidden[:, now]))
            states[:, now] = state = torch.lerp(candidate, state, update)
            begin += count
        ctx.save_for_backward(before, turns, hidden, new, weight)
        ctx.sizes = sizes
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        before, turns, hidden, new, weight = ctx.saved_tensors
        reset, update = turns.chunk(2, dim=-1)
        grad = grad.clone()
        to_new = (1 - update) * (1 - new.square())  # from the state to what goes into the tanh
        factors = (to_new * hidden * reset * (1 - reset), (before - new) * update * (1 - update), to_new * reset)
        factors = torch.stack(factors, dim=2)
        read = torch.empty_like(factors)
        carry, begin = grad[:, :0], grad.shape[1]
        for count in reversed(ctx.sizes):
            begin -= count
            now = slice(begin, begin + count)
            grad[:, begin : begin + carry.shape[1]] += carry
            read[:, now] = grad[:, now, None] * factors[:, now]
            carry = torch.baddbmm(grad[:, now] * update[:, now], read[:, now].flatten(2), weight)
        read = read.flatten(2)
        of_gates = torch.cat([read[..., : 2 * new.shape[-1]], grad * to_new], dim=-1)
        return of_gates, carry.sum(1, keepdim=True), read.mT @ before, read.sum(1, keepdim=True), None


class MemoryBank:
    """First-in-first-out store of source embeddings and their labels.

    Args:
        size: rows kept (paper 60).
    """

    def __init__(self, size: int = 60):
        if size < 0:
            raise ValueError(f"bank size is {size}: give 0 (no bank) or more")
        self.size = size
        self.keys: Tensor | None = None
        self.labels: Tensor | None = None

    def with_current(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of this step: the current embeddings, with gradient, followed by what the bank held before."""
        if self.keys is None:
            return z, labels
        return torch.cat([z, self.keys]), torch.cat([labels, self.labels])

    def push(self, z: Tensor, labels: Tensor) -> None:
        """Append detached embeddings; the oldest rows beyond `size` leave."""
        keys, labels = z.detach(), labels.clone()
        if self.keys is not None:
            keys, labels = torch.cat([self.keys, keys]), torch.cat([self.labels, labels])
        kept = slice(len(keys) - min(self.size, len(keys)), None)
        self.keys, self.labels = keys[kept], labels[kept]

    def state(self) -> dict[str, Tensor]:
        """Tensors to save with a checkpoint; without them a resumed run would differ."""
        return (
            {} if self.keys is None else {"bank.keys": self.keys.contiguous(), "bank.labels": self.labels.contiguous()}
        )

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.keys, self.labels = state.get("bank.keys"), state.get("bank.labels")


def soft_nearest_neighbour_loss(
    anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor, log_scale: Tensor
) -> Tensor:
    r"""Contrastive loss between target anchors and source keys.

    :math:`-\log\sum_{y_k=y_i}e^{e^\lambda\langle z_i,K_k\rangle}+\log\sum_k e^{e^\lambda\langle z_i,K_k\rangle}` with
    unit vectors; :math:`\lambda` is clamped to [0, ln 100].

    Args:
        anchors: (B, H).
        keys: (M, H).
        anchor_labels: (B,) long.
        key_labels: (M,) long; every anchor needs at least one key of its label.
        log_scale: scalar, logarithm of the inverse temperature.

    Returns:
        (B,) losses, zero when only one class is present.

    Source: paper, contrastive term; soft nearest neighbours after Frosst et al. (2019).
    """
    scale = log_scale.clamp(0.0, MAX_LOG_SCALE).exp()
    logits = scale * F.normalize(anchors, dim=-1) @ F.normalize(keys, dim=-1).T  # (B, M)
    same = anchor_labels[:, None] == key_labels[None]
    if not bool(same.any(dim=1).all()):
        raise ValueError(
            "an anchor has no key of its own class: pair every target clip with a source clip of its label"
        )
    return logits.logsumexp(dim=1) - logits.masked_fill(~same, -torch.inf).logsumexp(dim=1)


def best_window(attention: Tensor, source_lengths: Tensor, window_lengths: Tensor) -> Tensor:
    r"""First frame of the window that gathers the most attention, :math:`\arg\max_s\sum_{j=s}^{s+L-1}w_j`.

    Args:
        attention: (B, T) non-negative; what lies beyond a clip's length is ignored.
        source_lengths: (B,) long, real frames per source clip.
        window_lengths: (B,) long, frames wanted, in [1, source_lengths].

    Returns:
        (B,) long, start in [0, source_lengths - window_lengths]; ties go to the earliest.

    Raises:
        ValueError: a window is longer than its clip or empty; the message names the row and both lengths.

    Source: paper, window selection. A source shorter than its target is cut to min(both) by the caller; the reference
    implementation repeats its last frame instead and trains on the frozen frames.
    """
    bad = (window_lengths > source_lengths) | (window_lengths < 1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"row {row}: a window of {int(window_lengths[row])} frames "
            f"does not fit a clip of {int(source_lengths[row])}"
        )
    T = attention.shape[1]
    frames = torch.arange(T + 1, device=attention.device)[None]
    w = attention.detach().double() * (frames[:, :T] < source_lengths[:, None])
    total = F.pad(w.cumsum(dim=1), (1, 0))  # (B, T + 1)
    end = (frames + window_lengths[:, None]).clamp(max=T)
    mass = total.gather(1, end) - total
    mass = mass.masked_fill(frames > (source_lengths - window_lengths)[:, None], -torch.inf)
    # Sums of equal weights differ in the last bits; without the tolerance a later window could win a tie.
    return (mass >= mass.max(dim=1, keepdim=True).values - 1e-9).int().argmax(dim=1)


def gather_window(x: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
    """Move a window of each clip to the front.

    Args:
        x: (B, T, F).
        start: (B,) long, first frame.
        lengths: (B,) long, window lengths.

    Returns:
        (B, max(lengths), F); rows beyond a window repeat its last frame, to be masked by the caller.
    """
    offset = torch.arange(int(lengths.max()), device=x.device)[None]
    index = start[:, None] + torch.minimum(offset, lengths[:, None] - 1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def window_weight(target: Tensor, window: Tensor) -> Tensor:
    r"""Dynamic window weight :math:`\gamma=\frac12(1+\cos(z^g,z^w))`.

    Args:
        target: (B, H) embeddings of the target clips.
        window: (B, H) embeddings of the windows.

    Returns:
        (B,) in [0, 1], without gradient.

    Source: paper, dynamic weighting of windows.
    """
    return 0.5 * (1 + F.cosine_similarity(target.detach(), window.detach(), dim=-1))
