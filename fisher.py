"""Temporal Fisher information of a spiking network, exact per sample.

For a network f with outputs o_1 .. o_T, the prediction after t steps is softmax of the mean of the first t outputs, and

    I_t = (1/N) sum_n || grad_theta log f_theta(y_n | x_n, steps 1..t) ||^2          (eq. 6)
    IC  = sum_t t I_t / sum_t I_t                                                    (eq. 7)

of "Exploring Temporal Information Dynamics in Spiking Neural Networks" (Kim et al., AAAI 2023). The norm is taken per
sample, before the mean over samples. A flat profile gives IC = (T + 1) / 2. This file needs torch alone:

    from fisher import temporal_fisher
    norms = temporal_fisher(model, x, y)             # {parameter name: [T, N]}, any model(x) -> [T, N, classes]
    I = sum(norms.values()).mean(1)                  # [T]
"""

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def prefix_outputs(outputs):
    """Outputs [T, N, classes] -> mean of the first t outputs for t = 1..T, [T, N, classes]."""
    steps = torch.arange(1, len(outputs) + 1, device=outputs.device, dtype=outputs.dtype)
    return outputs.cumsum(0) / steps.view(-1, 1, 1)


def prefix_losses(outputs, y):
    """-log f(y | steps 1..t): outputs [T, N, classes], labels [N] -> cross-entropies [T, N], in nats."""
    return torch.stack([F.cross_entropy(o, y, reduction="none") for o in prefix_outputs(outputs)])


def centroid(curve):
    """Information centroid of a curve I_1 .. I_T along the first dimension, [T, ...] -> [...] (eq. 7)."""
    steps = torch.arange(1, len(curve) + 1, device=curve.device, dtype=curve.dtype)
    return torch.tensordot(steps, curve, 1) / curve.sum(0)


def centroid_interval(samples, draws=2000, level=0.95, seed=0):
    """Bootstrap percentile interval of the centroid over samples: squared norms [T, N] -> (low, high)."""
    generator = torch.Generator().manual_seed(seed)
    count = samples.shape[1]
    index = torch.randint(count, (draws, count), generator=generator)
    weights = torch.zeros(draws, count, dtype=samples.dtype).scatter_add_(
        1, index, torch.ones((), dtype=samples.dtype).expand_as(index)
    )
    centroids = centroid(samples.cpu() @ weights.T)
    tail = (1 - level) / 2
    return tuple(centroids.quantile(torch.tensor([tail, 1 - tail], dtype=samples.dtype)).tolist())


def temporal_fisher(model, x, y):
    """Squared gradient norms of every prefix loss, per sample and parameter tensor (the summands of eq. 6).

    Args:
        model: any module with model(x) -> outputs [T, N, classes], in eval mode.
        x: inputs, samples first [N, ...].
        y: labels [N].

    Returns {parameter name: [T, N]} for the parameters that require a gradient; summed over names and averaged over N
    it is I_t. The model's parameters, their .grad and its mode are left as they were.

    Raises ValueError if a BatchNorm layer is in train mode: one sample's gradient would depend on the others.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(f"BatchNorm layer {name} is in train mode, where samples mix: call model.eval() first")
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    norms = {name: [] for name in params}
    with torch.enable_grad():
        for n in range(len(x)):
            losses = prefix_losses(model(x[n : n + 1]), y[n : n + 1])[:, 0]
            for t, loss in enumerate(losses, 1):
                grads = torch.autograd.grad(loss, params.values(), retain_graph=t < len(losses), allow_unused=True)
                for name, grad in zip(params, grads):
                    norms[name].append(loss.new_zeros(()) if grad is None else grad.square().sum())
    return {name: torch.stack(values).view(len(x), -1).T for name, values in norms.items()}
