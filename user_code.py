"""The user's own network or data set: --arch and --dataset take FILE.py:FUNCTION.

FUNCTION gets the values that its signature names. FILE may import files beside it. The scripts load
code only from a file that the command line names (`check_named`), never from a file that only a
checkpoint or an args.json names.
"""

import copy
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path

import torch
from torch import nn

from archs import after_each
from fisher.refusals import KEEPS, REPEATED, alike, check_independence
from utils import BadInput

# Flags of a network. FUNCTION and `archs.build` have a parameter of the same name, or another.
NETWORK_FLAGS = ("width", "norm", "tau", "threshold", "reset", "surrogate", "surrogate_alpha",
                 "detach_membrane")  # fmt: skip
PARAMETERS = {name: name for name in (*NETWORK_FLAGS, "checkpoint_activations")} | {
    "undecayed_input": "decay_input",
    "undetached_reset": "detach_reset",
}
FEW = 8  # samples to check a network with; of two, BatchNorm makes -1 and 1, and nothing spikes


# ---------------------------------------------------------------- loading a function


def is_code(name):
    """Whether a value of --arch or --dataset is FILE.py:FUNCTION."""
    return ".py:" in str(name)


def file_of(code):
    """The file of FILE.py:FUNCTION."""
    return Path(code.rpartition(":")[0]).resolve()


def load_function(code):
    """Load FUNCTION of FILE.py:FUNCTION. A file runs once in a process. Raises BadInput."""
    path, name = file_of(code), code.rpartition(":")[2]
    if str(path) not in sys.modules:
        if not path.is_file():
            raise BadInput(f"there is no file {path}: write FILE.py:FUNCTION")
        sys.path.append(str(path.parent))
        spec = importlib.util.spec_from_file_location(str(path), path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[str(path)] = module  # where dataclasses look for it
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[str(path)]
            raise BadInput(f"{path} does not load: {fault(error, code)}") from error
    function = getattr(sys.modules[str(path)], name, None)
    if not callable(function):
        raise BadInput(f"{path} has no function {name!r}: write FILE.py:FUNCTION")
    return function


def fault(error, code):
    """The error and its line in the user's file, as one line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file_of(code))]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


def call(code, values):
    """Call FUNCTION with those of `values` {name: value} that its signature names. Raises BadInput
    if it needs another value, or fails."""
    function = load_function(code)
    parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not variadic and name not in values:
            known = ", ".join(values)
            raise BadInput(f"{code} needs {name!r}: give it a default, or take one of {known}")
    try:
        return function(**{name: values[name] for name in parameters if name in values})
    except Exception as error:
        raise BadInput(f"{code} fails: {fault(error, code)}") from error


def read_arrays(args):
    """Read x_train, y_train, x_test, y_test of --dataset FILE.py:FUNCTION. Raises BadInput."""
    values = {"data_dir": args.data_dir, "timestep": args.frames or args.timestep}
    arrays = call(args.dataset, values)
    if not isinstance(arrays, tuple | list) or len(arrays) != 4:
        raise BadInput(f"{args.dataset} must return x_train, y_train, x_test, y_test")
    return arrays


# ---------------------------------------------------------------- checks of flags


def check_named(flags, typed, source):
    """Raise BadInput if `flags`, read from `source`, name code that the command line does not."""
    for name in ("arch", "dataset"):
        code = flags.get(name)
        if is_code(code) and name not in typed:
            raise BadInput(
                f"{source} names --{name} {code}, but code is loaded only from a file that you "
                f"name: if you trust it, add --{name} {code} (in load_run {name}=...)"
            )


def check_flags(args, typed):
    """Raise BadInput for a flag if the function of a user's --arch has no parameter for it."""
    names = inspect.signature(load_function(args.arch)).parameters
    for flag, name in PARAMETERS.items():
        if flag in typed and name not in names:
            raise BadInput(f"--{flag} has no effect: {args.arch} has no parameter {name}")
    if args.script == "prune_snn" and "timestep" not in names:
        raise BadInput(f"a search changes T: give {args.arch} a parameter timestep")


# ---------------------------------------------------------------- the contract of a network


def check_network(args, model, dataset):
    """Raise BadInput if a user's network breaks the contract on a few samples of `dataset`.

    The contract: model(x) gives outputs [T, N, classes] with a graph. A second call gives the same.
    In eval mode each sample is independent of the others.
    """
    if not is_code(args.arch):
        return
    x, y = next(dataset.subset(slice(FEW)).batches(FEW, args.seed))
    x = dataset.encode(x)
    twin = copy.deepcopy(model).eval()  # the network keeps its own running statistics
    try:
        check_independence(twin, x, y)
        steps, _, classes = twin(x).shape
        if steps != args.timestep:
            raise ValueError(f"it gives outputs of T = {steps}: pass --timestep {steps}")
        if classes != dataset.num_classes:
            raise ValueError(f"it gives {classes} classes, the data set has {dataset.num_classes}")
        check_second_call(twin.train(), x)
    except Exception as error:
        if "graph a second time" in str(error):
            reason = KEEPS
        elif isinstance(error, ValueError):
            reason = error
        else:
            reason = fault(error, args.arch)
        raise BadInput(f"{args.arch} breaks the contract of a network: {reason}") from error


def check_second_call(model, x):
    """Raise ValueError if a second call depends on the first. torch raises if it shares its graph.
    In train mode even a new network spikes."""
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)  # for the same dropout
        outputs.append(model(x))
        outputs[-1].sum().backward()
    if not alike(*outputs, REPEATED):
        raise ValueError(KEEPS)


# ---------------------------------------------------------------- spikes of other neurons


def first_tensor(output):
    """The first output of a module. snnTorch's neurons give spikes and membranes."""
    return output[0] if isinstance(output, tuple | list) else output


def spiking_layers(model, dataset, args):
    """Names of the modules whose outputs are all 0 or 1 in the first batch of `dataset`.

    It leaves out layers of torch, which only pass spikes on; blocks that contain another of the
    modules; and the surrogate functions in SpikingJelly's neurons.
    """
    binary = {}

    def look(name, module, inputs, output):
        values = first_tensor(output)
        kinds = [kind for kind in type(module).__mro__ if kind is not nn.Module]
        of_torch = any(kind.__module__.startswith("torch.nn") for kind in kinds)
        if of_torch or name.endswith("surrogate_function") or not isinstance(values, torch.Tensor):
            return
        if binary.get(name, True):
            values = values.float()
            # 0 if a value is 0 or 1, up to the rounding of a straight-through estimator.
            binary[name] = (values * (1 - values)).abs().lt(1e-6).all().item()

    x, _ = next(dataset.batches(args.batch_size, args.seed))
    with after_each(model, nn.Module, look):
        model(dataset.encode(x))
    names = [name for name, spikes in binary.items() if spikes and name]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
