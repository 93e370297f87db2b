"""A loss moves the information at little cost, and changes robustness.

Can a loss move the information at little cost, and does robustness change too? The paper says so.

A loss must cost less than 0.01 of accuracy against `ce`. One of these losses moves IC furthest. It
must move IC by a ninth of flat, and accuracy under PGD by 0.05.

A training with each loss and kind of BatchNorm. Its networks are tested under PGD and noise.
"""

from itertools import product

from claims import common, figures, pages
from claims.scales import LAST

COST, CHANGE = 0.01, 0.05
NORMS = ("step", "folded")
COLUMNS = common.CENTROIDS | {
    "clean": "accuracy",
    "pgd": "under PGD",
    "noise": "under noise",
    "transfer": "under PGD on another seed",
    "masking": "signs of masking",
}


def runs(study):
    strengths = f"--eps {study.scale.eps:g} --noise_levels 0.2 --blur_levels"
    groups = {}
    for norm, (loss, flags) in product(NORMS, study.scale.losses.items()):
        name = f"loss {norm} {loss}"
        trainings = study.train(name, LAST, "--norm", norm, flags)
        attacked = study.evaluate(f"{name} robustness", trainings, strengths)
        groups |= {(norm, loss): trainings, (norm, loss, "attacked"): attacked}
    return groups


def numbers(study, folders):
    by_norm = {norm: {} for norm in NORMS}
    for norm, loss in product(NORMS, study.scale.losses):
        seeds, threats = folders[norm, loss], common.threats(folders[norm, loss, "attacked"][0])
        pgd = [threats[folder.name, "pgd", study.scale.eps] for folder in seeds]
        noise = [threats[folder.name, "gaussian_noise", 0.2] for folder in seeds]
        by_norm[norm][loss] = common.summary(seeds) | {
            "clean": common.logged(seeds, "test_accuracy"),
            "pgd": [line["attacked"] for line in pgd],
            "noise": [line["attacked"] for line in noise],
            "transfer": [line["transfer"] for line in pgd],  # there is none of one seed
            "masking": sum(len(line.get("masking", ())) for line in threats.values()),
        }
    return by_norm


def judge(norm, losses):
    """Conditions on the cost of each loss, and on the one that moves IC furthest at little cost."""
    ce, costs, of_best, moves = losses["ce"], [], [], {}
    for loss in [loss for loss in losses if loss != "ce"]:
        words = f"{norm}, {loss}: accuracy falls by less than {COST}"
        cost = common.condition(words, ce["clean"], losses[loss]["clean"], high=COST)
        costs.append(cost)
        if cost.verdict == "confirmed":
            moves[loss] = abs(common.difference(losses[loss]["ic"], ce["ic"]).mean)
    if moves:
        best = max(moves, key=moves.get)
        margin = common.margin(common.flat_centroid(ce["timestep"]))
        words = f"{norm}, {best}: IC moves by more than {margin:.3g}"
        of_best.append(changes(words, ce["ic"], losses[best]["ic"], margin))
        words = f"{norm}, {best}: accuracy under PGD changes by more than {CHANGE}"
        of_best.append(changes(words, ce["pgd"], losses[best]["pgd"], CHANGE))
    return costs, of_best


def changes(words, first, second, bound):
    """The condition that the two differ by more than the bound, whichever has the larger mean."""
    if common.difference(first, second).mean < 0:
        first, second = second, first
    return common.condition(words, first, second, low=bound)


def page(numbers, path):
    conditions, answers, rows = [], [], {}
    for norm, losses in numbers.items():
        costs, of_best = judge(norm, losses)
        conditions += costs + of_best
        answers += [f"With norm {words}: {verdict}." for words, _, verdict in of_best]
        rows |= {f"{norm}, {loss}": row for loss, row in losses.items()}
    panels = {"centroid at the end": ("ic", "flat"), "accuracy": ("clean", "pgd")}
    figures.dots(common.with_flat(rows), COLUMNS | {"flat": "flat"}, panels, path)
    table = pages.table("Networks", "norm, loss", rows, COLUMNS)
    return pages.Page(conditions, [table], " ".join(answers) or "No loss does it at little cost.")
