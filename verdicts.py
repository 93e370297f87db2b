"""The numbers of the pages: centroids of measurements; mean, spread and interval over seeds, how they are written, and
the verdict that follows from them."""

import math
import statistics
from typing import NamedTuple

import torch
from scipy import stats

from fisher import centroid, quotient
from utils import FISHER_FILE, read_lines


class Effect(NamedTuple):
    """A mean over seeds, or a correlation, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __format__(self, digits):
        return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*self, d=digits or 2)


def deviation(values):
    """Standard deviation of values; NaN if one of them is, or there is only one."""
    return torch.tensor(values, dtype=torch.float64).std().item() if len(values) > 1 else math.nan


def effect(values):
    """Mean of the values of the seeds, with Student's 95 % interval; of one seed the interval is everything."""
    mean, count = statistics.mean(values), len(values)
    if count == 1:
        return Effect(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, count - 1)) * deviation(values) / math.sqrt(count)
    return Effect(mean, mean - half, mean + half)


def beyond(found, bound):
    """Whether an effect is above `bound`: True or False if its whole interval says so, else None."""
    return True if found.low > bound else False if found.high < bound else None


def within(found, bound):
    """Whether an effect is no larger than `bound` either way: as `beyond`."""
    return (
        False
        if max(found.low, -found.high) > bound
        else True
        if max(found.high, -found.low) <= bound
        else None
    )


def rank_correlation(a, b):
    """Spearman's rank correlation, with the 95 % interval of Fisher's transform (Bonett & Wright 2000); everything, of
    three values or fewer and where the ranks agree or are reversed."""
    r, count = float(stats.spearmanr(a, b).statistic), len(a)
    if count <= 3 or math.isclose(abs(r), 1):
        return Effect(r, -1.0, 1.0)
    half = 1.96 * math.sqrt((1 + r * r / 2) / (count - 3))
    return Effect(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def verdict(checks):
    """What the parts of a claim add up to, each True, False or None (undecided)."""
    if all(check is True for check in checks):
        return "holds"
    if True in checks:
        return "holds in part"
    return "does not hold" if False in checks else "undecided"


def table(heads, rows, words=1):
    """A Markdown table: some columns of `words`, the others of numbers."""
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heads, rule, *rows))


def spread(values, digits=2):
    """Mean ± standard deviation."""
    around = f" ± {deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{around}"


def measurements(folder, split="train", labels="data"):
    """The lines of fisher.jsonl of one kind, without that before training: networks do not spike there yet."""
    lines = read_lines(folder / FISHER_FILE)
    return [
        line
        for line in lines
        if (line["split"], line["labels"]) == (split, labels) and line["epoch"] != 0
    ]


def centre(curve):
    """The centroid of a curve [T]."""
    return centroid(torch.tensor(curve, dtype=torch.float64)).item()


def divided(line, by, layer=None):
    """The curve of a measurement, or of one of its layers, over another of its quantities, [T]."""
    curves = line["layers"][layer] if layer else line["fisher"], line[by]
    return quotient(*(torch.tensor(curve, dtype=torch.float64) for curve in curves)).tolist()


def by_t(curves):
    """(t, mean, standard deviation) of curves [T] of several seeds, each as shares of its sum."""
    shares = torch.tensor(curves, dtype=torch.float64)
    shares = shares / shares.sum(1, keepdim=True)
    around = shares.std(0).tolist() if len(curves) > 1 else None
    return list(range(1, shares.shape[1] + 1)), shares.mean(0).tolist(), around


def least_move(flat):
    """What counts as moved where a flat curve has that centroid: a ninth of it, 0.5 with 8 timesteps."""
    return flat / 9


def ended(ics, flat):
    """Cells of a table: centroids, and how far they are below that of a flat curve."""
    return [spread(ics), f"{effect([flat - ic for ic in ics])}"]
