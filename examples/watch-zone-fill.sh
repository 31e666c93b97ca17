#!/bin/sh
# A zone fills up: free pages fall to the low watermark (kswapd wakes), to min, and then the allocation fails.
set -eu
. "$(dirname "$0")/machine.sh"
machine --machine two-node

# A number of each zone of node 1 that has memory: `zones free`, `zones low`, `zones name`.
zones() {
    awk -v wanted="$1" '
        /^Node/ { node = $2 + 0; values["name"] = $4 }
        $1 == "pages" && $2 == "free" { values["free"] = $3 }
        $1 == "min" || $1 == "low" { values[$1] = $2 }
        $1 == "managed" && node == 1 && $2 > 0 { printf "%10s", values[wanted] }' "$M/proc/zoneinfo"
}

title 'free pages of node 1, as 128 MiB at a time are taken from it'
printf '%-10s%s\n' zone "$(zones name)" low "$(zones low)" min "$(zones min)"
taken=0
while :; do
    printf '%4d MiB  %s\n' "$taken" "$(zones free)"
    ctl "fill$taken = alloc_pages order=0 gfp=GFP_KERNEL|__GFP_THISNODE|__GFP_NORETRY n=32768 node=1" >/dev/null 2>&1 || break
    taken=$((taken + 128))
done
printf '%-10s%s\n' full "$(zones free)"

title 'what the kernel says'
kmemd run --at "$M" -- dmesg | grep -m 1 'page allocation failure' 

title 'where allocations went'
cat "$M/sys/devices/system/node/node1/numastat"
