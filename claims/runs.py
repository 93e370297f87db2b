"""The runs of the claims: command lines of the scripts, started as a user would start them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import config
from claims.scales import Scale
from utils import LATEST, BadInput, report, write_atomically

TRAIN, EVALUATE, PRUNE = "train_snn_fisherinfo", "eval_snn_robustness", "prune_snn"
LAST_FIGURE = {TRAIN: "fisher.png", EVALUATE: "robustness.png", PRUNE: "pruning.png"}
SCRIPTS = Path(__file__).parent.parent
DRAWN_LABELS = "--fisher_labels data model"


@dataclass(frozen=True)
class CommandLine:
    """One command line of a script, and the name of its run folder."""

    name: str
    script: str
    command: str  # RUNS stands for the folder of the runs, DATA for that of the data sets
    networks: tuple  # names of the runs whose last checkpoints it takes


def make_run(name, script, flags, networks, downloads):
    """The CommandLine of a script. With `downloads` it takes --data_dir."""
    words = [f"{script}.py"]
    if networks:
        words += ["--checkpoints", *(f"RUNS/{network}/{LATEST}" for network in networks)]
    if downloads:
        words.append("--data_dir DATA")
    command = " ".join(str(word) for word in (*words, *flags) if word != "")
    return CommandLine(re.sub("[ ,=]+", "_", name), script, command, networks)


@dataclass(frozen=True)
class Study:
    """What a claim is tried on, and where: a scale, seeds 0, 1, ..., and the folders."""

    scale: Scale
    seeds: int
    jobs: int
    out_dir: Path
    data_dir: str | None

    # ------------------------------------------------------------ the runs that a claim needs

    def train(self, name, *flags, script=TRAIN):
        """A training of each seed, with the flags of the scale and these."""
        flags = (self.scale.training, *flags)
        return self.each_seed(name, *flags, script=script, downloads=self.scale.downloads)

    def each_seed(self, name, *flags, script=TRAIN, downloads):
        """A training of each seed, with these flags."""
        return [
            make_run(f"{name} {seed}", script, (*flags, "--seed", seed), (), downloads)
            for seed in range(self.seeds)
        ]

    def trained(self):
        """The plain training, measured as it goes on."""
        return self.train("trained", self.scale.measured, DRAWN_LABELS)

    def measure(self, name, trainings, *flags):
        """A measurement of the last network of each training."""
        return [
            make_run(f"{name} {seed}", TRAIN, flags, (training.name,), self.scale.downloads)
            for seed, training in enumerate(trainings)
        ]

    def evaluate(self, name, trainings, *flags):
        """One evaluation of the last networks of all trainings."""
        name, flags = f"{name} of {self.seeds}", (*flags, self.scale.attacks)
        networks = tuple(training.name for training in trainings)
        return [make_run(name, EVALUATE, flags, networks, self.scale.downloads)]

    # ------------------------------------------------------------ their folders and processes

    def folder(self, run):
        return self.out_dir / run.name

    def beside(self, run, suffix):
        """A file beside the folder: .json has its command line, .txt what the run prints."""
        return self.out_dir / f"{run.name}{suffix}"

    def command(self, run):
        """The words of the command line of a run, with the folders of this study."""
        words = [word.replace("RUNS/", f"{self.out_dir}/") for word in run.command.split()]
        return [self.data_dir or "data" if word == "DATA" else word for word in words]

    def arguments(self, run):
        """The flags of a run, as its script reads them."""
        return config.parse(run.script, self.command(run)[1:])

    def is_complete(self, run):
        """Whether the folder is complete: a script draws its figure last. Raises BadInput if the
        folder is of another command line."""
        path = self.beside(run, ".json")
        if path.exists() and path.read_text() != json.dumps(run.command.split()):
            raise BadInput(f"{self.folder(run)} is of another command line: remove it and {path}, "
                           "or name another --out_dir")  # fmt: skip
        return path.exists() and (self.folder(run) / "figures" / LAST_FIGURE[run.script]).exists()

    def start(self, run):
        """Start a run. Returns its process."""
        write_atomically(self.beside(run, ".json"), json.dumps(run.command.split()).encode())
        script, *flags = self.command(run)
        command = [sys.executable, SCRIPTS / script, *flags]
        command += ["--out_dir", self.out_dir, "--exp_name", run.name, "--resume"]
        threads = max(1, torch.get_num_threads() // self.jobs)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with open(self.beside(run, ".txt"), "a") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    def perform(self, runs):
        """Do the runs whose folders are not complete, `jobs` at a time. Raises BadInput if one
        fails. The processes end with this one."""
        waiting = [run for run in dict.fromkeys(runs) if not self.is_complete(run)]
        # Trainings come first, and of these the ones that may miss their data set.
        waiting.sort(key=lambda run: (len(run.networks), "DATA" not in run.command))
        processes = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupt)
        try:
            with tqdm(total=len(waiting), desc="runs", leave=False, disable=None) as bar:
                while waiting or processes:
                    names = {run.name for run in processes}
                    trained = waiting and names.isdisjoint(waiting[0].networks)
                    if trained and len(processes) < self.jobs:
                        run = waiting.pop(0)
                        processes[run] = self.start(run)
                    time.sleep(0.05)
                    for run in [run for run in processes if processes[run].poll() is not None]:
                        self.check(run, processes.pop(run).returncode)
                        bar.update()
        finally:
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                process.wait()

    def check(self, run, status):
        """Raise BadInput if the process of the run has failed."""
        if status != 0:
            output = self.beside(run, ".txt")
            last = output.read_text().splitlines()[-1:] or ["it said nothing"]
            raise BadInput(f"the run {run.name} failed: {last[0]} ({output} has all that it said)")


def interrupt(number, frame):
    """Answer a signal with an exception, so that `perform` ends its processes."""
    report(f"reproduce.py: stopped by {signal.Signals(number).name}; the same command goes on")
    sys.exit(128 + number)
