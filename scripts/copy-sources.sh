#!/usr/bin/env bash
# Copies the working tree, without ignored files, into a new or empty directory.
#
# usage: scripts/copy-sources.sh DIRECTORY
set -euo pipefail
to=$(realpath --canonicalize-missing "${1:?usage: scripts/copy-sources.sh DIRECTORY}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Git also lists deleted tracked files. Without git, as in an unpacked archive, only `target` is left out.
list() {
    if git ls-files --error-unmatch Cargo.toml >/dev/null 2>&1; then
        git ls-files -z --cached --others --exclude-standard
    else
        find . -path ./target -prune -o ! -type d -print0
    fi
}

mkdir -p "$to"
list | while IFS= read -r -d '' file; do
    [[ ! -e $file && ! -L $file ]] || printf '%s\0' "$file"
done | tar --create --null --no-recursion --files-from - | tar --extract --directory "$to"
