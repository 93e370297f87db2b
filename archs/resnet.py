"""Spiking ResNets for small images. `resnet19` is the released model, with the same names."""

from torch import nn
from torch.utils.checkpoint import checkpoint

from archs.layers import BatchNorm, Conv2d, Repeat, time_first

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
        y = self.bn1(self.conv1(x))
        y = self.lif1(y)
        y = self.bn2(self.conv2(y))
        y = y + self.shortcut(x)
        return self.lif2(y)


class ResNet(nn.Module):
    """Images [N, C, H, W] or frames [N, T, C, H, W] -> outputs [T, N, classes]."""

    checkpoint_activations = False

    def __init__(self, stem, stages, *, timestep, num_classes, in_channels, width, norm, make_lif):
        super().__init__()
        channels = max(1, round(stem * width))
        self.timestep = timestep
        self.conv1 = Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(channels, norm)
        self.repeat = Repeat(timestep)
        self.lif_input = make_lif()
        for number, (planned, blocks, stride) in enumerate(stages, 1):
            stage = nn.Sequential()
            for _ in range(blocks):
                out_channels = max(1, round(planned * width))
                stage.append(BasicBlock(channels, out_channels, stride, norm, make_lif))
                channels, stride = out_channels, 1
            self.add_module(f"layer{number}", stage)
        self.fc1 = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = time_first(x, self.timestep)  # (1, N, C, H, W) of an image
        x = self.repeat(self.bn1(self.conv1(x)))  # (T, N, C, H, W)
        x = self.lif_input(x)
        again = self.checkpoint_activations and self.training
        for block in self.modules():
            if isinstance(block, BasicBlock):
                x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return self.fc1(x.mean((3, 4)))  # (T, N, classes)
