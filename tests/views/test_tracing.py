"""``/sys/kernel/tracing`` as programs use it."""

from __future__ import annotations

import errno
import itertools
import re
from importlib import import_module

import pytest

from kmemd.debug.trace_names import CHOSEN, NAMES
from tests.views.tracefs import KMALLOC, TRACING, Tracefs


@pytest.fixture
def fs() -> Tracefs:
    return Tracefs()


def test_an_allocation_is_a_line(fs: Tracefs) -> None:
    fs.write("options/hash-ptr", "0")
    fs.write("events/kmem/mm_page_alloc/enable", "1")
    pfn = int(fs.command("p = alloc_pages order=3 gfp=GFP_KERNEL").split()[0].partition("=")[2])
    (line,) = fs.lines()
    assert re.fullmatch(
        r" {14}sh-\d+ +\[000\] \.{5} +\d+\.\d{6}: mm_page_alloc: "
        rf"page=ffffea[0-9a-f]{{10}} pfn={pfn:#x} order=3 migratetype=0 gfp_flags=GFP_KERNEL",
        line,
    )
    assert "# entries-in-buffer/entries-written: 1/1   #P:4\n" in fs.read("trace")


def test_bulk_work_is_one_event_each_and_the_machine_is_whole(fs: Tracefs) -> None:
    fs.write("buffer_size_kb", "4096")
    fs.write("events/kmem/enable", "1")
    fs.command("p = alloc_pages n=1000")
    fs.command("k = kmalloc 100 n=500")
    fs.command("kfree k")
    fs.command("free_pages p")
    events = fs.events()
    assert (events.count("kmalloc"), events.count("kfree")) == (500, 500)
    assert events.count("mm_page_free") >= 1000
    assert events.count("mm_page_alloc") >= 1000
    times = [float(line.split()[3].rstrip(":")) for line in fs.lines()]
    assert times == sorted(times)
    fs.system.check()


def test_tracing_changes_no_page(fs: Tracefs) -> None:
    other = Tracefs()
    fs.write("events/enable", "1")
    for command in ("p = alloc_pages n=700", "w = spawn walker", "a = mmap w 2M", "access w a 2M w", "free_pages p"):
        assert fs.command(command) == other.command(command)
    assert fs.system.read("/proc/buddyinfo") == other.system.read("/proc/buddyinfo")
    assert fs.system.read("/proc/vmstat") == other.system.read("/proc/vmstat")


def test_enable_files_add_up(fs: Tracefs) -> None:
    assert fs.read("events/enable") == "0\n"
    fs.write(KMALLOC + "enable", "1")
    assert [fs.read(name) for name in (KMALLOC + "enable", "events/kmem/enable", "events/enable")] == [
        "1\n",
        "X\n",
        "X\n",
    ]
    fs.write("events/kmem/enable", "1")
    assert fs.read("events/kmem/enable") == "1\n"
    assert fs.refused("events/kmem/enable", "2") == errno.EINVAL


def test_set_event(fs: Tracefs) -> None:
    fs.write("set_event", "kmem:kfree vmscan:*\n")
    assert fs.read("set_event").split()[-1] == "kmem:kfree"
    fs.write("set_event", "!vmscan:*", append=True)
    assert fs.read("set_event") == "kmem:kfree\n"
    fs.write("set_event", "kmalloc")
    assert fs.read("set_event") == "kmem:kmalloc\n"
    assert fs.refused("set_event", "kmem:nothing") == errno.EINVAL


def test_filters_and_their_errors(fs: Tracefs) -> None:
    fs.write(KMALLOC + "enable", "1")
    fs.write(KMALLOC + "filter", "bytes_req > 100 && bytes_req < 1000")
    for size in (8, 200, 3000):
        fs.command(f"k{size} = kmalloc {size}")
    assert ["bytes_req=200 " in line for line in fs.lines()] == [True]
    assert fs.refused(KMALLOC + "filter", "bytes > 1") == errno.EINVAL
    assert fs.read(KMALLOC + "filter") == "bytes > 1\n      ^\nparse_error: Field not found\n\n"
    assert fs.read("error_log").endswith(
        "] event filter parse error: error: Field not found\n  Command: bytes > 1\n                 ^\n"
    )
    fs.write(KMALLOC + "filter", "0")
    assert fs.read(KMALLOC + "filter") == "none\n"
    fs.write("events/kmem/filter", "order == 5")
    assert fs.read("events/kmem/mm_page_alloc/filter") == "order == 5\n"
    assert fs.read("events/kmem/filter") == "order == 5\n"
    assert fs.refused("events/kmem/filter", "nowhere == 5") == errno.EINVAL


def test_trace_pipe_consumes(fs: Tracefs) -> None:
    fs.write(KMALLOC + "enable", "1")
    fs.command("k = kmalloc 64 n=3")
    assert fs.read("trace_pipe").count("kmalloc:") == 3
    assert fs.lines() == []
    with pytest.raises(OSError, match="nothing to read yet"):
        fs.read("trace_pipe")
    assert "read events: 3\n" in fs.read("per_cpu/cpu0/stats")


def test_lost_events_are_told(fs: Tracefs) -> None:
    fs.write("buffer_size_kb", "1")
    fs.write("events/kmem/mm_page_alloc/enable", "1")
    fs.command("p = alloc_pages n=1000")
    stats = dict(line.split(": ") for line in fs.read("per_cpu/cpu0/stats").strip().split("\n"))
    assert int(stats["entries"]) + int(stats["overrun"]) == 1000
    assert fs.read("trace_pipe").startswith(f"CPU:0 [LOST {stats['overrun']} EVENTS]\n")
    assert fs.read("buffer_size_kb") == "7\n"


def test_tracing_on_clears_and_markers(fs: Tracefs) -> None:
    fs.write("trace_marker", "hello")
    assert fs.lines()[0].endswith(": tracing_mark_write: hello")
    fs.write("trace_marker_raw", "\1\0\0\0abc")
    assert fs.lines()[1].endswith(": # 1 buf: 61 62 63 00") or fs.lines()[1].endswith(": # 1 buf: 61 62 63")
    fs.write("trace", "")
    fs.write("tracing_on", "0")
    fs.write("trace_marker", "unheard")
    assert fs.lines() == []


def test_instances_are_their_own(fs: Tracefs) -> None:
    fs.system.mkdir(TRACING + "instances/mine")
    fs.write("instances/mine/" + KMALLOC + "enable", "1")
    fs.command("k = kmalloc 64")
    assert fs.lines() == []
    assert fs.events("instances/mine/trace") == ["kmalloc"]
    assert fs.read("events/kmem/enable") == "0\n"
    with pytest.raises(OSError, match="there is an instance"):
        fs.system.mkdir(TRACING + "instances/mine")
    fs.system.rmdir(TRACING + "instances/mine")
    fs.command("k2 = kmalloc 64")
    with pytest.raises(OSError, match="does not exist"):
        fs.read("instances/mine/trace")


def test_triggers_switch_tracing_and_events(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "enable_event:kmem:kfree:1 if bytes_req == 64")
    assert fs.read(KMALLOC + "trigger") == "enable_event:kmem:kfree:count=1 if bytes_req == 64\n"
    assert [fs.read(KMALLOC + "enable"), fs.read("events/kmem/kfree/enable")] == ["0*\n", "0*\n"]
    fs.command("a = kmalloc 8")
    fs.command("b = kmalloc 64")
    assert fs.read("events/kmem/kfree/enable") == "1*\n"
    fs.command("kfree a")
    assert fs.events() == ["kfree"]
    fs.write(KMALLOC + "trigger", "traceoff", append=True)
    fs.command("c = kmalloc 64")
    assert fs.read("tracing_on") == "0\n"
    assert fs.refused(KMALLOC + "trigger", "traceoff", append=True) == errno.EEXIST
    fs.write(KMALLOC + "trigger", "!traceoff", append=True)
    fs.write(KMALLOC + "trigger", "!enable_event:kmem:kfree", append=True)
    assert fs.read(KMALLOC + "trigger").startswith("# Available triggers:\n# traceon traceoff")
    assert fs.refused(KMALLOC + "trigger", "nonsense") == errno.EINVAL
    assert fs.refused(KMALLOC + "trigger", "stacktrace()") == errno.EINVAL


def test_histograms(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "hist:keys=bytes_req:vals=bytes_alloc:sort=bytes_alloc.descending:size=128")
    fs.command("a = kmalloc 100 n=3")
    fs.command("b = kmalloc 1000")
    text = fs.read(KMALLOC + "hist")
    assert text == (
        "# event histogram\n#\n# trigger info: hist:keys=bytes_req:vals=hitcount,bytes_alloc:"
        "sort=bytes_alloc.descending:size=128 [active]\n#\n\n"
        "{ bytes_req:       1000 } hitcount:          1  bytes_alloc:       1024\n"
        "{ bytes_req:        100 } hitcount:          3  bytes_alloc:        384\n"
        "\nTotals:\n    Hits: 4\n    Entries: 2\n    Dropped: 0\n"
    )
    fs.write(KMALLOC + "trigger", "hist:keys=common_pid.execname,bytes_req.log2 if bytes_req < 500")
    fs.command("c = kmalloc 100 n=2")
    assert re.search(
        r"\{ common_pid: sh {14}\[ +\d+\], bytes_req: ~ 2\^7  \} hitcount:          2\n", fs.read(KMALLOC + "hist")
    )
    assert fs.refused(KMALLOC + "trigger", "hist:keys=nothing", append=True) == errno.EINVAL
    assert "hist:kmem:kmalloc: error: Couldn't find field\n  Command: hist:keys=nothing\n" in fs.read("error_log")


def test_a_histogram_of_stacks(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "hist:keys=stacktrace")
    fs.command("a = kmalloc 100 n=4 by=leaky_probe+0x2a[leaky_drv]")
    text = fs.read(KMALLOC + "hist")
    assert "{ stacktrace:\n         leaky_probe+0x2a/" in text
    assert "} hitcount:          4\n" in text


def test_stacks_after_records(fs: Tracefs) -> None:
    fs.write("options/stacktrace", "1")
    fs.write(KMALLOC + "enable", "1")
    fs.command("a = kmalloc 100 by=leaky_probe+0x2a[leaky_drv]")
    lines = fs.lines()
    assert lines[1].endswith(": <stack trace>")
    assert lines[2] == " => leaky_probe [leaky_drv]"


def test_function_graph_nests(fs: Tracefs) -> None:
    fs.write("trace_marker", "before")
    fs.write("current_tracer", "function_graph")
    assert fs.lines() == []  # another tracer begins with empty buffers
    fs.command("x = spawn walker")
    text = fs.read("trace")
    fs.write("current_tracer", "nop")
    opened, closed = text.count("() {\n"), text.count("}\n")
    assert opened == closed > 3
    assert re.search(r"\n 0\) +\d+\.\d{3} us    \|  +\w+\(\);\n", text)
    assert text.startswith("# tracer: function_graph\n#\n# CPU  DURATION                  FUNCTION CALLS\n")


def test_function_filters(fs: Tracefs) -> None:
    fs.write("set_ftrace_filter", "kmem_cache_*")
    assert fs.read("set_ftrace_filter").split()[0].startswith("kmem_cache_")
    fs.write("current_tracer", "function")
    fs.command("w = spawn walker")
    fs.write("tracing_on", "0")
    names = {line.split(": ")[1].split()[0] for line in fs.lines()}
    assert names
    assert all(name.startswith("kmem_cache_") for name in names)
    fs.write("current_tracer", "nop")
    assert fs.refused("set_ftrace_filter", "no_such_function") == errno.EINVAL
    assert fs.refused("current_tracer", "wakeup") == errno.EINVAL


def test_clocks_options_and_sizes(fs: Tracefs) -> None:
    assert fs.read("buffer_size_kb") == "7 (expanded: 1408)\n"
    assert "[global]" in fs.read("trace_clock")
    fs.write("trace_clock", "counter")
    fs.write(KMALLOC + "enable", "1")
    fs.command("k = kmalloc 64 n=2")
    assert [line.split()[3] for line in fs.lines()] == ["1:", "2:"]
    assert fs.read("buffer_size_kb") == "1410\n"
    fs.write("buffer_size_kb", "100")
    assert (fs.read("buffer_size_kb"), fs.read("buffer_total_size_kb")) == ("103\n", "412\n")
    fs.write("trace_options", "noirq-info")
    assert fs.read("options/irq-info") == "0\n"
    assert fs.refused("trace_options", "nothing-such") == errno.EINVAL


def test_cpus_and_pids_can_be_left_out(fs: Tracefs) -> None:
    fs.write(KMALLOC + "enable", "1")
    fs.write("tracing_cpumask", "2")
    fs.command("k = kmalloc 64")
    assert fs.events() == []
    fs.write("tracing_cpumask", "f")
    fs.write("set_event_pid", "9999")
    fs.command("k2 = kmalloc 64")
    assert fs.events() == []
    fs.write("set_event_pid", "")
    fs.command("k3 = kmalloc 64")
    assert fs.events() == ["kmalloc"]


def test_raw_pages_hold_what_the_text_says(fs: Tracefs) -> None:
    fs.write(KMALLOC + "enable", "1")
    fs.command("k = kmalloc 64 n=2")
    page = fs.system.read(TRACING + "per_cpu/cpu0/trace_pipe_raw", 0, 4096)
    assert len(page) == 4096
    assert int.from_bytes(page[8:16], "little") == 2 * (4 + 52)
    assert int.from_bytes(page[20:22], "little") == 243
    assert fs.lines() == []


@pytest.mark.parametrize(
    ("text", "number", "message", "caret"),
    [
        ("order > 1 &&", errno.EINVAL, "Meaningless filter expression", 12),
        ("order > 1 || !", errno.EINVAL, "Meaningless filter expression", 14),
        ("!", errno.EINVAL, "No filter found", 1),
        ("order > 1 && ()", errno.EPERM, "Error", 0),
        ("order > 1 && && order < 3", errno.EPERM, "Error", 0),
        ("()", errno.EINVAL, "Error", 0),
        ("order > 1 order < 3", errno.EPERM, "Too many terms in predicate expression", 10),
        ("order > 1)", errno.EPERM, "Too few '('", 9),
        ("(order > 1 && (order < 3)", errno.ENOENT, "Too many '('", 0),
        ("comm == 'a", errno.ESRCH, "Missing matching quote", 8),
        ("order > 111111111111111111111111", errno.EINVAL, "Operand too long", 33),
    ],
)
def test_a_broken_filter_is_told_as_the_kernel_tells_it(
    fs: Tracefs, text: str, number: int, message: str, caret: int
) -> None:
    name = "events/kmem/mm_page_alloc/filter"
    assert fs.refused(name, text + "\n") == number
    log = fs.read("error_log").split("] ", 1)[1]
    assert log == f"event filter parse error: error: {message}\n  Command: {text}\n{' ' * (11 + caret)}^\n"
    at = min(caret, len(text))
    told = "Error: (0)" if message == "Error" else f"{'^':>{at + 1 if at else 0}}\nparse_error: {message}"
    assert fs.read(name) == f"{text}\n{told}\n\n"


def traced(fs: Tracefs, command: str) -> list[tuple[int, str]]:
    """Depth and name of what function_graph shows of a command."""
    fs.write("current_tracer", "nop")
    fs.write("current_tracer", "function_graph")
    fs.command(command)
    text = fs.read("trace")
    fs.write("current_tracer", "nop")
    assert text.count("() {\n") == text.count("}\n")
    return [(len(match[1]) // 2, match[2]) for match in re.finditer(r"\|  ( *)([\w.]+)\(\)", text)]


def test_pages_that_are_mapped_do_not_fault(fs: Tracefs) -> None:
    fs.command("w = spawn walker")
    fs.command("a = mmap w 256K")
    first = traced(fs, "access w a 256K w")
    assert first.count((0, "exc_page_fault")) >= 1
    assert {"handle_mm_fault", "vma_alloc_folio", "__alloc_pages"} <= {name for _, name in first}
    assert traced(fs, "access w a 256K w") == []


def test_allocators_are_called_as_the_kernel_calls_them(fs: Tracefs) -> None:
    shown = traced(fs, "v = vmalloc 64K")
    assert shown[:3] == [(0, "vmalloc"), (1, "__vmalloc_node"), (2, "__vmalloc_node_range")]
    assert {(3, "__get_vm_area_node"), (3, "__vmalloc_area_node"), (5, "__alloc_pages")} <= set(shown)
    slices = [name for _, name in traced(fs, "u = vmalloc 16M")]
    assert (slices.count("vmalloc"), slices.count("vm_area_alloc_pages")) == (1, 2)
    assert traced(fs, "k = kmalloc 64")[:2] == [(0, "__kmalloc"), (1, "__kmem_cache_alloc_node")]
    names = {name for _, name in traced(fs, "w = spawn walker")}
    assert {"kernel_clone", "copy_process", "dup_task_struct", "kmem_cache_alloc", "bprm_execve"} <= names
    forked = traced(fs, "x = fork w")
    assert {(0, "kernel_clone"), (1, "copy_process"), (2, "dup_task_struct"), (2, "dup_mm")} <= set(forked)
    assert not any("bulk" in name for name in names)
    assert {"mmput", "exit_mmap", "unmap_page_range"} <= {name for _, name in traced(fs, "exit x")}
    listed = fs.read("available_filter_functions").split()
    assert names <= set(listed)
    assert {"try_to_free_pages", "balance_pgdat", "do_swap_page", "compact_zone", "out_of_memory"} <= set(listed)


def test_every_method_of_the_function_table_exists(fs: Tracefs) -> None:
    for method in (*NAMES, *CHOSEN):
        module, *path = method.replace(".<locals>", "").split(".")
        found = import_module(f"kmemd.mm.{module}")
        for name in path[:2]:
            found = getattr(found, name)


def test_objects_of_a_bulk_request_have_their_own_times(fs: Tracefs) -> None:
    fs.write("trace_clock", "local")
    for name in ("kmalloc", "kfree"):
        fs.write(f"events/kmem/{name}/trigger", "hist:keys=common_timestamp:vals=hitcount:sort=common_timestamp")
    start = fs.system.kernel.context.now
    took = int(fs.command("k = kmalloc 100 n=50").rpartition("ns=")[2])
    end = start + took
    freed = int(fs.command("kfree k").rpartition("ns=")[2])

    def times(name: str) -> list[int]:
        return [int(found) for found in re.findall(r"common_timestamp: +(\d+)", fs.read(f"events/kmem/{name}/hist"))]

    made, gone = times("kmalloc"), times("kfree")
    assert (len(made), len(gone)) == (50, 50)
    assert {after - before for before, after in itertools.pairwise(made)} == {made[1] - made[0]}
    assert made[-1] == end
    assert gone == [end + index * freed // 50 for index in range(50)]
