"""Checks that flags agree with one another, with a resumed run, and with checkpoints.

Every check raises BadInput, with a line that says what is wrong.
"""

import math
from pathlib import Path

import user_code
from archs import ARCHS
from fisher import RELEASE_BATCH
from fisher.fast import MOST_SAMPLES
from losses import kept_steps
from user_code import is_code
from utils import BadInput, load_checkpoint, read_record

# fmt: off
# Flags of one start of a script: a resumed run may have others.
START_FLAGS = {"resume", "device", "out_dir", "exp_name", "script"}
# Flags that a checkpoint has saved: of its input, and of its network.
INPUT_FLAGS = {
    "dataset", "data_file", "standardise", "fake_shape", "planted_time", "frames", "encode",
    "timestep"}
MODEL_FLAGS = INPUT_FLAGS | {
    "datanum", "label_corrupt_prob", "seed", "arch", "width", "layernum", "norm", "tau",
    "threshold", "reset", "surrogate", "surrogate_alpha", "undecayed_input", "undetached_reset"}
# fmt: on


def refuse(condition, message):
    """Raise BadInput if the condition holds."""
    if condition:
        raise BadInput(message)


# ---------------------------------------------------------------- flags of saved runs


def saved_flags(path):
    """The flags of input and network in a checkpoint. A released checkpoint has none."""
    saved = load_checkpoint(path).get("args", {})
    arch = saved.get("arch", "resnet19")
    refuse(arch not in ARCHS and not is_code(arch), f"{path} has an unknown --arch {arch}")
    return {name: saved[name] for name in MODEL_FLAGS & saved.keys()}


def flags_of_run(path, script):
    """The flags in the args.json `path`. Raises BadInput if another script wrote it."""
    saved = read_record(path)["args"]
    writer = saved.get("script", script)
    refuse(writer != script, f"{path} is of {writer}.py: resume it with that script")
    return {name: value for name, value in saved.items() if name not in START_FLAGS}


def check_same(args, typed, names, source, saved):
    """Raise BadInput if flags of those names differ from those that the file `source` saved."""
    moved = {"data_dir", "data_file"} & typed.keys()
    for name in sorted(names & saved.keys() - moved):
        value = getattr(args, name)
        if is_code(value) and Path(value).name == Path(str(saved[name])).name:
            continue  # its file has moved
        message = f"{source} has --{name} {saved[name]}, not {value}"
        if name == "epochs" and args.script != "prune_snn":
            message = f"{message}: it may only grow"
        if name not in typed:
            both = f"{value} and {saved[name]}"
            message = f"--checkpoints differ in --{name} ({both}): take one at a time"
        refuse(value != saved[name], message)


def is_longer(args, saved):
    """Whether a resumed training gets more epochs than it had."""
    training = args.script in ("train_snn", "train_snn_fisherinfo")
    return training and args.epochs > saved.get("epochs", math.inf)


def check_checkpoints(args, typed, groups):
    """Raise BadInput for flags that differ from those of --checkpoints, or are for training."""
    evaluation = args.script == "eval_snn_robustness"
    if evaluation:  # each network is built by its own flags
        fixed = INPUT_FLAGS | (typed.keys() & (MODEL_FLAGS - {"seed"}))
    else:
        idle = groups["training"] | groups["loss"] | groups["attack"] | {"fisher_epochs"}
        for name in sorted(typed.keys() & idle):
            raise BadInput(f"--checkpoints trains nothing: leave out --{name}")
        # With these flags, the seed chose the training data.
        drawn = args.datanum or args.label_corrupt_prob
        fixed = MODEL_FLAGS if drawn else MODEL_FLAGS - {"seed"}
    for path in args.checkpoints:
        saved = saved_flags(path)
        user_code.check_named(saved, typed, path)
        built_in = not is_code(saved.get("arch", "resnet19"))
        # A user's --arch is only for the checkpoints that name one.
        ignored = {"arch"} if evaluation and built_in and is_code(args.arch) else set()
        check_same(args, typed, fixed - ignored, path, saved)


# ---------------------------------------------------------------- flags of one command line


def check(args, typed, parser):
    """Raise BadInput for flags that do not fit together."""
    flags = vars(args)
    for name in typed:
        need = parser.needs[name]
        refuse(need and not is_given(need, flags), f"--{name} has an effect only with {need}")
    check_frames(args, typed)
    for name in ("noisetime", "lossskiptime", "prefix_time", "attack_prefix", "target_ic"):
        times = flags.get(name) or 0
        last = max(times) if isinstance(times, list) else times
        refuse(last > args.timestep, f"--{name} {last} is past --timestep {args.timestep}")
    refuse(args.dataset == "npz" and not args.data_file, "--dataset npz needs --data_file x.npz")
    refuse(len(args.fake_shape) not in (3, 4), "--fake_shape takes C H W, or T C H W")
    undecayed = args.tau == math.inf and "undecayed_input" in typed
    refuse(undecayed, "--tau inf has no decay: leave out --undecayed_input")
    if is_code(args.arch):
        user_code.check_flags(args, typed)
    exact = "exact" in flags.get("fisher_labels", []) and args.fisher_estimator == "release"
    refuse(exact, "--fisher_estimator release needs --fisher_labels data or model")
    if flags.get("fisher_estimator") == "release":
        size = args.fisher_batch or RELEASE_BATCH
        few = args.fisher_samples < 2 * size
        refuse(few, f"an error bar needs two batches of {size} samples: raise --fisher_samples")
    else:
        past = (flags.get("fisher_batch") or 1) > MOST_SAMPLES
        refuse(past, f"--fisher_batch must be at most {MOST_SAMPLES}")
    if args.script == "eval_snn_robustness":
        check_robustness(args, typed)
    else:
        check_training(args, typed)
    if args.script == "prune_snn":
        check_pruning(args, typed)
    if flags.get("checkpoints"):
        check_checkpoints(args, typed, parser.groups)


def check_frames(args, typed):
    """Raise BadInput for timesteps that the data set does not have."""
    frames = args.frames or args.timestep  # in the data set
    refuse(typed.get("frames") == args.timestep, f"--frames {frames} is --timestep: leave it out")
    refuse(frames < args.timestep, f"--timestep {args.timestep} is past --frames {frames}")
    last = max(args.planted_time)
    refuse(last > frames, f"--planted_time {last} is past the {frames} timesteps")


def is_given(need, flags):
    """Whether the flags have what `need` says: "--arch fc", or "--adv_train"."""
    name, _, value = need.removeprefix("--").partition(" ")
    return flags[name] == value if value else flags[name]


def check_training(args, typed):
    """Raise BadInput for flags of a training that do not fit together."""
    corrupted = args.noisetype or args.freqlevel
    refuse(args.noisetime and not corrupted, "--noisetime needs --noisetype or --freqlevel")
    pixels = args.encode == "p" or args.adv_train  # in [0, 1]
    refuse(args.freqlevel and pixels, "--freqlevel does not work with --encode p or --adv_train")
    for name in sorted(typed.keys() & {"attack_steps", "attack_step_size"}):
        refuse(args.attack_method == "fgsm", f"--{name} has an effect only with pgd: leave it out")
    if args.loss == "centroid":
        refuse(args.target_ic is None, "--loss centroid needs --target_ic")
        refuse(args.loss_threshold is not None, "--loss centroid takes no --loss_threshold")
        refuse(args.lossskiptime, "--loss centroid takes no --lossskiptime")
    first = min([args.timestep, *(args.prefix_time or [])])
    skipped = not kept_steps(first, args.lossskiptime)
    refuse(skipped, f"--lossskiptime skips all of the first {first} timesteps: keep one")
    for epoch in typed.get("save_epochs", []) + typed.get("fisher_epochs", []):
        late = epoch.isdigit() and int(epoch) > args.epochs
        refuse(late, f"epoch {epoch} is past --epochs {args.epochs}")
    refuse("0" in args.save_epochs, "--save_epochs counts from 1: epoch 0 has no checkpoint")


def check_robustness(args, typed):
    """Raise BadInput for flags of an evaluation that do not fit together."""
    nothing = args.noisetime and not (args.noise_levels or args.blur_levels)
    refuse(nothing, "--noisetime needs --noise_levels or --blur_levels")
    one_step = "attack_step_size" in typed and "pgd" not in args.attack_method
    refuse(one_step, "--attack_step_size is for --attack_method pgd: leave it out")


def check_pruning(args, typed):
    """Raise BadInput for flags of a search that do not fit together."""
    unused = "information_share" in typed and "fisher" not in args.search_timestep
    refuse(unused, "--information_share has an effect only with --search_timestep fisher")
    for name in sorted(typed.keys() & {"noisetime", "lossskiptime", "attack_prefix", "init"}):
        raise BadInput(f"a search runs fewer timesteps: leave out --{name}")
    refuse(args.loss in ("prefix", "centroid"), f"--loss {args.loss} needs all timesteps: use ce")
    for rule in args.search_timestep:
        long = rule.isdigit() and int(rule) > args.timestep
        refuse(long, f"--search_timestep {rule} is past --timestep {args.timestep}")
    short = "kl" in args.search_timestep and args.epochs < 2
    refuse(short, "--search_timestep kl needs --epochs 2 or more")
    other = "rounds" in typed and args.rounds != args.final_rounds[-1]
    refuse(other, f"--rounds {args.rounds} must be the last of --final_rounds")
    refuse(args.rewind_epoch >= args.epochs, f"--rewind_epoch must be below --epochs {args.epochs}")
