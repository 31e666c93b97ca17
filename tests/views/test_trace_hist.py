"""Histograms with variables, expressions and actions, and synthetic events (Documentation/trace/histogram.rst)."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from kmemd.machine import Machine
from tests.views.tracefs import KMALLOC, Tracefs

BEGIN = "events/vmscan/mm_vmscan_direct_reclaim_begin/"
END = "events/vmscan/mm_vmscan_direct_reclaim_end/"
FREE = "events/kmem/kfree/"
SMALL = """
arch = "x86_64"
cpus = 2
[[node]]
memory = "128M"
cpus = "0-1"
[[swap]]
path = "/dev/vdb"
size = "256M"
"""
LATENCY = "events/synthetic/latency/"


@pytest.fixture
def fs() -> Tracefs:
    return Tracefs()


@pytest.fixture
def small(tmp_path: Path) -> Tracefs:
    """A machine of little memory, with swap."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return Tracefs(Machine.load(path))


def reclaim(fs: Tracefs) -> None:
    """A program writes to more memory than there is."""
    fs.command("w = spawn walker")
    fs.command("a = mmap w 180M")
    fs.command("access w a 180M w")


def rows(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.startswith("{")]


# -- modifiers ---------------------------------------------------------------------------------------------


def test_each_modifier_shows_its_way(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "hist:keys=bytes_req.buckets=50,bytes_alloc.log2,gfp_flags.hex:vals=bytes_req.hex")
    fs.command("a = kmalloc 100 n=3 gfp=GFP_KERNEL")
    (row,) = rows(fs.read(KMALLOC + "hist"))
    assert (
        row
        == "{ bytes_req: ~ 100-149, bytes_alloc: ~ 2^7 , gfp_flags: cc0 } hitcount:          3  bytes_req:        12c"
    )
    assert "keys=bytes_req.buckets=50,bytes_alloc.log2,gfp_flags.hex:vals=hitcount,bytes_req.hex:" in fs.read(
        KMALLOC + "trigger"
    )


def test_shares_and_bars(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "hist:keys=bytes_req:vals=bytes_alloc.percent,bytes_req.graph:sort=bytes_req")
    fs.command("a = kmalloc 64 n=3")
    fs.command("b = kmalloc 192")
    first, second = rows(fs.read(KMALLOC + "hist"))
    assert first.endswith("hitcount:          3  bytes_alloc (%):  50.00  bytes_req: ####################")
    assert second.endswith("hitcount:          1  bytes_alloc (%):  50.00  bytes_req: ####################")


def test_names_of_addresses_and_stacks(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "hist:keys=call_site.sym-offset,call_site.sym")
    fs.command("a = kmalloc 64 by=leaky_probe+0x2a[leaky_drv]")
    text = fs.read(KMALLOC + "hist")
    assert "hist:keys=call_site.sym-offset,call_site.sym:" in text
    assert re.search(
        r"\{ call_site: \[[0-9a-f]+\] leaky_probe\+0x2a/\S+ \[leaky_drv\] +, call_site: \[[0-9a-f]+\] leaky_pr", text
    )


# -- variables and expressions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("bytes_alloc-bytes_req", 28),
        ("bytes_req+bytes_alloc-1", 227),
        ("bytes_req*2", 200),
        ("bytes_alloc/32", 4),
        ("bytes_req/3", 34),  # by multiplying and shifting, which rounds up here as in the kernel
        ("bytes_req/common_preempt_count", (1 << 64) - 1),
        ("-(bytes_req)", (1 << 64) - 100),
        ("1000000/10", 100000),
    ],
)
def test_expressions(fs: Tracefs, expression: str, result: int) -> None:
    fs.write("synthetic_events", "found u64 value")
    fs.write("events/synthetic/found/enable", "1")
    fs.write(KMALLOC + "trigger", f"hist:keys=common_pid:x={expression}:onmax($x).trace(found,$x)")
    fs.command("a = kmalloc 100")
    assert fs.lines()[0].endswith(f"found: value={result}")


def test_a_variable_of_one_event_in_another(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "hist:keys=ptr:size_=bytes_alloc")
    fs.write(FREE + "trigger", "hist:keys=ptr:vals=$size_,kmem.kmalloc.$size_")
    fs.command("a = kmalloc 100")
    fs.command("kfree a")
    (row,) = rows(fs.read(FREE + "hist"))
    assert row.endswith("hitcount:          1  size_:        128  size_:        128")
    assert "vals=hitcount,$size_,$size_:" in fs.read(FREE + "trigger")
    assert fs.refused(KMALLOC + "trigger", "!hist:keys=ptr:size_=bytes_alloc", append=True) == errno.EBUSY
    fs.append(FREE + "trigger", "!hist:keys=ptr:vals=$size_,kmem.kmalloc.$size_")
    fs.append(KMALLOC + "trigger", "!hist:keys=ptr:size_=bytes_alloc")
    assert fs.read(KMALLOC + "trigger").startswith("# Available triggers:\n# traceon traceoff snapshot stacktrace ")


def test_times_choose_the_clock_and_empty_the_buffer(fs: Tracefs) -> None:
    fs.write("trace_clock", "mono")
    fs.write("trace_marker", "old")
    fs.write(KMALLOC + "trigger", "hist:keys=common_cpu:ts=common_timestamp.usecs")
    assert ":ts=common_timestamp.usecs:sort=hitcount:size=2048:clock=global [active]\n" in fs.read(KMALLOC + "trigger")
    assert "[global]" in fs.read("trace_clock")
    assert fs.lines() == []


def test_named_histograms_add_up(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "hist:name=foo:keys=call_site:vals=hitcount")
    fs.write("events/kmem/kmem_cache_alloc/trigger", "hist:name=foo:keys=call_site:vals=hitcount")
    fs.command("c = kmem_cache_create widget 80")
    fs.command("a = kmalloc 100 n=3 by=leaky_probe+0x2a[leaky_drv]")
    fs.command("o = kmem_cache_alloc c n=2 by=leaky_probe+0x2a[leaky_drv]")
    texts = [fs.read(name + "hist") for name in (KMALLOC, "events/kmem/kmem_cache_alloc/")]
    assert texts[0] == texts[1]
    assert "hist:name=foo:keys=call_site:" in texts[0]
    assert "hitcount:          5" in texts[0]
    assert fs.refused(FREE + "trigger", "hist:name=foo:keys=common_pid") == errno.EINVAL
    assert fs.error()[0].endswith("Named hist trigger doesn't match existing named trigger (includes variables)")


def test_pause_continue_clear_and_filters_of_their_own(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "hist:keys=bytes_req if bytes_req > 100")
    fs.append(KMALLOC + "trigger", "hist:keys=bytes_req if bytes_req < 100")
    fs.append(KMALLOC + "trigger", "hist:keys=bytes_req:pause if bytes_req < 100")
    fs.command("a = kmalloc 200")
    fs.command("b = kmalloc 50")
    text = fs.read(KMALLOC + "hist")
    assert text.count("# event histogram") == 2
    assert "if bytes_req > 100 [active]" in text
    assert "if bytes_req < 100 [paused]" in text
    assert len(rows(text)) == 1
    fs.append(KMALLOC + "trigger", "hist:keys=bytes_req:clear if bytes_req > 100")
    fs.append(KMALLOC + "trigger", "hist:keys=bytes_req:cont if bytes_req < 100")
    fs.command("c = kmalloc 50")
    assert [row.split()[2] for row in rows(fs.read(KMALLOC + "hist"))] == ["50"]


# -- actions -----------------------------------------------------------------------------------------------


def test_latency_of_direct_reclaim_by_onmatch(small: Tracefs) -> None:
    fs = small
    fs.write("synthetic_events", "reclaim_latency u64 lat; pid_t pid; unsigned long nr_reclaimed\n")
    assert fs.read("synthetic_events") == "reclaim_latency\tu64 lat; pid_t pid; unsigned long nr_reclaimed\n"
    fs.append(BEGIN + "trigger", "hist:keys=common_pid:ts0=common_timestamp.usecs")
    fs.append(
        END + "trigger",
        "hist:keys=common_pid:lat=common_timestamp.usecs-$ts0:"
        "onmatch(vmscan.mm_vmscan_direct_reclaim_begin).reclaim_latency($lat,common_pid,nr_reclaimed)",
    )
    fs.append("events/synthetic/reclaim_latency/trigger", "hist:keys=pid,lat.log2:vals=nr_reclaimed:sort=lat")
    fs.write("events/synthetic/reclaim_latency/enable", "1")
    reclaim(fs)
    (total,) = re.findall(r"Hits: (\d+)", fs.read("events/synthetic/reclaim_latency/hist"))
    begins = int(re.findall(r"Hits: (\d+)", fs.read(BEGIN + "hist"))[0])
    assert int(total) == begins > 0
    lines = [line for line in fs.lines() if ": reclaim_latency: " in line]
    assert len(lines) == begins
    assert re.search(r"reclaim_latency: lat=\d+ pid=\d+ nr_reclaimed=\d+$", lines[0])
    fs.system.check()


def test_latencies_are_the_differences_of_the_times(small: Tracefs) -> None:
    fs = small
    for path in (BEGIN, END):
        fs.write(path + "enable", "1")
    fs.write("synthetic_events", "latency u64 lat")
    fs.write(LATENCY + "enable", "1")
    fs.append(BEGIN + "trigger", "hist:keys=common_pid:ts0=common_timestamp")
    fs.append(
        END + "trigger",
        "hist:keys=common_pid:lat=common_timestamp-$ts0:onmatch(vmscan.mm_vmscan_direct_reclaim_begin).trace(latency,$lat)",
    )
    reclaim(fs)
    start, checked = 0.0, 0
    for line in fs.lines():
        time = float(line.split()[-len(line.partition("] ")[2].split()) + 1].rstrip(":"))
        if "reclaim_begin" in line:
            start = time
        elif ": latency: " in line:
            assert int(line.rpartition("=")[2]) / 1e9 == pytest.approx(time - start, abs=1.1e-6)
            checked += 1
    assert checked > 0


def test_onmax_saves_what_came_with_the_longest(small: Tracefs) -> None:
    fs = small
    fs.append(BEGIN + "trigger", "hist:keys=common_pid:ts0=common_timestamp.usecs:order_=order")
    fs.append(
        END + "trigger",
        "hist:keys=common_pid:lat=common_timestamp.usecs-$ts0:onmax($lat).save(nr_reclaimed,common_cpu)",
    )
    reclaim(fs)
    assert re.search(r"\} hitcount: +\d+\n\tmax: +\d+  nr_reclaimed: +\d+  common_cpu: +0\n", fs.read(END + "hist"))


def test_what_is_saved_stays_while_a_field_variable_goes_on(fs: Tracefs) -> None:
    fs.write("synthetic_events", "seen u64 size")
    fs.write("events/synthetic/seen/enable", "1")
    hist = "hist:keys=common_pid:n=bytes_req:onchange($n).seen(bytes_alloc):onmax($n).save(bytes_alloc)"
    fs.write(KMALLOC + "trigger", hist)
    for size in (64, 500, 32):
        fs.command(f"kmalloc {size}")
    assert "\n\tmax:        500  bytes_alloc:        512\n" in fs.read(KMALLOC + "hist")
    assert [line.rpartition("=")[2] for line in fs.lines()] == ["64", "512", "32"]


def test_onchange(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "hist:keys=common_pid:n=bytes_req:onchange($n).save(bytes_alloc)")
    for size in (64, 64, 200):
        fs.command(f"x{size} = kmalloc {size}") if size != 64 else fs.command("kmalloc 64")
    assert "\n\tchanged:        200  bytes_alloc:        256\n" in fs.read(KMALLOC + "hist")


def test_a_field_of_the_matched_event_gets_a_histogram_of_its_own(fs: Tracefs) -> None:
    fs.write("synthetic_events", "freed u64 size; u64 again")
    fs.write("events/synthetic/freed/enable", "1")
    fs.write(KMALLOC + "trigger", "hist:keys=ptr:size_=bytes_req")
    fs.write(FREE + "trigger", "hist:keys=ptr:onmatch(kmem.kmalloc).freed($size_,bytes_alloc)")
    assert "hist:keys=ptr:vals=hitcount:synthetic_bytes_alloc=bytes_alloc:" in fs.read(KMALLOC + "trigger")
    fs.command("a = kmalloc 100")
    fs.command("kfree a")
    assert fs.lines()[0].endswith("freed: size=100 again=128")
    fs.append(FREE + "trigger", "!hist:keys=ptr:onmatch(kmem.kmalloc).freed($size_,bytes_alloc)")
    assert "synthetic_bytes_alloc" not in fs.read(KMALLOC + "trigger")


def test_messages_of_user_space_can_be_timed(fs: Tracefs) -> None:
    fs.write("synthetic_events", "latency u64 lat")
    fs.write("events/ftrace/print/trigger", 'hist:keys=common_pid:ts0=common_timestamp.usecs if buf == "start"')
    fs.append(
        "events/ftrace/print/trigger",
        'hist:keys=common_pid:lat=common_timestamp.usecs-$ts0:onmatch(ftrace.print).latency($lat) if buf == "end"',
    )
    fs.write(LATENCY + "trigger", "hist:keys=lat,common_pid:sort=lat")
    fs.write("trace_marker", "start")
    fs.system.advance(0.25)
    fs.write("trace_marker", "end")
    (row,) = rows(fs.read(LATENCY + "hist"))
    assert 250_000 <= int(row.split()[2].rstrip(",")) < 251_000


def test_texts_and_flags_in_synthetic_events(fs: Tracefs) -> None:
    fs.write("synthetic_events", "made gfp_t gfp; char comm[]; s32 node; u64 n")
    assert fs.read("events/synthetic/made/format") == (
        "name: made\nID: 543\nformat:\n"
        "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
        "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
        "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
        "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
        "\tfield:gfp_t gfp;\toffset:8;\tsize:4;\tsigned:0;\n"
        "\tfield:__data_loc char[] comm;\toffset:16;\tsize:8;\tsigned:1;\n"
        "\tfield:s32 node;\toffset:24;\tsize:4;\tsigned:1;\n"
        "\tfield:u64 n;\toffset:32;\tsize:8;\tsigned:0;\n\n"
        'print fmt: "gfp=%x, comm=%s, node=%d, n=%llu", REC->gfp, __get_str(comm), REC->node, REC->n\n'
    )
    fs.write("events/synthetic/made/enable", "1")
    hist = "hist:keys=common_pid:c=common_pid.execname,m=migratetype,p=pfn:g=%s:onchange($p).made($g,$c,$m,$p)"
    trigger = "events/kmem/mm_page_alloc/trigger"
    assert fs.refused(trigger, hist % "gfp_flags") == errno.EINVAL  # an unsigned long is not a gfp_t
    assert fs.error()[0].endswith("Param type doesn't match synthetic event field type")
    fs.write(trigger, hist % "order*3264")
    pfn = int(fs.command("p = alloc_pages order=1 gfp=GFP_KERNEL").split()[0].partition("=")[2])
    assert fs.lines()[0].endswith(f"made: gfp=cc0  (GFP_KERNEL)comm=sh node=0 n={pfn}")


# -- synthetic_events and dynamic_events -------------------------------------------------------------------


def test_synthetic_events_come_and_go(fs: Tracefs) -> None:
    fs.write("synthetic_events", "one u64 a; char name[16]\ntwo int b # a comment\n")
    assert fs.read("synthetic_events") == "one\tu64 a; char[16] name\ntwo\tint b\n"
    assert fs.read("dynamic_events") == "s:synthetic/one\tu64 a; char[16] name\ns:synthetic/two\tint b\n"
    assert fs.read("available_events").startswith("synthetic:two\nsynthetic:one\n")  # the newest stand first
    fs.write("events/synthetic/two/enable", "1")
    assert fs.refused("synthetic_events", "!two", append=True) == errno.EBUSY
    assert fs.refused("synthetic_events", "\n") == errno.EBUSY
    fs.write("events/synthetic/two/enable", "0")
    fs.append("synthetic_events", "!two int b")
    fs.append("dynamic_events", "s:synthetic/three u8 c")
    fs.append("dynamic_events", "-:one")
    assert fs.read("synthetic_events") == "three\tu8 c\n"
    assert fs.refused("synthetic_events", "!two", append=True) == errno.ENOENT
    fs.write("synthetic_events", "\n")
    assert fs.read("synthetic_events") == ""
    assert "synthetic" not in fs.read("available_events")
    fs.system.mkdir("/sys/kernel/tracing/instances/mine")
    fs.write("synthetic_events", "four u8 c")
    assert fs.read("instances/mine/events/synthetic/four/enable") == "0\n"


def test_an_instance_goes_with_its_histograms(fs: Tracefs) -> None:
    fs.system.mkdir("/sys/kernel/tracing/instances/mine")
    fs.write("synthetic_events", "freed u64 size")
    mine = "instances/mine/"
    fs.write(mine + KMALLOC + "trigger", "hist:keys=ptr:size_=bytes_req")
    fs.append(mine + KMALLOC + "trigger", "traceoff if bytes_req == 5")
    fs.write(mine + FREE + "trigger", "hist:keys=ptr:onmatch(kmem.kmalloc).freed($size_)")
    fs.write(mine + "events/synthetic/freed/enable", "1")
    fs.command("a = kmalloc 100")
    fs.command("kfree a")
    assert fs.lines() == []
    assert [line.rpartition(": ")[2] for line in fs.lines(mine + "trace")] == ["size=100"]
    assert fs.refused("synthetic_events", "!freed", append=True) == errno.EBUSY
    fs.system.rmdir("/sys/kernel/tracing/instances/mine")
    fs.append("synthetic_events", "!freed")
    assert fs.read("synthetic_events") == ""


@pytest.mark.parametrize(
    ("text", "number", "message", "caret"),
    [
        ("only", errno.EINVAL, "Command must be of the form: <name> field[;field] ...", "only"),
        ("1bad u64 lat", errno.EINVAL, "Illegal name", "1bad u64 lat"),
        ("known u64 lat", errno.EEXIST, "Event already exists", "known u64 lat"),
        ("new u64 lat; unsigned x", errno.EINVAL, "Incomplete type", "unsigned x"),
        ("new u64 lat; u65 lat2", errno.EINVAL, "Invalid type", "u65 lat2"),
        ("new u64 lat; pid_t", errno.EINVAL, "Invalid field", "pid_t"),
        ("new u64 lat; char name[1024]", errno.EINVAL, "Invalid array specification", "name[1024]"),
        ("new u64 2lat", errno.EINVAL, "Illegal name", "2lat"),
    ],
)
def test_errors_of_synthetic_events(fs: Tracefs, text: str, number: int, message: str, caret: str) -> None:
    fs.write("synthetic_events", "known u64 lat")
    assert fs.refused("synthetic_events", text, append=True) == number
    assert fs.error() == (f"synthetic_events: error: {message}", text, caret)


@pytest.mark.parametrize(
    ("text", "number", "message", "caret"),
    [
        ("keys=ptr:x=", errno.EINVAL, "Empty assignment", "x="),
        ("keys=nothing", errno.EINVAL, "Couldn't find field", "nothing"),
        ("keys=ptr.wrong", errno.EINVAL, "Invalid field modifier", "wrong"),
        ("keys=ptr.percent", errno.EINVAL, "Invalid field modifier", "percent"),
        ("keys=ptr:vals=bytes_req.log2", errno.EINVAL, "Invalid field modifier", "bytes_req.log2"),
        ("keys=ptr:x=$nowhere", errno.EINVAL, "Couldn't find field", "$nowhere"),
        ("keys=ptr:x=12ab", errno.EINVAL, "Expecting numeric literal", "12ab"),
        ("keys=ptr:x=bytes_req/0", errno.EDOM, "Division by zero", "0"),
        (
            "keys=ptr:x=common_timestamp.usecs-common_timestamp",
            errno.EINVAL,
            "Timestamp units in expression don't match",
            None,
        ),
        ("keys=ptr:x=1+ptr+2+ptr+3", errno.EINVAL, "Too many subexpressions (3 max)", "1+ptr"),
        ("keys=ptr:x=-(ptr)+1", errno.EINVAL, "Unary minus not supported in sub-expressions", "ptr)+1"),
        ("keys=ptr:sort=node", errno.EINVAL, "Sort field must be a key or a val", "node"),
        ("keys=ptr:sort=ptr.up", errno.EINVAL, "Invalid sort modifier", "up"),
        ("keys=ptr,node:sort=ptr,node,ptr", errno.EINVAL, "Too many sort fields (Max = 2)", "sort=ptr"),
        ("keys=ptr:x=node,x=ptr", errno.EINVAL, "Variable already defined", "x=node"),
        ("keys=ptr:x=node,y", errno.EINVAL, "Malformed assignment", "y"),
        ("keys=ptr:clock=none:x=common_timestamp", errno.EINVAL, "Couldn't set trace_clock", "none"),
        ("keys=ptr:onmax(node).save(node)", errno.EINVAL, "For onmax(x) or onchange(x), x must be a variable", "node"),
        ("keys=ptr:onmax($y).save(node)", errno.EINVAL, "Couldn't find onmax or onchange variable", "ys="),
        ("keys=ptr:x=node:onmax($x)", errno.EINVAL, "No action found", None),
        ("keys=ptr:x=node:onmax($x).none($x)", errno.EINVAL, "Couldn't find synthetic event", "none"),
        ("keys=ptr:x=node:onmax($x).save(a)", errno.EINVAL, "Invalid action param", "a"),
        ("keys=ptr:x=node:onmax($x).save(nothing)", errno.EINVAL, "Couldn't create field variable", "nothing"),
        ("keys=ptr:onmatch(kmem).known(ptr)", errno.EINVAL, "Missing subsystem", "kmem"),
        ("keys=ptr:onmatch(kmem.nothing).known(ptr)", errno.EINVAL, "Invalid subsystem or event name", "nothing"),
        ("keys=ptr:onmatch(kmem.kfree).save(ptr)", errno.EINVAL, "Handler doesn't support action", "save"),
        ("keys=ptr:onmatch(kmem.kfree).known($zz)", errno.EINVAL, "Couldn't find param", "zz"),
        (
            "keys=ptr:x=node:onmax($x).known($x)",
            errno.EINVAL,
            "Param type doesn't match synthetic event field type",
            "$x",
        ),
        (
            "keys=ptr:x=ptr:onmax($x).two($x)",
            errno.EINVAL,
            "Param count doesn't match synthetic event field count",
            "two",
        ),
        ("keys=ptr:clear", errno.ENOENT, "Can't clear or continue a nonexistent hist trigger", None),
    ],
)
def test_errors_of_histograms(fs: Tracefs, text: str, number: int, message: str, caret: str | None) -> None:
    fs.write("synthetic_events", "known char text[]\ntwo u64 a; u64 b")
    before = fs.read(KMALLOC + "trigger")
    assert fs.refused(KMALLOC + "trigger", "hist:" + text) == number
    what, command, at = fs.error()
    assert (what, command) == (f"hist:kmem:kmalloc: error: {message}", "hist:" + text)
    assert at.startswith("hist:" if caret is None else caret)
    assert fs.read(KMALLOC + "trigger") == before
    fs.write("synthetic_events", "\n")  # nothing is held
