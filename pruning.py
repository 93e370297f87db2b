"""Unstructured pruning: masks {weight name: bool tensor of its shape, True for kept weights}.

Pruning takes weights of convolutions and linear layers, from all layers together. It leaves out
BatchNorm, biases and the layer that runs first. A pruned weight is exactly 0 after every step of
the optimizer (`hold`).
"""

import torch

from archs import after_each
from operations import LAYERS
from utils import BadInput


@torch.no_grad()
def all_kept(model, x):
    """Masks that keep every weight of the convolutions and linear layers of a model in eval mode,
    except the layer that runs first for the inputs x. Raises BadInput if a weight is not a
    parameter, or if there is none."""
    order = []
    with after_each(model, LAYERS, lambda name, *_: order.append(name)):
        model(x)
    masks = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LAYERS) or name in order[:1]:
            continue
        if not isinstance(layer.weight, torch.nn.Parameter):
            raise BadInput(f"{name}.weight is not a parameter: prune a network without weight_norm")
        masks[f"{name}.weight"] = torch.ones_like(layer.weight).bool()
    if not masks:
        raise BadInput("there is nothing to prune after the first convolution or linear layer")
    return masks


def prune(model, masks, rate):
    """Prune the share `rate` of the kept weights: those with the smallest |w| over all layers
    (global magnitude; Frankle and Carbin 2019, arXiv:1803.03635). Returns the new masks."""
    keep = torch.cat([mask.flatten() for mask in masks.values()])
    magnitudes = torch.cat([model.get_parameter(name).detach().abs().flatten() for name in masks])
    order = magnitudes.masked_fill(~keep, torch.inf).argsort(stable=True)  # smallest first
    keep[order[: round(rate * keep.sum().item())]] = False
    layers = keep.split([mask.numel() for mask in masks.values()])
    return {name: layer.view_as(mask) for (name, mask), layer in zip(masks.items(), layers)}


@torch.no_grad()
def apply(model, masks):
    """Set the pruned weights to 0."""
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)


def hold(optimizer, model, masks):
    """From now on, set the pruned weights to 0 after every step of the optimizer."""
    optimizer.register_step_post_hook(lambda *_: apply(model, masks))


def sparsity(masks):
    """The share of pruned weights among the prunable ones."""
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    return 1 - flat.sum().item() / flat.numel()
