r"""Gaussian diffusion that predicts the clean motion.

The forward process is :math:`x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\epsilon`, the model returns
:math:`\hat x_0`, and guidance mixes a conditional with an unconditional estimate,
:math:`\hat x=\hat x_{unc}+s(\hat x_{cond}-\hat x_{unc})`.
Sampling is left to the schedulers of `diffusers`, fed with our own noise schedule.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["SAMPLERS", "Diffusion", "cosine_betas", "masked_mse", "nearest_timestep"]

SAMPLERS = ("ddpm", "ddim", "dpmsolver++")


def cosine_betas(num_timesteps: int) -> np.ndarray:
    r"""Cosine noise schedule, :math:`\beta_i=\min(1-\bar\alpha(\frac{i+1}{S})/\bar\alpha(\frac iS),\,0.999)`.

    Args:
        num_timesteps: S, number of diffusion steps, at least 2.

    Returns:
        (S,) float64 betas.

    Source: Nichol and Dhariwal (2021), eq. 17, offset 0.008; the schedule of MDM.
    """
    if num_timesteps < 2:
        raise ValueError(f"num_timesteps is {num_timesteps}: a schedule needs at least 2 steps")
    u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def nearest_timestep(t: Tensor, alphas_cumprod: Tensor, other: Tensor) -> Tensor:
    """Step of another schedule whose noise level is nearest.

    Args:
        t: (B,) long, steps of the first schedule.
        alphas_cumprod: (S,) of the first schedule.
        other: (S',) of the second schedule.

    Returns:
        (B,) long steps of the second schedule, always valid indices.

    Source: replaces the rule ceil(t S'/S) of the reference implementation, which is too noisy for three steps in
    four and leaves the table at the last one; with 100 and 50 steps the nearest level is floor(t/2).
    """

    # Compared as signal-to-noise ratios in logs: alphas_cumprod itself is flat at both ends.
    def log_snr(a: Tensor) -> Tensor:
        return torch.log(a) - torch.log1p(-a)

    return (log_snr(alphas_cumprod)[t][:, None] - log_snr(other)[None]).abs().argmin(dim=1)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Squared error per clip, averaged over real frames and features.

    :math:`\mathcal L=\sum_{t,f} m_t(x-\hat x)^2 / (F\sum_t m_t+10^{-8})`.

    Args:
        prediction: (B, T, F).
        target: (B, T, F).
        mask: (B, T) bool, True on the frames that count.

    Returns:
        (B,) losses.

    Source: MDM reconstruction loss as the reference implementation normalises it.
    """
    m = mask.to(prediction.dtype)
    error = ((prediction - target) ** 2).sum(dim=-1)  # (B, T)
    return (error * m).sum(dim=1) / (prediction.shape[-1] * m.sum(dim=1) + 1e-8)


class Diffusion:
    """Noise schedule, forward process and guided sampling.

    Args:
        num_timesteps: S, number of steps; the public text-to-motion prior has 50.

    Attributes:
        betas: (S,) float64 array.
        alphas_cumprod: (S,) float64 tensor, products of 1 - beta.
    """

    def __init__(self, num_timesteps: int = 50):
        self.num_timesteps = num_timesteps
        self.betas = cosine_betas(num_timesteps)
        self.alphas_cumprod = torch.from_numpy(np.cumprod(1 - self.betas))
        self._scales: dict[tuple, tuple[Tensor, Tensor]] = {}

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        r"""Noised motion :math:`\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\epsilon`.

        Args:
            x_start: (B, T, D) clean, normalised.
            t: (B,) long in [0, S).
            noise: (B, T, D) standard normal.

        Returns:
            (B, T, D).
        """
        key = (x_start.device, x_start.dtype)
        if key not in self._scales:  # tables go to the device once, not at every call
            a = self.alphas_cumprod
            self._scales[key] = (a.sqrt().to(*key), (1 - a).sqrt().to(*key))
        signal, sigma = self._scales[key]
        return signal[t][:, None, None] * x_start + sigma[t][:, None, None] * noise

    def scheduler(self, sampler: str = "ddpm", steps: int | None = None):
        """Scheduler of `diffusers` with this noise schedule, ready to step.

        Args:
            sampler: 'ddpm' (ancestral, small variance: the reference) and 'ddim' space their steps evenly in time,
                'dpmsolver++' (second order) evenly in the logarithm of the signal-to-noise ratio. The latter spends
                its steps near both ends, where the cosine schedule is steep; with ten steps or fewer this decides.
            steps: number of model evaluations; default all S. 'ddpm' takes any number too.

        Raises:
            ValueError: unknown sampler or impossible number of steps.

        Source: Ho et al. (2020), Song et al. (2021), Lu et al. (2022) with its uniform steps in log-SNR.
        """
        steps = steps or self.num_timesteps
        if not 1 <= steps <= self.num_timesteps:
            raise ValueError(
                f"{steps} sampling steps asked of a {self.num_timesteps}-step model: give 1 to that number"
            )
        common = dict(num_train_timesteps=self.num_timesteps, trained_betas=self.betas, prediction_type="sample")
        if sampler == "ddpm":
            from diffusers import DDPMScheduler  # slow import (5 s): only when somebody samples

            made = DDPMScheduler(**common, variance_type="fixed_small", clip_sample=False, timestep_spacing="trailing")
        elif sampler == "ddim":
            from diffusers import DDIMScheduler

            made = DDIMScheduler(**common, clip_sample=False, timestep_spacing="trailing")
        elif sampler == "dpmsolver++":
            from diffusers import DPMSolverMultistepScheduler

            made = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++")
            # its own option for this (use_lu_lambdas) rounds several steps to one time, which short schedules cannot do
            made.set_timesteps(timesteps=self._even_in_log_snr(steps))
            return made
        else:
            raise ValueError(f"unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
        made.set_timesteps(steps)
        return made

    def _even_in_log_snr(self, steps: int) -> list[int]:
        """Distinct times from S - 1 to 0, as evenly spaced in log signal-to-noise ratio as whole times can be."""
        a = self.alphas_cumprod.numpy()
        log_snr = np.log(a) - np.log1p(-a)
        wanted = np.linspace(log_snr[-1], log_snr[0], steps)
        times = np.abs(log_snr[None] - wanted[:, None]).argmin(axis=1)
        for i in range(steps):  # each below the one before, and enough left for those after
            times[i] = max(min(times[i], times[i - 1] - 1 if i else times[i]), steps - 1 - i)
        return times.tolist()

    @torch.no_grad()
    def sample(
        self,
        model: Callable[..., Tensor],
        lengths: Tensor,
        num_features: int,
        *,
        text: Tensor | None = None,
        action: Tensor | None = None,
        guidance_scale: float = 2.5,
        sampler: str = "ddpm",
        steps: int | None = None,
        generator: torch.Generator,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw motions.

        Both halves of the guidance run in one batch, which is only as long as its longest clip.

        Args:
            model: a `denoiser.Denoiser` in evaluation mode.
            lengths: (B,) long, frames wanted.
            num_features: D.
            text: (B, E) text features, or None.
            action: (B,) long actions, or None.
            guidance_scale: s; 1 means no guidance (one pass instead of two).
            sampler: one of `SAMPLERS`.
            steps: model evaluations; None = all.
            generator: source of the noise; its device is the device of the result.
            callback: called with (step index, estimate of x_start) after each evaluation.

        Returns:
            (B, T, D) normalised motions, T = longest length; frames beyond a clip's own length are zero.

        Source: classifier-free guidance, Ho and Salimans (2022), with the unconditional branch dropping text and
        action together.
        """
        device = generator.device
        lengths = lengths.to(device)
        mask = torch.arange(int(lengths.max()), device=device)[None] < lengths[:, None]  # (B, T)
        x = torch.randn(*mask.shape, num_features, generator=generator, device=device)
        guided = guidance_scale != 1 and (text is not None or action is not None)
        twice = (lambda a: None if a is None else torch.cat([a, a])) if guided else (lambda a: a)
        keep = torch.ones(len(x), dtype=torch.bool, device=device)
        keep = torch.cat([keep, ~keep]) if guided else keep
        condition = dict(mask=twice(mask), text=twice(text), action=twice(action), keep_text=keep, keep_action=keep)
        scheduler = self.scheduler(sampler, steps)
        for i, t in enumerate(scheduler.timesteps):
            steps_t = torch.full((len(keep),), int(t), dtype=torch.long, device=device)
            x_start = model(twice(x), steps_t, **condition)
            if guided:
                conditional, unconditional = x_start.chunk(2)
                x_start = unconditional + guidance_scale * (conditional - unconditional)
            if callback is not None:
                callback(i, x_start)
            x = scheduler.step(x_start, t, x, **({} if sampler == "ddim" else {"generator": generator})).prev_sample
        return x * mask[..., None]
