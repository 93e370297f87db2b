"""3x3 convolutions with a quarter of the multiplications, for training in full precision on a CPU.

Winograd's F(4x4, 3x3) (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"): windows d of 6x6 of
the input, one for each 4x4 of the output, filters g of 3x3,

    y = A^T [(G g G^T) * (B^T d B)] A

of which the products * of all windows, filters and channels are 36 matrix products. Each transform is one more, by the
Kronecker product of its matrix with itself. In float32 the largest error is 1e-5 of the largest output, some 30 times a
direct convolution's. GPUs' libraries choose such algorithms by themselves.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch.amp import custom_bwd, custom_fwd
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
WIDE, MANY_WINDOWS = 256, 240  # channels and windows from which on it is faster, as measured
PIECE = 256  # windows at once: they stay in the cache
DIRECT = ContextVar("direct", default=False)


@contextmanager
def direct():
    """Within it, no convolution is done this way."""
    token = DIRECT.set(True)
    try:
        yield
    finally:
        DIRECT.reset(token)


def allowed(*tensors):
    """Whether nobody has asked for direct convolutions, or sees every call, as the estimator, and knows F.conv2d."""
    return not (torch.compiler.is_compiling() or DIRECT.get() or has_torch_function(tensors))


def pays(layer, x):
    """Whether the nn.Conv2d `layer` of images x [N, C, H, W] is faster this way: with many channels and windows, on a
    CPU, in full precision, while training a channels-last network."""
    weight = layer.weight
    return (
        layer.training
        and allowed(x, weight)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.bias is None
        and min(weight.shape[:2]) >= WIDE
        and weight.is_contiguous(memory_format=torch.channels_last)
        and x.dim() == 4
        and x.shape[1] == weight.shape[1]
        and x.shape[2] % 4 == x.shape[3] % 4 == 0
        and x.shape[2] * x.shape[3] // 16 <= PIECE
        and len(x) * x.shape[2] * x.shape[3] // 16 >= MANY_WINDOWS
    )


def kron(matrix, like):
    """The Kronecker product of a matrix with itself, in the precision of the tensor `like`."""
    matrix = like.new_tensor(matrix)
    return torch.kron(matrix, matrix)


def pieces(x):
    """Images [N, C, H, W] in parts of at most PIECE windows."""
    return x.split(max(1, PIECE * 16 // (x.shape[2] * x.shape[3])))


def windows(x):
    """The images' parts of 4x4, a view: [n, H, W, C] -> [4, 4, n, H/4, W/4, C]."""
    n, height, width, channels = x.shape
    return x.view(n, height // 4, 4, width // 4, 4, channels).permute(2, 4, 0, 1, 3, 5)


def spectra(x, b):
    """B^T d B of all windows: [n, C, H, W] -> [36, windows, C]."""
    (n, channels, height, width), x = x.shape, F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    sample, row, column, channel = x.stride()
    strides = (row, column, sample, 4 * row, 4 * column, channel)
    d = x.as_strided((6, 6, n, height // 4, width // 4, channels), strides)
    return (b @ d.reshape(36, -1)).view(36, -1, channels)


def convolve(x, weight):
    """F.conv2d(x, weight, padding=1): [N, C, H, W] and [C', C, 3, 3] -> [N, C', H, W], channels-last."""
    (n, channels, height, width), filters = x.shape, len(weight)
    a, b = kron(A_T, x), kron(B_T, x)
    g = (kron(G, x) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, filters)
    options = dict(dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    y, done = torch.empty(n, filters, height, width, **options), 0
    for piece in pieces(x):
        part = windows(y[done : done + len(piece)].permute(0, 2, 3, 1))
        part.copy_((a @ torch.bmm(spectra(piece, b), g).view(36, -1)).view(part.shape))
        done += len(piece)
    return y


def weight_gradient(x, grad, weight):
    """The gradient of the weight, from inputs [N, C, H, W] and the outputs' gradient [N, C', H, W]."""
    channels, filters = x.shape[1], grad.shape[1]
    a, b, total = kron(A_T, x).T, kron(B_T, x), x.new_zeros(36, channels, filters)
    for part, d in zip(pieces(x), pieces(grad)):
        products = (a @ windows(d.permute(0, 2, 3, 1)).reshape(16, -1)).view(36, -1, filters)
        total.baddbmm_(spectra(part, b).transpose(1, 2), products)
    gradient = (kron(G, x).T @ total.view(36, -1)).view(3, 3, channels, filters).permute(3, 2, 0, 1)
    return torch.empty_like(weight).copy_(gradient)  # as it lies in memory


class Winograd(torch.autograd.Function):
    """F.conv2d(x, weight, padding=1) of [N, C, H, W] and [C', C, 3, 3], and its gradients; differentiable once, as the
    neurons are."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return convolve(x, weight)

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        return (
            convolve(grad, weight.flip(2, 3).transpose(0, 1)) if of_x else None,
            weight_gradient(x, grad, weight) if of_weight else None,
        )
