"""The part of a network that travels and is stored: parameters and batch-norm statistics, by name.

``num_batches_tracked`` is no part of it: batch norm's momentum is fixed, so nothing reads the counter, and an integer
cannot be averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppfed.errors import ModelError

_COUNTER = "num_batches_tracked"
_VARIANCE = "running_var"
_STATISTICS = ("running_mean", _VARIANCE)
_SHOWN_CHARACTERS = 80


def network_state(network: nn.Module) -> dict[str, Tensor]:
    """Copy the state of a network.

    Returns
    -------
    dict of str to float32 tensor
        On the CPU, contiguous, in the order of ``network.state_dict()``; it shares no memory with the network.
    """
    return {
        name: tensor.to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in _entries(network).items()
    }


Layout = Mapping[str, tuple[int, ...]]
"""Shapes of a network's state by name, in the order in which it is laid out flat."""


def network_layout(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a network's state, in order."""
    return {name: tuple(tensor.shape) for name, tensor in _entries(network).items()}


def flatten(state: Mapping[str, Tensor]) -> Tensor:
    """Lay a state out as one vector, (P,): a message of one array is many times faster than one of a hundred."""
    return torch.cat([tensor.reshape(-1) for tensor in state.values()]) if state else torch.empty(0)


def is_statistic(name: str) -> bool:
    """Whether a part of the state is measured by batch norm, and not trained."""
    return name.rpartition(".")[2] in _STATISTICS


def is_variance(name: str) -> bool:
    """Whether a part of the state is a variance that batch norm measured."""
    return name.rpartition(".")[2] == _VARIANCE


def unflatten(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Undo ``flatten``.

    Raises
    ------
    ModelError
        If the vector is not as long as the layout.
    """
    sizes = [math.prod(shape) for shape in layout.values()]
    if flat.shape != (sum(sizes),):
        raise _misfit(f"there are {flat.numel()} values, not {sum(sizes)}")
    parts = torch.split(flat, sizes)
    return {name: part.reshape(shape) for (name, shape), part in zip(layout.items(), parts, strict=True)}


def load_network_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into a network. It may come from anyone: all of it is checked before any of it is used.

    Parameters
    ----------
    network : nn.Module
        On any device; its memory format stays as it is.
    state : mapping of str to float32 tensor
        What ``network_state`` returned for a network of the same shape.

    Raises
    ------
    ModelError
        Naming the first misfit: a missing or unknown name, another shape or dtype, a value that is not finite, a
        negative variance. The network is unchanged.
    """
    check_network_state(network, state)
    with torch.no_grad():
        for name, own in _entries(network).items():
            own.copy_(state[name])


def check_network_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check whether a state fits a network, which may be on the ``meta`` device.

    Raises
    ------
    ModelError
        As ``load_network_state`` does.
    """
    entries = _entries(network)
    for name, own in entries.items():
        _check(name, own, state)
    unknown = next((name for name in state if name not in entries), None)
    if unknown is not None:
        raise _misfit(f"the network has nothing named {unknown[:_SHOWN_CHARACTERS]!a}")


def _entries(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if name.rpartition(".")[2] != _COUNTER}


def _check(name: str, own: Tensor, state: Mapping[str, Tensor]) -> None:
    if name not in state:
        raise _misfit(f"{name} is missing")
    tensor = state[name]
    if tensor.shape != own.shape:
        raise _misfit(f"{name} has shape {tuple(tensor.shape)}, not {tuple(own.shape)}")
    if tensor.dtype != torch.float32:
        raise _misfit(f"{name} is {tensor.dtype}, not torch.float32")
    if not bool(torch.isfinite(tensor).all()):
        raise _misfit(f"{name} holds values that are not finite")
    if is_variance(name) and bool((tensor < 0).any()):
        raise _misfit(f"{name} holds a negative variance")


def _misfit(what: str) -> ModelError:
    return ModelError(
        f"the weights do not fit the network: {what}",
        hint="Use weights of this federation's network, made by the same version of ppfed.",
    )
