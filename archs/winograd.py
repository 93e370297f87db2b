"""3x3 convolutions with a quarter of the multiplications, for training in full precision on a CPU.

Winograd's F(4x4, 3x3) (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"): windows d of 6x6 of
the input, one for each 4x4 of the output, filters g of 3x3,

    y = A^T [(G g G^T) * (B^T d B)] A

of which the products * of all windows, filters and channels are 36 matrix products. These are written as convolutions
of 1x1, which on AMD's processors run at twice the rate of torch's matrix products. Each transform is a small matrix
product, by the Kronecker product of its matrix with itself. In float32 the largest error is 2e-5 of the largest output,
5 to 17 times a direct convolution's. GPUs' libraries choose such algorithms by themselves.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight
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
PIECE = 2**17  # windows, or filters, times channels at once: they stay in the cache, and glibc keeps their buffers
ONE_BY_ONE = dict(dilation=2)  # does nothing to such a kernel, but else torch leaves oneDNN where there is one thread
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
        and x.shape[2] * x.shape[3] // 16 <= at_once(max(weight.shape[:2]))
        and len(x) * x.shape[2] * x.shape[3] // 16 >= MANY_WINDOWS
    )


def kron(matrix, like):
    """The Kronecker product of a matrix with itself, in the precision of the tensor `like`."""
    matrix = like.new_tensor(matrix)
    return torch.kron(matrix, matrix)


def at_once(channels):
    """How many windows or filters of so many channels are done at once."""
    return max(1, PIECE // channels)


def pieces(x, weight):
    """Images [N, ., H, W] in parts that are done at once."""
    return x.split(max(1, at_once(max(weight.shape[:2])) * 16 // (x.shape[2] * x.shape[3])))


def windows(x):
    """The images' parts of 4x4, a view: [n, C, H, W] -> [n, H/4, W/4, 4, 4, C]."""
    n, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(n, height // 4, 4, width // 4, 4, channels).transpose(2, 3)


def spectra(x, b):
    """B^T d B of all windows: [n, C, H, W] -> [windows, 36, C]."""
    (n, channels, height, width), x = x.shape, F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    sample, row, column, channel = x.stride()
    strides = (sample, 4 * row, 4 * column, row, column, channel)
    return b @ x.as_strided((n, height // 4, width // 4, 6, 6, channels), strides).reshape(-1, 36, channels)


def filters(weight, g):
    """G g G^T of all filters, as those of a grouped convolution of 1x1: [C', C, 3, 3] -> [36 C', C, 1, 1]."""
    count, channels = weight.shape[:2]
    taps = weight.permute(0, 2, 3, 1).reshape(count, 9, channels)
    return (g @ taps).transpose(0, 1).reshape(36 * count, channels, 1, 1)


def pixels(rows):
    """Rows [R, C] as one image [1, C, R, 1] whose strides are those of channels-last."""
    return rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2)


def convolve(x, weight, transposed=False):
    """F.conv2d(x, weight, padding=1), or F.conv_transpose2d: [N, C, H, W] and [C', C, 3, 3] (transposed: [C, C', 3, 3])
    -> [N, C', H, W], channels-last."""
    a, b, g = kron(A_T, x), kron(B_T, x), kron(G, x)
    g, product, dim = (g.flip(1), F.conv_transpose2d, 1) if transposed else (g, F.conv2d, 0)
    count = at_once(weight.shape[1 - dim])
    parts = [filters(part, g) for part in weight.split(count, dim)]
    shape = len(x), weight.shape[dim], *x.shape[2:]
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for piece, out in zip(pieces(x, weight), pieces(y, weight)):
        d = pixels(spectra(piece, b).flatten(1))
        for part, out_part in zip(parts, out.split(count, 1)):
            products = product(d, part, groups=36, **ONE_BY_ONE)[0, :, :, 0].T.unflatten(1, (36, -1))
            out_part = windows(out_part)
            out_part.copy_((a @ products).view(out_part.shape))  # from (windows, 36, filters)
    return y


def weight_gradient(x, grad, weight):
    """The gradient of the weight, from inputs [N, C, H, W] and the outputs' gradient [N, C', H, W]."""
    count, channels = weight.shape[:2]
    a, b, g, totals = kron(A_T, x).T, kron(B_T, x), kron(G, x).T, None
    for part, out in zip(pieces(x, weight), pieces(grad, weight)):
        d = spectra(part, b).transpose(0, 1).contiguous()  # (36, windows, C)
        e = (a @ windows(out).reshape(-1, 16, count)).transpose(0, 1).contiguous()  # (36, windows, C')
        shape = count, channels, 1, 1
        found = [conv2d_weight(pixels(d_i), shape, pixels(e_i), **ONE_BY_ONE) for d_i, e_i in zip(d, e)]
        totals = [total.add_(one) for total, one in zip(totals, found)] if totals else found
    gradient = torch.empty_like(weight)  # as it lies in memory
    for part, *of_part in zip(*(v.split(at_once(channels)) for v in (gradient, *totals))):
        taps = g @ torch.stack(of_part, 1).flatten(2)  # (filters, 9, C)
        part.copy_(taps.unflatten(1, (3, 3)).permute(0, 3, 1, 2))
    return gradient


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
            convolve(grad, weight, transposed=True) if of_x else None,
            weight_gradient(x, grad, weight) if of_weight else None,
        )
