"""Train a spiking LIF network by surrogate-gradient backpropagation through time, and validate it.

The recipe of the release (ResNet19, CIFAR-10, T = 10, 300 epochs) on a GPU:

    python train_snn.py

on several, each with its share of every batch:

    torchrun --standalone --nproc_per_node=8 train_snn.py

A small VGG on the 8x8 digits, T = 8, on two CPU cores in under half a minute; test accuracy 0.98 to 0.99:

    python train_snn.py --dataset digits

Stop it with Ctrl-C, go on with `--resume`; the result is (on a CPU, bit by bit) the same as if it had not been
stopped. The run folder, runs/<name>, holds args.json, log.jsonl (a line an epoch), checkpoints and
figures/training.png.
"""

import math
import os
import shutil
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import archs
import attacks
import config
import data
import losses
import plots
import pruning
from fisher import prefix_losses, prefix_outputs
from utils import (
    BEST,
    LABELS_FILE,
    LATEST,
    LOG_FILE,
    BadInput,
    Run,
    Stopped,
    StopSignals,
    after_each,
    load_checkpoint,
    load_weights,
    no_bar,
    of_all,
    own_part,
    pick_device,
    processes,
    rank,
    run_script,
    seed_all,
)

# What `archs.build` is given under the name of its flag.
BUILT_AS_NAMED = ("arch", "timestep", "width", "layernum", "norm", "tau", "threshold", "reset", "surrogate",
                  "surrogate_alpha", "detach_membrane", "checkpoint_activations")  # fmt: skip
SILENT, SATURATED = 0.001, 0.95  # spikes per neuron and timestep
CHECK_EVERY = 50  # steps between looks at the loss: a look waits for the device
STOP_WITHIN = 5  # seconds, in which several processes hear a signal


def epoch_start():
    """Progress within an epoch before its first step: steps and images done, their summed loss and correct samples."""
    return {"step": 0, "images": 0, "loss": torch.zeros(()), "correct": torch.zeros((), dtype=torch.int64)}


def setup(args):
    """Model and data of a run: (model, training set, test set, corruption of the training labels)."""
    device = pick_device(args.device)
    if rank():
        of_all(None)  # the first process alone downloads
    train_set, test_set, corrupted = data.load(args, device)
    if rank() == 0:
        of_all(None)
    if getattr(args, "adv_train", False):
        data.need_pixels("--adv_train", train_set.images)
    model = build_model(args, train_set)
    latest = Path(args.out_dir) / config.run_name(args) / LATEST
    if args.init and not (args.resume and latest.exists()):
        load_weights(model, load_checkpoint(args.init), args.init, args)
    return model, train_set, test_set, corrupted


def build_model(args, dataset):
    """The network that `args` describe, for inputs and on the device of `dataset`."""
    seed_all(args.seed, "model")  # drawn on the CPU: the same weights for every device
    channels, *size = dataset.images.shape[-3:]
    model = archs.build(
        num_classes=dataset.num_classes,
        in_channels=channels,
        image_size=size,
        decay_input=not args.undecayed_input,
        detach_reset=not args.undetached_reset,
        **{name: getattr(args, name) for name in BUILT_AS_NAMED},
    )
    # The layout that convolutions are fastest in.
    return model.to(dataset.labels.device, memory_format=torch.channels_last)


@contextmanager
def run_folder(args, device):
    """The Run of `args`, this command's alone; that of a dry run is temporary."""
    with TemporaryDirectory() as temporary:
        out_dir = of_all(temporary)[0] if args.dry_run else args.out_dir
        with closing(Run(Path(out_dir) / config.run_name(args), args, device, args.resume)) as run:
            yield run
    if args.dry_run and rank() == 0:
        print("dry run: it went through, and its folder is deleted")


def draw_inputs(args, run, sets):
    """figures/inputs.png: the first sample of each of `sets` {name: data set}, as its network sees it."""
    rows = {}
    for name, dataset in sets.items():
        seed_all(args.seed, "evaluate", 0)
        rows[name] = dataset.shown(0)
    if rank() == 0:
        plots.inputs(run.folder, rows)


def record_corruption(args, run, test_set, corrupted):
    """Keep which labels were replaced, and draw what is done to inputs."""
    if corrupted:
        run.save(LABELS_FILE, corrupted)
    if test_set.corruption:
        draw_inputs(args, run, {"clean": replace(test_set, corruption=None), "corrupted": test_set})


def compile_neurons(model):
    """Have each layer of neurons compiled at its first training step. Raises BadInput if there is no compiler."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    variable, usual = ("CXX", ["g++"]) if on_cpu else ("CC", ["gcc", "clang"])
    if not any(map(shutil.which, [os.environ[variable]] if variable in os.environ else usual)):
        kind = f"{'C++' if on_cpu else 'C'} compiler, and there is no {' or '.join(usual)}"
        raise BadInput(f"--compile needs a {kind}: leave it out, or name one in {variable}")
    torch._dynamo.config.recompile_limit = 64  # all layers count together, with a few kinds of input for each T
    for module in model.modules():
        if isinstance(module, archs.LIF):
            module.compile()


def make_optimizer(args, model):
    """The optimizer of the parameters of `model`."""
    common = dict(lr=args.learning_rate, weight_decay=args.weight_decay)
    common["fused"] = next(model.parameters()).device.type in ("cpu", "cuda")  # one pass over each parameter
    if args.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=args.momentum, **common)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer](model.parameters(), **common)


def match_layouts(optimizer):
    """Lay out the optimizer's state as its parameters are: a fused step takes all of them in the order of memory."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def learning_rate(args, epoch):
    """Learning rate of an epoch, counted from 1: linear warm-up, then --scheduler. It has no state to resume."""
    done = epoch - 1 - args.warmup_epochs
    if done < 0:
        return args.learning_rate * epoch / (args.warmup_epochs + 1)
    if args.scheduler == "cosine":
        return args.learning_rate * (1 + math.cos(math.pi * done / (args.epochs - args.warmup_epochs))) / 2
    return args.learning_rate * (args.lr_gamma ** (done // args.lr_step) if args.scheduler == "step" else 1)


@torch.no_grad()
def evaluate(model, dataset, args, stop):
    """Loss (nats) and accuracy of every prefix t = 1..T, and spikes per neuron and timestep of each LIF layer."""
    model.eval()
    rates = {}

    def count_spikes(name, module, inputs, spikes):
        rates[name] = rates.get(name, 0) + spikes.mean() * spikes.shape[1]

    loss = correct = torch.zeros(args.timestep)
    batches = torch.arange(len(dataset), device=dataset.labels.device).split(args.batch_size)
    dataset.expect(batches[rank() :: processes()])
    with after_each(model, archs.LIF, count_spikes):
        for number in range(rank(), len(batches), processes()):
            seed_all(args.seed, "evaluate", number)
            x, y = dataset.batch(batches[number])
            outputs = model(x)  # (T, N, classes)
            loss = loss.to(x.device) + prefix_losses(outputs, y).sum(1)
            correct = correct.to(x.device) + (prefix_outputs(outputs).argmax(2) == y).sum(1)
            stop.check()
    sums = of_all((loss.cpu(), correct.cpu(), {name: rate.item() for name, rate in rates.items()}))
    loss_sums, corrects, rates = zip(*sums)
    return {
        "prefix_loss": (sum(loss_sums) / len(dataset)).tolist(),
        "prefix_accuracy": (sum(corrects) / len(dataset)).tolist(),
        "spike_rate": {name: sum(rate.get(name, 0) for rate in rates) / len(dataset) for name in rates[0]},
    }


def check_finite(value, epoch, step):
    """Raise BadInput if `value` is not finite, before anything of this epoch is saved."""
    if not math.isfinite(value):
        raise BadInput(
            f"the loss or a gradient is not finite at epoch {epoch}, step {step}: try a lower --learning_rate; "
            f"what is on disk is from before"
        )


def adversarial(args, model, dataset, x, y, size, part):
    """The pixels x, which are that part of a batch, attacked. BatchNorm is in eval mode meanwhile: its running
    statistics do not see the attempts."""
    model = getattr(model, "module", model)  # the attempts are each process's own
    model.eval()
    attack = attacks.make(args, args.attack_method, args.eps)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp == "bf16"):
        x = attack(lambda pixels: model(dataset.encode(pixels, size, part)), x, y, size, part)
    model.train()
    return x


def train_epoch(args, at, model, optimizer, train_set, stop):
    """Train the epoch after `at`, from its step on, and keep `at` up to date. Returns the images a second, or None.

    Raises BadInput if a loss or gradient is not finite, Stopped (between two steps) after a signal.
    """
    model.train()
    epoch, device = at["epoch"] + 1, train_set.labels.device
    seed_all(args.seed, "order", epoch)
    batches = torch.randperm(len(train_set), device=device).split(args.batch_size)
    if len(batches[-1]) < 2 * processes():
        batches = batches[:-1]  # BatchNorm has no statistics of one sample
    parameters, loss_of = [p for p in model.parameters() if p.requires_grad], losses.make(args)
    # Sums of this process; those of a resumed epoch go on in the first one.
    loss_sum, correct = (at[name].to(device) * (rank() == 0) for name in ("loss", "correct"))
    first_bad = torch.tensor(len(batches), device=device)
    todo = batches[at["step"] :]
    train_set.expect(todo, [own_part(len(batch)) for batch in todo])
    seen, begun, start = at["images"], at["step"], time.perf_counter()
    look = begun + (CHECK_EVERY if processes() == 1 else 1)  # the step after which sums are read and signals heard
    for step in tqdm(range(at["step"], len(batches)), f"epoch {epoch}", disable=no_bar(), leave=False):
        seed_all(args.seed, "step", epoch, step)
        part = own_part(len(batches[step]))
        x, y = train_set.pixels(batches[step], augment=True, part=part)
        if args.adv_train:
            x = adversarial(args, model, train_set, x, y, len(batches[step]), part)
        x = train_set.encode(x, len(batches[step]), part)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
            outputs = model(x).float()  # (T, N, classes)
        loss = loss_of(outputs, y)
        optimizer.zero_grad()
        # Gradients of the processes are averaged: a larger share counts for more.
        (loss * (len(y) * processes() / len(batches[step]))).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        first_bad = torch.where(torch.isfinite(loss + norm), first_bad, first_bad.clamp(max=step))
        optimizer.step()
        loss_sum += loss.detach() * len(y)
        correct += (outputs.detach().mean(0).argmax(1) == y).sum()
        at["step"], at["images"] = step + 1, at["images"] + len(batches[step])
        alone = stop.requested and processes() == 1
        if alone or at["step"] == look or at["step"] == len(batches):
            found = (first_bad.item(), loss_sum.cpu(), correct.cpu())  # waits for the device
            pace = (time.perf_counter() - start) / (at["step"] - begun)
            paces, bad, loss_sums, corrects = zip(*of_all((pace, *found)))
            # Several processes hear a signal here alone: every few seconds.
            look += CHECK_EVERY if processes() == 1 else max(1, min(CHECK_EVERY, int(STOP_WITHIN / max(paces))))
            check_finite(float("nan") if min(bad) < len(batches) else 0, epoch, min(bad) + 1)
            at["loss"], at["correct"] = sum(loss_sums), sum(corrects)
            stop.check(together=True)
    for buffer in model.buffers() if processes() > 1 else ():  # running statistics: those of the first process
        dist.broadcast(buffer, 0)
    seen = at["images"] - seen
    return seen / (time.perf_counter() - start) if seen else None


def fit(args, run, model, train_set, test_set, after_epoch, masks=None, start=0):
    """Train `model` in place and write the run folder; go on with it if `args.resume` and there is a checkpoint.

    after_epoch(line, stop) is called with each new line of log.jsonl, epoch 0 (before training) included, and again
    with the last one when a run is resumed. At that moment the epoch's checkpoint is on disk. It may call stop.check()
    and draw random numbers: neither changes the training. The weights that `masks` prune stay 0; `start` is the number
    of epochs that the model has behind it. With --test_samples it is validated on so many of `test_set`, and the best
    checkpoint is the best on these.

    Raises BadInput if a loss or gradient is not finite, and Stopped after a signal, when everything is saved.
    """
    if args.test_samples:
        seed_all(0, "subset")  # the same for every --seed
        test_set = test_set.subset(torch.randperm(len(test_set))[: args.test_samples])
    if processes() > 1 and min(args.batch_size, len(train_set)) < 2 * processes():
        raise BadInput(f"{processes()} processes need --batch_size and training samples of {2 * processes()} or more")
    if args.compile:
        compile_neurons(model)
    optimizer = make_optimizer(args, model)
    if masks:
        pruning.hold(optimizer, model, masks)
    # Finished epochs, the best test accuracy so far, and the progress within the next epoch.
    at = {"epoch": start, "best": -1.0} | epoch_start()
    if args.resume and run.path(LATEST).exists():
        checkpoint = load_checkpoint(run.path(LATEST))
        load_weights(model, checkpoint, run.path(LATEST), args)
        if "progress" not in checkpoint:
            raise BadInput(f"{run.path(LATEST)} has weights alone: start a new run from it with --init")
        optimizer.load_state_dict(checkpoint["optimizer"])
        match_layouts(optimizer)
        at = checkpoint["progress"]
    elif len(run.lines(LOG_FILE)) > 2:  # a kill in the first epoch leaves the lines of epochs 0 and 1 at most
        raise BadInput(f"{run.folder} has epochs in {LOG_FILE} but no {LATEST}: restore it, or start another run")
    run.keep_lines(LOG_FILE, lambda line: line["epoch"] <= at["epoch"])
    replica = model
    if processes() > 1:
        device = train_set.labels.device
        replica = DistributedDataParallel(model, [device] if device.type == "cuda" else None)
        replica.broadcast_buffers = args.adv_train  # a step reads running statistics in an attack alone
    keep_at = config.expand_epochs(args.save_epochs, args.epochs)
    warned = set()

    def weights():
        content = {"state_dict": model.state_dict(), "args": vars(args), "epoch": at["epoch"]}
        return content | ({"masks": masks} if masks else {})

    def save_latest():
        run.save(LATEST, weights() | {"optimizer": optimizer.state_dict(), "progress": at})

    def log(line, found):
        line |= {"test_loss": found["prefix_loss"][-1], "test_accuracy": found["prefix_accuracy"][-1]} | found
        run.append(LOG_FILE, line)
        for word, odd in (("silent", lambda rate: rate <= SILENT), ("saturated", lambda rate: rate >= SATURATED)):
            names = [name for name, rate in found["spike_rate"].items() if odd(rate) and name not in warned]
            if names and line["epoch"]:
                warned.update(names)
                if rank() == 0:
                    tqdm.write(f"warning: {word} after epoch {line['epoch']}: {', '.join(names)}", sys.stderr)
        return line

    with StopSignals() as stop:
        lines = of_all(run.lines(LOG_FILE))[0]
        if not lines:
            before = dict.fromkeys(("lr", "train_loss", "train_accuracy", "images_per_second"))
            lines = [log({"epoch": start} | before, evaluate(model, test_set, args, stop))]
        line = lines[-1]
        if at["step"] == 0:
            after_epoch(line, stop)
        for epoch in tqdm(range(at["epoch"] + 1, args.epochs + 1), "epochs", disable=no_bar(), leave=False):
            try:
                stop.check(together=True)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(args, epoch)
                rate = train_epoch(args, at, replica, optimizer, train_set, stop)
                found = evaluate(model, test_set, args, stop)
                check_finite(sum(found["prefix_loss"]), epoch, at["step"])
            except Stopped:
                save_latest()
                raise
            line = {"epoch": epoch, "lr": learning_rate(args, epoch), "images_per_second": rate}
            line["train_loss"] = at["loss"].item() / at["images"]
            line["train_accuracy"] = at["correct"].item() / at["images"]
            # The line before the checkpoint: a resumed run drops lines that are past its checkpoint.
            line = log(line, found)
            improved = line["test_accuracy"] > at["best"]
            at = {"epoch": epoch, "best": max(at["best"], line["test_accuracy"])} | epoch_start()
            if improved:
                run.save(BEST, weights())
            if epoch in keep_at:
                run.save(f"checkpoint_{epoch:04d}.pt", weights())
            save_latest()
            after_epoch(line, stop)
    return line


def print_line(line, stop):
    """One line an epoch on standard output."""
    if line["epoch"] == 0:
        tqdm.write("epoch        lr  train loss  accuracy  test loss  accuracy  images/s")
        return
    tqdm.write(
        f"{line['epoch']:5d}  {line['lr']:8.5f}  {line['train_loss']:10.4f}  {line['train_accuracy']:8.4f}  "
        f"{line['test_loss']:9.4f}  {line['test_accuracy']:8.4f}  {line['images_per_second'] or float('nan'):8.0f}"
    )


def main(argv=None):
    args = config.parse("train_snn", argv, __doc__)
    model, train_set, test_set, corrupted = setup(args)
    with run_folder(args, train_set.labels.device) as run:
        record_corruption(args, run, test_set, corrupted)
        line = fit(args, run, model, train_set, test_set, print_line)
        if rank() == 0:
            print(f"test accuracy {line['test_accuracy']:.4f} after {line['epoch']} epochs")
            print(f"run folder {run.folder}\nfigure     {plots.training(run.folder)}")


if __name__ == "__main__":
    run_script(main, "train_snn.py")
