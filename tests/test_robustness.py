"""eval_snn_robustness.py: intervals, signs of gradient masking, and the lines that it writes."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import lines, run, start

import attacks
import config
import data
import eval_snn_robustness as robustness
from train_snn import setup
from utils import StopSignals, load_checkpoint, load_weights, read_lines

QUICK = ["--eps", "16", "64", "--attack_steps", "2", "--attack_surrogate", "own", "triangle:0.5",
         "--noise_levels", "0.3", "--blur_levels", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of two seeds, of another BatchNorm each; all layers spike."""
    folder, paths = tmp_path_factory.mktemp("trained"), []
    for seed, norm in (("0", "step"), ("1", "folded")):
        argv = ["--arch", "vgg5", "--width", "0.1", "--threshold", "0.3", "--epochs", "4"]
        paths.append(
            str(run(folder / seed, *argv, "--seed", seed, "--norm", norm) / "checkpoint_latest.pt")
        )
    return paths


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    return evaluate(tmp_path_factory.mktemp("evaluated"), *trained)


def evaluate(out_dir, *paths, flags=QUICK):
    return run(out_dir, "--checkpoints", *paths, *flags, script="eval_snn_robustness", flags=[])


def test_every_network_has_a_line_for_each_threat_of_its_own_on_the_same_samples(
    evaluated, trained
):
    found = read_lines(evaluated / "robustness.jsonl")
    threats = [("clean", 0), ("gaussian_noise", 0.3), ("blur", 1), ("fgsm", 16), ("fgsm", 64), ("pgd", 16), ("pgd", 64),
               ("unbounded", 255)]  # fmt: skip
    assert [(line["checkpoint"], line["threat"], line["strength"]) for line in found] == [
        (path, *threat) for path in trained for threat in threats
    ]
    assert {line["samples"] for line in found} == {128}
    assert all(
        line["transfer_from"] == trained[line["checkpoint"] == trained[0]]
        for line in found[3:8] + found[11:]
    )
    for line in found:
        assert len(line["accuracy"]) == len(line["accuracy_ci"]) == line["timestep"] == 2
        assert all(
            low <= a <= high for a, (low, high) in zip(line["accuracy"], line["accuracy_ci"])
        )
        assert line["attacked"] == line["accuracy"][-1]
        assert line["attacked"] <= min(line.get("surrogates", {"": 1}).values())
    assert (
        "masking" in found[7] and (evaluated / "figures" / "robustness.png").stat().st_size > 1000
    )


def test_clean_accuracy_is_that_of_the_training_log(evaluated, trained):
    clean = [line for line in lines(evaluated, "robustness.jsonl") if line["threat"] == "clean"]
    for path, line in zip(trained, clean):
        log = read_lines(path.replace("checkpoint_latest.pt", "log.jsonl"))[-1]
        assert line["accuracy"] == pytest.approx(
            log["prefix_accuracy"], abs=0.02
        )  # another order of samples


def test_what_is_right_under_attack_is_right_for_inputs_attacked_one_by_one(trained):
    args = config.parse("eval_snn_robustness", ["--checkpoints", *trained])
    args.batch_size = 9
    model, _, test_set, _ = setup(args)
    load_weights(model, load_checkpoint(trained[0]), trained[0], args)
    model.double().eval()
    test_set = data.replace(
        test_set.subset(torch.arange(20)), images=test_set.images[:20].double() / 255
    )
    attack = attacks.Attack(0.1, 3, 0.05, random_start=False)
    with StopSignals() as stop:
        found = robustness.right(model, test_set, args, stop, attack, surrogate="triangle:0.5")
    for n in range(20):
        x, y = test_set.images[n : n + 1], test_set.labels[n : n + 1]
        with attacks.surrogates_of(model, "triangle:0.5"):
            x = attack(lambda z: model(test_set.encode(z)), x, y)
        outputs = model(test_set.encode(x))
        for t in (1, 2):
            assert found[t - 1, n] == (outputs[:t].mean(0).argmax(1) == y).item()


def test_an_evaluation_that_is_resumed_goes_on_where_it_was(evaluated, trained, tmp_path):
    whole = lines(evaluated, "robustness.jsonl")
    folder = evaluate(tmp_path, *trained)
    text = (folder / "robustness.jsonl").read_text().splitlines(keepends=True)
    (folder / "robustness.jsonl").write_text("".join(text[:10]) + text[10][:50])
    evaluate(tmp_path, *trained, flags=[*QUICK, "--resume"])
    assert lines(folder, "robustness.jsonl") == whole


def test_noise_at_chosen_timesteps_and_an_attack_on_a_prefix(trained, tmp_path):
    flags = ["--noisetime", "2", "--attack_prefix", "1", "--eps", "64", "--attack_method", "fgsm",
             "--robust_samples", "40", "--noise_levels", "0.5", "--blur_levels"]  # fmt: skip
    found = lines(evaluate(tmp_path, trained[0], flags=flags), "robustness.jsonl")
    assert [line["threat"] for line in found] == ["clean", "gaussian_noise", "fgsm", "unbounded"]
    clean, noise, fgsm, _ = found
    assert noise["accuracy"][0] == clean["accuracy"][0] and (noise["times"], fgsm["times"]) == (
        [2],
        [],
    )
    assert fgsm["attacked"] == fgsm["accuracy"][0] and fgsm["transfer"] is None


def test_a_network_is_tried_alike_whichever_is_named_first(trained, tmp_path):
    """By the seed of the attack, not by that of a training; 255 is not the unbounded attack."""
    flags = ["--robust_samples", "20", "--eps", "64", "255", "--noise_levels", "0.5", "--blur_levels", "--attack_steps",
             "2", "--attack_surrogate", "own"]  # fmt: skip
    for number, paths in enumerate((trained, trained[::-1])):
        evaluate(tmp_path / str(number), *paths, flags=flags)
    found = [read_lines(tmp_path / number / "run" / "robustness.jsonl") for number in "01"]
    one, other = (
        {(x["checkpoint"], x["threat"], x["strength"]): x["accuracy"] for x in lines}
        for lines in found
    )
    assert one == other and len(one) == 14
    assert all("random" in x for x in found[0] if x["threat"] in ("fgsm", "pgd"))
    argv = ["--checkpoints", *trained, "--seed", "3"]
    args = config.parse("eval_snn_robustness", argv)
    assert args.seed == 3 and config.run_name(args) == f"{Path(trained[0]).parent.name}_robustness"


def test_two_processes_find_what_one_finds(evaluated, trained, tmp_path):
    argv = ["--checkpoints", *trained, *QUICK]
    process = start(tmp_path, *argv, script="eval_snn_robustness", flags=[], processes=2)
    assert process.wait(120) == 0, process.stderr.read()
    assert lines(tmp_path / "run", "robustness.jsonl") == lines(evaluated, "robustness.jsonl")


@pytest.mark.parametrize(
    ("accuracy", "samples", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (0, 10, 0, 0.2775), (1, 10, 0.7225, 1)],
)
def test_the_interval_is_wilsons(accuracy, samples, low, high):
    assert robustness.interval(accuracy, samples) == pytest.approx((low, high), abs=1e-4)


def attack_line(threat, strength, attacked, random=0.9, transfer=0.8, **surrogates):
    surrogates = {"own": attacked, **surrogates}
    return {"threat": threat, "strength": strength, "attacked": attacked, "random": random, "transfer": transfer,
            "surrogates": surrogates, "samples": 400}  # fmt: skip


def test_checks_that_disagree_are_called_gradient_masking():
    sound = [
        attack_line("fgsm", 8, 0.6),
        attack_line("pgd", 8, 0.4, atan=0.38),
        attack_line("unbounded", 255, 0.0),
    ]
    assert robustness.masking_signs(sound) == []
    for at, line, word in (
        (0, attack_line("fgsm", 8, 0.2), "one step"),
        (1, attack_line("pgd", 8, 0.4, random=0.2), "random"),
        (1, attack_line("pgd", 8, 0.4, transfer=0.2), "transferred"),
        (1, attack_line("pgd", 8, 0.4, atan=0.2), "own surrogate"),
        (2, attack_line("unbounded", 255, 0.1), "unbounded"),
    ):
        found = robustness.masking_signs([*sound[:at], line, *sound[at + 1 :]])
        assert len(found) == 1 and word in found[0]
    found = robustness.masking_signs(
        [attack_line("pgd", 8, 0.2, own=0.4, atan=0.2)]
    )  # the worst of both
    assert len(found) == 1 and "own surrogate" in found[0]
    assert (
        robustness.masking_signs([attack_line("fgsm", 16, 0.1), attack_line("pgd", 8, 0.4)]) == []
    )
    for line, word in ((attack_line("fgsm", 8, 0.6, random=0.2), "random"), (attack_line("fgsm", 8, 0.6, transfer=0.2),
                                                                            "transferred")):  # fmt: skip
        found = robustness.masking_signs([line])  # alone, it is the strongest
        assert len(found) == 1 and f"{word} " in found[0] and "than fgsm" in found[0]
    assert robustness.clearly_below(0.40, 0.47, 400) and not robustness.clearly_below(
        0.40, 0.46, 400
    )
    alone = [attack_line("pgd", 8, 0.4, transfer=None)]
    alone[0]["surrogates"] = {"atan:1": 0.4}
    assert robustness.masking_signs(alone) == []


def test_attacks_are_transferred_from_the_next_network_of_another_seed():
    paths = ["a", "b", "c", "d"]
    assert [robustness.another_seed(paths, [0, 1, 0, 1], n) for n in range(4)] == [
        "b",
        "c",
        "d",
        "a",
    ]
    assert [robustness.another_seed(paths, [0, 0, 0, 1], n) for n in range(4)] == [
        "d",
        "d",
        "d",
        "a",
    ]
    assert (
        robustness.another_seed(paths, [None] * 4, 0) is None
        and robustness.another_seed(["a"], [0], 0) is None
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--checkpoints"),
        (["--checkpoints", "CKPT", "--noisetype", "blur"], "--noisetype has no effect"),
        (["--checkpoints", "CKPT", "--epochs", "3"], "--epochs"),
        (["--checkpoints", "CKPT", "--adv_train"], "adv_train"),
        (["--checkpoints", "CKPT", "--attack_surrogate", "relu"], "relu"),
        (["--checkpoints", "CKPT", "--attack_prefix", "3"], "--timestep 2"),
        (["--checkpoints", "CKPT", "--noisetime", "3"], "--timestep 2"),
        (
            ["--checkpoints", "CKPT", "--noisetime", "1", "--noise_levels", "--blur_levels"],
            "only with --noise_levels",
        ),
        (["--checkpoints", "CKPT", "--attack_method", "fgsm", "--attack_steps", "3"], "pgd"),
        (["--checkpoints", "CKPT", "--eps", "0"], "--eps"),
        (["--checkpoints", "CKPT", "--eps", "256"], "--eps"),
        (["--checkpoints", "CKPT", "nothing.pt"], "nothing.pt"),
        (["--checkpoints", "CKPT", "OTHER"], "timestep"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, words, trained, tmp_path, capsys):
    other = tmp_path / "other.pt"
    content = torch.load(trained[0], weights_only=True)
    torch.save(content | {"args": content["args"] | {"timestep": 3}}, other)
    flags = [{"CKPT": trained[0], "OTHER": str(other)}.get(flag, flag) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        config.parse("eval_snn_robustness", [*flags, "--out_dir", str(tmp_path)])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and shown.count("\n") == 1 and words in shown, shown


def test_lines_are_json_of_numbers_and_words(evaluated):
    for text in (evaluated / "robustness.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)


def test_a_line_tells_what_each_attacker_leaves_of_the_prefix_that_is_attacked(monkeypatch):
    left = {(None, "own", 3, 1): [1, 1, 1, 0], (None, "atan", 3, 1): [0, 1, 1, 0], (None, "own", 0, 5): [1, 1, 1, 1],
            ("other", "own", 3, 1): [0, 0, 1, 0]}  # fmt: skip

    def right(model, dataset, args, stop, attack, source=None, surrogate="own"):
        return torch.tensor(
            [left[source, surrogate, attack.steps, attack.restarts], [0, 0, 0, 0]]
        ).bool()

    monkeypatch.setattr(robustness, "right", right)
    args = Namespace(attack_prefix=1, timestep=2, attack_surrogate=["own", "atan"], attack_steps=5)
    found, worst = robustness.under_attack(
        args, "own", range(4), attacks.Attack(1, 3, 0.1), "other", False, None
    )
    assert found == {"surrogates": {"own": 0.75, "atan": 0.5}, "random": 1, "transfer": 0.25}
    assert worst[0].tolist() == [False, True, True, False]


def test_an_unbounded_attack_goes_on_until_an_attacker_leaves_none(monkeypatch):
    left = {"own": [1, 1, 0, 0], "atan": [0, 0, 0, 0], "triangle": [1, 0, 0, 0]}
    monkeypatch.setattr(
        robustness, "right", lambda *args, surrogate: torch.tensor([left[surrogate]]).bool()
    )
    args = Namespace(attack_prefix=None, timestep=1, attack_surrogate=list(left))
    found, worst = robustness.under_attack(
        args, "own", range(4), attacks.Attack(1, 3, 0.1), None, True, None
    )
    assert found == {"surrogates": {"own": 0.5, "atan": 0}} and not worst.any()


def test_each_batch_has_its_own_noise():
    seen, noise = [], data.Corruption(2, (), "gaussian_noise", 0.1)
    grey = data.ImageSet(
        torch.full((4, 1, 8, 8), 0.5), torch.zeros(4).long(), 3, torch.zeros(1), torch.ones(1)
    )
    with StopSignals() as stop:
        robustness.right(lambda x: seen.append(x) or torch.zeros(2, len(x), 3), data.replace(grey, corruption=noise),
                         Namespace(batch_size=2, seed=0), stop)  # fmt: skip
    assert len(seen) == 2 and not torch.equal(*seen)


def test_inputs_are_corrupted_at_the_timesteps_that_were_asked_for():
    args = Namespace(
        timestep=4, noisetime=[2, 4], noise_levels=[0.5], blur_levels=[1], attack_method=[], eps=[]
    )
    assert [corruption.times for _, _, corruption, _ in robustness.threats(args) if corruption] == [
        (2, 4)
    ] * 2


def test_a_network_is_built_by_its_own_flags_and_tried_on_samples_that_are_drawn(
    trained, tmp_path, monkeypatch
):
    found = []
    monkeypatch.setattr(robustness, "evaluate_network", lambda *args: found.append(args))
    monkeypatch.setattr(robustness.plots, "robustness", lambda folder: folder)
    evaluate(tmp_path, *trained, flags=[*QUICK, "--robust_samples", "40"])
    (args, _, _, _, dataset, _), _ = found
    assert [robustness.load_network(args, path, dataset).bn1.norm for path in trained] == [
        "step",
        "folded",
    ]
    assert len(dataset) == 40 and dataset.labels.tolist() != [n % 10 for n in range(40)]
