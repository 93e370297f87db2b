"""Unstructured pruning: masks {weight name: bool tensor of its shape, True where the weight is kept}.

Weights of convolutions and linear layers are pruned, all layers together; BatchNorm, biases and the first layer are
not. A pruned weight is exactly 0 after every step of the optimizer (`hold`).
"""

import torch
import torch.nn.functional as F
from torch import nn

from utils import after_each

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def all_kept(model, stem=False):
    """Masks that keep every weight of the convolutions and linear layers, of the first of them only with `stem`."""
    weights = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, LAYERS)}
    names = list(weights)[0 if stem else 1 :]
    return {name: torch.ones_like(weights[name], dtype=torch.bool) for name in names}


def prune(scores, masks, rate):
    """Masks without the share `rate` of the kept weights, rounded to whole weights: those of the lowest scores, over
    all layers (Han et al. 2015; global, as Frankle & Carbin 2019, "The Lottery Ticket Hypothesis")."""
    kept = torch.cat([mask.flatten() for mask in masks.values()]).nonzero().squeeze(1)
    flat = torch.cat([scores[name].flatten() for name in masks])[kept]
    count = round(rate * len(kept))
    left = torch.zeros(sum(mask.numel() for mask in masks.values()), dtype=torch.bool, device=kept.device)
    left[kept[flat.argsort(stable=True)[count:]]] = True
    parts = left.split([mask.numel() for mask in masks.values()])
    return {name: part.view_as(mask) for (name, mask), part in zip(masks.items(), parts)}


@torch.no_grad()
def apply(model, masks):
    """Set the pruned weights to 0."""
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)


def hold(optimizer, model, masks):
    """From now on, set the pruned weights to 0 after every step of `optimizer`, whatever momentum and decay did."""
    optimizer.register_step_post_hook(lambda *_: apply(model, masks))


def sparsity(masks):
    """Share of the prunable weights that is pruned."""
    return 1 - sum(mask.sum().item() for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def counts(masks):
    """{weight name: {"kept", "total"}} for a report."""
    return {name: {"kept": mask.sum().item(), "total": mask.numel()} for name, mask in masks.items()}


def magnitude(model, masks):
    """|w| of each weight."""
    return {name: model.get_parameter(name).detach().abs() for name in masks}


def fisher_saliency(model, masks, x, y):
    """w^2 F_w of each weight, F_w = (1/N) sum_n (d log f(y_n | x_n) / dw)^2 the diagonal of the empirical Fisher
    information, f the prediction after all timesteps of `model` (Theis et al. 2018, "Faster gaze prediction with dense
    networks and Fisher pruning", eq. 6). One sample at a time; the model in eval mode."""
    weights = [model.get_parameter(name) for name in masks]
    diagonal = [torch.zeros_like(weight) for weight in weights]
    with torch.enable_grad():
        for n in range(len(y)):
            loss = F.cross_entropy(model(x[n : n + 1]).mean(0), y[n : n + 1])
            for total, gradient in zip(diagonal, torch.autograd.grad(loss, weights)):
                total += gradient.square() / len(y)
    return {name: weight.detach().square() * total for name, weight, total in zip(masks, weights, diagonal)}


@torch.no_grad()
def synaptic_operations(model, masks, x):
    """Additions an image, estimated: over layers, kept multiply-accumulates of a timestep x share of its inputs that is
    not 0 x timesteps. The first layer counts once where it sees the same image at every timestep."""
    operations = []

    def count(name, module, inputs, output):
        mask = masks.get(f"{name}.weight")
        kept = 1 if mask is None else mask.float().mean().item()
        fan_in = module.weight[0].numel()
        # output [T, N, ...] or, within a convolution, [T N, ...]
        operations.append(kept * (inputs[0] != 0).float().mean().item() * fan_in * output.numel() / len(x))

    with after_each(model, LAYERS, count):
        model(x)
    return sum(operations)
