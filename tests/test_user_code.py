"""A user's own network and data: trained, resumed, measured, evaluated, pruned, or refused."""

import shutil
from pathlib import Path

import pytest
from helpers import FAKE, ROOT, TINY, TINY_FISHER, lines, run

import user_code
from utils import BadInput, load_checkpoint, load_run, read_lines, read_record

SHORT = [*FAKE, *TINY[TINY.index("--timestep") :]]  # without --arch and --width
OWN = ROOT / "tests" / "own.py"
NETWORK = ["--arch", f"{OWN}:build"]
WITHOUT_LIF = ["--arch", f"{OWN}:without_lif"]
ATTACK = ["--eps", "16", "--attack_steps", "2", "--noise_levels", "0.3", "--blur_levels"]
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder of a user's network."""
    folder = tmp_path_factory.mktemp("trained")
    return run(folder, *NETWORK, "--tau", "3", script="train_snn_fisherinfo",
               flags=SHORT + TINY_FISHER)  # fmt: skip


def test_own_network_and_data_go_through_every_script(tmp_path):
    code = [*NETWORK, "--dataset", f"{OWN}:frames", "--data_dir", str(tmp_path)]
    folder = run(tmp_path, *code, script="train_snn_fisherinfo", flags=SHORT + TINY_FISHER)
    assert len(lines(folder, "fisher.jsonl")) == 2
    assert read_record(folder / "args.json")["args"]["arch"] == NETWORK[1]

    run(tmp_path, *code, "--resume", "--epochs", "3", script="train_snn_fisherinfo", flags=[])
    assert load_checkpoint(folder / "checkpoint_latest.pt")["epoch"] == 3

    saved = ["--checkpoints", str(folder)]
    measured = run(tmp_path / "m", *code, *saved, script="train_snn_fisherinfo", flags=[])
    assert lines(measured, "fisher.jsonl")[0]["timestep"] == 2
    evaluated = run(tmp_path / "e", *code, *saved, *ATTACK, script="eval_snn_robustness", flags=[])
    clean = lines(evaluated, "robustness.jsonl")[0]
    log = lines(folder, "log.jsonl")
    assert clean["accuracy"] == pytest.approx(log[-1]["prefix_accuracy"])
    search = [*code, "--rounds", "1", "--search_timestep", "1", "--rewind_epoch", "1"]
    pruned = run(tmp_path / "p", *search, script="prune_snn", flags=SHORT)
    assert [line["timestep"] for line in lines(pruned, "pruning.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("train_snn_fisherinfo", ["--resume"]),
        ("train_snn_fisherinfo", ["--checkpoints", "RUN", "--exp_name", "measured"]),
        ("eval_snn_robustness", ["--checkpoints", "RUN"]),
        ("eval_snn_robustness", ["--checkpoints", "BUILT_IN", "RUN"]),
    ],
)
def test_code_is_loaded_only_from_a_file_that_the_command_line_names(
    script, flags, trained, unbroken, tmp_path, monkeypatch
):
    shutil.copytree(trained, tmp_path / "run")
    places = {"RUN": str(tmp_path / "run"), "BUILT_IN": str(unbroken)}
    flags = [places.get(flag, flag) for flag in flags]
    monkeypatch.setattr(user_code, "load_function", None)  # nothing may come to it
    with pytest.raises(BadInput, match=rf"if you trust it, add --arch {OWN}:build"):
        run(tmp_path, *flags, script=script, flags=[])


def test_a_file_that_has_moved_is_loaded_from_where_the_command_line_says(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.copy(OWN, tmp_path / "own.py")
    moved = ["--arch", f"{tmp_path}/own.py:build"]
    run(tmp_path, *moved, "--resume", script="train_snn_fisherinfo", flags=[])
    saved = [*moved, "--checkpoints", str(trained), "--exp_name", "evaluated"]
    run(tmp_path, *saved, *ATTACK, script="eval_snn_robustness", flags=[])
    assert str(tmp_path / "own.py") in user_code.sys.modules


def test_a_users_network_and_one_from_here_are_evaluated_together(trained, tmp_path):
    built_in = run(tmp_path / "built_in", flags=TINY)
    saved = [*NETWORK, "--checkpoints", str(trained), str(built_in)]
    folder = run(tmp_path, *saved, *ATTACK, script="eval_snn_robustness", flags=[])
    clean = [x for x in read_lines(folder / "robustness.jsonl") if x["threat"] == "clean"]
    assert [Path(line["checkpoint"]).parent for line in clean] == [trained, built_in]


def test_a_notebook_names_the_code_of_a_run(trained):
    model, args = load_run(trained, arch=NETWORK[1])
    assert (model.neurons.tau, args.timestep) == (3, 2)
    with pytest.raises(BadInput, match="names --arch"):
        load_run(trained)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("KeepsMembranes", "reset its membranes in forward"),
        ("KeepsDetachedMembranes", "reset its membranes in forward"),
        ("KeepsMembranesInTraining", "reset its membranes in forward"),
        ("WithoutGraph", "has no graph to its parameters"),
        ("of_two_steps", "gives outputs of T = 2: pass --timestep 2"),
        ("of_nine_classes", "gives 9 classes, the data set has 10"),
        ("SamplesFirst", r"must give outputs \[T, N, classes\]; it gives \[8, 3, 10\]"),
        ("three_arrays", "must return a torch.nn.Module, not tuple"),
        ("scripted", "must return a torch.nn.Module, not RecursiveScriptModule"),
        ("needs_depth", "needs 'depth': give it a default"),
        ("fails", r"fails: KeyError: 'layers' \(line \d+\)"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused_before_training(name, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        run(tmp_path, "--arch", f"{OWN}:{name}", "--timestep", "3", flags=SHORT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--width", "0.5"], r"--width has no effect: .* has no parameter width"),
        ([*WITHOUT_LIF, "--compile"], "--compile compiles archs.LIF"),
        (["--arch", "nowhere.py:build"], "there is no file"),
        (["--arch", "vgg55"], r"choose from .* FILE\.py:FUNCTION; did you mean vgg5\?"),
    ],
)
def test_flags_that_do_nothing_for_a_network_are_refused(flags, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        run(tmp_path, *NETWORK, *flags, flags=SHORT)
    assert not (tmp_path / "run").exists()


def test_a_search_needs_a_network_of_any_number_of_timesteps(tmp_path):
    with pytest.raises(BadInput, match=r"give .* a parameter timestep"):
        run(tmp_path, "--arch", f"{OWN}:of_two_steps", script="prune_snn", flags=FAKE)


def test_a_file_with_an_error_is_named_with_its_line(tmp_path):
    (tmp_path / "net.py").write_text("import torch\n\nlayers = missing\n")
    with pytest.raises(BadInput, match=r"does not load: NameError: .*'missing'.* \(line 3\)"):
        run(tmp_path, "--arch", f"{tmp_path}/net.py:build", flags=FAKE)


def test_spikes_are_counted_of_neurons_that_are_not_lif(tmp_path, capsys):
    folder = run(tmp_path, *WITHOUT_LIF, flags=SHORT)
    rates = [line["spike_rate"] for line in lines(folder, "log.jsonl")]
    assert [list(rate) for rate in rates] == [["neurons"]] * 3
    assert all(0 < rate["neurons"] < 1 for rate in rates)
    flags = [*WITHOUT_LIF, "--checkpoints", str(folder), *ATTACK]
    evaluated = run(tmp_path / "e", *flags, script="eval_snn_robustness", flags=[])
    attacked = [x for x in lines(evaluated, "robustness.jsonl") if x["threat"] == "pgd"]
    assert list(attacked[0]["surrogates"]) == ["own"]
    assert "surrogates cannot check for gradient masking" in capsys.readouterr().out


def test_a_network_may_call_its_neurons_step_by_step_and_name_a_layer_module(tmp_path):
    code = ["--arch", f"{OWN}:Wrapped"]
    folder = run(tmp_path, *code, flags=SHORT)
    run(tmp_path, *code, "--resume", "--epochs", "3", flags=[])
    assert load_checkpoint(folder / "checkpoint_latest.pt")["epoch"] == 3
    assert lines(folder, "log.jsonl")[-1]["spike_rate"] == {}  # nothing calls LIF.forward


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three_arrays", "must return x_train, y_train, x_test, y_test"),
        ("no_numbers", "must give arrays of numbers"),
        ("needs_depth", "needs 'depth'"),
    ],
)
def test_what_is_no_data_set_is_refused(name, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        run(tmp_path, "--dataset", f"{OWN}:{name}", flags=TINY)
