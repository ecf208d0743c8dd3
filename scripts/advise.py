"""Says which method fits: by your demands, by what it costs on this machine and base, and by what stored studies found.

    python scripts/advise.py                                                  asks
    python scripts/advise.py --need domains=50 --need merging=forbidden --need mixed=yes --need batch=8
    python scripts/advise.py --needs needs.json --studies runs/study-a,runs/study-b --to runs/advice
    python scripts/advise.py --need ... --sittings=2                          times all once more; the rounds count together
    python scripts/advise.py --rules                                          the rules, with their sources

Needs are the fields of peftjax.study.advice.needs.Needs; with --need or --needs what is not said has its default.
"""

import json
import sys
from pathlib import Path

from absl import app, flags

from peftjax.huge_pages import restart_with_huge_pages

NEED = flags.DEFINE_multi_string("need", [], "An answer, as field=value.")
NEEDS = flags.DEFINE_string("needs", None, "JSON file of answers.")
STUDIES = flags.DEFINE_list("studies", [], "Folders of studies (scripts/study.py) that quality is taken from.")
TO = flags.DEFINE_string("to", "runs/advice", "Folder for advice.md, advice.png, advice.json and latency.md.")
BUDGET = flags.DEFINE_float("budget_s", 10.0, "Seconds that each of three cases is timed, all candidates together.", lower_bound=0.1)
SITTINGS = flags.DEFINE_integer("sittings", 1, "How many times, so far, all cases are timed: 2 adds one to what was kept.", lower_bound=1)
RULES = flags.DEFINE_bool("rules", False, "Print the rules and end.")


def main(_):
    from peftjax.study.advice import ask, needs, report, rules, studies

    if RULES.value:
        return print(report.rules_table(rules.RULES))
    from peftjax.train.startup import log_warnings_only, use_compilation_cache

    given = json.loads(Path(NEEDS.value).read_text()) if NEEDS.value else {}
    strange = [text for text in NEED.value if "=" not in text]
    if strange:
        raise app.UsageError(f"--need is {strange[0]!r}; write field=value, as in domains=50")
    given |= dict(text.split("=", 1) for text in NEED.value)
    asked = needs.needs_from_data(given) if given else ask.ask({})
    log_warnings_only()
    use_compilation_cache()
    advice = ask.advise(asked, studies.of_studies(STUDIES.value), budget_s=BUDGET.value, sittings=SITTINGS.value)
    print(report.as_text(advice))
    print(f"\n{ask.write(advice, Path(TO.value))}")


if __name__ == "__main__":
    restart_with_huge_pages()
    try:
        app.run(main)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"advise.py: {error}")
