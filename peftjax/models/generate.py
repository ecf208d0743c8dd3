"""Text from a decoder.

    generate(model, params, prompts, tokenizer, max_new=64)                       -> texts
    generate(model, params, prompts, tokenizer, sampling=Sampling(temperature=0.7, top_p=0.9, seed=1), stop=["\\n"])
    stream(model, params, prompt_ids, eos_id, max_new=64)                         -> token ids as they come

Between the calls of the compiled programs (`peftjax.models.decoding`) rows are looked at on the host: for stop strings, and for who is
still waiting. Attention reads every slot of the cache, so the cache starts with room for ROOM new tokens, and the room doubles when it is
used up.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder
from peftjax.models.decoding import NONE, STEPS, bucket, decode, grown, pad_left, prefill
from peftjax.models.sampling import Sampling, knobs
from peftjax.models.stop import StopStrings
from peftjax.models.tokenizer import Tokenizer
from peftjax.nn.context import PROMPT, places_ahead, virtual_tokens

STREAMED = 4  # tokens a call where somebody waits for each
ROOM = 128

GREEDY = Sampling()
Ends = Callable[[Sequence[int], int], int | None]


def check_length(config: DecoderConfig, prompts: Sequence[Sequence[int]], max_new: int, ahead: int = 0) -> None:
    """Learned positions end somewhere; beyond them there is no row to read. `ahead` of them are taken by what stands before the prompts.

    Raises:
        ValueError: no token may be made, or the longest prompt and `max_new` tokens are more than the base has positions for.
    """
    if max_new < 1:
        raise ValueError(f"max_new is {max_new}; at least one token is made")
    longest = max(len(prompt) for prompt in prompts)
    if config.learned_positions and longest + max_new + ahead > config.max_length:
        before = f" behind {ahead} of an adapter" if ahead else ""
        raise ValueError(
            f"{longest} tokens and {max_new} new ones{before} are more than the {config.max_length} positions that this base has"
        )


def generate_ids(
    model: Decoder, params: Any, prompts: Sequence[Sequence[int]], eos_id: int | Sequence[int], *, max_new: int, pad_id: int = 0,
    sampling: Sampling | Sequence[Sampling] = GREEDY, batch_size: int = 64, vocab: int | None = None, ends: Ends | None = None,
    for_rows: Callable[[Any, np.ndarray], Any] | None = None, on_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """New ids for each prompt, without the end token; rows are decoded `batch_size` at a time, prompts of like length together.

    Args:
        eos_id: the token that ends a row, or several.
        sampling: of all rows, or one for each prompt. A row's draws are a function of its seed and its number among the prompts.
        vocab: the number of tokens the tokenizer knows: many bases have more rows in their embedding, and those are never chosen.
        ends: given a row's new ids and how many of them are newer than the last question, says after how many ids the row ends, or None;
            `StopStrings(tokenizer, strings).length` is one.
        for_rows: given `params` and the numbers of a batch's prompts, returns the parameters for that batch (different adapters in one
            batch, see `peftjax.peft.bank`).
        on_batch: is told how many rows are done, after each batch.

    Raises:
        ValueError: an empty prompt, more tokens than the base has positions for, or not one `sampling` for each prompt.
    """
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    if len(samplings) != len(prompts):
        raise ValueError(f"{len(samplings)} samplings are given for {len(prompts)} prompts; give one for all, or one for each")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        numbers = order[start:start + batch_size]
        filling = batch_size - len(numbers) if len(order) > batch_size else 0  # one compiled shape
        batch = numbers + numbers[-1:] * filling
        *_, rows = _growing(
            model, params if for_rows is None else for_rows(params, np.array(batch)), [prompts[i] for i in batch], eos_id,
            [samplings[i] for i in batch], batch, max_new=max_new, pad_id=pad_id, vocab=vocab, ends=ends, filling=filling, steps=STEPS,
        )
        for i, ids in zip(numbers, rows, strict=False):
            out[i] = ids
        if on_batch is not None:
            on_batch(start + len(numbers))
    return out


def stream(
    model: Decoder, params: Any, prompt: Sequence[int], eos_id: int | Sequence[int], *, max_new: int, sampling: Sampling = GREEDY,
    vocab: int | None = None, ends: Ends | None = None,
) -> Iterator[int]:
    """New ids after one prompt, as they come, until an end token (not given) or `max_new` of them: what `generate_ids` gives."""
    given = 0
    for rows in _growing(
        model, params, [prompt], eos_id, [sampling], [0], max_new=max_new, pad_id=0, vocab=vocab, ends=ends, filling=0, steps=STREAMED
    ):
        yield from rows[0][given:]
        given = len(rows[0])


def generate(
    model: Decoder, params: Any, prompts: Sequence[str], tokenizer: Tokenizer, *, max_new: int = 64, stop: str | Sequence[str] = (),
    stop_ids: Sequence[int] = (), **options,
) -> list[str]:
    """Texts that follow `prompts`, each up to the tokenizer's end token, one of `stop_ids` or (without it) one of the strings `stop`;
    greedily unless `sampling` is given; see `generate_ids`."""
    first = [tokenizer.bos_id] if tokenizer.bos_first else []
    stops = StopStrings(tokenizer, stop)
    new = generate_ids(
        model, params, [first + ids for ids in tokenizer.encode_batch(list(prompts))], (tokenizer.eos_id, *stop_ids), max_new=max_new,
        pad_id=tokenizer.pad_id, vocab=tokenizer.vocab_size, ends=stops.length, **options,
    )
    return [stops.cut(tokenizer.decode(row)) for row in new]


def _growing(
    model, params, prompts, eos_id, samplings, numbers, *, max_new, pad_id, vocab, ends, filling, steps
) -> Iterator[list[list[int]]]:
    """The rows' new ids so far, after each call of a compiled program; the last `filling` rows are done from the start."""
    check_length(model.config, prompts, max_new, places_ahead(params))
    tokens, segments = pad_left(prompts, pad_id)
    values, filters = knobs(samplings, numbers)
    rows: list[list[int]] = [[] for _ in prompts]
    done = np.arange(len(rows)) >= len(rows) - filling
    stop_ids = np.atleast_1d(np.asarray(eos_id, np.int32))
    how = {"filters": filters, "vocab": vocab}
    state, first = prefill(model, params, tokens, segments, done, stop_ids, values, **how)
    new, made = np.asarray(first)[None], 1
    slots = used = virtual_tokens(params.get(PROMPT)) + tokens.shape[1]
    while True:
        for row in np.flatnonzero(~done):
            fresh = new[new[:, row] != NONE, row].tolist()
            rows[row] += fresh
            end = ends(rows[row], len(fresh)) if ends is not None and fresh else None
            if end is not None:
                del rows[row][end:]
            done[row] = end is not None or len(fresh) < len(new)
        yield rows
        if done.all() or made == max_new:
            return
        count = min(steps, max_new - made)
        if used + count > slots:
            slots = bucket(used + min(max_new - made, max(ROOM, made)))
            state = grown(model, state, slots)
        state, new = decode(model, params, state, done, stop_ids, values, np.int32(count), **how)
        new, made, used = np.asarray(new)[:count], made + count, used + count
