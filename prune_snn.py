"""Iterative pruning whose search runs only the timesteps that carry the information.

    python prune_snn.py --dataset digits --rounds 8 --search_timestep full fisher kl

Each of --search_timestep is a search of --rounds rounds: train, prune --prune_rate of the kept weights, rewind the
others to their values after --rewind_epoch. The first round of a rule runs all T timesteps; the rule then says how many
the others run: `fisher`, the fewest whose share of sum_t I_t reaches --information_share; `kl`, the fewest T' with
KL(P_T' || P_T) / KL(P_2 || P_T) below 0.6 two epochs into training (Kim et al. 2022, "Exploring Lottery Ticket
Hypothesis in Spiking Neural Networks", early-time tickets); a number runs that many from the first round on; `full`,
all T. `one_shot` trains once and prunes to each sparsity at once. --final_rounds name the networks trained with all T.

The folder runs/<name>_pruning has pruning.jsonl, a line a round, figures/pruning.png, and a run folder for every round
with masks in its checkpoints and masks.json. The same command with --resume goes on in the middle of a round.
"""

import json
import time
from argparse import Namespace
from contextlib import closing
from dataclasses import replace

import torch
import torch.distributed as dist
from tqdm import tqdm

import config
import plots
import pruning
from fisher import prefix_outputs
from train_snn import build_model, evaluate, fit, record_corruption, run_folder, setup
from train_snn_fisherinfo import fisher_subsets, measure
from utils import (
    LOG_FILE,
    PRUNING_FILE,
    Run,
    StopSignals,
    load_checkpoint,
    load_weights,
    of_all,
    processes,
    rank,
    run_script,
    write_atomically,
)

KL_EPOCH, KL_RATIO = 2, 0.6  # of the early-time ticket rule
MASKS_FILE = "masks.json"


def fewest_by_information(curve, share):
    """The fewest timesteps t with I_1 + ... + I_t of at least `share` of the sum of the curve [T]."""
    sums = torch.tensor(curve, dtype=torch.float64).cumsum(0)
    return int((sums < share * sums[-1]).sum().clamp(max=len(curve) - 1)) + 1


def fewest_by_kl(outputs):
    """The fewest timesteps t > 2 with KL(P_t || P_T) / KL(P_2 || P_T) below KL_RATIO, P_t the prediction of prefix t of
    the outputs [T, N, classes], KL a mean over samples; T if there is none before."""
    logs = prefix_outputs(outputs.double()).log_softmax(2)
    divergence = (logs.exp() * (logs - logs[-1])).sum(2).mean(1)  # (T,)
    for t in range(3, len(outputs)):
        if divergence[t - 1] < KL_RATIO * divergence[1]:
            return t
    return len(outputs)


def first_steps(dataset, steps):
    """The data set as a network of that many timesteps sees it."""
    if dataset.images.dim() == 5:
        return replace(dataset, images=dataset.images[:, :steps])
    return replace(dataset, poisson_steps=steps if dataset.poisson_steps else 0)


class Search:
    """One of --search_timestep: rounds in their own folders, a line for each in pruning.jsonl."""

    def __init__(self, args, run, rule, train_set, test_set, subset):
        self.args, self.run, self.rule = args, run, rule
        self.train_set, self.test_set, self.subset = train_set, test_set, subset

    def settings(self, steps, name):
        """The flags of a training of that many timesteps, in the folder of that name."""
        changed = {"timestep": steps, "out_dir": str(self.run.folder / self.rule), "exp_name": name, "resume": True}
        epochs = [*self.args.save_epochs, str(KL_EPOCH), str(max(1, self.args.rewind_epoch))]
        return Namespace(**vars(self.args) | changed | {"save_epochs": epochs})

    def train(self, name, steps, masks, before):
        """Train the network that `before` and the masks describe; returns it, its folder and the seconds it took.

        `before` is the checkpoint that the weights are rewound to, or None for initialisation.
        """
        args, device = self.settings(steps, name), self.train_set.labels.device
        model = build_model(args, self.train_set)
        if before:
            model.load_state_dict(before["state_dict"])
        pruning.apply(model, masks)
        start = before["epoch"] if before and not self.args.no_rewind else 0
        with closing(Run(self.run.folder / self.rule / name, args, device, resume=True)) as run:
            sets = (first_steps(dataset, steps) for dataset in (self.train_set, self.test_set))
            fit(args, run, model, *sets, lambda line, stop: None, masks=masks, start=start)
            if rank() == 0:
                report = json.dumps(pruning.counts(masks), indent=1).encode()
                write_atomically(run.path(MASKS_FILE), lambda file: file.write(report))
            rates = [line["images_per_second"] for line in of_all(run.lines(LOG_FILE))[0][1:]]
        return model, run.folder, sum(len(self.train_set) / rate for rate in rates if rate)

    def whole(self, model):
        """The network with all T timesteps, with the weights of `model`, in eval mode."""
        whole = build_model(self.args, self.train_set)
        whole.load_state_dict(model.state_dict())
        return whole.eval()

    def line(self, stage, number, steps, model, masks, seconds, scored=0.0):
        """The line of a round in pruning.jsonl, written if it is not there yet; what is measured is with all T.
        `seconds` of training, `scored` of scoring the weights."""
        lines = of_all(self.run.lines(PRUNING_FILE))[0]
        found = next((x for x in lines if (x["search"], x["stage"], x["round"]) == (self.rule, stage, number)), None)
        if found is None:
            whole = self.whole(model)
            with StopSignals() as stop:
                accuracy = evaluate(whole, self.test_set, self.args, stop)["prefix_accuracy"]
                fisher = measure(self.args, whole, self.subset, "data", stop)[0]
            found = {"search": self.rule, "stage": stage, "round": number, "sparsity": pruning.sparsity(masks)}
            found |= {"timestep": steps, "test_accuracy": accuracy[-1], "prefix_accuracy": accuracy}
            found |= {"ic": fisher["ic"], "fisher": fisher["fisher"], "seconds": seconds}
            # What the search needs beside training.
            found["rule_seconds"] = scored + (fisher["seconds"] if self.measured(number) else 0.0)
            found["synaptic_operations"] = pruning.synaptic_operations(whole, masks, self.subset.x)
            self.run.append(PRUNING_FILE, found)
        tqdm.write(
            f"{self.rule:>8} {stage:>7} {number:5d} {steps:5d}  {100 * found['sparsity']:8.2f}  "
            f"{found['test_accuracy']:8.4f}  {found['ic']:5.2f}  {found['seconds']:8.1f}  "
            f"{found['synaptic_operations']:10.3g}"
        )
        return found

    def measured(self, number):
        """Whether the rule itself needs the Fisher information of that round."""
        return self.rule == "fisher" and (number == 0 or self.args.adapt)

    def steps_after(self, steps, line, folder):
        """How many timesteps the next round runs."""
        if self.measured(line["round"]):
            return fewest_by_information(line["fisher"], self.args.information_share)
        if self.rule == "kl" and line["round"] == 0:
            early = build_model(self.args, self.train_set).eval()
            path = folder / f"checkpoint_{KL_EPOCH:04d}.pt"
            load_weights(early, load_checkpoint(path), path, self.args)
            with torch.no_grad():
                return fewest_by_kl(torch.cat(of_all(early(self.subset.x).cpu()), 1))
        return steps

    def scores(self, model, masks, steps):
        if self.args.prune_by == "magnitude":
            return pruning.magnitude(model, masks)
        x = self.subset.x[:, :steps] if self.subset.x.dim() == 5 else self.subset.x
        scores = pruning.fisher_saliency(model.eval(), masks, x, self.subset.y)
        for score in scores.values() if processes() > 1 else ():  # of this process's samples
            dist.all_reduce(score.mul_(len(x) / self.subset.total))
        return scores

    def rewound(self, model, folder):
        """The checkpoint that rounds after the first start from; None is initialisation."""
        if self.args.no_rewind:
            return {"state_dict": model.state_dict(), "epoch": 0}
        if not self.args.rewind_epoch:
            return None
        return load_checkpoint(folder / f"checkpoint_{self.args.rewind_epoch:04d}.pt")

    def go(self):
        """Search, and train the networks of --final_rounds with all timesteps."""
        args, finals = self.args, self.args.final_rounds
        steps = int(self.rule) if self.rule.isdigit() else args.timestep
        masks, before, first = pruning.all_kept(build_model(args, self.train_set), args.prune_stem), None, None
        for number in range(1 if self.rule == "one_shot" else max(finals)):
            model, folder, seconds = self.train(f"round_{number:02d}", steps, masks, before)
            begun = time.perf_counter()
            scores = self.scores(model, masks, steps)
            next(iter(scores.values())).sum().item()  # waits for the device
            scored = time.perf_counter() - begun if args.prune_by == "fisher" else 0.0  # magnitudes cost nothing
            line = self.line("search", number, steps, model, masks, seconds, scored)
            if steps == args.timestep and number in finals:
                self.line("final", number, steps, model, masks, seconds)
            elif number in finals:
                self.final(number, masks, before)
            if self.rule != "one_shot":
                masks = pruning.prune(scores, masks, args.prune_rate)
            steps = self.steps_after(steps, line, folder)
            first = first or folder
            before = self.rewound(model, first)
        if self.rule == "one_shot":
            for number in finals:
                self.final(number, pruning.prune(scores, masks, 1 - (1 - args.prune_rate) ** number), before)
        else:
            self.final(max(finals), masks, before)

    def final(self, number, masks, before):
        model, _, seconds = self.train(f"final_{number:02d}", self.args.timestep, masks, before)
        self.line("final", number, self.args.timestep, model, masks, seconds)


def main(argv=None):
    args = config.parse("prune_snn", argv, __doc__)
    _, train_set, test_set, corrupted = setup(args)
    subset = fisher_subsets(args, train_set, test_set)["train"]
    with run_folder(args, train_set.labels.device) as run:
        record_corruption(args, run, test_set, corrupted)
        run.keep_lines(PRUNING_FILE, lambda line: True)  # drops a line that a killed process left torn
        print(f"{'search':>8} {'stage':>7} round steps  sparsity  accuracy     IC   seconds  operations")
        for rule in args.search_timestep:
            Search(args, run, rule, train_set, test_set, subset).go()
        if rank() == 0:
            figure = plots.pruning([run.folder], run.folder / "figures" / "pruning.png")
            print(f"run folder {run.folder}\nfigure     {figure}")


if __name__ == "__main__":
    run_script(main, "prune_snn.py")
