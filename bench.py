"""Speed and memory, measured side by side.

    python bench.py fisher                              the temporal Fisher information, T = 10
    python bench.py train --timestep 4 --samples 16     a training step of ResNet19
    python bench.py neuron --timestep 8 --samples 64    a layer of neurons, forward and backward

Each way runs once to warm up, then all take turns, --repeats times, in one process; figures are
medians. «step by step» is the released way: the network of one timestep in a Python loop. The
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
from fisher import TemporalFisher, one_by_one, prefix_losses
from parser import COUNT, POSITIVE, Parser, one_of
from train_snn import compile_neurons
from utils import device_name, pick_device, run_script


def synchronize(device):
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def status(field):
    """Bytes of a field of this process's status on Linux."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def peak_memory(function, device):
    """Bytes that function() uses at most above those before. Of a CPU, Linux counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    function()
    ctypes.CDLL(None).malloc_trim(0)  # what the process has freed does not count
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def compare(ways, repeats, unit, base, device, count=1):
    """Run the functions `ways` {name: function} in turn and print a row for each: the time of one
    of `count`, times that of the way `base`, and the peak memory."""
    peaks = {name: peak_memory(function, device) for name, function in ways.items()}
    seconds = {name: [] for name in ways}
    for _ in tqdm(range(repeats), "repeats", disable=None, leave=False):
        for name, function in ways.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    print(f"{'way':<24}{unit:>14}{'times ' + base:>22}{'peak MB':>9}")
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[base]))
        milliseconds = 1000 * statistics.median(seconds[name]) / count
        print(f"{name:<24}{milliseconds:14.2f}{ratio:22.2f}{peaks[name] / 1e6:9.0f}")


# ---------------------------------------------------------------- other ways to do the same


class StepLIF(archs.LIF):
    """LIF neurons that are called for one timestep, [1, N, ...], and keep the membrane."""

    v = 0.0

    def forward(self, x):
        s, self.v = self.step(self.v, x[0])
        return s.unsqueeze(0)


class StepByStep(torch.nn.Module):
    """The released way: the network of one timestep in a loop over t. The first convolution, which
    sees the same image each time, runs once."""

    def __init__(self, model):
        super().__init__()
        self.model, self.timestep = with_neurons(model, StepLIF), model.timestep
        self.model.timestep = self.model.repeat.timestep = 1
        self.first = copy.deepcopy(model.conv1)
        self.model.conv1 = torch.nn.Identity()

    def forward(self, x):
        for module in self.model.modules():
            if isinstance(module, StepLIF):
                module.v = 0.0
        x = self.first(x.unsqueeze(0))[0]
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
    """{library: function that makes neurons [T, N, ...] -> [T, N, ...]} of the installed ones: tau
    2, threshold 1, a hard reset that is detached, ATan."""
    libraries = {}
    with contextlib.suppress(ImportError):
        from spikingjelly.activation_based import functional, neuron

        class Jelly(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.node = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m")

            def forward(self, x):
                functional.reset_net(self.node)
                return self.node(x)

        libraries["SpikingJelly"] = Jelly
    with contextlib.suppress(ImportError):
        import snntorch

        class Leaky(torch.nn.Module):
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


def fisher(args, device, model, x, y):
    """The temporal Fisher information."""
    model = model.to(device, memory_format=torch.channels_last).eval()
    parameters, estimator = list(model.parameters()), TemporalFisher(model)
    size = args.fisher_batch or estimator.chunk(x)

    def ordinary():
        for loss in prefix_losses(model(x), y).mean(1):
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    def released():  # forward anew for each t, the gradient of the mean loss of 16 samples
        for t in range(args.timestep):
            for x_part, y_part in zip(x.split(16), y.split(16)):
                loss = prefix_losses(model(x_part), y_part)[t].mean()
                torch.autograd.grad(loss, parameters, allow_unused=True)

    ways = {
        "P": ordinary,
        "estimator": lambda: [estimator(*part) for part in zip(x.split(size), y.split(size))],
        "batch of one": lambda: one_by_one(model, x, y),
        "released": released,
    }
    compare(ways, args.repeats, "ms a sample", "P", device, args.samples)


def neuron(args, device, model, x, y):
    """A layer of neurons."""
    x = 2 * torch.randn(args.timestep, args.samples, 32, 16, 16, device=device)

    def way(layer, dtype=torch.float32):
        inputs, cotangent = x.to(dtype).requires_grad_(), torch.randn_like(x).to(dtype)
        return lambda: torch.autograd.grad(layer(inputs), inputs, cotangent)

    lif, compiled = archs.LIF(), archs.LIF()
    compiled.compile_loop()
    ways = {"one call": way(lif), "one call, bf16": way(lif, torch.bfloat16)}
    ways |= {"compiled": way(compiled), "compiled, bf16": way(compiled, torch.bfloat16)}
    ways |= {"loop": way(lif.loop)}
    ways |= {name: way(make().to(device)) for name, make in foreign_neurons().items()}
    compare(ways, args.repeats, "ms a call", "one call", device)


def train(args, device, model, x, y):
    """A training step, and what its convolutions take."""

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
        model.checkpoint_activations = True
        ways[f"{precision}, checkpointed"] = way(model, amp)
        model.checkpoint_activations = False
        ways[f"{precision}, compiled"] = way(model, amp, compiled=True)
        ways[precision] = way(model, amp)
    ways |= {name: way(with_neurons(model, make)) for name, make in foreign_neurons().items()}
    compare(ways, args.repeats, "ms a step", "step by step", device)
    print(f"{'way':<24}{'in convolutions':>16}{'TFLOP/s there':>15}")
    for name, step in ways.items():
        seconds, share, flops = convolutions(step, device)
        print(f"{name:<24}{share:16.0%}{flops / seconds / 1e12:15.3f}")


def convolutions(function, device):
    """Seconds that the convolutions of `function` take on the device, their share, and their
    floating-point operations. NaN where the profiler may not read a GPU's counters."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        function()
    flops = counter.get_flop_counts()["Global"].items()
    kinds = set(torch.profiler.supported_activities())
    with torch.profiler.profile(activities=kinds) as profile:
        function()
        synchronize(device)
    field = f"{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    events = profile.key_averages()
    kinds = ("aten::convolution", "aten::convolution_backward")
    seconds = sum(getattr(event, field) for event in events if event.key in kinds) / 1e6 or math.nan
    total = sum(getattr(event, f"self_{field}") for event in events) / 1e6 or math.nan
    return seconds, seconds / total, sum(n for op, n in flops if "convolution" in str(op))


def main(argv=None):
    parser = Parser("bench", __doc__)
    parser.add_argument("what", choices=["fisher", "train", "neuron"])
    flag = parser.group("what is compared")
    flag("--arch", "resnet19", "network", type=one_of(archs.ARCHS))
    flag("--width", 1.0, "factor on its channels", type=POSITIVE)
    flag("--timestep", 10, "T", type=COUNT)
    flag("--samples", 16, "samples in a batch", type=COUNT)
    flag("--fisher_batch", None, "samples in one pass; without it, as many as fit", type=COUNT)
    flag("--repeats", 3, "measurements of each way", type=COUNT)
    flag("--device", "auto", "auto, cpu, cuda, ...")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    torch.manual_seed(0)
    model = archs.build(args.arch, timestep=args.timestep, num_classes=10, width=args.width)
    x = torch.randn(args.samples, 3, 32, 32, device=device)
    y = torch.arange(args.samples, device=device) % 10
    print(f"{device_name(device)}; torch {torch.__version__}, python {platform.python_version()}")
    print(f"{args.arch}, width {args.width:g}, T = {args.timestep}, batch {args.samples}")
    {"fisher": fisher, "train": train, "neuron": neuron}[args.what](args, device, model, x, y)


if __name__ == "__main__":
    run_script(main, "bench.py", hint="nothing is kept")
