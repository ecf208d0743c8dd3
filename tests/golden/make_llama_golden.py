"""Makes the golden files of tests/models/golden_test.py: tiny random checkpoints and the logits that Hugging Face gives for them.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    /tmp/golden/bin/python tests/golden/make_llama_golden.py

writes beside itself, for each of

    llama        grouped-query attention, untied
    llama_tied   tied embeddings, biases everywhere, a head size that is not D/H, another rope base
    mistral      sliding window of 4

a directory in Hugging Face layout (config.json, model.safetensors, float32, < 200 kB) and golden.npz:

    tokens [B, T], logits [B, T, V]                                    rows of full length
    padded_tokens [B, T], padded_mask [B, T], padded_logits [B, T, V]  left padding; logits of padding positions mean nothing

Torch and transformers are in no environment of this project; this file is run by hand, in one of its own.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    initializer_range=0.3,  # large, so that attention is far from uniform and a wrong rotary order shows
)
VARIANTS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    ),
    "llama_tied": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **SIZES,
            head_dim=12,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
        )
    ),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, sliding_window=4, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    ),
}
BATCH, LENGTH = 3, 12


def main():
    for number, (name, build) in enumerate(VARIANTS.items()):
        torch.manual_seed(number)
        model = build().eval().to(torch.float32)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if path.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
                elif "norm" in path:
                    parameter.normal_(1.0, 0.2)
        folder = Path(__file__).parent / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)

        tokens = torch.randint(0, SIZES["vocab_size"], (BATCH, LENGTH))
        mask = torch.ones_like(tokens)
        for row, padding in enumerate((0, 3, 7)):
            mask[row, :padding] = 0
        padded = torch.where(mask == 1, tokens, 0)
        # Rotary positions count the real tokens; transformers' generate() sets them so, a bare call does not.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(tokens).logits
            padded_logits = model(padded, attention_mask=mask, position_ids=positions).logits
        np.savez_compressed(
            folder / "golden.npz",
            tokens=tokens.numpy().astype(np.int32),
            logits=logits.numpy(),
            padded_tokens=padded.numpy().astype(np.int32),
            padded_mask=mask.numpy().astype(np.int32),
            padded_logits=padded_logits.numpy(),
            versions=np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"]),
        )
        print(name, {file.name: file.stat().st_size for file in sorted(folder.iterdir())})


if __name__ == "__main__":
    main()
