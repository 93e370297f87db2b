"""argparse for these scripts: errors of one line, suggestions, defaults in the help."""

import argparse
import difflib
import math
import os
import re
import sys


def number(kind, low, high=math.inf, above=False):
    """An argparse type: an int or float from `low` to `high`; not `low` itself if `above`."""
    high = min(high, 2**31 - 1) if kind is int else high

    def convert(text):
        value = kind(text)
        if not math.isfinite(value) or not low <= value <= high or (above and value == low):
            bound = f"{'above' if above else 'at least'} {low}"
            bound += f" and at most {high}" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in «invalid int value»
    return convert


COUNT, SHARE = number(int, 1), number(float, 0, 1)
POSITIVE = number(float, 0, above=True)


def one_of(known, numbers=False):
    """An argparse type: one of the known names, in any case, or a number above 0 if `numbers`."""

    def convert(text):
        name = str(int(text)) if numbers and text.isdigit() else text.lower()
        if name in known or (numbers and name.isdigit() and name != "0"):
            return name
        choices = f"choose from {', '.join(known)}{', or a number' if numbers else ''}"
        raise argparse.ArgumentTypeError(f"unknown {text!r}: {choices}{suggestion(name, known)}")

    return convert


def epochs_entry(text):
    """An argparse type: an epoch, or every:k."""
    if not re.fullmatch(r"\d+|every:[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither an epoch nor every:k")
    return text


def expand_epochs(entries, last):
    """["0", "every:10"] -> sorted epochs up to `last`. every:k ends with the last epoch; so does a
    number past it, which a recipe may have."""
    epochs = set()
    for entry in entries:
        if entry.startswith("every:"):
            epochs |= {*range(int(entry[6:]), last, int(entry[6:])), last}
        else:
            epochs.add(min(int(entry), last))
    return sorted(epochs)


def suggestion(word, known):
    """ "; did you mean …?" if a known word is like it, else ""."""
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, defaults in the help, and hyphens for underscores."""

    def __init__(self, script, description=None):
        super().__init__(
            prog=f"{script}.py",
            usage=f"python {script}.py [--flag value ...]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.defaults, self.groups = {}, {}

    def group(self, title):
        """A function that adds a flag to a group of that title: its names, default, and help."""
        add = self.add_argument_group(title).add_argument
        self.groups[title] = set()

        def flag(names, default, help, **options):
            first, *others = names.split()
            self.groups[title].add(first[2:])
            self.defaults[first[2:]] = default
            choices = options.pop("choices", None)
            if choices:
                options |= {"type": one_of(choices), "metavar": f"{{{','.join(choices)}}}"}
            if default is False:
                options["action"] = "store_true"
            elif default not in (None, []):
                shown = " ".join(map(str, default)) if isinstance(default, list) else default
                help = f"{help} (default {shown})".strip()
            add(first, *others, default=default, help=help, **options)

        return flag

    def error(self, message):
        first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
        self.exit(2, f"{self.prog}: error: {message}\n" if first else None)

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        args = [re.sub(r"(?<=^--)[^=]+", lambda name: name[0].replace("-", "_"), a) for a in args]
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            close = suggestion(unknown[0], [f"--{name}" for name in self.defaults])
            self.error(f"unknown argument {unknown[0]}, see --help{close}")
        return values

    def typed(self, args):
        """{flag: value} of the flags that the list `args` gives."""
        unset = object()
        values = self.parse_args(args, argparse.Namespace(**dict.fromkeys(self.defaults, unset)))
        return {name: value for name, value in vars(values).items() if value is not unset}
