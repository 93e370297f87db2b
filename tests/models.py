"""Networks of many kinds, and how what is measured of them is compared with the definition."""

import warnings

import torch
from torch import nn

import archs
from fisher import one_by_one, temporal_fisher


def settle(model):
    """Eval mode, with running statistics that are not the trivial ones."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.1, 0.5)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return model.eval()


def network(arch="vgg5", timestep=3, size=8, **options):
    shape = {"num_classes": 4, "in_channels": 2, "image_size": size, "width": 0.1}
    return settle(archs.build(arch, timestep=timestep, **shape | options))


def assert_same(norms, expected, tolerance=1e-9):
    assert list(norms) == list(expected)
    for name, values in expected.items():
        atol = tolerance * 1e-3
        torch.testing.assert_close(norms[name], values, rtol=tolerance, atol=atol, msg=name)
    assert sum(values.sum() for values in expected.values()) > 0


def assert_exact(model, x, y, slow=(), tolerance=1e-9, **options):
    """`temporal_fisher` gives what the definition gives; only the parameters `slow` are measured by
    it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        norms = temporal_fisher(model, x, y, **options)
    prefix = options.get("prefix", "cumulative")
    assert_same(norms, one_by_one(model, x, y, prefix=prefix), tolerance)
    words = " ".join(str(warning.message) for warning in caught).replace(",", ";").split()
    assert [name for name in norms if f"{name};" in words] == list(slow)


class Readout(nn.Linear):
    """A linear read-out of frames [N, T, features], without neurons."""

    def forward(self, x):
        return super().forward(x.transpose(0, 1))


class Loop(nn.Module):
    """Layers of torch in a loop over t, membranes as variables, as most SNN code is written."""

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
            s = torch.relu_(self.norm(self.down(s)))  # in place on the output of a layer
            v2 = 0.5 * v2 + self.layer_norm(self.mix(s.flatten(1)))
            outputs.append(self.readout(self.again(self.again(torch.tanh(v2)))))
        return torch.stack(outputs)


class Tokens(nn.Module):
    """A transformer with samples first: time folded behind the samples, [N T, tokens, features]."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv1d(2, 6, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm1d(6)
        self.position = nn.Parameter(torch.randn(4, 6))
        self.q, self.k, self.v = (nn.Linear(6, 6, bias=b) for b in (True, False, True))
        self.layer_norm = nn.LayerNorm((4, 6))
        self.scale = nn.Parameter(torch.rand(6))
        self.readout = nn.Linear(6, 3)

    def forward(self, x):  # (N, T, 2, 8)
        z = self.norm(self.embed(x.flatten(0, 1))).transpose(1, 2)  # (N T, 4, 6)
        z = z + self.position
        attention = (self.q(z) @ self.k(z).mT).softmax(2) @ self.v(z.flatten(0, 1)).view_as(z)
        z = self.layer_norm(z + self.scale * attention)
        return self.readout(z.mean(1)).unflatten(0, x.shape[:2]).transpose(0, 1)


class Function(nn.Module):
    """A function of the module and frames [T, N, 5] -> [T, N, 6], and a read-out. The module has a
    layer a and other `layers`."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function, self.a, self.r = function, nn.Linear(5, 6), nn.Linear(6, 3)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.eval()

    def forward(self, x):
        return self.r(self.function(self, x.transpose(0, 1)))
