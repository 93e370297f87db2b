"""What a forward pass does with the measured parameters: the calls that use them."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fisher.layout import Layout
from fisher.uses import Elementwise, Operator, Weight, first_differentiable


@dataclass
class Reach:
    """The number of rows along dimension 0 that the current prefix reaches; None: all of them.

    FirstRows holds this and not the Call. A Call holds its node of the graph, and a node that holds
    itself is never freed.
    """

    rows: int | None = None


@dataclass
class Call:
    """A call that uses sources."""

    uses: list = ()
    edge: object = None  # the edge of its output z in the graph
    shape: tuple = ()  # of z
    row_dims: int = 1  # samples are along one of the first `row_dims` dimensions of z
    layout: Layout | None = None
    reach: Reach = field(default_factory=Reach)

    def returns(self, z, row_dims):
        """Note the output z."""
        # An operation in place replaces z in the graph if z is a view, as in a linear layer. The
        # base of the view stays.
        whole = z._is_view() and z._base.numel() == z.numel() and z._base.grad_fn is not None
        self.edge = get_gradient_edge(z._base if whole else z)
        self.shape, self.row_dims = z.shape, row_dims

    def rows_until(self, t, timesteps):
        """The number of rows along dimension 0 that prefix t reaches if time is outermost there,
        else None. `TemporalFisher` checks it."""
        if any(use.spans(0) for use in self.uses):
            return None  # rows beyond have gradient 0, but a place in the parameter
        rows, dim = self.shape[0], self.layout.dim
        blocks = rows if dim else rows // (self.layout.samples * self.layout.inner)
        return rows // timesteps * t if dim < 2 and blocks == timesteps else None


class FirstRows(torch.autograd.Function):
    """A layer z = forward(a) whose backward pass takes only the rows that the prefix reaches. Over
    all t this is half of the work. backward(d) is the gradient by the first rows of a. Weight and
    bias get no gradient."""

    @staticmethod
    def forward(ctx, a, reach, forward, backward):
        ctx.reach, ctx.backward = reach, backward
        return forward(a)

    @staticmethod
    def backward(ctx, d):
        rows = len(d) if ctx.reach.rows is None else ctx.reach.rows
        gradient = ctx.backward(d[:rows])
        if rows < len(d):  # in the memory format of the gradient
            gradient = F.pad(gradient, (0, 0) * (d.dim() - 1) + (0, len(d) - rows))
        return gradient, None, None, None


class Recorder(TorchFunctionMode):
    """In the `with` block, calls that use measured parameters go to `calls`. If a parameter is used
    in another way, its name goes to `others`."""

    def __init__(self, model, parameters, first_rows):
        super().__init__()
        self.first_rows = first_rows  # whether convolutions are FirstRows
        self.named = parameters
        # By id. Tensors are held, so that no other tensor gets their id.
        self.parameters = {id(p): name for name, p in parameters.items()}
        self.sources = {id(p): p for p in parameters.values()}
        self.names = {id(p): {name} for name, p in parameters.items()}  # in each source
        self.constants = {id(v): v for v in (*model.parameters(), *model.buffers())}
        self.calls, self.others = [], set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        sources = [v for v in tensors if id(v) in self.sources]
        if not sources or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        names = set().union(*(self.names[id(v)] for v in sources))
        made_of_sources = all(id(v) in self.sources or id(v) in self.constants for v in tensors)
        rule = RULES.get(function)
        if len(args) == 2 and not kwargs:
            rule = rule or ELEMENTWISE.get(function.__name__)
        conjugated = any(v.is_complex() for v in sources)  # their products have other gradients
        if isinstance(function, torch._ops.OpOverload):
            rule = Recorder.operator
        transformed = torch._C._are_functorch_transforms_active()
        if rule and not (made_of_sources or conjugated or transformed):
            z = rule(self, function, *args, **kwargs)
            if z is not NotImplemented:
                return z
        z = function(*args, **kwargs)
        for v in tree_leaves(z):
            if isinstance(v, torch.Tensor) and v.requires_grad:
                if made_of_sources:
                    self.sources[id(v)], self.names[id(v)] = v, names
                else:
                    self.others |= names
        return z

    def names_of(self, call):
        """Names of the parameters that a call uses."""
        return set().union(*(self.names[id(use.source)] for use in call.uses))

    def source(self, v):
        """Whether it is one, and not a number or None."""
        return id(v) in self.sources

    def record(self, z, row_dims, *uses, reach=None):
        """Note a call with output z, and give z."""
        uses = [use for use in uses if self.source(use.source)]
        call = Call(uses, reach=reach or Reach())
        call.returns(z, row_dims)
        self.calls.append(call)
        return z

    def run(self, a, parameters, forward, backward):
        """Run forward(a), as FirstRows if its backward pass needs only the gradient by a. Returns
        the output and its Reach."""
        reach = Reach()
        others = [p for p in parameters if p is not None and not self.source(p)]
        if self.first_rows and a.requires_grad and not any(p.requires_grad for p in others):
            return FirstRows.apply(a, reach, forward, backward), reach
        return forward(a), reach

    # -------------------------------------- rules: the output, or NotImplemented if not covered

    def convolution(self, function, input, weight, bias=None, stride=1, padding=0, dilation=1,
                    groups=1):  # fmt: skip
        """F.conv1d and F.conv2d: input [R, C, ...]."""
        dims = weight.dim() - 2
        if padding == "same" and all(size % 2 for size in weight.shape[2:]):
            spread = zip(each(dilation, dims), weight.shape[2:])
            padding = tuple(d * (size - 1) // 2 for d, size in spread)
        padding = 0 if padding == "valid" else padding
        if input.dim() != dims + 2 or isinstance(padding, str):
            return NotImplemented
        geometry = (each(stride, dims), each(padding, dims), each(dilation, dims), groups)
        back = torch.nn.grad.conv1d_input if dims == 1 else torch.nn.grad.conv2d_input

        def forward(a):
            return function(a, weight, bias, *geometry)

        def backward(d):
            shape = (len(d), *input.shape[1:])
            return back(shape, weight.to(d.dtype), d, *geometry)  # autocast has other types

        z, reach = self.run(input, (weight, bias), forward, backward)
        uses = [Weight(weight, input.detach(), z.shape[2:], geometry)]
        if bias is not None:
            uses.append(Elementwise(bias, (1, len(bias), *(1,) * dims)))
        return self.record(z, 1, *uses, reach=reach)

    def linear(self, function, input, weight, bias=None):
        """F.linear: input [..., C]."""
        if input.dim() < 2 or weight.dim() != 2 or (bias is not None and bias.dim() != 1):
            return NotImplemented
        z = function(input, weight, bias)
        uses = [Weight(weight, input.detach())]
        if bias is not None:
            uses.append(Elementwise(bias, (*(1,) * (z.dim() - 1), len(bias))))
        return self.record(z, z.dim() - 1, *uses)

    def batch_norm(self, function, input, running_mean, running_var, weight=None, bias=None,
                   training=False, momentum=0.1, eps=1e-5):  # fmt: skip
        """F.batch_norm of running statistics: input [R, C, ...]."""
        if training or running_mean is None:
            return NotImplemented
        shape = (1, input.shape[1], *(1,) * (input.dim() - 2))

        def forward(a):
            return function(a, running_mean, running_var, weight, bias, eps=eps)

        def backward(d):
            scale = (running_var + eps).rsqrt()
            return d * (scale if weight is None else scale * weight).view(shape)

        z, reach = self.run(input, (weight, bias), forward, backward)
        xhat = function(input.detach(), running_mean, running_var, eps=eps)
        return self.normalisation(z, xhat, weight, bias, shape, reach)

    def group_norm(self, function, input, num_groups, weight=None, bias=None, eps=1e-5):
        """F.group_norm: input [R, C, ...]."""
        z = function(input, num_groups, weight, bias, eps)
        xhat = function(input.detach(), num_groups, eps=eps)
        return self.normalisation(z, xhat, weight, bias, (1, z.shape[1], *(1,) * (z.dim() - 2)))

    def layer_norm(self, function, input, normalized_shape, weight=None, bias=None, eps=1e-5):
        """F.layer_norm: input [..., *normalized_shape]."""
        if input.dim() == len(normalized_shape):
            return NotImplemented
        z = function(input, normalized_shape, weight, bias, eps)
        xhat = function(input.detach(), normalized_shape, eps=eps)
        shape = (*(1,) * (z.dim() - len(normalized_shape)), *normalized_shape)
        return self.normalisation(z, xhat, weight, bias, shape)

    def normalisation(self, z, xhat, weight, bias, shape, reach=None):
        uses = [Elementwise(weight, shape, xhat), Elementwise(bias, shape)]
        row_dims = next(dim for dim, size in enumerate(shape) if size != 1 or dim + 1 == len(shape))
        return self.record(z, max(row_dims, 1), *uses, reach=reach)

    def operator(self, function, *args, **kwargs):
        """An operator of another library."""
        output = function(*args, **kwargs)
        z = first_differentiable(output)
        if z is None or kwargs:
            return NotImplemented
        uses = [Operator(v, function, args, z.shape) for v in args if self.source(v)]
        if not all(use.fits() for use in uses):
            return NotImplemented
        self.record(z, z.dim() - 1, *uses)
        return output

    def add(self, function, a, b):
        z = function(a, b)
        return self.elementwise(z, a, b, 1.0, 1.0)

    def subtract(self, function, a, b):
        z = function(a, b)
        return self.elementwise(z, a, b, 1.0, -1.0)

    def multiply(self, function, a, b):
        z = function(a, b)
        return self.elementwise(z, a, b, b, a)

    def divide(self, function, a, b):
        z = function(a, b)
        return self.elementwise(z, a, b, 1 / b, -z.detach() / b)

    def elementwise(self, z, a, b, by_a, by_b):
        """z is made of a and b elementwise, with these derivatives."""
        source, factor = (a, by_a) if self.source(a) else (b, by_b)
        shape = (*(1,) * (z.dim() - source.dim()), *source.shape)
        factor = factor.detach() if isinstance(factor, torch.Tensor) else factor
        return self.record(z, max(z.dim() - 1, 1), Elementwise(source, shape, factor))


RULES = {
    F.conv1d: Recorder.convolution,
    F.conv2d: Recorder.convolution,
    F.linear: Recorder.linear,
    F.batch_norm: Recorder.batch_norm,
    F.group_norm: Recorder.group_norm,
    F.layer_norm: Recorder.layer_norm,
}
ELEMENTWISE = {}
for rule, words in (
    (Recorder.add, "add __add__ __radd__"),
    (Recorder.subtract, "sub __sub__"),
    (Recorder.multiply, "mul multiply __mul__ __rmul__"),
    (Recorder.divide, "div divide true_divide __truediv__"),
):
    ELEMENTWISE |= dict.fromkeys(words.split(), rule)


def each(value, dims):
    """A tuple with one value per dimension, from one value for all or from such a tuple."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * dims if len(value) == 1 else value
