"""Iterative pruning whose search runs only the timesteps that carry the information.

    python prune_snn.py --dataset digits --rounds 8 --search_timestep full fisher kl

Each value of --search_timestep is a search of --rounds rounds. A round trains, prunes --prune_rate
of the kept weights and rewinds the others to their values after --rewind_epoch. The value says how
many timesteps a round runs:

    full      all T; a number: that many
    fisher    T in the first round, then the fewest with --information_share of sum_t I_t
    kl        T in the first round, then the fewest T' with KL(P_T' || P_T) / KL(P_2 || P_T) below
              0.6 after two epochs of training (early-time tickets, Kim et al., ECCV 2022)
    one_shot  all T; it trains once and prunes to each sparsity at once

The networks of --final_rounds are trained with all T at the end. The folder runs/<name>_pruning has
pruning.jsonl (one line per round), figures/pruning.png, and a run folder for every round. --resume
goes on after the last finished epoch of a round.
"""

import copy
import statistics
import time

import torch
from tqdm import tqdm

import config
import pruning
from drawing.pruning import error_figure
from fisher import measure, prefix_outputs
from train_snn import build_model, compile_neurons, evaluate, fit, setup
from train_snn_fisherinfo import fisher_batches
from utils import LOG_FILE, PRUNING_FILE, Run, load_checkpoint, run_script

KL_EPOCH, KL_RATIO = 2, 0.6  # of the early-time ticket rule


def fewest_by_information(curve, share):
    """The fewest timesteps t with I_1 + ... + I_t at least `share` of the sum of the curve [T]."""
    sums = torch.tensor(curve, dtype=torch.float64).cumsum(0)
    return (sums < share * sums[-1]).sum().item() + 1


def fewest_by_kl(outputs):
    """The fewest timesteps t > 2 with KL(P_t || P_T) / KL(P_2 || P_T) below KL_RATIO, else T. P_t
    is the prediction of prefix t of the outputs [T, N, classes]; KL is a mean over samples."""
    logs = prefix_outputs(outputs.double()).log_softmax(2)
    divergence = (logs.exp() * (logs - logs[-1])).sum(2).mean(1)  # (T,)
    for t in range(3, len(outputs)):
        if divergence[t - 1] < KL_RATIO * divergence[1]:
            return t
    return len(outputs)


class Search:
    """The search for one of --search_timestep: a folder and a line of pruning.jsonl per round."""

    def __init__(self, args, run, rule, train_set, test_set, batches):
        self.args, self.run, self.rule, self.folder = args, run, rule, run.folder / rule
        self.train_set, self.test_set = train_set, test_set
        self.batches = batches  # for the Fisher information

    def search(self, masks):
        """Go through the rounds, and train the networks of --final_rounds with all timesteps. The
        `masks` keep all weights."""
        args = self.args
        model = build_model(args, self.train_set)
        early = {"state_dict": model.state_dict(), "epoch": 0}
        steps = int(self.rule) if self.rule.isdigit() else args.timestep
        model, seconds = self.train("round_00", steps, masks, early)
        clock = time.perf_counter()
        later_steps = self.fewest_timesteps(model, steps)
        rule_seconds = time.perf_counter() - clock
        self.record("search", 0, steps, model, masks, seconds, rule_seconds)
        if args.rewind_epoch:
            early = self.early_checkpoint(args.rewind_epoch)
        if self.rule == "one_shot":
            self.prune_once(model, masks, early)
        else:
            self.prune_in_rounds(model, masks, early, later_steps)

    def prune_once(self, model, masks, early):
        """Prune the trained model to each sparsity of --final_rounds at once."""
        for number in self.args.final_rounds:
            rate = 1 - (1 - self.args.prune_rate) ** number
            pruned = pruning.prune(model, masks, rate)
            self.round("final", number, self.args.timestep, pruned, early)

    def prune_in_rounds(self, model, masks, early, steps):
        """Prune the model, rewind to the checkpoint `early` and train, again and again."""
        last = self.args.final_rounds[-1]
        for number in range(1, last + 1):
            masks = pruning.prune(model, masks, self.args.prune_rate)
            if number < last:
                model = self.round("search", number, steps, masks, early)
            if number in self.args.final_rounds:
                self.round("final", number, self.args.timestep, masks, early)

    def round(self, stage, number, steps, masks, early):
        """Train a network and write its line of pruning.jsonl. Returns the network."""
        # A search with all timesteps has trained the final network already: `train` loads it.
        kind = "final" if stage == "final" and self.rule != "full" else "round"
        model, seconds = self.train(f"{kind}_{number:02d}", steps, masks, early)
        self.record(stage, number, steps, model, masks, seconds)
        return model

    def train(self, name, steps, masks, early):
        """Train a network from the checkpoint `early`. Returns it and the seconds it took."""
        args = copy.copy(self.args)
        args.out_dir, args.exp_name, args.resume = str(self.folder), name, True
        args.timestep = steps
        if self.train_set.images.dim() == 5:
            args.frames = args.frames or self.args.timestep
        args.save_epochs = [*args.save_epochs, str(KL_EPOCH), str(args.rewind_epoch)]
        model = build_model(args, self.train_set, args.checkpoint_activations)
        if args.compile:
            compile_neurons(model)
        model.load_state_dict(early["state_dict"])
        pruning.apply(model, masks)
        sets = [dataset.first_steps(steps) for dataset in (self.train_set, self.test_set)]
        with Run(args, self.train_set.device) as run:
            fit(args, run, model, *sets, lambda line: None, masks=masks, start=early["epoch"])
            rates = [line["images_per_second"] for line in run.lines(LOG_FILE)[1:]]
        # Each epoch counts as the median one, so that a pause of the machine does not count.
        seconds = len(rates) * len(self.train_set) / statistics.median(rates)
        # A resumed round with nothing left to train leaves the network in train mode.
        return model.eval(), seconds

    def early_checkpoint(self, epoch):
        """The checkpoint of the first round after that epoch."""
        return load_checkpoint(self.folder / "round_00" / f"checkpoint_{epoch:04d}.pt")

    def fewest_timesteps(self, model, steps):
        """The number of timesteps of the later rounds. The first round ran `steps`."""
        if self.rule == "fisher":
            curve = measure(model, self.batches, chunk=self.args.fisher_batch).fisher
            return fewest_by_information(curve, self.args.information_share)
        if self.rule != "kl":
            return steps
        early = build_model(self.args, self.train_set).eval()
        early.load_state_dict(self.early_checkpoint(KL_EPOCH)["state_dict"])
        with torch.no_grad():
            outputs = [early(x) for x, _ in self.batches]
        return fewest_by_kl(torch.cat(outputs, 1))

    def record(self, stage, number, steps, model, masks, seconds, rule_seconds=0.0):
        """Measure a network with all T. Append and print its line, if it is not there yet."""
        names = {"search": self.rule, "stage": stage, "round": number}
        if any(names.items() <= line.items() for line in self.run.lines(PRUNING_FILE)):
            return
        whole = build_model(self.args, self.train_set)
        whole.load_state_dict(model.state_dict())
        validation = evaluate(whole, self.test_set, self.args)
        measured = measure(whole, self.batches, chunk=self.args.fisher_batch)
        line = names | {
            "sparsity": pruning.sparsity(masks),
            "timestep": steps,
            "test_accuracy": validation["test_accuracy"],
            "prefix_accuracy": validation["prefix_accuracy"],
            "ic": measured.ic,
            "fisher": measured.fisher,
            "rule_seconds": rule_seconds,
            "synaptic_operations": sum(validation["synaptic_operations"].values()),
            "seconds": seconds,
        }
        self.run.append(PRUNING_FILE, line)
        ic = "-" if measured.ic is None else f"{measured.ic:.2f}"  # without information
        tqdm.write(
            f"{self.rule:>8} {stage:>7} {number:5d} {steps:5d}  {100 * line['sparsity']:8.2f}  "
            f"{line['test_accuracy']:8.4f}  {ic:>5}  {line['seconds']:8.1f}  "
            f"{line['synaptic_operations']:10.3g}"
        )


def main(argv=None):
    args = config.parse("prune_snn", argv, __doc__)
    model, train_set, test_set = setup(args)
    batches = fisher_batches(args, train_set)
    masks = pruning.all_kept(model.eval(), batches[0][0])
    with Run(args, test_set.device) as run:
        print("  search   stage round steps  sparsity  accuracy     IC   seconds  operations")
        for rule in args.search_timestep:
            Search(args, run, rule, train_set, test_set, batches).search(masks)
        print(f"run folder {run.folder}\nfigure     {error_figure(run.folder)}")


if __name__ == "__main__":
    run_script(main, "prune_snn.py")
