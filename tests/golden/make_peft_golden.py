"""Makes the golden files of the exchange with Hugging Face PEFT: adapters that PEFT wrote and the logits that PEFT computes with them.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 attrs safetensors numpy
    /tmp/golden/bin/python tests/golden/make_peft_golden.py [variant ...]

Every adapter stands on one of the tiny bases beside this file (llama, llama_tied, mistral, gpt2, ...) and all that it trains is random,
so that nothing cancels and a wrong scale, order or key shows in the logits. Each variant becomes tests/golden/peft/<variant>/ with
what PEFT wrote there and

    golden.npz   base (the name), tokens [B, T], logits [B, T, V] (or [B, labels] with token_type_ids and attention_mask [B, T])

The logits are those of a *fresh* base onto which PEFT loaded the files: what a user gets, not what was in memory when they were saved.
"""

import dataclasses
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import peft
import safetensors.torch
import torch
import transformers
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    DeloraConfig,
    FourierFTConfig,
    GraloraConfig,
    HiraConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    TrainableTokensConfig,
    VeraConfig,
)
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga

HERE = Path(__file__).parent
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
QVD = ["q_proj", "v_proj", "down_proj"]  # square, to fewer outputs, from more inputs
TOKENS = [3, 50, 96]  # of trainable_token_indices; they occur in the inputs
BATCH, LENGTH = 2, 8


def lora(targets, **fields):
    fields = dict(r=4, lora_alpha=8, task_type="CAUSAL_LM") | fields
    return LoraConfig(target_modules=targets, **fields)


def other(kind: type, targets=QVD, **fields):
    """A config of any other method."""
    return kind(**({} if targets is None else {"target_modules": targets}) | dict(task_type="CAUSAL_LM") | fields)


def labelled(kind: type, **fields):
    """A config of three virtual tokens before texts that are classified."""
    return kind(num_virtual_tokens=3, task_type="SEQ_CLS", **fields)


# Edits of a written folder: what people's files look like after conversions, uploads and accidents.
def rewrite(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file, metadata={"format": "pt"})

    return edit


def half(dtype: torch.dtype) -> Callable[[Path], None]:
    return rewrite(lambda tensors: {key: value.to(dtype) for key, value in tensors.items()})


def drop_one(tensors: dict) -> dict:
    return {key: value for key, value in tensors.items() if key != "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"}


def add_one(tensors: dict) -> dict:
    return tensors | {"base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}


def misshape_one(tensors: dict) -> dict:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    return tensors | {key: tensors[key][:, :16].contiguous()}


def prune(model: peft.PeftModel) -> None:
    """As AdaLoRA's budget does: some ranks are masked, all of them on one module, and the pattern says which are kept."""
    config, kept = model.peft_config["default"], {}
    for number, (path, parameter) in enumerate((p, x) for p, x in model.named_parameters() if "lora_E" in p):
        mask = [(number >> bit) % 2 == 1 for bit in range(config.init_r)]
        parameter.data[~torch.tensor(mask)] = 0.0
        kept[path.removeprefix("base_model.model.")] = mask
    config.rank_pattern = kept


def see(model: torch.nn.Module, config: peft.PeftConfig, batch: dict) -> None:
    """CorDA's statistics: of the inputs of its modules."""
    preprocess_corda(model, config, run_model=lambda: [model(input_ids=row[None]) for row in batch["input_ids"]])


def slope(model: torch.nn.Module, config: peft.PeftConfig, batch: dict) -> None:
    """LoRA-GA's statistics: the gradients of the weights."""
    preprocess_loraga(model, config, train_step=lambda: model(**batch, labels=batch["input_ids"]).loss.backward())


@dataclasses.dataclass(frozen=True)
class Variant:
    base: str
    config: peft.PeftConfig
    edit: Callable[[Path], None] | None = None  # before PEFT loads the files again: the logits are of the edited files
    damage: Callable[[Path], None] | None = None  # after that: the logits are of the whole files
    adapter: str = "default"  # PEFT saves any other name in a folder of that name
    pickle: bool = False
    plain: bool = False  # converted, at save, from a changed base (PiSSA) to the plain one
    noise: float = 0.25  # standard deviation of what is added to, or stands for, what is trained
    before: Callable[[peft.PeftModel], None] | None = None  # it is saved
    prepare: Callable[[torch.nn.Module, peft.PeftConfig, dict], None] | None = None  # of a base on which the adapter's start depends


VARIANTS = {
    "plain": Variant("llama", lora(LINEARS)),
    "all_linear": Variant("llama_tied", lora("all-linear", lora_dropout=0.1)),
    "mistral": Variant("mistral", lora(["q_proj", "v_proj"], r=2, lora_alpha=3)),
    "rslora": Variant("llama", lora(LINEARS, use_rslora=True)),
    # Keys of patterns are tails ("q_proj"), anchored names or regular expressions; the first that matches counts.
    "patterns": Variant(
        "llama",
        lora(
            LINEARS,
            rank_pattern={
                "layers.1.self_attn.q_proj": 2,
                "q_proj": 8,
                r".*\.layers\.0\.mlp\.(up|down)_proj": 3,
                "^model.layers.1.mlp.gate_proj": 1,
            },
            alpha_pattern={"v_proj": 32, r"layers\.[1-9]\.self_attn\.k_proj": 5},
        ),
    ),
    "patterns_rslora": Variant(
        "llama", lora(["q_proj", "v_proj"], use_rslora=True, rank_pattern={"q_proj": 9}, alpha_pattern={"v_proj": 3})
    ),
    "layers": Variant("llama", lora(LINEARS, layers_to_transform=[1])),
    "layers_pattern": Variant("llama", lora(["q_proj"], layers_to_transform=0, layers_pattern="layers")),
    "regex": Variant("llama", lora(r".*\.layers\.1\.(self_attn\.[qk]_proj|mlp\.up_proj)")),
    "excluded": Variant("llama", lora(LINEARS, exclude_modules=["layers.0.self_attn.q_proj", "down_proj"])),
    "excluded_regex": Variant("llama", lora(LINEARS, exclude_modules=r".*layers\.0\.mlp.*")),
    "embed": Variant("llama", lora(["embed_tokens", "q_proj"])),
    "embed_tied": Variant("llama_tied", lora(["embed_tokens", "q_proj"])),
    "embed_tied_ensured": Variant("llama_tied", lora(["embed_tokens", "q_proj"], ensure_weight_tying=True)),
    "head": Variant("llama", lora(["lm_head", "q_proj"])),
    "head_tied": Variant("llama_tied", lora(["lm_head", "q_proj"])),
    "embed_head_tied": Variant("llama_tied", lora(["embed_tokens", "lm_head"])),
    "embed_head_tied_ensured": Variant("llama_tied", lora(["embed_tokens", "lm_head"], ensure_weight_tying=True)),
    "saved_head": Variant("llama", lora(["q_proj"], modules_to_save=["lm_head"])),
    "saved_head_tied": Variant("llama_tied", lora(["q_proj"], modules_to_save=["lm_head"])),
    "saved_embed_tied": Variant("llama_tied", lora(["q_proj"], modules_to_save=["embed_tokens"])),
    "saved_embed_tied_ensured": Variant("llama_tied", lora(["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "saved_embed_head": Variant("llama", lora(["q_proj"], modules_to_save=["embed_tokens", "lm_head"])),
    "saved_norm": Variant("llama", lora(["q_proj"], modules_to_save=["norm"])),
    "lora_bias": Variant("llama_tied", lora(LINEARS, lora_bias=True)),
    "bias_lora_only": Variant("llama_tied", lora(["q_proj", "down_proj"], bias="lora_only")),
    "bias_all": Variant("llama_tied", lora(["q_proj"], bias="all")),
    "tokens": Variant("llama", lora(["q_proj"], trainable_token_indices=TOKENS)),
    "tokens_tied": Variant("llama_tied", lora(["q_proj"], trainable_token_indices=TOKENS)),
    "tokens_head": Variant("llama", lora(["q_proj"], trainable_token_indices={"embed_tokens": [3, 50], "lm_head": [96]})),
    "dora": Variant("llama", lora(LINEARS, use_dora=True)),
    "dora_patterns": Variant(
        "mistral", lora(["q_proj", "down_proj"], use_dora=True, use_rslora=True, rank_pattern={"layers.1.*.q_proj": 2}, lora_dropout=0.1)
    ),
    "dora_biased": Variant("llama_tied", lora(["q_proj", "lm_head"], use_dora=True, bias="lora_only")),
    "dora_embed": Variant("llama_tied", lora(["embed_tokens", "v_proj"], use_dora=True)),
    "dora_embed_ensured": Variant("llama_tied", lora(["embed_tokens"], r=1, use_dora=True, ensure_weight_tying=True)),
    "named": Variant("llama", lora(["q_proj", "v_proj"]), adapter="french"),
    "float16": Variant("llama", lora(["q_proj", "v_proj"]), edit=half(torch.float16)),
    "bfloat16": Variant("llama", lora(["q_proj", "v_proj"]), edit=half(torch.bfloat16)),
    "missing": Variant("llama", lora(["q_proj", "v_proj"]), damage=rewrite(drop_one)),
    "extra": Variant("llama", lora(["q_proj", "v_proj"]), damage=rewrite(add_one)),
    "misshapen": Variant("llama", lora(["q_proj", "v_proj"]), damage=rewrite(misshape_one)),
    "pickle": Variant("llama", lora(["q_proj"], r=1), pickle=True),
    "ia3": Variant(
        "llama", IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    ),
    "pissa": Variant("llama", lora(["q_proj", "v_proj"], init_lora_weights="pissa")),
    "pissa_converted": Variant("llama", lora(["q_proj", "v_proj"], init_lora_weights="pissa"), plain=True),
    "olora": Variant("llama", lora(QVD, init_lora_weights="olora")),
    "olora_converted": Variant("llama", lora(["q_proj", "v_proj"], init_lora_weights="olora"), plain=True),
    "corda_converted": Variant(
        "llama", lora(QVD, init_lora_weights="corda", corda_config=CordaConfig(corda_method="kpm")), plain=True, prepare=see
    ),
    "lora_ga_converted": Variant(
        "llama", lora(["q_proj", "v_proj"], init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()), plain=True, prepare=slope
    ),
    "mica": Variant("llama", lora(QVD, init_lora_weights="mica")),
    "orthogonal": Variant("llama", lora(["q_proj", "v_proj"], init_lora_weights="orthogonal")),
    "eva": Variant("llama", lora(["q_proj", "v_proj"], init_lora_weights="eva", eva_config=peft.EvaConfig())),
    "adalora": Variant("llama", other(AdaLoraConfig, init_r=6, target_r=3, lora_alpha=8, total_step=10, tinit=1, tfinal=1)),
    "adalora_pruned": Variant("llama", other(AdaLoraConfig, init_r=4, target_r=2, lora_alpha=6, total_step=10), before=prune),
    "ia3_attention": Variant("llama_tied", other(IA3Config, ["k_proj", "v_proj"], feedforward_modules=[])),
    "loha": Variant("llama", other(LoHaConfig, r=3, alpha=6, rank_pattern={"v_proj": 2}, alpha_pattern={"down_proj": 5})),
    "lokr": Variant("llama", other(LoKrConfig, r=2, alpha=4)),
    "lokr_both": Variant("llama", other(LoKrConfig, r=1, alpha=3, decompose_both=True, decompose_factor=8)),
    "lokr_dense": Variant("llama", other(LoKrConfig, r=64, alpha=32, decompose_factor=4)),
    "vera": Variant("llama", other(VeraConfig, r=6)),
    "vera_by_key": Variant("llama", other(VeraConfig, r=6, save_projection=False, projection_prng_key=7)),
    "randlora": Variant("llama", other(RandLoraConfig, r=12, randlora_alpha=60)),
    "randlora_sparse": Variant("llama", other(RandLoraConfig, ["v_proj"], r=8, randlora_alpha=16, sparse=True)),
    "randlora_by_key": Variant("llama", other(RandLoraConfig, r=12, randlora_alpha=60, save_projection=False, projection_prng_key=7)),
    "hra": Variant("llama", other(HRAConfig, r=4)),
    "hra_gs": Variant("llama", other(HRAConfig, r=3, apply_GS=True)),
    "oft": Variant("llama", other(OFTConfig, oft_block_size=8, use_cayley_neumann=False)),
    "oft_neumann": Variant("llama", other(OFTConfig, oft_block_size=8), noise=0.1),
    "oft_shared": Variant("llama", other(OFTConfig, oft_block_size=0, r=4, block_share=True, use_cayley_neumann=False)),
    "boft": Variant("llama", other(BOFTConfig, boft_block_size=4)),
    "miss": Variant("llama", other(MissConfig, r=5)),
    "miss_bat": Variant("llama", other(MissConfig, r=4, init_weights="bat"), noise=0.1),
    "miss_mini": Variant("llama", other(MissConfig, r=4, mini_r=4, init_weights="mini")),
    "shira": Variant("llama", other(ShiraConfig, r=2, random_seed=3)),
    "fourierft": Variant("llama", other(FourierFTConfig, n_frequency=24, n_frequency_pattern={"v_proj": 10}, scaling=100.0)),
    "hira": Variant("llama", other(HiraConfig, r=3, rank_pattern={"v_proj": 2})),
    "delora": Variant("llama", other(DeloraConfig, r=3, delora_lambda=12, lambda_pattern={"down_proj": 6})),
    "gralora": Variant("llama", other(GraloraConfig, r=4, alpha=8, gralora_k=2)),
    "gralora_hybrid": Variant("llama", other(GraloraConfig, r=4, alpha=8, gralora_k=2, hybrid_r=2)),
    "road_1": Variant("llama", other(RoadConfig, variant="road_1", group_size=8)),
    "road_2": Variant("llama", other(RoadConfig, variant="road_2", group_size=4)),
    "road_4": Variant("llama", other(RoadConfig, variant="road_4", group_size=16)),
    "ln_tuning": Variant("llama", other(LNTuningConfig, ["input_layernorm", "post_attention_layernorm", "norm"])),
    "prompt_tuning": Variant("llama", other(PromptTuningConfig, None, num_virtual_tokens=3)),
    "p_tuning": Variant("llama", other(PromptEncoderConfig, None, num_virtual_tokens=3, encoder_hidden_size=8)),
    "p_tuning_lstm": Variant(
        "llama", other(PromptEncoderConfig, None, num_virtual_tokens=3, encoder_hidden_size=4, encoder_reparameterization_type="LSTM")
    ),
    "prefix_tuning": Variant("llama", other(PrefixTuningConfig, None, num_virtual_tokens=3)),
    "prefix_projected": Variant(
        "llama_tied", other(PrefixTuningConfig, None, num_virtual_tokens=3, encoder_hidden_size=6, prefix_projection=True)
    ),
    "trainable_tokens": Variant("llama", other(TrainableTokensConfig, ["embed_tokens"], token_indices=TOKENS)),
    "trainable_tokens_tied": Variant("llama_tied", other(TrainableTokensConfig, ["embed_tokens"], token_indices=TOKENS)),
    # Other bases: kernels kept [in, out], fused modules, biases under what is adapted.
    "gpt2_ia3": Variant("gpt2", other(IA3Config, ["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True)),
    "gpt2_vera": Variant("gpt2", other(VeraConfig, ["c_attn", "c_fc"], r=4, fan_in_fan_out=True)),
    "phi3_ia3": Variant("phi3", other(IA3Config, ["qkv_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "phi3_oft": Variant("phi3", other(OFTConfig, ["qkv_proj"], oft_block_size=8), noise=0.1),
    "phi3_loha": Variant("phi3", other(LoHaConfig, ["qkv_proj", "gate_up_proj"], r=2, alpha=4)),
    "phi3_road": Variant("phi3", other(RoadConfig, ["qkv_proj", "o_proj"], variant="road_2", group_size=8)),
    "bias_oft": Variant("llama_tied", other(OFTConfig, ["q_proj"], oft_block_size=8, bias="oft_only"), noise=0.1),
    "saved_loha": Variant("llama", other(LoHaConfig, ["q_proj"], r=2, alpha=2, modules_to_save=["lm_head"])),
    "gpt2_attn": Variant("gpt2", lora(["c_attn"], fan_in_fan_out=True)),
    "gpt2_all": Variant("gpt2", lora(GPT2, fan_in_fan_out=True)),
    "gpt2_embed": Variant("gpt2", lora(["wte", "c_attn"], fan_in_fan_out=True)),
    "gpt2_dora": Variant("gpt2", lora(["c_attn"], fan_in_fan_out=True, use_dora=True)),
    "phi3": Variant("phi3", lora(["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])),
    "phi3_dora": Variant("phi3", lora(["qkv_proj", "gate_up_proj"], use_dora=True)),
    "qwen2": Variant("qwen2", lora(LINEARS)),
    "gemma2": Variant("gemma2", lora(LINEARS)),
    "bert": Variant("bert", lora(["query", "value"], task_type="SEQ_CLS")),
    "roberta": Variant("roberta", lora(["query", "value"], task_type="SEQ_CLS")),
    # Before the tokens of an encoder; with virtual tokens its classifier reads the first of them. The classifier is saved without "model.".
    "bert_prompt_tuning": Variant("bert", labelled(PromptTuningConfig)),
    "roberta_prompt_tuning": Variant("roberta", labelled(PromptTuningConfig)),
    "bert_p_tuning": Variant("bert", labelled(PromptEncoderConfig, encoder_hidden_size=8)),
    "bert_prefix_tuning": Variant("bert", labelled(PrefixTuningConfig)),
    "roberta_prefix_projected": Variant("roberta", labelled(PrefixTuningConfig, encoder_hidden_size=6, prefix_projection=True)),
}


def load_base(name: str, config: peft.PeftConfig) -> torch.nn.Module:
    auto = transformers.AutoModelForSequenceClassification if config.task_type == "SEQ_CLS" else transformers.AutoModelForCausalLM
    return auto.from_pretrained(HERE / name, dtype=torch.float32).eval()


def randomise(model: torch.nn.Module, generator: torch.Generator, noise: float) -> None:
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.requires_grad:
                drawn = torch.empty_like(parameter).normal_(0.0, noise, generator=generator)
                # Low-rank factors start from nothing; magnitudes, biases, norms and copies of base weights stay near what they are.
                parameter.copy_(drawn if "lora_A" in path or "lora_B" in path or "lora_embedding" in path else parameter + drawn)


def inputs(base: str, config: peft.PeftConfig, generator: torch.Generator) -> dict[str, torch.Tensor]:
    vocabulary = transformers.AutoConfig.from_pretrained(HERE / base).vocab_size
    ids = torch.randint(5, vocabulary, (BATCH, LENGTH), generator=generator)
    if config.task_type != "SEQ_CLS":
        if vocabulary > max(TOKENS):
            ids[:, 2:5] = torch.tensor(TOKENS)
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    types = torch.zeros_like(ids)
    types[0, 4:] = 1 if base == "bert" else 0
    # Roberta counts positions from the padding id, so padding must be it.
    return {"input_ids": torch.where(mask == 1, ids, 0 if base == "bert" else 1), "attention_mask": mask, "token_type_ids": types}


def make(name: str, variant: Variant, seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    folder = HERE / "peft" / name
    shutil.rmtree(folder, ignore_errors=True)
    config = variant.config
    batch = inputs(variant.base, config, generator)
    with torch.no_grad():
        plain = load_base(variant.base, config)(**batch).logits
    on = load_base(variant.base, config)
    if variant.prepare:
        variant.prepare(on, config, batch)
    model = peft.get_peft_model(on, config, adapter_name=variant.adapter).eval()
    options = {}
    if variant.plain:
        init, config.init_lora_weights = config.init_lora_weights, True  # so that the initial values are saved as they are
        model.save_pretrained(folder / "initial")
        config.init_lora_weights = init
        options = {"path_initial_model_for_weight_conversion": str(folder / "initial")}
    randomise(model, generator, variant.noise)
    if variant.before:
        variant.before(model)
    with torch.no_grad():
        in_memory = model(**batch).logits
        in_memory = in_memory[:, -plain.shape[1] :] if plain.ndim == 3 else in_memory
    config.base_model_name_or_path = str(HERE / variant.base)  # PEFT looks whether the vocabulary was resized
    model.save_pretrained(folder, safe_serialization=not variant.pickle, **options)
    shutil.rmtree(folder / "initial", ignore_errors=True)
    (folder / "README.md").unlink(missing_ok=True)
    written = folder if variant.adapter == "default" else folder / variant.adapter
    file = written / "adapter_config.json"
    file.write_text(file.read_text().replace(str(HERE / variant.base), variant.base))
    if variant.edit:
        variant.edit(written)

    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(load_base(variant.base, config), written).eval()(**batch).logits
    loaded = loaded[:, -plain.shape[1] :] if plain.ndim == 3 else loaded  # without those of virtual tokens
    if variant.damage:
        variant.damage(written)
    np.savez_compressed(
        folder / "golden.npz",
        base=np.array(variant.base),
        tokens=batch["input_ids"].numpy().astype(np.int32),
        logits=loaded.numpy(),
        **{key: batch[key].numpy().astype(np.int32) for key in batch if key != "input_ids"},
        versions=np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}", f"peft {peft.__version__}"]),
    )
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(
        f"{name:26} {variant.base:11} {size:7d} bytes; logits: |adapted - base| {(loaded - plain).abs().max():8.4f}, "
        f"|loaded - saved| {(loaded - in_memory).abs().max():.1e}"
    )


def main():
    for name, variant in VARIANTS.items():
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                make(name, variant, zlib.crc32(name.encode()))  # a seed of its own: new variants change no old file
            for message in sorted({str(one.message) for one in caught if "checkpointing" not in str(one.message)}):
                print(f"    PEFT warns: {message[:300]}")


if __name__ == "__main__":
    main()
