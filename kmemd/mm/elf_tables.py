"""What execve puts on top of a new stack (fs/exec.c ``copy_strings``, fs/binfmt_elf.c ``create_elf_tables``).

From the top down: a null word, the file's name, the environment, the arguments; at an address that chance picks below
them the platform's name, 16 random bytes, the auxiliary vector, and the pointers that the program begins with. The
strings are bytes that /proc/PID/mem shows. Left out: the pointers and the vector as bytes (/proc/PID/auxv has them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from kmemd.mm.layout import X86_64

PLATFORM = {X86_64: b"x86_64\0", "i386": b"i686\0"}
RANDOM_BYTES = 16
STACK_RANDOM = 8192
"""As many bytes arch_align_stack lets chance have."""
AUXV_WORDS = {X86_64: 2 * 21, "i386": 2 * 22}
"""Words of the auxiliary vector, its end included; i386 has AT_SYSINFO, too."""
STACK_ALIGN = 16


@dataclass(frozen=True)
class ElfTables:
    """Addresses, and the bytes from ``arg_start`` to the end of the stack.

    The arguments end at ``arg_end``, where the environment begins; ``env_end`` is the file's name (AT_EXECFN).
    """

    arg_start: int
    arg_end: int
    env_end: int
    platform: int
    random: int
    start_stack: int
    strings: bytes

    @classmethod
    def make(
        cls, arch: str, top: int, argv: Sequence[str], envp: Sequence[str], path: str, rng: Random | None
    ) -> ElfTables:
        """The tables below ``top``; ``rng`` is None where addresses are not random."""
        word = 8 if arch == X86_64 else 4
        args, env, name = _joined(argv), _joined(envp), _joined([path])
        strings = args + env + name + bytes(word)
        arg_start = top - len(strings)
        spread = rng.randrange(STACK_RANDOM) if rng is not None else 0
        platform = (arg_start - spread & -STACK_ALIGN) - len(PLATFORM[arch])
        random = platform - RANDOM_BYTES
        words = AUXV_WORDS[arch] + len(argv) + len(envp) + 3  # argc, and the ends of two lists
        start_stack = random - words * word & -STACK_ALIGN
        arg_end = arg_start + len(args)
        return cls(arg_start, arg_end, arg_end + len(env), platform, random, start_stack, strings)


def _joined(words: Sequence[str]) -> bytes:
    return b"".join(word.encode() + b"\0" for word in words)
