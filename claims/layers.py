"""The concentration happens in every layer.

What is run: the plain training, and its last networks measured again without the gradient that goes
from one timestep to another.
"""

from claims import common, figures
from claims.runs import WITHOUT_PATH

TITLE = "The concentration happens in every layer"
QUESTION = "Does the information of each layer move to early timesteps during training?"
RULE = "The IC of each layer must fall, and end below that of a flat curve, both by a ninth of it."
COLUMNS = {
    "ic_first": "IC, first epoch",
    "ic": "IC at the end",
    "share": "share of the sum at the end",
    "ic_gain": "I_t / R_t",
    "ic_gain_cut": f"I_t / R_t, {WITHOUT_PATH}",
}


def runs(study):
    return {"trained": study.trained(), "cut": study.without_path()}


def numbers(study, folders):
    first = [common.measurements(folder)[0] for folder in folders["trained"]]
    last = common.last_measurements(folders["trained"])
    cut = common.last_measurements(folders["cut"])
    layers = {name: one_layer(name, first, last, cut) for name in first[0]["layers"]}
    return {"timestep": last[0]["timestep"], "layers": layers}


def one_layer(name, first, last, cut):
    """The numbers of a layer, a value a seed, from the measurements of the seeds."""
    return {
        "ic_first": [common.centre(line["layers"][name]) for line in first],
        "ic": [common.centre(line["layers"][name]) for line in last],
        "share": [sum(line["layers"][name]) / sum(line["fisher"]) for line in last],
        "ic_gain": [gain(line, name) for line in last],
        "ic_gain_cut": [gain(line, name) for line in cut],
    }


def gain(line, name):
    """The centroid of a layer's part of I_t / R_t."""
    return common.centre(common.divided(line["layers"][name], line["prefix_residual"]))


def page(numbers):
    conditions, rows = [], []
    for name, row in numbers["layers"].items():
        ends = row["ic_first"], row["ic"]
        conditions += common.concentrates(name, *ends, numbers["timestep"])
        rows.append([name, *common.cells(row, COLUMNS)])
    tables = [("Centroids", ["layer", *COLUMNS.values()], rows)]
    answer = f"{common.confirmed(conditions)}; each layer has two."
    return common.Page(answer, conditions, tables)


def draw(numbers, path):
    rows = {}
    for name, row in numbers["layers"].items():
        rows[name] = {"first epoch": row["ic_first"], "last epoch": row["ic"]}
    flat = common.flat_centroid(numbers["timestep"])
    return figures.dots(rows, path, "IC of the layer", (flat, "flat"))
