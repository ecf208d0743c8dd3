"""Proof of the exports: each method, in each form, is loaded by that form's own library and gives the logits that it gives here.

A job is a base directory, an exported adapter and a batch of tokens; scripts/peers/logits.py answers it in the peer's environment.

    jobs = write_jobs(folder, [Path("tests/golden/llama"), ...])       exports, tokens and our logits
    rows = compare_jobs(jobs)                                           after the peers have left theirs
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.files import replacing
from peftjax.interop.base import Base, load_base, load_params
from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.adapterhub_write import write_adapterhub
from peftjax.interop.exchange.merged import write_merged
from peftjax.interop.exchange.peft_write import write_peft
from peftjax.interop.fingerprint import fingerprint
from peftjax.interop.hf import open_directory
from peftjax.models.decoder import Decoder, cut
from peftjax.models.encoder import Encoder
from peftjax.models.tokenizer import Tokenizer
from peftjax.nn.tree import flatten, get, put, unflatten_like, walk
from peftjax.peft import (
    attach,
    bitfit,
    bottleneck,
    combine,
    compacter,
    cut_points,
    direft,
    full,
    houlsby,
    ia3,
    invertible,
    lora,
    loreft,
    noreft,
    norm_only,
    parallel,
    partition,
    pfeiffer,
    prefix,
    scaled_parallel,
    trainable_tokens,
    unipelt,
    vera,
)
from peftjax.peft.adalora import AdaLoRA, adalora
from peftjax.peft.boft import boft
from peftjax.peft.classifier import classifier
from peftjax.peft.delora import delora
from peftjax.peft.fourierft import fourierft
from peftjax.peft.gralora import gralora
from peftjax.peft.hira import hira
from peftjax.peft.hra import hra
from peftjax.peft.keys import key_at
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.prompt import p_tuning, prompt_tuning
from peftjax.peft.randlora import randlora
from peftjax.peft.road import road
from peftjax.peft.shira import shira

TOLERANCE = 1e-4  # on logits
OURS, ANSWER = "ours.npz", "theirs.npz"
HOSTS = ("llama", "gpt2", "bert", "roberta")
ATTENTION, QKV = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")


@dataclasses.dataclass(frozen=True)
class Case:
    """A method in a form, on the bases that it is for. then: what becomes of the tree after everything in it was moved."""

    name: str
    form: str
    methods: tuple[Any, ...]
    fits: Callable[[Base], bool] = lambda base: True
    then: Callable[[dict], dict] = lambda params: params


def _decoder(base: Base) -> bool:
    return not hasattr(base.config, "labels")


def _encoder(base: Base) -> bool:
    return not _decoder(base)


def _pooled(base: Base) -> bool:
    """Whether it is an encoder with a pooler of its own before the head."""
    return base.config.family == "bert"


def _unpooled(base: Base) -> bool:
    return base.config.family == "roberta"


def _hosted_decoder(base: Base) -> bool:
    return base.config.family in HOSTS and _decoder(base)


def _prefixed(base: Base) -> bool:
    """Whether its heads are as wide as AdapterHub's prefixes take them to be."""
    return _hosted_decoder(base) and base.config.heads * base.config.head_size == base.config.width


def _biased(base: Base) -> bool:
    return _decoder(base) and get(base.params, "blocks/attn/v/bias") is not None


def _pruned(params: dict) -> dict:
    """Every AdaLoRA with some of its ranks at zero, the first of some layers and modules with all."""
    for number, (path, value) in enumerate(walk(params)):
        if isinstance(value, AdaLoRA):
            left = jnp.arange(value.e.size).reshape(value.e.shape) % 3 < number % 3
            params = put(params, path, dataclasses.replace(value, e=jnp.where(left, value.e, 0.0)))
    return params


def _kept_out_in(base: Base) -> bool:
    """Whether its layers are no Conv1D, which PEFT has few methods for."""
    return _decoder(base) and base.config.family != "gpt2"


def _whole(base: Base) -> bool:
    """Whether no modules are fused there that are apart here."""
    return _decoder(base) and base.config.family not in ("gpt2", "phi3")


# Of other methods than LoRA what PEFT has too; the second on modules that are fused nowhere.
APART, ADALORA = ("o_proj", "down_proj"), adalora(rank=3, target_rank=2, alpha=6)
DELTAS = {
    "LoKr": lokr(rank=2, alpha=4), "VeRA": vera(rank=6), "RandLoRA": randlora(rank=8, alpha=12), "DeLoRA": delora(rank=3, strength=4),
    "GraLoRA": gralora(rank=4, alpha=6), "FourierFT": fourierft(frequencies=20), "SHiRA": shira(rank=2), "MiSS": miss(rank=4),
    "MiSS, mini": miss(rank=4, form="mini", mini_rank=2), "MiSS, bat": miss(rank=4, form="bat", targets=("q_proj", "up_proj")),
    "BOFT": boft(block_size=2), "IA3": ia3(), "AdaLoRA": ADALORA,
}
TRANSFORMS = {
    "LoHa": loha(rank=2, alpha=3, targets=APART), "HiRA": hira(rank=3, targets=APART),
    "IA3 on outputs and inputs": ia3(targets=APART, feedforward="down_proj"), "OFT": oft(block_size=4, exact=True, targets=APART),
    "OFT, a series": oft(block_size=4, targets=APART), "HRA": hra(rank=2, targets=APART), "RoAd": road(group=4, targets=APART),
}
FLAT, DEEP = classifier(labels=3, hidden=False), classifier(labels=3, hidden=True)
# What AdapterHub has, on decoders and, with a head, on encoders.
HUB = {
    "Houlsby": (houlsby(size=4),), "Pfeiffer": (pfeiffer(size=5),), "parallel": (parallel(size=4),),
    "scaled parallel": (scaled_parallel(size=4),),
    "bottleneck, norms, channel scale": (bottleneck(size=4, norm="both", scale="channel", activation="gelu"),),
    "bottleneck on one layer": (houlsby(size=3, layers=(1,)),), "LoRA": (lora(rank=3, alpha=6, targets=ATTENTION),),
    "LoRA and Pfeiffer": (lora(rank=3, targets=ATTENTION), pfeiffer(size=4)), "Compacter": (compacter(size=8),),
    "Pfeiffer, invertible": (pfeiffer(size=4), invertible()),
    "IA3 on outputs": (ia3(targets=("k_proj", "v_proj", "up_proj"), feedforward=()),),
    "LoReFT": (loreft(rank=2, suffix_positions=1),), "NoReFT": (noreft(rank=2, prefix_positions=0, suffix_positions=2),),
    "DiReFT": (direft(rank=2, tied=True, suffix_positions=1),), "prefix on one layer": (prefix(length=3, offset=False, layers=(1,)),),
    "prefix and scaled parallel (MAM)": (prefix(length=3, hidden=5, offset=False), scaled_parallel(size=4)),
    "UniPELT, gates of rows": tuple(unipelt(
        lora={"gate": "row", "rank": 2}, prefix={"length": 2, "hidden": None, "offset": False, "gates": 2, "gating": "mean"},
        bottleneck={"gate": "mean", "size": 4})),
}
VERA = (vera(rank=3, targets=("k_proj", "v_proj")),)
HUB_ENCODED = HUB | {
    "VeRA": VERA, "prompt": (prompt_tuning(length=3, offset=False),),
    "prompt read first": (prompt_tuning(length=3, offset=False, reads="prompt"),),
}
# What HF PEFT has, on encoders, whose heads transformers makes of one layer or two.
ENCODED = {
    "LoRA": (lora(rank=3, alpha=6),), "LoRA on attention": (lora(rank=3, targets=ATTENTION),),
    "rsLoRA": (lora(rank=4, alpha=2, rslora=True),), "LoRA on one layer": (lora(rank=3, layers=(1,)),),
    "LoRA on the embedding": (lora(rank=3, targets=("q_proj", "embed_tokens")),),
    "LoRA with bias": (lora(rank=3, targets=("o_proj", "down_proj"), lora_bias=True),), "DoRA": (lora(rank=3, alpha=6, dora=True),),
    "LoRA from pissa": (lora(rank=2, alpha=3, init="pissa"),), "norms": (norm_only(),),
    "prompt": (prompt_tuning(length=3, reads="prompt"),), "P-tuning": (p_tuning(length=3, hidden=5, reads="prompt"),),
    "prefix": (prefix(length=3),),
    **{name: (method,) for name, method in (DELTAS | TRANSFORMS).items()},
}
PLAIN = lora(rank=3, alpha=6)
CASES = (
    Case("LoRA", "peft", (PLAIN,), _decoder),
    Case("rsLoRA", "peft", (lora(rank=4, alpha=2, rslora=True),), _decoder),
    Case("LoRA, ranks and alphas by rule", "peft", (lora(rank=2, alpha=3, rank_pattern={"blocks/1/attn/q": 5, "v_proj": 4},
                                                        alpha_pattern={"v_proj": 7, "blocks/0/mlp/down": 1}),), _decoder),
    Case("LoRA on one layer", "peft", (lora(rank=3, layers=(1,)),), _decoder),
    Case("LoRA on q alone", "peft", (lora(rank=3, targets="q_proj"),), _decoder),
    Case("LoRA on the embedding", "peft", (lora(rank=3, targets=("q_proj", "embed_tokens"), ensure_weight_tying=False),), _decoder),
    Case("LoRA on the embedding, head tied", "peft", (lora(rank=3, targets=("q_proj", "embed_tokens")),), _decoder),
    Case("LoRA on the head", "peft", (lora(rank=3, targets=("q_proj", "lm_head")),), _decoder),
    Case("LoRA with bias", "peft", (lora(rank=3, targets=("o_proj", "down_proj"), lora_bias=True),), _decoder),
    Case("DoRA", "peft", (lora(rank=3, alpha=6, dora=True),), _decoder),
    Case("DoRA on the embedding", "peft", (lora(rank=3, targets=("q_proj", "embed_tokens"), dora=True, ensure_weight_tying=False),),
         _whole),
    *(Case(f"LoRA from {init}", "peft", (lora(rank=2, alpha=3, init=init),), _decoder)
      for init in ("orthogonal", "pissa", "milora", "olora")),
    Case("LoRA-FA", "peft", (lora(rank=3, freeze_a=True),), _decoder),
    Case("AdaLoRA, pruned", "peft", (ADALORA,), _whole, _pruned),
    *(Case(name, "peft", (method,), _whole) for name, method in DELTAS.items()),
    *(Case(name, "peft", (method,), _decoder if isinstance(method, hira | ia3) else _kept_out_in) for name, method in TRANSFORMS.items()),
    Case("norms", "peft", (norm_only(),), _decoder),
    Case("prompt", "peft", (prompt_tuning(length=3),), _decoder),
    Case("P-tuning", "peft", (p_tuning(length=3, hidden=5),), _decoder),
    Case("P-tuning by an LSTM", "peft", (p_tuning(length=3, hidden=5, encoder="lstm"),), _decoder),
    Case("prefix", "peft", (prefix(length=3),), lambda b: _decoder(b) and not b.config.window),
    Case("prefix by a network", "peft", (prefix(length=3, hidden=6),), lambda b: _decoder(b) and not b.config.window),
    Case("prefix that slides with the window", "peft", (prefix(length=3, slides=True),), lambda b: _decoder(b) and bool(b.config.window)),
    Case("DoRA, merged", "merged", (lora(rank=3, alpha=6, dora=True),), _decoder),
    Case("LoRA, head saved", "peft", (PLAIN, full(targets="lm_head")), _decoder),
    Case("LoRA, biases trained", "peft", (lora(rank=3, targets=QKV), bitfit(targets=QKV)), _biased),
    Case("LoRA, token rows", "peft", (PLAIN, trainable_tokens(ids=(1, 5, 40))), _decoder),
    Case("LoRA, merged", "merged", (PLAIN,), _decoder),
    *(Case(name, "adapterhub", methods, _prefixed if any(isinstance(method, prefix) for method in methods) else _hosted_decoder)
      for name, methods in HUB.items()),
    Case("DoRA", "adapterhub", (lora(rank=3, targets=ATTENTION, dora=True),),
         lambda b: b.config.family == "llama" and get(b.params, "blocks/attn/q/bias") is None),
    Case("VeRA", "adapterhub", VERA, lambda b: b.config.family == "llama"),
    *(Case(f"{name}, classifier", "adapterhub", (*methods, DEEP), _encoder) for name, methods in HUB_ENCODED.items()),
    *(Case(f"{name}, classifier", form, (*methods, head), fits) for name, methods, form in (
        *((name, methods, "peft") for name, methods in ENCODED.items()), ("LoRA, merged", (PLAIN,), "merged"),
        ("DoRA, merged", (lora(rank=3, alpha=6, dora=True),), "merged")) for head, fits in ((FLAT, _pooled), (DEEP, _unpooled))),
)


def write_jobs(
    folder: str | Path, bases: Sequence[Path], cases: Sequence[Case] = CASES, *, name: str = "jobs.json",
    say: Callable[[str], None] = print,
) -> list[dict[str, str]]:
    """Exports every case on every base it fits, with tokens and our logits beside it; the jobs, also written as a file of that name in the
    folder. What is there already is not written again. An export that is refused is told, and is a job that no peer can answer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for path in bases:
        base = open_base(path)
        for case in (case for case in cases if case.fits(base)):
            at = folder / path.name / case.form / re.sub(r"\W+", "_", case.name)
            jobs.append({"case": case.name, "form": case.form, "base": str(path.resolve()), "at": str(at.resolve()),
                         "classifies": str(not _decoder(base))})
            if (at / OURS).is_file():
                continue
            shutil.rmtree(at, ignore_errors=True)
            params, segments, methods = adapted(base, case)
            tokens = _tokens(base)
            at.mkdir(parents=True, exist_ok=True)
            try:
                _write(at / "adapter", case, base, params, methods)
            except (ValueError, TypeError) as error:
                say(f"{case.name} in the form {case.form} on {path.name} is not written: {error}")
                continue
            logits = _logits(base, params, segments, tokens)
            with replacing(at / OURS) as partial, partial.open("wb") as file:  # the last of an export, which is whole where it lies
                np.savez(file, tokens=tokens, logits=logits)
        say(f"{path.name}: {sum(job['base'] == str(path.resolve()) for job in jobs)} exports")
    (folder / name).write_text(json.dumps(jobs, indent=1))
    return jobs


def open_base(path: Path) -> Base:
    """A base directory, which may lack a tokenizer."""
    if (path / "tokenizer.json").is_file():
        return load_base(path)
    opened = open_directory(path)
    params = load_params(opened.config, opened.family, "hf", opened.sources, str(path))
    return Base(str(path), opened.config, params, None, fingerprint(params))


def adapted(base: Base, case: Case) -> tuple[dict, tuple[int, ...], tuple[Any, ...]]:
    """(tree, segments, methods): the case on a base, with every trainable moved off its initial value."""
    segments = cut_points(case.methods, base.config.layers)
    params = attach(cut(base.params, base.config, segments), case.methods, jax.random.key(0))
    trainable, frozen = partition(params)
    key = jax.random.key(1)
    moved = {path: leaf + 0.2 * jax.random.normal(key_at(key, path), leaf.shape) * _used(trainable, path) for path, leaf in
             flatten(trainable).items()}
    return case.then(combine(unflatten_like(trainable, moved), frozen)), segments, case.methods


def _used(trainable: Any, path: str) -> Any:
    """1, or for the factors of a LoRA 0 in the rows beyond its layer's rank."""
    flat, (head, _, field) = flatten(trainable), path.rpartition("/")
    if field not in ("a", "b") or f"{head}/a" not in flat:
        return 1.0
    used = flat[f"{head}/a"].any(axis=-1) | flat[f"{head}/b"].any(axis=-1)
    return jnp.broadcast_to(used[..., None], flat[path].shape)


def _tokens(base: Base) -> np.ndarray:
    return np.random.default_rng(0).integers(3, base.config.vocab_size, (2, 10)).astype(np.int32)


def _logits(base: Base, params: Any, segments: tuple[int, ...], tokens: np.ndarray) -> np.ndarray:
    model = (Decoder if _decoder(base) else Encoder)(base.config, segments=segments)
    return np.asarray(jax.jit(lambda p, t: model.apply({"params": p}, t))(params, tokens))


def _write(folder: Path, case: Case, base: Base, params: Any, methods: tuple[Any, ...]) -> None:
    adapter = extract(params, methods)
    if case.form == "peft":
        write_peft(folder, adapter, base.config, "base", "CAUSAL_LM" if _decoder(base) else "SEQ_CLS")
    elif case.form == "adapterhub":
        write_adapterhub(folder, adapter, base.config, "task", "base")
    else:
        tokenizer = base.tokenizer or _no_tokenizer(base)
        write_merged(folder, dataclasses.replace(base, tokenizer=tokenizer), params)


def _no_tokenizer(base: Base) -> Tokenizer:
    import tokenizers

    words = {f"w{number}": number for number in range(base.config.vocab_size)}
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")), {"eos_token": "w1"})


def compare_jobs(jobs: Sequence[dict[str, str]]) -> Iterator[tuple[dict[str, str], float]]:
    """(job, largest absolute difference of a logit; infinity where the peer left none, other shapes, or what is no number)."""
    for job in jobs:
        ours, theirs = Path(job["at"], OURS), Path(job["at"], ANSWER)
        if not theirs.is_file():
            yield job, float("inf")
            continue
        with np.load(ours) as a, np.load(theirs) as b:
            one, other = a["logits"], b["logits"]
        difference = np.abs(one - other) if one.shape == other.shape else np.array(np.inf)
        yield job, float(np.max(np.where(np.isnan(difference), np.inf, difference)))  # a comparison with NaN would pass


def in_words(rows: Sequence[tuple[dict[str, str], float]], tolerance: float = TOLERANCE) -> str:
    """How many cases there are on how many bases, and by form how many exports agree and the largest difference."""
    lines = [f"{len({job['case'] for job, _ in rows})} cases on {len({job['base'] for job, _ in rows})} bases"]
    for form in dict.fromkeys(job["form"] for job, _ in rows):
        found = [difference for job, difference in rows if job["form"] == form]
        agree = sum(difference <= tolerance for difference in found)
        lines.append(f"{form}: {agree} of {len(found)} within {tolerance}, the largest difference {max(found):.1e}")
    return "\n".join(lines)


def as_table(rows: Sequence[tuple[dict[str, str], float]]) -> str:
    """Method x form by base, the largest difference of a logit in each."""
    bases = list(dict.fromkeys(Path(job["base"]).name for job, _ in rows))
    lines = ["| method | form | " + " | ".join(bases) + " |", "|---|---|" + "--:|" * len(bases)]
    for name, form in dict.fromkeys((job["case"], job["form"]) for job, _ in rows):
        found = {Path(job["base"]).name: diff for job, diff in rows if (job["case"], job["form"]) == (name, form)}
        lines.append(f"| {name} | {form} | " + " | ".join(f"{found[b]:.0e}" if b in found else "" for b in bases) + " |")
    return "\n".join(lines)
