"""A profiled step: instructions are found by name, their products counted from shapes, their origins read from the model's own names."""

import jax
import jax.numpy as jnp
import pytest

from peftjax.train.profile import Op, Profile, as_table, match, product_flops

PROGRAM = """HloModule step

%fused (a: f32[6,4], b: f32[4,5]) -> f32[6,5] {
  %a = f32[6,4]{1,0} parameter(0)
  %b = f32[4,5]{1,0} parameter(1)
  ROOT %d = f32[6,5]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[6,4], w: f32[4,5]) -> f32[6,5] {
  %x = f32[6,4]{1,0} parameter(0)
  %w = f32[4,5]{1,0} parameter(1)
  %loop = (f32[6,4]) while(%x), condition=%c, body=%b, metadata={op_name="jit(step)/while"}
  %plus = f32[6,4]{1,0} add(%x, %x), metadata={op_name="jit(step)/transpose(jvp(Decoder.hidden))/blocks/attn/add"}
  ROOT %out = f32[6,5]{1,0} fusion(%plus, %w), kind=kCustom, calls=%fused, metadata={op_name="jvp(Decoder.hidden)/blocks_2_4/mlp/up/dot"}
}
"""


def test_events_meet_their_instructions():
    ops = match({"out": (3, 0.5), "plus": (3, 0.25), "loop": (1, 0.9), "unheard_of": (1, 9.0)}, PROGRAM)
    assert ops == [
        Op("out", 3, 0.5, 3 * 2 * 6 * 4 * 5, "forward", "blocks/mlp/up"), Op("plus", 3, 0.25, 0.0, "backward", "blocks/attn"),
    ]


def test_a_module_is_found_behind_the_scan_and_the_method_that_holds_it():
    name = "jit(step)/jvp(Decoder._trunk)/Decoder._trunk/while/body/closed_call/checkpoint/blocks/attn/q/dot_general"
    line = f'%out = f32[6] add(%a, %b), metadata={{op_name="{name}"}}'
    assert match({"out": (1, 0.5)}, "ENTRY %main (x: f32[6]) -> f32[6] {\n  " + line + "\n}")[0].where == "blocks/attn/q"


def test_products_of_a_real_program_are_counted():
    x, w = jnp.ones((6, 4)), jnp.ones((4, 5))
    text = jax.jit(lambda x, w: jnp.tanh(x @ w)).lower(x, w).compile().as_text()
    assert product_flops(text.splitlines()) == 2 * 6 * 4 * 5


def test_the_table_says_what_fraction_of_the_machine_was_used():
    profile = Profile(2.0, 1e11, 1e11, 5_000_000, 7_000_000, match({"out": (3, 0.5)}, PROGRAM))
    table = as_table(profile)
    assert "50 GFLOP/s, 50 % of this machine's 100" in table and "temporaries 5 MB" in table
    assert "| forward | blocks/mlp/up | 0.500 |" in table and "| out | 3 | 0.500 |" in table


@pytest.mark.slow  # the profiler starts and writes a trace: ten seconds
def test_a_tiny_step_is_profiled_whole():
    from tiny import TINY, base

    from peftjax.interop.base import Base
    from peftjax.peft import lora
    from peftjax.train.profile import profile_step

    found = profile_step(Base("tiny", TINY, base(TINY), None, ""), lora(rank=2), 2, 8)
    assert {op.phase for op in found.ops} >= {"forward", "backward"}
    assert any(op.where.startswith("blocks") and op.flops > 0 for op in found.ops) and found.step_s > 0
