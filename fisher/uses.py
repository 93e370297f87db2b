"""How a call uses a parameter, and the gradient of each sample that follows.

The signal d of a call is the gradient of a loss by the call's output z. The signal and the inputs
of the call give the gradient of each sample by a parameter:

    convolution, linear    sum_p d_p a_p^T          a_p: what output position p sees of the input
    normalisation (eval)   sum_p d_p * xhat_p       xhat: the standardised input
    bias                   sum_p d_p
    operand of + - * /     sum_p d_p * f_p          f: derivative of z by the operand
    number in a function   sum_p d_p * f_p          the same

p runs over the timesteps, positions and calls of the sample. A call may also use a tensor that is
made only of parameters, such as sigmoid(w) or w[:3]. Both are called sources.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fisher.definition import at_least_single


@dataclass
class Weight:
    """The weight of a convolution or a linear layer, as one call uses it."""

    source: torch.Tensor
    a: torch.Tensor  # the input
    space: tuple = (1,)  # of a convolution: height and width of the output
    geometry: tuple = ()  # of a convolution: stride, padding, dilation, groups
    windows: torch.Tensor | None = None  # the result of `seen`, from the first gradient on

    def columns(self, v, layout):
        """Inputs or signals by sample and position: [N groups, channels / groups, positions]."""
        v = layout.by_sample(at_least_single(v))
        if not self.geometry:
            return v.flatten(1, -2).mT  # (N, C, positions)
        v = v.movedim(3, 1)  # (N, C, A, B, ...)
        groups = self.geometry[3]
        return v.reshape(len(v) * groups, v.shape[1] // groups, -1)

    def seen(self, layout):
        """The inputs that each position sees: [N groups, C / groups times kernel, positions]."""
        if not self.geometry:
            return self.columns(self.a, layout)
        stride, padding, dilation, _ = self.geometry
        a, kernel = self.a, self.source.shape[2:]
        if len(kernel) == 1:  # unfold takes images
            a, kernel = a.unsqueeze(2), (1, *kernel)
            stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
        return self.columns(F.unfold(a, kernel, dilation, padding, stride), layout)

    def gradient(self, d, layout):
        """Each sample's gradient, [N, *source], from the signals of all rows or of the first."""
        if self.windows is None:  # the same for each t
            self.windows = self.seen(layout)
        d = self.columns(d, layout)
        return (d @ self.windows[:, :, : d.shape[2]].mT).reshape(-1, *self.source.shape)


@dataclass
class Elementwise:
    """A bias, a parameter of a normalisation, an operand of + - * / or a number in another
    function, as one call uses it."""

    source: torch.Tensor
    shape: tuple  # of the source, with the dimensions of z
    factor: torch.Tensor | None = None  # derivative of z by the source, in z's shape; None: it is 1

    def gradient(self, d, layout):
        """Each sample's gradient, [N, *source], from the signals of all rows or of the first."""
        if self.factor is not None:
            d = d * self.factor[: len(d)]
        v = layout.by_sample(at_least_single(d))
        shape = [*self.shape[: layout.dim], 1, 1, *self.shape[layout.dim + 1 :]]  # A and B are 1
        summed = [dim for dim, size in enumerate(shape, 1) if size == 1]
        return v.sum(summed).reshape(-1, *self.source.shape)
