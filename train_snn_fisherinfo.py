"""Train as train_snn.py does, and measure the temporal Fisher information during training.

A small VGG learns the 8x8 digits, T = 8, in half a minute on two CPU cores. The information
centroid IC first rises above 4.5, the value of a flat curve. It ends below 2.5, so information
concentrates in the early timesteps:

    python train_snn_fisherinfo.py --dataset digits

The network and the epochs of the paper (ResNet19, CIFAR-10, T = 10, epochs 20, 120 and 300), on a
GPU:

    python train_snn_fisherinfo.py

Measure saved models, of this project or of the release, without training:

    python train_snn_fisherinfo.py --checkpoints runs/NAME/checkpoint_0*.pt
    python train_snn_fisherinfo.py --checkpoints T10_Dcifar10_Aresnet19_ce/*_ckpt_0020.pth.tar

Under torchrun the processes share the samples; the result is the same. Measuring does not change
the training: train_snn.py gives the same weights with the same flags. The run folder has the files
of train_snn.py, fisher.jsonl (one line per measurement), fisher_samples.pt (the squared gradient
norms [T, N] of each measurement) and figures/fisher.png.
"""

import re
from itertools import product

import torch
from tqdm import tqdm

import config
import plots
import tables
import utils
from fisher import RELEASE_BATCH, centroid, centroid_interval, measure
from parser import expand_epochs
from train_snn import evaluate, fit, setup
from utils import FISHER_FILE, SAMPLES_FILE, BadInput, Run, rank

BATCH = 64  # samples that are measured together


def fisher_batches(args, dataset, size=BATCH):
    """Draw --fisher_samples samples of the data set, the same at every epoch, and encode them.
    Returns batches [(x, y), ...] of `size` samples."""
    utils.seed_all(args.seed, "subset")
    index = torch.randperm(len(dataset))[: args.fisher_samples]
    x, y = next(dataset.subset(index).batches(len(index), args.seed))
    x = dataset.encode(x)
    return list(zip(x.split(size), y.split(size)))


def key(line):
    """The name of a line's samples in fisher_samples.pt."""
    names = ("epoch", "checkpoint", "split", "labels")
    return ", ".join(str(line[name]) for name in names if name in line)


def measure_all(args, run, model, batches, about, accuracy):
    """Measure each of --fisher_split and --fisher_labels that `run` does not have yet. Append and
    print its line. A line starts with `about`: the epoch, and the checkpoint if there is one."""
    model.eval()
    for (split, split_batches), labels in product(batches.items(), args.fisher_labels):
        line = about | {"split": split, "labels": labels}
        lines = run.lines(FISHER_FILE)
        if key(line) in map(key, lines):
            continue
        try:
            measurement = measure(
                model,
                tqdm(split_batches, "fisher", disable=True if rank() else None, leave=False),
                labels=labels,
                prefix=args.fisher_prefix,
                estimator=args.fisher_estimator,
                seed=args.seed,
                chunk=args.fisher_batch if args.fisher_estimator == "exact" else None,
            )
        except ValueError as error:
            raise BadInput(f"the Fisher information cannot be measured: {error}") from error
        line |= measurement.line()
        path = run.folder / SAMPLES_FILE
        samples = utils.read_tensors(path) if lines and rank() == 0 else {}
        before = [old for old in lines if (old["split"], old["labels"]) == (split, labels)]
        if rank() == 0 and before and None not in (line["ic"], before[-1]["ic"]):
            line |= change(measurement.per_sample, samples[key(before[-1])].double())
        run.save(SAMPLES_FILE, samples | {key(line): measurement.per_sample.float()})
        run.append(FISHER_FILE, line)
        tables.print_measurement(args, line, accuracy)


def change(per_sample, before):
    """The change of the information centroid since the squared norms `before` [T, N] of the same
    samples, as fields of a line."""
    difference = centroid(per_sample.mean(1)) - centroid(before.mean(1))
    return {
        "ic_change": difference.item(),
        "ic_change_ci": centroid_interval(per_sample, before),
    }


def measure_checkpoints(args, run, model, batches, test_set):
    """Measure the models of --checkpoints, in that order."""
    for path in args.checkpoints:
        checkpoint = utils.load_checkpoint(path)
        utils.load_weights(model, checkpoint, path, args)
        number = re.search(r"_(\d{4})\.", path)  # a released file has its epoch only in the name
        epoch = checkpoint.get("epoch", int(number[1]) if number else None)
        tqdm.write(path)
        accuracy = evaluate(model, test_set, args)["test_accuracy"]
        measure_all(args, run, model, batches, {"epoch": epoch, "checkpoint": path}, accuracy)


def main(argv=None):
    args = config.parse("train_snn_fisherinfo", argv, __doc__)
    model, train_set, test_set = setup(args)
    sets = {"train": train_set, "test": test_set}
    size = BATCH
    if args.fisher_estimator == "release":  # one mean gradient per batch
        size = args.fisher_batch or RELEASE_BATCH
    batches = {split: fisher_batches(args, sets[split], size) for split in args.fisher_split}
    epochs = expand_epochs(args.fisher_epochs, args.epochs)
    for path in args.checkpoints or []:  # one that does not fit leaves no folder
        utils.load_weights(model, utils.load_checkpoint(path), path, args)
    with Run(args, test_set.device) as run:

        def after_epoch(line):
            if line["epoch"] in epochs:
                about = {"epoch": line["epoch"]}
                measure_all(args, run, model, batches, about, line["test_accuracy"])

        tables.print_measurement_header(args.timestep)
        if args.checkpoints:
            measure_checkpoints(args, run, model, batches, test_set)
        else:
            fit(args, run, model, train_set, test_set, after_epoch)
        print(tables.COLUMNS)
        if rank() == 0:
            if not args.checkpoints:
                plots.training(run.folder)
            print(f"run folder {run.folder}\nfigure     {plots.fisher_of(run.folder)}")


if __name__ == "__main__":
    utils.run_script(main, "train_snn_fisherinfo.py", several_processes=True)
