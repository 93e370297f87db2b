"""N-MNIST (Orchard et al. 2015), digits seen by an event camera. tonic makes frames of the events.

python train_snn.py --dataset examples/nmnist.py:frames --arch vgg5 --width 0.25 \\
    --timestep 10 --epochs 10 --learning_rate 0.1

The first start downloads the set to --data_dir, makes the frames and keeps them there.
"""

from pathlib import Path

import numpy as np
import tonic


def frames(data_dir, timestep):
    x_train, y_train = read(Path(data_dir), "Train", timestep)
    x_test, y_test = read(Path(data_dir), "Test", timestep)
    return x_train, y_train, x_test, y_test


def read(data_dir, split, timestep):
    """Counts of events [N, T, 2, 34, 34], a memory map, and labels [N]."""
    folder = data_dir / "NMNIST" / split
    if not folder.exists():
        tonic.datasets.NMNIST(data_dir, train=split == "Train")  # a download
    files = sorted(folder.glob("*/*.bin"))  # a folder a class
    labels = np.array([int(file.parent.name) for file in files])
    cache = data_dir / "NMNIST" / f"{split}_T{timestep}.npy"
    if not cache.exists():
        size = tonic.datasets.NMNIST.sensor_size
        to_frames = tonic.transforms.ToFrame(size, n_time_bins=timestep)
        shape = (len(files), timestep, *size[::-1])
        unfinished = cache.with_suffix(".part")
        counts = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for number, file in enumerate(files):
            events = tonic.io.read_mnist_file(file, tonic.datasets.NMNIST.dtype)
            counts[number] = to_frames(events).clip(0, 255)
        unfinished.rename(cache)
    return np.load(cache, mmap_mode="r"), labels
