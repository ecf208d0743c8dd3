"""AdaLoRA is a LoRA with weighted directions; its penalty is HF PEFT's, and its hyper-parameters are checked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TIED, base, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.kernels import dot
from peftjax.nn.tree import get
from peftjax.peft.adalora import adalora
from peftjax.peft.attach import attach
from peftjax.peft.lora import LoRA
from peftjax.peft.partition import partition, size
from peftjax.peft.penalty import penalty
from peftjax.peft.plain import as_plain
from peftjax.peft.spec import from_data, to_data

KEY = jax.random.key(0)
PATH = "blocks/attn/q/kernel"
METHOD = adalora(rank=3, target_rank=2, alpha=6, targets=["q_proj", "down_proj"])


def layer(params, number=1):
    return jax.tree.map(lambda leaf: leaf[number], get(params, PATH))


def test_the_update_is_the_formula_and_the_plain_lora_is_the_same():
    node = layer(moved(attach(base(), [METHOD], KEY)))
    want = 6 / (3 + 1e-5) * np.asarray(node.a).T @ np.diag(node.e) @ np.asarray(node.b)
    np.testing.assert_allclose(node.delta(), want, rtol=1e-4, atol=1e-6)
    plain = as_plain({"kernel": node})["kernel"]
    x = jnp.ones((2, 16))
    assert type(plain) is LoRA
    np.testing.assert_array_equal(dot(x, plain), dot(x, node))
    np.testing.assert_array_equal(dot(x, dataclasses.replace(node, e=jnp.zeros(3))), dot(x, node.base))


def test_the_penalty_is_a_mean_over_all_a_and_b_of_how_far_they_are_from_orthonormal():
    params = moved(attach(base(), [METHOD], KEY))
    nodes = [get(params, path) for path in (PATH, "blocks/mlp/down/kernel")]
    rows = [np.asarray(value[at]) for node in nodes for value in (node.a, node.b) for at in range(2)]
    want = 0.5 * np.mean([np.linalg.norm(row @ row.T - np.eye(3)) for row in rows])
    np.testing.assert_allclose(penalty(params), want, rtol=1e-5)
    np.testing.assert_allclose(sum(layer(params, at).penalty() for at in range(2)), get(params, PATH).penalty(), rtol=1e-5)
    exact = dataclasses.replace(layer(params), a=jnp.eye(3, 16), b=jnp.eye(3, 24))
    assert exact.penalty() == 0 and not jax.grad(lambda a: dataclasses.replace(exact, a=a).penalty())(exact.a).any()


def test_the_number_of_trainables_and_the_round_trip():
    params = jax.eval_shape(lambda tree: attach(tree, [METHOD], KEY), abstract_params(TIED))
    assert size(partition(params)[0])[0] == 2 * (3 * (16 + 24 + 1) + 3 * (28 + 16 + 1))
    assert from_data(to_data(METHOD)) == dataclasses.replace(METHOD, targets=("q_proj", "down_proj"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4, "target_rank": 5}, "AdaLoRA shrinks rank 4 to target_rank 5, which has to be 1 to 4"),
        ({"every": 0}, "AdaLoRA every 0 is less than 1"),
        ({"beta1": 1.0}, "AdaLoRA beta1 1.0 is not between 0 and 1"),
        ({"dropout": 1.0}, r"AdaLoRA dropout 1.0 is not in \[0, 1\)"),
    ],
)
def test_wrong_hyper_parameters_are_refused_when_stated(options, message):
    with pytest.raises(ValueError, match=message):
        adalora(**options)
