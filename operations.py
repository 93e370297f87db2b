"""Spikes and synaptic operations of a network, and operations of the same one without spikes."""

from contextlib import contextmanager
from math import gcd

import torch
from torch import nn

from archs import after_each
from user_code import first_tensor
from utils import of_all

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@contextmanager
def count_spikes(model, names):
    """In the `with` block, count the spikes of the modules `names` of `model`.

    Yields two dicts {name: number}, complete after the block: spikes, and neurons times timesteps.
    Both are sums over samples.
    """
    spikes, neurons = dict.fromkeys(names, 0), dict.fromkeys(names, 0)

    def count(name, module, inputs, output):
        if name in spikes:
            output = first_tensor(output)
            spikes[name] += output.sum(dtype=torch.float32)
            neurons[name] += output.numel()

    with after_each(model, nn.Module, count):
        yield spikes, neurons
    for name, number in spikes.items():
        spikes[name] = float(number)


def spike_rates(counts):
    """Spikes per neuron and timestep, {name: rate}, from the `counts` of `count_spikes` in all
    processes."""
    spikes, neurons = (sum_by_layer(shares) for shares in zip(*of_all(counts)))
    return {name: spikes[name] / neurons[name] for name in spikes if neurons[name]}


@contextmanager
def count_operations(model):
    """In the `with` block, count the operations of convolutions and linear layers of `model`.

    Yields three dicts {layer: number}, complete after the block. They are sums over samples and
    timesteps:

        additions    an estimate: multiply-accumulates, times the share of the layer's weights that
                     is not 0, times the share of its inputs that is not 0
        products     multiply-accumulates
        rows         times that the layer runs for one sample
    """
    layers = [name for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    additions, products, rows = (dict.fromkeys(layers, 0) for _ in range(3))

    def count(name, layer, inputs, output):
        weight, x = layer.weight, inputs[0]
        used_weights = weight.count_nonzero() / weight.numel()
        active_inputs = x.count_nonzero() / x.numel()
        dense = weight[0].numel() * output.numel()
        additions[name] += dense * used_weights * active_inputs
        products[name] += dense
        rows[name] += output.shape[: 1 - weight.dim()].numel()

    with after_each(model, LAYERS, count):
        yield additions, products, rows
    for name, number in additions.items():
        additions[name] = float(number)


def operations_per_image(counts, images, timestep):
    """The operations per image, from the `counts` of `count_operations` in all processes.

    Returns {"synaptic_operations": {layer: estimated additions, over all timesteps},
    "multiply_accumulates": {layer: those of the same network without spikes}}. A network without
    spikes reads an image in one timestep instead of `timestep`.
    """
    additions, products, rows = (sum_by_layer(shares) for shares in zip(*of_all(counts)))
    dense = {}
    for name, number in products.items():
        # A layer runs once per image, T times, or T times per token. Of these T, one is left.
        steps = gcd(rows[name] // images, timestep)
        dense[name] = number / images / steps
    return {
        "synaptic_operations": {name: number / images for name, number in additions.items()},
        "multiply_accumulates": dense,
    }


def sum_by_layer(shares):
    """[{layer: number} of each process] -> {layer: sum}."""
    return {name: sum(share[name] for share in shares) for name in shares[0]}
