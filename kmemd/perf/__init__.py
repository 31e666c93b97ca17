"""``kmemd perf``: counting, sampling and flame graphs, with the options and the output of perf 6.1 (tools/perf)."""
