#!/bin/sh
# A process forks. Both have the same pages, until one of them writes: what is shared, what is copied, and how it shows.
set -eu
. "$(dirname "$0")/machine.sh"
machine --machine default

# What smaps_rollup says of a process, in KiB.
row() {
    awk -v name="$1" '
        { sub(":", "", $1); value[$1] = $2 }
        END {
            printf "%-8s %8d %8d %15d %15d\n", name, value["Rss"], value["Pss"], value["Private_Dirty"], value["Shared_Dirty"]
        }' "$M/proc/$2/smaps_rollup"
}
table() {
    printf '%-8s %8s %8s %15s %15s\n' process Rss Pss Private_Dirty Shared_Dirty
    for name; do
        row "$name" "$(pid "$name")"
    done
    grep '^MemFree:' "$M/proc/meminfo"
}
# The process that a handle stands for.
pid() { sed -n "s/^$1 kind=task.* pid=\([0-9]*\).*/\1/p" "$M/kmemd/handles"; }
count() { awk -v name="$1" '$1 == name { print $2 }' "$M/kmemd/translation"; }

title 'a process with 64 MiB of its own, in small pages'
ctl 'parent = spawn parent' >/dev/null
ctl 'heap = mmap parent 64M' >/dev/null
ctl 'madvise parent heap 64M MADV_NOHUGEPAGE' >/dev/null
ctl 'access parent heap 64M w'
table parent

title 'fork: the child has all of it, and no page was copied'
ctl 'child = fork parent'
table parent child

title 'the child writes to a quarter: each first write is a fault that copies a page'
copies=$(count cow_faults)
ctl 'access child heap 16M w'
table parent child
echo "$(($(count cow_faults) - copies)) pages copied"

title 'the child ends: the parent writes again, and finds itself the only one'
ctl 'exit child' >/dev/null
copies=$(count cow_faults) reuses=$(count reuse_faults)
ctl 'access parent heap 64M w'
table parent
echo "$(($(count cow_faults) - copies)) pages copied, $(($(count reuse_faults) - reuses)) pages reused"
