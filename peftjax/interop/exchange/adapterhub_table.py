"""AdapterHub's adapters as tables: our nodes against their tensors and config fields. Read by adapterhub_read, written by adapterhub_write.

| method | node | their keys, N the adapter's name |
|---|---|---|
| bottleneck | Bottleneck | <place>.adapters.N. adapter_down.0.weight (M, D), .bias; adapter_up.weight (D, M), .bias; scaling; norms |
| the same with ln_before | Bottleneck | the linear is adapter_down.1; the norm is there twice: adapter_down.0 and adapter_norm_before |
| LoRA | LoRA | <module>.loras.N.lora_A (R, in), lora_B (out, R) |
| DoRA, with alpha = r and no bias | DoRA | those of LoRA, and m.weight (out, 1) |
| LoRA on GPT-2's c_attn | LoRA on q, k, v | the chosen parts in the order q, k, v: lora_A (parts x R, in), lora_B (parts x D, R) |
| heads | Trained | heads.N.1 and .4 (dense, tanh, dense), or the modules of the host's own classifier |

What a bottleneck computes follows from its flags and from the host. R: residual stream into the sublayer, u: its output, f: the bottleneck.

| flags original_ln_before, original_ln_after, residual_before_ln | `reads` here | Llama, Mistral, GPT-2 | BERT, RoBERTa |
|---|---|---|---|
| T T T (seq_bn, Pfeiffer) | "sum" | R + u + f(R + u) | LN(R + u + f(LN(R + u))) |
| F T T (double_seq_bn, Houlsby) | "output" | R + u + f(u) | LN(R + u + f(u)) |
| T F F (AdapterPlus) | "sum"; on BERT "output" at block_out | R + u + f(R + u) | x = LN(R + u); x + f(x) |
| F T T with is_parallel | "residual" | R + u + f(R) | LN(R + u + f(R)) |

Its DoRA computes m / ‖W + BA‖ · (W x + bias + s BAx): the norm lacks the scale s, and the bias is scaled; only with s = 1 and no bias is
that DoRA. On GPT-2 it takes norms along the wrong axis; with dropout it trains otherwise, as all of x passes through W there.

Seen in files written by adapters 1.3.0; what the rows compute was measured there. Hosts other than these compute something else and are
refused.
"""

from typing import Any, NamedTuple

import numpy as np

from peftjax.interop.exchange.tensors import Field, Tensor

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"
HEAD_CONFIG, HEAD_WEIGHTS, HEAD_PICKLE = "head_config.json", "model_head.safetensors", "pytorch_model_head.bin"
VERSION = "adapters.1.3.0"  # whose files these are like

BOTTLENECK = (
    Tensor("down", "adapter_down.0.weight", ("M", "D")),
    Tensor("down_bias", "adapter_down.0.bias", ("M",)),
    Tensor("up", "adapter_up.weight", ("D", "M"), flip=True),
    Tensor("up_bias", "adapter_up.bias", ("D",)),
)
NORM_BEFORE = (
    Tensor("norm_before", "adapter_norm_before.weight", ("D",)),
    Tensor("norm_before_bias", "adapter_norm_before.bias", ("D",)),
)
NORM_BEFORE_AGAIN = (Tensor("norm_before", "adapter_down.0.weight", ("D",)), Tensor("norm_before_bias", "adapter_down.0.bias", ("D",)))
NORM_AFTER = (Tensor("norm_after", "adapter_norm_after.weight", ("D",)), Tensor("norm_after_bias", "adapter_norm_after.bias", ("D",)))
LEARNED_SCALE = Tensor("scale", "scaling", ("1",))
CHANNEL_SCALE = Tensor("scale", "scaling", ("D",))
LORA = (Tensor("a", "lora_A", ("R", "in")), Tensor("b", "lora_B", ("out", "R"), flip=True))
DORA = (*LORA, Tensor("magnitude", "m.weight", ("out", "1")))


def bottleneck_rows(ln_before: bool, ln_after: bool, scale: float | str) -> tuple[Tensor, ...]:
    """The tensors of one bottleneck with these flags."""
    rows = BOTTLENECK
    if ln_before:
        linear = tuple(Tensor(row.field, row.suffix.replace("down.0", "down.1"), row.axes, row.flip) for row in BOTTLENECK)
        rows = (*linear, *NORM_BEFORE, *NORM_BEFORE_AGAIN)
    rows = (*rows, *(NORM_AFTER if ln_after else ()))
    return (*rows, *{"learned": (LEARNED_SCALE,), "channel": (CHANNEL_SCALE,)}.get(scale, ()))


class Host(NamedTuple):
    """How AdapterHub names the places of one architecture.

    attention, output: module that holds the adapters behind attention and behind the MLP, `{layer}` for the layer's number; prefix: of the
    trunk, which files of a bare model lack; intermediate, mlp_output: our modules that intermediate_lora and output_lora adapt; post_norm:
    whether norms stand behind the sum.
    """

    attention: str
    output: str
    prefix: str
    intermediate: str
    mlp_output: str
    post_norm: bool


_LLAMA = Host(
    "model.layers.{layer}.attention_adapters", "model.layers.{layer}.output_adapters", "model.", "mlp/down", "mlp/up", False
)  # on Llama AdapterHub calls down_proj "intermediate" and up_proj "output"


def _bert(prefix: str) -> Host:
    layer = prefix + ".encoder.layer.{layer}"
    return Host(f"{layer}.attention.output", f"{layer}.output", f"{prefix}.", "mlp/up", "mlp/down", True)


HOSTS = {
    "llama": _LLAMA,
    "gpt2": Host(
        "transformer.h.{layer}.attention_adapters", "transformer.h.{layer}.output_adapters", "transformer.", "mlp/up", "mlp/down", False
    ),
    "bert": _bert("bert"),
    "roberta": _bert("roberta"),
}

# (original_ln_before, original_ln_after, residual_before_ln, is_parallel) -> what is read.
FLAGS = ("original_ln_before", "original_ln_after", "residual_before_ln", "is_parallel")
READS = {
    (True, True, True, False): "sum",
    (False, True, True, False): "output",
    (True, False, False, False): "behind",  # of the whole block: "sum" on pre-norm hosts, a site of its own on post-norm ones
    (False, True, True, True): "residual",
}
# Their names of activations against ours; "gelu" of files older than versions meant the tanh form.
ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "swish", "silu": "silu",
    "tanh": "tanh", "leakyrelu": "leaky_relu", "linear": "linear",
}
UNVERSIONED = {"gelu": "gelu_new", "gelu_orig": "gelu"}
INITS = {"bert": "bert", "mam_adapter": "identity", "houlsby": "houlsby"}
# Config fields that are one field of `bottleneck`, and of `lora`.
BOTTLENECK_FIELDS = (
    Field("non_linearity", "activation", "relu", ACTIVATIONS),
    Field("scaling", "scale", 1.0),
    Field("init_weights", "init", "bert", INITS),
    Field("dropout", "dropout", 0.0),
)
LORA_FIELDS = (Field("dropout", "dropout", 0.0), Field("use_dora", "dora", False))

# Config fields of a bottleneck that must be off, each with what it would ask for.
REFUSED = {
    "use_gating": "a gate", "phm_layer": "PHM layers (Compacter)", "inv_adapter": "invertible adapters",
    "cross_adapter": "cross-attention adapters",
    "adapter_residual_before_ln": "the residual inside the adapter's own norm",
}
REFUSED_LORA = {"use_gating": "a gate", "vera_d": "VeRA", "vera_b": "VeRA"}
# Fields that change nothing once those above are off.
IDLE = {
    "architecture", "factorized_phm_W", "factorized_phm_rule", "hypercomplex_nonlinearity", "init_weights", "init_weights_seed",
    "inv_adapter_reduction_factor", "learn_phm", "phm_bias", "phm_c_init", "phm_dim", "phm_init_range", "phm_rank", "shared_W_phm",
    "shared_phm_rule", "dtype",
}
READ = {
    *FLAGS, "mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "ln_before", "ln_after", "scaling", "dropout",
    "leave_out", "stochastic_depth",
}
READ_LORA = {"r", "alpha", "attn_matrices", "selfattn_lora", "intermediate_lora", "output_lora", "dropout", "leave_out", "composition_mode",
             "use_dora"}


def no_dora(family: str, scale: float, biased: str | None) -> str:
    """Why AdapterHub's DoRA is another function than DoRA, "" where it is the same. biased: a module that has it and a bias."""
    if family == "gpt2":
        return "its norms on GPT-2 run along the wrong axis"
    if np.float32(scale) != 1:
        return f"its norms lack the scale alpha / r, here {float(scale):g}, and are right for alpha = r alone"
    return f"it scales the bias of {biased} too" if biased else ""


def defaults() -> dict[str, Any]:
    """A bottleneck's config as AdapterHub writes it, with everything off."""
    return {
        "adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0, "factorized_phm_W": True, "factorized_phm_rule": False,
        "hypercomplex_nonlinearity": "glorot-uniform", "init_weights": "bert", "init_weights_seed": None, "inv_adapter": None,
        "inv_adapter_reduction_factor": None, "is_parallel": False, "learn_phm": True, "leave_out": [], "ln_after": False,
        "ln_before": False, "mh_adapter": False, "non_linearity": "relu", "original_ln_after": True, "original_ln_before": False,
        "output_adapter": True,
        "phm_bias": True, "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001, "phm_layer": False, "phm_rank": 1,
        "reduction_factor": 16, "residual_before_ln": True, "scaling": 1.0, "shared_W_phm": False, "shared_phm_rule": True,
        "stochastic_depth": 0.0, "use_gating": False,
    }


def lora_defaults() -> dict[str, Any]:
    """A LoRA's config as AdapterHub writes it."""
    return {
        "alpha": 8, "architecture": "lora", "attn_matrices": ["q", "v"], "composition_mode": "add", "dropout": 0.0, "dtype": None,
        "init_weights": "lora", "init_weights_seed": None, "intermediate_lora": False, "leave_out": [], "output_lora": False, "r": 8,
        "selfattn_lora": True, "use_dora": False, "use_gating": False, "vera_b": None, "vera_d": None,
    }
