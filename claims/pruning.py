"""Searching with the few timesteps that carry the information finds networks as good in less time.

What is run: iterative pruning whose search runs all timesteps, or those that a rule chooses.
"""

from claims import common, figures
from claims.runs import PRUNE
from drawing.pruning import search_seconds
from utils import PRUNING_FILE, read_lines

TITLE = "Few timesteps suffice to search for sparse networks"
QUESTION = "Does a search with few timesteps find networks as good in less time?"
AS_GOOD, FASTER = 0.005, 1.5
RULE = (
    f"`fisher` must lose at most {AS_GOOD} of accuracy against `full` at every sparsity, and its "
    f"search must be more than {FASTER} times as fast."
)


def runs(study):
    rounds = study.scale.rounds
    flags = ("--rounds", rounds[-1], "--final_rounds", *rounds)
    flags = (*flags, "--prune_rate", study.scale.prune_rate, "--search_timestep")
    return {search: study.train(f"pruning_{search}", *flags, search, script=PRUNE)
            for search in study.scale.searches}  # fmt: skip


def numbers(study, folders):
    return {search: one_search(seeds) for search, seeds in folders.items()}


def one_search(folders):
    """The numbers of a rule: accuracy by sparsity and seed; the others by seed."""
    seeds = [read_lines(folder / PRUNING_FILE) for folder in folders]
    finals = [[line for line in lines if line["stage"] == "final"] for lines in seeds]
    searches = [[line for line in lines if line["stage"] == "search"] for lines in seeds]
    return {
        "sparsity": common.column(finals[0], "sparsity"),
        "accuracy": [common.column(lines, "test_accuracy") for lines in zip(*finals)],
        "seconds": [search_seconds(lines, final[-1]) for lines, final in zip(seeds, finals)],
        "timestep": [lines[-1]["timestep"] for lines in searches],
    }


def page(numbers):
    full = numbers["full"]
    sparsities = [f"{100 * sparsity:.1f} %" for sparsity in full["sparsity"]]
    rows, against, falls, speeds = [], [], {}, {}
    for search, row in numbers.items():
        speeds[search] = [a / b for a, b in zip(full["seconds"], row["seconds"])]
        falls[search] = [common.difference(every, few)
                         for few, every in zip(row["accuracy"], full["accuracy"])]  # fmt: skip
        cells = [common.spread(values) for values in (*row["accuracy"], row["seconds"])]
        steps = ", ".join(map(str, row["timestep"]))
        rows.append([search, *cells, common.spread(speeds[search]), steps])
        for sparsity, fall in zip(sparsities, falls[search]):
            against.append([f"{search}, {sparsity}", f"{fall.mean:+.3f}", common.interval(fall)])
    conditions = [common.below(f"{sparsity} pruned: accuracy falls", fall, AS_GOOD)
                  for sparsity, fall in zip(sparsities, falls["fisher"])]  # fmt: skip
    speed = common.effect(speeds["fisher"])
    conditions.append(common.above("speed-up of the search:", speed, FASTER, "more than"))
    worst = max(fall.mean for fall in falls["fisher"])
    answer = (
        f"Its search is {speed.mean:.2f} times as fast, and accuracy falls by {worst:.3f} at most."
    )
    heads = ["search", *sparsities, "seconds", "times as fast", "timesteps, by seed"]
    tables = [
        ("Accuracy at each sparsity, and the search", heads, rows),
        ("How far accuracy falls against `full`", ["search", "fall", "95 % interval"], against),
    ]
    return common.Page(answer, conditions, tables)


def draw(numbers, path):
    left, seconds = {}, {}
    for search, row in numbers.items():
        errors = [[100 * (1 - value) for value in seeds] for seeds in row["accuracy"]]
        left[search] = ([100 * (1 - sparsity) for sparsity in row["sparsity"]], errors)
        seconds[search] = ([sum(row["seconds"]) / len(row["seconds"])], errors[-1:])
    panels = {"weights left (%)": left, "seconds of the search": seconds}
    return figures.curves(panels, path, ["test error (%)", "test error, sparsest (%)"], log=True)
