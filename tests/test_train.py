"""Training: what a run writes, how it steps, and what it refuses."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ALL, ROOT, TINY, arguments, assert_close, assert_identical, lines, run

import archs
import config
import data
import plots
import train_snn
import train_snn_fisherinfo
from utils import BadInput, StopSignals, after_each, read_lines, run_script, seed_all


@pytest.mark.parametrize("arch", archs.ARCHS)
def test_every_arch_runs_through_every_script(arch, tmp_path, capsys):
    argv = [
        "--arch",
        arch,
        "--width",
        "0.03",
        "--epochs",
        "1",
        "--fisher_samples",
        "2",
        "--fisher_epochs",
        "0",
        "1",
    ]
    folder = run(tmp_path, *argv, script="train_snn_fisherinfo")
    assert len(lines(folder, "fisher.jsonl")) == 2
    shown = capsys.readouterr().out
    assert str(folder) in shown and "fisher.png" in shown
    run(tmp_path / "plain", *argv[:6])


def test_a_run_folder_holds_what_was_promised(unbroken):
    names = {path.name for path in unbroken.iterdir()}
    assert names == {"args.json", "log.jsonl", "fisher.jsonl", "fisher_samples.pt", "figures", "checkpoint_latest.pt",
                     "checkpoint_best.pt", "checkpoint_0001.pt", "checkpoint_0002.pt"}  # fmt: skip
    assert {path.name for path in (unbroken / "figures").iterdir()} == {
        "training.png",
        "fisher.png",
    }
    record = json.loads((unbroken / "args.json").read_text())
    assert (
        record["args"]["arch"] == "fc" and {"versions", "device", "git", "command"} <= record.keys()
    )
    log = read_lines(unbroken / "log.jsonl")
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert {
        "lr",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "images_per_second",
    } <= log[2].keys()
    assert len(log[2]["prefix_accuracy"]) == 2 and log[2]["spike_rate"].keys() == {"lif_fc1"}
    assert log[2]["test_accuracy"] == log[2]["prefix_accuracy"][-1]


def test_validating_on_fewer_samples_changes_the_validation_alone(unbroken, tmp_path):
    folder = run(tmp_path, *ALL, "--test_samples", "8")
    for line, other in zip(lines(folder, "log.jsonl"), lines(unbroken, "log.jsonl"), strict=True):
        assert line["train_loss"] == other["train_loss"] and line["test_loss"] != other["test_loss"]
        assert line["test_accuracy"] * 8 % 1 == 0
    weights = (
        torch.load(f / "checkpoint_latest.pt", weights_only=True)["state_dict"]
        for f in (folder, unbroken)
    )
    assert_identical(*weights)


STEPS = [[], ["--amp", "bf16"], ["--loss", "tet"], ["--loss", "centroid", "--target_ic", "2"], ["--adv_train"],
         ["--noisetype", "blur", "--noisetime", "1"], ["--encode", "p"], ["--checkpoint_activations"],
         ["--surrogate", "triangle", "--undetached_reset"], ["--norm", "folded", "--optimizer", "adam"]]  # fmt: skip


@pytest.mark.parametrize("flags", STEPS)
def test_a_step_asks_for_no_number(flags, monkeypatch):
    """Tensors of the device "meta" hold none: the steps run on it, until the check behind the last asks."""
    monkeypatch.setattr(
        torch, "autocast", lambda *args, **options: contextlib.nullcontext()
    )  # not on meta
    args = config.parse("train_snn", ["--dataset", "fake", "--arch", "vgg5", "--width", "0.1", "--timestep", "3",
                                      "--batch_size", "4", *flags])  # fmt: skip
    images, labels = (
        torch.empty(12, 3, 16, 16, dtype=torch.uint8),
        torch.empty(12, dtype=torch.int64),
    )
    corruption = (
        data.Corruption(3, (1,), "blur", args.noise_level, None, 0) if args.noisetype else None
    )
    dataset = data.ImageSet(
        images, labels, 10, torch.zeros(3), torch.ones(3), 2, True, corruption=corruption
    )
    dataset.poisson_steps = 3 if args.encode == "p" else 0
    model, at = (
        train_snn.build_model(args, dataset.to("meta")),
        {"epoch": 0} | train_snn.epoch_start(),
    )
    with pytest.raises(RuntimeError, match="item"), StopSignals() as stop:
        train_snn.train_epoch(
            args, at, model, train_snn.make_optimizer(args, model), dataset.to("meta"), stop
        )
    assert at["step"] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("flags", STEPS)
def test_a_step_on_a_gpu_does_not_wait_for_it(flags, tmp_path):
    """An epoch of eight steps has as many sync points as one of two."""
    waits = []
    for samples in ("64", "256"):
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(tmp_path / samples, *flags, "--arch", "vgg5", "--fake_shape", "3", "16", "16", "--datanum", samples,
                "--epochs", "1", "--device", "cuda")  # fmt: skip
        torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
    assert waits[0] == waits[1]


@pytest.mark.skipif(not Path("/lib64/ld-linux-x86-64.so.2").exists(), reason="needs glibc")
def test_large_freed_buffers_are_soon_taken_again_without_the_system():
    code = """
import resource, torch, utils
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
utils.keep_freed_memory()
print(*[faults() for _ in range(20)])"""
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    first, *_, again = map(int, shown.stdout.split())
    assert again < first / 4


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_compiled_neurons_train_as_the_others(unbroken, tmp_path):
    compiled = run(
        tmp_path, "--compile", "--checkpoint_activations", *ALL, script="train_snn_fisherinfo"
    )
    assert_close(lines(compiled, "log.jsonl"), lines(unbroken, "log.jsonl"), 1e-3)


def test_neurons_of_many_timesteps_are_all_compiled(monkeypatch):
    monkeypatch.setattr(archs.LIF, "compile", partialmethod(archs.LIF.compile, backend="eager"))
    for name, value in (("fail_on_recompile_limit_hit", True), ("recompile_limit", 2)):
        monkeypatch.setattr(torch._dynamo.config, name, value)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), archs.LIF()).train()
    train_snn.compile_neurons(model)
    for timestep in range(2, 6):
        model(torch.randn(timestep, 5, 3)).sum().backward()


def test_compiling_without_a_compiler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match=r"no g\+\+: leave it out, or name one in CXX"):
        run(tmp_path, "--compile")


def test_corrupted_labels_are_saved_with_the_run(tmp_path):
    saved = torch.load(
        run(tmp_path, "--label_corrupt_prob", "0.5") / "train_labels.pt", weights_only=True
    )
    assert saved.keys() == {"index", "labels", "clean"} and len(saved["index"]) == 40


def test_a_dry_run_does_everything_and_leaves_nothing(tmp_path, capsys):
    run(tmp_path, "--dry_run", "--epochs", "300", "--datanum", "200", flags=TINY)
    shown = capsys.readouterr().out
    assert not list(tmp_path.iterdir()) and "training.png" in shown and "after 2 epochs" in shown
    run(
        tmp_path,
        "--dry_run",
        "--fisher_estimator",
        "release",
        script="train_snn_fisherinfo",
        flags=TINY,
    )
    assert not list(tmp_path.iterdir()) and "fisher.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--scheduler", "cosine", "--epochs", "4"], [1, 0.853553, 0.5, 0.146447]),
        (["--scheduler", "step", "--epochs", "5", "--lr_step", "2"], [1, 1, 0.1, 0.1, 0.01]),
        (
            ["--scheduler", "step", "--epochs", "5", "--lr_step", "2", "--warmup_epochs", "1"],
            [0.5, 1, 1, 0.1, 0.1],
        ),
        (["--scheduler", "none", "--epochs", "3"], [1, 1, 1]),
        (
            ["--scheduler", "cosine", "--epochs", "4", "--warmup_epochs", "2"],
            [1 / 3, 2 / 3, 1, 0.5],
        ),
    ],
)
def test_the_learning_rate_follows_its_schedule(argv, expected):
    args = config.parse("train_snn", ["--learning_rate", "1", *argv])
    rates = [train_snn.learning_rate(args, epoch) for epoch in range(1, args.epochs + 1)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_the_learning_rate_reaches_the_optimizer(unbroken):
    assert [line["lr"] for line in lines(unbroken, "log.jsonl")] == pytest.approx([None, 0.1, 0.05])
    saved = torch.load(unbroken / "checkpoint_latest.pt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.05)


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    step = torch.optim.SGD.step

    def explode(optimizer, *args):
        step(optimizer, *args)
        explode.steps += 1
        if explode.steps == 4:
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    explode.steps = 0
    monkeypatch.setattr(torch.optim.SGD, "step", explode)
    with pytest.raises(BadInput, match=r"epoch 2, step 2: .*--learning_rate"):
        run(tmp_path)
    saved = torch.load(tmp_path / "run" / "checkpoint_latest.pt", weights_only=True)
    assert saved["epoch"] == 1 and all(
        value.isfinite().all() for value in saved["state_dict"].values()
    )


def test_a_silent_network_is_warned_about(tmp_path, capsys):
    run(tmp_path, "--threshold", "1000")
    assert "silent after epoch 1: lif_fc1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "nonsense"], "--device nonsense"),
        (["--datanum", "1000"], "above the 256"),
        (["--out_dir", __file__], "cannot be written"),
        (["--fake_shape", "2", "7", "7"], "too small"),
        (["--fake_shape", "3", "100000000", "100000000"], "out of memory"),
        (["--fake_shape", "3", "2", "8", "8"], "--timestep 3"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, message, tmp_path, capsys):
    for script in (train_snn, train_snn_fisherinfo):
        with pytest.raises(SystemExit) as end:
            run_script(lambda script=script: run(tmp_path, *argv, script=script.__name__), "x.py")
        error = capsys.readouterr().err
        assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_moment_has_its_own_random_numbers():
    drawn = set()
    moments = [
        (0, "step", 1, 0),
        (0, "step", 1, 1),
        (0, "step", 0, 1),
        (1, "step", 1, 0),
        (0, "order", 1),
    ]
    for key in [*moments, (0, "model")]:
        seed_all(*key)
        first = torch.rand(1).item()
        seed_all(*key)
        assert torch.rand(1).item() == first
        drawn.add(first)
    assert len(drawn) == 6


def test_figures_are_drawn_again_from_the_folder_alone(unbroken, capsys, monkeypatch):
    before = (unbroken / "figures" / "fisher.png").read_bytes()
    (unbroken / "figures" / "fisher.png").unlink()
    monkeypatch.setattr("sys.argv", ["plots.py", str(unbroken)])
    plots.main()
    assert (unbroken / "figures" / "fisher.png").read_bytes() == before
    assert capsys.readouterr().out.count(".png") == 2


def test_the_accuracy_of_a_prefix_is_that_of_its_mean_output():
    model = torch.nn.Module()
    model.forward = lambda x: (
        torch.tensor([[3.0, 0], [0, 1]]).unsqueeze(1).expand(2, len(x), 2)
    )  # mean: class 0
    images, labels = torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 0])
    dataset = data.ImageSet(images, labels, 2, torch.zeros(1), torch.ones(1), 2, True)
    with StopSignals() as stop:
        found = train_snn.evaluate(
            model, dataset, SimpleNamespace(timestep=2, batch_size=2, seed=0), stop
        )
    torch.testing.assert_close(found["prefix_accuracy"], [0.8, 0.8])


def test_a_line_of_the_log_is_of_prefixes_and_spikes_of_the_samples_that_were_asked_for(tmp_path):
    argv = ["--test_samples", "40", "--seed", "1"]  # in batches of 32 and 8
    line, rates = lines(run(tmp_path, *argv), "log.jsonl")[-1], {}
    model, _, test_set, _ = train_snn.setup(
        config.parse("train_snn", arguments(tmp_path, *argv, "--resume"))
    )
    model.load_state_dict(torch.load(tmp_path / "run" / "checkpoint_latest.pt")["state_dict"])
    seed_all(0, "subset")
    x, y = test_set.batch(torch.randperm(len(test_set))[:40])
    with after_each(
        model.eval(), archs.LIF, lambda name, module, x, s: rates.update({name: s.mean().item()})
    ):
        prefixes = [outputs.mean(0) for o in [model(x)] for outputs in (o[:1], o)]
    assert line["prefix_accuracy"] == pytest.approx(
        [(p.argmax(1) == y).float().mean().item() for p in prefixes]
    )
    assert line["prefix_loss"] == pytest.approx(
        [torch.nn.functional.cross_entropy(p, y).item() for p in prefixes]
    )
    assert line["spike_rate"] == pytest.approx(rates)


def test_the_best_checkpoint_is_the_first_of_highest_accuracy(tmp_path, monkeypatch):
    accuracies = iter([0.9, 0.5, 0.7, 0.7, 0.6, 0.65])  # of epoch 0, which has no checkpoint, to 5
    monkeypatch.setattr(train_snn, "evaluate", lambda *_: {
        "prefix_loss": [0.9, 0.1], "prefix_accuracy": [1.0, next(accuracies)], "spike_rate": {"lif": 0.1}})  # fmt: skip
    assert torch.load(run(tmp_path, "--epochs", "5") / "checkpoint_best.pt")["epoch"] == 2


def test_every_draw_of_a_training_has_its_own_seed(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(train_snn, "seed_all", lambda *key: drawn.append(key) or seed_all(*key))
    run(tmp_path, "--seed", "1", "--test_samples", "40")
    epochs, steps = (
        [(1, "order", 1), (1, "order", 2)],
        [(1, "step", e, s) for e in (1, 2) for s in range(3)],
    )
    assert set(drawn) == {
        (1, "model"),
        (0, "subset"),
        (1, "evaluate", 0),
        (1, "evaluate", 1),
        *epochs,
        *steps,
    }


def test_the_training_loss_and_accuracy_are_means_of_the_whole_prediction(tmp_path):
    argv = [
        "--batch_size",
        "100",
        "--epochs",
        "1",
        "--no_augment",
    ]  # of 80 samples, so there is one step
    line = lines(run(tmp_path, *argv), "log.jsonl")[-1]
    model, train_set, *_ = train_snn.setup(config.parse("train_snn", arguments(tmp_path, *argv)))
    x, y = train_set.batch(torch.arange(80))
    mean = model.train()(x).mean(0)
    assert line["train_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(mean, y).item(), rel=1e-5
    )
    assert line["train_accuracy"] == pytest.approx((mean.argmax(1) == y).float().mean().item())


@pytest.mark.parametrize("name, kind", [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_the_optimizer_is_the_one_that_is_named(name, kind):
    args = config.parse(
        "train_snn", ["--optimizer", name, "--learning_rate", "0.2", "--weight_decay", "0.1"]
    )
    optimizer = train_snn.make_optimizer(args, torch.nn.Linear(2, 2))
    assert type(optimizer) is getattr(torch.optim, kind) and not optimizer.defaults.get("nesterov")
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.2, 0.1)
    assert optimizer.defaults.get("momentum", 0.9) == 0.9


def test_a_last_batch_of_one_sample_is_left_out_and_one_of_two_is_not(tmp_path):
    for datanum, steps in (("65", 2), ("66", 3)):
        saved = torch.load(
            run(tmp_path / datanum, "--datanum", datanum, "--epochs", "1") / "checkpoint_latest.pt"
        )
        assert saved["state_dict"]["bn_fc1.num_batches_tracked"] == steps
