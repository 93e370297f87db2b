"""The tables that train_snn.py and train_snn_fisherinfo.py print, line by line."""

import sys

import torch
from tqdm import tqdm

from fisher import centroid
from utils import rank

COLUMNS = "(docs/usage.md explains the columns under «The printed tables»)"

SILENT, SATURATED = 0.001, 0.95  # spikes per neuron and timestep


def epoch_name(args, epoch):
    """The name of an epoch in a table. With --init, the weights of epoch 0 are trained."""
    return "untrained" if epoch == 0 and not args.init else str(epoch)


def print_epoch_header():
    print("    epoch        lr  train loss  train acc.  test loss  test acc.  images/s")


def print_epoch(args, line):
    """Print a line of log.jsonl."""
    trained, speed = " " * 32, ""
    if line["train_loss"] is not None:  # not before training
        trained = f"{line['lr']:8.5f}  {line['train_loss']:10.4f}  {line['train_accuracy']:10.4f}"
        speed = f"  {line['images_per_second']:8.0f}"
    tested = f"{line['test_loss']:9.4f}  {line['test_accuracy']:9.4f}"
    tqdm.write(f"{epoch_name(args, line['epoch']):>9}  {trained}  {tested}{speed}")


def print_measurement_header(timestep):
    curve = " ".join(f"{f'I_{t}':>8}" for t in range(1, timestep + 1))
    flat = (timestep + 1) / 2
    print(
        f"centroids are in timesteps, and {flat:.1f} for a flat curve; IC is the centroid of I_t; "
        "R_t is the mean squared residual"
    )
    print(
        f"    epoch  samples/labels     IC [95 % interval]  of R_t  of I_t/R_t  test acc.  {curve}"
    )


def print_measurement(args, line, accuracy):
    """Print a line of fisher.jsonl, with the test accuracy."""
    start = f"{epoch_name(args, line['epoch']):>9}  {line['split'] + '/' + line['labels']:>14}"
    if line["ic"] is None:
        tqdm.write(f"{start}  no information: all gradients are 0")
        return
    low, high = line["ic_ci"]
    residual_centroid = centroid(torch.tensor(line["prefix_residual"])).item()
    curve = " ".join(f"{value:8.3g}" for value in line["fisher"])
    tqdm.write(
        f"{start}  {line['ic']:5.2f} [{low:5.2f}, {high:5.2f}]  {residual_centroid:6.2f}  "
        f"{line['ic_per_residual']:10.2f}  {accuracy:9.4f}  {curve}"
    )


def warn_of_spike_rates(spike_rate, epoch):
    """Warn about layers that almost never spike, or almost always. spike_rate: {layer: rate}."""
    names = [name for name, rate in spike_rate.items() if not SILENT < rate < SATURATED]
    if names and rank() == 0:
        print(
            f"warning: after epoch {epoch}, {len(names)} of {len(spike_rate)} layers spike almost "
            f"never or always: {', '.join(names)}",
            file=sys.stderr,
        )
