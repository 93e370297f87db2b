"""Adversarial inputs: FGSM and PGD in the L-infinity ball of pixels.

An attack knows the whole network: `model` maps pixels to outputs, with encoding and normalisation.
It changes an image once for all timesteps, but each frame by itself. The attacker chooses the
surrogate gradient, because a network can look robust when its own gradient is misleading.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from archs.neuron import LIF, PEAK_ONE_ALPHA

METHODS = ("fgsm", "pgd")
PATH_LENGTH = 2.5  # steps x step size of PGD, in eps: PGD can reach every point of the ball


def margin(outputs, y):
    """The largest output [N, classes] of a wrong class minus that of class y [N]."""
    right = F.one_hot(y, outputs.shape[1]).bool()
    wrong = outputs.masked_fill(right, -torch.inf).amax(1)
    return wrong - outputs.gather(1, y.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class Attack:
    """Search pixels x' in [0, 1], |x' - x| <= eps, whose prediction after `prefix` steps is wrong.

        x_0 = x + u, u uniform in [-eps, eps]     x itself without `random_start`
        x_k = clip(x_{k-1} + step_size sign(grad CE(x_{k-1}, y))), k = 1..steps

    clip keeps x_k in the ball and in [0, 1] (Madry et al. 2018, arXiv:1706.06083). There are
    `restarts` starts. The attack returns the point with the largest `margin`, x included. Without
    `prefix` it attacks the prediction after all timesteps.
    """

    eps: float
    steps: int
    step_size: float
    random_start: bool = True
    restarts: int = 1
    prefix: int | None = None

    @torch.no_grad()
    def __call__(self, model, x, y):
        """Attack the pixels x. model: pixels [N, ...] -> outputs [T, N, classes], with BatchNorm in
        eval mode; y: labels [N]. Returns the new pixels. Parameters get no gradient."""
        low, high = (x - self.eps).clamp(min=0), (x + self.eps).clamp(max=1)
        strongest, highest = x, margin(self.predict(model, x), y)
        for _ in range(self.restarts):
            point = x
            if self.random_start:
                u = 2 * torch.rand_like(x) - 1
                point = (x + self.eps * u).clamp(low, high)
            for step in range(self.steps + 1):
                moves = step < self.steps  # the last point is only looked at
                with torch.set_grad_enabled(moves):
                    point = point.detach().requires_grad_(moves)
                    outputs = self.predict(model, point)
                    loss = F.cross_entropy(outputs, y, reduction="sum")
                reached = margin(outputs, y)
                better = reached > highest
                highest = torch.where(better, reached, highest)
                by_sample = better.view(-1, *(1 for _ in x.shape[1:]))
                strongest = torch.where(by_sample, point, strongest)
                if moves:
                    (gradient,) = torch.autograd.grad(loss, point)
                    point = (point + self.step_size * gradient.sign()).clamp(low, high)
        return strongest

    def predict(self, model, x):
        """The outputs under attack, [N, classes]."""
        outputs = model(x)[: self.prefix]
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32)).mean(0)


def fgsm(eps, prefix=None):
    """One step of eps from x itself (Goodfellow et al. 2015, arXiv:1412.6572)."""
    return Attack(eps, 1, eps, random_start=False, prefix=prefix)


def make(args, method, eps):
    """Make the attack that `args` describe; eps in 1/255."""
    if method == "fgsm":
        return fgsm(eps / 255, args.attack_prefix)
    step = args.attack_step_size or PATH_LENGTH * eps / args.attack_steps
    return Attack(eps / 255, args.attack_steps, step / 255, prefix=args.attack_prefix)


def with_surrogate(model, surrogate):
    """A copy of the network whose LIF layers have the surrogate gradient name:alpha ("atan:0.5")
    or name, with peak 1. For "own", the network itself."""
    if surrogate == "own":
        return model
    model = copy.deepcopy(model)
    name, _, alpha = surrogate.partition(":")
    for module in model.modules():
        if isinstance(module, LIF):
            module.surrogate, module.surrogate_alpha = name, float(alpha or PEAK_ONE_ALPHA[name])
    return model
