"""Train a spiking LIF network by surrogate-gradient backpropagation through time, and validate it.

The recipe of the release (ResNet19, CIFAR-10, T = 10, 300 epochs), on one GPU and on eight:

    python train_snn.py
    torchrun --standalone --nproc_per_node=8 train_snn.py

A small VGG on the 8x8 digits, T = 8, in under half a minute on two CPU cores:

    python train_snn.py --dataset digits

Ctrl-C stops a run. The same command with --resume goes on after the last finished epoch. On a CPU
the result is bit by bit that of a run that was never stopped. The run folder runs/<name> has
args.json, log.jsonl (one line per epoch), checkpoints and figures/training.png.
"""

import math
import os
import shutil
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import archs
import attacks
import config
import data
import losses
import plots
import pruning
import tables
import user_code
import utils
from fisher import prefix_losses, prefix_outputs
from operations import count_operations, count_spikes, operations_per_image, spike_rates
from parser import expand_epochs
from utils import BEST, LATEST, LOG_FILE, BadInput, Run, of_all, processes, rank

# ---------------------------------------------------------------- the network and the folder


def build_model(args, dataset, checkpoint_activations=False):
    """Build the network that `args` describe, for the inputs and on the device of `dataset`. Raises
    BadInput if a user's function does not return one."""
    utils.seed_all(args.seed, "model")  # drawn on the CPU: the same weights for every device
    channels, *size = dataset.images.shape[-3:]
    names = ("timestep", *user_code.NETWORK_FLAGS)
    settings = {name: getattr(args, name) for name in names} | {
        "num_classes": dataset.num_classes,
        "in_channels": channels,
        "image_size": size,
        "checkpoint_activations": checkpoint_activations,
        "decay_input": not args.undecayed_input,
        "detach_reset": not args.undetached_reset,
    }
    if not user_code.is_code(args.arch):
        model = archs.build(args.arch, layernum=args.layernum, **settings)
        return model.to(dataset.device, memory_format=archs.fastest_layout(model))
    model = user_code.call(args.arch, settings)
    scripted = isinstance(model, torch.jit.ScriptModule)  # it takes no hooks
    if scripted or not isinstance(model, nn.Module):
        raise BadInput(f"{args.arch} must return a torch.nn.Module, not {type(model).__name__}")
    return model.to(dataset.device)


def setup(args):
    """Make (model, training set, test set) for a training script. Raises BadInput for data, a
    network or flags that do not fit."""
    train_set, test_set = data.load(args, utils.pick_device(args.device))
    corruption = data.make_corruption(args, train_set, test_set)
    train_set, test_set = (replace(s, corruption=corruption) for s in (train_set, test_set))
    if args.adv_train:
        data.need_pixels("--adv_train", train_set)
    if min(args.batch_size, len(train_set)) < 2 * processes():
        raise BadInput(f"{processes()} processes need at least {2 * processes()} samples per batch")
    model = build_model(args, train_set, args.checkpoint_activations)
    user_code.check_network(args, model, train_set)
    if args.compile and not archs.lif_layers(model):
        raise BadInput(
            f"--compile compiles archs.LIF neurons; {args.arch} has none: leave out --compile"
        )
    if args.compile:
        compile_neurons(model)
    latest = Path(args.out_dir) / args.exp_name / LATEST
    if args.init and not latest.exists():  # a resumed run has its own weights
        utils.load_weights(model, utils.load_checkpoint(args.init), args.init, args)
    return model, train_set, test_set


# ---------------------------------------------------------------- an epoch


def make_optimizer(args, model):
    """Make the optimizer for the parameters of `model`."""
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "fused": True}
    if args.optimizer == "sgd":
        options |= {"momentum": args.momentum, "dampening": args.dampening}
    return kinds[args.optimizer](model.parameters(), **options)


def learning_rate(args, epoch):
    """The learning rate of an epoch, from 1: linear warm-up, then --scheduler."""
    done = epoch - 1 - args.warmup_epochs
    if done < 0:
        return args.learning_rate * epoch / (args.warmup_epochs + 1)
    if args.scheduler == "cosine":
        share = done / (args.epochs - args.warmup_epochs)
        return args.learning_rate * (1 + math.cos(math.pi * share)) / 2
    if args.scheduler == "step":
        return args.learning_rate * args.lr_gamma ** (done // args.lr_step)
    return args.learning_rate


def adversarial(args, model, dataset, x, y):
    """Attack the pixels x. BatchNorm is in eval mode, so its statistics do not change."""
    model.eval()
    attack = attacks.make(args, args.attack_method, args.eps)
    x = attack(lambda pixels: model(dataset.encode(pixels)), x, y)
    model.train()
    return x


def check_finite(values, place, cure="try a lower --learning_rate; the last checkpoint is kept"):
    """Raise BadInput if one of the losses or gradient norms `values` is not finite."""
    if not torch.as_tensor(values).isfinite().all():
        raise BadInput(f"the loss or a gradient is not finite {place}: {cure}")


def train_epoch(args, model, optimizer, train_set, epoch):
    """Train one epoch. Returns {"train_loss", "train_accuracy", "images_per_second"}.

    Raises BadInput if a loss or a gradient is not finite.
    """
    model.train()
    network = getattr(model, "module", model)  # without DistributedDataParallel
    loss_of = losses.make(args)
    autocast = torch.autocast(train_set.device.type, torch.bfloat16, enabled=args.amp == "bf16")
    steps, correct, images, start = [], 0, 0, time.perf_counter()
    batches = train_set.batches(args.batch_size, args.seed, epoch, augment=not args.no_augment)
    hidden = True if rank() else None  # None: the bar is only in a terminal
    for x, y in tqdm(batches, f"epoch {epoch}", disable=hidden, leave=False):
        if args.adv_train:
            with autocast:  # a context of its own: it keeps weights cast without a graph
                x = adversarial(args, network, train_set, x, y)
        with autocast:
            outputs = model(train_set.encode(x)).float()  # (T, N, classes)
        loss = loss_of(outputs, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        steps.append(torch.stack([loss.detach() * len(y), norm]))
        correct += (outputs.detach().mean(0).argmax(1) == y).sum()
        images += len(y)
    steps = torch.stack(steps).cpu()  # (steps, 2)
    for number, step in enumerate(steps, 1):
        check_finite(step, f"in epoch {epoch}, step {number}")
    if processes() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)  # running statistics: those of the first process
    sums = of_all((steps[:, 0].double().sum().item(), correct.item(), images))
    loss_sum, correct, images = (sum(values) for values in zip(*sums))
    return {
        "train_loss": loss_sum / images,
        "train_accuracy": correct / images,
        "images_per_second": images / (time.perf_counter() - start),
    }


@torch.no_grad()
def evaluate(model, dataset, args):
    """Validate the model. Returns the fields of log.jsonl: loss (nats) and accuracy after each t,
    spikes per neuron and timestep of each spiking layer, and operations per image of each layer
    with weights. Several processes share the batches."""
    model.eval()
    loss = torch.zeros(args.timestep, device=dataset.device)
    correct = torch.zeros_like(loss)
    spiking = archs.lif_layers(model) or user_code.spiking_layers(model, dataset, args)
    batches = dataset.batches(args.batch_size, args.seed)
    with count_spikes(model, spiking) as spike_counts, count_operations(model) as counts:
        for x, y in islice(batches, rank(), None, processes()):
            outputs = model(dataset.encode(x))  # (T, N, classes)
            loss = loss + prefix_losses(outputs, y).sum(1)
            correct = correct + (prefix_outputs(outputs).argmax(2) == y).sum(1)
    loss_sums, corrects = zip(*of_all((loss.cpu(), correct.cpu())))
    prefix_loss = sum(loss_sums) / len(dataset)
    prefix_accuracy = (sum(corrects) / len(dataset)).tolist()
    return {
        "test_loss": prefix_loss[-1].item(),
        "test_accuracy": prefix_accuracy[-1],
        "prefix_loss": prefix_loss.tolist(),
        "prefix_accuracy": prefix_accuracy,
        "spike_rate": spike_rates(spike_counts),
    } | operations_per_image(counts, len(dataset), args.timestep)


# ---------------------------------------------------------------- a run


def fit(args, run, model, train_set, test_set, after_epoch, masks=None, start=0):
    """Train `model` in place and write the run folder, or resume it. Returns the last line.

    Calls after_epoch(line) for each new line of log.jsonl, from epoch 0 (before training), and for
    the last line of a resumed run. By then the checkpoint is on disk. after_epoch may draw random
    numbers. The weights that `masks` prune stay 0. `start` is the epoch of the weights.

    Raises BadInput if a loss is not finite.
    """
    if args.test_samples:
        utils.seed_all(0, "subset")  # the same for every --seed
        test_set = test_set.subset(torch.randperm(len(test_set))[: args.test_samples])
    optimizer = make_optimizer(args, model)
    if masks:
        pruning.hold(optimizer, model, masks)
    done = resume(args, run, model, optimizer, start)
    log = [line for line in run.lines(LOG_FILE) if line["epoch"] <= done]
    if not log:
        untrained = dict.fromkeys(("lr", "train_loss", "train_accuracy", "images_per_second"))
        validation = evaluate(model, test_set, args)
        check_finite(validation["prefix_loss"], "before training", "check the weights and the data")
        log = [{"epoch": start} | untrained | validation]
    run.write_lines(LOG_FILE, log)
    after_epoch(log[-1])
    replica = model
    if processes() > 1:
        replica = DistributedDataParallel(model)
        replica.broadcast_buffers = False  # train_epoch broadcasts the buffers, once
    for epoch in range(done + 1, args.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, epoch)
        trained = train_epoch(args, replica, optimizer, train_set, epoch)
        validation = evaluate(model, test_set, args)
        check_finite(validation["prefix_loss"], f"in the validation of epoch {epoch}")
        if epoch in (1, args.epochs):
            tables.warn_of_spike_rates(validation["spike_rate"], epoch)
        log.append({"epoch": epoch, "lr": learning_rate(args, epoch)} | trained | validation)
        # First the line, then the checkpoint: a resumed run drops lines past its checkpoint.
        run.write_lines(LOG_FILE, log)
        save(args, run, model, optimizer, masks, log)
        after_epoch(log[-1])
    return log[-1]


def save(args, run, model, optimizer, masks, log):
    """Write the checkpoints of the last epoch of `log`."""
    epoch = log[-1]["epoch"]
    accuracies = [line["test_accuracy"] for line in log[1:]]  # after training
    best = max(accuracies)
    weights = {"state_dict": model.state_dict(), "args": vars(args), "epoch": epoch}
    if masks:
        weights["masks"] = masks
    if best not in accuracies[:-1]:
        run.save(BEST, weights)
    if epoch in expand_epochs(args.save_epochs, args.epochs):
        run.save(f"checkpoint_{epoch:04d}.pt", weights)
    run.save(LATEST, weights | {"optimizer": optimizer.state_dict(), "best": best})


def resume(args, run, model, optimizer, start):
    """Load checkpoint_latest.pt into model and optimizer. Returns its epoch, or `start`. Raises
    BadInput if a file of the run is missing or damaged."""
    path, count = run.folder / LATEST, len(run.lines(LOG_FILE))
    if not path.exists():
        if count > 2:  # a kill in the first epoch leaves the lines of epochs 0 and 1
            raise BadInput(f"{run.folder} has epochs in {LOG_FILE} but no {LATEST}: restore it")
        return start
    if count == 0:
        raise BadInput(f"{run.folder} has {LATEST} but no {LOG_FILE}: restore it")
    checkpoint = utils.load_checkpoint(path)
    utils.load_weights(model, checkpoint, path, args)
    if "optimizer" not in checkpoint:
        raise BadInput(f"{path} has only weights: start a new run from it with --init")
    optimizer.load_state_dict(checkpoint["optimizer"])
    if checkpoint["epoch"] < args.epochs:
        print(f"resuming after epoch {checkpoint['epoch']}")
    return checkpoint["epoch"]


def compile_neurons(model):
    """Compile each layer of neurons at its first training step. BadInput without a compiler."""
    cpu = next(model.parameters()).device.type == "cpu"
    name, variable = ("g++", "CXX") if cpu else ("gcc", "CC")
    if not shutil.which(os.environ.get(variable, name).split()[0]):
        raise BadInput(f"--compile needs {name}: leave it out, install {name}, or set {variable}")
    torch._dynamo.config.recompile_limit = 64  # all layers count together
    for layer in archs.lif_layers(model).values():
        layer.compile_loop()


def main(argv=None):
    args = config.parse("train_snn", argv, __doc__)
    model, train_set, test_set = setup(args)
    with Run(args, test_set.device) as run:
        tables.print_epoch_header()
        line = fit(args, run, model, train_set, test_set, partial(tables.print_epoch, args))
        print(tables.COLUMNS)
        print(f"test accuracy {line['test_accuracy']:.4f} after {line['epoch']} epochs")
        if rank() == 0:
            print(f"run folder {run.folder}\nfigure     {plots.training(run.folder)}")


if __name__ == "__main__":
    utils.run_script(main, "train_snn.py", several_processes=True)
