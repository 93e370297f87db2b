"""The plain fully connected spiking network."""

from collections import OrderedDict

from torch import nn

from archs.layers import Repeat, SpikingSequential
from archs.vgg import add_linear


def fc(*, timestep, num_classes, in_channels, image_size, width, layernum, norm, make_lif):
    """`layernum` linear layers, the read-out included; the hidden ones have 256 * width neurons."""
    rows, cols = image_size
    layers = OrderedDict(repeat=Repeat(timestep), flatten=nn.Flatten(2))  # (T, N, C H W)
    hidden = [max(1, round(256 * width))] * (layernum - 1)
    add_linear(layers, in_channels * rows * cols, hidden, num_classes, norm, make_lif)
    return SpikingSequential(layers, timestep)
