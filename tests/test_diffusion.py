"""Schedule, forward process, sampling and loss against diffusers, closed forms and laws."""

import numpy as np
import pytest
import torch

from kinemic.diffusion import SAMPLERS, Diffusion, cosine_betas, masked_mse, nearest_timestep


@pytest.mark.parametrize(("steps", "first", "second", "middle", "last"), [
    (50, 0.998252, 0.994570, 0.462707, 9.712e-7), (100, 0.999369, 0.998252, 0.478265, 2.429e-7),
])  # fmt: skip
def test_schedule_has_the_published_values(steps, first, second, middle, last):
    a = Diffusion(steps).alphas_cumprod
    np.testing.assert_allclose(a[[0, 1, steps // 2]], [first, second, middle], atol=5e-7)
    assert float(a[-1]) == pytest.approx(last, rel=1e-3)


def test_schedule_equals_the_cosine_schedule_of_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(50, beta_schedule="squaredcos_cap_v2").betas
    np.testing.assert_allclose(cosine_betas(50), theirs, atol=1e-6)


def test_q_sample_at_both_ends_is_signal_and_noise():
    d, x, e = Diffusion(50), torch.ones(2, 3, 4), torch.full((2, 3, 4), -2.0)
    out = d.q_sample(x, torch.tensor([0, 49]), e)
    assert torch.allclose(out[0], torch.tensor(0.998252**0.5 - 2 * (1 - 0.998252) ** 0.5), atol=1e-4)
    assert torch.allclose(out[1], e[1], atol=2e-3)


def test_ancestral_step_is_the_gaussian_posterior():
    """One DDPM step at t = 25 with a known estimate: mean by the two published coefficients."""
    scheduler = Diffusion(50).scheduler("ddpm")
    x_t, x_start = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    draws = torch.stack([
        scheduler.step(x_start, 25, x_t, generator=torch.Generator().manual_seed(i)).prev_sample for i in range(4000)
    ])  # fmt: skip
    assert float(draws.mean()) == pytest.approx(0.082464 * 3 + 0.911867 * 1, abs=0.015)
    assert float(draws.var()) == pytest.approx(0.0593960, rel=0.1)


class Truth(torch.nn.Module):
    """A model that knows the answer: it returns one clean motion if it sees the text, another if not."""

    def __init__(self, seen, unseen):
        super().__init__()
        self.seen, self.unseen, self.calls = seen, unseen, 0

    def forward(self, x, t, *, mask, text, action, keep_text, keep_action):
        self.calls += 1
        assert torch.equal(keep_text, keep_action)
        return torch.where(keep_text[:, None, None], self.seen, self.unseen).expand(x.shape)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [50, 10])
def test_a_perfect_model_is_sampled_exactly(sampler, steps):
    model = Truth(torch.tensor(0.7), torch.tensor(0.7))
    out = Diffusion(50).sample(model, torch.tensor([4, 2]), 3, text=torch.ones(2, 5), sampler=sampler, steps=steps,
                               generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert model.calls == steps
    # Every sampler ends on the estimate; the first step of the schedule keeps a trace of noise in some of them.
    assert torch.allclose(out[0], torch.tensor(0.7), atol=0.02)
    assert torch.equal(out[1, 2:], torch.zeros(2, 3))


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 49, 50])
def test_dpm_solver_spaces_distinct_steps_evenly_in_log_snr(steps):
    diffusion = Diffusion(50)
    times = diffusion.scheduler("dpmsolver++", steps).timesteps
    assert len(times) == steps and int(times[0]) == 49 and (torch.diff(times) < 0).all() and int(times[-1]) >= 0
    assert steps == 1 or int(times[-1]) == 0
    assert steps < 50 or times.tolist() == list(range(49, -1, -1))


@pytest.mark.parametrize("steps", range(1, 7))
def test_these_steps_are_those_of_diffusers_where_it_has_distinct_ones(steps):
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(50, trained_betas=cosine_betas(50), use_lu_lambdas=True)
    theirs.set_timesteps(steps)
    assert Diffusion(50).scheduler("dpmsolver++", steps).timesteps.tolist() == theirs.timesteps.tolist()


def test_dpm_solver_is_nearer_to_the_solution_of_its_equation_than_ddim_at_few_steps():
    """Data N(0, 0.5^2): the best estimate is linear in x and the flow from noise to data has a closed form."""
    diffusion, spread = Diffusion(50), 0.5
    a = diffusion.alphas_cumprod

    def best(x, t, **_):
        s, n = a[t].sqrt().to(x.dtype), (1 - a[t]).to(x.dtype)
        return (s * spread**2 / (s**2 * spread**2 + n))[:, None, None] * x

    def drawn(sampler, steps):
        generator = torch.Generator().manual_seed(0)
        return diffusion.sample(best, torch.tensor([64]), 8, sampler=sampler, steps=steps, generator=generator)

    start = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0))
    exact = start * spread / (a[-1] * spread**2 + 1 - a[-1]).sqrt().float()
    error = {name: float((drawn(name, 8) - exact).abs().mean()) for name in ("ddim", "dpmsolver++")}
    assert error["dpmsolver++"] < 0.6 * error["ddim"] and error["dpmsolver++"] < 0.05


def test_guidance_extrapolates_and_scale_one_is_the_conditional_model():
    args = dict(text=torch.ones(1, 5), sampler="ddim", steps=50)
    for scale, expected in ((1.0, 2.0), (2.5, 1.0 + 2.5 * (2.0 - 1.0))):
        model = Truth(torch.tensor(2.0), torch.tensor(1.0))
        out = Diffusion(50).sample(model, torch.tensor([3]), 2, guidance_scale=scale,
                                   generator=torch.Generator().manual_seed(0), **args)  # fmt: skip
        assert torch.allclose(out, torch.tensor(expected), atol=0.05)


def test_equal_seeds_give_equal_motions():
    runs = [
        Diffusion(10).sample(Truth(torch.tensor(0.0), torch.tensor(1.0)), torch.tensor([5]), 2, text=torch.ones(1, 2),
                             generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(*runs)


def test_padding_does_not_change_the_loss():
    torch.manual_seed(0)
    x, y, lengths = torch.randn(3, 7, 5), torch.randn(3, 7, 5), [7, 4, 1]
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    loop = [((x[i, :n] - y[i, :n]) ** 2).mean() for i, n in enumerate(lengths)]
    assert torch.allclose(masked_mse(x, y, mask), torch.stack(loop))
    assert torch.allclose(masked_mse(x[1:, :4], y[1:, :4], mask[1:, :4]), torch.stack(loop[1:]))


def test_nearest_step_of_the_half_schedule_is_floor():
    a, b = Diffusion(100).alphas_cumprod, Diffusion(50).alphas_cumprod
    t = torch.arange(100)
    found = nearest_timestep(t, a, b)
    assert torch.equal(found[1::2], t[1::2] // 2)  # odd steps have exactly the noise of the half schedule
    assert int(found.max()) == 49 and int(found.min()) == 0


@pytest.mark.parametrize(("call", "said"), [
    (lambda: cosine_betas(1), "at least 2"),
    (lambda: Diffusion(50).scheduler("plms"), "unknown sampler"),
    (lambda: Diffusion(50).scheduler("ddim", 51), "50-step"),
])  # fmt: skip
def test_impossible_settings_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
