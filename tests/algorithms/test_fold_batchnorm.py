import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.algorithms.transforms.fold_batchnorm import BatchNorm


def norm(rng: np.random.Generator, channels: int) -> BatchNorm:
    draw = lambda low, high: rng.uniform(low, high, channels).astype(np.float32)  # noqa: E731
    return BatchNorm(gamma=draw(-2, 2), beta=draw(-1, 1), mean=draw(-3, 3), variance=draw(1e-3, 4), epsilon=1e-5)


def batchnorm(y: np.ndarray, n: BatchNorm) -> np.ndarray:
    """Returns the normalization of [samples, channels] in float64, as ONNX BatchNormalization-15 defines it."""
    deviation = np.sqrt(n.variance.astype(np.float64) + n.epsilon)
    return (y - n.mean.astype(np.float64)) / deviation * n.gamma + n.beta


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, -1, -2]), st.booleans())
def test_the_folded_layer_is_the_layer_and_its_normalization(seed, axis, has_bias):
    rng = np.random.default_rng(seed)
    outs, ins = 5, 7
    w = rng.standard_normal((outs, ins)).astype(np.float32)
    bias = rng.standard_normal(outs).astype(np.float32) if has_bias else None
    n = norm(rng, outs)
    x = rng.standard_normal((20, ins))
    channels_first = axis % 2 == 0
    folded, offset = n.fold(w if channels_first else w.T, bias, axis=axis)
    assert folded.dtype == offset.dtype == np.float32
    folded = folded if channels_first else folded.T
    expected = batchnorm(x @ w.T.astype(np.float64) + (0 if bias is None else bias), n)
    got = x @ folded.T.astype(np.float64) + offset
    # One rounding to float32 for each of the 7 weights and the offset: 2**-24 of the magnitudes that are added up.
    limit = 2.0**-24 * (np.abs(x) @ np.abs(folded.T.astype(np.float64)) + np.abs(offset))
    assert np.all(np.abs(got - expected) <= limit * 1.001 + 1e-12)


def test_it_takes_a_convolutions_weight_and_a_transposed_one():
    rng = np.random.default_rng(0)
    n = norm(rng, 4)
    for shape, axis in (((4, 3, 2, 2), 0), ((3, 4, 2, 2), 1)):
        w = rng.standard_normal(shape).astype(np.float32)
        folded, _ = n.fold(w, None, axis=axis)
        factor = n.gamma.astype(np.float64) / np.sqrt(n.variance.astype(np.float64) + n.epsilon)
        wide = tuple(-1 if i == axis else 1 for i in range(4))
        assert np.array_equal(folded, (w * factor.reshape(wide)).astype(np.float32))


def test_it_runs_on_array_api_strict_with_the_same_bits():
    import array_api_strict as strict

    rng = np.random.default_rng(1)
    n = norm(rng, 4)
    w, b = rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    lifted = BatchNorm(
        **{k: strict.asarray(getattr(n, k)) for k in ("gamma", "beta", "mean", "variance")}, epsilon=n.epsilon
    )
    for ours, theirs in zip(
        n.fold(w, b, axis=0),
        lifted.fold(strict.asarray(w), strict.asarray(b), axis=0),
        strict=True,
    ):
        assert np.array_equal(ours, np.asarray(theirs))
