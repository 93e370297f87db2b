"""The command line: every flag has an effect, recipes give way to flags, bad input is one line and exit status 2."""

from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, lines, run

import config
import plots
import train_snn

# Another value for each flag, and what it needs beside it. A flag that is missing here fails the test below.
OTHER = {
    "dataset": ["digits"],
    "data_dir": None, "data_file": None, "image_size": None, "workers": None,  # with files: tests/test_data.py
    "fake_shape": ["1", "10", "10"], "planted_time": ["2", "--dataset", "planted"],
    "datanum": ["64"], "label_corrupt_prob": ["0.5"], "encode": ["p"],
    "noisetype": ["blur"], "noise_level": ["0.5", "--noisetype", "gaussian_noise"],
    "freqlevel": ["low", "--freq_radius", "1"], "freq_radius": ["1", "--freqlevel", "high"],
    "noisetime": ["2", "--noisetype", "gaussian_noise"], "no_augment": [],
    "arch": ["vgg5"], "width": ["0.2"], "layernum": ["3"], "timestep": ["3"], "norm": ["folded", "--layernum", "3"],
    "tau": ["4"],
    "threshold": ["0.5"], "reset": ["soft"], "surrogate": ["triangle"], "surrogate_alpha": ["3"], "undecayed_input": [],
    "undetached_reset": [], "detach_membrane": [], "init": ["CHECKPOINT"],
    "epochs": ["3"], "batch_size": ["50"], "optimizer": ["adam"], "learning_rate": ["0.01"], "momentum": ["0.5"],
    "weight_decay": ["0.1"], "scheduler": ["none"], "lr_step": ["1", "--scheduler", "step"],
    "lr_gamma": ["0.5", "--scheduler", "step", "--lr_step", "1"], "warmup_epochs": ["1"], "label_smoothing": ["0.3"],
    "loss": ["tet"], "tet_lambda": ["0.5", "--loss", "tet"], "prefix_time": ["2", "--loss", "prefix"],
    "prefix_weight": ["0.9", "--loss", "prefix"], "target_ic": ["1.2", "--loss", "centroid"], "lossskiptime": ["1"],
    "loss_threshold": ["2.5"], "amp": ["bf16"],
    "adv_train": [], "attack_method": ["fgsm", "--adv_train"], "eps": ["2", "--adv_train"],
    "attack_steps": ["3", "--adv_train"], "attack_step_size": ["1", "--adv_train"],
    "attack_restarts": ["2", "--adv_train"], "no_random_start": ["--adv_train"], "attack_prefix": ["1", "--adv_train"],
    "seed": ["1"],
    "fisher_epochs": ["every:1"], "fisher_samples": ["5"], "fisher_split": ["test"], "fisher_labels": ["exact"],
    "fisher_prefix": ["instant"], "fisher_estimator": ["release", "--fisher_batch", "3"],
    "fisher_batch": ["2", "--fisher_estimator", "release"],
    "checkpoints": ["CHECKPOINT"],
    "test_samples": ["9"], "save_epochs": ["1"],
    "checkpoint_activations": None, "compile": None,  # change nothing: tests/test_archs.py, tests/test_train.py
    "out_dir": None, "exp_name": None, "resume": None, "device": None, "dry_run": None,  # tests/test_train.py
}  # fmt: skip
ATTACK = (
    "attack_method",
    "eps",
    "attack_steps",
    "attack_step_size",
    "attack_restarts",
    "no_random_start",
    "attack_prefix",
)
# A flag that works only beside another is compared with a run that has the other alone. (Before the first LIF a static
# image has one timestep, so BatchNorm's two ways differ from the second hidden layer on.)
BESIDE = {
    "planted_time": ["--dataset", "planted"],
    "noise_level": ["--noisetype", "gaussian_noise"],
    "freq_radius": ["--freqlevel", "high"],
    "noisetime": ["--noisetype", "gaussian_noise"],
    "norm": ["--layernum", "3"],
    "tet_lambda": ["--loss", "tet"],
    "prefix_time": ["--loss", "prefix"],
    "prefix_weight": ["--loss", "prefix"],
    "target_ic": ["--loss", "centroid", "--target_ic", "1.8"],
    "lr_step": ["--scheduler", "step", "--lr_step", "2"],
    "lr_gamma": ["--scheduler", "step", "--lr_step", "1"],
    **{name: ["--adv_train"] for name in ATTACK},
    "fisher_batch": ["--fisher_estimator", "release", "--fisher_batch", "3"],
}


def fingerprint(folder):
    """What a run computed: its weights, its files and its records, without times and places."""
    weights = {}
    if (folder / "checkpoint_latest.pt").exists():
        state = torch.load(folder / "checkpoint_latest.pt", weights_only=True)["state_dict"]
        weights = {name: value.tolist() for name, value in state.items()}
    return (
        weights,
        sorted(p.name for p in folder.rglob("*")),
        lines(folder, "log.jsonl"),
        lines(folder, "fisher.jsonl"),
    )


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """No figure is rendered: a hundred runs would spend most of their time on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "write", lambda figure, path: path)
        yield


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    cache, root = {}, tmp_path_factory.mktemp("flags")

    def of(*extra):
        if extra not in cache:
            cache[extra] = fingerprint(
                run(root / str(len(cache)), *extra, script="train_snn_fisherinfo")
            )
        return cache[extra]

    of()
    of.checkpoint = str(root / "0" / "run" / "checkpoint_best.pt")
    return of


def test_every_flag_of_the_parser_is_in_the_table_of_effects():
    parsers = [config.make_parser(script) for script in ("train_snn", "train_snn_fisherinfo")]
    assert {name for parser in parsers for name in vars(parser.parse_args([]))} == OTHER.keys()


@pytest.mark.parametrize("name", [name for name, value in OTHER.items() if value is not None])
def test_every_flag_changes_something(name, baseline, tmp_path):
    values = [baseline.checkpoint if v == "CHECKPOINT" else v for v in OTHER[name]]
    argv = ["--" + name, *values]
    if name == "checkpoints":
        folder = run(tmp_path, *argv, script="train_snn_fisherinfo", flags=[])
    else:
        folder = run(tmp_path, *argv, script="train_snn_fisherinfo")
    assert fingerprint(folder) != baseline(*BESIDE.get(name, ()))


def test_a_recipe_overrides_the_release_and_a_flag_overrides_both():
    release, digits = (
        config.parse("train_snn", []),
        config.parse("train_snn", ["--dataset", "digits"]),
    )
    assert (release.arch, release.timestep, release.learning_rate, release.epochs) == (
        "resnet19",
        10,
        0.3,
        300,
    )
    assert (digits.arch, digits.timestep) == ("vgg5", 8) and digits.momentum == release.momentum
    assert config.parse("train_snn", ["--dataset", "digits", "--timestep", "3"]).timestep == 3
    assert vars(digits).keys() == vars(release).keys()  # nothing of what other scripts read


def test_a_prefix_that_is_named_twice_counts_once():
    assert config.parse(
        "train_snn", ["--loss", "prefix", "--prefix_time", "3", "1", "3"]
    ).prefix_time == [1, 3]


def test_hyphens_and_underscores_are_one():
    argv = ["--label-corrupt-prob", "0.25", "--batch-size=7", "--undecayed-input"]
    args = config.parse("train_snn", argv)
    assert (args.label_corrupt_prob, args.batch_size, args.undecayed_input) == (0.25, 7, True)


@pytest.mark.parametrize(
    "entries, last, epochs",
    [(["0", "20", "120", "300"], 300, [0, 20, 120, 300]), (["0", "20", "120"], 30, [0, 20, 30]),
     (["every:4"], 10, [4, 8, 10]), (["0", "every:5"], 10, [0, 5, 10]), (["1"], 10, [1])],
)  # fmt: skip
def test_lists_of_epochs(entries, last, epochs):
    assert config.expand_epochs(entries, last) == epochs


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--arch", "vgg7"], "vgg16"),
        (["--dataset", "imagenet"], "digits"),
        (["--surrogate", "step"], "atan"),
        (["--timestep", "0"], "at least 1"),
        (["--timestep", "two"], "int"),
        (["--tau", "1"], "above 1"),
        (["--threshold", "-1"], "above 0"),
        (["--label_corrupt_prob", "1.5"], "at most 1"),
        (["--datanum", "1"], "at least 2"),
        (["--batch_size", "100000000000000000000"], "at most 2147483647"),
        (["--dataset", "npz"], "--data_file"),
        (["--layernum", "3"], "--arch fc"),
        (["--eps", "4"], "--adv_train"),
        (["--attack_steps", "4"], "--adv_train"),
        (
            ["--adv_train", "--attack_method", "fgsm", "--attack_restarts", "4"],
            "--attack_method pgd",
        ),
        (["--adv_train", "--attack_prefix", "11"], "--timestep 10"),
        (["--adv_train", "--eps", "300"], "at most 255"),
        (["--optimizer", "adam", "--momentum", "0.5"], "--optimizer sgd"),
        (["--epochs", "5", "--fisher_epochs", "6"], "past --epochs 5"),
        (["--fisher_epochs", "every:0"], "every:k"),
        (["--fake_shape", "3", "32", "--dataset", "fake"], "C H W"),
        (["--warmup_epochs", "300"], "nothing"),
        (["--no_such_flag"], "no_such_flag"),
        (["--checkpoints", "no/such.pt"], "no checkpoint"),
        (["--resume", "--dry_run"], "--resume"),
        (["--seed", "-1"], "at least 0"),
        (["--learning_rate", "nan"], "above 0"),
        (["--learning_rate", "inf"], "above 0"),
        (["--width", "1e9"], "at most 64"),
        (["--save_epochs", "0"], "counts from 1"),
        (["--dataset", "planted", "--planted_time", "2", "9"], "past --timestep 8"),
        (["--planted_time", "2"], "--dataset planted"),
        (["--fisher_estimator", "release", "--fisher_labels", "exact"], "expectation"),
        (["--dataset", "digits", "--no_augment"], "--dataset cifar10"),
        (["--noisetime", "1"], "--noisetype"),
        (["--noisetype", "blur", "--noisetime", "11"], "past --timestep 10"),
        (["--noise_level", "0.3"], "--noisetype blur or gaussian_noise"),
        (["--freq_radius", "3"], "--freqlevel high or low"),
        (["--freqlevel", "low", "--encode", "p"], "which --encode p needs"),
        (["--freqlevel", "low", "--adv_train"], "which --adv_train needs"),
        (["--lossskiptime", "0"], "at least 1"),
        (["--lossskiptime", "11"], "past --timestep 10"),
        (["--timestep", "2", "--lossskiptime", "1", "2"], "no output of the first 2"),
        (
            ["--loss", "prefix", "--prefix_time", "2", "5", "--lossskiptime", "1", "2"],
            "no output of the first 2",
        ),
        (["--loss", "prefix", "--prefix_time", "11"], "past --timestep 10"),
        (["--loss", "centroid"], "--target_ic from 1 to 10"),
        (["--loss", "centroid", "--target_ic", "11"], "--target_ic from 1 to 10"),
        (["--prefix_weight", "0.2"], "--loss prefix"),
        (["--loss", "hinge"], "centroid"),
    ],
)
def test_bad_flags_end_with_one_line_and_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        config.parse("train_snn_fisherinfo", argv)
    out, error = capsys.readouterr()
    assert end.value.code == 2 and out == "" and message in error and error.count("\n") == 1


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        config.parse("train_snn", ["--help"], "What it does.")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "What it does." in text and all(
        "--" + name in text for name in vars(config.parse("train_snn", []))
    )


@pytest.mark.parametrize("flag", ["undecayed_input", "undetached_reset"])
def test_a_neuron_is_the_released_one_unless_a_flag_says_otherwise(flag):
    dataset = SimpleNamespace(images=torch.zeros(1, 2, 8, 8), num_classes=10, labels=torch.zeros(1))
    for argv in ([], ["--" + flag]):
        args = config.parse("train_snn", [*TINY, *argv])
        lif = train_snn.build_model(args, dataset).lif_fc1
        assert (lif.decay_input, lif.detach_reset) == (
            not args.undecayed_input,
            not args.undetached_reset,
        )


def test_what_is_not_given_is_the_recipe_of_the_release():
    args, prefix = (
        config.parse("train_snn_fisherinfo", []),
        config.parse("train_snn", ["--loss", "prefix"]),
    )
    assert (args.batch_size, args.momentum, args.weight_decay, args.scheduler) == (
        128,
        0.9,
        5e-4,
        "cosine",
    )
    assert (args.tau, args.threshold, args.reset, args.norm, args.surrogate) == (
        2,
        1,
        "hard",
        "step",
        "atan",
    )
    assert (args.fisher_samples, args.fisher_split, args.fisher_labels) == (
        512,
        ["train"],
        ["data"],
    )
    assert (args.tet_lambda, prefix.prefix_time, prefix.prefix_weight) == (
        0.05,
        [1, 2, 3, 4, 5],
        0.5,
    )
    levels = {
        kind: config.parse("train_snn", ["--noisetype", kind]).noise_level
        for kind in ("gaussian_noise", "blur")
    }
    assert levels == {"gaussian_noise": 0.1, "blur": 1.0}
