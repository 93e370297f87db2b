"""Accuracy of trained networks under attacks, noise and blur, after every timestep.

    python eval_snn_robustness.py --checkpoints runs/A/checkpoint_latest.pt runs/B/checkpoint_latest.pt

takes half a minute for two networks of `train_snn.py --dataset digits` on two CPU cores. All are tried on the
same test samples, drawn by --seed, as are noise and the attacks' starts.

The folder runs/<name>_robustness (or --exp_name) has robustness.jsonl, a line for each network and strength, and
figures/robustness.png. An attacked sample counts as right where it is right under every attacker: one for each of
--attack_surrogate. What tells a robust network from one whose gradient misleads is in the same table: random points of
the ball, inputs made against a network of another seed, one step against several, and an unbounded attack, after which
nothing should be right. Where these disagree, it says «gradient masking» (Athalye et al. 2018, "Obfuscated Gradients
Give a False Sense of Security").
"""

import math
from argparse import Namespace
from dataclasses import replace

import torch
from tqdm import tqdm

import attacks
import config
import data
import plots
from fisher import prefix_outputs
from train_snn import build_model, draw_inputs, run_folder, setup
from utils import (
    ROBUSTNESS_FILE,
    StopSignals,
    load_checkpoint,
    load_weights,
    of_all,
    processes,
    rank,
    run_script,
    seed_all,
)

Z = 1.96  # standard errors in a 95 % interval
UNBOUNDED_STEPS = 50


def interval(accuracy, samples):
    """95 % interval (low, high) of a share of that many samples (Wilson 1927)."""
    centre, shrink = accuracy + Z**2 / (2 * samples), 1 + Z**2 / samples
    half = Z * math.sqrt(accuracy * (1 - accuracy) / samples + (Z / (2 * samples)) ** 2)
    return max(0.0, (centre - half) / shrink), min(1.0, (centre + half) / shrink)


def clearly_below(low, high, samples):
    """Whether two shares of that many samples differ by more than their standard errors leave."""
    return high - low > Z * math.sqrt((low * (1 - low) + high * (1 - high)) / samples)


def masking_signs(lines):
    """What in the lines of one network says that its gradient misleads the attacker, in words; [] if nothing does."""
    signs, fgsm = [], {line["strength"]: line["attacked"] for line in lines if line["threat"] == "fgsm"}
    method = "pgd" if any(line["threat"] == "pgd" for line in lines) else "fgsm"
    for line in lines:
        strength, found, samples = line["strength"], line["attacked"], line["samples"]
        if line["threat"] == "unbounded" and found > 0:
            signs.append(f"an unbounded attack leaves {found:.3f}")
        if line["threat"] != method:
            continue
        others = min((a for name, a in line["surrogates"].items() if name != "own"), default=None)
        stronger = {
            "one step is stronger than pgd": (fgsm.get(strength) if method == "pgd" else None, found),
            f"random points are stronger than {method}": (line["random"], found),
            f"a transferred attack is stronger than {method}": (line["transfer"], found),
            "its own surrogate is weaker than others": (others, line["surrogates"].get("own")),
        }
        for words, (low, high) in stronger.items():
            if None not in (low, high) and clearly_below(low, high, samples):
                signs.append(f"{words} at eps {strength:g}")
    return signs


@torch.no_grad()
def right(model, dataset, args, stop, attack=None, source=None, surrogate="own"):
    """Which samples of `dataset` the prediction of each prefix gets right: bool [T, N], on the CPU.

    `attack` changes them first, by the gradient of `source` (without it, of `model` itself) with that surrogate.
    Raises Stopped after a signal.
    """
    parts, source = {}, source or model
    batches = torch.arange(len(dataset), device=dataset.labels.device).split(args.batch_size)
    dataset.expect(batches[rank() :: processes()])
    for number in range(rank(), len(batches), processes()):
        seed_all(args.seed, "evaluate", number)
        x, y = dataset.pixels(batches[number])
        if attack:
            with attacks.surrogates_of(source, surrogate):
                x = attack(lambda pixels: source(dataset.encode(pixels)), x, y)
        parts[number] = (prefix_outputs(model(dataset.encode(x))).argmax(2) == y).cpu()
        stop.check()
    stop.check(together=True)
    parts = {number: part for share in of_all(parts) for number, part in share.items()}
    return torch.cat([parts[number] for number in range(len(batches))], 1)


def under_attack(args, model, dataset, attack, source, unbounded, stop):
    """The accuracies of a line that is about an attack, of the prediction that is attacked, and which samples every
    prefix gets right under every attacker [T, N]. An `unbounded` attack ends with the attacker that leaves none."""

    def attacked(attack, **attacker):
        kept = right(model, dataset, args, stop, attack, **attacker)
        return kept, kept[(args.attack_prefix or args.timestep) - 1].float().mean().item()

    surrogates, worst = {}, torch.ones(args.timestep, len(dataset), dtype=torch.bool)
    for surrogate in args.attack_surrogate:
        kept, surrogates[surrogate] = attacked(attack, surrogate=surrogate)
        worst &= kept
        if unbounded and not surrogates[surrogate]:
            break
    if unbounded:
        return {"surrogates": surrogates}, worst
    random = attacked(attacks.random_search(attack, args.attack_steps))[1]
    transfer = attacked(attack, source=source)[1] if source else None
    return {"surrogates": surrogates, "random": random, "transfer": transfer}, worst


def threats(args):
    """(name, strength, corruption or None, attack or None) of everything that is tried, the clean samples first."""
    yield "clean", 0.0, None, None
    for kind, levels in (("gaussian_noise", args.noise_levels), ("blur", args.blur_levels)):
        for level in levels:
            yield kind, level, data.Corruption(args.timestep, tuple(args.noisetime), kind, level), None
    for method in sorted(set(args.attack_method)):  # fgsm before pgd
        for eps in args.eps:
            yield method, eps, None, attacks.make(args, method, eps)
    if not (args.eps and args.attack_method):
        return
    steps = {"steps": UNBOUNDED_STEPS, "step_size": attacks.STEPS_PAST / UNBOUNDED_STEPS}
    yield "unbounded", 255.0, None, replace(attacks.make(args, "pgd", 255), **steps)


def load_network(args, path, dataset):
    """The network of a checkpoint, built by its own flags, in eval mode."""
    checkpoint = load_checkpoint(path)
    saved = checkpoint.get("args", {})
    own = Namespace(**vars(args) | {name: saved[name] for name in config.MODEL_FLAGS & saved.keys()})
    model = build_model(own, dataset)
    load_weights(model, checkpoint, path, own)
    return model.eval().requires_grad_(False)


def another_seed(paths, seeds, number):
    """Of the networks, the next one after `number`, round the list, of another seed; None if there is none."""
    order = [*range(number + 1, len(paths)), *range(number)]
    return next((paths[i] for i in order if None not in (seeds[i], seeds[number]) and seeds[i] != seeds[number]), None)


def print_header(path, other, args, samples):
    """What the columns of `print_line` are."""
    tqdm.write(f"{path}, {samples} samples" + ("" if other else "; no network of another seed to transfer from"))
    columns = f"{'':<15} {'strength':>8}  accuracy [95 %]      {'own':>8} {'random':>8} {'transfer':>8}"
    tqdm.write(f"{columns}  after t = 1 .. {args.timestep}")


def print_line(line):
    """One line on standard output: the prediction that is attacked, then every prefix."""
    low, high = line["accuracy_ci"][(line["prefix"] or line["timestep"]) - 1]
    numbers = [line.get("surrogates", {}).get("own"), line.get("random"), line.get("transfer")]
    others = " ".join(f"{'-' if value is None else format(value, '.3f'):>8}" for value in numbers)
    prefixes = " ".join(f"{value:.2f}" for value in line["accuracy"])
    found = f"{line['attacked']:.3f} [{low:.3f}, {high:.3f}]"
    tqdm.write(f"{line['threat']:<15} {line['strength']:>8g}  {found} {others}  {prefixes}")


def evaluate_network(args, run, path, other, dataset, stop):
    """Print the lines of the network of that checkpoint, and append those that `run` does not have yet. Attacks are
    transferred from the network of the checkpoint `other`, if there is one."""
    model, source = (name and load_network(args, name, dataset) for name in (path, other))
    about = {"checkpoint": path, "epoch": load_checkpoint(path).get("epoch")}
    about |= {"timestep": args.timestep, "samples": len(dataset), "prefix": args.attack_prefix}
    lines = of_all([line for line in run.lines(ROBUSTNESS_FILE) if line["checkpoint"] == path])[0]
    print_header(path, other, args, len(dataset))
    for threat, strength, corruption, attack in threats(args):
        line = next((line for line in lines if (line["threat"], line["strength"]) == (threat, strength)), None)
        if not line:
            changed, found = replace(dataset, corruption=corruption), {}
            if attack:
                found, kept = under_attack(args, model, changed, attack, source, threat == "unbounded", stop)
                found["transfer_from"] = other
            else:
                kept = right(model, changed, args, stop)
            accuracy = kept.double().mean(1).tolist()
            line = about | {"threat": threat, "strength": strength, "times": args.noisetime if corruption else []}
            line["attacked"] = accuracy[(args.attack_prefix or args.timestep) - 1]
            line |= {"accuracy": accuracy, "accuracy_ci": [interval(a, len(dataset)) for a in accuracy]} | found
            lines.append(line)
            if threat == "unbounded":
                line["masking"] = masking_signs(lines)
            run.append(ROBUSTNESS_FILE, line)
        print_line(line)
    for sign in line.get("masking", ()):
        tqdm.write(f"gradient masking: {sign}")


def main(argv=None):
    args = config.parse("eval_snn_robustness", argv, __doc__)
    dataset = setup(args)[2]
    device = dataset.labels.device
    data.need_pixels("an attack", dataset.images)
    seed_all(args.seed, "subset")
    dataset = dataset.subset(torch.randperm(len(dataset))[: args.robust_samples])
    seeds = [load_checkpoint(path).get("args", {}).get("seed") for path in args.checkpoints]
    with run_folder(args, device) as run, StopSignals() as stop:
        run.keep_lines(ROBUSTNESS_FILE, lambda line: True)  # drops a line that a killed process left torn
        kinds = [(f"{kind} {level:g}", changed) for kind, level, changed, attack in threats(args) if not attack]
        draw_inputs(args, run, {kind: replace(dataset, corruption=changed) for kind, changed in kinds})
        for number, path in enumerate(args.checkpoints):
            evaluate_network(args, run, path, another_seed(args.checkpoints, seeds, number), dataset, stop)
        if rank() == 0:
            print(f"run folder {run.folder}\nfigure     {plots.robustness(run.folder)}")


if __name__ == "__main__":
    run_script(main, "eval_snn_robustness.py")
