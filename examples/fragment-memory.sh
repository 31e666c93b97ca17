#!/bin/sh
# Half of the memory is free, and yet no large block can be had: external fragmentation, and what shows it.
set -eu
. "$(dirname "$0")/machine.sh"
machine --machine default

field() { awk -v name="$1:" '$1 == name { print $2 }' "$M/proc/meminfo"; }

title 'before: free blocks per order, and what an order-9 request could not use'
cat "$M/proc/buddyinfo"
cat "$M/sys/kernel/debug/extfrag/unusable_index"

# Nine tenths of what is free, page by page; then every second page back.
pages=$(($(field MemFree) / 4 * 9 / 10))
ctl "fill = alloc_pages order=0 gfp=GFP_HIGHUSER_MOVABLE n=$pages"
ctl 'free_pages fill every=2'

title 'after: as much is free, in single pages'
cat "$M/proc/buddyinfo"
cat "$M/sys/kernel/debug/extfrag/unusable_index"
echo "MemFree: $(field MemFree) kB"

title 'how many 2 MiB blocks can still be had'
ctl 'huge = alloc_pages order=9 gfp=GFP_KERNEL|__GFP_NORETRY|__GFP_NOWARN n=1000' 2>/dev/null || true
got=$(sed -n 's/^huge .* n=//p' "$M/kmemd/handles")
echo "${got:-0} blocks; $(($(field MemFree) / 2048)) more would fit in what is free"

title 'the indices say: fragmentation (towards 1), not lack of memory (towards 0)'
cat "$M/sys/kernel/debug/extfrag/extfrag_index"
