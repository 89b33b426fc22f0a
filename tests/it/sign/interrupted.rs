//! Builds that are interrupted while they sign.

use super::*;

/// The machine can stop at any system call: a sealed volume is always signed.
#[case]
fn killed_at_every_call_of_the_seal() {
    isolated(&[Need::Program("strace")], || {
        let served = Served::new([image()]);
        let key = Key::new(&served, "key.pem");
        let (mut ended, mut between) = (0, 0);
        // strace counts calls per thread. All calls in the volume's own directory are made by the thread that
        // seals.
        let calls = [
            ("renameat", false),
            ("fsync", false),
            ("unlinkat", false),
            ("syncfs", false),
            ("renameat", true),
        ];
        for (call, of_the_seal) in calls {
            for when in 1.. {
                let volume = served.volume();
                let _ = fs::remove_dir_all(&volume);
                let build = signed(&served, &volume, &key);
                let mut strace = Command::new("strace");
                strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
                strace.args(["-e", &format!("inject={call}:signal=KILL:when={when}")]);
                if of_the_seal {
                    strace.arg("--trace-path").arg(&volume);
                }
                strace.arg(build.get_program()).args(build.get_args());
                strace.envs(build.get_envs().filter_map(|(name, value)| Some((name, value?))));
                let whole = run_within(&mut strace, Duration::from_secs(60)).status.success();
                if volume.join("cache.json").exists() {
                    succeed(&mut verify(&volume, &[&key.line]));
                } else if signature(&volume).exists() {
                    between += 1;
                }
                if whole {
                    break;
                }
                ended += 1;
                succeed(&mut signed(&served, &volume, &key));
                succeed(&mut verify(&volume, &[&key.line]));
            }
        }
        eprintln!("{ended} calls ended the build, {between} of them between signature and seal");
        assert!(ended >= 6 && between >= 1, "{ended}, {between}");
    });
}

/// The signature of an interrupted build is not used for another build.
#[case]
fn the_signature_of_an_interrupted_build_is_removed() {
    isolated(&[], || {
        let served = Served::new([image()]);
        let (ours, other) = (Key::new(&served, "ours.pem"), Key::new(&served, "other.pem"));
        let volume = served.volume();
        let interrupted = || {
            let _ = fs::remove_dir_all(&volume);
            succeed(&mut signed(&served, &volume, &ours));
            // The signature is durable, but the seal does not exist yet.
            fs::remove_file(volume.join("cache.json")).unwrap();
            fs::write(volume.join("cache.json.sig.tmp"), "half").unwrap();
        };
        interrupted();
        succeed(&mut served.build(&volume, SIZE));
        assert!(!signature(&volume).exists());
        succeed(&mut verify(&volume, &[]));
        interrupted();
        succeed(&mut signed(&served, &volume, &other));
        succeed(&mut verify(&volume, &[&other.line]));
    });
}
