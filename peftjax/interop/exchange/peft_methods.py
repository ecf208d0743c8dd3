"""HF PEFT's methods as tables: our nodes against their tensors and config fields.

| peft_type | node | their keys behind `base_model.model.<module>.` |
|---|---|---|
| LORA | LoRA | lora_A.weight (R, in), lora_B.weight (out, R), lora_B.bias (out,) |
| on embeddings | LoRA | lora_embedding_A (R, V), lora_embedding_B (D, R) |
| LORA, use_dora | DoRA | those of LoRA, and lora_magnitude_vector (out,) or (D,) |
| ADALORA | AdaLoRA | lora_A (R, in), lora_E (R, 1), lora_B (out, R), without the ranks that were pruned (`peft_masks`) |
| LOHA | LoHa | hada_w1_a (out, R), hada_w1_b (R, in), hada_w2_a, hada_w2_b |
| LOKR | LoKr | lokr_w1 (o1, i1) or lokr_w1_a (o1, R), lokr_w1_b (R, i1); lokr_w2 likewise |
| HIRA | HiRA | hira_A (R, in), hira_B (out, R) |
| VERA | VeRA | vera_lambda_b (out,), vera_lambda_d (R,); once: base_model.vera_A (R, widest in), vera_B (widest out, R) |
| RANDLORA | RandLoRA | randlora_lambda (R, N), randlora_gamma (N, s); once, and on each: randlora_A (R, 1, s), randlora_B (l, N, R) |
| DELORA | DeLoRA | delora_A (R, in), delora_B (out, R), delora_lambda (1,), delora_w_norm (in,) |
| GRALORA | GraLoRA | gralora_A (K, in / K, R), gralora_B (K, R, out / K); hybrid: gralora_A_general.weight, gralora_B_general.weight |
| FOURIERFT | FourierFT | fourierft_spectrum (n,); positions follow from random_loc_seed |
| SHIRA | SHiRA | shira_weight (n,), shira_indices (2, n) |
| MISS | MiSS, MiSSBat | miss_block (R, out), "mini" (R, mini_r), "bat" (out / R, R, R) |
| IA3 | IA3 | ia3_l (out, 1), of feedforward modules (1, in) |
| OFT | OFT | oft_R.weight (blocks, C (C - 1) / 2) |
| BOFT | BOFT | boft_R (factors, blocks, C, C), boft_s (out, 1) |
| HRA | HRA | hra_u (in, R) |
| ROAD | RoAd | road_theta, road_alpha (out / 2, out or 2 out) |

A method that joins brings a `PeftMethod` here. Prompts, which stand on no module, are in `peft_context`; LN_TUNING and TRAINABLE_TOKENS say
in other words what modules_to_save and trainable_token_indices say (`peft_rules.in_other_words`).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.interop.exchange.modules import logical
from peftjax.interop.exchange.peft_table import KEPT_OUT_IN, LINEAR, Number, PeftMethod, Table
from peftjax.interop.exchange.tensors import Field, Tensor
from peftjax.interop.exchange.torch_draws import Draws
from peftjax.peft.adalora import adalora
from peftjax.peft.boft import boft
from peftjax.peft.delora import delora
from peftjax.peft.fourierft import fourierft, shuffled
from peftjax.peft.gralora import gralora
from peftjax.peft.hira import hira
from peftjax.peft.hra import hra
from peftjax.peft.ia3 import ia3
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.lora import lora
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.randlora import randlora
from peftjax.peft.road import road
from peftjax.peft.select import as_patterns, matches, named
from peftjax.peft.shira import shira
from peftjax.peft.vera import vera

# Fields of most configs, with the values that PEFT writes.
LAYERS = {"layers_to_transform": None, "layers_pattern": None}
EXCLUDED = {"exclude_modules": None}
BIAS, INIT, FAN = {"bias": "none"}, {"init_weights": True}, {"fan_in_fan_out": False}

RANK = Number("r", "rank", 8, "rank_pattern", "rank_pattern", "R")
ALPHA = Number("alpha", "alpha", 8, "alpha_pattern", "alpha_pattern")


def _by_rank(rank: int, config: Mapping[str, Any]) -> float:
    return rank


# ---- LoRA ----------------------------------------------------------------------------------------------------------------------------

_A, _B = Tensor("a", "lora_A.weight", ("R", "in")), Tensor("b", "lora_B.weight", ("out", "R"), flip=True)
_EMBEDDING = (Tensor("a", "lora_embedding_A", ("R", "V")), Tensor("b", "lora_embedding_B", ("D", "R"), flip=True))


def _dora(config: Mapping[str, Any], name: str) -> bool:
    return bool(config.get("use_dora"))


LORA = PeftMethod(
    "LORA", lora,
    (
        Table("DoRA", LINEAR, (_A, _B, Tensor("magnitude", "lora_magnitude_vector", ("out",))), asked=_dora),
        Table("DoRA", ("embedding",), (*_EMBEDDING, Tensor("magnitude", "lora_magnitude_vector", ("D",))), asked=_dora),
        Table("LoRA", LINEAR, (_A, _B, Tensor("bias", "lora_B.bias", ("out",), optional=True))),
        Table("LoRA", ("embedding",), _EMBEDDING),
    ),
    numbers=(RANK, Number("lora_alpha", "alpha", 8, "alpha_pattern", "alpha_pattern")),
    fields=(
        Field("lora_dropout", "dropout", 0.0), Field("use_rslora", "rslora", False), Field("use_dora", "dora", False),
        Field("lora_bias", "lora_bias", False),
    ),
    per=lambda rank, config: rank**0.5 if config.get("use_rslora") else rank,
    defaults=EXCLUDED | LAYERS | BIAS | FAN | {"init_lora_weights": True, "ensure_weight_tying": False},
    refused={
        "target_parameters": "LoRA on bare parameters (mixtures of experts)", "layer_replication": "layers used several times",
        "alora_invocation_tokens": "activated LoRA", "use_qalora": "QA-LoRA, whose inputs are pooled",
        "use_bdlora": "block-diagonal LoRA", "arrow_config": "Arrow routing", "kasa_config": "KaSA, which changes the base",
        "monteclora_config": "MonteCLoRA, which samples its factors", "megatron_config": "Megatron's split layers",
    },
)
# Of LORA's config and its kin's, fields that say how training began or ran.
LORA_IDLE = {"corda_config", "eva_config", "loftq_config", "lora_ga_config", "velora_config", "qalora_group_size", "megatron_core"}

_E = Tensor("e", "lora_E", ("R", "1"))
ADALORA = PeftMethod(
    "ADALORA", adalora,
    (Table("AdaLoRA", LINEAR, (Tensor("a", "lora_A", ("R", "in")), _E, Tensor("b", "lora_B", ("out", "R"), flip=True))),),
    masked=_E, only="lora_only",
    numbers=(Number("init_r", "rank", 12, axis="R"), Number("lora_alpha", "alpha", 8)),
    per=lambda rank, config: rank + 1e-5,
    fields=(
        Field("target_r", "target_rank", 8), Field("tinit", "warmup", 0), Field("tfinal", "final", 0), Field("deltaT", "every", 1),
        Field("beta1", "beta1", 0.85), Field("beta2", "beta2", 0.85), Field("total_step", "steps", None),
        Field("orth_reg_weight", "orthogonality", 0.5), Field("lora_dropout", "dropout", 0.0),
    ),
    # PEFT loads no schedule without its steps; those of our run are not in the adapter, and the shortest stands for them.
    unlike=lambda method, names: {} if method.steps else {"total_step": method.warmup + method.final + 1},
    # Those of LoRA's that AdaLoRA does not heed.
    defaults=EXCLUDED | LAYERS | BIAS | FAN | {"init_lora_weights": True, "ensure_weight_tying": False, "rank_pattern": None}
    | {"r": 8, "alpha_pattern": {}, "use_rslora": False, "lora_bias": False},
    refused=LORA.refused | {"use_dora": "DoRA of an AdaLoRA"},
)

# ---- other sums ----------------------------------------------------------------------------------------------------------------------

LOHA = PeftMethod(
    "LOHA", loha,
    (
        Table("LoHa", KEPT_OUT_IN, (
            Tensor("a1", "hada_w1_b", ("R", "in")), Tensor("b1", "hada_w1_a", ("out", "R"), flip=True),
            Tensor("a2", "hada_w2_b", ("R", "in")), Tensor("b2", "hada_w2_a", ("out", "R"), flip=True),
        )),
    ),
    numbers=(RANK, ALPHA), per=_by_rank, at_training=("rank_dropout", "module_dropout"),
    defaults=EXCLUDED | LAYERS | INIT | {"rank_dropout": 0.0, "module_dropout": 0.0, "use_effective_conv2d": False},
)  # fmt: skip


def _kronecker(number: int) -> tuple[Tensor, ...]:
    inputs, outputs = f"in{number}", f"out{number}"
    return (
        Tensor(f"w{number}", f"lokr_w{number}", (outputs, inputs), flip=True, optional=True),
        Tensor(f"a{number}", f"lokr_w{number}_b", ("R", inputs), optional=True),
        Tensor(f"b{number}", f"lokr_w{number}_a", (outputs, "R"), flip=True, optional=True),
    )


LOKR = PeftMethod(
    "LOKR", lokr, (Table("LoKr", KEPT_OUT_IN, (*_kronecker(1), *_kronecker(2))),),
    numbers=(RANK, ALPHA), per=_by_rank, parts=False, at_training=("rank_dropout", "module_dropout"),
    fields=(Field("decompose_both", "decompose_both", False), Field("decompose_factor", "decompose_factor", -1)),
    defaults=EXCLUDED | LAYERS | INIT
    | {"rank_dropout": 0.0, "module_dropout": 0.0, "use_effective_conv2d": False, "rank_dropout_scale": False},
)  # fmt: skip
HIRA = PeftMethod(
    "HIRA", hira, (Table("HiRA", LINEAR, (Tensor("a", "hira_A", ("R", "in")), Tensor("b", "hira_B", ("out", "R"), flip=True))),),
    # PEFT asks for exceptions and heeds none: tensors count, and it can load one rank alone.
    numbers=(Number("r", "rank", 32, None, "rank_pattern", "R", strict=False),), fields=(Field("hira_dropout", "dropout", 0.0),),
    defaults=EXCLUDED | LAYERS | INIT | FAN | {"rank_pattern": {}},
)
DELORA = PeftMethod(
    "DELORA", delora,
    (
        Table("DeLoRA", KEPT_OUT_IN, (
            Tensor("a", "delora_A", ("R", "in")), Tensor("b", "delora_B", ("out", "R"), flip=True),
            Tensor("strength", "delora_lambda", ("1",)), Tensor("lengths", "delora_w_norm", ("in",)),
        )),
    ),
    numbers=(RANK, Number("delora_lambda", "strength", 15, "lambda_pattern", "strength_pattern")), parts=False,
    constant=lambda numbers, config, inputs, outputs: {"scale": np.float32(1 / numbers["rank"])},
    defaults=EXCLUDED | LAYERS | INIT | BIAS | {"module_dropout": 0.0}, at_training=("module_dropout",),
)  # fmt: skip
GRALORA = PeftMethod(
    "GRALORA", gralora,
    (
        Table("GraLoRA", LINEAR, (
            Tensor("a", "gralora_A", ("K", "ins", "R"), order=(0, 2, 1)), Tensor("b", "gralora_B", ("K", "R", "width")),
            Tensor("general_a", "gralora_A_general.weight", ("H", "in"), optional=True),
            Tensor("general_b", "gralora_B_general.weight", ("out", "H"), flip=True, optional=True),
        )),
    ),
    numbers=(Number("r", "rank", 32, axis="R"), Number("alpha", "alpha", 64)), parts=False,
    per=lambda rank, config: rank + (config.get("hybrid_r") or 0),
    fields=(Field("hybrid_r", "hybrid_rank", 0), Field("gralora_k", "blocks", 2), Field("gralora_dropout", "dropout", 0.0)),
    defaults=LAYERS | INIT | BIAS | FAN,
)  # fmt: skip


def _vera_matrices(config: Mapping[str, Any], inputs: int, outputs: int) -> dict[str, np.ndarray]:
    rank = config.get("r") or 256
    draws = Draws(config.get("projection_prng_key") or 0)
    found = {}
    for name, shape in (("vera_A", (rank, inputs)), ("vera_B", (outputs, rank))):  # in this order, of one generator
        bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1]))
        found[name] = draws.uniform(-bound, bound, shape)
    return found


VERA = PeftMethod(
    "VERA", vera,
    (Table("VeRA", LINEAR, (Tensor("lambda_d", "vera_lambda_d", ("R",)), Tensor("lambda_b", "vera_lambda_b", ("out",)))),),
    shared=(Tensor("vera/a", "vera_A", ("R", "widest in")), Tensor("vera/b", "vera_B", ("widest out", "R"), flip=True)),
    draw=_vera_matrices, parts=False,
    numbers=(Number("r", "rank", 256, axis="R"),),
    fields=(Field("d_initial", "d_initial", 0.1), Field("vera_dropout", "dropout", 0.0)),
    defaults=LAYERS | INIT | BIAS | FAN | {"save_projection": True, "projection_prng_key": 0},
)
RANDLORA = PeftMethod(
    "RANDLORA", randlora,
    (Table("RandLoRA", LINEAR, (Tensor("weights", "randlora_lambda", ("R", "N")), Tensor("gains", "randlora_gamma", ("N", "short")))),),
    shared=(
        Tensor("randlora/a", "randlora_A", ("R", "1", "shortest")),
        Tensor("randlora/b", "randlora_B", ("long", "most", "R"), order=(1, 2, 0)),
    ),
    repeated=True, parts=False,
    numbers=(Number("r", "rank", 32, axis="R"), Number("randlora_alpha", "alpha", 640)), per=_by_rank,
    fields=(Field("randlora_dropout", "dropout", 0.0),),
    alike=lambda config, names: {"bases": "very_sparse" if config.get("very_sparse") else "sparse" if config.get("sparse") else "dense"},
    unlike=lambda method, names: {"sparse": method.bases == "sparse", "very_sparse": method.bases == "very_sparse"},
    defaults=LAYERS | INIT | BIAS | FAN | {"save_projection": True, "projection_prng_key": 0, "sparse": False, "very_sparse": False},
)
def _positions(numbers: Mapping[str, Any], config: Mapping[str, Any], inputs: int, outputs: int) -> dict[str, np.ndarray]:
    seed, scale = (config.get("random_loc_seed", 777), config.get("scaling", 150.0))
    columns, rows = np.divmod(shuffled(inputs * outputs, numbers["frequencies"], seed), inputs)
    return {"rows": rows.astype(np.int32), "columns": columns.astype(np.int32), "scale": np.float32(scale)}


FOURIERFT = PeftMethod(
    "FOURIERFT", fourierft, (Table("FourierFT", LINEAR, (Tensor("spectrum", "fourierft_spectrum", ("n",)),)),),
    numbers=(Number("n_frequency", "frequencies", 1000, "n_frequency_pattern", "frequency_pattern", "n", anchored=False),), parts=False,
    constant=_positions,
    fields=(Field("scaling", "scale", 150.0), Field("random_loc_seed", "seed", 777)),
    alike=lambda config, names: {"init": "zeros" if config.get("init_weights") else "normal"},
    unlike=lambda method, names: {"init_weights": method.init == "zeros"},
    defaults=EXCLUDED | LAYERS | BIAS | FAN | {"init_weights": False},
)
SHIRA = PeftMethod(
    "SHIRA", shira,
    (
        Table("SHiRA", KEPT_OUT_IN, (
            Tensor("values", "shira_weight", ("n",)), Tensor("columns", "shira_indices", ("2", "n"), line=0),
            Tensor("rows", "shira_indices", ("2", "n"), line=1),
        )),
    ),
    numbers=(Number("r", "rank", 32),), parts=False,
    alike=lambda config, names: {"seed": config.get("random_seed") or 0},
    unlike=lambda method, names: {"random_seed": method.seed},
    defaults=INIT | FAN | {"mask_type": "random", "random_seed": None},
)  # fmt: skip


def _form(form: str) -> Any:
    return lambda config, name: {True: "default", None: "default"}.get(config.get("init_weights"), config.get("init_weights")) == form


_BLOCK = Tensor("block", "miss_block", ("R", "out"))
MISS = PeftMethod(
    "MISS", miss,
    (
        Table("MiSSBat", KEPT_OUT_IN, (Tensor("block", "miss_block", ("blocks", "R", "R")),), asked=_form("bat")),
        Table("MiSS", KEPT_OUT_IN, (Tensor("block", "miss_block", ("R", "mini")),), _form("mini"),
              lambda method, module: method.form == "mini"),
        Table("MiSS", KEPT_OUT_IN, (_BLOCK,)),
    ),
    numbers=(Number("r", "rank", 64, axis="R"),), fields=(Field("mini_r", "mini_rank", 1), Field("miss_dropout", "dropout", 0.0)),
    alike=lambda config, names: {"form": next(form for form in ("bat", "mini", "default") if form == "default" or _form(form)(config, ""))},
    unlike=lambda method, names: {"init_weights": True if method.form == "default" else method.form},
    parts=False, defaults=EXCLUDED | LAYERS | INIT | BIAS,
)  # fmt: skip

# ---- products ------------------------------------------------------------------------------------------------------------------------


def _feedforward(config: Mapping[str, Any], name: str) -> bool:
    wanted = config.get("feedforward_modules") or []
    return name == wanted if isinstance(wanted, str) else any(name.endswith(entry) for entry in wanted)


def _inside(method: ia3, module: str) -> bool:
    return any(matches(pattern, module) for pattern in as_patterns(method.feedforward))


def _feeds(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {"feedforward": tuple(sorted({named(logical(path)) for path, name in names.items() if _feedforward(config, name)}))}


def _feedforward_modules(method: ia3, names: Mapping[str, str]) -> dict[str, Any]:
    return {"feedforward_modules": sorted({name for path, name in names.items() if _inside(method, logical(path))})}


IA3 = PeftMethod(
    "IA3", ia3,
    (
        Table("IA3", LINEAR, (Tensor("scale", "ia3_l", ("1", "in")),), asked=_feedforward, stands=_inside),
        Table("IA3", LINEAR, (Tensor("scale", "ia3_l", ("out", "1")),)),
    ),
    alike=_feeds, unlike=_feedforward_modules,
    defaults=EXCLUDED | FAN | {"init_ia3_weights": True, "feedforward_modules": None},
)  # fmt: skip
OFT = PeftMethod(
    "OFT", oft, (Table("OFT", KEPT_OUT_IN, (Tensor("skew", "oft_R.weight", ("blocks", "entries")),)),),
    fields=(
        Field("num_cayley_neumann_terms", "terms", 5), Field("coft", "coft", False), Field("eps", "eps", 6e-5),
        Field("block_share", "block_share", False),
    ),
    alike=lambda config, names: {
        "block_size": config.get("oft_block_size") or None, "blocks": config.get("r") or None,
        "exact": not config.get("use_cayley_neumann", True),
    },
    unlike=lambda method, names: {
        "r": method.blocks or 0, "oft_block_size": method.block_size or 0, "use_cayley_neumann": not method.exact,
    },
    defaults=EXCLUDED | LAYERS | INIT | BIAS | FAN
    | {"module_dropout": 0.0, "r": 0, "oft_block_size": 32, "use_cayley_neumann": True},
    at_training=("module_dropout",),
)  # fmt: skip
BOFT = PeftMethod(
    "BOFT", boft,
    (Table("BOFT", KEPT_OUT_IN, (Tensor("rotation", "boft_R", ("M", "blocks", "C", "C")), Tensor("scale", "boft_s", ("out", "1")))),),
    # Without its CUDA extension PEFT computes with one factor, and says another number: tensors count.
    numbers=(
        Number("boft_block_size", "block_size", 4, axis="C", strict=False),
        Number("boft_n_butterfly_factor", "factors", 1, axis="M", strict=False),
    ),
    defaults=EXCLUDED | LAYERS | INIT | BIAS | FAN | {"boft_block_num": 0, "boft_dropout": 0.0}, at_training=("boft_dropout",),
)
HRA = PeftMethod(
    "HRA", hra, (Table("HRA", KEPT_OUT_IN, (Tensor("u", "hra_u", ("in", "R"), flip=True),)),),
    numbers=(Number("r", "rank", 8, axis="R"),), fields=(Field("apply_GS", "gram_schmidt", False),),
    defaults=EXCLUDED | LAYERS | INIT | BIAS,
)
ROAD = PeftMethod(
    "ROAD", road,
    (Table("RoAd", KEPT_OUT_IN, (Tensor("theta", "road_theta", ("outs",)), Tensor("alpha", "road_alpha", ("outs",)))),),
    fields=(Field("variant", "variant", "road_1", {"road_1": 1, "road_2": 2, "road_4": 4}), Field("group_size", "group", 64)),
    defaults=INIT,
)

METHODS = {
    method.peft_type: method
    for method in (
        LORA, ADALORA, LOHA, LOKR, HIRA, DELORA, GRALORA, VERA, RANDLORA, FOURIERFT, SHIRA, MISS, IA3, OFT, BOFT, HRA, ROAD,
    )
}  # fmt: skip
# Of peft 0.21 and not here, each with why.
NOT_HERE = {
    "C3A": "", "WAVEFT": "", "XLORA": "a router over LoRAs",
    "POLY": "a router over LoRAs", "VBLORA": "", "UNILORA": "", "TINYLORA": "", "PSOFT": "", "OSF": "", "LILY": "", "PEANUT": "",
    "FROD": "", "GLORA": "", "DEFT": "", "ADAMSS": "", "BEFT": "", "PVERA": "", "CPT": "", "CARTRIDGE": "", "SUPERTUNING": "",
    "ADAPTION_PROMPT": "", "MULTITASK_PROMPT_TUNING": "",
}  # fmt: skip
