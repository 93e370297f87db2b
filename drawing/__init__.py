"""What all figures share: matplotlib without a display, files, colours, legends."""

import contextlib
import io
import os
from pathlib import Path

import torch

# matplotlib ends its import where MPLBACKEND, set by a notebook say, names a backend that is not
# here. Figures are files and need none. So all of matplotlib comes to the others from this module.
backend = os.environ.pop("MPLBACKEND", None)
import matplotlib  # noqa: E402
from matplotlib import colormaps  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402, F401
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402, F401

from utils import write_atomically  # noqa: E402

if backend:
    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend

GREY = "0.55"
MOST_PIXELS = 2100  # of the width of a figure


def write(figure, path):
    """Write the figure as a PNG or PDF, as the name says. Returns the path."""
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
    """What a measurement is called in a legend: its epoch, or the checkpoint it was made of."""
    if "checkpoint" in line:
        return f"{Path(line['checkpoint']).parent.name}/{line['epoch']}"
    return str(line.get("epoch", "measurement"))


def mean_and_deviation(rows):
    """Mean and standard deviation over the rows, one for each seed; no deviation of one row. None
    counts as not a number."""
    values = torch.tensor([[torch.nan if v is None else v for v in row] for row in rows]).double()
    return values.mean(0), values.std(0, correction=min(1, len(rows) - 1))


def legend_below(axis, columns, title=None):
    """Put the legend below the panel, where it covers no curve."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
    axis.legend(**place, ncols=columns, title=title, fontsize=8)
