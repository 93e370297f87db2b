"""What the estimator of the released code measures: the squared norm of a mean of gradients.

What is run: the trained networks, measured by that estimator with batches of several sizes B, and
sample by sample, which is B = 1. Others copied the estimator with other B, so the figure says where
their curves belong.
"""

import json

from claims import common, figures
from claims.runs import BATCHES
from fisher import RELEASE_BATCH

TITLE = "The released estimator squares a mean of gradients"
QUESTION = "Does the released code measure another centroid than the information has?"
RULE = f"IC with means of {RELEASE_BATCH} gradients must be below that of I_t by a ninth of flat."
ONE = "1 (this is I_t)"


def runs(study):
    means = {size: study.released(size) for size in BATCHES}
    return {"trained": study.trained(), ONE: study.every_class()} | means


def numbers(study, folders):
    last = {name: common.last_measurements(folders[name]) for name in (ONE, *BATCHES)}
    return {
        "networks": study.scale.networks,
        "curves": {str(name): common.column(lines, "fisher") for name, lines in last.items()},
        "samples": {str(size): last[size][0]["samples"] for size in BATCHES},
    }


def weight(size, samples):
    """The weight c of I_t in the estimate. Batches of B = `size`, drawn without replacement from N
    `samples`, have in expectation, with |g|^2 the squared norm of the mean gradient,

        released = (1 - c) |g|^2 + c I_t,  c = (N - B) / (N - 1) / B
    """
    return (samples - size) / (samples - 1) / size


def mean_gradient(curve, released, size, samples):
    """|g|^2 at each t [T], from I_t [T] and the curve of the released estimator [T]."""
    c = weight(size, samples)
    return [(mean - c * one) / (1 - c) for one, mean in zip(curve, released)]


def share(curve, released, size, samples):
    """The share of |g|^2 in the estimate at each t [T]."""
    c = weight(size, samples)
    return [1 - c * one / mean for one, mean in zip(curve, released)]


def page(numbers):
    curves, samples = numbers["curves"], numbers["samples"]
    timestep = len(curves[ONE][0])
    ends = {size: [common.centre(curve) for curve in seeds] for size, seeds in curves.items()}
    lower = common.difference(ends[ONE], ends[str(RELEASE_BATCH)])
    flat = common.flat_centroid(timestep)
    conditions = [common.above("IC is below that of I_t", lower, common.margin(flat))]
    centroids, shares = [[ONE, common.spread(ends[ONE])]], []
    for size in map(str, BATCHES):
        arguments = int(size), samples[size]
        pairs = list(zip(curves[ONE], curves[size]))
        by_step = zip(*(share(*pair, *arguments) for pair in pairs))
        shares.append([size, *map(common.spread, by_step)])
        centroids.append([size, common.spread(ends[size])])
    limit = [common.centre(mean_gradient(*pair, *arguments)) for pair in pairs]
    centroids.append(["all (the squared mean gradient)", common.spread(limit)])
    steps = ["samples in a mean, B", *range(1, timestep + 1)]
    tables = [
        ("Centroids at the end", ["samples in a mean, B", "IC"], centroids),
        ("Share of the squared mean gradient in the estimate, after t steps", steps, shares),
    ]
    answer = (
        f"With B = {RELEASE_BATCH}, as its README says, it is {lower.mean:.2f} lower, network by "
        f"network, where flat is {flat:g}."
    )
    remark = f"The last centroid is computed from I_t and from the estimate with B = {size}."
    return common.Page(answer, conditions, tables, remark)


def draw(numbers, path):
    """IC against B: of these networks, and of those of other scales whose numbers lie beside."""
    series = {}
    for other in sorted(path.parent.parent.glob(f"*/{path.stem}.json")):
        beside = json.loads(other.read_text())["numbers"]
        timestep = len(beside["curves"][ONE][0])
        ends = {
            size: [common.centre(curve) for curve in seeds]
            for size, seeds in beside["curves"].items()
        }
        by_size = common.shares_of_flat(ends, timestep).values()
        series[beside["networks"]] = ((1, *BATCHES), list(by_size))
    panels = {"samples B in a mean (1 is I_t itself)": series}
    return figures.curves(panels, path, ["IC / IC of a flat curve"], log=True, line=(1, "flat"))
