"""A site is the identity until something hangs there; entries act in the order of their names and keep the shape."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from peftjax.nn.kernels import Entry, node
from peftjax.nn.sites import WIDTH_FROM, site


@node(arrays=("factor", "shift"), static=("name",))
@dataclasses.dataclass(frozen=True)
class Affine(Entry):
    """x * factor + shift, plus the residual: what an entry may see."""

    factor: Any
    shift: Any
    name: str = "tone"

    def __call__(self, x, key=None, residual=None):
        y = x * self.factor + self.shift
        return y if residual is None else y + residual


@node(arrays=("width",))
@dataclasses.dataclass(frozen=True)
class Widening(Entry):
    """An entry that does not keep the shape."""

    width: Any

    def __call__(self, x, key=None):
        return jnp.concatenate([x, x], axis=-1)


class Model(nn.Module):
    """A module with one site."""

    name_of_site: str = "mlp_out"

    @nn.compact
    def __call__(self, x, **context):
        return site(self, self.name_of_site, x, **context)


X = jax.random.normal(jax.random.key(0), (2, 3, 4))


def apply(entries, **context):
    return Model().apply({"params": {"mlp_out": entries} if entries else {}}, X, **context)


def test_an_empty_site_costs_nothing():
    assert apply({}) is X
    assert not jax.make_jaxpr(lambda x: Model().apply({"params": {}}, x))(X).eqns
    assert not Model().init(jax.random.key(0), X)


def test_entries_act_in_the_order_of_their_names():
    entries = {"b": Affine(2.0, 0.0), "a": Affine(1.0, 5.0)}
    np.testing.assert_allclose(apply(entries), (X + 5) * 2, rtol=1e-6)


def test_entries_see_the_context_of_the_site():
    np.testing.assert_allclose(apply({"a": Affine(2.0, 0.0)}, residual=X), 3 * X, rtol=1e-6)


def test_an_entry_that_changes_the_shape_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"Widening 'wide' at mlp_out turned float32\(2, 3, 4\) into float32\(2, 3, 8\)"
    ):
        apply({"wide": Widening(jnp.float32(0))})


def test_an_entry_that_changes_the_dtype_is_refused():
    with pytest.raises(ValueError, match="an entry keeps shape and dtype"):
        Model().apply({"params": {"mlp_out": {"a": Affine(jnp.float32(1), 0.0)}}}, X.astype(jnp.bfloat16))


def test_an_unknown_site_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=f"no site is called 'mlp_outt'; sites are {', '.join(WIDTH_FROM)}"):
        Model("mlp_outt").apply({"params": {}}, X)
