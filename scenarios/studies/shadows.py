"""Measure membership with shadow networks, beside what the loss alone tells.

``python -m scenarios.studies.shadows DATA OUT [INPUT] [small]``. For each kind of input, networks are trained on random
halves of the same images, and each is attacked in turn with the others as the attacker's own
(``ppfed/attacks/membership.py``). Networks that are shown folded values train on plain images here: masks and shuffles
change nothing of what they see. OUT gets ``networks``, what each network says of each image, and ``shadows.jsonl``, a
line for each attacked network; networks that are there already are not trained again. INPUT, ``plain`` or
``sorted-fold``, is measured alone; ``small`` spends about an eighth.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ppfed.atomic import write_atomic
from ppfed.attacks.membership import (
    BoolArray,
    FloatArray,
    MembershipOutcome,
    difficulty_calibrated_attack,
    likelihood_ratio_attack,
    scaled_confidences,
    threshold_attack,
)
from ppfed.errors import UsageError
from ppfed.networks.config import InputFeatures
from ppfed.training.loop import ImageTensors, evaluate, pick_device
from scenarios.material import Material, read_images
from scenarios.studies.command import run_study
from scenarios.studies.networks import described, train
from scenarios.studies.rows import RowsFile

ROWS_FILE, NETWORKS_FOLDER = "shadows.jsonl", "networks"
INPUTS = {"plain": InputFeatures.VALUES, "sorted-fold": InputFeatures.SORTED_FOLD}
_SIZE = 32


@dataclass(frozen=True)
class ShadowBudget:
    """What is spent on one kind of input.

    Attributes
    ----------
    images : int
        Each network is trained on a random half of them.
    networks, epochs, base_maps : int
    """

    images: int = 10_000
    networks: int = 8
    epochs: int = 10
    base_maps: int = 16


SMALL, SMALL_BUDGET = "small", ShadowBudget(images=4000, base_maps=8)


@dataclass(frozen=True)
class ShadowRow:
    """What an attack on one network found.

    Attributes
    ----------
    input : str
        ``plain``, or the features that a network is shown of encrypted images.
    network : int
    budget : ShadowBudget
    accuracy, member_accuracy : float
        Of the network on held-out images, and on those that it was trained on, 0 to 1.
    by_loss, by_calibration, by_likelihood : MembershipOutcome
        On the images that have shadow networks with them and without, the same for all three: ``threshold_attack``,
        ``difficulty_calibrated_attack`` and ``likelihood_ratio_attack``.
    """

    input: str
    network: int
    budget: ShadowBudget
    accuracy: float
    member_accuracy: float
    by_loss: MembershipOutcome
    by_calibration: MembershipOutcome
    by_likelihood: MembershipOutcome


@dataclass(frozen=True, eq=False)
class Shadow:
    """What a network says of all images.

    Attributes
    ----------
    confidences : float array, (N,)
        As from ``scaled_confidences``.
    accuracy, member_accuracy : float
        As in ``ShadowRow``.
    """

    confidences: FloatArray
    accuracy: float
    member_accuracy: float

    @property
    def losses(self) -> FloatArray:
        """Cross-entropy of each image: a confidence is log(p / (1 - p)), and this -log(p)."""
        losses: FloatArray = np.logaddexp(0, -self.confidences)
        return losses

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        content = io.BytesIO()
        np.savez(
            content,
            confidences=self.confidences,
            accuracies=np.array([self.accuracy, self.member_accuracy]),
        )
        write_atomic(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Shadow:
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["confidences"], *(float(one) for one in arrays["accuracies"]))


def main(arguments: list[str]) -> int:
    """Measure what is not yet there, and print the table."""
    small = SMALL in arguments[2:]
    given = arguments[:2] + [one for one in arguments[2:] if one != SMALL]
    if len(given) not in (2, 3):
        raise UsageError("two folders are needed", hint="python -m scenarios.studies.shadows DATA OUT [INPUT] [small]")
    chosen = given[2:] or list(INPUTS)
    if not set(chosen) <= INPUTS.keys():
        raise UsageError(f"input '{chosen[0]}' is not known", hint=f"Name one of: {', '.join(INPUTS)}.")
    out, budget = Path(given[1]), SMALL_BUDGET if small else ShadowBudget()
    out.mkdir(parents=True, exist_ok=True)
    material = read_images(Path(given[0]), _SIZE, budget.images, None)
    measured = RowsFile(out / ROWS_FILE, ShadowRow)
    for kind in chosen:
        measure(kind, material, budget, out / NETWORKS_FOLDER, measured, pick_device())
    for row in measured.read():
        outcomes = {"loss": row.by_loss, "calibration": row.by_calibration, "likelihood ratio": row.by_likelihood}
        told = "; ".join(f"by {name} {one.auc:.3f}, {one.tpr_at_1_percent_fpr:.1%}" for name, one in outcomes.items())
        sys.stdout.write(
            f"{row.input:12} {row.network}  accuracy {row.accuracy:.1%} ({row.member_accuracy:.1%} of its own)  "
            f"AUC (chance 0.5 ± {row.by_loss.auc_chance_spread:.3f}) and found at 1 % false: {told}\n"
        )
    return 0


def measure(
    kind: str,
    material: Material,
    budget: ShadowBudget,
    folder: Path,
    measured: RowsFile[ShadowRow],
    device: torch.device,
) -> None:
    """Train networks of one kind, attack each, and append a row for each that has none.

    Parameters
    ----------
    kind : str
        Of ``INPUTS``.
    material : Material
    budget : ShadowBudget
    folder : Path
        For what networks say of the images.
    measured : RowsFile of ShadowRow
    device : torch.device
    """
    inside = halves(len(material.train), budget.networks)
    folder.mkdir(exist_ok=True)
    shadows = []
    for number, members in enumerate(inside):
        path = folder / f"{kind}-{budget.images}x{budget.epochs}-{budget.base_maps}-{number}.npz"
        if not path.exists():
            _train(INPUTS[kind], material, members, number, budget, device).save(path)
        shadows.append(Shadow.load(path))
    known = {row.network for row in measured.read() if (row.input, row.budget) == (kind, budget)}
    confidences = np.stack([shadow.confidences for shadow in shadows])
    for number, shadow in enumerate(shadows):
        if number in known:
            continue
        others = np.arange(budget.networks) != number
        # Whether an image is left out depends on the others alone, and so tells nothing of the target.
        both = inside[others].any(axis=0) & (~inside[others]).any(axis=0)
        members = inside[number, both]
        compared = (shadow.confidences[both], confidences[others][:, both], inside[others][:, both], members)
        losses = shadow.losses[both]
        measured.append(
            ShadowRow(
                kind,
                number,
                budget,
                shadow.accuracy,
                shadow.member_accuracy,
                threshold_attack(losses[members], losses[~members]),
                difficulty_calibrated_attack(*compared),
                likelihood_ratio_attack(*compared),
            )
        )


def halves(images: int, networks: int) -> BoolArray:
    """Choose which networks are trained on which images: a coin for each network and image.

    Each image in exactly half of the networks would be no fair test: of a target's members fewer of the other networks
    would then have been trained on each than on the rest, and the likelihood ratio would rank members low on noise.

    Returns
    -------
    bool array, (networks, images)
    """
    inside: BoolArray = np.random.default_rng(0).random((networks, images)) < 0.5
    return inside


def _train(
    features: InputFeatures,
    material: Material,
    members: BoolArray,
    seed: int,
    budget: ShadowBudget,
    device: torch.device,
) -> Shadow:
    own = ImageTensors.from_numpy(material.train.pixels[members], material.train_labels[members], device)
    network = train(described(material, budget.base_maps, features), own, budget.epochs, seed, device)
    held_out = ImageTensors.from_numpy(material.held_out.pixels, material.held_out_labels, device)
    everything = ImageTensors.from_numpy(material.train.pixels, material.train_labels, device)
    return Shadow(
        scaled_confidences(network, everything),
        evaluate(network, held_out).accuracy,
        evaluate(network, own).accuracy,
    )


if __name__ == "__main__":
    run_study(main)
