"""Populations: many runs at once in one compiled program, on one base.

    programs(configs)                       which configs can share a program, as lists of their numbers
    run_population(configs, workdirs)       trains them; each leaves the work directory of an ordinary run
"""

from peftjax.train.population.halving import Halving
from peftjax.train.population.loop import Outcome, run_population
from peftjax.train.population.programs import programs

__all__ = ["Halving", "Outcome", "programs", "run_population"]
