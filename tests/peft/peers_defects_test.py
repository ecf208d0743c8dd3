"""Defects of HF PEFT (0.20.1.dev0 to 0.21.2), AdapterHub (1.2.0, 1.3.0) and other peers, each with what holds here in its place.

Most are stated where the thing itself is tested; the table says where, and that those tests are there. The others are below.
"""

import ast
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, base, logits, moved, tokens

from peftjax.interop.exchange.adapter import extract, insert
from peftjax.models.decoder import Decoder, abstract_params, cut
from peftjax.nn.layers import ACTIVATIONS
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import GATES, INITS, NORMS, READS, bottleneck, pfeiffer
from peftjax.peft.checks import unread
from peftjax.peft.compacter import compacter
from peftjax.peft.partition import combine, partition
from peftjax.peft.prompt import p_tuning, prompt_tuning
from peftjax.peft.spec import from_data, to_data

KEY = jax.random.key(0)
TESTS = Path(__file__).parents[1]
DEFECTS = {
    "AdapterHub's Average divides by the number of adapters once more": ("peft/compose_test.py", "test_the_average_of_copies_is_the_copy"),
    "AdapterHub's VeRA trains a dense matrix": ("peft/delta_test.py", "test_the_number_of_trainables_on_smollm2"),
    "AdapterHub's DiReFT comes back as NoReFT": ("peft/reft_test.py", "test_a_stored_direft_stays_one"),
    "AdapterHub's plug-in models give every layer the norm of the last": (
        "peft/peers_defects_test.py", "test_an_adapter_reads_behind_the_norm_of_its_own_layer"),
    "AdapterHub's prompts keep their old name": ("peft/peers_defects_test.py", "test_a_prompt_is_loaded_under_another_name"),
    "AdapterHub has settings that raise, or are not heeded": ("peft/peers_defects_test.py", "test_any_settings_train_and_come_back"),
    "AdapterHub leaves out missing keys and knows no base": (
        "interop/exchange/adapterhub_read_test.py", "test_an_adapter_of_another_base_is_refused_with_every_name"),
    "AdapterHub's parallel adapter has no stochastic depth": (
        "peft/bottleneck_test.py", "test_stochastic_depth_leaves_out_whole_rows_and_keeps_the_mean"),
    "AdapterHub's LoReFT trains a unit that nothing reads": (
        "peft/laws_test.py", "test_gradients_reach_every_leaf_and_the_frozen_base_stays"),
    "AdapterHub's LoReFT drops parts of the hidden state": ("peft/reft_test.py", "test_dropout_is_on_the_edit"),
    "AdapterHub's prefixes on Llama have no effect": (
        "peft/laws_test.py", "test_training_moves_the_logits_and_detaching_gives_the_base_bit_for_bit"),
    "AdapterHub's gates count padding": ("peft/bottleneck_test.py", "test_a_token_has_its_own_gate_or_the_mean_of_its_segments"),
    "AdapterHub's gates of prefixes count padding": (
        "peft/prefix_test.py", "test_gates_are_of_the_token_or_of_its_segment_without_padding"),
    "AdapterHub averages LoRAs of unlike scale without it": ("peft/blend_test.py", "test_a_linear_merge_is_the_weighted_sum_of_the_deltas"),
    "HF PEFT's merges by SVD had the scale twice": ("peft/blend_test.py", "test_a_merge_of_one_with_weight_1_is_that_one"),
    "HF PEFT's linear merges have cross terms": ("peft/blend_test.py", "test_a_linear_merge_is_the_weighted_sum_of_the_deltas"),
    "HF PEFT stores no encoder of a prompt": ("train/context_test.py", "test_a_resumed_run_is_the_run_that_went_on"),
    "HF PEFT stores no encoder of a prefix": ("interop/exchange/native_test.py", "test_every_method_there_and_back"),
    "HF PEFT's safe merge stops half done, at a weight or at its bias": (
        "peft/merge_test.py", "test_a_number_that_is_not_finite_is_named_and_the_base_stays"),
    "HF PEFT's weighted merge stops half done": (
        "peft/blend_test.py", "test_a_number_that_is_not_finite_is_named_and_leaves_nothing_half_done"),
    "HF PEFT takes targets that match nothing beside those that do": (
        "peft/select_test.py", "test_a_target_that_matches_nothing_names_the_nearest"),
    "HF PEFT warns of missing keys": (
        "interop/exchange/peft_read_test.py", "test_an_adapter_of_another_base_is_refused_with_every_name"),
    "HF PEFT merges DoRAs by their factors": ("peft/blend_test.py", "test_two_doras_add_up_as_deltas_with_their_error_measured"),
    "HF PEFT's comparison says that the base forgets": ("train/evaluate_test.py", "test_untouched_base_forgets_exactly_nothing"),
    "JetStream adds adapters to the shared weights and takes them off": (
        "peft/laws_test.py", "test_gradients_reach_every_leaf_and_the_frozen_base_stays"),
    "JetStream's requests change the base": ("peft/bank_test.py", "test_rows_without_an_adapter_are_the_base"),
    "MaxText stacks the base anew for each adapter": (
        "peft/vera_test.py", "test_the_matrices_are_as_wide_as_the_widest_kernel_and_held_once"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_the_table_names_is_there(defect):
    path, name = DEFECTS[defect]
    functions = {found.name for found in ast.parse((TESTS / path).read_text()).body if isinstance(found, ast.FunctionDef)}
    assert name in functions, f"{path} has no {name}"


def test_an_adapter_reads_behind_the_norm_of_its_own_layer():
    """In a scanned stack as in one cut into layers, each with a norm that differs from the others'."""
    config = dataclasses.replace(TINY, post_norms=True)
    params = moved(attach(base(config), [pfeiffer(size=3)], KEY), 0.3)
    scales = params["blocks"]["mlp_post_norm"]["scale"]
    assert np.abs(scales[0] - scales[1]).max() > 0.1
    got = logits(params, config)
    np.testing.assert_allclose(logits(cut(params, config, (1, 1)), config, segments=(1, 1)), got, rtol=1e-4, atol=1e-5)
    params["blocks"]["mlp_post_norm"]["scale"] = scales[::-1]
    assert np.abs(logits(params, config) - got).max() > 1e-2


@pytest.mark.parametrize("method", [prompt_tuning(length=2), p_tuning(length=2, hidden=3)], ids=["prompt", "encoder"])
def test_a_prompt_is_loaded_under_another_name(method):
    params = moved(attach(base(), [method], KEY))
    stored = extract(params, [method])
    np.testing.assert_array_equal(logits(insert(base(), stored, "task")), logits(params))


BOTTLENECKS = st.fixed_dictionaries({
    "size": st.integers(1, 5), "reads": st.sampled_from(READS), "activation": st.sampled_from(sorted(ACTIVATIONS)),
    "scale": st.sampled_from([1, 4, 0.5, "learned", "channel"]), "norm": st.sampled_from(NORMS), "init": st.sampled_from(INITS),
    "dropout": st.sampled_from([0.0, 0.1]), "stochastic_depth": st.sampled_from([0.0, 0.2]), "gate": st.sampled_from(GATES),
    "anneal": st.sampled_from([False, True, (0.2, 0.8)]), "sites": st.sampled_from([("mlp_out",), ("attn_out", "mlp_out")]),
})  # fmt: skip
COMPACTERS = st.fixed_dictionaries({
    "size": st.sampled_from([4, 8]), "phm_dim": st.sampled_from([1, 2, 4]), "rank": st.integers(1, 3), "learn_rule": st.booleans(),
    "reads": st.sampled_from(READS), "activation": st.sampled_from(sorted(ACTIVATIONS)), "dropout": st.sampled_from([0.0, 0.1]),
})


@settings(deadline=None, max_examples=12)
@given(st.one_of(BOTTLENECKS.map(lambda given: bottleneck(**given)), COMPACTERS.map(lambda given: compacter(**given))))
def test_any_settings_train_and_come_back(method):
    """Whatever the settings are, they are stored as they are, nothing that is trained goes unread, and no number is an integer."""
    assert from_data(to_data(method)) == method
    trainable, frozen = partition(jax.eval_shape(lambda params: attach(params, [method], KEY), abstract_params(TINY)))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(trainable))
    assert unread(lambda t, f, ids: Decoder(TINY).apply({"params": combine(t, f)}, ids), trainable, frozen, tokens()) == []
