"""The forward pass predicts how late the gain is.

Do slopes and spikes of the forward pass predict how late the gain I_t / R_t is?

The law predicts a centroid of the gain. It must differ from the measured one by less than a ninth
of flat. Networks with shortcuts have several paths, and are left out.

What is run: the measurements of `gain`, with and without the path through the membranes.
claims/kernels.py has the law.
"""

import numpy as np

from claims import common, figures, pages, settings
from claims.gain import CUT, WITH, measured
from claims.kernels import factors, kernels
from train_snn import setup
from train_snn_fisherinfo import fisher_batches
from utils import load_checkpoint, load_weights

COLUMNS = {
    "flat": "flat",
    "measured": "measured",
    "law": "by the law",
    "cut": "with the path cut",
}
NETWORK = "whole network"


def runs(study):
    groups = settings.trainings(study)
    for name, trainings in list(groups.items()):
        if study.arguments(trainings[0]).arch.startswith("resnet"):
            del groups[name]
    return measured(study, groups, (WITH, CUT))


def numbers(study, folders):
    rows, groups = {}, runs(study)
    for name in [key for key in folders if isinstance(key, str)]:
        path, cut = folders[name, WITH], folders[name, CUT]
        parts = common.measured(cut, "layers")
        predicted = []
        for part, run in zip(parts, groups[name, WITH]):
            factor_of = predict(study, run)
            predicted.append({layer: np.multiply(part[layer], factor_of[layer]) for layer in part})
        residuals = common.measured(cut, "prefix_residual")
        centroids = {
            "measured": gain_by_layer(common.measured(path, "layers"), residuals),
            "law": gain_by_layer(predicted, residuals),
            "cut": gain_by_layer(parts, residuals),
        }
        layers = {}
        for layer in centroids["cut"]:
            layers[layer] = {kind: centroids[kind][layer] for kind in centroids}
        rows[name] = {"timestep": common.measured(cut, "timestep")[0], "layers": layers}
    return rows


def predict(study, run):
    """{layer: factor(t)} of the network and the samples of a measurement."""
    args = study.arguments(run)
    (path,), (model, train_set, _, _) = args.checkpoints, setup(args)
    load_weights(model, load_checkpoint(path), path, args)
    return factors(model, kernels(model.eval(), fisher_batches(args, train_set)))


def gain_by_layer(parts, residuals):
    """{layer: centroids of its part of the gain, a value a seed}, and of the whole network, from
    parts of I_t {layer: [T]} and R_t [T] of each seed."""
    curves = {layer: [part[layer] for part in parts] for layer in parts[0]}
    curves[NETWORK] = np.sum(list(curves.values()), 0)
    return {
        layer: common.centroids(common.divided(part, residuals)) for layer, part in curves.items()
    }


def page(numbers, path):
    conditions, rows, by_layer = [], {}, {}
    for name, row in common.with_flat(numbers).items():
        network, margin = row["layers"][NETWORK], common.margin(row["flat"])
        words = f"{name}: the law is off by less than {margin:.3g}, either way"
        pair = network["law"], network["measured"]
        conditions.append(common.condition(words, *pair, -margin, margin))
        rows[name] = network | {"flat": row["flat"]}
        for layer, centroids in row["layers"].items():
            if layer != NETWORK:
                by_layer[name, layer] = centroids | {"flat": row["flat"]}
    panels = {"whole networks, a dot per setting": rows, "layers of all settings": by_layer}
    kinds = ("measured", "law", "cut")
    shares = {title: common.shares_of_flat(group, kinds) for title, group in panels.items()}
    figures.scatter(shares, path)
    plain = numbers[settings.PLAIN]
    layers = common.with_flat(plain["layers"], plain["timestep"])
    tables = [
        pages.table("Centroid of the gain", "setting", rows, COLUMNS),
        pages.table(f"The same by layer, {settings.PLAIN}", "layer", layers, COLUMNS),
    ]
    return pages.Page(conditions, tables)
