"""Squared norms of every sample's gradient, from the signals of all calls."""

import torch

from fisher.definition import at_least_single
from fisher.gram import Gram, pays
from fisher.uses import Weight


class Norms:
    """Squared gradient norms of one chunk, {name: [T, N]}, from the signals of each t in turn.

    A `made` source is computed from parameters, such as sigmoid(w). The norms of these parameters
    need gradients, so they have no Gram matrix.
    """

    def __init__(self, recorder, calls, names, losses):
        self.recorder = recorder
        self.by_name = {name: at_least_single(torch.zeros_like(losses)) for name in names}
        self.uses = {}  # source: [(number of the call, use, layout), ...]
        for number, call in enumerate(calls):
            for use in call.uses:
                if recorder.names[id(use.source)] & names:
                    self.uses.setdefault(id(use.source), []).append((number, use, call.layout))
        self.made = [source for source in self.uses if source not in recorder.parameters]
        self.made_names = names & set().union(*(recorder.names[source] for source in self.made))
        self.grams = {}  # of the parameters that are alone in their source
        for source, uses in self.uses.items():
            weights = [(use, layout) for _, use, layout in uses if isinstance(use, Weight)]
            alone = not recorder.names[source] & self.made_names
            if alone and len(weights) == len(uses) and pays(weights, len(losses)):
                self.grams[source] = Gram(weights)

    def add(self, t, signals):
        """Add the norms of prefix t, from the signals of all calls."""
        gradients = {}
        for source, uses in self.uses.items():
            if source in self.grams:
                squares = self.grams[source].squared_norms(signal_columns(signals, uses))
                norms = self.by_name[self.recorder.parameters[source]]
                norms[t - 1] = squares.view(norms.shape[1], -1).sum(1)
            else:
                gradients[source] = sum(
                    use.gradient(signals[call], layout) for call, use, layout in uses
                )
        for name, gradient in self.by_parameter(gradients).items():
            norms = torch.linalg.vector_norm(gradient.reshape(len(gradient), -1), dim=1)
            self.by_name[name][t - 1] = norms.square()

    def by_parameter(self, gradients):
        """Gradients by sources {id: [N, ...]} -> gradients by parameters {name: [N, ...]}."""
        sources, parameters = self.recorder.sources, self.recorder.parameters
        total = {parameters[source]: gradients[source] for source in gradients.keys() & parameters}
        if not self.made:
            return total
        through = gradients_by_sample(
            [sources[source] for source in self.made],
            [self.recorder.named[name] for name in self.made_names],
            [gradients[source].to(sources[source].dtype) for source in self.made],
        )
        for name, gradient in zip(self.made_names, through):
            if gradient is not None:
                total[name] = total.get(name, 0) + gradient
        return total


def gradients_by_sample(outputs, inputs, signals):
    """The gradients by each input, [N, ...], from those by each output, [N, ...]. None for an input
    that is not used, for example b in a.expand_as(b)."""
    options = {"retain_graph": True, "allow_unused": True}
    try:
        return torch.autograd.grad(outputs, inputs, signals, is_grads_batched=True, **options)
    except RuntimeError:  # torch.vmap has no rule for an operation
        samples = [torch.autograd.grad(outputs, inputs, row, **options) for row in zip(*signals)]
    gradients = []
    for pieces in zip(*samples):  # of one input
        used = pieces[0] is not None
        gradients.append(torch.stack([piece.to_dense() for piece in pieces]) if used else None)
    return gradients


def signal_columns(signals, uses):
    """Signals of all uses of a weight, one after another: [N groups, channels / groups,
    positions]."""
    columns = []
    for call, use, layout in uses:
        d = signals[call]
        if len(uses) > 1 and len(d) < len(use.a):
            d = torch.cat([d, d.new_zeros(len(use.a) - len(d), *d.shape[1:])])
        columns.append(use.columns(d, layout))
    return torch.cat(columns, 2)
