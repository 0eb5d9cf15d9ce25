"""The engine: space, objective, evaluation, solver, budget, search, errors."""
