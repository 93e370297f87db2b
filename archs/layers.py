"""Layers for all timesteps at once, [T, N, ...], and the entry for images and frames."""

import torch
import torch.nn.functional as F
from torch import nn

NORMS = ("step", "folded")


def time_first(x, timestep):
    """Frames [N, T, C, H, W] -> [T, N, C, H, W]; images [N, C, H, W] -> [1, N, C, H, W]. So the
    layers before the first neurons run once for an image. Raises ValueError for another shape or T.
    """
    if x.dim() == 4:
        return x.unsqueeze(0)
    if x.dim() != 5 or x.shape[1] != timestep:
        shapes = f"[N, C, H, W] or frames [N, {timestep}, C, H, W]"
        raise ValueError(f"x must be {shapes}, not {list(x.shape)}")
    return x.transpose(0, 1)


def fold_time(layer, x):
    """layer(x) for all timesteps at once: [T, N, ...] -> [T N, ...] and back."""
    if len(x) == 1:  # torch 2.13's BatchNorm is wrong for the strides of a folded T = N = 1
        return layer(x[0]).unsqueeze(0)
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Repeat(nn.Module):
    """Repeat an image for every timestep, without a copy: [1, N, ...] -> [T, N, ...]."""

    def __init__(self, timestep):
        super().__init__()
        self.timestep = timestep

    def forward(self, x):
        return x.expand(self.timestep, *x.shape[1:])


class Conv2d(nn.Conv2d):
    """2-d convolution of all timesteps at once: [T, N, C, H, W] -> [T, N, C', H', W']."""

    def forward(self, x):
        return fold_time(super().forward, x)


class AvgPool2d(nn.AvgPool2d):
    """2-d average pooling of all timesteps at once: [T, N, C, H, W] -> [T, N, C, H', W']."""

    def forward(self, x):
        return fold_time(super().forward, x)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of [T, N, C, ...] over samples and positions.

    norm="step": each timestep has its own batch statistics and updates the running statistics, as
    in a loop over t. norm="folded": time counts as batch (threshold-dependent BN, Zheng et al.
    2021). In eval mode both are the same affine map.
    """

    def __init__(self, channels, norm="step"):
        super().__init__(channels)
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r}: choose from {', '.join(NORMS)}")
        self.norm = norm

    def _check_input_dim(self, x):
        """Linear layers have no positions, so any number of dimensions is right."""

    def forward(self, x):
        if not self.training:
            return fold_time(super().forward, x)
        batches = x if self.norm == "step" else [x.flatten(0, 1)]
        mean, var = self.running_mean, self.running_var
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self.num_batches_tracked.add_(len(batches))
        else:  # a backward pass runs this again, but the running statistics have x already
            mean, var = mean.clone(), var.clone()
        settings = (mean, var, self.weight, self.bias, True, self.momentum, self.eps)
        normalised = [F.batch_norm(batch, *settings) for batch in batches]
        return torch.cat(normalised).unflatten(0, x.shape[:2])  # cat keeps channels-last
