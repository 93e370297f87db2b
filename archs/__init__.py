"""Spiking networks by name: `build("vgg5", timestep=8, num_classes=10)`. Needs only torch.

Every network maps images [N, C, H, W] (the same image at each timestep) or frames [N, T, C, H, W]
to outputs [T, N, classes]. Membranes live inside one forward call.
"""

from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from archs import resnet, vgg
from archs.neuron import LIF

ARCHS = (*resnet.PLANS, *vgg.PLANS)
SMALLEST_IMAGE = 8


def lif_layers(model):
    """{name: layer} of the `LIF` neurons of a network."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LIF)}


@contextmanager
def after_each(model, kinds, note):
    """In the `with` block, each module of `kinds` calls note(name, module, inputs, output)."""
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            hooks.append(module.register_forward_hook(partial(note, name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fastest_layout(model):
    """The memory format that the convolutions of `model` are fastest in: channels last. In it torch
    2.13 writes past the memory of 1x1 convolutions of few channels on a CPU."""
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    if any(conv.kernel_size == (1, 1) and conv.in_channels < 8 for conv in convolutions):
        return torch.contiguous_format
    return torch.channels_last


def build(arch, *, timestep, num_classes, in_channels=3, image_size=32, width=1.0, layernum=2,
          norm="step", checkpoint_activations=False, **neuron):  # fmt: skip
    """Make a spiking network. `resnet19` with the defaults is the model of the AAAI 2023 release.

    Args:
        image_size: height and width of the input, or both in one number; at least 8.
        width: factor on the number of channels.
        layernum: linear layers of `fc`, with the read-out; other networks ignore it.
        norm: "step" (BatchNorm statistics per timestep) or "folded" (time counts as batch).
        checkpoint_activations: a training step keeps only the inputs of each block. The backward
            pass computes the rest again.
        neuron: arguments of `archs.neuron.LIF`: tau, threshold, reset, surrogate, ...

    Raises ValueError for an unknown name or a size out of range.
    """
    if arch not in ARCHS:
        raise ValueError(f"unknown arch {arch!r}: choose from {', '.join(ARCHS)}")
    if min(timestep, num_classes, in_channels) < 1 or width <= 0 or layernum < 2:
        raise ValueError("timestep, num_classes, in_channels, width must be > 0, layernum > 1")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < SMALLEST_IMAGE:
        raise ValueError(f"image_size must be at least {SMALLEST_IMAGE}, not {size}")
    shared = {"timestep": timestep, "num_classes": num_classes, "in_channels": in_channels,
              "width": width, "norm": norm, "make_lif": partial(LIF, **neuron)}  # fmt: skip
    if arch in resnet.PLANS:
        model = resnet.ResNet(*resnet.PLANS[arch], **shared)
    else:
        convolutions, hidden = vgg.PLANS[arch]
        hidden = hidden * (layernum - 1) if arch == "fc" else hidden
        model = vgg.VGG(convolutions, hidden, image_size=size, **shared)
    model.checkpoint_activations = checkpoint_activations
    return model
