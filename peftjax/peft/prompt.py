"""Virtual tokens before a line: prompt tuning (2104.08691, 2021) and P-tuning (2103.10385, 2021).

    before  prompt = (absent)
    after   prompt = {"default": Prompt(embedding=[P, D])}                                          prompt_tuning()
            prompt = {"default": PromptEncoder(embedding=[P, D], down=[M, D], ..., up=[M, D], ...)}        p_tuning()
            prompt = {"default": PromptLSTM(embedding=[P, D], first=[2, 4M, D], ..., up=[2M, D], ...)}     p_tuning(encoder="lstm")

    [V ; E(x)]        V = embedding, or relu(relu(embedding Dᵀ + d) H + h) U + u, or relu(LSTM(embedding) H + h) U + u

Virtual tokens are in units of the base's embedding: where that is scaled on its way into the stream (Gemma), they are scaled too. HF
PEFT stores V, of both methods, as `prompt_embeddings` [P, D] (on Gemma times the scale); the encoder of P-tuning is lost there, and kept
here, so that training goes on where it stopped. `peftjax.peft.folded` puts V in the encoder's place when training is over.

In an encoder a virtual token sees the text behind it, so that each text has a copy. Where they join and where the classifier reads differ
between libraries; ours is that of P-tuning v2's code (2110.07602, 2021), which reads the text's own first token:

| on an encoder         | V joins                                                  | the classifier reads                     |
|---|---|---|
| ours                  | before the embedding's sum and norm, at positions 0 to P-1 | the text's first token: reads="text"     |
| HF PEFT               | the same                                                 | the first virtual token: reads="prompt"  |
| AdapterHub "prefix"   | behind the norm, without positions: offset=False         | the first virtual token: reads="prompt"  |
| "prefix_after_bos"    | the same: among tokens that see each other order is nothing but positions | the text's first token: reads="text" |
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.hints import did_you_mean
from peftjax.nn.context import PROMPT
from peftjax.nn.kernels import Entry, Kernel, lookup, node
from peftjax.nn.tree import get, put
from peftjax.peft.bounds import require_positive
from peftjax.peft.keys import Draw, kaiming
from peftjax.peft.lstm import both_ways

INITS = ("random", "vocabulary", "text")
ENCODERS = ("mlp", "lstm")
READS = ("text", "prompt")


@node(arrays=("embedding",), static=("offset", "reads", "name"))
@dataclasses.dataclass(frozen=True)
class Prompt(Entry):
    """The entry. embedding: [P, D]; offset: they take positions; reads: one of READS."""

    embedding: jax.Array
    offset: bool
    reads: str
    name: str

    trainable = matrices = ("embedding",)

    @property
    def length(self):
        return self.embedding.shape[-2]

    def rows(self, batch, dtype, key=None):
        """See `peftjax.nn.context`: the same for all rows."""
        return self.embedding.astype(dtype), None


class Made(Entry):
    """Virtual tokens that a network makes out of its field `embedding` [P, D]. A subclass says in `folded` which."""

    embedding: jax.Array

    @property
    def length(self):
        return self.embedding.shape[-2]

    def rows(self, batch, dtype, key=None):
        """See `peftjax.nn.context`: the same for all rows, computed in float32."""
        return self.folded().embedding.astype(dtype), None

    def folded(self) -> Prompt:
        """The virtual tokens themselves."""
        raise TypeError(f"{type(self).__name__} does not say what it makes")


@node(arrays=("embedding", "down", "down_bias", "middle", "middle_bias", "up", "up_bias"), static=("offset", "reads", "name"))
@dataclasses.dataclass(frozen=True)
class PromptEncoder(Made):
    """The entry whose virtual tokens a network makes. embedding: [P, D]; down, up: [M, D]; middle: [M, M], from the first axis to the
    second; down_bias, middle_bias: [M]; up_bias: [D]; the others as of `Prompt`. In HF PEFT `embedding` and `mlp_head.{0,2,4}`, of which
    files have nothing."""

    embedding: jax.Array
    down: jax.Array
    down_bias: jax.Array
    middle: jax.Array
    middle_bias: jax.Array
    up: jax.Array
    up_bias: jax.Array
    offset: bool
    reads: str
    name: str

    trainable = ("embedding", "down", "down_bias", "middle", "middle_bias", "up", "up_bias")
    matrices = ("embedding", "down", "middle", "up")

    def folded(self) -> Prompt:
        """The virtual tokens themselves."""
        h = jax.nn.relu(self.embedding @ self.down.T + self.down_bias[None])
        h = jax.nn.relu(h @ self.middle + self.middle_bias[None])
        return Prompt(h @ self.up + self.up_bias[None], self.offset, self.reads, self.name)


@node(
    arrays=("embedding", "first", "deeper", "states", "biases", "middle", "middle_bias", "up", "up_bias"),
    static=("offset", "reads", "name"),
)
@dataclasses.dataclass(frozen=True)
class PromptLSTM(Made):
    """The entry whose virtual tokens an LSTM of N layers in both directions and two linear layers make. embedding: [P, D]; first
    [2, 4M, D] and deeper [N-1, 2, 4M, 2M] (None with one layer): of what a layer reads; states: [N, 2, 4M, M]; biases: [N, 2, 2, 4M], of
    inputs and of states (see `peftjax.peft.lstm`); middle: [2M, 2M]; middle_bias: [2M]; up: [2M, D]; up_bias: [D]; the others as
    of `Prompt`. In HF PEFT `embedding`, `lstm_head` and `mlp_head.{0,2}`, of which files have nothing."""

    embedding: jax.Array
    first: jax.Array
    deeper: jax.Array | None
    states: jax.Array
    biases: jax.Array
    middle: jax.Array
    middle_bias: jax.Array
    up: jax.Array
    up_bias: jax.Array
    offset: bool
    reads: str
    name: str

    trainable = ("embedding", "first", "deeper", "states", "biases", "middle", "middle_bias", "up", "up_bias")
    matrices = ("embedding", "first", "deeper", "states", "middle", "up")

    def folded(self) -> Prompt:
        """The virtual tokens themselves."""
        h = both_ways(self.embedding, self.first, self.states[0], self.biases[0])
        for number in range(self.states.shape[0] - 1):
            h = both_ways(h, self.deeper[number], self.states[number + 1], self.biases[number + 1])
        h = jax.nn.relu(h @ self.middle + self.middle_bias[None])
        return Prompt(h @ self.up + self.up_bias[None], self.offset, self.reads, self.name)


@dataclasses.dataclass(frozen=True)
class prompt_tuning:  # noqa: N801 (configs read `prompt_tuning(length=20)`)
    """Trained virtual tokens. The start is not the base: any token before a line changes what follows.

        [V ; E(x)],  V = embedding

    Attributes:
        length: P.
        init: "random" is U(±0.5) (Lester et al.), "vocabulary" embeddings of tokens drawn from the whole vocabulary, "text" those of `ids`.
        ids: with "text", token ids of what the model should begin with, as `tokenizer.encode(text)` gives them; repeated or cut to
            `length`.
        text: with "text", the same in words: a run makes `ids` of them by the base's tokenizer (`peftjax.train.wording`).
        offset: of encoders: they join before the embedding's norm, at the first positions, and a text's own begin behind them; False:
            behind the norm, and a text's own begin at 0 (AdapterHub).
        reads: of encoders: a classifier reads the "text"'s first token, or the first virtual token of the "prompt" (HF PEFT).
        name: of the adapter.
    """

    length: int = 10
    init: str = "random"
    ids: Sequence[int] = ()
    text: str = ""
    offset: bool = True
    reads: str = "text"
    name: str = "default"

    def __post_init__(self):
        require_positive("prompt_tuning", length=self.length)
        _require_reads("prompt_tuning", self.reads)
        if self.init not in INITS:
            raise ValueError(f"prompt_tuning init {self.init!r} is none of {', '.join(INITS)}")
        if (self.init == "text") != bool(self.ids or self.text):
            raise ValueError(f"prompt_tuning needs text or ids for init='text' and for no other; init is {self.init!r}, "
                             f"text {self.text!r}, ids {list(self.ids)}")

    @property
    def ahead(self) -> int:
        """Positions that are taken before the first token of a row."""
        return self.length if self.offset else 0

    @property
    def virtual(self) -> int:
        """Tokens that are put before a line of a decoder, or each text of an encoder."""
        return self.length

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with the virtual tokens.

        Raises:
            ValueError: a base with too few positions, what is of encoders on a decoder, an id outside the vocabulary, a text without its
                ids, or a name that is taken.
        """
        if self.init == "text" and not self.ids:
            raise ValueError(f"prompt_tuning text={self.text!r} has no ids yet, and a tree of parameters has no tokenizer: give "
                             "ids=tokenizer.encode(text); a run does so itself")
        return _before_lines(params, key, self, self._entry)

    def _entry(self, table: Any, draw: Draw) -> Prompt:
        vocabulary, width = table.shape
        if self.init == "random":
            return Prompt(draw("embedding", lambda key: jax.random.uniform(key, (self.length, width), minval=-0.5, maxval=0.5)),
                          self.offset, self.reads, self.name)
        if self.init == "vocabulary":
            ids = draw("embedding", lambda key: jax.random.randint(key, (self.length,), 0, vocabulary))
        else:
            outside = [i for i in self.ids if not 0 <= i < vocabulary]
            if outside:
                raise ValueError(f"prompt_tuning ids {outside} lie outside the vocabulary of {vocabulary}")
            ids = jnp.resize(jnp.asarray(self.ids, jnp.int32), self.length)
        return Prompt(lookup(ids, table, jnp.float32), self.offset, self.reads, self.name)


@dataclasses.dataclass(frozen=True)
class p_tuning:  # noqa: N801
    """Virtual tokens that a trained network makes of trained embeddings, as in HF PEFT.

        [V ; E(x)],  V = relu(relu(embedding Dᵀ + d) H + h) U + u

    Attributes:
        length: P.
        hidden: M, width of the network.
        encoder: "mlp", three linear layers, or "lstm", an LSTM over the virtual tokens in both directions and two linear layers.
        depth: N, layers of the LSTM.
        offset, reads: as of `prompt_tuning`.
        name: of the adapter.
    """

    length: int = 10
    hidden: int = 128
    encoder: str = "mlp"
    depth: int = 2
    offset: bool = True
    reads: str = "text"
    name: str = "default"

    def __post_init__(self):
        _require_reads("p_tuning", self.reads)
        if self.length < 1 or self.hidden < 1:
            raise ValueError(f"p_tuning length {self.length} and hidden {self.hidden} must be positive")
        if self.encoder not in ENCODERS:
            raise ValueError(f"p_tuning encoder {self.encoder!r} is none of {', '.join(ENCODERS)}{did_you_mean(self.encoder, ENCODERS)}")
        if self.depth < 1 or (self.encoder == "mlp" and self.depth != 2):
            raise ValueError(f"p_tuning depth {self.depth} must be positive, and belongs to encoder='lstm': the other has three layers")

    @property
    def ahead(self) -> int:
        """Positions that are taken before the first token of a row."""
        return self.length if self.offset else 0

    @property
    def virtual(self) -> int:
        """Tokens that are put before a line of a decoder, or each text of an encoder."""
        return self.length

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with the virtual tokens' encoder. Starts and errors as PyTorch's layers and as `prompt_tuning` have them."""
        return _before_lines(params, key, self, self._entry)

    def folded(self) -> prompt_tuning:
        """What `peftjax.peft.folded` leaves."""
        return prompt_tuning(self.length, offset=self.offset, reads=self.reads, name=self.name)

    def _entry(self, table: Any, draw: Draw) -> PromptEncoder | PromptLSTM:
        width, hidden = table.shape[-1], self.hidden
        if self.encoder == "lstm":
            return self._lstm(width, draw)
        return PromptEncoder(
            embedding=draw("embedding", lambda key: jax.random.normal(key, (self.length, width))),
            down=draw("down", kaiming(width, hidden, width)), down_bias=draw("down_bias", kaiming(width, hidden)),
            middle=draw("middle", kaiming(hidden, hidden, hidden)), middle_bias=draw("middle_bias", kaiming(hidden, hidden)),
            up=draw("up", kaiming(hidden, hidden, width)), up_bias=draw("up_bias", kaiming(hidden, width)),
            offset=self.offset, reads=self.reads, name=self.name,
        )

    def _lstm(self, width: int, draw: Draw) -> PromptLSTM:
        hidden, deep = self.hidden, self.depth - 1
        return PromptLSTM(
            embedding=draw("embedding", lambda key: jax.random.normal(key, (self.length, width))),
            first=draw("first", kaiming(hidden, 2, 4 * hidden, width)),
            deeper=draw("deeper", kaiming(hidden, deep, 2, 4 * hidden, 2 * hidden)) if deep else None,
            states=draw("states", kaiming(hidden, self.depth, 2, 4 * hidden, hidden)),
            biases=draw("biases", kaiming(hidden, self.depth, 2, 2, 4 * hidden)),
            middle=draw("middle", kaiming(2 * hidden, 2 * hidden, 2 * hidden)),
            middle_bias=draw("middle_bias", kaiming(2 * hidden, 2 * hidden)),
            up=draw("up", kaiming(2 * hidden, 2 * hidden, width)), up_bias=draw("up_bias", kaiming(2 * hidden, width)),
            offset=self.offset, reads=self.reads, name=self.name,
        )


def _require_reads(what: str, reads: str) -> None:
    if reads not in READS:
        raise ValueError(f"{what} reads {reads!r} is none of {', '.join(READS)}{did_you_mean(reads, READS)}")


def _before_lines(params: dict, key: jax.Array, method: Any, make: Any) -> dict:
    """The tree with the entry `make(embedding table, draw)`."""
    what, path = type(method).__name__, f"{PROMPT}/{method.name}"
    if get(params, "type_embed/embedding") is None and (not method.offset or method.reads != "text"):
        raise ValueError(f"{what} offset={method.offset}, reads={method.reads!r}: other than True and 'text' they are for encoders (BERT, "
                         "RoBERTa); this base has no type_embed/embedding")
    positions = get(params, "pos_embed/embedding")
    if positions is not None and method.ahead >= positions.shape[0]:
        raise ValueError(f"{what} length {method.length} leaves none of the {positions.shape[0]} positions that this base has")
    if get(params, path) is not None:
        raise ValueError(f"{path} is taken; give one of the two adapters another name")
    table = get(params, "embed/embedding")
    while isinstance(table, Kernel) and hasattr(table, "name"):  # what other adapters make of it depends on which was attached first
        table = table.base
    return put(params, path, make(table, Draw(key, path, None)))
