"""The settings of every test: strict dtype and rank promotion, exact float32 matrix products, a quiet Hypothesis."""

import jax
from hypothesis import settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Compilation is the cost of these tests, not the tiny models.
jax.config.update("jax_disable_most_optimizations", True)

# No deadline: the first example of a shape traces. Derandomised: a failure is found by everybody or by nobody.
settings.register_profile("eqx_vit", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("eqx_vit")
