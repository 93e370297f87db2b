"""Data sets as tensors on the device; batches are cut, augmented and encoded there, all images at once. A folder of
image files stays on disk instead, and is decoded by worker processes.

A set is two `ImageSet`s, made by `load`. Values are in [0, 1] where they are stored as uint8; a batch is standardised
channel by channel with the training set's mean and standard deviation.
"""

import atexit
import fcntl
import functools
import math
import multiprocessing
import signal
import sys
from collections import deque
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from archs import SMALLEST_IMAGE
from utils import BadInput, let_go, seed_all

# name -> (padding of the random crop, random horizontal flip)
AUGMENT = {
    "cifar10": (4, True), "cifar100": (4, True), "svhn": (4, False), "fashion_mnist": (2, True), "mnist": (2, False),
    "digits": (0, False), "npz": (0, False), "fake": (4, True), "planted": (0, False),
    "folder": (8, True),
}  # fmt: skip
TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "fashion_mnist": "FashionMNIST",
    "mnist": "MNIST",
}
DATASETS = tuple(AUGMENT)
# The release's constants; any other set is measured.
MEAN_STD = {"cifar10": ((0.4913, 0.4821, 0.4465), (0.2023, 0.1994, 0.2010))}
FAKE_SIZE, FAKE_CLASSES = (256, 128), 10
PLANTED_SIZE, PLANTED_SHAPE = (2000, 500), (1, 8, 8)
MOST_CLASSES = 100_000


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
        end_workers_at_exit()
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


@functools.cache  # once is enough
def end_workers_at_exit():
    """Workers do not hear the signal that multiprocessing ends them with."""
    atexit.register(end_workers)


def end_workers():
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


@dataclass
class Corruption:
    """What is done to inputs in [0, 1], images [B, C, H, W] or frames [B, T, C, H, W], before they are standardised.

    kind "gaussian_noise" adds noise of standard deviation `level` and cuts at 0 and 1; "blur" is Gaussian, of standard
    deviation `level` in pixels. `band` "low" keeps the spatial frequencies up to `radius` cycles an image, "high" those
    above. An image is corrupted once and shown at `times`, counted from 1, itself at the others of the `timestep`;
    without `times`, it is shown at all.
    """

    timestep: int
    times: tuple = ()
    kind: str | None = None
    level: float = 0.0
    band: str | None = None
    radius: float = 0.0

    def __call__(self, x, size=None, part=slice(None)):
        """Of a batch of `size` inputs, x may be the `part`. Noise is drawn from torch's generator of the device."""
        changed = x
        if self.kind == "gaussian_noise":
            noise = torch.randn(size or len(x), *x.shape[1:], device=x.device, dtype=x.dtype)[part]
            changed = (changed + self.level * noise).clamp(0, 1)
        elif self.kind == "blur":
            changed = blurred(changed, self.level)
        if self.band:
            changed = filtered(changed, self.band, self.radius)
        if not self.times:
            return changed
        frames = [image.unsqueeze(1).expand(-1, self.timestep, *x.shape[1:]) for image in (x, changed)]
        x, changed = (x, changed) if x.dim() == 5 else frames
        chosen = torch.zeros(self.timestep, dtype=torch.bool, device=x.device)
        for t in self.times:  # an index of a list would be a sync point
            chosen[t - 1] = True
        return torch.where(chosen.view(-1, 1, 1, 1), changed, x)


def blurred(x, sigma):
    """Gaussian blur of [..., H, W], standard deviation in pixels, mirrored at the edges."""
    import_torchvision()
    from torchvision.transforms.functional import gaussian_blur

    reach = min(math.ceil(3 * sigma), min(x.shape[-2:]) - 1)
    return gaussian_blur(x.flatten(1, -3), 2 * reach + 1, sigma).view(x.shape)


def filtered(x, band, radius):
    """The spatial frequencies of [..., H, W] up to `radius` cycles an image ("low"), or those above ("high")."""
    down, right = (torch.fft.fftfreq(size, 1 / size, device=x.device) for size in x.shape[-2:])
    low = down.square().unsqueeze(1) + right.square() <= radius**2
    return torch.fft.ifft2(torch.fft.fft2(x) * (low if band == "low" else ~low)).real


@dataclass
class ImageSet:
    """Samples and how a batch is made of them.

    images [N, C, H, W], or frames [N, T, C, H, W], uint8 or float32, or `Files`; labels [N] int64; mean and std [C].
    """

    images: torch.Tensor | Files
    labels: torch.Tensor
    num_classes: int
    mean: torch.Tensor
    std: torch.Tensor
    pad: int = 0
    flip: bool = False
    poisson_steps: int = 0
    corruption: Corruption | None = None

    def __len__(self):
        return len(self.labels)

    def subset(self, index):
        """The set of the samples of that index, in its order."""
        images = self.images.select(index) if isinstance(self.images, Files) else self.images[index]
        return replace(self, images=images, labels=self.labels[index])

    def to(self, device):
        """The set on that device."""
        moved = {name: getattr(self, name).to(device) for name in ("images", "labels", "mean", "std")}
        return replace(self, **moved)

    def expect(self, batches, parts=None):
        """These batches are asked for next, each of them an index [B] with its part: files are read ahead."""
        if isinstance(self.images, Files):
            self.images.expect([index[part] for index, part in zip(batches, parts or [slice(None)] * len(batches))])

    def batch(self, index, augment=False, part=slice(None)):
        """Inputs [B, C, H, W] or [B, T, C, H, W] of a network, and labels [B], of the samples `index` [B].

        Of these, `part` is given out; it is what it would be within the whole batch. What is random (crops, flips,
        noise, Poisson spikes) is drawn from torch's global generator of the device.
        """
        x, labels = self.pixels(index, augment, part)
        return self.encode(x, len(index), part), labels

    def pixels(self, index, augment=False, part=slice(None)):
        """The same before `encode`: augmented and corrupted, float32, in [0, 1] if the set is."""
        x, labels = self.images[index[part]], self.labels[index[part]]
        if augment and (self.pad or self.flip):
            x = crop_and_flip(x, self.pad, self.flip, len(index), part)
        x = x / 255 if x.dtype == torch.uint8 else x
        if self.corruption:
            x = self.corruption(x, len(index), part)
        return x, labels

    def shown(self, number):
        """One input as a figure shows it: frames [S, C, H, W] in [0, 1], S = 1 if every timestep sees the same."""
        x = self.pixels(torch.tensor([number], device=self.labels.device))[0]
        x = self.encode(x) if self.poisson_steps else x
        return x[0] if x.dim() == 5 else x

    def encode(self, x, size=None, part=slice(None)):
        """Pixels as a network takes them: standardised, or Poisson spikes, which are 0 or 1 with the pixel's value as
        probability, and not standardised; the gradient of a spike by its pixel counts as 1. Of a batch of `size`
        samples, x may be the `part`."""
        if not self.poisson_steps:
            return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        chance = torch.rand(size or len(x), self.poisson_steps, *x.shape[-3:], device=x.device)  # (B, T, C, H, W)
        frames = x if x.dim() == 5 else x.unsqueeze(1)
        spikes = (chance[part] < frames).to(x.dtype)
        return spikes + (frames - frames.detach()) if x.requires_grad else spikes


def crop_and_flip(x, pad, flip, size=None, part=slice(None)):
    """Shift each image of [B, ..., H, W] by up to `pad` pixels, zeros coming in, and mirror half of them if `flip`.

    The frames of one sample move together. Of a batch of `size` images, x may be the `part`.
    """
    size, (height, width) = size or len(x), x.shape[-2:]
    down, right = (torch.randint(0, 2 * pad + 1, (size, 1), device=x.device)[part] for _ in range(2))
    rows, cols = torch.arange(height, device=x.device) + down, torch.arange(width, device=x.device) + right
    if flip:
        cols = torch.where(torch.rand(size, 1, device=x.device)[part] < 0.5, cols.flip(1), cols)
    padded = F.pad(x.flatten(1, -3), (pad,) * 4)  # (B, channels, H + 2 pad, W + 2 pad)
    sample = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    moved = padded.transpose(0, 1)[:, sample, rows.unsqueeze(2), cols.unsqueeze(1)]  # (channels, B, H, W)
    return moved.transpose(0, 1).reshape(x.shape)


def load(args, device):
    """The training and the test set that `args` names, on `device`, and the corruption of the training labels.

    Returns (train, test, corrupted): `corrupted` is None, or {"index" [n] into the whole training set, "labels" [n] as
    trained, "clean" [n]}. Raises BadInput if a set is missing or damaged, or does not fit the flags.
    """
    x_train, y_train, x_test, y_test = READERS.get(args.dataset, read_torchvision)(args)
    num_classes = int(max(y_train.max(), y_test.max())) + 1
    if args.dataset in MEAN_STD:
        mean, std = map(torch.tensor, MEAN_STD[args.dataset])
    else:
        mean, std = channel_statistics(x_train)
    pad, flip = (0, False) if args.no_augment else AUGMENT[args.dataset]
    train = ImageSet(x_train, y_train, num_classes, mean, std, pad, flip)
    if len(train) < 2:
        raise BadInput(f"{args.dataset} has {len(train)} training sample: at least 2 are needed")
    if min(x_train.shape[-2:]) < SMALLEST_IMAGE:
        raise BadInput(f"inputs of {list(x_train.shape[-2:])} pixels are too small: at least {SMALLEST_IMAGE} a side")
    if x_train.dim() == 5 and x_train.shape[1] != args.timestep:
        raise BadInput(
            f"the frames of {args.dataset} have {x_train.shape[1]} timesteps: pass --timestep {x_train.shape[1]}"
        )
    if args.encode == "p":
        if x_train.dim() == 5:
            raise BadInput("--encode p makes spikes of images; frames are in time already")
        need_pixels("--encode p", x_train, x_test)
        train.poisson_steps = args.timestep
    if args.noisetype or args.freqlevel:
        need_pixels("corruption of inputs", x_train, x_test)
        noise, filters = (args.noisetype, args.noise_level), (args.freqlevel, args.freq_radius)
        train.corruption = Corruption(args.timestep, tuple(args.noisetime), *noise, *filters)
    test = replace(train, images=x_test, labels=y_test)
    corrupted = None
    if args.datanum:
        if args.datanum > len(train):
            raise BadInput(f"--datanum {args.datanum} is above the {len(train)} training samples of {args.dataset}")
        seed_all(args.seed, "subset")
        index = torch.randperm(len(train))[: args.datanum]
        train = train.subset(index)
    else:
        index = torch.arange(len(train))
    if args.label_corrupt_prob:
        seed_all(args.seed, "corrupt")
        chosen = torch.randperm(len(train))[: round(args.label_corrupt_prob * len(train))]
        labels = train.labels.clone()
        labels[chosen] = torch.randint(num_classes, (len(chosen),))
        corrupted = {"index": index[chosen], "labels": labels[chosen], "clean": train.labels[chosen]}
        train = replace(train, labels=labels)
    if args.dry_run:
        train, test = train.subset(slice(2 * args.batch_size)), test.subset(slice(2 * args.batch_size))
    return train.to(device), test.to(device), corrupted


def need_pixels(what, *sets):
    """Raise BadInput for inputs that are not pixels in [0, 1]."""
    if any(x.dtype != torch.uint8 and (x.min() < 0 or x.max() > 1) for x in sets):
        raise BadInput(f"{what} needs values in [0, 1]")


def channel_statistics(images):
    """Mean and standard deviation [C] over samples, timesteps and positions; a constant channel has 1."""
    mean, square = 0, 0
    if isinstance(images, Files):  # a sample of them tells
        seed_all(0, "subset")
        images = images[torch.randperm(len(images.chosen))[:1000]]
    for chunk in images.split(1000):
        flat = chunk.transpose(0, -3).flatten(1).double() / (255 if images.dtype == torch.uint8 else 1)
        mean, square = mean + flat.sum(1), square + flat.square().sum(1)
    count = images.numel() / images.shape[-3]
    mean, square = mean / count, square / count
    std = (square - mean**2).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-6, std, 1.0).float()


# ---------------------------------------------------------------- readers: x_train, y_train, x_test, y_test


def read_folder(args):
    """--data_dir/train/<class>/<image> and --data_dir/val/<class>/<image>, as ImageNet is laid out, read as needed."""
    train, test = (Files(Path(args.data_dir) / split, args.image_size, args.workers) for split in ("train", "val"))
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


READERS = {"folder": read_folder, "digits": read_digits, "npz": read_npz, "fake": read_fake, "planted": read_planted}
