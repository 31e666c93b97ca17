"""The command language: one declared function per verb (docs/commands.md)."""
