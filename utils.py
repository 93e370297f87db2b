"""What surrounds a run: errors, files that are never half-written, checkpoints, seeds, device, signals."""

import contextlib
import ctypes
import fcntl
import json
import os
import pickle
import platform
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

ARGS_FILE, LOG_FILE, LABELS_FILE = "args.json", "log.jsonl", "train_labels.pt"
FISHER_FILE, SAMPLES_FILE = "fisher.jsonl", "fisher_samples.pt"
ROBUSTNESS_FILE, PRUNING_FILE = "robustness.jsonl", "pruning.jsonl"
LATEST, BEST = "checkpoint_latest.pt", "checkpoint_best.pt"
# What torch.load raises for a file that is not, or not all of, what torch.save wrote.
DAMAGE = (RuntimeError, pickle.UnpicklingError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError)


class BadInput(Exception):
    """What the user gave cannot be used. The message says what is wrong and what to do, in one line."""


class Stopped(Exception):
    """Ctrl-C or SIGTERM: the work so far is saved. `signal` is its number."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.signal = number


def run_script(main, name):
    """Call main() as a script: bad input and unusable files end it with one line on stderr and exit status 2, a signal
    with 128 plus its number."""
    keep_freed_memory()
    try:
        join_processes()
        main()
    except (BadInput, OSError) as error:
        print(f"{name}: error: {error}".replace("\n", " "), file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(f"{name}: stopped by {stop}; the run is saved, the same command with --resume goes on", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            cure = "a smaller --batch_size or --checkpoint_activations trains, --fisher_batch measures in less"
            print(f"{name}: error: out of memory, {cure} ({str(error).splitlines()[0]})", file=sys.stderr)
            sys.exit(2)
        if not dist.is_initialized() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        print(f"{name}: process {rank()} lost the others; when they can run again, --resume goes on", file=sys.stderr)
        sys.exit(1)
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def after_each(model, kinds, note):
    """Within, note(name, module, inputs, output) is called after each forward of the modules of these kinds."""
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    hooks = [module.register_forward_hook(partial(note, name)) for name, module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def keep_freed_memory():
    """Have glibc keep freed buffers for the next ones: else each step takes its activations from the system anew, page
    by page, which costs a CPU up to half of its time, for the larger peak of a memory in pieces."""
    with contextlib.suppress(OSError, AttributeError):  # another system
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large buffer
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


# ---------------------------------------------------------------- processes


def join_processes():
    """Under torchrun, meet the other processes. The first one alone writes and prints."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        missing = {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()
        if missing:
            raise BadInput(f"WORLD_SIZE is set, but not {min(missing)}: start several processes by torchrun")
        if int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():  # there may be fewer, for --device cpu
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if rank():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def rank():
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def of_all(value):
    """[value in process 0, value in process 1, ...], the same in all of them; all have to call it."""
    values = [value] * processes()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def own_part(count):
    """This process's part of `count` things, as a slice; every thing is in one part."""
    return slice(rank() * count // processes(), (rank() + 1) * count // processes())


def no_bar():
    """What tqdm's `disable` is: no progress bar but in the first process, and there only at a terminal."""
    return True if rank() else None


# ---------------------------------------------------------------- files


def write_atomically(path, write):
    """Call write(file) on a temporary file beside `path` and put it in the place of `path` when it is whole on disk."""
    path = Path(path)
    part = path.with_name(f".part-{path.name}")
    with open(part, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


held = set()  # descriptors of the folders that are locked


def let_go(*_):
    """In a worker process, which inherits them: it must not hold a folder when its parent is gone."""
    for descriptor in held:
        os.close(descriptor)


class Run:
    """A run folder. JSON lines are appended whole; other files are replaced atomically; process 0 alone writes.

    Raises BadInput if the folder cannot be made or written, is in use, or holds a run and `resume` is False.
    """

    def __init__(self, folder, args, device, resume=False):
        self.folder, self.lock = Path(folder), None
        if rank() == 0:
            self.open(args, device, resume)
        of_all(None)  # the others wait until it is there

    def open(self, args, device, resume):
        """Make the folder this process's own."""
        try:
            (self.folder / "figures").mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.folder, os.O_RDONLY)
            held.add(self.lock)
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until close, or the end of the process
                self.start(args, device, resume)
            except BaseException:
                self.close()
                raise
        except BlockingIOError as error:
            raise BadInput(f"another process is at work in {self.folder}") from error
        except OSError as error:
            raise BadInput(f"the output folder {self.folder} cannot be written: {error}") from error

    def start(self, args, device, resume):
        """Write args.json. What a run was started with stays in it, and each resumption is added."""
        record = {"args": vars(args), "command": sys.argv, **environment(device)}
        if self.path(ARGS_FILE).exists():
            if not resume:
                raise BadInput(f"{self.folder} holds a run: --resume goes on with it, --exp_name NAME makes another")
            first = read_record(self.path(ARGS_FILE))
            again = {name: value for name, value in record.items() if name != "args"}
            record = first | {"args": vars(args) | first["args"], "resumed": [*first.get("resumed", []), again]}
        elif any(self.path(name).exists() for name in (LOG_FILE, FISHER_FILE, ROBUSTNESS_FILE, PRUNING_FILE)):
            raise BadInput(
                f"{self.folder} holds a run without its {ARGS_FILE}: restore that, or name another --exp_name"
            )
        for torn in self.folder.glob(".part-*"):  # of a killed process
            torn.unlink()
        write_atomically(self.path(ARGS_FILE), lambda f: f.write(json.dumps(record, indent=1).encode()))

    def close(self):
        """Let another command have the folder."""
        if self.lock is not None:
            held.discard(self.lock)
            os.close(self.lock)
            self.lock = None

    def path(self, name):
        return self.folder / name

    def append(self, name, record):
        """Append one JSON line; one that a killed process left torn is passed over by `lines`."""
        if rank():
            return
        with open(self.path(name), "ab") as file:
            file.write((json.dumps(record, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def lines(self, name):
        """Records of a JSON-lines file, without a torn last line; none if there is no file."""
        return read_lines(self.path(name))

    def keep_lines(self, name, keep):
        """Rewrite a JSON-lines file with the records for which keep(record) is true."""
        if rank() == 0 and self.path(name).exists():
            kept = [json.dumps(record) + "\n" for record in self.lines(name) if keep(record)]
            write_atomically(self.path(name), lambda f: f.write("".join(kept).encode()))

    def load(self, name):
        """What `save` wrote there, on the CPU; {} if there is no such file. Raises BadInput if it is damaged."""
        try:
            return torch.load(self.path(name), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return {}
        except DAMAGE as error:
            raise BadInput(f"{self.path(name)} is damaged: restore it, or start another run") from error

    def save(self, name, content):
        if rank() == 0:
            try:
                write_atomically(self.path(name), lambda f: torch.save(content, f))
            except RuntimeError as error:  # torch's word for a full disk
                reason = error.__context__ or error
                raise BadInput(f"{self.path(name)} cannot be written ({reason}); what is on disk is whole") from error


def read_lines(path):
    """Records of a JSON-lines file, without a torn last line; none if there is no file."""
    if not Path(path).exists():
        return []
    lines = Path(path).read_text(errors="replace").splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}): restore it, or start another run") from error


def read_record(path):
    """The content of an args.json. Raises BadInput if it is damaged."""
    try:
        record = json.loads(Path(path).read_text())
        return record | {"args": dict(record["args"])}
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{path} is damaged: restore it, or remove the folder") from error


def device_name(device):
    """What a torch device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


def environment(device):
    """Versions, the name of the torch device, and git revision, for args.json."""
    try:
        revision = ["git", "describe", "--always", "--dirty"]
        git = subprocess.run(revision, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git on this machine
        git = ""
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": device_name(device),
        "git": git or None,
    }


# ---------------------------------------------------------------- checkpoints


def load_checkpoint(path):
    """A checkpoint of this project or of the release: a dict with "state_dict", on the CPU. Raises BadInput."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        named = all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content["state_dict"].items())
        if not named or not isinstance(content.get("args", {}), dict):
            raise ValueError("other content")
    except FileNotFoundError as error:
        raise BadInput(f"there is no checkpoint {path}") from error
    except DAMAGE as error:
        raise BadInput(f"{path} is damaged, or no checkpoint of this project or of the release") from error
    return content


def load_weights(model, checkpoint, path, args):
    """Load the weights of a checkpoint that was made with the arch and T of `args`. Raises BadInput otherwise."""
    saved = checkpoint.get("args", {})
    for name in ("arch", "timestep"):
        if saved.get(name, getattr(args, name)) != getattr(args, name):
            raise BadInput(f"{path} was trained with --{name} {saved[name]}, not {getattr(args, name)}")
    try:
        model.load_state_dict({k.removeprefix("module."): v for k, v in checkpoint["state_dict"].items()})
    except RuntimeError as error:
        raise BadInput(f"{path} does not fit --arch {args.arch}: {str(error).splitlines()[1].strip()}") from error


# ---------------------------------------------------------------- seeds, device, signals


def seed_all(seed, purpose, *when):
    """Seed torch's generators from the run's seed, a purpose and a moment (epoch, step).

    Whatever is drawn at a moment depends on that moment alone. So a run that is resumed, measured or evaluated in
    between draws the same numbers as one that is not, and no generator's state has to be saved.
    """
    purposes = ("model", "order", "step", "evaluate", "corrupt", "subset")
    key = [seed, purposes.index(purpose), *when, 0, 0][:4]  # of one length: SeedSequence ignores zeros at the end
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def pick_device(name):
    """A torch device by name; "cuda" is each process's own GPU, "auto" too if there is any. Raises BadInput if it is
    missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.zeros(1, device=name)
        device.item()  # "meta" holds no numbers
        return device.device
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is one of the former
        reason = str(error).splitlines()[0].split(". ")[0]
        raise BadInput(f"--device {name} is not there ({reason}); --device cpu always is") from error


class StopSignals:
    """Inside `with StopSignals() as stop:` Ctrl-C and SIGTERM only take note: stop.check() raises Stopped at a moment
    at which everything can be saved. A second signal ends the process at once.

    Several processes stop together, where all of them call stop.check(together=True).
    """

    def __enter__(self):
        self.requested, self.before = None, {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        if self.requested:
            sys.exit(128 + number)
        self.requested = number

    def check(self, together=False):
        requested = self.requested
        if together:  # what comes while they ask each other is for the next time
            requested = next(filter(None, of_all(requested)), None)
        if requested and (together or processes() == 1):
            raise Stopped(requested)

    def __exit__(self, *exc):
        for number, handler in self.before.items():
            signal.signal(number, handler)
