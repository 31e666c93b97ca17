"""What ``make bench`` measures, a module per subject. See docs/benchmarks.md."""
