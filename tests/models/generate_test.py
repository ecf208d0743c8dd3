"""Generation with the cache is what recomputing everything would give, in a batch as alone, at once as in a stream."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, base, run

from peftjax.models.decoder import Decoder
from peftjax.models.decoding import bucket, decode, pad_left, prefill
from peftjax.models.generate import ROOM, generate, generate_ids, stream
from peftjax.models.sampling import Sampling
from peftjax.models.stop import StopStrings

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
        return generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW, sampling=Sampling(2.0, seed=seed))

    assert drawn(0) == drawn(0) != drawn(1)
    assert all(0 <= token < TINY.vocab_size for ids in drawn(0) for token in ids)


DRAWN = Sampling(temperature=1.5, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.3, seed=4)


@pytest.mark.slow  # programs for two sizes of batch: fourteen seconds
def test_a_draw_does_not_depend_on_the_batch():
    """Of one prompt in several rows, each row draws its own; rows keep their draws in batches of any size."""
    prompts = [[3, 1, 4]] * 3 + [[5, 9, 2, 6, 5]]
    rows = generate_ids(MODEL, base(), prompts, NO_EOS, max_new=NEW, sampling=DRAWN)
    assert len({tuple(row) for row in rows}) == 4
    assert generate_ids(MODEL, base(), prompts, NO_EOS, max_new=NEW, sampling=DRAWN, batch_size=2) == rows
    assert list(stream(MODEL, base(), prompts[0], NO_EOS, max_new=NEW, sampling=DRAWN)) == rows[0]


def test_rows_may_be_sampled_in_different_ways():
    asked = [Sampling(), DRAWN, Sampling(1.0, top_k=1), Sampling(repetition_penalty=100.0)]
    rows = generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW, sampling=asked)
    assert rows[0] == GREEDY[0] and rows[2] == GREEDY[2] and rows[1] != GREEDY[1]
    with pytest.raises(ValueError, match="2 samplings are given for 4 prompts"):
        generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW, sampling=asked[:2])


def test_a_large_penalty_says_nothing_twice_and_nothing_of_the_prompt():
    rows = generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW, sampling=Sampling(repetition_penalty=1e6))
    for prompt, ids in zip(PROMPTS, rows, strict=True):
        assert len({*prompt, *ids}) == len(set(prompt)) + len(ids)


def test_padding_counts_as_nothing_said():
    asked = {"max_new": NEW, "sampling": Sampling(repetition_penalty=5.0)}
    rows = [generate_ids(MODEL, base(), PROMPTS, NO_EOS, pad_id=pad, **asked) for pad in (0, 7)]
    assert rows[0] == rows[1]


def test_a_growing_cache_changes_nothing():
    """Through several sizes of the cache, and the last step of the loop within a call."""
    new = ROOM + 45
    ids = generate_ids(MODEL, base(), PROMPTS[:2], NO_EOS, max_new=new)
    assert [row[:NEW] for row in ids] == GREEDY[:2] and [len(row) for row in ids] == [new, new]
    for prompt, row in zip(PROMPTS, ids, strict=False):
        whole = run(base(), jnp.array([[*prompt, *row]]), MODEL)[0]
        assert jnp.argmax(whole[len(prompt) - 1:-1], axis=-1).tolist() == row


def test_several_end_tokens():
    ends = (GREEDY[2][2], GREEDY[0][1], NO_EOS)
    ended = generate_ids(MODEL, base(), PROMPTS, ends, max_new=NEW)
    assert ended == [row[: min([row.index(end) for end in ends if end in row], default=NEW)] for row in GREEDY]


def test_a_row_may_be_ended_by_the_caller():
    def ends(ids, new):
        return 2 if len(ids) >= 2 and ids[0] == GREEDY[0][0] else None

    rows = generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW, ends=ends)
    assert rows == [GREEDY[0][:2], *GREEDY[1:]]
    assert list(stream(MODEL, base(), PROMPTS[0], NO_EOS, max_new=NEW, ends=ends)) == GREEDY[0][:2]


def test_each_batch_may_have_its_own_parameters():
    seen = []

    def for_rows(params, numbers):
        seen.append(numbers.tolist())
        return params

    assert generate_ids(MODEL, base(), PROMPTS, NO_EOS, max_new=NEW, batch_size=3, for_rows=for_rows) == GREEDY
    assert seen == [[1, 3, 0], [2, 2, 2]]


def test_lengths_and_numbers_are_no_other_programs():
    """One program reads prompts and one decodes, whatever the prompts, the number of tokens and the numbers of the sampling are."""
    before = prefill._cache_size(), decode._cache_size()
    for top_p, prompts, new in ((0.3, PROMPTS, 20), (0.9, [[5] * 30, *PROMPTS[1:]], 33), (0.5, PROMPTS[::-1], 7)):
        asked = Sampling(top_p, top_p=top_p, seed=new)
        generate_ids(MODEL, base(), prompts, NO_EOS, max_new=new, sampling=asked, vocab=TINY.vocab_size - 1)
    assert (prefill._cache_size(), decode._cache_size()) == (before[0] + 1, before[1] + 1)


def test_buckets_are_few_and_waste_less_than_a_third():
    sizes = [bucket(length) for length in range(1, 1025)]
    assert sorted(set(sizes)) == [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert all(length <= size and (size == 32 or size * 2 < length * 3 or size == 64) for length, size in enumerate(sizes, 1))


def test_left_padding_to_a_bucket():
    ids, segments = pad_left([[1, 2], [3]], pad_id=9, length=4)
    np.testing.assert_array_equal(ids, [[9, 9, 1, 2], [9, 9, 9, 3]])
    np.testing.assert_array_equal(segments, [[0, 0, 1, 1], [0, 0, 0, 1]])
    assert pad_left([[1] * 33], 0)[0].shape == (1, 64)


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

    def decode(self, ids, skip_special=True):
        return " ".join(map(str, ids))


def test_texts_go_through_the_tokenizer():
    texts = ["".join(chr(ord("a") + token) for token in prompt) for prompt in PROMPTS]
    assert generate(MODEL, base(), texts, Letters(), max_new=NEW) == [" ".join(map(str, ids)) for ids in GREEDY]
    begun = generate_ids(MODEL, base(), [[4, *prompt] for prompt in PROMPTS], NO_EOS, max_new=NEW, vocab=TINY.vocab_size)
    assert generate(MODEL, base(), texts, Letters(bos_first=True), max_new=NEW) == [" ".join(map(str, ids)) for ids in begun]


def test_texts_end_before_a_stop_string():
    texts = ["".join(chr(ord("a") + token) for token in prompt) for prompt in PROMPTS]
    free = generate(MODEL, base(), texts, Letters(), max_new=NEW)
    stop = free[0][-5:-1]  # over several tokens
    assert generate(MODEL, base(), texts, Letters(), max_new=NEW, stop=stop) == [text.split(stop)[0] for text in free] != free
    assert generate(MODEL, base(), texts, Letters(), max_new=NEW, stop_ids=[GREEDY[0][1]])[0] == str(GREEDY[0][0])
    assert StopStrings(Letters(), stop).length(GREEDY[0], 2) == NEW


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
