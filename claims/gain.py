"""The gain, I_t / R_t, is late because the gradient goes back in time through the membranes.

What is run: the last network of each setting, measured with and without that path, however it was
trained. The prediction is of the mean of outputs 1..t, or of the output at t alone.
"""

from claims import common, figures
from claims.runs import folder_name

TITLE = "The gain is late because gradients go back through membranes"
QUESTION = "Is the gain I_t / R_t late, and no longer so without the path through the membranes?"
RULE = (
    "The centroid of the gain must be past flat by a ninth of flat. With the path cut (in the "
    "measurement alone) it must be past flat by less."
)
WITH, CUT = "as it is", "cut"
WAYS = {
    WITH: "",
    CUT: "--detach_membrane",
    "instant": "--fisher_prefix instant",
    "instant, cut": "--fisher_prefix instant --detach_membrane",
}


def measured(study, settings, ways):
    """{(setting, way): measurements} of the networks of {setting: trainings}."""
    again = {}
    for name, trainings in settings.items():
        for way in ways:
            folder = f"gain_{folder_name(f'{name} {way}')}"
            again[name, way] = study.measure(folder, trainings, WAYS[way], study.scale.again)
    return again


def runs(study):
    settings = study.settings()
    return settings | measured(study, settings, WAYS)


def numbers(study, folders):
    rows = {}
    for name, way in [key for key in folders if isinstance(key, tuple)]:
        last = common.last_measurements(folders[name, way])
        row = rows.setdefault(name, {"timestep": last[0]["timestep"], "ic": {}, "gain": {}})
        row["ic"][way] = common.column(last, "ic")
        row["gain"][way] = common.column(last, "ic_per_residual")
    return rows


def page(numbers):
    conditions, rows = [], []
    for name, row in numbers.items():
        flat = common.flat_centroid(row["timestep"])
        margin, flats = common.margin(flat), [flat] * len(row["gain"][WITH])
        late = common.difference(row["gain"][WITH], flats)
        cut = common.difference(row["gain"][CUT], flats)
        conditions.append(common.above(f"{name}: the gain is past flat", late, margin))
        conditions.append(common.below(f"{name}: with the path cut it is past flat", cut, margin))
        ics = common.cells(row["ic"], (WITH, CUT))
        rows.append([name, f"{flat:g}", *ics, *common.cells(row["gain"], WAYS)])
    heads = ["setting", "flat", "IC", "IC, cut", "gain", "gain, cut", "gain of the output at t",
             "the same, cut"]  # fmt: skip
    answer = f"{common.confirmed(conditions)}; each setting has two."
    return common.Page(answer, conditions, [("Centroids", heads, rows)])


def draw(numbers, path):
    rows = {}
    for name, row in numbers.items():
        series = {"path cut": row["gain"][CUT], "as it is": row["gain"][WITH]}
        rows[name] = common.shares_of_flat(series, row["timestep"])
    label = "centroid of the gain as a share of that of a flat curve"
    return figures.dots(rows, path, label, (1, "flat"))
