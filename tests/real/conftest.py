"""Where the pictures go, and the measurements that the session ends with."""

from typing import Any


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--pictures", help="a folder for pictures of what the trained model sees")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    measured = [report for report in reports if report.user_properties and "tests/real" in report.nodeid]
    if measured:
        terminalreporter.section("measured")
    for report in measured:
        terminalreporter.write_line(report.nodeid.split("::")[-1])
        for name, value in report.user_properties:
            terminalreporter.write_line(f"    {name}: {value}")
