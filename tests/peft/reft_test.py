"""ReFT edits the ends of segments in a subspace, as its formulas say, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMOL, base, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.sites import Tokens
from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.partition import partition, size
from peftjax.peft.reft import direft, loreft, noreft, reft
from peftjax.peft.spec import from_data, to_data

KEY = jax.random.key(0)
# one row: a segment of five tokens, one of two, two of padding
TOKENS = Tokens(jnp.asarray([[0, 1, 2, 3, 4, 0, 1, 0, 1]]), jnp.asarray([[1, 1, 1, 1, 1, 2, 2, 0, 0]]))
H = np.asarray(jax.random.normal(jax.random.key(1), (1, 9, 16)))


def entry_of(method):
    params = moved(attach(base(), [method], KEY), 0.3)
    return jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/block_out/default"))


@pytest.mark.parametrize("method", [loreft(rank=3), noreft(rank=3), direft(rank=3)], ids=["loreft", "noreft", "direft"])
def test_the_presets_are_their_formulas(method):
    entry = entry_of(method)
    r, w, b = (np.asarray(value[0]) for value in (entry.projection, entry.source, entry.source_bias))
    if entry.orthogonal:
        q, upper = np.linalg.qr(r.T)
        r = (q * np.sign(np.diag(upper))).T
        np.testing.assert_allclose(r @ r.T, np.eye(3), atol=1e-5)
    wanted = H @ w.T + b - (H @ r.T if entry.subtract_projection else 0)
    edited = np.asarray([[1, 1, 1, 0, 0, 1, 1, 0, 0]])[..., None]
    np.testing.assert_allclose(entry(H, tokens=TOKENS), H + edited * (wanted @ r), rtol=1e-4, atol=1e-5)


def edited(entry):
    """Which tokens of the row are changed."""
    return np.flatnonzero(np.any(np.asarray(entry(H, tokens=TOKENS)) != H, axis=-1)[0]).tolist()


def test_positions_count_within_segments_and_padding_is_left_alone():
    assert edited(entry_of(loreft(prefix_positions=1))) == [0, 5]
    assert edited(entry_of(loreft(prefix_positions=0, suffix_positions=1))) == [4, 6]
    assert edited(entry_of(loreft(prefix_positions=1, suffix_positions=2, tied=True))) == [0, 3, 4, 5, 6]
    both = entry_of(loreft(prefix_positions=2, suffix_positions=2))
    assert both.source.shape == (2, 1, 16) and edited(both) == [0, 1, 3, 4, 5, 6]


def test_each_end_has_a_unit_of_its_own_unless_tied_and_the_last_tokens_are_the_suffixs():
    both = entry_of(noreft(prefix_positions=2, suffix_positions=2))
    one = dataclasses.replace(both, **{field: getattr(both, field)[1:] for field in ("projection", "source", "source_bias")})
    one = dataclasses.replace(one, prefix_positions=0)
    np.testing.assert_allclose(both(H, tokens=TOKENS)[:, 3:7], one(H, tokens=TOKENS)[:, 3:7], rtol=1e-5)
    assert np.abs(both(H, tokens=TOKENS)[:, :2] - noreft_of(one)(H, tokens=TOKENS)[:, :2]).max() > 1e-3


def noreft_of(entry):
    return dataclasses.replace(entry, prefix_positions=2, suffix_positions=0)


def test_without_tokens_a_row_is_one_segment():
    entry = entry_of(loreft(prefix_positions=2, suffix_positions=1, tied=True))
    assert np.flatnonzero(np.any(np.asarray(entry(H)) != H, axis=-1)[0]).tolist() == [0, 1, 8]


def test_dropout_is_on_the_edit():
    entry = entry_of(noreft(rank=2, dropout=0.5))
    changed = np.asarray(entry(H, key=KEY, tokens=TOKENS))
    np.testing.assert_array_equal(changed[:, 3:5], H[:, 3:5])
    assert 0.2 < np.mean(changed[:, :3] == H[:, :3]) < 0.8
    np.testing.assert_array_equal(entry_of(noreft(rank=2, dropout=0.0))(H, key=KEY), entry_of(noreft(rank=2, dropout=0.0))(H))


@pytest.mark.parametrize("preset", [loreft, noreft, direft])
def test_the_start_is_on_the_base_unless_random(preset):
    near = get(attach(base(), [preset(rank=4)], KEY), "blocks/block_out/default")
    near = jax.tree.map(lambda leaf: leaf[0], near)
    np.testing.assert_allclose(near(H, tokens=TOKENS), H, atol=1e-6)
    far = jax.tree.map(lambda leaf: leaf[0], get(attach(base(), [preset(rank=4, init="random")], KEY), "blocks/block_out/default"))
    assert np.abs(far(H, tokens=TOKENS) - H).max() > 0.1


def test_a_stored_direft_stays_one():
    method = from_data(to_data(direft(rank=2)))
    assert not method.subtract_projection and method == direft(rank=2)


@pytest.mark.parametrize(
    ("options", "count"), [({}, 138_360), ({"suffix_positions": 1}, 276_720), ({"suffix_positions": 1, "tied": True}, 138_360)]
)
def test_the_number_of_trainables_on_smollm2(options, count):
    params = jax.eval_shape(lambda p: attach(p, [loreft(rank=4, **options)], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "reft needs a positive rank and positions"),
        ({"prefix_positions": 0}, "reft needs a positive rank and positions to edit"),
        ({"subtract_projection": False}, "is DiReFT, whose projection is free"),
        ({"activation": "relu"}, "cannot start on the base with activation 'relu'"),
        ({"init": "zero"}, "reft init 'zero' is none of identity, random"),
        ({"dropout": -0.1}, r"reft dropout -0.1 is not in \[0, 1\)"),
    ],
)
def test_wrong_hyper_parameters_are_refused_when_stated(options, message):
    with pytest.raises(ValueError, match=message):
        reft(**options)


def test_more_orthonormal_rows_than_channels_are_refused():
    with pytest.raises(ValueError, match="reft: 17 orthonormal rows in states of width 16"):
        attach(base(), [loreft(rank=17)], KEY)
