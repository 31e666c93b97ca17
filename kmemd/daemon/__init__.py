"""The process that serves a mount: mountpoints, signals, systemd, the clock. No model knowledge."""
