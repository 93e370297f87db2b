"""The claims of the paper: what is run for each, its table, its figure and the rule of its verdict.

A claim is a function of the arguments of reproduce.py that returns ({part: (verdict, why)}, rows of a Markdown table,
paths of the figures). Its docstring says the claim in one sentence, then the rule.
"""

import math
import statistics
from itertools import product
from pathlib import Path

import torch

import plots
from experiments import (
    ENDS,
    LAST,
    OTHER_DATA,
    TRAIN,
    Job,
    command,
    evaluation,
    saved,
    scale,
    short,
    with_all_seeds,
    with_each_seed,
)
from fisher import RELEASE_BATCH, centroid, quotient
from utils import (
    ARGS_FILE,
    FISHER_FILE,
    LATEST,
    LOG_FILE,
    PRUNING_FILE,
    ROBUSTNESS_FILE,
    load_checkpoint,
    read_lines,
    read_record,
)
from verdicts import Effect, beyond, deviation, effect, rank_correlation, spread, verdict, within


def page(args, claim):
    """Where the figure of a claim goes."""
    return Path(args.results) / f"{claim}.png"


# ---------------------------------------------------------------- claims: concentration, layers

MOVED = 0.5  # of IC, that counts as moved with 8 timesteps or more
KINDS = [("train", "data"), ("train", "model"), ("test", "data"), ("test", "model")]
NO_MEMBRANES = "no gradient through membranes"
MEASURE_ALL = ["--fisher_split", "train", "test", "--fisher_labels", "data", "model"]  # of KINDS


def trained(args):
    """The plain training of each seed, measured on all of KINDS as it goes on: done, and its folders."""
    return with_each_seed(args, {"": command(args, "trained", TRAIN, *scale(args).measured, *MEASURE_ALL)})[""]


def measured_again(args, *which):
    """The trained networks, measured in other ways, these or all: {way: [folder of seed 0, 1, ...]}."""
    variants = {"instantaneous outputs": ("--fisher_prefix", "instant", *scale(args).again),
                NO_MEMBRANES: ("--detach_membrane", *scale(args).again),
                "the released estimator": ("--fisher_estimator", "release", *scale(args).release)}  # fmt: skip
    jobs = {
        name: Job(f"controls_{short(name)}_SEED", TRAIN, (*saved(args, "trained"), *flags), "fisher")
        for name, flags in variants.items()
        if name in which or not which
    }
    return with_each_seed(args, jobs)


def measurements(folder, split="train", labels="data"):
    """The lines of fisher.jsonl of one kind, without that before training: networks do not spike there yet."""
    lines = read_lines(folder / FISHER_FILE)
    return [line for line in lines if (line["split"], line["labels"]) == (split, labels) and line["epoch"] != 0]


def centre(curve):
    """The centroid of a curve [T]."""
    return centroid(torch.tensor(curve, dtype=torch.float64)).item()


def divided(line, by, layer=None):
    """The curve of a measurement, or of one of its layers, over another of its quantities, [T]."""
    curves = line["layers"][layer] if layer else line["fisher"], line[by]
    return quotient(*(torch.tensor(curve, dtype=torch.float64) for curve in curves)).tolist()


def by_t(curves):
    """(t, mean, standard deviation) of curves [T] of several seeds, each as shares of its sum."""
    shares = torch.tensor(curves, dtype=torch.float64)
    shares = shares / shares.sum(1, keepdim=True)
    around = shares.std(0).tolist() if len(curves) > 1 else None
    return list(range(1, shares.shape[1] + 1)), shares.mean(0).tolist(), around


def least_move(flat):
    """What counts as moved where a flat curve has that centroid: MOVED, with less than 8 timesteps a ninth of it."""
    return min(MOVED, flat / 9)


def concentrates(first, last, flat):
    """Is the IC of the last measurement `least_move` or more below the first, and below that of a flat curve?"""
    fall, below = effect([a - b for a, b in zip(first, last)]), effect([flat - b for b in last])
    checks = [beyond(found, least_move(flat)) for found in (fall, below)]
    return verdict(checks), f"IC falls by {fall} and ends {below} below flat ({flat})."


def concentration(args):
    """Fisher information starts late or flat and concentrates in early timesteps while the network learns.

    It holds if IC falls from the first measured epoch to the last by 0.5 or more (with less than 8 timesteps, a ninth
    of flat), and ends that far below that of a flat curve, with both 95 % intervals of the seeds. In the table stand
    the centroids of I_t / L_t and I_t / R_t too, L_t the mean loss, R_t the mean squared residual of the predictions.
    """
    folders = trained(args)
    lines = [measurements(folder) for folder in folders]
    heads = ("seed", "IC by epoch", "I_t / L_t at the end", "I_t / R_t by epoch", "training loss", "test accuracy")
    rows = [f"| {' | '.join(heads)} |", "|---:|---|---:|---|---:|---:|"]
    for seed, (own, folder) in enumerate(zip(lines, folders)):
        keys = ("ic", "ic_per_residual")
        # Runs of earlier revisions lack the latter.
        course, gain = (", ".join(f"{x[key]:.2f} ({x['epoch']})" for x in own if key in x) for key in keys)
        log = read_lines(folder / LOG_FILE)[-1]
        cells = [str(seed), course, f"{own[-1]['ic_per_loss']:.2f}", gain]
        rows.append(f"| {' | '.join(cells)} | {log['train_loss']:.3f} | {log['test_accuracy']:.3f} |")
    curves = {f"epoch {own[0]['epoch']}": by_t([line["fisher"] for line in own]) for own in zip(*lines)}
    figure = plots.panels({"mean of the seeds": curves}, page(args, "concentration"), "timesteps t", "share of $I_t$")
    flat = (lines[0][0]["timestep"] + 1) / 2
    ends = [[own[at]["ic"] for own in lines] for at in (0, -1)]
    return {"IC": concentrates(*ends, flat)}, rows, [figure]


def layers(args):
    """The concentration happens in every layer.

    The rule of `concentration`, for the centroid of each layer. Beside it stand the centroids, at the end, of the
    layer's part of the gain, I_t / R_t, and of that without the gradient that goes from one timestep to another.
    """
    lines = [measurements(folder) for folder in trained(args)]
    cut = [measurements(folder)[-1] for folder in measured_again(args, NO_MEMBRANES)[NO_MEMBRANES]]
    flat, verdicts, panels = (lines[0][0]["timestep"] + 1) / 2, {}, {}
    heads = ("layer", "IC, first epoch", "IC at the end", "share of the sum at the end", "I_t / R_t", NO_MEMBRANES)
    rows = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name in lines[0][0]["layers"]:
        curves = [[own[at]["layers"][name] for own in lines] for at in (0, -1)]
        first, last = ([centre(curve) for curve in ends] for ends in curves)
        share = [sum(own[-1]["layers"][name]) / sum(own[-1]["fisher"]) for own in lines]
        ends = [own[-1] for own in lines]
        gains = ([centre(divided(line, "prefix_residual", name)) for line in found] for found in (ends, cut))
        rows.append(f"| {name} | {' | '.join(map(spread, (first, last, share, *gains)))} |")
        verdicts[name] = concentrates(first, last, flat)
        panels[name] = {f"epoch {lines[0][at]['epoch']}": by_t(curve) for at, curve in zip((0, -1), curves)}
    return verdicts, rows, [plots.panels(panels, page(args, "layers"), "timesteps t", "share of the layer's $I_t$")]


# ---------------------------------------------------------------- claim: settings


def ended(ics, flat):
    """Cells of a table: centroids, and how far they are below that of a flat curve."""
    return [spread(ics), f"{effect([flat - ic for ic in ics])}"]


def settings(args):
    """The concentration is common: across architectures, T, neurons, norms, optimizers, encodings, amounts of data.

    The rule of `concentration`, for each setting. Beside it, at the end, stand the centroids of the mean squared
    residual R_t of the predictions, of I_t / L_t and I_t / R_t (and of the latter in epoch 1), of the true Fisher
    information (with labels drawn from the network), and of it divided by its own R_t (with these labels).
    """
    ends = (*ENDS, "--fisher_labels", "data", "model")
    runs = {}
    for name, flags in scale(args).settings.items():
        runs[name] = command(args, f"settings_{short(name)}", TRAIN, *ends, *flags)
    if scale(args).downloads or args.data_dir is not None:
        for data, how in product(OTHER_DATA, scale(args).subsets):
            name = f"{data}, {how}"
            flags = ("--dataset", OTHER_DATA[data], "--data_dir", "DATA", *ends, *scale(args).subsets[how])
            runs[name] = Job(f"settings_{short(name)}_SEED", TRAIN, (*flags, "--seed", "SEED"), "fisher")
    folders = {"as it is": trained(args)} | with_each_seed(args, runs)
    verdicts, panels, points = {}, {}, {}
    heads = ["setting", "flat", "IC, epoch 1", "IC at the end", "centroid of R_t"]
    heads += ["I_t / L_t", "below flat", "I_t / R_t, epoch 1", "I_t / R_t", "below flat"]
    heads += ["true Fisher", "below flat", "true Fisher / R_t", "below flat"]
    heads += ["training loss", "test accuracy"]
    rows = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, own in folders.items():
        lines = [measurements(folder) for folder in own]
        drawn = [measurements(folder, labels="model")[-1] for folder in own]
        first, last = ([x[at]["ic"] for x in lines] for at in (0, -1))
        logs = [read_lines(folder / LOG_FILE)[-1] for folder in own]
        flat = (lines[0][0]["timestep"] + 1) / 2
        losses = [log["train_loss"] for log in logs]
        residual = [centre(x[-1]["prefix_residual"]) for x in lines]
        ratios = {key: [x[-1][key] for x in lines] for key in ("ic_per_loss", "ic_per_residual")}
        true = {key: [line[key] for line in drawn] for key in ("ic", "ic_per_residual")}
        # Runs of earlier revisions lack it.
        begun = [x[0]["ic_per_residual"] for x in lines if "ic_per_residual" in x[0]]
        cells = [spread(ics) for ics in (first, last, residual)] + ended(ratios["ic_per_loss"], flat)
        cells += [spread(begun) if begun else "-", *ended(ratios["ic_per_residual"], flat)]
        cells += [*ended(true["ic"], flat), *ended(true["ic_per_residual"], flat)]
        cells += [spread(losses, 3), spread([log["test_accuracy"] for log in logs], 3)]
        data = read_record(own[0] / ARGS_FILE)["args"]["dataset"]
        points[data, name] = {"loss": losses, "relative": [ic / flat for ic in last]}
        points[data, name] |= {key: [ic / flat for ic in ics] for key, ics in ratios.items()}
        rows.append(f"| {name} | {flat} | {' | '.join(cells)} |")
        verdicts[name] = concentrates(first, last, flat)
        panels[name] = {f"epoch {lines[0][at]['epoch']}": by_t([x[at]["fisher"] for x in lines]) for at in (0, -1)}
    means = {key: [statistics.mean(p[key]) for p in points.values()] for key in ("loss", "relative", *ratios)}
    found = [rank_correlation(means["loss"], means[key]) for key in ("relative", *ratios)]
    rows += ["", "Rank correlation over the settings of the training loss with IC, as a share of that of a flat curve: "
             "{:.2f}; with that of I_t / L_t: {:.2f}, of I_t / R_t: {:.2f}.".format(*found)]  # fmt: skip
    figures = [plots.panels(panels, page(args, "settings"), "timesteps t", "share of $I_t$")]
    ends = {"relative": "IC / IC of a flat curve", "ic_per_loss": "the same of $I_t$ / $L_t$",
            "ic_per_residual": "the same of $I_t$ / $R_t$"}  # fmt: skip
    against = ("loss", "training loss at the end (nats)")
    figures.append(plots.tradeoff(points, page(args, "settings_loss"), ends, against, "log"))
    return verdicts, rows, figures


# ---------------------------------------------------------------- claim: robustness

HURTS = 0.02  # of accuracy, that counts as more


def robustness(args):
    """The early timesteps, where the information is, are where noise hurts.

    It holds if corrupting the first half of the timesteps costs 0.02 of accuracy or more beyond corrupting the last
    half, with the 95 % interval of the seeds.
    """
    length = load_checkpoint(trained(args)[0] / LATEST)["args"]["timestep"]
    half = length // 2
    when = {"first half": (1, half), "last half": (length - half + 1, length), "all": (1, length)}
    noise = ["--noise_levels", "0.2", "0.4", "--blur_levels", "1"]
    jobs = {}
    for name, (start, end) in when.items():
        eps = [str(scale(args).eps / k) for k in (4, 2, 1)] if name == "all" else []
        flags = (*noise, "--eps", *eps, "--noisetime", *map(str, range(start, end + 1)))
        jobs[name] = evaluation(args, f"robustness_{short(name)}", "trained", *flags)
    folders = with_all_seeds(args, jobs)
    lines = {name: read_lines(folder / ROBUSTNESS_FILE) for name, folder in folders.items()}
    found = {}
    for name, own in lines.items():
        for line in own:
            key = name if line["times"] else "-", line["threat"], line["strength"]
            found.setdefault(key, {})[line["checkpoint"]] = line["attacked"]
    rows = ["| timesteps | what | strength | accuracy |", "|---|---|---:|---:|"]
    rows += [f"| {' | '.join(map(str, key))} | {spread(list(own.values()), 3)} |" for key, own in found.items()]
    verdicts, panels = {}, {}
    for threat, strength in (("gaussian_noise", 0.4), ("blur", 1.0)):
        by_time = {name: list(found[name, threat, strength].values()) for name in when}
        hurt = effect([late - early for early, late in zip(by_time["first half"], by_time["last half"])])
        why = f"Accuracy with the last half of the timesteps corrupted is {hurt:3} above that with the first half."
        verdicts[f"{threat} {strength}"] = verdict([beyond(hurt, HURTS)]), why
        means, around = ([of(values) for values in by_time.values()] for of in (statistics.mean, deviation))
        panels[f"{threat} {strength}"] = {"": (list(when), means, around)}
    return verdicts, rows, [plots.panels(panels, page(args, "robustness"), "corrupted timesteps", "accuracy")]


# ---------------------------------------------------------------- claim: controls


def planted(args):
    """Networks on frames whose class shows at known timesteps alone: {those: {kind: [last measurement of a seed]}}."""
    runs = {}
    for times in scale(args).planted_times:
        which = ("--dataset", "planted", "--planted_time", *map(str, times))
        flags = (*which, *MEASURE_ALL, *scale(args).planted, "--seed", "SEED")
        runs[times] = Job(f"controls_planted_{times[0]}-{times[-1]}_SEED", TRAIN, flags, "fisher")
    folders = with_each_seed(args, runs)
    return {
        times: {kind: [measurements(folder, *kind)[-1] for folder in own] for kind in KINDS}
        for times, own in folders.items()
    }


def mean_gradient_share(curve, released, size):
    """Share [T] of the squared mean gradient in the released estimator: its curve, of batches of `size`, and I_t.

    The squared norm of the mean of B independent gradients g is |E g|^2 + tr Cov(g) / B in expectation, which is
    (1 - 1/B) |E g|^2 + I_t / B. This is the share of the former term.
    """
    return [1 - one / size / mean for one, mean in zip(curve, released)]


def controls(args):
    """What is left of the concentration under controls that the paper does not have.

    Under a control it holds if IC ends 0.5 or more (with less than 8 timesteps, a ninth of flat) below that of a flat
    curve, with the 95 % interval of the seeds. R_t is the mean squared residual, |p - label|^2, of the predictions p.
    With planted information it holds if IC ends within 0.5 of the middle of the timesteps that show the class.
    """
    folders, again = trained(args), measured_again(args)
    kinds = {kind: [measurements(folder, *kind)[-1] for folder in folders] for kind in KINDS}
    first = kinds["train", "data"]
    curves = {
        "as in the paper": [line["fisher"] for line in first],
        "I_t / L_t": [divided(line, "prefix_loss") for line in first],
        "I_t / R_t": [divided(line, "prefix_residual") for line in first],
        "true Fisher (labels of the model)": [line["fisher"] for line in kinds["train", "model"]],
        "true Fisher / R_t": [divided(line, "prefix_residual") for line in kinds["train", "model"]],
        "held-out samples": [line["fisher"] for line in kinds["test", "data"]],
        "held-out, true Fisher": [line["fisher"] for line in kinds["test", "model"]],
    }
    for name, own in again.items():
        lines = [measurements(folder)[-1] for folder in own]
        curves[name] = [line["fisher"] for line in lines]
        if name == NO_MEMBRANES:
            curves[f"{name}: I_t / R_t"] = [divided(line, "prefix_residual") for line in lines]
    flat, verdicts = (len(first[0]["fisher"]) + 1) / 2, {}
    rows = [f"| control | IC at the end (flat: {flat}) | below flat |", "|---|---:|---:|"]
    for name, own in curves.items():
        last = [centre(curve) for curve in own]
        below = effect([flat - ic for ic in last])
        rows.append(f"| {name} | {spread(last)} | {below} |")
        verdicts[name] = verdict([beyond(below, least_move(flat))]), f"IC ends {below} below flat."
    panels = {name: {"end": by_t(own)} for name, own in curves.items()}
    size = read_record(again["the released estimator"][0] / ARGS_FILE)["args"]["fisher_batch"] or RELEASE_BATCH
    pairs = zip(curves["as in the paper"], curves["the released estimator"])
    shares = zip(*(mean_gradient_share(*pair, size) for pair in pairs))
    rows += ["", f"| t | {' | '.join(str(t + 1) for t in range(len(first[0]['fisher'])))} |"]
    rows += ["|---|" + "---:|" * len(first[0]["fisher"])]
    rows += [f"| share of the squared mean gradient in the released estimator | {' | '.join(map(spread, shares))} |"]
    heads = ("class shows at t", "IC", "from the middle of those t", "IC, held out", "IC, true Fisher",
             "IC of I_t / L_t", "IC of I_t / R_t", "held-out accuracy by t")  # fmt: skip
    rows += ["", f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|---:|---:|---|"]
    for times, found in planted(args).items():
        own, which = found["train", "data"], f"{times[0]} to {times[-1]}"
        ics = {kind: [line["ic"] for line in lines] for kind, lines in found.items()}
        off = effect([ic - statistics.mean(times) for ic in ics["train", "data"]])
        cells = [which, spread(ics["train", "data"]), f"{off}"]
        cells += [spread(ics["test", "data"]), spread(ics["train", "model"])]
        right = torch.tensor([line["prefix_accuracy"] for line in found["test", "data"]]).mean(0).tolist()
        cells += [spread([line[key] for line in own]) for key in ("ic_per_loss", "ic_per_residual")]
        cells += [" ".join(f"{value:.2f}" for value in right)]
        rows.append(f"| {' | '.join(cells)} |")
        why = f"IC ends {off} from the middle of those timesteps."
        verdicts[f"class at {which}"] = verdict([within(off, MOVED)]), why
        panels[f"class at {which}"] = {"end": by_t([line["fisher"] for line in own])}
    return verdicts, rows, [plots.panels(panels, page(args, "controls"), "timesteps t", "share of the sum")]


# ---------------------------------------------------------------- claim: loss

NORMS = ("step", "folded")
COST = 0.01  # of clean accuracy, that counts as little
ROBUST = 0.05  # of accuracy under attack, that counts as changed


def loss_numbers(args):
    """Train with every loss and both kinds of BatchNorm, and evaluate the networks: by norm and loss, {quantity: [a
    value a seed]}, and the signs of gradient masking."""
    trainings, evaluations, numbers = {}, {}, {}
    strengths = ["--eps", str(scale(args).eps), "--noise_levels", "0.2", "--blur_levels"]
    for norm in NORMS:
        for name, flags in scale(args).losses.items():
            called = f"loss_{norm}_{short(name)}"
            trainings[norm, name] = command(args, called, TRAIN, *LAST, "--norm", norm, *flags)
            evaluations[norm, name] = evaluation(args, f"{called}_robustness", called, *strengths)
    trainings, evaluations = with_each_seed(args, trainings), with_all_seeds(args, evaluations)
    for key, folder in evaluations.items():
        lines = read_lines(folder / ROBUSTNESS_FILE)
        runs = []
        for run in trainings[key]:
            fisher, log = (read_lines(run / file)[-1] for file in (FISHER_FILE, LOG_FILE))
            own = [line for line in lines if Path(line["checkpoint"]).parent.name == run.name]
            pgd = next(line for line in own if (line["threat"], line["strength"]) == ("pgd", scale(args).eps))
            noise = next(line for line in own if line["threat"] == "gaussian_noise")
            transfer = math.nan if pgd["transfer"] is None else pgd["transfer"]  # of one seed there is none
            runs.append({"ic": fisher["ic"], "ic_per_loss": fisher["ic_per_loss"], "clean": log["test_accuracy"],
                         "pgd": pgd["attacked"], "noise": noise["attacked"], "transfer": transfer})  # fmt: skip
        numbers[key] = {quantity: [run[quantity] for run in runs] for quantity in runs[0]}
        numbers[key]["masking"] = [sign for line in lines for sign in line.get("masking", ())]
    return numbers


def change(numbers, norm, name, key):
    """The effect of that loss on a quantity, against `ce`, seed by seed."""
    return effect([a - b for a, b in zip(numbers[norm, name][key], numbers[norm, "ce"][key])])


def loss_verdict(numbers, norm):
    """Of the losses that cost at most COST of accuracy, the one that moves IC furthest from that of ce: does it move IC
    by MOVED or more, and accuracy under PGD by ROBUST or more? Seeds are paired."""
    cheap = [
        name
        for key, name in numbers
        if key == norm and name != "ce" and change(numbers, norm, name, "clean").mean >= -COST
    ]
    if not cheap:
        return "does not hold", f"every loss costs more than {COST} of accuracy"
    best = max(cheap, key=lambda name: abs(change(numbers, norm, name, "ic").mean))
    moved, cost, robust = (change(numbers, norm, best, key) for key in ("ic", "clean", "pgd"))
    sizes = [found if found.mean > 0 else Effect(*(-x for x in (found.mean, found.high, found.low)))
             for found in (moved, robust)]  # fmt: skip
    checks = [beyond(sizes[0], MOVED), beyond(sizes[1], ROBUST)]
    means = [[statistics.mean(found[key]) for (k, _), found in numbers.items() if k == norm] for key in ("ic", "pgd")]
    correlation = rank_correlation(*means)
    why = f"`{best}` against `ce`: IC {moved}, accuracy {cost:3}, accuracy under PGD {robust:3}."
    return verdict(checks), f"{why} Rank correlation of IC and accuracy under PGD over the losses: {correlation:.2f}."


def loss(args):
    """A loss can move the information, with little effect on accuracy, but much on robustness.

    Of the losses that cost at most 0.01 of accuracy, the one that moves IC furthest from that of `ce` counts: the claim
    holds if it moves IC by 0.5 or more, and accuracy under PGD by 0.05 or more, with both 95 % intervals of the seeds.
    """
    numbers = loss_numbers(args)
    eps = scale(args).eps
    heads = ("norm", "loss", "IC", "IC of I_t / L_t", "accuracy", f"PGD, eps {eps}/255", "noise 0.2", "transfer",
             "masking", "IC against `ce`", "PGD against `ce`")  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for (norm, name), found in numbers.items():
        cells = [spread(found[key], 2 if "ic" in key else 3) for key in list(found)[:6]]
        cells += [str(len(found["masking"])), f"{change(numbers, norm, name, 'ic')}"]
        cells += [f"{change(numbers, norm, name, 'pgd'):3}"]
        rows.append(f"| {norm} | {name} | {' | '.join(cells)} |")
    verdicts = {f"norm {norm}": loss_verdict(numbers, norm) for norm in NORMS}
    panels = {"clean": "test accuracy", "pgd": f"accuracy under PGD, eps {eps}/255", "noise": "accuracy under noise"}
    return verdicts, rows, [plots.tradeoff(numbers, page(args, "loss"), panels)]


# ---------------------------------------------------------------- claim: pruning

AS_GOOD = 0.005  # of accuracy: a smaller loss counts as none
FASTER = 1.5


def pruning_verdict(accuracy, seconds):
    """Is `fisher` within AS_GOOD, or one standard error, of `full` at every sparsity, and its search FASTER times as
    fast? accuracy {(search, round): [a value a seed]}, seconds {search: [of the whole search, a seed]}."""
    checks, words = [], []
    for number in sorted({number for _, number in accuracy}):
        lost = [a - b for a, b in zip(accuracy["full", number], accuracy["fisher", number])]
        error = statistics.stdev(lost) / math.sqrt(len(lost)) if len(lost) > 1 else 0
        checks.append(statistics.mean(lost) <= max(AS_GOOD, error))
        words.append(f"{effect([-x for x in lost]):3}")
    speed = effect([a / b for a, b in zip(seconds["full"], seconds["fisher"])])
    checks.append(beyond(speed, FASTER))
    return verdict(checks), f"`fisher` against `full`: accuracy {', '.join(words)}; search {speed} times as fast."


def pruning(args):
    """Searching with the few timesteps that carry the information finds networks as good in less time.

    It holds if `fisher` loses at most 0.005 of accuracy, or one standard error, against `full` at every sparsity, and
    its search is 1.5 times as fast or more, with the 95 % interval of the seeds.
    """
    searches, rounds = scale(args).searches, scale(args).rounds
    flags = [*map(str, ["--rounds", rounds[-1], "--final_rounds", *rounds, "--prune_rate", scale(args).prune_rate])]
    jobs = {
        search: command(args, f"pruning_{search}", "prune_snn", *flags, "--search_timestep", search)
        for search in searches
    }
    folders = [folder for own in with_each_seed(args, jobs).values() for folder in own]
    accuracy, seconds, sparsity = {}, {}, {}
    for folder in folders:
        lines = read_lines(folder / PRUNING_FILE)
        for line in lines:
            if line["stage"] == "final":
                accuracy.setdefault((line["search"], line["round"]), []).append(line["test_accuracy"])
                sparsity[line["round"]] = line["sparsity"]
                if line["round"] == rounds[-1]:
                    seconds.setdefault(line["search"], []).append(plots.search_seconds(lines, line))
    rows = [f"| search runs | {' | '.join(f'{100 * s:.1f} %' for s in sparsity.values())} | seconds | times as fast |"]
    rows += ["|---|" + "---:|" * (len(rounds) + 2)]
    for search in searches:
        cells = [spread(accuracy[search, number], 3) for number in rounds] + [spread(seconds[search], 0)]
        cells += [spread([a / b for a, b in zip(seconds["full"], seconds[search])])]
        rows.append(f"| {search} | {' | '.join(cells)} |")
    figure = plots.pruning(folders, page(args, "pruning"))
    return {"all sparsities": pruning_verdict(accuracy, seconds)}, rows, [figure]


CLAIMS = {f.__name__: f for f in (concentration, settings, layers, loss, robustness, pruning, controls)}
