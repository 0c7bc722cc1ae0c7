//! The table of power cuts: a row for every point at which the agent can be stopped.
//!
//! Slot A runs, slot B holds what ran before it and may boot. The upgrade goes into slot B.

use monok8s_sdk::slot::Slot;
use monok8s_sdk::slot::Slot::{A, B};

/// One power cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Where the agent ends itself.
    pub(crate) point: &'static str,
    /// What is under way.
    pub(crate) story: Story,
    /// What is found then.
    pub(crate) left: Left,
    /// What happens before the agent starts again.
    pub(crate) meanwhile: Meanwhile,
    /// What comes of it.
    pub(crate) then: Then,
}

/// What kind of upgrade it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Story {
    /// An operator's order, fetched whole.
    Ordered,
    /// The same, fetched by a block index.
    Indexed,
    /// An object that a person made.
    ByHand,
    /// An order for an image whose kernel panics.
    Panics,
    /// An order for an image that states no version, and turns out to be another one.
    Unstated,
}

/// What happens between the agent's end and its next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    /// The power goes, and comes back.
    PowerCut,
    /// The same, and the order is superseded while it is away.
    Superseded,
    /// The power stays, and the guard resets the host.
    GuardActs,
}

/// What the agent's last instant left on the disk and in the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) booted: Slot,
    pub(crate) loader: Loader,
    /// The state of the record's attempt.
    pub(crate) attempt: Option<&'static str>,
    /// What the record says of slot B.
    pub(crate) claim: Claim,
    /// What is in slot B.
    pub(crate) bytes: Bytes,
    /// The phases that the object may have; empty for none.
    pub(crate) phases: &'static [&'static str],
    /// The slot that boots next.
    pub(crate) next: Slot,
}

/// What the loader's state says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loader {
    /// Both slots are good, A first.
    Both,
    /// Only slot A may boot.
    OnlyA,
    /// Slot B is armed, and was not tried.
    Armed,
    /// Slot B is armed, and its try is burnt.
    Tried,
    /// Both slots are good, B first.
    Confirmed,
    /// Only slot A may boot, and the trial was sent back.
    Reverted,
    /// Only slot A may boot, and the trial fell back.
    FellBack,
}

/// What the record says of slot B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    Nothing,
    /// The version before the last is in it, and ran.
    Previous,
    /// The new version is in it, in this state.
    New(&'static str),
}

/// What is in slot B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// What was there before.
    Previous,
    /// The first 64 KiB are zero.
    Headless,
    /// The new image, whole.
    New,
}

/// What comes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Then {
    /// All boots, from the installation to the end.
    pub(crate) boots: &'static [Slot],
    /// What is fetched after the cut.
    pub(crate) fetches: Fetches,
    pub(crate) end: End,
}

/// How much of the artifact is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetches {
    /// Not one request is sent.
    Nothing,
    /// All of it, once.
    Whole,
    /// The index, and less than half of the rest.
    LittleByIndex,
}

/// Where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As if there had been no cut.
    Completed,
    /// With this reason, and the artifact remembered.
    RolledBack(&'static str),
    /// The node let go of it; nothing is remembered against the artifact.
    Superseded,
}

const STARTED: &[&str] = &["", "Downloading"];
const STAGED: &[&str] = &["Staged"];
const REBOOTING: &[&str] = &["Rebooting"];
const ON_TRIAL: &[&str] = &["Rebooting", "Confirming"];

const UNTOUCHED: Left = Left {
    booted: A,
    loader: Loader::Both,
    attempt: None,
    claim: Claim::Previous,
    bytes: Bytes::Previous,
    phases: &[""],
    next: A,
};
const BEGUN: Left = Left { attempt: Some("Staging"), ..UNTOUCHED };
const CLEARED: Left = Left { claim: Claim::Nothing, ..BEGUN };
const INVALIDATED: Left = Left { loader: Loader::OnlyA, ..CLEARED };
const WRITING: Left = Left { bytes: Bytes::Headless, phases: STARTED, ..INVALIDATED };
const RECORDED: Left = Left { claim: Claim::New("Written"), phases: &["Downloading"], ..WRITING };
const WRITTEN: Left = Left { bytes: Bytes::New, phases: &["Downloading", "Verifying"], ..RECORDED };
const VERIFIED: Left = Left { claim: Claim::New("Verified"), ..WRITTEN };
const WAITING: Left = Left { phases: STAGED, ..VERIFIED };
const INTENDED: Left = Left { attempt: Some("Intended"), ..WAITING };
const TAKEN: Left = Left { phases: REBOOTING, ..INTENDED };
const COMMITTED: Left = Left { attempt: Some("Committed"), ..TAKEN };
const ARMED: Left = Left { loader: Loader::Armed, next: B, ..COMMITTED };
const TRIED: Left = Left { booted: B, loader: Loader::Tried, phases: ON_TRIAL, next: A, ..ARMED };
const CONFIRMED: Left = Left { loader: Loader::Confirmed, next: B, ..TRIED };
const KEPT: Left = Left { attempt: None, claim: Claim::New("KnownGood"), ..CONFIRMED };
const DONE: Left = Left { phases: &["Completed"], ..KEPT };
const REVERTING: Left = Left { attempt: Some("Reverting"), ..TRIED };
const REVERTED: Left = Left { loader: Loader::Reverted, ..REVERTING };
const BACK: Left = Left { booted: A, phases: REBOOTING, ..TRIED };
const MARKED: Left = Left { loader: Loader::FellBack, ..BACK };
const ROLLED_BACK: Left = Left { attempt: Some("RolledBack"), ..MARKED };
const DISARMED: Left = Left { loader: Loader::OnlyA, ..ROLLED_BACK };
const TOLD: Left = Left { phases: &["RolledBack"], ..DISARMED };

const fn completed(boots: &'static [Slot], fetches: Fetches) -> Then {
    Then { boots, fetches, end: End::Completed }
}

const STARTS_AGAIN: Then = completed(&[A, A, B], Fetches::Whole);
const RESUMES: Then = completed(&[A, A, B], Fetches::LittleByIndex);
const GOES_ON: Then = completed(&[A, A, B], Fetches::Nothing);
const BOOTS_IT: Then = completed(&[A, B], Fetches::Nothing);
const KEEPS_IT: Then = completed(&[A, B, B], Fetches::Nothing);
const LETS_GO: Then = Then { boots: &[A, A], fetches: Fetches::Nothing, end: End::Superseded };

const fn rolled_back(boots: &'static [Slot], reason: &'static str) -> Then {
    Then { boots, fetches: Fetches::Nothing, end: End::RolledBack(reason) }
}

const FALLS_BACK: Then = rolled_back(&[A, B, A], "FellBack");
const PANICKED: Then = rolled_back(&[A, A, A], "FellBack");
const SENT_BACK: Then = rolled_back(&[A, B, A], "WrongVersionBooted");

const fn row(point: &'static str, left: Left, then: Then) -> Row {
    Row { point, story: Story::Ordered, left, meanwhile: Meanwhile::PowerCut, then }
}

impl Row {
    const fn of(self, story: Story) -> Self {
        Self { story, ..self }
    }

    const fn superseded(self) -> Self {
        Self { meanwhile: Meanwhile::Superseded, then: LETS_GO, ..self }
    }

    const fn guarded(self) -> Self {
        Self { meanwhile: Meanwhile::GuardActs, ..self }
    }
}

pub(crate) const ROWS: &[Row] = &[
    // Nothing is changed yet.
    row("accepted-beside", UNTOUCHED, STARTS_AGAIN),
    row("accepted", UNTOUCHED, STARTS_AGAIN),
    row("pinned-beside", UNTOUCHED, STARTS_AGAIN).of(Story::ByHand),
    row("pinned", UNTOUCHED, STARTS_AGAIN).of(Story::ByHand),
    row("begun-beside", UNTOUCHED, STARTS_AGAIN),
    row("begun", BEGUN, STARTS_AGAIN),
    // Record cleared, slot B invalidated in the loader.
    row("cleared-beside", BEGUN, STARTS_AGAIN),
    row("cleared", CLEARED, STARTS_AGAIN),
    row("invalidate-beside", CLEARED, STARTS_AGAIN),
    row("invalidated", INVALIDATED, STARTS_AGAIN),
    // Part of the image written; the first 64 KiB still zero.
    row("head-zeroed", WRITING, STARTS_AGAIN),
    row("body-bytes", WRITING, STARTS_AGAIN),
    row("body-bytes:3", WRITING, STARTS_AGAIN),
    row("digest-beside", WRITING, STARTS_AGAIN),
    row("digest-beside", WRITING, RESUMES).of(Story::Indexed),
    // Body written, digest recorded, first 64 KiB last; not yet verified. Without them it reads back as
    // something else, and what is missing is written.
    row("digest-recorded", RECORDED, STARTS_AGAIN),
    row("digest-recorded", RECORDED, RESUMES).of(Story::Indexed),
    row("head-written", WRITTEN, GOES_ON),
    row("head-flushed", WRITTEN, GOES_ON),
    row("verified-beside", WRITTEN, GOES_ON),
    // Verified recorded.
    row("verified", VERIFIED, GOES_ON),
    row("staged-reported", WAITING, GOES_ON),
    row("accepted:2", WAITING, GOES_ON),
    // Intent recorded, or committed, not armed.
    row("intended-beside", WAITING, GOES_ON),
    row("intended", INTENDED, GOES_ON),
    row("intended", INTENDED, LETS_GO).superseded(),
    row("commit-taken", TAKEN, GOES_ON),
    row("commit-taken", TAKEN, LETS_GO).superseded(),
    row("committed-beside", TAKEN, GOES_ON),
    row("committed", COMMITTED, GOES_ON),
    row("committed", COMMITTED, LETS_GO).superseded(),
    row("arm-beside", COMMITTED, GOES_ON),
    row("arm-beside", COMMITTED, LETS_GO).superseded(),
    // Trial armed.
    row("arm-renamed", ARMED, BOOTS_IT),
    row("armed", ARMED, BOOTS_IT),
    row("reboot-asked", ARMED, BOOTS_IT),
    row("armed", ARMED, rolled_back(&[A, A], "FellBack")).of(Story::Panics),
    // B booted, not confirmed.
    row("trial-seen", TRIED, FALLS_BACK),
    row("trial-seen", TRIED, FALLS_BACK).guarded(),
    row("confirm-beside", TRIED, FALLS_BACK),
    row("confirm-beside", TRIED, FALLS_BACK).guarded(),
    // Confirmed in the loader, not recorded.
    row("confirm-renamed", CONFIRMED, KEEPS_IT),
    row("confirmed", CONFIRMED, KEEPS_IT),
    row("confirm-record-beside", CONFIRMED, KEEPS_IT),
    // Recorded.
    row("confirm-recorded", KEPT, KEEPS_IT),
    row("completed-reported", DONE, KEEPS_IT),
    // The trial does not hold.
    row("reverting-beside", TRIED, FALLS_BACK).of(Story::Unstated),
    row("reverting", REVERTING, SENT_BACK).of(Story::Unstated),
    row("revert-beside", REVERTING, SENT_BACK).of(Story::Unstated),
    row("reverted", REVERTED, SENT_BACK).of(Story::Unstated),
    // B did not come up, and A did.
    row("mark-good-beside", BACK, PANICKED).of(Story::Panics),
    row("marked-good", MARKED, PANICKED).of(Story::Panics),
    row("rolled-back-beside", MARKED, PANICKED).of(Story::Panics),
    row("rolled-back", ROLLED_BACK, PANICKED).of(Story::Panics),
    row("disarm-beside", ROLLED_BACK, PANICKED).of(Story::Panics),
    row("disarmed", DISARMED, PANICKED).of(Story::Panics),
    row("rolled-back-reported", TOLD, PANICKED).of(Story::Panics),
];
