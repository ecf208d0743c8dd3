"""Generation with the cache is what recomputing everything would give, in a batch as alone, at once as in a stream."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, base, run

from peftjax.models.decoder import Decoder
from peftjax.models.generate import generate, generate_ids, pad_left, sample, stream

MODEL = Decoder(TINY)
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5], [3, 5]]
NEW, NO_EOS = 6, -1


def recomputed(prompt, count=NEW):
    """Greedy ids by a full pass for each token; right padding keeps one compiled shape."""
    ids = list(prompt)
    for _ in range(count):
        padded = jnp.array([ids + [0] * (12 - len(ids))])
        segments = jnp.array([[1] * len(ids) + [0] * (12 - len(ids))])
        ids.append(int(jnp.argmax(run(base(), padded, MODEL, segments=segments)[0, len(ids) - 1])))
    return ids[len(prompt) :]


GREEDY = generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW)


def test_cached_greedy_decoding_is_full_recomputation():
    assert GREEDY == [recomputed(prompt) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in GREEDY}) > 1


def test_a_batch_is_the_prompts_one_by_one():
    assert [generate_ids(MODEL, base(), [prompt], NO_EOS, max_new=NEW)[0] for prompt in PROMPTS] == GREEDY
    assert generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW, batch_size=3) == GREEDY
    assert generate_ids(MODEL, base(), [], NO_EOS, max_new=NEW) == []


def test_the_stream_is_the_batch():
    for prompt, ids in zip(PROMPTS, GREEDY, strict=True):
        assert list(stream(MODEL, base(), prompt, NO_EOS, max_new=NEW)) == ids


def test_the_end_token_ends_a_row_is_not_given_and_leaves_other_rows_alone():
    eos = GREEDY[2][2]
    ended = generate_ids(MODEL, base(), PROMPTS, eos, max_new=NEW)
    assert ended == [ids[: ids.index(eos)] if eos in ids else ids for ids in GREEDY]
    assert list(stream(MODEL, base(), PROMPTS[2], eos, max_new=NEW)) == ended[2]
    assert len(ended[2]) <= 2


def test_max_new_is_a_bound_that_holds_for_prefixes():
    assert generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=1) == [ids[:1] for ids in GREEDY]


def test_sampling_is_a_function_of_the_seed():
    def drawn(seed):
        return generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW, temperature=2.0, seed=seed)

    assert drawn(0) == drawn(0) != drawn(1)
    assert all(0 <= token < TINY.vocab_size for ids in drawn(0) for token in ids)


def test_samples_follow_the_softmax():
    logits = jnp.tile(jnp.log(jnp.array([[0.2, 0.5, 0.3]])), (20_000, 1))
    counts = np.bincount(sample(logits, jax.random.key(0), 1.0), minlength=3) / 20_000
    np.testing.assert_allclose(counts, [0.2, 0.5, 0.3], atol=0.02)
    sharp = np.bincount(sample(logits, jax.random.key(0), 0.5), minlength=3) / 20_000
    np.testing.assert_allclose(sharp, np.square([0.2, 0.5, 0.3]) / 0.38, atol=0.02)
    assert (sample(logits, jax.random.key(0), 0.0) == 1).all()


def test_left_padding_to_a_bucket():
    ids, segments = pad_left([[1, 2], [3]], pad_id=9, bucket=4)
    np.testing.assert_array_equal(ids, [[9, 9, 1, 2], [9, 9, 9, 3]])
    np.testing.assert_array_equal(segments, [[0, 0, 1, 1], [0, 0, 0, 1]])
    assert pad_left([[1] * 5], 0, bucket=4)[0].shape == (1, 8)


def test_rows_of_the_embedding_that_the_tokenizer_does_not_know_are_never_chosen():
    few = max(min(ids) for ids in GREEDY) + 1
    assert any(token >= few for ids in GREEDY for token in ids)
    bounded = generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW, vocab=few)
    assert all(token < few for ids in bounded for token in ids)
    assert list(stream(MODEL, base(), PROMPTS[0], NO_EOS, max_new=NEW, vocab=few)) == bounded[0]


def test_an_empty_prompt_is_refused():
    for ask in (lambda: pad_left([[1], []], 0), lambda: list(stream(MODEL, base(), [], NO_EOS, max_new=2))):
        with pytest.raises(ValueError, match="an empty prompt has no last token"):
            ask()


class Letters:
    """A tokenizer of small letters."""

    eos_id, pad_id, vocab_size, bos_id = NO_EOS, 0, TINY.vocab_size, 4

    def __init__(self, bos_first=False):
        self.bos_first = bos_first

    def encode_batch(self, texts):
        return [[ord(letter) - ord("a") for letter in text] for text in texts]

    def decode(self, ids):
        return " ".join(map(str, ids))


def test_texts_go_through_the_tokenizer():
    texts = ["".join(chr(ord("a") + token) for token in prompt) for prompt in PROMPTS]
    assert generate(MODEL, base(), texts, Letters(), max_new=NEW) == [" ".join(map(str, ids)) for ids in GREEDY]
    begun = generate_ids(MODEL, base(), [[4, *prompt] for prompt in PROMPTS], NO_EOS, max_new=NEW, vocab=TINY.vocab_size)
    assert generate(MODEL, base(), texts, Letters(bos_first=True), max_new=NEW) == [" ".join(map(str, ids)) for ids in begun]


def test_no_token_at_all_is_refused():
    with pytest.raises(ValueError, match="max_new is 0"):
        generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=0)


def test_learned_positions_are_a_bound():
    """Up to the last position that was learned, and no further."""
    config = dataclasses.replace(TINY, learned_positions=True, max_length=7)
    model, params = Decoder(config), base(config)
    ids = generate_ids(model, params, [[3, 1, 4]], NO_EOS, max_new=4)[0]
    assert len(ids) == 4 and list(stream(model, params, [3, 1, 4], NO_EOS, max_new=4)) == ids
    whole = run(params, jnp.array([[3, 1, 4, *ids]]), model)
    assert jnp.argmax(whole[0, 2:-1], axis=-1).tolist() == ids
    for go in (generate_ids, lambda *args, **how: list(stream(model, params, [3, 1, 4], NO_EOS, max_new=5))):
        with pytest.raises(ValueError, match="3 tokens and 5 new ones are more than the 7 positions"):
            go(model, params, [[3, 1, 4]], NO_EOS, max_new=5)
