"""Where inputs and labels come from: arrays that are made, or read from files."""

import fcntl
from pathlib import Path

import numpy as np
import torch

from utils import BadInput

# name -> torchvision's class
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN", "mnist": "MNIST",
               "fashion_mnist": "FashionMNIST"}  # fmt: skip
FAKE_SIZE, FAKE_CLASSES = (256, 128), 10
PLANTED_SIZE, PLANTED_SHAPE = (2000, 500), (1, 8, 8)
LAYOUTS = {4: "[N, C, H, W]", 5: "[N, T, C, H, W]"}


def read(args):
    """x_train, y_train, x_test, y_test of the data set that `args` name: images [N, C, H, W] or
    frames [N, T, C, H, W], uint8 or float32; labels [N] int64. Raises BadInput."""
    made = {"digits": read_digits, "npz": read_npz, "fake": read_fake, "planted": read_planted}
    return made.get(args.dataset, read_torchvision)(args)


def read_digits(args):
    """scikit-learn's 1797 handwritten digits, [N, 1, 8, 8] in [0, 1]. Every fifth of a fixed order
    is held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    test, train = order[::5], order[torch.arange(len(order)) % 5 != 0]
    return images[train], labels[train], images[test], labels[test]


def read_fake(args):
    """Seeded noise around one random pattern a class, of any shape, uint8."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(0, 1, (FAKE_CLASSES, *args.fake_shape))
    arrays = []
    for size in FAKE_SIZE:
        labels = np.arange(size) % FAKE_CLASSES
        noise = rng.uniform(0, 1, (size, *args.fake_shape))
        images = (255 * (patterns[labels] + noise) / 2).astype(np.uint8)
        arrays += [torch.from_numpy(images), torch.from_numpy(labels)]
    return tuple(arrays)


def read_planted(args):
    """Seeded frames [N, T, 1, 8, 8] in [0, 1], each the mean of random black and white pixels and
    of uniform noise. At --planted_time, counted from 1, the pixels are those of the class."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(2, size=(FAKE_CLASSES, 1, *PLANTED_SHAPE))
    arrays = []
    for size in PLANTED_SIZE:
        labels = np.arange(size) % FAKE_CLASSES
        pixels = rng.integers(2, size=(size, args.timestep, *PLANTED_SHAPE))
        pixels[:, [t - 1 for t in args.planted_time]] = patterns[labels]
        frames = (pixels + rng.uniform(0, 1, pixels.shape)) / 2
        arrays += [torch.from_numpy(frames.astype(np.float32)), torch.from_numpy(labels)]
    return tuple(arrays)


def read_npz(args):
    """x_train, y_train, x_test, y_test of --data_file: uint8 or float inputs, integer labels."""
    path = args.data_file
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    except FileNotFoundError as error:
        raise BadInput(f"there is no {path}") from error
    except KeyError as error:
        raise BadInput(f"{path} lacks an array: {error.args[0]}") from error
    except Exception as error:  # zipfile, zlib and numpy each have their own
        if "Object arrays" in str(error):
            raise BadInput(
                f"{path} holds Python objects: save arrays of one number type"
            ) from error
        raise BadInput(f"{path} is damaged, or no .npz file ({type(error).__name__})") from error
    return check_arrays(path, *arrays)


def check_arrays(source, x_train, y_train, x_test, y_test):
    """The arrays as tensors: inputs uint8 or float32, labels int64. Raises BadInput for inputs or
    labels that no network takes."""
    arrays = []
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        check_inputs(f"x_{split} of {source}", x)
        if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
            raise BadInput(f"y_{split} of {source} must be one whole number for each of x_{split}")
        x = x if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
        if not all(np.isfinite(sample).all() for sample in x):
            raise BadInput(f"x_{split} of {source} holds values that are not finite in float32")
        arrays += [torch.from_numpy(x), torch.from_numpy(y.astype(np.int64, copy=False))]
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise BadInput(f"x_train and x_test of {source} must have samples of one shape and type")
    return tuple(arrays)


def check_inputs(name, x):
    """Raise BadInput for inputs of another layout or type."""
    shape = list(x.shape)
    if x.ndim not in LAYOUTS or 0 in shape:
        layouts = " or ".join(LAYOUTS.values())
        raise BadInput(f"{name} has shape {shape}: it must be {layouts}, with an axis for a single "
                       "channel, too")  # fmt: skip
    if shape[-1] <= 3 < min(shape[-3], shape[-2]):
        raise BadInput(f"{name} has shape {shape} and looks channels-last: transpose it to "
                       f"{LAYOUTS[x.ndim]}")  # fmt: skip
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise BadInput(f"{name} is {x.dtype}: it must be uint8 or float")


def read_torchvision(args):
    """A data set of torchvision, from --data_dir or downloaded to it."""
    name, arrays = TORCHVISION[args.dataset], []
    source = getattr(import_torchvision(), name)
    for split in ("train", "test"):
        which = {"split": split} if args.dataset == "svhn" else {"train": split == "train"}
        try:
            dataset = read_or_download(source, args, which)
        except Exception as error:  # URLError, OSError, ValueError, ... of a foreign reader
            raise BadInput(
                f"{args.dataset} in {Path(args.data_dir).resolve()} is missing or damaged and was "
                f"not downloaded ({error}): put torchvision's files for {name} there by hand, or "
                "use --dataset digits, which needs none"
            ) from error
        images = torch.as_tensor(dataset.data)
        if images.dim() == 3:
            images = images.unsqueeze(1)  # (N, 1, H, W)
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)
        labels = dataset.labels if args.dataset == "svhn" else dataset.targets
        arrays += [images, torch.as_tensor(labels).long()]
    return tuple(arrays)


def read_or_download(source, args, which):
    """A torchvision data set. Of several runs one downloads it, the others wait."""
    try:
        return source(args.data_dir, download=False, **which)
    except RuntimeError:  # torchvision's word for missing, or of the wrong checksum
        print(f"{args.dataset} is not in {args.data_dir} yet: downloading")
    Path(args.data_dir).mkdir(parents=True, exist_ok=True)
    with open(Path(args.data_dir) / "download.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return source(args.data_dir, download=True, **which)


def import_torchvision():
    """torchvision.datasets, also beside a torch that torchvision's operators were not built for."""
    try:
        from torchvision import datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        # PyPI's torchvision is built for CUDA and does not load its operators next to a CPU torch.
        # Nothing here calls them: declare the two that its import looks for, and import again.
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
        from torchvision import datasets
    return datasets
