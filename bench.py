"""Speed and memory, measured side by side.

The temporal Fisher information of ResNet19 on inputs of CIFAR-10's shape, T = 10, by four ways:

    python bench.py fisher

A training step of that network by this project's modes, step by step in a Python loop as the release does it, and with
the neurons of SpikingJelly and snnTorch where they are installed; and a layer of neurons alone, forward and backward:

    python bench.py train --timestep 4 --samples 16
    python bench.py neuron --timestep 8 --samples 64

Every way does its work once to warm up and then --repeats times in turn with the others, in one process; figures are
medians of these. P is the yardstick: one forward and T ordinary backward passes through the prefix losses, on the same
batch, with no per-sample anything. Weights and inputs are random: time does not depend on them.
"""

import argparse
import contextlib
import copy
import ctypes
import math
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import archs
from archs.winograd import direct
from config import Parser, number
from data import crop_and_flip
from fisher import TemporalFisher, one_by_one, prefix_losses
from train_snn import compile_neurons
from utils import device_name, pick_device, run_script

MEAN_OF = 16  # samples in a mean, of the released way


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
    looked = 1 if device.type == "cuda" else 0  # a GPU's libraries allocate once; on a CPU a look changes the time
    for repeat in tqdm(range(repeats + 1), "repeats", disable=None, leave=False):
        for name, function in ways.items():
            synchronize(device)
            before = memory(device) if repeat == looked else None
            start = time.perf_counter()
            function()
            synchronize(device)
            if repeat:  # not to warm up
                seconds[name].append(time.perf_counter() - start)
            if repeat == looked:
                peaks[name] = None if before is None else peak(device) - before
    return {name: (seconds[name], peaks[name]) for name in ways}


def released(model, timestep, x, y):
    """The released script's way: for each t anew a forward over all T steps and the gradient of a batch's mean loss."""
    for t in range(timestep):
        for x_part, y_part in zip(x.split(MEAN_OF), y.split(MEAN_OF)):
            loss = prefix_losses(model(x_part), y_part)[t].mean()
            for gradient in torch.autograd.grad(loss, list(model.parameters())):
                gradient.square()


def fisher(args, device):
    """Print the table of the ways to the temporal Fisher information."""
    torch.manual_seed(0)
    model = archs.build(args.arch, timestep=args.timestep, num_classes=10, width=args.width)
    model = model.to(device, memory_format=torch.channels_last).eval()
    x, y = torch.randn(args.samples, 3, 32, 32, device=device), torch.arange(args.samples, device=device) % 10
    few = slice(min(args.samples, args.loop_samples))
    parameters = list(model.parameters())

    def ordinary():
        losses = prefix_losses(model(x), y).mean(1)
        for loss in losses:
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    estimator = TemporalFisher(model)
    size = args.fisher_batch or estimator.chunk(x)
    ways = {
        "P": ordinary,
        "estimator": lambda: [estimator(*part) for part in zip(x.split(size), y.split(size))],
        "examination": lambda: TemporalFisher(model).probe(x, size),
        "batch of one": lambda: one_by_one(model, x[few], y[few]),
        "released": lambda: released(model, args.timestep, x, y),
    }
    results = compare(ways, args.repeats, device)
    counts = dict.fromkeys(ways, args.samples) | {"batch of one": len(x[few]), "examination": 1}
    each = {name: ([s / counts[name] for s in seconds], most) for name, (seconds, most) in results.items()}
    print(f"{args.arch}, width {args.width}, T = {args.timestep}, {args.samples} samples of 3x32x32, {size} in a pass")
    table(each, "ms a sample", ["P", "estimator"])


class StepLIF(archs.LIF):
    """LIF neurons that are called once for each timestep, [1, N, ...], and keep the membrane in between."""

    v = 0.0

    def forward(self, x):
        s, self.v = self.step(self.v, x[0])
        return s.unsqueeze(0)


class Once(torch.nn.Module):
    """A layer whose output is kept: the static stem."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.output = layer, None

    def forward(self, x):
        if self.output is None:
            self.output = self.layer(x)
        return self.output


class StepByStep(torch.nn.Module):
    """The released script's way: the network of one timestep in a loop over t, the static stem once."""

    def __init__(self, model):
        super().__init__()
        self.model, self.timestep = with_neurons(model, StepLIF), model.timestep
        self.model.timestep = 1
        for name in {"conv1", "bn1"} & {name for name, _ in self.model.named_children()}:
            setattr(self.model, name, Once(getattr(self.model, name)))

    def forward(self, x):
        for module in self.model.modules():
            if isinstance(module, StepLIF):
                module.v = 0.0
            elif isinstance(module, Once):
                module.output = None
        return torch.cat([self.model(x) for _ in range(self.timestep)])


def with_neurons(model, make):
    """A copy of the network with other neurons, and activations that are kept."""
    model = copy.deepcopy(model)
    model.checkpoint_activations = None
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, archs.LIF):
                setattr(module, name, make())
    return model


def foreign_neurons():
    """{library: function that makes a module [T, N, ...] -> [T, N, ...]} of those that are installed, with tau = 2,
    threshold 1, hard reset that is detached, ATan."""
    found = {}
    with contextlib.suppress(ImportError):
        from spikingjelly.activation_based import functional, neuron

        class Jelly(archs.LIF):  # which the networks give T timesteps
            def __init__(self):
                super().__init__()
                self.node = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m")

            def forward(self, x):
                functional.reset_net(self.node)
                return self.node(x)

        found["SpikingJelly"] = Jelly
    with contextlib.suppress(ImportError):
        import snntorch

        class Leaky(archs.LIF):
            def __init__(self):
                super().__init__()
                self.node = snntorch.Leaky(beta=0.5, reset_mechanism="zero")

            def forward(self, x):
                v, spikes = self.node.init_leaky(), []
                for x_t in x:
                    s, v = self.node(x_t, v)
                    spikes.append(s)
                return torch.stack(spikes)

        found["snnTorch"] = Leaky
    return found


def neuron(args, device):
    """Print the table of the ways through a layer of neurons, forward and backward."""
    torch.manual_seed(0)
    x = torch.randn(args.timestep, args.samples, 32, 16, 16, device=device).mul_(2).requires_grad_()
    half, cotangent = x.detach().bfloat16().requires_grad_(), torch.randn_like(x)
    lif = archs.LIF()

    def way(layer, x):
        d = cotangent.to(x.dtype)
        return lambda: torch.autograd.grad(layer(x), x, d)

    compiled = archs.LIF()
    compiled.compile()
    ways = {
        "one call": way(lif, x),
        "one call, bf16": way(lif, half),
        "compiled": way(compiled, x),
        "compiled, bf16": way(compiled, half),
        "loop": way(lif.loop, x),
    }
    ways |= {name: way(make().to(device), x) for name, make in foreign_neurons().items()}
    print(f"LIF {list(x.shape)}, forward and backward")
    table(compare(ways, args.repeats, device), "ms a call", ["one call"])


def train(args, device):
    """Print the table of the ways to a training step, and what augmenting its batch takes."""
    torch.manual_seed(0)
    model = archs.build(args.arch, timestep=args.timestep, num_classes=10, width=args.width)
    x, y = torch.randn(args.samples, 3, 32, 32, device=device), torch.arange(args.samples, device=device) % 10

    def way(model, amp=False, compiled=False, context=contextlib.nullcontext, **options):
        model = copy.deepcopy(model).to(device, **options).train()
        if compiled:
            compile_neurons(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=bool(options))

        def step():
            with torch.autocast(device.type, torch.bfloat16, enabled=amp), context():
                outputs = model(x)
            loss = F.cross_entropy(outputs.float().mean(0), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    ways = {}
    for checkpointed in (False, True):
        model.checkpoint_activations = checkpointed
        name = ", checkpointed" if checkpointed else ""
        for precision in ("float32", "bf16"):
            for compiled in (False,) if checkpointed else (False, True):
                how = dict(amp=precision == "bf16", compiled=compiled, memory_format=torch.channels_last)
                ways[precision + name + ", compiled" * compiled] = way(model, **how)
    model.checkpoint_activations = False
    if device.type == "cpu":
        ways["float32, direct"] = way(model, context=direct, memory_format=torch.channels_last)
    ways["step by step"] = way(StepByStep(model), context=direct)
    for name, make in foreign_neurons().items():
        ways[name] = way(with_neurons(model, make), memory_format=torch.channels_last)
    print(f"{args.arch}, width {args.width}, T = {args.timestep}, batch {args.samples} of 3x32x32, training step")
    table(compare(ways, args.repeats, device), "ms a step", ["step by step"], args.samples)
    print(f"{'way':<24}{'in convolutions':>16}{'TFLOP/s there':>15}")
    for name, step in ways.items():
        seconds, share, flops = convolutions(step, device)
        print(f"{name:<24}{share:16.0%}{flops / (seconds or math.nan) / 1e12:15.3f}")
    images = torch.randint(256, x.shape, dtype=torch.uint8, device=device)
    (seconds, _), *_ = compare({"": lambda: crop_and_flip(images, 4, True) / 255}, args.repeats, device).values()
    print(f"random crops and flips of the batch: {1000 * statistics.median(seconds):.2f} ms")


def convolutions(function, device):
    """What convolutions take of `function`: seconds of the device's time, their share of it (NaN where the profiler may
    not read a GPU's counters), and the operations of direct ones."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"), direct():
        function()
    flops = sum(count for op, count in counter.get_flop_counts()["Global"].items() if "convolution" in str(op))
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.profiler.profile(activities=kinds) as profile:
        function()
        synchronize(device)
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    # What a kernel takes is counted with the operator that starts it, and once more by itself.
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CPU]
    found = sum(getattr(e, field) for e in events if in_convolution(e))
    return found / 1e6, found / (sum(getattr(e, field) for e in events) or math.nan), flops


def in_convolution(event):
    """Whether the profiler's event is a convolution, or within one."""
    while event is not None and not ("conv" in event.name or event.name.startswith("Winograd")):
        event = event.cpu_parent
    return event is not None


def table(results, unit, others, images=None):
    """Print a row for each way: its time, its time over that of each of the ways `others`, its memory; with `images` in
    a step, images a second too."""
    heads = "".join(f"{'times ' + other:>20}" for other in others)
    print(f"{'way':<24}{unit:>12}{'images/s' if images else '':>10}{heads}{'peak MB':>9}")
    for name, (seconds, most) in results.items():
        ratios = (statistics.median(a / b for a, b in zip(seconds, results[other][0])) for other in others)
        most, median = "-" if most is None else f"{most / 1e6:.0f}", statistics.median(seconds)
        rate, times = f"{images / median:.1f}" if images else "", "".join(f"{ratio:20.2f}" for ratio in ratios)
        print(f"{name:<24}{1000 * median:12.2f}{rate:>10}{times}{most:>9}")


def main(argv=None):
    parser = Parser(prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=["fisher", "train", "neuron"], help="the Fisher information, a training step, or a layer")
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
    print(f"{device_name(device)}; torch {torch.__version__}, python {platform.python_version()}")
    {"fisher": fisher, "train": train, "neuron": neuron}[args.what](args, device)


if __name__ == "__main__":
    run_script(main, "bench.py")
