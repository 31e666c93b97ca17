#!/bin/sh
# A process loses its pages to the swap device and gets them back when it uses them: the swap cache, major faults, who
# counts what.
set -eu
. "$(dirname "$0")/machine.sh"
machine --machine default

look() {
    grep -E '^(VmRSS|VmSwap):' "$M/proc/$pid/status"
    grep -E '^Swap(Cached|Free):' "$M/proc/meminfo"
    grep -E '^(pswpin|pswpout|pgmajfault) ' "$M/proc/vmstat"
}

title 'a process with 64 MiB that it has written to'
pid=$(ctl 'sleeper = spawn sleeper' | sed 's/^pid=\([0-9]*\).*/\1/')
ctl 'idle = mmap sleeper 64M' >/dev/null
ctl 'access sleeper idle 64M w'
look

title 'MADV_PAGEOUT: all of it is written to the device; until they are reclaimed the pages stay in the swap cache'
ctl 'madvise sleeper idle 64M MADV_PAGEOUT' >/dev/null
cat "$M/proc/swaps"
look

title 'it reads them: minor faults, for they are in the swap cache. Paged out again, clean pages go without being written'
ctl 'access sleeper idle 64M r'
ctl 'madvise sleeper idle 64M MADV_PAGEOUT' >/dev/null
look

title 'it reads a quarter: a major fault reads a cluster of slots, and the faults behind it find their pages there'
ctl 'access sleeper idle 16M r'
look
grep -E '^swap_' "$M/kmemd/translation"

title 'what of it is in swap, mapping by mapping'
awk '/^[0-9a-f]+-/ { area = $0 } $1 == "Swap:" && $2 > 0 { print area; print }' "$M/proc/$pid/smaps"
