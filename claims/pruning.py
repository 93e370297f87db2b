"""Few timesteps suffice to search for sparse networks.

Does a search with only the timesteps that carry the information find equally good networks in less
time? The paper says so.

The search `fisher` must lose less than 0.005 of accuracy against `full` at every sparsity, and be
more than 1.5 times as fast.

Iterative pruning. Its search runs all timesteps, or those that a rule chooses.
"""

from claims import common, figures, pages
from claims.runs import PRUNE
from drawing.pruning import search_seconds
from utils import PRUNING_FILE, read_lines

AS_GOOD, FASTER = 0.005, 1.5


def runs(study):
    rounds = study.scale.rounds
    flags = ("--rounds", rounds[-1], "--final_rounds", *rounds)
    flags = (*flags, "--prune_rate", study.scale.prune_rate, "--search_timestep")
    trainings = {}
    for search in study.scale.searches:
        trainings[search] = study.train(f"pruning {search}", *flags, search, script=PRUNE)
    return trainings


def numbers(study, folders):
    """Of each search accuracy by sparsity and seed; the others by seed."""
    rows = {}
    for search, runs_of_search in folders.items():
        seeds = [read_lines(folder / PRUNING_FILE) for folder in runs_of_search]
        finals = [[line for line in lines if line["stage"] == "final"] for lines in seeds]
        searches = [[line for line in lines if line["stage"] == "search"] for lines in seeds]
        rows[search] = {
            "sparsity": [line["sparsity"] for line in finals[0]],
            "accuracy": [[line["test_accuracy"] for line in lines] for lines in zip(*finals)],
            "seconds": [search_seconds(lines, final[-1]) for lines, final in zip(seeds, finals)],
            "timestep": [lines[-1]["timestep"] for lines in searches],
        }
    return rows


def page(numbers, path):
    full = numbers["full"]
    sparsities = [f"{100 * sparsity:.1f} %" for sparsity in full["sparsity"]]
    rows, falls, errors = {}, {}, {}
    for search, row in numbers.items():
        rows[search] = dict(zip(sparsities, row["accuracy"]))
        rows[search]["seconds"] = row["seconds"]
        rows[search]["times as fast"] = common.array(full["seconds"]) / row["seconds"]
        rows[search]["timesteps"] = row["timestep"]
        name = f"T = {search}" if search.isdigit() else search
        errors[name] = {}
        for sparsity, accuracy in zip(row["sparsity"], row["accuracy"]):
            errors[name][100 - 100 * sparsity] = 100 - 100 * common.array(accuracy)
        if search != "full":
            for sparsity in sparsities:
                fall = common.difference(rows["full"][sparsity], rows[search][sparsity])
                falls[search, sparsity] = fall
    figures.curves({("weights left (%)", "test error (%)"): errors}, path, "xy")
    conditions = []
    for sparsity in sparsities:
        words = f"{sparsity} pruned: accuracy falls by less than {AS_GOOD}"
        pair = rows["full"][sparsity], rows["fisher"][sparsity]
        conditions.append(common.condition(words, *pair, high=AS_GOOD))
    worst = max(condition.effect.mean for condition in conditions)
    words = f"the search is more than {FASTER} times as fast"
    speed = common.condition(words, rows["fisher"]["times as fast"], 0, low=FASTER)
    answer = (
        f"The search is {speed.effect.mean:.2f} times as fast, and accuracy falls by {worst:.3f} "
        "at the worst sparsity."
    )
    against = [[", ".join(key), *pages.effect_cells(fall)] for key, fall in falls.items()]
    tables = [
        pages.table("Accuracy at each sparsity, and the search", "search", rows),
        ("How far accuracy falls against `full`", ["search", "fall", "95 % interval"], against),
    ]
    return pages.Page([*conditions, speed], tables, answer)
