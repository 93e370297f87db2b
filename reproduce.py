"""Every claim of the paper, from one command each: what was run, a figure, a table and a verdict.

    python reproduce.py list
    python reproduce.py loss --seeds 5 --jobs 2
    python reproduce.py all

--scale small runs on the digits, on two CPU cores; --scale paper is the same with the recipe of the release (ResNet19,
CIFAR-10, T = 10), for GPUs. Runs are ordinary run folders under --out_dir: one that is complete is not run again, one
that was stopped goes on. Figures and tables go to --results.
"""

import argparse
import contextlib
import importlib
import json
import math
import multiprocessing
import platform
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from tqdm import tqdm

import config
import plots
from fisher import centroid
from utils import (
    FISHER_FILE,
    LATEST,
    LOG_FILE,
    PRUNING_FILE,
    ROBUSTNESS_FILE,
    BadInput,
    Stopped,
    read_lines,
    run_script,
    write_atomically,
)

# What a training of each scale has on its command line.
SCALES = {
    "small": ["--dataset", "digits"],
    "medium": ["--dataset", "cifar10", "--arch", "vgg5", "--width", "0.25", "--timestep", "5", "--epochs", "20",
               "--learning_rate", "0.1", "--amp", "bf16"],
    "paper": [],
    "dry": ["--dataset", "fake", "--fake_shape", "1", "8", "8", "--arch", "fc", "--width", "0.1", "--timestep", "8",
            "--epochs", "2", "--datanum", "64", "--fisher_samples", "8"],
}  # fmt: skip
ATTACK_EPS = {
    "small": 32,
    "medium": 4,
    "paper": 4,
    "dry": 32,
}  # in 1/255; what takes a network of that scale most of its accuracy
TRAIN = "train_snn_fisherinfo"
LAST = ["--fisher_epochs", "every:1000000", "--save_epochs", "every:1000000"]  # the last epoch alone
# 97.5 % points of Student's t distribution, by degrees of freedom.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


# ---------------------------------------------------------------- runs


@dataclass(frozen=True)
class Job:
    """A command line of a script. Its run folder is complete when it has that figure."""

    name: str
    script: str
    flags: tuple
    figure: str

    def folder(self, args):
        return Path(args.out_dir) / self.name

    def asked(self, args):
        """The file beside its folder that says what it is a run of."""
        return Path(args.out_dir) / f"{self.name}.json"

    def done(self, args):
        """Whether its folder is there, complete, and of this very command line."""
        asked, drawn = self.asked(args), self.folder(args) / "figures" / f"{self.figure}.png"
        return drawn.exists() and asked.exists() and json.loads(asked.read_text()) == [self.script, *self.flags]

    def words(self, args):
        """The command line to show: RUNS for the folder of the runs, SEED for the seed where there is one."""
        words = [re.sub(r"_\d+/(\w+\.pt)$", r"_SEED/\1", flag.replace(args.out_dir, "RUNS")) for flag in self.flags]
        if words[-2] == "--seed":
            words[-1] = "SEED"
        once = [word for i, word in enumerate(words) if i == 0 or word != words[i - 1]]
        return f"python {self.script}.py {' '.join(once)}"


def command(args, name, script, seed, *flags):
    """That script with the settings of --scale."""
    place = ["--data_dir", args.data_dir or "data"] if args.scale in ("medium", "paper") else []
    flags = (*SCALES[args.scale], *place, *flags, "--seed", str(seed))
    return Job(f"{name}_{seed}", script, flags, "pruning" if script == "prune_snn" else "fisher")


def perform(job, args, threads):
    """Do a job in this process; what it prints goes to a file beside its folder."""
    torch.set_num_threads(threads)
    log = Path(args.out_dir) / f"{job.name}.txt"
    with open(log, "a") as shown, contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            argv = [*job.flags, "--out_dir", args.out_dir, "--exp_name", job.name, "--resume"]
            importlib.import_module(job.script).main(argv)
        except SystemExit as stop:
            raise BadInput(f"{job.script}.py failed, {log} says why") from stop
        except Stopped as stop:
            raise KeyboardInterrupt from stop
    job.asked(args).write_text(json.dumps([job.script, *job.flags]))


def perform_all(jobs, args):
    """Do the jobs whose folders are not complete, --jobs at a time. Returns all the folders."""
    jobs = list(jobs)
    args.performed += jobs
    folders = [job.folder(args) for job in jobs]
    todo = [job for job in jobs if not job.done(args)]
    threads = max(1, torch.get_num_threads() // args.jobs)
    if args.jobs == 1:
        for job in tqdm(todo, "runs", leave=False, disable=None):
            perform(job, args, threads)
        return folders
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(perform, job, args, threads) for job in todo]
        try:
            for future in tqdm(as_completed(futures), "runs", total=len(todo), leave=False, disable=None):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return folders


# ---------------------------------------------------------------- numbers


class Effect(NamedTuple):
    """A mean over seeds and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __format__(self, digits):
        return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*self, d=digits or 2)


def effect(values):
    """Mean of the values of the seeds, with Student's 95 % interval; of one seed the interval is everything."""
    mean, count = statistics.mean(values), len(values)
    if count == 1:
        return Effect(mean, -math.inf, math.inf)
    point = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96
    half = point * statistics.stdev(values) / math.sqrt(count)
    return Effect(mean, mean - half, mean + half)


def beyond(found, bound):
    """Whether an effect is above `bound`: True or False if its whole interval says so, else None."""
    return True if found.low > bound else False if found.high < bound else None


def within(found, bound):
    """Whether an effect is no larger than `bound` either way: as `beyond`."""
    return False if max(found.low, -found.high) > bound else True if max(found.high, -found.low) <= bound else None


def verdict(checks):
    """What the parts of a claim add up to, each True, False or None (undecided)."""
    if all(check is True for check in checks):
        return "holds"
    if True in checks:
        return "holds in part"
    return "does not hold" if False in checks else "undecided"


def page(args, claim):
    """Where the figure of a claim goes."""
    return Path(args.results) / f"{claim}.png"


def spread(values, digits=2):
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


# ---------------------------------------------------------------- claims: concentration, layers

MOVED = 0.5  # of IC, that counts as moved
# Epochs that are measured; the digits have theirs in config.py.
EPOCHS = {
    "small": [],
    "medium": ["--fisher_epochs", "1", "2", "5", "10", "20"],
    "paper": ["--fisher_epochs", "0", "1", "5", "20", "60", "120", "300"],
    "dry": ["--fisher_epochs", "0", "1", "2"],
}
KINDS = [("train", "data"), ("train", "model"), ("test", "data"), ("test", "model")]


def trained(args):
    """The plain training of each seed, measured on all of KINDS as it goes on: done, and its folders."""
    flags = [*EPOCHS[args.scale], "--fisher_split", "train", "test", "--fisher_labels", "data", "model"]
    return perform_all([command(args, "trained", TRAIN, seed, *flags) for seed in range(args.seeds)], args)


def measurements(folder, split="train", labels="data"):
    """The lines of fisher.jsonl of one kind, without that before training: networks do not spike there yet."""
    lines = read_lines(folder / FISHER_FILE)
    return [line for line in lines if (line["split"], line["labels"]) == (split, labels) and line["epoch"] != 0]


def centre(curve):
    """The centroid of a curve [T]."""
    return centroid(torch.tensor(curve, dtype=torch.float64)).item()


def by_t(curves):
    """(t, mean, standard deviation) of curves [T] of several seeds, each as shares of its sum."""
    shares = torch.tensor(curves, dtype=torch.float64)
    shares = shares / shares.sum(1, keepdim=True)
    spread = shares.std(0).tolist() if len(curves) > 1 else None
    return list(range(1, shares.shape[1] + 1)), shares.mean(0).tolist(), spread


def concentrates(first, last, flat):
    """Is the IC of the last measurement MOVED (with less than 8 timesteps, a ninth of flat) or more below the first,
    and below that of a flat curve?"""
    fall, below = effect([a - b for a, b in zip(first, last)]), effect([flat - b for b in last])
    checks = [beyond(found, min(MOVED, flat / 9)) for found in (fall, below)]
    return verdict(checks), f"IC falls by {fall} and ends {below} below flat ({flat})."


def concentration(args):
    """Fisher information starts late or flat and concentrates in early timesteps while the network learns."""
    lines = [measurements(folder) for folder in trained(args)]
    rows = ["| seed | IC by epoch | IC of I_t / L_t at the end |", "|---:|---|---:|"]
    for seed, own in enumerate(lines):
        course = ", ".join(f"{line['ic']:.2f} ({line['epoch']})" for line in own)
        rows.append(f"| {seed} | {course} | {own[-1]['ic_per_loss']:.2f} |")
    curves = {f"epoch {own[0]['epoch']}": by_t([line["fisher"] for line in own]) for own in zip(*lines)}
    figure = plots.panels({"mean of the seeds": curves}, page(args, "concentration"), "timesteps t", "share of $I_t$")
    flat = (lines[0][0]["timestep"] + 1) / 2
    ends = [[own[at]["ic"] for own in lines] for at in (0, -1)]
    return {"IC": concentrates(*ends, flat)}, rows, figure


def layers(args):
    """The concentration happens in every layer."""
    lines = [measurements(folder) for folder in trained(args)]
    flat, verdicts, panels = (lines[0][0]["timestep"] + 1) / 2, {}, {}
    rows = ["| layer | IC, first epoch | IC at the end | share of the sum at the end |", "|---|---:|---:|---:|"]
    for name in lines[0][0]["layers"]:
        curves = [[own[at]["layers"][name] for own in lines] for at in (0, -1)]
        first, last = ([centre(curve) for curve in ends] for ends in curves)
        share = [sum(own[-1]["layers"][name]) / sum(own[-1]["fisher"]) for own in lines]
        rows.append(f"| {name} | {spread(first)} | {spread(last)} | {spread(share)} |")
        verdicts[name] = concentrates(first, last, flat)
        panels[name] = {f"epoch {lines[0][at]['epoch']}": by_t(ends) for at, ends in zip((0, -1), curves)}
    return verdicts, rows, plots.panels(panels, page(args, "layers"), "timesteps t", "share of the layer's $I_t$")


# ---------------------------------------------------------------- claim: settings

SETTINGS = {
    "fc, 3 layers": ["--arch", "fc", "--layernum", "3", "--width", "1"],
    "vgg9": ["--arch", "vgg9"],
    "resnet20": ["--arch", "resnet20", "--width", "0.5", "--batch_size", "16"],
    "T = 2": ["--timestep", "2"],
    "T = 4": ["--timestep", "4"],
    "T = 16": ["--timestep", "16"],
    "tau 1.33": ["--tau", "1.3333"],
    "tau 4": ["--tau", "4"],
    "threshold 0.5": ["--threshold", "0.5"],
    "soft reset": ["--reset", "soft"],
    "triangle surrogate": ["--surrogate", "triangle"],
    "norm folded": ["--norm", "folded"],
    "adam": ["--optimizer", "adam", "--learning_rate", "0.002"],
    "Poisson": ["--encode", "p"],
    "300 samples": ["--datanum", "300"],
    "random labels": ["--label_corrupt_prob", "1"],
}
# Where there is a --data_dir, beside the digits; the first of their training images, all of their test images.
# Ten epochs leave a loss on them; sixty, without augmentation, do not.
FEW = ["--arch", "vgg5", "--width", "0.25", "--timestep", "5", "--learning_rate", "0.1", "--datanum", "5000"]
LEARNED = {"": ["--epochs", "10"], ", fitted": ["--epochs", "60", "--no_augment"]}
DATA_SETS = {"Fashion-MNIST, 5000 images": "fashion_mnist", "CIFAR-10, 5000 images": "cifar10"}


def settings(args):
    """The concentration is common: across architectures, T, neurons, norms, optimizers, encodings, amounts of data."""
    chosen = {"fc, 3 layers": []} if args.scale == "dry" else dict(SETTINGS)
    if args.scale == "small" and args.data_dir is not None:
        chosen |= {
            name + how: ["--dataset", data, "--data_dir", args.data_dir, *FEW, *flags]
            for name, data in DATA_SETS.items()
            for how, flags in LEARNED.items()
        }
    runs, epochs = {}, ["--fisher_epochs", "1", "every:1000000"]
    for name, flags in chosen.items():
        short = f"settings_{name.replace(', ', '_').replace(' ', '_')}"
        runs[name] = [command(args, short, TRAIN, seed, *epochs, *flags) for seed in range(args.seeds)]
    perform_all([run for own in runs.values() for run in own], args)
    folders = {"as it is": trained(args)} | {name: [run.folder(args) for run in own] for name, own in runs.items()}
    verdicts, panels = {}, {}
    rows = [
        "| setting | flat | IC, epoch 1 | IC at the end | IC of I_t / L_t | accuracy |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, own in folders.items():
        lines = [measurements(folder) for folder in own]
        first, last, ratio = ([x[at][key] for x in lines] for at, key in ((0, "ic"), (-1, "ic"), (-1, "ic_per_loss")))
        accuracy = [read_lines(folder / LOG_FILE)[-1]["test_accuracy"] for folder in own]
        flat = (lines[0][0]["timestep"] + 1) / 2
        rows.append(f"| {name} | {flat} | {spread(first)} | {spread(last)} | {spread(ratio)} | {spread(accuracy, 3)} |")
        verdicts[name] = concentrates(first, last, flat)
        panels[name] = {f"epoch {lines[0][at]['epoch']}": by_t([x[at]["fisher"] for x in lines]) for at in (0, -1)}
    return verdicts, rows, plots.panels(panels, page(args, "settings"), "timesteps t", "share of $I_t$")


# ---------------------------------------------------------------- claim: robustness

HURTS = 0.02  # of accuracy, that counts as more


def robustness(args):
    """The early timesteps, where the information is, are where noise hurts."""
    paths = [str(folder / LATEST) for folder in trained(args)]
    length = torch.load(paths[0], weights_only=True)["args"]["timestep"]
    half = length // 2
    when = {"first half": range(1, half + 1), "last half": range(half + 1, length + 1), "all": range(1, length + 1)}
    noise = ["--noise_levels", "0.2", "0.4", "--blur_levels", "1"]
    jobs = []
    for name, times in when.items():
        eps = [str(ATTACK_EPS[args.scale] / k) for k in (4, 2, 1)] if name == "all" else []
        flags = (*paths, *noise, "--eps", *eps, *few_attacks(args), "--noisetime", *map(str, times))
        jobs.append(
            Job(
                f"robustness_{name.replace(' ', '_')}_of_{args.seeds}",
                "eval_snn_robustness",
                ("--checkpoints", *flags),
                "robustness",
            )
        )
    folders = dict(zip(when, perform_all(jobs, args)))
    lines = {name: read_lines(folder / ROBUSTNESS_FILE) for name, folder in folders.items()}
    found = {}
    for name, own in lines.items():
        for line in own:
            key = name if line["times"] else "-", line["threat"], line["strength"]
            found.setdefault(key, {})[line["checkpoint"]] = line["attacked"]
    rows = ["| timesteps | what | strength | accuracy |", "|---|---|---:|---:|"]
    rows += [f"| {' | '.join(map(str, key))} | {spread(list(own.values()), 3)} |" for key, own in found.items()]
    verdicts, panels = {}, {}
    for threat, strength in (("gaussian_noise", 0.4), ("blur", 1.0)):
        by_time = {name: list(found[name, threat, strength].values()) for name in when}
        hurt = effect([late - early for early, late in zip(by_time["first half"], by_time["last half"])])
        verdicts[f"{threat} {strength}"] = (
            verdict([beyond(hurt, HURTS)]),
            (f"accuracy with the last half of the timesteps corrupted is {hurt:3} above that with the first half."),
        )
        x, means = range(len(when)), [statistics.mean(values) for values in by_time.values()]
        panels[f"{threat} {strength}"] = {", ".join(when): (x, means, None)}
    return verdicts, rows, plots.panels(panels, page(args, "robustness"), "corrupted timesteps", "accuracy")


def few_attacks(args):
    """What makes an evaluation of a dry run short."""
    return ["--robust_samples", "16", "--attack_steps", "1", "--attack_surrogate", "own"] if args.scale == "dry" else []


# ---------------------------------------------------------------- claim: controls

RELEASE_SAMPLES = {"small": ["--fisher_samples", "1280"], "medium": ["--fisher_samples", "12800"],
                   "paper": ["--fisher_samples", "12800"], "dry": ["--fisher_batch", "16"]}  # fmt: skip

PLANTED = {"dry": ["--epochs", "2", "--datanum", "64", "--fisher_samples", "8", "--fisher_epochs", "2"]}
PLANTED_TIMES = [(1, 2), (4, 5), (7, 8)]


def planted(args):
    """Networks on frames whose class shows at known timesteps alone: {times: [the last measurement of a seed]}."""
    runs = {}
    for times in PLANTED_TIMES[: 1 if args.scale == "dry" else None]:
        flags = ("--dataset", "planted", "--planted_time", *map(str, times), *PLANTED.get(args.scale, LAST))
        name = f"controls_planted_{times[0]}-{times[-1]}"
        runs[times] = [
            Job(f"{name}_{seed}", TRAIN, (*flags, "--seed", str(seed)), "fisher") for seed in range(args.seeds)
        ]
    perform_all([run for own in runs.values() for run in own], args)
    return {times: [measurements(run.folder(args))[-1] for run in own] for times, own in runs.items()}


def controls(args):
    """What is left of the concentration under controls that the paper does not have."""
    folders = trained(args)
    variants = {"instantaneous outputs": ["--fisher_prefix", "instant"],
                "the released estimator": ["--fisher_estimator", "release", *RELEASE_SAMPLES[args.scale]]}  # fmt: skip
    again = {name: [] for name in variants}
    for name, flags in variants.items():
        for seed, folder in enumerate(folders):
            flags_ = ("--checkpoints", str(folder / LATEST), *flags)
            again[name].append(Job(f"controls_{name.replace(' ', '_')}_{seed}", TRAIN, flags_, "fisher"))
        again[name] = [measurements(folder)[-1] for folder in perform_all(again[name], args)]
    kinds = {kind: [measurements(folder, *kind)[-1] for folder in folders] for kind in KINDS}
    first = kinds["train", "data"]
    curves = {
        "as in the paper": [line["fisher"] for line in first],
        "I_t / L_t": [[value / lost for value, lost in zip(line["fisher"], line["prefix_loss"])] for line in first],
        "true Fisher (labels of the model)": [line["fisher"] for line in kinds["train", "model"]],
        "held-out samples": [line["fisher"] for line in kinds["test", "data"]],
        "held-out, true Fisher": [line["fisher"] for line in kinds["test", "model"]],
        **{name: [line["fisher"] for line in lines] for name, lines in again.items()},
    }
    flat, verdicts = (len(first[0]["fisher"]) + 1) / 2, {}
    rows = [f"| control | IC at the end (flat: {flat}) | below flat |", "|---|---:|---:|"]
    for name, own in curves.items():
        last = [centre(curve) for curve in own]
        below = effect([flat - ic for ic in last])
        rows.append(f"| {name} | {spread(last)} | {below} |")
        verdicts[name] = verdict([beyond(below, MOVED)]), f"IC ends {below} below flat."
    panels = {name: {"end": by_t(own)} for name, own in curves.items()}
    rows += ["", "| class shows at t | IC at the end | from the middle of those t | IC of I_t / L_t | accuracy by t |"]
    rows += ["|---|---:|---:|---:|---|"]
    for times, own in planted(args).items():
        which, ics = f"{times[0]} to {times[-1]}", [line["ic"] for line in own]
        off = effect([ic - statistics.mean(times) for ic in ics])
        right = " ".join(
            f"{value:.2f}" for value in torch.tensor([line["prefix_accuracy"] for line in own]).mean(0).tolist()
        )
        rows.append(f"| {which} | {spread(ics)} | {off} | {spread([x['ic_per_loss'] for x in own])} | {right} |")
        verdicts[f"class at {which}"] = (
            verdict([within(off, MOVED)]),
            f"IC ends {off} from the middle of those timesteps.",
        )
        panels[f"class at {which}"] = {"end": by_t([line["fisher"] for line in own])}
    return verdicts, rows, plots.panels(panels, page(args, "controls"), "timesteps t", "share of $I_t$")


# ---------------------------------------------------------------- claim: loss

LOSSES = {
    "ce": [],
    "tet": ["--loss", "tet"],
    "prefix": ["--loss", "prefix"],
    "flood 0.1": ["--loss_threshold", "0.1"],
    "prefix, flood 0.5": ["--loss", "prefix", "--loss_threshold", "0.5"],
    **{f"centroid {c}": ["--loss", "centroid", "--target_ic", c] for c in ("2", "4.5", "6")},
}
NORMS = ("step", "folded")
COST = 0.01  # of clean accuracy, that counts as little
ROBUST = 0.05  # of accuracy under attack, that counts as changed


def loss_runs(args):
    """Trainings [norm, loss, seed] and, by norm and loss, their evaluations."""
    trainings, evaluations = {}, {}
    eps = ATTACK_EPS[args.scale]
    for norm in NORMS:
        for name, flags in list(LOSSES.items())[: 2 if args.scale == "dry" else None]:
            short = f"loss_{norm}_{name.replace(', ', '_').replace(' ', '_')}"
            for seed in range(args.seeds):
                argv = [*LAST, "--norm", norm, *flags]
                trainings[norm, name, seed] = command(args, short, TRAIN, seed, *argv)
            paths = [str(trainings[norm, name, s].folder(args) / LATEST) for s in range(args.seeds)]
            strengths = ["--eps", str(eps), "--noise_levels", "0.2", "--blur_levels"]
            flags = ("--checkpoints", *paths, *strengths, *few_attacks(args))
            evaluations[norm, name] = Job(
                f"{short}_robustness_of_{args.seeds}", "eval_snn_robustness", flags, "robustness"
            )
    return trainings, evaluations


def loss_numbers(args, trainings, evaluations):
    """By norm and loss: {quantity: [a value a seed]}, and the signs of gradient masking."""
    numbers = {}
    for (norm, name), evaluation in evaluations.items():
        lines = read_lines(evaluation.folder(args) / ROBUSTNESS_FILE)
        found = numbers[norm, name] = {key: [] for key in ("ic", "ic_per_loss", "clean", "pgd", "noise", "transfer")}
        found["masking"] = [sign for line in lines for sign in line.get("masking", ())]
        for seed in range(args.seeds):
            folder = trainings[norm, name, seed].folder(args)
            fisher, log = (read_lines(folder / file)[-1] for file in (FISHER_FILE, LOG_FILE))
            own = [line for line in lines if line["checkpoint"] == str(folder / LATEST)]
            pgd = next(line for line in own if (line["threat"], line["strength"]) == ("pgd", ATTACK_EPS[args.scale]))
            noise = next(line for line in own if line["threat"] == "gaussian_noise")
            values = (fisher["ic"], fisher["ic_per_loss"], log["test_accuracy"], pgd["attacked"], noise["attacked"])
            transfer = math.nan if pgd["transfer"] is None else pgd["transfer"]  # of one seed there is none
            for key, value in zip(found, (*values, transfer)):
                found[key].append(value)
    return numbers


def loss_verdict(numbers, norm):
    """Of the losses that cost at most COST of accuracy, the one that moves IC furthest from that of ce: does it move IC
    by MOVED or more, and accuracy under PGD by ROBUST or more? Seeds are paired."""

    def change(name, key):
        return effect([a - b for a, b in zip(numbers[norm, name][key], numbers[norm, "ce"][key])])

    cheap = [name for key, name in numbers if key == norm and name != "ce" and change(name, "clean").mean >= -COST]
    if not cheap:
        return "does not hold", f"every loss costs more than {COST} of accuracy"
    best = max(cheap, key=lambda name: abs(change(name, "ic").mean))
    moved, cost, robust = (change(best, key) for key in ("ic", "clean", "pgd"))
    sizes = [found if found.mean > 0 else Effect(*(-x for x in (found.mean, found.high, found.low)))
             for found in (moved, robust)]  # fmt: skip
    checks = [beyond(sizes[0], MOVED), beyond(sizes[1], ROBUST)]
    means = [[statistics.mean(found[key]) for (k, _), found in numbers.items() if k == norm] for key in ("ic", "pgd")]
    correlation = torch.corrcoef(torch.tensor(means).argsort().argsort().double())[0, 1]  # Spearman's, without ties
    why = f"`{best}` against `ce`: IC {moved}, accuracy {cost:3}, accuracy under PGD {robust:3}."
    return verdict(checks), f"{why} Rank correlation of IC and accuracy under PGD over the losses: {correlation:.2f}."


def loss(args):
    """A loss can move the information, with little effect on accuracy, but much on robustness."""
    trainings, evaluations = loss_runs(args)
    perform_all(trainings.values(), args)
    perform_all(evaluations.values(), args)
    numbers = loss_numbers(args, trainings, evaluations)
    eps = ATTACK_EPS[args.scale]
    rows = [f"| norm | loss | IC | IC of I_t / L_t | accuracy | PGD, eps {eps}/255 | noise 0.2 | transfer | masking |"]
    rows += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for (norm, name), found in numbers.items():
        cells = [spread(found[key], 2 if "ic" in key else 3) for key in list(found)[:6]]
        rows.append(f"| {norm} | {name} | {' | '.join(cells)} | {len(found['masking'])} |")
    verdicts = {f"norm {norm}": loss_verdict(numbers, norm) for norm in NORMS}
    panels = {"clean": "test accuracy", "pgd": f"accuracy under PGD, eps {eps}/255", "noise": "accuracy under noise"}
    return verdicts, rows, plots.tradeoff(numbers, page(args, "loss"), panels)


# ---------------------------------------------------------------- claim: pruning

# Searches, rounds whose networks are trained again, and the share that a round prunes. Two rounds of 25 % are one of
# 43.75 %: small leaves as much as paper does (68.4, 90.0, 98.2 %), in half the rounds.
PRUNING = {
    "small": (["full", "fisher", "1", "one_shot"], [2, 4, 7], 0.4375),
    "paper": (["full", "fisher", "kl", "1", "2", "one_shot"], [4, 8, 11, 14], 0.25),
    "dry": (["full", "fisher"], [1, 2], 0.25),
}
AS_GOOD = 0.005  # of accuracy: a smaller loss counts as none
FASTER = 1.5


def pruning_verdict(accuracy, seconds):
    """Is `fisher` within AS_GOOD, or one standard error, of `full` at every sparsity, and its search FASTER times as
    fast? accuracy {(search, round): [a value a seed]}, seconds {search: [of the whole search, a seed]}."""
    checks, words = [], []
    for number in sorted({number for _, number in accuracy}):
        lost = [a - b for a, b in zip(accuracy["full", number], accuracy["fisher", number])]
        error = statistics.stdev(lost) / math.sqrt(len(lost)) if len(lost) > 1 else 0
        checks.append(statistics.mean(lost) <= max(AS_GOOD, error))
        words.append(f"{-statistics.mean(lost):+.3f}")
    speed = effect([a / b for a, b in zip(seconds["full"], seconds["fisher"])])
    checks.append(beyond(speed, FASTER))
    return verdict(checks), f"`fisher` against `full`: accuracy {', '.join(words)}; search {speed} times as fast."


def pruning(args):
    """Searching with the few timesteps that carry the information finds networks as good in less time."""
    searches, rounds, rate = PRUNING[args.scale]
    flags = list(map(str, ["--rounds", rounds[-1], "--final_rounds", *rounds, "--prune_rate", rate]))
    jobs = [
        command(args, f"pruning_{search}", "prune_snn", seed, *flags, "--search_timestep", search)
        for search in searches
        for seed in range(args.seeds)
    ]
    perform_all(jobs, args)
    accuracy, seconds, sparsity = {}, {}, {}
    for run in jobs:
        lines = read_lines(run.folder(args) / PRUNING_FILE)
        for line in lines:
            if line["stage"] == "final":
                accuracy.setdefault((line["search"], line["round"]), []).append(line["test_accuracy"])
                sparsity[line["round"]] = line["sparsity"]
                if line["round"] == rounds[-1]:
                    seconds.setdefault(line["search"], []).append(plots.search_seconds(lines, line))
    rows = [f"| search runs | {' | '.join(f'{100 * s:.1f} %' for s in sparsity.values())} | seconds | times as fast |"]
    rows += ["|---|" + "---:|" * (len(rounds) + 2)]
    for search in searches:
        cells = [spread(accuracy[search, number], 3) for number in rounds] + [spread(seconds[search], 0)]
        cells += [spread([a / b for a, b in zip(seconds["full"], seconds[search])])]
        rows.append(f"| {search} | {' | '.join(cells)} |")
    figure = plots.pruning([run.folder(args) for run in jobs], page(args, "pruning"))
    return {"all sparsities": pruning_verdict(accuracy, seconds)}, rows, figure


# ---------------------------------------------------------------- all of them

CLAIMS = {f.__name__: f for f in (concentration, settings, layers, loss, robustness, pruning, controls)}


def device_name():
    """What the runs were on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores"


def report(args, claim):
    """Run a claim and write its page, with the verdicts first."""
    args.performed = []
    start = time.perf_counter()
    verdicts, rows, figure = CLAIMS[claim](args)
    minutes = (time.perf_counter() - start) / 60
    said = [f"**{which}: {word}.** {why}" for which, (word, why) in verdicts.items()]
    command = f"python reproduce.py {claim} --scale {args.scale} --seeds {args.seeds}"
    text = [f"# {CLAIMS[claim].__doc__.splitlines()[0]}", *said, f"![]({figure.name})", "\n".join(rows)]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {device_name()}"
    text += [
        f"Mean ± standard deviation of {args.seeds} seeds. `{command}`; {versions}. What it ran, SEED = 0, 1, ...:"
    ]
    text += ["\n".join(f"    {words}" for words in dict.fromkeys(job.words(args) for job in args.performed))]
    path = Path(args.results) / f"{claim}.md"
    write_atomically(path, lambda file: file.write(("\n\n".join(text) + "\n").encode()))
    print("\n".join([f"{claim}: {CLAIMS[claim].__doc__}", *said, f"{path}\n{figure}\n{minutes:.1f} minutes"]))


def main(argv=None):
    parser = config.Parser(
        prog="reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("claim", choices=[*CLAIMS, "all", "list"])
    parser.add_argument("--scale", choices=["small", "medium", "paper"], default="small",
                        help="digits; a VGG on CIFAR-10, hours on a CPU; or the release's recipe")  # fmt: skip
    parser.add_argument("--seeds", type=config.number(int, 1), default=3, help="seeds 0, 1, ... of each run")
    parser.add_argument("--jobs", type=config.number(int, 1), default=1, help="runs at a time")
    parser.add_argument("--out_dir", default="runs/reproduce", help="where the run folders are")
    parser.add_argument("--results", default="results", help="where figures and tables go")
    parser.add_argument("--data_dir", help="where CIFAR-10 is (data), for paper; for small, where it and Fashion-MNIST "
                        "are, which it does without otherwise")  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="every run tiny, on noise, in a temporary folder")
    args = parser.parse_args(argv)
    if args.claim == "list":
        for name, claim in CLAIMS.items():
            print(f"{name:15} {claim.__doc__.splitlines()[0]}")
        return
    with contextlib.ExitStack() as stack:
        if args.dry_run:
            args.scale, args.seeds = "dry", min(args.seeds, 2)
            args.out_dir = args.results = stack.enter_context(TemporaryDirectory())
        for place in ("out_dir", "results"):
            folder = Path(getattr(args, place)) / args.scale
            folder.mkdir(parents=True, exist_ok=True)
            setattr(args, place, str(folder))
        for claim in CLAIMS if args.claim == "all" else [args.claim]:
            report(args, claim)


if __name__ == "__main__":
    run_script(main, "reproduce.py")
