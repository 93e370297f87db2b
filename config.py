"""The flags of every script, in groups, with a recipe per data set.

`parse("train_snn")` returns the settings of a run. A value comes from the command line, or from the
run that --resume goes on with or the checkpoint that --checkpoints names, or from the recipe of the
data set, or is the default: the recipe of the AAAI 2023 release as its code runs. Bad input
raises BadInput, which `utils.run_script` makes one line on stderr and status 2.
"""

import math
import re
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import user_code
from archs import ARCHS
from archs.layers import NORMS
from archs.neuron import RESETS, SURROGATES
from attacks import METHODS, parse_surrogate
from checks import START_FLAGS, check, check_same, flags_of_run, lengthened, saved_flags
from data import DATASETS
from fisher import PREFIXES
from losses import LOSSES
from parser import COUNT, POSITIVE, SHARE, Parser, epochs_entry, number, one_of
from utils import ARGS_FILE, checkpoint_file, rank

# fmt: off
SMALL_VGG = {
    "arch": "vgg5", "width": 0.25, "timestep": 8, "batch_size": 64, "learning_rate": 0.1,
    "weight_decay": 5e-4, "dampening": 0.0, "epochs": 30, "save_epochs": ["every:10"],
    "rewind_epoch": 2, "fisher_samples": 256,
    "fisher_epochs": ["0", "1", "2", "3", "5", "8", "12", "20", "30"]}
RECIPES = {
    "digits": SMALL_VGG,
    "planted": SMALL_VGG | {"epochs": 20, "standardise": "mean_std"},
    "fashion_mnist": SMALL_VGG | {
        "epochs": 10, "save_epochs": ["every:5"], "batch_size": 128, "rewind_epoch": 1,
        "fisher_samples": 512, "fisher_epochs": ["0", "1", "2", "5", "10"]},
}
# What the default name of a run says at its ends, or leaves out: --resume may change --epochs.
NOT_IN_CHANGES = START_FLAGS | {
    "dataset", "arch", "timestep", "seed", "epochs", "data_dir", "checkpoints"}
LONGEST_CHANGES = 150  # characters, of the 255 that a file system allows a name
FILLED_IN = {"noise_level", "prefix_time", "final_rounds", "rewind_epoch"}  # by fill_in

# ---------------------------------------------------------------- the flags: name, default, help
EPOCHS = {"nargs": "+", "type": epochs_entry, "metavar": "E"}
TIMES = {"nargs": "+", "type": COUNT, "metavar": "t"}
RULES = ["full", "fisher", "kl", "one_shot"]


def surrogate(text):
    """An argparse type: the surrogate gradient of an attacker."""
    try:
        if text != "own":
            parse_surrogate(text)
    except ValueError as error:
        raise ArgumentTypeError(error) from error
    return text


def search_rule(text):
    """An argparse type: a number of timesteps, or the name of a rule."""
    return str(COUNT(text)) if text.isdigit() else one_of(RULES)(text)


def shared_flags(parser):
    flag = parser.group("data")
    flag("--dataset", "cifar10", "digits, planted and fake need no file", choices=DATASETS,
         code=True)
    flag("--data_dir", "data", "where torchvision's data sets are, or are downloaded to")
    flag("--data_file", None, "x_train, y_train, x_test, y_test", needs="--dataset npz")
    flag("--fake_shape", [3, 32, 32], "[T] C H W", nargs="+", type=COUNT, needs="--dataset fake")
    flag("--planted_time", [1], "timesteps with the class", needs="--dataset planted", **TIMES)
    flag("--datanum", None, "training samples; without it, all", type=number(int, 2))
    flag("--label_corrupt_prob", 0.0, "share of the training labels that is random", type=SHARE)
    flag("--encode", "d", "d: the image at every timestep; p: Poisson spikes", choices=["d", "p"])
    flag("--standardise", None, "mean and standard deviation of channels; without it, both for "
         "images, std for frames", choices=["mean_std", "std", "none"], needs="--encode d")
    flag("--noisetime", [], "corrupt these timesteps, from 1; without it, all", **TIMES)
    flag("--batch_size", 128, "samples in a batch", type=number(int, 2))

    flag = parser.group("network")
    flag("--arch", "resnet19", "", choices=ARCHS, code=True)
    flag("--width", 1.0, "factor on the channels", type=POSITIVE)
    flag("--layernum", 2, "layers, the read-out included", type=number(int, 2), needs="--arch fc")
    flag("--timestep", 10, "T, the timesteps of one input", type=COUNT)
    flag("--norm", "step", "BatchNorm statistics of each timestep, or of all", choices=NORMS)
    flag("--tau", 2.0, "membrane time constant, in timesteps; inf: the IF neuron",
         type=number(float, 1, math.inf, above=True))
    flag("--threshold", 1.0, "firing threshold", type=POSITIVE)
    flag("--reset", "hard", "to 0 after a spike, or down by the threshold", choices=RESETS)
    flag("--surrogate", "atan", "stands in for the derivative of a spike", choices=SURROGATES)
    flag("--surrogate_alpha", None, "its slope; without it, peak 1 (atan: 2)", type=POSITIVE)
    flag("--undecayed_input", False, "the input is not divided by tau: h = v (1 - 1/tau) + x")
    flag("--undetached_reset", False, "the gradient flows through the reset, too")
    flag("--detach_membrane", False, "the gradient does not flow from one timestep to another")

    flag = parser.group("run")
    flag("--out_dir", "runs", "where run folders are")
    flag("--exp_name", None, "name of the folder; else data set, arch, T, changed flags and seed")
    flag("--resume", False, "go on with the run of that name, with its flags; more --epochs may be "
         "given")
    flag("--seed", 0, "seed of everything that is random", type=number(int, 0))
    flag("--device", "auto", "auto, cpu, cuda, cuda:1, mps, ...")
    flag("--dry_run", False, "two steps of everything, in a temporary folder that is deleted")


def training_flags(parser):
    flag = parser.group("training")
    flag("--epochs", 300, "passes over the training set", type=COUNT)
    flag("--optimizer", "sgd", "", choices=["sgd", "adam", "adamw"])
    flag("--learning_rate --lr", 0.3, "peak learning rate", type=POSITIVE)
    flag("--momentum", 0.9, "", type=SHARE, needs="--optimizer sgd")
    flag("--dampening", 5e-4, "of the momentum", type=SHARE, needs="--optimizer sgd")
    flag("--weight_decay", 0.0, "", type=number(float, 0))
    flag("--scheduler", "cosine", "of the learning rate", choices=["cosine", "step", "none"])
    flag("--lr_step", 100, "epochs between drops", type=COUNT, needs="--scheduler step")
    flag("--lr_gamma", 0.1, "factor of a drop", type=SHARE, needs="--scheduler step")
    flag("--warmup_epochs", 0, "epochs in which the learning rate rises", type=number(int, 0))
    flag("--no_augment", False, "train without random crops and flips")
    flag("--test_samples", None, "validate on so many; without it, on all", type=COUNT)
    flag("--amp", None, "train in bfloat16", nargs="?", const="bf16", choices=["bf16"])
    flag("--compile", False, "compile the neurons; the start takes half a minute longer")
    flag("--checkpoint_activations", False, "store only inputs of blocks: less memory, slower")
    flag("--init", None, "checkpoint whose weights the training starts from")
    flag("--save_epochs", ["every:20"], "keep checkpoints of these epochs, or every:k", **EPOCHS)

    flag = parser.group("corruption of inputs")
    flag("--noisetype", None, "noise or blur", choices=["gaussian_noise", "blur"])
    flag("--noise_level", None, "sigma; else 0.1, blur 1 pixel", type=POSITIVE, needs="--noisetype")
    flag("--freqlevel", None, "keep low or high spatial frequencies alone", choices=["low", "high"])
    flag("--freq_radius", 4.0, "the border, in cycles an image", type=POSITIVE, needs="--freqlevel")

    flag = parser.group("loss")
    flag("--loss", "ce", "what training minimises: see losses.py", choices=LOSSES)
    flag("--label_smoothing", 0.0, "", type=SHARE)
    flag("--lossskiptime", [], "ignore these timesteps, from 1, in the loss", **TIMES)
    flag("--loss_threshold", None, "flooding: |loss - B| + B", type=number(float, 0), metavar="B")
    flag("--tet_lambda", 0.05, "weight of (output - 1)^2", type=SHARE, needs="--loss tet")
    flag("--prefix_time", None, "prefixes; without it, 1 to T/2", needs="--loss prefix", **TIMES)
    flag("--prefix_weight", 0.5, "weight of early prefixes", type=SHARE, needs="--loss prefix")
    flag("--target_ic", None, "goal for residuals", type=number(float, 1), needs="--loss centroid")

    flag = parser.group("attack")
    flag("--adv_train", False, "train on inputs that are attacked")
    flag("--attack_method", "pgd", "", choices=METHODS, needs="--adv_train")
    flag("--eps", 8, "largest change of a pixel, in 1/255", type=POSITIVE, needs="--adv_train")
    flag("--attack_steps", 10, "steps of pgd", type=COUNT, needs="--adv_train")
    flag("--attack_step_size", None, "else 2.5 eps / steps", type=POSITIVE, needs="--adv_train")
    flag("--attack_prefix", None, "timesteps of the prediction", type=COUNT, needs="--adv_train")


def robustness_flags(parser):
    flag = parser.group("evaluation")
    flag("--checkpoints", None, "trained networks or run folders, with their flags", nargs="+",
         required=True, type=checkpoint_file)
    flag("--robust_samples", 512, "test samples, the same for all", type=number(int, 2))
    flag("--noise_levels", [0.05, 0.1, 0.2, 0.4], "standard deviations", nargs="*", type=POSITIVE)
    flag("--blur_levels", [0.5, 1.0, 2.0], "the same, in pixels", nargs="*", type=POSITIVE)
    flag("--attack_method", list(METHODS), "", choices=METHODS, nargs="*")
    flag("--eps", [4, 8, 16, 32, 64], "change of a pixel, in 1/255", type=POSITIVE, nargs="*")
    flag("--attack_steps", 10, "steps of pgd", type=COUNT)
    flag("--attack_step_size", None, "in 1/255; without it, 2.5 eps / steps", type=POSITIVE)
    flag("--attack_prefix", None, "timesteps of the attacked prediction; else all", type=COUNT)
    flag("--attack_surrogate", ["own", "atan:1", "atan:4", "triangle:1"], "gradients of attackers: "
         "own (the network's) or name:alpha; the worst counts", nargs="+", type=surrogate)


def fisher_flags(parser):
    flag = parser.group("Fisher information")
    flag("--fisher_epochs", ["20", "120", "300"], "when to measure (0: before training)", **EPOCHS)
    flag("--fisher_split", ["train"], "of the samples", nargs="+", choices=["train", "test"])
    flag("--fisher_labels", ["data"], "data: empirical Fisher; model: true Fisher, labels drawn; "
         "exact: true Fisher, over all labels", nargs="+", choices=["data", "model", "exact"])
    flag("--fisher_prefix", "cumulative", "predict by outputs 1..t, or by t", choices=PREFIXES)
    flag("--fisher_estimator", "exact", "release: the paper's code", choices=["exact", "release"])
    flag("--checkpoints", None, "measure these models or run folders, with their flags; train "
         "nothing", nargs="+", type=checkpoint_file)


def sample_flags(parser):
    flag = parser.group("measured samples")
    flag("--fisher_samples", 512, "how many, the same at all epochs", type=number(int, 2))
    flag("--fisher_batch", None, "samples in one pass; release: in one mean (16)", type=COUNT)


def pruning_flags(parser):
    flag = parser.group("pruning")
    flag("--search_timestep", ["full", "fisher", "kl"], "see above", nargs="+", type=search_rule)
    flag("--rounds", 14, "times that weights are pruned", type=COUNT)
    flag("--final_rounds", None, "train with all timesteps after these", nargs="+", type=COUNT)
    flag("--prune_rate", 0.25, "share of the kept weights that a round prunes", type=SHARE)
    flag("--rewind_epoch", 10, "weights that remain go back to it", type=number(int, 0))
    flag("--information_share", 0.9, "fisher: share of sum_t I_t that a search covers", type=SHARE)
# fmt: on


GROUPS = {
    "train_snn": [shared_flags, training_flags],
    "train_snn_fisherinfo": [shared_flags, training_flags, fisher_flags, sample_flags],
    "prune_snn": [shared_flags, training_flags, pruning_flags, sample_flags],
    "eval_snn_robustness": [shared_flags, robustness_flags],
}


def make_parser(script, description=None):
    """The parser of a script: the groups of flags that it reads."""
    parser = Parser(script, description)
    for add_flags in GROUPS[script]:
        add_flags(parser)
    return parser


# ---------------------------------------------------------------- putting settings together


def parse(script, argv=None, description=None):
    """Settings of a run of `script`, checked, from the command line or the list `argv`. Raises
    BadInput."""
    parser = make_parser(script, description)
    typed = parser.typed(argv)
    saved = saved_flags(typed["checkpoints"][0]) if "checkpoints" in typed else {}
    if script == "eval_snn_robustness":
        saved.pop("seed", None)  # the attack has its own
    args = merge(script, parser.defaults, saved, typed)
    record = Path(args.out_dir) / run_name(args) / ARGS_FILE
    resumed = args.resume and record.exists()
    if resumed:
        saved = flags_of_run(record, script)
        args = merge(script, parser.defaults, saved, typed)
    user_code.check_named(vars(args), typed, record if resumed else "the checkpoint")
    if script != "eval_snn_robustness":
        fill_in(args, typed)
    check(args, typed, parser)
    if resumed:
        check_same(args, typed, typed.keys() - lengthened(args, saved), record, saved)
    elif args.resume and rank() == 0:
        print(f"warning: no run {record.parent} to --resume: a new one starts", file=sys.stderr)
    if args.dry_run and script != "eval_snn_robustness":
        shorten(args)
    return args


def merge(script, defaults, saved, typed):
    """The settings: typed before saved flags, these before the recipe, this before the defaults."""
    recipe = RECIPES.get((defaults | saved | typed)["dataset"], {})
    known = {name: value for name, value in recipe.items() if name in defaults}
    return Namespace(**defaults | known | saved | typed, script=script)


def run_name(args):
    """Name of the run folder. Without --exp_name it has every flag that differs from the recipe."""
    if args.exp_name:
        return args.exp_name
    if args.script == "eval_snn_robustness":
        return f"{Path(args.checkpoints[0]).resolve().parent.name}_robustness"
    settings = Namespace(**vars(args))
    fill_in(settings, {})
    changes = changed_words(vars(settings), usual_flags(args), NOT_IN_CHANGES)
    changed = "".join(f"_{word}" for word in changes)[:LONGEST_CHANGES]
    start = f"{as_word(args.dataset)}_{as_word(args.arch)}_T{args.timestep}"
    name = f"{start}{changed}_seed{args.seed}"
    if args.script == "prune_snn":
        return f"{name}_pruning"
    return f"{name}_checkpoints" if vars(args).get("checkpoints") else name


def usual_flags(args):
    """The flags of a run that the command line does not change, given the others."""
    recipe = merge(args.script, make_parser(args.script).defaults, {}, {"dataset": args.dataset})
    derived = {name: value for name, value in vars(recipe).items() if name in FILLED_IN}
    filled = Namespace(**vars(args) | derived)
    fill_in(filled, {})
    return vars(recipe) | {name: getattr(filled, name) for name in derived}


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


def fill_in(args, typed):
    """Set what depends on other flags."""
    if args.noisetype and not args.noise_level:
        args.noise_level = {"gaussian_noise": 0.1, "blur": 1.0}[args.noisetype]
    if args.loss == "prefix":
        args.prefix_time = sorted(args.prefix_time or range(1, max(2, args.timestep // 2 + 1)))
    if args.script == "prune_snn":
        args.final_rounds = sorted(args.final_rounds or [args.rounds])
        if "rewind_epoch" not in typed:  # a recipe's, made for a longer run
            args.rewind_epoch = min(args.rewind_epoch, args.epochs - 1)


def shorten(args):
    """Set what a dry run has less of."""
    args.epochs = 2
    if args.script == "prune_snn":
        args.rounds, args.final_rounds, args.rewind_epoch = 1, [1], 1
    if vars(args).get("fisher_estimator") == "release":  # there are two batches
        args.fisher_batch = min(args.fisher_batch or args.batch_size, args.batch_size)
