# The container images that an OS version ships, as containerd keeps them: containerd itself imports and
# unpacks an archive here, once, instead of at every start of a machine. Called, with mounts of its own, with
# the base, the directory with our files, the archive, and the tree to make.
set -eu
base=$1 ours=$2 archive=$3 tree=$4
export LC_ALL=C
umask 022

# Nothing is written to the base, and what the file system of this machine can do does not matter.
work=$tree.work
mkdir "$work"
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" "$work/root"
mount -t proc proc "$work/root/proc"
cp -a "$ours/etc/containerd" "$ours/etc/cni" "$work/root/etc/"
cp "$archive" "$work/root/archive.tar"

# Pinned, so that the kubelet leaves them: nothing could pull them again.
chroot "$work/root" sh -eu -s <<'INSIDE'
containerd --log-level error &
daemon=$!
tries=0
until ctr version > /dev/null 2>&1; do
    kill -0 "$daemon"
    tries=$((tries + 1))
    if [ "$tries" -ge 300 ]; then echo "containerd did not answer in 30 s" >&2; exit 1; fi
    sleep 0.1
done
ctr --namespace k8s.io images import /archive.tar
images=$(ctr --namespace k8s.io images list --quiet | grep '^localhost/monok8s/')
for image in $images; do
    ctr --namespace k8s.io images label "$image" io.cri-containerd.pinned=pinned
done
kill "$daemon"
wait "$daemon"
INSIDE

# They are built here and run there: a C library that is too old for them says so now.
snapshots=var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots
for program in monok8s-agent ctl monok8s-operator; do
    set -- "$work/root/$snapshots"/*/fs/usr/bin/$program
    chroot "$work/root" "${1#"$work/root"}" --version
done

# /var is empty at every start, and filled from here (tmpfiles.d). What is large is not copied: it is never
# written, and stays in the slot.
state=usr/share/factory/var/lib/containerd large=usr/share/monok8s/containers
mkdir -p "$tree/$state" "$tree/$large"
for plugin in io.containerd.content.v1.content io.containerd.metadata.v1.bolt \
    io.containerd.snapshotter.v1.overlayfs; do
    cp -a "$work/root/var/lib/containerd/$plugin" "$tree/$state/"
done
# A layer that is unpacked is never read again: that it is there, and how long it is, is all that is looked at.
find "$tree/$state/io.containerd.content.v1.content/blobs" -type f -size +64k | while read -r layer; do
    length=$(stat -c %s "$layer")
    truncate -s 0 "$layer"
    truncate -s "$length" "$layer"
done
move() {
    mv "$tree/$state/$1" "$tree/$large/$2"
    ln -s "/$large/$2" "$tree/$state/$1"
}
move io.containerd.content.v1.content/blobs blobs
for snapshot in "$tree/$state"/io.containerd.snapshotter.v1.overlayfs/snapshots/*; do
    number=${snapshot##*/}
    move "io.containerd.snapshotter.v1.overlayfs/snapshots/$number" "snapshot-$number"
done
# The host's programs are those of the agent's image: the same files.
mkdir -p "$tree/usr/bin"
ln "$tree/$large"/snapshot-*/fs/usr/bin/monok8s-agent "$tree/$large"/snapshot-*/fs/usr/bin/ctl "$tree/usr/bin/"
umount -R "$work"
rmdir "$work"
