//! Each tenant's share of the builders.

use super::*;
use crate::config::tenant::ADMIN;
use larder_model::job::NetworkAccess;

const TWO_TENANTS: &str = "[caches]\ncapacity = \"1000GiB\"\nmax_concurrent_builds = 2\n\
    [[tenant]]\nname = \"team\"\n[[tenant]]\nname = \"other\"\n";

#[tokio::test]
async fn a_tenant_whose_builds_hang_leaves_a_builder_for_others() {
    let host = Host::new(TWO_TENANTS).await;
    let other: TenantName = "other".parse().unwrap();
    host.next(Act::Hang);
    let mut ids = Vec::new();
    for name in ["one", "two", "three"] {
        ids.push(host.service.create(&team(), spec(name), None).await.unwrap().id);
    }
    host.until(ids[0], |_| host.started() == 1).await;
    for name in ["one", "two"] {
        let id = host.service.create(&other, spec(name), None).await.unwrap().id;
        for _ in 0..2000 {
            if host.service.get(&other, id).await.unwrap().status == Status::Available {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(host.service.get(&other, id).await.unwrap().status, Status::Available);
    }
    assert_eq!(host.started(), 3, "one of the team, two of the other");

    // The team's next build starts when the first one has ended.
    host.service.cancel(&team(), ids[0]).await.unwrap();
    for id in &ids[1..] {
        host.until(*id, |record| record.status == Status::Available).await;
    }
}

#[tokio::test]
async fn a_sole_tenant_can_use_all_builders() {
    let host = Host::new("[caches]\ncapacity = \"1000GiB\"\nmax_concurrent_builds = 2\n").await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        host.next(Act::Hang);
        ids.push(host.service.create(&team(), spec(name), None).await.unwrap().id);
    }
    host.until(ids[0], |_| host.started() == 2).await;
}

#[tokio::test]
async fn a_job_states_the_reach_of_its_tenant() {
    let host = Host::new(TWO_TENANTS).await;
    let admin: TenantName = ADMIN.parse().unwrap();
    let jobs =
        [(&team(), RequestOrigin::Api), (&admin, RequestOrigin::Api), (&admin, RequestOrigin::Cluster)]
            .map(|(tenant, by)| host.service.0.settings.job(tenant, by, &spec("web"), Vec::new(), None));
    assert_eq!(
        jobs.clone().map(|job| job.reach),
        [NetworkAccess::Tenant, NetworkAccess::Any, NetworkAccess::Tenant]
    );
    let least = Config::default().caches.min_layer_rate;
    assert!(jobs.iter().all(|job| job.min_layer_rate == Some(least)));
}
