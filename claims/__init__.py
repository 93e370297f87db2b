"""The claims of the paper, and what was asked beside them: a file each.

The docstring of a claim begins its page. It has four paragraphs: the claim, a question, the rule by
which the answer is found, and what is run. The functions are

    runs(study)                {name: [CommandLine, ...]}: what it needs
    numbers(study, folders)    plain values by seed, from {name: [run folder, ...]}
    page(numbers, path)        draws the figure at `path`; the answer, the conditions, the tables
"""

from importlib import import_module

CLAIMS = {
    name: import_module(f"claims.{name}")
    for name in ("concentration", "settings", "layers", "loss", "robustness", "pruning",
                 "controls", "planted", "released", "gain", "law")
}  # fmt: skip
LONG = ("gain", "law")  # `reproduce.py all` leaves them out
