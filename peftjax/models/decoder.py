"""The decoder: one functional Flax Linen transformer for every family.

    tokens [B, T] --embed--> x [B, T, D] --L blocks--> hidden [B, T, D] --head--> logits [B, T, V]
    block:  x += attn(norm(x));  x += mlp(norm(x))          mlp(h) = down(act(gate(h)) * up(h))

Parameters (see `peftjax.nn.tree` for the names of segments):

    embed/embedding [V, D]                 blocks/attn_norm/scale [L, D]      blocks/mlp_norm/scale [L, D]
    blocks/attn/{q,k,v,o}/kernel           blocks/mlp/{gate,up,down}/kernel   final_norm/scale [D]
    head/kernel [D, V] unless tied

and by switches of the config: biases beside kernels and (LayerNorm) scales, pos_embed/embedding [P, D],
blocks/attn/{q,k}_norm/scale [L, K], blocks/{attn,mlp}_post_norm/scale [L, D]; no gate where the MLP has none.

Layers may differ in what they see: with a window in some of them only, masks and rotary angles come in two kinds, and the number of
the kind is scanned over with the layers.

Layers are scanned, or unrolled, or cut into scanned segments; the head is apart from the trunk (`hidden`, `logits`), so that a loss
asks for logits only where it needs them. The model reads kernels through `dot`, passes values through named sites and sees the context that
the tree holds (`peftjax.nn.context`); it knows no fine-tuning method.

Virtual tokens see each other only. So one copy of them stands before each line and serves all its segments, and each row's own tokens count
their positions from behind them; what the trunk makes of them is dropped. With a cache, `begin` writes them into the first slots.

Axes: B batch, T tokens, S cache slots, D width, H heads, G key/value heads, K head size, L layers, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.attention import Cache, CacheSight, attend, attend_causally
from peftjax.models.config import DecoderConfig
from peftjax.models.rope import rotary_angles, rotate
from peftjax.models.sight import Sight
from peftjax.models.stack import scanned, segment_spans
from peftjax.nn.context import PROMPT, embeddings, keys_values, shift, virtual_tokens
from peftjax.nn.layers import ACTIVATIONS, Embed, Head, LayerNorm, Linear, RMSNorm, dropout_key, linears, optional
from peftjax.nn.shared import STORE
from peftjax.nn.sites import Tokens, site
from peftjax.nn.tree import stack_name

NO_WINDOW = 2**30  # more tokens than any line has


def norm(config: DecoderConfig, name: str | None = None) -> nn.Module:
    """A norm as the config has it."""
    return LayerNorm(config.norm_eps, name=name) if config.layer_norm else RMSNorm(config.norm_eps, config.norm_offset, name=name)


class Attention(nn.Module):
    """Grouped-query attention over h [B, T, D]; returns ([B, T, D], the cache's keys and values with the new ones written, or None).

    `seen` is a `Sight`, or with a cache the mask [B, T, S]; `cached` is (k, v [L, B, G, S, K], layer, slot). What stands before the
    sequence reads `tokens`, and is seen from `positions` int [B, T] through `window`.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(self, h, angles, seen, cached, tokens, positions, window):
        c = self.config
        batch, length = h.shape[:2]
        widths = {"q": c.heads * c.head_size, "k": c.kv_heads * c.head_size, "v": c.kv_heads * c.head_size}
        q, k, v = linears(self, h, {name: Linear(width, c.qkv_bias, name=name) for name, width in widths.items()})
        q = q.reshape(batch, length, c.heads, c.head_size)
        k, v = (x.reshape(batch, length, c.kv_heads, c.head_size) for x in (k, v))
        if c.qk_norm:
            q, k = norm(c, "q_norm")(q), norm(c, "k_norm")(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        how = {"scale": None if c.query_scalar is None else c.query_scalar**-0.5, "softcap": c.attention_softcap}
        how["before"] = keys_values(self, h, tokens, c.kv_heads, c.head_size, positions, window)
        if cached is None:
            out = attend(q, k, v, seen, **how)
        else:
            (*cache, layer, slot) = cached
            cache = tuple(_written(old, new, layer, slot) for old, new in zip(cache, (k, v), strict=True))
            k, v = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False).astype(q.dtype) for x in cache)
            out, cached = attend_causally(q, k, v, seen, **how), cache
        return Linear(c.width, c.out_bias, name="o")(out.reshape(batch, length, c.heads * c.head_size)), cached


def _written(cache, new, layer, slot):
    """cache [L, B, G, S, K] with new [B, T, G, K] at slots `slot` to `slot` + T - 1 of `layer`. The compiler writes in place."""
    new = jnp.swapaxes(new, 1, 2)[None].astype(cache.dtype)
    return jax.lax.dynamic_update_slice(cache, new, (layer, 0, 0, slot, 0))


class MLP(nn.Module):
    """MLP: h [B, T, D] -> [B, T, D]."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, h):
        c = self.config
        act, down = ACTIVATIONS[c.activation], Linear(c.width, c.mlp_bias, name="down")
        if not c.gated:
            return down(act(Linear(c.ff, c.mlp_bias, name="up")(h)))
        gate, up = linears(self, h, {name: Linear(c.ff, c.mlp_bias, name=name) for name in ("gate", "up")})
        return down(act(gate) * up)


class Block(nn.Module):
    """One layer: (x [B, T, D], cached keys and values [L, B, G, S, K] or None) -> (the same, None), in the form that `nn.scan` wants.

    `views` is (rotary angles, window), or both stacked over the kinds of layers, of which this one is number `kind`; `sight` lacks the
    window, or is a `CacheSight`. `tokens` is for the sites.
    """

    config: DecoderConfig
    remat: str

    @nn.compact
    def __call__(self, carry, views, sight, tokens, kind, layer):
        c, (x, cache) = self.config, carry
        angles, window = views if kind is None else jax.tree.map(lambda view: view[kind], views)
        if cache is None:
            window = window if kind is not None else self._window()
            seen, cached = sight.replace(window=window), None
        else:
            seen, cached = sight.mask(window), (*cache, layer, sight.slot)
        h = site(self, "attn_in", norm(c, "attn_norm")(x), residual=x, tokens=tokens)
        u, cache = Attention(c, name="attn")(h, angles, seen, cached, tokens, sight.positions, window)
        u = norm(c, "attn_post_norm")(u) if c.post_norms else u
        x = x + site(self, "attn_out", u, residual=x, normed=h, tokens=tokens)
        h = site(self, "mlp_in", norm(c, "mlp_norm")(x), residual=x, tokens=tokens)
        u = MLP(c, name="mlp")(h)
        u = norm(c, "mlp_post_norm")(u) if c.post_norms else u
        x = x + site(self, "mlp_out", u, residual=x, normed=h, tokens=tokens)
        return (site(self, "block_out", x, tokens=tokens), cache), None

    def _window(self):
        """The one window of all layers, known when compiling; None where there is none."""
        return self.config.window if any(self.config.local_layers) else None


class Decoder(nn.Module):
    """The whole model.

    Attributes:
        config: the architecture.
        segments: lengths of the scanned segments, summing to `config.layers`; () is one segment. Cutting below the lowest adapted
            layer saves the backward pass through the lower ones.
        remat: "none" keeps what the backward pass wants, "dots" keeps the products with kernels and what attention gives and recomputes
            all else, "block" keeps only the input of each block. Attention scores are never kept.
        unroll: writes the layers out instead of looping (longer to compile).
        dtype: of activations; parameters are cast to it where they are used.
    """

    config: DecoderConfig
    segments: tuple[int, ...] = ()
    remat: str = "none"
    unroll: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        c = self.config
        self.embed = Embed(c.vocab_size, c.width, self.dtype)
        if c.learned_positions:
            self.pos_embed = Embed(c.max_length, c.width, self.dtype)
        self.final_norm = norm(c)
        self.head = Head(c.vocab_size, c.tied)
        self.spans = segment_spans(c.layers, self.segments)
        for start, stop in self.spans:
            stack = scanned(
                Block, c, stop - start, in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0, 0), remat=self.remat, unroll=self.unroll,
                shared=optional(self, STORE),
            )
            setattr(self, stack_name(start, stop, c.layers), stack)

    def __call__(self, tokens, *, segments=None, positions=None):
        """tokens [B, T] int -> logits [B, T, V]; see `hidden` for the other arguments."""
        return self.logits(self.hidden(tokens, segments=segments, positions=positions)[0])

    def hidden(self, tokens, *, segments=None, positions=None, until=None, cache: Cache | None = None):
        """The trunk: tokens [B, T] -> (final hidden states [B, T, D], cache or None).

        Args:
            tokens: ids.
            segments: [B, T] int; a token sees earlier tokens of its own segment only, and 0 is padding. Default: all 1.
            positions: [B, T] int from 0; must restart in each segment. Default: counted within each segment.
            until: [B, T] int, of lines with shared prefixes (`peftjax.models.sight`), which need `positions` and have no cache.
            cache: keys and values of earlier tokens; the new ones are written at its next free slots.

        Raises:
            ValueError: shared prefixes without positions or with a cache, or a cache that lacks the virtual tokens of the tree.
        """
        segments = jnp.ones_like(tokens) if segments is None else segments
        if until is not None and (positions is None or cache is not None):
            raise ValueError("lines with shared prefixes need positions, and cannot go on from a cache")
        first = virtual_tokens(optional(self, PROMPT))
        if cache is not None and cache.first != first:
            raise ValueError(f"the tree holds {first} virtual tokens and the cache {cache.first}; begin an empty cache with Decoder.begin")
        if positions is None:
            seen = 0 if cache is None else jnp.sum(cache.segments[:, None, first:] == segments[:, :, None], axis=2)
            positions = count_within(segments) + seen
        x, own = self.embed(tokens), Tokens(positions, segments)
        if cache is not None:
            there = cache.segments[:, :first] > 0
            slots = jax.lax.dynamic_update_slice_in_dim(cache.segments, segments, cache.used, axis=1)
            places = positions + jnp.sum(there, axis=1, keepdims=True)
            sight = CacheSight(segments, places, slots, cache.used, first)
            x, written = self._trunk(x, sight, own, (cache.k, cache.v))
            cache = Cache(*written, slots, cache.used + tokens.shape[1], first)
        elif not first:
            x, _ = self._trunk(x, Sight(segments, positions, until), own)
        else:
            virtual, there = embeddings(self.get_variable("params", PROMPT), tokens.shape[0], x.dtype, dropout_key(self))

            def behind(front, rest):
                return jnp.concatenate([jnp.broadcast_to(front, (*there.shape, *rest.shape[2:])).astype(rest.dtype), rest], axis=1)

            places = behind(_places(there), positions + jnp.sum(there, axis=1, keepdims=True))
            until = None if until is None else behind(first + tokens.shape[1], until + first)
            sight = Sight(behind(there, segments), places, until, first=first)
            x, _ = self._trunk(behind(virtual, x), sight, Tokens(behind(0, positions), behind(0, segments)))
            x = x[:, first:]
        return site(self, "final_out", self.final_norm(x), tokens=own), cache

    def begin(self, cache: Cache) -> Cache:
        """An empty cache with the virtual tokens of the tree in its first slots; the cache itself where the tree holds none.

        Raises:
            ValueError: fewer slots than virtual tokens.
        """
        entries = optional(self, PROMPT)
        if entries is None:
            return cache
        batch, slots = cache.segments.shape
        x, there = embeddings(entries, batch, self.dtype, None)
        if there.shape[1] > slots:
            raise ValueError(f"a cache of {slots} slots has no room for {there.shape[1]} virtual tokens")
        segments = there.astype(jnp.int32)
        held = jax.lax.dynamic_update_slice_in_dim(cache.segments, segments, 0, axis=1)
        sight = CacheSight(segments, _places(there), held, jnp.int32(0), there.shape[1])
        nowhere = jnp.zeros_like(segments)
        _, written = self._trunk(x, sight, Tokens(nowhere, nowhere), (cache.k, cache.v))
        return Cache(*written, held, jnp.int32(there.shape[1]), there.shape[1])

    def _trunk(self, x, sight, tokens: Tokens, cached=None):
        """Embeddings [B, T, D] -> (what comes out of the last block, the cache's keys and values with the new ones written). Rotary angles
        and learned positions are of `sight`, behind what stands before the sequence; `tokens` is for the sites."""
        c, by = self.config, shift(self.variables.get("params", {}), x.shape[0])
        positions = sight.positions + (by if isinstance(by, int) else by[:, None])
        views, kinds = self._views(positions)
        if c.embedding_scale != 1.0:
            x = x * jnp.asarray(c.embedding_scale, x.dtype)
        if c.learned_positions:  # padding is kept inside the table: a row beyond it is not a number
            x = x + self.pos_embed(jnp.where(sight.segments > 0, positions, 0))
        carry = (site(self, "embed_out", x, tokens=tokens), cached)
        for start, stop in self.spans:
            kind = None if kinds is None else kinds[start:stop]
            layers = None if cached is None else jnp.arange(start, stop)
            carry, _ = getattr(self, stack_name(start, stop, c.layers))(carry, views, sight, tokens, kind, layers)
        return carry

    def logits(self, hidden):
        """The head: hidden [..., D] -> logits [..., V], in the dtype of `hidden`."""
        logits, cap = self.head(hidden, self.embed.table()), self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _views(self, positions):
        """((rotary angles, window), None), or both stacked over two kinds of layers, and the kind of each layer [L] int."""
        c, views = self.config, []
        for local in sorted(set(c.local_layers)):
            base, scaling = (c.local_rope_base, None) if local and c.local_rope_base else (c.rope_base, c.rope_scaling)
            angles = None if c.learned_positions else rotary_angles(positions, c.rotary_size or c.head_size, base, scaling)
            views.append((angles, c.window if local else None))
        if len(views) == 1:
            return views[0], None
        views = [(angles, jnp.int32(NO_WINDOW if window is None else window)) for angles, window in views]
        return jax.tree.map(lambda *kinds: jnp.stack(kinds), *views), jnp.array(c.local_layers, jnp.int32)


def unrolled(model: Decoder, params: dict) -> tuple[Decoder, dict]:
    """The same model with every layer a stack of its own, for decoding: no layer's weights are copied out of a stack before each is read.

    A step of one row of SmolLM2-135M in float32 takes 31 ms instead of 36 on two cores; it compiles in 7 s instead of 1. The new parameters
    are copies: let the old ones go.
    """
    segments = (1,) * model.config.layers
    return model.clone(segments=segments), cut(params, model.config, segments)


def _places(there):
    """Positions of the virtual tokens of each row: there bool [B, P] -> int32 [B, P]."""
    return jnp.cumsum(there, axis=1) - there


def count_within(segments):
    """Position of each token among those of its own segment and row: segments [B, T] -> [B, T]."""
    same = segments[:, :, None] == segments[:, None, :]
    earlier = jnp.tril(jnp.ones((segments.shape[1],) * 2, bool), -1)
    return jnp.sum(same & earlier[None], axis=-1)


def init_params(config: DecoderConfig, key: jax.Array, **options) -> dict:
    """Random parameters of a decoder, float32: for tests and for training from scratch."""
    return Decoder(config, **options).init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def abstract_params(config: DecoderConfig, **options) -> dict:
    """Shapes and dtypes of a decoder's parameters, nothing allocated."""
    return jax.eval_shape(lambda key: init_params(config, key, **options), jax.random.key(0))


def cut(params: dict, config: DecoderConfig, segments: tuple[int, ...]) -> dict:
    """The same parameters, whole or cut before, with the stack cut into `segments`; () joins it into one.

    Args:
        params: a tree without adapters on some layers only (each stack must hold the same paths).
    """
    spans, rest, stacks = segment_spans(config.layers, segments), {}, {}
    for name, value in params.items():
        if name == "blocks" or name.startswith("blocks_"):
            start = 0 if name == "blocks" else int(name.split("_")[1])
            stacks[start] = value
        else:
            rest[name] = value
    ordered = [stacks[start] for start in sorted(stacks)]
    lengths = [jax.tree.leaves(stack)[0].shape[0] for stack in ordered]
    if segment_spans(config.layers, tuple(lengths)) == spans:
        return params
    whole = ordered[0] if len(ordered) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *ordered)
    for start, stop in spans:
        rest[stack_name(start, stop, config.layers)] = jax.tree.map(lambda x, a=start, b=stop: x[a:b], whole)
    return rest
