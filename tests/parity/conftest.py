"""The table that the session ends with."""

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    rows = [(report.outcome, dict(report.user_properties)) for report in reports if report.user_properties]
    if not rows:
        return
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    cells = [[_text(row.get(column, "")) for column in columns] + [outcome] for outcome, row in rows]
    header = [*columns, "outcome"]
    widths = [max(len(line[index]) for line in [header, *cells]) for index in range(len(header))]
    terminalreporter.section("parity")
    for line in [header, ["-" * width for width in widths], *cells]:
        terminalreporter.write_line(" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _text(cell: Any) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
