"""The figure of pruning: test error against the weights that are left, and against time."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

import drawing
from utils import PRUNING_FILE, read_lines


def pruning(folders, path):
    """Test error with all timesteps against the share of weights that is left, and against the
    seconds of the search; a colour a search, mean and standard deviation over `folders` (seeds).
    Returns the path."""
    searches = {}
    for folder in folders:
        lines = read_lines(Path(folder) / PRUNING_FILE)
        for line in lines:
            if line["stage"] == "final":
                point = {
                    "weights": 100 * (1 - line["sparsity"]),
                    "seconds": search_seconds(lines, line),
                    "error": 100 * (1 - line["test_accuracy"]),
                }
                rounds = searches.setdefault(line["search"], {})
                rounds.setdefault(line["round"], []).append(point)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    weights, seconds = figure.subplots(1, 2, sharey=True)
    draw_error_by_weights(weights, searches)
    draw_error(seconds, searches, "seconds")
    seconds.set(xlabel="seconds of the search")
    return drawing.write(figure, path)


def draw_error_by_weights(axis, searches):
    """Test error against the share of weights that is left, both on logarithmic axes."""
    draw_error(axis, searches, "weights")
    axis.set(xscale="log", yscale="log", xlabel="weights left (%)")
    axis.set_ylabel("test error with all timesteps (%)")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter("{x:g}")
        side.set_minor_locator(NullLocator())
    axis.invert_xaxis()
    axis.legend(title="search runs")


def draw_error(axis, searches, quantity):
    """Test error against a quantity, for searches {name: {round: [a point a seed]}}."""
    for number, (search, rounds) in enumerate(searches.items()):
        points = [points for _, points in sorted(rounds.items())]
        x = [mean_and_deviation(point, quantity)[0] for point in points]
        error, deviation = zip(*(mean_and_deviation(point, "error") for point in points))
        style = {"marker": "o", "ms": 4, "capsize": 2, "color": f"C{number}"}
        axis.errorbar(x, error, deviation, label=search, **style)


def mean_and_deviation(points, quantity):
    """Mean and standard deviation of a quantity of the points; no deviation of one point."""
    values = torch.tensor([point[quantity] for point in points], dtype=torch.float64)
    return values.mean().item(), values.std(correction=min(1, len(values) - 1)).item()


def search_seconds(lines, final):
    """What the search for a network of pruning.jsonl took: the training of the rounds before it,
    and its rule."""
    seconds = 0
    for line in lines:
        searched = line["search"] == final["search"] and line["stage"] == "search"
        if searched and line["round"] < final["round"]:
            seconds += line["seconds"] + line["rule_seconds"]
    return seconds
