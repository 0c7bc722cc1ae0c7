# The part of a node image that does not change with its version: Debian with a kernel, systemd and
# containerd, cut down to what a node runs. Called with the directory to make and the one with our files.
set -eu
root=$1 ours=$2
export LC_ALL=C
umask 022

packages=usr-is-merged,systemd,systemd-sysv,dbus,udev,kmod,iproute2,nftables,containerd,runc
packages=$packages,containernetworking-plugins,initramfs-tools,busybox,zstd,linux-image-cloud-amd64
packages=$packages,ca-certificates,qemu-guest-agent

exclude() {
    for path in "$@"; do printf '%s\n' "path-exclude=$path"; done
}
excluded=$root.excluded
exclude '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/usr/share/info/*' \
    '/usr/share/bash-completion/*' '/usr/share/zoneinfo/*' '/usr/lib/udev/hwdb.d/*' '/lib/udev/hwdb.d/*' \
    > "$excluded"
# Every program counts that a slow machine starts on its way up. To find a partition by its identifier takes
# no udev in the initramfs, and of all that systemd would generate units for there is only the fstab.
for hook in dmsetup fsck keymap resume thermal udev; do exclude "/usr/share/initramfs-tools/hooks/$hook"; done \
    >> "$excluded"
exclude '/usr/share/initramfs-tools/scripts/*/udev' '/usr/share/initramfs-tools/scripts/*/keymap' \
    '/lib/systemd/system-generators/*' '/usr/lib/systemd/system-generators/*' >> "$excluded"
for generator in /lib/systemd/system-generators /usr/lib/systemd/system-generators; do
    printf '%s\n' "path-include=$generator/systemd-fstab-generator"
done >> "$excluded"

# Our initramfs-tools configuration has to be there when the kernel is installed.
mmdebstrap --mode=root --variant=minbase --format=directory \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt="$excluded" \
    --essential-hook="mkdir -p \"\$1/usr/share\" && cp -a '$ours/usr/share/initramfs-tools' \"\$1/usr/share/\"" \
    --include="$packages" bookworm "$root" http://deb.debian.org/debian

# What installed the packages is not needed to run them.
cd "$root"
rm -rf var/cache/* var/lib/apt var/lib/dpkg var/log/* usr/share/perl usr/share/perl5 usr/lib/apt \
    usr/lib/x86_64-linux-gnu/perl* usr/lib/x86_64-linux-gnu/libperl* usr/bin/perl* \
    usr/lib/x86_64-linux-gnu/gconv \
    usr/bin/containerd-shim usr/bin/containerd-shim-runc-v1 usr/share/keyrings usr/share/lintian \
    usr/share/common-licenses
for plugin in usr/lib/cni/*; do
    case ${plugin##*/} in host-local | loopback | ptp) ;; *) rm "$plugin" ;; esac
done
for rules in usr/lib/udev/rules.d/*; do
    case ${rules##*/} in
        50-udev-default.rules | 60-block.rules | 60-persistent-storage.rules | 60-qemu-guest-agent.rules) ;;
        80-drivers.rules | 80-net-setup-link.rules | 99-systemd.rules) ;;
        *) rm "$rules" ;;
    esac
done
# Of the drivers, those of the machines that QEMU makes.
cd usr/lib/modules/*/kernel
rm -rf sound fs/btrfs fs/xfs fs/nfs fs/nfsd fs/cifs fs/smb fs/ceph fs/ocfs2 fs/gfs2 fs/f2fs fs/ubifs fs/jfs \
    fs/reiserfs fs/udf fs/lockd fs/dlm fs/fscache fs/cachefiles drivers/infiniband drivers/scsi drivers/md \
    drivers/hid drivers/comedi drivers/target drivers/nvme drivers/ata drivers/input drivers/gpu \
    drivers/media drivers/iio drivers/usb drivers/tty drivers/net/*/ drivers/platform drivers/misc drivers/hv \
    drivers/xen drivers/vfio drivers/vhost drivers/nvdimm drivers/thermal drivers/cpufreq drivers/block/drbd \
    arch/x86/kvm arch/x86/events net/sunrpc net/ceph net/openvswitch net/sctp net/tipc net/smc net/rds net/dccp \
    net/l2tp net/sched net/netfilter/ipset net/netfilter/ipvs fs/orangefs
cd "$root"
for release in usr/lib/modules/*; do chroot . depmod "${release##*/}"; done
mkdir -p boot/grub
mv boot/vmlinuz-* boot/vmlinuz
mv boot/initrd.img-* boot/initrd.img
rm -f boot/config-* boot/System.map-* vmlinuz* initrd.img* etc/resolv.conf etc/hostname
ln -s /run/resolv.conf etc/resolv.conf
