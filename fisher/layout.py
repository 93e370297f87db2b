"""Which sample each row of a call belongs to, read off the signals of the call.

In a call, samples may come first or after time, once or several times. Two backward passes tell.
One is of the sum of all losses. The other multiplies the loss of each sample by its own power of 2.
Then all signals in a row of one sample are multiplied by this power, exactly, since computers
multiply by powers of 2 without rounding. A row of several samples is not such a multiple.
"""

import math
from dataclasses import dataclass

import torch

PRECISION = {torch.float64: 1e-6, torch.float32: 1e-3}  # equal numbers agree to this
HALF_PRECISION = 0.05
SILENT, MIXED = -1, -2
FAINTEST = 2.0**-64  # of the largest signal: below, float32 may round a multiple to 0


@dataclass
class Layout:
    """The places of samples in a tensor: dimension `dim` has A * samples * inner places, and place
    (a, n, b) belongs to sample n."""

    dim: int
    samples: int
    inner: int

    def of_one_step(self):
        """The Layout of a tensor without dimension 0."""
        return Layout(self.dim - 1, self.samples, self.inner)

    def sample(self, v, n):
        """The rows of sample n: [..., A N B, ...] -> [..., A B, ...]"""
        rows = v.unflatten(self.dim, (-1, self.samples, self.inner))
        return rows.select(self.dim + 1, n).flatten(self.dim, self.dim + 1)

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


def layouts_of(calls, signals, losses):
    """For each call a list of the Layouts that fit. `signals` are of the sum of the losses [N]. The
    list is empty if rows belong to several samples. It has several Layouts if too few rows have a
    signal."""
    samples = len(losses)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0)).to(losses.device)
    exponents = order - samples // 2
    scaled = gradients((losses * torch.exp2(exponents.to(losses.dtype))).sum(), calls)
    layouts = []
    for call, d, d_scaled in zip(calls, signals, scaled):
        owner = owners(rows_of(d, call.row_dims), rows_of(d_scaled, call.row_dims), exponents)
        layouts.append(fitting_layouts(call, owner, samples))
    return layouts


def owners(d, scaled, exponents):
    """The sample of each row of d [rows, numbers]: [rows]. `scaled` has each row times 2 ** the
    exponent of its sample. SILENT for a row without a signal, MIXED for one of several samples."""
    samples = len(exponents)
    largest, place = d.abs().max(1, keepdim=True)
    factor = (scaled.gather(1, place) / d.gather(1, place)).abs().double()
    exponent = factor.log2().round().nan_to_num(0, 0, 0).long() + samples // 2
    owner = exponents.argsort()[exponent.clamp(0, samples - 1)]  # (rows, 1)
    scale = torch.exp2(exponents[owner].to(largest.dtype))
    precision = PRECISION.get(largest.dtype, HALF_PRECISION)
    off = (scaled - d * scale).abs().amax(1, keepdim=True)
    owner = torch.where(off > precision * largest * scale, MIXED, owner)
    heard = largest > FAINTEST * largest.max()
    return torch.where(heard, owner, SILENT).flatten()


def fitting_layouts(call, owner, samples):
    """The Layouts that give each row to its owner. A silent row fits any."""
    owner = owner.view(call.shape[: call.row_dims])
    layouts = []
    for dim in range(call.row_dims):
        times, rest = divmod(call.shape[dim], samples)
        if rest or any(use.spans(dim) for use in call.uses):
            continue
        place = torch.arange(call.shape[dim], device=owner.device)
        place = place.view(-1, *(1,) * (call.row_dims - dim - 1))  # along `dim`
        for inner in range(1, times + 1):
            if times % inner == 0:
                fits = (owner == place // inner % samples) | (owner == SILENT)
                if fits.all():
                    layouts.append(Layout(dim, samples, inner))
    return layouts


def rows_of(d, row_dims):
    """[rows, numbers], without a copy of channels-last tensors."""
    if row_dims == 1 and d.dim() > 2 and not d.is_contiguous():
        d = d.movedim(1, -1)
    return d.reshape(math.prod(d.shape[:row_dims]), -1)
