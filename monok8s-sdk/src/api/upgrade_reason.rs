//! Why an upgrade stands where it stands.

use super::open_enum::open_enum;

open_enum! {
    /// The reasons of an upgrade's conditions. One definition each; the user guide uses the same words.
    pub enum UpgradeReason {
        /// Every selected node that this upgrade governs runs the version.
        UpToDate,
        /// Nodes are on their way.
        RollingOut,
        /// A plan was made; the message names the nodes that would move.
        Planned,
        /// The nodes are governed by other upgrades.
        Superseded,
        /// The upgrade is paused by its spec or by the hold annotation.
        Paused,
        /// No managed node matches the nodeSelector.
        NoMatchingNodes,
        /// The catalog is being read for the first time.
        ResolvingCatalog,
        /// The catalog cannot be reached; it is tried again.
        CatalogUnavailable,
        /// What was read is not a catalog.
        InvalidCatalog,
        /// A selector of the spec cannot be understood, or lost a key on its way.
        InvalidNodeSelector,
        /// A window of the spec cannot be understood.
        InvalidWindow,
        /// The expression of a health check cannot be understood.
        InvalidHealthCheck,
        /// The spec names something that is neither a version nor a channel.
        InvalidVersion,
        /// The catalog has no such version; the message names the nearest ones.
        VersionNotInCatalog,
        /// The catalog's entry for the version cannot be used.
        ImageUnusable,
        /// The catalog blocks the version.
        VersionBlocked,
        /// The catalog has no such channel.
        UnknownChannel,
        /// The catalog's channel does not name a version.
        ChannelUnusable,
        /// The catalog has no image of the version for the node's architecture.
        NoImageForArch,
        /// The node runs a newer version, and the downgradePolicy is Refuse.
        DowngradeRefused,
        /// The catalog has no images that lead the node to the version.
        NoUpgradePath,
        /// The node says itself that it cannot be upgraded.
        NodeProblem,
        /// The node's boot loader does not count the tries of a trial.
        TrialUnsupported,
        /// A person sent the node back to its other slot.
        SentBack,
        /// Nodes cannot go, for several reasons; the message names them.
        NodesRefused,
        /// Nodes failed and wait for a new retryNonce, and no other node has anything left to do.
        NodesFailed,
        /// So many nodes as failureThreshold allows did not come through their reboot.
        FailureThresholdReached,
        /// More nodes than maxFailedNodes allows failed before any reboot.
        TooManyFailedNodes,
        /// The version failed on a node after its reboot; takes a new retryNonce on the upgrade.
        VersionQuarantined,
        /// As many nodes as maxParallelStaging allows are staging.
        WaitingToStage,
        /// Another order has the node in a reboot, or has to be taken back first.
        WaitingForUpgrade,
        /// A control-plane node has to finish, to go first, or to be available.
        WaitingForControlPlane,
        /// Workers have to go down before the control plane.
        WaitingForWorkers,
        /// As many nodes are unavailable as may be.
        WaitingForBudget,
        /// No maintenance window is open, or the one that is closes too soon.
        WaitingForWindow,
        /// No window opens within a year.
        NoWindow,
        /// Canaries have to go first.
        WaitingForCanary,
        /// A canary failed, and holds the others back until it is retried.
        CanaryFailed,
        /// Nodes of another group are in work, or go first.
        WaitingForGroup,
        /// A node is back, and has not been for long enough.
        Soaking,
        /// A health check does not hold, or could not be evaluated.
        HealthGate,
        /// Pods have to leave the node.
        Draining,
        /// A disruption budget or a pod holds up the drain of a node.
        DrainBlocked,
        /// The node is not Ready, or did not come back.
        NodeUnreachable,
        /// The hop would take the control plane's API servers more than one minor release apart.
        ControlPlaneSkew,
        /// A kubelet would be newer than the oldest API server.
        KubeletSkew,
        /// The operator runs on the node, which goes last in its role.
        OperatorNodeLast,
        /// Nobody paused the upgrade.
        NotPaused,
        /// The catalog was read.
        CatalogRead,
    }
}
