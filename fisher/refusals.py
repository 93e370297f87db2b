"""Models whose Fisher information has no meaning. They are refused with a ValueError that says the
cure."""

from contextlib import contextmanager

import torch

from fisher.definition import (
    at_least_two,
    check_outputs,
    check_timesteps,
    one_by_one,
    prefix_losses,
    squared_norm,
)
from fisher.layout import precision

REPEATED = 0.1  # tolerance of a call that is repeated: only a GPU adds in another order
KEEPS = (
    "a second model(x) gives other outputs or gradients: reset its membranes in forward, draw no "
    "random numbers there, leave x as it is, or call model.eval()"
)
REENTRANT = "pass use_reentrant=False to torch.utils.checkpoint"
MIXES = (
    "outputs of a sample depend on the others in its batch, or on calls before: make samples "
    "independent, reset membranes in forward, and return outputs [T, N, classes]"
)


def check_modules(model):
    """Raise ValueError for a layer in train mode."""
    for name, module in model.named_modules():
        if module.training and not isinstance(module, torch.nn.RNNBase):  # cuDNN's need it
            raise ValueError(f"layer {name or 'model'} is in train mode: call model.eval()")


def check_independence(model, x, y):
    """Raise ValueError if a second call with these samples gives other outputs, or if outputs of
    the first two depend on each other."""
    x = x.clone()
    first = check_outputs(model(x), x, y).detach()  # without its graph
    if not alike(first, check_outputs(model(x), x, y), REPEATED):
        raise ValueError(KEEPS)
    pair, labels = at_least_two(x[:2], y[..., :2])
    try:
        together = check_outputs(model(pair), pair, labels)
    except RuntimeError as error:
        raise ValueError(
            f"model(x) of two samples fails after one of {len(x)} ({error}): reset its membranes "
            "in forward, and take any batch size"
        ) from error
    for n in range(2):
        alone = check_outputs(model(pair[[n, n]]), pair, labels)
        check_timesteps(len(first), len(alone))
        if not alike(together[:, n], alone[:, n]):
            raise ValueError(MIXES if alike(alone, model(pair[[n, n]])) else KEEPS)


def check_gradients(model, x, y, prefix, parameters):
    """Squared norms of two samples by the definition, {name: [T, 2]}. Raises ValueError if a second
    measurement differs, or if the gradient of a parameter is hidden."""
    for name, p in model.named_parameters():
        if p._post_accumulate_grad_hooks:  # as of an optimizer in the backward pass
            raise ValueError(f"remove the hook of {name}: a measurement would run it")
    x, y = at_least_two(x[:2].clone(), y[..., :2])
    try:
        with without_grad(model):
            expected = one_by_one(model, x, y, prefix=prefix, names=parameters)
            second = one_by_one(model, x[1:], y[..., 1:], prefix=prefix, names=parameters)
            # Sample 1 twice: their mean loss has the gradient of one.
            ordinary = norms_of_backward(model, x[[1, 1]], y[..., [1, 1]], prefix, parameters)
    except RuntimeError as error:
        for words, cure in (("graph a second time", KEEPS), ("use_reentrant", REENTRANT)):
            if words in str(error):
                raise ValueError(cure) from error
        raise
    if differing({name: norms[:, 1:] for name, norms in expected.items()}, second, REPEATED):
        raise ValueError(KEEPS)
    hidden = differing({name: norms[-1, 1] for name, norms in expected.items()}, ordinary)
    if hidden:
        names = ", ".join(hidden)
        raise ValueError(f"torch.autograd.grad does not see gradients of {names}: {REENTRANT}")
    return expected


def norms_of_backward(model, x, y, prefix, parameters):
    """{name: squared norm} of the gradient of the last loss, by an ordinary backward()."""
    losses = prefix_losses(check_outputs(model(x), x, y), y, prefix)
    losses[-1].mean().backward(retain_graph=True)  # a second graph may share a part of it
    norms = {}
    for name, p in parameters.items():
        norms[name] = losses.new_zeros(()) if p.grad is None else squared_norm(p.grad)
    return norms


@contextmanager
def without_grad(model):
    """In the `with` block no parameter has a .grad. After it, each has the one that it had."""
    before = [(p, p.grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.grad = None
        yield
    finally:
        for p, gradient in before:
            p.grad = gradient


# -------------------------------------------------------------------- comparisons


def alike(a, b, tolerance=1):
    """Whether outputs agree. For equal shapes kernels are equal; only the order of sums differs."""
    if a.shape != b.shape:
        return False
    near = tolerance * precision(a.dtype) * a.detach().abs().nan_to_num(0, 0, 0).max()
    return torch.allclose(a, b, rtol=0, atol=near.item(), equal_nan=True)


def differing(expected, norms, tolerance=10):
    """Names whose gradient norms differ. A norm far below the largest may be only rounding."""
    largest = max(values.nan_to_num(0, 0, 0).max().sqrt().item() for values in expected.values())
    names = []
    for name, values in expected.items():
        near = precision(values.dtype)
        options = {"rtol": tolerance * near, "atol": 1e-3 * near * largest, "equal_nan": True}
        if not torch.allclose(norms[name].sqrt().to(values.dtype), values.sqrt(), **options):
            names.append(name)
    return names
