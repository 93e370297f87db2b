"""The numbers of several seeds: their mean, spread and interval, and the verdict on a claim that follows from them."""

import math
import statistics
from typing import NamedTuple

import torch

# 97.5 % points of Student's t distribution, by degrees of freedom.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


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
