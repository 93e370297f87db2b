"""Spiking VGG: convolutions with BatchNorm and LIF, average pooling, hidden linear layers, and a
linear read-out at every timestep. `fc` has no convolutions."""

from torch import nn
from torch.utils.checkpoint import checkpoint

from archs.layers import AvgPool2d, BatchNorm, Conv2d, Repeat, time_first
from archs.neuron import LIF

# name -> (channels of convolutions, 0 for a 2x2 average pooling; hidden linear layers). The number
# in the name counts the layers with weights, with the read-out.
PLANS = {
    "vgg5": ([64, 0, 128, 128, 0], [256]),
    "vgg9": ([64, 64, 0, 128, 128, 0, 256, 256, 256, 0], [512]),
    "vgg11": ([64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0], [512, 512]),
    "vgg16": ([64, 64, 0, 128, 128, 0, *[256] * 3, 0, *[512] * 3, 0, *[512] * 3, 0], [512, 512]),
    "fc": ([], [256]),  # `layernum` says how often
}


class VGG(nn.Sequential):
    """Images [N, C, H, W] or frames [N, T, C, H, W] -> outputs [T, N, classes].

    `width` scales the channels. Images smaller than 2x2 are not pooled.
    """

    checkpoint_activations = False

    def __init__(self, plan, hidden, *, timestep, num_classes, in_channels, image_size, width, norm,
                 make_lif):  # fmt: skip
        super().__init__()
        self.timestep = timestep
        rows, cols = image_size
        convs = 0
        for planned in plan:
            if planned:
                convs += 1
                channels = max(1, round(planned * width))
                conv = Conv2d(in_channels, channels, 3, padding=1, bias=False)
                self.add_module(f"conv{convs}", conv)
                self.add_module(f"bn{convs}", BatchNorm(channels, norm))
                if convs == 1:
                    self.add_module("repeat", Repeat(timestep))
                self.add_module(f"lif{convs}", make_lif())
                in_channels = channels
            elif min(rows, cols) >= 2:
                self.add_module(f"pool{convs}", AvgPool2d(2))
                rows, cols = rows // 2, cols // 2
        self.add_module("flatten", nn.Flatten(2))  # (T, N, C H W)
        features = in_channels * rows * cols
        for number, planned in enumerate(hidden, 1):
            channels = max(1, round(planned * width))
            self.add_module(f"fc{number}", nn.Linear(features, channels, bias=False))
            self.add_module(f"bn_fc{number}", BatchNorm(channels, norm))
            if number == 1 and not plan:
                self.add_module("repeat", Repeat(timestep))
            self.add_module(f"lif_fc{number}", make_lif())
            features = channels
        self.add_module(f"fc{len(hidden) + 1}", nn.Linear(features, num_classes))

    def forward(self, x):
        x = time_first(x, self.timestep)
        if not (self.checkpoint_activations and self.training):
            return super().forward(x)
        group = []  # layers up to a LIF
        for layer in self:
            group.append(layer)
            if isinstance(layer, LIF):
                x = checkpoint(nn.Sequential(*group), x, use_reentrant=False)
                group = []
        return nn.Sequential(*group)(x)
