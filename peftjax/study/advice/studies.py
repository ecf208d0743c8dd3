"""Evidence from stored studies (`peftjax.study.tables`): every method of every fair comparison, with its interval and its ties.

    found = of_studies(["runs/study-..."])
"""

from collections.abc import Sequence
from pathlib import Path

from peftjax.study.advice.evidence import Evidence, key_of
from peftjax.study.compare import analyse
from peftjax.study.tables import Tables, read


def of_studies(folders: Sequence[str | Path]) -> list[Evidence]:
    """Everything that the studies in these folders found.

    Raises:
        FileNotFoundError: a folder without the tables of a study.
    """
    return [one for folder in folders for one in of_tables(str(folder), read(Path(folder)))]


def of_tables(study: str, tables: Tables) -> list[Evidence]:
    """Every standing of a study's fair comparisons, from its stored tables."""
    plan, analysis = tables.plan, analyse(tables)
    treatments = {(one["method"], one["budget"]): one for one in plan["treatments"]}
    found = []
    for (data, budget, records, method), standing in analysis.standings.items():
        comparison, treatment = (data, budget, records), treatments[method, budget]
        tied = {other for group in analysis.groups.get(comparison, ()) if method in group for other in group} - {method}
        found.append(Evidence(
            study, comparison, method, key_of(treatment["specifications"]), treatment["parameters"], plan["base"]["uri"],
            plan["base"]["fingerprint"], analysis.metrics[data], standing.mean, standing.low, standing.high, len(standing.by_seed),
            tuple(sorted(tied)),
        ))
    return found
