# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# One cell of the table: a simulated node, a registry, and a function that fails if the feature fails.

run_cell() {
    local runtime=$1 feature=$2
    result=$3
    # shellcheck source-path=SCRIPTDIR source=text.sh
    source "$parts/text.sh"
    # shellcheck source-path=SCRIPTDIR source=runtimes.sh
    source "$parts/runtimes.sh"
    # shellcheck source-path=SCRIPTDIR source=volumes.sh
    source "$parts/volumes.sh"
    # shellcheck source-path=SCRIPTDIR source=node.sh
    source "$parts/node.sh"
    # shellcheck source-path=SCRIPTDIR source=cri.sh
    source "$parts/cri.sh"
    # shellcheck source=/dev/null
    source "$parts/$(file_of "$runtime").sh"
    enter_node "$runtime"
    start_registry "$result/registry" true
    set -E
    trap 'failed "$LINENO" "$BASH_COMMAND"' ERR
    "feature_$feature"
    # A feature that has not written the fetched bytes takes the total of the registry.
    [[ -f $result/bytes ]] || fetched >"$result/bytes"
}

failed() {
    local code=$?
    [[ -s $result/why ]] || echo "\`${2//$'\n'/ }\` exits with $code" >"$result/why"
    echo "line $1: $2: $code"
    tail -n 20 "$result"/*.out 2>/dev/null || true
}

# Ends a cell as failed, with the reason.
fails() {
    trap - ERR
    echo "$*" >"$result/why"
    echo "$*"
    exit 1
}

# Ends a cell that this runtime or machine cannot run, with the reason.
not_run() {
    trap - ERR
    echo "$*" >"$result/why"
    exit 77
}

# Ends a cell that reaches a documented limit of this runtime, with the limit.
differs() {
    trap - ERR
    echo "$*" >"$result/why"
    exit 78
}

expect() {
    [[ $2 == "$3" ]] || fails "$1: \`${2:0:300}\`, expected \`$3\`"
}

# Adds a note to a cell that works, for readers of the table.
note() { echo "$*" >>"$result/notes"; }

# Runs a command and keeps its output in "$output" and its exit code in "$code".
output='' code=0
try() {
    code=0
    output=$("$@" 2>&1) || code=$?
    printf '$ %s\n%s\n=> %s\n' "$*" "$output" "$code"
}

# Does the same as "try", and notes the duration of a successful command.
timed() {
    local what=$1 began
    shift
    began=$(date +%s%N)
    try "$@"
    ((code != 0)) || note "$what: $((($(date +%s%N) - began) / 1000000)) ms"
}

# Fails unless the last command succeeded.
succeeded() {
    ((code == 0)) || fails "$1 exits with $code: $(why)"
}

# Prints the first line of the last output that contains an error, otherwise its last line. Shortens a long
# line in the middle.
why() {
    local line
    line=$(grep --max-count 1 'desc = ' <<<"$output" ||
        grep --ignore-case --max-count 1 --extended-regexp 'error|cannot|refus|failed' <<<"$output" ||
        tail -n 1 <<<"$output")
    line=${line##*desc = }
    if ((${#line} > 400)); then
        line="${line:0:180} ... ${line: -200}"
    fi
    echo "$line"
}

# Prints the compressed bytes of layers that the registry has served.
fetched() {
    awk 'FILENAME == ARGV[1] { layer[$1]; next }
        $6 == "\"GET" && ($9 == 200 || $9 == 206) && split($7, path, "/blobs/") == 2 && path[2] in layer { sum += $10 }
        END { print sum + 0 }' "$memory/layers" "$result/registry"
}

# Checks how many bytes of layers were fetched since the cell began.
expect_fetched() { expect "bytes of layers fetched" "$(fetched)" "$1"; }

# Prints the compressed size of the topmost layer of an image.
top_layer() {
    skopeo inspect --raw --tls-verify=false "docker://$address/$1" | jq '.layers[-1].size'
}

# Waits up to 30 s until a command succeeds.
until_ok() {
    local end=$((SECONDS + 30))
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= end)); then
            try "$@"
            ((code == 0)) || fails "\`$*\` fails for 30 s: $(why)"
            return
        fi
        sleep 0.1
    done
}
