"""Train as train_snn.py does, and log the temporal Fisher information as training goes on.

A small VGG on the 8x8 digits, T = 8, in half a minute on two CPU cores. The information centroid IC
rises above the flat line 4.5 in the first epochs and ends below 2.5: information concentrates in
the early timesteps:

    python train_snn_fisherinfo.py --dataset digits

The paper's network and epochs (ResNet19, CIFAR-10, T = 10, epochs 20, 120 and 300), for a GPU:

    python train_snn_fisherinfo.py

Saved models, this project's or those that the release published, instead of training one:

    python train_snn_fisherinfo.py --checkpoints runs/NAME/checkpoint_*.pt
    python train_snn_fisherinfo.py --checkpoints T10_Dcifar10_Aresnet19_ce/*_ckpt_0020.pth.tar

Under torchrun each process takes its share of the samples, with the same result. Measuring changes
nothing in the training: the weights are those of train_snn.py with the same flags. The run folder
has, beside that script's files, fisher.jsonl (a line a measurement), fisher_samples.pt (the squared
gradient norms [T, N] of each) and figures/fisher.png.
"""

import math
import re
import time
from dataclasses import dataclass
from itertools import product

import torch
from tqdm import tqdm

import config
import plots
import utils
from fisher import (
    PREFIXES,
    RELEASE_BATCH,
    TemporalFisher,
    batch_means,
    centroid,
    centroid_interval,
    draw_labels,
    prefix_losses,
    prefix_residuals,
    quotient,
)
from parser import expand_epochs
from train_snn import evaluate, fit, run_folder, setup
from utils import FISHER_FILE, SAMPLES_FILE, BadInput, of_all, rank


@dataclass
class Subset:
    """This process's share of the samples that are measured: inputs x [N, ...] and labels y [N] on
    the device, how many the shares before it have, and all of them."""

    x: torch.Tensor
    y: torch.Tensor
    before: int
    total: int


def fisher_subset(args, dataset, split, whole=1):
    """`--fisher_samples` of the data set, encoded once, the same at every epoch; a share is of
    whole batches of `whole` samples."""
    utils.seed_all(args.seed, "subset")
    index = torch.randperm(len(dataset))[: args.fisher_samples].to(dataset.device)
    batches = len(index) // whole
    if batches < max(2, utils.processes()):
        kind = "samples" if whole == 1 else f"whole batches of {whole}"
        raise BadInput(
            f"{split} has {batches} {kind} to measure: an error bar needs 2, and each process 1"
        )
    x, y = next(dataset.subset(index).batches(len(index), args.seed))
    share = utils.own_share(batches)
    share = slice(share.start * whole, share.stop * whole)
    return Subset(dataset.encode(x)[share], y[share], share.start, batches * whole)


@dataclass(frozen=True)
class Measurement:
    """What is measured: labels "data", "model" or "exact", a prefix of PREFIXES, an estimator
    "exact" or "release", samples in one pass, and the seed of labels that are drawn."""

    labels: str = "data"
    prefix: str = "cumulative"
    estimator: str = "exact"
    batch: int | None = None
    seed: int = 0


def weighted_labels(measurement, outputs, y, generator):
    """Labels whose gradients are squared, each [N] or [T, N], with their weights, 1 or [T, N]."""
    if measurement.labels == "data":
        return [(y, 1)]
    if measurement.labels == "model":
        return [(draw_labels(outputs, generator, measurement.prefix), 1)]
    shares = PREFIXES[measurement.prefix](outputs).softmax(2).unbind(2)
    return [(torch.full_like(y, k), share) for k, share in enumerate(shares)]


def squared_norms(measurement, model, x):
    """(function of x and y -> {parameter name: [T, N]}, samples in one call). That of the released
    estimator gives a column a batch instead of a column a sample."""
    if measurement.estimator == "release":
        size = measurement.batch or RELEASE_BATCH
        return lambda x, y: batch_means(model, x, y, size, prefix=measurement.prefix), size
    estimator = TemporalFisher(model, measurement.prefix)
    return estimator, measurement.batch or estimator.chunk(x)


def measure_share(measurement, model, subset):
    """Of this process's samples: [squared norms, losses, residuals, right or wrong], each [T, N],
    and {layer: sum over samples [T]}."""
    generator = torch.Generator().manual_seed(measurement.seed)
    steps = model(subset.x[:1]).shape[0]
    torch.rand(
        subset.before * steps, generator=generator, dtype=torch.float64
    )  # of other processes
    norms_of, size = squared_norms(measurement, model, subset.x)
    parts, layers = [], {}
    chunks = list(zip(subset.x.split(size), subset.y.split(size)))
    for x, y in tqdm(chunks, "fisher", disable=utils.no_bar(), leave=False):
        outputs = model(x)
        correct = PREFIXES[measurement.prefix](outputs).argmax(2) == y
        fisher = loss = residual = 0
        for label, weight in weighted_labels(measurement, outputs, y, generator):
            loss = loss + weight * prefix_losses(outputs, label, measurement.prefix)
            residual = residual + weight * prefix_residuals(outputs, label, measurement.prefix)
            for name, norm in norms_of(x, label).items():
                norm, layer = (weight * norm).cpu().double(), name.rpartition(".")[0]  # (T, N)
                fisher = fisher + norm
                layers[layer] = layers.get(layer, 0) + norm.sum(1)
        parts.append((fisher, *(values.cpu().double() for values in (loss, residual, correct))))
    return [torch.cat(columns, 1) for columns in zip(*parts)], layers


@torch.no_grad()
def measure(measurement, model, subset):
    """The measured part of a line of fisher.jsonl, and the squared norms [T, N] that it is of.

    Raises BadInput if all gradients are 0 or one is not finite.
    """
    start = time.perf_counter()
    model.eval()
    columns, sums = zip(*of_all(measure_share(measurement, model, subset)))
    per_sample, losses, residuals, right = (torch.cat(column, 1) for column in zip(*columns))
    curve, loss, residual, correct = (v.mean(1) for v in (per_sample, losses, residuals, right))
    if not 0 < curve.sum() < math.inf:
        raise BadInput(
            f"the Fisher information of {subset.total} samples is {curve.tolist()}: no centroid"
        )
    layers, scale_free = {}, {}
    for name, module in model.named_modules():  # in the order of the network
        if name in sums[0]:
            layers[name] = sum(share[name] for share in sums) / per_sample.shape[1]
            scale = sum(p.square().sum().item() for p in module.parameters(recurse=False))
            scale_free[name] = (layers[name] * scale).tolist()
            layers[name] = layers[name].tolist()
    line = {
        "timestep": len(curve),
        "samples": subset.total,
        "prefix": measurement.prefix,
        "estimator": measurement.estimator,
        "fisher": curve.tolist(),
        "fisher_stderr": (per_sample.std(1) / per_sample.shape[1] ** 0.5).tolist(),
        "ic": centroid(curve).item(),
        "ic_ci": centroid_interval(per_sample),
        "ic_per_loss": centroid(quotient(curve, loss)).item(),
        "ic_per_residual": centroid(quotient(curve, residual)).item(),
        "layers": layers,
        "layers_scale_free": scale_free,
        "prefix_loss": loss.tolist(),
        "prefix_residual": residual.tolist(),
        "prefix_accuracy": correct.tolist(),
        "seconds": time.perf_counter() - start,
    }
    if measurement.estimator == "exact":
        gain = quotient(per_sample, residuals).mean(1)
        line |= {"gain": gain.tolist(), "ic_gain": centroid(gain).item()}
    return line, per_sample


def print_header(timestep):
    """What the columns of `print_measurement` are."""
    curve = " ".join(f"{f'I_{t}':>8}" for t in range(1, timestep + 1))
    flat = (timestep + 1) / 2
    print(f"IC of a flat curve is {flat:.1f}; R is the mean squared residual of the predictions")
    print(f"epoch  samples/labels     IC [95 % interval]  IC of I/R  accuracy  {curve}")


def print_measurement(line, accuracy):
    """One line: epoch, IC with its interval, IC of I_t / R_t, test accuracy, I_1 .. I_T."""
    low, high = line["ic_ci"]
    curve = " ".join(f"{value:8.3g}" for value in line["fisher"])
    what = f"{line['split']}/{line['labels']}"
    tqdm.write(
        f"{line['epoch']!s:>5}  {what:>14}  {line['ic']:5.2f} [{low:5.2f}, {high:5.2f}]  "
        f"{line['ic_per_residual']:9.2f}  {accuracy:8.4f}  {curve}"
    )


def key(line):
    """What fisher_samples.pt calls the samples of a line."""
    names = ("epoch", "checkpoint", "split", "labels")
    return ", ".join(str(line[name]) for name in names if name in line)


def measure_all(args, run, model, subsets, about, accuracy):
    """Append and print a line for each of --fisher_split and --fisher_labels that `run` does not
    have yet. `about` is what the lines begin with: the epoch, and the checkpoint if it is one."""
    for (split, subset), labels in product(subsets.items(), args.fisher_labels):
        line = about | {"split": split, "labels": labels}
        lines = run.lines(FISHER_FILE)
        if key(line) in map(key, lines):
            continue
        path = run.folder / SAMPLES_FILE
        samples = utils.read_tensors(path) if lines and rank() == 0 else {}
        measurement = Measurement(
            labels, args.fisher_prefix, args.fisher_estimator, args.fisher_batch, args.seed
        )
        measured, per_sample = measure(measurement, model, subset)
        line |= measured
        alike = [key(x) for x in lines if (x["split"], x["labels"]) == (split, labels)]
        if alike and samples.get(alike[-1], per_sample[:0]).shape == per_sample.shape:
            before = samples[alike[-1]]
            line["ic_change"] = line["ic"] - centroid(before.double().mean(1)).item()
            line["ic_change_ci"] = centroid_interval(per_sample, before)
        run.save(SAMPLES_FILE, samples | {key(line): per_sample.float()})
        run.append(FISHER_FILE, line)
        print_measurement(line, accuracy)


def measure_checkpoints(args, run, model, subsets, test_set):
    """Measure the models of --checkpoints, in that order."""
    for path in args.checkpoints:
        checkpoint = utils.load_checkpoint(path)
        utils.load_weights(model, checkpoint, path, args)
        number = re.search(r"_(\d{4})\.", path)  # the release's have their epoch in the name alone
        epoch = checkpoint.get("epoch", int(number[1]) if number else None)
        accuracy = evaluate(model, test_set, args)["prefix_accuracy"][-1]
        measure_all(args, run, model, subsets, {"epoch": epoch, "checkpoint": path}, accuracy)


def main(argv=None):
    args = config.parse("train_snn_fisherinfo", argv, __doc__)
    model, train_set, test_set, replaced = setup(args)
    whole = (args.fisher_batch or RELEASE_BATCH) if args.fisher_estimator == "release" else 1
    sets = {"train": train_set, "test": test_set}
    subsets = {split: fisher_subset(args, sets[split], split, whole) for split in args.fisher_split}
    epochs = expand_epochs(args.fisher_epochs, args.epochs)
    with run_folder(args, test_set, replaced) as run:

        def after_epoch(line):
            if line["epoch"] in epochs:
                about = {"epoch": line["epoch"]}
                measure_all(args, run, model, subsets, about, line["test_accuracy"])

        print_header(args.timestep)
        if args.checkpoints:
            measure_checkpoints(args, run, model, subsets, test_set)
        else:
            fit(args, run, model, train_set, test_set, after_epoch)
        if rank() == 0:
            if not args.checkpoints:
                plots.training(run.folder)
            print(f"run folder {run.folder}\nfigure     {plots.fisher(run.folder)}")


if __name__ == "__main__":
    utils.run_script(main, "train_snn_fisherinfo.py", several_processes=True)
