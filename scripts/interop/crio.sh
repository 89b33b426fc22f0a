# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# CRI-O, which reads volumes as additional image stores: the features of its column. crictl acts as the kubelet.

socket=/run/crio/crio.sock
crio=''

configure() {
    local pinns
    pinns=$(command -v pinns || true)
    mkdir -p /etc/crio/crio.conf.d /run/crio
    pod_network || true
    # crun without cgroups: the cgroup of a cell has no controllers.
    printf '#!/bin/sh\nexec /usr/bin/crun --cgroup-manager=disabled "$@"\n' >/usr/local/bin/crun-without-cgroups
    chmod 755 /usr/local/bin/crun-without-cgroups
    cat >/etc/crio/crio.conf <<TOML
[crio.api]
  listen = "$socket"
[crio.image]
  pause_image = "$address/pause:1"
  pause_command = "/pause"
[crio.runtime]
  cgroup_manager = "cgroupfs"
  conmon_cgroup = "pod"
  default_runtime = "crun"
  apparmor_profile = "unconfined"
  pinns_path = "$pinns"
[crio.runtime.runtimes.crun]
  runtime_path = "/usr/local/bin/crun-without-cgroups"
  runtime_root = "/run/crun"
  monitor_path = "/usr/bin/conmon"
TOML
    cri_at "$socket"
}

start_crio() {
    [[ -f /etc/crio/crio.conf ]] || configure
    command crio --log-level info >>"$result/crio.out" 2>&1 &
    crio=$!
    until_ok crictl images
}

stop_crio() {
    kill "$crio"
    wait "$crio" 2>/dev/null || true
}

restart_crio() {
    stop_crio
    start_crio
}

node_with() {
    start_crio
    attached "/volumes/$1" --runtime crio "${@:2}"
    restart_crio
}

from_volume() {
    node_with "$1"
    checks app:1
    expect_fetched 0
}

feature_run_from_a_directory() { from_volume a-directory; }
feature_run_from_a_disk() { from_volume a-disk; }
feature_run_from_EROFS_images() { from_volume a-erofs; }
feature_run_from_EROFS_images_with_verity() { from_volume a-verity; }

feature_run_with_no_registry() {
    stop_registry
    node_with a-directory
    checks app:1
}

feature_tree_of_merged_layers() {
    node_with a-directory
    runs app:1 /bin/stat -c %a:%u:%g /data
    expect "the implied directory /data" "$printed" 750:7:8
}

feature_hard_link_to_a_lower_layer_and_118_layers() {
    node_with a-directory
    runs link:1 /bin/sh /check
    expect "link:1" "$printed" "2"$'\n'"below"
    runs deep:1 /bin/sh -c "ls /deep | wc -l"
    expect "deep:1" "$printed" 117
}

feature_newer_tag_that_shares_layers() {
    node_with a-directory
    pull app:2
    checks app:2
    expect_fetched "$(top_layer app:2)"
}

feature_detach_while_in_use() {
    node_with a-directory
    start app:1
    detach /volumes/a-directory
    expect "exit code of detach" "$code" 75
    still_runs
    stop_pod "$pod"
}

feature_detach_with_nothing_running() {
    node_with a-directory
    checks app:1
    detached /volumes/a-directory
    try crictl images
    succeeded "the list of images, before the restart,"
    restart_crio
    pull app:1
    checks app:1
}

feature_detach_while_the_runtime_is_stopped() {
    node_with a-directory
    stop_crio
    detached /volumes/a-directory
    [[ ! -e $icv ]] || fails "$icv still exists"
}

# app:2 is an image in CRI-O's own store that needs the volume. Only an operator removes it.
feature_detach_with_a_newer_tag_in_the_own_store() {
    node_with a-directory
    pull app:2
    checks app:2
    detach /volumes/a-directory
    if ((code != 0)); then
        note "refused: $(why)"
        [[ $output == *app:2* ]] || fails "detach exits with $code, and does not name app:2"
        checks app:2
        try crictl rmi "$address/app:2"
        detached /volumes/a-directory
        restart_crio
        pull app:2
        checks app:2
        return
    fi
    restart_crio
    try crictl images
    succeeded "the list of images"
    [[ $output == *app* ]] || fails "detach succeeds without a message, and app:2 is gone"
    checks app:2
}

# A pod runs from the old cache all the time, if possible.
upgrade() {
    node_with "$1"
    start app:1
    attach_the_new_cache "$2" --runtime crio
    restart_crio
    still_runs
    checks app:2
    detach_the_old_cache "$1" stop_pod
    restart_crio
    checks app:1
    checks app:2
    expect_fetched 0
}

feature_upgrade_of_directories() { upgrade a-directory b-directory; }
feature_upgrade_from_directories_to_EROFS_images() { upgrade a-directory b-erofs; }
feature_upgrade_of_EROFS_images() { upgrade a-erofs b-erofs; }

feature_runtime_restarted() {
    node_with a-directory
    start app:1
    restart_crio
    still_runs
    checks app:1
}

feature_reboot_with_no_registry() {
    node_with a-disk
    checks app:1
    power_cut
    boot_units
    start_crio
    checks app:1
}

feature_boot_without_the_volume() {
    node_with a-directory
    checks app:1
    pull other:1
    reboot_without_volumes
    start_crio
    checks other:1 other
    pull app:1
    checks app:1
    detach "$icv"
    succeeded "detach of the volume that is not there"
    restart_crio
    checks app:1
}

feature_image_removal_and_garbage_collection() {
    node_with a-directory
    checks app:1
    try crictl rmi "$address/app:1"
    try larder verify /volumes/a-directory
    expect "exit code of verify" "$code" 0
    checks app:1
}

feature_user_namespace() {
    pod_network || not_run "the CNI plugins ptp and host-local are not installed"
    echo "containers:100000:1000000" | tee -a /etc/subuid >>/etc/subgid
    node_with a-directory
    in_a_user_namespace containers
}

feature_user_namespace_from_EROFS_images() {
    local noted
    pod_network || not_run "the CNI plugins ptp and host-local are not installed"
    echo "containers:100000:1000000" | tee -a /etc/subuid >>/etc/subgid
    node_with a-erofs
    noted=$(grep --max-count 1 'user namespace' <<<"$output" || true)
    try in_a_user_namespace containers
    if ((code != 0)) && [[ -n $noted && $output == *"not found"* ]]; then
        differs "${noted#note: }"
    fi
    ((code == 0)) || fails "$(<"$result/why")"
}
