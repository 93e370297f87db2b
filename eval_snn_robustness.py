"""Accuracy of trained networks under attacks, noise and blur, after every timestep.

    python eval_snn_robustness.py --checkpoints runs/*/checkpoint_latest.pt

Two networks of the digits take half a minute on two CPU cores. All networks get the same test
samples. The folder runs/<name>_robustness has robustness.jsonl (one line per network, threat and
strength) and figures/robustness.png.

Each of --attack_surrogate is one attacker. A sample counts as right only if it is right under all
attackers. A network can look robust because its gradient misleads the attack. So three other
attacks check the result: random changes of the same size, inputs made against a network of another
seed, and an unbounded attack, which should leave no sample right. If one of them contradicts the
attack, the script says «gradient masking» (Athalye et al. 2018, arXiv:1802.00420).
"""

import math
from argparse import Namespace
from dataclasses import replace

import torch
from scipy.stats import binomtest
from tqdm import tqdm

import archs
import attacks
import config
import data
import user_code
import utils
from checks import saved_flags
from drawing.robustness import accuracy_figure
from fisher import prefix_outputs
from train_snn import build_model
from utils import ROBUSTNESS_FILE, load_checkpoint

Z = 1.96  # standard errors in a 95 % interval
UNBOUNDED_STEPS = 50


def masking_signs(lines):
    """Signs that the gradient of a network misleads the attacker, as words, from its lines."""
    fgsm = {line["strength"]: line["attacked"] for line in lines if line["threat"] == "fgsm"}
    method = "pgd" if any(line["threat"] == "pgd" for line in lines) else "fgsm"
    signs = []
    for line in lines:
        attacked, surrogates = line["attacked"], line.get("surrogates")
        if line["threat"] == "unbounded" and attacked > 0:
            signs.append(f"an unbounded attack leaves an accuracy of {attacked:.3f}")
        if line["threat"] != method:
            continue
        samples, place = line["samples"], f"at eps {line['strength']:g}"
        if clearly_below(fgsm.get(line["strength"]), attacked, samples):
            signs.append(f"one step (fgsm) is stronger than {method} {place}")
        if clearly_below(line["random"], attacked, samples):
            signs.append(f"random points are stronger than {method} {place}")
        if clearly_below(line["transfer"], attacked, samples):
            signs.append(f"a transferred attack is stronger than {method} {place}")
        if clearly_below(min(surrogates.values()), surrogates.get("own"), samples):
            signs.append(f"its own surrogate is weaker {place}")
    return signs


def clearly_below(low, high, samples):
    """Whether the share `low` of that many samples is more than Z standard errors below `high`.
    False if one of them is None."""
    if low is None or high is None:
        return False
    return high - low > Z * math.sqrt((low * (1 - low) + high * (1 - high)) / samples)


@torch.no_grad()
def right(model, dataset, args, attack=None, attacker=None):
    """Whether the prediction of each prefix is right for each sample: bool [T, N], on the CPU.
    `attack` changes the samples first, by the gradient of the network `attacker`."""
    parts = []
    for x, y in dataset.batches(args.batch_size, args.seed):
        if attack:
            x = attack(lambda pixels: attacker(dataset.encode(pixels)), x, y)
        outputs = prefix_outputs(model(dataset.encode(x)))
        parts.append((outputs.argmax(2) == y).cpu())
    return torch.cat(parts, 1)


def under_attack(args, model, source, dataset, attack, unbounded):
    """Whether predictions are right under all attackers, bool [T, N], and the fields of a line that
    describe the attack. An `unbounded` attack stops when an attacker leaves no sample right."""
    prefix = (args.attack_prefix or args.timestep) - 1  # the attack is on this one
    names = args.attack_surrogate if archs.lif_layers(model) else ["own"]
    surrogates, results = {}, []
    for surrogate in names:
        attacker = attacks.with_surrogate(model, surrogate)
        results.append(right(model, dataset, args, attack, attacker))
        surrogates[surrogate] = results[-1][prefix].float().mean().item()
        if unbounded and surrogates[surrogate] == 0:
            break
    fields = {"surrogates": surrogates}
    if not unbounded:
        # The strongest of random points of the ball.
        points = replace(attack, steps=0, random_start=True, restarts=args.attack_steps)
        fields["random"] = right(model, dataset, args, points, model)[prefix].float().mean().item()
        fields["transfer"] = None
        if source:
            transferred = right(model, dataset, args, attack, source)
            fields["transfer"] = transferred[prefix].float().mean().item()
    return torch.stack(results).all(0), fields


def measure(args, model, source, dataset, attack, unbounded):
    """The fields of a line of robustness.jsonl that are measured, and how they are measured."""
    if attack:
        correct, fields = under_attack(args, model, source, dataset, attack, unbounded)
    else:
        correct, fields = right(model, dataset, args), {}
    accuracy = correct.double().mean(1).tolist()
    counts = correct.sum(1).tolist()
    return {
        "timestep": args.timestep,
        "samples": len(dataset),
        "prefix": args.attack_prefix,
        "times": args.noisetime if dataset.corruption else [],
        "attacked": accuracy[(args.attack_prefix or args.timestep) - 1],
        "accuracy": accuracy,
        "accuracy_ci": [binomtest(k, len(dataset)).proportion_ci(method="wilson") for k in counts],
        **fields,
    }


def threats(args):
    """Yield (name, strength, corruption, attack) of each test, clean samples first."""
    yield "clean", 0.0, None, None
    times = tuple(args.noisetime)
    for kind, levels in (("gaussian_noise", args.noise_levels), ("blur", args.blur_levels)):
        for level in levels:
            yield kind, level, data.Corruption(args.timestep, times, kind, level), None
    for method in sorted(args.attack_method):  # fgsm before pgd
        for eps in args.eps:
            yield method, eps, None, attacks.make(args, method, eps)
    if args.eps and args.attack_method:
        step = attacks.PATH_LENGTH / UNBOUNDED_STEPS
        attack = attacks.Attack(1, UNBOUNDED_STEPS, step, prefix=args.attack_prefix)
        yield "unbounded", 255.0, None, attack


def load_network(args, path, dataset):
    """Load the network of a checkpoint, with its own flags, in eval mode."""
    saved = saved_flags(path)
    if user_code.is_code(saved.get("arch")):
        saved["arch"] = args.arch  # the file that the command line names
    args = Namespace(**vars(args) | saved)
    model = build_model(args, dataset)
    user_code.check_network(args, model, dataset)
    utils.load_weights(model, load_checkpoint(path), path, args)
    return model.eval().requires_grad_(False)


def another_seed(path, seeds):
    """The next network after `path` in `seeds` {path: seed} that has another seed, or None. After
    the last network comes the first."""
    paths = list(seeds)
    following = paths[paths.index(path) :] + paths
    return next((other for other in following if seeds[other] != seeds[path]), None)


def print_line(line):
    """Print a line of robustness.jsonl: the attacked prediction, then every prefix."""
    low, high = line["accuracy_ci"][(line["prefix"] or line["timestep"]) - 1]
    numbers = [line.get("surrogates", {}).get("own"), line.get("random"), line.get("transfer")]
    others = " ".join(f"{'-' if value is None else format(value, '.3f'):>8}" for value in numbers)
    prefixes = " ".join(f"{value:.2f}" for value in line["accuracy"])
    accuracy = f"{line['attacked']:.3f} [{low:.3f}, {high:.3f}]"
    tqdm.write(f"{line['threat']:<15} {line['strength']:>8g}  {accuracy} {others}  {prefixes}")
    for sign in line.get("masking", ()):
        tqdm.write(f"gradient masking: {sign}")


def evaluate_network(args, run, path, other, dataset):
    """Test the network of checkpoint `path`. Append and print the lines that `run` does not have
    yet. Transferred attacks are made against the checkpoint `other`, if there is one."""
    model = load_network(args, path, dataset)
    source = load_network(args, other, dataset) if other else None
    epoch = load_checkpoint(path).get("epoch")
    lines = [line for line in run.lines(ROBUSTNESS_FILE) if line["checkpoint"] == path]
    done = {(line["threat"], line["strength"]) for line in lines}
    columns = f"     own   random transfer  after t = 1 .. {args.timestep}"
    tqdm.write(f"{path}, {len(dataset)} samples")
    if not archs.lif_layers(model):
        tqdm.write(
            "no layer is an archs.LIF, so the attacks use only the network's own surrogate: other "
            "surrogates cannot check for gradient masking"
        )
    tqdm.write(f"                strength  accuracy [95 %]      {columns}")
    for threat, strength, corruption, attack in threats(args):
        if (threat, strength) in done:
            continue
        line = {"checkpoint": path, "epoch": epoch, "threat": threat, "strength": strength}
        corrupted = replace(dataset, corruption=corruption)
        line |= measure(args, model, source, corrupted, attack, threat == "unbounded")
        if attack:
            line["transfer_from"] = other
        lines.append(line)
        if threat == "unbounded":
            line["masking"] = masking_signs(lines)
        run.append(ROBUSTNESS_FILE, line)
        print_line(line)


def main(argv=None):
    args = config.parse("eval_snn_robustness", argv, __doc__)
    dataset = data.load(args, utils.pick_device(args.device))[1]
    data.need_pixels("the evaluation", dataset)
    utils.seed_all(args.seed, "subset")
    dataset = dataset.subset(torch.randperm(len(dataset))[: args.robust_samples])
    seeds = {path: load_checkpoint(path).get("args", {}).get("seed") for path in args.checkpoints}
    for path in args.checkpoints:  # one that does not fit leaves no folder
        load_network(args, path, dataset)
    with utils.Run(args, dataset.device) as run:
        for path in args.checkpoints:
            evaluate_network(args, run, path, another_seed(path, seeds), dataset)
        print(f"run folder {run.folder}\nfigure     {accuracy_figure(run.folder)}")


if __name__ == "__main__":
    utils.run_script(main, "eval_snn_robustness.py")
