"""Writes docs/commands.md from the verbs themselves: ``python -m kmemd.control.reference > docs/commands.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from kmemd.control.language import Parameter, Verb
from kmemd.control.verbs import sections
from kmemd.control.words import GENERIC
from kmemd.mm.units import NUMA_NO_NODE

HEAD = """\
# Commands

This page is written from the verbs by `python -m kmemd.control.reference > docs/commands.md`.

A command is one line written to `kmemd/ctl`:

    [NAME =] VERB ARGUMENT... [key=value ...]

`#` begins a comment, blank lines are skipped. `NAME =` keeps the result as a handle: a pointer in a static
variable, as it were, and therefore a root for kmemleak. `NAME[3]` is one item of a handle made with `n=`, `NAME+16`
an address in it. Numbers are decimal or `0x` hexadecimal; sizes take `K`, `M`, `G`, `T`; durations are seconds or
take `ns`, `us`, `ms`, `s`, `m`, `h`.

## Replies and errors

The reply is one line of `key=value` words and is read from the same descriptor; `ns=` is the model time that the
command took. One `read(2)` gives at most one line.

    exec 3<>kmemd/ctl
    echo "p = alloc_pages order=3" >&3
    read -r reply <&3

A line that fails makes `write(2)` fail: EINVAL (syntax), ENOENT (no such handle or cache), ESRCH (no such process),
ENOMEM, EFAULT (no such memory), EPERM, EBUSY (the name or the object is in use), EAGAIN (`n=` was done in part).
Nothing behind it in the same write runs; what came before it counts as taken, and the error comes when the writer
goes on with the failing line, which is not run twice. The reply is then `error=NAME column=N reason=TEXT`, the
reason last because it has spaces; `kmemd/error_log` keeps the last eight with a caret under the word, and `dev/kmsg`
has the reason, too.
A line must end with a newline: what is not ended when the file is closed does not run.
bash's `printf` and `echo` write line by line, so that after a bad line the next ones run; dash writes all at once.

When memory runs out in the midst of `n=`, what was got stays allocated, kept under NAME if there is one, and the
line fails with EAGAIN; when nothing at all was got it fails with ENOMEM. Freeing items of a handle (`n=`, `every=`,
`NAME[3]`) leaves the rest; a handle without items is gone, and using its name is ENOENT. Freeing something twice takes
its address.

Reading `kmemd/ctl` without having written lists the verbs.

"""


def generic_keys() -> Iterator[str]:
    """The keys that every verb takes."""
    yield "## Keys of every verb\n\n| key | meaning |\n|---|---|\n"
    meanings = {
        "by": "the call site that page_owner, kmemleak and traces show",
        "cpu": "the CPU this line runs on",
        "comm": "the name of the task this line runs as",
        "pid": "the task this line runs as",
    }
    for name, parameter in GENERIC.items():
        yield f"| `{name}={parameter.type.metavar}` | {meanings[name]}: {parameter.type.meaning} |\n".replace(
            "|__", "\\|__"
        )
    yield "\n"


def contents() -> Iterator[str]:
    """The sections, as links, and their verbs."""
    yield "## Verbs\n\n| about | verbs |\n| --- | --- |\n"
    for title, verbs in sections():
        anchor = title.lower().replace(",", "").replace(" ", "-")
        yield f"| [{title}](#{anchor}) | {', '.join(f'`{verb.name}`' for verb in verbs)} |\n"
    yield "\n"


def section(verb: Verb) -> Iterator[str]:
    """One verb."""
    yield f"### {verb.name}\n\n    {verb.usage}\n\n{verb.help}\n\n"
    for parameter in verb.parameters():
        yield f"- `{parameter.name}`: {parameter.type.meaning}{_default(parameter)}\n"
    if verb.parameters():
        yield "\n"


def _default(parameter: Parameter) -> str:
    if parameter.required or parameter.default in (None, "", NUMA_NO_NODE):
        return ""
    return f" (default {parameter.type.show(parameter.default)})"


def text() -> str:
    """The whole page."""
    parts = [HEAD, *generic_keys(), *contents()]
    for title, verbs in sections():
        parts.append(f"## {title}\n\n")
        for verb in verbs:
            parts += section(verb)
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
