"""Spiking ResNets for small images. `resnet19` is the released model, names of its parameters included."""

from functools import partial

from torch import nn

from archs.layers import BatchNorm, Conv2d, memory_policy, repeat_static, time_first

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

    def forward(self, x, run):
        """`run` is how what stands behind a convolution is run (`memory_policy`)."""
        return run(self.end, self.conv2(run(self.middle, self.conv1(x))), x)

    def middle(self, y):
        return self.lif1(self.bn1(y))

    def end(self, y, x):
        return self.lif2(self.bn2(y) + self.shortcut(x))


class ResNet(nn.Module):
    """Images [N, C, H, W] or frames [N, T, C, H, W] -> outputs [T, N, classes]."""

    def __init__(self, arch, *, timestep, num_classes, in_channels, width, norm, make_lif, checkpoint_activations):
        super().__init__()
        stem, stages = PLANS[arch]
        channels = max(1, round(stem * width))
        self.timestep, self.checkpoint_activations = timestep, checkpoint_activations
        self.conv1 = Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(channels, norm)
        self.lif_input = make_lif()
        self.stages = []
        for number, (out_channels, blocks, stride) in enumerate(stages, 1):
            out_channels, stage = max(1, round(out_channels * width)), nn.Sequential()
            for block in range(blocks):
                stage.append(BasicBlock(channels, out_channels, stride if block == 0 else 1, norm, make_lif))
                channels = out_channels
            self.add_module(f"layer{number}", stage)
            self.stages.append(f"layer{number}")
        self.fc1 = nn.Linear(channels, num_classes)

    def forward(self, x):
        run = memory_policy(self)
        x = run(self.start, self.conv1(time_first(x, self.timestep)))  # (T, N, C, H, W)
        for stage in self.stages:
            for block in self.get_submodule(stage):
                x = run(partial(block, run=run), x) if self.checkpoint_activations else block(x, run)
        return self.fc1(x.mean((3, 4)))  # (T, N, classes)

    def start(self, y):
        return self.lif_input(repeat_static(self.bn1(y), self.timestep))
