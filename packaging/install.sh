#!/bin/sh
# install.sh [--prefix DIR] [--check] [--force] [--role control-plane|worker]
# Installs Trellis on this machine, from the folder that it lies in (unpacked by `tar xf trellis-….tar.gz`).
# Says what it changes and what was right already; running it again, or a newer one, is an update: Pods
# run on, daemons that changed are restarted.
#   --prefix DIR   programs go to DIR/bin and DIR/lib/trellis (default /usr/local)
#   --check        look only: can this machine carry a node?
#   --force        go on although a check failed
#   --role ROLE    what is to run here (default: both): only its ports are looked at
set -eu

prefix=/usr/local
check_only=
force=
roles=
here=$(cd "$(dirname "$0")" && pwd)

while [ $# -gt 0 ]; do
    case $1 in
    --prefix) prefix=${2:?--prefix needs a folder}; shift ;;
    --prefix=*) prefix=${1#*=} ;;
    --role) roles="$roles --role ${2:?--role needs control-plane or worker}"; shift ;;
    --role=*) roles="$roles --role ${1#*=}" ;;
    --check) check_only=1 ;;
    --force) force=1 ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;;
    *) echo "install.sh: $1 is no option; --help lists them" >&2; exit 2 ;;
    esac
    shift
done

fail() { echo "install.sh: $*" >&2; exit 1; }

lib=$prefix/lib/trellis
# Where systemd looks for what is not the distribution's.
case $prefix in
/usr) units=/usr/lib/systemd/system; config=/usr/lib ;;
*) units=/etc/systemd/system; config=/etc ;;
esac
daemons="trellis-control-plane trellis-netd trellis-node-agent trellis-shim"
commands="trellis trellis-lab"
unit_files="trellis.target trellis-pods.slice trellis-pods.service trellis-netd.service
trellis-control-plane.service trellis-node-agent.service"
changed=

for program in $daemons trellis; do
    [ -x "$here/bin/$program" ] || fail "$here/bin/$program is missing: run this from an unpacked release"
done
"$here/bin/trellis" version --client >/dev/null 2>&1 ||
    fail "$here/bin/trellis does not run here ($(uname -m)): this release is for $(cat "$here/ARCH" 2>/dev/null || echo another machine); $("$here/bin/trellis" version --client 2>&1 | head -1)"

for program in $daemons; do
    missing=$(ldd "$here/bin/$program" 2>&1 | grep 'not found' || true)
    [ -z "$missing" ] || fail "$program lacks $(echo $missing): this machine needs glibc, libgcc and libseccomp (Debian: libgcc-s1, libseccomp2)"
done

echo "Looking at this machine:"
# shellcheck disable=SC2086
if ! "$here/bin/trellis" node check $roles; then
    [ -n "$force" ] || fail "nothing was changed (--force goes on nevertheless)"
fi
[ -z "$check_only" ] || exit 0
[ "$(id -u)" = 0 ] || fail "installing is root's to do: sudo $0"
[ -d /run/systemd/system ] || fail "systemd does not run this machine: start the daemons by other means, see docs/install.md"

# put SOURCE TARGET MODE: copies if different, by a rename, so that a running program is not written to.
put() {
    if [ -e "$2" ] && cmp -s "$1" "$2"; then
        return 0
    fi
    if [ -e "$2" ]; then echo "  updated $2"; else echo "  new     $2"; fi
    mkdir -p "$(dirname "$2")"
    cp "$1" "$2.new"
    chown 0:0 "$2.new"
    chmod "$3" "$2.new"
    mv -f "$2.new" "$2"
    changed="$changed $(basename "$2")"
}

echo "Installing $("$here/bin/trellis" version --client | head -1) below $prefix:"
for program in $commands; do
    [ ! -e "$here/bin/$program" ] || put "$here/bin/$program" "$prefix/bin/$program" 755
done
for program in $daemons; do put "$here/bin/$program" "$lib/$program" 755; done
put "$here/uninstall.sh" "$lib/uninstall.sh" 755
for file in $unit_files; do
    sed "s|@LIBDIR@|$lib|g" "$here/systemd/$file" >"$here/.unit"
    put "$here/.unit" "$units/$file" 644
done
rm -f "$here/.unit"
put "$here/systemd/sysusers.conf" "$config/sysusers.d/trellis.conf" 644
put "$here/systemd/tmpfiles.conf" "$config/tmpfiles.d/trellis.conf" 644
put "$here/systemd/modules.conf" "$config/modules-load.d/trellis.conf" 644
[ -n "$changed" ] || echo "  everything was there already"

for user in trellis trellis-netd; do
    getent passwd "$user" >/dev/null || echo "  new     user $user"
done
systemd-sysusers "$config/sysusers.d/trellis.conf"
systemd-tmpfiles --create "$config/tmpfiles.d/trellis.conf"
for module in $(cat "$here/systemd/modules.conf"); do
    # Built into the kernel is as good.
    modprobe -q "$module" || true
done
systemctl daemon-reload
systemctl is-enabled --quiet trellis.target 2>/dev/null || {
    systemctl --quiet enable trellis.target
    echo "  enabled trellis.target at boot"
}
# systemd knows these as symbolic links only of units that exist.
for service in trellis-netd trellis-control-plane trellis-node-agent; do
    systemctl is-active --quiet $service || continue
    case " $changed " in
    *" $service "* | *" $service.service "* | *" trellis-shim "*)
        systemctl restart $service || fail "$service does not start any more: journalctl -u $service; Pods run on, the other daemons were left as they are"
        echo "  restarted $service"
        ;;
    esac
done

if [ -e /etc/trellis/node.json ]; then
    # After an uninstall that kept the data, nothing runs yet.
    systemctl start --no-block trellis.target
    echo "This machine is a node already: its Pods run on."
else
    cat <<END
Installed. On the first machine:
  trellis cluster init --advertise-address ADDRESS
On each other one, with a token of \`trellis cluster token create\`:
  trellis cluster join --token TOKEN --server ADDRESS-OF-A-MEMBER
END
fi
