"""What a user's file may hold: a network, a data set, and what is wrong with others."""

import numpy as np
import torch
from torch import nn

from archs import LIF


class Spike(nn.Module):
    """Neurons without a membrane that are not archs.LIF. The derivative is that of a sigmoid."""

    def forward(self, x):
        soft = torch.sigmoid(4 * x)
        return (x > 0).to(x.dtype) + soft - soft.detach()


class Net(nn.Module):
    """Images or frames -> outputs [T, N, classes]; `neurons` lie between two linear layers."""

    def __init__(self, timestep, inputs, num_classes, neurons):
        super().__init__()
        self.timestep = timestep
        self.hidden = nn.Sequential(nn.Linear(inputs, 20), nn.BatchNorm1d(20))
        self.neurons, self.readout = neurons, nn.Linear(20, num_classes)

    def forward(self, x):
        x = x.transpose(0, 1) if x.dim() == 5 else x.expand(self.timestep, *x.shape)
        current = self.hidden(x.flatten(2).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.readout(self.neurons(current))


def build(timestep, num_classes, in_channels, image_size, tau, **others):
    inputs = in_channels * image_size[0] * image_size[1]
    return Net(timestep, inputs, num_classes, LIF(tau))


def without_lif(timestep, num_classes, in_channels, image_size):
    inputs = in_channels * image_size[0] * image_size[1]
    return Net(timestep, inputs, num_classes, Spike())


def of_two_steps(num_classes):
    return Net(2, 128, num_classes, LIF())


class KeepsMembranes(Net):
    """Membranes stay in the network after a call; with `detached`, without their graph."""

    detached = False
    membrane = 0.0

    def forward(self, x):
        x = x + self.membrane
        self.membrane = x.detach() if self.detached else self.hidden[0].weight.sum() * x
        return super().forward(x)


class WithoutGraph(Net):
    def forward(self, x):
        return super().forward(x).detach()


class SamplesFirst(Net):
    def forward(self, x):
        return super().forward(x).transpose(0, 1)


class Changing(KeepsMembranes):
    detached = True


def keeps_membranes(timestep):
    return KeepsMembranes(timestep, 128, 10, LIF())


def changing(timestep):
    return Changing(timestep, 128, 10, LIF())


def without_graph(timestep):
    return WithoutGraph(timestep, 128, 10, LIF())


def samples_first(timestep):
    return SamplesFirst(timestep, 128, 10, LIF())


def of_nine_classes(timestep):
    return Net(timestep, 128, 9, LIF())


def of_other_inputs(timestep):
    return Net(timestep, 100, 10, LIF())


def no_module(timestep):
    return "network"


def needs_depth(timestep, depth):
    return None


def fails(timestep):
    raise KeyError("layers")


def frames(data_dir, timestep):
    """Memory maps of random frames of ten classes, in which a pixel is bright."""
    rng = np.random.default_rng(0)
    arrays = []
    for split, size in (("train", 80), ("test", 40)):
        y = np.arange(size) % 10
        x = rng.integers(0, 100, (size, timestep, 2, 8, 8)).astype(np.uint8)
        x[np.arange(size), :, 0, 0, y % 8] = 255
        np.save(f"{data_dir}/{split}.npy", x)
        arrays += [np.load(f"{data_dir}/{split}.npy", mmap_mode="r"), torch.from_numpy(y)]
    return arrays


def three_arrays():
    return np.zeros(3), np.zeros(3), np.zeros(3)


def no_numbers():
    return ["a"], ["b"], ["c"], ["d"]
