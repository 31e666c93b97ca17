#!/bin/sh
# A machine that is too small for its work: pages go out and come back at once (refaults), kswapd gives way to direct
# reclaim, and PSI says how much time that costs. The same work is then done with less of it at a time.
set -eu
. "$(dirname "$0")/machine.sh"
file=$(mktemp)
cat >"$file" <<'END'
arch = "x86_64"
cpus = 2
[[node]]
memory = "80M"
[[swap]]
path = "/dev/vdb"
size = "128M"
END
machine --machine "$file"
rm "$file"

look() {
    awk '/^(MemFree|SwapFree|Active\(anon\)|Inactive\(anon\)|Cached):/ { printf "%-15s %7d kB\n", $1, $2 }' "$M/proc/meminfo"
    grep -E '^(pswpin|pswpout|pgscan_kswapd|pgscan_direct|workingset_refault_anon|pgmajfault) ' "$M/proc/vmstat"
    sed 's/^/memory: /' "$M/proc/pressure/memory"
}

title 'a process uses 36 MiB of a machine with 80 MiB: it fits'
ctl 'worker = spawn worker' >/dev/null
ctl 'data = mmap worker 64M' >/dev/null
ctl 'access worker data 36M w'
look

title '64 MiB, one page after the other: each round, LRU order throws out what comes next'
ctl 'access worker data 64M w'
ctl 'access worker data 64M w'
look

title 'some seconds of it: the averages of PSI'
for round in 1 2; do
    ctl 'access worker data 64M w' >/dev/null
    ctl 'sleep 2' >/dev/null
done
look

title 'the same number of accesses, but nearly all to a few pages: these stay'
ctl 'access worker data 64M w pattern=zipf:1.2 n=16384'
ctl 'sleep 60' >/dev/null
look
