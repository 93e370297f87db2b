"""Data sets as tensors on the device; batches are cut, augmented and encoded there, all images at once. A folder of
image files stays on disk instead, and is decoded by worker processes.

A set is two `ImageSet`s, made by `load`. Values are in [0, 1] where they are stored as uint8; a batch is standardised
channel by channel with the training set's mean and standard deviation.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from archs import SMALLEST_IMAGE
from readers import Files, import_torchvision, read
from utils import BadInput, seed_all

# name -> (padding of the random crop, random horizontal flip)
AUGMENT = {
    "cifar10": (4, True), "cifar100": (4, True), "svhn": (4, False), "fashion_mnist": (2, True), "mnist": (2, False),
    "digits": (0, False), "npz": (0, False), "fake": (4, True), "planted": (0, False),
    "folder": (8, True),
}  # fmt: skip
DATASETS = tuple(AUGMENT)
# The release's constants; any other set is measured.
MEAN_STD = {"cifar10": ((0.4913, 0.4821, 0.4465), (0.2023, 0.1994, 0.2010))}


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
    x_train, y_train, x_test, y_test = read(args)
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
            f"frames of {args.dataset} have {x_train.shape[1]} timesteps: pass --timestep {x_train.shape[1]}"
        )
    if args.encode == "p":
        if x_train.dim() == 5:
            raise BadInput("--encode p makes spikes of images; frames are in time already")
        need_pixels("--encode p", x_train, x_test)
        train.poisson_steps = args.timestep
    if args.noisetype or args.freqlevel:
        need_pixels("corruption of inputs", x_train, x_test)
        most = math.hypot(*(size // 2 for size in x_train.shape[-2:]))  # cycles an image
        if args.freqlevel and args.freq_radius >= most:
            raise BadInput(f"--freq_radius {args.freq_radius:g} separates nothing: give less than {most:.2f}")
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
