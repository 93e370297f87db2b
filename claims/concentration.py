"""Information starts late or flat and concentrates in early timesteps while the network learns.

What is run: the plain training, measured at several epochs.
"""

from claims import common, figures

TITLE = "Information concentrates in early timesteps while the network learns"
QUESTION = "Does the temporal Fisher information move to early timesteps during training?"
RULE = (
    "The information centroid IC must fall from the first measured epoch to the last, and end "
    "below that of a flat curve, both by a ninth of flat."
)


def runs(study):
    return {"trained": study.trained()}


def numbers(study, folders):
    seeds = [common.measurements(folder) for folder in folders["trained"]]
    last = [lines[-1] for lines in seeds]
    logs = common.last_epochs(folders["trained"])
    return {
        "timestep": last[0]["timestep"],
        "epochs": [one_epoch(lines) for lines in zip(*seeds)],
        "accuracy": common.column(last, "prefix_accuracy"),
        "residual": common.column(last, "prefix_residual"),
        "train_loss": common.column(logs, "train_loss"),
        "test_accuracy": common.column(logs, "test_accuracy"),
    }


def one_epoch(lines):
    """The numbers of one epoch, from the measurements of the seeds."""
    curves = {"epoch": lines[0]["epoch"], "fisher": common.column(lines, "fisher")}
    return curves | common.summary(lines)


def page(numbers):
    epochs, timestep = numbers["epochs"], numbers["timestep"]
    first, last = epochs[0], epochs[-1]
    answer = (
        f"IC goes from {common.spread(first['ic'])} in epoch {first['epoch']} to "
        f"{common.spread(last['ic'])} in epoch {last['epoch']}, where a flat curve has "
        f"{common.flat_centroid(timestep):g}."
    )
    conditions = common.concentrates("the network", first["ic"], last["ic"], timestep)
    rows = [[line["epoch"], *common.cells(line, common.CENTROIDS)] for line in epochs]
    ends = [
        ["accuracy", *map(common.spread, zip(*numbers["accuracy"]))],
        ["R_t", *map(common.spread, zip(*numbers["residual"]))],
    ]
    tables = [
        ("Centroids by epoch", ["epoch", *common.CENTROIDS.values()], rows),
        ("Measured samples at the end, after t steps", ["", *range(1, timestep + 1)], ends),
    ]
    remark = (
        "R_t is the mean squared residual of the predictions, L_t their mean loss. Training ends "
        f"with loss {common.spread(numbers['train_loss'])} and test accuracy "
        f"{common.spread(numbers['test_accuracy'])}."
    )
    return common.Page(answer, conditions, tables, remark)


def draw(numbers, path):
    epochs, steps = numbers["epochs"], range(1, numbers["timestep"] + 1)
    x = common.column(epochs, "epoch")
    by_epoch = {"IC": (x, common.column(epochs, "ic"))}
    by_step = {f"epoch {line['epoch']}": (steps, shares(line["fisher"])) for line in epochs}
    panels = {"epoch": by_epoch, "timesteps t": by_step}
    ylabels = ["information centroid IC", "share of the sum of $I_t$"]
    flat = common.flat_centroid(numbers["timestep"])
    return figures.curves(panels, path, ylabels, line=(flat, "flat"))


def shares(curves):
    """Curves [T] of the seeds -> their shares of their sums, [T][seeds]."""
    return list(zip(*([value / sum(curve) for value in curve] for curve in curves)))
