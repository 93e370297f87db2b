"""The claims of the paper, and what was asked beside them: a file each.

A claim is a module with

    TITLE, QUESTION, RULE      words of its page
    runs(study)                {name: [Run, ...]}: what it needs
    numbers(study, folders)    plain values by seed, from {name: [run folder, ...]}
    page(numbers)              the answer, the conditions and the tables
    draw(numbers, path)        the figure
"""

from claims import (
    concentration,
    controls,
    gain,
    law,
    layers,
    loss,
    planted,
    pruning,
    released,
    robustness,
    settings,
)

OF_THE_PAPER = {
    "concentration": concentration,
    "settings": settings,
    "layers": layers,
    "loss": loss,
    "robustness": robustness,
    "pruning": pruning,
    "controls": controls,
    "planted": planted,
    "released": released,
}
# These two would take `reproduce.py all` past its time.
CLAIMS = OF_THE_PAPER | {"gain": gain, "law": law}
