import jax
import pytest
from tiny import TINY, base
from tiny_run import tiny_config

from peftjax.interop.base import load_base
from peftjax.models.decoder import cut
from peftjax.peft import attach, houlsby, ia3, lora, parallel, partition, pfeiffer
from peftjax.peft.partition import size as size_of
from peftjax.peft.spec import from_data
from peftjax.study.sizes import fit, parameters, sized, with_size
from peftjax.train.config import methods


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    return load_base(tiny_config(tmp_path_factory.mktemp("sizes")).base.uri)


def test_the_nearest_size_is_found():
    costs = {}

    def cost(size):
        costs[size] = costs.get(size, 0) + 1
        return 100 * size + 7

    found = fit(cost, 1234)
    assert (found.size, found.cost) == (12, 1207) and found.deviation == pytest.approx(1207 / 1234 - 1)
    assert max(costs.values()) == 1 and len(costs) <= 9  # none is asked for twice
    assert fit(cost, 1258).size == 13 and fit(cost, 1257).size == 12  # of two as near, the smaller
    assert fit(cost, 1).size == 1


def test_a_cost_that_stands_still_meets_no_larger_budget():
    with pytest.raises(ValueError, match="a size of 65536 costs 5, and the budget is 6"):
        fit(lambda size: 5, 6)


@pytest.mark.parametrize("method", [lora(), pfeiffer(), houlsby()])
def test_parameters_are_those_of_the_attached_methods(tiny_base, method):
    specifications = with_size(methods(method), 3)
    made = [from_data(specifications[0].to_dict())]
    trainable, _ = partition(attach(cut(tiny_base.params, tiny_base.config, (tiny_base.config.layers,)), made, jax.random.key(0)))
    assert parameters(tiny_base, specifications) == size_of(trainable)[0]


def test_two_methods_meet_one_budget(tiny_base):
    costs = []
    for method in (lora(), pfeiffer()):
        found = fit(lambda size, method=method: parameters(tiny_base, with_size(methods(method), size)), 3000)
        costs.append(found.cost)
        assert abs(found.deviation) < 0.06
    assert abs(costs[0] - costs[1]) < 0.1 * 3000


def test_the_given_methods_are_left_as_they_are():
    given = methods(lora(rank=8))
    assert with_size(given, 2)[0].rank == 2 and given[0].rank == 8


def test_it_must_be_clear_whose_size_is_meant():
    assert sized(methods(parallel())) == (0, "size")
    with pytest.raises(ValueError, match=r"pair \(lora, bottleneck\) has 2 ranks or sizes"):
        sized(methods(lora(), pfeiffer()), "pair")
    with pytest.raises(ValueError, match="has 0 ranks or sizes.*Match it by time"):
        sized(methods(ia3()), "IA3")


def test_shapes_alone_are_enough():
    assert base(TINY)  # arrays; the count is of abstract ones below

    class Abstract:
        config = TINY
        params = jax.eval_shape(lambda: base(TINY))

    assert parameters(Abstract, with_size(methods(lora(targets=".*/q")), 2)) == TINY.layers * 2 * (TINY.width + TINY.heads * TINY.head_size)
