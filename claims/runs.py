"""The runs of the claims: command lines of the scripts, started as a user would start them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

import config
from claims.scales import ENDS, Scale
from fisher import RELEASE_BATCH
from utils import LATEST, BadInput, write_atomically

TRAIN, EVALUATE, PRUNE = "train_snn_fisherinfo", "eval_snn_robustness", "prune_snn"
LAST_FIGURE = {TRAIN: "fisher.png", EVALUATE: "robustness.png", PRUNE: "pruning.png"}
SCRIPTS = Path(__file__).parent.parent
DRAWN_LABELS = "--fisher_labels data model"
PLAIN = "as it is"  # the setting without a change
WITHOUT_PATH = "no gradient through membranes"
RELEASED = "the released estimator"
BATCHES = (2, 16, 64, 128)  # samples in a mean of it, as the paper and those who copied it took
OTHER_DATA = {"Fashion-MNIST": "fashion_mnist", "CIFAR-10": "cifar10"}


@dataclass(frozen=True)
class Run:
    """One command line of a script, and the name of its run folder."""

    name: str
    script: str
    flags: tuple
    networks: tuple = ()  # the runs whose last checkpoints it takes
    downloads: bool = False  # it needs --data_dir

    def command(self, out_dir="RUNS", data_dir="DATA"):
        """The words of the command line, for these folders of runs and of data sets."""
        words = [f"{self.script}.py"]
        if self.networks:
            words.append("--checkpoints")
            words += [f"{out_dir}/{network}/{LATEST}" for network in self.networks]
        if self.downloads:
            words += ["--data_dir", data_dir]
        return [*words, *self.flags]


def words(*flags):
    """Flags in strings -> a tuple of the words of a command line."""
    return tuple(" ".join(map(str, flags)).split())


def folder_name(name):
    """The name of a setting as part of the name of a folder."""
    return re.sub("[ ,=]+", "_", name)


@dataclass(frozen=True)
class Study:
    """What a claim is tried on, and where: a scale, seeds 0, 1, ..., and the folders."""

    scale: Scale
    seeds: int
    jobs: int
    out_dir: Path
    data_dir: str | None

    def train(self, name, *flags, script=TRAIN):
        """A training of each seed, with the flags of the scale and these."""
        return self.each_seed(name, script, words(self.scale.training, *flags))

    def each_seed(self, name, script, flags, downloads=None):
        """A run of each seed that does not start from saved networks."""
        downloads = self.scale.downloads if downloads is None else downloads
        return [
            Run(f"{name}_{seed}", script, words(*flags, "--seed", seed), downloads=downloads)
            for seed in range(self.seeds)
        ]

    def trained(self):
        """The plain training, measured as it goes on."""
        return self.train("trained", self.scale.measured, DRAWN_LABELS)

    def measure(self, name, trainings, *flags):
        """A measurement of the last network of each training."""
        return [
            Run(f"{name}_{seed}", TRAIN, words(*flags), (training.name,), self.scale.downloads)
            for seed, training in enumerate(trainings)
        ]

    def without_path(self):
        """The plain networks, measured without the gradient between timesteps."""
        name = f"controls_{folder_name(WITHOUT_PATH)}"
        return self.measure(name, self.trained(), "--detach_membrane", self.scale.again)

    def every_class(self):
        """The plain networks, measured on samples of both sets, with two kinds of labels."""
        flags = ("--fisher_split train test --fisher_labels data exact", self.scale.again)
        return self.measure("controls_every_class", self.trained(), *flags)

    def released(self, size=RELEASE_BATCH):
        """The plain networks, measured by the estimator of the released code with means of `size`
        samples: of at most 200 means, and of at least two."""
        name = f"controls_{folder_name(RELEASED)}_{size}"
        samples = max(2 * size, min(200 * size, self.scale.release_samples))
        flags = ("--fisher_estimator release --fisher_batch", size, "--fisher_samples", samples)
        return self.measure(name, self.trained(), *flags)

    def evaluate(self, name, trainings, *flags):
        """One evaluation of the last networks of all trainings."""
        networks = tuple(training.name for training in trainings)
        flags = words(*flags, self.scale.attacks)
        name = f"{name}_of_{self.seeds}"
        return [Run(name, EVALUATE, flags, networks, self.scale.downloads)]

    def settings(self):
        """{setting: trainings}, measured in their first and last epoch."""
        trainings = {PLAIN: self.trained()}
        for name, flags in self.scale.settings.items():
            folder = f"settings_{folder_name(name)}"
            trainings[name] = self.train(folder, ENDS, DRAWN_LABELS, flags)
        return trainings

    def other_data(self):
        """{setting: trainings} on parts of OTHER_DATA, if those sets are given."""
        trainings = {}
        if self.scale.downloads or self.data_dir:
            for data, subset in product(OTHER_DATA, self.scale.subsets):
                name = f"{data}, {subset}"
                flags = ("--dataset", OTHER_DATA[data], ENDS, DRAWN_LABELS)
                flags = words(*flags, self.scale.subsets[subset])
                folder = f"settings_{folder_name(name)}"
                trainings[name] = self.each_seed(folder, TRAIN, flags, downloads=True)
        return trainings

    def timestep(self):
        """T of the plain training."""
        return config.parse(TRAIN, self.trained()[0].flags).timestep

    def command(self, run):
        """The words of the command line of a run, with the folders of this study."""
        return run.command(self.out_dir, self.data_dir or "data")

    def folder(self, run):
        return self.out_dir / run.name

    def command_file(self, run):
        """The file beside the folder that says which command line the folder is of."""
        return self.out_dir / f"{run.name}.json"

    def output_file(self, run):
        """The file beside the folder with what the run prints."""
        return self.out_dir / f"{run.name}.txt"

    def is_complete(self, run):
        """Whether the folder is complete: a script draws its figure last. Raises BadInput if the
        folder is of another command line."""
        path = self.command_file(run)
        if path.exists() and path.read_text() != json.dumps(run.command()):
            raise BadInput(f"{self.folder(run)} is of another command line: remove it and {path}, "
                           "or name another --out_dir")  # fmt: skip
        return path.exists() and (self.folder(run) / "figures" / LAST_FIGURE[run.script]).exists()

    def start(self, run):
        """Start a run. Returns its process."""
        write_atomically(self.command_file(run), json.dumps(run.command()).encode())
        script, *flags = self.command(run)
        command = [sys.executable, SCRIPTS / script, *flags]
        command += ["--out_dir", self.out_dir, "--exp_name", run.name, "--resume"]
        threads = max(1, torch.get_num_threads() // self.jobs)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with open(self.output_file(run), "a") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    def perform(self, runs):
        """Do the runs whose folders are not complete, `jobs` at a time. Raises BadInput if one
        fails. The processes end with this one."""
        unique = {run.name: run for run in runs}
        waiting = [run for run in unique.values() if not self.is_complete(run)]
        # A missing data set shows before the other runs are done.
        waiting.sort(key=lambda run: not run.downloads)
        processes = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupt)
        try:
            with tqdm(total=len(waiting), desc="runs", leave=False, disable=None) as bar:
                while waiting or processes:
                    while len(processes) < self.jobs and (run := next_run(waiting, processes)):
                        waiting.remove(run)
                        processes[run] = self.start(run)
                    time.sleep(0.05)
                    for run in [run for run in processes if processes[run].poll() is not None]:
                        self.check(run, processes.pop(run))
                        bar.update()
        finally:
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                process.wait()

    def check(self, run, process):
        """Raise BadInput if the process of the run has failed."""
        if process.returncode:
            output = self.output_file(run)
            last = output.read_text().splitlines()[-1:] or ["it said nothing"]
            raise BadInput(f"the run {run.name} failed: {last[0]} ({output} has all that it said)")


def next_run(waiting, processes):
    """The first run whose networks are trained; None if all of them have to wait."""
    names = {run.name for run in [*waiting, *processes]}
    return next((run for run in waiting if names.isdisjoint(run.networks)), None)


def interrupt(number, frame):
    """Answer a signal with an exception, so that `perform` ends its processes."""
    raise KeyboardInterrupt(number)
