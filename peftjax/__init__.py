"""peftjax: LoRA and adapters as parameter-tree transformations on a functional Flax (Linen) transformer.

    nn      kernels (nodes + dot), layers, sites
    models  the decoder, tokenizers, generation
    peft    the transformations: lora, bottleneck, full, bitfit, ...; partition, merge
    interop Hugging Face directories, GGUF files and wheels as bases
    data    records -> splits -> array_record -> tokens -> packed batches
    evals   metrics
    train   step, loop, optimiser, checkpoint, report

A part imports only parts named above it.
"""

__version__ = "0.1.0"
