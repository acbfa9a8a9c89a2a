"""Every architecture, over random configs: the shapes of features and logits."""

import pytest
from cases import CASES, having
from hypothesis import given, strategies as st

from eqx_vit import MODELS
from eqx_vit.testing import shapes


@pytest.mark.parametrize("name", having("shapes"))
@given(data=st.data())
def test_shapes(name: str, data: st.DataObject) -> None:
    config, image_size, expected = data.draw(CASES[name].shapes())
    features, logits = shapes(MODELS[name].model, config, image_size)
    assert features == expected
    assert logits == (config.num_classes,)
