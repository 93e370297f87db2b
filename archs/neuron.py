"""The leaky integrate-and-fire neuron and its surrogate gradients."""

import math

import torch
from torch import nn

# Derivative of each smooth step that stands in for the Heaviside function in the backward pass, as a function of the
# distance u = h - threshold. Each integrates to 1 over u; a larger alpha is a narrower peak.
SURROGATES = {
    "atan": lambda u, alpha: (alpha / 2) / (1 + (math.pi / 2 * alpha * u) ** 2),
    "sigmoid": lambda u, alpha: alpha * torch.sigmoid(alpha * u) * torch.sigmoid(-alpha * u),
    "rectangle": lambda u, alpha: alpha * (u.abs() < 0.5 / alpha).to(u.dtype),
    "triangle": lambda u, alpha: alpha * (1 - alpha * u.abs()).clamp(min=0),
}
# The slope at which each surrogate's peak is 1: ATan with alpha 2 is the released model's.
PEAK_ONE_ALPHA = {"atan": 2.0, "sigmoid": 4.0, "rectangle": 1.0, "triangle": 1.0}
RESETS = ("hard", "soft")


class Spike(torch.autograd.Function):
    """Heaviside step forward, surrogate derivative backward (Neftci et al. 2019, "Surrogate Gradient Learning")."""

    @staticmethod
    def forward(ctx, u, derivative, alpha):
        ctx.save_for_backward(u)
        ctx.derivative, ctx.alpha = derivative, alpha
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * ctx.derivative(u, ctx.alpha), None, None


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons over all timesteps, from rest: input [T, N, ...] -> spikes [T, N, ...].

        h[t] = v[t-1] + (x[t] - v[t-1]) / tau        (decay_input=False: h[t] = v[t-1] (1 - 1/tau) + x[t])
        s[t] = 1 if h[t] >= threshold else 0
        v[t] = h[t] (1 - s[t])                       (reset="soft": v[t] = h[t] - threshold s[t])

    The membrane v lives inside one call, so there is no state to reset. With `detach_reset` no gradient flows through
    the s[t] of the last line. `surrogate_alpha` None is the slope at which the surrogate's peak is 1.

    Raises ValueError for an unknown surrogate or reset, tau <= 1, threshold <= 0 or surrogate_alpha <= 0.
    """

    def __init__(
        self,
        tau=2.0,
        threshold=1.0,
        reset="hard",
        surrogate="atan",
        surrogate_alpha=None,
        decay_input=True,
        detach_reset=True,
    ):
        super().__init__()
        if surrogate not in SURROGATES:
            raise ValueError(f"unknown surrogate {surrogate!r}: choose from {', '.join(SURROGATES)}")
        if reset not in RESETS:
            raise ValueError(f"unknown reset {reset!r}: choose from {', '.join(RESETS)}")
        self.tau, self.threshold, self.reset, self.surrogate = tau, threshold, reset, surrogate
        self.surrogate_alpha = PEAK_ONE_ALPHA[surrogate] if surrogate_alpha is None else surrogate_alpha
        self.decay_input, self.detach_reset = decay_input, detach_reset
        if tau <= 1 or threshold <= 0 or self.surrogate_alpha <= 0:
            raise ValueError("an LIF neuron needs tau > 1, threshold > 0 and surrogate_alpha > 0")

    def step(self, v, x):
        """One timestep: membrane after the last step and input, both [N, ...] -> (spikes, membrane after reset)."""
        if self.decay_input:
            h = v + (x - v) / self.tau
        else:
            h = v * (1 - 1 / self.tau) + x
        s = Spike.apply(h - self.threshold, SURROGATES[self.surrogate], self.surrogate_alpha)
        r = s.detach() if self.detach_reset else s
        v = h * (1 - r) if self.reset == "hard" else h - self.threshold * r
        return s, v

    def forward(self, x):
        v, spikes = torch.zeros_like(x[0]), []
        for x_t in x.unbind(0):
            s, v = self.step(v, x_t)
            spikes.append(s)
        return torch.stack(spikes)

    def extra_repr(self):
        return f"tau={self.tau}, threshold={self.threshold}, reset={self.reset}, surrogate={self.surrogate}"
