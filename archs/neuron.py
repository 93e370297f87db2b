"""The leaky integrate-and-fire neuron and its surrogate gradients."""

import math
from itertools import repeat

import torch
from torch import nn
from torch.autograd.function import once_differentiable

# Derivative of each smooth step that stands in for the Heaviside function in the backward pass, times `scale`, in the
# place of the distance u = h - threshold. Each integrates to 1 over u; a larger alpha is a narrower peak.
SURROGATES = {
    # (alpha / 2) / (1 + (pi/2 alpha u)^2) = 1 / (2 / alpha + pi^2/2 alpha u^2)
    "atan": lambda u, alpha, scale=1: torch.addcmul(
        u.new_full((), 2 / alpha / scale), u, u, value=math.pi**2 / 2 * alpha / scale, out=u
    ).reciprocal_(),
    # alpha sigmoid(alpha u) (1 - sigmoid(alpha u))
    "sigmoid": lambda u, alpha, scale=1: u.mul_(alpha).sigmoid_().addcmul_(u, u, value=-1).mul_(alpha * scale),
    # alpha if |u| < 1 / (2 alpha) else 0
    "rectangle": lambda u, alpha, scale=1: u.abs_().lt_(0.5 / alpha).mul_(alpha * scale),
    # alpha max(0, 1 - alpha |u|)
    "triangle": lambda u, alpha, scale=1: u.abs_().mul_(-alpha).add_(1).clamp_(min=0).mul_(alpha * scale),
}
# The slope at which each surrogate's peak is 1: ATan with alpha 2 is the released model's.
PEAK_ONE_ALPHA = {"atan": 2.0, "sigmoid": 4.0, "rectangle": 1.0, "triangle": 1.0}
RESETS = ("hard", "soft")
ALIGNED = 16  # neurons that a GPU reads at once, if it knows that each timestep has a multiple of them
PIECE = 2**19  # neurons that a CPU takes through all timesteps at a time: what it computes stays in its cache


def pieces(*tensors):
    """The tensors [T, N, ...], on a CPU in parts of a few samples: [(part of the first, of the second, ...), ...]. In
    the place of a tensor there may be None."""
    step = tensors[0][0]
    if step.device.type == "cpu" and step.numel() > PIECE:
        samples = max(1, len(step) * PIECE // step.numel())
        return zip(*(repeat(None) if tensor is None else tensor.split(samples, 1) for tensor in tensors))
    return [tensors]


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
    """`LIF.loop` as one node of the graph, its backward pass written out: few passes over memory, in place. Beside the
    spikes s one tensor is kept, the surrogate's derivative times dh/dx (and the membrane h, where an undetached hard
    reset needs it). From the last step to the first, with c = 1 / (dh/dx) and a = 1 - 1/tau,

        g[t] = slope[t] dL/ds[t] + a g[t+1] (1 - s[t])    of dL/dx, hard reset, detached
        g[t] = slope[t] dL/ds[t] + a g[t+1]               soft reset, detached

    and without detaching, dL/ds[t] has the term -a c g[t+1] h[t] (soft: -a c g[t+1] threshold) in addition. With
    `detach_membrane`, a counts as 0 here.

    With half-precision input, membranes and their gradient are single-precision, what is kept is half-precision.
    """

    @staticmethod
    def forward(ctx, x, lif):
        ctx.lif = lif
        keep = ctx.needs_input_grad[0] and lif.reset == "hard" and not (lif.detach_reset or lif.detach_membrane)
        spikes = torch.empty_like(x)
        slopes = torch.empty_like(spikes) if ctx.needs_input_grad[0] else None
        membranes = torch.empty_like(spikes) if keep else None
        for piece in pieces(x, spikes, slopes, membranes):
            AllSteps.run(lif, *piece)
        if slopes is not None:
            ctx.save_for_backward(spikes, slopes, *([membranes] if keep else []))
        return spikes

    @staticmethod
    def run(lif, x, spikes, slopes, membranes):
        """Fill the last three from x; the last two may be None."""
        work = torch.promote_types(x.dtype, torch.float32)
        v = torch.zeros_like(x[0], dtype=work)

        def rows(kept):
            """Where each timestep's values are computed: where they stay, if they do and in that precision."""
            return kept if kept is not None and x.dtype == work else [torch.empty_like(v)] * len(x)

        for t, (s, slope, h) in enumerate(zip(rows(spikes), rows(slopes), rows(membranes))):
            x_t = x[t] if x.dtype == work else h.copy_(x[t])
            if lif.decay_input and lif.tau >= 2:  # as below (a power of 2: to the bit), in one pass
                torch.lerp(x_t, v, 1 - 1 / lif.tau, out=h)
            elif lif.decay_input:
                torch.add(v, torch.sub(x_t, v, out=h), alpha=1 / lif.tau, out=h)
            else:
                torch.add(x_t, v, alpha=1 - 1 / lif.tau, out=h)
            torch.ge(h, lif.threshold, out=s)
            if slopes is not None:
                scale = 1 / lif.tau if lif.decay_input else 1
                SURROGATES[lif.surrogate](torch.sub(h, lif.threshold, out=slope), lif.surrogate_alpha, scale)
            if lif.reset == "hard":
                torch.addcmul(h, h, s, value=-1, out=v)
            else:
                torch.sub(h, s, alpha=lif.threshold, out=v)
            for kept, row in ((spikes, s), (slopes, slope), (membranes, h)):
                if kept is not None and x.dtype != work:
                    kept[t] = row

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        spikes, slopes, *membranes = ctx.saved_tensors
        grad_x = torch.empty_like(spikes)
        steps = len(grad)
        if grad.device.type == "cpu":  # elsewhere a look would wait for the device
            while steps and grad[steps - 1].amax() == 0 == grad[steps - 1].amin():
                steps -= 1  # nothing depends on this step: it is past the prefix that is differentiated
            grad_x[steps:] = 0
        for piece in pieces(spikes, slopes, membranes[0] if membranes else None, grad, grad_x):
            AllSteps.run_back(ctx.lif, steps, *piece)
        return grad_x, None

    @staticmethod
    def run_back(lif, steps, spikes, slopes, membranes, grad, grad_x):
        """Fill the first steps of the last one from the others."""
        work = torch.promote_types(spikes.dtype, torch.float32)
        a = 1 - 1 / lif.tau
        ac = a * lif.tau if lif.decay_input else a
        later, room = torch.zeros_like(spikes[0], dtype=work), torch.empty_like(spikes[0], dtype=work)
        half = [torch.empty_like(room) for _ in range(2)] if spikes.dtype != work else None
        for t in reversed(range(steps)):
            s, slope, grad_t, g = spikes[t], slopes[t], grad[t], grad_x[t]
            if half:
                s, g, grad_t = s.to(work), half[t % 2], half[t % 2].copy_(grad_t)
            if lif.detach_reset or lif.detach_membrane:
                torch.mul(grad_t, slope, out=g)
            elif lif.reset == "hard":
                torch.mul(later, membranes[t], out=room)
                torch.sub(grad_t, room, alpha=ac, out=g).mul_(slope)
            else:
                torch.sub(grad_t, later, alpha=ac * lif.threshold, out=g).mul_(slope)
            if not lif.detach_membrane:
                if lif.reset == "hard":
                    later = torch.addcmul(later, later, s, value=-1, out=room)
                g.add_(later, alpha=a)
            later = g
            if half:
                grad_x[t] = g


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons over all timesteps, from rest: input [T, N, ...] -> spikes [T, N, ...].

        h[t] = v[t-1] + (x[t] - v[t-1]) / tau        (decay_input=False: h[t] = v[t-1] (1 - 1/tau) + x[t])
        s[t] = 1 if h[t] >= threshold else 0
        v[t] = h[t] (1 - s[t])                       (reset="soft": v[t] = h[t] - threshold s[t])

    The membrane v lives inside one call, so there is no state to reset. With `detach_reset` no gradient flows through
    the s[t] of the last line; with `detach_membrane` none flows through v from one timestep to another (as in spatial
    learning through time, Meng et al. 2023). `surrogate_alpha` None is the slope at which the surrogate's peak is 1.

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
        detach_membrane=False,
    ):
        super().__init__()
        if surrogate not in SURROGATES:
            raise ValueError(f"unknown surrogate {surrogate!r}: choose from {', '.join(SURROGATES)}")
        if reset not in RESETS:
            raise ValueError(f"unknown reset {reset!r}: choose from {', '.join(RESETS)}")
        self.tau, self.threshold, self.reset, self.surrogate = tau, threshold, reset, surrogate
        self.surrogate_alpha = PEAK_ONE_ALPHA[surrogate] if surrogate_alpha is None else surrogate_alpha
        self.decay_input, self.detach_reset, self.detach_membrane = decay_input, detach_reset, detach_membrane
        self.compiled = None
        if tau <= 1 or threshold <= 0 or self.surrogate_alpha <= 0:
            raise ValueError("an LIF neuron needs tau > 1, threshold > 0 and surrogate_alpha > 0")

    def step(self, v, x):
        """One timestep, line by line as above: membrane and input [N, ...] -> (spikes, membrane after reset)."""
        v = v.detach() if self.detach_membrane else v
        h = v + (x - v) / self.tau if self.decay_input else v * (1 - 1 / self.tau) + x
        s = Spike.apply(h - self.threshold, SURROGATES[self.surrogate], self.surrogate_alpha)
        r = s.detach() if self.detach_reset else s
        return s, h * (1 - r) if self.reset == "hard" else h - self.threshold * r

    def loop(self, x):
        """What forward computes, step by step."""
        work = torch.promote_types(x.dtype, torch.float32)  # of the membrane
        v, spikes = torch.zeros_like(x[0], dtype=work), []
        for x_t in x.unbind(0):
            s, v = self.step(v, x_t.to(work))
            spikes.append(s.to(x.dtype))
        return torch.stack(spikes)

    def compile(self, backend="inductor"):
        """From now on, run training steps through `loop`, compiled: one kernel each way."""
        # For a GPU, the compiler would join up to 8 timesteps by computing every one of them at the place of each.
        name = "max_complex_pointwise_cat_inputs"  # since torch 2.13
        options = {name: 0} if name in torch._inductor.list_options() else None
        self.compiled = torch.compile(type(self).loop, backend=backend, options=options)

    def forward(self, x):
        loop = LIF.loop if torch.compiler.is_compiling() else self.training and self.compiled
        if not loop:
            return AllSteps.apply(x, self)
        channels_last = x.dim() == 5 and x[0].is_contiguous(memory_format=torch.channels_last)
        x = x.movedim(2, -1) if channels_last else x  # as it lies in memory
        rows = x.flatten(1)
        if rows.shape[1] % ALIGNED == 0:  # of another size than the first layer's, a kernel would not know that
            rows = rows.unflatten(1, (-1, ALIGNED))
        spikes = loop(self, rows).view(x.shape)
        return spikes.movedim(-1, 2) if channels_last else spikes

    def extra_repr(self):
        return f"tau={self.tau}, threshold={self.threshold}, reset={self.reset}, surrogate={self.surrogate}"
