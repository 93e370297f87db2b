"""bench.py: what it prints, not how fast."""

import contextlib

import pytest
import torch

import bench


def test_fisher_prints_a_row_for_each_way(capsys):
    argv = [
        "--arch",
        "fc",
        "--width",
        "0.05",
        "--timestep",
        "2",
        "--samples",
        "3",
        "--repeats",
        "1",
        "--device",
        "cpu",
    ]
    bench.main(["fisher", *argv])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["P", "estimator", "examination", "batch", "released"]
    figures = [row[-4:] for row in rows]
    assert (
        float(figures[0][1]) == 1
        and float(figures[1][2]) == 1
        and all(float(row[0]) > 0 for row in figures)
    )


@pytest.mark.parametrize("what", ["train", "neuron"])
def test_the_other_tables_have_a_row_for_each_way(what, capsys, monkeypatch):
    monkeypatch.setattr(bench, "foreign_neurons", lambda: {"foreign": lambda: bench.archs.LIF()})
    argv = ["--arch", "fc", "--width", "0.1", "--timestep", "2", "--samples", "3", "--repeats", "1"]
    bench.main([what, *argv, "--device", "cpu"])
    shown = capsys.readouterr().out
    names = (
        ["float32", "bf16", "bf16, checkpointed", "float32, direct", "step by step"]
        if what == "train"
        else ["one call", "one call, bf16", "loop"]
    )
    assert all(f"\n{name} " in shown for name in [*names, "foreign"])


@pytest.mark.parametrize("arch", ["resnet20", "vgg5", "fc"])
def test_the_step_by_step_network_is_the_same_network(arch):
    model = bench.archs.build(arch, timestep=3, num_classes=4, width=0.1).double()
    x = bench.torch.randn(4, 3, 32, 32).double()
    plain = bench.StepByStep(model)
    bench.torch.testing.assert_close(plain(x), model(x))


def test_memory_counts_what_a_function_takes_and_not_what_was_freed():
    device = bench.pick_device("cpu")
    if bench.memory(device) is None:
        pytest.skip("the system does not count")
    results = bench.compare(
        {"small": lambda: None, "large": lambda: bench.torch.ones(50_000_000)}, 1, device
    )
    assert results["small"][1] < 20e6 and 190e6 < results["large"][1] < 300e6


def test_a_table_has_milliseconds_images_and_ratios_to_the_other_way(capsys):
    bench.table(
        {"slow": ([0.4, 0.2, 0.2], 3e6), "fast": ([0.1, 0.1, 0.1], None)}, "ms a step", ["fast"], 8
    )
    slow, fast = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert slow == ["slow", "200.00", "40.0", "2.00", "3"] and fast == [
        "fast",
        "100.00",
        "80.0",
        "1.00",
        "-",
    ]


def test_the_warm_up_is_not_among_the_repeats():
    calls = []
    found = bench.compare({"a": lambda: calls.append(0)}, 3, torch.device("cpu"))
    assert len(found["a"][0]) == 3 and len(calls) == 4


def test_time_is_a_sample_s_of_the_samples_that_a_way_took(capsys, monkeypatch):
    ways = ("P", "estimator", "examination", "batch of one", "released")
    monkeypatch.setattr(
        bench, "compare", lambda ways, repeats, device: {name: ([0.6], None) for name in ways}
    )
    bench.main(
        [
            "fisher",
            "--arch",
            "fc",
            "--width",
            "0.05",
            "--timestep",
            "2",
            "--samples",
            "6",
            "--device",
            "cpu",
        ]
    )
    rows = capsys.readouterr().out.splitlines()[3:]
    assert [float(row[24:].split()[0]) for row in rows] == [100, 100, 600, 300, 100] and len(
        ways
    ) == len(rows)


def test_the_rows_of_a_training_step_are_of_the_precision_and_convolutions_they_name(monkeypatch):
    seen, plain, current, real = {}, [], [], torch.autocast
    monkeypatch.setattr(
        bench, "direct", lambda: plain.append(current[-1]) or contextlib.nullcontext()
    )
    monkeypatch.setattr(bench, "foreign_neurons", dict)

    def compare(ways, *_):
        for name in [name for name in ways if "compiled" not in name]:
            monkeypatch.setattr(
                torch,
                "autocast",
                lambda *a, name=name, **o: seen.update({name: o}) or real(*a, **o),
            )
            current.append(name)
            ways[name]()
        raise InterruptedError

    monkeypatch.setattr(bench, "compare", compare)
    with pytest.raises(InterruptedError):
        bench.main(
            [
                "train",
                "--arch",
                "fc",
                "--width",
                "0.1",
                "--timestep",
                "2",
                "--samples",
                "3",
                "--device",
                "cpu",
            ]
        )
    assert {name for name, options in seen.items() if options["enabled"]} == {
        "bf16",
        "bf16, checkpointed",
    }
    assert plain == ["float32, direct", "step by step"]
