#!/bin/busybox sh
# First stage, from the initramfs: the root is the machine's own, read-only, with a file system in memory laid over it.
# Whatever goes wrong here ends the VM without a status, and the console tells.
bb=/bin/busybox
give_up() {
    echo "boot: $* failed" > /dev/console
    $bb poweroff -f
}
$bb mount -t devtmpfs dev /dev
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
for module in /modules/*.ko; do
    $bb insmod "$module" || give_up "loading $module"
done

plan9=trans=virtio,version=9p2000.L,msize=512000
# Nobody changes the machine's files during a run, so the kernel may keep what it has read.
$bb mount -t 9p -o ro,cache=loose,$plan9 root /lower || give_up "mounting the machine's root"
$bb mount -t tmpfs -o mode=755,size=75% memory /memory || give_up "mounting memory"
$bb mkdir /memory/upper /memory/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work root /root || give_up overlay
$bb mkdir -p /root/.mh-vm/run /root/dev /root/proc /root/run /root/sys /root/tmp
$bb mount -t 9p -o cache=none,$plan9 run /root/.mh-vm/run || give_up "mounting the run's directory"
$bb cp $bb /root/.mh-vm/busybox

. /root/.mh-vm/run/settings
release=$($bb uname -r)
$bb mkdir -p "/root/lib/modules/$release"
$bb mount --bind "/lower$MODULES" "/root/lib/modules/$release" || give_up "binding the modules"
for directory in dev proc sys; do
    $bb mount --move /$directory /root/$directory
done
exec $bb switch_root /root /.mh-vm/busybox sh /.mh-vm/run/system
