# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# podman, which reads volumes as additional image stores: the features of its column.

# No network, and no cgroup: the cgroup of a cell has no controllers.
podman() { command podman --cgroup-manager cgroupfs --events-backend none "$@"; }
container_of() {
    local options=()
    while [[ $1 == --* ]]; do options+=("$1") && shift; done
    podman run --rm --pull never --network none --cgroups disabled --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
        "${options[@]}" "$address/$1" "${@:2}"
}

checks() {
    try container_of "${@:2}" "$1" /bin/sh /check
    expect "tree of $1" "$output" ok
}

# Starts a container that continues to run. Sets "container".
start() {
    try container_of --detach "$1" /pause
    succeeded "starting a container of $1"
    container=$(tail -n 1 <<<"$output")
}

still_runs() {
    try podman exec "$container" /bin/sh /check
    expect "in a running container" "$output" ok
}

stop() {
    try podman stop --time 2 "$container"
}

node_with() { attached "/volumes/$1" --runtime podman "${@:2}"; }

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
    try container_of app:1 /bin/stat -c %a:%u:%g /data
    expect "the implied directory /data" "$output" 750:7:8
}

feature_hard_link_to_a_lower_layer_and_118_layers() {
    node_with a-directory
    try container_of link:1 /bin/sh /check
    expect "link:1" "$output" "2"$'\n'"below"
    try container_of deep:1 /bin/sh -c "ls /deep | wc -l"
    expect "deep:1" "$output" 117
}

feature_newer_tag_that_shares_layers() {
    node_with a-directory
    try podman pull --quiet "$address/app:2"
    checks app:2
    expect_fetched "$(top_layer app:2)"
}

feature_detach_while_in_use() {
    node_with a-directory
    start app:1
    detach /volumes/a-directory
    expect "exit code of detach" "$code" 75
    still_runs
    stop
}

# Every image that podman lists must start.
everything_listed_starts() {
    local image
    try podman images
    succeeded "podman images"
    for image in $(podman images --format '{{.Repository}}:{{.Tag}}'); do
        [[ $image != *none* ]] || continue
        try container_of "${image#*/}" /bin/true
        succeeded "starting $image, which is listed,"
    done
}

feature_detach_with_nothing_running() {
    node_with a-directory
    checks app:1
    detached /volumes/a-directory
    everything_listed_starts
    [[ ! -e $icv ]] || fails "$icv still exists"
}

# Detaches a volume that an image in podman's own store needs: the message names the image, and consent is
# required.
detach_with_dependent_image() {
    detach /volumes/a-directory
    if ((code == 0)); then
        everything_listed_starts
        try podman images
        [[ $output == *"$address/${1%:*}"* ]] || fails "detach succeeds without a message, and $1 is gone"
        return
    fi
    [[ $output == *"$1"* ]] || fails "detach exits with $code, and does not name $1"
    checks "$1"
    try detach_with_consent /volumes/a-directory
    succeeded "detach with consent"
    everything_listed_starts
}

feature_detach_with_a_newer_tag_in_the_own_store() {
    node_with a-directory
    try podman pull --quiet "$address/app:2"
    succeeded "pulling app:2"
    detach_with_dependent_image app:2
}

build_on_app() {
    mkdir -p /tmp/build
    printf 'FROM %s/app:1\nCOPY own /own\n' "$address" >/tmp/build/Containerfile
    echo own >/tmp/build/own
    try podman build --quiet --pull=never --isolation chroot --tag "$address/built:1" /tmp/build
    succeeded "podman build"
}

feature_build_on_a_cached_image() {
    node_with a-directory
    build_on_app
    try container_of built:1 /bin/cat /own
    expect "file of the built image" "$output" own
    checks built:1
    expect_fetched 0
    note "$(bytes "$(written containers)") in its own store"
}

feature_detach_with_an_image_built_on_a_cached_one() {
    node_with a-directory
    build_on_app
    detach_with_dependent_image built:1
}

# A container runs from the old cache all the time, if possible.
upgrade() {
    node_with "$1"
    start app:1
    attach_the_new_cache "$2" --runtime podman
    checks app:2
    detach_the_old_cache "$1" stop
    checks app:1
    checks app:2
    expect_fetched 0
}

feature_upgrade_of_directories() { upgrade a-directory b-directory; }
feature_upgrade_from_directories_to_EROFS_images() { upgrade a-directory b-erofs; }
feature_upgrade_of_EROFS_images() { upgrade a-erofs b-erofs; }

feature_reboot_with_no_registry() {
    node_with a-disk
    checks app:1
    power_cut
    boot_units
    checks app:1
}

feature_boot_without_the_volume() {
    node_with a-directory
    checks app:1
    try podman pull --quiet "$address/other:1"
    reboot_without_volumes
    try container_of other:1 /bin/sh /check
    expect "other:1, which is podman's own" "$output" other
    try podman pull --quiet "$address/app:1"
    succeeded "pulling app:1 from the registry"
    checks app:1
    detach "$icv"
    succeeded "detach of the volume that is not there"
    everything_listed_starts
}

feature_image_removal_and_garbage_collection() {
    node_with a-directory
    checks app:1
    try podman rmi "$address/app:1"
    try podman system prune --force --all
    try larder verify /volumes/a-directory
    expect "exit code of verify" "$code" 0
    checks app:1
}

feature_user_namespace() {
    echo "containers:100000:1000000" | tee -a /etc/subuid >>/etc/subgid
    node_with a-directory
    checks app:1 --userns=auto
    checks app:1
}

feature_user_namespace_from_EROFS_images() {
    local noted
    echo "containers:100000:1000000" | tee -a /etc/subuid >>/etc/subgid
    node_with a-erofs
    noted=$(grep --max-count 1 'user namespace' <<<"$output" || true)
    try container_of --userns=auto app:1 /bin/sh /check
    [[ -z $noted || $output != *"not found"* ]] || differs "${noted#note: }"
    expect "tree of app:1" "$output" ok
}

# Runs podman as a user who is not root.
as_user() {
    setpriv --reuid interop --regid interop --init-groups env --ignore-environment PATH="$PATH" HOME=/run/user-home \
        XDG_RUNTIME_DIR=/run/user/interop podman --cgroup-manager cgroupfs --events-backend none "$@"
}

# With podman's own defaults, the files of attach must not disturb a user, and a user can configure the store.
feature_rootless_images() {
    useradd --create-home --home-dir /run/user-home interop 2>/dev/null || not_run "useradd fails"
    mkdir -p /run/user/interop
    chown interop: /run/user/interop
    node_with a-directory
    try as_user images
    succeeded "podman images of a user"
    if [[ $output != *"$address/app"* ]]; then
        note "a user names the store in ~/.config/containers/storage.conf"
        mkdir -p /run/user-home/.config/containers
        printf '[storage]\ndriver = "overlay"\n[storage.options]\nadditionalimagestores = ["%s"]\n' "$icv" \
            >/run/user-home/.config/containers/storage.conf
        chown -R interop: /run/user-home
        try as_user images
        succeeded "podman images of a user who names the store"
        [[ $output == *"$address/app"* ]] || fails "a user does not see app:1"
    fi
}

# buildah of Debian 12 reads only storage.conf; podman 6 reads drop-ins, and more settings of storage.conf
# than older versions.
feature_rootless_images_on_a_node_with_older_programs() {
    [[ ! -x /usr/bin/buildah ]] || not_run "this podman is as old as the buildah of this machine"
    [[ -x $memory/buildah ]] || not_run "buildah is not installed"
    cp "$memory/buildah" /usr/bin/buildah
    feature_rootless_images
}
