"""The concentration is common.

Does the information move to early timesteps with other architectures, T, neurons, norms,
optimizers, encodings and amounts of data, too?

In each setting IC must fall. It must end below flat, the centroid of a flat curve. Both differences
must be more than a ninth of flat.

A training of each setting, and of parts of other data sets. The first and the last epoch are
measured, with the labels of the data and with labels drawn from the prediction.
"""

from itertools import product

from claims import common, figures, pages
from claims.runs import DRAWN_LABELS
from claims.scales import ENDS

PLAIN = "as it is"  # the setting without a change
OTHER_DATA = {"Fashion-MNIST": "fashion_mnist", "CIFAR-10": "cifar10"}
COLUMNS = {"flat": "flat", "ic_first": "IC, epoch 1", **common.CENTROIDS} | {
    "ic": "IC at the end",
    "ic_gain_first": "I_t / R_t, epoch 1",
    "ic_true": "true Fisher",
    "ic_true_gain": "true Fisher / R_t",
    "train_loss": "training loss",
    "test_accuracy": "test accuracy",
}


def trainings(study):
    """{setting: trainings} on the data set of the scale."""
    by_setting = {PLAIN: study.trained()}
    for name, flags in study.scale.settings.items():
        by_setting[name] = study.train(f"settings {name}", ENDS, DRAWN_LABELS, flags)
    return by_setting


def runs(study):
    """Without --data_dir, the scale small leaves other data sets out."""
    by_setting = trainings(study)
    if study.scale.downloads or study.data_dir:
        for data, (subset, flags) in product(OTHER_DATA, study.scale.subsets.items()):
            flags = ("--dataset", OTHER_DATA[data], ENDS, DRAWN_LABELS, flags)
            name = f"{data}, {subset}"
            by_setting[name] = study.each_seed(f"settings {name}", *flags, downloads=True)
    return by_setting


def numbers(study, folders):
    rows = {}
    for name, seeds in folders.items():
        rows[name] = common.summary(seeds) | {
            "ic_first": common.measured(seeds, "ic", line=0),
            "ic_gain_first": common.measured(seeds, "ic_per_residual", line=0),
            "ic_true": common.measured(seeds, "ic", labels="model"),
            "ic_true_gain": common.measured(seeds, "ic_per_residual", labels="model"),
            "train_loss": common.logged(seeds, "train_loss"),
            "test_accuracy": common.logged(seeds, "test_accuracy"),
        }
    return rows


def page(numbers, path):
    rows = common.with_flat(numbers)
    shares = common.shares_of_flat(rows, ("ic_first", "ic"))
    panels = {
        "IC / IC of a flat curve": ("ic_first", "ic", "flat"),
        "training loss": ("train_loss",),
    }
    figures.dots(shares, COLUMNS, panels, path)
    table = pages.table("Centroids, loss and accuracy", "setting", rows, COLUMNS)
    conditions = common.concentrate(rows)
    number = common.count_confirmed(conditions, rows)
    answer = f"IC falls and ends early in {number} of {len(rows)} settings."
    return pages.Page(conditions, [table], answer)
