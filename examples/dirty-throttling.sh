#!/bin/sh
# A writer that is faster than its disk: pages become dirty, the flusher writes in the background, and from the middle
# of both thresholds on the writer has to wait, as long as the disk needs. fsync waits for the rest.
set -eu
. "$(dirname "$0")/machine.sh"
machine --machine default

# What is dirty and under write-back, in MiB, the thresholds, and how fast the disk is taken to be.
look() {
    awk '/^(nr_dirty|nr_writeback|nr_dirty_threshold|nr_dirty_background_threshold) / {
        printf "%-30s %5d MiB\n", $1, $2 / 256 }' "$M/proc/vmstat"
    grep -E '^(BdiDirtyThresh|BdiWritten|BdiWriteBandwidth|b_dirty|state):' "$M/sys/kernel/debug/bdi/1:0/stats"
    printf 'io %s\n' "$(tail -n 1 "$M/proc/pressure/io")"
}

title 'a disk that writes 50 MiB/s; in the background from 16 MiB on, at most 64 MiB dirty'
ctl 'disk_speed ram0 write_bandwidth=50M'
echo $((16 << 20)) >"$M/proc/sys/vm/dirty_background_bytes"
echo $((64 << 20)) >"$M/proc/sys/vm/dirty_bytes"
ctl 'create /mnt/log' >/dev/null

title '32 MiB: as fast as memory, the flusher begins'
ctl 'write_file /mnt/log n=32M'
look

title '200 MiB: the writer is made to wait until it is as fast as the disk (ns= is the time that the command took)'
ctl 'write_file /mnt/log n=200M'
look

title 'fsync waits for what is left; the disk breaks meanwhile, which is told once'
ctl 'write_file /mnt/log n=16M' >/dev/null
ctl 'disk_error ram0 write' >/dev/null
ctl 'fsync /mnt/log' 2>&1 || true
ctl 'disk_error ram0 off' >/dev/null
ctl 'fsync /mnt/log'
kmemd run --at "$M" -- dmesg | grep -E 'I/O error|EXT2-fs' | tail -n 3
grep -E ' ram0 ' "$M/proc/diskstats"

title 'nothing is dirty after half a minute: old pages are written by themselves'
ctl 'write_file /mnt/log n=8M' >/dev/null
ctl 'sleep 40' >/dev/null
look
