# Sourced by the examples. `machine OPTION...` boots a machine of the script's own and mounts it at $M until the
# script ends; with MACHINE_AT set, the machine that is mounted there is used. `ctl COMMAND` gives it a command.

machine() {
    if [ -n "${MACHINE_AT:-}" ]; then
        M=$MACHINE_AT
        return
    fi
    M=$(mktemp -d)
    kmemd mount --clock manual "$@" "$M" &
    daemon=$!
    trap 'kmemd umount "$M"; wait "$daemon"; rmdir "$M"' EXIT
    trap 'exit 130' INT TERM
    until [ -e "$M/kmemd/ctl" ]; do
        kill -0 "$daemon" || exit 1
        sleep 0.05
    done
}

ctl() {
    kmemd ctl --at "$M" "$@"
}

# Say what comes next.
title() {
    printf '\n== %s\n' "$*"
}
