"""A small SEW-ResNet of SpikingJelly. Its neurons learn their time constants (PLIF).

python train_snn_fisherinfo.py --dataset digits --arch examples/spikingjelly_net.py:sew_resnet \\
    --width 0.5 --epochs 5 --fisher_samples 64
"""

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn


def spiking_conv(inputs, outputs, tau, stride=1):
    conv = layer.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    plif = neuron.ParametricLIFNode(tau, detach_reset=True, surrogate_function=surrogate.ATan())
    return nn.Sequential(conv, layer.BatchNorm2d(outputs), plif)


class Block(nn.Module):
    def __init__(self, channels, tau):
        super().__init__()
        self.convs = nn.Sequential(*[spiking_conv(channels, channels, tau) for _ in range(2)])

    def forward(self, x):
        return x + self.convs(x)  # the sum of spikes is 0, 1 or 2


class SEWResNet(nn.Sequential):
    def forward(self, x):
        functional.reset_net(self)  # the neurons keep their membranes between calls
        x = x.transpose(0, 1) if x.dim() == 5 else x.expand(self.timestep, *x.shape)
        return super().forward(x)  # (T, N, C, H, W) -> (T, N, classes)


def sew_resnet(timestep, num_classes, in_channels, tau, width=1.0):
    channels = round(64 * width)
    stem, block = spiking_conv(in_channels, channels, tau, stride=2), Block(channels, tau)
    head = [layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(channels, num_classes)]
    model = SEWResNet(stem, block, *head)
    model.timestep = timestep
    functional.set_step_mode(model, "m")
    return model
