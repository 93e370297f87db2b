"""Spiking VGG: convolution, BatchNorm, LIF; average pooling; hidden linear layers; a linear read-out at every step."""

from collections import OrderedDict

from torch import nn

from archs.layers import AvgPool2d, BatchNorm, Conv2d, SpikingSequential

# name -> (convolution channels, "P" a 2x2 average pooling; hidden linear layers). The number in the name counts the
# layers with weights, the read-out included.
PLANS = {
    "vgg5": ([64, "P", 128, 128, "P"], [256]),
    "vgg9": ([64, 64, "P", 128, 128, "P", 256, 256, 256, "P"], [512]),
    "vgg11": ([64, "P", 128, "P", 256, 256, "P", 512, 512, "P", 512, 512, "P"], [512, 512]),
    "vgg16": ([64, 64, "P", 128, 128, "P", 256, 256, 256, "P", 512, 512, 512, "P", 512, 512, 512, "P"], [512, 512]),
}


def vgg(arch, *, timestep, num_classes, in_channels, image_size, width, norm, make_lif, checkpoint_activations):
    """The VGG of that name, channels times `width`; a pooling that would find less than 2x2 positions is left out."""
    channels, hidden = PLANS[arch]
    layers, (rows, cols), convs = OrderedDict(), image_size, 0
    for entry in channels:
        if entry == "P":
            if min(rows, cols) >= 2:
                layers[f"pool{convs}"] = AvgPool2d(2)
                rows, cols = rows // 2, cols // 2
            continue
        convs, out_channels = convs + 1, max(1, round(entry * width))
        layers[f"conv{convs}"] = Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        layers[f"bn{convs}"] = BatchNorm(out_channels, norm)
        layers[f"lif{convs}"] = make_lif()
        in_channels = out_channels
    layers["flatten"] = nn.Flatten(2)  # (T, N, C * H * W)
    hidden = [max(1, round(features * width)) for features in hidden]
    add_linear(layers, in_channels * rows * cols, hidden, num_classes, norm, make_lif)
    return SpikingSequential(layers, timestep, checkpoint_activations)


def add_linear(layers, in_features, hidden, num_classes, norm, make_lif):
    """Add hidden blocks of Linear, BatchNorm and LIF, and the linear read-out, to the named `layers`."""
    for number, features in enumerate(hidden, 1):
        layers[f"fc{number}"] = nn.Linear(in_features, features, bias=False)
        layers[f"bn_fc{number}"] = BatchNorm(features, norm)
        layers[f"lif_fc{number}"] = make_lif()
        in_features = features
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(in_features, num_classes)
