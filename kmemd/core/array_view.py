"""How the core looks at an array: as a C buffer where it is compiled, as Python ints where it is not."""

from typing import Any

import cython


def view(array: Any) -> Any:
    """Uncompiled, a memoryview gives Python ints, which neither wrap nor warn as numpy scalars do."""
    return array if cython.compiled else memoryview(array)
