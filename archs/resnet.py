"""Spiking ResNets for small images. `resnet19` is the released model, names of its parameters
included."""

from torch import nn

from archs.layers import BatchNorm, Conv2d, Repeat, again_in_backward, time_first

# name -> (stem channels, [(channels, blocks, stride of the first block), ...])
PLANS = {
    "resnet19": (128, [(256, 3, 2), (512, 3, 2), (512, 2, 2)]),
    "resnet18": (64, [(64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)]),
    "resnet20": (16, [(16, 3, 1), (32, 3, 2), (64, 3, 2)]),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and LIF; the shortcut joins before the second LIF."""

    def __init__(self, in_channels, channels, stride, norm, make_lif):
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = BatchNorm(channels, norm)
        self.lif1 = make_lif()
        self.conv2 = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(channels, norm)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut.append(Conv2d(in_channels, channels, 1, stride=stride, bias=False))
            self.shortcut.append(BatchNorm(channels, norm))
        self.lif2 = make_lif()

    def forward(self, x):  # (T, N, C, H, W)
        y = self.lif1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.lif2(y + self.shortcut(x))


class ResNet(nn.Module):
    """Images [N, C, H, W] or frames [N, T, C, H, W] -> outputs [T, N, classes]."""

    def __init__(self, arch, *, timestep, num_classes, in_channels, width, norm, make_lif,
                 checkpoint_activations):  # fmt: skip
        super().__init__()
        stem, stages = PLANS[arch]
        channels = max(1, round(stem * width))
        self.timestep, self.checkpoint_activations = timestep, checkpoint_activations
        self.conv1 = Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(channels, norm)
        self.repeat = Repeat(timestep)
        self.lif_input = make_lif()
        self.stages = []
        for number, (plan_channels, blocks, stride) in enumerate(stages, 1):
            out_channels = max(1, round(plan_channels * width))
            stage = nn.Sequential(BasicBlock(channels, out_channels, stride, norm, make_lif))
            for _ in range(blocks - 1):
                stage.append(BasicBlock(out_channels, out_channels, 1, norm, make_lif))
            self.add_module(f"layer{number}", stage)
            self.stages.append(f"layer{number}")
            channels = out_channels
        self.fc1 = nn.Linear(channels, num_classes)

    def blocks(self):
        """The blocks of all stages, in order."""
        return [block for stage in self.stages for block in self.get_submodule(stage)]

    def forward(self, x):
        x = time_first(x, self.timestep)  # (1, N, C, H, W) of an image
        x = self.lif_input(self.repeat(self.bn1(self.conv1(x))))  # (T, N, C, H, W)
        for block in self.blocks():
            if self.checkpoint_activations and self.training:
                x = again_in_backward(block, x)
            else:
                x = block(x)
        return self.fc1(x.mean((3, 4)))  # (T, N, classes)
