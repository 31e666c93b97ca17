#!/bin/sh
# `make demo`: one machine and what breaks or moves in it, each with the files that show it: a leak, fragmentation, a
# process that is swapped out and in, a fork with copy on write; then every count, proved.
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

title 'swap'
MACHINE_AT=$M sh "$here/swap-out.sh"

title 'processes: copy on write'
MACHINE_AT=$M sh "$here/copy-on-write.sh"

title 'every cached number, recomputed from the truth'
cat "$M/kmemd/check"
