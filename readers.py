"""Where inputs and labels come from: tensors that are made or read at once, or image files that stay on disk."""

import atexit
import fcntl
import multiprocessing
import signal
import sys
from collections import deque
from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from utils import BadInput, let_go

TORCHVISION = dict(cifar10="CIFAR10", cifar100="CIFAR100", svhn="SVHN", fashion_mnist="FashionMNIST", mnist="MNIST")
FAKE_SIZE, FAKE_CLASSES = (256, 128), 10
PLANTED_SIZE, PLANTED_SHAPE = (2000, 500), (1, 8, 8)
MOST_CLASSES = 100_000


def read_folder(args):
    """--data_dir/train/<class>/<image> and --data_dir/val/<class>/<image>, as ImageNet is laid out, read as needed."""
    train, test = (Files(Path(args.data_dir) / split, args.image_size, args.workers) for split in ("train", "val"))
    atexit.register(end_workers)
    if train.files.classes != test.files.classes:
        raise BadInput(f"{args.data_dir}/train and {args.data_dir}/val must have folders of the same classes")
    return train, train.labels, test, test.labels


def read_digits(args):
    """scikit-learn's 1797 handwritten digits, [N, 1, 8, 8] in [0, 1]; every fifth of a fixed order is held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    test, train = order[::5], order[torch.arange(len(order)) % 5 != 0]
    return images[train], labels[train], images[test], labels[test]


def read_fake(args):
    """Seeded noise around one random pattern a class, of any shape, so that there is something to learn."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(0, 1, (FAKE_CLASSES, *args.fake_shape))
    arrays = []
    for size in FAKE_SIZE:
        labels = np.arange(size) % FAKE_CLASSES
        noise = rng.uniform(0, 1, (size, *args.fake_shape))
        arrays += [torch.from_numpy((255 * (patterns[labels] + noise) / 2).astype(np.uint8)), torch.from_numpy(labels)]
    return tuple(arrays)


def read_planted(args):
    """Seeded frames [N, T, 1, 8, 8] in [0, 1], each the mean of random black and white pixels and of uniform noise. At
    --planted_time, counted from 1, the former are those of the class: a frame alone does not tell that it is one."""
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
    """x_train, y_train, x_test, y_test of an .npz file: images or frames, uint8 or float, and integer labels."""
    try:
        with np.load(args.data_file, allow_pickle=False) as file:
            arrays = [file[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    except FileNotFoundError as error:
        raise BadInput(f"there is no {args.data_file}") from error
    except KeyError as error:
        raise BadInput(f"{args.data_file} lacks an array: {error.args[0]}") from error
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise BadInput(f"{args.data_file} is damaged, or no .npz file ({type(error).__name__})") from error
    for x, y, split in ((*arrays[:2], "train"), (*arrays[2:], "test")):
        if x.ndim not in (4, 5) or not (x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating)):
            raise BadInput(f"x_{split} of {args.data_file} must be uint8 or float, [N, C, H, W] or [N, T, C, H, W]")
        if y.shape != x.shape[:1] or len(y) == 0 or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise BadInput(f"y_{split} of {args.data_file} must be one label 0, 1, ... for each of x_{split}")
        if 0 in x.shape or y.max() >= MOST_CLASSES:
            raise BadInput(f"x_{split} of {args.data_file} must not be empty, y_{split} be below {MOST_CLASSES}")
        if not np.isfinite(x.astype(x.dtype if x.dtype == np.uint8 else np.float32, copy=False)).all():
            raise BadInput(f"x_{split} of {args.data_file} holds values that are not finite")
    if arrays[0].shape[1:] != arrays[2].shape[1:] or arrays[0].dtype != arrays[2].dtype:
        raise BadInput(f"x_train and x_test of {args.data_file} must have samples of one shape and type")
    kinds = (arrays[0].dtype if arrays[0].dtype == np.uint8 else np.float32, np.int64) * 2
    return tuple(torch.from_numpy(array.astype(kind, copy=False)) for array, kind in zip(arrays, kinds))


def read_torchvision(args):
    """A data set of torchvision, from --data_dir or downloaded to it."""
    source, arrays = getattr(import_torchvision(), TORCHVISION[args.dataset]), []
    for train in (True, False):
        split = {"split": "train" if train else "test"} if args.dataset == "svhn" else {"train": train}
        try:
            try:
                part = source(args.data_dir, download=False, **split)
            except RuntimeError:  # torchvision's word for missing, or of the wrong checksum
                print(f"{args.dataset} is not in {args.data_dir} yet: downloading")
                Path(args.data_dir).mkdir(parents=True, exist_ok=True)
                with open(Path(args.data_dir) / "download.lock", "w") as lock:  # of several runs one downloads
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    part = source(args.data_dir, download=True, **split)
        except Exception as error:  # URLError, OSError, UnpicklingError, ValueError, ... of a foreign reader
            raise BadInput(
                f"{args.dataset} in {Path(args.data_dir).resolve()} is missing or damaged and was not downloaded "
                f"({error}): put torchvision's files for {TORCHVISION[args.dataset]} there by hand, "
                f"or use --dataset digits, which needs none"
            ) from error
        images = torch.as_tensor(part.data)
        if images.dim() == 3:
            images = images.unsqueeze(1)  # (N, 1, H, W)
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)
        labels = torch.as_tensor(part.labels if args.dataset == "svhn" else part.targets)
        arrays += [images, labels.long()]
    return tuple(arrays)


def import_torchvision():
    """torchvision.datasets, also beside a torch build that torchvision's compiled operators were not built for."""
    try:
        from torchvision import datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        # PyPI's torchvision is built for CUDA and does not load its operators next to a CPU torch. Nothing here calls
        # them: declare the two that its import looks for, and import again.
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_torchvision.library = library  # the declarations live as long as this object
        from torchvision import datasets
    return datasets


class Files:
    """Images of a tree root/<class>/<image> that stay on disk: indexed like a uint8 tensor [N, 3, size, size].

    Worker processes decode them, the shorter side to `size`, the middle cut out. Batches that are announced by `expect`
    are decoded ahead of their use.
    """

    dtype = torch.uint8

    def __init__(self, root, size, workers):
        folder = import_torchvision().ImageFolder
        from torchvision import transforms

        steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]
        try:
            self.files = folder(root, transforms.Compose(steps), loader=read_image)
        except (OSError, RuntimeError) as error:
            raise BadInput(f"--dataset folder needs images in {root}/<class>/: {error}") from error
        self.labels = torch.tensor(self.files.targets)
        self.chosen = torch.arange(len(self.labels))  # of the files, in the order of the labels
        self.size, self.workers, self.device, self.coming = size, workers, None, deque()

    @property
    def shape(self):
        return len(self.chosen), 3, self.size, self.size

    def select(self, index):
        """The images of that index, in its order."""
        files = copy(self)
        files.chosen = self.chosen[index]
        return files

    def to(self, device):
        files = copy(self)
        files.device = device
        return files

    def dim(self):
        return len(self.shape)

    def load(self, batches):
        """Decode batches, each a list of positions."""
        lists = [self.chosen[batch.cpu()].tolist() for batch in batches]
        options = dict(num_workers=self.workers, pin_memory=torch.device(self.device or "cpu").type == "cuda")
        options |= dict(collate_fn=stack_images, worker_init_fn=let_go)
        # Workers inherit what is blocked: a signal to all processes must not end them before this one has saved.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return iter(DataLoader(Decoder(self.files), batch_sampler=lists, **options))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def expect(self, batches):
        """These batches are asked for next, in that order."""
        self.coming, self.ahead = deque(batches), self.load(batches) if batches else None

    def __getitem__(self, index):
        if self.coming and (self.coming[0].data_ptr(), len(self.coming[0])) == (index.data_ptr(), len(index)):
            self.coming.popleft()  # the same numbers in the same place: to compare them would be a sync point
            images = next(self.ahead)
        else:
            images = next(self.load([index]))
        if isinstance(images, BadInput):
            raise images
        return images.to(self.device, non_blocking=True)


def end_workers():
    """At the end of the process: workers do not hear the signal that multiprocessing ends them with."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise for each worker that is killed
    for worker in multiprocessing.active_children():
        worker.kill()


def read_image(path):
    """An image file as RGB. Raises ValueError for 16 bits a pixel, which would be cut off at 255."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode.startswith("I"):
            raise ValueError("it has 16 bits a pixel or more: convert it to 8")
        return image.convert("RGB")


class Decoder:
    """Images [3, size, size] of an ImageFolder, by number, for a worker process. In the place of one that is damaged it
    gives BadInput: raised there, it would lose its message."""

    def __init__(self, files):
        self.files = files

    def __getitem__(self, number):
        try:
            return self.files[number][0]
        except Exception as error:  # OSError, SyntaxError, ValueError, DecompressionBombError, ... of a foreign reader
            return BadInput(f"{self.files.samples[number][0]} cannot be read, repair or remove it ({error})")


def stack_images(images):
    """One tensor, or the first BadInput among them."""
    return next((image for image in images if isinstance(image, BadInput)), None) or torch.stack(images)


READERS = {"folder": read_folder, "digits": read_digits, "npz": read_npz, "fake": read_fake, "planted": read_planted}


def read(args):
    """x_train, y_train, x_test, y_test of the data set that `args` names: images [N, C, H, W], or frames
    [N, T, C, H, W], uint8 or float32, or `Files`; labels [N] int64. Raises BadInput if it is missing or damaged."""
    return READERS.get(args.dataset, read_torchvision)(args)
