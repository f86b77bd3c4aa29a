"""Search: which plan keeps the budget at the least cost. It writes plans and measures; it never changes a model."""
