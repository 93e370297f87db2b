"""What the estimator of the released code measures: the squared norm of a mean of gradients.

What is run: the trained networks, measured by that estimator, and sample by sample.
"""

from claims import common, figures
from claims.runs import RELEASED
from fisher import RELEASE_BATCH

TITLE = "The released estimator squares a mean of gradients"
QUESTION = "Does the released code measure another centroid than the information has?"
RULE = f"IC with means of {RELEASE_BATCH} gradients must be below that of I_t by a ninth of flat."
PAPER = "I_t, sample by sample"


def runs(study):
    return {"trained": study.trained(), PAPER: study.every_class(), RELEASED: study.released()}


def numbers(study, folders):
    last = {name: common.last_measurements(folders[name]) for name in (PAPER, RELEASED)}
    curves = {name: common.column(lines, "fisher") for name, lines in last.items()}
    return {"curves": curves, "samples": last[RELEASED][0]["samples"]}


def mean_gradient(curve, released, size, samples):
    """Squared norm |g|^2 [T] of the mean gradient of N `samples`, from I_t and the curve of the
    released estimator, and its share [T] in the latter. Batches of B = `size`, drawn without
    replacement, have in expectation

        released = (1 - c) |g|^2 + c I_t,  c = (N - B) / (N - 1) / B
    """
    c = (samples - size) / (samples - 1) / size
    norms = [(mean - c * one) / (1 - c) for one, mean in zip(curve, released)]
    return norms, [(1 - c) * norm / mean for norm, mean in zip(norms, released)]


def page(numbers):
    curves = numbers["curves"]
    ends = {name: [common.centre(curve) for curve in seeds] for name, seeds in curves.items()}
    pairs = list(zip(curves[PAPER], curves[RELEASED]))
    mean_gradients = [mean_gradient(*pair, RELEASE_BATCH, numbers["samples"]) for pair in pairs]
    ends["the squared mean gradient"] = [common.centre(norms) for norms, _ in mean_gradients]
    small = [
        [a / b for a, b in zip(norms, curve)]
        for (norms, _), (curve, _) in zip(mean_gradients, pairs)
    ]
    lower = common.difference(ends[PAPER], ends[RELEASED])
    flat = common.flat_centroid(len(small[0]))
    conditions = [common.above("IC is below that of I_t", lower, common.margin(flat))]
    rows = [
        [RELEASED, *map(common.spread, zip(*(share for _, share in mean_gradients)))],
        [PAPER, *map(common.spread, zip(*small))],
    ]
    centroids = [[name, common.spread(seeds)] for name, seeds in ends.items()]
    tables = [
        ("Centroids at the end", ["estimate", "IC"], centroids),
        ("Share of the squared mean gradient in the estimate, after t steps",
         ["estimate", *range(1, len(small[0]) + 1)], rows),
    ]  # fmt: skip
    answer = f"It is {lower.mean:.2f} lower, network by network, where flat is {flat:g}."
    return common.Page(answer, conditions, tables)


def draw(numbers, path):
    rows = {}
    for name, seeds in numbers["curves"].items():
        rows[name] = {"": [common.centre(curve) for curve in seeds]}
    flat = common.flat_centroid(len(numbers["curves"][PAPER][0]))
    return figures.dots(rows, path, "IC at the end of training", (flat, "flat"))
