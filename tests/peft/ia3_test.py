"""IA3 scales the outputs of keys and values, bias and all, and the inputs of the MLP's last weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BIASED, SMOL, TINY, base, logits, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.ia3 import ia3
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition, size

KEY = jax.random.key(0)


def test_outputs_of_keys_and_inputs_of_down_are_scaled():
    params = moved(attach(base(), [ia3()], KEY))
    x = np.asarray(jax.random.normal(KEY, (3, 16)))
    k = jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/attn/k/kernel"))
    np.testing.assert_allclose(k.dot(x), (x @ np.asarray(k.base)) * np.asarray(k.scale), rtol=1e-4, atol=1e-5)
    down = jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/mlp/down/kernel"))
    x = np.asarray(jax.random.normal(KEY, (3, 28)))
    np.testing.assert_allclose(down.dot(x), (x * np.asarray(down.scale)) @ np.asarray(down.base), rtol=1e-4, atol=1e-5)


def test_the_places_may_be_adapterhubs():
    params = attach(base(), [ia3(feedforward=())], KEY)
    assert get(params, "blocks/mlp/down/kernel").scale.shape == (2, 16)
    assert get(params, "blocks/mlp/down/kernel").at == "output"


@pytest.mark.parametrize(("feedforward", "count"), [(("down_proj",), 57_600), ((), 28_800)])
def test_the_number_of_trainables_on_smollm2(feedforward, count):
    params = jax.eval_shape(lambda p: attach(p, [ia3(feedforward=feedforward)], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == count


def test_a_bias_is_scaled_with_its_output_also_when_merged():
    params = moved(attach(base(BIASED), [ia3()], KEY))
    merged = merge(params)
    bias, scale = get(base(BIASED), "blocks/attn/k/bias"), get(params, "blocks/attn/k/kernel").scale
    np.testing.assert_allclose(get(merged, "blocks/attn/k/bias"), bias * scale, rtol=1e-6)
    np.testing.assert_array_equal(get(merged, "blocks/mlp/down/bias"), get(base(BIASED), "blocks/mlp/down/bias"))
    np.testing.assert_allclose(logits(merged, BIASED), logits(params, BIASED), rtol=1e-3, atol=1e-4)


def test_a_feedforward_module_must_be_a_target():
    with pytest.raises(ValueError, match="ia3 feedforward 'up_proj' is none of the targets blocks/attn/k, blocks/mlp/down"):
        attach(base(), [ia3(targets=("k_proj", "down_proj"), feedforward="up_proj")], KEY)


def test_a_narrow_value_stays_narrow():
    node = jax.tree.map(lambda leaf: leaf[0], get(attach(base(TINY), [ia3()], KEY), "blocks/attn/v/kernel"))
    assert node.dot(jnp.ones((2, 16), jnp.bfloat16)).dtype == jnp.bfloat16
