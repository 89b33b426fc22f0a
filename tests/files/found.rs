//! The files and objects that the shipped configurations name.

use super::*;

#[test]
fn the_daemon_finds_what_its_configuration_names() {
    let deployment: Deployment = only("Deployment");
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    let container = &pod.containers[0];
    let config = Config::load(Some(&root().join("larder.toml")), []).unwrap();
    let cluster = kubernetes(&config.cluster).unwrap();
    // Settings that an administrator need not change have their default values.
    let told = Cluster {
        uid: "this".into(),
        runner: Runner::Kubernetes,
        builder_image: format!("larder:{VERSION}"),
        snapshot_class: "larder".into(),
        ..Cluster::default()
    };
    assert_eq!(*cluster, told);
    assert_eq!(container.image.as_ref(), Some(&told.builder_image));
    assert_eq!(pod.service_account_name.as_deref(), Some(MANAGER));
    assert_eq!(container.args.as_deref().unwrap(), ["serve"]);

    // The configuration is mounted at the path where the program looks for it, under the name of its source
    // file.
    let mounts: BTreeMap<_, _> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| (mount.mount_path.as_str(), mount.name.as_str()))
        .collect();
    let volume = |path: &str| {
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mounts[path]);
        volume.unwrap_or_else(|| panic!("{path}"))
    };
    let kustomization: Kustomization =
        documents().iter().find(|document| document.file == "kustomization.yaml").unwrap().typed();
    let generator = &kustomization.config_map_generator[0];
    assert_eq!(volume("/etc/larder").config_map.as_ref().unwrap().name, generator.name);
    assert_eq!(
        (generator.files.as_slice(), generator.namespace.as_str()),
        (&["larder.toml".to_owned()][..], "larder")
    );
    // All directories that the daemon writes to are writable, and every volume is mounted.
    for path in [config.state.dir.as_path(), config.api.socket.parent().unwrap(), Path::new("/tmp")] {
        assert!(volume(path.to_str().unwrap()).empty_dir.is_some(), "{}", path.display());
    }
    assert_eq!(mounts.len(), pod.volumes.as_ref().unwrap().len());
    let secret = volume("/tls").secret.as_ref().unwrap().secret_name.as_deref();
    assert_eq!(config.api.tls_certificate.as_deref(), Some(Path::new("/tls/tls.crt")));
    assert_eq!(config.api.tls_key.as_deref(), Some(Path::new("/tls/tls.key")));

    // Every reference to the port uses one name.
    let port = &container.ports.as_ref().unwrap()[0];
    assert_eq!(i32::from(config.api.tcp.unwrap().port()), port.container_port);
    let name = IntOrString::String(port.name.clone().unwrap());
    for probe in [&container.startup_probe, &container.liveness_probe, &container.readiness_probe] {
        let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!((&get.port, get.scheme.as_deref()), (&name, Some("HTTPS")));
    }
    let service: Service = only("Service");
    let served = &service.spec.unwrap().ports.unwrap()[0];
    assert_eq!(served.target_port.as_ref(), Some(&name));
    let monitor: ServiceMonitor = only("ServiceMonitor");
    let endpoint = &monitor.spec.endpoints[0];
    assert_eq!(Some(&endpoint.port), served.name.as_ref());
    assert_eq!(endpoint.tls_config.ca.secret.name, secret.unwrap());
    let policies = all::<NetworkPolicy>("NetworkPolicy").into_iter();
    for policy in policies.filter(|policy| policy.metadata.namespace.as_deref() == Some("larder")) {
        for rule in policy.spec.unwrap().ingress.into_iter().flatten() {
            assert_eq!(rule.ports.unwrap()[0].port.as_ref(), Some(&name));
        }
    }

    // It runs as the user of the image, without any capability.
    let context = pod.security_context.as_ref().unwrap();
    let user = Some(i64::from(packaging::USER));
    assert_eq!((context.run_as_user, context.run_as_group, context.fs_group), (user, user, user));
    assert_eq!(context.run_as_non_root, Some(true));
    let context = container.security_context.as_ref().unwrap();
    assert_eq!(
        (context.allow_privilege_escalation, context.read_only_root_filesystem),
        (Some(false), Some(true))
    );
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref().unwrap(), ["ALL"]);
    assert!(capabilities.add.is_none());
    // It has the same time to stop as on a host.
    let unit =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/larder.service")).unwrap();
    assert!(unit.contains(&format!("\nTimeoutStopSec={}s\n", pod.termination_grace_period_seconds.unwrap())));
}

#[test]
fn the_agent_finds_what_its_configuration_names() {
    let set: DaemonSet = only("DaemonSet");
    let spec = set.spec.unwrap();
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    assert_eq!(spec.selector.match_labels.unwrap(), labels);
    let pod = spec.template.spec.unwrap();
    let container = &pod.containers[0];
    let config = Config::load(Some(&root().join("node/larder.toml")), []).unwrap();
    // Settings that an administrator need not change have their default values.
    let listen = config.node.listen;
    let told = Node { image: format!("larder:{VERSION}"), listen, verify_layers: true, ..Node::default() };
    assert_eq!(config.node, told);
    assert_eq!(container.image.as_ref(), Some(&told.image));
    assert_eq!(container.args.as_deref().unwrap(), ["node"]);
    assert_eq!(pod.service_account_name.as_deref(), Some("larder-node"));
    let name = container.env.as_ref().unwrap()[0].clone();
    let field = name.value_from.unwrap().field_ref.unwrap().field_path;
    assert_eq!((name.name.as_str(), field.as_str()), ("NODE_NAME", "spec.nodeName"));

    // Paths are the same as on the node. The node sees mounts of the agent, and the agent sees mounts of the
    // kubelet.
    let socket = Path::new("/run/larder-snapshotter");
    let pods = told.kubelet.join("pods");
    let mut places = BTreeMap::new();
    for mount in container.volume_mounts.as_ref().unwrap() {
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name).unwrap();
        if let Some(host) = &volume.host_path {
            assert_eq!(host.path, mount.mount_path);
            places.insert(PathBuf::from(&host.path), mount.mount_propagation.as_deref());
        }
    }
    let wanted = [
        (config.state.dir.as_path(), Some("Bidirectional")),
        (told.mounts.as_path(), Some("Bidirectional")),
        (pods.as_path(), Some("HostToContainer")),
        (socket, None),
        (Path::new(Containerd::ADDRESS).parent().unwrap(), None),
    ];
    assert_eq!(places, wanted.map(|(path, how)| (path.to_owned(), how)).into());
    let context = container.security_context.as_ref().unwrap();
    assert_eq!((context.privileged, context.read_only_root_filesystem), (Some(true), Some(true)));

    // Every reference to the port uses one name, and no other port is open.
    let port = &container.ports.as_ref().unwrap()[0];
    assert_eq!(i32::from(listen.unwrap().port()), port.container_port);
    let by_name = IntOrString::String(port.name.clone().unwrap());
    for probe in [&container.liveness_probe, &container.readiness_probe] {
        assert_eq!(probe.as_ref().unwrap().http_get.as_ref().unwrap().port, by_name);
    }
    let policies = all::<NetworkPolicy>("NetworkPolicy").into_iter();
    for policy in policies.filter(|policy| policy.metadata.namespace.as_deref() != Some("larder")) {
        let spec = policy.spec.unwrap();
        assert_eq!(spec.policy_types.as_deref().unwrap(), ["Ingress", "Egress"]);
        for rule in spec.ingress.into_iter().flatten() {
            assert_eq!(rule.ports.unwrap()[0].port.as_ref(), Some(&by_name));
        }
    }

    // The namespace in which agents create pods allows only restricted pods. The namespace of the agents
    // themselves allows privileged ones.
    for namespace in all::<Namespace>("Namespace") {
        let enforced =
            namespace.metadata.labels.as_ref().unwrap()["pod-security.kubernetes.io/enforce"].as_str();
        match namespace.metadata.name.as_deref().unwrap() {
            "larder-volumes" => {
                assert_eq!((enforced, told.namespace.as_str()), ("restricted", "larder-volumes"))
            }
            "larder-nodes" => assert_eq!(enforced, "privileged"),
            _ => {}
        }
    }
    let roles = all::<Role>("Role");
    let in_nodes = roles.iter().filter(|role| role.metadata.namespace.as_deref() == Some("larder-nodes"));
    assert_eq!(in_nodes.count(), 0);
    let of_cluster = all::<ClusterRole>("ClusterRole");
    let agents = of_cluster.iter().find(|role| role.metadata.name.as_deref() == Some("larder-node")).unwrap();
    for rule in agents.rules.as_ref().unwrap() {
        let is_events = rule.resources.as_ref().unwrap() == &["events"];
        assert!(is_events || rule.verbs.iter().all(|verb| ["get", "list", "watch"].contains(&verb.as_str())));
    }
}
