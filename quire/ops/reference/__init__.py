"""Backend `reference`, plain torch: the definition of correct for every op, on any device. One module per family of ops.

Correct up to rounding: torch's matmul may sum a row in an order that varies with the rows beside it.
"""

from quire.ops.reference import (  # noqa: F401  (they register their ops when imported)
    activation,
    attention,
    kv_pools,
    latent,
    linear,
    moe,
    norm,
    pointwise,
    rotary,
    weights,
)
from quire.ops.sampling import reference as _sampling  # noqa: F401  (the sampler's ops, which are in numpy)
