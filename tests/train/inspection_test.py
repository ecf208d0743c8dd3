"""What is told of an adapter is measured on its dense changes, and intruders stand beside their controls."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import base, moved

from peftjax.nn.tree import get
from peftjax.peft import attach, lora, merge, pfeiffer
from peftjax.train.inspection import as_table, inspect

KEY = jax.random.key(0)
Q = "blocks/attn/q/kernel"


def adapted(*methods):
    return moved(attach(base(), methods or [lora(rank=3, alpha=5, targets=["q_proj", "up_proj"])], KEY))


def test_numbers_are_means_over_the_layers_of_the_dense_change():
    params = adapted()
    found = inspect(params, "default")
    assert set(found) == {"blocks/attn/q", "blocks/mlp/up"} and set(found["blocks/attn/q"]) == {
        "layers", "rank", "effective", "stable", "change / weight"
    }
    weight = np.asarray(get(base(), Q), np.float64)
    change = np.asarray(get(merge(params), Q), np.float64) - weight
    values = [np.linalg.svd(layer, compute_uv=False)[:3] for layer in change]
    shares = [each / each.sum() for each in values]
    wanted = {
        "layers": 2, "rank": 3, "effective": np.mean([np.exp(-np.sum(share * np.log(share))) for share in shares]),
        "stable": np.mean([np.sum(each**2) / each[0] ** 2 for each in values]),
        "change / weight": np.mean([np.linalg.norm(c) / np.linalg.norm(w) for c, w in zip(change, weight, strict=True)]),
    }
    for column, value in wanted.items():
        assert found["blocks/attn/q"][column] == pytest.approx(value, rel=1e-3), column


def test_a_planted_direction_is_an_intruder_and_a_strong_one_of_the_base_is_not():
    """The weight has strong directions along the first axes of the output and none along the last eight."""
    rows, width = 40, 48
    left = np.linalg.qr(np.random.default_rng(0).standard_normal((rows, rows)))[0]
    weight = jnp.asarray(((left * np.linspace(4, 1, rows)) @ np.eye(rows, width))[None], jnp.float32)
    params = attach({"blocks": {"attn": {"q": {"kernel": weight}}}}, [lora(rank=1, targets="q_proj")], KEY)
    counts = {}
    for at in (width - 1, 0):
        params["blocks"]["attn"]["q"]["kernel"] = node = get(params, Q).__class__(
            base=weight, a=jnp.asarray(left[None, :1], jnp.float32), b=8 * jnp.eye(width)[None, at : at + 1], scale=jnp.ones(1),
            dropout=None, name="default",
        )
        assert node.a.shape == (1, 1, rows)
        counts[at] = inspect(params, "default", intruders=True)["blocks/attn/q"]
    assert counts[width - 1]["intruders"] == 1 and counts[0]["intruders"] == 0
    assert counts[0]["random"] == 10 and "same spectrum" in counts[0]


def test_the_table_has_a_line_for_each_kernel_of_each_adapter():
    found = {name: SimpleNamespace(params=adapted(), names=lambda: ["default"]) for name in ("tone", "task")}
    lines = as_table(found).splitlines()
    assert lines[0].startswith("| adapter | kernel | layers | rank | effective") and "intruders" not in lines[0] and len(lines) == 6
    assert lines[2].startswith("| tone | blocks/attn/q | 2 | 3 | ") and len({line.count("|") for line in lines}) == 1
    with pytest.raises(TypeError, match="a network at a site changes no weight"):
        inspect(adapted(pfeiffer(size=2)), "default")
