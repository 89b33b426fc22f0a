# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# containerd's own EROFS snapshotter, which reads the EROFS images of a volume by diff ID: the features of its
# column.

# shellcheck source-path=SCRIPTDIR source=containerd.sh
source "$parts/containerd.sh"

# Attaches a volume, and writes the settings that attach prints for the operator to containerd's
# configuration.
own_node_with() {
    start_containerd
    attached_or_refused "/volumes/$1" --runtime containerd --snapshotter erofs "${@:2}"
    settings
    restart_containerd
}

settings() {
    # The settings are the indented lines.
    local printed
    printed=$(grep '^  ' <<<"$output" | sed 's/^  //') || return 0
    printf 'version = 3\n%s\n' "$printed" >/etc/containerd/conf.d/50-operator.toml
}

own_from_volume() {
    own_node_with "$1"
    pull deep:1
    runs deep:1 /bin/sh -c "ls /deep | wc -l"
    expect "deep:1" "$printed" 117
    expect_fetched 0
}

feature_run_from_EROFS_images() { own_from_volume a-erofs; }
feature_run_from_EROFS_images_with_verity() { own_from_volume a-verity; }

feature_run_where_mkfs_erofs_is_not_installed() {
    rm -f /usr/{bin,sbin}/mkfs.erofs
    own_from_volume a-erofs
}

# Layers that are addressed by diff ID cannot depend on their parents: docs/reference/runtimes.md lists the
# differences.
feature_tree_of_merged_layers() {
    own_node_with a-erofs
    pull app:1
    checks app:1
    expect_fetched 0
    runs app:1 /bin/stat -c %a:%u:%g /data
    [[ $printed != 755:0:0 ]] || differs "a directory that a layer only implies has mode 755 and owner 0:0, not those of the layer below"
    expect "the implied directory /data" "$printed" 750:7:8
}

feature_run_with_no_registry() {
    stop_registry
    start_containerd
    attached_or_refused /volumes/a-erofs --runtime containerd --snapshotter erofs --preload
    settings
    restart_containerd
    attached /volumes/a-erofs --runtime containerd --snapshotter erofs --preload
    checks app:1
}

feature_newer_tag_that_shares_layers() {
    own_node_with a-erofs
    pull app:2
    checks app:2
    expect_fetched "$(top_layer app:2)"
}

feature_detach_while_in_use() {
    own_node_with a-erofs
    pull app:1
    start app:1
    detach /volumes/a-erofs
    expect "exit code of detach" "$code" 75
    still_runs
    stop_pod "$pod"
}

feature_detach_with_nothing_running() {
    own_node_with a-erofs
    pull app:1
    checks app:1
    try detach_with_consent /volumes/a-erofs
    succeeded detach
    restart_containerd
    everything_listed_starts
}

feature_detach_with_a_newer_tag_in_the_own_store() {
    own_node_with a-erofs
    pull app:2
    checks app:2
    try detach_with_consent /volumes/a-erofs
    succeeded detach
    restart_containerd
    everything_listed_starts
    pull app:2
    checks app:2
}

feature_upgrade_of_EROFS_images() {
    own_node_with a-erofs
    pull app:1
    start app:1
    attach_the_new_cache b-erofs --runtime containerd --snapshotter erofs
    restart_containerd
    pull app:2
    checks app:2
    detach_the_old_cache a-erofs stop_pod
    restart_containerd
    checks app:1
    checks app:2
    expect_fetched 0
}

feature_runtime_restarted() {
    own_node_with a-erofs
    pull app:1
    start app:1
    restart_containerd
    still_runs
    checks app:1
    expect_fetched 0
}

feature_reboot() {
    own_node_with a-erofs
    pull app:1
    checks app:1
    power_cut
    boot_units
    start_registry "$result/registry" true
    start_containerd
    checks app:1
    expect_fetched 0
}

feature_boot_without_the_volume() {
    own_node_with a-erofs
    pull app:1
    checks app:1
    pull other:1
    boot_without_the_volume start_containerd
}

feature_image_removal_and_garbage_collection() {
    own_node_with a-erofs
    pull app:1
    checks app:1
    try crictl rmi "$address/app:1"
    expect "exit code of rmi" "$code" 0
    try ctr content prune references
    try larder verify /volumes/a-erofs
    expect "exit code of verify" "$code" 0
    pull app:1
    checks app:1
    expect_fetched 0
}
