"""Names and values of a run: sites, graph views, budgets, plans, records. No frameworks."""
