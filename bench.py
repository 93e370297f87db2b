"""Speed and memory, measured side by side.

The temporal Fisher information of ResNet19 on inputs of CIFAR-10's shape, T = 10, by four ways:

    python bench.py fisher

Every way does its work once to warm up and then --repeats times in turn with the others, in one process; figures are
medians of these. P is the yardstick: one forward and T ordinary backward passes through the prefix losses, on the same
batch, with no per-sample anything. Weights and inputs are random: time does not depend on them.
"""

import argparse
import ctypes
import platform
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

import archs
from config import Parser, number
from fisher import one_by_one, prefix_losses, temporal_fisher
from utils import pick_device, run_script

RELEASE_BATCH = 16  # samples in a mean, of the released way


def synchronize(device):
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device):
    """Bytes in use; from now on `peak` tells the most. None where neither CUDA nor Linux counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:  # of the whole process, without what it has freed
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")
    except (OSError, AttributeError):
        return None


def peak(device):
    """Most bytes in use since `memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status("VmHWM")


def status(field):
    """Bytes of a field of this process's status on Linux."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def compare(ways, repeats, device):
    """Run the functions `ways` {name: function} in turn: {name: (seconds, each repeat's; bytes above those before)}."""
    seconds, peaks = {name: [] for name in ways}, {}
    for repeat in tqdm(range(repeats + 1), "repeats", disable=None, leave=False):
        for name, function in ways.items():
            synchronize(device)
            before = memory(device) if repeat == 0 else None
            start = time.perf_counter()
            function()
            synchronize(device)
            if repeat == 0:  # to warm up, and for the memory
                peaks[name] = None if before is None else peak(device) - before
            else:
                seconds[name].append(time.perf_counter() - start)
    return {name: (seconds[name], peaks[name]) for name in ways}


def released(model, timestep, x, y):
    """The released script's way: for each t anew a forward over all T steps and the gradient of a batch's mean loss."""
    for t in range(timestep):
        for x_part, y_part in zip(x.split(RELEASE_BATCH), y.split(RELEASE_BATCH)):
            loss = prefix_losses(model(x_part), y_part)[t].mean()
            for gradient in torch.autograd.grad(loss, list(model.parameters())):
                gradient.square()


def fisher(args, device):
    """Print the table of the ways to the temporal Fisher information."""
    torch.manual_seed(0)
    model = archs.build(args.arch, timestep=args.timestep, num_classes=10, width=args.width).to(device).eval()
    x, y = torch.randn(args.samples, 3, 32, 32, device=device), torch.arange(args.samples, device=device) % 10
    few = slice(min(args.samples, args.loop_samples))
    parameters = list(model.parameters())

    def ordinary():
        losses = prefix_losses(model(x), y).mean(1)
        for loss in losses:
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    ways = {
        "P": ordinary,
        "estimator": lambda: temporal_fisher(model, x, y, chunk=args.fisher_batch),
        "batch of one": lambda: one_by_one(model, x[few], y[few]),
        "released": lambda: released(model, args.timestep, x, y),
    }
    results = compare(ways, args.repeats, device)
    counts = dict.fromkeys(ways, args.samples) | {"batch of one": len(x[few])}
    each = {name: [s / counts[name] for s in seconds] for name, (seconds, _) in results.items()}
    print(f"{args.arch}, width {args.width}, T = {args.timestep}, {args.samples} samples of 3x32x32, float32")
    print(f"{'way':<14}{'ms a sample':>12}{'times P':>9}{'times estimator':>17}{'peak MB':>9}")
    for name in ways:
        of_p, of_estimator = (
            statistics.median(a / b for a, b in zip(each[name], each[other])) for other in ("P", "estimator")
        )
        most = results[name][1]
        print(
            f"{name:<14}{1000 * statistics.median(each[name]):12.1f}{of_p:9.2f}{of_estimator:17.2f}"
            f"{'-' if most is None else format(most / 1e6, '.0f'):>9}"
        )


def main(argv=None):
    parser = Parser(prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=["fisher"], help="fisher: ways to the temporal Fisher information")
    add("--arch", choices=archs.ARCHS, default="resnet19", help="network (default resnet19)")
    add("--width", type=number(float, 0, 64, open_low=True), default=1.0, help="factor on its channels (default 1)")
    add("--timestep", type=number(int, 1), default=10, metavar="T", help="timesteps (default 10)")
    add("--samples", type=number(int, 1), default=16, metavar="N", help="samples (default 16)")
    add("--loop_samples", type=number(int, 1), default=2, help="of them by the batch-of-one loop (default 2)")
    add("--fisher_batch", type=number(int, 1), help="samples in one pass of the estimator; without it, as many as fit")
    add("--repeats", type=number(int, 1), default=3, help="measurements of each way (default 3)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    )
    print(f"{name}; torch {torch.__version__}, python {platform.python_version()}")
    {"fisher": fisher}[args.what](args, device)


if __name__ == "__main__":
    run_script(main, "bench.py")
