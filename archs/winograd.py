"""3x3 convolutions with a quarter of the multiplications, for training in full precision on a CPU.

Winograd's F(4x4, 3x3) (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"): windows d of 6x6 of
the input, one for each 4x4 of the output, filters g of 3x3,

    y = A^T [(G g G^T) * (B^T d B)] A

of which the products * of all windows, filters and channels are 36 matrix products. Each transform is one more, by the
Kronecker product of its matrix with itself. Rounding errors are about ten times those of a direct convolution (1e-5 of
the largest output in float32). GPUs' libraries choose such algorithms by themselves.
"""

from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import has_torch_function

B_T = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
G = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
A_T = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
MANY_CHANNELS, MANY_WINDOWS = 256, 240  # from which on it is faster, as measured
PIECE = 256  # windows at once: they stay in the cache


@contextmanager
def direct():
    """Within it, no convolution is done this way."""
    global MANY_CHANNELS
    before, MANY_CHANNELS = MANY_CHANNELS, float("inf")
    try:
        yield
    finally:
        MANY_CHANNELS = before


@cache
def kron(name, dtype):
    """The Kronecker product of a matrix with itself."""
    matrix = torch.tensor({"B_T": B_T, "G": G, "A_T": A_T}[name], dtype=torch.float64, device="cpu")
    return torch.kron(matrix, matrix).to(dtype)


def pays(layer, x):
    """Whether the nn.Conv2d `layer` of images x [N, C, H, W] is faster this way: with many channels and windows, on a
    CPU, in full precision, while training."""
    (n, _, height, width), shape = x.shape, (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return (
        layer.training
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not has_torch_function((x,))  # who sees every call, like the estimator, knows F.conv2d
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype
        and x.element_size() >= 4
        and not torch.is_autocast_enabled("cpu")
        and shape == ((3, 3), (1, 1), (1, 1), (1, 1))
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.bias is None
        and min(layer.weight.shape[:2]) >= MANY_CHANNELS
        and height % 4 == width % 4 == 0
        and n * height * width // 16 >= MANY_WINDOWS
    )


def pieces(x):
    """Images [N, C, H, W] in parts of about PIECE windows."""
    return x.split(max(1, PIECE * 16 // (x.shape[2] * x.shape[3])))


def spectra(x):
    """B^T d B of all windows: [n, C, H, W] -> [36, windows, C]."""
    (n, channels, height, width), x = x.shape, F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    sample, row, column, _ = x.stride()
    windows = x.as_strided((6, 6, n, height // 4, width // 4, channels), (row, column, sample, 4 * row, 4 * column, 1))
    return (kron("B_T", x.dtype) @ windows.reshape(36, -1)).view(36, -1, channels)


def convolve(x, weight):
    """F.conv2d(x, weight, padding=1): [N, C, H, W] and [C', C, 3, 3] -> [N, C', H, W], channels-last."""
    (n, channels, height, width), filters = x.shape, len(weight)
    g = (kron("G", x.dtype) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, filters)
    y = x.new_empty(n, height // 4, 4, width // 4, 4, filters)
    done = 0
    for piece in pieces(x):
        part = y[done : done + len(piece)].permute(2, 4, 0, 1, 3, 5)
        part.copy_((kron("A_T", x.dtype) @ torch.bmm(spectra(piece), g).view(36, -1)).view(part.shape))
        done += len(piece)
    return y.view(n, height, width, filters).permute(0, 3, 1, 2)


def weight_gradient(x, grad):
    """The gradient of the weight, [C', C, 3, 3], from inputs [N, C, H, W] and the outputs' gradient [N, C', H, W]."""
    channels, filters = x.shape[1], grad.shape[1]
    total = x.new_zeros(36, channels, filters)
    for part, d in zip(pieces(x), pieces(grad)):
        n, _, height, width = d.shape
        d = d.permute(0, 2, 3, 1).view(n, height // 4, 4, width // 4, 4, filters).permute(2, 4, 0, 1, 3, 5)
        products = kron("A_T", x.dtype).T @ d.reshape(16, -1)
        total.baddbmm_(spectra(part).transpose(1, 2), products.view(36, -1, filters))
    return (kron("G", x.dtype).T @ total.view(36, -1)).view(3, 3, channels, filters).permute(3, 2, 0, 1)


class Winograd(torch.autograd.Function):
    """F.conv2d(x, weight, padding=1) and its gradients."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return convolve(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x, of_weight = ctx.needs_input_grad
        return (
            convolve(grad, weight.flip(2, 3).transpose(0, 1)) if of_x else None,
            weight_gradient(x, grad) if of_weight else None,
        )
