//! Volumes that a build does not take.

use super::*;

#[case]
fn a_second_builder_is_turned_away_at_once() {
    isolated(&[], || {
        let served = Served::new([image(3)]);
        let first = all_but_the_last(&served);
        let requests = served.registry.seen().len();
        let mut second = Running::start(&mut served.build(&served.volume(), SIZE));
        assert_eq!(second.code_within(Duration::from_secs(2)), Some(75));
        let said = exits(75, &mut served.build(&served.volume(), SIZE));
        assert!(said.contains("locked"), "{said}");
        assert_eq!(served.registry.seen().len(), requests);
        drop(first);
        resume(&served, &journal(&served.volume()).committed);
    });
}

#[case]
fn directories_of_others_are_not_touched() {
    isolated(&[], || {
        let served = Served::new([image(2)]);
        let volume = served.volume();
        type Fill = fn(&Path);
        let fills: [Fill; 4] = [
            |dir| fs::write(dir.join("precious"), "data").unwrap(),
            |dir| fs::create_dir_all(dir.join("overlay/l")).unwrap(),
            |dir| fs::write(dir.join(".larder"), "not a directory").unwrap(),
            |dir| {
                fs::create_dir(dir.join("lost+found")).unwrap();
                fs::write(dir.join(".hidden"), "data").unwrap();
            },
        ];
        for fill in fills {
            fs::create_dir(&volume).unwrap();
            fill(&volume);
            let (before, times) = (scan(&volume), change_times(&volume));
            exits(73, &mut served.build(&volume, SIZE));
            let changed = differences(&before, &scan(&volume), Tolerance::default());
            assert_eq!(changed, Vec::<String>::new());
            assert_eq!(change_times(&volume), times);
            fs::remove_dir_all(&volume).unwrap();
        }
        assert_eq!(served.registry.seen().len(), 0);
        fs::create_dir_all(volume.join("lost+found")).unwrap();
        resume(&served, &BTreeSet::new());
        assert!(volume.join("lost+found").is_dir());
    });
}

#[case]
fn a_volume_of_another_job_is_not_touched() {
    isolated(&[], || {
        let served = Served::new([image(3), image(2)]);
        let volume = served.volume();
        let other = |option: &[&str], image: usize| {
            let mut larder = larder();
            larder.arg("build").arg("--volume").arg(&volume).args(["--sizing", "warn", "--size", "64MiB"]);
            larder.args(option).arg(&served.references()[image]);
            larder
        };
        let last = served.images[0].layers.last().unwrap();
        served.registry.fault(Fault::StallAt { digest: last.digest.clone(), offsets: vec![10_000] });
        let mut first = Running::start(&mut other(&[], 0));
        assert!(first.until(|| journal(&volume).committed.len() == 2));
        first.kill();
        served.registry.heal();
        let refused = |times: &[_]| {
            for mut command in
                [other(&[], 1), other(&["--no-tar-split"], 0), other(&["--platform", "linux/s390x"], 0)]
            {
                exits(73, &mut command);
                assert_eq!(change_times(&volume), times);
            }
        };
        refused(&change_times(&volume));
        succeed(&mut other(&[], 0));
        refused(&change_times(&volume));
    });
}
