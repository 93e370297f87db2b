"""Spiking VGG: convolution, BatchNorm, LIF; average pooling; hidden linear layers; a linear
read-out at every timestep."""

from collections import OrderedDict

from torch import nn

from archs.layers import AvgPool2d, BatchNorm, Conv2d, Repeat, SpikingSequential

# name -> (convolution channels, 0 a 2x2 average pooling; hidden linear layers). The number in the
# name counts the layers with weights, the read-out included.
PLANS = {
    "vgg5": ([64, 0, 128, 128, 0], [256]),
    "vgg9": ([64, 64, 0, 128, 128, 0, 256, 256, 256, 0], [512]),
    "vgg11": ([64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0], [512, 512]),
    "vgg16": ([64, 64, 0, 128, 128, 0, *[256] * 3, 0, *[512] * 3, 0, *[512] * 3, 0], [512, 512]),
}


def vgg(arch, *, timestep, num_classes, in_channels, image_size, width, norm, make_lif):
    """The VGG of that name, channels times `width`. A pooling of less than 2x2 is left out."""
    plan, hidden = PLANS[arch]
    layers, (rows, cols), convs = OrderedDict(), image_size, 0
    for planned in plan:
        if planned:
            convs += 1
            channels = max(1, round(planned * width))
            layers[f"conv{convs}"] = Conv2d(in_channels, channels, 3, padding=1, bias=False)
            layers[f"bn{convs}"] = BatchNorm(channels, norm)
            if convs == 1:
                layers["repeat"] = Repeat(timestep)
            layers[f"lif{convs}"] = make_lif()
            in_channels = channels
        elif min(rows, cols) >= 2:
            layers[f"pool{convs}"] = AvgPool2d(2)
            rows, cols = rows // 2, cols // 2
    layers["flatten"] = nn.Flatten(2)  # (T, N, C H W)
    hidden = [max(1, round(features * width)) for features in hidden]
    add_linear(layers, in_channels * rows * cols, hidden, num_classes, norm, make_lif)
    return SpikingSequential(layers, timestep)


def add_linear(layers, in_features, hidden, num_classes, norm, make_lif):
    """Add hidden groups of Linear, BatchNorm and LIF, and the linear read-out, to `layers`."""
    for number, features in enumerate(hidden, 1):
        layers[f"fc{number}"] = nn.Linear(in_features, features, bias=False)
        layers[f"bn_fc{number}"] = BatchNorm(features, norm)
        layers[f"lif_fc{number}"] = make_lif()
        in_features = features
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(in_features, num_classes)
