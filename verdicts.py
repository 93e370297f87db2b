"""The numbers of several seeds: mean, spread and interval, how they are written, and the verdict that follows."""

import math
import statistics
from typing import NamedTuple

import torch
from scipy import stats


class Effect(NamedTuple):
    """A mean over seeds, or a correlation, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __format__(self, digits):
        return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*self, d=digits or 2)


def deviation(values):
    """Standard deviation of a sample; NaN if there is one in it."""
    return torch.tensor(values, dtype=torch.float64).std().item()


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
    return False if max(found.low, -found.high) > bound else True if max(found.high, -found.low) <= bound else None


def rank_correlation(a, b):
    """Spearman's rank correlation, with the 95 % interval of Fisher's transform (Bonett & Wright 2000); everything, of
    three values or fewer and where the ranks agree or are reversed."""
    r, count = float(stats.spearmanr(a, b).statistic), len(a)
    if count <= 3 or abs(r) == 1:
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
