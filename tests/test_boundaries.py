"""What may import what, seen from outside: each check in a process of its own, where nothing is loaded yet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def loaded_after(code: str) -> set[str]:
    """Modules that are loaded after ``code`` ran in a fresh interpreter."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def within(package: str, modules: set[str]) -> list[str]:
    return sorted(name for name in modules if name == package or name.startswith(f"{package}."))


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def test_the_coordinator_loads_neither_keys_nor_clients() -> None:
    # The app bundle is imported by Flower from a copy of its own: as a package of another name.
    names = [name for name in modules_of("coordinator") if ".bundle." not in name]
    assert "coordinator.server_app" in names
    modules = loaded_after("\n".join(f"import {name}" for name in names))
    assert set(names) <= modules
    assert within("ppfed.keys", modules) == []
    assert within("clients", modules) == []
    assert within("ppfed.ciphers.negative_positive", modules) == []


@pytest.mark.parametrize(
    "module", ["coordinator.cli", "coordinator.start", "coordinator.display", "coordinator.server_app"]
)
def test_a_coordinator_that_waits_for_owners_or_receives_images_loads_no_torch(module: str) -> None:
    """It is 190 MiB in each of the two processes."""
    modules = loaded_after(f"import {module}\nimport ppfed.leakage.reference")
    assert within("torch", modules) == []


def test_the_check_can_fail() -> None:
    assert within("ppfed.keys", loaded_after("import ppfed.ciphers.registry"))
    assert within("torch", loaded_after("import coordinator.training_run"))


def test_an_owner_does_not_load_the_coordinator() -> None:
    modules = loaded_after("\n".join(f"import {name}" for name in modules_of("clients")))
    assert within("coordinator", modules) == []


@pytest.mark.parametrize("module", ["clients.join", "clients.flower_executor", "scenarios.simulated.flower_simulation"])
def test_what_answers_the_coordinator_loads_no_key_and_no_cipher(module: str) -> None:
    """Nor numba, which takes a second in each process."""
    modules = loaded_after(f"import {module}")
    assert "clients.owner_app" in modules or module == "clients.flower_executor"
    for package in ("ppfed.keys", "ppfed.ciphers.registry", "clients.preparation", "numba"):
        assert within(package, modules) == []


def test_a_model_is_loaded_without_torchs_compiler() -> None:
    kinds = [{}, *({"adaptation_kind": kind, "adaptation": (4, 4)} for kind in ("block", "block-wise"))]
    code = "import torch\nfrom ppfed.networks.classifier import ImageClassifier\n"
    code += "from ppfed.networks.config import NetworkConfig\n"
    code += (
        f"with torch.device('meta'):\n    [ImageClassifier(NetworkConfig(10, 32, 32, **kind)) for kind in {kinds!r}]"
    )
    modules = loaded_after(code)
    assert "torch" in modules
    assert within("torch._dynamo", modules) == []


def test_training_loads_no_compiler() -> None:
    code = """
import torch
from ppfed.training.loop import Trainer, TrainingConfig

network = torch.nn.Linear(3, 2)
trainer = Trainer(network, TrainingConfig(epochs=1, average_passes=1.0), torch.device("cpu"))
network(torch.ones(4, 3)).sum().backward()
trainer.descend(0.1)
assert trainer.momentum()
"""
    modules = loaded_after(code)
    assert "torch.optim.sgd" in modules
    assert within("torch._dynamo", modules) == []


@pytest.mark.parametrize("file", sorted((ROOT / "coordinator").rglob("*.py")), ids=lambda file: file.name)
def test_the_coordinators_source_never_mentions_the_key_module(file: Path) -> None:
    text = file.read_text()
    assert "ppfed.keys" not in text
    assert "import_module" not in text
    assert "ppfed import keys" not in text


def test_importing_ppfed_is_light_and_holds_no_key() -> None:
    modules = loaded_after("import ppfed")
    assert within("torch", modules) == []
    assert within("flwr", modules) == []
    assert within("ppfed", modules) == ["ppfed"]


def test_the_public_surface_is_what_it_says() -> None:
    import ppfed

    assert len(set(ppfed.__all__)) == len(ppfed.__all__)
    for name in ppfed.__all__:
        assert getattr(ppfed, name) is not None
    assert set(ppfed.__all__) == {
        "CipherSpec",
        "EncryptedImages",
        "MasterKey",
        "PPFedError",
        "PlainImages",
        "Scope",
        "__version__",
        "load_model",
        "make_cipher",
        "read_key_file",
    }
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ppfed.nothing
