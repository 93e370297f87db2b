"""The three kinds of figures of the claims, for the width of a page. "flat" is the centroid of a
flat curve, in grey."""

import numpy as np

from drawing import (
    COLOURS,
    GREY,
    MARKERS,
    Figure,
    make_logarithmic,
    matplotlib,
    mean_and_deviation,
    shades,
    write,
)

STYLE = {"font.size": 8, "legend.fontsize": 8, "axes.titlesize": 8, "axes.labelsize": 8}
WIDTH = 7.2  # inches
MOST_COLOURS = 6


@matplotlib.rc_context(STYLE)
def dots(rows, columns, panels, path):
    """A line for each of `rows` {name: {key: values of the seeds}}, and a panel for each of
    `panels` {xlabel: keys}. `columns` {key: name} are those of the table. Marks are means, small
    dots are seeds."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    heights = range(len(rows))
    for axis, (xlabel, keys) in zip(axes, panels.items()):
        for key, colour, marker in zip(keys, COLOURS, MARKERS):
            means = [mean_and_deviation(row[key])[0] for row in rows.values()]
            style = {"ls": "", "marker": marker, "ms": 5, "color": colour}
            if key == "flat":
                style = {"ls": "", "marker": "|", "ms": 12, "color": GREY}
            axis.plot(means, heights, label=columns[key], **style)
            for height, row in zip(heights, rows.values()):
                seeds = np.atleast_1d(np.array(row[key], dtype=float))
                axis.plot(seeds, [height] * len(seeds), ".", ms=3, alpha=0.5, color=style["color"])
        axis.set(
            xlabel=xlabel, yticks=heights, yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.5)
        )
        axis.grid(axis="y", color="0.9")
        if len(keys) > 1:
            axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(keys))
    write(figure, path)


@matplotlib.rc_context(STYLE)
def scatter(panels, path):
    """A panel for each of `panels` {title: {name: row}}: measured centroids against those by the
    law, and hollow against those with the path cut, as shares of flat. On the dashed diagonal they
    are the same; between the dotted lines they differ by less than a ninth of flat."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    for axis, (title, rows) in zip(axes, panels.items()):
        measured, law, cut = (
            [mean_and_deviation(row[key])[0] for row in rows.values()]
            for key in ("measured", "law", "cut")
        )
        axis.plot(cut, measured, "o", ms=4, color=COLOURS[1], mfc="white", label="path cut")
        axis.plot(law, measured, "o", ms=4, color=COLOURS[0], label="by the law")
        axis.axline((1, 1), slope=1, color=GREY, ls="--", lw=1, label="equal")
        for offset in (-1 / 9, 1 / 9):
            label = "a ninth of flat apart" if offset > 0 else None
            axis.axline((1, 1 + offset), slope=1, color=GREY, ls=":", lw=1, label=label)
        axis.set(xlabel="predicted centroid / flat", ylabel="measured centroid / flat", title=title)
    axes[0].legend()
    write(figure, path)


@matplotlib.rc_context(STYLE)
def curves(panels, path, logarithmic=""):
    """A panel for each of `panels` {(xlabel, ylabel): {series: {x: values of the seeds}}}.
    `logarithmic` names axes, such as "xy"."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, ((xlabel, ylabel), series) in zip(axes, panels.items()):
        # Many curves are epochs or timesteps, in order.
        colours = COLOURS if len(series) <= MOST_COLOURS else shades(len(series))
        for (name, points), colour in zip(series.items(), colours):
            means, deviations = zip(*map(mean_and_deviation, points.values()))
            style = {"fmt": "o-", "ms": 3, "capsize": 2, "color": colour}
            if name == "flat":
                style = {"fmt": "--", "color": GREY}
            axis.errorbar(list(points), means, deviations, label=name, **style)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1)
        make_logarithmic(axis, logarithmic)
    write(figure, path)
