"""Noise hurts in the early timesteps.

The paper finds the information in the first half of the timesteps. Does noise there cost more
accuracy than in the last half?

The first half must cost 0.02 of accuracy more than the last half.

The trained networks get noise and blur in the first half of the timesteps, in the last half, and in
all. If T is odd, the middle timestep is in neither half. In all timesteps they are also attacked.
"""

from claims import common, figures, pages

COST = 0.02
CORRUPTIONS = (("gaussian_noise", 0.4), ("blur", 1.0))
NAMES = {"clean": "clean", "gaussian_noise": "noise", "blur": "blur", "fgsm": "FGSM, eps",
         "pgd": "PGD, eps", "unbounded": "attack, eps"}  # fmt: skip
FIRST, LAST, ALL = "first half", "last half", "all"


def runs(study):
    trained, eps = study.trained(), study.scale.eps
    length = study.arguments(trained[0]).timestep
    half = length // 2
    flags = {
        FIRST: ("--eps", "--noisetime", *range(1, half + 1)),
        LAST: ("--eps", "--noisetime", *range(length - half + 1, length + 1)),
        ALL: ("--eps", eps / 4, eps / 2, eps / 1, "--noisetime", *range(1, length + 1)),
    }
    evaluations = {"trained": trained}
    for times, words in flags.items():
        words = ("--noise_levels 0.2 0.4 --blur_levels 1", *words)
        evaluations[times] = study.evaluate(f"robustness {times}", trained, *words)
    return evaluations


def numbers(study, folders):
    """A row for each corruption and its timesteps, with the accuracies of the seeds."""
    seeds = {}
    for times in (FIRST, LAST, ALL):
        for (network, threat, strength), line in common.threats(folders[times][0]).items():
            key = (times if line["times"] else "none", threat, strength)
            seeds.setdefault(key, {})[network] = line["attacked"]
    heads = ("times", "threat", "strength")
    return [
        dict(zip(heads, key)) | {"accuracy": [*accuracies.values()]}
        for key, accuracies in seeds.items()
    ]


def row_name(row):
    """A threat, its strength and its timesteps: "noise 0.2, first half"."""
    threat, strength = NAMES[row["threat"]], row["strength"]
    name = f"{threat} {strength:g}" if strength else threat
    return name if row["times"] == "none" else f"{name}, {row['times']}"


def in_words(difference):
    """A difference of accuracy: "0.1 more", or "0.1 less"."""
    return f"{abs(difference):.3f} {'more' if difference > 0 else 'less'}"


def page(numbers, path):
    rows, accuracy = {}, {}
    order = list(NAMES)
    for row in sorted(numbers, key=lambda row: (order.index(row["threat"]), row["strength"])):
        rows[row_name(row)] = row
        accuracy[row["times"], row["threat"], row["strength"]] = row["accuracy"]
    conditions = []
    for threat, strength in CORRUPTIONS:
        words = (
            f"{threat} {strength:g}: the first half costs at least {COST} more than the last half"
        )
        first, last = (accuracy[times, threat, strength] for times in (FIRST, LAST))
        conditions.append(common.condition(words, last, first, low=COST))
    noise, blur = (in_words(condition.effect.mean) for condition in conditions)
    answer = f"Noise in the first half costs {noise} than in the last half. Blur costs {blur}."
    columns = {"accuracy": "accuracy"}
    figures.dots(rows, columns, {"accuracy, by the corrupted timesteps": ("accuracy",)}, path)
    table = pages.table("Accuracy", "threat, strength, corrupted timesteps", rows, columns)
    return pages.Page(conditions, [table], answer)
