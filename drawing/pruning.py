"""The figure of pruning: test error against the share of weights left, and against time."""

from pathlib import Path

import drawing
from drawing import Figure, make_logarithmic
from utils import PRUNING_FILE, read_lines


def error_figure(folder):
    """Draw figures/pruning.png: the test error with all timesteps against the share of weights
    left, and against the seconds of the search. Each search has a colour. Returns the path."""
    lines, searches = read_lines(Path(folder) / PRUNING_FILE), {}
    for line in lines:
        if line["stage"] == "final":
            left, error = 100 * (1 - line["sparsity"]), 100 * (1 - line["test_accuracy"])
            point = (left, search_seconds(lines, line), error)
            searches.setdefault(line["search"], []).append(point)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_weights, by_seconds = figure.subplots(1, 2, sharey=True)
    for search, points in searches.items():
        left, seconds, error = zip(*points)
        by_weights.plot(left, error, "o-", ms=4, label=search)
        by_seconds.plot(seconds, error, "o-", ms=4)
    by_weights.set(xlabel="weights left (%)", ylabel="test error with all timesteps (%)")
    make_logarithmic(by_weights, "xy")
    by_weights.invert_xaxis()
    by_weights.legend(title="search runs")
    by_seconds.set(xlabel="seconds of the search")
    return drawing.write(figure, Path(folder) / "figures" / "pruning.png")


def search_seconds(lines, final):
    """The seconds of the search for a network of pruning.jsonl: the training of the rounds before
    it, and the rule for the timesteps."""
    seconds = 0
    for line in lines:
        searched = line["search"] == final["search"] and line["stage"] == "search"
        if searched and line["round"] < final["round"]:
            seconds += line["seconds"] + line["rule_seconds"]
    return seconds
