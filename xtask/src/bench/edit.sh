# Edits the ext4 image $1 in place, as a file system with a stable layout sees a patch release: one file in
# $2 gets other content of the same length, nothing moves.
set -eu
directory=$(mktemp -d)
trap 'umount "$directory" 2>/dev/null; rm -rf "$directory" "$directory.file"' EXIT
mount -o loop "$1" "$directory"
find "$directory" -xdev -type f -size +8k | LC_ALL=C sort | awk "NR % $2 == 0" | while IFS= read -r file; do
    # Pairs of bytes change places: other content that compresses as the old one did.
    dd if="$file" of="$directory.file" bs=1M conv=swab status=none
    dd if="$directory.file" of="$file" bs=1M conv=notrunc status=none
done
release=$directory/usr/lib/os-release
[ -e "$release" ] || release=$directory/etc/os-release
sed 's/v1\.35\.1/v1.35.2/' "$release" > "$directory.file"
cat "$directory.file" > "$release"
