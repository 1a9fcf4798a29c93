#!/bin/sh
# usage, in namespaces of its own (mount, pid): enter.sh ROOT SHARED COMMAND... : a root directory with a small /dev,
# without /dev/kvm, and the folder SHARED at /shared; what runs in it ends with this
set -eu
root=$1 shared=$2
shift 2
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys" 2>/dev/null || mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null:3 zero:5 full:7 random:8 urandom:9; do
  mknod -m 666 "$root/dev/${node%:*}" c 1 "${node#*:}"
done
mknod -m 666 "$root/dev/tty" c 5 0
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
mknod -m 666 "$root/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mkdir -p "$root/shared"
mount --bind "$shared" "$root/shared"
echo "127.0.0.1 localhost $(hostname)" >"$root/etc/hosts"
exec chroot "$root" "$@"
