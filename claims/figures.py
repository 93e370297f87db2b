"""The three kinds of figures of the claims, for the width of a page. Values of seeds are shown as
mean and standard deviation."""

from textwrap import fill

from claims.common import deviation, known
from drawing import GREY, Figure, LogLocator, NullLocator, matplotlib, shades, write

STYLE = {"font.size": 8, "legend.fontsize": 8, "axes.titlesize": 8, "axes.labelsize": 8}
WIDTH = 7.2  # inches


def mean_and_deviation(values):
    """Both, of the values of the seeds."""
    values = known(values)
    return sum(values) / len(values), deviation(values)


@matplotlib.rc_context(STYLE)
def dots(rows, path, xlabel, line=None):
    """A dot plot with a line for each of `rows` {name: {series: [a value a seed]}}. Of several
    series the first is hollow. `line` (place, name) is vertical. Returns the path."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.22 * len(rows)), layout="constrained")
    axis = figure.subplots()
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    for number, (name, colour) in enumerate(zip(series, shades(len(series)))):
        heights = [height for height, row in enumerate(rows.values()) if name in row]
        seeds = [row[name] for row in rows.values() if name in row]
        means, around = zip(*map(mean_and_deviation, seeds))
        fill = "white" if number == 0 and len(series) > 1 else colour
        style = {"fmt": "osD^vP"[number % 6], "ms": 5, "capsize": 2, "color": colour, "mfc": fill}
        axis.errorbar(means, heights, xerr=around, label=name, **style)
    if line:
        place, name = line
        axis.axvline(place, color=GREY, ls="--", lw=1)
        axis.annotate(f" {name}", (place, -0.6), color=GREY, va="center")
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -1))
    axis.grid(axis="y", color="0.9")
    if len(series) > 1:
        figure.legend(loc="outside upper center", ncols=min(4, len(series)))
    return write(figure, path)


@matplotlib.rc_context(STYLE)
def curves(panels, path, ylabels, log=False, line=None):
    """A panel for each of `panels` {xlabel: {series: (x, values of the seeds at each x)}}, with a
    legend in the last. `line` (place, name) is horizontal, in the first. Returns the path."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, ylabel, (xlabel, series) in zip(axes, ylabels, panels.items()):
        for (name, (x, seeds)), colour in zip(series.items(), shades(len(series))):
            means, around = zip(*map(mean_and_deviation, seeds))
            axis.errorbar(x, means, around, fmt="o-", ms=3, capsize=2, color=colour, label=name)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        if log:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
    if line:
        place, name = line
        axes[0].axhline(place, color=GREY, ls="--", lw=1)
        right = ("axes fraction", "data")
        axes[0].annotate(name, (0.99, place), xycoords=right, color=GREY, ha="right", va="bottom")
    axes[-1].legend()
    return write(figure, path)


@matplotlib.rc_context(STYLE)
def scatter(panels, path, axes, labels, hollow=None):
    """A panel for each of `panels` {title: {name: {series: [a value a seed]}}}, with a dot for
    the means of the two series `axes`, named where there is room. With the series `hollow` there
    are hollow dots with that x too, and the diagonal. Returns the path."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    subplots = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, rows) in zip(subplots, panels.items()):
        heights = [mean_and_deviation(row[axes[1]])[0] for row in rows.values()]
        apart, named = 0.05 * (max(heights) - min(heights)), []
        for (name, row), y, colour in zip(rows.items(), heights, shades(len(rows))):
            x = mean_and_deviation(row[axes[0]])[0]
            axis.plot(x, y, "o", ms=5, color=colour)
            if hollow:
                axis.plot(mean_and_deviation(row[hollow])[0], y, "o", ms=5, color=GREY, mfc="white")
            if all(abs(y - height) >= apart for height in named):  # else names would overlap
                text = axis.annotate(fill(name, 16), (x, y), (5, -3), textcoords="offset points")
                text.set_in_layout(False)
                named.append(y)
        if hollow:
            axis.axline((1, 1), slope=1, color=GREY, ls="--", lw=1)
        axis.margins(0.25, 0.1)
        axis.set(xlabel=labels[0], ylabel=labels[1], title=title)
    return write(figure, path)
