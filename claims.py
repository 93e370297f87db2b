"""The claims of the paper: what is run for each, its table, its figure and the rule of its verdict.

A claim is a function of the arguments of reproduce.py that returns ({part: (verdict, why)}, tables and sentences,
paths of the figures). Its docstring says the claim in one sentence, then the rule.
"""

import math
import statistics
from pathlib import Path

import plots
import pruning_plots
from experiments import (
    LAST,
    NO_MEMBRANES,
    TRAIN,
    command,
    evaluation,
    measured_again,
    page,
    scale,
    settings_runs,
    short,
    trained,
    with_all_seeds,
    with_each_seed,
)
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
from verdicts import (
    Effect,
    beyond,
    by_t,
    centre,
    deviation,
    divided,
    effect,
    ended,
    least_move,
    measurements,
    rank_correlation,
    spread,
    table,
    verdict,
)

# ---------------------------------------------------------------- claims: concentration, layers


def concentrates(first, last, flat):
    """Is the IC of the last measurement `least_move` or more below the first, and below that of a flat curve?"""
    fall, below = effect([a - b for a, b in zip(first, last)]), effect([flat - b for b in last])
    checks = [beyond(found, least_move(flat)) for found in (fall, below)]
    return verdict(checks), f"IC falls by {fall} and ends {below} below flat ({flat})."


def concentration(args):
    """Fisher information starts late or flat and concentrates in early timesteps while the network learns.

    It holds if IC falls from the first measured epoch to the last by a ninth of that of a flat curve or more (0.5 with
    8 timesteps), and ends that far below it, with both 95 % intervals of the seeds. In the table stand the centroids of
    R_t, the mean squared residual of the predictions, of the gain, I_t / R_t, and of I_t / L_t, L_t the mean loss, too.
    """
    folders = trained(args)
    lines = [measurements(folder) for folder in folders]
    kinds = ("IC", "R_t", "I_t / R_t", "I_t / L_t")
    courses = [[(x["ic"], centre(x["prefix_residual"]), x["ic_per_residual"], x["ic_per_loss"]) for x in own]
               for own in lines]  # fmt: skip
    seeds, centres, quantities = [], [], []
    for seed, (own, course, folder) in enumerate(zip(lines, courses, folders)):
        cells = [
            ", ".join(f"{ic:.2f} ({x['epoch']})" for ic, x in zip(ics, own)) for ics in zip(*course)
        ]
        log = read_lines(folder / LOG_FILE)[-1]
        seeds.append([seed, *cells, f"{log['train_loss']:.3f}", f"{log['test_accuracy']:.3f}"])
    for name, at in (("first epoch", 0), ("at the end", -1)):
        centres.append([name, *(spread(ics) for ics in zip(*(own[at] for own in courses)))])
    for name, key in (("accuracy, same samples", "prefix_accuracy"), ("R_t", "prefix_residual")):
        quantities.append(
            [name, *(spread(values) for values in zip(*(own[-1][key] for own in lines)))]
        )
    tables = [
        table(
            ["seed", *(f"{kind} by epoch" for kind in kinds), "training loss", "test accuracy"],
            seeds,
        )
    ]
    tables += [table(["centroid of", *kinds], centres)]
    tables += [table(["at the end, t =", *range(1, len(lines[0][0]["fisher"]) + 1)], quantities)]
    curves = {
        f"epoch {own[0]['epoch']}": by_t([line["fisher"] for line in own]) for own in zip(*lines)
    }
    figure = plots.panels(
        {"mean of the seeds": curves}, page(args, "concentration"), "timesteps t", "share of $I_t$"
    )
    flat = (lines[0][0]["timestep"] + 1) / 2
    ends = [[own[at]["ic"] for own in lines] for at in (0, -1)]
    return {"IC": concentrates(*ends, flat)}, tables, [figure]


def layers(args):
    """The concentration happens in every layer.

    The rule of `concentration`, for the centroid of each layer. Beside it stand the centroids, at the end, of the
    layer's part of the gain, I_t / R_t, and of that without the gradient that goes from one timestep to another.
    """
    lines = [measurements(folder) for folder in trained(args)]
    cut = [measurements(folder)[-1] for folder in measured_again(args, NO_MEMBRANES)[NO_MEMBRANES]]
    flat, verdicts, panels, rows = (lines[0][0]["timestep"] + 1) / 2, {}, {}, []
    heads = ["layer", "IC, first epoch", "IC at the end", "share of the sum at the end"]
    heads += ["I_t / R_t", "below flat", NO_MEMBRANES, "below flat"]
    for name in lines[0][0]["layers"]:
        curves = [[own[at]["layers"][name] for own in lines] for at in (0, -1)]
        first, last = ([centre(curve) for curve in ends] for ends in curves)
        share = [sum(own[-1]["layers"][name]) / sum(own[-1]["fisher"]) for own in lines]
        ends = [own[-1] for own in lines]
        gains = (
            [centre(divided(line, "prefix_residual", name)) for line in found]
            for found in (ends, cut)
        )
        rows.append(
            [
                name,
                *map(spread, (first, last, share)),
                *(cell for gain in gains for cell in ended(gain, flat)),
            ]
        )
        verdicts[name] = concentrates(first, last, flat)
        panels[name] = {
            f"epoch {lines[0][at]['epoch']}": by_t(curve) for at, curve in zip((0, -1), curves)
        }
    figure = plots.panels(panels, page(args, "layers"), "timesteps t", "share of the layer's $I_t$")
    return verdicts, [table(heads, rows)], [figure]


# ---------------------------------------------------------------- claim: settings


def settings(args):
    """The concentration is common: across architectures, T, neurons, norms, optimizers, encodings, amounts of data.

    The rule of `concentration`, for each setting. Beside it, at the end, stand the centroids of the mean squared
    residual R_t of the predictions, of I_t / L_t and I_t / R_t (and how far the latter falls), of the true Fisher
    information (with labels drawn from the network), and of it divided by its own R_t (with these labels).
    """
    folders = settings_runs(args, other_data=True)
    verdicts, panels, points, rows = {}, {}, {}, []
    heads = ["setting", "flat", "IC, epoch 1", "IC at the end", "centroid of R_t"]
    heads += ["I_t / L_t", "below flat", "I_t / R_t", "falls since epoch 1 by", "below flat"]
    heads += ["true Fisher", "below flat", "true Fisher / R_t", "below flat"]
    heads += ["training loss", "test accuracy"]
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
        cells = [spread(ics) for ics in (first, last, residual)] + ended(
            ratios["ic_per_loss"], flat
        )
        gain, below = ended(ratios["ic_per_residual"], flat)
        cells += [
            gain,
            f"{effect([x[0]['ic_per_residual'] - x[-1]['ic_per_residual'] for x in lines])}",
            below,
        ]
        cells += [*ended(true["ic"], flat), *ended(true["ic_per_residual"], flat)]
        cells += [spread(losses, 3), spread([log["test_accuracy"] for log in logs], 3)]
        data = read_record(own[0] / ARGS_FILE)["args"]["dataset"]
        points[data, name] = {"loss": losses, "relative": [ic / flat for ic in last]}
        points[data, name] |= {key: [ic / flat for ic in ics] for key, ics in ratios.items()}
        rows.append([name, flat, *cells])
        verdicts[name] = concentrates(first, last, flat)
        panels[name] = {
            f"epoch {lines[0][at]['epoch']}": by_t([x[at]["fisher"] for x in lines])
            for at in (0, -1)
        }
    text = [table(heads, rows)]
    own = next(iter(points))[0]
    alone = {key: point for key, point in points.items() if key[0] == own}
    for which, chosen in (
        {"all": points, own: alone}.items() if len(alone) < len(points) else [("all", points)]
    ):
        means = {
            key: [statistics.mean(p[key]) for p in chosen.values()]
            for key in ("loss", "relative", *ratios)
        }
        found = [f"{rank_correlation(means['loss'], means[key])}" for key in ("relative", *ratios)]
        about = f"Rank correlation of the training loss, over the settings ({which}, {len(chosen)}), with IC as a share"
        about += " of that of a flat curve: {}; with that of I_t / L_t: {}, of I_t / R_t: {}."
        text.append(about.format(*found))
    figures = [plots.panels(panels, page(args, "settings"), "timesteps t", "share of $I_t$")]
    ends = {"relative": "IC / IC of a flat curve", "ic_per_loss": "the same of $I_t$ / $L_t$",
            "ic_per_residual": "the same of $I_t$ / $R_t$"}  # fmt: skip
    against = ("loss", "training loss at the end (nats)")
    figures.append(plots.tradeoff(points, page(args, "settings_loss"), ends, against, "log"))
    return verdicts, text, figures


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
    rows = [[*key, spread(list(own.values()), 3)] for key, own in found.items()]
    text = [table(["timesteps", "what", "strength", "accuracy"], rows, 2)]
    verdicts, panels = {}, {}
    for threat, strength in (("gaussian_noise", 0.4), ("blur", 1.0)):
        by_time = {name: list(found[name, threat, strength].values()) for name in when}
        hurt = effect(
            [late - early for early, late in zip(by_time["first half"], by_time["last half"])]
        )
        why = f"Accuracy with the last half of the timesteps corrupted is {hurt:3} above that with the first half."
        verdicts[f"{threat} {strength}"] = verdict([beyond(hurt, HURTS)]), why
        means, around = (
            [of(values) for values in by_time.values()] for of in (statistics.mean, deviation)
        )
        panels[f"{threat} {strength}"] = {"": (list(when), means, around)}
    return (
        verdicts,
        text,
        [plots.panels(panels, page(args, "robustness"), "corrupted timesteps", "accuracy")],
    )


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
            pgd = next(
                line
                for line in own
                if (line["threat"], line["strength"]) == ("pgd", scale(args).eps)
            )
            noise = next(line for line in own if line["threat"] == "gaussian_noise")
            transfer = (
                math.nan if pgd["transfer"] is None else pgd["transfer"]
            )  # of one seed there is none
            runs.append({"ic": fisher["ic"], "ic_per_loss": fisher["ic_per_loss"], "clean": log["test_accuracy"],
                         "pgd": pgd["attacked"], "noise": noise["attacked"], "transfer": transfer,
                         "timestep": fisher["timestep"]})  # fmt: skip
        numbers[key] = {quantity: [run[quantity] for run in runs] for quantity in runs[0]}
        numbers[key]["masking"] = [sign for line in lines for sign in line.get("masking", ())]
    return numbers


def change(numbers, norm, name, key):
    """The effect of that loss on a quantity, against `ce`, seed by seed."""
    return effect([a - b for a, b in zip(numbers[norm, name][key], numbers[norm, "ce"][key])])


def loss_verdict(numbers, norm):
    """Of the losses that are shown to cost at most COST of accuracy, the one that moves IC furthest from that of ce:
    does it move IC by `least_move` or more, and accuracy under PGD by ROBUST or more? Seeds are paired."""
    names = [name for key, name in numbers if key == norm and name != "ce"]
    cheap = {name: beyond(change(numbers, norm, name, "clean"), -COST) for name in names}
    if True not in cheap.values():
        word = "undecided" if None in cheap.values() else "does not hold"
        return word, f"No loss is shown to cost at most {COST} of accuracy."
    best = max(
        (n for n in names if cheap[n]), key=lambda name: abs(change(numbers, norm, name, "ic").mean)
    )
    moved, cost, robust = (change(numbers, norm, best, key) for key in ("ic", "clean", "pgd"))
    sizes = [found if found.mean > 0 else Effect(*(-x for x in (found.mean, found.high, found.low)))
             for found in (moved, robust)]  # fmt: skip
    least = least_move((numbers[norm, "ce"]["timestep"][0] + 1) / 2)
    checks = [beyond(sizes[0], least), beyond(sizes[1], ROBUST)]
    means = [
        [statistics.mean(found[key]) for (k, _), found in numbers.items() if k == norm]
        for key in ("ic", "pgd")
    ]
    correlation = rank_correlation(*means)
    why = f"`{best}` against `ce`: IC {moved}, accuracy {cost:3}, accuracy under PGD {robust:3}."
    return verdict(
        checks
    ), f"{why} Rank correlation of IC and accuracy under PGD over the losses: {correlation}."


def loss(args):
    """A loss can move the information, with little effect on accuracy, but much on robustness.

    Of the losses whose cost in accuracy is at most 0.01 with its 95 % interval of the seeds, the one that moves IC
    furthest from that of `ce` counts (chosen on the same seeds: its intervals are not corrected for that). The claim
    holds if it moves IC by a ninth of that of a flat curve or more (0.5 with 8 timesteps), and accuracy under PGD by
    0.05 or more, with both intervals.
    """
    numbers = loss_numbers(args)
    eps = scale(args).eps
    rows = []
    heads = ("norm", "loss", "IC", "IC of I_t / L_t", "accuracy", f"PGD, eps {eps}/255", "noise 0.2", "transfer",
             "masking", "IC against `ce`", "accuracy against `ce`", "PGD against `ce`")  # fmt: skip
    for (norm, name), found in numbers.items():
        cells = [spread(found[key], 2 if "ic" in key else 3) for key in list(found)[:6]]
        cells += [str(len(found["masking"])), f"{change(numbers, norm, name, 'ic')}"]
        cells += [f"{change(numbers, norm, name, key):3}" for key in ("clean", "pgd")]
        rows.append([norm, name, *cells])
    verdicts = {f"norm {norm}": loss_verdict(numbers, norm) for norm in NORMS}
    panels = {
        "clean": "test accuracy",
        "pgd": f"accuracy under PGD, eps {eps}/255",
        "noise": "accuracy under noise",
    }
    return verdicts, [table(heads, rows, 2)], [plots.tradeoff(numbers, page(args, "loss"), panels)]


# ---------------------------------------------------------------- claim: pruning

AS_GOOD = 0.005  # of accuracy: a smaller loss counts as none
FASTER = 1.5


def better(accuracy, search):
    """How much more accuracy than that of `full` a search leaves, at each sparsity: accuracy {(search, round): [a value
    a seed]}."""
    pairs = [
        zip(accuracy[search, number], full)
        for (name, number), full in sorted(accuracy.items())
        if name == "full"
    ]
    return [effect([few - full for few, full in pair]) for pair in pairs]


def pruning_verdict(accuracy, seconds):
    """Is `fisher` no worse than AS_GOOD below `full` at every sparsity, and its search FASTER times as fast? accuracy
    {(search, round): [a value a seed]}, seconds {search: [of the whole search, a seed]}."""
    found = better(accuracy, "fisher")
    speed = effect([a / b for a, b in zip(seconds["full"], seconds["fisher"])])
    checks = [*(beyond(one, -AS_GOOD) for one in found), beyond(speed, FASTER)]
    words = ", ".join(f"{one:3}" for one in found)
    return verdict(
        checks
    ), f"`fisher` against `full`: accuracy {words}; search {speed} times as fast."


def pruning(args):
    """Searching with the few timesteps that carry the information finds networks as good in less time.

    It holds if `fisher` loses at most 0.005 of accuracy against `full` at every sparsity, and its search is 1.5 times
    as fast or more, each with its 95 % interval of the seeds.
    """
    searches, rounds = scale(args).searches, scale(args).rounds
    flags = [
        *map(
            str,
            [
                "--rounds",
                rounds[-1],
                "--final_rounds",
                *rounds,
                "--prune_rate",
                scale(args).prune_rate,
            ],
        )
    ]
    jobs = {
        search: command(args, f"pruning_{search}", "prune_snn", *flags, "--search_timestep", search)
        for search in searches
    }
    folders = [folder for own in with_each_seed(args, jobs).values() for folder in own]
    accuracy, seconds, sparsity, steps = {}, {}, {}, {}
    for folder in folders:
        lines = read_lines(folder / PRUNING_FILE)
        for line in lines:
            if line["stage"] == "final":
                accuracy.setdefault((line["search"], line["round"]), []).append(
                    line["test_accuracy"]
                )
                sparsity[line["round"]] = line["sparsity"]
                if line["round"] == rounds[-1]:
                    seconds.setdefault(line["search"], []).append(
                        pruning_plots.search_seconds(lines, line)
                    )
        last = [line for line in lines if line["stage"] == "search"][-1]
        steps.setdefault(last["search"], []).append(str(last["timestep"]))
    heads = ["search runs", *(f"{100 * s:.1f} %" for s in sparsity.values())]
    heads += ["timesteps of its last round", "seconds", "times as fast"]
    rows = []
    for search in searches:
        cells = [spread(accuracy[search, number], 3) for number in rounds]
        cells += [", ".join(steps[search]), spread(seconds[search], 0)]
        cells += [spread([a / b for a, b in zip(seconds["full"], seconds[search])])]
        rows.append([search, *cells])
    against = [
        f"`{name}` {', '.join(f'{one:3}' for one in better(accuracy, name))}"
        for name in searches[1:]
    ]
    text = [table(heads, rows), f"Accuracy against `full`, seed by seed: {'; '.join(against)}."]
    figure = pruning_plots.pruning(folders, page(args, "pruning"))
    return {"all sparsities": pruning_verdict(accuracy, seconds)}, text, [figure]
