"""Every architecture, over random configs: the shapes of features and logits."""

import pytest
from cases import CASES, having

from eqx_vit.testing import check_random_sizes


@pytest.mark.parametrize("name", having("shapes"))
def test_shapes(name: str) -> None:
    check_random_sizes(CASES[name].shapes())
