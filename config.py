"""The flags of every script, in groups, with a recipe per data set.

`parse("train_snn")` returns the settings of a run. A value comes from the command line, or from the
run that --resume goes on with or the checkpoint that --checkpoints names, or from the recipe of the
data set, or is the default: the recipe of the AAAI 2023 release as its code runs. Bad input ends the
process with one line on stderr and status 2.
"""

import argparse
import difflib
import math
import re
import sys
from pathlib import Path

import archs
from archs.layers import NORMS
from archs.neuron import RESETS, SURROGATES
from attacks import METHODS, parse_surrogate
from data import AUGMENT, DATASETS
from fisher import PREFIXES
from losses import LOSSES, kept_steps
from readers import TORCHVISION
from utils import ARGS_FILE, BadInput, load_checkpoint, read_record

# fmt: off
SMALL_VGG = {"arch": "vgg5", "width": 0.25, "timestep": 8, "batch_size": 64, "learning_rate": 0.1,
             "weight_decay": 5e-4, "dampening": 0.0}
RECIPES = {
    "digits": SMALL_VGG | {
        "epochs": 30, "save_epochs": ["every:10"], "fisher_samples": 256, "rewind_epoch": 2,
        "fisher_epochs": ["0", "1", "2", "3", "5", "8", "12", "20", "30"]},
    "planted": SMALL_VGG | {
        "epochs": 20, "save_epochs": ["every:10"], "fisher_samples": 256, "rewind_epoch": 2,
        "fisher_epochs": ["0", "1", "2", "3", "5", "8", "12", "20"], "standardise": "mean_std"},
    "fashion_mnist": SMALL_VGG | {
        "epochs": 10, "save_epochs": ["every:5"], "batch_size": 128, "rewind_epoch": 1,
        "fisher_epochs": ["0", "1", "2", "5", "10"]},
}
# A flag that has an effect only with some values of another flag. Elsewhere it is refused.
ONLY_WITH = {
    "layernum": ("arch", ["fc"]), "data_file": ("dataset", ["npz"]), "fake_shape": ("dataset", ["fake"]),
    "planted_time": ("dataset", ["planted"]), "data_dir": ("dataset", list(TORCHVISION)),
    "no_augment": ("dataset", [name for name, augment in AUGMENT.items() if any(augment)]),
    "noise_level": ("noisetype", ["gaussian_noise", "blur"]), "freq_radius": ("freqlevel", ["low", "high"]),
    "momentum": ("optimizer", ["sgd"]), "dampening": ("optimizer", ["sgd"]),
    "lr_step": ("scheduler", ["step"]), "lr_gamma": ("scheduler", ["step"]),
    "tet_lambda": ("loss", ["tet"]), "target_ic": ("loss", ["centroid"]),
    "prefix_time": ("loss", ["prefix"]), "prefix_weight": ("loss", ["prefix"]),
    "loss_threshold": ("loss", ["ce", "tet", "prefix"]), "information_share": ("search_timestep", ["fisher"]),
    "attack_method": ("adv_train", [True]), "eps": ("adv_train", [True]),
    "attack_prefix": ("adv_train", [True]),
    "attack_steps": ("attack_method", ["pgd"]), "attack_step_size": ("attack_method", ["pgd"]),
}
# What belongs to one start of a script: the run that --resume goes on with does not fix it.
START_FLAGS = {"resume", "dry_run", "device", "out_dir", "exp_name"}
# What a checkpoint knows of its input, and of its network.
INPUT_FLAGS = {"dataset", "data_file", "standardise", "fake_shape", "planted_time", "encode", "timestep"}
MODEL_FLAGS = INPUT_FLAGS | {
    "datanum", "label_corrupt_prob", "seed", "arch", "width", "layernum", "norm", "tau", "threshold",
    "reset", "surrogate", "surrogate_alpha", "undecayed_input", "undetached_reset"}
# fmt: on


# ---------------------------------------------------------------- argparse


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


def one_of(known, numbers=False):
    """An argparse type: one of the known names, in any case, or a number above 0 if `numbers`."""

    def convert(text):
        name = text.lower()
        if name in known or (numbers and name.isdigit() and int(name)):
            return name
        close = "".join(f"; did you mean {word}?" for word in difflib.get_close_matches(name, known, 1))
        raise argparse.ArgumentTypeError(f"unknown {text!r}: choose from {', '.join(known)}{close}")

    return convert


def epochs_entry(text):
    """An argparse type: an epoch, or every:k."""
    if not re.fullmatch(r"\d+|every:[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither an epoch nor every:k")
    return text


def surrogate(text):
    """An argparse type: the surrogate gradient of an attacker."""
    try:
        return text if text == "own" or parse_surrogate(text) else None
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from error


def expand_epochs(entries, last):
    """["0", "every:10"] -> sorted epochs up to `last`. every:k ends with the last epoch; so does a
    number past it, which a recipe may have."""
    epochs = set()
    for entry in entries:
        every = entry.startswith("every:")
        epochs |= {*range(int(entry[6:]), last, int(entry[6:])), last} if every else {min(int(entry), last)}
    return sorted(epochs)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, defaults in the help, and hyphens for underscores."""

    def __init__(self, script, description=None):
        super().__init__(f"{script}.py", f"python {script}.py [--flag value ...]", description,
                         formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip

    def group(self, title):
        """A function that adds a flag to a group of that title: its name, default, and help."""
        add = self.add_argument_group(title).add_argument

        def flag(name, default, help, **kw):
            if default is False:
                add(name, action="store_true", help=help)
                return
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            help += "" if default in (None, []) else f" (default {shown})"
            add(*name.split(), default=default, help=help, **kw)

        return flag

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def read(self, argv):
        """(all flags with their defaults, those that `argv` gives)."""
        argv = [re.sub(r"^--[^=]+", lambda match: "--" + match[0][2:].replace("-", "_"), a) for a in argv]
        defaults = {action.dest: action.default for action in self._actions if action.dest != "help"}
        unset = object()
        values, unknown = self.parse_known_args(argv, argparse.Namespace(**dict.fromkeys(defaults, unset)))
        for word in unknown[:1]:
            close = difflib.get_close_matches(word, [f"--{name}" for name in defaults], 1)
            self.error(f"unknown argument {word}" + (f"; did you mean {close[0]}?" if close else ", see --help"))
        return defaults, {name: value for name, value in vars(values).items() if value is not unset}


# ---------------------------------------------------------------- the flags

COUNT, SHARE = number(int, 1), number(float, 0, 1)
POSITIVE = number(float, 0, above=True)
TIMES = {"nargs": "+", "type": COUNT, "metavar": "t"}
EPOCHS = {"nargs": "+", "type": epochs_entry, "metavar": "E"}


# fmt: off
def input_flags(parser):
    flag = parser.group("data")
    flag("--dataset", "cifar10", "digits, planted and fake need no file", type=one_of(DATASETS),
         metavar="{" + ",".join(DATASETS) + "}")
    flag("--data_dir", "data", "where torchvision's data sets are, or are downloaded to")
    flag("--data_file", None, "--dataset npz: file of x_train, y_train, x_test, y_test")
    flag("--fake_shape", [3, 32, 32], "--dataset fake: C H W, or T C H W", nargs="+", type=COUNT)
    flag("--planted_time", [1], "--dataset planted: timesteps, from 1, that show the class", **TIMES)
    flag("--datanum", None, "training samples; without it, all", type=number(int, 2))
    flag("--label_corrupt_prob", 0.0, "share of the training labels that is random", type=SHARE)
    flag("--encode", "d", "d: the image at every timestep; p: Poisson spikes", choices=["d", "p"])
    flag("--standardise", None, "subtract each channel's mean and divide by its standard deviation, or "
         "divide alone, or neither; without it, mean_std for images and std for frames",
         choices=["mean_std", "std", "none"])
    flag("--batch_size", 128, "samples a step", type=number(int, 2))
    flag("--seed", 0, "seed of everything that is random", type=number(int, 0))

    flag = parser.group("network")
    flag("--arch", "resnet19", "", type=one_of(archs.ARCHS), metavar="{" + ",".join(archs.ARCHS) + "}")
    flag("--width", 1.0, "factor on the number of channels", type=number(float, 0, 64, above=True))
    flag("--layernum", 2, "--arch fc: linear layers, the read-out included", type=number(int, 2))
    flag("--timestep", 10, "T, the timesteps of one input", type=COUNT)
    flag("--norm", "step", "BatchNorm statistics of each timestep, or of all together", choices=NORMS)
    flag("--tau", 2.0, "membrane time constant, in timesteps", type=number(float, 1, above=True))
    flag("--threshold", 1.0, "firing threshold", type=POSITIVE)
    flag("--reset", "hard", "a spike sets the membrane to 0, or lowers it by the threshold", choices=RESETS)
    flag("--surrogate", "atan", "stands in for the derivative of a spike", choices=SURROGATES)
    flag("--surrogate_alpha", None, "its slope; without it, that of peak 1 (atan: 2)", type=POSITIVE)
    flag("--undecayed_input", False, "the input is not divided by tau: h = v (1 - 1/tau) + x")
    flag("--undetached_reset", False, "the gradient flows through the reset, too")
    flag("--detach_membrane", False, "no gradient flows through the membrane from one timestep to "
         "another; a saved model is measured or attacked as this command line says")


def training_flags(parser):
    flag = parser.group("training")
    flag("--epochs", 300, "passes over the training set", type=COUNT)
    flag("--optimizer", "sgd", "", choices=["sgd", "adam", "adamw"])
    flag("--learning_rate --lr", 0.3, "peak learning rate", type=POSITIVE)
    flag("--momentum", 0.9, "of sgd", type=SHARE)
    flag("--dampening", 5e-4, "of sgd's momentum", type=SHARE)
    flag("--weight_decay", 0.0, "", type=number(float, 0))
    flag("--scheduler", "cosine", "learning rate by epoch: cosine to 0, times --lr_gamma every --lr_step "
         "epochs, or constant", choices=["cosine", "step", "none"])
    flag("--lr_step", 100, "epochs between drops of --scheduler step", type=COUNT)
    flag("--lr_gamma", 0.1, "factor of a drop", type=SHARE)
    flag("--warmup_epochs", 0, "epochs in which the learning rate rises", type=number(int, 0))
    flag("--no_augment", False, "train without random crops and flips")
    flag("--test_samples", None, "validate on so many; without it, on all", type=COUNT)
    flag("--amp", None, "train with bfloat16 convolutions and activations; validation and measurement "
         "stay float32", nargs="?", const="bf16", choices=["bf16"])
    flag("--compile", False, "compile the neurons for training, half a minute at the start")
    flag("--checkpoint_activations", False, "keep the inputs of blocks alone: less memory, more time")
    flag("--init", None, "checkpoint whose weights the training starts from")
    flag("--save_epochs", ["every:20"], "keep the checkpoints of these epochs, or every:k", **EPOCHS)
    flag("--noisetype", None, "corrupt inputs, at all times", choices=["gaussian_noise", "blur"])
    flag("--noise_level", None, "standard deviation: of noise, for pixels in [0, 1] (without it, 0.1), "
         "or of the blur, in pixels (1)", type=POSITIVE)
    flag("--freqlevel", None, "keep low or high spatial frequencies alone", choices=["low", "high"])
    flag("--freq_radius", 4.0, "where low frequencies end, in cycles an image", type=number(float, 0))
    flag("--noisetime", [], "corrupt these timesteps, from 1; without it, all", **TIMES)

    flag = parser.group("loss, formulas in losses.py")
    flag("--loss", "ce", "ce: cross-entropy of the mean output; tet: of each output; prefix: of early "
         "prefixes, too; centroid: steers the squared residuals to --target_ic", choices=LOSSES)
    flag("--label_smoothing", 0.0, "", type=SHARE)
    flag("--lossskiptime", [], "leave the outputs of these timesteps, from 1, out", **TIMES)
    flag("--loss_threshold", None, "flooding: |loss - B| + B for each cross-entropy", type=number(float, 0))
    flag("--tet_lambda", 0.05, "--loss tet: weight of the squared distance of outputs from 1", type=SHARE)
    flag("--prefix_time", None, "--loss prefix: the prefixes; without it, 1 to T/2", **TIMES)
    flag("--prefix_weight", 0.5, "--loss prefix: their weight", type=SHARE)
    flag("--target_ic", None, "--loss centroid: the centroid", type=number(float, 1))


def attack_flags(parser, training):
    flag = parser.group("attack")
    several = {} if training else {"nargs": "*"}
    if training:
        flag("--adv_train", False, "train on inputs that are attacked")
    flag("--attack_method", "pgd" if training else list(METHODS), "one step of eps, or projected "
         "gradient descent", choices=METHODS, **several)
    flag("--eps", 8 if training else [4, 8, 16, 32, 64], "most that an attack changes a pixel, in 1/255",
         type=number(float, 0, 255, above=True), **several)
    flag("--attack_steps", 10, "steps of pgd", type=COUNT)
    flag("--attack_step_size", None, "in 1/255; without it, 2.5 eps / steps", type=POSITIVE)
    flag("--attack_prefix", None, "attack the prediction after t timesteps; without it, after all",
         type=COUNT, metavar="t")


def robustness_flags(parser):
    flag = parser.group("evaluation")
    flag("--checkpoints", None, "the trained networks; their flags are taken from them", nargs="+", required=True)
    flag("--attack_surrogate", ["own", "atan:1", "atan:4", "triangle:1"], "surrogate gradients of the "
         "attackers, of which the worst counts: own (the network's), or name:alpha", nargs="+", type=surrogate)
    flag("--robust_samples", 512, "test samples, the same for all networks", type=number(int, 2))
    flag("--noise_levels", [0.05, 0.1, 0.2, 0.4], "standard deviations of noise", nargs="*", type=POSITIVE)
    flag("--blur_levels", [0.5, 1.0, 2.0], "standard deviations of blur, in pixels", nargs="*", type=POSITIVE)
    flag("--noisetime", [], "noise and blur at these timesteps, from 1; without it, at all", **TIMES)


def fisher_flags(parser):
    flag = parser.group("Fisher information")
    flag("--fisher_epochs", ["20", "120", "300"], "measure after these epochs (0: before training), or "
         "every:k and the last", **EPOCHS)
    flag("--fisher_split", ["train"], "where the samples are from", nargs="+", choices=["train", "test"])
    flag("--fisher_labels", ["data"], "data: empirical Fisher; model: true Fisher, labels drawn from the "
         "prediction; exact: true Fisher, summed over the classes, as many times the work",
         nargs="+", choices=["data", "model", "exact"])
    flag("--fisher_prefix", "cumulative", "prediction of step t: of the mean of outputs 1..t, or of the "
         "output at t alone", choices=PREFIXES)
    flag("--fisher_estimator", "exact", "exact: each sample's squared gradient norm; release: that of a "
         "batch's mean gradient, as the paper's script prints", choices=["exact", "release"])
    flag("--checkpoints", None, "measure these models instead of training; their flags are taken from them",
         nargs="+")


def sample_flags(parser):
    flag = parser.group("measured samples")
    flag("--fisher_samples", 512, "how many, the same at all epochs", type=number(int, 2))
    flag("--fisher_batch", None, "samples in one pass; without it, as many as fit; of --fisher_estimator "
         "release, in one mean: 128", type=COUNT)


def pruning_flags(parser):
    flag = parser.group("pruning")
    flag("--search_timestep", ["full", "fisher", "kl"], "searches, by how many timesteps they run: a "
         "number, full, fisher, kl; or one_shot, without rounds", nargs="+",
         type=one_of(["full", "fisher", "kl", "one_shot"], numbers=True))
    flag("--rounds", 14, "times that weights are pruned", type=COUNT)
    flag("--final_rounds", None, "train the networks after these rounds with all timesteps; without it, "
         "after the last", nargs="+", type=COUNT)
    flag("--prune_rate", 0.25, "share of the kept weights that a round prunes", type=number(float, 0, 0.99, above=True))
    flag("--rewind_epoch", 10, "kept weights go back to those after this epoch", type=number(int, 0))
    flag("--information_share", 0.9, "fisher: share of sum_t I_t that the timesteps of a search reach",
         type=number(float, 0, 1, above=True))


def run_flags(parser):
    flag = parser.group("run")
    flag("--out_dir", "runs", "where run folders are")
    flag("--exp_name", None, "name of the run folder; without it, made of data set, arch, T and seed")
    flag("--resume", False, "go on with the run of that name, with its flags")
    flag("--device", "auto", "auto, cpu, cuda, cuda:1, mps, ...")
    flag("--dry_run", False, "two steps of everything, in a temporary folder that is deleted")
# fmt: on


def make_parser(script, description=None):
    """The parser of a script: the groups of flags that it reads."""
    parser = Parser(script, description)
    input_flags(parser)
    if script == "eval_snn_robustness":
        attack_flags(parser, training=False)
        robustness_flags(parser)
    else:
        training_flags(parser)
        attack_flags(parser, training=True)
    if script == "prune_snn":
        pruning_flags(parser)
    if script == "train_snn_fisherinfo":
        fisher_flags(parser)
    if script in ("train_snn_fisherinfo", "prune_snn"):
        sample_flags(parser)
    run_flags(parser)
    return parser


# ---------------------------------------------------------------- putting settings together


def parse(script, argv=None, description=None):
    """Settings of a run of `script`, checked, from the command line or the list `argv`. Bad input
    ends the process with status 2."""
    parser = make_parser(script, description)
    defaults, given = parser.read(sys.argv[1:] if argv is None else argv)

    def settings(fixed):
        recipe = RECIPES.get((defaults | fixed | given)["dataset"], {})
        recipe = {name: value for name, value in recipe.items() if name in defaults}
        return argparse.Namespace(**{"script": script} | defaults | recipe | fixed | given)

    try:
        fixed, source = flags_of_checkpoint(script, given)
        args = settings(fixed)
        if args.resume and flags_of_run(args):
            fixed, source = flags_of_run(args), Path(args.out_dir) / run_name(args)
            args = settings({name: value for name, value in fixed.items() if name in defaults})
        for name in sorted(given.keys() & fixed.keys() - {"data_dir", "data_file"}):  # they may move
            if given[name] != fixed[name]:
                raise BadInput(f"--{name} {given[name]} differs from {fixed[name]}, fixed by {source}")
        check_checkpoints(args, given)
        check(args, given)
    except BadInput as error:
        parser.error(str(error))
    return args


def run_name(args):
    """Name of the run folder."""
    if args.exp_name:
        return args.exp_name
    kind = "_pruning" if args.script == "prune_snn" else ""
    if vars(args).get("checkpoints"):
        kind = "_checkpoints"
        if args.script == "eval_snn_robustness":
            return f"{Path(args.checkpoints[0]).resolve().parent.name}_robustness"
    return f"{args.dataset}_{args.arch}_T{args.timestep}_seed{args.seed}{kind}"


def flags_of_checkpoint(script, given):
    """(flags that the first of --checkpoints fixes, its path); none without it."""
    paths = given.get("checkpoints", [])
    saved = load_checkpoint(paths[0]).get("args", {}) if paths else {}  # the release's have none
    # Networks of several seeds are attacked alike: the seed is the attack's own.
    names = MODEL_FLAGS - ({"seed"} if script == "eval_snn_robustness" else set())
    return {name: value for name, value in saved.items() if name in names}, (paths or [None])[0]


def flags_of_run(args):
    """Flags of the run that --resume goes on with; none, and a warning, if there is no such run.
    Raises BadInput if another script began it."""
    path = Path(args.out_dir) / run_name(args) / ARGS_FILE
    if not path.exists():
        print(f"warning: there is no run {path.parent} to --resume: a new one starts", file=sys.stderr)
        return {}
    stored = read_record(path)["args"]
    script = stored.get("script", args.script)
    if script != args.script:
        raise BadInput(f"{path} is of {script}.py, which alone can --resume it: name another --exp_name")
    return {name: value for name, value in stored.items() if name not in START_FLAGS | {"script"}}


def check_checkpoints(args, given):
    """Raise BadInput if --checkpoints were made with other settings than `args` has."""
    free = {"data_file"} & given.keys()
    if args.script == "eval_snn_robustness":  # each network is built by its own flags
        free |= MODEL_FLAGS - INPUT_FLAGS
    elif not (args.datanum or args.label_corrupt_prob):  # else the seed chose their training data
        free |= {"seed"}
    for path in given.get("checkpoints", ()):
        saved = load_checkpoint(path).get("args", {})
        for name in sorted(MODEL_FLAGS & saved.keys() - free):
            if saved[name] != getattr(args, name):
                raise BadInput(f"{path} has --{name} {saved[name]}, not {getattr(args, name)}: "
                               "give it a command of its own")  # fmt: skip


# ---------------------------------------------------------------- checks


def check(args, given):
    """Raise BadInput for flags that do not fit together; fill in those that depend on others."""
    flags = vars(args)
    for name in sorted(given.keys() & ONLY_WITH.keys()):
        other, values = ONLY_WITH[name]
        chosen = flags.get(other, values)
        if not set(chosen if isinstance(chosen, list) else [chosen]) & set(values):
            need = "" if values == [True] else f" {' or '.join(values)}"
            raise BadInput(f"--{name} has an effect only with --{other}{need}")
    for name in ("planted_time", "noisetime", "lossskiptime", "prefix_time", "attack_prefix"):
        times = flags.get(name) or []
        last = max(times, default=0) if isinstance(times, list) else times
        if last > args.timestep:
            raise BadInput(f"--{name} {last} is past --timestep {args.timestep}")
    problems = [
        (args.dataset == "npz" and not args.data_file, "--dataset npz needs --data_file x.npz"),
        (len(args.fake_shape) not in (3, 4), "--fake_shape takes C H W, or T C H W"),
        (args.dry_run and args.resume, "--dry_run keeps nothing, so there is nothing to --resume"),
    ]
    if args.script == "eval_snn_robustness":
        corrupted = args.noise_levels + args.blur_levels
        problems += [(args.noisetime and not corrupted, "--noisetime has an effect only with --noise_levels "
                                                        "or --blur_levels")]  # fmt: skip
    else:
        problems += problems_of_training(args, given)
    if args.script == "train_snn_fisherinfo":
        problems += problems_of_measurement(args, given)
    if args.script == "prune_snn":
        problems += problems_of_pruning(args, given)
    for holds, message in problems:
        if holds:
            raise BadInput(message)


def problems_of_training(args, given):
    """[(whether it is one, what to do)]; --noise_level and --prefix_time are set if not given."""
    if args.dry_run:
        args.epochs = min(args.epochs, 2)
    if args.noisetype:
        args.noise_level = args.noise_level or {"gaussian_noise": 0.1, "blur": 1.0}[args.noisetype]
    if args.loss == "prefix":
        args.prefix_time = sorted(set(args.prefix_time or range(1, max(2, args.timestep // 2 + 1))))
    first = min([args.timestep, *(args.prefix_time or [])])
    last = max([int(e) for name in ("save_epochs", "fisher_epochs") for e in given.get(name, []) if e.isdigit()], default=0)
    return [
        (args.noisetime and not (args.noisetype or args.freqlevel), "--noisetime has an effect only with --noisetype or --freqlevel"),
        (args.freqlevel and args.adv_train, "--freqlevel takes inputs out of [0, 1], which --adv_train needs"),
        (args.freqlevel and args.encode == "p", "--freqlevel takes inputs out of [0, 1], which --encode p needs"),
        (args.loss == "centroid" and not 1 <= (args.target_ic or 0) <= args.timestep, f"--loss centroid needs --target_ic from 1 to {args.timestep}"),
        (not kept_steps(first, args.lossskiptime), f"--lossskiptime leaves no output of the first {first}"),
        (last > args.epochs and not args.dry_run, f"epoch {last} is past --epochs {args.epochs}"),
        (args.warmup_epochs >= args.epochs, f"--warmup_epochs leaves nothing of --epochs {args.epochs}"),
    ]


def problems_of_measurement(args, given):
    """The same."""
    if args.dry_run and args.fisher_estimator == "release":  # there are two batches
        args.fisher_batch = min(args.fisher_batch or args.batch_size, args.batch_size)
    of_training = set(vars(make_parser("train_snn").parse_args([]))) - MODEL_FLAGS - START_FLAGS
    useless = sorted(given.keys() & (of_training | {"fisher_epochs"}) - {"batch_size", "data_dir", "detach_membrane"})
    exact = "exact" in args.fisher_labels
    return [
        (args.checkpoints and useless, f"--{useless[:1]} has no effect with --checkpoints: nothing is trained"),
        (args.fisher_estimator == "release" and exact, "--fisher_labels exact has no mean gradient: leave out --fisher_estimator release"),
    ]


def problems_of_pruning(args, given):
    """The same; --final_rounds and --rewind_epoch are set if not given."""
    if args.dry_run:
        args.rounds, args.final_rounds = 1, [1]
    args.final_rounds = sorted(set(args.final_rounds or [args.rounds]))
    if "rewind_epoch" not in given or args.dry_run:  # a recipe's, made for a longer run
        args.rewind_epoch = min(args.rewind_epoch, args.epochs - 1)
    numbers = [int(rule) for rule in args.search_timestep if rule.isdigit()]
    of_all = sorted(given.keys() & {"noisetime", "lossskiptime", "attack_prefix", "init"})
    return [
        (of_all, f"--{of_all[:1]} has no meaning for a search, which runs fewer timesteps"),
        (args.loss in ("prefix", "centroid"), f"--loss {args.loss} is about T timesteps; a search runs fewer"),
        (max(numbers, default=0) > args.timestep, f"--search_timestep is past --timestep {args.timestep}"),
        ("kl" in args.search_timestep and (args.timestep < 3 or args.epochs < 2), "--search_timestep kl looks at 3 timesteps or more, after 2 epochs"),
        (args.final_rounds[-1] > args.rounds, f"--final_rounds is past --rounds {args.rounds}"),
        (args.rewind_epoch >= args.epochs, f"--rewind_epoch leaves nothing of --epochs {args.epochs}"),
    ]
