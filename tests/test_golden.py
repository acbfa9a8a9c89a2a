"""Every architecture against the golden files of its official code."""

import golden_files
import pytest
from cases import CASES, rows


@pytest.mark.parametrize(("name", "file"), rows("GOLDEN"))
def test_golden(name: str, file: str) -> None:
    golden_files.check(file, *CASES[name].GOLDEN[file])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), rows("FULL_SIZE"))
def test_full_size(name: str, variant: str) -> None:
    golden_files.check_preset(*variant.split("/"), *CASES[name].FULL_SIZE[variant])
