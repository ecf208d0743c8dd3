"""Times what adapters cost: prompts, tokens, training steps, memory, in turns with the base on this machine; a table, JSON and a picture.

The same command goes on where it was interrupted, and finds what it measured.

    python scripts/latency.py --config configs/studies/pc2.py [--config.sittings=3] [--config.base.uri=/models/mine] [--to runs/latency]
"""

import json
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from peftjax.huge_pages import restart_with_huge_pages

CONFIG = config_flags.DEFINE_config_file("config", None, "A file as configs/studies/pc2.py, see peftjax.study.latency_config.")
TO = flags.DEFINE_string("to", None, "Folder for latency.json, latency.md and latency.png; default runs/latency-<config>.")


def main(_):
    from peftjax.files import replacing
    from peftjax.study.latency_config import arms_of, base_of, cases_of
    from peftjax.study.latency_kept import measured
    from peftjax.study.latency_plot import write_plot
    from peftjax.study.latency_table import as_data, as_table
    from peftjax.train.startup import log_warnings_only, use_compilation_cache

    config, arms, cases = CONFIG.value, arms_of(CONFIG.value), cases_of(CONFIG.value)
    log_warnings_only()
    use_compilation_cache()
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    stem, _, variant = Path(name).name.partition(":")
    folder = Path(TO.value or f"runs/latency-{Path(stem).stem}{'-' if variant else ''}{variant}")
    how = {"rounds": config.rounds, "budget_s": config.budget_s, "unroll": config.unroll, "sittings": config.sittings}
    found, _ = measured(base_of(config), arms, cases, folder / "cases", **how)
    for file, text in {"latency.json": json.dumps(as_data(found), indent=1), "latency.md": as_table(found)}.items():
        with replacing(folder / file) as partial:
            partial.write_text(text + "\n")
    write_plot(found, folder / "latency.png")
    print(f"{as_table(found)}\n\n{folder}/latency.png")


if __name__ == "__main__":
    restart_with_huge_pages()
    flags.mark_flag_as_required("config")
    app.run(main)
