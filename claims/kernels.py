"""How much of the gradient goes back through membranes, from slopes and spikes of the forward pass.

Of LIF layer l, with leak a = 1 - 1/tau, surrogate slope g[s] and spikes z[s] at step s,

    K_l(d) = a^d  sum g[s] (1 - z[s-1]) ... (1 - z[s-d])  /  sum g[s]               (1)

is the share of the gradient at step s that reaches step s - d. Sums are over neurons, samples and
steps s > d. With soft reset the factors (1 - z) are left out. A parameter below the LIF layers
l .. L has

    k = K_l * ... * K_L                    (convolutions over d)                    (2)
    F(s) = sum of k(d) over d < s                                                   (3)
    factor(t) = [(1/t) sum of F(s) over s <= t]^2                                   (4)

and its information I_t is that with the path through the membranes cut, times factor(t). Left out
are the correlation of slopes between layers, and that some gradients are larger than others.
"""

import numpy as np
import torch

from archs import LIF, after_each


def slopes_of(lif, x):
    """The surrogate slopes g [T, N, ...] of a layer with the input x [T, N, ...]."""
    v, slopes = torch.zeros_like(x[0]), []
    for x_t in x:
        slopes.append(lif.slope(lif.charge(v, x_t) - lif.threshold))
        _, v = lif.step(v, x_t)
    return torch.stack(slopes)


def sums(lif, g, z):
    """The two sums of equation 1 for d = 0 .. T-1, with a^d, of g and z [T, N, ...]: [T, 2]."""
    a, pairs = 1 - 1 / lif.tau, []
    silent = torch.ones_like(g)  # [T - d, N, ...]: no spike at s-1 .. s-d
    if lif.reset == "soft":
        z = torch.zeros_like(z)
    for d in range(len(g)):
        pairs.append(torch.stack([a**d * (g[d:] * silent).sum(), g[d:].sum()]))
        silent = silent[1:] * (1 - z[: len(z) - d - 1])
    return torch.stack(pairs)


@torch.no_grad()
def kernels(model, batches):
    """K_l of each LIF layer, {name: [T]}, from forward passes over the batches (x, y)."""
    totals = {}

    def add(name, lif, inputs, spikes):
        totals[name] = totals.get(name, 0) + sums(lif, slopes_of(lif, inputs[0]), spikes)

    with after_each(model, LIF, add):
        for x, _ in batches:
            model(x)
    return {name: (pair[:, 0] / pair[:, 1]).tolist() for name, pair in totals.items()}


def factors(model, kernel_of):
    """{layer: factor(t) for t = 1 .. T} of a chain of layers, from its {LIF layer: K_l}."""
    steps = np.arange(1, len(next(iter(kernel_of.values()))) + 1)
    k = (steps == 1).astype(float)  # above the last LIF layer there is no path
    factor_of = {}
    for name, _ in reversed(list(model.named_children())):
        if name in kernel_of:
            k = np.convolve(kernel_of[name], k)[: len(steps)]  # (2)
        f = np.cumsum(k)  # (3)
        factor_of[name] = ((np.cumsum(f) / steps) ** 2).tolist()  # (4)
    return factor_of
