"""Adversarial inputs: FGSM and PGD in the L-infinity ball of pixels.

An attack changes pixels by at most eps, so that the prediction of a prefix goes wrong. It knows the
whole network: `model` maps pixels to outputs, encoding and normalisation included. An image is
changed once for all timesteps, frames each for itself. The surrogate gradient is the attacker's to
choose (`surrogates_of`): a network can look robust because its own says little about it.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from archs.neuron import LIF, PEAK_ONE_ALPHA

METHODS = ("fgsm", "pgd")
STEPS_PAST = 2.5  # the steps of PGD together, in eps: any point of the ball from any start


def margin(outputs, y):
    """The largest output [N, classes] of a wrong class minus that of class y [N]: above 0 the
    prediction is wrong."""
    right = F.one_hot(y, outputs.shape[1]).bool()
    wrong = outputs.masked_fill(right, -torch.inf).amax(1)
    return wrong - outputs.gather(1, y.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class Attack:
    """Pixels x' in [0, 1] with |x' - x| <= eps that make the prediction after `prefix` steps wrong.

        x_0 = x + u, u uniform in [-eps, eps]     x itself without `random_start`
        x_k = clip(x_{k-1} + step_size sign(grad CE(x_{k-1}, y))), k = 1..steps

    clipped to the ball and to [0, 1] (Madry et al. 2018, "Towards Deep Learning Models Resistant to
    Adversarial Attacks"), from `restarts` starts. The attack returns the strongest point it found,
    x included, by `margin`. Without `prefix` it attacks the prediction after all timesteps.
    """

    eps: float
    steps: int
    step_size: float
    random_start: bool = True
    restarts: int = 1
    prefix: int | None = None

    def __call__(self, model, x, y):
        """model: pixels [N, ...] -> outputs [T, N, classes]; x pixels, y labels [N]. Parameters get
        no gradient. BatchNorm should be in eval mode, or it counts the attempts."""
        low, high = (x - self.eps).clamp(min=0), (x + self.eps).clamp(max=1)
        shape = (-1, *[1] * (x.dim() - 1))
        with torch.no_grad():
            strongest, highest = x, margin(self.predict(model, x), y)
        for _ in range(self.restarts):
            point = x
            if self.random_start:
                u = 2 * torch.rand_like(x) - 1
                point = torch.minimum(torch.maximum(x + self.eps * u, low), high)
            for step in range(self.steps + 1):
                point = point.detach().requires_grad_(step < self.steps)
                with torch.set_grad_enabled(step < self.steps):
                    outputs = self.predict(model, point)
                reached = margin(outputs.detach(), y)
                better = reached > highest
                highest = torch.where(better, reached, highest)
                strongest = torch.where(better.view(shape), point.detach(), strongest)
                if step < self.steps:
                    loss = F.cross_entropy(outputs, y, reduction="sum")
                    (gradient,) = torch.autograd.grad(loss, point)
                    point = point.detach() + self.step_size * gradient.sign()
                    point = torch.minimum(torch.maximum(point, low), high)
        return strongest

    def predict(self, model, x):
        """The outputs that are attacked, [N, classes]."""
        outputs = model(x)[: self.prefix]
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32)).mean(0)


def fgsm(eps, prefix=None):
    """One step of eps from x itself (Goodfellow et al. 2015, "Explaining and Harnessing Adversarial
    Examples")."""
    return Attack(eps, 1, eps, random_start=False, prefix=prefix)


def random_search(attack, tries):
    """What `tries` random points of the ball of `attack` do, without a gradient."""
    return replace(attack, steps=0, random_start=True, restarts=tries)


def make(args, method, eps):
    """The attack that `args` describe; eps in 1/255."""
    if method == "fgsm":
        return fgsm(eps / 255, args.attack_prefix)
    step = args.attack_step_size or STEPS_PAST * eps / args.attack_steps
    return Attack(eps / 255, args.attack_steps, step / 255, prefix=args.attack_prefix)


@contextmanager
def surrogates_of(model, surrogate):
    """Within, every LIF layer has that surrogate: "own", its own, or name:alpha ("atan:0.5")."""
    layers = [module for module in model.modules() if isinstance(module, LIF)]
    before = [(lif.surrogate, lif.surrogate_alpha) for lif in layers]
    try:
        for lif in layers:
            if surrogate != "own":
                lif.surrogate, lif.surrogate_alpha = parse_surrogate(surrogate)
        yield
    finally:
        for lif, names in zip(layers, before):
            lif.surrogate, lif.surrogate_alpha = names


def parse_surrogate(text):
    """ "atan:0.5" -> ("atan", 0.5), "atan" -> ("atan", its alpha of peak 1). Raises ValueError."""
    name, _, alpha = text.partition(":")
    if name not in PEAK_ONE_ALPHA or (alpha and not 0 < float(alpha) < float("inf")):
        known = ", ".join(PEAK_ONE_ALPHA)
        raise ValueError(f"unknown surrogate {text!r}: own, or one of {known}, with :alpha or not")
    return name, float(alpha) if alpha else PEAK_ONE_ALPHA[name]
