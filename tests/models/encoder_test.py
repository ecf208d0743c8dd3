"""The encoder computes one function however it is run, that function is transformers', and adapters on it give what AdapterHub gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import equal_trees, noise
from tiny_encoder import BARE, GOLDEN, LENGTH, TINY, golden, golden_inputs, hidden, params, run, tokens

from peftjax.models.decoder import cut
from peftjax.models.encoder import Encoder, abstract_params
from peftjax.nn.tree import flatten, get, put
from peftjax.peft import attach, bottleneck, classifier, houlsby, lora, parallel, pfeiffer

BASES = ("bert", "roberta")


# ---- one function ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"unroll": True}, {"remat": "dots"}, {"remat": "block"}])
def test_the_ways_to_run_a_stack_agree(options):
    np.testing.assert_allclose(hidden(params(), tokens(), options=tuple(options.items())), hidden(params(), tokens()), atol=1e-5)


def test_a_cut_stack_computes_the_same():
    tree = cut(params(), TINY, (1, 2))
    assert "blocks_0_1" in tree
    np.testing.assert_allclose(hidden(tree, tokens(), options=(("segments", (1, 2)),)), hidden(params(), tokens()), atol=1e-5)


def test_every_token_sees_every_token_of_its_segment_and_no_other():
    """Through gradients: what the hidden state at one place depends on."""
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    model, tree = Encoder(dataclasses.replace(TINY, vocab_size=LENGTH)), params()
    embedding = jnp.take(tree["embed"]["embedding"], tokens(1)[0], axis=0)  # one row a place

    def total(embedding, place):
        bound = put(tree, "embed/embedding", embedding)
        out, _ = model.apply({"params": bound}, jnp.arange(LENGTH)[None], segments=segments, method="hidden")
        return jnp.sum(out[0, place] ** 3)

    gradient_at = jax.jit(jax.grad(total))
    for place, seen in ((0, [0, 1, 2]), (2, [0, 1, 2]), (3, [3, 4]), (4, [3, 4])):
        gradient = gradient_at(embedding, place)
        assert np.flatnonzero(np.abs(gradient).max(axis=-1) > 1e-7).tolist() == seen


def test_texts_packed_into_a_line_are_as_texts_apart():
    ids = tokens(2)
    packed = jnp.concatenate([ids[:1, :4], ids[1:, :2]], axis=1)
    found = hidden(params(), packed, segments=jnp.array([[1, 1, 1, 1, 2, 2]]))
    np.testing.assert_allclose(found[0, :4], hidden(params(), ids[:1, :4])[0], atol=1e-5)
    np.testing.assert_allclose(found[0, 4:], hidden(params(), ids[1:, :2])[0], atol=1e-5)


def test_padding_on_either_side_changes_nothing():
    ids, pad = tokens(1, 4), jnp.full((1, 2), 7)
    whole = hidden(params(), ids)[0]
    right = hidden(params(), jnp.concatenate([ids, pad], axis=1), segments=jnp.array([[1, 1, 1, 1, 0, 0]]))
    left = hidden(params(), jnp.concatenate([pad, ids], axis=1), segments=jnp.array([[0, 0, 1, 1, 1, 1]]))
    np.testing.assert_allclose(right[0, :4], whole, atol=1e-5)
    np.testing.assert_allclose(left[0, 2:], whole, atol=1e-5)


def test_types_and_positions_are_read():
    plain, ids = hidden(params(), tokens()), tokens()
    assert np.abs(hidden(params(), ids, types=jnp.ones_like(ids)) - plain).max() > 1e-3
    positions = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)
    np.testing.assert_array_equal(hidden(params(), ids, positions=positions), plain)
    assert np.abs(hidden(params(), ids, positions=positions[:, ::-1]) - plain).max() > 1e-3


def test_the_first_position_is_the_offset_row():
    moved = put(params(), "pos_embed/embedding", params()["pos_embed"]["embedding"].at[: TINY.position_offset].set(9.0))
    np.testing.assert_array_equal(hidden(moved, tokens()), hidden(params(), tokens()))


def test_activations_have_the_models_dtype():
    out = run(params(), tokens(), Encoder(TINY, dtype=jnp.bfloat16))
    assert out.dtype == jnp.bfloat16 and out.shape == (3, len(TINY.labels))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    assert run(half, tokens(), Encoder(TINY)).dtype == jnp.float32


def test_parameters_are_those_the_config_says():
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(abstract_params(TINY)))
    paths = set(flatten(abstract_params(TINY))) - set(flatten(abstract_params(BARE)))
    assert paths == {"pool/kernel", "pool/bias", "head/kernel", "head/bias"}


def test_a_base_without_a_head_says_what_to_attach():
    with pytest.raises(ValueError, match=r"no classification head; attach one: classifier\(labels=\.\.\.\)"):
        run(params(BARE), tokens(), Encoder(BARE))


def test_a_misshapen_weight_is_named():
    wrong = put(params(), "blocks/attn/q/kernel", noise("q", jnp.ones((3, 16, 15))))
    with pytest.raises(ValueError, match=r"blocks/attn/q/kernel has shape \(16, 15\); the model asks for \(16, 16\)"):
        hidden(wrong, tokens())


# ---- transformers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_logits_and_hidden_states_equal_transformers(name):
    config, tree, found = golden(name)
    assert found["logits"].std() > 0.5  # else any model would pass
    inputs, used = golden_inputs(found), found["attention_mask"] > 0
    np.testing.assert_allclose(run(tree, found["tokens"], Encoder(config), **inputs), found["logits"], atol=1e-4)
    np.testing.assert_allclose(hidden(tree, found["tokens"], config, **inputs)[used], found["hidden"][used], atol=1e-4)


@pytest.mark.parametrize("name", BASES)
def test_logits_in_bfloat16_are_near(name):
    config, tree, found = golden(name)
    logits = run(tree, found["tokens"], Encoder(config, dtype=jnp.bfloat16), **golden_inputs(found))
    np.testing.assert_allclose(logits.astype(jnp.float32), found["logits"], atol=0.05 * np.abs(found["logits"]).max())


@pytest.mark.parametrize("name", BASES)
def test_gradients_equal_transformers(name):
    config, tree, found = golden(name)

    def loss(tree):
        logits = Encoder(config).apply({"params": tree}, found["tokens"], **golden_inputs(found))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), found["labels"][:, None], axis=1))

    value, gradients = jax.jit(jax.value_and_grad(loss))(tree)
    np.testing.assert_allclose(value, found["loss"], rtol=1e-5)
    ours = {
        "embeddings.word_embeddings.weight": "embed/embedding",
        "embeddings.position_embeddings.weight": "pos_embed/embedding",
        "embeddings.token_type_embeddings.weight": "type_embed/embedding",
        "encoder.layer.0.attention.self.query.weight": "blocks/attn/q/kernel 0",
        "encoder.layer.1.output.dense.weight": "blocks/mlp/down/kernel 1",
        "pooler.dense.weight": "pool/kernel", "classifier.dense.weight": "pool/kernel",
        "classifier.weight": "head/kernel", "classifier.out_proj.weight": "head/kernel",
    }
    theirs = [key for key in found if key.startswith("gradients/")]
    assert len(theirs) >= 6
    for key in theirs:
        path, _, layer = ours[key.removeprefix("gradients/").removeprefix(f"{name}.")].partition(" ")
        gradient = get(gradients, path)[int(layer)] if layer else get(gradients, path)
        gradient = gradient.T if path.endswith("kernel") else gradient
        np.testing.assert_allclose(gradient, found[key], atol=1e-3 * np.abs(found[key]).max(), err_msg=key)


# ---- AdapterHub --------------------------------------------------------------------------------------------------------


METHODS = {
    "seq_bn": pfeiffer(size=4, init="bert", name="task"),
    "double_seq_bn": houlsby(size=4, init="bert", name="task"),
    "par_bn": parallel(size=4, name="task"),
    "ln_before": bottleneck(sites=("attn_out", "mlp_out"), reads="sum", norm="before", size=4, name="task"),
    "lora": lora(rank=4, alpha=8, targets=("query", "value"), name="task"),
    "lora_all": lora(rank=4, alpha=8, targets=(".*/attn/(q|k|v)", ".*/mlp/(up|down)"), name="task"),
}
SITES = {"attn_out": "attention.output", "mlp_out": "output"}
KERNELS = {
    "attn/q": "attention.self.query", "attn/k": "attention.self.key", "attn/v": "attention.self.value",
    "mlp/up": "intermediate.dense", "mlp/down": "output.dense",
}


def filled(name: str, tree: dict, theirs: dict) -> dict:
    """The attached tree with the tensors of an AdapterHub checkpoint, every one of them."""
    left = dict(theirs)

    def stacked(pattern: str):
        return jnp.stack([jnp.asarray(left.pop(f"{name}.encoder.layer.{layer}.{pattern}")) for layer in range(2)])

    for site, where in SITES.items():
        entry = get(tree, f"blocks/{site}/task")
        if entry is not None:
            where = f"{where}.adapters.task"
            down = 0 if entry.norm_before is None else 1
            new = dict(
                down=stacked(f"{where}.adapter_down.{down}.weight"), down_bias=stacked(f"{where}.adapter_down.{down}.bias"),
                up=jnp.swapaxes(stacked(f"{where}.adapter_up.weight"), 1, 2), up_bias=stacked(f"{where}.adapter_up.bias"),
            )
            if entry.norm_before is not None:
                norm = f"{where}.adapter_norm_before"
                new |= dict(norm_before=stacked(f"{norm}.weight"), norm_before_bias=stacked(f"{norm}.bias"))
                for layer in range(2):  # the same norm a second time, as the first of the sequence
                    for leaf in ("weight", "bias"):
                        left.pop(f"{name}.encoder.layer.{layer}.{where}.adapter_down.0.{leaf}", None)
            tree = put(tree, f"blocks/{site}/task", dataclasses.replace(entry, **new))
    for ours, where in KERNELS.items():
        node = get(tree, f"blocks/{ours}/kernel")
        if hasattr(node, "a"):
            new = dict(a=stacked(f"{where}.loras.task.lora_A"), b=jnp.swapaxes(stacked(f"{where}.loras.task.lora_B"), 1, 2))
            tree = put(tree, f"blocks/{ours}/kernel", dataclasses.replace(node, **new))
    dense = {
        "heads.task.1": "pool", "heads.task.4": "head", "classifier": "head", "classifier.dense": "pool", "classifier.out_proj": "head"
    }
    for key in [key for key in left if key.rpartition(".")[0] in dense]:
        module, _, leaf = key.rpartition(".")
        path = f"{dense[module]}/{'kernel' if leaf == 'weight' else 'bias'}"
        tree = put(tree, path, dataclasses.replace(get(tree, path), value=jnp.asarray(left.pop(key).T)))
    assert not left, f"unread: {', '.join(left)}"
    return tree


@pytest.mark.parametrize("variant", [*METHODS, "flex_seq_bn", "flex_lora"])
@pytest.mark.parametrize("name", BASES)
def test_adapters_with_a_head_equal_adapterhub(name, variant):
    """seq_bn is Pfeiffer: norm(R + u + f(norm(R + u))); double_seq_bn Houlsby: norm(R + u + f(u)); par_bn: norm(R + u + 4 f(R))."""
    config, tree, _ = golden(name)
    folder = GOLDEN / "adapterhub" / f"{name}_{variant}"
    found = np.load(folder / "golden.npz")
    # BERT's own classifier is one layer behind the frozen pooler, RoBERTa's and AdapterHub's have two.
    head = classifier(labels=3, hidden=name == "roberta" or variant.startswith("flex"), name="task")
    attached = attach(tree, [METHODS[variant.removeprefix("flex_")], head], jax.random.key(0))
    attached = filled(name, attached, load_file(folder / "adapter.safetensors") | load_file(folder / "model_head.safetensors"))
    logits = run(attached, found["tokens"], Encoder(config), **golden_inputs(found))
    assert np.abs(run(tree, found["tokens"], Encoder(config), **golden_inputs(found)) - found["logits"]).max() > 0.1
    np.testing.assert_allclose(logits, found["logits"], atol=1e-4)


@pytest.mark.parametrize("reads", ["output", "sum", "residual"])
def test_what_a_bottleneck_reads_matters_behind_a_norm(reads):
    """The choices give different functions, so that agreement with AdapterHub picks one."""
    config, tree, found = golden("bert")
    results = []
    for choice in ("output", "sum", "residual"):
        attached = attach(tree, [bottleneck(size=4, init="bert", reads=choice, activation="relu")], jax.random.key(0))
        entry = get(attached, "blocks/mlp_out/default")
        attached = put(attached, "blocks/mlp_out/default", dataclasses.replace(entry, up=20 * entry.up, down=20 * entry.down))
        results.append((choice, np.asarray(run(attached, found["tokens"], Encoder(config), **golden_inputs(found)))))
    own = dict(results)[reads]
    assert all(np.abs(own - other).max() > 1e-2 for choice, other in results if choice != reads)


def test_normed_and_residual_are_one_where_the_norm_stands_behind():
    trees = [attach(params(), [bottleneck(size=2, init="bert", reads=reads)], jax.random.key(0)) for reads in ("normed", "residual")]
    np.testing.assert_array_equal(*(hidden(tree, tokens()) for tree in trees))
    equal_trees(*(get(tree, "blocks/attn") for tree in trees))
