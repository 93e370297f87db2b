"""Readers of inputs and labels: they make arrays, or read them from files."""

import fcntl
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

import user_code
from archs import SMALLEST_IMAGE
from utils import BadInput

# name -> torchvision's class
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN", "mnist": "MNIST",
               "fashion_mnist": "FashionMNIST"}  # fmt: skip
FAKE_CLASSES = 10


def read(args):
    """Read x_train, y_train, x_test, y_test of the data set that `args` names: images [N, C, H, W]
    or frames [N, T, C, H, W], uint8 or float32; labels [N] int64. Raises BadInput."""
    if user_code.is_code(args.dataset):
        arrays = user_code.read_arrays(args)
    elif args.dataset in TORCHVISION:
        arrays = read_torchvision(args)
    else:
        arrays = MADE[args.dataset](args)
    x_train, y_train, x_test, y_test = (as_tensor(args, array) for array in arrays)
    x_train, x_test = (x if x.dtype == torch.uint8 else x.float() for x in (x_train, x_test))
    check(args, x_train, y_train, x_test, y_test)
    return x_train, y_train.long(), x_test, y_test.long()


def as_tensor(args, array):
    """An array, memory map or tensor as a tensor, without a copy. Raises BadInput."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of read-only maps
        try:
            if isinstance(array, np.ndarray):  # torch knows no other byte order, no backward axis
                array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
            tensor = torch.as_tensor(array).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"{args.dataset} must give arrays of numbers: {error}") from error
    if tensor.is_complex():
        raise BadInput(f"{args.dataset} must give real numbers, not {tensor.dtype}")
    return tensor


def check(args, x_train, y_train, x_test, y_test):
    """Raise BadInput for inputs or labels that no network takes, and for frames with another T."""
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        name, shape = f"x_{split} of {args.dataset}", list(x.shape)
        if len(shape) not in (4, 5) or len(x) < 2 or min(shape[-2:]) < SMALLEST_IMAGE:
            raise BadInput(
                f"{name} has shape {shape}, not [N, C, H, W] or [N, T, C, H, W] with N >= 2 and H, "
                f"W >= {SMALLEST_IMAGE}: transpose channels-last arrays, add an axis for C = 1"
            )
        if len(shape) == 4 and args.frames:
            raise BadInput(f"{name} has shape {shape} of images: leave out --frames")
        if len(shape) == 5 and shape[1] != (args.frames or args.timestep):
            raise BadInput(
                f"{name} has shape {shape}, and frames are [N, T, C, H, W]: pass --timestep "
                f"{shape[1]}, or --frames {shape[1]} for a smaller T, or move the axis of time"
            )
        if y.shape != x.shape[:1]:
            raise BadInput(f"y_{split} of {args.dataset} has shape {list(y.shape)}, not [N]: give "
                           f"one label for each of {name}")  # fmt: skip
        if x.is_floating_point() and not x.sum().isfinite():
            raise BadInput(f"{name} has values that are not finite in float32: replace them")
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise BadInput(
            f"x_train and x_test of {args.dataset} must have samples of one shape and type"
        )
    labels = torch.cat([y_train, y_test]).double().unique().tolist()
    if labels != list(range(len(labels))):
        start = ", ".join(f"{label:g}" for label in labels[:10])
        raise BadInput(
            f"the labels of {args.dataset} start with {start}: number the classes from 0, without "
            "gaps"
        )


def read_digits(args):
    """scikit-learn's 1797 handwritten digits, [N, 1, 8, 8] in [0, 1]. Every fifth one, in a fixed
    random order, is a test sample."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images[:, None] / 16, digits.target
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = np.delete(order, np.s_[::5]), order[::5]
    return images[train], labels[train], images[test], labels[test]


def read_fake(args):
    """Seeded noise around one random pattern per class, in any shape, uint8."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(0, 1, (FAKE_CLASSES, *args.fake_shape))
    arrays = []
    for size in (256, 128):
        labels = np.arange(size) % FAKE_CLASSES
        images = noisy(patterns[labels], rng)
        arrays += [(255 * images).astype(np.uint8), labels]
    return arrays


def read_planted(args):
    """Seeded frames [N, T, 1, 8, 8] in [0, 1]: random black and white pixels, with noise. At
    --planted_time, from 1, the pixels are the pattern of the class."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(2, size=(FAKE_CLASSES, 1, 1, 8, 8))
    arrays = []
    for size in (2000, 500):
        labels = np.arange(size) % FAKE_CLASSES
        pixels = rng.integers(2, size=(size, args.frames or args.timestep, 1, 8, 8))
        pixels[:, [t - 1 for t in args.planted_time]] = patterns[labels]
        arrays += [noisy(pixels, rng), labels]
    return arrays


def noisy(pixels, rng):
    """The mean of the pixels and of uniform noise in [0, 1]."""
    return (pixels + rng.uniform(0, 1, pixels.shape)) / 2


def read_npz(args):
    """x_train, y_train, x_test, y_test of --data_file."""
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(args.data_file, allow_pickle=False) as file:
            return [file[name] for name in names]
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise BadInput(
            f"{args.data_file} is not an .npz with arrays of numbers {', '.join(names)} ({error})"
        ) from error


MADE = {"digits": read_digits, "npz": read_npz, "fake": read_fake, "planted": read_planted}


def read_torchvision(args):
    """A data set of torchvision, from --data_dir or downloaded to it."""
    name, arrays = TORCHVISION[args.dataset], []
    source = getattr(import_torchvision("datasets"), name)
    for split in ("train", "test"):
        choice = {"split": split} if args.dataset == "svhn" else {"train": split == "train"}
        try:
            dataset = read_or_download(source, args, choice)
        except Exception as error:  # URLError, OSError, ValueError, ... of a foreign reader
            raise BadInput(
                f"{args.dataset} in {Path(args.data_dir).resolve()} can neither be read nor "
                f"downloaded ({type(error).__name__}: {error}): put torchvision's files for {name} "
                "there by hand, or use --dataset digits, which needs no files"
            ) from error
        images = torch.as_tensor(dataset.data)
        if images.dim() == 3:
            images = images.unsqueeze(1)  # (N, 1, H, W)
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)
        arrays += [images, dataset.labels if args.dataset == "svhn" else dataset.targets]
    return arrays


def read_or_download(source, args, choice):
    """Read a torchvision data set. If several runs need it, one downloads it, the others wait."""
    try:
        return source(args.data_dir, download=False, **choice)
    except RuntimeError:  # torchvision raises this for a missing or damaged file
        print(f"{args.dataset} is not in {args.data_dir} yet: downloading")
    Path(args.data_dir).mkdir(parents=True, exist_ok=True)
    with open(Path(args.data_dir) / "download.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return source(args.data_dir, download=True, **choice)


def import_torchvision(module):
    """Import a module of torchvision, even if it is built for CUDA and torch for a CPU."""
    try:
        return import_module(f"torchvision.{module}")
    except RuntimeError:  # its operators did not load, so declare those that it needs
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
        return import_module(f"torchvision.{module}")
