"""Every claim of the paper, and two beside them, from one command each: what was run, a figure, a table, a verdict.

    python reproduce.py list
    python reproduce.py loss --seeds 5
    python reproduce.py all

--scale small is the digits, for two CPU cores; images, a VGG that fits 1000 images of Fashion-MNIST, up to two hours a
claim there; medium, a VGG on all of CIFAR-10, many hours; paper, the recipe of the release (ResNet19, CIFAR-10,
T = 10), for GPUs. Runs are ordinary run folders under --out_dir: one that is complete is not run again, one that was
stopped goes on. Figures and tables go to --results.
"""

import contextlib
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from claims import concentration, layers, loss, pruning, robustness, settings
from controls import controls, gain
from parser import COUNT, Parser
from utils import device_name, pick_device, run_script, write_atomically

ALL = {
    f.__name__: f for f in (concentration, settings, layers, loss, robustness, pruning, controls)
}
CLAIMS = ALL | {"gain": gain}  # which the paper does not make; it would take `all` past its time


def report(args, claim):
    """Run a claim and write its page, with the verdicts first."""
    args.performed = []
    start = time.perf_counter()
    verdicts, found, figures = CLAIMS[claim](args)
    minutes = (time.perf_counter() - start) / 60
    said, rule = CLAIMS[claim].__doc__.split("\n\n")
    parts = [f"**{which}: {word}.** {why}" for which, (word, why) in verdicts.items()]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {device_name(pick_device('auto'))}"
    data = " --data_dir DATA" if any("DATA" in job.flags for job in args.performed) else ""
    command = f"python reproduce.py {claim} --scale {args.scale} --seeds {args.seeds}{data}"
    text = [
        f"# {said}",
        " ".join(rule.split()),
        *parts,
        *(f"![]({figure.name})" for figure in figures),
    ]
    text += [*found, f"Mean ± standard deviation of {args.seeds} seeds. `{command}`; {versions}. "
             "What it ran, SEED = 0, 1, ...:"]  # fmt: skip
    text += [
        "\n".join(f"    {words}" for words in dict.fromkeys(job.words() for job in args.performed))
    ]
    path = Path(args.results) / f"{claim}.md"
    write_atomically(path, ("\n\n".join(text) + "\n").encode())
    print(
        "\n".join(
            [f"{claim}: {said}", *parts, *map(str, [path, *figures]), f"{minutes:.1f} minutes"]
        )
    )


def main(argv=None):
    parser = Parser("reproduce", __doc__)
    parser.add_argument("claim", choices=[*CLAIMS, "all", "list"], help="all: every one but gain")
    cores = 1 if torch.cuda.is_available() else torch.get_num_threads()
    flag = parser.group("what is run")
    flag("--scale", "small", "digits, 1000 images, CIFAR-10, or the release's recipe",
         choices=["small", "images", "medium", "paper"])  # fmt: skip
    flag("--seeds", 3, "seeds 0, 1, ... of a run", type=COUNT)
    flag("--jobs", cores, "runs at a time", type=COUNT)
    flag("--out_dir", "runs/reproduce", "where the run folders are")
    flag("--results", "results", "where figures and tables go")
    flag("--data_dir", None, "where CIFAR-10 and Fashion-MNIST are, or are downloaded to; at --scale "
         "small, settings leaves them out without it")  # fmt: skip
    flag("--dry_run", False, "every run tiny, on noise, in a temporary folder, whatever --scale")
    args = parser.parse_args(argv)
    if args.claim == "list":
        for name, claim in CLAIMS.items():
            print(f"{name:15} {claim.__doc__.splitlines()[0]}")
        return
    with contextlib.ExitStack() as stack:
        if args.dry_run:
            args.scale, args.seeds = "dry", min(args.seeds, 2)
            args.out_dir = args.results = stack.enter_context(TemporaryDirectory())
        for place in ("out_dir", "results"):
            folder = Path(getattr(args, place)) / args.scale
            folder.mkdir(parents=True, exist_ok=True)
            setattr(args, place, str(folder))
        for claim in ALL if args.claim == "all" else [args.claim]:
            report(args, claim)


if __name__ == "__main__":
    run_script(main, "reproduce.py", hint="the same command goes on")
