"""Rows that are committed, by keys under which the documents' tables show them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter

from ppfed.attacks.membership import MembershipOutcome
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.federation import Exchange
from ppfed.leakage.record import AttackName, AttackOutcome, CandidateMatch, LeakageRecord, Resemblance
from ppfed.leakage.reference import reference, references
from ppfed.leakage.wording import title
from scenarios.report.outcome import Outcome
from scenarios.report.speed import computation_until
from scenarios.report.statistics import Accuracies, difference
from scenarios.studies import chosen_weights, effort, gradient_search, orbit_search, restored, shadows
from scenarios.studies import one_key as one_key_study
from scenarios.studies.rows import RowsFile

from .figures import Key
from .markdown_tables import ROOT

RESULTS = ROOT / "docs" / "results"
_LEARNED = {AttackName.LEARNED_EDGES, AttackName.LEARNED_SEAMS, AttackName.INVERSION}
_NETWORKS = {AttackName.INVERSION, AttackName.LEAKED_PAIRS, AttackName.UNPAIRED}
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Told:
    """What an attack tells, beside what the encrypted images tell as they are.

    Attributes
    ----------
    attack : str
    resemblance : Resemblance
    sent : Resemblance
    seconds : float
    """

    attack: str
    resemblance: Resemblance
    sent: Resemblance
    seconds: float = 0.0


@dataclass(frozen=True)
class BenchRow:
    """A row of ``bench.json``."""

    section: str
    name: str
    value: float
    unit: str
    against: str
    target: str | None
    spread: tuple[float, float] | None
    details: dict[str, float | str]

    @property
    def target_figure(self) -> str:
        """The target without its sign; empty where there is none."""
        return "" if self.target is None else self.target.split(" ")[1]


def _rows(path: str, kind: type[_Row]) -> list[_Row]:
    rows = RowsFile(RESULTS / path, kind).read()
    assert rows, f"{path} has no rows"
    return rows


def _run(folder: str) -> Outcome:
    outcome = Outcome.read(RESULTS / folder)
    assert outcome.finished, f"{folder} has no results"
    return outcome


# The reference (ppfed/leakage/reference.json).


def _encrypted_images() -> list[LeakageRecord]:
    return [record for record in references() if record.exchange is Exchange.IMAGES]


def cipher_name(record: LeakageRecord) -> str:
    """Name a record's cipher, and that images are grey, which have no colours to shuffle."""
    assert record.cipher is not None
    spec = record.cipher.spec
    return str(spec) if record.channels == 3 else f"{spec.name}, {spec.scope} scope, grey images"


def _told(outcome: AttackOutcome, record: LeakageRecord) -> Told:
    words = title(outcome)
    if outcome.attack in _NAMES:
        words = _NAMES[outcome.attack] + (f", {outcome.setting}" if outcome.setting else "")
    return Told(words[0].lower() + words[1:], outcome.resemblance, record.ciphertext, outcome.seconds)


_NAMES = {
    AttackName.INVERSION: "learned inversion",
    AttackName.LEARNED_EDGES: "learned edges",
    AttackName.LEARNED_SEAMS: "learned seams",
}
"""Where the documents name attacks otherwise than cards, for they list them under these names (docs/leakage.md)."""


def strongest_attacks() -> dict[Key, Told]:
    """Of each cipher the strongest attack; and the strongest that needs no training, where that is another."""
    told: dict[Key, Told] = {}
    for record in _encrypted_images():
        assert record.strongest is not None
        told[(cipher_name(record),)] = _told(record.strongest, record)
        untrained = record.model_copy(
            update={"attacks": tuple(one for one in record.attacks if one.attack not in _LEARNED)}
        ).strongest
        if record.strongest.attack in _LEARNED and untrained is not None:
            told[(cipher_name(record), "without training")] = _told(untrained, record)
    return told


def trained_networks() -> dict[Key, Told]:
    """What networks that paint pictures got."""
    return {
        (cipher_name(record), outcome.attack): _told(outcome, record)
        for record in _encrypted_images()
        for outcome in record.attacks
        if outcome.attack in _NETWORKS
    }


def candidates() -> dict[Key, list[CandidateMatch | None]]:
    """What candidates tell, of NP and its kin, of block ciphers, and of the logistic map."""
    found: dict[Key, list[CandidateMatch | None]] = defaultdict(list)
    for record in _encrypted_images():
        assert record.cipher is not None
        family = {"np-v1": "np", "np2-v1": "np", "logistic-rc4-v1": "logistic"}
        found[(family.get(record.cipher.name, "blocks"),)].append(record.by_candidates)
    return found


# Studies.


def one_key() -> dict[Key, one_key_study.OneKeyRow]:
    """By cipher and the number of ciphertexts."""
    rows = _rows("one-key/one_key.jsonl", one_key_study.OneKeyRow)
    return {(row.cipher, row.ciphertexts): row for row in rows}


def steps_read(base_maps: int) -> dict[Key, Resemblance]:
    """What is read off a step of a network: of plain images as it comes out, of others after the solver."""
    return {
        (row.batch, row.cipher, row.labels): row.resemblance
        for row in _rows("chosen-weights/steps.jsonl", chosen_weights.StepRow)
        if row.base_maps == base_maps and (row.cipher == "plain" or row.setting.endswith("then restored"))
    }


def passes_read() -> dict[Key, chosen_weights.PassRow]:
    """By the number of images and the cipher."""
    rows = _rows("chosen-weights/passes.jsonl", chosen_weights.PassRow)
    return {(row.images, row.cipher): row for row in rows}


def gradients_searched() -> dict[Key, Resemblance]:
    """By batch norm, weights and batch."""
    rows = _rows("gradient-search/gradients.jsonl", gradient_search.SearchRow)
    return {(str(row.batch_norm), row.weights, row.batch): row.resemblance for row in rows}


def orbits() -> dict[Key, orbit_search.OrbitRow]:
    """By name."""
    rows = _rows("orbits/orbits.jsonl", orbit_search.OrbitRow)
    return {(row.name,): row for row in rows}


def shadow_networks() -> dict[Key, list[shadows.ShadowRow]]:
    """By the kind of input, all its networks."""
    found: dict[Key, list[shadows.ShadowRow]] = defaultdict(list)
    for row in _rows("shadows-small/shadows.jsonl", shadows.ShadowRow):
        found[(row.input,)].append(row)
    return found


def outcomes(rows: list[shadows.ShadowRow], attack: str) -> list[MembershipOutcome]:
    """Return what an attack got of each network."""
    return [getattr(row, f"by_{attack}") for row in rows]


def efforts() -> dict[Key, effort.EffortRow]:
    """By cipher, pictures and steps."""
    rows = _rows("effort/effort.jsonl", effort.EffortRow)
    return {(row.cipher, row.pictures, row.steps): row for row in rows}


def restored_first() -> dict[Key, restored.RestoredRow]:
    """By cipher and what was trained on."""
    return {(row.cipher, str(row.kind)): row for row in _rows("restored-small/restored.jsonl", restored.RestoredRow)}


# Runs of scenarios.


def accuracies(folder: str) -> dict[Key, Accuracies]:
    """By arm."""
    outcome = _run(folder)
    return {(arm.name,): outcome.accuracies[arm.name] for arm in outcome.finished}


def arms_attacked(folder: str, *, lenders: tuple[str, ...] = ()) -> dict[Key, tuple[Accuracies, list[Told]]]:
    """By arm: its accuracy, and what attacks tell.

    An arm that was not attacked has what was measured of the same cipher, in this run or in one of ``lenders``.
    Where no image is sent, what is read off most images at once stands beside what is read best.
    """
    runs = [_run(name) for name in (folder, *lenders)]
    records = [
        (arm.cipher, arm.spec, result.leakage)
        for run in runs
        for arm in run.finished
        for result in run.results[arm.name]
        if result.leakage is not None and result.leakage.exchange is Exchange.IMAGES
    ]
    told: dict[Key, tuple[Accuracies, list[Told]]] = {}
    for arm in runs[0].finished:
        (result,) = runs[0].results[arm.name]
        record = result.leakage or next(
            record for cipher, spec, record in records if (cipher, spec) == (arm.cipher, arm.spec)
        )
        told[(arm.name,)] = runs[0].accuracies[arm.name], _of_arm(record)
    return told


def _of_arm(record: LeakageRecord) -> list[Told]:
    if record.strongest is None:
        return [Told("none needed", record.ciphertext, record.ciphertext)]
    if record.exchange is Exchange.IMAGES:
        return [_told(record.strongest, record)]
    most = next(
        outcome for outcome in reversed(record.attacks) if outcome.setting in ("32 images", "32 images, then restored")
    )
    return [_told(record.strongest, record), _told(most, record)]


def grey_and_default() -> dict[Key, Any]:
    """Accuracy over seeds, and the strongest attack in the reference."""
    specs = {
        "NP, grey images": (CipherSpec(colour_shuffle=False), 1),
        "NP": (CipherSpec(colour_shuffle=False), 3),
        "NP + shuffle": (CipherSpec(), 3),
    }
    rows: dict[Key, Any] = {(*key, "accuracy"): found for key, found in accuracies("grey-small").items()}
    for name, (spec, channels) in specs.items():
        record = reference(spec, channels=channels)
        assert record is not None
        assert record.strongest is not None
        rows[(name, "leak")] = _told(record.strongest, record)
    return rows


def formats_compared(folder: str) -> dict[Key, Any]:
    """By the arm's first word and the format: accuracies, the difference of the two, and bytes from owners."""
    outcome = _run(folder)
    rows: dict[Key, Any] = {tuple(name.split(", ")): found for (name,), found in accuracies(folder).items()}
    for kind, _format in list(rows):
        float32, bfloat16 = (rows[kind, one] for one in ("float32", "bfloat16"))
        rows[kind, "difference"] = difference(float32, bfloat16)
        sent = [outcome.results[f"{kind}, {one}"] for one in ("float32", "bfloat16")]
        if "plain" not in kind and "encrypted" not in kind:
            rows[kind, "sent"] = [max(result.bytes_to_coordinator for result in one) for one in sent]
    return rows


def recipes() -> dict[Key, Any]:
    """Of the fast recipe and others, by recipe: accuracy on plain and encrypted images, passes and computation."""
    outcome = _run("fast-small")
    rows: dict[Key, Any] = {}
    for arm in outcome.finished:
        (result,) = outcome.results[arm.name]
        kind, recipe = arm.name.split(", ", 1)
        recipe = recipe.removesuffix(", 100% of the passes")
        cost = len(result.curve), computation_until(arm, outcome.budget, result, len(result.curve))
        assert rows.setdefault((recipe, "cost"), cost) == cost
        rows[(recipe, kind)] = outcome.accuracies[arm.name]
    return rows


def paper_table2() -> dict[Key, str]:
    """By cipher and column, as the README writes them."""
    outcome, np_twice = _run("paper-table2-small"), _run("np-twice-small")
    rows: dict[Key, str] = {("plain", "restored"): "nothing is hidden"}
    for run in (outcome, np_twice):
        for arm in run.finished:
            cipher, _, options = arm.name.partition(", ")
            column = "adaptation" if "adaptation" in options else "helps" if options else "none"
            published = "" if arm.published is None else f" ({arm.published.accuracy:.2f})"
            rows[(cipher, column)] = f"{100 * run.accuracies[arm.name].mean:.1f}{published}"
    for cipher, spec in _README_SPECS.items():
        record = reference(spec)
        assert record is not None
        assert record.strongest is not None
        ssim = record.strongest.resemblance.ssim.mean
        digits = 3 if ssim > 0.99 else 2
        rows[(cipher, "restored")] = "exactly" if ssim > 0.9995 else f"{ssim:.{digits}f}"
    return rows


_README_SPECS = {
    "fresh NP + shuffle": CipherSpec(),
    "fresh NP": CipherSpec(colour_shuffle=False),
    "fresh NP twice + shuffle": CipherSpec("np2-v1"),
    "NP + shuffle": CipherSpec(scope=Scope.FIXED),
    "NP": CipherSpec(scope=Scope.FIXED, colour_shuffle=False),
    "LE": CipherSpec("le-v1", Scope.FIXED, colour_shuffle=False),
    "EtC": CipherSpec("etc-v1", Scope.FIXED, colour_shuffle=False),
    "logistic map + RC4": CipherSpec("logistic-rc4-v1", Scope.FIXED, colour_shuffle=False),
}


# Benchmarks. They have no reader of their own: nothing reads them but this.


def _bench(file: str, section: str) -> list[BenchRow]:
    report = json.loads((RESULTS / "bench" / file).read_text(encoding="utf-8"))
    rows = TypeAdapter(list[BenchRow]).validate_python(report["rows"])
    found = [row for row in rows if row.section == section]
    assert found, f"{file} has no section {section}"
    return found


def ciphers_beside_a_copy(file: str) -> dict[Key, tuple[BenchRow, BenchRow]]:
    """By settings of the cipher, side and threads: encrypting and decrypting."""
    found: dict[Key, dict[str, BenchRow]] = defaultdict(dict)
    for row in _bench(file, "cipher"):
        if row.against == "copy of the same bytes":
            direction, rest = row.name.split(", ", 1)
            spec, size, threads = rest.rsplit(", ", 2)
            found[(spec, size, threads)][direction] = row
    return {key: (both["encrypt"], both["decrypt"]) for key, both in found.items()}


def folders_encrypted() -> dict[Key, BenchRow]:
    """By size and cores, and run."""
    return {(row.name, file): row for file in ("cipher.json", "epyc-cipher.json") for row in _bench(file, "encrypt")}


def training_steps() -> dict[Key, BenchRow]:
    """By what was measured of full width, and run; without roofline, augmentation beside torchvision, and options."""
    rows = {}
    for file in ("whole.json", "epyc.json"):
        for row in _bench(file, "training"):
            name = re.sub(", ResNet-18 of 64 maps, batch 32$", "", row.name)
            if name != row.name and not re.search("^all operations|^the time that|^eager|^float32 steps", row.against):
                rows[(name, file)] = row
    return rows


def operations() -> dict[Key, BenchRow]:
    """Of the roofline at full width, by kind of operation."""
    return {
        (row.name.removesuffix(", ResNet-18 of 64 maps, batch 32"),): row
        for row in _bench("whole.json", "training")
        if row.against == "all operations of a step, each timed by itself"
    }


def rounds() -> dict[Key, BenchRow]:
    """Of real processes, by the number of owners, format, and what was measured."""
    rows = {}
    for row in _bench("whole.json", "rounds"):
        if match := re.match(r"(round of|sent by each of) (\d+) owners.*(float32|bfloat16)", row.name):
            what, owners, update_format = match.groups()
            rows[(owners, update_format, what.split()[0])] = row
    return rows


def uploads() -> dict[Key, BenchRow]:
    """By run, owners, and what they are compared with."""
    return {
        (file, row.name, row.against): row
        for file in ("upload.json", "epyc.json")
        for row in _bench(file, "upload")
        if row.against
    }


def upload_memory() -> dict[Key, BenchRow]:
    """By run and whose memory."""
    return {
        (file, row.name.removesuffix(", 2048 MiB")): row
        for file in ("upload.json", "epyc.json")
        for row in _bench(file, "upload")
        if row.unit == "MiB"
    }
