"""The concentration happens in every layer.

Does the information of each layer move to early timesteps during training?

The IC of each layer must fall. It must end below flat, the centroid of a flat curve. Both
differences must be more than a ninth of flat.

The plain training. Its last networks are measured again without the gradient that goes from one
timestep to another.
"""

from claims import common, controls, figures, pages

COLUMNS = {
    "flat": "flat",
    "ic_first": "IC, first epoch",
    "ic": "IC at the end",
    "share": "share of the sum at the end",
    "ic_gain": "I_t / R_t",
    "ic_gain_cut": f"I_t / R_t, {controls.CUT}",
}


def runs(study):
    return {"trained": study.trained(), "cut": controls.runs(study)[controls.CUT]}


def numbers(study, folders):
    trained, cut = folders["trained"], folders["cut"]
    layers = {}
    for name in common.measured(trained, "layers")[0]:
        curves = of_layer(name, trained)
        sums = zip(curves, common.measured(trained, "fisher"))
        layers[name] = {
            "ic_first": common.centroids(of_layer(name, trained, line=0)),
            "ic": common.centroids(curves),
            "share": [sum(curve) / (sum(fisher) or 1) for curve, fisher in sums],
            "ic_gain": gain(curves, trained),
            "ic_gain_cut": gain(of_layer(name, cut), cut),
        }
    return {"timestep": common.measured(trained, "timestep")[0], "layers": layers}


def of_layer(name, folders, line=-1):
    """The part of a layer in the curve of each seed."""
    return [layers[name] for layers in common.measured(folders, "layers", line=line)]


def gain(curves, folders):
    """The centroids of the curves over R_t."""
    return common.centroids(common.divided(curves, common.measured(folders, "prefix_residual")))


def page(numbers, path):
    rows = common.with_flat(numbers["layers"], numbers["timestep"])
    figures.dots(rows, COLUMNS, {"centroid": ("ic_first", "ic", "flat")}, path)
    conditions = common.concentrate(rows)
    number = common.count_confirmed(conditions, rows)
    answer = f"IC falls and ends early in {number} of {len(rows)} layers."
    return pages.Page(conditions, [pages.table("Centroids", "layer", rows, COLUMNS)], answer)
