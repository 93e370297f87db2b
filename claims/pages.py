"""The page of a claim, and the numbers beside it."""

import json
import re
from typing import NamedTuple

from drawing import mean_and_deviation
from utils import write_atomically


class Page(NamedTuple):
    """What a claim gives its page. A table is (title, heads, rows). Its first column has words."""

    conditions: list
    tables: list
    answer: str  # to the question of the claim, a sentence or two


def spread(values):
    """Mean ± standard deviation of the seeds, as a cell of a table. A number stays as it is."""
    if isinstance(values, int | float):
        return f"{values:g}"
    mean, deviation = mean_and_deviation(values)
    digits = 3 if mean <= 1 else 2
    around = f" ± {deviation:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{around}"


def table(title, head, rows, columns=None):
    """A table of {name: {key: values of the seeds}}, with the columns {key: name}, or with all."""
    columns = columns or {key: key for row in rows.values() for key in row}
    cells = [[name, *(spread(row[key]) for key in columns)] for name, row in rows.items()]
    return title, [head, *columns.values()], cells


def effect_cells(effect):
    """An Effect as two cells of a table: the mean and its interval."""
    return [f"{effect.mean:+.3f}", f"[{effect.low:+.3f}, {effect.high:+.3f}]"]


def words_of(claim):
    """The docstring of a claim: title, question, rule, what is run."""
    title, *others = (" ".join(text.split()) for text in claim.__doc__.split("\n\n"))
    return title.removesuffix("."), *others


def write_numbers(path, record):
    """Write the numbers of a claim. Raises BadInput."""
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    # A list of numbers on one line.
    text = re.sub(r"\[([^][{}\"]*)\]", lambda values: " ".join(values[0].split()), text)
    write_atomically(path, text.encode())


def write_page(path, claim, record):
    """Write page and figure of a claim from its numbers. Returns the Page. Raises BadInput."""
    page = claim.page(record["numbers"], path.with_suffix(".png"))
    title, question, rule, what = words_of(claim)
    head = f"{question} {page.answer}"
    text = [f"# Claim: {title}", head, f"![{question}]({path.stem}.png)", rule]
    rows = [[words, *effect_cells(effect), verdict] for words, effect, verdict in page.conditions]
    conditions = ("Conditions", ["condition", "effect", "95 % interval", "verdict"], rows)
    for heading, heads, cells in (conditions, *page.tables):
        align = ["---", *["---:"] * (len(heads) - 1)]
        lines = [f"| {' | '.join(map(str, row))} |" for row in (heads, align, *cells)]
        text += [f"## {heading}", "\n".join(lines)]
    text += ["## What was run", what, *paragraphs_on_runs(record, path.stem)]
    text.append("\n".join(f"    python {command}" for command in record["runs"]))
    write_atomically(path, ("\n\n".join(text) + "\n").encode())
    return page


def paragraphs_on_runs(record, name):
    """The paragraphs on the words of the page, and on the command."""
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    return (
        "A condition is confirmed if all values of its interval fulfil it. It is contradicted if "
        "none of them does, and otherwise undecided. Intervals are Student's t, over the seeds. "
        f"Tables have mean ± standard deviation of {record['seeds']} seeds. In figures, small "
        "dots are seeds, and bars are standard deviations. R_t is the mean squared residual of "
        "the predictions after t steps, L_t is their mean loss.",
        f"`{record['command']}`, revision {record['git']}, {versions}, {record['device']}. "
        f"[{name}.json]({name}.json) has the numbers of each seed. Below are the runs of seed 0. "
        "RUNS is the folder of the runs, DATA is the folder of the data sets.",
    )
