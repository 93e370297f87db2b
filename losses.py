"""The losses for training: functions of outputs [T, N, classes] and labels [N], in nats. Means are
over N; with several processes, over the samples of all of them.

CE_t is the cross-entropy of the mean of outputs 1..t (the prefix t). CE(o_t) is that of output t.
No loss uses the outputs of `skip`: the mean for prefix t is over the others of 1..t. With a `level`
b, |CE - b| + b replaces CE, so that the loss rises again below b (flooding: Ishida et al. 2020, "Do
We Need Zero Training Loss After Achieving Zero Training Error?").
"""

from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F

from fisher import prefix_residuals
from utils import processes

TET_TARGET = 1.0  # phi of Deng et al., the threshold of their neurons


def kept_steps(timestep, skip):
    """Timesteps 1..T without those of `skip`."""
    return [t for t in range(1, timestep + 1) if t not in skip]


def at_steps(outputs, times):
    """The outputs at those timesteps, from 1. An index list would become a tensor, and that waits
    for the GPU."""
    return torch.stack([outputs[t - 1] for t in times])


def over_all(means, samples):
    """Means over this process's samples -> means over the samples of all processes. Each process
    has its part of the gradient. Losses that are not linear in a mean need this."""
    if processes() == 1:
        return means
    sums = torch.cat([means.detach() * samples, means.new_full((1,), samples)])
    dist.all_reduce(sums)
    return means + (sums[:-1] / sums[-1] - means.detach())


def flooded(loss, level, samples):
    """|loss - level| + level for each of the mean losses over that many samples; without a level,
    `loss` itself."""
    return loss if level is None else (over_all(loss, samples) - level).abs() + level


def prefix_means(outputs, times, skip=()):
    """Mean of the outputs 1..t without those of `skip`, for each t of `times`: [len(times), N,
    classes]."""
    return torch.stack([at_steps(outputs, kept_steps(t, skip)).mean(0) for t in times])


def cross_entropies(outputs, y, smoothing):
    """Mean over N of the cross-entropy of each step's outputs [S, N, classes]: [S]."""
    return torch.stack([F.cross_entropy(o, y, label_smoothing=smoothing) for o in outputs])


def ce(outputs, y, *, skip=(), level=None, smoothing=0.0):
    """CE_T: cross-entropy of the mean output."""
    whole = prefix_means(outputs, [len(outputs)], skip)
    return flooded(cross_entropies(whole, y, smoothing), level, len(y))[0]


def tet(outputs, y, *, lam, skip=(), level=None, smoothing=0.0):
    """(1 - lam) mean_t CE(o_t) + lam mean_t MSE(o_t, phi), phi = 1, of temporal efficient training
    (Deng et al. 2022, "Temporal Efficient Training of Spiking Neural Network via Gradient
    Re-weighting", eq. 9 to 11)."""
    counted = at_steps(outputs, kept_steps(len(outputs), skip))
    per_step = flooded(cross_entropies(counted, y, smoothing), level, len(y)).mean()
    return (1 - lam) * per_step + lam * (counted - TET_TARGET).square().mean()


def prefix(outputs, y, *, times, weight, skip=(), level=None, smoothing=0.0):
    """(1 - w) CE_T + w mean of CE_t over t in `times`. Flooding is only for these CE_t."""
    early = cross_entropies(prefix_means(outputs, times, skip), y, smoothing)
    early = flooded(early, level, len(y)).mean()
    whole = ce(outputs, y, skip=skip, smoothing=smoothing)
    return (1 - weight) * whole + weight * early


def centroid(outputs, y, *, target, smoothing=0.0):
    """CE_T + (c - target)^2, c = sum_t t R_t / sum_t R_t with R_t = mean over N of ||p_t - y||^2:
    p_t is the softmax prediction of prefix t, y is one-hot. The gradient of CE_t by a weight is a
    Jacobian times p_t - y. This c need not be the centroid of the information: its gradient would
    be one of second order."""
    r = over_all(prefix_residuals(outputs, y).mean(1), len(y))  # (T,)
    steps = torch.arange(1, len(r) + 1, device=r.device, dtype=r.dtype)
    c = (steps * r).sum() / r.sum().clamp(min=torch.finfo(r.dtype).tiny)
    return ce(outputs, y, smoothing=smoothing) + (c - target).square()


LOSSES = ("ce", "tet", "prefix", "centroid")


def make(args):
    """Make the loss that `args` names: a function of outputs [T, N, classes] and labels [N]."""
    if args.loss == "centroid":
        return partial(centroid, target=args.target_ic, smoothing=args.label_smoothing)
    common = {"skip": frozenset(args.lossskiptime), "level": args.loss_threshold,
              "smoothing": args.label_smoothing}  # fmt: skip
    if args.loss == "tet":
        return partial(tet, lam=args.tet_lambda, **common)
    if args.loss == "prefix":
        return partial(prefix, times=args.prefix_time, weight=args.prefix_weight, **common)
    return partial(ce, **common)
