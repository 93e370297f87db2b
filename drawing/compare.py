"""Several trainings in one figure, for `python plots.py RUN RUN ...`."""

from dataclasses import dataclass
from pathlib import Path

import torch

import config
import drawing
from checks import START_FLAGS, is_given
from drawing import COLOURS, GREY, MARKERS, Figure, mean_and_deviation
from fisher import centroid
from utils import ARGS_FILE, FISHER_FILE, LOG_FILE, BadInput, read_lines, read_record

CHARACTERS, MARGIN = 110, 8  # below the panels; beside a name in the legend
# Two trainings are the same if they differ only in these flags.
IGNORED = START_FLAGS | {
    "seed", "data_dir", "save_epochs", "compile", "fisher_epochs", "fisher_split", "fisher_labels"
}  # fmt: skip


@dataclass
class Curve:
    """Trainings that differ only in their seed: a list of lines for each of them."""

    name: str
    style: dict
    logs: list
    measurements: list


def comparison(folders, path=None):
    """Draw the trainings in `folders`, a curve for each set of flags. Returns the path. The default
    is comparison.png beside the first folder.

    The panels show IC, the centroid of R_t and the test accuracy by epoch, and the last shares of
    I_t and the last test accuracy by t. The band of one run is the 95 % interval of its IC. The
    band of several seeds is their standard deviation. Raises BadInput for a folder without a
    training, and for two runs with the same flags and seed.
    """
    path = path or Path(folders[0]).parent / "comparison.png"
    if path.suffix.lower() not in (".png", ".pdf"):
        raise BadInput(f"--out {path}: the name must end with .png or .pdf")
    measurements = [line for folder in folders for line in read_lines(folder / FISHER_FILE)]
    panels = [draw_prefix_accuracy, draw_test_accuracy]
    kind = None
    if measurements:
        panels = [draw_centroids, draw_shares, *panels]
        kind = kind_of(measurements[0])
    figure = Figure(figsize=(10, 1 + 1.7 * len(panels)), layout="constrained")
    axes = list(figure.subplots(len(panels) // 2, 2).flat)
    for curve in curves_of(folders, kind):
        for axis, draw in zip(axes, panels):
            draw(axis, curve)
    figure.suptitle(f"Fisher information: {kind}" if kind else None, fontsize=9)
    handles, names = axes[-1].get_legend_handles_labels()
    longest = max(len(name) for name in names) + MARGIN
    columns = max(1, CHARACTERS // longest)
    figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(names)))
    return drawing.write(figure, path)


def kind_of(line):
    """The samples and labels of a measurement, in words; "" if the line does not say."""
    if "split" not in line:
        return ""
    return f"{line['split']} samples, {line['labels']} labels"


# ---------------------------------------------------------------- which runs are one curve


def curves_of(folders, kind):
    """Make the Curves of run folders, with the measurements of one kind."""
    curves = []
    for number, (words, members) in enumerate(group(folders).items()):
        seeds = f"{len(members)} seeds" if len(members) > 1 else ""
        name = f"{words} ({seeds})" if words and seeds else words + seeds
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        curve = Curve(name, style, [], [])
        for folder in members:
            lines = read_lines(folder / FISHER_FILE)
            curve.logs.append(read_lines(folder / LOG_FILE))
            curve.measurements.append([line for line in lines if kind_of(line) == kind])
        curves.append(curve)
    return curves


def group(folders):
    """{flags that differ, in words: run folders that have them}."""
    runs = [read_flags(folder) for folder in folders]
    names = differing_flags(runs)
    groups, seen = {}, {}
    for folder, flags in zip(folders, runs):
        words = ", ".join(in_words(name, flags[name]) for name in names)
        key = words, flags["seed"]
        if key in seen:
            raise BadInput(f"{seen[key]} and {folder} have the same flags and seed: name only one")
        seen[key] = folder
        groups.setdefault(words, []).append(folder)
    return groups


def read_flags(folder):
    """The flags of the training in a run folder. Raises BadInput if there is none."""
    if not (folder / ARGS_FILE).exists() or not read_lines(folder / LOG_FILE):
        raise BadInput(f"{folder} holds no training: name runs that have a {LOG_FILE}")
    return read_record(folder / ARGS_FILE)["args"]


def differing_flags(runs):
    """Names of the flags that all `runs` have and that differ between them. A flag is left out if
    it has an effect in no run. It is left out if every run has it from the recipe of its data set:
    then the data set already says it."""
    names, needs = [], config.make_parser("train_snn_fisherinfo").needs
    for name, value in runs[0].items():
        shared = all(name in flags for flags in runs)
        if name in IGNORED or not shared or all(flags[name] == value for flags in runs):
            continue
        need = needs.get(name)
        if need and not any(is_given(need, flags) for flags in runs):
            continue
        recipes = [config.RECIPES.get(flags["dataset"], {}) for flags in runs]
        if not all(flags[name] == recipe.get(name) for flags, recipe in zip(runs, recipes)):
            names.append(name)
    return names


def in_words(name, value):
    """A flag and its value in words: "tau 4", "no detach_membrane"."""
    if value is True:
        return name
    if value is None or value is False or value == []:
        return f"no {name}"
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


# ---------------------------------------------------------------- the panels


def draw_centroids(axis, curve):
    """IC by epoch with its band, and the centroid of R_t as a dotted line."""
    epochs, runs = common_lines(curve.measurements)
    axis.set(xlabel="epoch", ylabel="information centroid IC")
    axis.set_title("IC (dotted: centroid of $R_t$; dashed: flat)", fontsize=10)
    if not epochs:
        return
    colour = curve.style["color"]
    draw_mean(axis, curve, epochs, [[line["ic"] for line in lines] for lines in runs])
    if len(runs) == 1:
        intervals = [line["ic_ci"] or (torch.nan, torch.nan) for line in runs[0]]
        axis.fill_between(epochs, *zip(*intervals), color=colour, alpha=0.2)
    residuals = [[line["prefix_residual"] for line in lines] for lines in runs]
    centroids = centroid(torch.tensor(residuals).movedim(2, 0))  # (seeds, epochs)
    axis.plot(epochs, centroids.mean(0), ":", lw=2, color=colour)
    axis.axhline((len(residuals[0][0]) + 1) / 2, color=GREY, ls="--", lw=1)


def draw_shares(axis, curve):
    """Shares of I_t by t at the last measurement."""
    epochs, runs = common_lines(curve.measurements)
    if epochs:
        curves = [lines[-1]["fisher"] for lines in runs]
        shares = [[value / (sum(fisher) or 1) for value in fisher] for fisher in curves]
        draw_mean(axis, curve, range(1, len(shares[0]) + 1), shares)
    axis.set(xlabel="timesteps t", ylabel="share of $I_t$, last measurement")


def draw_prefix_accuracy(axis, curve):
    """Test accuracy after t timesteps at the last epoch."""
    _, runs = common_lines(curve.logs)
    accuracy = [lines[-1]["prefix_accuracy"] for lines in runs]
    draw_mean(axis, curve, range(1, len(accuracy[0]) + 1), accuracy)
    axis.set(xlabel="timesteps t", ylabel="test accuracy after t steps, last epoch")


def draw_test_accuracy(axis, curve):
    """Test accuracy by epoch."""
    epochs, runs = common_lines(curve.logs)
    draw_mean(axis, curve, epochs, [[line["test_accuracy"] for line in lines] for lines in runs])
    axis.set(xlabel="epoch", ylabel="test accuracy")


def common_lines(runs):
    """(epochs that all runs have, the lines of each run at these epochs)."""
    by_epoch = [{line["epoch"]: line for line in lines} for lines in runs]
    epochs = [epoch for epoch in by_epoch[0] if all(epoch in lines for lines in by_epoch)]
    return epochs, [[lines[epoch] for epoch in epochs] for lines in by_epoch]


def draw_mean(axis, curve, x, rows):
    """Mean of the rows, one for each seed, with a band of one standard deviation."""
    mean, deviation = mean_and_deviation(rows)
    marks = max(1, len(x) // 10)  # at most ten or so markers
    axis.plot(x, mean, **curve.style, ms=5, markevery=marks, label=curve.name)
    axis.fill_between(x, mean - deviation, mean + deviation, color=curve.style["color"], alpha=0.2)
