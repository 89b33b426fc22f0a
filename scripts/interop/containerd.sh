# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# containerd with `larder snapshotter`: the features of its column. crictl acts as the kubelet.

socket=/run/containerd/containerd.sock
# Set when containerd is started.
containerd=''

# Writes containerd's configuration as an operator would, which imports Larder's file. The sandbox image is in
# the caches.
configure() {
    local version
    version=$(containerd --version | grep --only-matching --max-count 1 --extended-regexp 'v?[0-9]+\.[0-9]+\.[0-9]+')
    mkdir -p /etc/containerd/conf.d
    without_controllers runc
    if [[ ${version#v} == 1.* ]]; then
        cat >/etc/containerd/config.toml <<TOML
version = 2
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "$address/pause:1"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  BinaryName = "/usr/local/bin/runc-without-controllers"
TOML
    else
        cat >/etc/containerd/config.toml <<TOML
version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "/usr/local/bin/runc-without-controllers"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$address/pause:1"
TOML
    fi
    cri_at "$socket"
}

start_containerd() {
    [[ -f /etc/containerd/config.toml ]] || configure
    command containerd >>"$result/containerd.out" 2>&1 &
    containerd=$!
    until_ok crictl images
}

restart_containerd() {
    kill "$containerd"
    wait "$containerd" 2>/dev/null || true
    start_containerd
}

ctr() { command ctr --namespace k8s.io "$@"; }

# Creates a node with a volume: attached, and containerd restarted as attach advises.
node_with() {
    start_containerd
    attached "/volumes/$1" --runtime containerd "${@:2}"
    start_snapshotter
    restart_containerd
}

from_volume() {
    node_with "$1"
    pull app:1
    checks app:1
    expect_fetched 0
}

feature_run_from_a_directory() { from_volume a-directory; }
feature_run_from_a_disk() { from_volume a-disk; }
feature_run_from_EROFS_images() { from_volume a-erofs; }
feature_run_from_EROFS_images_with_verity() { from_volume a-verity; }

feature_tree_of_merged_layers() {
    node_with a-directory
    pull app:1
    runs app:1 /bin/stat -c %a:%u:%g /data
    expect "the implied directory /data" "$printed" 750:7:8
}

feature_hard_link_to_a_lower_layer_and_118_layers() {
    node_with a-directory
    pull link:1
    runs link:1 /bin/sh /check
    expect "link:1" "$printed" "2"$'\n'"below"
    pull deep:1
    runs deep:1 /bin/sh -c "ls /deep | wc -l"
    expect "deep:1" "$printed" 117
    expect_fetched 0
}

# Registers the images without a pull.
preload() {
    node_with "$1"
    attached "/volumes/$1" --runtime containerd --preload
}

feature_run_with_no_registry() {
    stop_registry
    preload a-directory
    checks app:1
}

# The first attach of a node happens before containerd has read Larder's file. Larder can refuse if its
# message has a solution.
feature_first_attach_with_preload() {
    start_containerd
    start_snapshotter
    attach /volumes/a-directory --runtime containerd --preload
    if ((code != 0)); then
        note "exits with $code: $(why)"
        [[ ! -e $icv ]] || fails "exits with $code, and the volume is attached: $(why)"
        [[ $output != *"attach without --preload"* ]] || attached /volumes/a-directory --runtime containerd
        [[ -f /etc/containerd/conf.d/99-larder.toml ]] ||
            fails "Larder's file is missing after the steps of the message: $(why)"
        restart_containerd
        attached /volumes/a-directory --runtime containerd --preload
    fi
    stop_registry
    restart_containerd
    checks app:1
}

feature_newer_tag_that_shares_layers() {
    node_with a-directory
    pull app:2
    checks app:2
    expect_fetched "$(top_layer app:2)"
}

feature_detach_while_in_use() {
    node_with a-directory
    pull app:1
    start app:1
    detach /volumes/a-directory
    expect "exit code of detach" "$code" 75
    still_runs
    stop_pod "$pod"
}

# Every image that CRI lists must start, and so must new pods.
everything_listed_starts() {
    local image command
    for image in $(crictl images --output json | jq --raw-output '.images[].repoTags[]' | sort -u); do
        case $image in
            */app:*) command=(/bin/sh /check) ;;
            *) command=(/bin/true) ;;
        esac
        runs "${image#*/}" "${command[@]}"
    done
    pull app:1
    checks app:1
}

# A container that was created and does not run, as between two starts of a pod's container.
feature_detach_with_a_stopped_container() {
    node_with a-directory
    pull app:1
    start app:1
    try crictl stop --timeout 1 "$container"
    detach /volumes/a-directory --remove-images
    expect "exit code of detach" "$code" 75
    checks app:1
}

feature_detach_with_nothing_running() {
    node_with a-directory
    pull app:1
    checks app:1
    try detach_with_consent /volumes/a-directory
    succeeded detach
    restart_containerd
    everything_listed_starts
}

feature_detach_with_a_newer_tag_in_the_own_store() {
    node_with a-directory
    pull app:2
    checks app:2
    try detach_with_consent /volumes/a-directory
    succeeded detach
    restart_containerd
    everything_listed_starts
    pull app:2
    checks app:2
}

feature_detach_while_the_runtime_is_stopped() {
    node_with a-directory
    kill "$containerd"
    wait "$containerd" 2>/dev/null || true
    rm -rf /run/containerd
    detached /volumes/a-directory
    [[ ! -e $icv ]] || fails "$icv still exists"
}

# A pod runs from the old cache all the time, if possible.
upgrade() {
    node_with "$1"
    pull app:1
    start app:1
    attach_the_new_cache "$2" --runtime containerd
    pull app:2
    checks app:2
    detach_the_old_cache "$1" stop_pod
    checks app:1
    checks app:2
    restart_containerd
    checks app:1
    expect_fetched 0
}

feature_upgrade_of_directories() { upgrade a-directory b-directory; }
feature_upgrade_from_directories_to_EROFS_images() { upgrade a-directory b-erofs; }
feature_upgrade_of_EROFS_images() { upgrade a-erofs b-erofs; }

feature_snapshotter_killed_and_restarted() {
    node_with a-directory
    pull app:1
    start app:1
    kill_snapshotter
    still_runs
    start_snapshotter
    until_ok larder_answers
    checks app:1
    expect_fetched 0
}

larder_answers() { ctr snapshots --snapshotter larder ls; }

feature_runtime_restarted() {
    node_with a-directory
    pull app:1
    start app:1
    restart_containerd
    still_runs
    checks app:1
    expect_fetched 0
}

# The order at boot. With a socket unit the socket exists first; without one the snapshotter can be late.
feature_runtime_started_before_the_snapshotter() {
    node_with a-directory
    pull app:1
    kill_snapshotter
    kill "$containerd"
    wait "$containerd" 2>/dev/null || true
    rm -f /run/larder-snapshotter/snapshotter.sock
    ! socket_unit || start_snapshotter
    command containerd >>"$result/containerd.out" 2>&1 &
    containerd=$!
    sleep 2
    socket_unit || start_snapshotter
    until_ok crictl images
    sleep 2
    checks app:1
    expect_fetched 0
}

feature_reboot_with_no_registry() {
    preload a-disk
    checks app:1
    power_cut
    boot_units
    start_snapshotter
    start_containerd
    checks app:1
}

# Images of the volume cannot start, but others can. After a detach the missing images are pulled again.
boot_without_the_volume() {
    reboot_without_volumes
    "$@"
    detach "$icv" --remove-images
    succeeded "detach of the missing volume"
    restart_containerd
    everything_listed_starts
    pull other:1
    checks other:1 other
}

feature_boot_without_the_volume() {
    node_with a-directory
    pull app:1
    checks app:1
    pull other:1
    boot_without_the_volume start_both
}

start_both() {
    start_snapshotter
    start_containerd
}

feature_image_removal_and_garbage_collection() {
    node_with a-directory
    pull app:1
    checks app:1
    try crictl rmi "$address/app:1"
    expect "exit code of rmi" "$code" 0
    try ctr content prune references
    try larder verify /volumes/a-directory
    expect "exit code of verify" "$code" 0
    pull app:1
    checks app:1
    expect_fetched 0
}

mapped_from_volume() {
    [[ $(containerd --version) != *" 1."* ]] || not_run "CRI of containerd 1 has no user namespaces"
    pod_network || not_run "the CNI plugins ptp and host-local are not installed"
    node_with "$1"
    pull big:1
    in_a_user_namespace larder
}

feature_user_namespace() { mapped_from_volume a-directory; }
feature_user_namespace_from_EROFS_images() { mapped_from_volume a-erofs; }

# CRI uses one of the two, and `ctr` the other.
feature_volumes_of_two_snapshotters() {
    local second
    node_with a-directory
    attach /volumes/a-erofs --runtime containerd --snapshotter erofs
    second=$code
    ((second == 0)) || note "the second one is refused: $(why)"
    restart_containerd
    pull app:1
    checks app:1
    expect_fetched 0
    ((second == 0)) || return 0
    try ctr images pull --plain-http --snapshotter erofs "$address/deep:1"
    succeeded "pulling deep:1 for containerd's own EROFS snapshotter"
    try ctr run --rm --snapshotter erofs --runc-binary /usr/local/bin/runc-without-controllers "$address/deep:1" "erofs-$$"
    expect "deep:1" "$output" 117
    note "$(fetched) B of layers fetched by a pull for containerd's own EROFS snapshotter"
}
