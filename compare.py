"""Several trainings in one figure: what `python plots.py RUN RUN ...` draws."""

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

import config
import drawing
from drawing import GREY
from fisher import centroid
from utils import ARGS_FILE, FISHER_FILE, LOG_FILE, BadInput, read_lines, read_record

# Colours that colour-blind readers tell apart (Okabe and Ito 2008). The markers are seven, so that
# the pairs repeat late, and tell the curves apart without colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
MARKERS = "os^Dv*P"
CHARACTERS, MARGIN = 45, 8  # that fit below a panel; beside a name in the legend
# Flags that do not make two trainings different ones.
IGNORED = config.START_FLAGS | {"seed", "data_dir"}


@dataclass
class Training:
    """A run: its flags, a line for each epoch, and a line for each measurement of one kind."""

    folder: Path
    flags: dict
    log: list
    measurements: list


@dataclass
class Curve:
    """Trainings that differ in their seed alone, and how the figure shows them."""

    name: str
    trainings: list
    style: dict


def comparison(folders, path=None):
    """A figure of the trainings in `folders`, a curve for each set of flags. Returns its path,
    without `path` comparison.png beside the first folder.

    Shows, by epoch, the information centroid IC and that of R_t, and the test accuracy; by t, the
    final shares of I_t and the final test accuracy. The band of one run is the 95 % interval of its
    IC; that of several seeds is their standard deviation. Raises BadInput for a folder that holds
    no training, and for two runs with the same flags and seed.
    """
    path = path or Path(folders[0]).parent / "comparison.png"
    if path.suffix.lower() not in (".png", ".pdf"):
        raise BadInput(f"--out {path}: the name must end with .png or .pdf")
    trainings = [read_training(Path(folder)) for folder in folders]
    kinds = [kind_of(line) for training in trainings for line in training.measurements]
    for training in trainings:
        training.measurements = [x for x in training.measurements if kind_of(x) == kinds[0]]
    curves = group(trainings)
    panels = [draw_prefix_accuracy, draw_test_accuracy]
    if kinds:
        panels = [draw_centroids, draw_shares, *panels]
    figure = Figure(figsize=(4.2 * len(panels), 4.8), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, draw in zip(axes, panels):
        draw(axis, curves)
    if kinds:
        figure.suptitle(f"Fisher information: {kinds[0]}", fontsize=9)
    handles, names = axes[-1].get_legend_handles_labels()
    longest = max(len(name) for name in names) + MARGIN
    columns = max(1, len(panels) * CHARACTERS // longest)
    figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(names)))
    return drawing.write(figure, path)


# ---------------------------------------------------------------- which runs are one curve


def kind_of(line):
    """Which samples and labels a measurement is of, in words; "" where the line does not say."""
    if "split" not in line:
        return ""
    return f"{line['split']} samples, {line['labels']} labels"


def read_training(folder):
    """The Training in a run folder. Raises BadInput if there is none."""
    log = read_lines(folder / LOG_FILE)
    if not log or not (folder / ARGS_FILE).exists():
        raise BadInput(f"{folder} holds no training: only runs with {LOG_FILE} are compared")
    flags = read_record(folder / ARGS_FILE)["args"]
    return Training(folder, flags, log, read_lines(folder / FISHER_FILE))


def group(trainings):
    """The Curves of trainings. Each is named by the flags that differ between the curves."""
    names = differing_flags([training.flags for training in trainings])
    groups = {}
    for training in trainings:
        words = [in_words(name, training.flags[name]) for name in names]
        groups.setdefault(", ".join(words), []).append(training)
    curves = []
    for number, (words, members) in enumerate(groups.items()):
        check_seeds(members)
        seeds = f"{len(members)} seeds" if len(members) > 1 else ""
        name = f"{words} ({seeds})" if words and seeds else words + seeds
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        curves.append(Curve(name, members, {"color": colour, "marker": marker}))
    return curves


def differing_flags(runs):
    """Names of the flags that all `runs` have and that differ between them. A flag is left out if
    every run has it from the recipe of its data set: the data set says it then."""
    names = []
    for name, value in runs[0].items():
        shared = all(name in flags for flags in runs)
        if name in IGNORED or not shared or all(flags[name] == value for flags in runs):
            continue
        recipes = [config.RECIPES.get(flags["dataset"], {}) for flags in runs]
        if not all(flags[name] == recipe.get(name) for flags, recipe in zip(runs, recipes)):
            names.append(name)
    return names


def in_words(name, value):
    """A flag and its value as a reader says them: "tau 4", "no detach_membrane"."""
    if value is True:
        return name
    if value in (None, False, []):
        return f"no {name}"
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def check_seeds(trainings):
    """Raise BadInput if two trainings of one curve have the same seed."""
    folders = {}
    for training in trainings:
        seed = training.flags["seed"]
        if seed in folders:
            raise BadInput(
                f"{folders[seed]} and {training.folder} have the same flags and seed: name one"
            )
        folders[seed] = training.folder


# ---------------------------------------------------------------- the panels


def common_lines(lines_of_runs):
    """(epochs that all runs have, a list for each run of its lines at these epochs)."""
    by_epoch = [{line["epoch"]: line for line in lines} for lines in lines_of_runs]
    epochs = [epoch for epoch in by_epoch[0] if all(epoch in lines for lines in by_epoch)]
    return epochs, [[lines[epoch] for epoch in epochs] for lines in by_epoch]


def mean_and_deviation(rows):
    """Mean and standard deviation over the rows, one for each seed; no deviation of one row."""
    values = torch.tensor([[torch.nan if v is None else v for v in row] for row in rows])
    return values.mean(0), values.std(0, correction=min(1, len(rows) - 1))


def draw_curve(axis, curve, x, rows):
    """Mean of the rows with a band of one standard deviation."""
    mean, deviation = mean_and_deviation(rows)
    marks = max(1, len(x) // 10)  # at most ten or so markers
    axis.plot(x, mean, **curve.style, ms=5, markevery=marks, label=curve.name)
    axis.fill_between(x, mean - deviation, mean + deviation, color=curve.style["color"], alpha=0.2)


def draw_centroids(axis, curves):
    """Information centroid by epoch with its band, and dotted the centroid of R_t."""
    for curve in curves:
        epochs, runs = common_lines([training.measurements for training in curve.trainings])
        if not epochs:
            continue
        draw_curve(axis, curve, epochs, [[line["ic"] for line in lines] for lines in runs])
        draw_residual_centroid(axis, curve, epochs, runs)
        if len(runs) == 1:
            intervals = [line["ic_ci"] or (torch.nan, torch.nan) for line in runs[0]]
            low, high = zip(*intervals)
            axis.fill_between(epochs, low, high, color=curve.style["color"], alpha=0.2)
    lines = [x for curve in curves for training in curve.trainings for x in training.measurements]
    steps = {line["timestep"] for line in lines}
    for timestep in sorted(steps):
        axis.axhline((timestep + 1) / 2, color=GREY, ls="--", lw=1)
    axis.set(xlabel="epoch", ylabel="information centroid IC", ylim=(1, max(2, *steps)))
    axis.set_title("IC (dotted: centroid of $R_t$; dashed: flat)", fontsize=10)


def draw_residual_centroid(axis, curve, epochs, runs):
    """Centroid of the squared residuals R_t by epoch, dotted."""
    rows = []
    for lines in runs:
        residuals = torch.tensor([line["prefix_residual"] for line in lines])
        rows.append(centroid(residuals.T).tolist())
    axis.plot(epochs, mean_and_deviation(rows)[0], ":", lw=2, color=curve.style["color"])


def draw_shares(axis, curves):
    """Shares of I_t by t at the last measurement."""
    for curve in curves:
        epochs, runs = common_lines([training.measurements for training in curve.trainings])
        if epochs:
            fisher = [lines[-1]["fisher"] for lines in runs]
            rows = [[value / (sum(row) or 1) for value in row] for row in fisher]
            draw_curve(axis, curve, range(1, len(rows[0]) + 1), rows)
    axis.set(xlabel="timesteps t", ylabel="share of $I_t$, last measurement", ylim=(0, None))


def draw_prefix_accuracy(axis, curves):
    """Test accuracy after t timesteps at the last epoch."""
    for curve in curves:
        _, runs = common_lines([training.log for training in curve.trainings])
        rows = [lines[-1]["prefix_accuracy"] for lines in runs]
        draw_curve(axis, curve, range(1, len(rows[0]) + 1), rows)
    axis.set(xlabel="timesteps t", ylabel="test accuracy after t steps, last epoch")


def draw_test_accuracy(axis, curves):
    """Test accuracy by epoch."""
    for curve in curves:
        epochs, runs = common_lines([training.log for training in curve.trainings])
        rows = [[line["test_accuracy"] for line in lines] for lines in runs]
        draw_curve(axis, curve, epochs, rows)
    axis.set(xlabel="epoch", ylabel="test accuracy")
