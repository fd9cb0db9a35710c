"""Numbers as a reader wants them."""

from __future__ import annotations

from scenarios.report.statistics import Accuracies, Difference, Finding, Plan

NOTHING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")

FINDINGS = {
    Finding.BEYOND: "beyond chance",
    Finding.WITHIN: "cannot be told apart",
    Finding.ONE_SEED: "open: one seed, beyond the held-out images' error",
}


def percent(part: float) -> str:
    """Write 0.8699 as ``86.99``."""
    return f"{100 * part:.2f}"


def minus(text: str) -> str:
    """Write a number's minus sign as one."""
    return text.replace("-", _MINUS)


def quoted(name: str) -> str:
    """Write a name so that it ends where it ends."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"


def points(value: float) -> str:
    """Write a difference of 0.0123 as ``+1.23``."""
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else minus(text)


def accuracy(found: Accuracies) -> str:
    """Write mean, deviation over seeds and their number: ``86.99 ± 0.21 (3)``."""
    spread = "" if found.deviation is None else f" {_PLUS_MINUS} {percent(found.deviation)}"
    return f"{percent(found.mean)}{spread} ({found.seeds})"


def interval(found: Accuracies) -> str:
    """Write the 95 % interval of an accuracy: ``86.11 to 87.87``."""
    low, high = found.interval
    return f"{percent(low)} to {percent(high)}"


def interval_of(found: Difference) -> str:
    """Write the 95 % interval of a difference in points: ``+0.40 to +2.06``."""
    low, high = found.interval
    return f"{points(low)} to {points(high)}"


def needed(found: Difference, plan: Plan | None) -> str:
    """Say what would separate two arms."""
    if found.finding is Finding.BEYOND:
        return "nothing more"
    if plan is None:
        return "no affordable number of seeds or images"
    images = "" if plan.images is None else f"{plan.images:,} held-out images"
    seeds = "3 seeds or more, to see their spread" if plan.seeds is None else f"{plan.seeds:,} seeds"
    return " and ".join(part for part in (images, seeds) if part)


def count_bytes(number: float) -> str:
    """Write a number of bytes with three digits: ``44.8 MB``."""
    for unit in _BYTE_UNITS:
        if number < 999.5 or unit == _BYTE_UNITS[-1]:
            break
        number /= 1000
    digits = 0 if unit == "B" or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {unit}"


def count_weights(number: float) -> str:
    """Write a number of weights: ``11.17 M``."""
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Write a time with two units at most: ``3 min 20 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Write ``1 seed``, ``3 seeds``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(parts: list[str]) -> str:
    """Write ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
