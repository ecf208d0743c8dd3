"""Arms: forms, and sizes by shapes."""

import numpy as np
import pytest
from tiny import TINY, base

from peftjax.peft import ia3, lora, pfeiffer
from peftjax.study.arms import Arm, arm_from_data, names, size_of

LORA = Arm("LoRA", (lora(rank=4),))


def test_sizes_are_those_of_the_parameters():
    size, bare = size_of(LORA, base(), TINY), size_of(Arm("base"), base(), TINY)
    assert size.trainable == 2 * 4 * (2 * (16 + 24) + 2 * (16 + 12) + 3 * (16 + 28)) and size.stored_bytes == 4 * size.trainable
    assert size.held_bytes > bare.held_bytes + size.stored_bytes and size.merges and bare.merges is None
    merged = size_of(Arm("merged", LORA.methods, form="merged"), base(), TINY)
    assert merged.held_bytes == bare.held_bytes and merged.stored_bytes == size.stored_bytes
    bank = size_of(Arm("bank", LORA.methods, form="bank", adapters=3), base(), TINY)
    assert bank.held_bytes >= bare.held_bytes + 3 * size.stored_bytes
    assert size_of(Arm("Pfeiffer", (pfeiffer(size=4),)), base(), TINY).merges is False


def test_layers_that_a_method_leaves_out_cut_the_stack():
    arm = Arm("upper", (lora(rank=2, layers=(1,)),))
    assert arm.segments(TINY) == (1, 1) and size_of(arm, base(), TINY).trainable == 2 * (2 * (16 + 24) + 2 * (16 + 12) + 3 * (16 + 28))


def test_rows_of_a_bank_have_their_adapters_in_turn():
    bank = Arm("bank", (lora(rank=2, targets=".*/q"),), form="bank", adapters=2)
    chosen = bank.rows(bank.params(base()), 3, gather=False)
    np.testing.assert_array_equal(np.asarray(chosen["blocks"]["attn"]["q"]["kernel"].ids), [[0, 1, 0]] * 2)


def test_data_make_the_arm_again():
    arm = Arm("8 LoRAs", (lora(rank=4, targets=("q_proj",)),), form="bank", adapters=8)
    assert arm_from_data(arm.to_data()) == arm and arm_from_data({"name": "base"}) == Arm("base")


@pytest.mark.parametrize("make, message", [
    (lambda: Arm("x", (lora(),), form="merge"), "did you mean 'merged'"),
    (lambda: Arm("x", form="merged"), "has no methods"),
    (lambda: Arm("x", (lora(),), adapters=2), "the form beside has one"),
    (lambda: arm_from_data({"name": "x", "method": []}), "did you mean 'methods'"),
    (lambda: names([Arm("a"), Arm("a")]), "two arms are called 'a'"),
    (lambda: names([LORA]), "no arm is the base"),
    (lambda: size_of(Arm("x", (ia3(),), form="bank", adapters=2), base(), TINY), "a bank holds LoRA and bottlenecks"),
    (lambda: size_of(Arm("x", (pfeiffer(size=2),), form="merged"), base(), TINY), "no dense weight"),
])
def test_what_cannot_be_is_said(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
