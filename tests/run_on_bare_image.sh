#!/usr/bin/env bash
# Follows the tutorials on a bare Debian: an image made now, with Python and nothing else, in
# namespaces of its own. Needs root, debootstrap and util-linux.
#
#     tests/run_on_bare_image.sh WHEEL FOLDER [SECONDS]
#
# FOLDER is where the image comes to lie (4 GB); SECONDS is the most from `artel runs` to the first
# contribution. How pip finds its registry is taken from this machine: PIP_* and pip's files, and the
# folders in BINDS, separated by spaces, are visible inside.
set -euo pipefail
wheel=$(realpath "$1") folder=$(realpath -m "$2") within=${3:-120}
here=$(realpath "$(dirname "$0")/..")
image=$folder/image
[ -e "$image/usr/bin/python3" ] || debootstrap --variant=minbase --include=ca-certificates,libgomp1,python3-venv \
    "${SUITE:-bookworm}" "$image" ${MIRROR:+"$MIRROR"}
rm -rf "$image/artel" && mkdir -p "$image/artel/tests" "$image/artel/docs"
cp "$here/tests/run_tutorial.py" "$image/artel/tests/"
cp -r "$here/docs/tutorials" "$image/artel/docs/"
cp "$wheel" "$image/artel/"
cp --dereference /etc/resolv.conf "$image/etc/"
for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf"; do
    [ ! -e "$file" ] || install -D -m 644 "$file" "$image/$file"
done
for bind in ${BINDS:-}; do mkdir -p "$image/$bind"; done
export image within wheel
exec unshare --mount --pid --fork --kill-child bash -euc '
    mount -t proc proc "$image/proc" && mount --rbind /dev "$image/dev" && mount -t tmpfs tmp "$image/tmp"
    for bind in ${BINDS:-}; do mount --bind "$bind" "$image/$bind"; done
    exec chroot "$image" python3 /artel/tests/run_tutorial.py "/artel/$(basename "$wheel")" /artel/newcomer --within "$within"
'
