# Second stage, as process 1 on the overlay: what an init system would have set up, then the command, then the end.
bb=/.mh-vm/busybox
attach() {
    $bb mkdir -p "$3"
    $bb mount -t "$1" -o "$2" "$1" "$3"
}
attach tmpfs mode=755 /run
attach devpts gid=5,mode=620,ptmxmode=666 /dev/pts
attach tmpfs mode=1777 /dev/shm
attach bpf mode=700 /sys/fs/bpf
attach cgroup2 nsdelegate /sys/fs/cgroup
attach tracefs mode=755 /sys/kernel/tracing
attach debugfs mode=700 /sys/kernel/debug
attach securityfs rw /sys/kernel/security
[ -e /dev/fd ] || $bb ln -s /proc/self/fd /dev/fd
for stream in stdin:0 stdout:1 stderr:2; do
    [ -e "/dev/${stream%:*}" ] || $bb ln -s "/proc/self/fd/${stream#*:}" "/dev/${stream%:*}"
done
$bb mkdir -p /dev/net /run/lock /run/netns
[ -e /dev/net/tun ] || $bb mknod -m 666 /dev/net/tun c 10 200
$bb chmod 1777 /tmp
$bb ip link set lo up
$bb hostname vm
# The kernel itself calls modprobe for what it lacks.
if [ ! -x /sbin/modprobe ]; then
    for applet in modprobe insmod rmmod lsmod modinfo; do
        $bb ln -sf $bb /sbin/$applet
    done
fi
# By the machine's own shell: busybox's would take its own ip, ls and so on before the machine's.
$bb setsid /bin/sh /.mh-vm/run/command < /dev/null >> /.mh-vm/run/stdout 2>> /.mh-vm/run/stderr
echo $? > /.mh-vm/run/status
$bb poweroff -f
