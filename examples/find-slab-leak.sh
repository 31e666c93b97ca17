#!/bin/sh
# A driver loses objects. Which cache grows, who allocated the objects, and how much is gone?
set -eu
. "$(dirname "$0")/machine.sh"
machine --machine default --cmdline kmemleak=on

caches() { awk 'NR > 2 { print $1, $2 }' "$M/proc/slabinfo" | sort; }
before=$(mktemp)
caches >"$before"

# The driver opens 600 connections and closes half of them; of the others it keeps no pointer.
ctl 'connections = kmalloc 192 n=600 by=leaky_open+0x4c[leaky_drv]' >"$before.reply"
ctl 'kfree connections every=2' >>"$before.reply"
ctl 'forget connections' >>"$before.reply"

title 'caches with more objects than before'
caches | join "$before" - | awk '$3 > $2 { printf "%-24s %6d -> %6d\n", $1, $2, $3 }'

title 'kmemleak, once the objects are old enough to be suspected'
ctl 'sleep 10s' >>"$before.reply"
echo scan >"$M/sys/kernel/debug/kmemleak"
echo scan >"$M/sys/kernel/debug/kmemleak"
grep -c '^unreferenced object' "$M/sys/kernel/debug/kmemleak" | sed 's/$/ unreferenced objects; the first of them:/'
awk '/^unreferenced object/ { seen++ } seen == 1' "$M/sys/kernel/debug/kmemleak"

title 'who allocated them'
grep -o '[a-z_]*+0x[0-9a-f/x]* \[leaky_drv\]' "$M/sys/kernel/debug/kmemleak" | sort | uniq -c
rm -f "$before" "$before.reply"
