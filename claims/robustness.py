"""The early timesteps, where the information is, are where noise hurts.

What is run: the trained networks, with noise and blur in the first half of the timesteps, in the
last half, and in all; there also under attacks.
"""

from claims import common, figures

TITLE = "Noise hurts in the early timesteps"
QUESTION = "Does noise in the first half of the timesteps cost more accuracy than in the last half?"
COST = 0.02
RULE = f"The first half must cost {COST} of accuracy more than the last half."
CORRUPTIONS = (("gaussian_noise", 0.4), ("blur", 1.0))
LEVELS = "--noise_levels 0.2 0.4 --blur_levels 1"
FIRST, LAST, ALL = "first half", "last half", "all"


def runs(study):
    length, trained, eps = study.timestep(), study.trained(), study.scale.eps
    half = length // 2
    attacks = ("--eps", eps / 4, eps / 2, eps / 1)
    first, last = range(1, half + 1), range(length - half + 1, length + 1)
    flags = {
        FIRST: (LEVELS, "--eps", "--noisetime", *first),
        LAST: (LEVELS, "--eps", "--noisetime", *last),
        ALL: (LEVELS, *attacks, "--noisetime", *range(1, length + 1)),
    }
    evaluations = {"trained": trained}
    for name, words in flags.items():
        folder = f"robustness_{name.replace(' ', '_')}"
        evaluations[name] = study.evaluate(folder, trained, *words)
    return evaluations


def numbers(study, folders):
    """A row for each corruption and its timesteps, with the accuracies of the seeds."""
    seeds = {}
    for times in (FIRST, LAST, ALL):
        for (network, threat, strength), line in common.threats(folders[times][0]).items():
            key = (times if line["times"] else "none", threat, strength)
            seeds.setdefault(key, {})[network] = line["attacked"]
    heads = ("times", "threat", "strength")
    return [dict(zip(heads, key)) | {"accuracy": [*own.values()]} for key, own in seeds.items()]


def accuracies(numbers, threat, strength):
    """{timesteps: accuracies of the seeds} of one corruption; "none" is without it."""
    wanted = ((threat, strength), ("clean", 0.0))
    rows = [row for row in numbers if (row["threat"], row["strength"]) in wanted]
    return {row["times"]: row["accuracy"] for row in rows}


def page(numbers):
    conditions = []
    for threat, strength in CORRUPTIONS:
        row = accuracies(numbers, threat, strength)
        words = f"{threat} {strength}: the first half costs more than the last half"
        cost = common.difference(row[LAST], row[FIRST])
        conditions.append(common.above(words, cost, COST))
    noise, blur = (condition.effect.mean for condition in conditions)
    answer = f"It costs {noise:.3f} more with noise and {blur:.3f} more with blur."
    rows = [[row["threat"], f"{row['strength']:g}", row["times"], common.spread(row["accuracy"])]
            for row in numbers]  # fmt: skip
    heads = ["what", "strength", "corrupted timesteps", "accuracy"]
    return common.Page(answer, conditions, [("Accuracy", heads, rows)])


def draw(numbers, path):
    rows = {}
    for threat, strength in CORRUPTIONS:
        for times, accuracy in accuracies(numbers, threat, strength).items():
            rows[f"{threat} {strength:g}, {times}"] = {"": accuracy}
    return figures.dots(rows, path, "accuracy, by the corrupted timesteps")
