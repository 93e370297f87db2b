"""The figure of pruning: test error against the share of weights left, and against time."""

from pathlib import Path

import drawing
from drawing import Figure, LogLocator, NullLocator, mean_and_deviation
from utils import PRUNING_FILE, read_lines


def error_figure(folders, path):
    """Draw the test error with all timesteps against the share of weights left, and against the
    seconds of the search. Each search has a colour. Points are mean and standard deviation over
    `folders` (seeds). Returns the path."""
    searches = {}
    for folder in folders:
        lines = read_lines(Path(folder) / PRUNING_FILE)
        for line in lines:
            if line["stage"] == "final":
                left, error = 100 * (1 - line["sparsity"]), 100 * (1 - line["test_accuracy"])
                point = (left, search_seconds(lines, line), error)
                rounds = searches.setdefault(line["search"], {})
                rounds.setdefault(line["round"], []).append(point)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    weights, seconds = figure.subplots(1, 2, sharey=True)
    draw_error_by_weights(weights, searches)
    draw_error_by_seconds(seconds, searches)
    return drawing.write(figure, path)


def draw_error_by_weights(axis, searches):
    """Test error against the share of weights left, both on logarithmic axes."""
    draw_error(axis, searches, 0)
    axis.set(xscale="log", yscale="log", xlabel="weights left (%)")
    axis.set_ylabel("test error with all timesteps (%)")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter("{x:g}")
        side.set_minor_locator(NullLocator())
    axis.invert_xaxis()
    axis.legend(title="search runs")


def draw_error_by_seconds(axis, searches):
    """Test error against the seconds of the search."""
    draw_error(axis, searches, 1)
    axis.set(xlabel="seconds of the search")


def draw_error(axis, searches, column):
    """Test error against a column of the points (weights left, seconds, error). `searches` is
    {name: {round: [one point per seed]}}."""
    for number, (search, rounds) in enumerate(searches.items()):
        means, deviations = zip(*(mean_and_deviation(rounds[name]) for name in sorted(rounds)))
        x, error = [mean[column] for mean in means], [mean[2] for mean in means]
        style = {"marker": "o", "ms": 4, "capsize": 2, "color": f"C{number}", "label": search}
        axis.errorbar(x, error, [deviation[2] for deviation in deviations], **style)


def search_seconds(lines, final):
    """The seconds of the search for a network of pruning.jsonl: the training of the rounds before
    it, and the rule for the timesteps."""
    seconds = 0
    for line in lines:
        searched = line["search"] == final["search"] and line["stage"] == "search"
        if searched and line["round"] < final["round"]:
            seconds += line["seconds"] + line["rule_seconds"]
    return seconds
