//! The points, in the order in which an upgrade comes by.

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// An instant of an upgrade: before or after something that lasts.
        ///
        /// A file is saved in three moves: the new copy is written beside the old one, renamed over it,
        /// and the directory is flushed. "Beside" is the instant between the first two.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Point {
            /// All of them, in the order in which an upgrade comes by.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// What people call it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

points! {
    /// The record that takes note of a generation of the object lies beside.
    AcceptedBeside = "accepted-beside",
    /// The generation is recorded.
    Accepted = "accepted",
    /// The record of what a hand-made object was resolved to lies beside.
    PinnedBeside = "pinned-beside",
    /// What a hand-made object was resolved to is recorded.
    Pinned = "pinned",
    /// The record of the attempt lies beside.
    BegunBeside = "begun-beside",
    /// The attempt is recorded.
    Begun = "begun",
    /// The record that knows nothing of the slot any more lies beside.
    ClearedBeside = "cleared-beside",
    /// What the slot held is forgotten.
    Cleared = "cleared",
    /// The loader's state without the slot lies beside.
    InvalidateBeside = "invalidate-beside",
    /// The slot is out of the loader's order.
    Invalidated = "invalidated",
    /// The first 64 KiB of the slot are zero and flushed.
    HeadZeroed = "head-zeroed",
    /// Some of the image behind them is written; comes by with every write.
    BodyBytes = "body-bytes",
    /// All of the image but its first 64 KiB is on the medium, and the record of its digest lies beside.
    DigestBeside = "digest-beside",
    /// The digest is recorded; the first 64 KiB are not written.
    DigestRecorded = "digest-recorded",
    /// The first 64 KiB are written, and not flushed.
    HeadWritten = "head-written",
    /// They are flushed.
    HeadFlushed = "head-flushed",
    /// The slot was read back and looked into, and the record of that lies beside.
    VerifiedBeside = "verified-beside",
    /// `Verified` is recorded.
    Verified = "verified",
    /// The object says `Staged`.
    StagedReported = "staged-reported",
    /// The record of the intent lies beside.
    IntendedBeside = "intended-beside",
    /// The intent is recorded.
    Intended = "intended",
    /// The API server took the commit: the object says `Rebooting`.
    CommitTaken = "commit-taken",
    /// The record of the commit lies beside.
    CommittedBeside = "committed-beside",
    /// The commit is recorded.
    Committed = "committed",
    /// The loader's state with the trial lies beside.
    ArmBeside = "arm-beside",
    /// It is in its place, and its directory is not flushed.
    ArmRenamed = "arm-renamed",
    /// The trial is armed.
    Armed = "armed",
    /// The host was asked to reboot.
    RebootAsked = "reboot-asked",
    /// After the boot: the agent sees that the booted slot is on trial.
    TrialSeen = "trial-seen",
    /// The loader's state with the confirmed slot lies beside.
    ConfirmBeside = "confirm-beside",
    /// It is in its place, and its directory is not flushed.
    ConfirmRenamed = "confirm-renamed",
    /// The loader holds the slot as good.
    Confirmed = "confirmed",
    /// The record of the confirm lies beside.
    ConfirmRecordBeside = "confirm-record-beside",
    /// The confirm is recorded.
    ConfirmRecorded = "confirm-recorded",
    /// The object says `Completed`.
    CompletedReported = "completed-reported",
    /// The way back: the record that the trial is to be sent back lies beside.
    RevertingBeside = "reverting-beside",
    /// That the trial is to be sent back is recorded.
    Reverting = "reverting",
    /// The loader's state with the end of the trial lies beside.
    RevertBeside = "revert-beside",
    /// The loader boots the old slot next, and keeps the evidence.
    Reverted = "reverted",
    /// Back in the old slot: the loader's state that keeps what the trial left behind lies beside.
    MarkGoodBeside = "mark-good-beside",
    /// The booted slot has its tries back, and what the trial left behind is kept.
    MarkedGood = "marked-good",
    /// The record of the rollback lies beside.
    RolledBackBeside = "rolled-back-beside",
    /// The rollback is recorded, and the artifact remembered.
    RolledBack = "rolled-back",
    /// The loader's state without the ended trial lies beside.
    DisarmBeside = "disarm-beside",
    /// Nothing of the trial is left in the loader.
    Disarmed = "disarmed",
    /// The object says `RolledBack`.
    RolledBackReported = "rolled-back-reported",
}
