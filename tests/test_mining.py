"""Window search, contrastive loss, bank and attention against plain loops and laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinemic.mining import MIC, MemoryBank, best_window, gather_window, soft_nearest_neighbour_loss, window_weight


def test_parameter_count_is_the_papers():
    assert sum(p.numel() for n, p in MIC().named_parameters() if n != "log_scale") == 4_730_369


@settings(max_examples=60, deadline=None)
@given(
    # Multiples of 1/8 make exact ties common; sums of them are exact in floating point.
    hnp.arrays(np.int8, (3, 9), elements=st.integers(0, 4)),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_best_window_equals_a_double_loop(weights, lengths, windows):
    windows = [min(a, b) for a, b in zip(windows, lengths, strict=True)]
    attention = torch.from_numpy(weights / 8.0)
    found = best_window(attention, torch.tensor(lengths), torch.tensor(windows))
    for i, (n, w) in enumerate(zip(lengths, windows, strict=True)):
        mass = [float(attention[i, s : s + w].sum()) for s in range(n - w + 1)]
        assert int(found[i]) == mass.index(max(mass))


def test_ties_go_to_the_earliest_in_spite_of_rounding():
    attention = torch.full((1, 40), 1 / 40)
    assert int(best_window(attention, torch.tensor([37]), torch.tensor([11]))) == 0


def test_weights_on_padding_are_ignored():
    attention = torch.tensor([[0.1, 0.2, 0.1, 9.0]])
    assert int(best_window(attention, torch.tensor([3]), torch.tensor([1]))) == 1


def test_a_window_longer_than_its_clip_is_refused_by_row():
    with pytest.raises(ValueError, match="row 1: a window of 4 frames does not fit a clip of 3"):
        best_window(torch.ones(2, 5), torch.tensor([5, 3]), torch.tensor([4, 4]))


def test_gather_window_moves_rows_to_the_front_and_repeats_the_last():
    x = torch.arange(10.0).view(1, 10, 1).repeat(2, 1, 1)
    out = gather_window(x, torch.tensor([3, 7]), torch.tensor([4, 2]))
    assert out[..., 0].tolist() == [[3, 4, 5, 6], [7, 8, 8, 8]]


def test_loss_equals_the_naive_formula():
    torch.manual_seed(0)
    z, k = torch.randn(4, 6, dtype=torch.double), torch.randn(7, 6, dtype=torch.double)
    y, yk, scale = (
        torch.tensor([0, 1, 0, 2]),
        torch.tensor([0, 0, 1, 1, 2, 2, 0]),
        torch.tensor(1.3, dtype=torch.double),
    )
    expected = []
    for i in range(4):
        e = [torch.exp(scale.exp() * (z[i] @ k[j]) / (z[i].norm() * k[j].norm())) for j in range(7)]
        expected.append(-torch.log(sum(e[j] for j in range(7) if yk[j] == y[i]) / sum(e)))
    assert torch.allclose(soft_nearest_neighbour_loss(z, k, y, yk, scale), torch.stack(expected))


def test_loss_is_zero_with_one_class_and_invariant_to_order():
    torch.manual_seed(0)
    z, k, scale = torch.randn(3, 4), torch.randn(5, 4), torch.tensor(2.0)
    one = torch.zeros(3, dtype=torch.long), torch.zeros(5, dtype=torch.long)
    assert torch.allclose(soft_nearest_neighbour_loss(z, k, *one, scale), torch.zeros(3), atol=1e-6)
    y, yk, order = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1, 0, 1]), torch.randperm(5)
    a = soft_nearest_neighbour_loss(z, k, y, yk, scale)
    assert torch.allclose(a, soft_nearest_neighbour_loss(z, k[order], y, yk[order], scale), atol=1e-5)


def test_temperature_is_clamped_and_learned():
    z, y = torch.eye(2), torch.tensor([0, 1])
    low, lower = (soft_nearest_neighbour_loss(z, z, y, y, torch.tensor(v)) for v in (0.0, -5.0))
    assert torch.equal(low, lower)
    scale = torch.tensor(1.0, requires_grad=True)
    soft_nearest_neighbour_loss(z, z, y, y, scale).sum().backward()
    assert float(scale.grad) < 0


def test_an_anchor_without_key_of_its_class_is_refused():
    with pytest.raises(ValueError, match="no key of its own class"):
        soft_nearest_neighbour_loss(
            torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]), torch.tensor([1]), torch.tensor(0.0)
        )


def test_bank_is_first_in_first_out_and_detached():
    bank = MemoryBank(4)
    first = torch.arange(3.0).view(3, 1).requires_grad_()
    keys, labels = bank.with_current(first, torch.tensor([0, 1, 2]))
    assert keys.requires_grad and len(labels) == 3
    bank.push(first, torch.tensor([0, 1, 2]))
    bank.push(first + 10, torch.tensor([3, 4, 5]))
    assert bank.keys.flatten().tolist() == [2, 10, 11, 12] and bank.labels.tolist() == [2, 3, 4, 5]
    assert not bank.keys.requires_grad
    again = MemoryBank(4)
    again.load(bank.state())
    assert torch.equal(again.keys, bank.keys)
    empty = MemoryBank(0)
    empty.push(first, torch.tensor([0, 1, 2]))
    assert len(empty.with_current(first, torch.tensor([0, 1, 2]))[0]) == 3


def test_attention_is_a_distribution_over_real_tokens_and_padding_does_not_matter():
    torch.manual_seed(0)
    mic = MIC(5, 8).eval()
    x, lengths = torch.randn(3, 6, 5), torch.tensor([6, 2, 4])
    z, attention = mic(x, lengths)
    assert torch.allclose(attention.sum(1), torch.ones(3)) and float(attention[1, 2:].detach().abs().max()) == 0
    longer = torch.cat([x, torch.full((3, 4, 5), 99.0)], dim=1)
    z2, attention2 = mic(longer, lengths)
    assert torch.allclose(z, z2, atol=1e-6) and torch.allclose(attention, attention2[:, :6], atol=1e-6)
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(mic(x[order], lengths[order])[0], z[order], atol=1e-6)


def test_our_recurrence_equals_the_packed_one_in_values_and_gradients():
    torch.manual_seed(0)
    mic, lengths = MIC(5, 8), torch.tensor([6, 1, 4])
    found = []
    for recur in (mic._packed, mic._own):
        mic.zero_grad()
        x = torch.linspace(-1, 1, 3 * 7 * 8).reshape(3, 7, 8).requires_grad_()
        h = recur(x, lengths)
        (h * torch.linspace(-2, 2, h.numel()).reshape(h.shape)).sum().backward()
        found.append([h.detach(), x.grad, mic.initial_state.grad, *(p.grad for p in mic.gru.parameters())])
    assert len(found[0]) == 3 + 8
    for one, other in zip(*found, strict=True):
        assert float(one.abs().max()) > 0 and torch.allclose(one, other, atol=1e-5)


def test_window_weight_runs_from_opposite_to_equal_without_gradient():
    z = torch.tensor([[1.0, 0.0]], requires_grad=True)
    for other, expected in (([1.0, 0.0], 1.0), ([0.0, 3.0], 0.5), ([-2.0, 0.0], 0.0)):
        gamma = window_weight(z, torch.tensor([other]))
        assert float(gamma) == pytest.approx(expected) and not gamma.requires_grad
