"""Temporal Fisher information of a spiking network, exact per sample.

For a network f with outputs o_1 .. o_T, the prediction after t steps is softmax of the mean of the first t outputs, and

    I_t = (1/N) sum_n || grad_theta log f_theta(y_n | x_n, steps 1..t) ||^2          (eq. 6)
    IC  = sum_t t I_t / sum_t I_t                                                    (eq. 7)

of "Exploring Temporal Information Dynamics in Spiking Neural Networks" (Kim et al., AAAI 2023). The norm is taken per
sample, before the mean over samples. A flat profile gives IC = (T + 1) / 2. This file needs torch alone (2.9 or later):

    from fisher import temporal_fisher
    norms = temporal_fisher(model, x, y)             # {parameter name: [T, N]}, any model(x) -> [T, N, classes]
    I = sum(norms.values()).mean(1)                  # [T]

How it works. All samples go through the model once, and every call of a layer with parameters is noted: its input a,
and where in the graph its output z is. For each t one backward pass gives the signals d = dL_t/dz of all calls, from
which the squared norm of every sample's gradient follows without forming a batch of weight gradients in autograd:

    convolution, linear    || sum_p d_p a_p^T ||^2, or sum_pq (a_p . a_q) (d_p . d_q), whichever is less work
    normalisation, eval    || sum_p d_p * xhat_p ||^2
    bias                   || sum_p d_p ||^2

with p over the timesteps, positions and calls that one sample has in the layer: the sum comes before the square. Which
rows of a call belong to which sample is found out by experiment with a few samples, not assumed, and checked again:
in every batch of a model that selects or sorts by content, in the 1st, 2nd, 4th, 8th, ... of any other. A parameter
used in any other way is measured by the slow path, one sample at a time.
"""

import math
import sys
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError

TRAFFIC = 64  # multiplications in the time that one number takes to be written and read again
FEWEST_COLUMNS = 128  # of a matrix product that is fast
MOST_POSITIONS = 4096  # of a Gram matrix, which has their square
RELEASE_BATCH = 128  # samples in a mean of the paper's released script
DISTINCT = 128  # samples of a batch that the check of whose the rows are tells all apart
KEEPS = (
    "a second model(x) gives other outputs or gradients: reset its membranes in forward, draw nothing at random there, "
    "or call model.eval()"
)
TRAINS = "the model gives other outputs in train mode than in eval mode: call model.eval() first"
MIXES = "outputs of a sample depend on the others in its batch: they must not"
# With these a model can order its rows by their content, in every batch anew.
SELECTING = {
    "__bool__", "__float__", "__index__", "__int__", "argsort", "argwhere", "flip", "gather", "index_add", "index_copy",
    "index_put", "index_select", "item", "masked_scatter", "masked_select", "msort", "multinomial", "nonzero", "numpy",
    "roll", "scatter", "scatter_add", "sort", "take", "take_along_dim", "tolist", "topk", "unique",
}  # fmt: skip


def prefix_outputs(outputs):
    """Outputs [T, N, classes] -> mean of the first t outputs for t = 1..T, [T, N, classes]."""
    steps = torch.arange(1, len(outputs) + 1, device=outputs.device, dtype=outputs.dtype)
    return outputs.cumsum(0) / steps.view(-1, 1, 1)


# What the prediction of step t is made of: outputs 1..t (the paper), or the output at t alone.
PREFIXES = {"cumulative": prefix_outputs, "instant": lambda outputs: outputs}


def prefix_losses(outputs, y, prefix="cumulative"):
    """-log f(y | steps 1..t) in nats: outputs [T, N, classes], labels [N], or [T, N], one for each t -> [T, N]."""
    if y.dim() == 2 and len(y) != len(outputs):
        raise ValueError(f"the labels are for {len(y)} timesteps, the model has {len(outputs)}")
    labels = y.expand(outputs.shape[:2])
    return torch.stack(
        [
            F.cross_entropy(o, y_t, reduction="none")
            for o, y_t in zip(PREFIXES[prefix](outputs), labels)
        ]
    )


def prefix_residuals(outputs, y, prefix="cumulative"):
    """|p - e_y|^2 with p = f(. | steps 1..t), of the same arguments as `prefix_losses`: [T, N].

    By the chain rule the gradient of a prefix loss by the weights is J^T (p - e_y), J the Jacobian of the outputs that
    p is the softmax of. So I_t is the mean of this times a squared gain, which alone says how the network depends on
    its weights.
    """
    p = PREFIXES[prefix](outputs).softmax(2)
    return (p - F.one_hot(y.expand(outputs.shape[:2]), p.shape[2])).square().sum(2)


def draw_labels(outputs, generator, prefix="cumulative"):
    """Labels drawn from f itself, for each t from its own prediction: outputs [T, N, classes] -> [T, N].

    With them `temporal_fisher` measures the true Fisher information, with the data's labels the empirical one. The
    draws are taken sample by sample from `generator` (on the CPU), so chunks of samples draw what the whole would.
    """
    chance = torch.rand(
        outputs.shape[1], outputs.shape[0], 1, generator=generator, dtype=torch.float64
    )  # (N, T, 1)
    share = PREFIXES[prefix](outputs.cpu().double()).softmax(2).cumsum(2)  # (T, N, classes)
    return (
        (share < chance.transpose(0, 1)).sum(2).clamp(max=outputs.shape[2] - 1).to(outputs.device)
    )


def centroid(curve):
    """Information centroid of a curve I_1 .. I_T along the first dimension, [T, ...] -> [...] (eq. 7)."""
    steps = torch.arange(1, len(curve) + 1, device=curve.device, dtype=curve.dtype)
    return torch.tensordot(steps, curve, 1) / curve.sum(0)


def quotient(curve, divisor):
    """I_t / L_t, say, both [T] or [T, N]: 0 where there is no loss, and so no gradient."""
    return torch.where(divisor > 0, curve / divisor, 0)


def centroid_interval(samples, other=None, draws=2000, level=0.95, seed=0):
    """Bootstrap percentile interval (low, high) of the centroid over samples: squared norms [T, N].

    With `other` [T, N], of the same samples at another moment, the interval of the difference of the two centroids:
    both are taken of the same draw, so what one sample adds to both cancels.
    """
    count = samples.shape[1]
    index = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(draws, count, dtype=torch.float64)
    weights.scatter_add_(1, index, torch.ones(index.shape, dtype=torch.float64))
    drawn = centroid(samples.cpu().double() @ weights.T)
    if other is not None:
        drawn = drawn - centroid(other.cpu().double() @ weights.T)
    tail = (1 - level) / 2
    return tuple(drawn.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist())


def temporal_fisher(model, x, y, *, prefix="cumulative", chunk=None):
    """Squared gradient norms of every prefix loss, per sample and parameter tensor (the summands of eq. 6).

    Args:
        model: any module with model(x) -> outputs [T, N, classes], BatchNorm in eval mode, samples independent.
        x: inputs, samples first [N, ...].
        y: labels [N], or [T, N] of their own for each t.
        prefix: "cumulative", the loss of the mean of outputs 1..t (the paper), or "instant", of the output at t alone.
        chunk: samples in one pass; None takes as many as fit in a bounded memory.

    Returns {parameter name: [T, N]} for the parameters that require a gradient; summed over names and averaged over N
    it is I_t. The model, its .grad and its mode are left as they were.

    Uses of a parameter that the batched way does not cover are recognised, by comparison with an ordinary gradient
    among others, and measured one sample at a time, with a warning. What may stay unseen is a model that exchanges a
    few samples by their content: in float16 or among more than 128 of them in one pass, or where it does so without an
    index, a sort or a look at a number, and not in the batches that are checked.

    Raises ValueError if a BatchNorm or Dropout layer is in train mode, where a sample's gradient depends on the others
    or on chance; if outputs or gradients of the first samples change in a second call (membranes that are kept,
    chance), among other samples, or in eval mode; if the model changes x; if no parameter requires a gradient; for
    outputs or arguments of another form.
    """
    _check_arguments(x, y, prefix)
    estimator = TemporalFisher(model, prefix)
    chunk = chunk or estimator.chunk(x)
    parts = list(
        map(estimator, x.split(chunk), y.split(chunk, -1))
    )  # has no frame: the warning points at the caller
    return {name: torch.cat([part[name] for part in parts], 1) for name in estimator.params}


class TemporalFisher:
    """`temporal_fisher` of one model batch by batch: estimator(x, y) -> {parameter name: [T, N]}.

    The model is examined with its first batch and whenever a batch might be laid out otherwise, so it must not be
    changed, other than in the values of its parameters, while an estimator of it is in use.
    """

    def __init__(self, model, prefix="cumulative"):
        self.model, self.prefix = model, prefix
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.params:
            raise ValueError("no parameter of the model requires a gradient")
        self.probes = {}  # by their number of samples
        # Of TorchScript the tape does not see all calls.
        self.opaque, self.batches = (
            any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()),
            0,
        )
        self.misplaced = set()  # parameters whose rows were not of the samples that the layouts say
        self.slow = set()  # those that the warning has named

    def probe(self, x, batch):
        """The _Probe for batches of that many samples, made with the first samples of x. It has another number of
        them: rows that do not grow with the samples show only so."""
        for name, module in self.model.named_modules():
            if isinstance(module, _DropoutNd) and module.training and module.p:
                raise ValueError(f"Dropout layer {name} is in train mode: call model.eval() first")
            if isinstance(module, _BatchNorm) and (
                module.training or not module.track_running_stats
            ):
                cure = (
                    "call model.eval()"
                    if module.track_running_stats
                    else "make it with track_running_stats=True"
                )
                raise ValueError(
                    f"BatchNorm layer {name} has batch statistics, which mix samples: {cure}"
                )
        samples = 3 if batch == 2 else 2
        if samples not in self.probes:
            with _measuring(), _full_precision():
                _check_independence(self.model, x, list(self.params.values()), samples)
                self.probes[samples] = _probe(self.model, x, self.params, samples)
        return self.probes[samples]

    def chunk(self, x):
        """How many samples one call can take in a bounded memory, so that the calls for all of x are alike."""
        most = max(1, _memory(x.device) // self.probe(x, len(x)).bytes)
        return -(-len(x) // -(-len(x) // most))

    def __call__(self, x, y):
        _check_arguments(x, y, self.prefix)
        probe = self.probe(x, len(x))
        self.batches += 1
        check = self.opaque or self.batches & (self.batches - 1) == 0  # the 1st, 2nd, 4th, 8th, ...
        with _measuring():
            part = _measure(
                self.model, x, y, self.prefix, self.params, probe, self.misplaced, check
            )
        rest = self.params.keys() - part.keys()
        if rest - self.slow:
            names = ", ".join(sorted(rest - self.slow))
            warnings.warn(f"measured one sample at a time, which is slow: {names}", stacklevel=3)
            self.slow |= rest
        norms = part | one_by_one(self.model, x, y, prefix=self.prefix, names=rest)
        # In the order of the network: sums depend on it.
        return {name: norms[name] for name in self.params if name in norms}


def one_by_one(model, x, y, *, prefix="cumulative", names=None):
    """What `temporal_fisher` computes, by definition: one forward for each sample, one backward for each t."""
    return batch_means(model, x, y, 1, prefix=prefix, names=names)


def batch_means(model, x, y, size, *, prefix="cumulative", names=None):
    """Squared norms of the gradient of the mean loss of each batch of `size` samples: {parameter name: [T, batches]}.

    With more than one sample this is not the Fisher information: gradients cancel in the mean, and what is left shrinks
    with the batch. It is what the paper's released script prints (RELEASE_BATCH), for comparison with its curves.
    """
    _check_arguments(x, y, prefix)
    params = {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and (names is None or name in names)
    }
    norms = {name: [] for name in params}
    with _measuring():
        for x_part, y_part in zip(x.split(size), y.split(size, -1)) if params else ():
            losses = prefix_losses(_checked(model(x_part), x_part), y_part, prefix).mean(1)
            for t, loss in enumerate(losses, 1):
                grads = torch.autograd.grad(
                    loss, params.values(), retain_graph=t < len(losses), allow_unused=True
                )
                for name, grad in zip(params, grads):
                    norms[name].append(loss.new_zeros(()) if grad is None else _square(grad))
    return {name: torch.stack(values).view(-1, len(losses)).T for name, values in norms.items()}


@contextmanager
def _measuring():
    """Gradients on; what torch.compile made runs as it was written, where its calls can be noted."""
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _check_arguments(x, y, prefix):
    """Raise ValueError for arguments of another form."""
    if prefix not in PREFIXES:
        raise ValueError(f"unknown prefix {prefix!r}: choose from {', '.join(PREFIXES)}")
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
        raise ValueError(f"x and y must be tensors, not {type(x).__name__} and {type(y).__name__}")
    if torch.is_inference_mode_enabled() or x.is_inference() or y.is_inference():
        raise ValueError(
            "torch.inference_mode() leaves no gradient: use torch.no_grad() instead, for x and y too"
        )
    if x.dim() == 0 or len(x) == 0:
        raise ValueError("there are no samples to measure")
    if y.dim() not in (1, 2) or y.shape[-1] != len(x):
        raise ValueError(f"{len(x)} samples need labels [N] or [T, N], not {list(y.shape)}")


def _checked(outputs, x):
    """The outputs of a model for x. Raises ValueError if they are of another form."""
    if not isinstance(outputs, torch.Tensor) or outputs.dim() != 3 or outputs.shape[1] != len(x):
        form = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(
            f"model(x) must give outputs [T, N, classes]; it gave {form} for {len(x)} samples"
        )
    if not outputs.requires_grad:
        raise ValueError(
            "model(x) gives outputs without a graph to its parameters: is it under torch.no_grad()?"
        )
    return outputs


def _check_independence(model, x, params, samples):
    """Raise ValueError if the outputs of one of the first samples, or their gradient, which feels the membranes of
    neurons that are silent, are others in a second call, among other samples, or in eval mode."""

    def outputs(index, row):
        rows = x[index]
        found = _checked(model(rows), rows)[:, row]
        if rows._version:
            raise ValueError("model(x) changes x in place: let it work on a copy")
        return found

    def response(index, row):
        found = outputs(index, row)
        cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(found)
        gradients = torch.autograd.grad(found, params, cotangent, allow_unused=True)
        return found.detach(), [
            torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(gradients, params)
        ]

    def size(values):
        return float(values.abs().nan_to_num(0, 0).amax()) if values.numel() else 0.0

    def differ(once, again):
        """The same shapes take the same kernels: only sums in no fixed order may differ."""
        (outputs, gradients), (others, other_gradients) = once, again
        if outputs.shape != others.shape:
            return True
        largest = max(map(size, gradients), default=0.0)  # beside it, one that should be 0 is noise
        pairs = [(outputs, others, size(outputs))]
        pairs += [(a, b, size(a) + 1e-3 * largest) for a, b in zip(gradients, other_gradients)]
        return not all(
            torch.allclose(a, b, rtol=0, atol=_precision(outputs.dtype) * near, equal_nan=True)
            for a, b, near in pairs
        )

    together = [n % len(x) for n in range(samples)]
    try:
        training = [module for module in model.modules() if getattr(module, "training", False)]
        if training:
            once = response(together, 0)
            for module in training:  # eval() may do more than that
                module.training = False
            try:
                evaluated = outputs(
                    together, 0
                ).detach()  # forward alone: cuDNN's recurrent layers refuse the rest
            finally:
                for module in training:
                    module.training = True
            if differ((once[0], []), (evaluated, [])):
                raise ValueError(KEEPS if differ(once, response(together, 0)) else TRAINS)
        for row in (1, 0):
            alone = [together[row]] * samples
            once, alike = response(together, row), response(alone, row)
            if differ(once, alike):
                raise ValueError(KEEPS if differ(alike, response(alone, row)) else MIXES)
    except RuntimeError as error:
        if "backward through the graph a second time" in str(error):
            raise ValueError(KEEPS) from error
        raise


def _square(gradient):
    """Squared norm of one gradient, read once."""
    gradient = _at_least_single(gradient.to_dense())  # sparse: of an embedding, say
    return (
        torch.linalg.vector_norm(gradient.reshape(*gradient.shape[:1], -1), dim=-1).square().sum()
    )


def _at_least_single(tensor):
    """The tensor, in float32 if it is of half precision, whose squares it could not hold."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ---------------------------------------------------------------- noting the calls


@dataclass
class _Call:
    """One call of a layer, its tensors seen as [R, C, P]: rows (samples, timesteps), channels, positions in space."""

    weight: str | None  # names of the parameters, if measured
    bias: str | None
    edge: object  # of the output z [R, C, P], before anything is done to it in place
    rows: int
    channels: int
    a: torch.Tensor | None = None  # of a convolution or linear layer: the input, rows first
    xhat: torch.Tensor | None = None  # of a normalisation: the standardised input [R, C, P]
    weight_shape: tuple = ()
    options: tuple = ()  # of a convolution: stride, padding, dilation, groups
    space: tuple = ()  # of a convolution: height and width of the output
    version: int = 0  # of a, when it was noted

    @property
    def names(self):
        return {self.weight, self.bias} - {None}

    @property
    def positions(self):
        return math.prod(self.space)

    @property
    def groups(self):
        return self.options[3] if self.options else 1

    def inputs(self):
        """What each output position sees, a view: [R, C_in, *kernel, *space], or [R, C, 1] in a linear layer."""
        a = self.a
        if self.options:
            stride, padding, dilation, _ = self.options
            a = F.pad(a, [p for p in reversed(padding) for _ in range(2)])
            for i, (k, s, d) in enumerate(zip(self.weight_shape[2:], stride, dilation)):
                a = a.unfold(2 + i, (k - 1) * d + 1, s)[..., ::d]
            a = a.movedim(tuple(range(2, 2 + len(stride))), tuple(range(-len(stride), 0)))
        return a


class _Live(torch.autograd.Function):
    """A layer z = forward(a) whose backward pass skips the timesteps past the prefix and forms no weight gradient:
    backward(d, a) is dL/da of some first rows from dL/dz and, with `keep`, a of those."""

    @staticmethod
    def forward(ctx, a, weight, bias, forward, backward, keep, block):
        ctx.save_for_backward(*[a] * keep)
        ctx.run, ctx.block = backward, block
        return forward(a, weight, bias)

    @staticmethod
    def backward(ctx, d):
        if not ctx.needs_input_grad[0]:
            return (None,) * 7
        # All rows of a gradient within the model, which is differentiated again.
        rows = len(d) if torch.is_grad_enabled() else _live_rows(d, ctx.block)
        grad = ctx.run(d[:rows], *(a[:rows] for a in ctx.saved_tensors))
        if rows < len(d):
            grad = F.pad(grad, (0, 0) * (grad.dim() - 1) + (0, len(d) - rows))
        return grad, *(None,) * 6


def _live_rows(d, block):
    """Rows of d [R, ...] without the last blocks of `block` rows that are all zero."""
    if d.is_cuda and len(d):  # each look waits for the device
        return _live_rows_at_once(d, block)
    rows = len(d)
    while rows:
        last = d[rows - block : rows]
        if (
            last.amax() != 0 or last.amin() != 0
        ):  # true for NaN too; in any memory format, unlike aminmax
            break
        rows -= block
    return rows


def _live_rows_at_once(d, block):
    """What `_live_rows` gives, in one look."""
    blocks = d.unflatten(0, (-1, block))
    most = torch.linalg.vector_norm(blocks, torch.inf, tuple(range(1, blocks.dim()))).tolist()
    return block * max((number for number, value in enumerate(most, 1) if value != 0), default=0)


class _Tape(TorchFunctionMode):
    """Notes each call of a layer with parameters in `calls`, and parameters that are used otherwise in `other`."""

    def __init__(self, params, blocks=None):
        super().__init__()
        self.blocks = (
            blocks  # rows of one step of each call's outer dimension; None while they are not known
        )
        self.names, self.calls, self.other = {id(p): name for name, p in params.items()}, [], set()
        self.selects = False  # whether the model may order rows by their content

    def name(self, tensor):
        return self.names.get(id(tensor))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.selects = self.selects or _selects(func, args)
        rule = _RULES.get(func)
        noted = rule(self, *args, **kwargs) if rule else None
        if noted is not None:
            z, call = noted
            if call is not None:
                self.calls.append(call)
            return z
        z = func(*args, **kwargs)
        used = z is None or any(
            isinstance(part, torch.Tensor) and part.requires_grad for part in tree_leaves(z)
        )
        if used or not torch.is_grad_enabled():
            self.other.update(filter(None, map(self.name, tree_leaves((args, kwargs)))))
        return z

    def conv(self, conv, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        """F.conv1d and F.conv2d: input [R, C, H, W]."""
        dims, computed = weight.dim() - 2, not (weight.is_leaf and (bias is None or bias.is_leaf))
        if input.dim() != dims + 2 or computed or not self.matters(input, weight, bias):
            return None
        stride, dilation = _each(stride, dims), _each(dilation, dims)
        kernel = weight.shape[2:]
        if padding == "same":  # what is odd goes to the right
            total = [d * (k - 1) for d, k in zip(dilation, kernel)]
            input = F.pad(input, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
        padding = _each(0 if isinstance(padding, str) else padding, dims)
        options = (stride, padding, dilation, groups)

        def backward(d, a):
            geometry = (stride, padding, dilation, False, (0,) * dims, groups)
            return torch.ops.aten.convolution_backward(
                d, a, weight, None, *geometry, (True, False, False)
            )[0]

        z = self.run(
            input,
            weight,
            bias,
            lambda a, weight, bias: conv(a, weight, bias, *options),
            backward,
            True,
        )
        kind = {
            "weight_shape": weight.shape,
            "options": options,
            "space": z.shape[2:],
            "version": input._version,
        }
        return z, self.note(z, weight, bias, len(input), z.shape[1], a=input.detach(), **kind)

    def linear(self, input, weight, bias=None):
        """F.linear: input [..., C]."""
        plain = weight.dim() == 2 and (bias is None or bias.shape == weight.shape[:1])
        if input.dim() < 2 or not plain or not self.matters(input, weight, bias):
            return None
        z, rows = (
            F.linear(input, weight, bias),
            input.detach().flatten(0, -2).unsqueeze(2),
        )  # (R, C, 1)
        kind = {"weight_shape": weight.shape, "version": rows._version}
        return z, self.note(z, weight, bias, len(rows), z.shape[-1], a=rows, **kind)

    def batch_norm(self, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1,
                   eps=1e-5):  # fmt: skip
        """F.batch_norm: input [R, C, ...]."""
        if training or running_mean is None:
            if len(input) > 1:
                raise ValueError(
                    "batch_norm with batch statistics mixes samples: call model.eval() first"
                )
            return None  # of a weight that is standardised, say

        def backward(d):
            scale = (
                (running_var + eps).rsqrt()
                if weight is None
                else weight.detach() * (running_var + eps).rsqrt()
            )
            return d * scale.view(-1, *(1,) * (d.dim() - 2))

        how = (running_mean, running_var)
        return self.norm(
            F.batch_norm, input, how, weight, bias, eps, len(input), input.shape[1], backward
        )

    def group_norm(self, input, num_groups, weight=None, bias=None, eps=1e-5):
        """F.group_norm: input [R, C, ...]."""
        return self.norm(
            F.group_norm, input, (num_groups,), weight, bias, eps, len(input), input.shape[1]
        )

    def layer_norm(self, input, normalized_shape, weight=None, bias=None, eps=1e-5):
        """F.layer_norm: input [..., *normalized_shape]."""
        rows, channels = (
            math.prod(input.shape[: -len(normalized_shape)]),
            math.prod(normalized_shape),
        )
        return self.norm(
            F.layer_norm, input, (normalized_shape,), weight, bias, eps, rows, channels
        )

    def norm(self, function, a, how, weight, bias, eps, rows, channels, backward=None):
        """function(a, *how, weight, bias, eps=eps)."""
        if not self.matters(a, weight, bias):
            return None

        def forward(a, weight=None, bias=None):
            return function(a, *how, weight, bias, eps=eps)

        z = self.run(a, weight, bias, forward, backward) if backward else forward(a, weight, bias)
        xhat = forward(a.detach()).reshape(
            rows, channels, a.numel() // (rows * channels) if rows else 1
        )
        return z, self.note(z, weight, bias, rows, channels, xhat=xhat)

    def run(self, a, weight, bias, forward, backward, keep=False):
        """forward(a, weight, bias), as `_Live` once the layouts are known.

        Not where others look at what is saved, as torch.utils.checkpoint does, which compares it with what the layer
        itself saves when it runs again; nor under autocast, whose signals are of another precision than a, nor inside a
        transform of torch.func, which needs another kind of function.
        """
        watched = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        cast = torch.is_autocast_enabled(a.device.type)
        if self.blocks is None or watched or cast or torch._C._are_functorch_transforms_active():
            return forward(a, weight, bias)
        block = self.blocks[len(self.calls)] if len(self.calls) < len(self.blocks) else None
        return _Live.apply(a, weight, bias, forward, backward, keep, block or len(a))

    def note(self, z, weight, bias, rows, channels, **kind):
        if not z.requires_grad:  # inside a transform of torch.func, whose graph is another
            self.other.update({self.name(weight), self.name(bias)} - {None})
            return None
        # A view, as of a linear layer, is replaced in the graph by what is done to it in place; its base is not.
        whole = z._is_view() and z._base.numel() == z.numel() and z._base.grad_fn is not None
        edge = get_gradient_edge(z._base if whole else z)
        return _Call(self.name(weight), self.name(bias), edge, rows, channels, **kind)

    def matters(self, a, weight, bias):
        """Whether the call is to be noted: it has a measured weight or bias in its own place, and a graph is built."""
        plain = a.layout == torch.strided and not a.is_complex() and self.name(a) is None
        return plain and torch.is_grad_enabled() and (self.name(weight) or self.name(bias))


def _selects(func, args):
    """Whether a call can pick rows by the content of tensors."""
    name = getattr(func, "__name__", "")
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return not all(
            part is None or part is Ellipsis or isinstance(part, int | slice) for part in index
        )
    return name in SELECTING or name.rstrip("_") in SELECTING


_RULES = {
    F.conv1d: lambda tape, *args, **kw: tape.conv(F.conv1d, *args, **kw),
    F.conv2d: lambda tape, *args, **kw: tape.conv(F.conv2d, *args, **kw),
    F.linear: _Tape.linear,
    F.batch_norm: _Tape.batch_norm,
    F.group_norm: _Tape.group_norm,
    F.layer_norm: _Tape.layer_norm,
}


def _each(value, dims):
    """A value, given for all dimensions at once or for each of them, for each."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * dims if len(value) == 1 else value


# ---------------------------------------------------------------- which rows are whose


@dataclass
class _Probe:
    """What the batched way needs to know of a model."""

    layouts: list  # of each call (A, B), the row of sample n being (a N + n) B + b; None where it is not known
    connected: list  # of each call, whether the outputs depend on it
    slow: set  # names of the parameters that it does not cover
    other: set  # names of the parameters that are used outside of layers
    bytes: int  # memory that one sample needs


@contextmanager
def _full_precision():
    """No TF32 meanwhile: a GPU's rounding would look like a use of a parameter that the batched way does not cover."""
    settings = [
        (kind, kind.fp32_precision)
        for kind in (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    ]
    try:
        for kind, _ in settings:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, before in settings:
            kind.fp32_precision = before


def _probe(model, x, params, samples):
    """Find whose the rows of every call are, and which parameters the noted calls cover, with a few samples.

    The outputs of the first sample give signals to its own rows alone, and the norms that follow from them must be
    those of the ordinary gradients, for the other samples zero.
    """
    fits = connected = None
    for first in range(
        min(4, len(x))
    ):  # further tries only while a layer with dead neurons leaves a doubt
        index = [first] + [(first + 1) % len(x)] * (samples - 1)
        kept = {}  # {place: bytes} of what the graph keeps
        try:
            with torch.autograd.graph.saved_tensors_hooks(
                partial(_weigh, kept), lambda tensor: tensor
            ):
                tape, outputs = _run(model, x[index], params)
        except (
            RuntimeError
        ):  # torch.func.grad refuses to be watched, a sparse tensor has no storage to weigh
            tape, outputs = _run(model, x[index], params)
        calls = tape.calls
        cotangent = torch.randn(
            outputs[:, 0].shape, generator=torch.Generator().manual_seed(first)
        ).to(outputs)
        targets = [call.edge for call in calls] + list(params.values())
        found = torch.autograd.grad(outputs[:, 0], targets, cotangent, allow_unused=True)
        signals, gradients = found[: len(calls)], dict(zip(params, found[len(calls) :]))
        fits = fits or [_factors(call.rows, samples) for call in calls]
        connected = connected or [False] * len(calls)
        for number, (call, fit, d) in enumerate(zip(calls, fits, signals)):
            if d is None or not d.numel():  # nothing depends on this call
                continue
            connected[number] = True
            alive = d.reshape(call.rows, -1).abs().amax(1) != 0
            owner = torch.arange(call.rows, device=d.device)
            fit[:] = [
                (outer, inner)
                for outer, inner in fit
                if not alive[owner // inner % samples != 0].any()
            ]
        if all(len(fit) <= 1 or not seen for fit, seen in zip(fits, connected)):
            break
    layouts = [fit[0] if len(fit) == 1 and seen else None for fit, seen in zip(fits, connected)]
    # Several ways to lay out a call that stayed silent are no harm yet: `_measure` looks whether it stays so.
    unknown = set().union(*(call.names for call, fit in zip(calls, fits) if not fit))
    unseen = params.keys() - set().union(*(call.names for call in calls))
    hooked = {name for name, p in params.items() if p._backward_hooks}
    kinds = {}  # of layer that a weight is used in
    for call in calls:
        kinds.setdefault(call.weight, set()).add((call.xhat is None, call.groups))
    mixed = {name for name, found in kinds.items() if name and len(found) > 1}
    slow = {
        name
        for name in tape.other | unknown | unseen | hooked | mixed
        if gradients[name] is not None
    }
    weights, biases = _by_parameter(calls, layouts, params.keys() - slow - unseen, samples)
    norms = _norms(
        weights, biases, [_alive(*each, samples) for each in zip(signals, calls, layouts)], {}
    )
    precision = max(_precision(t.dtype) for t in (outputs, *signals) if t is not None)
    lengths = {
        name: outputs.new_zeros(()) if g is None else _square(g).sqrt()
        for name, g in gradients.items()
    }
    total = sum(length.square() for length in lengths.values()).sqrt()
    for name, length in lengths.items():
        got = norms.get(name, outputs.new_zeros(samples)).sqrt()
        wanted = torch.zeros_like(got)
        wanted[0] = length
        if not ((got - wanted).abs() <= precision * wanted + 1e-3 * precision * total).all():
            slow.add(name)
    grams, windows = 0, 0  # the latter are what the positions of the other layers see
    for uses in weights.values():
        call, positions = uses[0].call, _positions(uses)
        if _gram_pays(uses, len(outputs)):
            grams += positions**2
        elif call.weight_shape:
            windows += positions * math.prod(call.weight_shape[1:]) * call.groups
    signal = sum(0 if d is None else d.numel() for d in signals) // samples
    largest = max(p.numel() for p in params.values())
    size = max(4, outputs.element_size())  # half precision is summed up in single
    passes = max(6 * signal * size, 2 * sum(kept.values()) // samples)
    each = passes + (grams + windows + 2 * largest + 1) * size
    return _Probe(layouts, connected, slow, tape.other, each)


def _weigh(kept, tensor):
    """Note the bytes of a tensor that the graph keeps, those of a parameter aside; gives the tensor."""
    whole = (
        tensor if tensor._base is None else tensor._base
    )  # a linear layer keeps its weight transposed
    if not (whole.is_leaf and whole.requires_grad):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
    return tensor


def _precision(dtype):
    """To which share numbers of that type that are computed in two ways agree."""
    return {torch.float64: 1e-8, torch.float32: 1e-3}.get(dtype, 0.1)


def _run(model, x, params, blocks=None):
    """Run the model and note its calls: (tape, outputs)."""
    with _Tape(params, blocks) as tape:
        outputs = model(x)
    return tape, _checked(outputs, x)


def _factors(rows, samples):
    """All (A, B) with rows = A * samples * B."""
    each, rest = divmod(rows, samples)
    return [] if rest or not each else [(a, each // a) for a in range(1, each + 1) if each % a == 0]


def _memory(device):
    """Bytes that one pass may take."""
    if device.type != "cuda":
        return 2**31
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + cached) // 2


# ---------------------------------------------------------------- from signals to norms


@dataclass
class _Use:
    """A call seen by one of its parameters, for `samples` samples: its rows are [A, N, B]."""

    call: _Call
    number: int  # of the call
    samples: int
    outer: int  # A
    inner: int  # B

    def split(self, v):
        """Some first rows of a tensor of the call, [a N B, C P] -> [a, N, B, C, P]."""
        return v.reshape(
            -1,
            self.samples,
            self.inner,
            self.call.channels,
            v.shape[1:].numel() // self.call.channels,
        )

    def total(self, v):
        """Sum over the rows and positions of each sample: [a N B, C P] -> [N, C]. Positions first: that is the fast
        order in any memory format."""
        return self.split(v).sum(4).sum((0, 2))

    def by_channel(self, v, dims=1):
        """Rows of inputs or signals [a N B, C, ..., P], P the last `dims` -> [N groups, C / groups ..., a B P]."""
        v = (
            _at_least_single(v)
            .unflatten(1, (self.call.groups, -1))
            .unflatten(0, (-1, self.samples, self.inner))
        )
        at = v.dim() - dims
        v = v.permute(1, 3, *range(4, at), 0, 2, *range(at, v.dim()))
        return v.reshape(self.samples * self.call.groups, math.prod(v.shape[2 : at - 2]), -1)

    def seen(self):
        """What each output position sees: [N groups, C / groups times the kernel, A B P]."""
        return self.by_channel(self.call.inputs(), len(self.call.space) or 1)

    @cached_property
    def windows(self):
        """`seen`, which is the same for every t."""
        return self.seen()


def _by_parameter(calls, layouts, names, samples):
    """Uses, in calls of known layout, of those weights and biases: ({weight: [use, ...]}, {bias: [use, ...]})."""
    weights, biases = {}, {}
    for number, (call, layout) in enumerate(zip(calls, layouts)):
        if layout is None:
            continue
        for name, table in ((call.weight, weights), (call.bias, biases)):
            if name in names:
                table.setdefault(name, []).append(_Use(call, number, samples, *layout))
    return weights, biases


def _measure(model, x, y, prefix, params, probe, misplaced, check):
    """{name: [T, N]} of the parameters all of whose uses in this batch are noted calls of the probed layout; `check`
    whose the rows are, which is done anyway where the model can order them by their content. Those of `misplaced` were
    found not to be, at least once; more are added to it."""
    samples = len(x)
    blocks = [0 if layout is None else samples * layout[1] for layout in probe.layouts]
    tape, outputs = _run(model, x, params, blocks)
    calls = list(zip(tape.calls, probe.layouts, blocks))
    if len(tape.calls) != len(blocks) or any(
        layout and c.rows != layout[0] * block for c, layout, block in calls
    ):
        return {}  # other calls than in the probe
    changed = [
        call for call in tape.calls if call.a is not None and call.a._version != call.version
    ]
    overwritten = set().union(*(call.names for call in changed))
    covered = params.keys() - probe.slow - misplaced - (tape.other - probe.other) - overwritten
    losses = prefix_losses(outputs, y, prefix)  # (T, N)
    noted = set().union(*(call.names for call in tape.calls))
    doubtful = [name for name in covered if name in tape.other or name not in noted]
    if doubtful:  # the outputs did not depend on them in the probe
        found = torch.autograd.grad(
            losses.sum(), [params[n] for n in doubtful], retain_graph=True, allow_unused=True
        )
        covered = covered - {
            name for name, gradient in zip(doubtful, found) if gradient is not None
        }
    weights, biases = _by_parameter(tape.calls, probe.layouts, covered, samples)
    grams = {name: _gram(uses) for name, uses in weights.items() if _gram_pays(uses, len(losses))}
    norms = {name: _at_least_single(params[name].new_zeros(losses.shape)) for name in covered}
    edges, seen = [call.edge for call in tape.calls], [False] * len(tape.calls)
    if not edges:
        return norms
    try:
        last = None
        if check or tape.selects:
            last, found = _last_signals(losses, prefix, tape.calls, edges, probe.layouts)
            misplaced |= found
            covered = covered - misplaced
        for t in reversed(range(len(losses))):
            signals, last = last, None
            if signals is None:
                signals = torch.autograd.grad(
                    losses[t].sum(), edges, retain_graph=t > 0, allow_unused=True
                )
            for number, (d, call, layout) in enumerate(zip(signals, tape.calls, probe.layouts)):
                seen[number] |= d is not None
                if layout is None and d is not None and d.count_nonzero():
                    covered = covered - call.names
            signals = [_alive(*each, samples) for each in zip(signals, tape.calls, probe.layouts)]
            for name, values in _norms(weights, biases, signals, grams).items():
                norms[name][t] = values
    except CheckpointError:
        return {}  # the model recomputes its convolutions in the backward pass, where they are not noted
    for call, before, now in zip(tape.calls, probe.connected, seen):
        if before and not now:
            covered = (
                covered - call.names
            )  # something was done to its output that the edge does not know of
    return {name: norms[name] for name in covered}


def _last_signals(losses, prefix, calls, edges, layouts):
    """Signals of the longest prefix, or None, and the names of parameters whose rows are not of the samples that the
    layouts say: with the losses [T, N] scaled sample by sample, signals must be scaled as their samples are."""
    samples = losses.shape[1]
    if samples == 1:
        return None, set()
    total = (
        losses[-1] if prefix == "cumulative" else losses.sum(0)
    )  # which every call has a part in
    plain = torch.autograd.grad(total.sum(), edges, retain_graph=True, allow_unused=True)
    # By powers of 2, which any precision multiplies with exactly, a GPU's TF32 too; float16 has few of them.
    powers = (
        8
        if torch.float16 in {losses.dtype, *(d.dtype for d in plain if d is not None)}
        else DISTINCT
    )
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0)).tolist()
    scale = torch.tensor([2.0 ** (n % powers - min(samples, powers) // 2) for n in order]).to(
        losses
    )
    scaled = torch.autograd.grad((total * scale).sum(), edges, retain_graph=True, allow_unused=True)
    misplaced = set()
    for d, of_scaled, call, layout in zip(plain, scaled, calls, layouts):
        if d is not None and layout is not None:
            outer, inner = layout
            wanted = d.reshape(outer, samples, inner, -1) * scale.to(d.dtype).view(1, samples, 1, 1)
            off = (of_scaled.reshape(wanted.shape) - wanted).abs().amax(3)
            largest = wanted.abs().amax(3)
            if not (
                (off <= _precision(d.dtype) * largest + torch.finfo(d.dtype).tiny) | largest.isnan()
            ).all():
                misplaced |= call.names
    return (plain if prefix == "cumulative" else None), misplaced


def _norms(weights, biases, signals, grams):
    """{name: [N]} from the uses of weights and biases and the signals of all calls; no name where no signal is."""
    norms = {}
    for name, uses in (weights | biases).items():
        pairs = [(use, signals[use.number]) for use in uses if signals[use.number] is not None]
        if not pairs:
            continue
        if name in biases:
            norms[name] = sum(use.total(d) for use, d in pairs).square().sum(1)
        elif uses[0].call.xhat is not None:
            norms[name] = (
                sum(use.total(d * use.call.xhat[: len(d)]) for use, d in pairs).square().sum(1)
            )
        elif name in grams:
            norms[name] = _norm_by_gram(uses, signals, grams[name])
        else:
            norms[name] = _norm_by_gradient(pairs)
    return norms


def _alive(d, call, layout, samples):
    """Signal of a call as [R, C, P] without the last timesteps where it is 0 for all samples; None if it is all 0."""
    if d is None or layout is None:
        return None
    d = d.reshape(call.rows, call.channels, -1)
    rows = _live_rows(d, samples * layout[1])
    return _at_least_single(d[:rows]) if rows else None


def _norm_by_gradient(pairs):
    """|| sum_p d_p a_p^T ||^2 of each sample, [N], by way of the gradient itself."""
    signals = [(use, use.by_channel(d)) for use, d in pairs]
    gradient = sum(d @ use.windows[:, :, : d.shape[2]].mT for use, d in signals)
    return (
        torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        .square()
        .view(pairs[0][0].samples, -1)
        .sum(1)
    )


def _norm_by_gram(uses, signals, gram):
    """sum_pq (a_p . a_q) (d_p . d_q) of each sample, [N], as sum_q d_q . sum_p d_p (a_p . a_q)."""
    last = max(i for i, use in enumerate(uses) if signals[use.number] is not None)
    parts = []
    for use in uses[: last + 1]:
        d = signals[use.number]
        if d is None:
            d = gram[0].new_zeros(use.call.rows, use.call.channels, use.call.positions)
        elif (
            use is not uses[last] and len(d) < use.call.rows
        ):  # what follows must stay in its place
            d = torch.cat([d, d.new_zeros(use.call.rows - len(d), *d.shape[1:])])
        parts.append(use.by_channel(d))
    d = torch.cat(parts, 2) if len(parts) > 1 else parts[0]  # (N groups, C / groups, positions)
    total, end = 0, 0
    for block in gram:
        start, end = end, min(end + block.shape[2], d.shape[2])
        products = d[:, :, :end] @ block[:, :end, : end - start]
        total = total + (products * d[:, :, start:end]).sum((1, 2))
        if end == d.shape[2]:
            break
    return total.view(use.samples, -1).sum(1).clamp(min=0)


def _gram(uses):
    """a_p . a_q of each sample over all positions of all calls, the same for every t.

    It is symmetric: of some positions at a time there are the products with those before them, counted twice, and
    with themselves, [[N groups, up to the last of them, some], ...]. For a convolution of stride 1 they are summed up,
    over the places in the kernel, from the products of single pixels.
    """
    call, space = uses[0].call, uses[0].call.space or (1,)
    pixels = _by_pixels(call)
    a = torch.cat(
        [use.by_channel(use.call.a, len(space)) if pixels else use.seen() for use in uses], 2
    )
    seen = call.a.shape[2:] if pixels else space
    size, positions = math.prod(seen), math.prod(space)
    maps, step, blocks = a.shape[2] // size, -(-FEWEST_COLUMNS // positions), []
    for start in range(0, maps, step):
        end = min(start + step, maps)
        block = a[:, :, : end * size].mT @ a[:, :, start * size : end * size]
        if pixels:
            block = block.view(len(a), end, *seen, end - start, *seen)
            _, padding, dilation, _ = call.options
            for i, geometry in enumerate(zip(space, call.weight_shape[2:], padding, dilation)):
                block = _over_kernel(block, 2 + i, 3 + len(space) + i, *geometry)
            block = block.reshape(len(a), end * positions, -1)
        block[:, : start * positions] *= 2
        blocks.append(block)
    return blocks


def _over_kernel(pixels, p, q, size, kernel, padding, dilation):
    """Products of pixels along the dimensions p and q -> products of what outputs see there, both [size]."""
    shape = list(pixels.shape)
    shape[p] = shape[q] = size
    windows = pixels.new_zeros(shape)
    for shift in range(-padding, kernel * dilation - padding, dilation):
        low, count = max(0, -shift), min(size, pixels.shape[p] - shift) - max(0, -shift)
        if count > 0:  # else in the padding
            seen = pixels.narrow(p, low + shift, count).narrow(q, low + shift, count)
            windows.narrow(p, low, count).narrow(q, low, count).add_(seen)
    return windows


def _by_pixels(call):
    """Whether a Gram matrix is summed up from products of pixels, for as many of them as there are outputs."""
    return bool(call.options) and all(stride == 1 for stride in call.options[0])


def _positions(uses):
    """Positions that one sample has in a layer, over all timesteps and calls."""
    return sum(use.call.rows // use.samples * use.call.positions for use in uses)


def _gram_pays(uses, timestep):
    """Whether a matrix weight's norms take less work through Gram matrices, over all t = 1..T."""
    call, n = uses[0].call, _positions(uses)
    alike = all((use.call.options, use.call.space) == (call.options, call.space) for use in uses)
    if not call.weight_shape or n > MOST_POSITIONS or not alike:
        return False
    d_in, d_out = math.prod(call.weight_shape[1:]), call.channels // call.groups
    over_time = call.rows // uses[0].samples % timestep == 0 or len(uses) % timestep == 0
    share = [t / timestep if over_time else 1 for t in range(1, timestep + 1)]
    by_gradient = sum((s * n + TRAFFIC) * d_in * d_out for s in share)
    each = call.weight_shape[1] + TRAFFIC * sum(call.weight_shape[2:]) if _by_pixels(call) else d_in
    by_gram = n**2 / 2 * (each + TRAFFIC) + sum((s * n) ** 2 / 2 * d_out for s in share)
    return by_gram < by_gradient
