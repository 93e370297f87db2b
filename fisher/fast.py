"""The temporal Fisher information in one forward and T or T + 1 backward passes per batch.

    from fisher import temporal_fisher
    norms = temporal_fisher(model, x, y)        # {parameter name: [T, N]}
    I = sum(norms.values()).mean(1)             # [T]

For each batch:

 1. The model runs once. A recorder notes the calls that use parameters (record.py).
 2. One more backward pass tells which sample each row of a call belongs to (layout.py).
 3. For each t, one backward pass gives the signals of all calls. From these follow the squared
    norms of every sample's gradient (uses.py, norms.py, gram.py).

In the first batch, two samples are compared with the definition. If a parameter disagrees, or if no
rule covers its use, the definition measures it, with a warning.
"""

import math
import sys
import warnings
from contextlib import nullcontext
from fnmatch import fnmatch

import torch
from torch.utils.checkpoint import CheckpointError

from fisher.definition import (
    check_arguments,
    check_outputs,
    measured,
    one_by_one,
    prefix_losses,
    squared_norm,
)
from fisher.layout import HALF_PRECISION, PRECISION, gradients, layouts_of
from fisher.norms import Norms
from fisher.record import Recorder

MOST_SAMPLES = 64  # float32 has powers of 2 for so many
FEW_SAMPLES = 8
CPU_NUMBERS = 2**24  # in all outputs of one pass: with more, a CPU waits for its memory
KEEPS = (
    "a second model(x) gives other outputs or gradients: reset its membranes in forward, draw no "
    "random numbers there, or call model.eval()"
)
REENTRANT = "pass use_reentrant=False to torch.utils.checkpoint"
MIXES = "outputs of a sample depend on the others in its batch: make samples independent"


def temporal_fisher(model, x, y, *, prefix="cumulative", chunk=None, skip=()):
    """Squared gradient norms of every prefix loss, by sample and parameter (terms of eq. 6).

    Args:
        model: module in eval mode with model(x) -> outputs [T, N, classes], samples independent.
        x: inputs, samples first.
        y: labels [N], or [T, N] with a label for each t.
        prefix: "cumulative" predicts by the mean of outputs 1..t (the paper), "instant" only by the
            output at t.
        chunk: samples in one pass, at most 64; without it 64 on a GPU, 8 to 64 on a CPU. If memory
            runs out, half as many are tried.
        skip: shell patterns of parameters to leave out, for example ("*.w",).

    Returns {parameter name: [T, N]} for all that require a gradient, in the order of the network.
    The sum over names, averaged over N, is I_t. Model, gradients and mode do not change.

    Raises ValueError if a layer is in train mode, if outputs or gradients change in a second call
    or depend on other samples, if T differs between samples, if the model changes x, if the
    gradient of a parameter is hidden, and for arguments or outputs of another form.
    """
    return TemporalFisher(model, prefix, chunk, skip)(x, y)


class TemporalFisher:
    """`temporal_fisher` batch by batch: estimator(x, y) -> {parameter name: [T, N]}.

    Its first call compares it with the definition. Between calls, only the values of the
    parameters may change in the model.
    """

    def __init__(self, model, prefix="cumulative", chunk=None, skip=()):
        patterns = [skip] if isinstance(skip, str) else skip
        self.parameters = measured(model)
        for name in list(self.parameters):
            if any(fnmatch(name, pattern) for pattern in patterns):
                del self.parameters[name]
        if not self.parameters:
            raise ValueError(
                "no parameter to measure requires a gradient: check requires_grad and skip"
            )
        if chunk is not None and not 1 <= chunk <= MOST_SAMPLES:
            raise ValueError(f"chunk must be from 1 to {MOST_SAMPLES}, not {chunk}")
        self.chunk = chunk
        self.model, self.prefix = model, prefix
        self.timesteps = None  # T, known from the first batch on
        self.slow = set()  # parameters that are measured by the definition
        self.warned = set()
        self.batches, self.samples = 0, None  # batches so far, and samples in the last one
        self.shapes, self.layouts = [], []  # of the calls
        self.time_is_outermost = True  # until a signal says otherwise

    def __call__(self, x, y):
        check_arguments(x, y, self.prefix)
        self.check_modules()
        x = x.detach()
        with as_written(), torch.enable_grad():
            if self.timesteps is None:
                self.compare(x, y)
                self.chunk = self.chunk or self.default_chunk(x.device)
            chunks, start = [], 0
            while start < len(x):
                chunk = slice(start, start + self.chunk)
                try:
                    chunks.append(self.measure(x[chunk], y[..., chunk]))
                    start += self.chunk
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if self.chunk == 1 or "memory" not in str(error):
                        raise
                    self.chunk //= 2
        return {name: torch.cat([norms[name] for norms in chunks], 1) for name in self.parameters}

    def default_chunk(self, device):
        """Samples in one pass, chosen by the sizes of the outputs for two samples."""
        if device.type != "cpu":
            return MOST_SAMPLES
        numbers = sum(math.prod(shape) for shape in self.shapes) // 2
        return min(max(CPU_NUMBERS // max(numbers, 1), FEW_SAMPLES), MOST_SAMPLES)

    # ---------------------------------------------------------------- one batch

    def measure(self, x, y):
        """{name: [T, N]} of one pass; by the definition for parameters that it does not cover."""
        count = len(x)
        if count == 1:  # as in fisher.definition.batch_means
            x, y = torch.cat([x, x]), torch.cat([y, y], -1)
        try:
            norms = self.measure_fast(x, y)
        except CheckpointError:  # the second computation keeps other tensors than FirstRows
            norms = None
        if norms is None:
            self.time_is_outermost = False
            norms = self.measure_fast(x, y)
        slow = self.parameters.keys() - norms.keys()
        self.warn(slow)
        if slow:
            norms |= one_by_one(self.model, x, y, prefix=self.prefix, names=slow)
        return {name: norms[name][:, :count] for name in self.parameters}

    def measure_fast(self, x, y):
        """{name: [T, N]} of the parameters whose uses are all covered. None if a signal reaches
        beyond its prefix."""
        with Recorder(self.model, self.parameters, self.time_is_outermost) as recorder:
            outputs = check_outputs(self.model(x), x, y)
        losses = prefix_losses(outputs, y, self.prefix)  # (T, N)
        if self.timesteps not in (None, len(losses)):
            raise ValueError(
                f"the model gives outputs of T = {self.timesteps} and of T = {len(losses)}: all "
                "samples must have the same T"
            )
        self.timesteps = len(losses)
        signals = gradients(losses[-1].sum(), recorder.calls)
        pairs = [(c, d) for c, d in zip(recorder.calls, signals) if d is not None and d.numel()]
        calls, signals = [call for call, _ in pairs], [d for _, d in pairs]
        self.read_layouts(calls, signals, losses)
        covered = self.parameters.keys() - self.slow - uncovered(recorder, losses, calls)
        norms = Norms(recorder, calls, covered, losses)
        beyond = []
        for t in range(self.timesteps, 0, -1):
            if t < self.timesteps:
                for call in calls:
                    skips = self.time_is_outermost and call.layout
                    call.reach.rows = call.rows_until(t, self.timesteps) if skips else None
                signals = gradients(losses[t - 1].sum(), calls)
            for call, d in zip(calls, signals):
                if call.reach.rows is not None:
                    beyond.append(d[call.reach.rows :].any())  # reading it now would wait for a GPU
            norms.add(t, [d[: call.reach.rows] for call, d in zip(calls, signals)])
        if beyond and torch.stack(beyond).any():
            return None
        return norms.by_name

    def read_layouts(self, calls, signals, losses):
        """Give each call its layout, from the losses [T, N] and the signals of the last loss.

        Layouts are read in the batches 1, 2, 4, 8, ..., if calls have changed, and if there are so
        few samples that rows sorted by content may be in order by chance. They are read again as
        long as several layouts fit a call, for example a call without a signal.
        """
        samples = losses.shape[1]
        shapes = [call.shape for call in calls]
        self.batches += 1
        due = self.batches & (self.batches - 1) == 0 or samples < FEW_SAMPLES
        if due or self.unsure() or (samples, shapes) != (self.samples, self.shapes):
            self.samples, self.shapes = samples, shapes
            self.layouts = layouts_of(calls, signals, losses[-1])
            if self.unsure() or self.prefix == "instant":  # the last loss is not enough
                total = losses.sum(0)
                self.layouts = layouts_of(calls, gradients(total.sum(), calls), total)
        for call, layouts in zip(calls, self.layouts):
            call.layout = layouts[0] if layouts else None

    def unsure(self):
        """Whether several layouts fit one of the calls."""
        return any(len(layouts) > 1 for layouts in self.layouts)

    def warn(self, slow):
        """Note the parameters that are slow from now on, and warn once about each."""
        self.slow |= slow
        names = [name for name in self.parameters if name in slow - self.warned]
        self.warned |= slow
        if names:
            cure = "skip=(pattern, ...) leaves them out"
            message = f"measured one sample at a time, which is slow: {', '.join(names)}; {cure}"
            warnings.warn(message, stacklevel=5)

    # ---------------------------------------------------------------- the first batch

    def compare(self, x, y):
        """Compare two samples with the definition. The definition measures parameters that differ.
        Raises ValueError if the information of the model has no meaning."""
        index = torch.tensor([0, min(1, len(x) - 1)], device=x.device)
        x, y = x[index], y[..., index]
        self.check_independence(x, y)
        options = {"prefix": self.prefix, "names": self.parameters}
        try:
            expected = one_by_one(self.model, x, y, **options)
        except RuntimeError as error:
            for words, cure in (("graph a second time", KEEPS), ("use_reentrant", REENTRANT)):
                if words in str(error):
                    raise ValueError(cure) from error
            raise
        self.check_hidden(x, y, expected)
        with warnings.catch_warnings(action="ignore"):
            fast = self.measure(x, y)
        hooked = {name for name, p in self.parameters.items() if p._backward_hooks}
        self.slow |= hooked.union(
            differing(expected, fast)
        )  # the hook may act only on other samples
        self.warned = set()

    def check_modules(self):
        """Raise ValueError for a layer in train mode or a hook that `check_hidden` would run."""
        for name, module in self.model.named_modules():
            if module.training and not isinstance(module, torch.nn.RNNBase):  # cuDNN's need it
                raise ValueError(f"layer {name or 'model'} is in train mode: call model.eval()")
        for name, p in self.model.named_parameters():
            if p._post_accumulate_grad_hooks:
                raise ValueError(f"a hook of {name} runs after backward(): remove the hook")

    def check_independence(self, x, y):
        """Raise ValueError if outputs depend on other samples or on chance, or if x is changed."""
        try:
            together = self.model(x)
        except RuntimeError as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"model(x) fails for 2 samples: {reason}") from error
        check_outputs(together, x, y)
        for n in range(2):
            pair = x[[n, n]]
            version = pair._version
            alone = self.model(pair)
            if pair._version != version:
                raise ValueError("model(x) changes x in place: let it work on a copy")
            if not alike(together[:, n], alone[:, n]):
                raise ValueError(MIXES if alike(alone, self.model(pair)) else KEEPS)

    def check_hidden(self, x, y, expected):
        """Raise ValueError if loss.backward() gives other gradients than torch.autograd.grad, or if
        gradients depend on the sample before."""
        parameters = list(self.model.parameters())
        before = [p.grad for p in parameters]
        try:
            for p in parameters:
                p.grad = None
            losses = prefix_losses(self.model(x[[1, 1]]), y[..., [1, 1]], self.prefix)
            losses[-1].mean().backward(retain_graph=True)  # others may hold a part of it
            zero = losses.new_zeros(())
            last = {}
            for name, p in self.parameters.items():
                last[name] = squared_norm(zero if p.grad is None else p.grad)
        finally:
            for p, gradient in zip(parameters, before):
                p.grad = gradient
        if hidden := differing(last_norms(expected), last):
            again = one_by_one(self.model, x[1:], y[..., 1:], prefix=self.prefix, names=hidden)
            if differing({name: last_norms(expected)[name] for name in hidden}, last_norms(again)):
                raise ValueError(KEEPS)
            raise ValueError(
                f"gradients of {', '.join(hidden)} are hidden from torch.autograd.grad: {REENTRANT}"
            )


def last_norms(norms):
    """{name: [T, N]} -> {name: the norm of the last sample for the last t}."""
    return {name: values[-1, -1] for name, values in norms.items()}


def uncovered(recorder, losses, calls):
    """Names of the parameters that a batch uses outside calls with a known layout."""
    names = set(recorder.others)
    for call in calls:
        if call.layout is None:
            names |= recorder.names_of(call)
    recorded = names.union(*(recorder.names_of(call) for call in calls))
    unseen = {name: p for name, p in recorder.named.items() if name not in recorded}
    if unseen:  # not used, or Python does not see the use
        gradients_unseen = torch.autograd.grad(
            losses.sum(), unseen.values(), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(unseen, gradients_unseen):
            if gradient is not None:
                names.add(name)
    return names


# -------------------------------------------------------------------- comparisons


def as_written():
    """In the `with` block, compiled models run as written, so that calls can be recorded."""
    if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def alike(a, b):
    """Whether outputs agree. For equal shapes kernels are equal; only the order of sums differs."""
    if a.shape != b.shape:
        return False
    near = PRECISION.get(a.dtype, HALF_PRECISION) * a.detach().abs().nan_to_num(0, 0, 0).max()
    return torch.allclose(a, b, rtol=0, atol=near.item(), equal_nan=True)


def differing(expected, norms):
    """Names whose gradient norms differ. A norm far below the largest may be only rounding."""
    largest = max(values.nan_to_num(0, 0, 0).max().sqrt().item() for values in expected.values())
    names = []
    for name, values in expected.items():
        precision = PRECISION.get(values.dtype, HALF_PRECISION)
        near = {"rtol": 10 * precision, "atol": 1e-3 * precision * largest, "equal_nan": True}
        if not torch.allclose(norms[name].sqrt().to(values.dtype), values.sqrt(), **near):
            names.append(name)
    return names
