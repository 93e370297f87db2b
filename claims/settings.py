"""The concentration is common: across architectures, T, neurons, norms, optimizers, encodings and
amounts of data.

What is run: a training of each setting and of parts of other data sets, measured in its first and
last epoch, with the labels of the data and with labels that the network predicts.
"""

from claims import common, figures
from utils import ARGS_FILE, read_record

TITLE = "The concentration is common"
QUESTION = "Does the information move to early timesteps in other settings, too?"
RULE = "In each setting IC must fall, and end below that of a flat curve, both by a ninth of flat."
COLUMNS = {"ic_first": "IC, epoch 1", **common.CENTROIDS} | {
    "ic_gain_first": "I_t / R_t, epoch 1",
    "ic_true": "true Fisher",
    "ic_true_gain": "true Fisher / R_t",
    "train_loss": "training loss",
    "test_accuracy": "test accuracy",
}


def runs(study):
    return study.settings() | study.other_data()


def numbers(study, folders):
    return {name: one_setting(seeds) for name, seeds in folders.items()}


def one_setting(folders):
    """The numbers of a setting, a value a seed."""
    first = [common.measurements(folder)[0] for folder in folders]
    last, logs = common.last_measurements(folders), common.last_epochs(folders)
    drawn = common.last_measurements(folders, labels="model")
    return common.summary(last) | {
        "dataset": read_record(folders[0] / ARGS_FILE)["args"]["dataset"],
        "ic_first": common.column(first, "ic"),
        "ic_gain_first": common.column(first, "ic_per_residual"),
        "ic_true": common.column(drawn, "ic"),
        "ic_true_gain": common.column(drawn, "ic_per_residual"),
        "train_loss": common.column(logs, "train_loss"),
        "test_accuracy": common.column(logs, "test_accuracy"),
    }


def page(numbers):
    conditions, rows = [], []
    for name, row in numbers.items():
        conditions += common.concentrates(name, row["ic_first"], row["ic"], row["timestep"])
        flat = common.flat_centroid(row["timestep"])
        rows.append([name, f"{flat:g}", *common.cells(row, COLUMNS)])
    heads = ["settings", "number", "IC / flat", "I_t / L_t / flat", "I_t / R_t / flat"]
    dataset = next(iter(numbers.values()))["dataset"]
    alone = [row for row in numbers.values() if row["dataset"] == dataset]
    correlations = [correlation_row(dataset, alone)]
    if len(alone) < len(numbers):
        correlations.append(correlation_row("all", list(numbers.values())))
    tables = [
        ("Centroids, training loss and accuracy", ["setting", "flat", *COLUMNS.values()], rows),
        ("Rank correlation of the training loss with centroids", heads, correlations),
    ]
    answer = f"{common.confirmed(conditions)}; each setting has two."
    return common.Page(answer, conditions, tables)


def correlation_row(name, settings):
    """Rank correlations, over the settings, of the training loss with centroids over flat."""
    keys, rows = ("ic", "ic_loss", "ic_gain"), []
    for setting in settings:
        series = {key: setting[key] for key in keys}
        row = common.shares_of_flat(series, setting["timestep"])
        rows.append(row | {"train_loss": setting["train_loss"]})
    return [name, len(rows), *(common.correlation(rows, "train_loss", key) for key in keys)]


def draw(numbers, path):
    rows = {}
    for name, row in numbers.items():
        ends = {"first epoch": row["ic_first"], "last epoch": row["ic"]}
        rows[name] = common.shares_of_flat(ends, row["timestep"])
    return figures.dots(rows, path, "IC as a share of that of a flat curve", (1, "flat"))
