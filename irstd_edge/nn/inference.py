"""From the training form of a network to its inference form."""

from __future__ import annotations

import copy

from torch import nn


def freeze(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode in which every layer that has a ``freeze()`` is replaced by what that returns.

    Outputs are the same to the last bit; the frozen layers hold constants only and export as single nodes.
    The given network is left as it is.
    """
    network = copy.deepcopy(network).eval()
    if hasattr(network, "freeze"):
        return network.freeze().eval()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if hasattr(child, "freeze"):
                setattr(module, name, child.freeze().eval())
    return network
