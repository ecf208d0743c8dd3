"""A check from its config to its report. The work directory is the check: what was measured is not measured again.

    measured/NAME.json     one piece of the measurements each, written when it is done
    result.json            claims, tables and measurements
    report.md, plot.png    for people

A check is a module with `pieces(config, folder, say)`, which maps the name of each piece to a function that measures it, in the order in
which they are done, and `judge(measured)`, a pure function from the pieces' data to a `Finding`. Pieces may read earlier ones' files.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.files import locked, replacing
from peftjax.hints import did_you_mean
from peftjax.interop.json_file import read_json, write_json
from peftjax.study.checks import domain_language, pc1, pc3, pc4, pc4p, pc5, pc7, pc8, pc9, pc11, pc11p, pc12
from peftjax.study.checks.finding import Finding
from peftjax.study.checks.plot import write_plot
from peftjax.train.report import table
from peftjax.train.startup import use_compilation_cache
from peftjax.train.versions import versions

CHECKS = {"pc1": pc1, "pc3": pc3, "pc4": pc4, "pc4p": pc4p, "pc5": pc5, "pc7": pc7, "pc8": pc8, "pc9": pc9, "pc11": pc11, "pc11p": pc11p,
          "pc12": pc12, "domain_language": domain_language}


def conduct(config: ConfigDict, workdir: str | Path, say: Callable[[str], None] = print) -> Path:
    """Measures what is left, judges, and writes the report; its path.

    Raises:
        ValueError: no such check, a folder of another config, or what the check's own measurements raise.
    """
    check, folder = check_of(config), Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    use_compilation_cache()
    with locked(folder / ".lock"):
        claim_folder(config, folder)
        measured = {}
        for name, measure in check.pieces(config, folder, say).items():
            path = folder / "measured" / f"{name.replace('/', '_').replace(':', '_')}.json"
            if not path.exists():
                began = time.time()
                found = measure()
                write_json(path, {"data": found, "seconds": round(time.time() - began, 1)})
                say(f"{config.check}, {name}: {time.time() - began:.0f} s")
            measured[name] = read_json(path)["data"]
        return write_finding(config, check.judge(measured), measured, folder, say)


def check_of(config: ConfigDict) -> Any:
    """The module of `config.check`. ValueError where there is none."""
    if config.check not in CHECKS:
        raise ValueError(f"no check is called {config.check!r}{did_you_mean(config.check, CHECKS)}; there are {', '.join(CHECKS)}")
    return CHECKS[config.check]


def default_folder(config: ConfigDict) -> Path:
    """`runs/<check>-<hash of all fields>`."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return Path("runs") / f"{config.check}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def claim_folder(config: ConfigDict, folder: Path) -> None:
    """Writes the config into the folder, and refuses one of another config: its measurements would be mixed with these."""
    asked = json.loads(json.dumps(config.to_dict(), default=str))
    stored = folder / "config.json"
    if stored.exists() and (there := read_json(stored)) != asked:
        changed = [name for name in asked.keys() | there.keys() if asked.get(name) != there.get(name)]
        raise ValueError(f"{folder} holds a check of another config; {', '.join(sorted(changed))} differ. Name another --workdir")
    write_json(stored, asked)


def write_finding(config: ConfigDict, finding: Finding, measured: dict, folder: Path, say: Callable[[str], None]) -> Path:
    """result.json, plot.png and report.md; the path of the report."""
    claims = [dataclasses.asdict(claim) for claim in finding.claims]
    write_json(folder / "result.json", {
        "check": config.check, "setting": finding.setting, "claims": claims, "versions": versions(), "measured": measured,
        "tables": [dataclasses.asdict(one) for one in finding.tables],
    })
    if finding.plot is not None:
        write_plot(finding.plot, folder / "plot.png")
    with replacing(folder / "report.md") as partial:
        partial.write_text(as_markdown(config.check, finding), "utf-8")
    for claim in finding.claims:
        say(f"{claim.verdict:15} {claim.what}: {claim.measured} (predicted: {claim.predicted})")
    return folder / "report.md"


def as_markdown(name: str, finding: Finding) -> str:
    """The report's text."""
    parts = [f"# {name.upper()}", finding.setting, table(
        ("claim", "predicted", "measured", "verdict"), [dataclasses.astuple(claim) for claim in finding.claims]
    )]
    for one in finding.tables:
        parts += [f"## {one.title}", table(one.header, one.rows)]
    if finding.plot is not None:
        parts.append("![plot](plot.png)")
    return "\n\n".join(parts) + "\n"
