# The extension built from csrc/cpu. Tensors are addresses (0 = absent); sizes are in elements.

FLOAT32: int
BFLOAT16: int
FLOAT16: int
LEVEL_NAMES: tuple[str, ...]  # index = the level's code

def cpu_features() -> dict[str, bool]: ...
def levels() -> list[str]: ...
def rms_norm(
    out: int,
    residual_out: int,
    x: int,
    weight: int,
    residual: int,
    rows: int,
    dim: int,
    eps: float,
    dtype: int,
    weight_dtype: int,
    level: int,
) -> None: ...
