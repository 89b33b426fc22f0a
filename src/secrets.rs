//! Pull secrets and docker configs by the rules of the kubelet's keyring.
