"""The gain is late because gradients go back through membranes.

Is the gain I_t / R_t late, and is it not late without the path through the membranes?

The centroid of the gain must be past flat by more than a ninth of flat. With the path cut (only in
the measurement) it must be past flat by less.

The last network of each setting is measured with and without that path. The training may have had
the path or not. The prediction takes the mean of outputs 1..t, or only output t.
"""

from itertools import product

from claims import common, figures, pages, settings

WITH, CUT = "as it is", "cut"
WAYS = {
    WITH: "",
    CUT: "--detach_membrane",
    "instant": "--fisher_prefix instant",
    "instant, cut": "--fisher_prefix instant --detach_membrane",
}
COLUMNS = {
    "flat": "flat",
    "ic": "IC",
    "ic_cut": "IC, path cut",
    WITH: "gain, with the path",
    CUT: "gain, path cut",
    "instant": "gain of output t, with the path",
    "instant, cut": "gain of output t, path cut",
}


def runs(study):
    return measure_ways(study, settings.trainings(study), WAYS)


def measure_ways(study, groups, ways):
    """{setting: trainings}, and {(setting, way): measurements} of their networks."""
    again = {}
    for (name, trainings), way in product(groups.items(), ways):
        flags = WAYS[way], study.scale.again
        again[name, way] = study.measure(f"gain {name} {way}", trainings, *flags)
    return groups | again


def numbers(study, folders):
    rows = {}
    for name in settings.trainings(study):
        seeds = {way: folders[name, way] for way in WAYS}
        rows[name] = {
            "timestep": common.measured(seeds[WITH], "timestep")[0],
            "ic": {way: common.measured(seeds[way], "ic") for way in WAYS},
            "gain": {way: common.measured(seeds[way], "ic_per_residual") for way in WAYS},
        }
    return rows


def page(numbers, path):
    conditions, rows = [], {}
    for name, row in common.with_flat(numbers).items():
        gain, flat, margin = row["gain"], row["flat"], common.margin(row["flat"])
        words = f"{name}: the gain is past flat by more than {margin:.3g}"
        conditions.append(common.condition(words, gain[WITH], flat, low=margin))
        words = f"{name}: with the path cut it is past flat by less than {margin:.3g}"
        conditions.append(common.condition(words, gain[CUT], flat, high=margin))
        rows[name] = gain | {"flat": flat, "ic": row["ic"][WITH], "ic_cut": row["ic"][CUT]}
    shares = common.shares_of_flat(rows, (CUT, WITH))
    panels = {"centroid / centroid of a flat curve": (CUT, WITH, "flat")}
    figures.dots(shares, COLUMNS, panels, path)
    number = common.count_confirmed(conditions, rows)
    answer = f"It is late only because of this path in {number} of {len(rows)} settings."
    return pages.Page(conditions, [pages.table("Centroids", "setting", rows, COLUMNS)], answer)
