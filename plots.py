"""Figures, drawn from the files of run folders.

    python plots.py runs/NAME                              draws the figures of a run again
    python plots.py runs/A runs/B --out compared.pdf       draws one figure of several trainings

In a comparison, runs that differ only in their seed are one curve: their mean with its standard
deviation. The legend names the flags that differ between the runs.
"""

from pathlib import Path

import drawing
from drawing import GREY, Figure, compare, label, legend_below, shades
from drawing.pruning import error_figure
from drawing.robustness import accuracy_figure
from parser import Parser
from utils import (
    FISHER_FILE,
    LOG_FILE,
    PRUNING_FILE,
    ROBUSTNESS_FILE,
    BadInput,
    read_lines,
    run_script,
)

MOST_LABELS = 12  # curves in a legend
CHARACTERS = 42  # in a line of a legend


# ---------------------------------------------------------------- Fisher information


def fisher_of(folder):
    """Draw figures/fisher.png of a run folder. Returns the path. Raises BadInput without lines."""
    lines = read_lines(Path(folder) / FISHER_FILE)
    if not lines:
        raise BadInput(f"{folder} has no measurement in {FISHER_FILE}")
    return fisher(lines, Path(folder) / "figures" / "fisher.png")


def fisher(lines, path):
    """Draw measurements: lines of fisher.jsonl, or of `fisher.Measurement`. Returns the path.

    The panels show I_t by t, one curve per measurement; IC by epoch with its interval; and the
    layers of the last measurement by t. If there are several kinds (--fisher_split,
    --fisher_labels), curves and layers are of the first.
    """
    kinds = {}
    for line in lines:
        kinds.setdefault(compare.kind_of(line), []).append(line)
    kind, shown = next(iter(kinds.items()))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    curves, centroids, layers = figure.subplots(1, 3, width_ratios=[1.1, 1, 1.1])
    draw_curves(curves, shown)
    draw_centroids(centroids, kinds)
    draw_layers(layers, shown)
    figure.suptitle(f"Fisher information, {kind}".strip(", "), fontsize=9)
    return drawing.write(figure, Path(path))


def draw_curves(axis, lines):
    """I_t by t with its standard error, one curve per measurement; grey before training."""
    interval = -(-len(lines) // MOST_LABELS)
    names, title = names_of(lines)
    for number, (line, colour) in enumerate(zip(lines, shades(len(lines)))):
        labelled = number % interval == 0 or line is lines[-1]
        axis.errorbar(
            range(1, line["timestep"] + 1),
            line["fisher"],
            line["fisher_stderr"],
            color=GREY if line.get("epoch") == 0 else colour,
            label=names[number] if labelled else None,
            capsize=2,
            lw=1.5,
        )
    axis.set(xlabel="timesteps t", ylabel="Fisher information $I_t$ (± standard error)")
    axis.set_title("Information in the first t steps", fontsize=10)
    if any(sum(line["fisher"]) for line in lines):
        axis.set_yscale("log")
    legend_below(axis, max(1, CHARACTERS // (max(map(len, names)) + 6)), title)


def draw_centroids(axis, kinds):
    """IC by epoch with its interval, for each of `kinds` {name: lines}. The first kind also has the
    centroid of I_t per squared residual."""
    for number, (kind, lines) in enumerate(kinds.items()):
        x, x_label = positions(lines)
        colour = f"C{number}"
        low, high = zip(*(line["ic_ci"] or (float("nan"),) * 2 for line in lines))
        axis.fill_between(x, low, high, color=colour, alpha=0.25, lw=0)
        ic = [line["ic"] for line in lines]
        name = f"of $I_t$ (IC), {kind}" if len(kinds) > 1 else "of $I_t$ (IC)"
        axis.plot(x, ic, "o-", ms=4, color=colour, label=name)
        if number == 0:
            per_residual = [line["ic_per_residual"] for line in lines]
            axis.plot(x, per_residual, "^:", ms=3, color="0.4", label="of $I_t$ / residual $R_t$")
    timestep = next(iter(kinds.values()))[0]["timestep"]
    flat = (timestep + 1) / 2
    axis.axhline(flat, color=GREY, ls="--", lw=1, label=f"of a flat curve: {flat:g}")
    axis.set(xlabel=x_label, ylabel="centroid (95 % interval)", ylim=(1, max(timestep, 2)))
    axis.set_title("Centre of the information", fontsize=10)
    axis.locator_params(axis="x", integer=True)
    legend_below(axis, 2 if len(kinds) == 1 else 1)


def positions(lines):
    """The positions of measurements on the x axis, and its label. These are the epochs. If epochs
    are unknown or repeated, as for checkpoints of several runs, they are numbers from 1."""
    epochs = [line.get("epoch") for line in lines]
    if None in epochs or len(set(epochs)) < len(epochs):
        return range(1, len(lines) + 1), "measurement"
    return epochs, "epoch"


def names_of(lines):
    """The names of measurements in a legend, and its title."""
    if "checkpoint" in lines[0]:
        return [label(line) for line in lines], "checkpoint"
    if all(line.get("epoch") is not None for line in lines):
        return [str(line["epoch"]) for line in lines], "epoch"
    places, title = positions(lines)
    return [str(place) for place in places], title


def draw_layers(axis, lines):
    """Shares of each layer's I_t by t, in the last measurement."""
    line, (names, title) = lines[-1], names_of(lines)
    layers = list(line["layers"])
    shares = [[value / (sum(row) or 1) for value in row] for row in line["layers"].values()]
    extent = (0.5, line["timestep"] + 0.5, len(layers) - 0.5, -0.5)
    image = axis.imshow(shares, aspect="auto", cmap="magma", vmin=0, extent=extent)
    axis.set_yticks(range(len(layers)), layers, fontsize=min(8, 220 / len(layers)))
    axis.set_xlabel("timesteps t")
    last = "last measurement" if title == "checkpoint" else f"{title} {names[-1]}"
    axis.set_title(f"Share of each layer's $I_t$, {last}", fontsize=10)
    axis.figure.colorbar(image, ax=axis)


# ---------------------------------------------------------------- training


def training(folder):
    """Draw figures/training.png: loss, accuracy of prefixes, spike rates and synaptic operations of
    each layer, all by epoch. Returns the path. Raises BadInput without lines."""
    lines = read_lines(Path(folder) / LOG_FILE)
    if not lines:
        raise BadInput(f"{folder} has no epoch in {LOG_FILE}")
    figure = Figure(figsize=(10, 8.5), layout="constrained")
    loss, accuracy, rates, operations = figure.subplots(2, 2).flat
    draw_loss(loss, lines)
    draw_prefix_accuracy(accuracy, lines)
    draw_spike_rates(rates, lines)
    draw_operations(operations, lines)
    for axis in (loss, accuracy, rates, operations):
        axis.set_xlabel("epoch")
    return drawing.write(figure, Path(folder) / "figures" / "training.png")


def draw_loss(axis, lines):
    """Training loss, from the first epoch on, and test loss."""
    epochs = [line["epoch"] for line in lines]
    axis.plot(epochs, [line["train_loss"] for line in lines], marker=".", label="training")
    axis.plot(epochs, [line["test_loss"] for line in lines], marker=".", label="test")
    axis.set(ylabel="loss (nats)")
    if any(line["test_loss"] for line in lines):
        axis.set_yscale("log")
    legend_below(axis, 2)


def draw_prefix_accuracy(axis, lines):
    """Test accuracy after each t."""
    epochs = [line["epoch"] for line in lines]
    curves = list(zip(*(line["prefix_accuracy"] for line in lines)))
    for t, (curve, colour) in enumerate(zip(curves, shades(len(curves))), 1):
        axis.plot(epochs, curve, color=colour, label=f"t = {t}", lw=1)
    axis.set(ylabel="test accuracy after t steps", ylim=(0, 1))
    legend_below(axis, 4)


def draw_spike_rates(axis, lines):
    """Spikes of each layer of neurons."""
    draw_layers_by_epoch(axis, lines, "spike_rate")
    axis.set(ylabel="spikes per neuron and timestep", ylim=(0, None))
    legend_below(axis, 3)


def draw_operations(axis, lines):
    """Synaptic operations of each layer and of all, and multiply-accumulates without spikes."""
    total = [sum(line["synaptic_operations"].values()) for line in lines]
    dense = sum(lines[-1]["multiply_accumulates"].values())
    draw_layers_by_epoch(axis, lines, "synaptic_operations")
    axis.plot([line["epoch"] for line in lines], total, color="black", label="all layers")
    axis.axhline(dense, color=GREY, ls="--", lw=1, label="all, without spikes")
    axis.set(ylabel="synaptic operations per image", yscale="log")
    legend_below(axis, 3)


def draw_layers_by_epoch(axis, lines, field):
    """A field of log.jsonl that has a number for each layer."""
    epochs, names = [line["epoch"] for line in lines], list(lines[-1][field])
    if not names:
        axis.text(0.5, 0.5, "no such layer", ha="center", transform=axis.transAxes)
    for name, colour in zip(names, shades(len(names))):
        axis.plot(epochs, [line[field].get(name) for line in lines], color=colour, label=name, lw=1)


# ---------------------------------------------------------------- the script


def figures_of(folder):
    """Draw the figures of a run folder. Returns their paths."""
    paths = []
    if (folder / LOG_FILE).exists():
        paths.append(training(folder))
    if (folder / FISHER_FILE).exists():
        paths.append(fisher_of(folder))
    if (folder / ROBUSTNESS_FILE).exists():
        paths.append(accuracy_figure(folder))
    if (folder / PRUNING_FILE).exists():
        paths.append(error_figure(folder))
    if not paths:
        raise BadInput(f"{folder} holds no run: name a folder that a training script wrote")
    return paths


def main(argv=None):
    parser = Parser("plots", __doc__, "RUN [RUN ...] ")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    flag = parser.group("comparison")
    flag("--out", None, "file of the figure, .png or .pdf", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if len(args.runs) > 1:
        print(compare.comparison(args.runs, args.out))
        return
    if args.out:
        raise BadInput(
            "--out is for several runs: leave it out, one run has its figures in its folder"
        )
    for path in figures_of(args.runs[0]):
        print(path)


if __name__ == "__main__":
    run_script(main, "plots.py", hint="the run did not change")
