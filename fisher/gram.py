"""Norms of weight gradients through Gram matrices, without the gradients.

For one sample, output position p of a layer sees the inputs a_p and has the signal d_p. The
gradient of the weight is G = sum_p d_p a_p^T, and

    || G ||^2 = sum_pq (a_p . a_q) (d_p . d_q)

The Gram matrix K[p, q] = a_p . a_q is the same for all t = 1..T. A layer has n positions and d_out
channels, and each position sees d_in numbers. To form G takes n d_in d_out multiplications for each
t. K takes n^2 d_out for each t and n^2 d_in once. This is less if a sample has few positions in a
wide layer. K is symmetric, so only the half p <= q is computed, and counts twice.

The windows of a convolution of stride 1 overlap, and a_p . a_q = sum_k pixel[p + k] . pixel[q + k]
over the places k of its kernel. So K is a sum of products of single pixels.
"""

import math

import torch

TRAFFIC = 64  # multiplications in the time that one number takes to be written and read again
FEWEST_COLUMNS = 128  # with fewer, a matrix product is slow
MOST_POSITIONS = 4096  # K has the square of this size


class Gram:
    """The Gram matrix of a weight from all its uses, [(Weight, Layout), ...]."""

    def __init__(self, uses):
        weight = uses[0][0]
        if by_pixels(weight):
            columns = torch.cat([use.columns(use.a, layout) for use, layout in uses], 2)
            pixels = weight.a.shape[2:]
        else:
            columns = torch.cat([use.seen(layout) for use, layout in uses], 2)
            pixels = weight.space
        size, positions = math.prod(pixels), math.prod(weight.space)
        maps = columns.shape[2] // size
        step = -(-FEWEST_COLUMNS // positions)
        self.blocks = []  # K of some positions q at a time: [N groups, all p up to the last q, q]
        for start in range(0, maps, step):
            end = min(start + step, maps)
            block = columns[:, :, : end * size].mT @ columns[:, :, start * size : end * size]
            if by_pixels(weight):
                shape = (len(block), end, *pixels, end - start, *pixels)
                block = over_kernel(block.view(shape), weight)
                block = block.reshape(len(block), end * positions, -1)
            block[:, : start * positions] *= 2  # for p and q the other way round
            self.blocks.append(block)

    def squared_norms(self, d):
        """sum_q d_q . (sum_p d_p K[p, q]) from the signals [N groups, channels / groups, positions]
        of all positions or of the first: [N groups]."""
        total, end = 0, 0
        for block in self.blocks:
            start, end = end, min(end + block.shape[2], d.shape[2])
            products = d[:, :, :end] @ block[:, :end, : end - start]
            total = total + (products * d[:, :, start:end]).sum((1, 2))
            if end == d.shape[2]:
                break
        return total.clamp(min=0)


def by_pixels(weight):
    """Whether K is computed from products of pixels."""
    return bool(weight.geometry) and all(stride == 1 for stride in weight.geometry[0])


def over_kernel(products, weight):
    """Products of pixels -> products a_p . a_q of output positions, as sums over the kernel:
    [N groups, maps, *pixels, maps, *pixels] -> [N groups, maps, *space, maps, *space]."""
    _, padding, dilation, _ = weight.geometry
    dims = len(weight.space)
    for i in range(dims):
        p, q, size = 2 + i, 3 + dims + i, weight.space[i]
        shape = list(products.shape)
        shape[p] = shape[q] = size
        windows = products.new_zeros(shape)
        for place in range(weight.source.shape[2 + i]):
            shift = place * dilation[i] - padding[i]  # output o sees pixel o + shift
            low = max(0, -shift)
            count = min(size, products.shape[p] - shift) - low
            if count > 0:  # else it sees the padding
                seen = products.narrow(p, low + shift, count).narrow(q, low + shift, count)
                windows.narrow(p, low, count).narrow(q, low, count).add_(seen)
        products = windows
    return products


def pays(uses, timesteps):
    """Whether the norms of a weight take less time with K than with G, for t = 1..T together.

    Both costs are multiplications per sample. Writing a number counts as TRAFFIC multiplications.
    """
    weight = uses[0][0]
    if any((use.geometry, use.space) != (weight.geometry, weight.space) for use, _ in uses):
        return False
    channels, *kernel = weight.source.shape[1:]
    groups = weight.geometry[3] if weight.geometry else 1
    d_in, d_out = channels * math.prod(kernel), len(weight.source) // groups
    rows = sum(len(use.a) if use.geometry else use.a[..., 0].numel() for use, _ in uses)
    n = rows * math.prod(weight.space) // uses[0][1].samples
    if n > MOST_POSITIONS:
        return False
    shares = [t / timesteps for t in range(1, timesteps + 1)]  # of the positions that t reaches
    by_gradient = sum((share * n + TRAFFIC) * d_in * d_out for share in shares)
    product = channels + TRAFFIC * sum(kernel) if by_pixels(weight) else d_in  # one a_p . a_q
    gram = n**2 / 2 * (product + TRAFFIC)  # once
    by_gram = gram + sum((share * n) ** 2 / 2 * d_out for share in shares)
    return by_gram < by_gradient
