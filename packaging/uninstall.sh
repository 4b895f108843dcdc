#!/bin/sh
# uninstall.sh [--prefix DIR] [--purge]
# Takes Trellis off this machine: Pods are ended, the pod network is removed from the kernel, programs and
# units are deleted. What is kept, so that a later install goes on as the same node: /etc/trellis (keys!),
# /var/lib/trellis, /etc/default/trellis and the two users that own them. --purge removes these, too.
#   --prefix DIR   where it was installed (default: where this script lies, else /usr/local)
set -eu

here=$(cd "$(dirname "$0")" && pwd -P)
case $here in
*/lib/trellis) prefix=${here%/lib/trellis} ;;
# The one of an unpacked release.
*) prefix=/usr/local ;;
esac
purge=
while [ $# -gt 0 ]; do
    case $1 in
    --prefix) prefix=${2:?--prefix needs a folder}; shift ;;
    --prefix=*) prefix=${1#*=} ;;
    --purge) purge=1 ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;;
    *) echo "uninstall.sh: $1 is no option; --help lists them" >&2; exit 2 ;;
    esac
    shift
done
[ "$(id -u)" = 0 ] || { echo "uninstall.sh: this is root's to do: sudo $0" >&2; exit 1; }

lib=$prefix/lib/trellis
case $prefix in
/usr) units=/usr/lib/systemd/system; config=/usr/lib ;;
*) units=/etc/systemd/system; config=/etc ;;
esac
services="trellis-node-agent.service trellis-control-plane.service trellis-netd.service"
removed=

gone() {
    if [ -e "$1" ] || [ -L "$1" ]; then
        rm -rf "$1"
        echo "  removed $1"
        removed=1
    fi
}

# Those of a lab live in a PID namespace of their own, and are the lab's to end.
shims_run() {
    for comm in /proc/[0-9]*/comm; do
        if [ "$(cat "$comm" 2>/dev/null)" = trellis-shim ] && [ "${comm%comm}ns/pid" -ef /proc/self/ns/pid ]; then
            return 0
        fi
    done
    return 1
}

if [ ! -x "$lib/trellis-node-agent" ] && shims_run; then
    echo "uninstall.sh: Pods run on this machine, and $lib has no trellis-node-agent to end them; nothing was changed." >&2
    echo "Say with --prefix where Trellis is installed (default here: $prefix), or end them with: trellis node reset" >&2
    exit 1
fi

if systemctl cat trellis.target >/dev/null 2>&1; then
    # shellcheck disable=SC2086
    systemctl stop trellis.target $services
    systemctl --quiet disable trellis.target 2>/dev/null || true
    echo "  stopped the services"
fi
if [ -x "$lib/trellis-node-agent" ]; then
    "$lib/trellis-node-agent" --cgroup-root /trellis.slice/trellis-pods.slice end-pods --remove
    "$lib/trellis-netd" withdraw
fi
# Memory of Pods whose agent is gone already; what an administrator has mounted stays.
awk '$5 ~ "^/run/trellis/" || ($5 ~ "^/var/lib/trellis/" && / - (tmpfs|overlay) /) { print $5 }' /proc/self/mountinfo |
    sort -r | while read -r place; do
    umount "$place"
    echo "  unmounted $place"
done
for file in trellis.target trellis-pods.service trellis-netd.service trellis-control-plane.service \
    trellis-node-agent.service trellis-pods.slice; do
    gone "$units/$file"
done
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    # Without its file it may be stopped, and nothing hangs on it any more.
    systemctl stop trellis-pods.service trellis-pods.slice trellis.slice 2>/dev/null || true
    systemctl reset-failed 'trellis*' 2>/dev/null || true
fi
gone "$prefix/bin/trellis"
gone "$prefix/bin/trellis-lab"
gone "$config/sysusers.d/trellis.conf"
gone "$config/tmpfiles.d/trellis.conf"
gone "$config/modules-load.d/trellis.conf"
gone /run/trellis
if [ -n "$purge" ]; then
    gone /etc/trellis
    gone /var/lib/trellis
    gone /etc/default/trellis
    gone /root/.config/trellis
    for user in trellis-netd trellis; do
        if getent passwd $user >/dev/null; then
            userdel $user 2>/dev/null
            echo "  removed user $user"
        fi
    done
    if getent group trellis >/dev/null; then groupdel trellis; fi
    if getent group trellis-netd >/dev/null; then groupdel trellis-netd; fi
elif [ -e /var/lib/trellis ] || [ -e /etc/trellis ]; then
    echo "kept: /etc/trellis and /var/lib/trellis (--purge removes them)"
fi
gone "$lib"
[ -n "$removed" ] || echo "Trellis was not installed below $prefix; nothing was changed"
