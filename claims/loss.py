"""A loss can move the information at little cost in accuracy, and this changes robustness.

What is run: a training with each loss and kind of BatchNorm; its networks under PGD and noise.
"""

from claims import common, figures
from claims.runs import folder_name
from claims.scales import LAST

TITLE = "A loss moves the information at little cost, and changes robustness"
QUESTION = "Can a loss move the information at little cost, and does robustness change with it?"
COST, CHANGE = 0.01, 0.05
RULE = (
    f"A loss must cost at most {COST} of accuracy against `ce`. Of those that do, the one that "
    f"moves IC furthest must move it by a ninth of flat, and accuracy under PGD by {CHANGE}."
)
NORMS = ("step", "folded")
COLUMNS = common.CENTROIDS | {"clean": "accuracy", "pgd": "under PGD", "noise": "under noise",
                              "transfer": "under PGD on another seed"}  # fmt: skip


def runs(study):
    strengths = f"--eps {study.scale.eps:g} --noise_levels 0.2 --blur_levels"
    groups = {}
    for norm in NORMS:
        for loss, flags in study.scale.losses.items():
            folder = f"loss_{norm}_{folder_name(loss)}"
            trainings = study.train(folder, LAST, "--norm", norm, flags)
            attacked = study.evaluate(f"{folder}_robustness", trainings, strengths)
            groups |= {(norm, loss): trainings, (norm, loss, "attacked"): attacked}
    return groups


def numbers(study, folders):
    by_norm = {norm: {} for norm in NORMS}
    for norm, loss in [key for key in folders if len(key) == 2]:
        threats = common.threats(folders[norm, loss, "attacked"][0])
        by_norm[norm][loss] = one_loss(folders[norm, loss], threats, study.scale.eps)
    return by_norm


def one_loss(folders, threats, eps):
    """The numbers of a loss, a value a seed, from its trainings and their robustness."""
    pgd = [threats[folder.name, "pgd", eps] for folder in folders]
    noise = [threats[folder.name, "gaussian_noise", 0.2] for folder in folders]
    return common.summary(common.last_measurements(folders)) | {
        "clean": common.column(common.last_epochs(folders), "test_accuracy"),
        "pgd": common.column(pgd, "attacked"),
        "noise": common.column(noise, "attacked"),
        "transfer": common.column(pgd, "transfer"),  # there is none of one seed
        "masking": sum(len(line.get("masking", ())) for line in threats.values()),
    }


def judge(norm, losses):
    """The cost of each loss, and what the one does that moves IC furthest at little cost."""
    conditions, moves = [], {}
    for loss in [loss for loss in losses if loss != "ce"]:
        cost, ic, pgd = (common.difference(losses["ce"][key], losses[loss][key])
                         for key in ("clean", "ic", "pgd"))  # fmt: skip
        conditions.append(common.below(f"{norm}, {loss}: accuracy falls", cost, COST))
        if conditions[-1].verdict == "confirmed":
            moves[loss] = common.size(ic), common.size(pgd)
    if moves:
        best = max(moves, key=lambda loss: moves[loss][0].mean)
        margin = common.margin(common.flat_centroid(losses["ce"]["timestep"]))
        words = f"{norm}, {best}: IC moves", f"{norm}, {best}: accuracy under PGD changes"
        conditions.append(common.above(words[0], moves[best][0], margin))
        conditions.append(common.above(words[1], moves[best][1], CHANGE))
    return conditions


def page(numbers):
    conditions, rows, correlations = [], [], []
    for norm, losses in numbers.items():
        conditions += judge(norm, losses)
        for loss, row in losses.items():
            rows.append([f"{norm}, {loss}", *common.cells(row, COLUMNS), row["masking"]])
        correlations.append([norm, common.correlation(losses.values(), "ic", "pgd")])
    heads = ["norm, loss", *COLUMNS.values(), "signs of masking"]
    heads_of_ranks = ["norm", "rank correlation, over the losses, of IC with accuracy under PGD"]
    tables = [("Networks", heads, rows), ("Ranks", heads_of_ranks, correlations)]
    return common.Page(f"{common.confirmed(conditions)}.", conditions, tables)


def draw(numbers, path):
    panels = {f"norm {norm}": losses for norm, losses in numbers.items()}
    return figures.scatter(panels, path, ("ic", "pgd"), ("IC", "accuracy under PGD"))
