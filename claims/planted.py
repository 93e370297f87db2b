"""IC says when planted information is there.

The input shows the class at some timesteps only. Is IC near these timesteps?

IC must end near the middle of these timesteps. It must differ by less than a ninth of flat.

Trainings on frames that show the class at some timesteps only. The other frames are noise of the
same distribution.
"""

from claims import common, figures, pages
from claims.runs import DRAWN_LABELS
from readers import FAKE_CLASSES

COLUMNS = {"middle": "middle of these t", **common.CENTROIDS} | {
    "ic_test": "IC, held out",
    "ic_true": "IC, true Fisher",
    "date": "held-out accuracy is gained at",
}


def runs(study):
    trainings = {}
    for times in study.scale.planted_times:
        flags = ("--dataset planted --planted_time", *times, "--fisher_split train test")
        flags = (*flags, DRAWN_LABELS, study.scale.planted)
        name = f"controls planted {times[0]}-{times[-1]}"
        trainings[times] = study.each_seed(name, *flags, downloads=False)
    return trainings


def numbers(study, folders):
    rows = []
    for times, seeds in folders.items():
        row, accuracy = common.summary(seeds), common.measured(seeds, "prefix_accuracy", "test")
        row |= {
            "name": f"{times[0]} to {times[-1]}",
            "middle": sum(times) / len(times),
            "every_step": len(times) == row["timestep"],
            "ic_test": common.measured(seeds, "ic", "test"),
            "ic_true": common.measured(seeds, "ic", labels="model"),
            "date": [dated(curve, 1 / FAKE_CLASSES) for curve in accuracy],
            "accuracy": accuracy,
        }
        rows.append(row)
    return rows


def dated(accuracy, chance):
    """The mean timestep at which accuracy [T] is gained: sum_t t (a_t - a_{t-1}) / (a_T - a_0), a_0
    by chance. What is lost again counts as negative; None where nothing is gained."""
    gains = [now - before for now, before in zip(accuracy, [chance, *accuracy])]
    total = sum(gains)
    return sum(t * gain for t, gain in enumerate(gains, 1)) / total if total else None


def page(numbers, path):
    rows = {f"class at {row['name']}": row for row in numbers}
    conditions = []
    for name, row in common.with_flat(rows).items():
        if not row["every_step"]:
            middle, margin = row["middle"], common.margin(row["flat"])
            words = f"{name}: IC differs from {middle:g} by less than {margin:.3g}, either way"
            conditions.append(common.condition(words, row["ic"], middle, -margin, margin))
    figures.dots(rows, COLUMNS, {"timestep": ("ic", "date", "middle")}, path)
    accuracy = {name: common.by_step(row["accuracy"]) for name, row in rows.items()}
    tables = [
        pages.table("Centroids", "class shows at t", rows, COLUMNS),
        pages.table("Held-out accuracy after t steps", "class shows at t", accuracy),
    ]
    number = [condition.verdict for condition in conditions].count("confirmed")
    answer = f"It is near them in {number} of {len(conditions)} cases."
    return pages.Page(conditions, tables, answer)
