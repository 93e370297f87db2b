"""Speed and memory, measured side by side.

    python bench.py fisher                              the temporal Fisher information, T = 10
    python bench.py train --timestep 4 --samples 16     a training step of ResNet19
    python bench.py neuron --timestep 8 --samples 64    a layer of neurons, forward and backward

Each way does its work once to warm up, then all take turns, --repeats times, in one process; figures
are medians. «step by step» is the released way: the network of one timestep in a Python loop. The
neurons of SpikingJelly and snnTorch are compared where these are installed. P, of `fisher`, is one
forward and T ordinary backward passes through the prefix losses, without anything per sample.
"""

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
from config import Parser, number, one_of
from fisher import TemporalFisher, one_by_one, prefix_losses
from train_snn import compile_neurons
from utils import device_name, pick_device, run_script

MEAN_OF = 16  # samples in a mean, of the released estimator


# ---------------------------------------------------------------- measuring


def synchronize(device):
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def status(field):
    """Bytes of a field of this process's status on Linux."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def peak_memory(function, device):
    """Bytes that function() has in use at most, above those before; of a CPU, without what the
    process has freed. None where neither CUDA nor Linux counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
    except (OSError, AttributeError):
        return None
    function()
    return status("VmHWM") - before


def compare(ways, repeats, device):
    """Run the functions `ways` {name: function} in turn: {name: (seconds of each repeat, bytes)}."""
    peaks = {name: peak_memory(function, device) for name, function in ways.items()}
    seconds = {name: [] for name in ways}
    for _ in tqdm(range(repeats), "repeats", disable=None, leave=False):
        for name, function in ways.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: (seconds[name], peaks[name]) for name in ways}


def table(results, unit, base, count=1):
    """A row for each way: time of one of `count`, times that of the way `base`, peak memory."""
    print(f"{'way':<24}{unit:>14}{'times ' + base:>22}{'peak MB':>9}")
    for name, (seconds, peak) in results.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, results[base][0]))
        milliseconds = 1000 * statistics.median(seconds) / count
        memory = "-" if peak is None else f"{peak / 1e6:.0f}"
        print(f"{name:<24}{milliseconds:14.2f}{ratio:22.2f}{memory:>9}")


# ---------------------------------------------------------------- other ways to do the same


class StepLIF(archs.LIF):
    """LIF neurons that are called for one timestep, [1, N, ...], and keep the membrane."""

    v = 0.0

    def forward(self, x):
        s, self.v = self.step(self.v, x[0])
        return s.unsqueeze(0)


class StepByStep(torch.nn.Module):
    """The released way: the network of one timestep in a loop over t; a ResNet's stem runs once."""

    def __init__(self, model):
        super().__init__()
        self.model, self.timestep = with_neurons(model, StepLIF), model.timestep
        self.model.timestep = 1
        for module in self.model.modules():
            if isinstance(module, archs.layers.Repeat):
                module.timestep = 1

    def forward(self, x):
        for module in self.model.modules():
            if isinstance(module, StepLIF):
                module.v = 0.0
        stem = None
        if isinstance(self.model, archs.resnet.ResNet):
            stem = self.model.stem(x)
            return torch.cat([self.model.behind_stem(stem) for _ in range(self.timestep)])
        return torch.cat([self.model(x) for _ in range(self.timestep)])


def with_neurons(model, make):
    """A copy of the network with other neurons."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, archs.LIF):
                setattr(module, name, make())
    return model


def foreign_neurons():
    """{library: function that makes a module [T, N, ...] -> [T, N, ...]}, of those that are
    installed, with tau 2, threshold 1, a hard reset that is detached, ATan."""
    libraries = {}
    with contextlib.suppress(ImportError):
        from spikingjelly.activation_based import functional, neuron

        class Jelly(archs.LIF):
            def __init__(self):
                super().__init__()
                self.node = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m")

            def forward(self, x):
                functional.reset_net(self.node)
                return self.node(x)

        libraries["SpikingJelly"] = Jelly
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

        libraries["snnTorch"] = Leaky
    return libraries


# ---------------------------------------------------------------- the tables


def inputs(args, device):
    """Random images of CIFAR-10's shape, and labels."""
    x = torch.randn(args.samples, 3, 32, 32, device=device)
    return x, torch.arange(args.samples, device=device) % 10


def fisher(args, device, model):
    """The temporal Fisher information."""
    model = model.to(device, memory_format=torch.channels_last).eval()
    (x, y), parameters = inputs(args, device), list(model.parameters())
    estimator = TemporalFisher(model)
    size = args.fisher_batch or estimator.chunk(x)

    def ordinary():
        for loss in prefix_losses(model(x), y).mean(1):
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    def released():
        for t in range(args.timestep):
            for x_part, y_part in zip(x.split(MEAN_OF), y.split(MEAN_OF)):
                loss = prefix_losses(model(x_part), y_part)[t].mean()
                torch.autograd.grad(loss, parameters, allow_unused=True)

    ways = {
        "P": ordinary,
        "estimator": lambda: [estimator(*part) for part in zip(x.split(size), y.split(size))],
        "examination": lambda: TemporalFisher(model).probe(x, size),
        "batch of one": lambda: one_by_one(model, x, y),
        "released": released,
    }
    print(f"{args.samples} samples, {size} in a pass; examination: once a measurement")
    table(compare(ways, args.repeats, device), "ms a sample", "P", args.samples)


def neuron(args, device, model):
    """A layer of neurons."""
    x = 2 * torch.randn(args.timestep, args.samples, 32, 16, 16, device=device)

    def way(layer, dtype=torch.float32):
        x_, cotangent = x.to(dtype).requires_grad_(), torch.randn_like(x).to(dtype)
        return lambda: torch.autograd.grad(layer(x_), x_, cotangent)

    lif, compiled = archs.LIF(), archs.LIF()
    compiled.compile()
    ways = {
        "one call": way(lif),
        "one call, bf16": way(lif, torch.bfloat16),
        "compiled": way(compiled),
        "compiled, bf16": way(compiled, torch.bfloat16),
        "loop": way(lif.loop),
    }
    for name, make in foreign_neurons().items():
        ways[name] = way(make().to(device))
    print(f"LIF {list(x.shape)}, forward and backward")
    table(compare(ways, args.repeats, device), "ms a call", "one call")


def train(args, device, model):
    """A training step."""
    x, y = inputs(args, device)

    def way(model, amp=False, compiled=False, layout=torch.channels_last):
        model = copy.deepcopy(model).to(device, memory_format=layout).train()
        if compiled:
            compile_neurons(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)

        def step():
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                outputs = model(x)
            loss = F.cross_entropy(outputs.float().mean(0), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    ways = {"step by step": way(StepByStep(model), layout=torch.contiguous_format)}
    for precision, amp in (("float32", False), ("bf16", True)):
        ways[precision] = way(model, amp)
        ways[f"{precision}, compiled"] = way(model, amp, compiled=True)
        model.checkpoint_activations = True
        ways[f"{precision}, checkpointed"] = way(model, amp)
        model.checkpoint_activations = False
    for name, make in foreign_neurons().items():
        ways[name] = way(with_neurons(model, make))
    table(compare(ways, args.repeats, device), "ms a step", "step by step")
    print(f"{'way':<24}{'in convolutions':>16}{'TFLOP/s there':>15}")
    for name, step in ways.items():
        seconds, share, flops = convolutions(step, device)
        print(f"{name:<24}{share:16.0%}{flops / seconds / 1e12:15.3f}")


def convolutions(function, device):
    """What convolutions take of `function`: seconds of the device, their share, floating-point
    operations. NaN where the profiler may not read a GPU's counters."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        function()
    counts = counter.get_flop_counts()["Global"]
    flops = sum(count for op, count in counts.items() if "convolution" in str(op))
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        function()
        synchronize(device)
    events = profile.key_averages()
    field = "device_time_total" if device.type == "cuda" else "cpu_time_total"
    own = f"self_{field}"
    inside = ("aten::convolution", "aten::convolution_backward")
    seconds = sum(getattr(event, field) for event in events if event.key in inside) / 1e6
    total = sum(getattr(event, own) for event in events) / 1e6
    return seconds or math.nan, seconds / total if total else math.nan, flops


# fmt: off
def main(argv=None):
    parser = Parser("bench", __doc__)
    flag = parser.group("what is compared")
    parser.add_argument("what", choices=["fisher", "train", "neuron"])
    flag("--arch", type=one_of(archs.ARCHS), default="resnet19", help="network")
    flag("--width", type=number(float, 0, 64, above=True), default=1.0, help="factor on its channels")
    flag("--timestep", type=number(int, 1), default=10, metavar="T", help="timesteps")
    flag("--samples", type=number(int, 1), default=16, metavar="N", help="samples in a batch")
    flag("--fisher_batch", type=number(int, 1), metavar="N", help="samples in one pass of the estimator")
    flag("--repeats", type=number(int, 1), default=3, metavar="R", help="measurements of each way")
    flag("--device", default="auto", help="auto, cpu, cuda, ...")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    torch.manual_seed(0)
    model = archs.build(args.arch, timestep=args.timestep, num_classes=10, width=args.width)
    print(f"{device_name(device)}; torch {torch.__version__}, python {platform.python_version()}")
    print(f"{args.what}: {args.arch}, width {args.width:g}, T = {args.timestep}, batch {args.samples}")
    {"fisher": fisher, "train": train, "neuron": neuron}[args.what](args, device, model)


if __name__ == "__main__":
    run_script(main, "bench.py")
