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
    "information_share": ("search_timestep", ["fisher"]),
    "attack_steps": ("attack_method", ["pgd"]), "attack_step_size": ("attack_method", ["pgd"]),
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
    flag("--batch_size", 128, "samples in a batch", type=number(int, 2))

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
    flag("--surrogate_alpha", None, "its slope; without it, peak 1 (atan: 2)", type=POSITIVE)
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
    flag("--compile", False, "compile the neurons; the start takes half a minute longer")
    flag("--checkpoint_activations", False, "store only inputs of blocks: less memory, slower")
    flag("--init", None, "checkpoint whose weights the training starts from")
    flag("--save_epochs", ["every:20"], "keep checkpoints of these epochs, or every:k", **EPOCHS)

    flag = parser.group("corruption of inputs, in training, validation and measurement")
    flag("--noisetype", None, "noise or blur", choices=["gaussian_noise", "blur"])
    flag("--noise_level", None, "standard deviation: of noise, for pixels in [0, 1] (without it, "
         "0.1), or of the blur, in pixels (1)", type=POSITIVE)
    flag("--freqlevel", None, "keep low or high spatial frequencies alone", choices=["low", "high"])
    flag("--freq_radius", 4.0, "the highest low one, in cycles an image", type=number(float, 0))
    flag("--noisetime", [], "corrupt these timesteps, from 1; without it, all", **TIMES)

    flag = parser.group("loss")
    flag("--loss", "ce", "ce: cross-entropy of the mean output; tet: of each output; prefix: of "
         "early prefixes, too; centroid: steers squared residuals to --target_ic", choices=LOSSES)
    flag("--label_smoothing", 0.0, "", type=SHARE)
    flag("--lossskiptime", [], "ignore these timesteps, from 1, in the loss", **TIMES)
    flag("--loss_threshold", None, "flooding: |loss - B| + B", type=number(float, 0), metavar="B")
    flag("--tet_lambda", 0.05, "tet: weight of the squared distance of outputs from 1", type=SHARE)
    flag("--prefix_time", None, "prefix: the prefixes; without it, 1 to T/2", **TIMES)
    flag("--prefix_weight", 0.5, "prefix: their weight", type=SHARE)
    flag("--target_ic", None, "centroid: what it steers to", type=number(float, 1))


def attack_flags(parser, several):
    """With `several`, each attack is made with several strengths."""
    nargs = {"nargs": "*"} if several else {}
    flag = parser.group("attack")
    if not several:
        flag("--adv_train", False, "train on inputs that are attacked")
    flag("--attack_method", list(METHODS) if several else "pgd", "one step of eps, or projected "
         "gradient descent", choices=METHODS, **nargs)
    flag("--eps", [4, 8, 16, 32, 64] if several else 8, "largest change of a pixel, in 1/255",
         type=number(float, 0, 255, above=True), **nargs)
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
    flag("--noise_levels", [0.05, 0.1, 0.2, 0.4], "standard deviations of noise", nargs="*",
         type=POSITIVE)
    flag("--blur_levels", [0.5, 1.0, 2.0], "standard deviations of blur, in pixels", nargs="*",
         type=POSITIVE)
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
    flag("--rewind_epoch", 10, "weights that remain go back to it", type=number(int, 0))
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
    typed = parser.typed(argv)
    saved, source = {}, None
    try:
        if "checkpoints" in typed:
            source = typed["checkpoints"][0]
            saved = saved_flags(source)
            if script == "eval_snn_robustness":
                saved.pop("seed", None)  # that of the attack is its own
        args = merge(script, parser.defaults, saved, typed)
        folder = Path(args.out_dir) / run_name(args)
        resumed = args.resume and (folder / ARGS_FILE).exists()
        if resumed:
            source = folder / ARGS_FILE
            saved = flags_of_run(source, script)
            args = merge(script, parser.defaults, saved, typed)
        fill_in(args, typed)
        check(args, typed, parser.groups)
        for name in sorted(typed.keys() & saved.keys() - {"data_dir", "data_file"}):  # may move
            value = getattr(args, name)
            refuse(value != saved[name], f"--{name} {value} differs from {saved[name]} of {source}")
    except BadInput as error:
        parser.error(str(error))
    if args.resume and not resumed and rank() == 0:
        print(f"warning: no run {folder} to --resume: a new one starts", file=sys.stderr)
    return args


def merge(script, defaults, saved, typed):
    """The settings: typed before saved flags, these before the recipe, this before the defaults."""
    recipe = RECIPES.get((defaults | saved | typed)["dataset"], {})
    values = {"script": script} | recipe | saved | typed
    return Namespace(**defaults | {k: v for k, v in values.items() if k in {"script", *defaults}})


def run_name(args):
    """Name of the run folder."""
    if args.exp_name:
        return args.exp_name
    if args.script == "eval_snn_robustness":
        return f"{Path(args.checkpoints[0]).resolve().parent.name}_robustness"
    kind = "_pruning" if args.script == "prune_snn" else ""
    if vars(args).get("checkpoints"):
        kind = "_checkpoints"
    return f"{args.dataset}_{args.arch}_T{args.timestep}_seed{args.seed}{kind}"


def saved_flags(path):
    """What a checkpoint knows of its input and its network; nothing, if it is a released one."""
    saved = load_checkpoint(path).get("args", {})
    for name, known in (("arch", ARCHS), ("dataset", DATASETS)):
        value = saved.get(name, known[0])
        refuse(value not in known, f"{path} has --{name} {value}, which is not known")
    return {name: saved[name] for name in MODEL_FLAGS & saved.keys()}


def flags_of_run(path, script):
    """Flags in the args.json of that path. Raises BadInput if another script wrote it."""
    saved = read_record(path)["args"]
    writer = saved.get("script", script)
    refuse(writer != script, f"{path} is of {writer}.py, which alone can go on with it")
    return {name: value for name, value in saved.items() if name not in START_FLAGS}


def fill_in(args, typed):
    """Set what depends on other flags."""
    flags = vars(args)
    for name in ("eps", "attack_method", "noise_levels", "blur_levels", "search_timestep"):
        if isinstance(flags.get(name), list):
            flags[name] = list(dict.fromkeys(flags[name]))  # each once
    if args.script == "eval_snn_robustness":
        return
    if args.dry_run:
        args.epochs = min(args.epochs, 2)
    if args.noisetype and not args.noise_level:
        args.noise_level = {"gaussian_noise": 0.1, "blur": 1.0}[args.noisetype]
    if args.loss == "prefix":
        half = range(1, max(1, args.timestep // 2) + 1)
        args.prefix_time = sorted(set(args.prefix_time or half))
    if args.dry_run and flags.get("fisher_estimator") == "release":  # there are two batches
        args.fisher_batch = min(args.fisher_batch or args.batch_size, args.batch_size)
    if args.script == "prune_snn":
        fill_in_rounds(args, typed)


def fill_in_rounds(args, typed):
    """The same, for searches."""
    if args.dry_run:
        args.rounds, args.final_rounds = 1, [1]
    args.final_rounds = sorted(set(args.final_rounds or [args.rounds]))
    if "rewind_epoch" not in typed or args.dry_run:  # a recipe's, made for a longer run
        args.rewind_epoch = min(args.rewind_epoch, args.epochs - 1)


# ---------------------------------------------------------------- checks


def refuse(condition, message):
    """Raise BadInput if the condition holds."""
    if condition:
        raise BadInput(message)


def check(args, typed, groups):
    """Raise BadInput for flags that do not fit together."""
    flags = vars(args)
    for name in sorted(typed.keys() & ONLY_WITH.keys()):
        other, values = ONLY_WITH[name]
        chosen = flags.get(other, values)
        chosen = set(chosen if isinstance(chosen, list) else [chosen])
        need = f"--{other}" if values == [True] else f"--{other} {' or '.join(values)}"
        refuse(not chosen & set(values), f"--{name} has an effect only with {need}")
    for name in ("planted_time", "noisetime", "lossskiptime", "prefix_time", "attack_prefix"):
        times = flags.get(name) or 0
        last = max(times) if isinstance(times, list) else times
        refuse(last > args.timestep, f"--{name} {last} is past --timestep {args.timestep}")
    place = args.exp_name and Path(args.exp_name).name != args.exp_name
    refuse(place, "--exp_name is the name of one folder: --out_dir says where it is")
    refuse(args.dataset == "npz" and not args.data_file, "--dataset npz needs --data_file x.npz")
    refuse(len(args.fake_shape) not in (3, 4), "--fake_shape takes C H W, or T C H W")
    refuse(args.dry_run and args.resume, "--dry_run keeps nothing that --resume could go on with")
    if args.script != "eval_snn_robustness":
        check_training(args, typed)
    if args.script == "prune_snn":
        check_pruning(args, typed)
    exact = "exact" in flags.get("fisher_labels", ()) and args.fisher_estimator == "release"
    refuse(exact, "--fisher_labels exact has no mean gradient, which release measures")
    if flags.get("checkpoints"):
        check_checkpoints(args, typed, groups)


def check_training(args, typed):
    """The same, for what is trained."""
    corrupted = args.noisetype or args.freqlevel
    refuse(args.noisetime and not corrupted, "--noisetime needs --noisetype or --freqlevel")
    unused = typed.keys() & {"attack_steps", "attack_step_size"} and not args.adv_train
    refuse(unused, "--attack_steps and --attack_step_size need --adv_train")
    pixels = args.encode == "p" or args.adv_train
    refuse(args.freqlevel and pixels, "--freqlevel leaves [0, 1], which --encode p and --adv_train "
                                      "need")  # fmt: skip
    steered = 1 <= (args.target_ic or 0) <= args.timestep
    refuse(args.loss == "centroid" and not steered,
           f"--loss centroid needs --target_ic from 1 to {args.timestep}")  # fmt: skip
    first = min([args.timestep, *(args.prefix_time or [])])
    refuse(not kept_steps(first, args.lossskiptime),
           f"--lossskiptime skips all of the first {first} timesteps")  # fmt: skip
    if args.dry_run:
        return
    epochs = [*typed.get("save_epochs", []), *typed.get("fisher_epochs", [])]
    last = max([int(epoch) for epoch in epochs if epoch.isdigit()], default=0)
    refuse(last > args.epochs, f"epoch {last} is past --epochs {args.epochs}")
    refuse("0" in args.save_epochs, "--save_epochs counts from 1: before training nothing is kept")
    idle = args.warmup_epochs >= args.epochs
    refuse(idle, f"--warmup_epochs {args.warmup_epochs} leaves nothing of --epochs {args.epochs}")


def check_checkpoints(args, typed, groups):
    """The same, for --checkpoints."""
    if args.script == "eval_snn_robustness":
        levels = args.noise_levels + args.blur_levels
        refuse(args.noisetime and not levels, "--noisetime needs --noise_levels or --blur_levels")
        fixed = INPUT_FLAGS  # each network is built by its own flags
    else:
        idle = groups["training"] | groups["loss"] | groups["attack"] | {"fisher_epochs"}
        for name in sorted(typed.keys() & idle):
            raise BadInput(f"--checkpoints trains nothing: leave out --{name}")
        drawn = args.datanum or args.label_corrupt_prob  # then the seed chose the training data
        fixed = MODEL_FLAGS if drawn else MODEL_FLAGS - {"seed"}
    for path in args.checkpoints:
        saved = saved_flags(path)
        for name in sorted(fixed & saved.keys() - ({"data_file"} & typed.keys())):
            wanted = getattr(args, name)
            differs = f"{path} has --{name} {saved[name]}, not {wanted}"
            refuse(saved[name] != wanted, f"{differs}: give it a command of its own")


def check_pruning(args, typed):
    """The same, for searches."""
    for name in sorted(typed.keys() & {"noisetime", "lossskiptime", "attack_prefix", "init"}):
        raise BadInput(f"a search runs fewer timesteps: leave out --{name}")
    refuse(args.loss in ("prefix", "centroid"), f"--loss {args.loss} is about all timesteps")
    steps = max([int(rule) for rule in args.search_timestep if rule.isdigit()], default=0)
    refuse(steps > args.timestep, f"--search_timestep {steps} is past --timestep {args.timestep}")
    short = args.timestep < 3 or args.epochs < 2
    refuse("kl" in args.search_timestep and short,
           "--search_timestep kl looks at 3 timesteps or more, after 2 epochs")  # fmt: skip
    last = args.final_rounds[-1]
    unequal = last > args.rounds or ("rounds" in typed and last < args.rounds)
    refuse(unequal, f"--rounds {args.rounds} is not the last of --final_rounds, {last}")
    refuse(args.rewind_epoch >= args.epochs, f"--rewind_epoch is past --epochs {args.epochs}")
