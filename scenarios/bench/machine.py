"""What the benchmark ran on: figures mean nothing without it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from ppfed.cores import cores
from ppfed.model_folder import installed_versions

_CPUINFO = Path("/proc/cpuinfo")


def machine(device: torch.device) -> dict[str, str]:
    """Describe processor, GPU and versions, in words that name no host and no user."""
    described = {
        "processor": _processor(),
        "cores": str(cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
    return described | {name: str(version) for name, version in installed_versions().items()}


def _processor() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"
