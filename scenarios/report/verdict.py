"""The verdict in plain words: every sentence is made from a run's numbers."""

from __future__ import annotations

import itertools
from collections import Counter

from scenarios.declaration import Arm, Scale
from scenarios.report import frontier
from scenarios.report.outcome import Outcome
from scenarios.report.statistics import Difference, Finding
from scenarios.report.wording import FINDINGS, counted, interval_of, listed, percent, quoted

SMOKE = "These numbers say that everything runs, and nothing else."
_MOST_NAMED = 4

Pair = tuple[Arm, Arm]
"""Two arms; the first is expected, or seen, to be the more accurate one."""


def verdict(outcome: Outcome) -> list[str]:
    """Say what a run shows."""
    sentences = [_completeness(outcome)]
    if not outcome.finished:
        return sentences
    if outcome.record.scale is Scale.SMOKE:
        return [SMOKE, *sentences]
    best, worst = outcome.ranked[0], outcome.ranked[-1]
    if best is not worst:
        sentences.append(f"Most accurate is {_reached(outcome, best)}, least accurate {_reached(outcome, worst)}.")
    sentences += _cost_of_encryption(outcome)
    sentences += _neighbours(outcome)
    sentences += _published_order(outcome)
    sentences += frontier.sentences(outcome)
    return sentences


def neighbours(outcome: Outcome) -> list[Pair]:
    """Pairs of arms that follow each other in the order of accuracy."""
    return list(itertools.pairwise(outcome.ranked))


def published_neighbours(outcome: Outcome) -> list[Pair]:
    """Pairs of arms that follow each other in the order of one source, where its numbers differ."""
    found = (itertools.pairwise(arms) for arms in _by_source(outcome))
    return [pair for pair in itertools.chain.from_iterable(found) if _number(pair[0]) > _number(pair[1])]


def control_pairs(outcome: Outcome) -> list[Pair]:
    """Each encrypted arm's plain control, and the arm."""
    return [(control, arm) for arm in outcome.finished if (control := outcome.control(arm)) is not None]


def _completeness(outcome: Outcome) -> str:
    total = len(outcome.scenario.arms)
    seeds = counted(outcome.seeds, "seed")
    if not outcome.finished:
        return "No arm has finished yet, so there is nothing to say."
    if not outcome.missing:
        return f"All {total} arms ran to their end under {seeds}." if total > 1 else f"The arm ran under {seeds}."
    whole = total - len(outcome.missing)
    return (
        f"The run is not complete: of {counted(total, 'arm')}, {whole} "
        f"{'has' if whole == 1 else 'have'} results of {seeds}. What is missing is listed below."
    )


def _reached(outcome: Outcome, arm: Arm) -> str:
    return f"{quoted(arm.name)} with {percent(outcome.accuracies[arm.name].mean)}\N{NO-BREAK SPACE}%"


def _cost_of_encryption(outcome: Outcome) -> list[str]:
    # What wrong keys cost, or another way to train, is no cost of encryption.
    pairs = [pair for pair in control_pairs(outcome) if not pair[1].wrong_key_owners and pair[0].mode is pair[1].mode]
    if not pairs:
        return []
    pairs.sort(key=lambda pair: -outcome.difference(*pair).value)
    nearest, farthest = pairs[0], pairs[-1]
    if len(pairs) == 1:
        return [f"Encrypted against plain: {_beside(outcome, nearest)}."]
    return [
        f"Of {len(pairs)} encrypted arms with a plain control of the same mode, the nearest to its control is "
        f"{_beside(outcome, nearest)}.",
        f"The farthest of them is {_beside(outcome, farthest)}.",
    ]


def _beside(outcome: Outcome, pair: Pair) -> str:
    control, arm = pair
    found = outcome.difference(control, arm)
    side = "above" if found.value > 0 else "below"
    interval = "the held-out images' error alone allows" if found.deviation is None else "95 % interval"
    return (
        f"{quoted(arm.name)}, {100 * abs(found.value):.2f} points {side} {quoted(control.name)} "
        f"({FINDINGS[found.finding]}; {interval} {interval_of(found)})"
    )


def _neighbours(outcome: Outcome) -> list[str]:
    pairs = neighbours(outcome)
    if not pairs:
        return []
    found = [(pair, outcome.difference(*pair).finding) for pair in pairs]
    counts = Counter(finding for _, finding in found)
    sentences = [f"Of {counted(len(pairs), 'pair')} of neighbours in the order of accuracy, {_differ(counts)}."]
    alike = [pair for pair, finding in found if finding is Finding.WITHIN]
    if alike:
        sentences.append(f"Not to be told apart: {_named(alike, 'and')}.")
    return sentences


def _differ(counts: Counter[Finding]) -> str:
    words = {
        Finding.BEYOND: "{} {differ} beyond chance",
        Finding.WITHIN: "{} cannot be told apart",
        Finding.ONE_SEED: "{} {differ} by more than the held-out images explain, with an unknown spread over seeds",
    }
    parts = [
        text.format(counts[finding], differ="differs" if counts[finding] == 1 else "differ")
        for finding, text in words.items()
        if counts[finding]
    ]
    return listed(parts)


def _named(pairs: list[Pair], between: str) -> str:
    shown = [f"{quoted(first.name)} {between} {quoted(second.name)}" for first, second in pairs[:_MOST_NAMED]]
    rest = len(pairs) - len(shown)
    return "; ".join([*shown, f"and {counted(rest, 'more pair')}"] if rest else shown)


def _published_order(outcome: Outcome) -> list[str]:
    """Compare every two arms whose numbers differ in the same source: between sources more differs than the arms."""
    every = itertools.chain.from_iterable(itertools.combinations(arms, 2) for arms in _by_source(outcome))
    pairs = [pair for pair in every if _number(pair[0]) > _number(pair[1])]
    if not pairs:
        return []
    found = [(pair, outcome.difference(*pair)) for pair in pairs]
    kept = [each for _, each in found if each.value < 0]
    turned = [(pair, each) for pair, each in found if each.value >= 0]
    certain = [pair for pair, each in turned if each.finding is Finding.BEYOND]
    sentences = [
        f"Of {counted(len(pairs), 'pair')} of arms with different numbers in the same source, {len(kept)} "
        f"{'stands' if len(kept) == 1 else 'stand'} in the published order, {_beyond(kept)}"
        + (
            f"; {len(turned)} {'does' if len(turned) == 1 else 'do'} not, {_beyond([each for _, each in turned])}."
            if turned
            else "."
        )
    ]
    if certain:
        sentences.append(f"Beyond chance against the published order: {_named(certain, 'is not above')}.")
    return sentences


def _beyond(found: list[Difference]) -> str:
    return f"{sum(each.finding is Finding.BEYOND for each in found)} beyond chance"


def _by_source(outcome: Outcome) -> list[list[Arm]]:
    """Arms with a published number, one list for each source, the highest number first."""
    sources: dict[str, list[Arm]] = {}
    for arm in outcome.finished:
        if arm.published is not None:
            sources.setdefault(arm.published.source, []).append(arm)
    return [sorted(arms, key=lambda arm: -_number(arm)) for arms in sources.values()]


def _number(arm: Arm) -> float:
    return -1.0 if arm.published is None else arm.published.accuracy
