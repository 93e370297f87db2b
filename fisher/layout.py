"""Which sample each row of a call belongs to, read off the signals of the call.

In a call, samples may come first or after time, once or several times. Two backward passes tell.
One is of the sum of all losses. The other multiplies the loss of each sample by its own power of 2.
Then all signals in a row of one sample are multiplied by this power, exactly, since computers
multiply by powers of 2 without rounding. A row of several samples is not such a multiple.
"""

from dataclasses import dataclass

import torch

from fisher.definition import at_least_single


@dataclass
class Layout:
    """The places of samples in a tensor: dimension `dim` has A * samples * inner places, and place
    (a, n, b) belongs to sample n."""

    dim: int
    samples: int
    inner: int

    def by_sample(self, v):
        """[..., A N B, ...] -> [N, ..., A, B, ...]"""
        return v.unflatten(self.dim, (-1, self.samples, self.inner)).movedim(self.dim + 1, 0)


def gradients(loss, calls):
    """The signals of the calls, each in the shape of its output, or None."""
    if not calls:
        return []
    edges = [call.edge for call in calls]
    signals = torch.autograd.grad(loss, edges, retain_graph=True, allow_unused=True)
    return [None if d is None else d.reshape(c.shape) for d, c in zip(signals, calls)]


def read_layouts(calls, signals, losses, prefix):
    """Give each call its layout, or None if rows belong to several samples. `losses` are [T, N],
    `signals` are of the sum of the last ones. If these leave rows without a signal, the sum is of
    all losses."""
    weighed = losses[-1]
    largest = [largest_in_rows(call, d) for call, d in zip(calls, signals)]
    # With prefix="instant" the last loss is only of the last output.
    if prefix == "instant" or any(silent(values).any() for values in largest):
        weighed = losses.sum(0)
        signals = gradients(weighed.sum(), calls)
        largest = [largest_in_rows(call, d) for call, d in zip(calls, signals)]
    samples = len(weighed)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    powers = torch.exp2((order - samples // 2).to(losses.device, losses.dtype))
    scaled = gradients((weighed * powers).sum(), calls)
    for call, d, multiple, values in zip(calls, signals, scaled, largest):
        call.layout = fitting(call, d, multiple, values, powers)


def largest_in_rows(call, d):
    """The largest |d| in each row. The dimensions within a row have size 1."""
    within = tuple(range(max(call.dims, default=0) + 1, d.dim()))
    d = at_least_single(d).abs()
    return d.amax(within, keepdim=True) if within else d


def silent(largest):
    """Which rows have only zeros, or numbers whose squares are 0."""
    return largest <= torch.finfo(largest.dtype).tiny ** 0.5


def fitting(call, d, scaled, largest, powers):
    """The Layout by which `scaled` is d times the power of each row's sample, or None. `largest`
    has the largest |d| of each row. A silent row fits any."""
    samples, near = len(powers), precision(d.dtype)
    d, scaled = at_least_single(d), at_least_single(scaled)
    ignored = silent(largest)
    for dim in call.dims:
        times, remainder = divmod(call.shape[dim], samples)
        for inner in range(1, times + 1):
            if remainder == 0 and times % inner == 0:
                power = powers.to(d.dtype).repeat_interleave(inner).repeat(times // inner)
                power = power.view(-1, *(1,) * (d.dim() - dim - 1))  # along `dim`
                off = largest_in_rows(call, scaled - d * power)
                if (ignored | (off <= near * largest * power)).all():
                    return Layout(dim, samples, inner)
    return None


def precision(dtype):
    """The relative error up to which numbers that should be equal agree."""
    return {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 0.05)
