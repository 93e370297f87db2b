"""Train as train_snn.py does, and log the temporal Fisher information as training goes on.

A small VGG on the 8x8 digits, T = 8, in under a minute on two CPU cores. The information centroid IC rises above the
flat line 4.5 in the first epochs and ends below 2.5: information concentrates in the early timesteps:

    python train_snn_fisherinfo.py --dataset digits

The paper's network and epochs (ResNet19, CIFAR-10, T = 10, epochs 20, 120 and 300) on a GPU:

    python train_snn_fisherinfo.py

Saved models, this project's or those that the release published, instead of training one:

    python train_snn_fisherinfo.py --checkpoints runs/NAME/checkpoint_0010.pt runs/NAME/checkpoint_latest.pt
    python train_snn_fisherinfo.py --dataset cifar10 --arch resnet19 --timestep 10 --checkpoints *_ckpt_0020.pth.tar

Measuring changes nothing in the training: the weights are those of train_snn.py with the same flags. The run folder
has, beside that script's files, fisher.jsonl (a line a measurement) and figures/fisher.png.
"""

import re
import time

import torch
from tqdm import tqdm

import config
import plots
from fisher import centroid, centroid_interval, temporal_fisher
from train_snn import evaluate, fit, run_folder, setup
from utils import FISHER_FILE, LABELS_FILE, StopSignals, load_checkpoint, load_weights, run_script, seed_all

CHUNK = 32  # samples between looks at the stop signal


def fisher_subset(args, train_set, test_set):
    """The samples that are measured, the same at every epoch: `--fisher_samples` of `--fisher_split`."""
    dataset = {"train": train_set, "test": test_set}[args.fisher_split]
    seed_all(args.seed, "subset")
    return dataset.subset(torch.randperm(len(dataset))[: args.fisher_samples].to(dataset.labels.device))


def measure(args, model, subset, stop):
    """One line of fisher.jsonl, without its epoch. Raises Stopped after a signal."""
    start = time.perf_counter()
    found = evaluate(model, subset, args, stop)
    per_sample, layers = [], {}
    seed_all(args.seed, "evaluate")
    for x, y in tqdm(list(subset.batches(CHUNK)), "fisher", disable=None, leave=False):
        norms = {name: norm.cpu().double() for name, norm in temporal_fisher(model, x, y).items()}  # [T, N] each
        per_sample.append(sum(norms.values()))
        for name, norm in norms.items():
            layer = name.rpartition(".")[0]
            layers[layer] = layers.get(layer, 0) + norm.sum(1) / len(subset)
        stop.check()
    per_sample = torch.cat(per_sample, 1)  # (T, N)
    curve = per_sample.mean(1)
    return {
        "timestep": len(curve),
        "samples": len(subset),
        "split": args.fisher_split,
        "labels": "data",
        "fisher": curve.tolist(),
        "fisher_stderr": (per_sample.std(1) / len(subset) ** 0.5).tolist(),
        "ic": centroid(curve).item(),
        "ic_ci": centroid_interval(per_sample),
        "ic_per_loss": centroid(curve / torch.tensor(found["prefix_loss"], dtype=curve.dtype)).item(),
        "layers": {name: values.tolist() for name, values in layers.items()},
        "prefix_loss": found["prefix_loss"],
        "prefix_accuracy": found["prefix_accuracy"],
        "seconds": time.perf_counter() - start,
    }


def print_measurement(line, accuracy):
    """One line on standard output: epoch, IC with its interval, IC of I_t / L_t, test accuracy, I_1 .. I_T."""
    low, high = line["ic_ci"]
    curve = " ".join(f"{value:8.3g}" for value in line["fisher"])
    tqdm.write(
        f"{line['epoch']!s:>5}  {line['ic']:5.2f} [{low:5.2f}, {high:5.2f}]  {line['ic_per_loss']:9.2f}  "
        f"{accuracy:8.4f}  {curve}"
    )


def print_header(timestep):
    """What the columns of `print_measurement` are; a flat curve has its centroid at (T + 1) / 2."""
    curve = " ".join(f"{f'I_{t}':>8}" for t in range(1, timestep + 1))
    print(f"IC of a flat curve is {(timestep + 1) / 2:.1f}\nepoch     IC [95 % interval]  IC of I/L  accuracy  {curve}")


def measure_checkpoints(args, run, model, subset, test_set):
    """Measure the models of --checkpoints, in that order."""
    with StopSignals() as stop:
        for path in args.checkpoints:
            checkpoint = load_checkpoint(path)
            load_weights(model, checkpoint, path, args)
            number = re.search(r"_(\d{4})\.", path)  # the release's files have their epoch in the name alone
            epoch = checkpoint.get("epoch", int(number[1]) if number else None)
            accuracy = evaluate(model, test_set, args, stop)["prefix_accuracy"][-1]
            line = {"epoch": epoch, "checkpoint": path} | measure(args, model, subset, stop)
            run.append(FISHER_FILE, line)
            print_measurement(line, accuracy)


def main(argv=None):
    args = config.parse("train_snn_fisherinfo", argv, __doc__)
    model, train_set, test_set, corrupted = setup(args)
    subset = fisher_subset(args, train_set, test_set)
    epochs = config.expand_epochs(args.fisher_epochs, args.epochs)
    with run_folder(args) as run:
        if corrupted:
            run.save(LABELS_FILE, corrupted)
        run.keep_lines(FISHER_FILE, lambda line: True)  # drops a line that a killed process left torn
        measured = {line["epoch"] for line in run.lines(FISHER_FILE)}

        def after_epoch(line, stop):
            if line["epoch"] in epochs and line["epoch"] not in measured:
                measurement = {"epoch": line["epoch"]} | measure(args, model, subset, stop)
                run.append(FISHER_FILE, measurement)
                print_measurement(measurement, line["test_accuracy"])

        print_header(args.timestep)
        if args.checkpoints:
            measure_checkpoints(args, run, model, subset, test_set)
        else:
            fit(args, run, model, train_set, test_set, after_epoch)
            plots.training(run.folder)
        figure = plots.fisher(run.folder)
        print(f"run folder {run.folder}\nfigure     {figure}")


if __name__ == "__main__":
    run_script(main, "train_snn_fisherinfo.py")
