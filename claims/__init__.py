"""The claims of the paper, and what was asked beside them: a file each.

The docstring of a claim begins its page. It has four paragraphs: the claim, a question, the rule by
which the answer is found, and what is run. The functions are

    runs(study)                {name: [Run, ...]}: what it needs
    numbers(study, folders)    plain values by seed, from {name: [run folder, ...]}
    page(numbers, path)        draws the figure at `path`; the answer, the conditions, the tables
"""

from importlib import import_module

OF_THE_PAPER = ("concentration", "settings", "layers", "loss", "robustness", "pruning")
CONTROLS = ("controls", "planted", "released")
LONG = ("gain", "law")  # `reproduce.py all` leaves them out, since they take long
CLAIMS = {name: import_module(f"claims.{name}") for name in OF_THE_PAPER + CONTROLS + LONG}
