"""reproduce.py: every claim from end to end on noise, its runs and their jobs."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import ROOT

import claims
import config
import controls
import experiments
import plots
import reproduce
from utils import BadInput, read_lines

DRY = experiments.SCALES["dry"]


def test_panels_and_scatters_are_drawn(tmp_path):
    drawn = plots.panels(
        {"one": {"a": ([1, 2], [0.2, 0.8], [0.1, 0.1])}}, tmp_path / "p.png", "x", "y"
    )
    assert drawn.stat().st_size > 1000
    numbers = {("step", name): {"ic": [1.0, 2.0], "clean": [0.9, 0.8]} for name in ("ce", "tet")}
    assert plots.tradeoff(numbers, tmp_path / "t.png", {"clean": "accuracy"}).stat().st_size > 1000


def test_every_claim_runs_from_end_to_end(undrawn, capsys):
    for claim in ("all", "gain"):
        reproduce.main([claim, "--dry_run", "--jobs", "1"])
    shown = capsys.readouterr().out
    for claim in reproduce.CLAIMS:
        assert f"{claim}: " in shown and f"{claim}.md" in shown


def test_a_command_names_no_place_and_its_run_gets_them():
    """A folder that is spelled in another way is the same folder: what is complete there is not run again."""
    args = SimpleNamespace(scale="medium", data_dir="here", out_dir="SEED/RUNS")
    job = experiments.evaluation(args, "pgd", "trained", "--eps", "4").of(0, 1)
    networks = ["RUNS/trained_0/checkpoint_latest.pt", "RUNS/trained_1/checkpoint_latest.pt"]
    assert job.flags == ("--checkpoints", *networks, "--data_dir", "DATA", "--eps", "4")
    networks = [f"SEED/{network}" for network in networks]
    flags = ["--checkpoints", *networks, "--data_dir", "here", "--eps", "4"]
    assert job.argv(args) == [*flags, "--out_dir", "SEED/RUNS", "--exp_name", "pgd", "--resume"]
    assert "here" not in job.content() and "RUNS/trained_0" in job.words()


def test_a_signal_ends_its_workers_too(tmp_path):
    command = [
        sys.executable,
        ROOT / "reproduce.py",
        "concentration",
        "--jobs",
        "2",
        "--out_dir",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        [*command, "--results", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    epochs = []  # of each run; before the first there is nothing to save
    while process.poll() is None and (len(epochs) < 2 or min(epochs) < 1):
        time.sleep(0.1)
        epochs = [len(read_lines(path)) - 1 for path in tmp_path.glob("small/trained_*/log.jsonl")]
    process.send_signal(signal.SIGTERM)
    assert (
        process.communicate(timeout=60)[1]
        == "reproduce.py: stopped by SIGTERM; the same command goes on\n"
        and process.returncode == 143
    )
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert len(list(tmp_path.glob("small/trained_*/checkpoint_latest.pt"))) == 2
    assert not (tmp_path / "small" / "trained_2").exists()


def test_runs_that_are_complete_are_not_run_again(undrawn, tmp_path, capsys, monkeypatch):
    argv = [
        "loss",
        "--seeds",
        "1",
        "--out_dir",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "results"),
    ]
    monkeypatch.setattr(experiments, "SCALES", {"small": DRY})
    monkeypatch.setattr(claims, "NORMS", ("step",))
    reproduce.main(argv)
    times = {path: path.stat().st_mtime for path in (tmp_path / "runs").rglob("*")}
    page = (tmp_path / "results" / "small" / "loss.md").read_text()
    reproduce.main(argv)
    assert times == {path: path.stat().st_mtime for path in (tmp_path / "runs").rglob("*")}
    assert (
        page == (tmp_path / "results" / "small" / "loss.md").read_text()
        and "| step | tet |" in page
    )
    for flags in ([], ["--loss", "prefix"]):  # a folder of another run is not taken for it
        monkeypatch.setattr(
            experiments, "SCALES", {"small": replace(DRY, losses={"ce": [], "tet": flags})}
        )
        with pytest.raises(BadInput, match=r"loss_step_tet_0 is of another command line"):
            reproduce.main(argv)


@pytest.mark.parametrize("scale", ["small", "images", "medium", "paper"])
def test_every_command_line_of_every_scale_is_taken(scale, monkeypatch, tmp_path):
    """Trainings and searches; what follows them needs their checkpoints."""
    jobs = []

    def note(args, wanted):
        jobs.extend(wanted.values())
        raise InterruptedError

    for module in (experiments, claims, controls):
        monkeypatch.setattr(module, "with_each_seed", note)
    monkeypatch.setattr(claims, "with_all_seeds", note)
    args = SimpleNamespace(scale=scale, data_dir="here", out_dir=str(tmp_path), seeds=1)
    for claim in reproduce.CLAIMS.values():
        with contextlib.suppress(InterruptedError):
            claim(args)
    for module in (experiments, claims):
        monkeypatch.setattr(module, "trained", lambda args: [tmp_path])
    for claim in (claims.settings, controls.planted):
        with contextlib.suppress(InterruptedError):
            claim(args)
    assert len({job.name for job in jobs}) > 25
    for job in jobs:
        config.parse(job.script, job.of(0).argv(args))


@pytest.mark.parametrize("scale", ["small", "images", "paper"])
def test_a_setting_is_what_its_name_says_and_goes_before_its_scale(scale):
    args, found = SimpleNamespace(scale=scale), {}
    for name, flags in experiments.SETTINGS.items():
        job = experiments.command(args, "s", experiments.TRAIN, *flags).of(4)
        found[name] = config.parse(job.script, job.flags)
    assert found["tau 4"].tau == 4 and found["tau 1.33"].tau == pytest.approx(4 / 3, abs=1e-3)
    assert (
        all(found[f"T = {t}"].timestep == t for t in (2, 4, 16))
        and found["random labels"].label_corrupt_prob == 1
    )
    assert (
        found["resnet19, adam"].learning_rate == found["adam"].learning_rate == 0.002
        and found["adam"].seed == 4
    )


def test_a_control_is_measured_in_the_way_of_its_name(monkeypatch):
    monkeypatch.setattr(experiments, "with_each_seed", lambda args, jobs: jobs)
    ways = experiments.measured_again(SimpleNamespace(scale="images", data_dir="d", out_dir="o"))
    flags = {
        way: config.make_parser(job.script).parse_args(job.of(0).flags) for way, job in ways.items()
    }
    cut, instant, released, every = (flags[w] for w in (experiments.NO_MEMBRANES, "instantaneous outputs",
                                                        experiments.RELEASED, experiments.EVERY_CLASS))  # fmt: skip
    assert (
        cut.detach_membrane
        and instant.fisher_prefix == "instant"
        and released.fisher_estimator == "release"
    )
    assert every.fisher_split == ["train", "test"] and every.fisher_labels == ["data", "exact"]
    assert [way.fisher_samples for way in (cut, instant, every, released)] == [256, 256, 256, 1000]


def test_a_data_set_that_is_missing_is_missed_before_the_other_runs(undrawn, tmp_path, monkeypatch):
    settings = {"fc": []}
    monkeypatch.setattr(
        experiments, "SCALES", {"small": replace(DRY, settings=settings, subsets={"some": []})}
    )
    (tmp_path / "empty").touch()
    argv = ["settings", "--seeds", "1", "--jobs", "1", "--out_dir", str(tmp_path / "runs")]
    with pytest.raises(BadInput, match=r"settings_Fashion-MNIST_some_0.txt says why"):
        reproduce.main([*argv, "--data_dir", str(tmp_path / "empty")])
    assert not list((tmp_path / "runs").rglob("checkpoint*"))


def test_seeds_are_counted_from_0_and_each_is_its_own(monkeypatch):
    done, args = [], SimpleNamespace(seeds=3, out_dir="o", performed=[])
    monkeypatch.setattr(experiments, "perform_all", lambda jobs, args: done.extend(jobs))
    job = experiments.Job("a_SEED", "train_snn", ("--seed", "SEED"), "training")
    experiments.with_each_seed(args, {"": job}), experiments.with_all_seeds(args, {"": job})
    found = [(job.name, *job.flags[1:]) for job in done]
    assert found == [("a_0", "0"), ("a_1", "1"), ("a_2", "2"), ("a_0_of_3", "0", "1", "2")]
