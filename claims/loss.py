"""A loss can move the information at little cost in accuracy, and this changes robustness.

What is run: a training with each loss and both kinds of BatchNorm, and an evaluation of its
networks under PGD and noise.
"""

from pathlib import Path
from statistics import fmean

from claims import common, figures
from claims.runs import folder_name
from claims.scales import LAST
from utils import ROBUSTNESS_FILE, read_lines

TITLE = "A loss moves the information at little cost, and changes robustness"
QUESTION = "Can a loss move the information at little cost, and does robustness change with it?"
COST, CHANGE = 0.01, 0.05
RULE = (
    f"A loss must cost at most {COST} of accuracy against `ce`. Of those that do, the one that "
    f"moves IC furthest must move it by a ninth of flat, and accuracy under PGD by {CHANGE}."
)
NORMS = ("step", "folded")
COLUMNS = {"ic": "IC", "ic_loss": "IC of I_t / L_t", "clean": "accuracy", "pgd": "under PGD",
           "noise": "under noise", "transfer": "under PGD on another seed"}  # fmt: skip


def runs(study):
    strengths = f"--eps {study.scale.eps:g} --noise_levels 0.2 --blur_levels"
    groups = {}
    for norm in NORMS:
        for loss, flags in study.scale.losses.items():
            folder = f"loss_{norm}_{folder_name(loss)}"
            trainings = study.train(folder, LAST, "--norm", norm, flags)
            groups[norm, loss] = trainings
            evaluation = study.evaluate(f"{folder}_robustness", trainings, strengths)
            groups[norm, loss, "attacked"] = evaluation
    return groups


def numbers(study, folders):
    by_norm = {norm: {} for norm in NORMS}
    for norm, loss in [key for key in folders if len(key) == 2]:
        lines = read_lines(folders[norm, loss, "attacked"][0] / ROBUSTNESS_FILE)
        by_norm[norm][loss] = one_loss(folders[norm, loss], lines, study.scale.eps)
    return by_norm


def one_loss(folders, lines, eps):
    """The numbers of a loss, a value a seed, from its trainings and lines of robustness.jsonl."""
    last = common.last_measurements(folders)
    threats = {}
    for line in lines:
        network = Path(line["checkpoint"]).parent.name
        threats[network, line["threat"], line["strength"]] = line
    pgd = [threats[folder.name, "pgd", eps] for folder in folders]
    noise = [threats[folder.name, "gaussian_noise", 0.2] for folder in folders]
    return {
        "timestep": last[0]["timestep"],
        "ic": common.column(last, "ic"),
        "ic_loss": common.column(last, "ic_per_loss"),
        "clean": common.column(common.last_epochs(folders), "test_accuracy"),
        "pgd": common.column(pgd, "attacked"),
        "noise": common.column(noise, "attacked"),
        "transfer": common.column(pgd, "transfer"),  # there is none of one seed
        "masking": sum(len(line.get("masking", ())) for line in lines),
    }


def judge(norm, losses):
    """The cost of each loss, and what the one does that moves IC furthest at little cost."""
    changes = {}
    for loss in [loss for loss in losses if loss != "ce"]:
        changes[loss] = {key: common.difference(losses[loss][key], losses["ce"][key])
                         for key in ("clean", "ic", "pgd")}  # fmt: skip
    conditions = [common.above(f"{norm}, {loss}: accuracy changes", change["clean"], -COST)
                  for loss, change in changes.items()]  # fmt: skip
    cheap = [loss for loss, c in zip(changes, conditions) if c.verdict == "confirmed"]
    if not cheap:
        return conditions
    best = max(cheap, key=lambda loss: abs(changes[loss]["ic"].mean))
    margin = common.margin(common.flat_centroid(losses["ce"]["timestep"]))
    ic, pgd = (common.size(changes[best][key]) for key in ("ic", "pgd"))
    conditions.append(common.above(f"{norm}, {best}: IC moves", ic, margin))
    words = f"{norm}, {best}: accuracy under PGD changes"
    return [*conditions, common.above(words, pgd, CHANGE)]


def page(numbers):
    conditions, rows, correlations = [], [], []
    for norm, losses in numbers.items():
        conditions += judge(norm, losses)
        for loss, row in losses.items():
            rows.append([f"{norm}, {loss}", *common.cells(row, COLUMNS), row["masking"]])
        means = [[fmean(row[key]) for row in losses.values()] for key in ("ic", "pgd")]
        effect = common.rank_correlation(*means)
        correlations.append([norm, f"{effect.mean:+.2f}", common.interval(effect)])
    heads = ["norm, loss", *COLUMNS.values(), "signs of masking"]
    correlation = "Rank correlation, over the losses, of IC with accuracy under PGD"
    tables = [("Networks", heads, rows), (correlation, ["norm", "", "95 % interval"], correlations)]
    return common.Page(f"{common.confirmed(conditions)}.", conditions, tables)


def draw(numbers, path):
    panels = {f"norm {norm}": losses for norm, losses in numbers.items()}
    labels = ["information centroid IC", "accuracy under PGD"]
    return figures.scatter(panels, path, ("ic", "pgd"), labels)
