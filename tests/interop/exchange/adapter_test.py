"""An adapter apart from its base: out and in again is the same, however the stack is cut, and nothing that does not fit goes in."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import BIASED, TIED, base, equal_trees, logits, moved

from peftjax.interop.exchange.adapter import Adapter, Piece, digest, extract, fill, insert
from peftjax.models.decoder import cut
from peftjax.nn.tree import flatten
from peftjax.peft import attach, bitfit, bottleneck, detach, full, houlsby, lora, norm_only, partition, pfeiffer
from peftjax.peft.tokens import trainable_tokens

KEY = jax.random.key(0)
TONE = "tone"
METHODS = {
    "lora": (TIED, (lora(rank=2, alpha=3, targets=["all-linear", "embed_tokens", "lm_head"], name=TONE),)),
    "lora patterns": (TIED, (lora(rank=2, rank_pattern={"blocks/1/.*": 3, "down_proj": 1}, name=TONE),)),
    "lora bias": (BIASED, (lora(rank=2, lora_bias=True, dropout=0.1, name=TONE),)),
    "lora apart from the head": (TIED, (lora(rank=2, targets=["embed_tokens"], ensure_weight_tying=False, name=TONE),)),
    "bottleneck": (TIED, (bottleneck(size=3, sites=("embed_out", "mlp_out"), reads="output", norm="both", scale="channel", name=TONE),)),
    "full": (TIED, (full(name=TONE),)),
    "bitfit": (TIED, (bitfit(add=True, name=TONE),)),
    "tokens": (TIED, (trainable_tokens(ids=(3, 7), targets=["embed_tokens", "lm_head"], name=TONE),)),
    "several": (BIASED, (lora(rank=2, targets="q_proj", name=TONE), houlsby(size=3, name=TONE), norm_only(name=TONE),
                         bitfit(targets="up_proj", name=TONE))),
}  # fmt: skip
every_method = pytest.mark.parametrize("case", METHODS)


def trained(case, segments=()):
    config, methods = METHODS[case]
    return moved(attach(cut(base(config), config, segments), methods, KEY))


def taken(case) -> Adapter:
    return extract(trained(case), METHODS[case][1])


def same(one: Adapter, other: Adapter) -> None:
    assert one.pieces.keys() == other.pieces.keys()
    assert digest(one) == digest(other)


@every_method
def test_out_and_in_again_is_the_same_tree(case):
    config, methods = METHODS[case]
    adapter = taken(case)
    assert adapter.methods == methods
    assert all(isinstance(array, np.ndarray) for piece in adapter.pieces.values() for array in piece.arrays.values())
    equal_trees(insert(base(config), adapter, TONE), trained(case))
    same(extract(insert(base(config), adapter, TONE), methods), adapter)


@every_method
def test_the_name_is_not_in_it(case):
    config, methods = METHODS[case]
    renamed = insert(base(config), taken(case), "task")
    same(extract(renamed, [dataclasses.replace(method, name="task") for method in methods]), taken(case))


@every_method
def test_how_the_stack_is_cut_is_not_in_it(case):
    config, methods = METHODS[case]
    parts = insert(cut(base(config), config, (1, 1)), taken(case), TONE)
    whole = insert(base(config), taken(case), TONE)
    same(extract(parts, methods), taken(case))
    if case == "lora patterns":  # the rows that pad a layer to its stack are not there where it has a stack of its own
        np.testing.assert_allclose(logits(parts, config, segments=(1, 1)), logits(whole, config), rtol=1e-4, atol=1e-5)
    else:
        equal_trees(cut(parts, config, ()), whole)


def test_a_piece_is_of_one_layer_by_its_number():
    adapter = extract(attach(base(TIED, (1, 1)), [lora(rank=2, targets="q_proj", layers=[1])], KEY), [])
    assert list(adapter.pieces) == ["blocks/1/attn/q/kernel"]
    piece = adapter.pieces["blocks/1/attn/q/kernel"]
    shapes = {field: array.shape for field, array in piece.arrays.items()}
    assert piece.kind == "LoRA" and shapes == {"a": (2, 16), "b": (2, 24), "scale": ()}


def test_the_bases_arrays_are_shared_and_the_adapters_are_not():
    """What is trained is donated at every step: it must not take the adapter's memory, or the base's, with it."""
    adapter, on = taken("lora"), base(TIED)
    before = digest(adapter)
    params = insert(on, adapter, TONE)
    for path, leaf in flatten(on).items():
        assert flatten(params)[path] is leaf
    trainable = jax.tree.map(lambda leaf: leaf, partition(params)[0])
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)(trainable)
    assert digest(adapter) == before and flatten(on)
    equal_trees(detach(insert(on, adapter, TONE)), on)


def test_several_adapters_in_a_tree_are_told_apart_by_name():
    tone, task = lora(rank=2, name="tone"), lora(rank=3, targets="q_proj", name="task")
    params = moved(attach(base(), [tone, task], KEY))
    with pytest.raises(ValueError, match="no adapter is called None; the tree holds task, tone: name one of them"):
        extract(params, [tone, task])
    with pytest.raises(ValueError, match="no adapter is called 'tune'; the tree holds task, tone"):
        extract(params, [tone, task], "tune")
    with pytest.raises(ValueError, match="the tree holds none"):
        extract(base(), [])
    adapter = extract(params, [tone, task], "task", dtype="bfloat16", lineage={"run": 1})
    assert adapter.methods == (task,) and (adapter.dtype, adapter.lineage) == ("bfloat16", {"run": 1})
    equal_trees(insert(base(), adapter, "task"), detach(params, ["tone"]))
    equal_trees(detach(insert(detach(params, ["task"]), adapter, "task"), ["tone"]), detach(params, ["tone"]))


def test_two_nodes_of_one_name_on_one_kernel_are_refused():
    params = attach(base(), [full(), lora(rank=2, targets="q_proj")], KEY)
    with pytest.raises(ValueError, match="two nodes of adapter 'default' stand at blocks/0/attn/q/kernel"):
        extract(params, [])


def test_the_digest_changes_with_every_bit_place_and_kind():
    adapter = extract(attach(base(), [pfeiffer(size=3)], KEY), [])
    path, piece = next(iter(adapter.pieces.items()))
    up = piece.arrays["up"].copy()
    up.flat[0] = np.nextafter(up.flat[0], 1, dtype=np.float32)
    others = [
        {path: Piece(piece.kind, {**piece.arrays, "up": up})}, {path: Piece("LoRA", piece.arrays)},
        {path: Piece(piece.kind, {**piece.arrays, "up": piece.arrays["up"].reshape(-1)})}, {path + "x": piece},
    ]  # fmt: skip
    found = {digest(dataclasses.replace(adapter, pieces=pieces)) for pieces in [{path: piece}, *others]}
    assert len(found) == 5
    assert digest(dataclasses.replace(adapter, pieces=dict(reversed(adapter.pieces.items())))) == digest(adapter)


# ---- what does not fit -----------------------------------------------------------------------------------------------------------------

Q0 = "blocks/0/attn/q/kernel"


def edited(change) -> Adapter:
    adapter = taken("lora bias")
    pieces = dict(adapter.pieces)
    change(pieces)
    return dataclasses.replace(adapter, pieces=pieces)


def of_piece(**arrays):
    """A change of some arrays of one piece; None takes one out."""

    def change(pieces):
        kept = {field: array for field, array in (dict(pieces[Q0].arrays) | arrays).items() if array is not None}
        pieces[Q0] = Piece("LoRA", kept)

    return change


EDITS = {
    "a missing piece": (lambda pieces: pieces.pop(Q0), rf"missing   {Q0} \(LoRA\)"),
    "an extra piece": (lambda pieces: pieces.update({"blocks/2/attn/q/kernel": pieces[Q0]}), r"extra     blocks/2/attn/q/kernel \(LoRA\)"),
    "another kind": (lambda pieces: pieces.update({Q0: Piece("Trained", {})}), f"{Q0}: stored Trained, the methods put LoRA there"),
    "a missing array": (of_piece(bias=None), f"missing   {Q0} bias"),
    "an extra array": (of_piece(magnitude=np.ones(3, np.float32)), f"extra     {Q0} magnitude"),
    "another width": (of_piece(b=np.ones((2, 9), np.float32)), rf"misshapen {Q0} b: stored \[2, 9\], this base wants \[2, 24\]"),
    "a larger rank": (of_piece(a=np.ones((3, 16), np.float32)), rf"misshapen {Q0} a: stored \[3, 16\]"),
    "a scale for each row": (of_piece(scale=np.ones(2, np.float32)), rf"misshapen {Q0} scale: stored \[2\], this base wants \[\]"),
    "an empty adapter": (lambda pieces: pieces.clear(), "(?s)missing .* and [0-9]+ more|missing"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_what_does_not_fit_is_refused_with_every_name(edit):
    change, message = EDITS[edit]
    with pytest.raises(ValueError, match=message) as error:
        insert(base(BIASED), edited(change), TONE, "my-adapter")
    assert str(error.value).startswith("my-adapter does not fit this base:")


def test_long_lists_are_cut():
    adapter = extract(attach(base(), [lora(rank=2), norm_only()], KEY), [lora(rank=2), norm_only()])
    with pytest.raises(ValueError, match="(?s)does not fit.*and [0-9]+ more$") as error:
        insert(base(), dataclasses.replace(adapter, pieces={**{f"{path}x": p for path, p in adapter.pieces.items()}}))
    assert len(str(error.value).splitlines()) == 22


def test_filling_needs_the_room_that_the_methods_made():
    adapter = taken("lora bias")
    room = attach(base(BIASED), METHODS["lora bias"][1], jax.random.key(9))
    equal_trees(fill(room, adapter, TONE), trained("lora bias"))
    with pytest.raises(ValueError, match="extra     blocks/0/attn/q/kernel"):
        fill(base(BIASED), adapter, TONE)
