"""The three kinds of figures of the claims. Type is 8 points at the printed size."""

import matplotlib
from matplotlib.figure import Figure

from claims.common import deviation, known
from plots import GREY, shades, write

STYLE = {"font.size": 8, "legend.fontsize": 8, "axes.titlesize": 8, "axes.labelsize": 8}
WIDTH = 7.2  # inches


def mean_and_deviation(values):
    """Both, of the values of the seeds."""
    values = known(values)
    return sum(values) / len(values), deviation(values)


def dots(rows, path, xlabel, line=None):
    """A dot plot: a line of text for each of `rows` {name: {series: [a value a seed]}}, a dot with
    the standard deviation for each series. The first series is hollow, the others are filled.
    `line` (place, name) is vertical. Returns the path."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.22 * len(rows)), layout="constrained")
        axis = figure.subplots()
        series = list(dict.fromkeys(name for row in rows.values() for name in row))
        for number, (name, colour) in enumerate(zip(series, shades(len(series)))):
            heights = [height for height, row in enumerate(rows.values()) if name in row]
            means, around = zip(
                *(mean_and_deviation(row[name]) for row in rows.values() if name in row)
            )
            style = {"fmt": "osD^vP"[number % 6], "ms": 5, "color": colour, "capsize": 2}
            style["mfc"] = "white" if number == 0 and len(series) > 1 else colour
            axis.errorbar(means, heights, xerr=around, label=name, **style)
        if line:
            axis.axvline(line[0], color=GREY, ls="--", lw=1)
            axis.annotate(line[1], (line[0], -0.9), color=GREY, ha="center")
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -1))
        axis.grid(axis="y", color="0.9")
        if len(series) > 1:
            figure.legend(loc="outside upper center", ncols=min(4, len(series)))
        return write(figure, path)


def curves(panels, path, ylabels, xscale="linear"):
    """A panel for each of `panels` {xlabel: {series: (x, [values of the seeds at each x])}}, with
    the mean and the standard deviation of the seeds. `ylabels` has one a panel. Returns the
    path."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, ylabel, (xlabel, series) in zip(axes, ylabels, panels.items()):
            for (name, (x, seeds)), colour in zip(series.items(), shades(len(series))):
                means, around = zip(*map(mean_and_deviation, seeds))
                axis.errorbar(x, means, around, fmt="o-", ms=3, capsize=2, color=colour, label=name)
            axis.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale)
            if len(series) > 1:
                axis.legend()
        return write(figure, path)


def scatter(panels, path, axes, labels, hollow=None):
    """A panel for each of `panels` {title: {name: {series: [a value a seed]}}}, with a dot and its
    name for the means of the two series `axes`. With the series `hollow` there are hollow dots with
    that x too, and the diagonal. Returns the path."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        subplots = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, rows) in zip(subplots, panels.items()):
            for (name, row), colour in zip(rows.items(), shades(len(rows))):
                x, y = (mean_and_deviation(row[series])[0] for series in axes)
                axis.plot(x, y, "o", ms=5, color=colour)
                axis.annotate(name, (x, y), (4, 2), textcoords="offset points", fontsize=6)
                if hollow:
                    x, _ = mean_and_deviation(row[hollow])
                    axis.plot(x, y, "o", ms=5, color=GREY, mfc="white")
            if hollow:
                axis.axline((1, 1), slope=1, color=GREY, ls="--", lw=1)
            axis.set(xlabel=labels[0], ylabel=labels[1], title=title)
        return write(figure, path)
