"""Every figure, drawn from the files of a run folder: `python plots.py runs/NAME` draws them again."""

import sys
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from utils import FISHER_FILE, LOG_FILE, BadInput, read_lines, run_script, write_atomically

GREY = "0.5"


def save(figure, folder, name):
    """Write figures/<name>.png of the run folder; returns its path."""
    path = Path(folder) / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return path


def shades(count):
    """A colour for each of `count` curves in order, dark to light."""
    return [colormaps["viridis"](i / max(1, count - 1) * 0.9) for i in range(count)]


def label(line):
    """What a measurement is called in a legend: its epoch, or the checkpoint it was made of."""
    return f"{Path(line['checkpoint']).parent.name}/{line['epoch']}" if "checkpoint" in line else str(line["epoch"])


def fisher(folder):
    """figures/fisher.png: I_t by t, a curve a measurement; IC by epoch with its interval; the layers by t."""
    lines = read_lines(Path(folder) / FISHER_FILE)
    if not lines:
        raise BadInput(f"{folder} has no measurement in {FISHER_FILE}")
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    curves, centroids, layers = figure.subplots(1, 3, width_ratios=[1.1, 1, 1.2])
    timestep = lines[-1]["timestep"]
    steps = range(1, timestep + 1)

    for line, colour in zip(lines, shades(len(lines))):
        curves.errorbar(
            steps, line["fisher"], line["fisher_stderr"], color=colour, label=label(line), capsize=2, lw=1.5
        )
    curves.set(xlabel="timesteps t", ylabel="Fisher information $I_t$ (± standard error)", yscale="log")
    curves.set_title("Information in the first t steps")
    curves.legend(title="epoch", fontsize=7, ncols=2)

    # By epoch where each measurement has one of its own; else in order, as for checkpoints of several runs.
    epochs = [line["epoch"] for line in lines]
    ordered = None not in epochs and len(set(epochs)) == len(epochs)
    x = epochs if ordered else range(len(lines))
    low, high = zip(*(line["ic_ci"] for line in lines))
    centroids.fill_between(x, low, high, alpha=0.25, lw=0)
    centroids.plot(x, [line["ic"] for line in lines], "o-", ms=4, label="$I_t$")
    centroids.plot(x, [line["ic_per_loss"] for line in lines], "s:", ms=3, label="$I_t$ / loss after t steps")
    centroids.legend(fontsize=8, loc="lower left")
    centroids.axhline((timestep + 1) / 2, color=GREY, ls="--", lw=1)
    centroids.annotate(
        "flat", (1, (timestep + 1) / 2), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=GREY
    )
    centroids.set(xlabel="epoch" if ordered else "measurement", ylabel="information centroid IC (95 % interval)")
    centroids.set_ylim(1, timestep)
    centroids.set_title("Where its centre lies")

    names = list(lines[-1]["layers"])
    shares = [[value / (sum(row) or 1) for value in row] for row in lines[-1]["layers"].values()]
    image = layers.imshow(
        shares, aspect="auto", cmap="magma", vmin=0, extent=(0.5, timestep + 0.5, len(names) - 0.5, -0.5)
    )
    layers.set_yticks(range(len(names)), names, fontsize=min(8, 220 / len(names)))
    layers.set(xlabel="timesteps t")
    layers.set_title(f"Layers, epoch {label(lines[-1])}: share of the layer's $I_t$")
    figure.colorbar(image, ax=layers)
    return save(figure, folder, "fisher")


def training(folder):
    """figures/training.png: loss by epoch, accuracy of prefixes by epoch, spike rate of each layer by epoch."""
    lines = read_lines(Path(folder) / LOG_FILE)
    if not lines:
        raise BadInput(f"{folder} has no epoch in {LOG_FILE}")
    epochs, timestep = [line["epoch"] for line in lines], len(lines[-1]["prefix_accuracy"])
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    loss, accuracy, rates = figure.subplots(1, 3)

    trained = [line for line in lines if line["train_loss"] is not None]
    loss.plot([line["epoch"] for line in trained], [line["train_loss"] for line in trained], label="training")
    loss.plot(epochs, [line["test_loss"] for line in lines], label="test")
    loss.set(xlabel="epoch", ylabel="loss (nats)", yscale="log")
    loss.legend()
    for t, colour in zip(range(timestep), shades(timestep)):
        accuracy.plot(epochs, [line["prefix_accuracy"][t] for line in lines], color=colour, label=f"t = {t + 1}", lw=1)
    accuracy.set(xlabel="epoch", ylabel="test accuracy after t steps", ylim=(0, 1))
    accuracy.legend(fontsize=7, ncols=1 + timestep // 9)
    names = list(lines[-1]["spike_rate"])
    for name, colour in zip(names, shades(len(names))):
        rates.plot(epochs, [line["spike_rate"][name] for line in lines], color=colour, label=name, lw=1)
    rates.set(xlabel="epoch", ylabel="spikes per neuron and timestep", ylim=(0, None))
    rates.legend(fontsize=7, ncols=1 + len(names) // 9)
    return save(figure, folder, "training")


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise BadInput("usage: python plots.py RUN_FOLDER")
    for name, draw in ((LOG_FILE, training), (FISHER_FILE, fisher)):
        if (Path(sys.argv[1]) / name).exists():
            print(draw(sys.argv[1]))


if __name__ == "__main__":
    run_script(main, "plots.py")
