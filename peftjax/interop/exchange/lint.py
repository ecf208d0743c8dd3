"""Which servers take an adapter's file, and what of it they would ignore: facts about servers as a table, no server is run.

    print(as_table(lint(adapter, base.config)))

A server that reads HF PEFT's directory is judged by the directory that would be written, by what is in its config and keys.

| what is in the file | vLLM | SGLang |
|---|---|---|
| rank | up to --max-lora-rank, 16 unless set, one of 1, 8, 16, 32, 64, 128, 256, 320, 512 (vllm#2847) | up to --max-lora-rank |
| rank_pattern | read; older versions ignored it | any rank but r does not fit its buffers |
| alpha_pattern | read; older versions ignored it | ignored: alpha / r everywhere |
| use_rslora | read (vllm#6909) | ignored: alpha / r (sglang#40835) |
| use_dora | refused (vllm#6983, #10849) | refused |
| lora_bias, bias | refused (vllm#25807, #23892) | sorted among B's weights |
| modules_to_save | refused (vllm#9280) but for one `classifier` or `score` layer | ignored outside the layers, no place within them |
| trainable tokens | refused: "unsupported LoRA weight" | ignored |
| embed_tokens, lm_head | Llama, Phi-3 and Qwen3 alone | all it serves, tied or not (sglang#18634) |
| lm_head for an embedding that it is tied to | read by its keys | ignored: not in target_modules |
| q_proj without v_proj, up_proj without gate_proj | taken | fused tensors cannot be formed |
| GPT-2; BERT and RoBERTa | refused; taken | refused |

Names that match nothing may load and serve the base (vllm#34186); here names come from the base's own table. Read in the sources of the
versions that SERVERS name and in these issues, in 2026. What PEFT, AdapterHub and llama.cpp hold is asked of their writers.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from peftjax.interop.exchange import adapterhub_table
from peftjax.interop.exchange.adapter import Adapter
from peftjax.interop.exchange.adapterhub_prefix import is_prefixed
from peftjax.interop.exchange.adapterhub_write import adapterhub_content
from peftjax.interop.exchange.gguf_lora import LLAMA_CPP_VERSION, gguf_lora_content
from peftjax.interop.exchange.peft_rules import pattern_value
from peftjax.interop.exchange.peft_table import PREFIX
from peftjax.interop.exchange.peft_write import PEFT_VERSION, peft_content
from peftjax.interop.hf import document_from_config

_IN_LAYER = re.compile(r"(^|\.)(layers|layer|h)\.\d+\.")
_CLASSIFIER = re.compile(r"(.*\.)?(classifier|score)\.(weight|bias)")
TAKES, IGNORES, REFUSES = VERDICTS = ("takes", "takes, ignoring", "refuses")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one server makes of an adapter.

    Attributes:
        server, version: whose facts these are; nothing is said of other versions.
        verdict: one of VERDICTS.
        reasons: what is refused or ignored and why; after them what the server has to be told, and what it computes with.
    """

    server: str
    version: str
    verdict: str
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PeftFile:
    """A PEFT directory as a server sees it: its config, its tensors by key without `base_model.model.`, and the base's own document."""

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    base: Any
    architecture: str

    @property
    def modules(self) -> dict[str, tuple[int, float]]:
        """(rank, scale) of each module with LoRA, as PEFT reads them."""
        found = {}
        for key in self.tensors:
            if key.endswith((".lora_A.weight", ".lora_embedding_A")):
                name = key.partition(".lora_")[0]
                rank = pattern_value(self.config["rank_pattern"], name, self.config["r"])
                alpha = pattern_value(self.config["alpha_pattern"], name, self.config["lora_alpha"])
                found[name] = rank, alpha / (rank**0.5 if self.config["use_rslora"] else rank)
        return found

    @property
    def saved(self) -> list[str]:
        """Keys of weights saved whole."""
        return [key for key in self.tensors if not re.search(r"\.lora_|\.base_layer\.|\.token_adapter\.", key) and not self._bias(key)]

    def _bias(self, key: str) -> bool:
        return key.endswith(".bias") and self.config["bias"] != "none"


# ---- what may be in a file: name -> what of it is there, "" where nothing -----------------------------------------------------------


def _rslora(file: PeftFile) -> str:
    ratio = file.config["r"] ** 0.5
    return f"use_rslora, without which the update is {ratio:.3g} times smaller" if file.config["use_rslora"] and ratio != 1 else ""


def _other_ranks(file: PeftFile) -> str:
    ranks = sorted({rank for rank, _ in file.modules.values()})
    return f"ranks {', '.join(map(str, ranks))}" if len(ranks) > 1 else ""


def _other_alphas(file: PeftFile) -> str:
    touched = {key: value for key, value in file.config["alpha_pattern"].items() if value != file.config["lora_alpha"]}
    return f"alpha_pattern, {len(touched)} exceptions from {file.config['lora_alpha']:g}" if touched else ""


def _outside(file: PeftFile) -> str:
    return ", ".join(name for name in file.modules if not _IN_LAYER.search(name))


def _untargeted(file: PeftFile) -> str:
    """With tied weights PEFT writes the embedding's LoRA under the head's name too, which is no target."""
    targets = file.config["target_modules"]
    return _some(name for name in file.modules if not any(name == target or name.endswith(f".{target}") for target in targets))


def _saved(within: bool, classifier: bool) -> Callable[[PeftFile], str]:
    """Weights saved whole: within the layers or outside, a single classification layer or others."""

    def found(file: PeftFile) -> str:
        keys = [key for key in file.saved if (_IN_LAYER.search(key) is not None) == within]
        return _some(f"{key} whole" for key in keys if (_CLASSIFIER.fullmatch(key) is not None) == classifier)

    return found


def _lone(one: tuple[str, ...], needed: tuple[str, ...]) -> Callable[[PeftFile], str]:
    """Modules of one layer that are there without the others that share their tensor."""

    def found(file: PeftFile) -> str:
        by_parent: dict[str, set[str]] = collections.defaultdict(set)
        for name in file.modules:
            parent, _, leaf = name.rpartition(".")
            by_parent[parent].add(leaf)
        alone = [parent for parent, leaves in by_parent.items() if leaves & set(one) and not leaves >= set(needed)]
        return _some(f"{parent} with {', '.join(sorted(by_parent[parent] & {*one, *needed}))} alone" for parent in alone)

    return found


def _vocabulary(file: PeftFile) -> str:
    """Tensors with one row a token whose number of tokens is not the base's."""
    axes = {"lora_embedding_A": 1, "embed_tokens.weight": 0, "lm_head.weight": 0, "lm_head.lora_B.weight": 0}
    sizes = {key: value.shape[axis] for key, value in file.tensors.items() for ending, axis in axes.items() if key.endswith(ending)}
    return _some(f"{key} for {size} tokens, not {file.base.vocab_size}" for key, size in sizes.items() if size != file.base.vocab_size)


FEATURES: dict[str, Callable[[PeftFile], str]] = {
    "dora": lambda file: "use_dora" if file.config["use_dora"] else "",
    "rslora": _rslora,
    "ranks": _other_ranks,
    "alphas": _other_alphas,
    "lora_bias": lambda file: _some(key for key in file.tensors if key.endswith("lora_B.bias")),
    "biases": lambda file: f'bias "{file.config["bias"]}"' if file.config["bias"] != "none" else "",
    "saved in layers": _saved(within=True, classifier=False),
    "saved": _saved(within=False, classifier=False),
    "classifier": _saved(within=False, classifier=True),
    "token rows": lambda file: _some(key for key in file.tensors if ".token_adapter." in key),
    "outside": _outside,
    "untargeted": _untargeted,
    "vocabulary": _vocabulary,
    "q or v alone": _lone(("q_proj", "k_proj", "v_proj"), ("q_proj", "v_proj")),
    "up alone": _lone(("up_proj",), ("gate_proj",)),
}


# ---- servers --------------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Server:
    """Facts about one version of a server that reads PEFT's directories, or of a library or server with a form of its own.

    Attributes:
        content: what would be written for it, (adapter, base config) -> content; its ValueError is a refusal.
        form: of what it reads, for the message.
        architectures: Hugging Face's names of the bases on which it serves LoRA; None is all that `content` writes.
        outside: those on which it serves LoRA on embed_tokens and lm_head too; None is all.
        rank_flag, ranks, rank: of the largest rank: the flag, its allowed values (none: any), and the one that holds without it (0: that of
            the adapters given at the start).
        refuses, ignores: reasons by FEATURES' names. What is in neither is taken.
        notes: what it computes with, by FEATURES' names; "" is always said.
    """

    name: str
    version: str
    content: Callable[[Adapter, Any], Any]
    form: str
    architectures: tuple[str, ...] | None = None
    outside: tuple[str, ...] | None = None
    rank_flag: str = ""
    ranks: tuple[int, ...] = ()
    rank: int = 0
    refuses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignores: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


_DECODERS = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
)  # fmt: skip
_BIAS_AMONG_B = "it has no biases: its loader sorts them among B's weights, and what comes of it depends on the order of keys"
VLLM = Server(
    "vLLM", "0.33.0", peft_content, "HF PEFT",
    architectures=(*_DECODERS, "BertForSequenceClassification", "RobertaForSequenceClassification"),
    outside=("LlamaForCausalLM", "Phi3ForCausalLM", "Qwen3ForCausalLM"),
    rank_flag="--max-lora-rank", ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512), rank=16,
    refuses={
        "dora": "it has no DoRA (vllm#6983, #10849)",
        "lora_bias": "biases behind B were taken out (vllm#25807)",
        "biases": "it serves no trained biases",
        "saved": "it serves no weights saved whole but one classification layer (vllm#9280)",
        "saved in layers": "it serves no weights saved whole but one classification layer (vllm#9280)",
        "token rows": "trainable tokens are an unsupported LoRA weight to it",
        "vocabulary": "the embedding must have the base's vocabulary",
    },
    notes={
        "": "the tensors are cast to --lora-dtype, unless set that of the base",
        "ranks": "older versions took rank_pattern and ignored it",
        "alphas": "older versions took alpha_pattern and ignored it",
        "classifier": "no more labels than the base's or --max-lora-cls-labels",
    },
)  # fmt: skip
SGLANG = Server(
    "SGLang", "0.5.23", peft_content, "HF PEFT", architectures=_DECODERS, rank_flag="--max-lora-rank",
    refuses={
        "dora": "it has no DoRA",
        "ranks": "its buffers hold one rank, r",
        "lora_bias": _BIAS_AMONG_B,
        "biases": _BIAS_AMONG_B,
        "saved in layers": "it has no place for weights saved whole within the layers",
        "vocabulary": "it serves no adapters that change the vocabulary",
        "q or v alone": "q, k and v are one tensor to it, for which it needs q_proj and v_proj",
        "up alone": "gate and up are one tensor to it, for which it needs gate_proj",
    },
    ignores={
        "rslora": "it scales by alpha / r (sglang#40835)",
        "alphas": "it scales by alpha / r",
        "saved": "it skips what is not among target_modules",
        "classifier": "it skips what is not among target_modules",
        "token rows": "it skips what is not among target_modules",
        "untargeted": "it skips what is not among target_modules",
    },
    notes={"": "the tensors are cast to the type of the base"},
)  # fmt: skip
PEFT = Server("HF PEFT", PEFT_VERSION, peft_content, "HF PEFT")
ADAPTERHUB = Server(
    "AdapterHub", adapterhub_table.VERSION.removeprefix("adapters."),
    lambda adapter, config: adapterhub_content(adapter, config, "default"), "AdapterHub",
)  # fmt: skip
LLAMA_CPP = Server("llama.cpp", LLAMA_CPP_VERSION, gguf_lora_content, "GGUF")
_EAGER = "prefixes need model.set_attn_implementation('eager'): for its default attention it masks them wrongly"
SERVERS = (VLLM, SGLANG, LLAMA_CPP, PEFT, ADAPTERHUB)


def lint(adapter: Adapter, base_config: Any) -> list[Finding]:
    """One finding for each of SERVERS, in their order."""
    return [_finding(server, adapter, base_config) for server in SERVERS]


def as_table(findings: list[Finding]) -> str:
    """The findings in aligned columns, each reason on lines of its own."""
    rows = [("server", "version", "verdict", "why")]
    for finding in findings:
        first, lines = (finding.server, finding.version, finding.verdict), "\n".join(finding.reasons).split("\n")
        rows += [(*(first if i == 0 else ("",) * 3), line) for i, line in enumerate(lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [[*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _finding(server: Server, adapter: Adapter, base_config: Any) -> Finding:
    try:
        content = server.content(adapter, base_config)
    except ValueError as error:
        return Finding(server.name, server.version, REFUSES, (f"no {server.form} file holds it: {error}",))
    if server.content is gguf_lora_content:
        told = f"one alpha for the file, {content[1]:g}; scales that differ are folded into B"
        return Finding(server.name, server.version, TAKES, (told,))
    if server.content is not peft_content:
        return Finding(server.name, server.version, TAKES, (_EAGER,) if is_prefixed(adapter) else ())
    tensors, config = content
    architecture = document_from_config(base_config, "float32")["architectures"][0]
    file = PeftFile(config, {key.removeprefix(PREFIX): value for key, value in tensors.items()}, base_config, architecture)
    return _judged(server, file)


def _judged(server: Server, file: PeftFile) -> Finding:
    found = {name: detail for name, feature in FEATURES.items() if (detail := feature(file))}
    refused = [f"{found[name]}: {why}" for name, why in server.refuses.items() if name in found]
    if server.architectures is not None and file.architecture not in server.architectures:
        refused.append(f"it serves no LoRA on {file.architecture}")
    elif "outside" in found and server.outside is not None and file.architecture not in server.outside:
        refused.append(f"{found['outside']}: LoRA outside the layers is not known to be served on {file.architecture}")
    top = max((rank for rank, _ in file.modules.values()), default=0)
    if server.ranks and top > max(server.ranks):
        refused.append(f"rank {top}: the largest {server.rank_flag} is {max(server.ranks)}")
    ignored = [f"{found[name]}: {why}" for name, why in server.ignores.items() if name in found]
    if refused:
        return Finding(server.name, server.version, REFUSES, tuple(refused))
    notes = [*_flags(server, top), *(why for name, why in server.notes.items() if not name or name in found), *_scales(file)]
    return Finding(server.name, server.version, IGNORES if ignored else TAKES, (*ignored, *notes))


def _flags(server: Server, top: int) -> list[str]:
    """What the server has to be told to take this rank."""
    if not server.rank_flag or top <= server.rank:
        return []
    needed = min((rank for rank in server.ranks if rank >= top), default=top)
    return [f"needs {server.rank_flag} {needed}" + ("" if server.rank else ", if loaded after the start")]


def _scales(file: PeftFile) -> list[str]:
    """The scales that the config stands for: PEFT stores none."""
    scales = sorted({float(np.float32(scale)) for _, scale in file.modules.values()})
    shown = ", ".join([f"{scale:.6g}" for scale in scales[:5]] + ["..."] * (len(scales) > 5))
    return [f"the config stands for scale {shown}"] if scales else []


def _some(found: Any) -> str:
    """The first of many, and how many there are."""
    found = list(found)
    return f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}" if found else ""
