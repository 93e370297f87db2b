"""A network or a data set of the user's: --arch and --dataset take FILE.py:FUNCTION.

FUNCTION gets those of the values that its signature names, by name. The file may import files that
lie beside it. Code is loaded only from a file that is named on the command line, never from one
that a checkpoint or an args.json names (`check_named`).
"""

import copy
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path

import torch
from torch import nn

from fisher.fast import KEEPS, TemporalFisher, alike
from utils import BadInput, after_each, is_code

# Flags of a network -> the name of that value for FUNCTION, as for `archs.build`.
SAME = ("width", "norm", "tau", "threshold", "reset", "surrogate", "surrogate_alpha",
        "detach_membrane", "checkpoint_activations")  # fmt: skip
RENAMED = {"undecayed_input": "decay_input", "undetached_reset": "detach_reset"}
NETWORK_FLAGS = dict(zip(SAME, SAME)) | RENAMED


def file_of(code):
    """The file of FILE.py:FUNCTION."""
    return Path(code.rpartition(":")[0]).resolve()


def load_module(path):
    """The module of a file, which runs once in a process. Raises BadInput."""
    if str(path) in sys.modules:
        return sys.modules[str(path)]
    if not path.is_file():
        raise BadInput(f"there is no file {path}: write --arch or --dataset as FILE.py:FUNCTION")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(str(path), path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[str(path)] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[str(path)]
        raise BadInput(f"{path} does not load: {fault(error, path)}") from error
    return module


def load_function(code):
    """The function that FILE.py:FUNCTION names. Raises BadInput."""
    name = code.rpartition(":")[2]
    function = getattr(load_module(file_of(code)), name, None)
    if not callable(function):
        raise BadInput(f"{file_of(code)} has no function {name!r}: write FILE.py:FUNCTION")
    return function


def fault(error, path):
    """What went wrong, and in which line of the file `path`, in one line."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


def parameters(code):
    """{name: parameter} of the signature of FILE.py:FUNCTION."""
    return inspect.signature(load_function(code)).parameters


def call(code, values):
    """FUNCTION(...) with those of the `values` {name: value} that its signature names. Raises
    BadInput if it needs another value, or fails."""
    names = parameters(code)
    for name, parameter in names.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not variadic and name not in values:
            known = ", ".join(values)
            raise BadInput(f"{code} needs {name!r}: give it a default, or one of the names {known}")
    arguments = {name: values[name] for name in names if name in values}
    try:
        return load_function(code)(**arguments)
    except Exception as error:
        raise BadInput(f"{code} fails: {fault(error, file_of(code))}") from error


def read_arrays(args):
    """x_train, y_train, x_test, y_test of --dataset FILE.py:FUNCTION. Raises BadInput."""
    arrays = call(args.dataset, {"data_dir": args.data_dir, "timestep": args.timestep})
    if not isinstance(arrays, tuple | list) or len(arrays) != 4:
        raise BadInput(f"{args.dataset} must return x_train, y_train, x_test, y_test")
    return arrays


def check_network(args, model, dataset):
    """Raise BadInput if a user's network breaks the contract on two samples of `dataset`.

    The contract: model(x) -> outputs [T, N, classes] with a graph, the same in a second call, each
    sample independent of the others in eval mode.
    """
    if not is_code(args.arch):
        return
    x, y = next(dataset.subset(slice(2)).batches(2, args.seed))
    x = dataset.encode(x)
    twin = copy.deepcopy(model).eval()  # the network itself keeps its running statistics
    try:
        TemporalFisher(twin).check_independence(x, y)
        check_size(twin(x), args.timestep, dataset.num_classes)
        check_second_call(twin.train(), x)
    except Exception as error:
        reason = error if isinstance(error, ValueError) else fault(error, file_of(args.arch))
        raise BadInput(f"{args.arch} is not a network for these scripts: {reason}") from error


def check_size(outputs, timestep, classes):
    """Raise ValueError for another T or another number of classes."""
    steps, _, width = outputs.shape
    if steps != timestep:
        raise ValueError(f"it gives outputs of T = {steps}: pass --timestep {steps}")
    if width != classes:
        raise ValueError(f"it gives {width} classes, but the data set has {classes}")


def check_second_call(model, x):
    """Raise ValueError if a second call depends on the first, or shares its graph. In train mode
    even a new network spikes."""
    weights = [p for p in model.parameters() if p.requires_grad]
    calls = []
    for _ in range(2):
        torch.manual_seed(0)  # dropout draws the same
        outputs = model(x)
        try:
            torch.autograd.grad(outputs.sum(), weights, allow_unused=True)
        except RuntimeError as error:
            if "second time" in str(error):
                raise ValueError(KEEPS) from error
            raise
        calls.append(outputs.detach())
    if not alike(*calls):
        raise ValueError(KEEPS)


# ---------------------------------------------------------------- spikes of other neurons


def first_tensor(output):
    """The output of a module, or the first one: snnTorch's neurons give spikes and membranes."""
    return output[0] if isinstance(output, tuple | list) and output else output


def spiking_layers(model, dataset, args):
    """Names of the modules whose outputs are all 0 or 1 in the first batch of `dataset`.

    Layers of torch do not count, which pass spikes on, nor blocks around a module that does, nor
    the surrogate functions that neurons of SpikingJelly call.
    """
    binary = {}

    def look(name, module, inputs, output):
        values = first_tensor(output)
        spikes = isinstance(values, torch.Tensor) and is_binary(values.float())
        of_torch = any(kind.__module__.startswith("torch.nn") for kind in kinds(module))
        skipped = of_torch or name.endswith("surrogate_function")
        binary[name] = binary.get(name, True) and spikes and not skipped

    x, _ = next(dataset.batches(args.batch_size, args.seed))
    with after_each(model, nn.Module, look):
        model(dataset.encode(x))
    names = [name for name, spikes in binary.items() if spikes and name]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def is_binary(values):
    """Whether all values are 0 or 1, but for the rounding of a straight-through estimator."""
    return (values * (1 - values)).abs().lt(1e-6).all().item()


def kinds(module):
    """The classes of a module above nn.Module."""
    return [kind for kind in type(module).__mro__ if kind is not nn.Module]


# ---------------------------------------------------------------- flags


def check_named(flags, typed, source):
    """Raise BadInput for user code that the command line does not name. `flags` are of `source`."""
    for name in ("arch", "dataset"):
        code = flags.get(name)
        if is_code(code) and name not in typed:
            raise BadInput(
                f"{source} names --{name} {code}, and code is loaded only from a file that the "
                f"command line names: add --{name} {code} if you trust that file"
            )


def check_flags(args, typed):
    """Raise BadInput for flags that the function of a user's --arch does not take."""
    names = parameters(args.arch)
    for flag, name in NETWORK_FLAGS.items():
        if flag in typed and name not in names:
            raise BadInput(
                f"--{flag} has no effect: the signature of {args.arch} does not name {name}"
            )
    if args.script == "prune_snn" and "timestep" not in names:
        raise BadInput(f"a search changes T: let the signature of {args.arch} name timestep")
