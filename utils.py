"""Everything around a run: errors, signals, processes, run folder, checkpoints, seeds, device."""

import argparse
import contextlib
import ctypes
import fcntl
import io
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

ARGS_FILE, LOG_FILE = "args.json", "log.jsonl"
FISHER_FILE, SAMPLES_FILE = "fisher.jsonl", "fisher_samples.pt"
ROBUSTNESS_FILE, PRUNING_FILE = "robustness.jsonl", "pruning.jsonl"
LATEST, BEST = "checkpoint_latest.pt", "checkpoint_best.pt"
LATER_FLAGS = {"frames": None}  # runs of earlier revisions lack them
PURPOSES = ("model", "order", "step", "evaluate", "corrupt", "subset")  # of random numbers


class BadInput(Exception):
    """The user's input cannot be used. The message says what is wrong and what to do."""


# ---------------------------------------------------------------- scripts and processes


def run_script(main, name, several_processes=False, hint="--resume goes on after the last epoch"):
    """Call main() as a script. Bad input ends it with one line on stderr and status 2, Ctrl-C and
    SIGTERM with one line and status 130 or 143."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may know only ASCII
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, partial(stop, name, hint))
    keep_freed_memory()
    try:
        join_processes(several_processes)
        main()
    except (BadInput, OSError) as error:
        report(f"{name}: error: {error}")
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        report(f"{name}: error: out of memory: try --checkpoint_activations, or a smaller "
               "--batch_size or --fisher_batch")  # fmt: skip
        sys.exit(2)
    if dist.is_initialized():
        dist.destroy_process_group()


def report(message):
    """Print one line on stderr."""
    print(message.replace("\n", " "), file=sys.stderr, flush=True)


def stop(name, hint, number, frame):
    """End the process at a signal. Any moment is safe, since files are replaced atomically. An
    exception would get lost in a finaliser, or become an error of torch.save."""
    if rank() == 0:
        report(f"{name}: stopped by {signal.Signals(number).name}; {hint}")
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(128 + number)


def keep_freed_memory():
    """Let glibc keep freed memory. Otherwise each step gets new pages from the system, and a CPU
    epoch of VGG5 with batch 128 takes 1.3 to 1.5 times as long."""
    with contextlib.suppress(AttributeError):  # no glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large buffers come from the heap too
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap never shrinks


def join_processes(several):
    """Under torchrun, meet the other processes. Only the first one writes and prints."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    if not several:
        raise BadInput("this script runs in one process: start it without torchrun")
    if int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if rank():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def rank():
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes():
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def of_all(value):
    """[value in process 0, value in process 1, ...]. All processes have to call it."""
    values = [value] * processes()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


# ---------------------------------------------------------------- the run folder


def write_atomically(path, content):
    """Write the bytes to `path`, whole or not at all. Raises BadInput."""
    temporary = Path(path).with_name(f".part-{Path(path).name}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error}); the old file is unchanged") from error


class Run:
    """A run folder. `with Run(...) as run:` keeps other processes out of it.

    Process 0 writes. It replaces whole files, so a kill leaves no half-written file. Raises
    BadInput if the folder cannot be written, is in use by another process, or holds a run that
    `args` does not resume.
    """

    def __init__(self, args, device):
        self.folder = Path(args.out_dir) / args.exp_name
        if rank() == 0:
            self.start(args, device)
        of_all(None)  # the others wait until the folder is there

    def start(self, args, device):
        """Make the folder, lock it, and write args.json, or add this start to it."""
        record = {"command": sys.argv, **environment(device)}
        begun = (self.folder / ARGS_FILE).exists()
        if begun:
            first = read_record(self.folder / ARGS_FILE)
            if not args.resume:
                writer = first["args"].get("script", "the script")
                raise BadInput(f"{self.folder} holds a run of {writer}: --resume goes on with it, "
                               "--exp_name NAME starts another")  # fmt: skip
            record = first | {"resumed": [*first.get("resumed", []), record]}
            if "epochs" in record["args"]:  # --resume may raise them
                record["args"]["epochs"] = args.epochs
        elif any(self.folder.glob("*.jsonl")):
            raise BadInput(f"{self.folder} holds a run without its {ARGS_FILE}: restore that file")
        else:
            record["args"] = dict(vars(args))
        try:
            (self.folder / "figures").mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"{self.folder} is in use: wait for the other process") from error
        except OSError as error:
            raise BadInput(f"{self.folder} cannot be written: {error}") from error
        if record["args"].get("tau") == math.inf:
            record["args"]["tau"] = "inf"  # JSON has no infinity
        text = json.dumps(record, indent=1, allow_nan=False)
        write_atomically(self.folder / ARGS_FILE, text.encode())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if rank() == 0:
            os.close(self.lock)  # this unlocks the folder

    def save(self, name, content):
        """torch.save."""
        if rank() == 0:
            buffer = io.BytesIO()
            torch.save(content, buffer)
            write_atomically(self.folder / name, buffer.getbuffer())

    def write_lines(self, name, records):
        """Write a JSON-lines file."""
        if rank() == 0:
            text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
            write_atomically(self.folder / name, text.encode())

    def append(self, name, record):
        """Add a record to a JSON-lines file."""
        if rank() == 0:
            self.write_lines(name, [*read_lines(self.folder / name), record])

    def lines(self, name):
        """The records of a JSON-lines file; process 0 reads them for all."""
        return of_all(read_lines(self.folder / name) if rank() == 0 else None)[0]


def read_lines(path):
    """The records of a JSON-lines file, without a torn last line; [] if there is no file. Raises
    BadInput if the file is damaged."""
    if not Path(path).exists():
        return []
    try:
        lines = Path(path).read_text().splitlines(keepends=True)
        return [dict(json.loads(line)) for line in lines if line.endswith("\n")]
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path} is damaged ({error}): restore it, or start another run") from error


def read_record(path):
    """The content of an args.json. Raises BadInput if it is damaged."""
    try:
        record = json.loads(Path(path).read_text())
        args = LATER_FLAGS | record["args"]
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{path} is damaged: restore it, or remove the folder") from error
    if args.get("tau") == "inf":
        args["tau"] = math.inf
    return record | {"args": args}


def environment(device):
    """Versions, device and git revision, for args.json."""
    command, folder = "git describe --always --dirty", Path(__file__).parent
    git = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"versions": versions, "device": device_name(device), "git": git.stdout.strip() or None}


def device_name(device):
    """The name of a GPU, or the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


# ---------------------------------------------------------------- checkpoints


def read_tensors(path):
    """Read the tensors and plain values of a torch.save file, on the CPU. Raises BadInput."""
    try:
        # In memory: torch has an OSError of its own for a file that is not whole.
        content = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that torch.save did not write
            return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is not whole raises one of many
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        words = f"is damaged, or torch.save did not write it: restore it ({type(error).__name__})"
        if unknown:
            words = f"holds {unknown[1]}: save it again with only tensors and plain values"
        raise BadInput(f"{path} {words}") from error


def load_checkpoint(path):
    """Read a checkpoint of this project or the release: {"state_dict": ...}. Raises BadInput."""
    content = read_tensors(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise BadInput(f"{path} is not a checkpoint: it needs a dict with 'state_dict'")
    named = all(isinstance(name, str) for name in content["state_dict"])
    if not named or not isinstance(content.get("args", {}), dict):
        raise BadInput(f"{path} is damaged: restore it")
    if "args" in content:
        content["args"] = LATER_FLAGS | content["args"]
    return content


def checkpoint_file(path):
    """The path of a checkpoint. A run folder stands for its latest one."""
    return str(Path(path) / LATEST) if Path(path).is_dir() else path


def load_run(folder, *, arch=None, dataset=None):
    """Load a run folder or a checkpoint in a notebook: (network in eval mode on the CPU, args).

    It also reads the data set of the run. If the network or the data set is user code, `arch` or
    `dataset` must name it again, as FILE.py:FUNCTION. Raises BadInput.
    """
    import data  # not above, since these import utils
    import train_snn
    import user_code

    path = checkpoint_file(folder)
    checkpoint = load_checkpoint(path)
    if "args" not in checkpoint:
        raise BadInput(f"{path} has no flags: build its network with archs.build")
    named = {name: value for name, value in (("arch", arch), ("dataset", dataset)) if value}
    user_code.check_named(checkpoint["args"], named, path)
    args = argparse.Namespace(**checkpoint["args"] | named)
    train_set, _ = data.load(args, torch.device("cpu"))
    model = train_snn.build_model(args, train_set)
    load_weights(model, checkpoint, path, args)
    return model.eval(), args


def load_weights(model, checkpoint, path, args):
    """Load the weights of a checkpoint. Raises BadInput if arch or T differ from `args`."""
    for name in ("arch", "timestep"):
        saved, wanted = checkpoint.get("args", {}).get(name), getattr(args, name)
        moved = Path(str(saved)).name == Path(str(wanted)).name  # the file of a user's network
        if saved not in (None, wanted) and not moved:
            raise BadInput(f"{path} was trained with --{name} {saved}, not {wanted}")
    state, known = {}, model.state_dict()
    for name, value in checkpoint["state_dict"].items():  # torch.compile and DDP add prefixes
        plain = name.replace("_orig_mod.", "").removeprefix("module.")
        state[name if name in known else plain] = value
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise BadInput(f"{path} does not fit --arch {args.arch}: {reason}") from error


# ---------------------------------------------------------------- seeds and device


def seed_all(seed, purpose, first=0, second=0):
    """Seed torch's generators from the run's seed, a purpose, and a moment (epoch and batch). So a
    resumed run draws the same numbers, and checkpoints need no generator's state."""
    key = [seed, PURPOSES.index(purpose), first, second]
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def pick_device(name):
    """A torch device by name. With "cuda" each process has its own. Raises BadInput."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # the device meta has no values
        return probe.device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--device {name} is not there: use another ({reason})") from error
