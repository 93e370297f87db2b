"""Masks: the exact share, the lowest scores, subsets, zeros that stay; and the search of prune_snn.py."""

import json
import signal
from argparse import Namespace
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
import without_norm
from helpers import lines, run, start

import archs
import config
import data
import plots
import prune_snn
import pruning
from train_snn_fisherinfo import Subset
from utils import Stopped, StopSignals, read_lines


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network(**kw):
    shape = dict(num_classes=5, in_channels=2, image_size=8, width=0.1, threshold=0.3)
    return archs.build("vgg5", timestep=3, **shape | kw)


def kept_and_pruned(model, masks):
    weights = {name: model.get_parameter(name).detach().abs() for name in masks}
    return (
        torch.cat([weights[n][m if keep else ~m] for n, m in masks.items()])
        for keep in (True, False)
    )


def test_the_share_is_exact_and_every_kept_weight_is_above_every_pruned_one():
    model = network()
    masks = pruning.all_kept(model)
    left = total = sum(m.numel() for m in masks.values())
    for rate in (0.25, 0.25, 0.5, 0.9):
        before, masks = masks, pruning.prune(pruning.magnitude(model, masks), masks, rate)
        left -= round(rate * left)
        assert sum(m.sum().item() for m in masks.values()) == left
        assert pruning.sparsity(masks) == pytest.approx(1 - left / total)
        assert all((masks[name] <= before[name]).all() for name in masks)
        kept, pruned = kept_and_pruned(model, masks)
        assert kept.min() >= pruned.max()


def test_ties_are_cut_to_the_exact_share_too():
    masks = {"a": torch.ones(6, dtype=torch.bool), "b": torch.ones(2, 2, dtype=torch.bool)}
    found = pruning.prune({"a": torch.ones(6), "b": torch.ones(2, 2)}, masks, 0.5)
    assert sum(m.sum().item() for m in found.values()) == 5


def test_batchnorm_biases_and_the_stem_are_not_pruned():
    model = network()
    assert list(pruning.all_kept(model)) == [
        "conv2.weight",
        "conv3.weight",
        "fc1.weight",
        "fc2.weight",
    ]
    assert "conv1.weight" in pruning.all_kept(model, stem=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = pruning.all_kept(model)
    masks = pruning.prune(pruning.magnitude(model, masks), masks, 0.5)
    pruning.apply(model, masks)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] * masks.get(name, 1))
    assert pruning.counts(masks)["fc2.weight"]["total"] == model.fc2.weight.numel()


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_pruned_weights_stay_zero_under_every_optimizer(name, amp):
    model = network()
    options = {"SGD": dict(lr=0.1, momentum=0.9)}.get(name, dict(lr=0.1))
    optimizer = getattr(torch.optim, name)(
        model.parameters(), weight_decay=0.1, fused=True, **options
    )
    x, y = torch.rand(16, 2, 8, 8), torch.arange(16) % 5

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(model(x).float().mean(0), y)
        loss.backward()
        optimizer.step()

    step()  # momentum that would carry on
    masks = pruning.all_kept(model)
    masks = pruning.prune(pruning.magnitude(model, masks), masks, 0.6)
    pruning.apply(model, masks)
    pruning.hold(optimizer, model, masks)
    before = model.conv2.weight.detach().clone()
    for _ in range(3):
        step()
        for weight, mask in masks.items():
            assert (model.get_parameter(weight)[~mask] == 0).all()
    assert not torch.equal(model.conv2.weight, before)


def test_fisher_saliency_is_the_mean_squared_gradient_times_the_squared_weight():
    model = network().double()
    for _ in range(20):  # running statistics with which the deeper layers spike
        model(2 * torch.rand(32, 2, 8, 8).double())
    model.eval()
    x, y = torch.rand(4, 2, 8, 8).double(), torch.tensor([0, 1, 2, 3])
    masks = pruning.all_kept(model)
    found = pruning.fisher_saliency(model, masks, x, y)
    squares = 0
    for n in range(4):
        model.zero_grad()
        F.cross_entropy(model(x[n : n + 1]).mean(0), y[n : n + 1]).backward()
        squares = squares + model.fc2.weight.grad**2
    torch.testing.assert_close(found["fc2.weight"], model.fc2.weight.detach() ** 2 * squares / 4)
    assert found.keys() == masks.keys() and all(score.sum() > 0 for score in found.values())


def test_synaptic_operations_of_full_inputs_are_the_multiply_accumulates():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(3 * 16, 5)
    )
    x = torch.ones(7, 2, 4, 4)
    masks = pruning.all_kept(model)
    whole = 2 * 9 * 3 * 16 + 48 * 5
    assert pruning.synaptic_operations(model, masks, x) == pytest.approx(whole)
    masks = pruning.prune(pruning.magnitude(model, masks), masks, 0.5)
    assert pruning.synaptic_operations(model, masks, x) == pytest.approx(2 * 9 * 3 * 16 + 120)
    x[:, 0] = 0
    assert pruning.synaptic_operations(model, masks, x) == pytest.approx(9 * 3 * 16 + 120)


# ---------------------------------------------------------------- prune_snn.py

DATA = ["--dataset", "fake", "--fake_shape", "2", "8", "8", "--datanum", "64", "--batch_size", "32", "--learning_rate",
        "0.1"]  # fmt: skip
TINY = ["--arch", "vgg5", "--width", "0.1", "--threshold", "0.3", "--timestep", "4", "--epochs", "2",
        "--fisher_samples", "8", "--rewind_epoch", "1", "--rounds", "3"]  # fmt: skip
RULES = ["--final_rounds", "2", "3", "--search_timestep", "full", "2", "fisher", "kl", "one_shot"]


def search(out_dir, *argv):
    return run(out_dir, *TINY, *argv, script="prune_snn", flags=DATA)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    return search(tmp_path_factory.mktemp("searched"), *RULES, "--information_share", "0.4")


def checkpoint(folder, name):
    return torch.load(folder / name / "checkpoint_latest.pt", weights_only=True)


def test_the_fewest_timesteps_that_hold_a_share_of_the_information():
    shares = (0.1, 0.4, 0.41, 0.7, 0.95, 1)
    assert [prune_snn.fewest_by_information([4, 3, 2, 1], share) for share in shares] == [
        1,
        1,
        2,
        2,
        4,
        4,
    ]


def test_the_fewest_timesteps_by_the_early_time_ticket_rule():
    def outputs(*gaps):  # prefix predictions between two classes with these logit gaps
        means = torch.tensor([[gap, 0.0] for gap in gaps], dtype=torch.float64)
        sums = means * torch.arange(1, len(gaps) + 1).unsqueeze(1)
        return torch.diff(sums, dim=0, prepend=torch.zeros(1, 2)).unsqueeze(1)

    assert prune_snn.fewest_by_kl(outputs(0, 0, 3, 3, 3)) == 3
    assert prune_snn.fewest_by_kl(outputs(0, 0, 0.1, 2.5, 3)) == 4
    assert prune_snn.fewest_by_kl(outputs(0, 0, 0, 0, 3)) == 5
    assert prune_snn.fewest_by_kl(outputs(0, -3, -1, 0, 3)) == 4  # KL(P_T || P_t) would give 3
    assert prune_snn.fewest_by_kl(outputs(3, 0, 0, 0, 3)) == 5  # not 1
    assert prune_snn.fewest_by_kl(outputs(0, 0, 0.7, 3, 3)) == 3  # a ratio of 0.47


def test_every_search_has_its_rounds_and_ends_with_all_timesteps(searched):
    lines = read_lines(searched / "pruning.jsonl")
    for rule in RULES[4:]:
        own = [line for line in lines if line["search"] == rule]
        rounds = [line["round"] for line in own if line["stage"] == "search"]
        assert rounds == ([0] if rule == "one_shot" else [0, 1, 2])
        finals = {line["round"]: line for line in own if line["stage"] == "final"}
        assert list(finals) == [2, 3] and all(line["timestep"] == 4 for line in finals.values())
        assert finals[3]["sparsity"] == pytest.approx(1 - 0.75**3, abs=0.002)
        for line in own:
            assert (
                len(line["prefix_accuracy"]) == len(line["fisher"]) == 4
                and line["synaptic_operations"] > 0
            )
            log = read_lines(searched / rule / f"round_{line['round']:02d}" / "log.jsonl")
            assert (
                line["stage"] == "final" or len(log[-1]["prefix_accuracy"]) == line["timestep"]
            )  # it ran no others
            assert line["test_accuracy"] == line["prefix_accuracy"][-1]
            assert (line["rule_seconds"] > 0) == (rule == "fisher" and line["round"] == 0)
            took = sum(
                64 / epoch["images_per_second"] for epoch in log if epoch.get("images_per_second")
            )
            assert line["stage"] == "final" or line["seconds"] == pytest.approx(took)
    steps = {
        rule: [x["timestep"] for x in lines if (x["search"], x["stage"]) == (rule, "search")]
        for rule in RULES[4:]
    }
    assert (
        steps["full"] == [4, 4, 4]
        and steps["2"] == [2, 2, 2]
        and steps["fisher"][0] == steps["kl"][0] == 4
    )
    curve = next(line["fisher"] for line in lines if line["search"] == "fisher")
    assert steps["fisher"][1:] == [prune_snn.fewest_by_information(curve, 0.4)] * 2
    assert (searched / "figures" / "pruning.png").stat().st_size > 1000


@pytest.mark.parametrize("rule", RULES[4:-1])
def test_masks_shrink_and_pruned_weights_are_zero_at_the_end_of_every_round(searched, rule):
    before = None
    for name in ("round_00", "round_01", "round_02", "final_03"):
        content = checkpoint(searched / rule, name)
        for weight, mask in content["masks"].items():
            assert (content["state_dict"][weight][~mask] == 0).all()
            assert before is None or (mask <= before[weight]).all()
        assert json.loads((searched / rule / name / "masks.json").read_text()) == pruning.counts(
            content["masks"]
        )
        before = content["masks"]


def test_rewinding_restores_the_kept_weights_of_that_epoch(searched, tmp_path, monkeypatch):
    starts = {}

    def watch(args, run, model, *rest, **options):
        starts[run.folder.name] = {
            name: value.clone() for name, value in model.state_dict().items()
        }
        return fit(args, run, model, *rest, **options)

    fit = prune_snn.fit
    monkeypatch.setattr(prune_snn, "fit", watch)
    for argv, source in (
        ([], "checkpoint_0001.pt"),
        (["--rewind_epoch", "0"], None),
        (["--no_rewind"], "checkpoint_latest.pt"),
    ):
        flags = [flag for flag in TINY if not (argv and flag in ("--rewind_epoch", "1"))]
        folder = run(tmp_path / str(source), *flags, "--rounds", "1", *argv, "--search_timestep", "full",
                     script="prune_snn", flags=DATA)  # fmt: skip
        masks = checkpoint(folder / "full", "final_01")["masks"]
        rewound = starts["round_00"]
        if source:
            rewound = torch.load(folder / "full" / "round_00" / source, weights_only=True)[
                "state_dict"
            ]
        for name, value in starts["final_01"].items():
            assert torch.equal(value, rewound[name] * masks.get(name, 1))
        first = read_lines(folder / "full" / "final_01" / "log.jsonl")[0]["epoch"]
        assert first == (1 if source == "checkpoint_0001.pt" else 0)


def test_a_search_that_is_stopped_in_a_round_resumes_to_the_same_masks(
    searched, tmp_path, monkeypatch
):
    argv = ["--final_rounds", "2", "3", "--search_timestep", "2"]

    def check(stop, together=False):
        """Stands in for SIGTERM in the second round."""
        if (tmp_path / "run" / "2" / "round_01" / "log.jsonl").exists():
            raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "check", check)
        with pytest.raises(Stopped):
            search(tmp_path, *argv)
    assert not (tmp_path / "run" / "2" / "round_02").exists()
    folder = search(tmp_path, *argv, "--resume")
    for name in ("round_01", "round_02", "final_02", "final_03"):
        one, other = (checkpoint(place / "2", name)["masks"] for place in (searched, folder))
        assert all(torch.equal(one[weight], other[weight]) for weight in one)

    def computed(place):
        own = [line for line in lines(place, "pruning.jsonl") if line["search"] == "2"]
        return [
            {k: v for k, v in line.items() if k not in ("seconds", "rule_seconds")} for line in own
        ]

    assert computed(folder) == computed(searched)


def test_pruning_by_fisher_adapts_and_takes_the_stem(tmp_path):
    folder = search(
        tmp_path, "--prune_by", "fisher", "--prune_stem", "--search_timestep", "fisher", "--adapt"
    )
    masks = checkpoint(folder / "fisher", "final_03")["masks"]
    assert "conv1.weight" in masks
    found = [line for line in read_lines(folder / "pruning.jsonl") if line["stage"] == "search"]
    for line, following in pairwise(found):
        assert (
            following["timestep"] == prune_snn.fewest_by_information(line["fisher"], 0.9)
            and line["rule_seconds"] > 0
        )


def test_replaced_labels_and_corrupted_inputs_are_recorded(tmp_path):
    argv = [
        "--label_corrupt_prob",
        "0.5",
        "--noisetype",
        "blur",
        "--rounds",
        "1",
        "--search_timestep",
        "2",
    ]
    folder = run(tmp_path, *TINY, *argv, script="prune_snn", flags=DATA)
    assert (folder / "train_labels.pt").exists() and (folder / "figures" / "inputs.png").exists()


def test_a_dry_run_leaves_nothing(tmp_path, capsys):
    shape = ["--dataset", "fake", "--fake_shape", "2", "8", "8", "--fisher_samples", "8"]
    flags = [*shape, "--arch", "vgg5", "--width", "0.05", "--timestep", "3", "--dry_run"]
    prune_snn.main([*flags, "--out_dir", str(tmp_path)])
    assert list(tmp_path.iterdir()) == [] and "kl   final" in capsys.readouterr().out


def test_frames_are_searched_with_their_first_steps(tmp_path):
    frames = ["--fake_shape", "4", "2", "8", "8"]
    folder = run(
        tmp_path,
        *TINY,
        "--rounds",
        "1",
        "--search_timestep",
        "2",
        *frames,
        script="prune_snn",
        flags=DATA,
    )
    assert len(read_lines(folder / "2" / "round_00" / "log.jsonl")[-1]["prefix_accuracy"]) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--search_timestep", "some"], "one_shot"),
        (["--search_timestep", "11"], "--timestep 10"),
        (["--search_timestep", "2", "2"], "twice"),
        (["--final_rounds", "15"], "--rounds 14"),
        (["--rounds", "4", "--final_rounds", "2"], "past the last of --final_rounds, 2"),
        (["--rewind_epoch", "300"], "--epochs 300"),
        (["--no_rewind", "--rewind_epoch", "3"], "--no_rewind"),
        (["--search_timestep", "kl", "--timestep", "2"], "kl"),
        (["--search_timestep", "full", "--adapt"], "fisher"),
        (["--loss", "centroid", "--target_ic", "2"], "target_ic"),
        (["--loss", "prefix"], "prefix"),
        (["--noisetype", "blur", "--noisetime", "1"], "noisetime"),
        (["--fisher_split", "test"], "fisher_split"),
        (["--prune_rate", "1"], "0.99"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        config.parse("prune_snn", flags)
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and shown.count("\n") == 1 and words in shown, shown


def test_a_search_is_split_over_processes_and_finds_the_same(tmp_path, monkeypatch):
    """Both processes choose T' and prune by the samples of both, seven of them."""
    argv = [
        *TINY,
        "--rounds",
        "1",
        "--search_timestep",
        "kl",
        "--prune_by",
        "fisher",
        "--fisher_samples",
        "7",
    ]
    process = start(tmp_path / "2", *argv, script="tests/without_norm", flags=DATA, processes=2)
    _, error = process.communicate()
    assert process.returncode == 0, error
    monkeypatch.setattr(archs.layers.BatchNorm, "forward", without_norm.affine)
    run(tmp_path / "1", *argv, script="prune_snn", flags=DATA)
    found = [
        tmp_path / count / "run" / "kl" / "final_01" / "checkpoint_latest.pt" for count in "12"
    ]
    masks = [torch.load(path, weights_only=True)["masks"] for path in found]
    differ = sum((masks[0][name] != masks[1][name]).sum().item() for name in masks[0])
    assert differ <= 0.001 * sum(mask.numel() for mask in masks[0].values())  # ties, by rounding
    one, two = (lines(tmp_path / count / "run", "pruning.jsonl") for count in "12")
    assert [line["timestep"] for line in one] == [line["timestep"] for line in two]
    assert [line["rule_seconds"] > 0 for line in one] == [
        True,
        False,
    ]  # of scoring, in the search alone


def test_synaptic_operations_of_several_images_are_their_mean_and_count_every_timestep():
    model = network().eval()
    x = torch.rand(6, 2, 8, 8)
    one_by_one = [pruning.synaptic_operations(model, {}, x[n : n + 1]) for n in range(6)]
    assert pruning.synaptic_operations(model, {}, x) == pytest.approx(sum(one_by_one) / 6)
    frames = x.unsqueeze(1).expand(-1, 3, -1, -1, -1)
    stem = 2 * 9 * model.conv1(x[None, :1]).numel()
    added = pruning.synaptic_operations(model, {}, frames) - pruning.synaptic_operations(
        model, {}, x
    )
    assert added == pytest.approx(2 * stem)


def test_fewer_timesteps_of_frames_are_the_first_ones():
    frames = data.ImageSet(
        torch.rand(2, 4, 1, 8, 8), torch.arange(2), 2, torch.zeros(1), torch.ones(1)
    )
    assert torch.equal(prune_snn.first_steps(frames, 3).images, frames.images[:, :3])
    poisson = data.replace(frames, images=frames.images[:, 0], poisson_steps=4)
    assert prune_snn.first_steps(poisson, 3).poisson_steps == 3


def test_the_seconds_of_a_search_are_those_of_its_own_rounds_before_and_of_its_rule():
    kinds = product(("full", "fisher"), ("search", "final"), (0, 1, 2))
    lines = [
        dict(search=s, stage=stage, round=r, seconds=10**r, rule_seconds=0.5)
        for s, stage, r in kinds
    ]
    assert plots.search_seconds(lines, lines[-1]) == 1 + 10 + 2 * 0.5


def test_the_early_time_ticket_is_drawn_two_epochs_into_training(tmp_path, monkeypatch):
    loaded, load = [], prune_snn.load_checkpoint
    monkeypatch.setattr(
        prune_snn, "load_checkpoint", lambda path: loaded.append(path.name) or load(path)
    )
    flags = [*TINY[:-6], "--epochs", "3", "--fisher_samples", "8", "--no_rewind", "--rounds", "1"]
    run(tmp_path, *flags, "--search_timestep", "kl", script="prune_snn", flags=DATA)
    assert loaded == ["checkpoint_0002.pt"]


@pytest.mark.parametrize("rule", RULES[4:])
def test_the_weights_that_go_are_the_smallest_at_the_end_of_the_round(searched, rule):
    weights = checkpoint(searched / rule, "round_00")["state_dict"]
    masks = checkpoint(searched / rule, "final_02" if rule == "one_shot" else "round_01")["masks"]
    kept, pruned = (
        torch.cat([weights[n].abs()[m if k else ~m] for n, m in masks.items()])
        for k in (True, False)
    )
    assert len(pruned) and kept.min() >= pruned.max()


def test_operations_are_counted_with_the_masks_of_the_round(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pruning, "synaptic_operations", lambda model, masks, x: pruning.sparsity(masks)
    )
    found = read_lines(search(tmp_path, "--search_timestep", "2", "one_shot") / "pruning.jsonl")
    assert all(line["synaptic_operations"] == line["sparsity"] for line in found)


def test_frames_are_scored_by_their_first_steps(monkeypatch):
    monkeypatch.setattr(pruning, "fisher_saliency", lambda model, masks, x, y: x)
    subset = Subset(torch.rand(2, 4, 1, 8, 8), torch.arange(2), 0, 2)
    found = prune_snn.Search(Namespace(prune_by="fisher"), None, "2", None, None, subset).scores(
        network(), {}, 2
    )
    assert torch.equal(found, subset.x[:, :2])
