"""A whole curve with its error bars, in one call.

    from fisher import measure
    m = measure(model, loader, samples=512)      # batches of (x, y), a DataLoader too
    print(m.ic, m.ic_interval, m.fisher)

Under torch.distributed, give the same batches in every process. Each process measures its share of
them, and all return the whole result.
"""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from fisher.definition import (
    PREFIXES,
    centroid,
    centroid_interval,
    check_arguments,
    check_outputs,
    draw_labels,
    prefix_losses,
    prefix_residuals,
    quotient,
    squared_norm,
)
from fisher.fast import TemporalFisher
from fisher.refusals import check_modules

LABELS = ("data", "model", "exact")
ESTIMATORS = ("exact", "release")


@dataclass
class Measurement:
    """A temporal Fisher curve over T timesteps from N samples (released estimator: N batches)."""

    timestep: int  # T
    samples: int
    prefix: str
    estimator: str
    fisher: list  # I_t [T]
    stderr: list  # its standard error [T]; "fisher_stderr" in a line
    ic: float | None  # information centroid, in timesteps from 1; None without information
    ic_interval: tuple | None  # its 95 % bootstrap interval; "ic_ci" in a line
    ic_per_loss: float | None  # centroid of I_t / L_t
    ic_per_residual: float | None  # centroid of I_t / R_t
    layers: dict  # {layer: I_t of its parameters [T]}
    layers_scale_free: dict  # the same times the squared norm of the parameters
    prefix_loss: list  # L_t, the mean loss in nats [T]
    prefix_residual: list  # R_t, the mean squared residual [T]
    prefix_accuracy: list  # [T]
    gain: list | None  # mean of squared norm / squared residual [T]; only the exact estimator
    ic_gain: float | None  # its centroid
    seconds: float
    per_sample: torch.Tensor  # squared gradient norms [T, N], float64

    def line(self):
        """The measurement as a line of fisher.jsonl: plain values, without `per_sample`."""
        line = {name: value for name, value in vars(self).items() if name != "per_sample"}
        line["fisher_stderr"] = line.pop("stderr")
        line["ic_ci"] = line.pop("ic_interval")
        if self.gain is None:
            del line["gain"], line["ic_gain"]
        return line


@torch.no_grad()
def measure(model, batches, *, samples=None, labels="data", prefix="cumulative",
            estimator="exact", seed=0, skip=(), chunk=None):  # fmt: skip
    """Measure the temporal Fisher information of a model in eval mode.

    Args:
        model: module with model(x) -> outputs [T, N, classes].
        batches: iterable of (x, y), inputs samples first and labels [N].
        samples: measure only the first so many; without it, all.
        labels: "data", the empirical Fisher information; "model", the true one, with labels drawn
            from the prediction with `seed`; "exact", the true one, summed over the classes.
        prefix: "cumulative" or "instant", as in `temporal_fisher`.
        estimator: "exact", or "release": the squared norm of each batch's mean gradient, as in the
            paper's script. It leaves out a smaller last batch.
        skip, chunk: as in `temporal_fisher`.

    Returns a `Measurement`. Raises ValueError for unknown names, for fewer than two samples or
    batches, if the Fisher information is not finite, and for all that `temporal_fisher` refuses.
    """
    for value, known in ((labels, LABELS), (estimator, ESTIMATORS)):
        if value not in known:
            raise ValueError(f"unknown {value!r}: choose from {', '.join(known)}")
    if samples is not None and samples < 2:
        raise ValueError(f"an error bar needs at least two samples, not {samples}")
    if labels == "exact" and estimator == "release":
        raise ValueError("the released estimator needs labels from the data or the model")
    start = time.perf_counter()
    fisher = TemporalFisher(model, prefix, chunk, skip)
    check_modules(model)
    parameters = fisher.parameters
    squared_norms = fisher.of_mean if estimator == "release" else fisher
    device = next(iter(parameters.values())).device
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    columns, sizes = {}, []  # of the batches
    for number, (x, y) in enumerate(first(batches, samples, whole=estimator == "release")):
        if number % processes == rank:
            check_arguments(x, y, prefix)
            x, y = x.to(device), y.to(device)
            outputs = check_outputs(model(x), x, y)
            weighted = weighted_labels(outputs, y, labels, prefix, seed, sum(sizes))
            columns[number] = measure_batch(outputs, x, y, weighted, prefix, squared_norms)
        sizes.append(len(x))
    count = sum(sizes) if estimator == "exact" else len(sizes)
    if count < 2:
        raise ValueError(f"an error bar needs at least two samples or batches, not {count}")
    about = {"samples": sum(sizes), "prefix": prefix, "estimator": estimator}
    return summarise(*joined(columns, processes), parameters, about, start)


def first(batches, samples, whole):
    """The batches of the first `samples`. With `whole`, stop at one smaller than the first."""
    size = None
    for x, y in batches:
        if samples is not None:
            x, y = x[:samples], y[:samples]
            samples -= len(x)
        size = size or len(x)
        if whole and len(x) < size:
            return
        if len(x):
            yield x, y
        if samples == 0:
            return  # before another batch is loaded


def weighted_labels(outputs, y, labels, prefix, seed, before):
    """The labels, [N] or [T, N], whose gradients are squared, each with its weight, 1 or [T, N].
    `before` is the number of samples in earlier batches; their random numbers are skipped."""
    if labels == "data":
        return [(y, 1)]
    if labels == "model":
        generator = torch.Generator().manual_seed(seed)
        torch.rand(before * len(outputs), generator=generator, dtype=torch.float64)
        return [(draw_labels(outputs, generator, prefix), 1)]
    shares = PREFIXES[prefix](outputs).softmax(2).unbind(2)
    return [(torch.full_like(y, k), share) for k, share in enumerate(shares)]


def measure_batch(outputs, x, y, weighted, prefix, squared_norms):
    """Columns of one batch, float64 on the CPU: {parameter name: squared norms [T, N]}, losses,
    residuals, and whether predictions are right, each [T, N]."""
    norms, loss, residual = {}, 0, 0
    for label, weight in weighted:
        loss = loss + weight * prefix_losses(outputs, label, prefix)
        residual = residual + weight * prefix_residuals(outputs, label, prefix)
        for name, values in squared_norms(x, label).items():
            norms[name] = norms.get(name, 0) + (weight * values).cpu().double()
    right = PREFIXES[prefix](outputs).argmax(2) == y
    return norms, *(values.cpu().double() for values in (loss, residual, right))


def joined(columns, processes):
    """{batch: columns} of each process -> the columns of all batches, in their order."""
    if processes > 1:
        shares = [None] * processes
        dist.all_gather_object(shares, columns)
        columns = {number: share[number] for share in shares for number in share}
    norms, *others = zip(*(columns[number] for number in sorted(columns)))
    norms = {name: torch.cat([batch[name] for batch in norms], 1) for name in norms[0]}
    return norms, *(torch.cat(values, 1) for values in others)


def summarise(norms, loss, residual, right, parameters, about, start):
    """Make the Measurement from {parameter name: squared norms [T, N]} and the others, [T, N]."""
    per_sample = sum(norms.values())
    curve, mean_loss, mean_residual = per_sample.mean(1), loss.mean(1), residual.mean(1)
    if not curve.isfinite().all():
        raise ValueError(f"the Fisher information is not finite: {curve.tolist()}")
    layers, scales = {}, {}
    for name, values in norms.items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0) + values.mean(1)
        scales[layer] = scales.get(layer, 0) + squared_norm(parameters[name]).item()
    scale_free = {layer: (values * scales[layer]).tolist() for layer, values in layers.items()}
    gain = None
    if about["estimator"] == "exact":  # the mean over samples whose residual is above 0 in float32
        sums = quotient(per_sample, residual).sum(1)
        gain = sums / residual.count_nonzero(1).clamp(min=1)
    return Measurement(
        timestep=len(curve),
        **about,
        fisher=curve.tolist(),
        stderr=(per_sample.std(1) / per_sample.shape[1] ** 0.5).tolist(),
        ic=centroid_or_none(curve),
        ic_interval=centroid_interval(per_sample) if curve.any() else None,
        ic_per_loss=centroid_or_none(quotient(curve, mean_loss)),
        ic_per_residual=centroid_or_none(quotient(curve, mean_residual)),
        layers={layer: values.tolist() for layer, values in layers.items()},
        layers_scale_free=scale_free,
        prefix_loss=mean_loss.tolist(),
        prefix_residual=mean_residual.tolist(),
        prefix_accuracy=right.mean(1).tolist(),
        gain=None if gain is None else gain.tolist(),
        ic_gain=None if gain is None else centroid_or_none(gain),
        seconds=time.perf_counter() - start,
        per_sample=per_sample,
    )


def centroid_or_none(curve):
    """The centroid of a curve; None if there is no information."""
    return centroid(curve).item() if curve.any() else None
