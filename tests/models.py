"""Models of many kinds, and how what is measured of them is compared with one sample at a time."""

import warnings

import torch
from torch import nn

from fisher import one_by_one, temporal_fisher


def settle(model):
    """Eval mode, with running statistics that are not the trivial ones."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.1, 0.5)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return model.eval()


def assert_same(fast, slow, tolerance=1e-9):
    assert fast.keys() == slow.keys()
    for name in slow:
        assert fast[name].shape == slow[name].shape
        torch.testing.assert_close(
            fast[name], slow[name], rtol=tolerance, atol=tolerance * 1e-3, msg=name
        )
    assert sum(value.sum() for value in slow.values()) > 0


def assert_exact_and_fast(model, x, y, **options):
    """The same as one sample at a time, and not by way of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = temporal_fisher(model, x, y, **options)
    assert_same(fast, one_by_one(model, x, y))


class Steps(nn.Module):
    """A linear read-out of frames [N, T, features], without neurons."""

    def __init__(self):
        super().__init__()
        self.readout = nn.Linear(5, 3)

    def forward(self, x):
        return self.readout(x.transpose(0, 1))


class Loop(nn.Module):
    """Written as most SNN code is: layers of torch in a loop over t, membranes as variables."""

    def __init__(self, timestep=3):
        super().__init__()
        self.timestep = timestep
        self.conv = nn.Conv2d(2, 4, 3, padding="same", groups=2)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, padding_mode="circular")
        self.norm = nn.GroupNorm(2, 6)
        self.mix = nn.Linear(6 * 2 * 2, 7)
        self.layer_norm = nn.LayerNorm(7)
        self.again = nn.Linear(7, 7)
        self.readout = nn.Linear(7, 3)

    def forward(self, x):
        v1 = v2 = 0
        outputs = []
        for _ in range(self.timestep):
            v1 = 0.5 * v1 + self.conv(x)
            s = torch.sigmoid(4 * (v1 - 0.5))
            s = torch.relu_(self.norm(self.down(s)))  # in place on what a noted layer gave
            v2 = 0.5 * v2 + self.layer_norm(self.mix(s.flatten(1)))
            outputs.append(self.readout(self.again(self.again(torch.tanh(v2)))))
        return torch.stack(outputs)


class SamplesFirst(nn.Module):
    """A transformer: time folded behind the samples [N T, ...], tokens in rows of linear layers, a 1-d convolution."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv1d(2, 6, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm1d(6)
        self.q, self.k, self.v = (nn.Linear(6, 6, bias=b) for b in (True, False, True))
        self.layer_norm = nn.LayerNorm((4, 6))
        self.readout = nn.Linear(6, 3)

    def forward(self, x):  # (N, T, 2, 8)
        n, t = x.shape[:2]
        z = self.norm(self.embed(x.flatten(0, 1))).transpose(1, 2)  # (N T, 4, 6)
        z = self.layer_norm(
            z + (self.q(z) @ self.k(z).mT).softmax(2) @ self.v(z.flatten(0, 1)).view_as(z)
        )
        return self.readout(z.mean(1)).view(n, t, 3).transpose(0, 1)


class Function(nn.Module):
    """A model from a function of itself and its input [N, T, 5], with the layers it needs."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function, self.r = function, nn.Linear(6, 3)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.r(self.function(self, x.transpose(0, 1)))  # (T, N, 3)
