"""Arrays in, arrays out: how ranges, codes and equal-but-easier weights are chosen. No framework, no graph."""
