"""The temporal Fisher information from one forward and T + 1 backward passes for each chunk.

    from fisher import temporal_fisher
    norms = temporal_fisher(model, x, y)        # {parameter name: [T, N]}
    I = sum(norms.values()).mean(1)             # [T]

A chunk is at most 64 samples of a batch. For each chunk:

 1. The model runs once. A recorder notes the calls that use parameters (record.py).
 2. One more backward pass tells which sample each row of a call belongs to (layout.py).
 3. For each t, one backward pass gives the signals of all calls. From these follow the squared
    norms of every sample's gradient (uses.py, norms.py, gram.py).

The first batch tells whether the information of the model has a meaning (refusals.py). Two of its
samples are compared with the definition. If a parameter disagrees, or if no rule covers its use,
the definition measures it, with a warning.
"""

import math
import sys
import warnings
from contextlib import nullcontext
from fnmatch import fnmatch

import torch

from fisher.definition import (
    at_least_two,
    batch_means,
    check_arguments,
    check_outputs,
    check_timesteps,
    measured,
    one_by_one,
    prefix_losses,
)
from fisher.layout import gradients, read_layouts
from fisher.norms import Norms
from fisher.record import Recorder
from fisher.refusals import (
    KEEPS,
    REPEATED,
    check_gradients,
    check_independence,
    check_modules,
    differing,
)

# Samples in a chunk. float32 has powers of 2 for 64 samples, float16 for 16.
MOST_SAMPLES, HALF_SAMPLES, FEW_SAMPLES = 64, 16, 8
CPU_NUMBERS = 2**22  # in the outputs of all calls of a chunk: with more, a CPU waits for memory


def temporal_fisher(model, x, y, *, prefix="cumulative", chunk=None, skip=()):
    """Squared gradient norms of every prefix loss, by sample and parameter (terms of eq. 6).

    Args:
        model: module in eval mode with model(x) -> outputs [T, N, classes], samples independent.
        x: inputs, samples first.
        y: labels [N], or [T, N] with a label for each t.
        prefix: "cumulative" predicts by the mean of outputs 1..t (the paper), "instant" only by the
            output at t.
        chunk: samples that are measured at once, at most 64; without it 64 on a GPU, 8 to 64 on a
            CPU. If memory runs out, half as many are tried.
        skip: shell patterns of parameters to leave out, for example ("*.w",).

    Returns {parameter name: [T, N]} for all that require a gradient, in the order of the network.
    The sum over names, averaged over N, is I_t. Model, gradients and mode do not change.

    Raises ValueError if a layer is in train mode, if outputs or gradients change in a second call
    or depend on other samples, if T differs between samples, if the gradient of a parameter is
    hidden, as by a reentrant checkpoint, if a pattern of `skip` fits no parameter, and for
    arguments or outputs of another form.

    Caveats: a second use of a parameter can go unseen if Python does not see it, as in a
    torch.autograd.Function, and if the first two samples do not show it. Samples that depend on
    each other only in batches of more than two are not refused.
    """
    return TemporalFisher(model, prefix, chunk, skip)(x, y)


class TemporalFisher:
    """`temporal_fisher` batch by batch: estimator(x, y) -> {parameter name: [T, N]}.

    Its first call compares it with the definition. Between calls, only the values of the
    parameters may change in the model.
    """

    def __init__(self, model, prefix="cumulative", chunk=None, skip=()):
        if chunk is not None and not 1 <= chunk <= MOST_SAMPLES:
            raise ValueError(f"chunk must be from 1 to {MOST_SAMPLES}, not {chunk}")
        self.model, self.prefix = model, prefix
        self.parameters = measured(model, names_without(skip, list(measured(model))))
        if not self.parameters:
            raise ValueError("no parameter is left to measure: check requires_grad and skip")
        self.chunk = chunk
        self.timesteps = None  # T, known from the first batch on
        self.compared = False  # with the definition, in the first batch
        self.numbers = None  # in the outputs of all calls, of one sample
        self.slow = set()  # parameters that are measured by the definition
        self.time_is_outermost = True  # until a signal says otherwise

    def __call__(self, x, y):
        check_arguments(x, y, self.prefix)
        check_modules(self.model)
        x = x.detach()
        with as_written(), torch.enable_grad():
            if not self.compared:
                self.compare(x, y)
                self.compared = True
                self.chunk = self.chunk or default_chunk(x, self.numbers)
            chunks, start = [], 0
            while start < len(x):
                chunk = slice(start, start + self.chunk)
                try:
                    chunks.append(self.measure_chunk(x[chunk], y[..., chunk]))
                    start += self.chunk
                except RuntimeError as error:
                    if self.chunk == 1 or not out_of_memory(error):
                        raise
                    self.chunk //= 2
        return {name: torch.cat([norms[name] for norms in chunks], 1) for name in self.parameters}

    def of_mean(self, x, y):
        """{name: [T, 1]} of the batch's mean loss, by the released estimator. The arguments are
        checked before."""
        x = x.detach()
        with as_written(), torch.enable_grad():
            if self.timesteps is None:
                expected = self.check_model(x, y)
                self.timesteps = len(next(iter(expected.values())))
        norms = batch_means(self.model, x, y, None, prefix=self.prefix, names=self.parameters)
        check_timesteps(self.timesteps, len(next(iter(norms.values()))))
        return norms

    # ---------------------------------------------------------------- one chunk

    def measure_chunk(self, x, y):
        """{name: [T, N]} of one chunk; by the definition for parameters that no rule covers."""
        count = len(x)
        x, y = at_least_two(x, y)
        norms, later = self.measure_fast(x, y)
        if later:
            self.time_is_outermost = False
            norms, _ = self.measure_fast(x, y)
        slow = self.parameters.keys() - norms.keys()
        self.note_slow(slow)
        if slow:
            norms |= one_by_one(self.model, x, y, prefix=self.prefix, names=slow)
        return {name: norms[name][:, :count] for name in self.parameters}

    def measure_fast(self, x, y):
        """{name: [T, N]} of the parameters whose uses are all covered, and whether convolutions
        skipped rows that have a signal: then the norms are wrong."""
        with Recorder(self.model, self.parameters, self.time_is_outermost) as recorder:
            outputs = check_outputs(self.model(x), x, y)
        losses = prefix_losses(outputs, y, self.prefix)  # (T, N)
        check_timesteps(self.timesteps, len(losses))
        self.timesteps = len(losses)
        signals = gradients(losses[-1].sum(), recorder.calls)
        pairs = [(c, d) for c, d in zip(recorder.calls, signals) if d is not None and d.numel()]
        calls, signals = [call for call, _ in pairs], [d for _, d in pairs]
        self.numbers = sum(math.prod(call.shape) for call in calls) // len(x)
        read_layouts(calls, signals, losses, self.prefix)
        covered = self.parameters.keys() - self.slow - uncovered(recorder, losses, calls)
        norms = Norms(recorder, calls, covered, losses)
        later = torch.tensor(False, device=losses.device)
        for t in range(self.timesteps, 0, -1):
            if self.time_is_outermost:
                for call in calls:
                    call.reach.rows = call.rows_until(t, self.timesteps)
            if t < self.timesteps:
                signals = gradients(losses[t - 1].sum(), calls)
                for call, d in zip(calls, signals):
                    if call.reach.rows is not None:
                        later |= d[call.reach.rows :].any()  # read below: a GPU would wait
            norms.add(t, [d[: call.reach.rows] for call, d in zip(calls, signals)])
        return norms.by_name, later

    def note_slow(self, names):
        """Note parameters that the definition measures from now on, and warn once about each."""
        new = [name for name in self.parameters if name in names and name not in self.slow]
        self.slow.update(new)
        if new:
            cure = "skip=(pattern, ...) leaves them out of the sum"
            message = f"measured one sample at a time, which is slow: {', '.join(new)}; {cure}"
            warnings.warn(message, stacklevel=2)

    # ---------------------------------------------------------------- the first batch

    def check_model(self, x, y):
        """The squared norms of two samples by the definition. Raises ValueError if the information
        of the model has no meaning."""
        try:
            check_independence(self.model, x[:FEW_SAMPLES], y[..., :FEW_SAMPLES])
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            check_independence(self.model, x[:2], y[..., :2])
        return check_gradients(self.model, x, y, self.prefix, self.parameters)

    def compare(self, x, y):
        """Compare two samples with the definition. The definition measures parameters that differ.
        Raises ValueError if the information of the model has no meaning."""
        expected = self.check_model(x, y)
        pair = at_least_two(x[:2], y[..., :2])
        norms = self.measure_chunk(*pair)
        hooked = {name for name, p in self.parameters.items() if p._backward_hooks}
        names = differing(expected, norms)
        if names and differing(norms, self.measure_chunk(*pair), REPEATED):
            raise ValueError(KEEPS)
        # A hook of a parameter may act only on other samples.
        self.note_slow(hooked.union(names))


def names_without(skip, names):
    """The names that no shell pattern in `skip` fits. Raises ValueError for a pattern that fits
    none."""
    patterns = [skip] if isinstance(skip, str) else skip
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(f"skip pattern {pattern!r} fits no parameter: {', '.join(names)}")
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]


def default_chunk(x, numbers):
    """Samples in a chunk, for inputs x and so many numbers in the outputs of all calls."""
    if x.dtype == torch.float16:
        return HALF_SAMPLES
    if x.device.type != "cpu":
        return MOST_SAMPLES
    return min(max(CPU_NUMBERS // max(numbers, 1), FEW_SAMPLES), MOST_SAMPLES)


def out_of_memory(error):
    """Whether memory ran out on the GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error)


def uncovered(recorder, losses, calls):
    """Names of the parameters that a batch uses outside calls with a known layout."""
    names = recorder.others.union(*(call.names for call in calls if call.layout is None))
    recorded = names.union(*(call.names for call in calls))
    unseen = {name: p for name, p in recorder.named.items() if name not in recorded}
    if unseen:  # not used, or Python does not see the use
        gradients_unseen = torch.autograd.grad(
            losses.sum(), unseen.values(), retain_graph=True, allow_unused=True
        )
        pairs = zip(unseen, gradients_unseen)
        names |= {name for name, gradient in pairs if gradient is not None}
    return names


def as_written():
    """In the `with` block, compiled models run as written, so that calls can be recorded."""
    if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
