"""torchvision, the reference for what is ours."""

from __future__ import annotations

from types import ModuleType

import pytest

from scenarios.bench.torchvision_import import import_torchvision


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """Import torchvision, if need be without its compiled part."""
    return import_torchvision()
