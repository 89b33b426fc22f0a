# shellcheck shell=bash
# Names and sizes in a readable form.

# "feature_run_from_a_directory" is "run from a directory".
words() { echo "${1//_/ }"; }

# 66060288 is "63.0 MiB".
bytes() {
    if (($1 < 10240)); then
        echo "$1 B"
    else
        numfmt --to=iec-i --suffix=B --format='%.1f' "$1" | sed 's/\([0-9.]\)\([KMG]\)/\1 \2/'
    fi
}
