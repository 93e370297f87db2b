"""The scripts: what they write, that measuring and stopping change nothing, and that bad input harms nothing."""

import contextlib
import json
import os
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
import without_norm
from helpers import TINY, lines, run, start

import archs
import config
import data
import plots
import train_snn
import train_snn_fisherinfo
import utils
from utils import BadInput, Run, Stopped, StopSignals, read_lines, run_script, seed_all

ALL = ["--save_epochs", "every:1"]


def everything(folder):
    """All that must be the same in two runs that computed the same."""
    found = {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}
    for content in found.values():
        for place in ("out_dir", "resume", "dry_run"):
            content.get("args", {}).pop(place, None)
    return found | {name: lines(folder, name) for name in ("log.jsonl", "fisher.jsonl")}


def assert_identical(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (one, other) in enumerate(zip(a, b)):
            assert_identical(one, other, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken"), *ALL, script="train_snn_fisherinfo")


@pytest.mark.parametrize("arch", archs.ARCHS)
def test_every_arch_runs_through_every_script(arch, tmp_path, capsys):
    argv = ["--arch", arch, "--width", "0.03", "--epochs", "1", "--fisher_samples", "2", "--fisher_epochs", "0", "1"]
    folder = run(tmp_path, *argv, script="train_snn_fisherinfo")
    assert len(lines(folder, "fisher.jsonl")) == 2
    shown = capsys.readouterr().out
    assert str(folder) in shown and "fisher.png" in shown
    run(tmp_path / "plain", *argv[:6])


def test_a_run_folder_holds_what_was_promised(unbroken):
    names = {path.name for path in unbroken.iterdir()}
    assert names == {"args.json", "log.jsonl", "fisher.jsonl", "fisher_samples.pt", "figures", "checkpoint_latest.pt",
                     "checkpoint_best.pt", "checkpoint_0001.pt", "checkpoint_0002.pt"}  # fmt: skip
    assert {path.name for path in (unbroken / "figures").iterdir()} == {"training.png", "fisher.png"}
    record = json.loads((unbroken / "args.json").read_text())
    assert record["args"]["arch"] == "fc" and {"versions", "device", "git", "command"} <= record.keys()
    log = read_lines(unbroken / "log.jsonl")
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert {"lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "images_per_second"} <= log[2].keys()
    assert len(log[2]["prefix_accuracy"]) == 2 and log[2]["spike_rate"].keys() == {"lif_fc1"}
    assert log[2]["test_accuracy"] == log[2]["prefix_accuracy"][-1]


def test_a_measurement_has_the_fields_of_the_contract(unbroken):
    first, line = read_lines(unbroken / "fisher.jsonl")
    assert first.keys() == {
        "epoch", "timestep", "samples", "split", "labels", "fisher", "fisher_stderr", "ic", "ic_ci", "ic_per_loss",
        "ic_per_residual", "layers", "layers_scale_free", "prefix", "prefix_loss", "prefix_residual", "prefix_accuracy",
        "estimator", "seconds",
    }  # fmt: skip
    assert line.keys() - first.keys() == {"ic_change", "ic_change_ci"}
    assert line["ic_change"] == pytest.approx(line["ic"] - first["ic"], abs=1e-6)
    assert line["ic_change_ci"][0] < line["ic_change"] < line["ic_change_ci"][1]
    assert (line["epoch"], line["timestep"], line["samples"], line["labels"]) == (2, 2, 6, "data")
    assert list(line["layers"]) == ["fc1", "bn_fc1", "fc2"]
    total = [sum(values[t] for values in line["layers"].values()) for t in range(2)]
    assert total == pytest.approx(line["fisher"])
    i_1, i_2 = line["fisher"]
    for of, by in (("ic_per_loss", "prefix_loss"), ("ic_per_residual", "prefix_residual")):
        a, b = i_1 / line[by][0], i_2 / line[by][1]
        assert line[of] == pytest.approx((a + 2 * b) / (a + b))
    assert (
        line["ic"] == pytest.approx((i_1 + 2 * i_2) / (i_1 + i_2)) and line["ic_ci"][0] < line["ic"] < line["ic_ci"][1]
    )


def test_measuring_does_not_change_the_training(unbroken, tmp_path):
    plain = everything(run(tmp_path, *ALL))
    measured = everything(unbroken)
    for name in ("checkpoint_latest.pt", "checkpoint_0001.pt"):
        assert_identical(plain[name]["state_dict"], measured[name]["state_dict"])
    assert plain["log.jsonl"] == measured["log.jsonl"]


def test_validating_on_fewer_samples_changes_the_validation_alone(unbroken, tmp_path):
    folder = run(tmp_path, *ALL, "--test_samples", "8")
    for line, other in zip(lines(folder, "log.jsonl"), lines(unbroken, "log.jsonl"), strict=True):
        assert line["train_loss"] == other["train_loss"] and line["test_loss"] != other["test_loss"]
        assert line["test_accuracy"] * 8 % 1 == 0
    weights = (torch.load(f / "checkpoint_latest.pt", weights_only=True)["state_dict"] for f in (folder, unbroken))
    assert_identical(*weights)


def test_a_folder_of_another_kind_of_run_is_refused_and_left_alone(unbroken, tmp_path, capsys):
    shutil.copytree(unbroken, tmp_path / "run")
    before = (tmp_path / "run" / "args.json").read_bytes()
    argv = ["--resume", "--checkpoints", str(unbroken / "checkpoint_latest.pt")]
    for script in ("train_snn_fisherinfo", "eval_snn_robustness"):
        with pytest.raises(SystemExit):
            run(tmp_path, *argv, script=script, flags=[])
    with pytest.raises(SystemExit):
        run(tmp_path, "--resume", script="prune_snn", flags=[])
    assert capsys.readouterr().err.count("args.json is of another kind of run") == 3
    assert (tmp_path / "run" / "args.json").read_bytes() == before


class Interrupt:
    """Stands in for Ctrl-C at the n-th look of the script at its stop signal."""

    def __init__(self, monkeypatch, after):
        self.looks = 0

        def check(stop, together=False):
            self.looks += 1
            if self.looks == after:
                raise Stopped(signal.SIGINT)

        monkeypatch.setattr(StopSignals, "check", check)
        monkeypatch.setattr(train_snn, "CHECK_EVERY", 1)


@pytest.mark.parametrize("poisson", [False, True])
def test_stopped_at_any_moment_and_resumed_it_is_the_unbroken_run(poisson, unbroken, tmp_path, monkeypatch):
    for figure in ("training", "fisher"):  # drawing them takes most of the time
        monkeypatch.setattr(plots, figure, lambda folder: None)
    argv = [*ALL, *(["--encode", "p"] if poisson else [])]
    expected = unbroken if not poisson else run(tmp_path / "unbroken", *argv, script="train_snn_fisherinfo")
    for after in range(1, 100):
        with monkeypatch.context() as patch:
            moment = Interrupt(patch, after)
            try:
                run(tmp_path / str(after), *argv, script="train_snn_fisherinfo")
            except Stopped:
                pass
            else:
                break
            assert moment.looks == after
        folder = run(tmp_path / str(after), "--resume", *argv, script="train_snn_fisherinfo")
        assert_identical(everything(folder), everything(expected))
    assert after > 12


class Killed(BaseException):
    """Stands in for SIGKILL: no code of the scripts catches it."""


def kill_at_write(monkeypatch, number):
    """End the run at its `number`-th write: a file written and not yet in place, or half of a line appended."""
    replace, left = os.replace, iter(range(number, -1, -1))

    def torn_replace(source, target):
        if next(left) == 0:
            Path(source).write_bytes(Path(source).read_bytes()[:100])
            raise Killed
        replace(source, target)

    def torn_append(run, name, record):
        line = json.dumps(record) + "\n"
        with open(run.path(name), "a") as file:
            killed = next(left) == 0
            file.write(line[: len(line) // 2] if killed else line)
        if killed:
            raise Killed

    monkeypatch.setattr(os, "replace", torn_replace)
    monkeypatch.setattr(Run, "append", torn_append)


def test_killed_at_any_write_and_resumed_it_is_the_unbroken_run(unbroken, tmp_path, monkeypatch):
    for figure in ("training", "fisher"):
        monkeypatch.setattr(plots, figure, lambda folder: None)
    killed = set()
    for number in range(100):
        with monkeypatch.context() as patch:
            kill_at_write(patch, number)
            try:
                run(tmp_path / str(number), *ALL, script="train_snn_fisherinfo")
            except Killed:
                killed.update(path.name for path in (tmp_path / str(number) / "run").glob(".part-*"))
            else:
                break
        folder = run(tmp_path / str(number), "--resume", *ALL, script="train_snn_fisherinfo")
        assert_identical(everything(folder), everything(unbroken))
    assert number > 10 and {".part-checkpoint_latest.pt", ".part-checkpoint_best.pt", ".part-args.json"} <= killed


def test_killed_by_the_system_while_it_trains_and_resumed_it_is_the_unbroken_run(tmp_path):
    argv = ["--epochs", "100", "--fisher_epochs", "every:20"]
    expected = run(tmp_path / "unbroken", *argv, script="train_snn_fisherinfo")
    seen = [0]
    for more in (5, 40):
        process = start(tmp_path, "--resume", *argv, script="train_snn_fisherinfo")
        while process.poll() is None and len(lines(tmp_path / "run", "log.jsonl")) < seen[-1] + more:
            time.sleep(0.003)
        process.kill()
        process.communicate()
        seen.append(len(lines(tmp_path / "run", "log.jsonl")))
    assert 0 < seen[1] < seen[2] < 101
    folder = run(tmp_path, "--resume", *argv, script="train_snn_fisherinfo")
    assert_identical(everything(folder), everything(expected))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_with_one_line(number, tmp_path):
    process = start(tmp_path, "--epochs", "2000")
    while process.poll() is None and not (tmp_path / "run" / "checkpoint_latest.pt").exists():
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "--resume" in error and error.count("\n") == 1
    at = torch.load(tmp_path / "run" / "checkpoint_latest.pt", weights_only=True)["progress"]
    assert [line["epoch"] for line in lines(tmp_path / "run", "log.jsonl")] == list(range(at["epoch"] + 1))


def test_the_optimizers_state_goes_on_in_the_layout_of_its_parameters():
    """A checkpoint may have it in another: a fused step would then mix up its numbers."""
    steps = []
    for saved in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True)
        for _ in range(2):
            weight.grad = torch.randn_like(weight)
            optimizer.step()
            state = optimizer.state_dict()
            buffer = state["state"][0]["momentum_buffer"]
            state["state"][0]["momentum_buffer"] = buffer.contiguous(memory_format=saved)
            optimizer.load_state_dict(state)
            train_snn.match_layouts(optimizer)
        steps.append(weight.detach())
    assert torch.equal(*steps)


STEPS = [[], ["--amp", "bf16"], ["--loss", "tet"], ["--loss", "centroid", "--target_ic", "2"], ["--adv_train"],
         ["--noisetype", "blur", "--noisetime", "1"], ["--encode", "p"], ["--checkpoint_activations"],
         ["--surrogate", "triangle", "--undetached_reset"], ["--norm", "folded", "--optimizer", "adam"]]  # fmt: skip


@pytest.mark.parametrize("flags", STEPS)
def test_a_step_asks_for_no_number(flags, monkeypatch):
    """Tensors of the device "meta" hold none: the steps run on it, until the check behind the last asks."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())  # not on meta
    args = config.parse("train_snn", ["--dataset", "fake", "--arch", "vgg5", "--width", "0.1", "--timestep", "3",
                                      "--batch_size", "4", *flags])  # fmt: skip
    images, labels = torch.empty(12, 3, 16, 16, dtype=torch.uint8), torch.empty(12, dtype=torch.int64)
    corruption = data.Corruption(3, (1,), "blur", args.noise_level, None, 0) if args.noisetype else None
    dataset = data.ImageSet(images, labels, 10, torch.zeros(3), torch.ones(3), 2, True, corruption=corruption)
    dataset.poisson_steps = 3 if args.encode == "p" else 0
    model, at = train_snn.build_model(args, dataset.to("meta")), {"epoch": 0} | train_snn.epoch_start()
    with pytest.raises(RuntimeError, match="item"), StopSignals() as stop:
        train_snn.train_epoch(args, at, model, train_snn.make_optimizer(args, model), dataset.to("meta"), stop)
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


def test_a_torn_last_line_is_dropped(unbroken, tmp_path):
    folder = run(tmp_path, *ALL, script="train_snn_fisherinfo")
    for name in ("log.jsonl", "fisher.jsonl"):
        path = folder / name
        path.write_text(path.read_text() + '{"epoch": 2, "fish')
    (folder / ".part-checkpoint_latest.pt").write_bytes(b"torn")
    run(tmp_path, "--resume", *ALL, script="train_snn_fisherinfo")
    assert_identical(everything(folder), everything(unbroken))
    assert not (folder / ".part-checkpoint_latest.pt").exists()


def test_resume_takes_the_flags_of_the_run_and_refuses_others(tmp_path, capsys):
    folder = run(tmp_path)
    before = everything(folder)
    assert_identical(everything(run(tmp_path, "--resume", flags=[])), before)
    for argv, message in ((["--tau", "3"], "--tau 3.0 differs from 2.0"), (["--epochs", "3"], "--epochs 3 differs")):
        with pytest.raises(SystemExit) as end:
            run(tmp_path, "--resume", *argv, flags=[])
        assert end.value.code == 2 and message in capsys.readouterr().err
    assert_identical(everything(folder), before)


@pytest.mark.parametrize("number, taken", [(0, [0]), (1, [])])
def test_a_process_without_a_gpu_of_its_own_takes_none(number, taken, monkeypatch):
    """With --device cpu there may be more processes than GPUs; where one is asked for, `pick_device` misses it."""
    for name, value in (("WORLD_SIZE", 2), ("RANK", number), ("LOCAL_RANK", number), ("MASTER_ADDR", ""),
                        ("MASTER_PORT", "")):  # fmt: skip
        monkeypatch.setenv(name, str(value))
    found = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    monkeypatch.setattr(utils.dist, "init_process_group", lambda *args: None)
    monkeypatch.setattr(utils, "rank", lambda: 0)
    utils.join_processes()
    assert found == taken


def test_one_script_goes_on_with_the_run_of_the_other_and_keeps_its_settings(unbroken, tmp_path):
    run(tmp_path, *ALL, "--fisher_epochs", "0", script="train_snn_fisherinfo")
    folder = run(tmp_path, "--resume", flags=[])
    record = json.loads((folder / "args.json").read_text())
    assert record["args"]["fisher_epochs"] == ["0"] and len(record["resumed"]) == 1
    assert_identical(everything(folder)["log.jsonl"], everything(unbroken)["log.jsonl"])


def test_a_run_whose_checkpoint_is_gone_is_left_alone(tmp_path):
    folder = run(tmp_path)
    (folder / "checkpoint_latest.pt").unlink()
    before = (folder / "log.jsonl").read_text()
    with pytest.raises(BadInput, match="checkpoint_latest"):
        run(tmp_path, "--resume")
    assert (folder / "log.jsonl").read_text() == before


def test_a_folder_has_one_process_at_a_time(tmp_path):
    folder = run(tmp_path)
    busy = Run(folder, config_of(tmp_path), torch.device("cpu"), resume=True)
    with pytest.raises(BadInput, match="another process"):
        run(tmp_path, "--resume")
    busy.close()
    run(tmp_path, "--resume")


@pytest.mark.parametrize("name, content", [("args.json", "[]"), ("args.json", "{"), ("log.jsonl", "{]}\n")])
def test_a_damaged_record_is_one_line(name, content, tmp_path, capsys):
    (run(tmp_path) / name).write_text(content)
    with pytest.raises(SystemExit) as end:
        run_script(lambda: run(tmp_path, "--resume"), "x.py")
    assert end.value.code == 2 and "damaged" in capsys.readouterr().err
    assert (tmp_path / "run" / name).read_text() == content


@pytest.mark.parametrize("surrogate", ["rectangle", "triangle"])
def test_a_surrogate_without_tails_is_measured_from_the_start(surrogate, tmp_path):
    argv = ["--arch", "vgg5", "--surrogate", surrogate, "--epochs", "1", "--fisher_epochs", "0", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = run(tmp_path, *argv, script="train_snn_fisherinfo")
    assert len(lines(folder, "fisher.jsonl")) == 2


def test_several_kinds_are_measured_in_one_run(tmp_path):
    argv = ["--fisher_split", "train", "test", "--fisher_labels", "data", "model", "exact", "--fisher_samples", "40"]
    measured = lines(run(tmp_path, *argv, script="train_snn_fisherinfo"), "fisher.jsonl")
    assert len({(line["epoch"], line["split"], line["labels"]) for line in measured}) == len(measured) == 12
    late = {line["labels"]: line for line in measured if (line["epoch"], line["split"]) == (2, "train")}
    drawn, exact = late["model"], late["exact"]
    for t in range(2):  # one draw a sample scatters around the expectation
        assert abs(drawn["fisher"][t] - exact["fisher"][t]) < 5 * drawn["fisher_stderr"][t]
    state = torch.load(tmp_path / "run" / "checkpoint_latest.pt", weights_only=True)["state_dict"]
    scale = (state["fc2.weight"].square().sum() + state["fc2.bias"].square().sum()).item()
    assert exact["layers_scale_free"]["fc2"] == pytest.approx(
        [value * scale for value in exact["layers"]["fc2"]], rel=1e-4
    )


def flat(value):
    """All numbers in lines of a record, and the rest as it is."""
    if isinstance(value, dict):
        return [part for key in sorted(value) for part in (key, *flat(value[key]))]
    return [part for one in value for part in flat(one)] if isinstance(value, list) else [value]


def assert_close(found, expected, tolerance=1e-6):
    """The same lines but for rounding."""
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one == (pytest.approx(other, rel=tolerance, abs=tolerance * 1e-3) if isinstance(other, float) else other)


@pytest.mark.parametrize("estimator", ["exact", "release"])
def test_samples_are_split_over_processes_and_the_result_is_the_same(estimator, tmp_path):
    model = run(tmp_path / "model", "--encode", "p") / "checkpoint_latest.pt"
    argv = ["--checkpoints", str(model), "--fisher_samples", "23", "--fisher_labels", "data", "model", "--fisher_batch",
            "4", "--fisher_split", "train", "test", "--fisher_estimator", estimator]  # fmt: skip
    alone = lines(run(tmp_path / "1", *argv, script="train_snn_fisherinfo", flags=[]), "fisher.jsonl")
    assert len(alone) == 4 and alone[0]["samples"] == (23 if estimator == "exact" else 20)
    process = start(tmp_path / "3", *argv, script="train_snn_fisherinfo", flags=[], processes=3)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert out.count("run folder") == 1
    assert_close(lines(tmp_path / "3" / "run", "fisher.jsonl"), alone)


def test_training_is_split_over_processes_and_the_result_is_the_same(tmp_path, monkeypatch):
    """A batch of 33 is cut in unequal shares, the last one of 14 too; Poisson spikes and crops are those of one."""
    argv = ["--encode", "p", "--batch_size", "33", "--undetached_reset", "--fisher_split", "test"]
    found = {2: tmp_path / "2" / "run"}
    process = start(tmp_path / "2", *argv, script="tests/without_norm", processes=2)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert out.count("run folder") == 1
    monkeypatch.setattr(archs.layers.BatchNorm, "forward", without_norm.affine)
    found[1] = run(tmp_path / "1", *argv, script="train_snn_fisherinfo")
    for name in ("log.jsonl", "fisher.jsonl"):
        assert_close(lines(found[2], name), lines(found[1], name), 1e-4)
    weights = [torch.load(found[count] / "checkpoint_latest.pt")["state_dict"] for count in (1, 2)]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-4, atol=1e-5)


def test_a_signal_that_comes_while_processes_ask_each_other_is_heard_the_next_time(monkeypatch):
    with StopSignals() as stop:

        def gather(value):
            stop.note(signal.SIGTERM, None)
            return [value, value]

        monkeypatch.setattr(utils, "of_all", gather)
        stop.check(together=True)
        monkeypatch.setattr(utils, "of_all", lambda value: [None, value])
        with pytest.raises(Stopped, match="SIGTERM"):
            stop.check(together=True)


def test_a_process_that_dies_ends_the_others_and_resume_goes_on(tmp_path):
    argv = ["--epochs", "500", "--save_epochs", "every:500"]
    process = start(tmp_path, *argv, processes=2)
    while process.poll() is None and not (tmp_path / "run" / "checkpoint_latest.pt").exists():
        time.sleep(0.05)
    children = " ".join(path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")).split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and "lost the others" in error
    epochs = read_lines(tmp_path / "run" / "log.jsonl")[-1]["epoch"]
    again = start(tmp_path, "--resume", flags=[], processes=2)
    while again.poll() is None and read_lines(tmp_path / "run" / "log.jsonl")[-1]["epoch"] <= epochs + 1:
        time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert read_lines(tmp_path / "run" / "log.jsonl")[-1]["epoch"] > epochs + 1


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_compiled_neurons_train_as_the_others(unbroken, tmp_path):
    compiled = run(tmp_path, "--compile", "--checkpoint_activations", *ALL, script="train_snn_fisherinfo")
    assert_close(lines(compiled, "log.jsonl"), lines(unbroken, "log.jsonl"), 1e-3)


def test_compiling_without_a_compiler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match=r"no g\+\+"):
        run(tmp_path, "--compile")


def test_the_release_estimator_is_that_of_the_mean_gradient(unbroken, tmp_path):
    argv = ["--fisher_samples", "7", "--checkpoints", str(unbroken / "checkpoint_latest.pt")]
    kinds = {}
    for name, extra in (("release", ["--fisher_estimator", "release", "--fisher_batch", "3"]), ("exact", [])):
        folder = run(tmp_path / name, *argv, *extra, script="train_snn_fisherinfo", flags=[])
        kinds[name] = lines(folder, "fisher.jsonl")[0]
    assert kinds["release"]["estimator"] == "release" and kinds["release"]["samples"] == 6
    assert kinds["exact"]["samples"] == 7
    assert all(r < e for r, e in zip(kinds["release"]["fisher"], kinds["exact"]["fisher"]))


def test_an_existing_run_is_never_overwritten(tmp_path):
    before = everything(run(tmp_path))
    with pytest.raises(BadInput, match="--resume"):
        run(tmp_path)
    assert_identical(everything(tmp_path / "run"), before)


def test_corrupted_labels_are_saved_with_the_run(tmp_path):
    saved = torch.load(run(tmp_path, "--label_corrupt_prob", "0.5") / "train_labels.pt", weights_only=True)
    assert saved.keys() == {"index", "labels", "clean"} and len(saved["index"]) == 40


def test_a_dry_run_does_everything_and_leaves_nothing(tmp_path, capsys):
    run(tmp_path, "--dry_run", "--epochs", "300", "--datanum", "200", flags=TINY)
    shown = capsys.readouterr().out
    assert not list(tmp_path.iterdir()) and "training.png" in shown and "after 2 epochs" in shown
    run(tmp_path, "--dry_run", "--fisher_estimator", "release", script="train_snn_fisherinfo", flags=TINY)
    assert not list(tmp_path.iterdir()) and "fisher.png" in capsys.readouterr().out


def test_saved_models_are_measured_as_they_were_in_training(unbroken, tmp_path):
    paths = [str(unbroken / f"checkpoint_000{epoch}.pt") for epoch in (1, 2)]
    argv = ["--fisher_samples", "6", "--checkpoints", *paths]
    folder = run(tmp_path, *argv, script="train_snn_fisherinfo", flags=[])
    measured = lines(folder, "fisher.jsonl")
    assert [line["epoch"] for line in measured] == [1, 2]
    before = lines(unbroken, "fisher.jsonl")[-1]
    for line in (measured[1], before):  # from epoch 1, and from epoch 0
        line.pop("ic_change"), line.pop("ic_change_ci")
    assert measured[1] == before
    assert (folder / "figures" / "fisher.png").exists()


def test_saved_models_of_different_settings_are_not_measured_as_one(unbroken, tmp_path, capsys):
    other = run(tmp_path / "other", "--tau", "3")
    paths = [str(folder / "checkpoint_best.pt") for folder in (unbroken, other)]
    with pytest.raises(SystemExit) as end:
        run(tmp_path, "--checkpoints", *paths, script="train_snn_fisherinfo", flags=[])
    assert end.value.code == 2 and "--tau 3.0" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_checkpoints_of_the_release_are_measured_and_started_from(tmp_path):
    model = archs.build("fc", timestep=2, num_classes=10, in_channels=2, image_size=8, width=0.1)
    path = tmp_path / "T2_Dfake_Afc_ce_ckpt_0020.pth.tar"
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, path)
    shape = [*TINY[:10], *TINY[10:12]]
    folder = run(
        tmp_path, "--fisher_samples", "4", "--checkpoints", str(path), script="train_snn_fisherinfo", flags=shape
    )
    assert lines(folder, "fisher.jsonl")[0]["epoch"] == 20
    folder = run(tmp_path / "init", "--init", str(path), "--learning_rate", "1e-30")
    state = torch.load(folder / "checkpoint_latest.pt", weights_only=True)["state_dict"]
    torch.testing.assert_close(state["fc1.weight"], model.state_dict()["fc1.weight"])


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--timestep", "3", "--init"], "--timestep 2, not 3"),
        (["--arch", "vgg5", "--init"], "--arch fc, not vgg5"),
        (["--width", "0.2", "--init"], "does not fit"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(argv, message, unbroken, tmp_path):
    with pytest.raises(BadInput, match=message):
        run(tmp_path, *argv, str(unbroken / "checkpoint_best.pt"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_damaged_checkpoint_is_refused(content, unbroken, tmp_path):
    path = tmp_path / "x.pt"
    whole = (unbroken / "checkpoint_best.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(BadInput, match=r"x\.pt is damaged"):
        run(tmp_path, "--init", str(path))


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--scheduler", "cosine", "--epochs", "4"], [1, 0.853553, 0.5, 0.146447]),
        (["--scheduler", "step", "--epochs", "5", "--lr_step", "2"], [1, 1, 0.1, 0.1, 0.01]),
        (["--scheduler", "none", "--epochs", "3"], [1, 1, 1]),
        (["--scheduler", "cosine", "--epochs", "4", "--warmup_epochs", "2"], [1 / 3, 2 / 3, 1, 0.5]),
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
    assert saved["epoch"] == 1 and all(value.isfinite().all() for value in saved["state_dict"].values())


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


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    torch.save({"a": 1}, tmp_path / "x.pt")
    folder = Run(tmp_path / "run", config_of(tmp_path), torch.device("cpu"))
    folder.save("x.pt", {"a": 1})
    with pytest.raises(Exception, match="pickle"):
        folder.save("x.pt", {"a": 2, "b": lambda: None})
    assert torch.load(folder.path("x.pt"), weights_only=True) == {"a": 1}


def config_of(out_dir):
    return config.parse("train_snn", [*TINY, "--out_dir", str(out_dir)])


def test_a_moment_has_its_own_random_numbers():
    drawn = set()
    for key in ((0, "step", 1, 0), (0, "step", 0, 1), (1, "step", 1, 0), (0, "order", 1), (0, "model")):
        seed_all(*key)
        first = torch.rand(1).item()
        seed_all(*key)
        assert torch.rand(1).item() == first
        drawn.add(first)
    assert len(drawn) == 5


def test_figures_are_drawn_again_from_the_folder_alone(unbroken, capsys, monkeypatch):
    before = (unbroken / "figures" / "fisher.png").read_bytes()
    (unbroken / "figures" / "fisher.png").unlink()
    monkeypatch.setattr("sys.argv", ["plots.py", str(unbroken)])
    plots.main()
    assert (unbroken / "figures" / "fisher.png").read_bytes() == before
    assert capsys.readouterr().out.count(".png") == 2
