"""LAPACK works on one thread for small kernels, and as it would for large ones."""

import jax.numpy as jnp
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from peftjax.train.lapack import SMALL, one_thread


def threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize(("shape", "wanted"), [((SMALL, SMALL + 1), {1}), ((SMALL + 1, SMALL + 1), {2})])
def test_threads_by_the_shorter_side(shape, wanted):
    params = {"blocks": {"up": {"kernel": jnp.broadcast_to(jnp.float32(0), (2, *shape))}}, "embed": {"embedding": jnp.zeros((8, 4))}}
    with threadpool_limits(2, user_api="blas"):
        with one_thread(params):
            assert threads() == wanted
        assert threads() == {2}
