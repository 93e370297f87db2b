"""Every flag of the scripts, in one parser: grouped, checked, with a recipe per data set.

`parse("train_snn")` returns the settings of a run. Where a value is not given on the command line it comes from, in
this order: the run that `--resume` goes on with (or the checkpoint that `--checkpoints` measures), the recipe of the
data set, the recipe of the AAAI 2023 release. Bad input ends the process with one line on stderr and exit status 2.
"""

import argparse
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
from utils import ARGS_FILE, BadInput, load_checkpoint, read_record

# Over the release's recipe, which is the parser's defaults. Any flag on the command line overrides both.
RECIPES = {
    "digits": dict(
        arch="vgg5", width=0.25, timestep=8, epochs=30, batch_size=64, learning_rate=0.1, save_epochs=["every:10"],
        fisher_samples=256, fisher_epochs=["0", "1", "2", "3", "5", "8", "12", "20", "30"], rewind_epoch=2,
    ),
    "planted": dict(
        arch="vgg5", width=0.25, timestep=8, epochs=20, batch_size=64, learning_rate=0.1, save_epochs=["every:10"],
        fisher_samples=256, fisher_epochs=["0", "1", "2", "3", "5", "8", "12", "20"], rewind_epoch=2,
    ),
    "fashion_mnist": dict(
        arch="vgg5", width=0.25, timestep=8, epochs=10, learning_rate=0.1, save_epochs=["every:5"],
        fisher_epochs=["0", "1", "2", "5", "10"], rewind_epoch=1,
    ),
}  # fmt: skip
# A flag that only some settings of another flag read: given without them, it would do nothing, so it is refused.
ONLY_WITH = {
    "layernum": ("arch", {"fc"}),
    "data_file": ("dataset", {"npz"}),
    "no_augment": ("dataset", {name for name, (pad, flip) in AUGMENT.items() if pad or flip}),
    "fake_shape": ("dataset", {"fake"}),
    "planted_time": ("dataset", {"planted"}),
    "noise_level": ("noisetype", {"gaussian_noise", "blur"}),
    "freq_radius": ("freqlevel", {"low", "high"}),
    "data_dir": ("dataset", {"cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "folder"}),
    "image_size": ("dataset", {"folder"}),
    "workers": ("dataset", {"folder"}),
    "momentum": ("optimizer", {"sgd"}),
    "lr_step": ("scheduler", {"step"}),
    "lr_gamma": ("scheduler", {"step"}),
    "tet_lambda": ("loss", {"tet"}),
    "prefix_time": ("loss", {"prefix"}),
    "prefix_weight": ("loss", {"prefix"}),
    "target_ic": ("loss", {"centroid"}),
    "loss_threshold": ("loss", {"ce", "tet", "prefix"}),
    **dict.fromkeys(("attack_method", "eps", "attack_prefix"), ("adv_train", {True})),
}
# Of an attack in several steps alone.
PGD_FLAGS = {"attack_steps", "attack_step_size", "attack_restarts", "no_random_start"}
# What belongs to one start of a script and not to the run; --data_dir and --data_file are the run's, but may change.
PLACES = {"resume", "dry_run", "device", "out_dir", "exp_name", "workers"}
# What a checkpoint knows of the model and the data it was trained on; --checkpoints takes these from it.
INPUT_FLAGS = {"dataset", "data_file", "image_size", "fake_shape", "planted_time", "encode", "timestep"}
MODEL_FLAGS = INPUT_FLAGS | {
    "datanum", "label_corrupt_prob", "arch", "width", "layernum", "norm", "tau", "threshold", "reset", "surrogate",
    "surrogate_alpha", "undecayed_input", "undetached_reset", "seed",
}  # fmt: skip
# With --checkpoints nothing is trained: these would do nothing, so they are refused.
TRAINING_FLAGS = {
    "epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "scheduler", "lr_step",
    "lr_gamma", "warmup_epochs", "label_smoothing", "amp", "compile", "checkpoint_activations", "no_augment",
    "init", "save_epochs", "test_samples", "fisher_epochs", "loss", "lossskiptime", "loss_threshold", "tet_lambda",
    "prefix_time", "prefix_weight", "target_ic", "adv_train",
}  # fmt: skip
# What a script does not read: it corrupts by its own flags, at several strengths; it runs fewer timesteps than T.
UNUSED_FLAGS = {
    "eval_snn_robustness": TRAINING_FLAGS | {"detach_membrane", "noisetype", "noise_level", "freqlevel", "freq_radius"},
    "prune_snn": {"noisetime", "lossskiptime", "prefix_time", "prefix_weight", "target_ic", "attack_prefix", "init",
                  "fisher_epochs", "fisher_split", "fisher_labels", "fisher_estimator", "fisher_prefix", "checkpoints"},
}  # fmt: skip

OF_ONE_SCRIPT = ("robust_samples", "search_timestep")  # tell a run of eval_snn_robustness.py, of prune_snn.py


def number(kind, low, high=math.inf, open_low=False):
    """An argparse type: an int or float in [low, high], without `low` itself if `open_low`. An int has 31 bits."""

    def convert(text):
        value = kind(text)
        if kind is int and value >= 2**31:
            raise argparse.ArgumentTypeError(f"must be at most {2**31 - 1}, not {text}")
        if not (math.isfinite(value) and (value > low if open_low else value >= low) and value <= high):
            bound = f"{'above' if open_low else 'at least'} {low}" + f" and at most {high}" * math.isfinite(high)
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in «invalid int value»
    return convert


def epoch_list(text):
    """An argparse type: one entry of a list of epochs, a number or every:k."""
    if not re.fullmatch(r"\d+|every:[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither an epoch nor every:k")
    return text


def expand_epochs(entries, last):
    """["0", "every:10"] -> sorted epochs up to `last`. every:k ends with the last epoch, which also stands for any
    number past it (an entry of a recipe made for a longer run)."""
    epochs = set()
    for entry in entries:
        if entry.startswith("every:"):
            epochs.update(range(int(entry[6:]), last, int(entry[6:])), [last])
        else:
            epochs.add(min(int(entry), last))
    return sorted(epochs)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and flags that may be spelled with hyphens."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        args = [re.sub(r"^--[^=]+", lambda m: "--" + m[0][2:].replace("-", "_"), a) for a in args]
        return super().parse_known_args(args, namespace)


def surrogate(text):
    """An argparse type: a surrogate gradient of an attack."""
    if text != "own":
        try:
            parse_surrogate(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(error) from error
    return text


def search_rule(text):
    """An argparse type: how many timesteps a search runs."""
    if text in ("full", "fisher", "kl", "one_shot") or (text.isdigit() and int(text) > 0):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither full, fisher, kl, one_shot nor a number of timesteps")


def make_parser(script, description=None):
    robustness = script == "eval_snn_robustness"
    unused = UNUSED_FLAGS.get(script, ())
    parser = Parser(
        prog=f"{script}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Defaults are the recipe of the release; digits, planted, fashion_mnist have their own, in config.py.",
    )

    def group(title):
        add = parser.add_argument_group(title).add_argument

        def flag(name, *names, help, **kw):
            shown = kw.get("default") not in (None, []) and kw.get("action") is None
            value = " ".join(map(str, kw["default"])) if isinstance(kw.get("default"), list) else kw.get("default")
            help = argparse.SUPPRESS if name[2:] in unused else help + (f" (default {value})" if shown else "")
            add(name, *names, help=help, **kw)

        return flag

    # fmt: off
    flag = group("data")
    flag("--dataset", choices=DATASETS, default="cifar10", help="data set; digits, planted and fake need no file")
    flag("--data_dir", default="data", help="where torchvision's data sets are, or are downloaded to; for --dataset "
         "folder, where train/<class>/<image> and val/<class>/<image> are")
    flag("--data_file", metavar="X.NPZ", help="file of --dataset npz: arrays x_train, y_train, x_test, y_test")
    flag("--image_size", type=number(int, 8), default=224, metavar="S",
         help="images of --dataset folder are scaled and cut to S x S")
    flag("--workers", type=number(int, 0), default=4, help="processes that decode the images of --dataset folder")
    flag("--fake_shape", nargs="+", type=number(int, 1), default=[3, 32, 32], metavar="D",
         help="shape of an input of --dataset fake: C H W, or T C H W for frames")
    flag("--planted_time", nargs="+", type=number(int, 1), default=[1], metavar="t",
         help="timesteps, counted from 1, at which the class shows in --dataset planted; elsewhere there is noise")
    flag("--datanum", type=number(int, 2), metavar="N", help="train on N samples only; without it, all")
    flag("--label_corrupt_prob", type=number(float, 0, 1), default=0.0, metavar="P",
         help="replace this share of the training labels by random ones")
    flag("--encode", choices=["d", "p"], default="d",
         help="d: the image itself at every timestep; p: Poisson, a spike with the pixel's value as probability")
    flag("--noisetype", choices=["gaussian_noise", "blur"],
         help="corrupt inputs, in training, validation and measurement")
    flag("--noise_level", type=number(float, 0, open_low=True), metavar="S",
         help="standard deviation of the noise, of pixels in [0, 1] (without it, 0.1), or of the blur, in pixels (1)")
    flag("--freqlevel", choices=["low", "high"], help="keep the low or the high spatial frequencies of inputs alone")
    flag("--freq_radius", type=number(float, 0), default=4.0, metavar="R",
         help="in cycles an image, where low frequencies end")
    flag("--noisetime", nargs="+", type=number(int, 1), default=[], metavar="t",
         help="timesteps, counted from 1, of --noisetype and --freqlevel; without it, all")
    flag("--no_augment", action="store_true", help="train without random crops and flips")

    flag = group("model")
    flag("--arch", choices=archs.ARCHS, default="resnet19", help="network")
    flag("--width", type=number(float, 0, 64, open_low=True), default=1.0, help="factor on the number of channels")
    flag("--layernum", type=number(int, 2), default=2, help="linear layers of --arch fc, the read-out included")
    flag("--timestep", type=number(int, 1), default=10, metavar="T", help="timesteps of one input")
    flag("--norm", choices=NORMS, default="step",
         help="BatchNorm statistics of each timestep, or of all timesteps together")
    flag("--tau", type=number(float, 1, open_low=True), default=2.0, help="membrane time constant, in timesteps")
    flag("--threshold", type=number(float, 0, open_low=True), default=1.0, help="firing threshold")
    flag("--reset", choices=RESETS, default="hard", help="after a spike: membrane to 0, or lowered by the threshold")
    flag("--surrogate", choices=SURROGATES, default="atan", help="what stands in for the derivative of the step")
    flag("--surrogate_alpha", type=number(float, 0, open_low=True), metavar="A",
         help="slope of the surrogate; without it, the one at which its peak is 1 (atan: 2)")
    flag("--undecayed_input", action="store_true", help="the input is not divided by tau: h = v (1 - 1/tau) + x")
    flag("--undetached_reset", action="store_true", help="let the gradient flow through the reset too")
    flag("--detach_membrane", action="store_true",
         help="let no gradient flow through the membrane from one timestep to another, in training and measurement; a "
              "saved model is measured as this command line says")
    flag("--init", metavar="CKPT", help="start from these weights: a checkpoint of this project or of the release")

    flag = group("training")
    flag("--epochs", type=number(int, 1), default=300, help="passes over the training set")
    flag("--batch_size", type=number(int, 2), default=128, help="samples a step")
    flag("--optimizer", choices=["sgd", "adam", "adamw"], default="sgd", help="optimizer")
    flag("--learning_rate", "--lr", type=number(float, 0, open_low=True), default=0.3, help="peak learning rate")
    flag("--momentum", type=number(float, 0, 1), default=0.9, help="momentum of sgd")
    flag("--weight_decay", type=number(float, 0), default=5e-4, help="weight decay")
    flag("--scheduler", choices=["cosine", "step", "none"], default="cosine",
         help="learning rate by epoch: cosine to 0, times --lr_gamma every --lr_step epochs, or constant")
    flag("--lr_step", type=number(int, 1), default=100, help="epochs between drops of --scheduler step")
    flag("--lr_gamma", type=number(float, 0, 1), default=0.1, help="factor of each drop of --scheduler step")
    flag("--warmup_epochs", type=number(int, 0), default=0, help="epochs of linear warm-up")
    flag("--label_smoothing", type=number(float, 0, 1), default=0.0, help="label smoothing of the training loss")
    flag("--loss", choices=LOSSES, default="ce",
         help="ce: cross-entropy of the mean output; tet: mean cross-entropy of each output; prefix: cross-entropy of "
              "early prefixes too; centroid: steer the squared residuals to --target_ic; formulas in losses.py")
    flag("--tet_lambda", type=number(float, 0, 1), default=0.05, metavar="L",
         help="weight of the squared distance of outputs from 1 in --loss tet")
    flag("--prefix_time", nargs="+", type=number(int, 1), metavar="t",
         help="prefixes of --loss prefix; without it, 1 to T/2")
    flag("--prefix_weight", type=number(float, 0, 1), default=0.5, metavar="W", help="their weight")
    flag("--target_ic", type=number(float, 1), metavar="C", help="centroid that --loss centroid steers to")
    flag("--lossskiptime", nargs="+", type=number(int, 1), default=[], metavar="t",
         help="leave the outputs of these timesteps, counted from 1, out of the loss")
    flag("--loss_threshold", type=number(float, 0), metavar="B",
         help="flooding: |loss - B| + B in the place of each cross-entropy; of --loss prefix, of the prefixes alone")
    flag("--test_samples", type=number(int, 1), metavar="N",
         help="validate after each epoch on so many test samples, the same for all seeds; where there are fewer, all")
    flag("--amp", choices=["bf16"], help="train with bfloat16 convolutions and activations; without it, float32; "
         "validation and Fisher information are float32 in both")
    flag("--compile", action="store_true",
         help="compile the neurons for training, half a minute or so at the start; needs a compiler, on a CPU of C++, "
              "on a GPU of C")
    flag("--checkpoint_activations", action="store_true",
         help="less memory for a second forward pass: a training step keeps the inputs of blocks only; for large T")
    flag("--seed", type=number(int, 0), default=0, help="seed of weights, order, augmentation, corruption, encoding")

    flag = group("attack")
    # What an evaluation takes a list of, training takes one of.
    several = {"nargs": "*"} if robustness else {}
    if not robustness:
        flag("--adv_train", action="store_true",
             help="train on adversarial inputs: each batch attacked with the weights of that moment")
    flag("--attack_method", choices=METHODS, default=list(METHODS) if robustness else "pgd", **several,
         help="fgsm: one step of eps; pgd: projected gradient descent")
    flag("--eps", type=number(float, 0, 255, open_low=True), default=[4, 8, 16, 32, 64] if robustness else 8,
         metavar="E", **several, help="most that an attack changes a pixel, in 1/255")
    flag("--attack_steps", type=number(int, 1), default=10, metavar="K", help="steps of pgd")
    flag("--attack_step_size", type=number(float, 0, 255, open_low=True), metavar="S",
         help="of pgd, in 1/255; without it, 2.5 eps / K")
    flag("--attack_restarts", type=number(int, 1), default=1, metavar="R", help="starts of pgd; the best counts")
    flag("--no_random_start", action="store_true", help="pgd starts at the input itself")
    flag("--attack_prefix", type=number(int, 1), metavar="t",
         help="attack the prediction after t timesteps; without it, after all")
    if robustness:
        flag("--attack_surrogate", nargs="+", type=surrogate, metavar="S",
             default=["own", "atan:1", "atan:4", "triangle:1"],
             help="surrogate gradients of the attackers, of which the worst counts: own (the network's), or name:alpha")
        flag = group("robustness")
        flag("--checkpoints", nargs="+", metavar="CKPT", help="the trained networks; their flags are taken from them")
        flag("--robust_samples", type=number(int, 2), default=512, metavar="N",
             help="test samples, the same for all; where there are fewer, all")
        flag("--noise_levels", nargs="*", type=number(float, 0, open_low=True), default=[0.05, 0.1, 0.2, 0.4],
             metavar="S", help="standard deviations of Gaussian noise, of pixels in [0, 1]")
        flag("--blur_levels", nargs="*", type=number(float, 0, open_low=True), default=[0.5, 1.0, 2.0], metavar="S",
             help="standard deviations of Gaussian blur, in pixels")

    if script == "prune_snn":
        flag = group("pruning")
        flag("--search_timestep", nargs="+", type=search_rule, default=["full", "fisher", "kl"], metavar="RULE",
             help="searches, by how many timesteps they run: full, a number, fisher, kl; or one_shot, without rounds")
        flag("--rounds", type=number(int, 1), default=14, metavar="R", help="times that weights are pruned")
        flag("--final_rounds", nargs="+", type=number(int, 1), metavar="r",
             help="train the networks after these rounds with all timesteps; without it, after the last")
        flag("--prune_rate", type=number(float, 0, 0.99, open_low=True), default=0.25, metavar="P",
             help="share of the kept weights that a round prunes")
        flag("--prune_by", choices=["magnitude", "fisher"], default="magnitude",
             help="|w|, or w^2 times its diagonal Fisher information after the timesteps of the search")
        flag("--prune_stem", action="store_true", help="prune the first layer too")
        flag("--rewind_epoch", type=number(int, 0), default=10, metavar="K",
             help="kept weights go back to those after K epochs of the first round; 0, to initialisation")
        flag("--no_rewind", action="store_true", help="kept weights stay as they are")
        flag("--information_share", type=number(float, 0, 1, open_low=True), default=0.9, metavar="Q",
             help="of --search_timestep fisher: share of sum_t I_t that the timesteps of the search reach")
        flag("--adapt", action="store_true", help="measure it after every round, not after the first alone")
    if script in ("train_snn_fisherinfo", "prune_snn"):
        flag = group("Fisher information")
        flag("--fisher_epochs", nargs="+", type=epoch_list, default=["20", "120", "300"], metavar="E",
             help="measure after these epochs (0: before training), or after every k-th and the last, every:k")
        flag("--fisher_samples", type=number(int, 2), default=512, metavar="N",
             help="samples measured, the same at all epochs")
        flag("--fisher_split", nargs="+", choices=["train", "test"], default=["train"],
             help="where they are from, unaugmented; both are measured if both are given")
        flag("--fisher_labels", nargs="+", choices=["data", "model", "exact"], default=["data"],
             help="data: empirical Fisher; model: true Fisher, labels drawn from the prediction; exact: true Fisher, "
                  "summed over the classes, as many times the work")
        flag("--fisher_prefix", choices=PREFIXES, default="cumulative",
             help="prediction of step t: of the mean of outputs 1..t, or of the output at t alone")
        flag("--fisher_estimator", choices=["exact", "release"], default="exact",
             help="exact: the norm of each sample's gradient, squared; release: of the mean gradient of each batch, "
                  "which the paper's released script prints; it shrinks with the batch")
        flag("--fisher_batch", type=number(int, 1), metavar="N",
             help="samples in one pass; without it, as many as fit; of --fisher_estimator release, in one mean: 128")
        flag("--checkpoints", nargs="+", metavar="CKPT",
             help="measure these saved models instead of training one; their own flags are taken from them")

    flag = group("run")
    flag("--out_dir", default="runs", help="where run folders are")
    flag("--exp_name", help="name of the run folder; without it, made of data set, arch, T and seed")
    flag("--resume", action="store_true", help="go on with that run from its checkpoint_latest.pt, with its flags")
    flag("--save_epochs", nargs="+", type=epoch_list, default=["every:20"], metavar="E",
         help="keep a checkpoint_EEEE.pt of these epochs, or every:k")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    flag("--dry_run", action="store_true", help="two steps of everything, in a temporary folder that is deleted")
    # fmt: on
    return parser


def parse(script, argv=None, description=None):
    """Settings of a run of `script` from the command line (or the list `argv`), checked. Exits with status 2 if bad."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser, unset = make_parser(script, description), object()
    defaults = vars(parser.parse_args([]))
    found = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, unset))))
    given = {name: value for name, value in found.items() if value is not unset}

    def settings(stored):
        recipe = RECIPES.get((defaults | stored | given)["dataset"], {})
        recipe = {name: value for name, value in recipe.items() if name in defaults}  # without flags of other scripts
        return argparse.Namespace(**defaults | recipe | stored | given)

    try:
        of_checkpoint = settings_of_checkpoint(settings({}))
        args = settings(of_checkpoint)  # which the folder's name is made of
        stored, source = stored_args(args, of_checkpoint)
        if stored.get("checkpoints") and "checkpoints" not in vars(args):
            raise BadInput(f"{source} is of a measurement of checkpoints, there is no training to go on with")
        if getattr(source, "name", "") == ARGS_FILE:
            measured = getattr(args, "checkpoints", None) and not stored.get("checkpoints")
            if measured or any(hasattr(args, name) != (name in stored) for name in OF_ONE_SCRIPT):
                raise BadInput(f"{source} is of another kind of run: name another --exp_name")
        for name in sorted(given.keys() & (stored.keys() - PLACES - {"data_dir", "data_file"})):
            if getattr(args, name) != stored[name]:
                raise BadInput(f"--{name} {getattr(args, name)} differs from {stored[name]}, fixed by {source}")
        args = settings({k: v for k, v in stored.items() if k in vars(args).keys() - PLACES})
        if given.keys() & UNUSED_FLAGS.get(script, set()):
            raise BadInput(f"--{min(given.keys() & UNUSED_FLAGS[script])} has no effect in {script}.py, see --help")
        check(args, given.keys())
        check_pruning(args, given.keys())
        check_checkpoints(args, given.keys())
        if args.dry_run:
            args.epochs = min(args.epochs, 2)
            if getattr(args, "fisher_estimator", "exact") == "release":
                args.fisher_batch = min(args.fisher_batch or args.batch_size, args.batch_size)  # there are two of these
            if script == "prune_snn":
                args.rewind_epoch, args.final_rounds = min(args.rewind_epoch, 1), [1]
    except BadInput as error:
        parser.error(str(error))
    return args


def run_name(args):
    """Name of the run folder."""
    kind = "_checkpoints" if getattr(args, "checkpoints", None) else ""
    if getattr(args, "robust_samples", None) and args.checkpoints and not args.exp_name:
        return f"{Path(args.checkpoints[0]).resolve().parent.name}_robustness"  # seeds and flags may be several
    kind = "_pruning" if hasattr(args, "search_timestep") else kind
    return args.exp_name or f"{args.dataset}_{args.arch}_T{args.timestep}_seed{args.seed}{kind}"


def settings_of_checkpoint(args):
    """Flags that the first of --checkpoints fixes, by name; {} if there is none."""
    if not getattr(args, "checkpoints", None):
        return {}
    saved = load_checkpoint(args.checkpoints[0]).get("args", {})  # the release's have none
    # Networks of several seeds are attacked alike: the seed is the attack's own.
    fixed = MODEL_FLAGS - {"seed"} if hasattr(args, "robust_samples") else MODEL_FLAGS
    return {k: v for k, v in saved.items() if k in fixed}


def stored_args(args, of_checkpoint):
    """Flags that an earlier run fixes, by name, and what fixes them: the resumed folder's or those of the first
    checkpoint."""
    path = Path(args.out_dir) / run_name(args) / ARGS_FILE
    if args.resume and path.exists():
        return read_record(path)["args"], path
    return of_checkpoint, (getattr(args, "checkpoints", None) or [None])[0]


def check_checkpoints(args, given):
    """Raise BadInput if --checkpoints were made with other settings than `args` has."""
    free = set() if args.datanum or args.label_corrupt_prob else {"seed"}  # else the seed chose their training data
    if hasattr(args, "robust_samples"):  # each network is built by its own flags
        free = MODEL_FLAGS - INPUT_FLAGS
    free |= given & {"data_file"}  # it may have been moved
    for path in getattr(args, "checkpoints", None) or ():
        saved = load_checkpoint(path).get("args", {})
        for name in sorted(MODEL_FLAGS & saved.keys() - free):
            if saved[name] != getattr(args, name):
                raise BadInput(f"{path} has --{name} {saved[name]}, not {getattr(args, name)}: measure it alone")


def check_corruption(args):
    """Raise BadInput for timesteps that cannot be corrupted, and set --noise_level where it is not given."""
    if args.noisetype:
        args.noise_level = args.noise_level or {"gaussian_noise": 0.1, "blur": 1.0}[args.noisetype]
    if hasattr(args, "noise_levels"):
        corrupts, by = args.noise_levels + args.blur_levels, "--noise_levels or --blur_levels"
    else:
        corrupts, by = args.noisetype or args.freqlevel, "--noisetype or --freqlevel"
    if args.noisetime and not corrupts:
        raise BadInput(f"--noisetime has an effect only with {by}")
    if args.freqlevel and (getattr(args, "adv_train", False) or args.encode == "p"):
        other = "--encode p" if args.encode == "p" else "--adv_train"
        raise BadInput(f"--freqlevel takes inputs out of [0, 1], which {other} needs: leave one of them out")


def check_attack(args, given):
    """Raise BadInput for an attack that cannot be."""
    alone = sorted(given & PGD_FLAGS)
    if alone and ("pgd" not in args.attack_method or not getattr(args, "adv_train", True)):
        need = "--attack_method pgd" if "pgd" not in args.attack_method else "--adv_train"
        raise BadInput(f"--{alone[0]} has an effect only with {need}")


def check_pruning(args, given):
    """Raise BadInput for a search that cannot be, and set --final_rounds where it is not given."""
    if not hasattr(args, "search_timestep"):
        return
    args.final_rounds = sorted(set(args.final_rounds or [args.rounds]))
    rules = set(args.search_timestep)
    numbers = [int(rule) for rule in rules if rule.isdigit()]
    if len(rules) < len(args.search_timestep):
        raise BadInput("--search_timestep names a search twice")
    if max(numbers, default=0) > args.timestep:
        raise BadInput(f"--search_timestep {max(numbers)} is past --timestep {args.timestep}")
    if args.final_rounds[-1] > args.rounds:
        raise BadInput(f"--final_rounds {args.final_rounds[-1]} is past --rounds {args.rounds}")
    if "rounds" in given and args.final_rounds[-1] < args.rounds:
        raise BadInput(
            f"--rounds {args.rounds} is past the last of --final_rounds, {args.final_rounds[-1]}: name it there"
        )
    if "rewind_epoch" not in given:  # a recipe's, made for a longer run
        args.rewind_epoch = 0 if args.no_rewind else min(args.rewind_epoch, args.epochs - 1)
    if args.rewind_epoch >= args.epochs:
        raise BadInput(f"--rewind_epoch {args.rewind_epoch} leaves nothing of --epochs {args.epochs}")
    if "kl" in rules and (args.timestep < 3 or args.epochs < 2):
        raise BadInput("--search_timestep kl looks at 3 timesteps or more, after 2 epochs")
    if args.loss in ("prefix", "centroid"):
        raise BadInput(f"--loss {args.loss} is about T timesteps; a search runs fewer")
    if args.no_rewind and "rewind_epoch" in given:
        raise BadInput("--rewind_epoch has no effect with --no_rewind")
    if "fisher" not in rules and given & {"information_share", "adapt"}:
        flag = min(given & {"information_share", "adapt"})
        raise BadInput(f"--{flag} has an effect only with --search_timestep fisher")


def check_loss(args):
    """Raise BadInput for timesteps that the loss cannot use, and set --prefix_time where it is not given."""
    if args.loss == "centroid" and not 1 <= (args.target_ic or 0) <= args.timestep:
        raise BadInput(f"--loss centroid needs --target_ic from 1 to {args.timestep}")
    if args.loss == "prefix":
        args.prefix_time = sorted(set(args.prefix_time or range(1, max(1, args.timestep // 2) + 1)))
    for t in [args.timestep, *(args.prefix_time or [])]:
        if not kept_steps(t, args.lossskiptime):
            raise BadInput(f"--lossskiptime leaves no output of the first {t}: the loss needs one")


def check(args, given):
    """Raise BadInput for flags that do not fit together."""
    for name in sorted(given & ONLY_WITH.keys()):
        other, values = ONLY_WITH[name]
        if hasattr(args, other) and getattr(args, other) not in values:
            need = "" if values == {True} else " " + " or ".join(sorted(values))
            raise BadInput(f"--{name} has an effect only with --{other}{need}")
    if getattr(args, "checkpoints", None) and given & TRAINING_FLAGS:
        raise BadInput(f"--{min(given & TRAINING_FLAGS)} has no effect with --checkpoints, which trains nothing")
    if hasattr(args, "robust_samples") and not args.checkpoints:
        raise BadInput("--checkpoints a.pt b.pt names the trained networks to evaluate: it is missing")
    if args.dataset == "npz" and not args.data_file:
        raise BadInput("--dataset npz needs --data_file x.npz")
    if len(args.fake_shape) not in (3, 4):
        raise BadInput("--fake_shape takes C H W, or T C H W")
    for name in ("planted_time", "noisetime", "lossskiptime", "prefix_time", "attack_prefix"):
        times = getattr(args, name) or []
        last = max(times, default=0) if isinstance(times, list) else times
        if last > args.timestep:
            raise BadInput(f"--{name} {last} is past --timestep {args.timestep}")
    check_corruption(args)
    check_attack(args, given)
    check_loss(args)
    if args.warmup_epochs >= args.epochs:
        raise BadInput(f"--warmup_epochs {args.warmup_epochs} leaves nothing of --epochs {args.epochs}")
    if getattr(args, "fisher_estimator", "exact") == "release" and "exact" in args.fisher_labels:
        raise BadInput("--fisher_labels exact is an expectation over a sample's classes: no mean gradient has one")
    if args.dry_run and args.resume:
        raise BadInput("--dry_run keeps nothing, so there is nothing to --resume")
    if "0" in args.save_epochs:
        raise BadInput("--save_epochs counts from 1: before training there is nothing to keep")
    for name in sorted(given & {"save_epochs", "fisher_epochs"}):
        past = [e for e in getattr(args, name) if e.isdigit() and int(e) > args.epochs]
        if past:
            raise BadInput(f"--{name} {past[0]} is past --epochs {args.epochs}")
