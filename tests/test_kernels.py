"""The law of the gain: where it is exact, and what a spike does."""

import torch

import archs
from claims.kernels import factors, kernels, sums
from fisher import one_by_one


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
