"""Parameter-efficient fine-tuning methods as parameter-tree transformations.

    from peftjax.peft import attach, bottleneck, combine, lora, merge, partition

    params = attach(base, [lora(rank=8, targets="all-linear")], jax.random.key(0))     # base is untouched
    trainable, frozen = partition(params)                                              # gradients see `trainable` alone
    logits = model.apply({"params": combine(trainable, frozen)}, tokens)
    dense = merge(params)                                                              # a plain tree again
"""

from peftjax.peft.attach import activate, adapters, attach, cut_points, detach
from peftjax.peft.bottleneck import bottleneck, houlsby, parallel, pfeiffer, scaled_parallel
from peftjax.peft.classifier import classifier
from peftjax.peft.lora import lora
from peftjax.peft.merge import dequantised, merge, merge_into
from peftjax.peft.partition import combine, partition
from peftjax.peft.parts import bitfit, full, head_only, norm_only
from peftjax.peft.table import table
from peftjax.peft.tokens import trainable_tokens

__all__ = [
    "activate", "adapters", "attach", "bitfit", "bottleneck", "classifier", "combine", "cut_points", "dequantised", "detach", "full",
    "head_only", "houlsby", "lora", "merge", "merge_into", "norm_only", "parallel", "partition", "pfeiffer", "scaled_parallel", "table",
    "trainable_tokens",
]
