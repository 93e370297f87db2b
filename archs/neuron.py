"""The leaky integrate-and-fire neuron and its surrogate gradients."""

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable

# Derivative of each smooth step that stands in for the Heaviside function in the backward pass, in the place of the
# distance u = h - threshold. Each integrates to 1 over u; a larger alpha is a narrower peak.
SURROGATES = {
    # (alpha / 2) / (1 + (pi/2 alpha u)^2)
    "atan": lambda u, alpha: u.mul_(math.pi / 2 * alpha).square_().add_(1).reciprocal_().mul_(alpha / 2),
    # alpha sigmoid(alpha u) (1 - sigmoid(alpha u))
    "sigmoid": lambda u, alpha: u.mul_(alpha).sigmoid_().addcmul_(u, u, value=-1).mul_(alpha),
    # alpha if |u| < 1 / (2 alpha) else 0
    "rectangle": lambda u, alpha: u.abs_().lt_(0.5 / alpha).mul_(alpha),
    # alpha max(0, 1 - alpha |u|)
    "triangle": lambda u, alpha: u.abs_().mul_(-alpha).add_(1).clamp_(min=0).mul_(alpha),
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
        return grad * ctx.derivative(u.clone(), ctx.alpha), None, None


class AllSteps(torch.autograd.Function):
    """`LIF.loop` as one node of the graph, its backward pass written out: arithmetic in place, and beside the spikes
    one tensor is kept, the surrogate's derivative (and the membrane, where an undetached hard reset needs it).

    With half-precision input, membranes and their gradient are single-precision, what is kept is half-precision.
    """

    @staticmethod
    def forward(ctx, x, lif):
        ctx.lif = lif
        work = torch.promote_types(x.dtype, torch.float32)
        keep = ctx.needs_input_grad[0] and lif.reset == "hard" and not lif.detach_reset
        v = torch.zeros_like(x[0], dtype=work)
        spikes = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        slopes = torch.empty_like(spikes) if ctx.needs_input_grad[0] else None
        membranes = torch.empty_like(spikes) if keep else None

        def rows(kept):
            """Where each timestep's values are computed: where they stay, if they do and in that precision."""
            return kept if kept is not None and x.dtype == work else [torch.empty_like(v)] * len(x)

        for t, (s, slope, h) in enumerate(zip(rows(spikes), rows(slopes), rows(membranes))):
            x_t = x[t] if x.dtype == work else h.copy_(x[t])
            if lif.decay_input:
                torch.sub(x_t, v, out=h).div_(lif.tau).add_(v)
            else:
                torch.add(x_t, v, alpha=1 - 1 / lif.tau, out=h)
            torch.ge(h, lif.threshold, out=s)
            if slopes is not None:
                SURROGATES[lif.surrogate](torch.sub(h, lif.threshold, out=slope), lif.surrogate_alpha)
            if lif.reset == "hard":
                torch.addcmul(h, h, s, value=-1, out=v)
            else:
                torch.sub(h, s, alpha=lif.threshold, out=v)
            for kept, row in ((spikes, s), (slopes, slope), (membranes, h)):
                if kept is not None and x.dtype != work:
                    kept[t] = row
        if slopes is not None:
            ctx.save_for_backward(spikes, slopes, *([membranes] if keep else []))
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """From the last step to the first: dL/ds[t] is given, v carries dL/dv[t]."""
        lif, (spikes, slopes, *membranes) = ctx.lif, ctx.saved_tensors
        work = torch.promote_types(spikes.dtype, torch.float32)
        grad_x = torch.empty_like(spikes)
        steps = len(grad)
        if grad.device.type == "cpu":  # elsewhere a look would wait for the device
            while steps and not torch.stack(torch.aminmax(grad[steps - 1])).any():
                steps -= 1  # nothing depends on this step: it is past the prefix that is differentiated
            grad_x[steps:] = 0
        v = torch.zeros_like(spikes[0], dtype=work)
        room = torch.empty_like(v) if spikes.dtype != work else None
        for t in reversed(range(steps)):
            s, slope, h, grad_t = spikes[t], slopes[t], grad_x[t], grad[t]
            if room is not None:
                h = grad_t = room.copy_(grad_t)
            if lif.detach_reset:
                torch.mul(grad_t, slope, out=h)
            elif lif.reset == "hard":
                torch.addcmul(grad_t, v, membranes[0][t].to(work), value=-1, out=h).mul_(slope)
            else:
                torch.sub(grad_t, v, alpha=lif.threshold, out=h).mul_(slope)
            if lif.reset == "hard":
                v.addcmul_(v, s.to(work), value=-1)
            h.add_(v)
            torch.mul(h, 1 - 1 / lif.tau, out=v)
            if lif.decay_input:
                h.div_(lif.tau)
            if room is not None:
                grad_x[t] = room
        return grad_x, None


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
        """One timestep, line by line as above: membrane and input [N, ...] -> (spikes, membrane after reset)."""
        h = v + (x - v) / self.tau if self.decay_input else v * (1 - 1 / self.tau) + x
        s = Spike.apply(h - self.threshold, SURROGATES[self.surrogate], self.surrogate_alpha)
        r = s.detach() if self.detach_reset else s
        return s, h * (1 - r) if self.reset == "hard" else h - self.threshold * r

    def loop(self, x):
        """What forward computes, step by step."""
        v, spikes = torch.zeros_like(x[0]), []
        for x_t in x.unbind(0):
            s, v = self.step(v, x_t)
            spikes.append(s)
        return torch.stack(spikes)

    def forward(self, x):
        return AllSteps.apply(x, self)

    def extra_repr(self):
        return f"tau={self.tau}, threshold={self.threshold}, reset={self.reset}, surrogate={self.surrogate}"
