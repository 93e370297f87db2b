"""How late the gain, I_t / R_t, is follows from slopes and spikes of the forward pass.

What is run: measurements of `gain`, with and without the path. kernels.py has the law.
"""

import config
from claims import common, figures
from claims.gain import CUT, WITH, measured
from claims.kernels import factors, kernels
from claims.runs import TRAIN
from train_snn import setup
from train_snn_fisherinfo import fisher_batches
from utils import load_checkpoint, load_weights

TITLE = "How late the gain is follows from the forward pass"
QUESTION = "Do slopes and spikes of the forward pass predict how late the gain I_t / R_t is?"
RULE = (
    "The centroid of the gain by the law must be within a ninth of flat of the measured one. "
    "Networks with shortcuts have several paths, and are left out."
)
COLUMNS = {"measured": "measured", "law": "by the law", "cut": "with the path cut"}
NETWORK = "whole network"


def runs(study):
    settings = study.settings()
    for name in list(settings):
        if config.parse(TRAIN, settings[name][0].flags).arch.startswith("resnet"):
            del settings[name]
    return settings | measured(study, settings, (WITH, CUT))


def numbers(study, folders):
    rows = {}
    for name in [key for key in folders if isinstance(key, str)]:
        path, cut = (common.last_measurements(folders[name, way]) for way in (WITH, CUT))
        factor_of = [predict(study, run) for run in runs(study)[name, WITH]]
        seeds = [centroids(*seed) for seed in zip(path, cut, factor_of)]
        layers = {layer: {kind: [seed[layer][kind] for seed in seeds] for kind in COLUMNS}
                  for layer in seeds[0]}  # fmt: skip
        rows[name] = {"timestep": cut[0]["timestep"], "layers": layers}
    return rows


def predict(study, run):
    """{layer: factor(t)} of the network and the samples of a measurement."""
    args = config.parse(TRAIN, study.command(run)[1:])
    (path,), (model, train_set, _, _) = args.checkpoints, setup(args)
    load_weights(model, load_checkpoint(path), path, args)
    return factors(model, kernels(model.eval(), fisher_batches(args, train_set)))


def centroids(path, cut, factor_of):
    """{layer: {kind: centroid of its part of the gain}} of one seed, and of the whole network."""
    curves = {"measured": dict(path["layers"]), "cut": dict(cut["layers"]), "law": {}}
    for layer, curve in cut["layers"].items():
        curves["law"][layer] = [i_t * factor for i_t, factor in zip(curve, factor_of[layer])]
    centres = {}
    for kind, layers in curves.items():
        layers[NETWORK] = [sum(values) for values in zip(*layers.values())]
        for layer, curve in layers.items():
            gain = common.divided(curve, cut["prefix_residual"])
            centres.setdefault(layer, {})[kind] = common.centre(gain)
    return centres


def page(numbers):
    conditions, rows = [], []
    for name, row in numbers.items():
        flat, network = common.flat_centroid(row["timestep"]), row["layers"][NETWORK]
        error = common.difference(network["law"], network["measured"])
        conditions.append(common.within(f"{name}: the law is off", error, common.margin(flat)))
        rows.append([name, f"{flat:g}", *common.cells(network, COLUMNS)])
    first, plain = next(iter(numbers.items()))
    layers = [[layer, *common.cells(row, COLUMNS)] for layer, row in plain["layers"].items()]
    heads = list(COLUMNS.values())
    tables = [("Centroid of the gain", ["setting", "flat", *heads], rows),
              (f"The same by layer, {first}", ["layer", *heads], layers)]  # fmt: skip
    return common.Page(f"{common.confirmed(conditions)}.", conditions, tables)


def draw(numbers, path):
    settings = {name: common.shares_of_flat(row["layers"][NETWORK], row["timestep"])
                for name, row in numbers.items()}  # fmt: skip
    name, plain = next(iter(numbers.items()))
    layers = {layer: common.shares_of_flat(row, plain["timestep"])
              for layer, row in plain["layers"].items()}  # fmt: skip
    panels = {"settings": settings, f"layers, {name}": layers}
    labels = "predicted centroid / flat (hollow: path cut)", "measured centroid / flat"
    return figures.scatter(panels, path, ("law", "measured"), labels, "cut")
