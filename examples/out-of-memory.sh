#!/bin/sh
# Memory runs out: whom the OOM killer chooses, what it says in the log, and how a process is protected from it.
set -eu
. "$(dirname "$0")/machine.sh"
machine --machine default

# `start NAME SIZE`: a process that has written so much; its pid is in $pid.
start() {
    pid=$(ctl "$1 = spawn $1" | sed 's/^pid=\([0-9]*\).*/\1/')
    ctl "memory.$1 = mmap $1 $2" >/dev/null
    ctl "access $1 memory.$1 $2 w" >/dev/null
}
scores() {
    for name in web batch database; do
        for status in "$M"/proc/[0-9]*/status; do
            grep -qx "Name:	$name" "$status" || continue
            folder=${status%/status}
            printf '%-9s pid %-4s %9s  oom_score_adj %5s  oom_score %4s\n' "$name" "${folder##*/}" \
                "$(awk '/^VmRSS/ { print $2 $3 }' "$status")" "$(cat "$folder/oom_score_adj")" "$(cat "$folder/oom_score")"
        done
    done
}

title 'no swap; three processes; the largest is a database, and protected'
ctl "swapoff $(awk 'NR == 2 { print $1 }' "$M/proc/swaps")" >/dev/null
start web 200M
start batch 600M
start database 800M
echo -900 >"$M/proc/$pid/oom_score_adj"
scores
grep MemAvailable "$M/proc/meminfo"

title 'the web server wants 600 MiB more, which are not there'
ctl 'more = mmap web 600M' >/dev/null
ctl 'access web more 600M w'
scores
grep '^oom_kill ' "$M/proc/vmstat"

title 'the log'
kmemd run --at "$M" -- dmesg | grep -E 'oom-killer:|\[ *pid *\]|\[ *[0-9]+\] +0 |oom-kill:|Out of memory:|oom_reaper'
