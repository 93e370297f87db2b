"""Check a claim: do its runs, then write a page with verdicts, a figure, and numbers by seed.

    python reproduce.py list
    python reproduce.py concentration --seeds 5
    python reproduce.py all

--scale says what the runs train:

    small   a VGG on the digits; on two CPU cores, `all` takes one or two hours
    images  a VGG on 1000 images of Fashion-MNIST, up to two hours a claim on two cores
    medium  a VGG on all of CIFAR-10, many hours
    paper   the recipe of the release (ResNet19, CIFAR-10, T = 10), for GPUs
    dry     tiny runs on noise, to try this script

Each run is one command line in its own process. The run folders are under --out_dir. The same
command skips complete runs and goes on with stopped ones. Pages, figures and numbers go to
--results. --redraw makes page and figure again from the .json beside the page, without a run.
"""

import json
from pathlib import Path

import torch

from claims import CLAIMS, LONG
from claims.pages import words_of, write_numbers, write_page
from claims.runs import Study
from claims.scales import SCALES
from parser import COUNT, Parser, one_of
from utils import BadInput, environment, pick_device, run_script


def collect(name, args, study):
    """Do the runs of a claim. Returns the record of its .json: how it was made, and the numbers."""
    runs = CLAIMS[name].runs(study)
    study.perform([run for group in runs.values() for run in group])
    folders = {key: [study.folder(run) for run in group] for key, group in runs.items()}
    command = f"python reproduce.py {name} --scale {args.scale} --seeds {args.seeds}"
    if any("DATA" in group[0].command for group in runs.values()):
        command += " --data_dir DATA"
    return {
        "claim": name,
        "command": command,
        "seeds": args.seeds,
        **environment(pick_device("auto")),
        "runs": [group[0].command for group in runs.values()],
        "numbers": CLAIMS[name].numbers(study, folders),
    }


def report(name, args, out_dir, results):
    """Make the numbers, the page and the figure of a claim, and print its verdicts."""
    path = results / f"{name}.json"
    if not args.redraw:
        out_dir.mkdir(parents=True, exist_ok=True)
        results.mkdir(parents=True, exist_ok=True)
        study = Study(SCALES[args.scale], args.seeds, args.jobs, out_dir, args.data_dir)
        write_numbers(path, collect(name, args, study))
    elif not path.exists():
        raise BadInput(f"there is no {path}: run the claim without --redraw")
    try:
        record = json.loads(path.read_text())
        if "numbers" not in record:
            raise ValueError("there are no numbers")
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path} is damaged: restore it, or run without --redraw") from error
    page = write_page(path.with_suffix(".md"), CLAIMS[name], record)
    print(f"{name}: {words_of(CLAIMS[name])[0]}")
    for words, _, verdict in page.conditions:
        print(f"  {verdict:12} {words}")
    print(path.with_suffix(".md"))


def make_parser():
    parser = Parser("reproduce", __doc__, "CLAIM ")
    claims = one_of([*CLAIMS, "all", "list"])
    parser.add_argument("claim", type=claims, metavar="CLAIM", help="all: except gain and law")
    threads = 1 if torch.cuda.is_available() else torch.get_num_threads()
    flag = parser.group("runs")
    flag("--scale", "small", "see above", choices=list(SCALES))
    flag("--seeds", 3, "number of seeds: 0, 1, ...", type=COUNT)
    flag("--jobs", threads, "runs at the same time", type=COUNT)
    flag("--out_dir", "runs/reproduce", "folder of the run folders")
    flag("--results", "results", "folder of pages, figures and numbers")
    flag("--data_dir", None, "folder of CIFAR-10 and Fashion-MNIST, or for their download; without "
         "it, the claim settings leaves them out at --scale small")  # fmt: skip
    flag("--redraw", False, "make page and figure again from the .json beside the page")
    return parser


def main(argv=None):
    args = make_parser().parse_args(argv)
    if args.claim == "list":
        for name, claim in CLAIMS.items():
            print(f"{name:15} {words_of(claim)[0]}")
        return
    names = [args.claim]
    if args.claim == "all":
        names = [name for name in CLAIMS if name not in LONG]
    out_dir, results = Path(args.out_dir) / args.scale, Path(args.results) / args.scale
    for name in names:
        report(name, args, out_dir, results)


if __name__ == "__main__":
    run_script(main, "reproduce.py", hint="the same command goes on")
