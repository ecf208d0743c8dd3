"""Parameter-efficient fine-tuning methods as parameter-tree transformations.

    from peftjax.peft import attach, bottleneck, combine, lora, merge, partition

    params = attach(base, [lora(rank=8, targets="all-linear")], jax.random.key(0))     # base is untouched
    trainable, frozen = partition(params)                                              # gradients see `trainable` alone
    logits = model.apply({"params": combine(trainable, frozen)}, tokens)
    dense = merge(params)                                                              # a plain tree again
    params = compose(params, Stack("tone", BatchSplit("en", "de"), "task"))            # adapters by name, as they act together
"""

from peftjax.peft.across_layers import across_layers
from peftjax.peft.adalora import adalora
from peftjax.peft.anneal import anneal
from peftjax.peft.attach import activate, adapters, attach, cut_points, detach
from peftjax.peft.blend import blend, blend_changes, to_lora
from peftjax.peft.boft import boft
from peftjax.peft.bottleneck import adapter_plus, bottleneck, houlsby, parallel, pfeiffer, scaled_parallel
from peftjax.peft.classifier import classifier
from peftjax.peft.compacter import compacter, compacter_plus_plus
from peftjax.peft.compose import compose, decompose
from peftjax.peft.composition import Average, BatchSplit, Fuse, Parallel, Split, Stack
from peftjax.peft.delora import delora
from peftjax.peft.dense_delta import dense_delta
from peftjax.peft.drop import drop_layers
from peftjax.peft.folded import folded
from peftjax.peft.fourierft import fourierft
from peftjax.peft.fusion import fusion
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.gralora import gralora
from peftjax.peft.hira import hira
from peftjax.peft.hra import hra
from peftjax.peft.ia3 import ia3
from peftjax.peft.initialise import initialise, loftq, qpissa
from peftjax.peft.invertible import invertible
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.lora import lora
from peftjax.peft.merge import dequantised, merge, merge_into
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.partition import combine, partition
from peftjax.peft.parts import bitfit, full, head_only, norm_only
from peftjax.peft.plain import as_plain
from peftjax.peft.prefix import prefix
from peftjax.peft.probe import measure
from peftjax.peft.prompt import p_tuning, prompt_tuning
from peftjax.peft.randlora import randlora
from peftjax.peft.reft import direft, loreft, noreft, reft
from peftjax.peft.road import road
from peftjax.peft.route import in_parallel, route
from peftjax.peft.shira import shira
from peftjax.peft.table import table
from peftjax.peft.tokens import trainable_tokens
from peftjax.peft.unions import houlsby_inv, mam, pfeiffer_inv, unipelt
from peftjax.peft.vera import vera

__all__ = [
    "Average", "BatchSplit", "Fuse", "Parallel", "Split", "Stack", "across_layers", "activate", "adalora", "adapter_plus", "adapters",
    "anneal", "as_plain", "attach", "bitfit", "blend", "blend_changes", "boft", "bottleneck", "classifier", "combine", "compacter",
    "compacter_plus_plus", "compose", "cut_points", "decompose", "delora", "dense_delta", "dequantised", "detach", "direft", "drop_layers",
    "folded", "fourierft", "full", "fusion", "gated_lora", "gralora", "head_only", "hira", "houlsby", "houlsby_inv", "hra", "ia3",
    "in_parallel", "initialise", "invertible", "loftq", "loha", "lokr", "lora", "loreft", "mam", "measure", "merge", "merge_into", "miss",
    "noreft", "norm_only", "oft", "p_tuning", "parallel", "partition", "pfeiffer", "pfeiffer_inv", "prefix", "prompt_tuning", "qpissa",
    "randlora", "reft", "road", "route", "scaled_parallel", "shira", "table", "to_lora", "trainable_tokens", "unipelt", "vera",
]
