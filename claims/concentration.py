"""Information concentrates in early timesteps while the network learns.

Does the temporal Fisher information move to early timesteps during training? The paper says so.

The information centroid IC must fall from the first measured epoch to the last one. It must end
below flat, the centroid of a flat curve. Both differences must be more than a ninth of flat.

The plain training, measured at several epochs.
"""

from claims import common, figures, pages


def runs(study):
    return {"trained": study.trained()}


def numbers(study, folders):
    trained, epochs = folders["trained"], []
    for line in range(len(common.measurements(trained[0]))):
        epoch = {
            "epoch": common.measured(trained, "epoch", line=line)[0],
            "fisher": common.measured(trained, "fisher", line=line),
        }
        epochs.append(epoch | common.summary(trained, line))
    return {
        "timestep": common.measured(trained, "timestep")[0],
        "epochs": epochs,
        "accuracy": common.measured(trained, "prefix_accuracy"),
        "residual": common.measured(trained, "prefix_residual"),
        "train_loss": common.logged(trained, "train_loss"),
        "test_accuracy": common.logged(trained, "test_accuracy"),
    }


def page(numbers, path):
    epochs = {row["epoch"]: row for row in numbers["epochs"]}
    ics = {epoch: row["ic"] for epoch, row in epochs.items()}
    first, last = min(epochs), max(epochs)
    flat = common.flat_centroid(numbers["timestep"])
    ends = {"ic_first": ics[first], "ic": ics[last], "flat": flat}
    answer = (
        f"IC goes from {pages.spread(ics[first])} in epoch {first} to {pages.spread(ics[last])} in "
        f"epoch {last}. A flat curve has {flat:g}. Training ends with loss "
        f"{pages.spread(numbers['train_loss'])} and test accuracy "
        f"{pages.spread(numbers['test_accuracy'])}."
    )
    shares = {}
    for epoch, row in epochs.items():
        curves = [common.array(curve) / sum(curve) for curve in row["fisher"]]
        shares[f"epoch {epoch}"] = common.by_step(curves)
    panels = {
        ("epoch", "information centroid IC"): {"IC": ics, "flat": dict.fromkeys(ics, flat)},
        ("timesteps t", "share of the sum of $I_t$"): shares,
    }
    figures.curves(panels, path)
    by_step = {
        "accuracy": common.by_step(numbers["accuracy"]),
        "R_t": common.by_step(numbers["residual"]),
    }
    tables = [
        pages.table("Centroids by epoch", "epoch", epochs, common.CENTROIDS),
        pages.table("Measured samples at the end, after t steps", "", by_step),
    ]
    return pages.Page(common.concentrate({"the network": ends}), tables, answer)
