"""llama.cpp's logits with and without a LoRA, in an environment with llama-cpp-python: `base` and `adapted` [T, V] go into OUT.npz.

    python scripts/peers/llama_cpp_logits.py BASE.gguf ADAPTER.gguf OUT.npz 504 3575 282 4649

All values in float32: with a quantised base llama.cpp quantises activations too, and differs by much more than the adapter's error. A base
without a tokenizer says tokenizer.ggml.model = "no_vocab" and its vocab_size.
"""

import ctypes
import sys

import llama_cpp as llama
import numpy as np

FLOAT32 = 0  # GGML_TYPE_F32, of the cached keys and values


@llama.llama_log_callback
def errors_only(level, text, _):
    if level >= 4:
        print(text.decode(), end="", file=sys.stderr)


def logits(model, tokens, adapter=None):
    """[T, V] of one sequence."""
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = max(64, len(tokens))
    settings.type_k = settings.type_v = FLOAT32
    settings.flash_attn_type = 0
    context = llama.llama_init_from_model(model, settings)
    if adapter is not None and llama.llama_set_adapters_lora(context, (type(adapter) * 1)(adapter), 1, (ctypes.c_float * 1)(1.0)):
        raise RuntimeError("llama.cpp does not take the adapter")
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    if llama.llama_decode(context, batch):
        raise RuntimeError("llama.cpp could not evaluate the tokens")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (vocabulary,)).copy() for i in range(len(tokens))]
    llama.llama_free(context)
    return np.stack(rows)


def main(base: str, lora: str, out: str, *tokens: str) -> None:
    llama.llama_log_set(errors_only, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(base.encode(), llama.llama_model_default_params())
    adapter = model and llama.llama_adapter_lora_init(model, lora.encode())
    if not adapter:
        raise RuntimeError(f"llama.cpp does not load {lora if model else base}")
    ids = [int(token) for token in tokens]
    np.savez(out, base=logits(model, ids), adapted=logits(model, ids, adapter))


if __name__ == "__main__":
    main(*sys.argv[1:])
