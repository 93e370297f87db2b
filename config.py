"""The flags of every script, in groups, with a recipe per data set.

`parse("train_snn")` returns the settings of a run. A value comes from the command line, or from the
run that --resume goes on with or the checkpoint that --checkpoints names, or from the recipe of the
data set, or is the default: the recipe of the AAAI 2023 release as its code runs. Bad input ends
the process with one line on stderr and status 2.
"""

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from archs import ARCHS
from archs.layers import NORMS
from archs.neuron import RESETS, SURROGATES
from attacks import METHODS, parse_surrogate
from data import AUGMENT, DATASETS
from fisher import PREFIXES
from losses import LOSSES, kept_steps
from parser import COUNT, POSITIVE, SHARE, Parser, epochs_entry, number, one_of
from readers import TORCHVISION
from utils import ARGS_FILE, BadInput, load_checkpoint, rank, read_record

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
    "layernum": ("arch", ["fc"]), "data_dir": ("dataset", list(TORCHVISION)),
    "data_file": ("dataset", ["npz"]), "fake_shape": ("dataset", ["fake"]),
    "planted_time": ("dataset", ["planted"]), "standardise": ("encode", ["d"]),
    "no_augment": ("dataset", [name for name, augment in AUGMENT.items() if any(augment)]),
    "noise_level": ("noisetype", ["gaussian_noise", "blur"]),
    "freq_radius": ("freqlevel", ["low", "high"]),
    "momentum": ("optimizer", ["sgd"]), "dampening": ("optimizer", ["sgd"]),
    "lr_step": ("scheduler", ["step"]), "lr_gamma": ("scheduler", ["step"]),
    "tet_lambda": ("loss", ["tet"]), "target_ic": ("loss", ["centroid"]),
    "prefix_time": ("loss", ["prefix"]), "prefix_weight": ("loss", ["prefix"]),
    "loss_threshold": ("loss", ["ce", "tet", "prefix"]),
    "attack_method": ("adv_train", [True]), "eps": ("adv_train", [True]),
    "attack_prefix": ("adv_train", [True]),
    "attack_steps": ("attack_method", ["pgd"]), "attack_step_size": ("attack_method", ["pgd"]),
    "information_share": ("search_timestep", ["fisher"]),
}
# What belongs to one start of a script: the run that --resume goes on with does not fix it.
START_FLAGS = {"resume", "dry_run", "device", "out_dir", "exp_name", "script"}
# What a checkpoint knows of its input, and of its network.
INPUT_FLAGS = {"dataset", "data_file", "standardise", "fake_shape", "planted_time", "encode",
               "timestep"}
MODEL_FLAGS = INPUT_FLAGS | {
    "datanum", "label_corrupt_prob", "seed", "arch", "width", "layernum", "norm", "tau",
    "threshold", "reset", "surrogate", "surrogate_alpha", "undecayed_input", "undetached_reset"}

# ---------------------------------------------------------------- the flags: name, default, help
TIMES = {"nargs": "+", "type": COUNT, "metavar": "t"}
EPOCHS = {"nargs": "+", "type": epochs_entry, "metavar": "E"}


def shared_flags(parser):
    flag = parser.group("data")
    flag("--dataset", "cifar10", "digits, planted and fake need no file", choices=DATASETS)
    flag("--data_dir", "data", "where torchvision's data sets are, or are downloaded to")
    flag("--data_file", None, "--dataset npz: file of x_train, y_train, x_test, y_test")
    flag("--fake_shape", [3, 32, 32], "--dataset fake: C H W, or T C H W", nargs="+", type=COUNT)
    flag("--planted_time", [1], "--dataset planted: timesteps, from 1, with the class", **TIMES)
    flag("--datanum", None, "training samples; without it, all", type=number(int, 2))
    flag("--label_corrupt_prob", 0.0, "share of the training labels that is random", type=SHARE)
    flag("--encode", "d", "d: the image at every timestep; p: Poisson spikes", choices=["d", "p"])
    flag("--standardise", None, "subtract each channel's mean, divide by its standard deviation; "
         "or divide alone; or neither (without it, mean_std for images and std for frames)",
         choices=["mean_std", "std", "none"])
    flag("--batch_size", 128, "samples a step", type=number(int, 2))

    flag = parser.group("network")
    flag("--arch", "resnet19", "", choices=ARCHS)
    flag("--width", 1.0, "factor on the channels", type=number(float, 0, 64, above=True))
    flag("--layernum", 2, "--arch fc: linear layers, the read-out included", type=number(int, 2))
    flag("--timestep", 10, "T, the timesteps of one input", type=COUNT)
    flag("--norm", "step", "BatchNorm statistics of each timestep, or of all", choices=NORMS)
    flag("--tau", 2.0, "membrane time constant, in timesteps", type=number(float, 1, above=True))
    flag("--threshold", 1.0, "firing threshold", type=POSITIVE)
    flag("--reset", "hard", "a spike sets the membrane to 0, or lowers it by the threshold",
         choices=RESETS)
    flag("--surrogate", "atan", "stands in for the derivative of a spike", choices=SURROGATES)
    flag("--surrogate_alpha", None, "its slope; without it, of peak 1 (atan: 2)", type=POSITIVE)
    flag("--undecayed_input", False, "the input is not divided by tau: h = v (1 - 1/tau) + x")
    flag("--undetached_reset", False, "the gradient flows through the reset, too")
    flag("--detach_membrane", False, "no gradient flows through the membrane from one timestep to "
         "another; a saved model is measured or attacked as this command line says")

    flag = parser.group("run")
    flag("--out_dir", "runs", "where run folders are")
    flag("--exp_name", None, "name of the folder; without it, made of data set, arch, T and seed")
    flag("--resume", False, "go on with the run of that name, with its flags")
    flag("--seed", 0, "seed of everything that is random", type=number(int, 0))
    flag("--device", "auto", "auto, cpu, cuda, cuda:1, mps, ...")
    flag("--dry_run", False, "two steps of everything, in a temporary folder that is deleted")


def training_flags(parser):
    flag = parser.group("training")
    flag("--epochs", 300, "passes over the training set", type=COUNT)
    flag("--optimizer", "sgd", "", choices=["sgd", "adam", "adamw"])
    flag("--learning_rate --lr", 0.3, "peak learning rate", type=POSITIVE)
    flag("--momentum", 0.9, "of sgd", type=SHARE)
    flag("--dampening", 5e-4, "of sgd's momentum", type=SHARE)
    flag("--weight_decay", 0.0, "", type=number(float, 0))
    flag("--scheduler", "cosine", "learning rate by epoch: cosine to 0, times --lr_gamma every "
         "--lr_step epochs, or constant", choices=["cosine", "step", "none"])
    flag("--lr_step", 100, "epochs between drops of --scheduler step", type=COUNT)
    flag("--lr_gamma", 0.1, "factor of a drop", type=SHARE)
    flag("--warmup_epochs", 0, "epochs in which the learning rate rises", type=number(int, 0))
    flag("--no_augment", False, "train without random crops and flips")
    flag("--test_samples", None, "validate on so many; without it, on all", type=COUNT)
    flag("--amp", None, "train with bfloat16 convolutions and activations; validation and "
         "measurement stay float32", nargs="?", const="bf16", choices=["bf16"])
    flag("--compile", False, "compile the neurons for training, half a minute at the start")
    flag("--checkpoint_activations", False, "keep the inputs of blocks alone: less memory, slower")
    flag("--init", None, "checkpoint whose weights the training starts from")
    flag("--save_epochs", ["every:20"], "keep checkpoints of these epochs, or every:k", **EPOCHS)

    flag = parser.group("corruption of inputs, in training, validation and measurement")
    flag("--noisetype", None, "noise or blur", choices=["gaussian_noise", "blur"])
    flag("--noise_level", None, "standard deviation: of noise, for pixels in [0, 1] (without it, "
         "0.1), or of the blur, in pixels (1)", type=POSITIVE)
    flag("--freqlevel", None, "keep low or high spatial frequencies alone", choices=["low", "high"])
    flag("--freq_radius", 4.0, "where low ones end, in cycles an image", type=number(float, 0))
    flag("--noisetime", [], "corrupt these timesteps, from 1; without it, all", **TIMES)

    flag = parser.group("loss")
    flag("--loss", "ce", "ce: cross-entropy of the mean output; tet: of each output; prefix: of "
         "early prefixes, too; centroid: steers squared residuals to --target_ic", choices=LOSSES)
    flag("--label_smoothing", 0.0, "", type=SHARE)
    flag("--lossskiptime", [], "leave the outputs of these timesteps, from 1, out", **TIMES)
    flag("--loss_threshold", None, "flooding: |loss - B| + B", type=number(float, 0), metavar="B")
    flag("--tet_lambda", 0.05, "tet: weight of the squared distance of outputs from 1", type=SHARE)
    flag("--prefix_time", None, "prefix: the prefixes; without it, 1 to T/2", **TIMES)
    flag("--prefix_weight", 0.5, "prefix: their weight", type=SHARE)
    flag("--target_ic", None, "centroid: the centroid", type=number(float, 1))


def attack_flags(parser, several):
    """With `several`, each attack is made with several strengths."""
    nargs = {"nargs": "*"} if several else {}
    flag = parser.group("attack")
    if not several:
        flag("--adv_train", False, "train on inputs that are attacked")
    flag("--attack_method", list(METHODS) if several else "pgd", "one step of eps, or projected "
         "gradient descent", choices=METHODS, **nargs)
    flag("--eps", [4, 8, 16, 32, 64] if several else 8, "most that an attack changes a pixel, in "
         "1/255", type=number(float, 0, 255, above=True), **nargs)
    flag("--attack_steps", 10, "steps of pgd", type=COUNT)
    flag("--attack_step_size", None, "in 1/255; without it, 2.5 eps / steps", type=POSITIVE)
    flag("--attack_prefix", None, "attack the prediction after t timesteps; without it, after all",
         type=COUNT, metavar="t")


def robustness_flags(parser):
    flag = parser.group("evaluation")
    flag("--checkpoints", None, "the trained networks; their flags are taken from them", nargs="+",
         required=True, metavar="CKPT")
    flag("--attack_surrogate", ["own", "atan:1", "atan:4", "triangle:1"], "surrogate gradients of "
         "the attackers, of which the worst counts: own (the network's), or name:alpha", nargs="+",
         type=surrogate)
    flag("--robust_samples", 512, "test samples, the same for all", type=number(int, 2))
    flag("--noise_levels", [0.05, 0.1, 0.2, 0.4], "standard deviations of noise, in [0, 1]",
         nargs="*", type=POSITIVE)
    flag("--blur_levels", [0.5, 1.0, 2.0], "those of blur, in pixels", nargs="*", type=POSITIVE)
    flag("--noisetime", [], "noise and blur at these timesteps; without it, at all", **TIMES)


def fisher_flags(parser):
    flag = parser.group("Fisher information")
    flag("--fisher_epochs", ["20", "120", "300"], "measure after these epochs (0: before training) "
         "or every:k and the last", **EPOCHS)
    flag("--fisher_split", ["train"], "where the samples are from", nargs="+",
         choices=["train", "test"])
    flag("--fisher_labels", ["data"], "data: empirical Fisher; model: true Fisher, labels drawn "
         "from the prediction; exact: true Fisher, summed over the classes, as many times the work",
         nargs="+", choices=["data", "model", "exact"])
    flag("--fisher_prefix", "cumulative", "prediction of step t: of the mean of outputs 1..t, or "
         "of the output at t alone", choices=PREFIXES)
    flag("--fisher_estimator", "exact", "exact: each sample's squared gradient norm; release: that "
         "of a batch's mean gradient, as the paper's script", choices=["exact", "release"])
    flag("--checkpoints", None, "measure these models instead of training; their flags are taken "
         "from them", nargs="+", metavar="CKPT")


def sample_flags(parser):
    flag = parser.group("measured samples")
    flag("--fisher_samples", 512, "how many, the same at all epochs", type=number(int, 2))
    flag("--fisher_batch", None, "samples in one pass; without it, as many as fit; of "
         "--fisher_estimator release, in one mean: 128", type=COUNT)


def pruning_flags(parser):
    flag = parser.group("pruning")
    flag("--search_timestep", ["full", "fisher", "kl"], "searches, by how many timesteps they run: "
         "a number, full, fisher, kl; or one_shot, without rounds", nargs="+",
         type=one_of(["full", "fisher", "kl", "one_shot"], numbers=True))
    flag("--rounds", 14, "times that weights are pruned", type=COUNT)
    flag("--final_rounds", None, "train the networks after these rounds with all timesteps; "
         "without it, after the last", nargs="+", type=COUNT)
    flag("--prune_rate", 0.25, "share of the kept weights that a round prunes",
         type=number(float, 0, 0.99, above=True))
    flag("--rewind_epoch", 10, "kept weights go back to those after it", type=number(int, 0))
    flag("--information_share", 0.9, "fisher: share of sum_t I_t that the timesteps of a search "
         "reach", type=number(float, 0, 1, above=True))
# fmt: on


def surrogate(text):
    """An argparse type: the surrogate gradient of an attacker."""
    try:
        return text if text == "own" or parse_surrogate(text) else None
    except ValueError as error:
        raise ArgumentTypeError(error) from error


def make_parser(script, description=None):
    """The parser of a script: the groups of flags that it reads."""
    parser = Parser(script, description)
    shared_flags(parser)
    if script == "eval_snn_robustness":
        attack_flags(parser, several=True)
        robustness_flags(parser)
        return parser
    training_flags(parser)
    attack_flags(parser, several=False)
    if script == "train_snn_fisherinfo":
        fisher_flags(parser)
    if script == "prune_snn":
        pruning_flags(parser)
    if script != "train_snn":
        sample_flags(parser)
    return parser


# ---------------------------------------------------------------- putting settings together


def parse(script, argv=None, description=None):
    """Settings of a run of `script`, checked, from the command line or the list `argv`. Bad input
    ends the process with status 2."""
    parser = make_parser(script, description)
    given = parser.given(argv)

    def settings(fixed):
        recipe = RECIPES.get((parser.defaults | fixed | given)["dataset"], {})
        recipe = {name: value for name, value in recipe.items() if name in parser.defaults}
        return Namespace(**{"script": script} | parser.defaults | recipe | fixed | given)

    try:
        fixed, source = flags_of_checkpoint(script, given)
        args = settings(fixed)
        folder = Path(args.out_dir) / run_name(args)
        if args.resume and (folder / ARGS_FILE).exists():
            fixed, source = flags_of_run(args, folder / ARGS_FILE), folder
            args = settings({k: v for k, v in fixed.items() if k in parser.defaults})
        for name in sorted(given.keys() & fixed.keys() - {"data_dir", "data_file"}):  # may move
            if given[name] != fixed[name]:
                raise BadInput(f"--{name} {given[name]} differs from {fixed[name]} of {source}")
        check_checkpoints(args, given)
        check(args, given, parser)
        if args.resume and source != folder and rank() == 0:
            print(f"warning: no run {folder} to --resume: a new one starts", file=sys.stderr)
    except BadInput as error:
        parser.error(str(error))
    return args


def run_name(args):
    """Name of the run folder."""
    if args.exp_name:
        return args.exp_name
    if args.script == "eval_snn_robustness":
        return f"{Path(args.checkpoints[0]).resolve().parent.name}_robustness"
    kind = "_pruning" if args.script == "prune_snn" else ""
    kind = "_checkpoints" if vars(args).get("checkpoints") else kind
    return f"{args.dataset}_{args.arch}_T{args.timestep}_seed{args.seed}{kind}"


def flags_of_checkpoint(script, given):
    """(flags that the first of --checkpoints fixes, its path); none without it."""
    if "checkpoints" not in given:
        return {}, None
    path = given["checkpoints"][0]
    saved = load_checkpoint(path).get("args", {})  # the release's have none
    # Networks of several seeds are attacked alike: the seed is the attack's own.
    names = MODEL_FLAGS - {"seed"} if script == "eval_snn_robustness" else MODEL_FLAGS
    return {name: value for name, value in saved.items() if name in names}, path


def flags_of_run(args, path):
    """Flags in the args.json of that path. Raises BadInput if another script wrote it."""
    stored = read_record(path)["args"]
    script = stored.get("script", args.script)
    if script != args.script:
        raise BadInput(f"{path} is of {script}.py, which alone can go on with it: "
                       "name another --exp_name")  # fmt: skip
    return {name: value for name, value in stored.items() if name not in START_FLAGS}


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


def check(args, given, parser):
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
        (args.dry_run and args.resume, "--dry_run keeps nothing that --resume could go on with"),
    ]
    if args.script != "eval_snn_robustness":
        problems += problems_of_training(args, given)
    if args.script == "train_snn_fisherinfo":
        problems += problems_of_measurement(args, given, parser.groups)
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
        args.noise_level = args.noise_level or (0.1 if args.noisetype == "gaussian_noise" else 1.0)
    if args.loss == "prefix":
        half = range(1, max(1, args.timestep // 2) + 1)
        args.prefix_time = sorted(set(args.prefix_time or half))
    first = min([args.timestep, *(args.prefix_time or [])])
    epochs = [*given.get("save_epochs", []), *given.get("fisher_epochs", [])]
    last = max([int(epoch) for epoch in epochs if epoch.isdigit()], default=0)
    unit = args.encode == "p" or args.adv_train
    return [
        (args.noisetime and not (args.noisetype or args.freqlevel),
         "--noisetime has an effect only with --noisetype or --freqlevel"),
        (args.freqlevel and unit, "--freqlevel leaves [0, 1]: --encode p and --adv_train need it"),
        (args.loss == "centroid" and not 1 <= (args.target_ic or 0) <= args.timestep,
         f"--loss centroid needs --target_ic from 1 to {args.timestep}"),
        (not kept_steps(first, args.lossskiptime), f"--lossskiptime leaves no output of {first}"),
        (last > args.epochs and not args.dry_run, f"epoch {last} is past --epochs {args.epochs}"),
        ("0" in args.save_epochs, "--save_epochs counts from 1: before training nothing is kept"),
        (args.warmup_epochs >= args.epochs and not args.dry_run,
         f"--warmup_epochs {args.warmup_epochs} leaves nothing of --epochs {args.epochs}"),
        ({"attack_steps", "attack_step_size"} & given.keys() and not args.adv_train,
         "--attack_steps and --attack_step_size have an effect only with --adv_train"),
    ]  # fmt: skip


def problems_of_measurement(args, given, groups):
    """The same."""
    release, exact = args.fisher_estimator == "release", "exact" in args.fisher_labels
    if args.dry_run and release:  # there are two batches
        args.fisher_batch = min(args.fisher_batch or args.batch_size, args.batch_size)
    of_training = {"fisher_epochs"}.union(
        *(groups[title] for title in ("training", "loss", "attack"))
    )
    useless = sorted(given.keys() & of_training)
    return [
        (args.checkpoints and useless,
         f"--checkpoints trains nothing: leave out --{''.join(useless[:1])}"),
        (release and exact, "--fisher_labels exact has no mean gradient, which "
                            "--fisher_estimator release measures"),
    ]  # fmt: skip


def problems_of_pruning(args, given):
    """The same; --final_rounds and --rewind_epoch are set if not given."""
    if args.dry_run:
        args.rounds, args.final_rounds = 1, [1]
    args.final_rounds = sorted(set(args.final_rounds or [args.rounds]))
    if "rewind_epoch" not in given or args.dry_run:  # a recipe's, made for a longer run
        args.rewind_epoch = min(args.rewind_epoch, args.epochs - 1)
    steps = max([int(rule) for rule in args.search_timestep if rule.isdigit()], default=0)
    fixed = sorted(given.keys() & {"noisetime", "lossskiptime", "attack_prefix", "init"})
    kl, last = "kl" in args.search_timestep, args.final_rounds[-1]
    return [
        (fixed, f"a search runs fewer timesteps: leave out --{''.join(fixed[:1])}"),
        (args.loss in ("prefix", "centroid"), f"--loss {args.loss} is about all timesteps"),
        (steps > args.timestep, f"--search_timestep {steps} is past --timestep {args.timestep}"),
        (kl and (args.timestep < 3 or args.epochs < 2),
         "--search_timestep kl looks at 3 timesteps or more, after 2 epochs"),
        (last > args.rounds, f"--final_rounds {last} is past --rounds {args.rounds}"),
        ("rounds" in given and last < args.rounds and not args.dry_run,
         f"--rounds {args.rounds} is past the last of --final_rounds, {last}: name it there"),
        (args.rewind_epoch >= args.epochs, f"--rewind_epoch is past --epochs {args.epochs}"),
    ]  # fmt: skip
