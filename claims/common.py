"""What the claims share: numbers of run folders, means and intervals of seeds, verdicts, pages."""

import json
import math
import re
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
from scipy import stats

from fisher import centroid, quotient
from utils import FISHER_FILE, LOG_FILE, ROBUSTNESS_FILE, read_lines, write_atomically

# What the columns of `summary` are called.
CENTROIDS = {"ic": "IC", "ic_residual": "R_t", "ic_loss": "I_t / L_t", "ic_gain": "I_t / R_t"}

# ---------------------------------------------------------------- numbers of run folders


def measurements(folder, split="train", labels="data"):
    """The lines of fisher.jsonl of one kind, from epoch 1: untrained networks do not spike."""
    kind = (split, labels)
    lines = [line for line in read_lines(folder / FISHER_FILE) if line["epoch"] != 0]
    return [line for line in lines if (line["split"], line["labels"]) == kind]


def last_measurements(folders, split="train", labels="data"):
    """The last measurement of each seed."""
    return [measurements(folder, split, labels)[-1] for folder in folders]


def last_epochs(folders):
    """The last line of log.jsonl of each seed."""
    return [read_lines(folder / LOG_FILE)[-1] for folder in folders]


def column(lines, key):
    """One field of the lines of several seeds: [a value a seed]."""
    return [line[key] for line in lines]


def summary(lines):
    """T and the centroids of the measurements of several seeds, a value a seed."""
    return {
        "timestep": lines[0]["timestep"],
        "ic": column(lines, "ic"),
        "ic_residual": [centre(line["prefix_residual"]) for line in lines],
        "ic_loss": column(lines, "ic_per_loss"),
        "ic_gain": column(lines, "ic_per_residual"),
    }


def threats(folder):
    """The lines of robustness.jsonl: {(folder of the network, threat, strength): line}."""
    by_threat = {}
    for line in read_lines(folder / ROBUSTNESS_FILE):
        network = Path(line["checkpoint"]).parent.name
        by_threat[network, line["threat"], line["strength"]] = line
    return by_threat


def centre(curve):
    """The centroid of a curve [T]; None where there is no information."""
    value = centroid(torch.tensor(curve, dtype=torch.float64)).item()
    return None if math.isnan(value) else value


def divided(curve, divisor):
    """A curve [T] over another, [T]."""
    curves = [torch.tensor(values, dtype=torch.float64) for values in (curve, divisor)]
    return quotient(*curves).tolist()


def flat_centroid(timestep):
    """The centroid of a flat curve of T steps."""
    return (timestep + 1) / 2


def margin(flat):
    """How far a centroid has to move to count as moved: a ninth of flat, 0.5 with 8 timesteps."""
    return flat / 9


def shares_of_flat(series, timestep):
    """{name: centroids of the seeds} -> the same as shares of that of a flat curve."""
    flat = flat_centroid(timestep)
    return {name: [value / flat for value in known(seeds)] for name, seeds in series.items()}


# ---------------------------------------------------------------- statistics of seeds


class Effect(NamedTuple):
    """A mean over seeds, or a correlation, and its 95 % interval."""

    mean: float
    low: float
    high: float


def known(values):
    """The values as floats, NaN for None."""
    return [math.nan if value is None else float(value) for value in values]


def deviation(values):
    """The standard deviation; 0 of one value."""
    return torch.tensor(values, dtype=torch.float64).std().item() if len(values) > 1 else 0.0


def effect(values):
    """The mean with Student's 95 % interval; of one seed the interval is everything."""
    values = known(values)
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Effect(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, count - 1)) * deviation(values) / math.sqrt(count)
    return Effect(mean, mean - half, mean + half)


def difference(first, second):
    """The effect of first - second, paired by seed."""
    return effect([a - b for a, b in zip(known(first), known(second))])


def size(effect):
    """The effect, or its negative if its mean is below 0."""
    if effect.mean >= 0:
        return effect
    return Effect(-effect.mean, -effect.high, -effect.low)


def rank_correlation(a, b):
    """Spearman's rank correlation with the 95 % interval of Fisher's transform (Bonett & Wright
    2000). The interval is everything for three values or fewer, and where the ranks agree or are
    reversed. It is NaN where all values of one are the same."""
    if min(len(set(a)), len(set(b))) == 1:
        return Effect(math.nan, -1.0, 1.0)
    r, count = float(stats.spearmanr(a, b).statistic), len(a)
    if count <= 3 or math.isclose(abs(r), 1):
        return Effect(r, -1.0, 1.0)
    half = 1.96 * math.sqrt((1 + r * r / 2) / (count - 3))
    return Effect(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


# ---------------------------------------------------------------- conditions


class Condition(NamedTuple):
    """What must hold, in words, the effect that was found, and the verdict."""

    words: str
    effect: Effect
    verdict: str


def verdict(low, high, bound):
    """confirmed if the whole interval is above the bound, contradicted if it is below."""
    if low > bound:
        return "confirmed"
    if high < bound:
        return "contradicted"
    return "undecided"


def above(words, effect, bound, relation="by more than"):
    """The condition that an effect is above a bound."""
    return Condition(f"{words} {relation} {bound:.3g}", effect, verdict(*effect[1:], bound))


def below(words, effect, bound):
    """The condition that an effect is below a bound."""
    _, low, high = effect
    return Condition(f"{words} by less than {bound:.3g}", effect, verdict(-high, -low, -bound))


def within(words, effect, bound):
    """The condition that an effect is no larger than a bound, either way."""
    _, low, high = effect
    word = "undecided"
    if low >= -bound and high <= bound:
        word = "confirmed"
    elif low > bound or high < -bound:
        word = "contradicted"
    return Condition(f"{words} by at most {bound:.3g}, either way", effect, word)


def concentrates(name, first, last, timestep):
    """The two conditions of a concentration: IC falls, and ends below that of a flat curve."""
    flat = flat_centroid(timestep)
    fall, depth = difference(first, last), difference([flat] * len(last), last)
    return [
        above(f"{name}: IC falls", fall, margin(flat)),
        above(f"{name}: IC ends below flat ({flat:g})", depth, margin(flat)),
    ]


def confirmed(conditions):
    """How many conditions have which verdict, in words."""
    verdicts = [condition.verdict for condition in conditions]
    return (
        f"{verdicts.count('confirmed')} of {len(verdicts)} conditions are confirmed, "
        f"{verdicts.count('contradicted')} contradicted"
    )


# ---------------------------------------------------------------- pages


VERDICTS = (
    "A condition is confirmed if its whole interval says so, contradicted if its whole interval "
    "says the opposite, and else undecided."
)


class Page(NamedTuple):
    """What is written of a claim."""

    answer: str  # a sentence
    conditions: list
    tables: list  # of (title, heads, rows)
    remark: str = ""  # what a reader must know of the tables


def spread(values):
    """Mean ± standard deviation of the seeds, as a cell of a table."""
    values = known(values)
    mean = statistics.fmean(values)
    digits = 3 if mean <= 1 else 2
    around = f" ± {deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{around}"


def cells(row, columns):
    """The columns of a row {column: values of the seeds}, as cells of a table."""
    return [spread(row[key]) for key in columns]


def interval(effect):
    """A 95 % interval, as a cell of a table."""
    return f"[{effect.low:+.3f}, {effect.high:+.3f}]"


def correlation(rows, first, second):
    """The rank correlation, over rows {column: values of the seeds}, of the means of two columns,
    as a cell of a table."""
    means = [[statistics.fmean(row[key]) for row in rows] for key in (first, second)]
    effect = rank_correlation(*means)
    return f"{effect.mean:+.2f} {interval(effect)}"


def table(heads, rows):
    """A table in Markdown, the first column of words."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heads, rule, *rows))


def write_numbers(path, record):
    """Write the numbers of a claim. Raises BadInput."""
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    # A list of numbers on one line.
    text = re.sub(r"\[([^][{}\"]*)\]", lambda values: " ".join(values[0].split()), text)
    write_atomically(path, text.encode())


def write_page(path, claim, record):
    """Write the page of a claim from its numbers. Returns the Page. Raises BadInput."""
    page, name = claim.page(record["numbers"]), path.stem
    rows = [
        [words, f"{size.mean:+.3f}", interval(size), word] for words, size, word in page.conditions
    ]
    text = [f"# {claim.TITLE}", f"{claim.QUESTION} {page.answer}", f"![{claim.TITLE}]({name}.png)"]
    heads = ["condition", "effect", "95 % interval", "verdict"]
    text += ["## Conditions", f"{claim.RULE} {VERDICTS}", table(heads, rows)]
    for title, heads, rows in page.tables:
        text += [f"## {title}", table(heads, rows)]
    if page.remark:
        text.append(page.remark)
    text += ["## How it was run", how(record, name)]
    text += ["\n".join(f"    python {command}" for command in record["runs"])]
    write_atomically(path, ("\n\n".join(text) + "\n").encode())
    return page


def how(record, name):
    """The paragraph on seeds, command and versions."""
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    return (
        f"`{record['command']}`, revision {record['git']}, {versions}, {record['device']}. "
        f"Tables have mean ± standard deviation of {record['seeds']} seeds. Intervals are "
        f"Student's, of the seeds. [{name}.json]({name}.json) has the numbers of each seed. "
        "Below are the runs of seed 0. RUNS is the folder of the runs, DATA that of the data sets."
    )
