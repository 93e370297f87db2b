"""The leaky integrate-and-fire neuron and its surrogate gradients."""

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable


# A surrogate replaces the derivative of a spike by u = h - threshold. Its integral is 1.
def atan(u, alpha):
    """(alpha / 2) / (1 + (pi/2 alpha u)^2) = 1 / (2 / alpha + pi^2/2 alpha u^2)"""
    constant = u.new_full((), 2 / alpha)
    return torch.addcmul(constant, u, u, value=math.pi**2 / 2 * alpha).reciprocal_()


def sigmoid(u, alpha):
    """alpha sigmoid(alpha u) (1 - sigmoid(alpha u))"""
    s = torch.sigmoid(alpha * u)
    return alpha * s * (1 - s)


def rectangle(u, alpha):
    """alpha if |u| < 1 / (2 alpha), else 0"""
    return alpha * (u.abs() < 0.5 / alpha).to(u.dtype)


def triangle(u, alpha):
    """alpha max(0, 1 - alpha |u|)"""
    return alpha * (1 - alpha * u.abs()).clamp(min=0)


SURROGATES = {"atan": atan, "sigmoid": sigmoid, "rectangle": rectangle, "triangle": triangle}
# The alpha at which each surrogate's peak is 1. ATan with alpha 2 is the released model's.
PEAK_ONE_ALPHA = {"atan": 2.0, "sigmoid": 4.0, "rectangle": 1.0, "triangle": 1.0}
RESETS = ("hard", "soft")


class Spike(torch.autograd.Function):
    """Heaviside step forward, surrogate derivative backward (Neftci et al. 2019, "Surrogate
    Gradient Learning in Spiking Neural Networks")."""

    @staticmethod
    def forward(ctx, u, lif):
        ctx.save_for_backward(u)
        ctx.lif = lif
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.lif.slope(*ctx.saved_tensors), None


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons over all timesteps: input [T, N, ...] -> spikes [T, N, ...].

        h[t] = v[t-1] + (x[t] - v[t-1]) / tau   (decay_input=False: v[t-1] (1 - 1/tau) + x[t])
        s[t] = 1 if h[t] >= threshold else 0
        v[t] = h[t] (1 - s[t])                  (reset="soft": h[t] - threshold s[t])

    from v[0] = 0. The membrane v lives inside one call, so there is no state to reset. With
    `detach_reset` no gradient flows through the s[t] of the last line. With `detach_membrane` none
    flows through v from one timestep to another (spatial learning through time, Meng et al. 2023).
    Without `surrogate_alpha`, the peak of the surrogate is 1.
    tau = inf is the integrate-and-fire neuron, without decay: h[t] = v[t-1] + x[t].

    Raises ValueError for an unknown surrogate or reset, and for values out of range.
    """

    def __init__(self, tau=2.0, threshold=1.0, reset="hard", surrogate="atan", surrogate_alpha=None,
                 decay_input=True, detach_reset=True, detach_membrane=False):  # fmt: skip
        super().__init__()
        if surrogate not in SURROGATES or reset not in RESETS:
            raise ValueError(f"surrogate must be in {list(SURROGATES)}, reset in {list(RESETS)}")
        alpha = PEAK_ONE_ALPHA[surrogate] if surrogate_alpha is None else surrogate_alpha
        if not (tau > 1 and threshold > 0 and alpha > 0):
            raise ValueError("an LIF neuron needs tau > 1, threshold > 0 and surrogate_alpha > 0")
        self.tau, self.threshold, self.reset = tau, threshold, reset
        self.surrogate, self.surrogate_alpha = surrogate, alpha
        # With tau = inf, (x - v) / tau would lose the input.
        self.decay_input, self.detach_reset = decay_input and tau < math.inf, detach_reset
        self.detach_membrane, self.compiled = detach_membrane, None

    def slope(self, u):
        """The surrogate derivative of the spike at u = h - threshold."""
        return SURROGATES[self.surrogate](u, self.surrogate_alpha)

    def charge(self, v, x):
        """h of one timestep: v after the last reset and x [N, ...] -> v before the spike."""
        return v + (x - v) / self.tau if self.decay_input else v * (1 - 1 / self.tau) + x

    def step(self, v, x):
        """One timestep as the equations say: v and x [N, ...] -> spikes and v after the reset."""
        h = self.charge(v.detach() if self.detach_membrane else v, x)
        s = Spike.apply(h - self.threshold, self)
        r = s.detach() if self.detach_reset else s
        v = h * (1 - r) if self.reset == "hard" else h - self.threshold * r
        return s, v

    def loop(self, x):
        """The same as `forward`, timestep by timestep, as the equations say."""
        v = torch.zeros_like(x[0], dtype=torch.promote_types(x.dtype, torch.float32))
        spikes = []
        for x_t in x:
            s, v = self.step(v, x_t.to(v.dtype))
            spikes.append(s.to(x.dtype))
        return torch.stack(spikes)

    def compile_loop(self):
        """From now on, training runs `loop`, compiled: one kernel each way."""
        self.compiled = torch.compile(type(self).loop)

    def forward(self, x):
        if torch.compiler.is_compiling():  # somebody compiles the whole network
            return self.loop(x)
        if not (self.compiled and self.training):
            return AllSteps.apply(x, self)
        # As rows all layers look the same, so torch compiles one kernel. Channels come last, as in
        # memory, so that `flatten` makes no copy.
        channels_last = x.dim() == 5 and x[0].is_contiguous(memory_format=torch.channels_last)
        x = x.movedim(2, -1) if channels_last else x
        spikes = self.compiled(self, x.flatten(1)).view(x.shape)
        return spikes.movedim(-1, 2) if channels_last else spikes

    def extra_repr(self):
        return f"tau={self.tau}, threshold={self.threshold}, {self.reset} reset, {self.surrogate}"


class AllSteps(torch.autograd.Function):
    """`LIF.loop` in one call, with a backward pass written by hand.

    slope[t] is the surrogate derivative at h[t], gs[t] the incoming gradient by s[t], and
    a = 1 - 1/tau. The gradients gh[t] by h[t] and gx[t] by x[t] are, for t = T .. 1:

        gh[t] = slope[t] gs[t] + a gh[t+1] (1 - s[t])    soft reset: without the (1 - s[t])
        gx[t] = gh[t] / tau                              decay_input=False: gh[t]

    detach_membrane: a = 0. A reset that is not detached adds -a gh[t+1] h[t] to gs[t] (soft: -a
    gh[t+1] threshold). For half-precision input, membranes are in single precision.
    """

    @staticmethod
    def forward(ctx, x, lif):
        trained = ctx.needs_input_grad[0]
        keep_h = trained and lif.reset == "hard" and not lif.detach_reset
        spikes = torch.empty_like(x)
        slopes = torch.empty_like(x) if trained else None
        membranes = torch.empty_like(x) if keep_h else None
        v = torch.zeros_like(x[0], dtype=torch.promote_types(x.dtype, torch.float32))
        a = 1 - 1 / lif.tau
        for t in range(len(x)):
            x_t = x[t].to(v.dtype)
            # h = v + (x - v) / tau = x + a (v - x), or x + a v
            h = torch.lerp(x_t, v, a) if lif.decay_input else torch.add(x_t, v, alpha=a)
            torch.ge(h, lif.threshold, out=spikes[t])
            if lif.reset == "hard":
                v = torch.addcmul(h, h, spikes[t], value=-1)  # h (1 - s)
            else:
                v = torch.sub(h, spikes[t], alpha=lif.threshold)
            if keep_h:
                membranes[t] = h
            if trained:
                slopes[t] = lif.slope(h.sub_(lif.threshold))
        ctx.lif = lif
        ctx.save_for_backward(spikes, slopes, membranes)
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        lif = ctx.lif
        spikes, slopes, membranes = ctx.saved_tensors
        grad_x = torch.empty_like(grad)
        grad_h = torch.zeros_like(grad[0], dtype=torch.promote_types(grad.dtype, torch.float32))
        a = 0 if lif.detach_membrane else 1 - 1 / lif.tau
        factor = 1 / lif.tau if lif.decay_input else 1
        for t in reversed(range(len(grad))):
            grad_s = grad[t].to(grad_h.dtype)
            if not lif.detach_reset:
                reset = lif.threshold if lif.reset == "soft" else membranes[t]
                grad_s = grad_s - a * grad_h * reset
            if lif.reset == "hard":
                grad_h = torch.addcmul(grad_h, grad_h, spikes[t], value=-1)  # gh (1 - s)
            grad_h = (grad_s * slopes[t]).add_(grad_h, alpha=a)
            torch.mul(grad_h, factor, out=grad_x[t])
        return grad_x, None
