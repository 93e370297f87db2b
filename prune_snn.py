"""Iterative pruning whose search runs only the timesteps that carry the information.

    python prune_snn.py --dataset digits --rounds 8 --search_timestep full fisher kl

Each of --search_timestep is a search of --rounds rounds: train, prune --prune_rate of the kept
weights, rewind the others to their values after --rewind_epoch. The rule says how many timesteps
the rounds run. `full`: all T. A number: that many. `fisher`: T in the first round; then the fewest
whose share of sum_t I_t reaches --information_share. `kl`: T in the first round; then the fewest T'
with KL(P_T' || P_T) / KL(P_2 || P_T) below 0.6 two epochs into training (early-time tickets, Kim et
al. 2022, "Exploring Lottery Ticket Hypothesis in Spiking Neural Networks"). `one_shot` trains once
and prunes to each sparsity at once. The networks after --final_rounds are trained with all T.

The folder runs/<name>_pruning has pruning.jsonl (a line a round), figures/pruning.png, and a run
folder for every round with masks in its checkpoints and masks.json. --resume goes on after the last
finished epoch of a round.
"""

from argparse import Namespace
from dataclasses import replace

import torch
from tqdm import tqdm

import config
import plots
import pruning
from fisher import prefix_outputs
from train_snn import build_model, evaluate, fit, run_folder, setup
from train_snn_fisherinfo import Measurement, fisher_subset, measure
from utils import LOG_FILE, PRUNING_FILE, Run, load_checkpoint, run_script

KL_EPOCH, KL_RATIO = 2, 0.6  # of the early-time ticket rule
MASKS_FILE = "masks.json"


def fewest_by_information(curve, share):
    """The fewest timesteps t with I_1 + ... + I_t of at least `share` of the sum of the curve
    [T]."""
    sums = torch.tensor(curve, dtype=torch.float64).cumsum(0)
    return int((sums < share * sums[-1]).sum().clamp(max=len(curve) - 1)) + 1


def fewest_by_kl(outputs):
    """The fewest timesteps t > 2 with KL(P_t || P_T) / KL(P_2 || P_T) below KL_RATIO, else T. P_t
    is the prediction of prefix t of the outputs [T, N, classes]; KL is a mean over samples."""
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

    def search(self):
        """Go through the rounds, and train the networks of --final_rounds with all timesteps."""
        args, finals = self.args, self.args.final_rounds
        masks = pruning.all_kept(build_model(args, self.train_set))
        steps = int(self.rule) if self.rule.isdigit() else args.timestep
        model, folder, seconds = self.train("round_00", steps, masks, None)
        line = self.record("search", 0, steps, model, masks, seconds)
        start = None  # the checkpoint that later rounds start from; None is initialisation
        if args.rewind_epoch:
            start = load_checkpoint(folder / f"checkpoint_{args.rewind_epoch:04d}.pt")
        if self.rule == "one_shot":
            for number in finals:
                rate = 1 - (1 - args.prune_rate) ** number
                self.final(number, pruning.prune(model, masks, rate), start)
            return
        steps = self.steps_after(line, steps, folder)
        for number in range(1, finals[-1]):
            masks = pruning.prune(model, masks, args.prune_rate)
            model, _, seconds = self.train(f"round_{number:02d}", steps, masks, start)
            self.record("search", number, steps, model, masks, seconds)
            if number in finals and steps == args.timestep:
                self.record("final", number, steps, model, masks, seconds)
            elif number in finals:
                self.final(number, masks, start)
        self.final(finals[-1], pruning.prune(model, masks, args.prune_rate), start)

    def final(self, number, masks, start):
        """Train the network after so many rounds with all timesteps."""
        steps = self.args.timestep
        model, _, seconds = self.train(f"final_{number:02d}", steps, masks, start)
        self.record("final", number, steps, model, masks, seconds)

    def train(self, name, steps, masks, start):
        """Train a network of so many timesteps from the checkpoint `start`, in the folder of that
        name. Returns it, its folder and the seconds it took."""
        epochs = [*self.args.save_epochs, str(KL_EPOCH), str(max(1, self.args.rewind_epoch))]
        place = {"out_dir": str(self.run.folder / self.rule), "exp_name": name, "resume": True}
        settings = vars(self.args) | place | {"timestep": steps, "save_epochs": epochs}
        args = Namespace(**settings)
        model = build_model(args, self.train_set, args.checkpoint_activations)
        if start:
            model.load_state_dict(start["state_dict"])
        pruning.apply(model, masks)
        folder = self.run.folder / self.rule / name
        with Run(folder, args, self.train_set.device) as run:
            sets = [first_steps(dataset, steps) for dataset in (self.train_set, self.test_set)]
            epoch = start["epoch"] if start else 0
            fit(args, run, model, *sets, lambda line: None, masks=masks, start=epoch)
            run.write_json(MASKS_FILE, pruning.counts(masks))
            rates = [line["images_per_second"] for line in run.lines(LOG_FILE)[1:]]
        return model, folder, sum(len(self.train_set) / rate for rate in rates)

    def record(self, stage, number, steps, model, masks, seconds):
        """The line of a round in pruning.jsonl, measured if it is not there yet, and printed;
        `seconds` are of training."""
        names = {"search": self.rule, "stage": stage, "round": number}
        lines = [x for x in self.run.lines(PRUNING_FILE) if names.items() <= x.items()]
        if lines:
            line = lines[0]
        else:
            line = names | {"sparsity": pruning.sparsity(masks), "timestep": steps}
            line |= self.measured(model, masks) | {"seconds": seconds}
            if self.rule != "fisher" or stage != "search" or number:  # the rule does not need them
                line["rule_seconds"] = 0.0
            self.run.append(PRUNING_FILE, line)
        tqdm.write(
            f"{self.rule:>8} {stage:>7} {number:5d} {steps:5d}  {100 * line['sparsity']:8.2f}  "
            f"{line['test_accuracy']:8.4f}  {line['ic']:5.2f}  {line['seconds']:8.1f}  "
            f"{line['synaptic_operations']:10.3g}"
        )
        return line

    def measured(self, model, masks):
        """The part of a line that is measured with all T timesteps."""
        whole = build_model(self.args, self.train_set)
        whole.load_state_dict(model.state_dict())
        accuracy = evaluate(whole, self.test_set, self.args)["prefix_accuracy"]
        measurement = Measurement(batch=self.args.fisher_batch, seed=self.args.seed)
        fisher = measure(measurement, whole, self.subset)[0]
        return {
            "test_accuracy": accuracy[-1],
            "prefix_accuracy": accuracy,
            "ic": fisher["ic"],
            "fisher": fisher["fisher"],
            "rule_seconds": fisher["seconds"],
            "synaptic_operations": pruning.synaptic_operations(whole, masks, self.subset.x),
        }

    def steps_after(self, line, steps, folder):
        """How many timesteps the rounds after the first run."""
        if self.rule == "fisher":
            return fewest_by_information(line["fisher"], self.args.information_share)
        if self.rule != "kl":
            return steps
        path = folder / f"checkpoint_{KL_EPOCH:04d}.pt"
        early = build_model(self.args, self.train_set).eval()
        early.load_state_dict(load_checkpoint(path)["state_dict"])
        with torch.no_grad():
            parts = [early(x) for x in self.subset.x.split(self.args.batch_size)]
        return fewest_by_kl(torch.cat(parts, 1))


def main(argv=None):
    args = config.parse("prune_snn", argv, __doc__)
    _, train_set, test_set, replaced = setup(args)
    subset = fisher_subset(args, train_set, "train")
    with run_folder(args, test_set, replaced) as run:
        columns = "steps  sparsity  accuracy     IC   seconds  operations"
        print(f"{'search':>8} {'stage':>7} round {columns}")
        for rule in args.search_timestep:
            Search(args, run, rule, train_set, test_set, subset).search()
        figure = plots.pruning([run.folder], run.folder / "figures" / "pruning.png")
        print(f"run folder {run.folder}\nfigure     {figure}")


if __name__ == "__main__":
    run_script(main, "prune_snn.py")
