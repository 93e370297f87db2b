"""What the claims are tried on. Flags are written as on a command line."""

from dataclasses import dataclass, field

# Measure and keep the last epoch only; or the first and the last.
LAST = "--fisher_epochs every:1000000 --save_epochs every:1000000"
ENDS = "--fisher_epochs 1 every:1000000 --save_epochs every:1000000"

ADAM = "--optimizer adam --learning_rate 0.002"
SETTINGS = {
    "fc, 3 layers": "--arch fc --layernum 3 --width 1",
    "vgg9": "--arch vgg9",
    "resnet19, adam": f"--arch resnet19 --width 0.125 --batch_size 32 {ADAM}",
    "T = 2": "--timestep 2",
    "T = 4": "--timestep 4",
    "T = 16": "--timestep 16",
    "tau 1.33": "--tau 1.3333",
    "tau 4": "--tau 4",
    "threshold 0.5": "--threshold 0.5",
    "soft reset": "--reset soft",
    "triangle surrogate": "--surrogate triangle",
    "no gradient through membranes": "--detach_membrane",
    "norm folded": "--norm folded",
    "adam": ADAM,
    "Poisson": "--encode p",
    "300 samples": "--datanum 300",
    "random labels": "--label_corrupt_prob 1",
}

# Weight decay as the recipes of the digits and of Fashion-MNIST have it.
DECAY = "--weight_decay 5e-4 --dampening 0"
VGG = "--arch vgg5 --width 0.25 --timestep 5 --learning_rate 0.1"
SOME = f"{VGG} --no_augment --test_samples 1000"
SOME_1000 = f"{SOME} --datanum 1000 --batch_size 32 --fisher_samples 256"
SOME_5000 = f"{SOME} --datanum 5000"


LOSSES = {
    "ce": "",
    "tet": "--loss tet",
    "prefix": "--loss prefix",
    "flood 0.1": "--loss_threshold 0.1",
    "prefix, flood 0.5": "--loss prefix --loss_threshold 0.5",
}


def losses(*targets):
    """{name: flags} of the losses that are compared. `targets` are those of --loss centroid."""
    return LOSSES | {f"centroid {ic}": f"--loss centroid --target_ic {ic}" for ic in targets}


@dataclass(frozen=True)
class Scale:
    """What the claims are tried on."""

    networks: str = ""  # what is trained, in words
    training: str = ""  # flags of every training
    measured: str = ""  # flags of the plain training: the epochs that are measured
    again: str = ""  # flags with which a saved network is measured on the same samples
    settings: dict = field(default_factory=dict)  # {name: flags} that change the training
    subsets: dict = field(default_factory=dict)  # {name: flags}: part of another data set
    losses: dict = field(default_factory=lambda: losses("1.5", "3", "4"))
    attacks: str = ""  # flags of every evaluation of robustness
    eps: int = 4  # in 1/255: PGD with it costs a network half of its accuracy or more
    release_samples: int = 12800  # for the released estimator
    planted: str = LAST  # flags of the trainings on planted information
    planted_times: tuple = ((1, 2), (4, 5), (7, 8), (1, 2, 3, 4, 5, 6, 7, 8))
    searches: tuple = ("full", "fisher", "1", "one_shot")  # of pruning
    rounds: tuple = (2, 4, 7)  # of pruning, after which a final network is trained
    prune_rate: float = 0.4375  # two rounds of 25 % in one: as much is left in half the rounds
    downloads: bool = True  # the data set is in --data_dir


SCALES = {
    "small": Scale(
        networks="VGG5, the digits",
        training="--dataset digits",
        settings=SETTINGS,
        subsets={
            "1000 images": f"{SOME_1000} {DECAY} --epochs 5",
            "1000 images, fitted": f"{SOME_1000} {DECAY} --epochs 20",
        },
        losses=losses("2", "4.5", "6"),
        eps=32,
        release_samples=1280,
        downloads=False,
    ),
    "images": Scale(
        networks="VGG5, 1000 images of Fashion-MNIST",
        training=f"--dataset fashion_mnist {SOME_1000} --epochs 20",
        measured="--fisher_epochs 1 2 5 10 20",
        again="--fisher_samples 256",
        settings=SETTINGS,
        attacks="--robust_samples 256",
        eps=8,
        release_samples=1000,
        searches=("full", "fisher", "1", "2", "3", "one_shot"),
    ),
    "medium": Scale(
        networks="VGG5, all of CIFAR-10",
        training=f"--dataset cifar10 {VGG} {DECAY} --epochs 20",
        measured="--fisher_epochs 1 2 5 10 20",
        subsets={
            "5000 images": f"{SOME_5000} {DECAY} --epochs 10",
            "5000 images, fitted": f"{SOME_5000} {DECAY} --epochs 60",
        },
    ),
    "paper": Scale(
        networks="ResNet19, CIFAR-10",
        training="--save_epochs every:1000000",  # checkpoints of every 20 epochs would fill a disk
        measured="--fisher_epochs 0 1 5 20 60 120 300",
        settings=SETTINGS,
        losses=losses("2", "4.5", "6"),
        searches=("full", "fisher", "kl", "1", "2", "one_shot"),
        rounds=(4, 8, 11, 14),
        prune_rate=0.25,
    ),
    "dry": Scale(
        networks="tiny runs on noise",
        training="--dataset fake --fake_shape 1 8 8 --arch fc --width 0.1 --timestep 8 --epochs 2 "
        "--datanum 256 --fisher_samples 8",
        measured="--fisher_epochs 0 1 2",
        settings={"fc, 3 layers": ""},
        losses={"ce": "", "tet": "--loss tet"},
        attacks="--robust_samples 16 --attack_steps 1 --attack_surrogate own",
        eps=32,
        release_samples=256,
        planted="--epochs 2 --datanum 64 --fisher_samples 8 --fisher_epochs 2",
        planted_times=((1, 2),),
        searches=("full", "fisher"),
        rounds=(1, 2),
        prune_rate=0.25,
        downloads=False,
    ),
}
