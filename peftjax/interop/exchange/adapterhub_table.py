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
}  # fmt: skip


# Their names of activations against ours; "gelu" of files older than versions meant the tanh form.
ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "swish", "silu": "silu",
    "tanh": "tanh", "leakyrelu": "leaky_relu", "linear": "linear",
}
UNVERSIONED = {"gelu": "gelu_new", "gelu_orig": "gelu"}
ACTIVATION, DROPOUT = Field("non_linearity", "activation", "relu", ACTIVATIONS), Field("dropout", "dropout", 0.0)


class Host(NamedTuple):
    """How AdapterHub names the places of one architecture.

    trunk: the module that holds all, which keys of a bare model lack; attention, output: those that hold the adapters behind attention and
    behind the MLP, `{layer}` for the layer's number; intermediate, mlp_output: our modules that intermediate_lora and output_lora adapt;
    post_norm: whether norms stand behind the sum.
    """

    trunk: str
    attention: str
    output: str
    intermediate: str
    mlp_output: str
    post_norm: bool


def _bert(trunk: str) -> Host:
    layer = trunk + ".encoder.layer.{layer}"
    return Host(trunk, f"{layer}.attention.output", f"{layer}.output", "mlp/up", "mlp/down", True)


HOSTS = {
    # On Llama AdapterHub calls down_proj "intermediate" and up_proj "output".
    "llama": Host("model", "model.layers.{layer}.attention_adapters", "model.layers.{layer}.output_adapters", "mlp/down", "mlp/up", False),
    "gpt2": Host("transformer", "transformer.h.{layer}.attention_adapters", "transformer.h.{layer}.output_adapters", "mlp/up", "mlp/down",
                 False),
    "bert": _bert("bert"),
    "roberta": _bert("roberta"),
}  # fmt: skip


def known_places(modules: Modules) -> set[str]:
    """The modules of theirs that may hold tensors of an adapter on this base."""
    host, layers = HOSTS[modules.config.family], range(modules.config.layers)
    return {*modules.ours, *(place.format(layer=layer) for place in (host.attention, host.output) for layer in layers)}


class Asked(NamedTuple):
    """A config, on a base: what a table is asked with when a directory is read."""

    config: Mapping[str, Any]
    modules: Modules

    @property
    def host(self) -> Host:
        return HOSTS[self.modules.config.family]


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
        if field.names and values[field.theirs] is None:
            known = ", ".join(sorted(set(field.names.values())))
            raise ValueError(f"AdapterHub cannot name the {field.ours} {settings[field.ours]!r}; it can name {known}")
    return values
