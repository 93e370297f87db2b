"""The flags of every script, in groups, with a recipe per data set.

`parse("train_snn")` returns the settings of a run. A value comes from the first of these that has
it: the command line; the resumed run, or the first of --checkpoints; the recipe of the data set;
the defaults, which are the recipe of the AAAI 2023 release as its code runs. Bad input raises
BadInput. `utils.run_script` turns it into one line on stderr and status 2.
"""

import math
import re
import sys
from argparse import Namespace
from pathlib import Path

import user_code
from archs import ARCHS
from archs.layers import NORMS
from archs.neuron import RESETS, SURROGATES
from attacks import METHODS
from checks import START_FLAGS, check, check_same, flags_of_run, is_longer, saved_flags
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
# These flags are at the ends of a run's default name, or not in it: --resume may change --epochs.
NOT_IN_CHANGES = START_FLAGS | {
    "dataset", "arch", "timestep", "seed", "epochs", "data_dir", "checkpoints"}
LONGEST_CHANGES = 150  # characters; a file system allows 255 in a name

# ---------------------------------------------------------------- the flags: name, default, help
EPOCHS = {"nargs": "+", "type": epochs_entry, "metavar": "E"}
TIMES = {"nargs": "+", "type": COUNT, "metavar": "t"}
RULES = ["full", "fisher", "kl", "one_shot"]


def surrogate(text):
    """An argparse type: own, or the name of a surrogate gradient, as in atan or atan:0.5."""
    name, colon, alpha = text.lower().partition(":")
    one_of(SURROGATES if colon else ["own", *SURROGATES])(name)
    if colon:
        POSITIVE(alpha)
    return text.lower()


def search_rule(text):
    """An argparse type: a number of timesteps, or the name of a rule."""
    return str(COUNT(text)) if text.isdigit() else one_of(RULES)(text)


def shared_flags(parser):
    flag = parser.group("data")
    flag("--dataset", "cifar10", "digits, planted and fake need no file", choices=DATASETS,
         code=True)
    flag("--data_dir", "data", "folder of torchvision's data sets; missing ones are downloaded")
    flag("--data_file", None, "x_train, y_train, x_test, y_test as .npz", needs="--dataset npz")
    flag("--fake_shape", [3, 32, 32], "[T] C H W", nargs="+", type=COUNT, needs="--dataset fake")
    flag("--planted_time", [1], "timesteps that show the class", needs="--dataset planted", **TIMES)
    flag("--frames", None, "timesteps of the frames in the data set; the network sees the first T; "
         "without it, T", type=COUNT)
    flag("--datanum", None, "number of training samples; without it, all", type=number(int, 2))
    flag("--label_corrupt_prob", 0.0, "share of random training labels", type=SHARE)
    flag("--encode", "d", "d: the image at every timestep; p: Poisson spikes", choices=["d", "p"])
    flag("--standardise", None, "subtract the channel's mean, divide by its std; without it, both "
         "for images, std for frames", choices=["mean_std", "std", "none"], needs="--encode d")
    flag("--noisetime", [], "corrupt only these timesteps, from 1; without it, all", **TIMES)
    flag("--batch_size", 128, "samples in a batch", type=number(int, 2))

    flag = parser.group("network")
    flag("--arch", "resnet19", "the network", choices=ARCHS, code=True)
    flag("--width", 1.0, "factor on the number of channels", type=POSITIVE)
    flag("--layernum", 2, "layers, with the read-out", type=number(int, 2), needs="--arch fc")
    flag("--timestep", 10, "T, the timesteps of one input", type=COUNT)
    flag("--norm", "step", "step: BatchNorm statistics of each timestep; folded: of all together",
         choices=NORMS)
    flag("--tau", 2.0, "membrane time constant, in timesteps; inf: the IF neuron",
         type=number(float, 1, math.inf, above=True))
    flag("--threshold", 1.0, "firing threshold", type=POSITIVE)
    flag("--reset", "hard", "hard: a spike sets the membrane to 0; soft: subtracts the threshold",
         choices=RESETS)
    flag("--surrogate", "atan", "replaces the derivative of a spike", choices=SURROGATES)
    flag("--surrogate_alpha", None, "slope of the surrogate; without it, peak 1", type=POSITIVE)
    flag("--undecayed_input", False, "do not divide the input by tau: h = v (1 - 1/tau) + x")
    flag("--undetached_reset", False, "let the gradient flow through the reset, too")
    flag("--detach_membrane", False, "stop the gradient between timesteps; --checkpoints does not "
         "take it over")

    flag = parser.group("run")
    flag("--out_dir", "runs", "folder of the run folders")
    flag("--exp_name", None, "name of the run folder; without it, made of data set, arch, T, "
         "changed flags and seed")
    flag("--resume", False, "go on with the run of that name and its flags")
    flag("--seed", 0, "seed of all random numbers", type=number(int, 0))
    flag("--device", "auto", "auto, cpu, cuda, cuda:1, mps, ...")


def training_flags(parser):
    flag = parser.group("training")
    flag("--epochs", 300, "passes over the training set; a resumed training may get more",
         type=COUNT)
    flag("--optimizer", "sgd", "the optimizer", choices=["sgd", "adam", "adamw"])
    flag("--learning_rate --lr", 0.3, "peak learning rate", type=POSITIVE)
    flag("--momentum", 0.9, "momentum", type=SHARE, needs="--optimizer sgd")
    flag("--dampening", 5e-4, "dampening", type=SHARE, needs="--optimizer sgd")
    flag("--weight_decay", 0.0, "weight decay of all parameters", type=number(float, 0))
    flag("--scheduler", "cosine", "schedule of the learning rate",
         choices=["cosine", "step", "none"])
    flag("--lr_step", 100, "epochs between drops", type=COUNT, needs="--scheduler step")
    flag("--lr_gamma", 0.1, "factor of a drop", type=SHARE, needs="--scheduler step")
    flag("--warmup_epochs", 0, "epochs in which the learning rate rises", type=number(int, 0))
    flag("--no_augment", False, "train without random crops and flips")
    flag("--test_samples", None, "validate with so many; without it, with all", type=COUNT)
    flag("--amp", None, "train in bfloat16; slow on CPUs without bf16 instructions", nargs="?",
         const="bf16", choices=["bf16"])
    flag("--compile", False, "compile the neurons; the start takes half a minute longer")
    flag("--checkpoint_activations", False, "store only inputs of blocks: less memory, more time")
    flag("--init", None, "start with the weights of this checkpoint or run folder",
         type=checkpoint_file)
    flag("--save_epochs", ["every:20"], "keep checkpoints of these epochs, or every:k", **EPOCHS)

    flag = parser.group("corruption of inputs")
    flag("--noisetype", None, "kind of corruption", choices=["gaussian_noise", "blur"])
    flag("--noise_level", None, "standard deviation; without it, 0.1 for noise, 1 pixel for blur",
         type=POSITIVE, needs="--noisetype")
    flag("--freqlevel", None, "keep only low or high spatial frequencies", choices=["low", "high"])
    flag("--freq_radius", 4.0, "border of low and high, in cycles per image", type=POSITIVE,
         needs="--freqlevel")

    flag = parser.group("loss")
    flag("--loss", "ce", "the loss, see losses.py", choices=LOSSES)
    flag("--label_smoothing", 0.0, "share of a label that goes to all classes", type=SHARE)
    flag("--lossskiptime", [], "ignore the outputs at these timesteps, from 1", **TIMES)
    flag("--loss_threshold", None, "flooding: |loss - B| + B", type=number(float, 0), metavar="B")
    flag("--tet_lambda", 0.05, "weight of (output - 1)^2", type=SHARE, needs="--loss tet")
    flag("--prefix_time", None, "early prefixes; default 1 to T/2", needs="--loss prefix", **TIMES)
    flag("--prefix_weight", 0.5, "weight of early prefixes", type=SHARE, needs="--loss prefix")
    flag("--target_ic", None, "target for the centroid of R_t", type=number(float, 1),
         needs="--loss centroid")

    flag = parser.group("attack")
    flag("--adv_train", False, "train on attacked inputs")
    flag("--attack_method", "pgd", "the attack", choices=METHODS, needs="--adv_train")
    flag("--eps", 8, "largest change of a pixel, in 1/255", type=POSITIVE, needs="--adv_train")
    flag("--attack_steps", 10, "steps of pgd", type=COUNT, needs="--adv_train")
    flag("--attack_step_size", None, "step of pgd, in 1/255; without it, 2.5 eps / steps",
         type=POSITIVE, needs="--adv_train")
    flag("--attack_prefix", None, "attack the prediction after so many timesteps; without it, all",
         type=COUNT, needs="--adv_train")


def robustness_flags(parser):
    flag = parser.group("evaluation")
    flag("--checkpoints", None, "checkpoints or run folders, with their flags", nargs="+",
         required=True, type=checkpoint_file)
    flag("--robust_samples", 512, "number of test samples, the same for all", type=number(int, 2))
    flag("--noise_levels", [0.05, 0.1, 0.2, 0.4], "standard deviations of the noise",
         nargs="*", type=POSITIVE)
    flag("--blur_levels", [0.5, 1.0, 2.0], "standard deviations of the blur, in pixels",
         nargs="*", type=POSITIVE)
    flag("--attack_method", list(METHODS), "the attacks", choices=METHODS, nargs="*")
    flag("--eps", [4, 8, 16, 32, 64], "changes of a pixel, in 1/255", type=POSITIVE, nargs="*")
    flag("--attack_steps", 10, "steps of pgd", type=COUNT)
    flag("--attack_step_size", None, "of pgd, in 1/255; default 2.5 eps / steps", type=POSITIVE)
    flag("--attack_prefix", None, "attack the prediction after so many timesteps; without it, all",
         type=COUNT)
    flag("--attack_surrogate", ["own", "atan:1", "atan:4", "triangle:1"], "gradients of attackers: "
         "own (the network's) or name:alpha; a sample must be right under all", nargs="+",
         type=surrogate)


def fisher_flags(parser):
    flag = parser.group("Fisher information")
    flag("--fisher_epochs", ["20", "120", "300"], "when to measure (0: before training)", **EPOCHS)
    flag("--fisher_split", ["train"], "samples to measure", nargs="+", choices=["train", "test"])
    flag("--fisher_labels", ["data"], "data: empirical Fisher; model: true Fisher, labels drawn; "
         "exact: true Fisher, over all labels", nargs="+", choices=["data", "model", "exact"])
    flag("--fisher_prefix", "cumulative", "predict by the mean of outputs 1..t, or by output t",
         choices=PREFIXES)
    flag("--fisher_estimator", "exact", "release: square the gradient of a mean, as its code does",
         choices=["exact", "release"])
    flag("--checkpoints", None, "measure these checkpoints or run folders, with their flags, "
         "without training", nargs="+", type=checkpoint_file)


def sample_flags(parser):
    flag = parser.group("measured samples")
    flag("--fisher_samples", 512, "number of samples, the same at all epochs", type=number(int, 2))
    flag("--fisher_batch", None, "samples in one pass; with release, samples in one mean (16)",
         type=COUNT)


def pruning_flags(parser):
    flag = parser.group("pruning")
    flag("--search_timestep", ["full", "fisher", "kl"], "timesteps of the searches, see above",
         nargs="+", type=search_rule)
    flag("--rounds", 14, "number of pruning rounds", type=COUNT)
    flag("--final_rounds", None, "train with all T after these; default the last one", nargs="+",
         type=COUNT)
    flag("--prune_rate", 0.25, "share of the kept weights that a round prunes, below 1",
         type=number(float, 0, 0.999))
    flag("--rewind_epoch", 10, "kept weights go back to this epoch", type=number(int, 0))
    flag("--information_share", 0.9, "fisher: share of sum_t I_t to reach", type=SHARE)
# fmt: on


GROUPS = {
    "train_snn": [shared_flags, training_flags],
    "train_snn_fisherinfo": [shared_flags, training_flags, fisher_flags, sample_flags],
    "prune_snn": [shared_flags, training_flags, pruning_flags, sample_flags],
    "eval_snn_robustness": [shared_flags, robustness_flags],
}


def make_parser(script, description=None):
    """The parser of a script, with its groups of flags."""
    parser = Parser(script, description)
    for add_flags in GROUPS[script]:
        add_flags(parser)
    return parser


# ---------------------------------------------------------------- putting settings together


def parse(script, argv=None, description=None):
    """The checked settings of a run of `script`, from the command line or the list `argv`. Raises
    BadInput."""
    parser = make_parser(script, description)
    typed = parser.typed(argv)
    of_checkpoint = saved_flags(typed["checkpoints"][0]) if "checkpoints" in typed else {}
    if script == "eval_snn_robustness":
        of_checkpoint.pop("seed", None)  # the attack has its own
    args = merge(script, parser.defaults, of_checkpoint, typed)
    usual = vars(merge(script, parser.defaults, {}, {"dataset": args.dataset}))
    exp_name = args.exp_name or default_name(args, typed, usual)
    record = Path(args.out_dir) / exp_name / ARGS_FILE
    resumed = args.resume and record.exists()
    if resumed:
        of_run = flags_of_run(record, script)
        args = merge(script, parser.defaults, of_run, typed)
    args.exp_name = exp_name
    user_code.check_named(vars(args), typed, record if resumed else "the checkpoint")
    if script != "eval_snn_robustness":
        fill_in(args, typed)
    check(args, typed, parser)
    if resumed:
        fixed = set(typed)
        if is_longer(args, of_run):
            fixed.discard("epochs")
        check_same(args, typed, fixed, record, of_run)
    elif args.resume and rank() == 0:
        print(f"warning: there is no run {record.parent}: a new one starts", file=sys.stderr)
    return args


def merge(script, defaults, saved, typed):
    """The settings. Typed flags go before saved ones, then come the recipe and the defaults."""
    recipe = RECIPES.get((defaults | saved | typed)["dataset"], {})
    known = {name: value for name, value in recipe.items() if name in defaults}
    return Namespace(**defaults | known | saved | typed, script=script)


def default_name(args, typed, usual):
    """The default name of a run: data set, network, T, the typed flags that differ from the `usual`
    ones, and seed. With --checkpoints it starts with the folder of the first."""
    changed = ""
    for name, value in sorted(typed.items()):
        if name in NOT_IN_CHANGES or value == usual[name]:
            continue
        joint = "" if isinstance(value, int | float) else "-"
        changed += f"_{name}" if value is True else f"_{name}{joint}{as_word(value)}"
    changed = changed[:LONGEST_CHANGES]
    if "checkpoints" in typed:
        folder = Path(typed["checkpoints"][0]).resolve().parent.name
        kind = "robustness" if args.script == "eval_snn_robustness" else "checkpoints"
        return f"{folder}{changed}_{kind}"
    name = f"{as_word(args.dataset)}_{as_word(args.arch)}_T{args.timestep}{changed}_seed{args.seed}"
    return f"{name}_pruning" if args.script == "prune_snn" else name


def as_word(value):
    """A value of a flag, with only the characters that a file name may have."""
    values = value if isinstance(value, list) else [value]
    texts = [f"{v:g}" if isinstance(v, float) else Path(str(v)).name for v in values]
    return re.sub(r"[^\w.+-]", "-", "-".join(texts))


def fill_in(args, typed):
    """Set the flags that depend on other flags."""
    if args.noisetype and not args.noise_level:
        args.noise_level = {"gaussian_noise": 0.1, "blur": 1.0}[args.noisetype]
    if args.loss == "prefix":
        args.prefix_time = sorted(args.prefix_time or range(1, max(2, args.timestep // 2 + 1)))
    if args.script == "prune_snn":
        args.final_rounds = sorted(args.final_rounds or [args.rounds])
        if "rewind_epoch" not in typed:  # a recipe has it for a longer run
            args.rewind_epoch = min(args.rewind_epoch, args.epochs - 1)
