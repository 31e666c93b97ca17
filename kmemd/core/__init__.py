"""The hot core: loops and the arrays they run over. Compiled with Cython, and runs uncompiled."""
