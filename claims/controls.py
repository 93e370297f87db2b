"""The concentration remains under controls.

Is the information still early if other explanations are removed?

With each control, the centroid must end below flat, that of a flat curve, by more than a ninth of
it.

The trained networks are measured in other ways. These are: with all labels, on held-out samples, by
only the output at t, without the path through the membranes, and by the estimator of the released
code.
"""

import numpy as np

from claims import common, figures, pages
from fisher import RELEASE_BATCH

PAPER = "as in the paper"
EVERY_CLASS, INSTANT = "every class", "instantaneous outputs"
CUT, RELEASED = "no gradient through membranes", "the released estimator"


def runs(study):
    trained, again = study.trained(), study.scale.again
    ways = {
        EVERY_CLASS: "--fisher_split train test --fisher_labels data exact",
        INSTANT: "--fisher_prefix instant",
        CUT: "--detach_membrane",
    }
    measured = {way: study.measure(f"controls {way}", trained, ways[way], again) for way in ways}
    return {"trained": trained, **measured, RELEASED: released(study, RELEASE_BATCH)}


def released(study, size):
    """The trained networks, measured by the estimator of the released code with means of `size`
    samples."""
    samples = study.scale.release_samples
    flags = ("--fisher_estimator release --fisher_batch", size, "--fisher_samples", samples)
    return study.measure(f"controls {RELEASED} {size}", study.trained(), *flags)


def numbers(study, folders):
    networks, instant = folders[EVERY_CLASS], folders[INSTANT]
    cut, means = folders[CUT], folders[RELEASED]
    by_layer = common.measured(networks, "layers_scale_free")
    return {
        PAPER: common.measured(networks, "fisher"),
        "each layer times its squared weights": [
            np.sum([*layers.values()], 0).tolist() for layers in by_layer
        ],
        "per loss (I_t / L_t)": per(networks, "prefix_loss"),
        "per residual: the gain (I_t / R_t)": per(networks, "prefix_residual"),
        "the gain, each sample alike": common.measured(networks, "gain"),
        "true Fisher": common.measured(networks, "fisher", labels="exact"),
        "true Fisher per residual": per(networks, "prefix_residual", labels="exact"),
        "held-out samples": common.measured(networks, "fisher", "test"),
        "held-out samples, true Fisher": common.measured(networks, "fisher", "test", "exact"),
        INSTANT: common.measured(instant, "fisher"),
        CUT: common.measured(cut, "fisher"),
        f"{CUT}, per residual": per(cut, "prefix_residual"),
        RELEASED: common.measured(means, "fisher"),
    }


def per(folders, key, labels="data"):
    """The curves of the seeds, divided by another of their quantities."""
    curves = common.measured(folders, "fisher", labels=labels)
    return common.divided(curves, common.measured(folders, key, labels=labels))


def page(numbers, path):
    rows = {name: {"ic": common.centroids(curves)} for name, curves in numbers.items()}
    rows = common.with_flat(rows, len(numbers[PAPER][0]))
    conditions = [common.ends_early(name, row, "the centroid") for name, row in rows.items()]
    columns = {"ic": "centroid", "flat": "flat"}
    number = common.count_confirmed(conditions, rows)
    answer = f"With {number} of these {len(rows)} ways to measure, the centroid ends early."
    figures.dots(rows, columns, {"centroid at the end": ("ic", "flat")}, path)
    return pages.Page(conditions, [pages.table("Centroids", "control", rows, columns)], answer)
