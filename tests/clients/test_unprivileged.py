"""What users see of a mount that lets others in: root, the owner of a process, and nobody.

Each looks with a program of its own, so that the kernel's checks of mode bits count too.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import KMEMD, PROGRAM_DEADLINE_S
from tests.fs.mounting import ROOT, end, start

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing"),
    pytest.mark.skipif(os.geteuid() != 0, reason="changes the user"),
]
ROOT_UID, OWNER, NOBODY = 0, 1000, 65534
OPTIONS = ("--machine", "laptop", "--seed", "1", "--clock", "manual", "--allow-other")
PAGE_FRAME = re.compile(r"(?<=\b81)0*[1-9a-f][0-9a-f]*\b")
DOCUMENT = ROOT / "docs" / "security-and-debugging.md"


def read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb"):
        return os.read(descriptor, 4096).decode("latin-1")


def write(path: str, text: str) -> int:
    descriptor = os.open(path, os.O_WRONLY)
    with open(descriptor, "wb"):
        return os.write(descriptor, text.encode())


def entries(path: str) -> list[str]:
    return sorted(os.listdir(path))


def pagemap(path: str, address: str) -> int:
    with open(path, "rb", 0) as file:
        file.seek(int(address) >> 9)
        return int.from_bytes(file.read(8), "little")


LOOKS: dict[str, Callable[..., object]] = {
    **{"read": read, "write": write, "entries": entries, "pagemap": pagemap, "readlink": os.readlink}
}


def tried(operation: str, *arguments: str) -> object:
    """What an operation gives, or the name of its error."""
    try:
        return LOOKS[operation](*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def as_user(uid: int, gid: int, work: Callable[[], object]) -> object:
    """The result of ``work`` in a process of another user: forked, for such a user may not start this Python."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            with open(writer, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(text)


class Place:
    """A mounted machine with a process of ``OWNER`` and one of root; 64 KiB of the former are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own = self._started("p = spawn editor uid=1000")
        self.roots = self._started("spawn service")
        self.address = int(re.findall(r"addr=(\S+)", self.command("a = mmap p 64K"))[0], 16)
        self.command("access p a 64K w")

    def command(self, line: str) -> str:
        done = subprocess.run([*KMEMD, "ctl", "--at", self.path, line], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _started(self, line: str) -> int:
        return int(re.findall(r"pid=(\d+)", self.command(line))[0])

    def looks(self, uid: int, *what: tuple[str, ...], gid: int | None = None) -> list[object]:
        """What a user gets: each of ``what`` is an operation, a path below the mount, and what else it takes."""
        todo = [(name, str(self.path / path), *rest) for name, path, *rest in what]
        found = as_user(uid, uid if gid is None else gid, lambda: [tried(*look) for look in todo])
        assert isinstance(found, list)
        return found

    def seen(self, operation: str, path: str, *rest: str) -> list[object]:
        """What root, the owner and nobody get."""
        return [self.looks(uid, (operation, path, *rest))[0] for uid in (ROOT_UID, OWNER, NOBODY)]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    path = Path(f"/tmp/kmemd-users-{os.getpid()}")
    path.mkdir(mode=0o755)
    daemon = start(path, ["kmemd", "mount", *OPTIONS, "--cmdline", "page_owner=on", str(path)])
    try:
        assert daemon.poll() is None, daemon.stderr.read() if daemon.stderr else ""
        yield Place(path)
    finally:
        end(path, daemon)
        path.rmdir()


@pytest.mark.parametrize(
    "path",
    [
        *("proc/slabinfo", "proc/pagetypeinfo", "proc/vmallocinfo", "proc/kpagecount", "proc/kpageflags"),
        *("proc/kpagecgroup", "proc/kmsg", "sys/kernel/debug/page_owner", "sys/kernel/debug/kmemleak"),
        *("sys/kernel/tracing/trace", "sys/kernel/mm/page_idle/bitmap", "sys/kernel/slab/kmalloc-64/objects"),
    ],
)
def test_files_of_root_alone(place: Place, path: str) -> None:
    root, owner, nobody = place.seen("read", path)
    assert (root in errno.errorcode.values(), owner, nobody) == (False, "EACCES", "EACCES")


@pytest.mark.parametrize(
    "path",
    [
        *("proc/buddyinfo", "proc/meminfo", "proc/zoneinfo", "proc/vmstat", "proc/swaps", "proc/pressure/memory"),
        *("sys/devices/system/node/node0/numastat", "proc/sys/vm/swappiness", "sys/block/vdb/stat"),
    ],
)
def test_files_that_all_may_read(place: Place, path: str) -> None:
    root, owner, nobody = place.seen("read", path)
    assert root == owner == nobody
    assert root not in errno.errorcode.values()


@pytest.mark.parametrize("path", ["sys/kernel/debug", "sys/kernel/tracing"])
def test_directories_of_root_alone(place: Place, path: str) -> None:
    root, *others = place.seen("entries", path)
    assert isinstance(root, list)
    assert others == ["EACCES", "EACCES"]


def test_addresses_read_as_zeros(place: Place) -> None:
    place.command("kmalloc 64 by=probe+0x10[drv]")
    place.looks(ROOT_UID, ("read", "sys/kernel/debug/page_owner"), ("read", "proc/kallsyms"))
    for path, pattern in (
        ("proc/kallsyms", "^([0-9a-f]{16}) [A-Za-z] "),
        ("proc/iomem", "^ *([0-9a-f]{8,})-"),
        ("proc/iomem", "^ *[0-9a-f]{8,}-([0-9a-f]+) "),
        ("proc/modules", "Live 0x([0-9a-f]+)"),
    ):
        shown = [
            {int(word, 16) for word in re.findall(pattern, str(text), re.MULTILINE)}
            for text in place.seen("read", path)
        ]
        assert shown[1] == shown[2] <= {0}, path
        assert shown[0] - {0} or not shown[0], path


@pytest.mark.parametrize(("restrict", "root", "nobody"), [(0, True, False), (1, True, False), (2, False, False)])
def test_kptr_restrict(place: Place, restrict: int, root: bool, nobody: bool) -> None:
    place.looks(ROOT_UID, ("write", "proc/sys/kernel/kptr_restrict", str(restrict)))
    symbols = place.seen("read", "proc/kallsyms")
    assert [not str(text).startswith("0" * 16) for text in symbols] == [root, nobody, nobody]
    (areas,) = place.looks(ROOT_UID, ("read", "proc/vmallocinfo"))
    first = str(areas)[:18]
    assert re.fullmatch(("0x00000000[0-9a-f]{8}", "0xffff[0-9a-f]{12}", "0x0{16}")[restrict], first)
    place.looks(ROOT_UID, ("write", "proc/sys/kernel/kptr_restrict", "0"))


def test_dmesg_restrict(place: Place) -> None:
    assert [str(text)[:2] for text in place.seen("read", "dev/kmsg")] == ["5,", "5,", "5,"]
    place.looks(ROOT_UID, ("write", "proc/sys/kernel/dmesg_restrict", "1"))
    root, *others = place.seen("read", "dev/kmsg")
    assert (str(root)[:2], others) == ("5,", ["EPERM", "EPERM"])
    place.looks(ROOT_UID, ("write", "proc/sys/kernel/dmesg_restrict", "0"))


@pytest.mark.parametrize("name", ["maps", "smaps", "smaps_rollup", "environ", "auxv", "pagemap", "io", "syscall"])
def test_the_inside_of_a_process_is_its_owners(place: Place, name: str) -> None:
    root, owner, nobody = place.seen("read", f"proc/{place.own}/{name}")
    assert root == owner
    assert (owner in errno.errorcode.values(), nobody) == (False, "EACCES")
    root, *others = place.seen("read", f"proc/{place.roots}/{name}")
    assert (root in errno.errorcode.values(), others) == (False, ["EACCES", "EACCES"])


def test_another_group_is_another_user(place: Place) -> None:
    """ptrace compares the group as well."""
    paths = [("read", f"proc/{place.own}/{name}") for name in ("maps", "wchan")]
    assert place.looks(OWNER, *paths, gid=100) == ["EACCES", "0"]


@pytest.mark.parametrize("name", ["exe", "cwd", "root"])
def test_links_of_a_process(place: Place, name: str) -> None:
    for pid, owner_sees in ((place.own, True), (place.roots, False)):
        root, owner, nobody = place.seen("readlink", f"proc/{pid}/{name}")
        assert str(root).startswith("/")
        assert (owner, nobody) == (root if owner_sees else "EACCES", "EACCES")
    assert place.seen("readlink", "proc/2/exe") == ["ENOENT", "EACCES", "EACCES"]


def test_open_files_and_mapped_files_of_a_process(place: Place) -> None:
    for name in ("fd", "fdinfo", "map_files"):
        root, owner, nobody = place.seen("entries", f"proc/{place.own}/{name}")
        assert root == owner, name
        assert (isinstance(root, list), nobody) == (True, "EACCES"), name
    mapped = place.looks(OWNER, ("entries", f"proc/{place.own}/map_files"))[0]
    assert isinstance(mapped, list)
    assert place.seen("readlink", f"proc/{place.own}/map_files/{mapped[0]}") == ["/bin/tiny", "/bin/tiny", "EACCES"]


def test_the_stack_takes_more_than_ownership(place: Place) -> None:
    root, owner, nobody = place.seen("read", f"proc/{place.own}/stack")
    assert str(root).startswith("[<0>] ")
    assert (owner, nobody) == ("EACCES", "EACCES")


def test_stat_and_wchan_hide_addresses(place: Place) -> None:
    fields = [str(text).split() for text in place.seen("read", f"proc/{place.own}/stat")]
    assert fields[0] == fields[1]
    hidden = {number: text for number, text in enumerate(fields[2], 1) if text != fields[0][number - 1]}
    assert hidden == {26: "1", 27: "1", 28: "0", 35: "0", **dict.fromkeys(range(45, 52), "0")}
    waits = place.seen("read", f"proc/{place.own}/wchan")
    assert waits[0] == waits[1] != waits[2] == "0"


def test_pagemap_has_no_page_frames_without_cap_sys_admin(place: Place) -> None:
    root, owner, nobody = place.seen("pagemap", f"proc/{place.own}/pagemap", str(place.address))
    assert isinstance(root, int)
    assert root & (1 << 55) - 1
    assert (owner, nobody) == (root & ~((1 << 55) - 1), "EACCES")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_root_without_capabilities_is_no_root(place: Place) -> None:
    """Linux asks for capabilities, not for uid 0; an owner with CAP_SYSLOG sees what root does."""
    paths = [str(place.path / path) for path in ("proc/kallsyms", "proc/iomem")]
    heads = {}
    for name, options in (
        ("bare", ["--inh-caps=-all", "--bounding-set=-all"]),
        ("syslog", ["--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=+syslog", "--ambient-caps=+syslog"]),
    ):
        done = subprocess.run(["setpriv", *options, "head", "-qn1", *paths], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        heads[name] = [int(re.match("[0-9a-f]+", line)[0], 16) for line in done.stdout.splitlines()]  # type: ignore[index]
    assert heads["bare"] == [0, 0]
    assert heads["syslog"][0] >= 0xFFFFFFFF81000000


@pytest.mark.parametrize(
    ("path", "text", "owner", "nobody"),
    [
        ("proc/sys/vm/swappiness", "1", "EACCES", "EACCES"),
        ("proc/sys/vm/drop_caches", "1", "EACCES", "EACCES"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "never", "EACCES", "EACCES"),
        ("dev/kmsg", "hello", "EACCES", "EACCES"),
        ("kmemd/ctl", "sleep 1s\n", "EACCES", "EACCES"),
        ("proc/pressure/memory", "some 150000 1000000", "EINVAL", "EINVAL"),
        ("proc/{own}/oom_score_adj", "-5", "EACCES", "EACCES"),
        ("proc/{own}/oom_score_adj", "7", 1, "EACCES"),
        ("proc/{own}/make-it-fail", "1", "EPERM", "EACCES"),
        ("proc/{own}/clear_refs", "1", 1, "EACCES"),
        ("proc/{own}/timerslack_ns", "1", "EPERM", "EPERM"),
        ("proc/{own}/maps", "1", "EACCES", "EACCES"),
    ],
)
def test_who_may_write(place: Place, path: str, text: str, owner: object, nobody: object) -> None:
    path = path.format(own=place.own)
    assert [place.looks(uid, ("write", path, text))[0] for uid in (OWNER, NOBODY)] == [owner, nobody]


def test_nobody_makes_anything(place: Place) -> None:
    (place.path / "sys/fs/cgroup/mine").mkdir()
    done = subprocess.run(
        ["sh", "-c", f"mkdir {place.path}/sys/fs/cgroup/theirs; rmdir {place.path}/sys/fs/cgroup/mine"],
        **{"user": NOBODY, "group": NOBODY, "extra_groups": []},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.count("Permission denied") == 2
    (place.path / "sys/fs/cgroup/mine").rmdir()


def test_pid_files_without_a_function_say_einval(place: Place) -> None:
    """The files of a process have operations of their own; others come through procfs', which says EIO."""
    assert place.looks(
        ROOT_UID, ("read", f"proc/{place.own}/clear_refs"), ("write", f"proc/{place.own}/maps", "x")
    ) == [
        "EINVAL",
        "EINVAL",
    ]
    assert place.looks(ROOT_UID, ("write", "proc/buddyinfo", "x")) == ["EIO"]


# -- the tour of docs/security-and-debugging.md ----------------------------------------------------------------------


def tour() -> list[tuple[str, str]]:
    """The commands of the document's tour and what each printed."""
    section = DOCUMENT.read_text().partition("## What an ordinary user sees")[2]
    block = section.partition("```console\n")[2].partition("```")[0]
    steps = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (step.partition("\n") for step in steps)]


def printed(mount: Path, commands: list[str]) -> list[str]:
    """What each command prints in a shell beside the mount."""
    kmemd = " ".join(KMEMD)
    script = f'kmemd() {{ PYTHONPATH="{ROOT}" {kmemd} "$@"; }}\n'
    script += "".join(f"{{ {command}\n}} 2>&1\necho @@@\n" for command in commands)
    done = subprocess.run(
        ["bash", "-c", script],
        **{"cwd": mount.parent, "env": {**os.environ, "LC_ALL": "C"}, "timeout": PROGRAM_DEADLINE_S},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split("@@@\n")[:-1]


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_the_tour_prints_what_the_document_says() -> None:
    mount, (_, *steps) = Path(f"/tmp/kmemd-tour-{os.getpid()}/m"), tour()
    mount.mkdir(parents=True)
    daemon = start(mount, ["kmemd", "mount", *OPTIONS, str(mount)])
    try:
        assert daemon.poll() is None, daemon.stderr.read() if daemon.stderr else ""
        commands = [command for command, _ in steps]
        shown = [PAGE_FRAME.sub("PFN", text) for text in printed(mount, commands)]
        assert list(zip(commands, shown, strict=True)) == [(at, PAGE_FRAME.sub("PFN", text)) for at, text in steps]
    finally:
        end(mount, daemon)
        shutil.rmtree(mount.parent)
