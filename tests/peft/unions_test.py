"""Unions are lists of methods of one name, which start, train and leave together."""

import jax
import numpy as np
import pytest
from tiny import SMOL, TIED, base, equal_trees, moved

from peftjax.models.decoder import abstract_params
from peftjax.peft.attach import adapters, attach, detach
from peftjax.peft.bottleneck import houlsby, pfeiffer, scaled_parallel
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.invertible import invertible
from peftjax.peft.partition import partition, size
from peftjax.peft.prefix import prefix
from peftjax.peft.spec import from_data, to_data
from peftjax.peft.unions import houlsby_inv, mam, pfeiffer_inv, unipelt
from peftjax.train.config import methods

KEY = jax.random.key(0)


def test_they_are_what_they_say():
    assert mam() == [prefix(length=30, hidden=512), scaled_parallel()]
    assert mam(prefix={"length": 10}, bottleneck={"size": 36}, name="tone") == [
        prefix(length=10, hidden=512, name="tone"), scaled_parallel(size=36, name="tone"),
    ]  # fmt: skip
    assert unipelt() == [gated_lora(), prefix(length=10, hidden=512, gates=1), pfeiffer(gate="token")]
    assert unipelt(bottleneck={"gate": "mean"})[2].gate == "mean"
    assert pfeiffer_inv(size=36) == [pfeiffer(size=36), invertible()]
    assert houlsby_inv(inverse={"init": "bert"}, name="en") == [houlsby(name="en"), invertible(activation="swish", init="bert", name="en")]


@pytest.mark.parametrize(
    ("union", "count"),
    [
        (pfeiffer_inv(size=36), 1_262_520 + 166_752),
        (houlsby_inv(size=36), 2_525_040 + 166_752),
        # AdapterHub's count, and in each layer the scale, which is learned as in the paper
        (mam(prefix={"length": 10, "hidden": 64}, bottleneck={"size": 36}), 2_054_008 + 30),
        (unipelt(bottleneck={"size": 36}), 8_003_504),
    ],
    ids=["pfeiffer_inv", "houlsby_inv", "mam", "unipelt"],
)
def test_the_number_of_trainables_on_smollm2(union, count):
    params = jax.eval_shape(lambda p: attach(p, union, KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == count


def test_a_union_is_one_adapter():
    params = moved(attach(base(TIED), unipelt(prefix={"hidden": 5, "length": 2}, bottleneck={"size": 3}), KEY))
    assert adapters(params) == ["default"]
    equal_trees(detach(params), base(TIED))


def test_a_config_takes_it_as_its_members():
    union = unipelt(name="tone")
    made = methods(pfeiffer(), union)
    assert [from_data(method.to_dict()) for method in made] == [pfeiffer(), *union]
    assert [from_data(to_data(method)) for method in union] == union
    assert np.unique([method.name for method in union]).tolist() == ["tone"]
