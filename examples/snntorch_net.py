"""A convolutional network of snnTorch, in a loop over the timesteps.

python train_snn_fisherinfo.py --dataset digits --arch examples/snntorch_net.py:build --epochs 5
"""

import snntorch
import torch
from snntorch import surrogate
from torch import nn


class Net(nn.Module):
    def __init__(self, timestep, num_classes, in_channels, image_size, beta, channels):
        super().__init__()
        self.timestep = timestep
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
        self.lif1 = snntorch.Leaky(beta, spike_grad=surrogate.atan())
        self.lif2 = snntorch.Leaky(beta, spike_grad=surrogate.atan())
        height, width = image_size
        self.readout = nn.Linear(channels * -(-height // 2) * -(-width // 2), num_classes)

    def forward(self, x):  # (N, C, H, W) or (N, T, C, H, W)
        v1, v2 = self.lif1.init_leaky(), self.lif2.init_leaky()  # each call starts anew
        outputs = []
        for t in range(self.timestep):
            frame = x[:, t] if x.dim() == 5 else x
            spikes, v1 = self.lif1(self.norm1(self.conv1(frame)), v1)
            spikes, v2 = self.lif2(self.norm2(self.conv2(spikes)), v2)
            outputs.append(self.readout(spikes.flatten(1)))
        return torch.stack(outputs)  # (T, N, classes)


def build(timestep, num_classes, in_channels, image_size, tau, width=1.0):
    channels = round(32 * width)
    return Net(timestep, num_classes, in_channels, image_size, 1 - 1 / tau, channels)
