# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# The results as Markdown.

cell_text() {
    local result=$memory/results/$1.$2 outcome
    [[ -f $result/outcome ]] || return 0
    outcome=$(<"$result/outcome")
    case $outcome in
        works) echo "works, $(bytes "$(<"$result/bytes")")" ;;
        fails) echo "**fails**" ;;
        *) echo "$outcome" ;;
    esac
}

print_table() {
    local runtime feature line rule text any ran=() features
    for runtime in "${runtimes[@]}"; do
        compgen -G "$memory/results/$runtime.*" >/dev/null || continue
        missing "$runtime" >/dev/null || ran+=("$runtime")
    done
    echo "larder $("$LARDER" --version | cut -d ' ' -f 2), kernel $(uname -r)."
    echo "Cells: result, and the compressed bytes of layers that were fetched from the registry."
    echo
    line='| feature |' rule='|---|'
    for runtime in "${ran[@]}"; do
        line+=" $(title "$runtime") |" rule+='---|'
    done
    printf '%s\n%s\n' "$line" "$rule"
    features=$(cells | cut -d / -f 2 | awk '!seen[$0]++')
    for feature in $features; do
        line="| $(words "$feature") |" any=''
        for runtime in "${ran[@]}"; do
            text=$(cell_text "$runtime" "$feature")
            line+=" $text |" any+=$text
        done
        [[ -z $any ]] || echo "$line"
    done
    list works "What was measured and noted" notes
    list differs "Documented limits" why
    list fails "Failures" why
    list 'not run' "What was not run" why
    grep --quiet --line-regexp --extended-regexp 'works|differs|fails' "$memory"/results/*/outcome || return 77
    ! grep --quiet --line-regexp fails "$memory"/results/*/outcome
}

# Prints the file "$3" of each cell with the result "$1" under a heading, if there are any.
list() {
    local result runtime heading="$2" text last=''
    for result in "$memory"/results/*; do
        [[ $(<"$result/outcome") == "$1" && -s $result/$3 ]] || continue
        runtime=$(basename "$result")
        text=$(paste --serial --delimiters ';' "$result/$3" | sed 's/;/; /g')
        if missing "${runtime%%.*}" >/dev/null; then
            # Print one line, not one for each feature.
            [[ $last != "${runtime%%.*}" ]] || continue
            last=${runtime%%.*} runtime=$last.everything
        fi
        [[ -z $heading ]] || printf '\n%s:\n\n' "$heading"
        heading=''
        echo "- $(title "${runtime%%.*}"), $(words "${runtime#*.}"): $text"
    done
}
