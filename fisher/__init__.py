"""Temporal Fisher information of a spiking network, exact per sample. Needs only torch.

    from fisher import temporal_fisher, measure

definition.py has the equations and computes them one sample at a time. fast.py computes the same
numbers for all samples of a batch at once. measure.py makes a curve with its error bars.
"""

from fisher.definition import (
    PREFIXES,
    RELEASE_BATCH,
    batch_means,
    centroid,
    centroid_interval,
    draw_labels,
    one_by_one,
    prefix_losses,
    prefix_outputs,
    prefix_residuals,
    quotient,
)
from fisher.fast import TemporalFisher, temporal_fisher
from fisher.measure import Measurement, measure
