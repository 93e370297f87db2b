"""Where information is planted at known timesteps, IC says when it is there.

What is run: trainings on frames that show the class at some timesteps only. At the others there is
noise of the same distribution.
"""

from claims import common, figures
from claims.runs import DRAWN_LABELS, TRAIN
from readers import FAKE_CLASSES

TITLE = "IC says when planted information is there"
QUESTION = "Is IC near the timesteps at which the class shows, if it shows at these only?"
RULE = "IC must end within a ninth of flat of the middle of those timesteps."
COLUMNS = common.CENTROIDS | {
    "ic_test": "IC, held out",
    "ic_true": "IC, true Fisher",
    "date": "held-out accuracy is gained at",
}


def runs(study):
    trainings = {}
    for times in study.scale.planted_times:
        flags = ("--dataset planted --planted_time", *times, "--fisher_split train test")
        flags = (*flags, DRAWN_LABELS, study.scale.planted)
        folder = f"controls_planted_{times[0]}-{times[-1]}"
        trainings[times] = study.each_seed(folder, TRAIN, flags, downloads=False)
    return trainings


def numbers(study, folders):
    return [one_training(times, seeds) for times, seeds in folders.items()]


def one_training(times, folders):
    """The numbers of networks whose class shows at those times, a value a seed."""
    last = common.last_measurements(folders)
    test = common.last_measurements(folders, "test")
    accuracy = common.column(test, "prefix_accuracy")
    return common.summary(last) | {
        "name": f"{times[0]} to {times[-1]}",
        "middle": sum(times) / len(times),
        "every_step": len(times) == last[0]["timestep"],
        "ic_test": common.column(test, "ic"),
        "ic_true": common.column(common.last_measurements(folders, labels="model"), "ic"),
        "date": [dated(curve, 1 / FAKE_CLASSES) for curve in accuracy],
        "accuracy": accuracy,
    }


def dated(accuracy, chance):
    """The mean timestep at which accuracy [T] is gained: sum_t t (a_t - a_{t-1}) / (a_T - a_0), a_0
    by chance. What is lost again counts as negative; None where nothing is gained."""
    gains = [now - before for now, before in zip(accuracy, [chance, *accuracy])]
    total = sum(gains)
    return sum(t * gain for t, gain in enumerate(gains, 1)) / total if total else None


def page(numbers):
    conditions, rows, by_step = [], [], []
    for row in numbers:
        name, middle = row["name"], row["middle"]
        if not row["every_step"]:
            offset = common.difference(row["ic"], [middle] * len(row["ic"]))
            margin = common.margin(common.flat_centroid(row["timestep"]))
            words = f"class at {name}: IC differs from {middle:g}"
            conditions.append(common.within(words, offset, margin))
        rows.append([name, *common.cells(row, COLUMNS)])
        by_step.append([name, *map(common.spread, zip(*row["accuracy"]))])
    heads = ["class shows at t", *COLUMNS.values()]
    steps = ["class shows at t", *range(1, len(by_step[0]))]
    tables = [("Centroids", heads, rows), ("Held-out accuracy after t steps", steps, by_step)]
    return common.Page(f"{common.confirmed(conditions)}.", conditions, tables)


def draw(numbers, path):
    rows = {}
    for row in numbers:
        series = {"middle of these": [row["middle"]], "IC": row["ic"]}
        series["accuracy is gained"] = row["date"]
        rows[f"class at {row['name']}"] = series
    return figures.dots(rows, path, "timestep")
