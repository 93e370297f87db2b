"""How late the gain, I_t / R_t, is follows from slopes and spikes of the forward pass.

What is run: the measurements of the claim `gain`, with the path through the membranes and with it
cut. kernels.py has the law: equations 1 to 4.
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
RULE = "The centroid of the gain by the law must be within a ninth of flat of the measured one."
COLUMNS = {"measured": "measured", "law": "by the law", "cut": "with the path cut"}
NETWORK = "whole network"
REMARK = (
    "The law multiplies what is measured with the path cut. It takes the slopes of different "
    "layers as independent, and every spike as a full stop of the gradient. Networks with "
    "shortcuts have several paths, and are left out."
)


def runs(study):
    settings = {}
    for name, trainings in study.settings().items():
        if not config.parse(TRAIN, trainings[0].flags).arch.startswith("resnet"):
            settings[name] = trainings
    return settings | measured(study, settings, (WITH, CUT))


def numbers(study, folders):
    rows, measurements = {}, runs(study)
    for name in [key for key in folders if isinstance(key, str)]:
        path, cut = (common.last_measurements(folders[name, way]) for way in (WITH, CUT))
        factor_of = [predict(study, run) for run in measurements[name, WITH]]
        seeds = [centroids(*seed) for seed in zip(path, cut, factor_of)]
        rows[name] = {"timestep": cut[0]["timestep"], "layers": {}}
        for layer in seeds[0]:
            columns = {kind: [seed[layer][kind] for seed in seeds] for kind in COLUMNS}
            rows[name]["layers"][layer] = columns
    return rows


def predict(study, run):
    """{layer: factor(t)} of the network and the samples of a measurement."""
    args = config.parse(TRAIN, study.words(run)[1:])
    model, train_set, _, _ = setup(args)
    path = args.checkpoints[0]
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
    tables = [
        ("Centroid of the gain", ["setting", "flat", *COLUMNS.values()], rows),
        (f"The same by layer, {first}", ["layer", *COLUMNS.values()], layers),
    ]
    return common.Page(f"{common.confirmed(conditions)}.", conditions, tables, REMARK)


def draw(numbers, path):
    groups = {"settings": {}, "layers, as it is": {}}
    for name, row in numbers.items():
        network = row["layers"][NETWORK]
        groups["settings"][name] = common.shares_of_flat(network, row["timestep"])
    plain = next(iter(numbers.values()))
    for layer, row in plain["layers"].items():
        groups["layers, as it is"][layer] = common.shares_of_flat(row, plain["timestep"])
    labels = ["predicted centroid / flat (hollow: path cut)", "measured centroid / flat"]
    return figures.scatter(groups, path, ("law", "measured"), labels, hollow="cut")
