"""The forward pass predicts how late the gain is.

Do slopes and spikes of the forward pass predict how late the gain I_t / R_t is?

The law predicts a centroid of the gain. It must differ from the measured one by less than a ninth
of flat. Networks with shortcuts have several paths, and are left out.

The measurements of `gain`, with the path through the membranes and with it cut.
"""

import numpy as np

from claims import common, figures, pages, settings
from claims.gain import CUT, WITH, measure_ways
from claims.kernels import factors, kernels
from train_snn import setup
from train_snn_fisherinfo import fisher_batches
from utils import load_checkpoint, load_weights

KINDS = {"measured": "measured", "law": "by the law", "cut": "with the path cut"}
COLUMNS = {"flat": "flat"} | KINDS
NETWORK = "whole network"


def chains(study):
    """{setting: trainings} of networks without shortcuts."""
    groups = settings.trainings(study).items()
    return {name: runs for name, runs in groups if "resnet" not in study.arguments(runs[0]).arch}


def runs(study):
    return measure_ways(study, chains(study), (WITH, CUT))


def numbers(study, folders):
    rows, groups = {}, runs(study)
    for name in chains(study):
        path, cut = folders[name, WITH], folders[name, CUT]
        curves = {"measured": common.measured(path, "layers"), "law": []}
        curves["cut"] = common.measured(cut, "layers")
        for by_layer, run in zip(curves["cut"], groups[name, WITH]):
            factor_of = predict(study, run)
            law = {layer: np.multiply(curve, factor_of[layer]) for layer, curve in by_layer.items()}
            curves["law"].append(law)
        residuals = common.measured(cut, "prefix_residual")
        gains = {kind: gain_by_layer(curves[kind], residuals) for kind in KINDS}
        layers = {layer: {kind: gains[kind][layer] for kind in KINDS} for layer in gains["cut"]}
        rows[name] = {"timestep": common.measured(cut, "timestep")[0], "layers": layers}
    return rows


def predict(study, run):
    """{layer: factor(t)} of the network and the samples of a measurement, by claims/kernels.py."""
    args = study.arguments(run)
    (path,), (model, train_set, _) = args.checkpoints, setup(args)
    load_weights(model, load_checkpoint(path), path, args)
    return factors(model, kernels(model.eval(), fisher_batches(args, train_set)))


def gain_by_layer(seeds, residuals):
    """{layer: centroids of its gain, one per seed}, and of the whole network, from I_t of each
    layer {layer: [T]} and R_t [T] of each seed."""
    curves = {layer: [by_layer[layer] for by_layer in seeds] for layer in seeds[0]}
    curves[NETWORK] = np.sum(list(curves.values()), 0)
    gains = {layer: common.divided(curve, residuals) for layer, curve in curves.items()}
    return {layer: common.centroids(gain) for layer, gain in gains.items()}


def page(numbers, path):
    conditions, rows, by_layer = [], {}, {}
    for name, row in common.with_flat(numbers).items():
        network, margin = row["layers"][NETWORK], common.margin(row["flat"])
        words = f"{name}: the law is off by less than {margin:.3g}, either way"
        law, measured = network["law"], network["measured"]
        conditions.append(common.condition(words, law, measured, -margin, margin))
        rows[name] = network | {"flat": row["flat"]}
        for layer, centroids in row["layers"].items():
            if layer != NETWORK:
                by_layer[name, layer] = centroids | {"flat": row["flat"]}
    panels = {"whole networks, a dot per setting": rows, "layers of all settings": by_layer}
    shares = {title: common.shares_of_flat(group, KINDS) for title, group in panels.items()}
    figures.scatter(shares, path)
    layers = {layer: row for (name, layer), row in by_layer.items() if name == settings.PLAIN}
    tables = [
        pages.table("Centroid of the gain", "setting", rows, COLUMNS),
        pages.table(f"The same by layer, {settings.PLAIN}", "layer", layers, COLUMNS),
    ]
    number = common.count_confirmed(conditions, rows)
    answer = f"The law is right within a ninth of flat in {number} of {len(rows)} settings."
    return pages.Page(conditions, tables, answer)
