"""What the claims share: numbers of run folders, means and intervals of seeds, conditions."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from drawing import mean_and_deviation
from fisher import centroid, quotient
from utils import FISHER_FILE, LOG_FILE, ROBUSTNESS_FILE, read_lines

# What the columns of `summary` are called: the centroids of these curves.
CENTROIDS = {
    "ic": "IC",
    "ic_residual": "centroid of R_t",
    "ic_gain": "of the gain I_t / R_t",
}

# ---------------------------------------------------------------- numbers of run folders


def measurements(folder, split="train", labels="data"):
    """The lines of fisher.jsonl of one kind, from epoch 1: untrained networks do not spike."""
    lines = [line for line in read_lines(folder / FISHER_FILE) if line["epoch"] != 0]
    return [line for line in lines if (line["split"], line["labels"]) == (split, labels)]


def measured(folders, key, split="train", labels="data", line=-1):
    """A field of the last measurement of each seed, or of that with the index `line`."""
    return [measurements(folder, split, labels)[line][key] for folder in folders]


def summary(folders, line=-1):
    """T, and the centroids of the seeds, of the last measurement or that with the index `line`."""
    return {
        "timestep": measured(folders, "timestep", line=line)[0],
        "ic": measured(folders, "ic", line=line),
        "ic_residual": centroids(measured(folders, "prefix_residual", line=line)),
        "ic_gain": measured(folders, "ic_per_residual", line=line),
    }


def logged(folders, key):
    """A field of the last epoch of each seed."""
    return [read_lines(folder / LOG_FILE)[-1][key] for folder in folders]


def threats(folder):
    """The lines of robustness.jsonl: {(folder of the network, threat, strength): line}."""
    by_threat = {}
    for line in read_lines(folder / ROBUSTNESS_FILE):
        network = Path(line["checkpoint"]).parent.name
        by_threat[network, line["threat"], line["strength"]] = line
    return by_threat


def centroids(curves):
    """The centroid of each curve [T]; None where there is no information."""
    values = centroid(torch.tensor(array(curves)).T).tolist()
    return [None if math.isnan(value) else value for value in values]


def divided(curves, divisors):
    """The curves [T] of the seeds over others."""
    pair = [torch.tensor(array(values)) for values in (curves, divisors)]
    return quotient(*pair).tolist()


def by_step(curves):
    """Curves [T] of the seeds -> {t: values of the seeds}."""
    return dict(enumerate(zip(*curves), 1))


# ---------------------------------------------------------------- statistics of seeds


class Effect(NamedTuple):
    """A mean over seeds and its 95 % interval."""

    mean: float
    low: float
    high: float


def array(values):
    """The values of the seeds, NaN for None. A number is as one seed."""
    return np.atleast_1d(np.array(values, dtype=float))


def difference(first, second):
    """The Effect of first - second, paired by seed: mean and Student's interval. One of them may be
    a number. The interval of one seed is everything."""
    values = array(first) - array(second)
    mean, deviation = mean_and_deviation(values)
    half = math.inf
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
    return Effect(mean, mean - half, mean + half)


# ---------------------------------------------------------------- conditions


class Condition(NamedTuple):
    """What must hold, in words, the effect that was found, and the verdict."""

    words: str
    effect: Effect
    verdict: str


def condition(words, first, second, low=-math.inf, high=math.inf):
    """The condition that first - second is from `low` to `high`, judged by the whole interval."""
    effect, verdict = difference(first, second), "undecided"
    if low <= effect.low and effect.high <= high:
        verdict = "confirmed"
    elif effect.high < low or effect.low > high:
        verdict = "contradicted"
    return Condition(words, effect, verdict)


def count_confirmed(conditions, rows):
    """Of how many rows all conditions are confirmed. Each row has equally many, in order."""
    each = len(conditions) // len(rows)
    verdicts = [condition.verdict for condition in conditions]
    groups = [verdicts[start : start + each] for start in range(0, len(verdicts), each)]
    return sum(set(group) == {"confirmed"} for group in groups)


def flat_centroid(timestep):
    """The centroid of a flat curve of T steps."""
    return (timestep + 1) / 2


def margin(flat):
    """How far a centroid has to move to count as moved: a ninth of flat, 0.5 with 8 timesteps."""
    return flat / 9


def with_flat(rows, timestep=None):
    """{name: row} with the centroid of a flat curve in each row, of T steps or of the row's T."""
    flat = {name: flat_centroid(timestep or row["timestep"]) for name, row in rows.items()}
    return {name: row | {"flat": flat[name]} for name, row in rows.items()}


def shares_of_flat(rows, keys):
    """{name: row} with these centroids as shares of flat; other keys stay as they are."""
    shares = {}
    for name, row in rows.items():
        parts = {key: array(row[key]) / row["flat"] for key in keys}
        shares[name] = row | parts | {"flat": 1}
    return shares


def ends_early(name, row, what="IC"):
    """The condition that the centroid of a row ends below flat, by the margin. `what` names it."""
    flat, bound = row["flat"], margin(row["flat"])
    words = f"{name}: {what} ends below flat ({flat:g}) by more than {bound:.3g}"
    return condition(words, flat, row["ic"], low=bound)


def concentrate(rows):
    """Two conditions of each row: IC falls by the margin, and ends early."""
    conditions = []
    for name, row in rows.items():
        bound = margin(row["flat"])
        words = f"{name}: IC falls by more than {bound:.3g}"
        conditions.append(condition(words, row["ic_first"], row["ic"], low=bound))
        conditions.append(ends_early(name, row))
    return conditions
