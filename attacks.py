"""Adversarial inputs: the fast gradient sign method and projected gradient descent, in the L-infinity ball of pixels.

An attack changes inputs in [0, 1] by at most eps a pixel, so that the prediction of a prefix goes wrong. It knows the
whole network and every timestep, encoding and normalisation included: `model` maps pixels to outputs. An image is
changed once for all timesteps, frames [N, T, ...] each for itself.

A spiking network has no gradient but its surrogate's, which is the attacker's to choose (`surrogates_of`): a network
can look robust because the gradient that it was trained with says little about it.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from archs.neuron import LIF, PEAK_ONE_ALPHA

METHODS = ("fgsm", "pgd")
STEPS_PAST = 2.5  # PGD's steps together reach this many times eps: any point of the ball from any start


def margin(outputs, y):
    """Of outputs [N, classes], the largest of a wrong class minus that of class y [N]; above 0 the prediction errs."""
    right = F.one_hot(y, outputs.shape[1]).bool()
    return outputs.masked_fill(right, -torch.inf).amax(1) - outputs.gather(1, y.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class Attack:
    """Inputs x' in [0, 1] with |x' - x| <= eps that make the prediction after `prefix` steps (without it, all) err.

        x_0 = x + u,  u uniform in [-eps, eps] with `random_start`, else 0
        x_k = clip(x_{k-1} + step_size sign(grad CE_t(x_{k-1}, y))),  k = 1..steps, clip to the ball and to [0, 1]

    from `restarts` starts. Given back is, sample by sample, the point with the largest `margin` among all of them and
    x itself: an attack never helps, nor do more steps of one size. (Madry et al. 2018, "Towards Deep Learning Models
    Resistant to Adversarial Attacks"; `steps` 0 is a random search.)
    """

    eps: float
    steps: int
    step_size: float
    random_start: bool = True
    restarts: int = 1
    prefix: int | None = None

    def __call__(self, model, x, y, size=None, part=slice(None)):
        """model: pixels [N, ...] -> outputs [T, N, classes]; x pixels in [0, 1]; y labels [N]. Parameters get no
        gradient. BatchNorm should be in eval mode: else the attack counts in its running statistics. Of a batch of
        `size` samples, x may be the `part`: it starts where it would within the whole batch."""
        low, high = (x - self.eps).clamp(min=0), (x + self.eps).clamp(max=1)
        with torch.no_grad():
            best, best_margin = x, margin(self.predict(model, x), y)
        for _ in range(self.restarts):
            at = x
            if self.random_start:
                u = torch.rand(size or len(x), *x.shape[1:], device=x.device, dtype=x.dtype)[part]
                at = torch.minimum(torch.maximum(x + self.eps * (2 * u - 1), low), high)
            for step in range(self.steps + 1):
                with torch.set_grad_enabled(step < self.steps):
                    at = at.detach().requires_grad_(step < self.steps)
                    outputs = self.predict(model, at)
                    if step < self.steps:
                        (gradient,) = torch.autograd.grad(F.cross_entropy(outputs, y, reduction="sum"), at)
                found = margin(outputs.detach(), y)
                better = found > best_margin
                best_margin = torch.where(better, found, best_margin)
                best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), at.detach(), best)
                if step < self.steps:
                    at = torch.minimum(torch.maximum(at.detach() + self.step_size * gradient.sign(), low), high)
        return best

    def predict(self, model, x):
        return model(x)[: self.prefix].float().mean(0)  # (N, classes)


def fgsm(eps, prefix=None):
    """One step of eps from x itself (Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples")."""
    return Attack(eps, 1, eps, random_start=False, prefix=prefix)


def make(args, method, eps):
    """The attack that `args` describe; eps in 1/255."""
    if method == "fgsm":
        return fgsm(eps / 255, args.attack_prefix)
    size = args.attack_step_size or STEPS_PAST * eps / args.attack_steps
    start = not args.no_random_start
    return Attack(eps / 255, args.attack_steps, size / 255, start, args.attack_restarts, args.attack_prefix)


def random_search(attack, tries):
    """What `tries` random points of the ball of `attack` do, without a gradient."""
    return replace(attack, steps=0, random_start=True, restarts=tries)


@contextmanager
def surrogates_of(model, surrogate):
    """Within, every LIF layer of `model` has that surrogate gradient: "own", its own, or name:alpha, "atan:0.5" say."""
    layers = [module for module in model.modules() if isinstance(module, LIF)]
    own = [(lif.surrogate, lif.surrogate_alpha) for lif in layers]
    for lif in layers if surrogate != "own" else ():
        lif.surrogate, lif.surrogate_alpha = parse_surrogate(surrogate)
    try:
        yield
    finally:
        for lif, before in zip(layers, own):
            lif.surrogate, lif.surrogate_alpha = before


def parse_surrogate(text):
    """ "atan:0.5" -> ("atan", 0.5), "atan" -> ("atan", the alpha at which its peak is 1). Raises ValueError."""
    name, _, alpha = text.partition(":")
    if name not in PEAK_ONE_ALPHA or (alpha and not 0 < float(alpha) < float("inf")):
        raise ValueError(f"unknown surrogate {text!r}: own, or one of {', '.join(PEAK_ONE_ALPHA)}, with :alpha or not")
    return name, float(alpha) if alpha else PEAK_ONE_ALPHA[name]
