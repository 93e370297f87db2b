"""The released estimator squares a mean of gradients.

Does the released code measure another centroid than that of I_t?

IC with means of 16 gradients must be below that of I_t by more than a ninth of flat.

The trained networks are measured by that estimator with batches of several sizes B, and sample by
sample (B = 1). A last batch with fewer samples is left out.
"""

import json

from claims import common, controls, figures, pages
from fisher import RELEASE_BATCH

BATCHES = (2, 16, 64, 128)  # samples in a mean, as the paper and those who copied it took
ONE = "1 (this is I_t)"


def runs(study):
    means = {size: controls.released(study, size) for size in BATCHES}
    trained, samples = study.trained(), study.scale.release_samples
    one = study.measure("controls sample by sample", trained, "--fisher_samples", samples)
    return {"trained": trained, ONE: one} | means


def numbers(study, folders):
    curves = {str(size): common.measured(folders[size], "fisher") for size in (ONE, *BATCHES)}
    samples = {str(size): common.measured(folders[size], "samples")[0] for size in BATCHES}
    return {"networks": study.scale.networks, "curves": curves, "samples": samples}


def slope_share(curves, released, size, samples):
    """The share of |g|^2, the squared norm of the mean gradient, in the curves [seeds, T] of the
    released estimator. `curves` are I_t. Batches of B = `size`, drawn without replacement from N
    `samples`, have in expectation

        released = (1 - c) |g|^2 + c I_t,  c = (N - B) / (N - 1) / B
    """
    c = (samples - size) / (samples - 1) / size
    return 1 - c * common.array(curves) / common.array(released)


def page(numbers, path):
    curves, samples, shares = numbers["curves"], numbers["samples"], {}
    rows = {size: {"ic": common.centroids(seeds)} for size, seeds in curves.items()}
    for size in map(str, BATCHES):
        share = slope_share(curves[ONE], curves[size], int(size), samples[size])
        shares[size] = common.by_step(share)
    largest = str(BATCHES[-1])
    share = slope_share(curves[ONE], curves[largest], BATCHES[-1], samples[largest])
    slope = common.centroids(share * common.array(curves[largest]))
    rows[f"all (the squared mean gradient, computed from B = {largest})"] = {"ic": slope}
    flat = common.flat_centroid(len(curves[ONE][0]))
    margin = common.margin(flat)
    words = f"IC is below that of I_t by more than {margin:.3g}"
    pair = rows[ONE]["ic"], rows[str(RELEASE_BATCH)]["ic"]
    lower = common.condition(words, *pair, low=margin)
    answer = (
        f"With B = {RELEASE_BATCH}, as its README says, IC is {lower.effect.mean:.2f} below that "
        f"of I_t. A flat curve has {flat:g}."
    )
    labels = ("samples B in a mean (1 is I_t itself)", "IC / IC of a flat curve")
    figures.curves({labels: scales(path)}, path, "x")
    tables = [
        pages.table("Centroids at the end", "samples in a mean, B", rows, {"ic": "IC"}),
        pages.table(
            "Share of the squared mean gradient in the estimate, after t steps", "B", shares
        ),
    ]
    return pages.Page([lower], tables, answer)


def scales(path):
    """{networks: {B: IC / flat}} of this scale, and of the others whose numbers are beside it."""
    series = {"flat": dict.fromkeys((1, *BATCHES), 1)}
    for other in sorted(path.parent.parent.glob(f"*/{path.stem}.json")):
        numbers = json.loads(other.read_text())["numbers"]
        sizes = series.setdefault(numbers["networks"], {})
        for size, curves in zip((1, *BATCHES), numbers["curves"].values()):
            flat = common.flat_centroid(len(curves[0]))
            sizes[size] = common.array(common.centroids(curves)) / flat
    return series
