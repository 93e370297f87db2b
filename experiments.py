"""What is run for the claims: command lines of the scripts at several scales, done with several seeds."""

import contextlib
import importlib
import json
import multiprocessing
import re
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from utils import LATEST, BadInput, keep_freed_memory, write_atomically

# ---------------------------------------------------------------- scales

TRAIN = "train_snn_fisherinfo"
LAST = (
    "--fisher_epochs",
    "every:1000000",
    "--save_epochs",
    "every:1000000",
)  # the last epoch alone
ENDS = (
    "--fisher_epochs",
    "1",
    "every:1000000",
    "--save_epochs",
    "every:1000000",
)  # the first and the last


def losses(*targets):
    """{name: flags} of the losses that are compared; targets of IC for `centroid`."""
    return {
        "ce": [],
        "tet": ["--loss", "tet"],
        "prefix": ["--loss", "prefix"],
        "flood 0.1": ["--loss_threshold", "0.1"],
        "prefix, flood 0.5": ["--loss", "prefix", "--loss_threshold", "0.5"],
        **{
            f"centroid {target}": ["--loss", "centroid", "--target_ic", target]
            for target in targets
        },
    }


@dataclass(frozen=True)
class Scale:
    """What the claims are tried on."""

    training: list = field(default_factory=list)  # what a training has on its command line
    measured: list = field(
        default_factory=list
    )  # and its epochs that are measured, if other than the recipe's
    again: tuple = ()  # flags that a saved network is measured again with, for the same samples
    settings: dict = field(default_factory=dict)  # {name: flags}: what is changed of it
    subsets: dict = field(
        default_factory=dict
    )  # {name: flags}: how some images of each of OTHER_DATA are trained on
    losses: dict = field(default_factory=lambda: losses("2", "4.5", "6"))
    attacks: tuple = ()  # flags of every evaluation of robustness
    eps: float = 4  # in 1/255: with which PGD takes a network about half of its accuracy, or more
    release: tuple = ("--fisher_samples", "12800")  # flags of the released estimator
    planted: tuple = LAST  # flags of the trainings on planted information
    planted_times: tuple = ((1, 2), (4, 5), (7, 8), (1, 2, 3, 4, 5, 6, 7, 8))
    searches: tuple = ("full", "fisher", "1", "one_shot")  # of pruning
    rounds: tuple = (2, 4, 7)  # of pruning, whose networks are trained again
    prune_rate: float = 0.4375  # two rounds of 25 % in one: as much is left, in half the rounds
    downloads: bool = True  # whether the data set is in --data_dir


ADAM = ["--optimizer", "adam", "--learning_rate", "0.002"]
SETTINGS = {
    "fc, 3 layers": ["--arch", "fc", "--layernum", "3", "--width", "1"],
    "vgg9": ["--arch", "vgg9"],
    "resnet19, adam": ["--arch", "resnet19", "--width", "0.125", "--batch_size", "32", *ADAM],
    "T = 2": ["--timestep", "2"],
    "T = 4": ["--timestep", "4"],
    "T = 16": ["--timestep", "16"],
    "tau 1.33": ["--tau", "1.3333"],
    "tau 4": ["--tau", "4"],
    "threshold 0.5": ["--threshold", "0.5"],
    "soft reset": ["--reset", "soft"],
    "triangle surrogate": ["--surrogate", "triangle"],
    "no gradient through membranes": ["--detach_membrane"],
    "norm folded": ["--norm", "folded"],
    "adam": ADAM,
    "Poisson": ["--encode", "p"],
    "300 samples": ["--datanum", "300"],
    "random labels": ["--label_corrupt_prob", "1"],
}
# A VGG on some images, by the seed, of other data sets: for few epochs, which leaves a loss, and until it fits them.
OTHER_DATA = {"Fashion-MNIST": "fashion_mnist", "CIFAR-10": "cifar10"}
VGG = ["--arch", "vgg5", "--width", "0.25", "--timestep", "5", "--learning_rate", "0.1"]
DECAY = [
    "--weight_decay",
    "5e-4",
    "--dampening",
    "0",
]  # which the recipes of the digits and of Fashion-MNIST have
SOME = [*VGG, "--no_augment", "--test_samples", "1000"]
SOME_1000 = [*SOME, "--datanum", "1000", "--batch_size", "32", "--fisher_samples", "256"]
SOME_5000 = [*SOME, "--datanum", "5000", "--amp", "bf16"]
SCALES = {
    "small": Scale(
        training=["--dataset", "digits"], settings=SETTINGS, eps=32, release=("--fisher_samples", "1280"),
        subsets={"1000 images": [*SOME_1000, *DECAY, "--epochs", "5"],
                 "1000 images, fitted": [*SOME_1000, *DECAY, "--epochs", "20"]},
        downloads=False,
    ),
    "images": Scale(
        training=["--dataset", "fashion_mnist", *SOME_1000, "--epochs", "20"], settings=SETTINGS,
        losses=losses("1.5", "3", "4"), eps=8,
        measured=["--fisher_epochs", "1", "2", "5", "10", "20"], again=("--fisher_samples", "256"),
        release=("--fisher_samples", "1000"), attacks=("--robust_samples", "256"),
        searches=("full", "fisher", "1", "2", "3", "one_shot"),
    ),
    "medium": Scale(
        training=["--dataset", "cifar10", *VGG, *DECAY, "--epochs", "20", "--amp", "bf16"], losses=losses("1.5", "3", "4"),
        measured=["--fisher_epochs", "1", "2", "5", "10", "20"],
        subsets={"5000 images": [*SOME_5000, *DECAY, "--epochs", "10"],
                 "5000 images, fitted": [*SOME_5000, *DECAY, "--epochs", "60"]},
    ),
    "paper": Scale(
        training=["--save_epochs", "every:1000000"],  # a checkpoint of each twentieth epoch would fill a disk
        measured=["--fisher_epochs", "0", "1", "5", "20", "60", "120", "300"], settings=SETTINGS,
        searches=("full", "fisher", "kl", "1", "2", "one_shot"), rounds=(4, 8, 11, 14), prune_rate=0.25,
    ),
    "dry": Scale(
        training=["--dataset", "fake", "--fake_shape", "1", "8", "8", "--arch", "fc", "--width", "0.1", "--timestep",
                  "8", "--epochs", "2", "--datanum", "64", "--fisher_samples", "8"],
        measured=["--fisher_epochs", "0", "1", "2"], settings={"fc, 3 layers": []},
        losses={"ce": [], "tet": ["--loss", "tet"]}, eps=32, release=("--fisher_batch", "16"),
        attacks=("--robust_samples", "16", "--attack_steps", "1", "--attack_surrogate", "own"),
        planted=("--epochs", "2", "--datanum", "64", "--fisher_samples", "8", "--fisher_epochs", "2"),
        planted_times=((1, 2),), searches=("full", "fisher"), rounds=(1, 2), prune_rate=0.25, downloads=False,
    ),
}  # fmt: skip


# ---------------------------------------------------------------- runs


@dataclass(frozen=True)
class Job:
    """A command line of a script. Its run folder is complete when it has that figure. SEED in the flags is the seed,
    RUNS the folder of the runs, DATA that of the data sets, wherever they are."""

    name: str
    script: str
    flags: tuple
    figure: str

    def of(self, *seeds):
        """With a seed in the place of SEED; with several, flags that have it are there once for each."""
        flags = [
            flag.replace("SEED", str(s))
            for flag in self.flags
            for s in seeds[: None if "SEED" in flag else 1]
        ]
        return replace(self, name=self.name.replace("SEED", str(seeds[0])), flags=tuple(flags))

    def folder(self, args):
        return Path(args.out_dir) / self.name

    def asked(self, args):
        """The file beside its folder that says what it is a run of."""
        return Path(args.out_dir) / f"{self.name}.json"

    def done(self, args):
        """Whether its folder is there, complete, and of this very command line."""
        asked, drawn = self.asked(args), self.folder(args) / "figures" / f"{self.figure}.png"
        return drawn.exists() and asked.exists() and asked.read_text() == self.content()

    def content(self):
        return json.dumps([self.script, *self.flags])

    def argv(self, args):
        """What its script is called with."""
        flags = [flag.replace("RUNS/", f"{args.out_dir}/") for flag in self.flags]
        flags = [(args.data_dir or "data") if flag == "DATA" else flag for flag in flags]
        return [*flags, "--out_dir", args.out_dir, "--exp_name", self.name, "--resume"]

    def words(self):
        """The command line to show."""
        return f"python {self.script}.py {' '.join(self.flags)}"


stopped = []  # the signal that ended this worker: it begins no other job


def perform(job, args, threads):
    """Do a job in this process; what it prints goes to a file beside its folder."""
    if stopped:
        sys.exit(1)
    torch.set_num_threads(threads)
    keep_freed_memory()
    asked = job.asked(args)
    if asked.exists() and asked.read_text() != job.content():
        raise BadInput(
            f"{job.folder(args)} is of another command line: remove it and {asked}, or name an --out_dir"
        )
    write_atomically(asked, job.content().encode())
    log = Path(args.out_dir) / f"{job.name}.txt"
    with (
        open(log, "a") as shown,
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(shown),
    ):
        try:
            importlib.import_module(job.script).main(job.argv(args))
        except (SystemExit, BadInput) as error:
            if stopped:
                raise
            if isinstance(error, BadInput):
                print(f"{job.script}.py: error: {error}")
            raise BadInput(f"{job.script}.py failed, {log} says why") from error


def end_worker(number, frame):
    """A worker's answer to SIGTERM. It ends in order: killed while it waits for work, it would keep the lock on which
    the others then wait for ever."""
    stopped.append(number)
    sys.exit(1)


def interrupt(number, frame):
    """The first process's answer to a signal: it ends the workers on its way out."""
    raise KeyboardInterrupt(number)


def answer_signals():
    """Ctrl-C reaches all processes: the first one answers, and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_worker)


def perform_all(jobs, args):
    """Do the jobs whose folders are not complete, --jobs at a time."""
    # Those that need --data_dir first: one that is not there is missed before the others are run.
    todo = sorted(
        (job for job in jobs if not job.done(args)), key=lambda job: "DATA" not in job.flags
    )
    threads = max(1, torch.get_num_threads() // args.jobs)
    if args.jobs == 1:
        for job in tqdm(todo, "runs", leave=False, disable=None):
            perform(job, args, threads)
        return
    spawn = multiprocessing.get_context("spawn")
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    with ProcessPoolExecutor(args.jobs, spawn, answer_signals) as pool:
        futures = [pool.submit(perform, job, args, threads) for job in todo]
        try:
            for future in tqdm(
                as_completed(futures), "runs", total=len(todo), leave=False, disable=None
            ):
                future.result()
        except BrokenProcessPool as error:
            raise BadInput(
                "a run's process was killed, for want of memory perhaps: --jobs 1 needs least"
            ) from error
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def with_each_seed(args, jobs):
    """Do each of the jobs {key: Job} with each seed: {key: [folder of seed 0, 1, ...]}."""
    args.performed += jobs.values()
    runs = {key: [job.of(seed) for seed in range(args.seeds)] for key, job in jobs.items()}
    perform_all([run for own in runs.values() for run in own], args)
    return {key: [run.folder(args) for run in own] for key, own in runs.items()}


def with_all_seeds(args, jobs):
    """Do each of the jobs {key: Job} once, with the networks of all seeds: {key: folder}."""
    args.performed += jobs.values()
    runs = {
        key: replace(job, name=f"{job.name}_of_{args.seeds}").of(*range(args.seeds))
        for key, job in jobs.items()
    }
    perform_all(runs.values(), args)
    return {key: run.folder(args) for key, run in runs.items()}


# ---------------------------------------------------------------- command lines


def scale(args):
    """The Scale that `args` names."""
    return SCALES[args.scale]


def data_flags(args):
    """Where the data set of --scale is."""
    return ["--data_dir", "DATA"] if scale(args).downloads else []


def command(args, name, script, *flags):
    """That script with the settings of --scale."""
    flags = (*scale(args).training, *data_flags(args), *flags, "--seed", "SEED")
    return Job(f"{name}_SEED", script, flags, "pruning" if script == "prune_snn" else "fisher")


def saved(args, name):
    """Flags for the networks that the runs of that name end with."""
    return ["--checkpoints", f"RUNS/{name}_SEED/{LATEST}", *data_flags(args)]


def evaluation(args, name, networks, *flags):
    """eval_snn_robustness.py on the `saved` networks of that name."""
    return Job(
        name,
        "eval_snn_robustness",
        (*saved(args, networks), *flags, *scale(args).attacks),
        "robustness",
    )


def short(name):
    """A name as part of that of a folder."""
    return re.sub("[ ,=]+", "_", name)


# ---------------------------------------------------------------- what several claims measure

NO_MEMBRANES = "no gradient through membranes"
RELEASED = "the released estimator"
EVERY_CLASS = "every class"
EXPECTED = ("--fisher_split", "train", "test", "--fisher_labels", "data", "exact")
DRAWN = ("--fisher_labels", "data", "model")


def page(args, claim):
    """Where the figure of a claim goes."""
    return Path(args.results) / f"{claim}.png"


def training(args):
    """The plain training, measured as it goes on."""
    return command(args, "trained", TRAIN, *scale(args).measured, *DRAWN)


def trained(args):
    """The plain training of each seed: done, and its folders."""
    return with_each_seed(args, {"": training(args)})[""]


def measured_again(args, *which):
    """The trained networks, measured in other ways, these or all: {way: [folder of seed 0, 1, ...]}."""
    variants = {EVERY_CLASS: (*EXPECTED, *scale(args).again),
                "instantaneous outputs": ("--fisher_prefix", "instant", *scale(args).again),
                NO_MEMBRANES: ("--detach_membrane", *scale(args).again),
                RELEASED: ("--fisher_estimator", "release", *scale(args).release)}  # fmt: skip
    jobs = {
        name: Job(
            f"controls_{short(name)}_SEED", TRAIN, (*saved(args, "trained"), *flags), "fisher"
        )
        for name, flags in variants.items()
        if name in which or not which
    }
    return with_each_seed(args, jobs)


def settings_runs(args, other_data):
    """The training of each setting and seed, measured in its first and last epoch: done, and {setting: folders}; with
    `other_data`, on those data sets too, if they are given."""
    ends, runs = (*ENDS, *DRAWN), {"as it is": training(args)}
    for name, flags in scale(args).settings.items():
        runs[name] = command(args, f"settings_{short(name)}", TRAIN, *ends, *flags)
    if other_data and (scale(args).downloads or args.data_dir is not None):
        for data, how in product(OTHER_DATA, scale(args).subsets):
            name = f"{data}, {how}"
            flags = (
                "--dataset",
                OTHER_DATA[data],
                "--data_dir",
                "DATA",
                *ends,
                *scale(args).subsets[how],
            )
            runs[name] = Job(
                f"settings_{short(name)}_SEED", TRAIN, (*flags, "--seed", "SEED"), "fisher"
            )
    return with_each_seed(args, runs)
