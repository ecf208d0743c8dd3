"""Tables of a study whose truth is known: right or wrong items drawn from each method's own skill, no run needed."""

import numpy as np

from peftjax.study.cells import Treatment
from peftjax.study.tables import Tables

SETTINGS = {"train.steps": 100, "train.batch_size": 8, "data.name": "made up"}


def tables(
    skills: dict[str, float], data=("icd", "bank"), budgets=("small", "large"), seeds=(0, 1, 2, 3), items: int = 240, seed: int = 0,
    seed_sd: float = 0.01, costs: bool = False,
) -> Tables:
    """Methods of these skills (share of items right); an item is as hard for all methods, a group has three items."""
    rng = np.random.default_rng(seed)
    study = {
        "methods": {name: [] for name in skills}, "budgets": {name: {"parameters": 1000 * (n + 1)} for n, name in enumerate(budgets)},
        "data": {name: {} for name in data}, "sizes": [0], "seeds": list(seeds), "region": 0.03, "level": 0.05,
        "tuning": {"factor": 10**0.5, "seeds": [100], "measure": "loss"},
    }
    treatments = [
        vars(Treatment(method, budget, ({"method": "lora", "rank": 4 * (n + 1), "alpha": None, "targets": "all-linear"},), "parameters",
                       1000.0 * (n + 1), 0.01, 1000 * (n + 1), 100))
        for n, budget in enumerate(budgets) for method in skills
    ]
    runs, trials, rows = [], [], []
    for name in data:
        ease = rng.normal(0, 0.15, items)
        for budget in budgets:
            for place, (method, skill) in enumerate(skills.items()):
                cell = {"data": name, "budget": budget, "size": 0, "method": method}
                for k in range(-2, 3):
                    score = 0.5 + 0.1 * (k - place % 2) ** 2
                    trials.append(cell | {"k": k, "rate": float(f"{1e-3 * 10 ** (k / 2):.4g}"), "seed": 100, "score": score,
                                          "measure": "loss", "settings": SETTINGS | {"train.seed": 100}})
                for number in seeds:
                    right = rng.random(items) < skill + ease + rng.normal(0, seed_sd)
                    steps = list(range(1, 101))
                    runs.append(cell | {
                        "rate": 1e-3, "seed": number, "error": None, "folder": "", "metric": "exact_match", "loss": 0.4,
                        "forgetting": 0.1 * place, "parameters": 1000, "bytes": 4000, "records": "r", "base": "b", "train_s": 1.0,
                        "settings": SETTINGS | {"train.seed": number},
                        "curve": {"step": steps, "loss": [(3 + place) / (s + 3) + 0.2 * rng.random() for s in steps],
                                  "validation_step": [], "validation_loss": []},
                    })
                    rows += [cell | {"seed": number, "id": f"{name}-{i:03d}", "group": f"{'abc'[i % 3]}/{i // 3}", "nll": 0.8, "tokens": 2,
                                     "combined": "", "exact_match": float(right[i])} for i in range(items)]
    found = {"rows": [_cost(one, place) for place, one in enumerate(treatments)], "load": [1.0, 2.0]} if costs else {"rows": []}
    plan = {"study": study, "base": {"uri": "tiny", "fingerprint": "b", "parameters": 1_000_000, "bytes": 4_000_000},
            "versions": {"jax": "0"}, "treatments": treatments, "costs": found}
    return Tables(plan, trials, runs, rows)


def _cost(one: dict, place: int) -> dict:
    around = {"value": 1.1 + 0.02 * place, "low": 1.08 + 0.02 * place, "high": 1.13 + 0.02 * place}
    return {
        "method": one["method"], "budget": one["budget"], "parameters": one["parameters"], "stored_bytes": 4 * one["parameters"],
        "merges": place % 2 == 0, "step_s": {"median": 0.02 + 0.001 * place, "low": 0.019, "high": 0.03}, "temporary_bytes": 5_000_000,
        "latency": {"forward 1x32": {"beside": around, "merged": around if place % 2 == 0 else None}},
    }
