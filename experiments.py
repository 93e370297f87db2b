"""Runs of the scripts with several seeds, and the verdict on a claim that follows from their numbers."""

import contextlib
import importlib
import json
import math
import multiprocessing
import signal
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from utils import BadInput, Stopped, keep_freed_memory, write_atomically

# 97.5 % points of Student's t distribution, by degrees of freedom.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


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
        flags = [flag.replace("SEED", str(s)) for flag in self.flags for s in seeds[: None if "SEED" in flag else 1]]
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


def perform(job, args, threads):
    """Do a job in this process; what it prints goes to a file beside its folder."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    log = Path(args.out_dir) / f"{job.name}.txt"
    with open(log, "a") as shown, contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            importlib.import_module(job.script).main(job.argv(args))
        except (SystemExit, BadInput) as error:
            if isinstance(error, BadInput):
                print(f"{job.script}.py: error: {error}")
            raise BadInput(f"{job.script}.py failed, {log} says why") from error
        except Stopped as stop:
            raise KeyboardInterrupt from stop
    write_atomically(job.asked(args), lambda file: file.write(job.content().encode()))


def perform_all(jobs, args):
    """Do the jobs whose folders are not complete, --jobs at a time."""
    todo = [job for job in jobs if not job.done(args)]
    threads = max(1, torch.get_num_threads() // args.jobs)
    if args.jobs == 1:
        for job in tqdm(todo, "runs", leave=False, disable=None):
            perform(job, args, threads)
        return
    # Ctrl-C reaches all processes: a run saves and stops, one that waits for work must not break the pool.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, spawn, signal.signal, ignore) as pool:
        futures = [pool.submit(perform, job, args, threads) for job in todo]
        try:
            for future in tqdm(as_completed(futures), "runs", total=len(todo), leave=False, disable=None):
                future.result()
        except BrokenProcessPool as error:
            raise BadInput("a run's process was killed, for want of memory perhaps: --jobs 1 needs least") from error
        except BaseException:
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
    runs = {key: replace(job, name=f"{job.name}_of_{args.seeds}").of(*range(args.seeds)) for key, job in jobs.items()}
    perform_all(runs.values(), args)
    return {key: run.folder(args) for key, run in runs.items()}


# ---------------------------------------------------------------- numbers


class Effect(NamedTuple):
    """A mean over seeds and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __format__(self, digits):
        return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*self, d=digits or 2)


def deviation(values):
    """Standard deviation of a sample; NaN if there is one in it."""
    return torch.tensor(values, dtype=torch.float64).std().item()


def student(freedom):
    """97.5 % point of Student's t distribution; past the table, by its expansion about the normal one (Abramowitz and
    Stegun, 26.7.5), to 0.01."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = 1.95996
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def effect(values):
    """Mean of the values of the seeds, with Student's 95 % interval; of one seed the interval is everything."""
    mean, count = statistics.mean(values), len(values)
    if count == 1:
        return Effect(mean, -math.inf, math.inf)
    half = student(count - 1) * deviation(values) / math.sqrt(count)
    return Effect(mean, mean - half, mean + half)


def beyond(found, bound):
    """Whether an effect is above `bound`: True or False if its whole interval says so, else None."""
    return True if found.low > bound else False if found.high < bound else None


def within(found, bound):
    """Whether an effect is no larger than `bound` either way: as `beyond`."""
    return False if max(found.low, -found.high) > bound else True if max(found.high, -found.low) <= bound else None


def rank_correlation(a, b):
    """Spearman's rank correlation, of values without ties."""
    return torch.corrcoef(torch.tensor([a, b]).argsort().argsort().double())[0, 1].item()


def verdict(checks):
    """What the parts of a claim add up to, each True, False or None (undecided)."""
    if all(check is True for check in checks):
        return "holds"
    if True in checks:
        return "holds in part"
    return "does not hold" if False in checks else "undecided"


def spread(values, digits=2):
    """Mean ± standard deviation."""
    around = f" ± {deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{around}"
