"""The report of a scenario run, as one HTML file and its Markdown twin, and two runs side by side."""

from scenarios.report.write import compare, write_report

__all__ = ["compare", "write_report"]
