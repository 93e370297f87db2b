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

    def __init__(self, timestep, inputs=128, num_classes=10, neurons=None):
        super().__init__()
        self.timestep = timestep
        self.hidden = nn.Sequential(nn.Linear(inputs, 20), nn.BatchNorm1d(20))
        self.neurons, self.readout = neurons or LIF(), nn.Linear(20, num_classes)

    def forward(self, x):
        x = x.transpose(0, 1) if x.dim() == 5 else x.expand(self.timestep, *x.shape)
        current = self.hidden(x.flatten(2).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.readout(self.neurons(current))


def build(timestep, num_classes, in_channels, image_size, tau, **others):
    inputs = in_channels * image_size[0] * image_size[1]
    return Net(timestep, inputs, num_classes, LIF(tau))


def without_lif(timestep):
    return Net(timestep, neurons=Spike())


class Steps(nn.Module):
    """LIF neurons that are called timestep by timestep, as in a recurrent network."""

    def __init__(self):
        super().__init__()
        self.lif = LIF()

    def forward(self, x):
        v, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s, v = self.lif.step(v, x_t)
            spikes.append(s)
        return torch.stack(spikes)


class Wrapped(nn.Module):
    """Its parameters have names as under DistributedDataParallel."""

    def __init__(self, timestep):
        super().__init__()
        self.module = Net(timestep, neurons=Steps())

    def forward(self, x):
        return self.module(x)


# ---------------------------------------------------------------- networks that are refused


def of_two_steps(num_classes):
    return Net(2, num_classes=num_classes)


def of_nine_classes(timestep):
    return Net(timestep, num_classes=9)


class KeepsMembranes(Net):
    """Membranes stay in the network after a call, with their graph."""

    membrane = 0.0

    def forward(self, x):
        x = x + self.membrane
        self.membrane = self.hidden[0].weight.sum() * x
        return super().forward(x)


class KeepsDetachedMembranes(Net):
    membrane = 0.0

    def forward(self, x):
        x = x + self.membrane
        self.membrane = x.detach().square()
        return super().forward(x)


class KeepsMembranesInTraining(KeepsDetachedMembranes):
    """In eval mode it does not spike, and hides what it keeps."""

    def forward(self, x):
        return super().forward(x) if self.training else Net.forward(self, x)


class WithoutGraph(Net):
    def forward(self, x):
        return super().forward(x).detach()


class SamplesFirst(Net):
    def forward(self, x):
        return super().forward(x).transpose(0, 1)


def scripted(timestep):
    return torch.jit.script(nn.Linear(3, timestep))


def needs_depth(timestep, depth):
    return None


def fails(timestep):
    raise KeyError("layers")


# ---------------------------------------------------------------- data sets


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


def with_graph():
    x, y = torch.rand(6, 1, 8, 8, requires_grad=True) * 2, torch.arange(6)
    return x, y, x, y


def three_arrays():
    return np.zeros(3), np.zeros(3), np.zeros(3)


def no_numbers():
    return ["a"], ["b"], ["c"], ["d"]
