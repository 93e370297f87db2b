"""Train as train_snn.py does, and log the temporal Fisher information as training goes on.

A small VGG on the 8x8 digits, T = 8, in under a minute on two CPU cores. The information centroid IC rises above the
flat line 4.5 in the first epochs and ends below 2.5: information concentrates in the early timesteps:

    python train_snn_fisherinfo.py --dataset digits

The paper's network and epochs (ResNet19, CIFAR-10, T = 10, epochs 20, 120 and 300) on a GPU:

    python train_snn_fisherinfo.py

Saved models, this project's or those that the release published, instead of training one:

    python train_snn_fisherinfo.py --checkpoints runs/NAME/checkpoint_0010.pt runs/NAME/checkpoint_latest.pt
    python train_snn_fisherinfo.py --dataset cifar10 --arch resnet19 --timestep 10 --checkpoints *_ckpt_0020.pth.tar

on several devices, each with its share of the samples, with the same result:

    torchrun --standalone --nproc_per_node=8 train_snn_fisherinfo.py --checkpoints runs/NAME/checkpoint_*.pt

Measuring changes nothing in the training: the weights are those of train_snn.py with the same flags. The run folder
has, beside that script's files, fisher.jsonl (a line a measurement), fisher_samples.pt (the squared gradient norms
[T, N] of each, which IC of two measurements is compared by) and figures/fisher.png.
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
from train_snn import evaluate, fit, record_corruption, run_folder, setup
from utils import (
    FISHER_FILE,
    SAMPLES_FILE,
    BadInput,
    StopSignals,
    load_checkpoint,
    load_weights,
    no_bar,
    of_all,
    own_part,
    processes,
    rank,
    run_script,
    seed_all,
)


@dataclass
class Subset:
    """This process's share of the samples that are measured: inputs x [N, ...] and labels y [N] on the device, how many
    the shares before it have, and all of them."""

    x: torch.Tensor
    y: torch.Tensor
    before: int
    total: int


def fisher_subsets(args, train_set, test_set):
    """The samples that are measured, encoded once, the same at every epoch: `--fisher_samples` of each split."""
    subsets = {}
    batch = (args.fisher_batch or RELEASE_BATCH) if args.fisher_estimator == "release" else 1
    for split in args.fisher_split:
        dataset = {"train": train_set, "test": test_set}[split]
        seed_all(args.seed, "subset")
        index = torch.randperm(len(dataset))[: args.fisher_samples].to(dataset.labels.device)
        batches = len(index) // batch
        if batches < max(2, processes()):
            kind = "sample" if batch == 1 else f"whole batch of {batch}"
            raise BadInput(f"--fisher_split {split} has {batches} {kind}: an error bar needs 2, and each process 1")
        seed_all(args.seed, "evaluate")
        x, y = dataset.batch(index)
        start, end = own_part(batches).start * batch, own_part(batches).stop * batch
        subsets[split] = Subset(x[start:end], y[start:end], start, batches * batch)
    return subsets


def weighted_labels(kind, outputs, y, prefix, generator):
    """Labels whose gradients are squared, each [N] or [T, N], with their weights, 1 or [T, N]."""
    if kind == "data":
        return [(y, 1)]
    if kind == "model":
        return [(draw_labels(outputs, generator, prefix), 1)]
    return [(torch.full_like(y, k), share) for k, share in enumerate(PREFIXES[prefix](outputs).softmax(2).unbind(2))]


def squared_norms(args, model, x):
    """What measures samples like those of x: (function of x and y -> {parameter name: [T, N]}, samples in one call).

    The function of --fisher_estimator release gives a column a batch instead of a column a sample.
    """
    if args.fisher_estimator == "release":
        size = args.fisher_batch or RELEASE_BATCH
        return lambda x, y: batch_means(model, x, y, size, prefix=args.fisher_prefix), size
    estimator = TemporalFisher(model, args.fisher_prefix)
    return estimator, args.fisher_batch or estimator.chunk(x)


@torch.no_grad()
def measure(args, model, subset, labels, stop):
    """The measured part of a line of fisher.jsonl, and the squared norms [T, N] that it is of.

    Raises Stopped after a signal, and BadInput if all gradients are 0 or one is not finite.
    """
    start = time.perf_counter()
    model.eval()
    generator = torch.Generator().manual_seed(args.seed)
    torch.rand(subset.before * args.timestep, generator=generator, dtype=torch.float64)  # what other processes draw
    norms_of, size = squared_norms(args, model, subset.x)
    parts, layers = [], {}
    chunks = list(zip(subset.x.split(size), subset.y.split(size)))
    for x, y in tqdm(chunks, "fisher", disable=no_bar(), leave=False):
        outputs = model(x)
        correct = PREFIXES[args.fisher_prefix](outputs).argmax(2) == y
        fisher = loss = residual = 0
        for label, weight in weighted_labels(labels, outputs, y, args.fisher_prefix, generator):
            loss = loss + weight * prefix_losses(outputs, label, args.fisher_prefix)
            residual = residual + weight * prefix_residuals(outputs, label, args.fisher_prefix)
            for name, norm in norms_of(x, label).items():
                norm, layer = (weight * norm).cpu().double(), name.rpartition(".")[0]  # (T, N)
                fisher = fisher + norm
                layers[layer] = layers.get(layer, 0) + norm.sum(1)
        parts.append((fisher, *(values.cpu().double() for values in (loss, residual, correct))))
        stop.check()
    stop.check(together=True)
    shares = of_all(([torch.cat(columns, 1) for columns in zip(*parts)], layers))
    per_sample, losses, residuals, right = (torch.cat(columns, 1) for columns in zip(*(share for share, _ in shares)))
    names = [name for name, _ in model.named_modules() if name in layers]  # in the order of the network
    layers = {name: sum(sums[name] for _, sums in shares) / per_sample.shape[1] for name in names}
    curve, loss, residual, correct = (values.mean(1) for values in (per_sample, losses, residuals, right))
    if not 0 < curve.sum() < math.inf:
        raise BadInput(f"the Fisher information of {subset.total} samples is {curve.tolist()}: it has no centroid")
    scale = {name: sum(p.square().sum().item() for p in model.get_submodule(name).parameters(False)) for name in layers}
    line = {
        "timestep": len(curve),
        "samples": subset.total,
        "prefix": args.fisher_prefix,
        "estimator": args.fisher_estimator,
        "fisher": curve.tolist(),
        "fisher_stderr": (per_sample.std(1) / per_sample.shape[1] ** 0.5).tolist(),
        "ic": centroid(curve).item(),
        "ic_ci": centroid_interval(per_sample),
        "ic_per_loss": centroid(quotient(curve, loss)).item(),
        "ic_per_residual": centroid(quotient(curve, residual)).item(),
        "layers": {name: values.tolist() for name, values in layers.items()},
        "layers_scale_free": {name: (values * scale[name]).tolist() for name, values in layers.items()},
        "prefix_loss": loss.tolist(),
        "prefix_residual": residual.tolist(),
        "prefix_accuracy": correct.tolist(),
        "seconds": time.perf_counter() - start,
    }
    if args.fisher_estimator == "exact":
        gain = quotient(per_sample, residuals).mean(1)
        line |= {"gain": gain.tolist(), "ic_gain": centroid(gain).item()}
    return line, per_sample


def print_header(timestep):
    """What the columns of `print_measurement` are; a flat curve has its centroid at (T + 1) / 2."""
    curve = " ".join(f"{f'I_{t}':>8}" for t in range(1, timestep + 1))
    print(f"IC of a flat curve is {(timestep + 1) / 2:.1f}; R is the mean squared residual of the predictions")
    print(f"epoch  samples/labels     IC [95 % interval]  IC of I/R  accuracy  {curve}")


def print_measurement(line, accuracy):
    """One line on standard output: epoch, IC with its interval, IC of I_t / R_t, test accuracy, I_1 .. I_T."""
    low, high = line["ic_ci"]
    curve = " ".join(f"{value:8.3g}" for value in line["fisher"])
    kind = f"{line['split']}/{line['labels']}"
    tqdm.write(
        f"{line['epoch']!s:>5}  {kind:>14}  {line['ic']:5.2f} [{low:5.2f}, {high:5.2f}]  "
        f"{line['ic_per_residual']:9.2f}  {accuracy:8.4f}  {curve}"
    )


def measure_all(args, run, model, subsets, about, accuracy, stop):
    """Append and print a line for each of --fisher_split and --fisher_labels that `run` does not have yet; `about` is
    what the lines begin with: the epoch, and the checkpoint if it is one."""

    def key(line):
        return ", ".join(str(line[name]) for name in ("epoch", "checkpoint", "split", "labels") if name in line)

    for (split, subset), labels in product(subsets.items(), args.fisher_labels):
        line = about | {"split": split, "labels": labels}
        lines, samples = of_all((run.lines(FISHER_FILE), run.load(SAMPLES_FILE)))[0]
        if key(line) in map(key, lines):
            continue
        found, per_sample = measure(args, model, subset, labels, stop)
        line |= found
        before = [key(other) for other in lines if (other["split"], other["labels"]) == (split, labels)]
        if before and samples.get(before[-1], per_sample[:0]).shape == per_sample.shape:
            line["ic_change"] = line["ic"] - centroid(samples[before[-1]].double().mean(1)).item()
            line["ic_change_ci"] = centroid_interval(per_sample, samples[before[-1]])
        run.save(SAMPLES_FILE, samples | {key(line): per_sample.float()})
        run.append(FISHER_FILE, line)
        print_measurement(line, accuracy)


def measure_checkpoints(args, run, model, subsets, test_set):
    """Measure the models of --checkpoints, in that order."""
    with StopSignals() as stop:
        for path in args.checkpoints:
            checkpoint = load_checkpoint(path)
            load_weights(model, checkpoint, path, args)
            number = re.search(r"_(\d{4})\.", path)  # the release's files have their epoch in the name alone
            epoch = checkpoint.get("epoch", int(number[1]) if number else None)
            accuracy = evaluate(model, test_set, args, stop)["prefix_accuracy"][-1]
            measure_all(args, run, model, subsets, {"epoch": epoch, "checkpoint": path}, accuracy, stop)


def main(argv=None):
    args = config.parse("train_snn_fisherinfo", argv, __doc__)
    model, train_set, test_set, corrupted = setup(args)
    subsets = fisher_subsets(args, train_set, test_set)
    epochs = config.expand_epochs(args.fisher_epochs, args.epochs)
    with run_folder(args, train_set.labels.device) as run:
        record_corruption(args, run, test_set, corrupted)
        run.keep_lines(FISHER_FILE, lambda line: True)  # drops a line that a killed process left torn

        def after_epoch(line, stop):
            if line["epoch"] in epochs:
                measure_all(args, run, model, subsets, {"epoch": line["epoch"]}, line["test_accuracy"], stop)

        print_header(args.timestep)
        if args.checkpoints:
            measure_checkpoints(args, run, model, subsets, test_set)
        else:
            fit(args, run, model, train_set, test_set, after_epoch)
            if rank() == 0:
                plots.training(run.folder)
        if rank() == 0:
            print(f"run folder {run.folder}\nfigure     {plots.fisher(run.folder)}")


if __name__ == "__main__":
    run_script(main, "train_snn_fisherinfo.py")
