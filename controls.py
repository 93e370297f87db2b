"""What the paper does not ask: what is left of the concentration under controls, and why the gain is late."""

import math
import statistics
from itertools import product

import plots
from experiments import (
    DRAWN,
    EVERY_CLASS,
    NO_MEMBRANES,
    RELEASED,
    TRAIN,
    Job,
    measured_again,
    page,
    saved,
    scale,
    settings_runs,
    short,
    trained,
    with_each_seed,
)
from fisher import RELEASE_BATCH
from readers import FAKE_CLASSES
from utils import ARGS_FILE, read_record
from verdicts import (
    beyond,
    by_t,
    centre,
    divided,
    effect,
    least_move,
    measurements,
    spread,
    table,
    verdict,
    within,
)


def planted(args):
    """Networks on frames whose class shows at known timesteps alone: {those: {kind: [last measurement of a seed]}}."""
    runs, kinds = {}, (("train", "data"), ("train", "model"), ("test", "data"))
    for times in scale(args).planted_times:
        which = ("--dataset", "planted", "--planted_time", *map(str, times))
        flags = (
            *which,
            "--fisher_split",
            "train",
            "test",
            *DRAWN,
            *scale(args).planted,
            "--seed",
            "SEED",
        )
        runs[times] = Job(f"controls_planted_{times[0]}-{times[-1]}_SEED", TRAIN, flags, "fisher")
    folders = with_each_seed(args, runs)
    return {
        times: {kind: [measurements(folder, *kind)[-1] for folder in own] for kind in kinds}
        for times, own in folders.items()
    }


def mean_gradient(curve, released, size, samples):
    """Squared norm [T] of the mean gradient g of N `samples`, and its share [T] in the released estimator: from I_t and
    from that estimator's curve, of all their batches of `size`.

    Batches drawn without replacement have a mean whose squared norm is (1 - c) |g|^2 + c I_t in expectation, c = (N -
    B) / (N - 1) / B. This is the share of the former term.
    """
    c = (samples - size) / (samples - 1) / size
    found = [(mean - c * one) / (1 - c) for one, mean in zip(curve, released)]
    return found, [(1 - c) * norm / mean for norm, mean in zip(found, released)]


def dated(accuracy, chance):
    """The mean timestep at which accuracy [T] is gained: sum_t t (a_t - a_{t-1}) / (a_T - a_0), a_0 by chance. What is
    lost again counts as negative; NaN where nothing is gained."""
    gains = [now - before for now, before in zip(accuracy, [chance, *accuracy])]
    return sum(t * gain for t, gain in enumerate(gains, 1)) / (sum(gains) or math.nan)


def controls(args):
    """What is left of the concentration under controls that the paper does not have.

    Under a control it holds if IC ends a ninth of that of a flat curve or more (0.5 with 8 timesteps) below that, with
    the 95 % interval of the seeds. R_t is the mean squared residual, |p - label|^2, of the predictions p; true Fisher
    information is the expectation over the labels that the network predicts. Where information is planted at some
    timesteps alone, it holds if IC ends that near to the middle of these.
    """
    trained(args)
    again = measured_again(args)
    every = again.pop(EVERY_CLASS)
    kinds = product(("train", "test"), ("data", "exact"))  # of EXPECTED
    measured = {kind: [measurements(folder, *kind)[-1] for folder in every] for kind in kinds}
    first, expected = measured["train", "data"], measured["train", "exact"]
    curves = {
        "as in the paper": [line["fisher"] for line in first],
        "each layer times its squared weights": [[sum(v) for v in zip(*line["layers_scale_free"].values())]
                                                 for line in first],
        "I_t / L_t": [divided(line, "prefix_loss") for line in first],
        "I_t / R_t": [divided(line, "prefix_residual") for line in first],
        "I_t / R_t, each sample alike": [line["gain"] for line in first],
        "true Fisher": [line["fisher"] for line in expected],
        "true Fisher / R_t": [divided(line, "prefix_residual") for line in expected],
        "held-out samples": [line["fisher"] for line in measured["test", "data"]],
        "held-out, true Fisher": [line["fisher"] for line in measured["test", "exact"]],
    }  # fmt: skip
    for name, own in again.items():
        lines = [measurements(folder)[-1] for folder in own]
        curves[name] = [line["fisher"] for line in lines]
        if name == NO_MEMBRANES:
            curves[f"{name}: I_t / R_t"] = [divided(line, "prefix_residual") for line in lines]
    flat, verdicts, rows = (len(first[0]["fisher"]) + 1) / 2, {}, []
    for name, own in curves.items():
        last = [centre(curve) for curve in own]
        below = effect([flat - ic for ic in last])
        rows.append([name, spread(last), f"{below}"])
        verdicts[name] = verdict([beyond(below, least_move(flat))]), f"IC ends {below} below flat."
    panels = {name: {"end": by_t(own)} for name, own in curves.items()}
    size = read_record(again[RELEASED][0] / ARGS_FILE)["args"]["fisher_batch"] or RELEASE_BATCH
    samples = measurements(again[RELEASED][0])[-1]["samples"]
    pairs = list(zip(curves["as in the paper"], curves[RELEASED]))
    slopes, shares = zip(*(mean_gradient(*pair, size, samples) for pair in pairs))
    small = [[a / b for a, b in zip(slope, curve)] for slope, (curve, _) in zip(slopes, pairs)]
    text = [table(["control", f"IC at the end (flat: {flat})", "below flat"], rows)]
    rows = [[f"its share in {name}", *(spread(own, 3) for own in zip(*found))]
            for name, found in ((RELEASED, shares), ("I_t", small))]  # fmt: skip
    text.append(table(["squared mean gradient, t =", *range(1, len(slopes[0]) + 1)], rows))
    lower = effect([centre(paper) - centre(released) for paper, released in pairs])
    own = spread([centre(slope) for slope in slopes])
    text.append(
        f"Its own centroid is {own}. IC of {RELEASED} is {lower} below that of I_t, network by network."
    )
    heads = ("class shows at t", "IC", "from the middle of those t", "IC, held out", "IC, true Fisher",
             "IC of I_t / L_t", "IC of I_t / R_t", "held-out accuracy is gained at", "and is, by t")  # fmt: skip
    rows = []
    for times, found in planted(args).items():
        own, which = found["train", "data"], f"{times[0]} to {times[-1]}"
        ics = {kind: [line["ic"] for line in lines] for kind, lines in found.items()}
        off = effect([ic - statistics.mean(times) for ic in ics["train", "data"]])
        cells = [which, spread(ics["train", "data"]), f"{off}"]
        cells += [spread(ics["test", "data"]), spread(ics["train", "model"])]
        right = [line["prefix_accuracy"] for line in found["test", "data"]]
        cells += [spread([line[key] for line in own]) for key in ("ic_per_loss", "ic_per_residual")]
        cells += [spread([dated(accuracy, 1 / FAKE_CLASSES) for accuracy in right])]
        cells += [" ".join(f"{statistics.mean(values):.2f}" for values in zip(*right))]
        rows.append(cells)
        if len(times) < len(right[0]):
            why = f"IC ends {off} from the middle of those timesteps."
            verdicts[f"class at {which}"] = (
                verdict([within(off, least_move((len(right[0]) + 1) / 2))]),
                why,
            )
        panels[f"class at {which}"] = {"end": by_t([line["fisher"] for line in own])}
    text.append(table(heads, rows))
    return (
        verdicts,
        text,
        [plots.panels(panels, page(args, "controls"), "timesteps t", "share of the sum")],
    )


def gain_verdict(late, cut, flat):
    """Is the gain `least_move` or more past flat, and with the path cut less? Both an Effect."""
    found, left = beyond(late, least_move(flat)), beyond(cut, least_move(flat))
    return (
        "does not hold" if found is False else verdict([found, None if left is None else not left])
    )


def gain(args):
    """The gain, I_t / R_t, is late because the gradient goes back in time through the membranes.

    In a setting it holds if the centroid of the gain is past that of a flat curve by a ninth of it or more (0.5 with 8
    timesteps), and with that path cut (in the measurement alone) by less, with both 95 % intervals of the seeds; it
    does not where the gain is not late to begin with. Every network is measured with and without the path, however it
    was trained. The last columns take the output at t alone as the prediction, the others the mean of outputs 1..t.
    """
    trainings = settings_runs(args, other_data=False)
    ways = {"as it is": (), "cut": ("--detach_membrane",), "instant": ("--fisher_prefix", "instant"),
            "instant, cut": ("--fisher_prefix", "instant", "--detach_membrane")}  # fmt: skip
    jobs = {}
    for (name, own), way in product(trainings.items(), ways):
        networks = own[0].name.removesuffix("_0")
        flags = (*saved(args, networks), *ways[way], *scale(args).again)
        jobs[name, way] = Job(f"gain_{short(f'{name} {way}')}_SEED", TRAIN, flags, "fisher")
    again = with_each_seed(args, jobs)
    heads = ["setting", "flat", "IC", "IC, cut", "I_t / R_t", "past flat", "cut", "past flat"]
    heads += ["of the output at t alone", "past flat", "cut", "past flat"]
    verdicts, panels, rows = {}, {}, []
    for name in trainings:
        found = {way: [measurements(folder)[-1] for folder in again[name, way]] for way in ways}
        flat = (found["as it is"][0]["timestep"] + 1) / 2
        centres = {way: [line["ic_per_residual"] for line in lines] for way, lines in found.items()}
        past = {way: effect([centre - flat for centre in own]) for way, own in centres.items()}
        cells = [spread([line["ic"] for line in found[way]]) for way in ("as it is", "cut")]
        for way in ways:
            cells += [spread(centres[way]), f"{past[way]}"]
        rows.append([name, flat, *cells])
        late, cut = past["as it is"], past["cut"]
        verdicts[name] = (
            gain_verdict(late, cut, flat),
            f"It ends {late} past flat ({flat}), with the path cut {cut}.",
        )
        panels[name] = {way: by_t([divided(line, "prefix_residual") for line in lines])
                        for way, lines in found.items()}  # fmt: skip
    figure = plots.panels(panels, page(args, "gain"), "timesteps t", "share of $I_t$ / $R_t$")
    return verdicts, [table(heads, rows)], [figure]
