"""The encoder: one functional Flax Linen transformer for BERT (1810.04805, 2018) and RoBERTa (1907.11692, 2019), and its classifier.

    tokens [B, T] --embed, norm--> x [B, T, D] --L blocks--> hidden [B, T, D] --pool, head--> logits [B, C] of each row's first token
    block:  x = norm(x + attn(x));  x = norm(x + mlp(x))          mlp(x) = down(act(up(x)))

Parameters (see `peftjax.nn.tree` for the names of segments):

    embed/embedding [V, D]    pos_embed/embedding [P, D]    type_embed/embedding [types, D]    embed_norm/{scale,bias} [D]
    blocks/attn/{q,k,v,o}/{kernel,bias}       blocks/attn_norm/{scale,bias} [L, D]
    blocks/mlp/{up,down}/{kernel,bias}        blocks/mlp_norm/{scale,bias} [L, D]
    pool/{kernel [D, D], bias} and head/{kernel [D, C], bias} where the base, or an adapter on it, has a classifier:
        logits = tanh(h pool + bias) head + bias, and without a pool h head + bias

A token sees all tokens of its segment. Norms stand behind the sum (post-norm), so that a site's `residual` is the input of the sublayer
itself, and `after` gives the stream behind the norm. Sizes, scans and `remat` are as in `peftjax.models.decoder`; virtual tokens are in
`peftjax.models.encoder_prompt`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.attention import attend
from peftjax.models.decoder import count_within
from peftjax.models.encoder_config import EncoderConfig
from peftjax.models.encoder_prompt import Front
from peftjax.models.sight import Sight
from peftjax.models.stack import scanned, segment_spans
from peftjax.nn.context import PROMPT, keys_values, shift
from peftjax.nn.kernels import dot
from peftjax.nn.layers import ACTIVATIONS, Embed, LayerNorm, Linear, add_bias, dropout_key, linears, optional
from peftjax.nn.shared import STORE
from peftjax.nn.sites import Tokens, site
from peftjax.nn.tree import stack_name

INIT = nn.initializers.normal(0.02)


class Attention(nn.Module):
    """Attention of all tokens of a segment to each other, and to what stands before them: h [B, T, D] -> [B, T, D]."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, h, sight, tokens):
        c = self.config
        before = keys_values(self, h, tokens, c.heads, c.head_size, sight.positions)
        q, k, v = linears(self, h, {name: Linear(c.width, use_bias=True, name=name) for name in ("q", "k", "v")})
        q, k, v = (x.reshape(*h.shape[:2], c.heads, c.head_size) for x in (q, k, v))
        return Linear(c.width, use_bias=True, name="o")(attend(q, k, v, sight, before=before).reshape(h.shape))


class MLP(nn.Module):
    """Plain MLP: h [B, T, D] -> [B, T, D]."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, h):
        c = self.config
        inner = ACTIVATIONS[c.activation](Linear(c.ff, use_bias=True, name="up")(h))
        return Linear(c.width, use_bias=True, name="down")(inner)


class Block(nn.Module):
    """One layer: x [B, T, D] -> (x, None), in the form that `nn.scan` wants. `tokens` is for the sites."""

    config: EncoderConfig
    remat: str

    @nn.compact
    def __call__(self, x, sight, tokens):
        c = self.config
        norm = LayerNorm(c.norm_eps, name="attn_norm")
        h = site(self, "attn_in", x, residual=x, tokens=tokens)
        u = Attention(c, name="attn")(h, sight, tokens)
        x = norm(x + site(self, "attn_out", u, residual=x, normed=h, after=_behind(norm, x), tokens=tokens))
        norm = LayerNorm(c.norm_eps, name="mlp_norm")
        h = site(self, "mlp_in", x, residual=x, tokens=tokens)
        u = MLP(c, name="mlp")(h)
        x = norm(x + site(self, "mlp_out", u, residual=x, normed=h, after=_behind(norm, x), tokens=tokens))
        return site(self, "block_out", x, tokens=tokens), None


def _behind(norm, x):
    """From the value at a site behind a sublayer to the stream behind its norm."""
    return lambda u: norm(x + u)


class Classifier(nn.Module):
    """A dense layer that the tree may hold: x [..., D] -> [..., C], or None where it holds none.

    C is that of the stored kernel: an adapter's own head may have other labels than the base's. `features` is what `init` creates, 0 for
    nothing.
    """

    features: int

    @nn.compact
    def __call__(self, x):
        if self.is_initializing() and self.features:
            self.param("kernel", INIT, (x.shape[-1], self.features), jnp.float32)
            self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        kernel = optional(self, "kernel")
        return None if kernel is None else add_bias(dot(x, kernel, dropout_key(self)), optional(self, "bias"), kernel)


class Encoder(nn.Module):
    """The whole model. Attributes as of `peftjax.models.decoder.Decoder`."""

    config: EncoderConfig
    segments: tuple[int, ...] = ()
    remat: str = "none"
    unroll: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        c = self.config
        self.embed = Embed(c.vocab_size, c.width, self.dtype)
        self.pos_embed = Embed(c.max_length, c.width, self.dtype)
        self.type_embed = Embed(c.types, c.width, self.dtype)
        self.embed_norm = LayerNorm(c.norm_eps)
        self.pool = Classifier(c.width if c.pooled else 0)
        self.head = Classifier(len(c.labels))
        self.spans = segment_spans(c.layers, self.segments)
        for start, stop in self.spans:
            stack = scanned(
                Block, c, stop - start, in_axes=nn.broadcast, remat=self.remat, unroll=self.unroll, shared=optional(self, STORE)
            )
            setattr(self, stack_name(start, stop, c.layers), stack)

    def __call__(self, tokens, *, segments=None, positions=None, types=None):
        """tokens [B, T] int, a text a row -> logits [B, C] of the first token of each; see `hidden` for the other arguments."""
        return self.logits(self.hidden(tokens, segments=segments, positions=positions, types=types, texts=1)[0][:, 0])

    def hidden(self, tokens, *, segments=None, positions=None, types=None, texts=None):
        """The trunk: tokens [B, T] -> (final hidden states [B, T, D], None), as of a decoder without a cache.

        Args:
            tokens: ids; special tokens are the caller's.
            segments: [B, T] int; a token sees the tokens of its own segment, and 0 is padding. Default: all 1.
            positions: [B, T] int from 0 in each segment. Default: counted within each segment.
            types: [B, T] int, token types (BERT: 0 in the first text, 1 in the second). Default: all 0.
            texts: N, the most segments of any row, numbered from 1: asked for where segments are given and the tree holds virtual tokens,
                of which each has a copy. A row with a segment of a higher number is not a number.

        Raises:
            ValueError: no `texts` where they are asked for.
        """
        entries = optional(self, PROMPT)
        if entries is not None and segments is not None and texts is None:
            raise ValueError("the tree holds virtual tokens, of which each text has a copy: say how many texts a row holds, texts=")
        segments = jnp.ones_like(tokens) if segments is None else segments
        positions = count_within(segments) if positions is None else positions
        types, x = jnp.zeros_like(tokens) if types is None else types, self.embed(tokens)
        if entries is None:
            return self._trunk(x, Sight(segments, positions, causal=False), types, Tokens(positions, segments), lambda _, x: x), None
        front = Front.of(entries, tokens.shape[0], texts or 1, x.dtype, dropout_key(self))
        sight = Sight(front.segments(segments), front.places(positions), causal=False)
        which = Tokens(front.blank(positions), front.blank(segments))
        x = self._trunk(front.tokens(x, segments), sight, front.blank(types), which, front.joined)
        return front.behind(x, positions, segments), None

    def _trunk(self, x, sight, types, tokens, joined):
        """Embeddings [B, T, D] -> what comes out of the last block. Learned positions are those of `sight`, `tokens` is for the sites;
        `joined` is (x, the same behind the norm) -> the stream."""
        by = shift(self.variables.get("params", {}), x.shape[0])
        places = sight.positions + (by if isinstance(by, int) else by[:, None])
        places = jnp.where(sight.segments > 0, places, 0) + self.config.position_offset  # padding is kept inside the table
        embedded = self.embed_norm(x + self.type_embed(types) + self.pos_embed(places))
        x = joined(x, site(self, "embed_out", embedded, tokens=tokens))
        for start, stop in self.spans:
            x, _ = getattr(self, stack_name(start, stop, self.config.layers))(x, sight, tokens)
        return x

    def logits(self, hidden):
        """The classifier: hidden [..., D] -> logits [..., C], in the dtype of `hidden`.

        Raises:
            ValueError: neither the base nor an adapter has a head.
        """
        pooled = self.pool(hidden)
        logits = self.head(hidden if pooled is None else jnp.tanh(pooled))
        if logits is None:
            raise ValueError("this encoder has no classification head; attach one: classifier(labels=...)")
        return logits

    def every_parameter(self, tokens):
        """Touches all parameters, for `init`: a base without a head has no logits."""
        hidden = self.hidden(tokens)[0]
        return self.head(hidden), self.pool(hidden)


def init_params(config: EncoderConfig, key: jax.Array, **options) -> dict:
    """Random parameters of an encoder, float32: for tests and for training from scratch."""
    return Encoder(config, **options).init(key, jnp.zeros((1, 2), jnp.int32), method="every_parameter")["params"]


def abstract_params(config: EncoderConfig, **options) -> dict:
    """Shapes and dtypes of an encoder's parameters, nothing allocated."""
    return jax.eval_shape(lambda key: init_params(config, key, **options), jax.random.key(0))
