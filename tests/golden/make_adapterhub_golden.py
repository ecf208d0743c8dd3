"""Makes the golden files of the exchange with AdapterHub: adapters that the library `adapters` wrote and the logits it computes with them.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 adapters==1.3.0 safetensors numpy
    /tmp/golden/bin/python tests/golden/make_adapterhub_golden.py [variant ...]

Every adapter stands on one of the tiny bases beside this file (llama, llama_tied, bert, ...); all its tensors are random, so that a wrong
place, order or scale shows in the logits. Each variant becomes tests/golden/adapterhub/<variant>/ with what the library wrote there and

    golden.npz   base (the name), tokens [B, T], logits [B, T, V] (or [B, labels] with token_type_ids and attention_mask [B, T])

The logits are those of a *fresh* base into which the library loaded the written files. For a causal model the library writes the whole
lm_head beside every adapter, trained or not, unless told with_head=False, as here but in the variant `head`. Encoders' heads are trained
with the adapter and always written.

Four things are not what the library computes after loading:
- With its default attention (sdpa), whose mask says with True what is seen, the library masks a prefix wrongly: on Llama it hides it. The
  logits of variants with a prefix are those of its eager attention, whose mask is what is added to scores, and with which prefixes work.
- With the same attention virtual tokens of a prompt see padding; logits of variants with a prompt are those of eager attention too.
- DiReFT is saved without its mark and comes back as NoReFT: `logits` are of what comes back, `saved_logits` of what was saved.
- Variants of AdapterFusion hold several folders, one an adapter and one of the fusion.
"""

import copy
import dataclasses
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import adapters
import numpy as np
import safetensors.torch
import torch
import transformers
from adapters import (
    AdapterPlusConfig,
    BnConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    ConfigUnion,
    DiReftConfig,
    DoubleSeqBnConfig,
    DoubleSeqBnInvConfig,
    IA3Config,
    LoRAConfig,
    LoReftConfig,
    MAMConfig,
    NoReftConfig,
    ParBnConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    SeqBnInvConfig,
    UniPELTConfig,
    VeraConfig,
)
from adapters.composition import Fuse

HERE = Path(__file__).parent
NAME = "task"  # the adapter's name, part of every key
BATCH, LENGTH = 2, 8
PLUS = dict(stochastic_depth=0.0)  # needs torchvision; and nothing random may remain in the forward pass


def edit_config(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text())
        change(config)
        file.write_text(json.dumps(config, indent=2, sort_keys=True))

    return edit


def no_version(config: dict) -> None:
    del config["version"]


def old_version(config: dict) -> None:
    config["version"] = "adapters.1.0.0"


def diagonal(folder: Path) -> None:
    """VeRA as it is in its paper: training fills the matrices in which the library holds its two vectors."""
    file = folder / "adapter.safetensors"
    tensors = safetensors.torch.load_file(file)
    for key, value in tensors.items():
        if "vera_" in key:
            tensors[key] = torch.diag(torch.diagonal(value)).contiguous()
    safetensors.torch.save_file(tensors, file)


def convert(folder: Path) -> None:
    """Pickle to safetensors, for the methods whose tensors share memory: the library itself can only pickle those."""
    for old, new in (("pytorch_adapter.bin", "adapter.safetensors"), ("pytorch_model_head.bin", "model_head.safetensors")):
        if (folder / old).exists():
            tensors = torch.load(folder / old, weights_only=True)
            safetensors.torch.save_file({key: value.clone() for key, value in tensors.items()}, folder / new)
            (folder / old).unlink()


@dataclasses.dataclass(frozen=True)
class Variant:
    base: str
    config: object
    edit: Callable[[Path], None] | None = None  # before the library loads the files again: the logits are of the edited files
    pickle: bool = False
    head: str | None = None  # "static": the model class's own; "flex": add_classification_head; "lm": keep the copy of lm_head
    name: str = NAME
    fused: tuple[object, ...] = ()  # further adapters "b", "c", ... beside `name`, fused with it
    noise: float = 0.25


def prefixed(length: int, **fields) -> PrefixTuningConfig:
    return PrefixTuningConfig(prefix_length=length, **fields)


VARIANTS = {
    # Bottlenecks (d 32, so reduction 8 leaves 4).
    "seq_bn": Variant("llama", SeqBnConfig(reduction_factor=8)),
    "double_seq_bn": Variant("llama", DoubleSeqBnConfig(reduction_factor=8)),
    "par_bn": Variant("llama", ParBnConfig(reduction_factor=8)),
    "scaled_par_bn": Variant("llama", ParBnConfig(reduction_factor=8, scaling="learned")),
    "adapter_plus": Variant("llama", AdapterPlusConfig(reduction_factor=8, **PLUS)),
    "adapter_plus_ln": Variant("llama", AdapterPlusConfig(reduction_factor=8, ln_before=True, **PLUS), edit=convert),
    "ln_before": Variant("llama", DoubleSeqBnConfig(reduction_factor=8, ln_before=True), edit=convert),
    "ln_after": Variant("llama", SeqBnConfig(reduction_factor=8, ln_after=True)),
    "ln_after_residual": Variant("llama", SeqBnConfig(reduction_factor=8, ln_after=True, adapter_residual_before_ln=True)),
    "scaled_seq_bn": Variant("llama", SeqBnConfig(reduction_factor=8, scaling=0.5)),
    "par_bn_attention": Variant("llama", ParBnConfig(reduction_factor=8, mh_adapter=True, non_linearity="tanh", scaling=2.0)),
    "reduction_map": Variant("llama", DoubleSeqBnConfig(reduction_factor={"0": 16, "default": 4})),
    "reduction_fraction": Variant("llama", SeqBnConfig(reduction_factor=0.5)),
    "leave_out": Variant("llama", DoubleSeqBnConfig(reduction_factor=8, leave_out=[0])),
    "gelu": Variant("llama", SeqBnConfig(reduction_factor=8, non_linearity="gelu")),
    "gelu_new": Variant("llama", SeqBnConfig(reduction_factor=8, non_linearity="gelu_new")),
    "leakyrelu": Variant("llama", SeqBnConfig(reduction_factor=8, non_linearity="leakyrelu")),
    "gelu_without_version": Variant("llama", SeqBnConfig(reduction_factor=1, non_linearity="gelu"), edit=edit_config(no_version)),
    "tied": Variant("llama_tied", DoubleSeqBnConfig(reduction_factor=8)),
    "mistral": Variant("mistral", DoubleSeqBnConfig(reduction_factor=8)),
    "named": Variant("llama", SeqBnConfig(reduction_factor=8), name="adapter_down-2"),
    "head": Variant("llama", SeqBnConfig(reduction_factor=16), head="lm"),
    "pickle": Variant("llama", SeqBnConfig(reduction_factor=16), pickle=True),
    # LoRA
    "lora": Variant("llama", LoRAConfig(r=4, alpha=8)),
    "lora_qkv": Variant("llama", LoRAConfig(r=4, alpha=6, attn_matrices=["q", "k", "v"])),
    "lora_all": Variant("llama", LoRAConfig(r=4, alpha=8, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True)),
    "lora_mlp": Variant("llama", LoRAConfig(r=4, alpha=4, selfattn_lora=False, intermediate_lora=True, leave_out=[1])),
    "lora_1.0.0": Variant("llama", LoRAConfig(r=4, alpha=8), edit=edit_config(old_version)),
    "dora": Variant("llama", LoRAConfig(r=4, alpha=4, use_dora=True, intermediate_lora=True)),
    "bert_dora": Variant("bert", LoRAConfig(r=4, alpha=4, use_dora=True), head="static"),
    "lora_dora": Variant("llama", LoRAConfig(r=4, alpha=8, use_dora=True)),
    "lora_tied": Variant("llama_tied", LoRAConfig(r=4, alpha=8)),
    "union": Variant("llama", ConfigUnion(LoRAConfig(r=4, alpha=8), SeqBnConfig(reduction_factor=8))),
    # The other methods; among these are some that are refused on import, for a reason each.
    "lora_gated": Variant("llama", LoRAConfig(r=4, alpha=8, use_gating=True)),
    "seq_bn_gated": Variant("llama", SeqBnConfig(reduction_factor=8, use_gating=True)),
    "seq_bn_inv": Variant("llama", SeqBnInvConfig(reduction_factor=8)),
    "ia3": Variant("llama", IA3Config()),
    "prefix": Variant("llama", PrefixTuningConfig(flat=True, prefix_length=3), edit=convert),
    "prefix_mlp": Variant("llama", prefixed(3, flat=False, bottleneck_size=6), edit=convert),
    "compacter": Variant("llama", CompacterConfig(reduction_factor=4)),
    "compacter_plus_plus": Variant("llama", CompacterPlusPlusConfig(reduction_factor=8, phm_dim=2)),
    "compacter_own_rules": Variant(
        "llama", CompacterPlusPlusConfig(reduction_factor=4, phm_dim=2, shared_phm_rule=False, factorized_phm_W=False)
    ),
    "compacter_frozen_rule": Variant("llama", CompacterPlusPlusConfig(reduction_factor=4, phm_dim=2, learn_phm=False, phm_rank=2)),
    "double_seq_bn_inv": Variant("llama", DoubleSeqBnInvConfig(reduction_factor=8)),
    "bert_seq_bn_inv": Variant("bert", SeqBnInvConfig(reduction_factor=8), head="static"),
    "ia3_all": Variant("llama", IA3Config(attn_matrices=["q", "k", "v"], output_lora=True, leave_out=[0])),
    "bert_ia3": Variant("bert", IA3Config(), head="static"),
    "gpt2_ia3": Variant("gpt2", IA3Config()),
    "vera": Variant("llama", VeraConfig(r=3, alpha=6, attn_matrices=["q"])),
    "vera_diagonal": Variant("llama", VeraConfig(r=3, alpha=6, attn_matrices=["k", "v"], leave_out=[0]), edit=diagonal),
    "bert_loreft": Variant("bert", LoReftConfig(r=2, prefix_positions=1, suffix_positions=2), head="static"),
    "noreft_suffix": Variant("llama", NoReftConfig(r=2, prefix_positions=0, suffix_positions=2)),
    "prefix_gated": Variant("llama", prefixed(3, flat=True, leave_out=[0], use_gating=True, shared_gating=False), edit=convert),
    "mistral_prefix": Variant("mistral", prefixed(2, flat=True), edit=convert),
    "gpt2_prefix": Variant("gpt2", prefixed(2, bottleneck_size=5, non_linearity="relu", leave_out=[1]), edit=convert),
    "bert_prefix": Variant("bert", prefixed(2, flat=True), head="static", edit=convert),
    "bert_prompt": Variant("bert", PromptTuningConfig(prompt_length=3), head="static"),
    "roberta_prompt": Variant("roberta", PromptTuningConfig(prompt_length=2, combine="prefix_after_bos"), head="static"),
    "bert_flex_prompt": Variant("bert", PromptTuningConfig(prompt_length=2), head="flex"),
    "gpt2_seq_bn_inv": Variant("gpt2", SeqBnInvConfig(reduction_factor=8, leave_out=[0])),
    "gpt2_lora_gated": Variant("gpt2", LoRAConfig(r=2, attn_matrices=["q", "v"], use_gating=True, output_lora=True)),
    "loreft": Variant("llama", LoReftConfig(r=2, suffix_positions=2)),
    "loreft_prefix": Variant("llama", LoReftConfig(r=1, layers=[1])),
    "loreft_tied": Variant("llama", LoReftConfig(r=3, prefix_positions=2, suffix_positions=1, tied_weights=True)),
    "noreft": Variant("llama", NoReftConfig(r=2, prefix_positions=1, suffix_positions=2)),
    "direft": Variant("llama", DiReftConfig(r=2, prefix_positions=2, suffix_positions=1)),
    "mam": Variant("llama", MAMConfig(prefixed(3, bottleneck_size=6), ParBnConfig(reduction_factor=8)), edit=convert),
    "unipelt": Variant(
        "llama", UniPELTConfig(prefixed(3, flat=True), SeqBnConfig(reduction_factor=8), LoRAConfig(r=2, alpha=4)), edit=convert
    ),
    "fusion": Variant("llama", SeqBnConfig(reduction_factor=8), fused=(SeqBnConfig(reduction_factor=16),)),
    "bert_fusion": Variant("bert", SeqBnConfig(reduction_factor=8), head="static", fused=(SeqBnConfig(reduction_factor=16),)),
    # GPT-2: fused c_attn of which LoRA covers some of q, k, v; intermediate is c_fc, output c_proj.
    "gpt2_seq_bn": Variant("gpt2", SeqBnConfig(reduction_factor=8)),
    "gpt2_double_seq_bn": Variant("gpt2", DoubleSeqBnConfig(reduction_factor=8)),
    "gpt2_par_bn": Variant("gpt2", ParBnConfig(reduction_factor=8)),
    "gpt2_lora": Variant("gpt2", LoRAConfig(r=4, alpha=8, attn_matrices=["q", "v"])),
    "gpt2_lora_k": Variant("gpt2", LoRAConfig(r=4, alpha=8, attn_matrices=["k"])),
    "gpt2_lora_all": Variant("gpt2", LoRAConfig(r=4, alpha=8, attn_matrices=["v", "k", "q"], intermediate_lora=True, output_lora=True)),
}
for base in ("bert", "roberta"):
    VARIANTS |= {
        f"{base}_seq_bn": Variant(base, SeqBnConfig(reduction_factor=8), head="static"),
        f"{base}_double_seq_bn": Variant(base, DoubleSeqBnConfig(reduction_factor=8), head="static"),
        f"{base}_par_bn": Variant(base, ParBnConfig(reduction_factor=8), head="static"),
        f"{base}_lora": Variant(base, LoRAConfig(r=4, alpha=8), head="static"),
        f"{base}_lora_all": Variant(
            base, LoRAConfig(r=4, alpha=8, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True), head="static"
        ),
        f"{base}_ln_before": Variant(
            base, BnConfig(True, True, 8, "relu", ln_before=True, original_ln_before=True), head="static", edit=convert
        ),
        f"{base}_post_add": Variant(base, SeqBnConfig(reduction_factor=8, residual_before_ln="post_add"), head="static"),
        f"{base}_adapter_plus": Variant(base, AdapterPlusConfig(reduction_factor=8, **PLUS), head="static"),
        f"{base}_flex_seq_bn": Variant(base, SeqBnConfig(reduction_factor=8), head="flex"),
        f"{base}_flex_lora": Variant(base, LoRAConfig(r=4, alpha=8), head="flex"),
    }


def load_base(variant: Variant) -> torch.nn.Module:
    folder = HERE / variant.base
    raw = json.loads((folder / "config.json").read_text())
    config = transformers.AutoConfig.from_pretrained(folder)
    if "rope_parameters" in raw:  # transformers 5 writes it so; 4 reads the top level alone
        config.rope_theta = raw["rope_parameters"]["rope_theta"]
    auto = {
        "static": transformers.AutoModelForSequenceClassification,
        "flex": adapters.AutoAdapterModel,
    }.get(variant.head, transformers.AutoModelForCausalLM)
    attention = {"attn_implementation": "eager"} if isinstance(variant.config, PromptTuningConfig) else {}
    model = auto.from_pretrained(folder, config=config, dtype=torch.float32, **attention).eval()
    with np.load(folder / "golden.npz") as golden, torch.no_grad():
        if variant.head != "flex":
            names = {"tokens": "input_ids", "attention_mask": "attention_mask", "token_type_ids": "token_type_ids"}
            batch = {new: torch.tensor(golden[old]).long() for old, new in names.items() if old in golden}
            np.testing.assert_allclose(model(**batch).logits.numpy(), golden["logits"], atol=1e-4, err_msg=f"{folder} was read wrongly")
    if variant.head != "flex":
        adapters.init(model)
    return model


def randomise(model: torch.nn.Module, generator: torch.Generator, noise: float) -> None:
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.requires_grad:
                drawn = torch.empty_like(parameter).normal_(0.0, noise, generator=generator)
                fresh = "lora_" in path or "adapter_down" in path or "adapter_up" in path
                if path.endswith("parametrizations.weight.original"):
                    drawn.fill_diagonal_(0.0)  # signs, which the library cuts to whole numbers
                parameter.copy_(drawn if fresh and "norm" not in path else parameter + drawn)


def inputs(variant: Variant, generator: torch.Generator) -> dict[str, torch.Tensor]:
    if variant.head in ("static", "flex"):
        with np.load(HERE / variant.base / "golden.npz") as golden:
            return {
                "input_ids": torch.tensor(golden["tokens"]).long(),
                "attention_mask": torch.tensor(golden["attention_mask"]).long(),
                "token_type_ids": torch.tensor(golden["token_type_ids"]).long(),
            }
    vocabulary = transformers.AutoConfig.from_pretrained(HERE / variant.base).vocab_size
    return {"input_ids": torch.randint(0, vocabulary, (BATCH, LENGTH), generator=generator)}


def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Logits; with a prefix by eager attention, as said above."""
    if any(name in getattr(getattr(module, "prefix_tuning", None), "prefixes", ()) for module in model.modules()):
        model.set_attn_implementation("eager")
    return model(**batch).logits


def make(name: str, variant: Variant, seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    folder = HERE / "adapterhub" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    safe = not variant.pickle
    batch = inputs(variant, generator)

    model = load_base(variant)
    with torch.no_grad():
        plain = model(**batch).logits if variant.head != "flex" else None
    if variant.head == "flex":
        model.add_classification_head(variant.name, num_labels=3)
    model.add_adapter(variant.name, config=copy.deepcopy(variant.config))
    model.train_adapter(variant.name)
    names = [variant.name, *"bcd"[: len(variant.fused)]]
    if variant.fused:
        for other, config in zip(names[1:], variant.fused, strict=True):
            model.add_adapter(other, config=copy.deepcopy(config))
            model.train_adapter(other)
            randomise(model, generator, variant.noise)
        model.add_adapter_fusion(names)
        model.train_adapter_fusion(Fuse(*names))
    model.eval()
    randomise(model, generator, variant.noise)
    with torch.no_grad():
        in_memory = forward(model, batch, variant.name)
    with_head = variant.head is not None
    if variant.fused:
        for one in names:
            model.save_adapter(folder / one, one, with_head=False, use_safetensors=safe)
        model.save_adapter_fusion(folder / "fusion", names, use_safetensors=safe)
        if with_head:
            model.save_head(folder / "fusion", use_safetensors=safe)
    else:
        model.save_adapter(folder, variant.name, with_head=with_head, use_safetensors=safe and variant.edit is not convert)
    if variant.edit:
        variant.edit(folder)
    for file in folder.rglob("*.json"):
        file.write_text(file.read_text().replace(str(HERE / variant.base), variant.base))

    fresh, load_head = load_base(variant), variant.head in ("static", "flex")
    if variant.fused:
        for one in names:
            fresh.load_adapter(str(folder / one), with_head=False, use_safetensors=safe)
        fresh.load_adapter_fusion(str(folder / "fusion"), set_active=True, use_safetensors=safe)
        if load_head:
            fresh.load_head(str(folder / "fusion"), use_safetensors=safe)
    else:
        fresh.load_adapter(str(folder), set_active=True, with_head=load_head, use_safetensors=safe)
    with torch.no_grad():
        loaded = forward(fresh.eval(), batch, variant.name)
    more = {"saved_logits": in_memory.numpy()} if (loaded - in_memory).abs().max() > 1e-3 else {}
    np.savez_compressed(
        folder / "golden.npz",
        base=np.array(variant.base),
        tokens=batch["input_ids"].numpy().astype(np.int32),
        logits=loaded.numpy(),
        **more,
        **{key: batch[key].numpy().astype(np.int32) for key in batch if key != "input_ids"},
        versions=np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}", f"adapters {adapters.__version__}"]),
    )
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    change = (loaded - plain).abs().max() if plain is not None else float("nan")
    print(
        f"{name:24} {variant.base:10} {size:6d} bytes; logits: |adapted - base| {change:8.4f}, "
        f"|loaded - saved| {(loaded - in_memory).abs().max():.1e}",
        flush=True,
    )


def main():
    logging.disable(logging.WARNING)  # "adapters available but none are activated"
    for name, variant in VARIANTS.items():
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            make(name, variant, zlib.crc32(name.encode()))  # a seed of its own: new variants change no old file


if __name__ == "__main__":
    main()
