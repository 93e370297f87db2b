"""What a forward pass does with the measured parameters: the calls that use them."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from fisher.definition import at_least_single
from fisher.layout import Layout, precision
from fisher.uses import Elementwise, Weight


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

    uses: list
    names: set  # of the parameters in its sources
    edge: object  # the edge of its output z in the graph
    shape: tuple  # of z
    dims: tuple  # dimensions of z along which samples may lie
    reach: Reach
    layout: Layout | None = None

    def rows_until(self, t, timesteps):
        """The number of rows along dimension 0 that prefix t reaches if time is outermost there,
        else None. `TemporalFisher` checks it."""
        if self.layout is None or 0 not in self.dims:
            return None  # rows beyond have gradient 0, but a place in the parameter
        rows, dim = self.shape[0], self.layout.dim
        blocks = rows if dim else rows // (self.layout.samples * self.layout.inner)
        if dim > 1 or blocks != timesteps:
            return None
        return rows // timesteps * t


class FirstRows(torch.autograd.Function):
    """A layer z = forward(a) whose backward pass takes only the rows that the prefix reaches. Over
    all t this is half of the work. backward(d) is the gradient by the first rows of a. Weight and
    bias get no gradient. Without it a measurement of ResNet19 takes 1.3 to 1.4 times as long."""

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
        names = set().union(*(self.names.get(id(v), ()) for v in tensors))
        if function is torch.Tensor.register_hook:
            self.others |= self.hooked(args[0])
        if not names or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        if torch._C._are_functorch_transforms_active():
            self.others |= names
            return function(*args, **kwargs)
        versions, recorded = [v._version for v in tensors], len(self.calls)
        if all(id(v) in self.sources or id(v) in self.constants for v in tensors):
            z = function(*args, **kwargs)
            if versions != [v._version for v in tensors]:  # calls before used other values
                self.others |= names
            for v in differentiable(changed_by(function, args, z)):
                self.sources[id(v)], self.names[id(v)] = v, names
            return z
        conjugated = any(v.is_complex() for v in tensors)  # in derivatives
        rule = None if conjugated else self.rule_of(function, args, kwargs)
        z = rule(self, function, *args, **kwargs) if rule else NotImplemented
        if z is NotImplemented:
            z = function(*args, **kwargs)
            unchanged = versions == [v._version for v in tensors]
            if unchanged and any(z is v for v in tensors):  # its argument, as w.to(x) of its type
                return z
        if differentiable(changed_by(function, args, z)):
            # The input of a layer may be a source too, without a rule.
            self.others |= names.difference(*(call.names for call in self.calls[recorded:]))
        return z

    def rule_of(self, function, args, kwargs):
        """The rule for a call of the function, or None."""
        if function in RULES:
            return RULES[function]
        sources = [v for v in tree_leaves((args, kwargs)) if self.is_source(v)]
        of_numbers = all(v.numel() == 1 for v in sources)
        if isinstance(function, torch._ops.OpOverloadPacket):
            return None
        if isinstance(function, torch._ops.OpOverload):
            random = torch.Tag.nondeterministic_seeded in function.tags
            pure = not function._schema.is_mutable and not random
            return Recorder.scalar if of_numbers and pure else None
        if function.__name__ in ELEMENTWISE and len(args) == 2 and not kwargs:
            return Recorder.elementwise
        if function.__name__ in POINTWISE and of_numbers and "out" not in kwargs:
            return Recorder.scalar
        return None

    def hooked(self, v):
        """Names in the calls whose output is v. A hook of v would change signals, which are read
        before it."""
        if not v.requires_grad:
            return set()
        node, number, *_ = get_gradient_edge(v)
        calls = [call for call in self.calls if tuple(call.edge[:2]) == (node, number)]
        return set().union(*(call.names for call in calls))

    def is_source(self, v):
        """Whether v, a tensor, a number or None, is a source."""
        return id(v) in self.sources

    def record(self, z, dims, *uses, reach=None):
        """Note a call with output z, whose samples lie along one of the dimensions `dims`, and give
        z."""
        uses = [use for use in uses if self.is_source(use.source)]
        names = set().union(*(self.names[id(use.source)] for use in uses))
        if z.dim() == 0:  # no rows
            self.others |= names
            return z
        # If z is a view of all of its base, as in a linear layer, an operation in place replaces z
        # in the graph. The base stays.
        views_all = z._is_view() and z._base.numel() == z.numel() and z._base.grad_fn is not None
        edge = get_gradient_edge(z._base if views_all else z)
        self.calls.append(Call(uses, names, edge, z.shape, dims, reach or Reach()))
        return z

    def run(self, a, parameters, forward, backward):
        """Run forward(a), as FirstRows if its backward pass needs only the gradient by a. Returns
        the output and its Reach."""
        reach = Reach()
        others = [p for p in parameters if p is not None and not self.is_source(p)]
        only_a = a.requires_grad and not any(p.requires_grad for p in others)
        # A checkpoint hooks what a layer saves. It does not run FirstRows again.
        hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        if self.first_rows and only_a and not hooked:
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
        weight_use = Weight(weight, input.detach(), z.shape[2:], geometry)
        bias_use = Elementwise(bias, (1, z.shape[1], *(1,) * dims))
        return self.record(z, (0,), weight_use, bias_use, reach=reach)

    def linear(self, function, input, weight, bias=None):
        """F.linear: input [..., C]."""
        if weight.dim() != 2 or (bias is not None and len(bias) != len(weight)):
            return NotImplemented
        z = function(input, weight, bias)
        dims = range(z.dim() - 1)
        bias_use = Elementwise(bias, (*(1 for _ in dims), z.shape[-1]))
        return self.record(z, dims, Weight(weight, input.detach()), bias_use)

    def batch_norm(self, function, input, running_mean, running_var, weight=None, bias=None,
                   training=False, momentum=0.1, eps=1e-5):  # fmt: skip
        """F.batch_norm of running statistics: input [R, C, ...]."""
        if training:
            return NotImplemented
        shape = (1, input.shape[1], *(1,) * (input.dim() - 2))

        def forward(a):
            return function(a, running_mean, running_var, weight, bias, eps=eps)

        def backward(d):
            scale = (running_var + eps).rsqrt()
            return d * (scale if weight is None else scale * weight).view(shape)

        z, reach = self.run(input, (weight, bias), forward, backward)
        xhat = function(input.detach(), running_mean, running_var, eps=eps)
        uses = Elementwise(weight, shape, xhat), Elementwise(bias, shape)
        return self.record(z, (0,), *uses, reach=reach)

    def group_norm(self, function, input, num_groups, weight=None, bias=None, eps=1e-5):
        """F.group_norm: input [R, C, ...]."""
        z = function(input, num_groups, weight, bias, eps)
        xhat = function(input.detach(), num_groups, eps=eps)
        shape = (1, z.shape[1], *(1,) * (z.dim() - 2))
        return self.record(z, (0,), Elementwise(weight, shape, xhat), Elementwise(bias, shape))

    def layer_norm(self, function, input, normalized_shape, weight=None, bias=None, eps=1e-5):
        """F.layer_norm: input [..., *normalized_shape]."""
        dims = range(input.dim() - len(normalized_shape))
        z = function(input, normalized_shape, weight, bias, eps)
        xhat = function(input.detach(), normalized_shape, eps=eps)
        shape = (*(1 for _ in dims), *normalized_shape)
        return self.record(z, dims, Elementwise(weight, shape, xhat), Elementwise(bias, shape))

    def elementwise(self, function, a, b):
        """a + b, a - b, a * b or a / b, of tensors that may be broadcast, or of a number."""
        z = function(a, b)
        operands = [v.detach() if isinstance(v, torch.Tensor) else v for v in (a, b)]
        place = 0 if self.is_source(a) else 1  # a call of two sources makes a source
        source = (a, b)[place]
        operands[place] = source.detach().to(z.dtype).expand_as(z).requires_grad_()
        with unhooked():
            (factor,) = torch.autograd.grad(function(*operands).sum(), operands[place])
        shape = (*(1,) * (z.dim() - source.dim()), *source.shape)
        outer = shape[: max(z.dim() - 1, 1)]
        dims = [dim for dim, size in enumerate(outer) if size == 1]
        return self.record(z, dims, Elementwise(source, shape, factor))

    def scalar(self, function, *args, **kwargs):
        """A function of sources of one number: POINTWISE, or an operator of another library."""
        # Gradients by a view of a source are those of this call alone.
        leaves = tree_leaves((args, kwargs))
        views = {id(v): v.view_as(v) for v in leaves if self.is_source(v)}
        args, kwargs = tree_map(lambda v: views.get(id(v), v), (args, kwargs))
        z = function(*args, **kwargs)
        outputs = differentiable(z)
        if not outputs:
            return z
        for key, number in views.items():
            try:
                slopes = derivatives(outputs, number)
            except RuntimeError:  # torch has no second derivative
                self.others |= self.names[key]
                continue
            for output, slope in zip(outputs, slopes):
                use = Elementwise(self.sources[key], (1,) * slope.dim(), slope)
                self.record(output, range(max(output.dim() - 1, 1)), use)
        return z


RULES = {
    F.conv1d: Recorder.convolution,
    F.conv2d: Recorder.convolution,
    F.linear: Recorder.linear,
    F.batch_norm: Recorder.batch_norm,
    F.group_norm: Recorder.group_norm,
    F.layer_norm: Recorder.layer_norm,
}
# Names of functions; + is add.
ELEMENTWISE = {"add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"}
POINTWISE = ELEMENTWISE | {
    "addcdiv", "addcmul", "clamp", "lerp", "maximum", "minimum", "pow", "prelu", "where"
}  # fmt: skip


def unhooked():
    """In the `with` block, a checkpoint does not see what is saved for derivatives."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return nullcontext()
    # Without detach, a node that saves its own output would never be freed.
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda v: v)


def derivatives(outputs, number):
    """The derivatives of the outputs by a tensor of one number, each in its output's shape.

    With a factor u for each output z, the gradient of the sum of all z u is linear in every u. So
    its gradient by u is the derivative of z. Raises RuntimeError if torch has no second derivative,
    or a wrong one.
    """
    factors = []
    for z in outputs:
        u = torch.linspace(0.5, 1.5, z.numel(), dtype=z.dtype, device=z.device)
        factors.append(u.view(z.shape).requires_grad_())
    options = {"materialize_grads": True}
    with unhooked():
        (linear,) = torch.autograd.grad(outputs, number, factors, create_graph=True, **options)
        slopes = torch.autograd.grad(linear, factors, **options)
    products = [at_least_single(slope * u.detach()) for slope, u in zip(slopes, factors)]
    near = 0.1 * precision(linear.dtype) * sum(values.abs().sum() for values in products)
    if (sum(values.sum() for values in products) - linear.detach().sum()).abs() > near:
        raise RuntimeError("the backward pass is not linear, or can only in part be differentiated")
    return slopes


def changed_by(function, args, z):
    """What a call of the function, with the result z, has made or changed."""
    return args[0] if function is torch.Tensor.__setitem__ else z


def differentiable(values):
    """The tensors among the values that have a gradient."""
    tensors = [v for v in tree_leaves(values) if isinstance(v, torch.Tensor)]
    return [v for v in tensors if v.requires_grad]


def each(value, dims):
    """A tuple with one value per dimension, from one value for all or from such a tuple."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * dims if len(value) == 1 else value
