"""Default names of run folders: words for the flags that differ from the recipe."""

import re
from pathlib import Path

LONGEST_CHANGES = 150  # characters, of the 255 that a file system allows a name


def name_of(start, changes, seed):
    """Name of a run: data set, network and T (`start`), changed flags, seed."""
    words = [as_word(value) for value in start]
    changed = "".join(f"_{word}" for word in changes)[:LONGEST_CHANGES]
    return f"{'_'.join(words)}{changed}_seed{seed}"


def changed_words(values, usual, ignored):
    """Flags whose values differ from the usual ones: ["detach_membrane", "reset-soft", "tau4"]."""
    words = []
    for name in sorted(usual.keys() - ignored):
        value = values[name]
        if value is True:
            words.append(name)
        elif value != usual[name]:
            joint = "" if isinstance(value, int | float) else "-"
            words.append(f"{name}{joint}{as_word(value)}")
    return words


def as_word(value):
    """A value of a flag, without the characters that a file name should not have."""
    values = value if isinstance(value, list) else [value]
    texts = [f"{v:g}" if isinstance(v, float) else Path(str(v)).name for v in values]
    return re.sub(r"[^\w.+-]", "-", "-".join(texts))
