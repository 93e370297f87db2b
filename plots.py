"""Every figure, drawn from the files of a run folder: `python plots.py runs/NAME` draws them
again."""

import contextlib
import io
import os
import sys
from pathlib import Path

import torch

# matplotlib ends its import where MPLBACKEND, set by a notebook say, names a backend that is not
# here. Figures are files and need none.
backend = os.environ.pop("MPLBACKEND", None)
import matplotlib  # noqa: E402
from matplotlib import colormaps  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

from utils import (  # noqa: E402
    FISHER_FILE,
    LOG_FILE,
    PRUNING_FILE,
    ROBUSTNESS_FILE,
    BadInput,
    rank,
    read_lines,
    run_script,
    write_atomically,
)

if backend:
    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend

GREY = "0.5"
MOST_PIXELS = 2100  # of the width of a figure


def write(figure, path):
    """Write the figure there; returns the path."""
    path.parent.mkdir(exist_ok=True)
    dpi = min(150, MOST_PIXELS / figure.get_figwidth())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    write_atomically(path, buffer.getbuffer())
    return path


def shades(count):
    """A colour for each of `count` curves in order, dark to light."""
    return [colormaps["viridis"](i / max(1, count - 1) * 0.9) for i in range(count)]


def label(line):
    """What a measurement is called in a legend: its epoch, or the checkpoint it was made of."""
    if "checkpoint" in line:
        return f"{Path(line['checkpoint']).parent.name}/{line['epoch']}"
    return str(line.get("epoch", "measurement"))


def fisher(lines, path):
    """A figure of measurements, lines of fisher.jsonl or of `fisher.Measurement`: I_t by t, a curve
    a measurement; IC by epoch with its interval; the layers of the last one by t. Returns the path.

    Where several kinds were measured (--fisher_split, --fisher_labels), curves and layers are of
    the first.
    """
    kinds = {}
    for line in lines:
        kinds.setdefault(f"{line.get('split')}, {line.get('labels')}", []).append(line)
    first = next(iter(kinds.values()))
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    curves, centroids, layers = figure.subplots(1, 3, width_ratios=[1.1, 1, 1.2])
    draw_curves(curves, first)
    draw_centroids(centroids, kinds)
    image = draw_layers(layers, first[-1])
    figure.colorbar(image, ax=layers)
    return write(figure, Path(path))


def draw_curves(axis, lines):
    """I_t by t with its standard error, a curve a measurement."""
    every = -(-len(lines) // 12)  # entries of the legend
    for number, (line, colour) in enumerate(zip(lines, shades(len(lines)))):
        name = label(line) if number % every == 0 or line is lines[-1] else None
        steps, error = range(1, line["timestep"] + 1), line["fisher_stderr"]
        style = {"color": colour, "label": name, "capsize": 2, "lw": 1.5}
        axis.errorbar(steps, line["fisher"], error, **style)
    axis.set(xlabel="timesteps t", ylabel="Fisher information $I_t$ (± standard error)")
    if any(sum(line["fisher"]) for line in lines):
        axis.set_yscale("log")
    axis.set_title("Information in the first t steps")
    axis.legend(title="epoch", fontsize=7, ncols=2)


def draw_centroids(axis, kinds):
    """IC by epoch with its interval, of each of `kinds` {name: lines}; of the first one also the
    centroids of I_t per loss and per squared residual."""
    none = float("nan")
    for kind, lines in kinds.items():
        # By epoch where each measurement has one of its own; else in order, as for checkpoints of
        # several runs.
        epochs = [line.get("epoch") for line in lines]
        ordered = None not in epochs and len(set(epochs)) == len(epochs)
        x = epochs if ordered else range(len(epochs))
        low, high = zip(*(line["ic_ci"] or (none, none) for line in lines))
        band = axis.fill_between(x, low, high, alpha=0.25, lw=0)
        colour, name = band.get_facecolor()[0][:3], "" if len(kinds) == 1 else f" ({kind})"
        centres = [none if line["ic"] is None else line["ic"] for line in lines]
        axis.plot(x, centres, "o-", ms=4, color=colour, label="$I_t$" + name)
        if lines is next(iter(kinds.values())):
            for key, text, style in (
                ("ic_per_loss", "loss", "s:"),
                ("ic_per_residual", "squared residual", "^:"),
            ):
                quotient = [none if line[key] is None else line[key] for line in lines]
                name_of = f"$I_t$ / {text} after t steps" + name
                axis.plot(x, quotient, style, ms=3, color="C7", label=name_of)
    timestep = lines[-1]["timestep"]
    flat = (timestep + 1) / 2
    axis.axhline(flat, color=GREY, ls="--", lw=1)
    place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    axis.annotate("flat", (1, flat), color=GREY, **place)
    axis.legend(fontsize=8, loc="upper right")
    axis.set(
        xlabel="epoch" if ordered else "measurement",
        ylabel="information centroid IC (95 % interval)",
        ylim=(1, max(timestep, 2)),
        title="Where its centre lies",
    )


def draw_layers(axis, line):
    """Shares of each layer's I_t by t. Returns the image."""
    names, timestep = list(line["layers"]), line["timestep"]
    shares = [[value / (sum(row) or 1) for value in row] for row in line["layers"].values()]
    extent = (0.5, timestep + 0.5, len(names) - 0.5, -0.5)
    image = axis.imshow(shares, aspect="auto", cmap="magma", vmin=0, extent=extent)
    axis.set_yticks(range(len(names)), names, fontsize=min(8, 220 / len(names)))
    axis.set(xlabel="timesteps t")
    axis.set_title(f"Layers, epoch {label(line)}: share of the layer's $I_t$")
    return image


def fisher_of(folder):
    """figures/fisher.png of a run folder."""
    lines = read_lines(Path(folder) / FISHER_FILE)
    if not lines:
        raise BadInput(f"{folder} has no measurement in {FISHER_FILE}")
    return fisher(lines, Path(folder) / "figures" / "fisher.png")


def training(folder):
    """figures/training.png: loss by epoch, accuracy of prefixes by epoch, spike rate of each layer
    by epoch."""
    lines = read_lines(Path(folder) / LOG_FILE)
    if not lines:
        raise BadInput(f"{folder} has no epoch in {LOG_FILE}")
    epochs, timestep = [line["epoch"] for line in lines], len(lines[-1]["prefix_accuracy"])
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    loss, accuracy, rates = figure.subplots(1, 3)

    loss.plot(
        epochs, [line["train_loss"] for line in lines], label="training"
    )  # None before training
    loss.plot(epochs, [line["test_loss"] for line in lines], label="test")
    loss.set(xlabel="epoch", ylabel="loss (nats)", yscale="log")
    loss.legend()
    for t, colour in zip(range(timestep), shades(timestep)):
        accuracy.plot(
            epochs,
            [line["prefix_accuracy"][t] for line in lines],
            color=colour,
            label=f"t = {t + 1}",
            lw=1,
        )
    accuracy.set(xlabel="epoch", ylabel="test accuracy after t steps", ylim=(0, 1))
    accuracy.legend(fontsize=7, ncols=1 + timestep // 9)
    names = list(lines[-1]["spike_rate"])
    for name, colour in zip(names, shades(len(names))):
        rates.plot(
            epochs, [line["spike_rate"][name] for line in lines], color=colour, label=name, lw=1
        )
    rates.set(xlabel="epoch", ylabel="spikes per neuron and timestep", ylim=(0, None))
    rates.legend(fontsize=7, ncols=1 + len(names) // 9)
    return write(figure, Path(folder) / "figures" / "training.png")


def robustness(folder):
    """figures/robustness.png: accuracy against the strength of attacks, of noise and of blur, and
    after each timestep; a colour a network."""
    networks = {}
    for line in read_lines(Path(folder) / ROBUSTNESS_FILE):
        networks.setdefault(line["checkpoint"], []).append(line)
    if not networks:
        raise BadInput(f"{folder} has no line in {ROBUSTNESS_FILE}")
    figure = Figure(figsize=(16, 4.2), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    kinds = [("pgd", 0, "-"), ("fgsm", 0, "--"), ("gaussian_noise", 1, "-"), ("blur", 2, "-")]
    strengths = sorted(
        {
            line["strength"]
            for lines in networks.values()
            for line in lines
            if line["threat"] == "pgd"
        }
    )
    middle = strengths[len(strengths) // 2] if strengths else 0
    for lines, colour in zip(networks.values(), shades(len(networks))):
        clean = next(line for line in lines if line["threat"] == "clean")
        for kind, panel, style in kinds:
            found = [line for line in lines if line["threat"] == kind]
            x = [0, *(line["strength"] for line in found)]
            at = (found[0]["prefix"] or 0) - 1 if found else -1
            y = [line["accuracy"][at] for line in (clean, *found)]
            low, high = zip(*(line["accuracy_ci"][at] for line in (clean, *found)))
            name = label(clean) if style == "-" else None
            panels[panel].plot(x, y, style, marker="o", ms=3, color=colour, label=name)
            panels[panel].fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        steps = range(1, clean["timestep"] + 1)
        panels[3].plot(steps, clean["accuracy"], color=colour)
        for line in lines:
            if line["threat"] == "pgd" and line["strength"] == middle:
                panels[3].plot(steps, line["accuracy"], ":", color=colour)
    panels[0].set(
        xlabel="eps (1/255)",
        ylabel="accuracy (95 % interval)",
        ylim=(0, 1),
        title="PGD (dashed: FGSM)",
    )
    panels[1].set(xlabel="standard deviation", title="Gaussian noise")
    panels[2].set(xlabel="standard deviation (pixels)", title="Gaussian blur")
    panels[3].set(xlabel="timesteps t", title=f"After t steps (dotted: PGD, eps {middle:g})")
    panels[0].legend(fontsize=7)
    return write(figure, Path(folder) / "figures" / "robustness.png")


def inputs(run, sets, seed):
    """figures/inputs.png of a run, a contact sheet: the first sample of each of `sets` {name: data
    set}, a column a timestep; a single frame is what every timestep sees."""
    rows = {}
    for name, dataset in sets.items():
        x, _ = next(dataset.subset(slice(1)).batches(1, seed))
        x = dataset.encode(x) if dataset.poisson_steps else x
        rows[name] = x[0] if x.dim() == 5 else x  # (S, C, H, W)
    if rank():
        return
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(1.6 + columns, 1.05 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for cells, (name, frames) in zip(axes, rows.items()):
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for number, cell in enumerate(cells):
            cell.set(xticks=[], yticks=[])
            frame = frames[min(number, len(frames) - 1)].cpu().permute(1, 2, 0).numpy()
            frame = frame[..., 0] if frame.shape[2] != 3 else frame  # colour, or the first channel
            cell.imshow(frame, cmap="gray", vmin=0, vmax=1)
            if columns > 1 and cells is axes[0]:
                cell.set_title(f"t = {number + 1}", fontsize=8)
    write(figure, run.folder / "figures" / "inputs.png")


def pruning(folders, path):
    """Test error with all timesteps against the share of weights that is left, and against the
    seconds of the search; a colour a search, mean and standard deviation over `folders` (seeds).
    Returns the path."""
    points = {}
    for folder in folders:
        lines = read_lines(Path(folder) / PRUNING_FILE)
        for line in lines:
            if line["stage"] == "final":
                point = (
                    100 * (1 - line["sparsity"]),
                    search_seconds(lines, line),
                    100 * (1 - line["test_accuracy"]),
                )
                points.setdefault(line["search"], {}).setdefault(line["round"], []).append(point)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for (search, rounds), colour in zip(points.items(), (colormaps["tab10"](i) for i in range(10))):
        columns = [
            torch.tensor(values, dtype=torch.float64) for _, values in sorted(rounds.items())
        ]
        mean = torch.stack([column.mean(0) for column in columns]).T.tolist()
        spread = [column[:, 2].std().item() if len(column) > 1 else 0 for column in columns]
        for axis, x in zip(axes, mean):
            axis.errorbar(
                x, mean[2], spread, marker="o", ms=4, capsize=2, color=colour, label=search
            )
    axes[0].set(
        xscale="log",
        yscale="log",
        xlabel="weights left (%)",
        ylabel="test error with all timesteps (%)",
    )
    for axis in (axes[0].xaxis, axes[0].yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes[0].invert_xaxis()
    axes[1].set(xlabel="seconds of the search")
    axes[0].legend(title="search runs")
    return write(figure, path)


def search_seconds(lines, final):
    """What the search for a network of pruning.jsonl took: the training of the rounds before it,
    and its rule."""
    own = [line for line in lines if (line["search"], line["stage"]) == (final["search"], "search")]
    return sum(
        line["seconds"] + line["rule_seconds"] for line in own if line["round"] < final["round"]
    )


def main():
    if len(sys.argv) != 2:
        raise BadInput("usage: python plots.py RUN_FOLDER")
    if not Path(sys.argv[1]).is_dir():
        raise BadInput(f"there is no folder {sys.argv[1]}")
    folder, figures = (
        Path(sys.argv[1]),
        {LOG_FILE: training, FISHER_FILE: fisher_of, ROBUSTNESS_FILE: robustness},
    )
    figures[PRUNING_FILE] = lambda folder: pruning([folder], folder / "figures" / "pruning.png")
    found = [draw for name, draw in figures.items() if (folder / name).exists()]
    if not found:
        raise BadInput(f"{folder} holds no run: none of {', '.join(figures)}")
    for draw in found:
        print(draw(folder))


if __name__ == "__main__":
    run_script(main, "plots.py", hint="the run is as it was")
