"""How much of their rank adapters use, kernel by kernel, and with --intruders the directions they bring that the base has nowhere.

    python scripts/spectra.py --adapters runs/tone-1a2b3c4d
    python scripts/spectra.py --adapters my-lora,my-dora --base /models/mine --intruders --picture spectra.png
"""

from absl import app, flags

ADAPTERS = flags.DEFINE_list("adapters", None, "Work directories of runs, or adapter directories in any form.", required=True)
BASE = flags.DEFINE_string("base", None, "Base of adapter directories; default that of the first run, or SmolLM2-135M-Instruct.")
OTHER_BASE = flags.DEFINE_bool("other_base", False, "Take adapters although they were made for another base or tokenizer.")
INTRUDERS = flags.DEFINE_bool("intruders", False, "Count them, with two controls: three dense spectra a weight, which take a while.")
TOP = flags.DEFINE_integer("top", 10, "Strongest directions of the tuned weight that may be intruders.", lower_bound=1)
THRESHOLD = flags.DEFINE_float("threshold", 0.5, "An intruder's cosine with any direction of the base is below this.", 0.0, 1.0)
PICTURE = flags.DEFINE_string("picture", None, "PNG file of the singular values.")


def main(_):
    from peftjax.peft.spectrum import spectra
    from peftjax.train.inspection import as_table
    from peftjax.train.merging import found_at
    from peftjax.train.spectra import write_spectra
    from peftjax.train.startup import log_warnings_only

    log_warnings_only()
    found = found_at(ADAPTERS.value, BASE.value, OTHER_BASE.value)
    print(as_table(found, intruders=INTRUDERS.value, top=TOP.value, threshold=THRESHOLD.value))
    if PICTURE.value is not None:
        write_spectra(PICTURE.value, {name: spectra(one.params, one.names()[0]) for name, one in found.items()})


if __name__ == "__main__":
    app.run(main)
