"""Makes the golden files of tests/models/golden_test.py for the families beside Llama: tiny random checkpoints, and what transformers
computes with them.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    /tmp/golden/bin/python tests/golden/make_decoder_golden.py

writes beside itself, for each of

    llama3       Llama with its third version's rope scaling
    qwen2        biases on q, k, v; tied; a window in the upper layers only
    qwen3        norms of each head of q and k; a head size that is not D/H; yarn
    gemma2       every second layer local; soft-caps of scores and logits; a query scalar that is not the head size
    gemma3       five local layers, a global one, another local one; two rope bases, linear scaling in the global layer
    phi3         fused qkv and gate_up; a window; longrope beyond its trained length; three quarters of a head turned
    gpt2         Conv1D, fused c_attn, learned positions, layer norms

a directory in Hugging Face layout (config.json, model.safetensors, float32) and golden.npz, together below 250 kB:

    tokens [B, T], logits [B, T, V]                                    rows of full length
    padded_tokens [B, T], padded_mask [B, T], padded_logits [B, T, V]  left padding; logits of padding positions mean nothing
    bf16_logits [B, T, V]                                              weights and activations in bfloat16
    loss, grad:<tensor>                                                mean next-token cross-entropy, its gradients in the second layer,
                                                                       the last norm and the embeddings

T is longer than every window and than the lengths that rope scalings start from. Torch and transformers are in no environment of this
project; this file is run by hand, in one of its own.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

BATCH, LENGTH, VOCABULARY = 3, 24, 61
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    initializer_range=0.3,  # large, so that attention is far from uniform and a wrong rotary order shows
    attn_implementation="eager",
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
LLAMA3 = dict(
    rope_theta=500.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
YARN = dict(rope_theta=300.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
GEMMA3_ROPE = {
    "full_attention": {"rope_theta": 2000.0, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
}
LONGROPE = dict(
    rope_theta=200.0, rope_type="longrope", short_factor=[1.0, 1.1, 1.2], long_factor=[1.5, 2.5, 4.0], partial_rotary_factor=0.75
)
VARIANTS = {
    "llama3": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SIZES, tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, head_dim=12, rope_parameters=YARN)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **SIZES, head_dim=12, sliding_window=5, query_pre_attn_scalar=20, attn_logit_softcapping=3.0, final_logit_softcapping=8.0
        )
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **SIZES | dict(num_hidden_layers=7, hidden_size=24, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1),
            head_dim=12, sliding_window=5, query_pre_attn_scalar=12, rope_parameters=GEMMA3_ROPE,
        )
    ),
    "phi3": lambda: transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**SIZES, sliding_window=7, original_max_position_embeddings=16, rope_parameters=LONGROPE)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=4, n_positions=40, initializer_range=0.3, attn_implementation="eager",
            bos_token_id=None, eos_token_id=None,
        )
    ),
}  # fmt: skip


def main():
    for number, (name, build) in enumerate(VARIANTS.items()):
        torch.manual_seed(100 + number)
        model = build().eval().to(torch.float32)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if path.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
                elif "norm" in path or ".ln_" in path:
                    parameter.normal_(0.0 if name.startswith("gemma") else 1.0, 0.2)
        folder = Path(__file__).parent / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)

        tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
        mask = torch.ones_like(tokens)
        for row, padding in enumerate((0, 3, 11)):
            mask[row, :padding] = 0
        padded = torch.where(mask == 1, tokens, 0)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
        loss.backward()
        kept = ("layers.1.", "h.1.", "model.norm.", "ln_f.", "embed_tokens", "wte", "wpe", "lm_head")
        grads = {f"grad:{path}": p.grad.numpy() for path, p in model.named_parameters() if any(part in path for part in kept)}
        with torch.no_grad():
            padded_logits = model(padded, attention_mask=mask, position_ids=positions).logits
            bf16_logits = model.to(torch.bfloat16)(tokens).logits.float()
        np.savez_compressed(
            folder / "golden.npz",
            tokens=tokens.numpy().astype(np.int32),
            logits=logits.detach().numpy(),
            padded_tokens=padded.numpy().astype(np.int32),
            padded_mask=mask.numpy().astype(np.int32),
            padded_logits=padded_logits.numpy(),
            bf16_logits=bf16_logits.numpy(),
            loss=loss.detach().numpy(),
            versions=np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"]),
            **grads,
        )
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        print(name, f"loss {loss:.3f}, logits' deviation {logits.std():.2f},", f"{sum(sizes.values())} bytes", sizes)


if __name__ == "__main__":
    main()
