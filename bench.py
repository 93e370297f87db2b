"""Speed and memory, measured side by side.

    python bench.py fisher                              the temporal Fisher information, T = 10
    python bench.py train --timestep 4 --samples 16     a training step of ResNet19
    python bench.py neuron --timestep 8 --samples 64    a layer of neurons, forward and backward
    python bench.py fisher --arch my_net.py:build --image_size 64 --ways P estimator

All ways run in one process. Each runs twice to warm up. Then they take turns, --repeats times. The
tables have medians. "step by step" is the released way: a network of one timestep in a Python loop.
The neurons of SpikingJelly and snnTorch are compared if they are installed. P, in the table of
`fisher`, is one forward and T ordinary backward passes, without anything per sample.
"""

import contextlib
import copy
import ctypes
import math
import platform
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.benchmark import timer  # it waits for the device
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import archs
from fisher import TemporalFisher, one_by_one, prefix_losses
from parser import COUNT, POSITIVE, Parser, number, one_of, suggestion
from train_snn import compile_neurons
from user_code import call, is_code
from utils import BadInput, device_name, pick_device, run_script


def status(field):
    """Bytes in a field of this process's status on Linux."""
    line = Path("/proc/self/status").read_text().split(f"{field}:")[1]
    return int(line.split()[0]) * 1024


def peak_memory(function, device):
    """The most bytes that function() adds to those in use. On a CPU, Linux counts them."""
    function()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what the process has freed does not count
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def chosen(args, ways, base):
    """The way `base`, and those of --ways or all, {name: function}. Raises BadInput."""
    for name in args.ways or []:
        if name not in ways:
            close = suggestion(name, ways)
            raise BadInput(f"unknown --ways {name}: choose from {', '.join(ways)}{close}")
    return {name: way for name, way in ways.items() if name in (base, *(args.ways or ways))}


def compare(ways, repeats, unit, base, device, count=1):
    """Run the functions `ways` {name: function} in turn and print a row for each: its time divided
    by `count`, its ratio to the way `base`, and its peak memory."""
    peaks = {name: peak_memory(function, device) for name, function in ways.items()}
    seconds = {name: [] for name in ways}
    for _ in tqdm(range(repeats), "repeats", disable=None, leave=False):
        for name, function in ways.items():
            start = timer()
            function()
            seconds[name].append(timer() - start)
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
    """The released way: a network of one timestep in a loop over t."""

    def __init__(self, network, timestep):
        super().__init__()
        self.network, self.timestep = with_neurons(network, StepLIF()), timestep

    def forward(self, x):
        for module in self.network.modules():
            if isinstance(module, StepLIF):
                module.v = 0.0
        return torch.cat([self.network(x) for _ in range(self.timestep)])


def with_neurons(model, neurons):
    """A copy of the network with copies of other neurons."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, archs.LIF):
            model.set_submodule(name, copy.deepcopy(neurons))
    return model


def foreign_neurons():
    """{library: neurons [T, N, ...] -> [T, N, ...]} of the installed libraries, with tau 2,
    threshold 1, a detached hard reset and ATan."""
    libraries = {}
    with contextlib.suppress(ImportError):
        from spikingjelly.activation_based import neuron

        jelly = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m")
        jelly.register_forward_pre_hook(lambda node, x: node.reset())
        libraries["SpikingJelly"] = jelly
    with contextlib.suppress(ImportError):
        import snntorch

        class Leaky(snntorch.Leaky):
            def forward(self, x):
                v, spikes = self.init_leaky(), []
                for x_t in x:
                    s, v = super().forward(x_t, v)
                    spikes.append(s)
                return torch.stack(spikes)

        libraries["snnTorch"] = Leaky(beta=0.5, reset_mechanism="zero")
    return libraries


# ---------------------------------------------------------------- the tables


def build(args, timestep):
    """The network of --arch, --width and --image_size. Raises BadInput."""
    if is_code(args.arch):
        size = {"in_channels": 3, "image_size": (args.image_size, args.image_size)}
        shared = {"timestep": timestep, "num_classes": 10, "width": args.width, "tau": 2.0}
        return call(args.arch, shared | size)
    return archs.build(
        args.arch, timestep=timestep, num_classes=10, width=args.width, image_size=args.image_size
    )


def fisher(args, x, y):
    """The temporal Fisher information."""
    model = build(args, args.timestep).eval()
    model.to(x.device, memory_format=archs.fastest_layout(model))
    parameters, estimator = list(model.parameters()), TemporalFisher(model)

    def ordinary():
        for loss in prefix_losses(model(x), y).mean(1):
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    def released():  # forward anew for each t, the gradient of the mean loss
        for t in range(args.timestep):
            loss = prefix_losses(model(x), y)[t].mean()
            torch.autograd.grad(loss, parameters, allow_unused=True)

    def batches_of_one():  # as others do; fisher/definition.py takes batches of two
        for n in range(args.samples):
            for loss in prefix_losses(model(x[n : n + 1]), y[n : n + 1]).mean(1):
                torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    ways = {
        "P": ordinary,
        "estimator": lambda: estimator(x, y),
        "batches of one": batches_of_one,
        "definition": lambda: one_by_one(model, x, y),
        "released": released,
    }
    ways = chosen(args, ways, "P")
    compare(ways, args.repeats, "ms a sample", "P", x.device, args.samples)


def neuron(args, x, y):
    """A layer of neurons."""
    x = 2 * torch.randn(args.timestep, args.samples, 32, 16, 16, device=x.device)

    def way(layer, dtype=torch.float32):
        inputs, cotangent = x.to(dtype).requires_grad_(), torch.randn_like(x).to(dtype)
        return lambda: torch.autograd.grad(layer(inputs), inputs, cotangent)

    lif, compiled = archs.LIF(), archs.LIF()
    compiled.compile_loop()
    ways = {"one call": way(lif), "one call, bf16": way(lif, torch.bfloat16)}
    ways |= {"compiled": way(compiled), "compiled, bf16": way(compiled, torch.bfloat16)}
    ways |= {"loop": way(lif.loop)}
    ways |= {name: way(neurons.to(x.device)) for name, neurons in foreign_neurons().items()}
    ways = chosen(args, ways, "one call")
    compare(ways, args.repeats, "ms a call", "one call", x.device)


def train(args, x, y):
    """A training step, and the rate of its convolutions."""
    model = build(args, args.timestep)
    model.to(memory_format=archs.fastest_layout(model))

    def way(model, amp=False, compiled=False, checkpointed=False):
        model = copy.deepcopy(model).to(x.device).train()
        model.checkpoint_activations = checkpointed
        if compiled:
            compile_neurons(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)

        def step():
            with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
                outputs = model(x)
            loss = F.cross_entropy(outputs.float().mean(0), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    ways = {"step by step": way(StepByStep(build(args, 1), args.timestep))}
    for precision, amp in (("float32", False), ("bf16", True)):
        ways[f"{precision}, checkpointed"] = way(model, amp, checkpointed=True)
        ways[f"{precision}, compiled"] = way(model, amp, compiled=True)
        ways[precision] = way(model, amp)
    for name, neurons in foreign_neurons().items():
        ways[name] = way(with_neurons(model, neurons))
    ways = chosen(args, ways, "step by step")
    compare(ways, args.repeats, "ms a step", "step by step", x.device)
    print(f"{'convolutions of':<24}{'ms a step':>14}{'TFLOP/s':>22}")
    for name, step in ways.items():
        seconds, operations = convolutions(step, x.device)
        print(f"{name:<24}{1000 * seconds:14.2f}{operations / seconds / 1e12:22.3f}")


def convolutions(function, device):
    """Seconds that the convolutions of function() take on the device, and their floating-point
    operations. NaN seconds if there are none, or if the profiler may not read a GPU's counters."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        function()
    operations = counter.get_flop_counts()["Global"].items()
    with torch.profiler.profile() as profile:
        function()
    time = "device_time_total" if device.type == "cuda" else "cpu_time_total"
    kinds = ("aten::convolution", "aten::convolution_backward")
    events = [event for event in profile.key_averages() if event.key in kinds]
    seconds = sum(getattr(event, time) for event in events) / 1e6 or math.nan
    return seconds, sum(count for kind, count in operations if "convolution" in str(kind))


def main(argv=None):
    parser = Parser("bench", __doc__, "TABLE ")
    tables = {"fisher": fisher, "train": train, "neuron": neuron}
    parser.add_argument("table", type=one_of(tables), metavar="TABLE", help="see above")
    flag = parser.group("comparison")
    flag("--arch", "resnet19", "network", choices=archs.ARCHS, code=True)
    flag("--width", 1.0, "factor on the number of channels", type=POSITIVE)
    flag("--image_size", 32, "height and width of the inputs", type=number(int, 8))
    flag("--timestep", 10, "T", type=COUNT)
    flag("--samples", 16, "samples in a batch", type=number(int, 2))
    flag("--repeats", 3, "times that each way is measured", type=COUNT)
    flag("--ways", None, "only these rows of the table, and the first", nargs="+")
    flag("--device", "auto", "auto, cpu, cuda, ...")
    args = parser.parse_args(argv)
    if args.table == "neuron" and {"arch", "width", "image_size"} & parser.typed(argv).keys():
        parser.error("neuron is one layer: leave out --arch, --width and --image_size")
    if args.table == "train" and is_code(args.arch):
        parser.error(
            f"train changes the neurons of a network: choose from {', '.join(archs.ARCHS)}"
        )
    device = pick_device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # `timer` waits for the work of this device
    print(f"{device_name(device)}; torch {torch.__version__}, python {platform.python_version()}")
    torch.manual_seed(0)
    x = torch.randn(args.samples, 3, args.image_size, args.image_size, device=device)
    y = torch.arange(args.samples, device=device) % 10
    tables[args.table](args, x, y)


if __name__ == "__main__":
    run_script(main, "bench.py", hint="nothing was saved")
