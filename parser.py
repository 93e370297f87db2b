"""argparse for these scripts: BadInput for errors, suggestions, defaults in the help."""

import argparse
import difflib
import re
import sys
from argparse import ArgumentTypeError

from user_code import is_code
from utils import BadInput


def number(kind, low, high=2**31 - 1, above=False):
    """An argparse type: an int or float from `low` to `high`; not `low` itself if `above`."""

    def convert(text):
        value = kind(text)
        if value > high:
            raise ArgumentTypeError(f"must be at most {high}, not {text}")
        if not value >= low or (above and value == low):
            bound = "above" if above else "at least"
            raise ArgumentTypeError(f"must be {bound} {low}, not {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in «invalid int value»
    return convert


COUNT, SHARE = number(int, 1), number(float, 0, 1)
POSITIVE = number(float, 0, above=True)
CODE = "FILE.py:FUNCTION"


def one_of(known, code=False):
    """An argparse type: one of the known names, in any case. With `code`, FILE.py:FUNCTION too."""

    def convert(text):
        name = text.lower()
        if code and is_code(text):
            return text
        if name not in known:
            choices = ", ".join([*known, CODE] if code else known)
            close = suggestion(name, known)
            raise ArgumentTypeError(f"unknown {text!r}: choose from {choices}{close}")
        return name

    return convert


def epochs_entry(text):
    """An argparse type: an epoch, or every:k."""
    if not re.fullmatch(r"\d+|every:[1-9]\d*", text):
        raise ArgumentTypeError(f"{text!r} is neither an epoch nor every:k")
    return text


def expand_epochs(entries, last):
    """["0", "every:10"] -> sorted epochs up to `last`. every:k includes the last epoch. A number
    past the last epoch, as a recipe may have, becomes the last epoch."""
    epochs = set()
    for entry in entries:
        if entry.startswith("every:"):
            epochs |= {*range(int(entry[6:]), last, int(entry[6:])), last}
        else:
            epochs.add(min(int(entry), last))
    return sorted(epochs)


def suggestion(word, known):
    """ "; did you mean …?" if a known word starts with it or is like it, else ""."""
    longer = [other for other in known if other.startswith(word)]
    close = longer or difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


class Parser(argparse.ArgumentParser):
    """argparse with BadInput for errors, defaults in the help, and hyphens as underscores.

    `words` are what the usage shows before the flags. `defaults` is {flag: default}, `groups`
    {title: flags}, `needs` {flag: the flag that it needs}.
    """

    def __init__(self, script, description=None, words=""):
        super().__init__(
            prog=f"{script}.py",
            usage=f"python {script}.py {words}[--flag value ...]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,  # so that `typed` has only what was typed
        )
        self.defaults, self.groups, self.needs = {}, {}, {}

    def group(self, title):
        """Start a group. Returns a function that adds a flag to it. A flag `needs` another to have
        an effect, for example "--arch fc". With `code` it takes FILE.py:FUNCTION."""
        group = self.add_argument_group(title)
        self.groups[title] = set()

        def flag(names, default, help, choices=None, needs=None, code=False, **options):
            if choices:
                shown = ",".join([*choices, CODE] if code else choices)
                options |= {"type": one_of(choices, code), "metavar": f"{{{shown}}}"}
            if default is False:
                options["action"] = "store_true"
            elif default not in (None, []):
                shown = " ".join(map(str, default)) if isinstance(default, list) else default
                help = f"{help} (default {shown})".strip()
            if needs:
                help = f"with {needs}: {help}"
            name = group.add_argument(*names.split(), help=help, **options).dest
            self.defaults[name] = default
            self.needs[name] = needs
            self.groups[title].add(name)

        return flag

    def error(self, message):
        raise BadInput(message)

    def typed(self, argv=None):
        """{flag: value} of the flags on the command line, or in the list `argv`."""
        argv = sys.argv[1:] if argv is None else argv
        argv = [re.sub(r"(?<=^--)[^=]+", lambda name: name[0].replace("-", "_"), a) for a in argv]
        values, unknown = self.parse_known_args(argv)
        if unknown:
            word = unknown[0].partition("=")[0]
            close = suggestion(word, [f"--{name}" for name in self.defaults])
            self.error(f"unknown argument {word}, see --help{close}")
        return vars(values)

    def parse_args(self, argv=None):
        """All flags, typed or default."""
        return argparse.Namespace(**self.defaults | self.typed(argv))
