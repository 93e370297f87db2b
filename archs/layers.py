"""Layers that take every timestep at once, [T, N, ...], and the way in for images and frames."""

from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from archs import winograd
from archs.neuron import LIF

NORMS = ("step", "folded")
MANY_CHANNELS = 128


def time_first(x, timestep):
    """Time first: an image [N, C, H, W] -> [1, N, C, H, W], frames [N, T, C, H, W] -> [T, N, C, H, W].

    An image keeps one step: what stands before the first LIF sees the same input T times, so it runs once.
    Raises ValueError for another number of dimensions, or frames of another T than the network's.
    """
    if x.dim() == 4:
        return x.unsqueeze(0)
    if x.dim() != 5:
        raise ValueError(f"input must be images [N, C, H, W] or frames [N, T, C, H, W], not {list(x.shape)}")
    if x.shape[1] != timestep:
        raise ValueError(f"the network runs {timestep} timesteps, the frames have {x.shape[1]}")
    return x.transpose(0, 1)


def repeat_static(x, timestep):
    """[1, N, ...] -> [T, N, ...] without a copy; [T, N, ...] stays as it is."""
    return x.expand(timestep, *x.shape[1:])


def fold_time(layer, x):
    """layer(x) of all timesteps at once: [T, N, ...] -> [T N, ...] and back.

    A single timestep is taken as it is: views of T = N = 1 have strides of their own, with which BatchNorm of torch
    2.13 gives wrong gradients in channels-last on a CPU.
    """
    return layer(x[0]).unsqueeze(0) if len(x) == 1 else layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Conv2d(nn.Conv2d):
    """2-d convolution of all timesteps at once: [T, N, C, H, W] -> [T, N, C', H', W']."""

    def forward(self, x):
        return fold_time(self.convolve, x)  # (T, N, C', H', W')

    def convolve(self, x):
        return winograd.Winograd.apply(x, self.weight) if winograd.pays(self, x) else super().forward(x)


class AvgPool2d(nn.AvgPool2d):
    """2-d average pooling of all timesteps at once: [T, N, C, H, W] -> [T, N, C, H', W']."""

    def forward(self, x):
        return fold_time(super().forward, x)  # (T, N, C, H', W')


class StepStatistics(torch.autograd.Function):
    """Batch normalisation of each timestep of [T, N, C, ...] in train mode. The results are written where they stay:
    torch.cat of those of F.batch_norm would be a copy."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps):
        y, ctx.eps = torch.empty_like(x), eps
        # A GPU keeps statistics in float32 at least, a CPU in the precision of the weight.
        kind = torch.promote_types(weight.dtype, torch.float32) if x.is_cuda else weight.dtype
        saved = torch.empty(2, len(x), len(weight), dtype=kind, device=x.device)
        for x_t, *out in zip(x, y, *saved):
            torch.native_batch_norm(x_t, weight, bias, running_mean, running_var, True, momentum, eps, out=out)
        ctx.save_for_backward(x, weight, saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, saved = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.empty_like(x), 0, 0
        for t in reversed(range(len(x))):  # the order in which autograd sums a loop's gradients, to the bit
            settings = (weight, None, None, *saved[:, t], True, ctx.eps, (True, True, True))
            found = torch.ops.aten.native_batch_norm_backward(grad[t], x[t], *settings)
            grad_x[t] = found[0]
            grad_weight, grad_bias = grad_weight + found[1], grad_bias + found[2]
        return grad_x, grad_weight, grad_bias, None, None, None, None


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of [T, N, C, ...] over samples and positions.

    norm="step": each timestep is normalised with its own batch statistics, and the running statistics are updated T
    times, as if the layer stood inside a loop over t. norm="folded": time counts as batch, one update (the statistics
    of threshold-dependent BN, Zheng et al. 2021). In eval mode both are the same affine map.
    """

    def __init__(self, channels, norm="step"):
        super().__init__(channels)
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r}: choose from {', '.join(NORMS)}")
        self.norm = norm

    def _check_input_dim(self, x):
        """Any number of position dimensions, none of them included."""

    def forward(self, x):
        if not self.training or self.norm == "folded" or len(x) == 1:
            return fold_time(self.normalise, x)
        if torch.compiler.is_compiling():  # which has no rule for out=
            return torch.cat([self.normalise(x_t) for x_t in x]).unflatten(0, x.shape[:2])  # keeps channels-last
        F._verify_batch_size(x[0].shape)  # more than one value a channel
        self.num_batches_tracked.add_(0 if BatchNorm.recomputing else len(x))
        return StepStatistics.apply(x, self.weight, self.bias, *self.statistics(), self.momentum, self.eps)

    def normalise(self, x):
        if BatchNorm.recomputing and self.training:
            return F.batch_norm(x, *self.statistics(), self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)

    def statistics(self):
        """The running ones, to be updated; a copy of them while what has seen this batch sees it again."""
        running = self.running_mean, self.running_var
        return [value.clone() for value in running] if BatchNorm.recomputing else running

    recomputing = 0


class Recomputation:
    """While a part of a forward pass is done again, as often as that may be: the network is in the `state` of the first
    time, its convolutions `direct` as then or not, and BatchNorm does not count its batch twice."""

    def __init__(self, state, direct):
        self.state, self.direct, self.before, self.token = state, direct, None, None

    def __enter__(self):
        self.token = winograd.DIRECT.set(self.direct)
        BatchNorm.recomputing += 1
        self.before = state_of(module for module, *_ in self.state)
        put(self.state)

    def __exit__(self, *exc):
        BatchNorm.recomputing -= 1
        put(self.before)
        winograd.DIRECT.reset(self.token)


def state_of(modules):
    """What a forward pass depends on: [(module, training, parameters, buffers)], which torch.func.functional_call and a
    change of mode replace afterwards."""
    return [(module, module.training, dict(module._parameters), dict(module._buffers)) for module in modules]


def put(state):
    """Take each module back to that state."""
    for module, training, parameters, buffers in state:
        module.training = training
        for own, saved in ((module._parameters, parameters), (module._buffers, buffers)):
            own.clear()
            own.update(saved)


def forgetful(state, part, *inputs):
    """part(*inputs), whose activations are not kept for the backward pass, but computed there again from the inputs."""
    again = Recomputation(state, direct=not winograd.allowed(*inputs))
    context = {"context_fn": lambda: (nullcontext(), again), "preserve_rng_state": False}
    return checkpoint(part, *inputs, use_reentrant=False, **context)


def lean(state, part, *inputs):
    """`forgetful`, for what stands behind a convolution, BatchNorm and LIF, where that is a few hundredths of a step's
    time: behind many channels in full precision. Behind fast convolutions it would be up to half, so it is kept."""
    cheap = inputs[0].shape[2] >= MANY_CHANNELS and inputs[0].element_size() >= 4
    return forgetful(state, part, *inputs) if cheap else part(*inputs)


def memory_policy(network):
    """How that network runs what stands behind a convolution, run(part, *inputs): as above, or just so."""
    if not network.training or network.checkpoint_activations is None or torch.compiler.is_compiling():
        return lambda part, *inputs: part(*inputs)  # who compiles the whole network has the compiler choose
    return partial(forgetful if network.checkpoint_activations else lean, state_of(network.modules()))


class SpikingSequential(nn.Sequential):
    """Layers in order: images [N, C, H, W] or frames [N, T, C, H, W] -> outputs [T, N, classes]."""

    def __init__(self, layers, timestep, checkpoint_activations):
        super().__init__(layers)
        self.timestep, self.checkpoint_activations = timestep, checkpoint_activations

    def forward(self, x):
        x, part, run = time_first(x, self.timestep), [], memory_policy(self)
        for layer in self:
            if isinstance(layer, BatchNorm) and not self.checkpoint_activations:
                x, part = self.part(part, x), []
            part.append(layer)
            if isinstance(layer, LIF):
                x, part = run(partial(self.part, part), x), []
        return self.part(part, x)

    def part(self, layers, x):
        for layer in layers:
            x = layer(repeat_static(x, self.timestep) if isinstance(layer, LIF) else x)
        return x
