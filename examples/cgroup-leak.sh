#!/bin/sh
# A leak inside a control group: memory.high slows it down, memory.max ends it, and nobody outside is killed.
set -eu
. "$(dirname "$0")/machine.sh"
machine --machine default
G=$M/sys/fs/cgroup

# `start NAME GROUP SIZE`: a process in a group that maps so much; its pid is in $pid.
start() {
    pid=$(ctl "$1 = spawn $1" | sed 's/^pid=\([0-9]*\).*/\1/')
    echo "$pid" >"$G/$2/cgroup.procs"
    ctl "memory.$1 = mmap $1 $3" >/dev/null
    ctl "madvise $1 memory.$1 $3 MADV_NOHUGEPAGE" >/dev/null
}
look() {
    for name in memory.current memory.swap.current; do
        printf '%-20s %9s\n' "$name" "$(cat "$G/services/$name")"
    done
    grep -E '^(high|max|oom|oom_kill) ' "$G/services/memory.events"
    tail -n 1 "$G/services/memory.pressure"
}

title 'a group for services: at most 64 MiB, slowed down above 48 MiB, 8 MiB of swap'
echo +memory >"$G/cgroup.subtree_control"
mkdir "$G/services" "$G/system"
echo 64M >"$G/services/memory.max"
echo 48M >"$G/services/memory.high"
echo 8M >"$G/services/memory.swap.max"
start database system 200M
ctl 'access database memory.database 200M w' >/dev/null
start leaky services 200M
look

title '40 MiB are leaked: all is well'
ctl 'access leaky memory.leaky 40M w' >/dev/null
look

title '52 MiB: above memory.high it is reclaimed from and made to wait'
ctl 'access leaky memory.leaky+40M 12M w'
look

title '120 MiB: swap is full, memory.max is reached, and the group has its own OOM killer'
ctl 'access leaky memory.leaky 120M w' 2>&1 || true
look

title 'who is left, and what the log says'
cat "$G/system/cgroup.procs" | wc -l
grep '^oom_kill ' "$M/proc/vmstat"
kmemd run --at "$M" -- dmesg | grep -E 'oom-killer:|memory: usage|swap: usage|oom-kill:|Memory cgroup out of memory'
