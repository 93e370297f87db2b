"""The temporal Fisher information as it is written, one sample at a time. Read this file first.

A network gives outputs o_1 .. o_T. Its prediction after t steps, f(. | steps 1..t), is the softmax
of the mean of o_1 .. o_t. "Exploring Temporal Information Dynamics in Spiking Neural Networks" (Kim
et al., AAAI 2023) defines, over all parameters theta and N samples (x_n, y_n),

    I_t = (1/N) sum_n || grad_theta log f(y_n | x_n, steps 1..t) ||^2        equation 6
    IC  = sum_t t I_t / sum_t I_t                                            equation 7

The norm is taken of each sample's gradient, before the mean over samples. A flat curve has
IC = (T + 1) / 2. Everything else in this package computes the same numbers faster.
"""

import torch
import torch.nn.functional as F


def prefix_outputs(outputs):
    """Outputs [T, N, classes] -> mean of the first t outputs, for t = 1..T: [T, N, classes]."""
    steps = torch.arange(1, len(outputs) + 1, device=outputs.device, dtype=outputs.dtype)
    return outputs.cumsum(0) / steps.view(-1, 1, 1)


def instant_outputs(outputs):
    """Outputs [T, N, classes] as they are: the prediction of step t uses only the output at t."""
    return outputs


RELEASE_BATCH = 16  # samples in a mean, as in the README of the paper's code
PREFIXES = {"cumulative": prefix_outputs, "instant": instant_outputs}  # the paper's is cumulative


def prefix_losses(outputs, y, prefix="cumulative"):
    """-log f(y | steps 1..t) in nats: [T, N].

    Args:
        outputs: [T, N, classes].
        y: labels [N], or [T, N] with a label for each sample and each t.
        prefix: a name of PREFIXES.

    Raises KeyError for another prefix.
    """
    labels = y.expand(outputs.shape[:2]).long()
    logits = PREFIXES[prefix](outputs)
    losses = [F.cross_entropy(o, label, reduction="none") for o, label in zip(logits, labels)]
    return torch.stack(losses)


def prefix_residuals(outputs, y, prefix="cumulative"):
    """|p - e_y|^2 with p = f(. | steps 1..t), for the arguments of `prefix_losses`: [T, N].

    By the chain rule, the gradient of a prefix loss by the weights is J^T (p - e_y). J is the
    Jacobian of the averaged outputs. So I_t is the mean of this residual times a squared gain.
    """
    p = PREFIXES[prefix](outputs).softmax(2)
    labels = y.expand(outputs.shape[:2]).long()
    return (p - F.one_hot(labels, p.shape[2])).square().sum(2)


def draw_labels(outputs, generator, prefix="cumulative"):
    """Draw labels from f itself, for each t from its own prediction: [T, N].

    With drawn labels I_t is the true Fisher information, with labels of the data the empirical one.
    `generator` (on the CPU) gives the numbers sample by sample, in batches of any size.
    """
    steps, samples, classes = outputs.shape
    chance = torch.rand(samples, steps, 1, generator=generator, dtype=torch.float64)
    cumulated = PREFIXES[prefix](outputs.cpu().double()).softmax(2).cumsum(2)
    labels = (cumulated < chance.transpose(0, 1)).sum(2)
    return labels.clamp(max=classes - 1).to(outputs.device)


@torch.enable_grad()
def squared_gradients(model, x, y, prefix, parameters):
    """Squared norms of the gradients of the mean losses of one batch: {parameter name: [T]}."""
    outputs = check_outputs(model(x), x, y)
    losses = prefix_losses(outputs, y, prefix).mean(1)
    norms = {name: [] for name in parameters}
    for loss in losses:
        gradients = torch.autograd.grad(
            loss, parameters.values(), retain_graph=True, materialize_grads=True
        )
        for name, gradient in zip(parameters, gradients):
            norms[name].append(squared_norm(gradient))
    return {name: torch.stack(squares) for name, squares in norms.items()}


def one_by_one(model, x, y, *, prefix="cumulative", names=None):
    """The terms of the sum in equation 6: a forward pass for each sample, a backward for each t.

    Args:
        model: module in eval mode with model(x) -> outputs [T, N, classes].
        x: inputs, samples first.
        y: labels [N] or [T, N].
        names: the measured parameters; without it, all that require a gradient.

    Returns {parameter name: squared gradient norms [T, N]}. Raises ValueError for bad arguments.
    """
    return batch_means(model, x, y, 1, prefix=prefix, names=names)


def batch_means(model, x, y, size, *, prefix="cumulative", names=None):
    """Squared gradient norms of mean losses over batches of `size` samples (None: all): {parameter
    name: [T, batches]}.

    This is the estimator of the paper's released script. With more than one sample it is not the
    Fisher information: E|mean g|^2 = (1 - 1/size) |E g|^2 + I_t / size. Raises ValueError for bad
    arguments.
    """
    check_arguments(x, y, prefix)
    parameters = measured(model, names)
    norms = {name: [] for name in parameters}
    size = size or len(x)
    for x_batch, y_batch in zip(x.split(size), y.split(size, -1)):
        batch = at_least_two(x_batch, y_batch)
        for name, squares in squared_gradients(model, *batch, prefix, parameters).items():
            if norms[name]:
                check_timesteps(len(norms[name][0]), len(squares))
            norms[name].append(squares)
    return {name: torch.stack(columns, 1) for name, columns in norms.items()}


def centroid(curve):
    """Information centroid (equation 7) of a curve I_1 .. I_T along the first dimension: [T, ...]
    -> [...]. It is NaN if there is no information."""
    steps = torch.arange(1, len(curve) + 1, device=curve.device, dtype=curve.dtype)
    return torch.tensordot(steps, curve, 1) / curve.sum(0)


def centroid_interval(samples, other=None, draws=2000, seed=0):
    """95 % bootstrap percentile interval (low, high) of the centroid, from squared norms [T, N].
    Draws without information do not count.

    `other` [T, N] has the same samples at another moment. Then it is the interval of the difference
    of the two centroids. Both come from the same draw, so what a sample adds to both cancels.
    """
    count = samples.shape[1]
    index = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(draws, count, dtype=torch.float64)
    weights.scatter_add_(1, index, torch.ones(index.shape, dtype=torch.float64))
    drawn = centroid(samples.cpu().double() @ weights.T)
    if other is not None:
        drawn = drawn - centroid(other.cpu().double() @ weights.T)
    return tuple(drawn.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist())


def quotient(curve, divisor):
    """curve / divisor, both of one shape. 0 where the divisor is 0: there the gradient is 0 too."""
    return torch.where(divisor > 0, curve / divisor, 0)


# ---------------------------------------------------------------- helpers


def measured(model, names=None):
    """{name: parameter} of all that require a gradient, or of `names`, in the network's order."""
    return {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and (names is None or name in names)
    }


def at_least_two(x, y):
    """The batch; a single sample twice, whose mean loss has the same gradient. In a batch of one,
    torch 2.13's BatchNorm on a CPU gives wrong gradients if they come in transposed."""
    return (x, y) if len(x) > 1 else (torch.cat([x, x]), torch.cat([y, y], -1))


def squared_norm(gradient):
    """The squared norm of a gradient, which may be sparse."""
    return torch.linalg.vector_norm(at_least_single(gradient.to_dense())).square()


def at_least_single(tensor):
    """The tensor, in float32 if it is of half precision, where squares overflow."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ---------------------------------------------------------------- bad arguments


def check_arguments(x, y, prefix):
    """Raise ValueError for arguments that fit no model."""
    if prefix not in PREFIXES:
        raise ValueError(f"unknown prefix {prefix!r}: choose from {', '.join(PREFIXES)}")
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
        raise ValueError(f"x and y must be tensors, not {type(x).__name__} and {type(y).__name__}")
    if x.is_inference() or y.is_inference() or torch.is_inference_mode_enabled():
        raise ValueError("inference_mode leaves no gradient: use torch.no_grad(), for x and y too")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError("there are no samples to measure")
    if y.dim() not in (1, 2) or y.shape[-1] != len(x):
        raise ValueError(
            f"x is samples first and has {len(x)}: labels must be [N] or [T, N], not "
            f"{list(y.shape)}"
        )
    if y.is_floating_point() or y.min() < 0:
        raise ValueError("labels must be whole numbers from 0: leave out samples without a label")


def check_timesteps(known, timesteps):
    """Raise ValueError if T differs from the one that is known, or None."""
    if known not in (None, timesteps):
        raise ValueError(
            f"outputs have T = {known} and T = {timesteps}: all samples must have the same T"
        )


def check_outputs(outputs, x, y):
    """The outputs of model(x), at least in float32. Raises ValueError if they are not [T, N,
    classes] with a graph."""
    if isinstance(outputs, tuple | list):
        number = next((i for i, o in enumerate(outputs) if getattr(o, "ndim", 0) == 3), None)
        cure = "torch.stack(outputs)" if number is None else f"outputs[{number}]"
        raise ValueError(
            f"model(x) gives {len(outputs)} values: return only outputs [T, N, classes], for "
            f"example {cure}"
        )
    tensor = isinstance(outputs, torch.Tensor)
    if not tensor or outputs.dim() != 3 or outputs.shape[1] != len(x):
        shape = list(outputs.shape) if tensor else type(outputs).__name__
        swapped = tensor and outputs.dim() == 3 and len(outputs) == len(x)
        cure = "; of [N, T, classes], return outputs.transpose(0, 1)" if swapped else ""
        raise ValueError(
            f"model(x) must give outputs [T, N, classes]; it gives {shape} for {len(x)} "
            f"samples{cure}"
        )
    if torch.is_grad_enabled() and not outputs.requires_grad:
        raise ValueError("model(x) has no graph to its parameters: call it without torch.no_grad()")
    if y.dim() == 2 and len(y) != len(outputs):
        raise ValueError(f"labels are for {len(y)} timesteps, but the model has {len(outputs)}")
    if y.max() >= outputs.shape[2]:
        raise ValueError(f"label {int(y.max())} is none of the model's {outputs.shape[2]} classes")
    return at_least_single(outputs)
