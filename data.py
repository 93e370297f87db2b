"""Data sets as tensors. Batches are made, augmented, corrupted and encoded on the device.

`load` makes a training and a test `ImageSet`. Pixels are inputs in [0, 1] if the data allow it:
uint8 images divided by 255, and frames divided by the largest value of the training set.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from readers import import_torchvision, read
from utils import BadInput, processes, rank, seed_all

# name -> (padding of the random crop, random horizontal flip)
AUGMENT = {
    "cifar10": (4, True), "cifar100": (4, True), "svhn": (4, False), "fashion_mnist": (2, True),
    "mnist": (2, False), "fake": (4, True), "digits": (0, False), "planted": (0, False),
    "npz": (0, False),
}  # fmt: skip
DATASETS = tuple(AUGMENT)
# The constants of the release. For other sets they are computed.
MEAN_STD = {"cifar10": ((0.4913, 0.4821, 0.4465), (0.2023, 0.1994, 0.2010))}
PIECE_BYTES = 2**26  # of float64, for the statistics of one piece


@dataclass
class Corruption:
    """A change of pixels, images [B, C, H, W] or frames [B, T, C, H, W].

    kind "gaussian_noise" adds noise of standard deviation `level` and cuts at 0 and 1; "blur" is
    Gaussian, with standard deviation `level` in pixels. band "low" keeps the frequencies up to
    `radius` cycles per image, "high" those above. An image is corrupted once. The network sees this
    image at the timesteps `times`, from 1; without `times`, at all timesteps.
    """

    timestep: int
    times: tuple = ()
    kind: str | None = None
    level: float = 0.0
    band: str | None = None
    radius: float = 0.0

    def __call__(self, x):
        changed = x
        if self.kind == "gaussian_noise":
            changed = (changed + self.level * torch.randn_like(x)).clamp(0, 1)
        elif self.kind == "blur":
            changed = blurred(changed, self.level)
        if self.band:
            changed = filtered(changed, self.band, self.radius)
        if not self.times:
            return changed
        if x.dim() == 4:  # (B, C, H, W) -> (B, T, C, H, W)
            x = x.unsqueeze(1).expand(-1, self.timestep, -1, -1, -1)
            changed = changed.unsqueeze(1).expand_as(x)
        steps = [t - 1 for t in self.times]
        x = x.clone()
        x[:, steps] = changed[:, steps]
        return x


def blurred(x, sigma):
    """Gaussian blur of [..., H, W], mirrored at the edges. `sigma` is in pixels."""
    reach = min(math.ceil(3 * sigma), min(x.shape[-2:]) - 1)
    functional = import_torchvision("transforms.functional")
    return functional.gaussian_blur(x.flatten(1, -3), 2 * reach + 1, sigma).view(x.shape)


def filtered(x, band, radius):
    """The spatial frequencies of [..., H, W] up to `radius` cycles per image, or those above."""
    down, right = (torch.fft.fftfreq(size, 1 / size, device=x.device) for size in x.shape[-2:])
    low = down.square().unsqueeze(1) + right.square() <= radius**2
    return torch.fft.ifft2(torch.fft.fft2(x) * (low if band == "low" else ~low)).real


def crop_and_flip(x, pad, flip):
    """Shift each sample of [B, ..., H, W] by up to `pad` pixels and fill with zeros. With `flip`,
    mirror half of the samples. The frames of a sample move together."""
    height, width = x.shape[-2:]
    down, right = (torch.randint(0, 2 * pad + 1, (len(x), 1), device=x.device) for _ in range(2))
    rows = torch.arange(height, device=x.device) + down
    cols = torch.arange(width, device=x.device) + right
    if flip:
        mirrored = torch.rand(len(x), 1, device=x.device) < 0.5
        cols = torch.where(mirrored, cols.flip(1), cols)
    padded = F.pad(x.flatten(1, -3), (pad,) * 4)  # (B, channels, H + 2 pad, W + 2 pad)
    sample = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    moved = padded.transpose(0, 1)[:, sample, rows.unsqueeze(2), cols.unsqueeze(1)]
    return moved.transpose(0, 1).reshape(x.shape)  # from (channels, B, H, W)


@dataclass
class ImageSet:
    """Samples, and how to make batches of them.

    images [N, C, H, W], or frames [N, T, C, H, W], uint8 or float32; labels [N] int64. The value
    `largest` becomes 1 in pixels. mean and std [C] are of pixels.
    """

    images: torch.Tensor
    labels: torch.Tensor
    num_classes: int
    largest: float
    mean: torch.Tensor
    std: torch.Tensor
    pad: int = 0
    flip: bool = False
    poisson_steps: int = 0
    corruption: Corruption | None = None

    def __len__(self):
        return len(self.labels)

    @property
    def device(self):
        """The device of the batches."""
        return self.labels.device

    def subset(self, index):
        """The set with the samples `index`, in this order."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def first_steps(self, steps):
        """The set for a network of that many timesteps."""
        if self.images.dim() == 5:
            return replace(self, images=self.images[:, :steps])
        return replace(self, poisson_steps=min(steps, self.poisson_steps))

    def to(self, device):
        """The set on that device. Images stay where they are if they need half of a GPU's free
        memory."""
        images, labels = self.images, self.labels.to(device)
        if device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            images = images.to(device)
        mean, std = self.mean.to(device), self.std.to(device)
        return replace(self, images=images, labels=labels, mean=mean, std=std)

    def batches(self, size, seed, epoch=None, augment=False):
        """Batches of pixels x and labels y [B], on the device: `for x, y in dataset.batches(...)`.

        Without `epoch`, all samples in order. With it, a training epoch: random order, augmented if
        `augment`, and only this process's share of each batch. Random numbers depend only on seed,
        epoch and batch.
        """
        index, moment = torch.arange(len(self), device=self.device), ["evaluate"]
        if epoch is not None:
            seed_all(seed, "order", epoch)
            index, moment = torch.randperm(len(self), device=self.device), ["step", epoch]
        for number, batch in enumerate(index.split(size)):
            if epoch is not None:
                if len(batch) < 2 * processes():
                    return  # BatchNorm has no statistics of one sample
                batch = batch[: len(batch) // processes() * processes()][rank() :: processes()]
                number = number * processes() + rank()  # each process draws its own numbers
            seed_all(seed, *moment, number)
            yield self.pixels(batch, augment), self.labels[batch]

    def pixels(self, index, augment=False):
        """The samples `index` as pixels, float32, augmented and corrupted."""
        x = self.images[index.to(self.images.device)].to(self.device, non_blocking=True)
        if augment and (self.pad or self.flip):
            x = crop_and_flip(x, self.pad, self.flip)
        x = x / self.largest
        return self.corruption(x) if self.corruption else x

    def encode(self, x):
        """Pixels -> the input of a network: standardised pixels, or Poisson spikes of the raw
        pixels. A pixel is the probability of its spikes. The gradient of a spike by its pixel is
        taken as 1."""
        if not self.poisson_steps:
            return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        frames = x if x.dim() == 5 else x.unsqueeze(1)
        chance = torch.rand(len(x), self.poisson_steps, *x.shape[-3:], device=x.device)
        spikes = (chance < frames).to(x.dtype)
        return spikes + (frames - frames.detach()) if x.requires_grad else spikes


def load(args, device):
    """Load the training and the test set that `args` names, on `device`.

    Raises BadInput if a set is missing or damaged, or does not fit the flags.
    """
    x_train, y_train, x_test, y_test = read(args)
    frames = x_train.dim() == 5
    largest = 255.0 if x_train.dtype == torch.uint8 else 1.0
    if frames and args.dataset != "planted" and x_train.min() >= 0:  # counts of events
        largest = x_train.max().item() or 1
        x_test = x_test.clamp(max=largest)
    mean, std = statistics(args, x_train, largest)
    classes = int(torch.cat([y_train, y_test]).max()) + 1
    train = ImageSet(
        x_train, y_train, classes, largest, mean, std, *AUGMENT.get(args.dataset, (0, False))
    )
    test = replace(train, images=x_test, labels=y_test).first_steps(args.timestep)
    train = train.first_steps(args.timestep)
    if args.encode == "p":
        if frames:
            raise BadInput("--encode p is for images, and frames are in time already: leave it out")
        need_pixels("--encode p", train, test)
        train.poisson_steps = test.poisson_steps = args.timestep
    if args.datanum:
        if args.datanum > len(train):
            raise BadInput(f"--datanum {args.datanum} is above the {len(train)} training samples")
        seed_all(args.seed, "subset")
        train = train.subset(torch.randperm(len(train))[: args.datanum])
    if args.label_corrupt_prob:
        train = replace_labels(train, args.label_corrupt_prob, args.seed)
    return train.to(device), test.to(device)


def statistics(args, images, largest):
    """Mean and standard deviation [C] for `ImageSet.encode`, as --standardise says."""
    rule = args.standardise or ("std" if images.dim() == 5 else "mean_std")
    if args.dataset in MEAN_STD:
        mean, std = torch.tensor(MEAN_STD[args.dataset])
    else:
        mean, std = channel_statistics(images, largest)
    if rule != "mean_std":
        mean = torch.zeros_like(mean)
    if rule == "none":
        std = torch.ones_like(std)
    return mean, std


def channel_statistics(images, largest):
    """Mean and standard deviation of pixels by channel, in pieces of bounded memory. The standard
    deviation of a constant channel is set to 1, also if rounding made it above 0."""
    total = square = 0
    for piece in images.split(max(1, PIECE_BYTES // (8 * images[0].numel()))):
        flat = piece.transpose(0, -3).flatten(1).double() / largest  # (C, everything else)
        total = total + flat.sum(1)
        square = square + flat.square().sum(1)
    count = images.numel() / len(total)
    mean, mean_square = total / count, square / count
    std = (mean_square - mean**2).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-6 * mean_square.sqrt(), std, 1.0).float()


def replace_labels(train, share, seed):
    """The set with a share of its labels replaced by random ones."""
    seed_all(seed, "corrupt")
    chosen = torch.randperm(len(train))[: round(share * len(train))]
    labels = train.labels.clone()
    labels[chosen] = torch.randint(train.num_classes, (len(chosen),))
    return replace(train, labels=labels)


def make_corruption(args, *sets):
    """Make the Corruption of --noisetype and --freqlevel, or None. Raises BadInput."""
    if not (args.noisetype or args.freqlevel):
        return None
    need_pixels("corruption of inputs", *sets)
    times, kind, level = tuple(args.noisetime), args.noisetype, args.noise_level
    return Corruption(args.timestep, times, kind, level, args.freqlevel, args.freq_radius)


def need_pixels(what, *sets):
    """Raise BadInput if inputs are not in [0, 1] after the division by `largest`."""
    for dataset in sets:
        if dataset.images.min() < 0 or dataset.images.max() > dataset.largest:
            raise BadInput(f"{what} needs values in [0, 1]: scale the data")
