"""What a table of AdapterHub's says: one `HubMethod` for each of its methods, in `adapterhub_methods`. Read by adapterhub_read, written by
adapterhub_write.

A tensor of theirs is called <place>.<pool>.<name of the adapter>.<suffix>:

    model.layers.7.output_adapters . adapters . task . adapter_down.0.weight
    model.layers.7.self_attn.q_proj . loras . task . lora_A

Seen in files written by adapters 1.3.0; what the rows compute was measured there. Hosts other than these compute something else and are
refused.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from peftjax.interop.exchange.adapter import Piece
from peftjax.interop.exchange.modules import Modules, layer_of
from peftjax.interop.exchange.tensors import Field, Tensor

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"
HEAD_CONFIG, HEAD_WEIGHTS, HEAD_PICKLE = "head_config.json", "model_head.safetensors", "pytorch_model_head.bin"
VERSION = "adapters.1.3.0"  # whose files these are like

# Config fields of each architecture, as AdapterHub writes them; what is in none of these is not known here.
DEFAULTS: Mapping[str | None, Mapping[str, Any]] = {
    None: {
        "adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0, "factorized_phm_W": True, "factorized_phm_rule": False,
        "hypercomplex_nonlinearity": "glorot-uniform", "init_weights": "bert", "init_weights_seed": None, "inv_adapter": None,
        "inv_adapter_reduction_factor": None, "is_parallel": False, "learn_phm": True, "leave_out": [], "ln_after": False,
        "ln_before": False, "mh_adapter": False, "non_linearity": "relu", "original_ln_after": True, "original_ln_before": False,
        "output_adapter": True, "phm_bias": True, "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001, "phm_layer": False,
        "phm_rank": 1, "reduction_factor": 16, "residual_before_ln": True, "scaling": 1.0, "shared_W_phm": False, "shared_phm_rule": True,
        "stochastic_depth": 0.0, "use_gating": False,
    },
    "lora": {
        "alpha": 8, "architecture": "lora", "attn_matrices": ["q", "v"], "composition_mode": "add", "dropout": 0.0, "dtype": None,
        "init_weights": "lora", "init_weights_seed": None, "intermediate_lora": False, "leave_out": [], "output_lora": False, "r": 8,
        "selfattn_lora": True, "use_dora": False, "use_gating": False, "vera_b": None, "vera_d": None,
    },
    "prefix_tuning": {
        "architecture": "prefix_tuning", "bottleneck_size": 512, "cross_prefix": True, "dropout": 0.0, "encoder_prefix": True,
        "flat": False, "init_weights_seed": None, "leave_out": [], "non_linearity": "tanh", "prefix_length": 30, "shared_gating": True,
        "use_gating": False,
    },
    "prompt_tuning": {
        "architecture": "prompt_tuning", "combine": "prefix", "init_weights_seed": None, "prompt_init": "random_uniform",
        "prompt_init_text": None, "prompt_length": 10,
    },
    "reft": {
        "architecture": "reft", "dropout": 0.05, "dtype": None, "init_weights_seed": None, "layers": "all", "non_linearity": None,
        "orthogonality": True, "output_reft": True, "prefix_positions": 3, "r": 1, "suffix_positions": 0, "tied_weights": False,
    },
}  # fmt: skip
# Its architectures that are not here, each with why.
NOT_HERE = {"mtl_lora": "LoRAs of several tasks in one"}


# Their names of activations against ours; "gelu" of files older than versions meant the tanh form.
ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "swish", "silu": "silu",
    "tanh": "tanh", "leakyrelu": "leaky_relu", "linear": "linear",
}
UNVERSIONED = {"gelu": "gelu_new", "gelu_orig": "gelu"}
ACTIVATION, DROPOUT = Field("non_linearity", "activation", "relu", ACTIVATIONS), Field("dropout", "dropout", 0.0)


class Host(NamedTuple):
    """How AdapterHub names the places of one architecture.

    trunk: the module that holds all, which keys of a bare model lack; block: a layer, `{layer}` for its number; attention, output: what
    holds the adapters behind attention and behind the MLP of a block; self_attention: what holds its prefixes; intermediate, mlp_output:
    our modules that intermediate_lora and output_lora adapt; post_norm: whether norms stand behind the sum.
    """

    trunk: str
    block: str
    attention: str
    output: str
    self_attention: str
    intermediate: str
    mlp_output: str
    post_norm: bool


def _decoder(trunk: str, blocks: str, self_attention: str, intermediate: str, mlp_output: str) -> Host:
    block = f"{trunk}.{blocks}.{{layer}}"
    return Host(trunk, block, f"{block}.attention_adapters", f"{block}.output_adapters", f"{block}.{self_attention}", intermediate,
                mlp_output, False)  # fmt: skip


def _encoder(trunk: str) -> Host:
    block = f"{trunk}.encoder.layer.{{layer}}"
    return Host(trunk, block, f"{block}.attention.output", f"{block}.output", f"{block}.attention.self", "mlp/up", "mlp/down", True)


HOSTS = {
    "llama": _decoder("model", "layers", "self_attn", "mlp/down", "mlp/up"),  # whose down_proj is "intermediate", and up_proj "output"
    "gpt2": _decoder("transformer", "h", "attn", "mlp/up", "mlp/down"),
    "bert": _encoder("bert"),
    "roberta": _encoder("roberta"),
}


def known_places(modules: Modules) -> set[str]:
    """The modules of theirs that may hold tensors of an adapter on this base."""
    host, layers = HOSTS[modules.config.family], range(modules.config.layers)
    prefixed = (f"{host.self_attention}.prefix_tuning", f"{host.self_attention}.prefix_tuning.pool")
    in_blocks = (host.attention, host.output, f"{host.block}.reft_layer", *prefixed)
    top = {host.trunk, f"{host.trunk}.prefix_tuning", f"{host.trunk}.prompt_tuning"}
    return {*modules.ours, *top, *(place.format(layer=layer) for place in in_blocks for layer in layers)}


class Asked(NamedTuple):
    """A config, on a base: what a table is asked with when a directory is read."""

    config: Mapping[str, Any]
    modules: Modules

    @property
    def host(self) -> Host:
        return HOSTS[self.modules.config.family]

    @property
    def layers(self) -> list[int]:
        """Those that the config does not leave out."""
        chosen, left_out = self.config.get("layers", "all"), self.config.get("leave_out", ())
        every = range(self.modules.config.layers)
        return [layer for layer in every if layer not in left_out and (chosen == "all" or layer in chosen)]

    def places(self, method: "HubMethod") -> dict[str, list[str]]:
        """Our paths by the module of theirs that holds them, several in a fused one."""
        found: dict[str, list[str]] = {}
        for layer in self.layers if method.stacked else (None,):
            for ours, theirs in method.places(self).items():
                path = ours if layer is None else f"blocks/{layer}/{ours}"
                found.setdefault(self.modules.theirs[path].name if theirs is None else theirs.format(layer=layer), []).append(path)
        for place, paths in found.items():
            if place in self.modules.ours:
                paths.sort(key=self.modules.ours[place].index)
        return found


class Taken(NamedTuple):
    """What a table took out of a file, or gives to be written.

    arrays: of each of our paths, by field of the rows, or of our node; shared: those held once; node: our class of the pieces; methods:
    those that make room for them; notes: one sentence each.
    """

    arrays: Mapping[str, Mapping[str, np.ndarray]]
    shared: Mapping[str, np.ndarray]
    node: str
    methods: Callable[..., Iterable[Any]]
    notes: tuple[str, ...] = ()


class Held(NamedTuple):
    """The pieces of one table, the methods that put them there, and the base: what a table is asked with when a directory is written."""

    pieces: Mapping[str, Piece]
    methods: Sequence[Any]
    modules: Modules

    @property
    def host(self) -> Host:
        return HOSTS[self.modules.config.family]

    def one(self, what: str, values: Iterable[Any]) -> Any:
        """The only value there is, or an error."""
        kinds = list(dict.fromkeys(values))
        if len(kinds) > 1:
            raise ValueError(f"AdapterHub has one {what} for the whole adapter; here are {', '.join(map(str, kinds))}")
        return kinds[0]

    def setting(self, name: str) -> Any:
        """The value that all its methods have."""
        return self.one(name, (getattr(method, name) for method in self.methods))

    def layers(self, places: Mapping[str, str]) -> list[int]:
        """The layers that all places stand on. places: of each path."""
        on: dict[str, set[int]] = {}
        for path, place in places.items():
            on.setdefault(place, set()).add(layer_of(path))
        return list(self.one("set of layers", (tuple(sorted(layers)) for layers in on.values())))

    def left_out(self, places: Mapping[str, str]) -> list[int]:
        """The layers that no place stands on."""
        layers = self.layers(places)
        return [layer for layer in range(self.modules.config.layers) if layer not in layers]


def _always(config: Mapping[str, Any]) -> bool:
    return True


def _as_taken(taken: Taken, asked: Asked) -> Taken:
    return taken


def _as_held(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], held: Held) -> Mapping[str, np.ndarray]:
    return arrays


def _fine(asked: Asked) -> str:
    return ""


def _nothing(asked: Asked) -> Iterable[str]:
    return ()


@dataclasses.dataclass(frozen=True)
class HubMethod:
    """One method of AdapterHub's, and the method that it is here.

    Attributes:
        node: our class of its pieces.
        make: our method's class.
        architecture: theirs, by which the known config fields go; `asked` says which configs of it ask for this method.
        pool: theirs, part of every key.
        rows: the tensors at one place. Those of a fused module are its parts one behind another, along the first axis.
        places: our places in a layer, each with the module of theirs that holds it, `{layer}` for the layer's number; None is the module
            that `Modules` names.
        sizes: the letters of rows, in the layer of one of our paths.
        methods: those that make room for what was found; numbers by our path, and settings that all have.
        config: back: what a config says of pieces.
        fields: config fields that are one field of our method.
        constant: further arrays of each piece that follow from the config.
        shared: tensors held once, in the pool of shared parameters of the trunk; `field` is the place below our store of shared values.
        settle: what was taken, as our nodes have it, where a row is not an array of theirs; `spread` is the way back, of one piece.
        stacked: it stands in layers.
        beside: its config fields are some of another method's, which it stands beside.
        off: config fields that must be as they are in `DEFAULTS`, each with what it would ask for.
        problem: why what is asked for cannot be held, "" where it can.
        notes: what a reader leaves out or derives.
    """

    node: str
    make: Callable[..., Any]
    architecture: str | None
    pool: str
    rows: Callable[[Mapping[str, Any]], tuple[Tensor, ...]]
    places: Callable[[Asked], Mapping[str, str | None]]
    sizes: Callable[[Asked, str], Mapping[str, int]]
    methods: Callable[..., Iterable[Any]]
    config: Callable[[Held], dict[str, Any]]
    asked: Callable[[Mapping[str, Any]], bool] = _always
    fields: tuple[Field, ...] = ()
    constant: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]] = lambda config: {}
    shared: tuple[Tensor, ...] = ()
    settle: Callable[[Taken, Asked], Taken] = _as_taken
    spread: Callable[[Mapping[str, np.ndarray], Mapping[str, Any], Held], Mapping[str, np.ndarray]] = _as_held
    stacked: bool = True
    beside: bool = False
    off: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: Callable[[Asked], str] = _fine
    notes: Callable[[Asked], Iterable[str]] = _nothing


def written(fields: Sequence[Field], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields of theirs.

    Raises:
        ValueError: a value that has no name there.
    """
    values = {field.theirs: field.write(settings[field.ours]) for field in fields}
    for field in fields:
        if field.names and settings[field.ours] not in field.names.values():
            known = ", ".join(sorted(set(field.names.values())))
            raise ValueError(f"AdapterHub cannot name the {field.ours} {settings[field.ours]!r}; it can name {known}")
    return values
