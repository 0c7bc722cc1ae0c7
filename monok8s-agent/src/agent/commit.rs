//! The commit: the one write that decides between a node that wants to go and an operator that
//! takes its leave back.

use k8s_openapi::jiff::Timestamp;
use monok8s_sdk::api::{ByteProgress, OSUpgradeProgress};
use monok8s_sdk::node_upgrade::{NodeFacts, Order};
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;

use super::cluster::{Cluster, ClusterError, Precondition};
use super::present;
use super::status::status;

/// What a node commits to, and on which facts.
#[derive(Clone, Copy, Debug)]
pub struct Commitment<'a> {
    /// The object as it was read with the grant; the write is bound to this version of it.
    pub object: &'a OSUpgradeProgress,
    /// The order in it.
    pub order: &'a Order,
    /// What the decision to commit was made on.
    pub facts: &'a NodeFacts,
    /// The version to boot.
    pub version: &'a OsVersion,
    /// The slot that holds it.
    pub slot: Slot,
    /// The bytes of its download, if this process made it.
    pub progress: Option<ByteProgress>,
}

impl Commitment<'_> {
    /// Announces it, and returns the object as it is then: from there on the node goes on whatever
    /// the API says.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Conflict`] if anything in the object changed since it was read. After any
    /// other error the write may have been taken nevertheless, and the object tells.
    pub async fn announce(
        &self,
        cluster: &Cluster,
        now: Timestamp,
    ) -> Result<OSUpgradeProgress, ClusterError> {
        let previous = self.object.status.clone().unwrap_or_default();
        let said = status(&present::commitment(self), &previous, now);
        cluster.write_progress(self.object, &said, Precondition::Unchanged).await
    }
}
