"""What is left of the concentration under controls that the paper does not have.

What is run: the trained networks, measured with all labels, on held-out samples, by the output at t
alone, without the path through the membranes, and by the estimator of the released code.
"""

from claims import common, figures
from claims.runs import RELEASED, WITHOUT_PATH, folder_name

TITLE = "What is left of the concentration under controls"
QUESTION = "Is the information still early when other explanations are taken out?"
RULE = "Under a control IC must end below that of a flat curve by a ninth of flat."
PAPER = "as in the paper"
EVERY_CLASS, INSTANT = "every class", "instantaneous outputs"


def runs(study):
    instant = ("--fisher_prefix instant", study.scale.again)
    return {
        "trained": study.trained(),
        EVERY_CLASS: study.every_class(),
        INSTANT: study.measure(f"controls_{folder_name(INSTANT)}", study.trained(), *instant),
        WITHOUT_PATH: study.without_path(),
        RELEASED: study.released(),
    }


def numbers(study, folders):
    kinds = (("train", "data"), ("train", "exact"), ("test", "data"), ("test", "exact"))
    every = [common.last_measurements(folders[EVERY_CLASS], *kind) for kind in kinds]
    paper, true, held_out, held_out_true = every
    cut = common.last_measurements(folders[WITHOUT_PATH])
    return {
        PAPER: common.column(paper, "fisher"),
        "each layer times its squared weights": [scale_free(line) for line in paper],
        "per loss (I_t / L_t)": per(paper, "prefix_loss"),
        "per residual: the gain (I_t / R_t)": per(paper, "prefix_residual"),
        "the gain, each sample alike": common.column(paper, "gain"),
        "true Fisher": common.column(true, "fisher"),
        "true Fisher per residual": per(true, "prefix_residual"),
        "held-out samples": common.column(held_out, "fisher"),
        "held-out samples, true Fisher": common.column(held_out_true, "fisher"),
        INSTANT: common.column(common.last_measurements(folders[INSTANT]), "fisher"),
        WITHOUT_PATH: common.column(cut, "fisher"),
        f"{WITHOUT_PATH}, per residual": per(cut, "prefix_residual"),
        RELEASED: common.column(common.last_measurements(folders[RELEASED]), "fisher"),
    }


def scale_free(line):
    """The curve of a measurement, each layer times the squared norm of its parameters."""
    return [sum(values) for values in zip(*line["layers_scale_free"].values())]


def per(lines, key):
    """The curves of the seeds, divided by another of their quantities."""
    return [common.divided(line["fisher"], line[key]) for line in lines]


def page(numbers):
    conditions, rows = [], []
    for name, seeds in numbers.items():
        flat = common.flat_centroid(len(seeds[0]))
        ends = [common.centre(curve) for curve in seeds]
        depth = common.difference([flat] * len(seeds), ends)
        words = f"{name}: IC ends below flat ({flat:g})"
        conditions.append(common.above(words, depth, common.margin(flat)))
        rows.append([name, common.spread(ends)])
    tables = [("Centroids at the end", ["control", "IC"], rows)]
    return common.Page(f"{common.confirmed(conditions)}.", conditions, tables)


def draw(numbers, path):
    rows = {}
    for name, seeds in numbers.items():
        rows[name] = {"": [common.centre(curve) for curve in seeds]}
    flat = common.flat_centroid(len(numbers[PAPER][0]))
    return figures.dots(rows, path, "IC at the end of training", (flat, "flat"))
