//! Larder in a cluster: from an order to a snapshot, with faults on the way. The pods run the real `larder
//! build`.

mod builds;
mod chaos;
mod crash;
mod failures;
mod named;
mod nodes;
mod orders;
mod page;
mod rights;
mod serve;
mod time;
mod upkeep;
mod verifier;
