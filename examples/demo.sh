#!/bin/sh
# `make demo`: a machine with one gibibyte of swap, a leak, fragmentation, and the state of swap; then the end.
set -eu
here=$(dirname "$0")
. "$here/machine.sh"
machine --machine default --seed 1 --cmdline 'page_owner=on kmemleak=on'

title 'a booted machine'
cat "$M/kmemd/machine"
head -n 3 "$M/proc/meminfo"
cat "$M/proc/buddyinfo"

title 'a leak'
MACHINE_AT=$M sh "$here/find-slab-leak.sh"

title 'fragmentation'
MACHINE_AT=$M sh "$here/fragment-memory.sh"

title 'who holds the pages (page_owner)'
awk '/^Page allocated via order 9/ { shown = 1 } shown { print } shown && /^$/ { exit }' "$M/sys/kernel/debug/page_owner"

title 'swap: the device is on, and nothing has been swapped out'
cat "$M/proc/swaps"
grep -E '^(SwapTotal|SwapFree|SwapCached):' "$M/proc/meminfo"
grep -E '^pswp(in|out) ' "$M/proc/vmstat"

title 'every cached number, recomputed from the truth'
cat "$M/kmemd/check"
