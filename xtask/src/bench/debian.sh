# Two Debian root trees as two releases of an OS: OLD from bookworm as it was released, NEW the same with
# the security updates of the day and one package more. Called with the two directories; NEW.changes
# lists the packages that differ.
set -eu
old=$1 new=$2
mirror=http://deb.debian.org/debian
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

# What apt leaves behind is in no image.
clean() {
    rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/* "$1"/tmp/* "$1"/etc/resolv.conf
}

# The version that a node looks for in the slot.
state() {
    printf 'MONOK8S_VERSION="%s"\n' "$2" >> "$1/usr/lib/os-release"
}

packages() {
    chroot "$1" dpkg-query --show --showformat '${Package} ${Version}\n' | sort
}

rm -rf "$old.part" "$new.part"
debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,containerd,iptables,iproute2,kmod,linux-image-cloud-amd64,grub-pc-bin \
    bookworm "$old.part" "$mirror"
cp -a "$old.part" "$new.part"
clean "$old.part"
state "$old.part" v1.35.1

cat > "$new.part/etc/apt/sources.list" <<LIST
deb $mirror bookworm main
deb $mirror-security bookworm-security main
LIST
cp /etc/resolv.conf "$new.part/etc/resolv.conf"
mount -t proc proc "$new.part/proc"
chroot "$new.part" apt-get -q update
# A new kernel is another kind of release.
chroot "$new.part" apt-mark hold linux-image-cloud-amd64
chroot "$new.part" apt-get -q --yes upgrade
chroot "$new.part" apt-get -q --yes --no-install-recommends install ethtool
umount "$new.part/proc"
clean "$new.part"
state "$new.part" v1.35.4

packages "$old.part" > "$old.packages"
packages "$new.part" > "$new.packages"
comm -13 "$old.packages" "$new.packages" > "$new.changes"
mv "$old.part" "$old"
mv "$new.part" "$new"
