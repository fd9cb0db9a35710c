"""The description of a network against the network."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfed.networks.classifier import ImageClassifier
from ppfed.networks.config import AdaptationKind, Backbone, NetworkConfig, count_weights
from ppfed.networks.state import network_layout


@settings(deadline=None, max_examples=60)
@given(
    classes=st.integers(2, 50),
    height=st.sampled_from([8, 12, 30, 92, 96]),
    width=st.sampled_from([8, 92, 98, 100]),
    channels=st.sampled_from([1, 3]),
    adaptation=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    base_maps=st.integers(1, 6),
    backbone=st.sampled_from(Backbone),
    kind=st.sampled_from(AdaptationKind),
)
def test_weights_are_counted_as_they_are_built(
    classes: int,
    height: int,
    width: int,
    channels: int,
    adaptation: tuple[int, ...],
    base_maps: int,
    backbone: Backbone,
    kind: AdaptationKind,
) -> None:
    config = NetworkConfig(
        classes, height, width, channels, adaptation, base_maps, adaptation_kind=kind, backbone=backbone
    )
    try:
        with torch.device("meta"):
            network = ImageClassifier(config)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            count_weights(config)
        return
    assert count_weights(config) == sum(math.prod(shape) for shape in network_layout(network).values())
