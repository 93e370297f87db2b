"""bench.py: what it prints, not how fast."""

import pytest

import bench


def test_fisher_prints_a_row_for_each_way(capsys):
    argv = ["--arch", "fc", "--width", "0.05", "--timestep", "2", "--samples", "3", "--repeats", "1", "--device", "cpu"]
    bench.main(["fisher", *argv])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["P", "estimator", "batch", "released"]
    figures = [row[-4:] for row in rows]
    assert float(figures[0][1]) == 1 and float(figures[1][2]) == 1 and all(float(row[0]) > 0 for row in figures)


def test_memory_counts_what_a_function_takes_and_not_what_was_freed():
    device = bench.pick_device("cpu")
    if bench.memory(device) is None:
        pytest.skip("the system does not count")
    results = bench.compare({"small": lambda: None, "large": lambda: bench.torch.ones(50_000_000)}, 1, device)
    assert results["small"][1] < 20e6 and 190e6 < results["large"][1] < 300e6
