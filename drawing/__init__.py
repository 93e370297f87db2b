"""Helpers for all figures: matplotlib without a display, files, colours, legends."""

import contextlib
import io
import os
from pathlib import Path

import numpy as np

# The import of matplotlib fails if MPLBACKEND names a backend that is not installed. A notebook may
# set it. Figures are files and need no backend. So other modules import matplotlib from this one.
backend = os.environ.pop("MPLBACKEND", None)
import matplotlib  # noqa: E402
from matplotlib import colormaps  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402, F401
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402
from matplotlib.transforms import ScaledTranslation  # noqa: E402

from utils import write_atomically  # noqa: E402

if backend:
    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend

GREY = "0.55"
# Colour-blind readers can tell these colours apart (Okabe and Ito 2008). Eight colours and seven
# markers give 56 pairs before one repeats.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
MARKERS = "os^Dv*P"
MOST_PIXELS = 2100  # the width of a figure


def write(figure, path):
    """Write the figure as PNG or PDF, by the end of its name. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dpi = min(150, MOST_PIXELS / figure.get_figwidth())
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=dpi)
    write_atomically(path, buffer.getbuffer())
    return path


def shades(count):
    """A colour for each of `count` curves in order, dark to light."""
    return [colormaps["viridis"](i / max(1, count - 1) * 0.9) for i in range(count)]


def label(line):
    """The name of a checkpoint in a legend, by folder and file: "run/0010", "run/best"."""
    path = Path(line["checkpoint"])
    return f"{path.parent.name}/{path.stem.removeprefix('checkpoint_')}"


def make_logarithmic(axis, sides):
    """Make the `sides` of a panel logarithmic, such as "xy", with plain numbers at 1, 2, 5, 10."""
    for side in sides:
        axis.set(**{f"{side}scale": "log"})
        ticks = axis.xaxis if side == "x" else axis.yaxis
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ticks.set_major_formatter("{x:g}")
        ticks.set_minor_locator(NullLocator())


def mean_and_deviation(seeds):
    """Mean and standard deviation over the seeds, the first dimension. The deviation of one seed
    is 0. A number counts as one seed, None as NaN."""
    values = np.atleast_1d(np.array(seeds, dtype=float))
    return values.mean(0), values.std(0, ddof=min(1, len(values) - 1))


def legend_below(axis, columns, title=None):
    """Put the legend below the panel, so that it covers no curve. No legend without a name."""
    if not axis.get_legend_handles_labels()[1]:
        return
    below_label = ScaledTranslation(0, -0.5, axis.figure.dpi_scale_trans)  # half an inch
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
    place["bbox_transform"] = axis.transAxes + below_label
    axis.legend(**place, ncols=columns, title=title, fontsize=8)
