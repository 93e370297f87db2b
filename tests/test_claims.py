"""The claims: statistics, verdicts, pages of made-up run folders, and the starting of runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT

import archs
import config
import reproduce
from claims import CLAIMS, common, controls, gain, law, pruning, released, robustness
from claims.kernels import factors, kernels, sums
from claims.runs import EVALUATE, PRUNE, TRAIN, Study
from claims.scales import SCALES
from fisher import one_by_one
from utils import BadInput

# ---------------------------------------------------------------- statistics and verdicts


def test_a_condition_is_judged_by_its_whole_interval():
    effects = [common.Effect(1, *interval) for interval in ((0.6, 1.4), (0.4, 1.6), (0.1, 0.3))]
    words = [common.above("x", effect, 0.5).verdict for effect in effects]
    assert words == ["confirmed", "undecided", "contradicted"]
    words = [common.below("x", effect, 0.5).verdict for effect in effects]
    assert words == ["contradicted", "undecided", "confirmed"]
    effects = [common.Effect(0, *interval) for interval in ((-0.3, 0.1), (-0.6, -0.2), (-2, -0.6))]
    words = [common.within("x", effect, 0.5).verdict for effect in effects]
    assert words == ["confirmed", "undecided", "contradicted"]


def test_an_effect_has_students_interval():
    effect = common.effect([1.0, 2.0, 3.0, 4.0, 5.0])
    assert effect.mean == 3
    assert effect.high - effect.mean == pytest.approx(2.776445 * math.sqrt(2.5 / 5))
    assert common.effect([1.0])[1:] == (-math.inf, math.inf)


def test_what_a_seed_does_not_have_leaves_a_condition_undecided():
    assert common.above("x", common.effect([1.0, None]), 0.5).verdict == "undecided"
    assert common.spread([1.0, None]) == "nan ± nan"


def test_the_interval_of_a_rank_correlation_covers_0_as_often_as_it_says():
    drawn = torch.randn(400, 2, 20, generator=torch.Generator().manual_seed(0)).tolist()
    intervals = [common.rank_correlation(*pair) for pair in drawn]
    assert 0.92 < sum(low < 0 < high for _, low, high in intervals) / len(intervals) < 0.98


def test_the_mean_gradient_is_exact_over_all_batches_without_replacement():
    g = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = [g[[i for i in range(4) if i != left]].mean(0).square().sum() for left in range(4)]
    estimates = [g.square().sum(1).mean()], [sum(means) / 4]
    norms, shares = released.mean_gradient(*estimates, 3, 4)
    torch.testing.assert_close(norms[0], g.mean(0).square().sum())
    assert shares[0] == pytest.approx((1 - 1 / 9) * norms[0] / (sum(means) / 4))


# ---------------------------------------------------------------- the law


def test_the_law_is_exact_without_spikes_and_with_one_slope(float64):
    """A slope of 0.2 within 2.5 of the threshold, and inputs too weak for a spike."""
    neuron = {"surrogate": "rectangle", "surrogate_alpha": 0.2, "tau": 1.5}
    model = archs.build("fc", timestep=4, num_classes=3, image_size=8, layernum=3, **neuron).eval()
    x, y = 0.01 * torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    factor_of = factors(model, kernels(model, [(x, y)]))
    with_path = one_by_one(model, x, y)
    model.lif_fc1.detach_membrane = model.lif_fc2.detach_membrane = True
    cut = one_by_one(model, x, y)
    for name in ("fc1.weight", "bn_fc2.bias", "fc3.bias"):
        factor = torch.tensor(factor_of[name.partition(".")[0]])
        torch.testing.assert_close(with_path[name], cut[name] * factor[:, None])
    assert factor_of["fc1"][3] > factor_of["fc2"][3] > 1 and factor_of["fc3"] == [1, 1, 1, 1]


def test_a_spike_stops_the_gradient_unless_the_reset_is_soft():
    g, z = torch.ones(3, 1), torch.tensor([[0.0], [1.0], [0.0]])
    shares = {reset: [above / all_steps for above, all_steps in sums(archs.LIF(reset=reset), g, z)]
              for reset in ("hard", "soft")}  # fmt: skip
    assert shares["hard"] == [1, 0.25, 0]  # d = 1: of the steps 2 and 3, only 2 has silence before
    assert shares["soft"] == [1, 0.5, 0.25]


# ---------------------------------------------------------------- pages of made-up run folders


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def measurement(epoch, split, labels, ic):
    """A line of fisher.jsonl, T = 2, whose curves are 1 at t = 1 and depend on `ic` at t = 2."""
    return {
        "epoch": epoch, "split": split, "labels": labels, "timestep": 2, "samples": 100, "ic": ic,
        "ic_per_loss": ic + 0.1, "ic_per_residual": ic + 0.2, "fisher": [1, ic],
        "prefix_residual": [1, 0.5], "prefix_loss": [1, 0.5], "gain": [1, ic],
        "layers": {"a": [1, ic]}, "layers_scale_free": {"a": [1, 1], "b": [0, ic]},
        "prefix_accuracy": [0.5, 0.9],
    }  # fmt: skip


def make_up(study, run):
    """Write the run folder of a run: IC 5 in epoch 1, and 2 (seed 0) or 2.2 (seed 1) at the end."""
    folder, seed = study.folder(run), int(run.name[-1]) % 2
    if run.script == TRAIN:
        lines = [measurement(epoch, split, labels, (9, 5, 2 + seed / 5)[epoch])
                 for epoch in (0, 1, 2) for split in ("train", "test")
                 for labels in ("data", "model", "exact")]  # fmt: skip
        write_lines(folder / "fisher.jsonl", lines)
        write_lines(folder / "log.jsonl", [{"train_loss": 0.5, "test_accuracy": 0.9}])
        (folder / "args.json").write_text(json.dumps({"args": {"dataset": "fake"}}))
    if run.script == EVALUATE:
        threats = [("clean", 0.0), ("gaussian_noise", 0.2), ("gaussian_noise", 0.4), ("blur", 1.0)]
        early = 0.1 if "first" in run.name else 0
        lines = [
            {
                "checkpoint": f"x/{network}/c.pt",
                "threat": threat,
                "strength": strength,
                "times": [] if threat == "clean" else [1],
                "attacked": 0.8 - early,
                "transfer": None,
            }
            for network in run.networks
            for threat, strength in (*threats, ("pgd", 32))
        ]
        write_lines(folder / "robustness.jsonl", lines)  # fmt: skip
    if run.script == PRUNE:
        few = run.name.startswith("pruning_fisher")
        line = {"search": "x", "seconds": 10 if few else 30, "rule_seconds": 0, "timestep": 4}
        stages = [("search", 0), ("search", 1), ("final", 1), ("final", 2)]
        lines = [
            line
            | {
                "stage": stage,
                "round": number,
                "sparsity": number / 10,
                "test_accuracy": 0.9 + few / 100,
            }
            for stage, number in stages
        ]
        write_lines(folder / "pruning.jsonl", lines)  # fmt: skip


@pytest.fixture
def study(tmp_path):
    return Study(SCALES["dry"], 2, 1, tmp_path / "runs", None)


def made_up(claim, study):
    """The numbers of a claim, by way of JSON, from made-up run folders."""
    runs = claim.runs(study)
    for run in [run for group in runs.values() for run in group]:
        make_up(study, run)
    folders = {key: [study.folder(run) for run in group] for key, group in runs.items()}
    return json.loads(json.dumps(claim.numbers(study, folders)))


@pytest.mark.parametrize("name", CLAIMS)
def test_page_and_figure_are_drawn_again_from_the_numbers(name, study, tmp_path, monkeypatch):
    monkeypatch.setattr(law, "predict", lambda study, run: {"a": [1.0, 2.0]})
    results = tmp_path / "small"
    results.mkdir()
    record = {"numbers": made_up(CLAIMS[name], study), "runs": ["x.py"], "seeds": 2, "git": "0",
              "command": "python reproduce.py", "versions": {}, "device": "cpu"}  # fmt: skip
    common.write_numbers(results / f"{name}.json", record)
    reproduce.main([name, "--redraw", "--results", str(tmp_path), "--out_dir", str(tmp_path)])
    text = (results / f"{name}.md").read_text()
    assert text.splitlines()[2].startswith(CLAIMS[name].QUESTION)
    assert all(condition.words in text for condition in CLAIMS[name].page(record["numbers"])[1])
    assert (results / f"{name}.png").stat().st_size > 1000


def test_nothing_is_drawn_again_without_numbers(tmp_path):
    with pytest.raises(BadInput, match="run the claim without --redraw"):
        reproduce.main(["gain", "--redraw", "--results", str(tmp_path), "--out_dir", str(tmp_path)])


def conditions(claim, study):
    """{words: (effect, verdict)} of a claim."""
    page = claim.page(made_up(claim, study))
    return {words: (effect.mean, verdict) for words, effect, verdict in page.conditions}


def test_a_concentration_is_from_the_first_epoch_after_training_began_to_the_last(study):
    found = conditions(CLAIMS["concentration"], study)
    assert found["the network: IC falls by more than 0.167"] == (pytest.approx(2.9), "confirmed")
    name = "the network: IC ends below flat (1.5) by more than 0.167"
    assert found[name] == (pytest.approx(-0.6), "undecided")  # [-1.87, 0.67]


def test_a_control_has_its_own_curve(study):
    curves = made_up(controls, study)
    assert curves["as in the paper"] == [[1, 2], [1, 2.2]]
    assert curves["per residual: the gain (I_t / R_t)"] == [[1, 4], [1, 4.4]]
    assert curves["each layer times its squared weights"] == [[1, 3], [1, 3.2]]


def test_noise_hurts_early_if_the_first_half_costs_more(study):
    found = list(conditions(robustness, study).values())
    assert found == [(pytest.approx(0.1), "confirmed")] * 2


def test_a_search_is_compared_with_the_full_one_seed_by_seed(study):
    found = list(conditions(pruning, study).values())
    assert found[:2] == [(pytest.approx(0.01), "confirmed")] * 2
    assert found[2] == (3, "confirmed")


def test_a_gain_is_compared_with_flat_in_both_ways(study):
    assert len(conditions(gain, study)) == 4  # two settings


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("scale", ["small", "images", "medium", "paper"])
def test_every_command_line_is_taken(scale, tmp_path):
    study = Study(SCALES[scale], 1, 1, tmp_path, "data")
    groups = [group for claim in CLAIMS.values() for group in claim.runs(study).values()]
    for run in {run.name: run for group in groups for run in group}.values():
        _, *flags = run.command()
        config.make_parser(run.script).parse_args(flags)
        if not run.networks:
            config.parse(run.script, flags)


def test_a_complete_folder_is_not_run_again_nor_taken_for_another(study):
    run = study.trained()[0]
    assert not study.is_complete(run)
    (study.folder(run) / "figures").mkdir(parents=True)
    (study.folder(run) / "figures" / "fisher.png").touch()
    study.command_file(run).write_text(json.dumps(run.command()))
    study.perform([run])
    assert list(study.folder(run).iterdir()) == [study.folder(run) / "figures"]
    study.command_file(run).write_text(json.dumps([*run.command(), "--tau", "3"]))
    with pytest.raises(BadInput, match="trained_0 is of another command line"):
        study.perform([run])


def test_a_run_that_fails_names_its_output(study):
    study.out_dir.mkdir()
    with pytest.raises(BadInput, match=r"status 2: .*bad_0.txt says why"):
        study.perform(study.train("bad", "--tau 0.5"))
    assert "must be above 1" in (study.out_dir / "bad_0.txt").read_text()


def test_a_claim_runs_from_end_to_end(capsys):
    reproduce.main(["concentration", "--dry_run", "--seeds", "1", "--jobs", "1"])
    assert "concentration.md" in capsys.readouterr().out


def test_a_signal_ends_the_runs_too(tmp_path):
    command = [sys.executable, ROOT / "reproduce.py", "concentration", "--jobs", "2"]
    command += ["--out_dir", tmp_path, "--results", tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and len(list(tmp_path.glob("small/trained_*/log.jsonl"))) < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert error == "reproduce.py: stopped by SIGTERM; the same command goes on\n"
    assert process.returncode == 143
    with pytest.raises(ProcessLookupError):  # none of its group is left
        os.killpg(process.pid, 0)
