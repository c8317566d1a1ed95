"""Statistics of batch normalisation, computed anew for a slice of an elastic network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from objectives.compression.training_data import Outputs
from objectives.training_rows import Inputs


def recompute_statistics(model: nn.Module, batches: Iterable[Inputs], outputs: Outputs) -> None:
    """Set the running statistics of batch normalisations, in place, to the mean over these batches.

    The statistics of one width are not those of another (Yu and Huang, ICCV 2019, section 3.3). All other modules run
    as in serving.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for inputs in batches:
            outputs(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
