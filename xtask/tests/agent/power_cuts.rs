//! The table of power cuts, walked by the real agent: it ends itself at a point, its disk is looked at,
//! the machine is switched on again, and an agent without a point goes on from there.
//!
//! SIGKILL loses nothing that was handed to the kernel. What a power cut may lose of it besides, the
//! crash tests of the SDK enumerate.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use monok8s_sdk::api::OSUpgradeProgressStatus;
use monok8s_sdk::boot::{LoaderStatus, TrialEvidence, Tries};
use monok8s_sdk::slot::Slot;
use xtask::programs::Program;

use crate::bench::{NEW, booted};
use crate::power_cut_rows::{Bytes, Claim, End, Fetches, Left, Loader, Meanwhile, ROWS, Row, Story};
use crate::power_cut_subject::{Memory, PATIENCE, PREVIOUS, Subject, cut_bench};

/// How many machines are in work at once.
const AT_ONCE: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_agent_was_doing_a_power_cut_leaves_what_the_table_says() {
    let began = Instant::now();
    let bench = &cut_bench().await;
    // Everything else is compared with a machine whose power stays.
    let mut untroubled = Subject::start(bench, 0, None).await;
    untroubled.ends(&End::Completed).await;
    assert_eq!(booted(&untroubled.machine), [Slot::A, Slot::B]);
    let wanted = &untroubled.memory();

    let walk = |(number, row): (usize, &'static Row)| async move {
        let mut subject = Subject::start(bench, number + 1, Some(row)).await;
        subject.is_cut().await;
        subject.finds(&row.left).await;
        subject.goes_on(wanted).await;
    };
    let done = stream::iter(ROWS.iter().enumerate()).map(walk).buffer_unordered(AT_ONCE);
    assert_eq!(done.count().await, ROWS.len());
    println!("{} power cuts in {:.0?}", ROWS.len(), began.elapsed());
}

/// What the program says to a name that is none.
fn refusal(name: &str) -> String {
    let agent = Program::StoppingAgent.locate().unwrap();
    let output = Command::new(agent).arg("run").env("MONOK8S_FAILPOINT", name).output().unwrap();
    assert!(!output.status.success(), "{name:?} is no point");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_point_has_a_row_and_no_row_is_about_anything_else() {
    let refusal = refusal("armd");
    assert!(refusal.contains("\"armd\" names no point"), "{refusal}");
    let points: BTreeSet<_> = refusal.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let name = |row: &Row| row.point.split(':').next().unwrap();
    let rows: BTreeSet<_> = ROWS.iter().map(name).collect();
    assert!(points.len() > 40, "{points:?}");
    assert_eq!(rows, points);
}

/// Without these rows a trial that never ends would go unnoticed.
#[test]
fn a_trial_that_nobody_confirmed_falls_back_in_the_table() {
    let falls_back = |meanwhile: Meanwhile| {
        let is_it = |row: &&Row| {
            row.left.booted == Slot::B
                && row.left.loader == Loader::Tried
                && row.meanwhile == meanwhile
                && row.then.boots.last() == Some(&Slot::A)
                && row.then.end == End::RolledBack("FellBack")
        };
        ROWS.iter().filter(is_it).count()
    };
    assert!(falls_back(Meanwhile::PowerCut) > 0);
    assert!(falls_back(Meanwhile::GuardActs) > 0);
}

#[test]
fn what_is_shipped_has_no_trace_of_it() {
    let holds = |program: Program, text: &str| {
        let path = program.locate().unwrap();
        let found =
            Command::new("grep").args(["--quiet", "--fixed-strings", "--text", text]).arg(&path).status();
        match found.unwrap().code() {
            Some(0) => true,
            Some(1) => false,
            failed => panic!("cannot search {}: {failed:?}", path.display()),
        }
    };
    // The last one is how symbols begin.
    for text in ["MONOK8S_FAILPOINT", "names no point", "stopped at ", "monok8s_agent10failpoints"] {
        assert!(holds(Program::StoppingAgent, text), "{text:?} is what is there");
        assert!(!holds(Program::Agent, text), "the agent contains {text:?}");
        assert!(!holds(Program::Ctl, text), "ctl contains {text:?}");
    }
}

impl Subject<'_> {
    /// Waits until the agent has ended itself, there and in no other way.
    async fn is_cut(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.machine.stopped() {
                break status;
            }
            let status = self.status().await;
            self.granted_when_staged(&status).await;
            assert!(Instant::now() < deadline, "never stopped: {status:#?}\n{}", self.told());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(status.signal(), Some(9), "{}", self.told());
        let log = std::fs::read_to_string(self.machine.log()).unwrap();
        let point = self.row.unwrap().point.split(':').next().unwrap();
        let last_words = format!("stopped at {point}");
        assert!(log.lines().any(|line| line == last_words), "{}", self.told());
    }

    /// What is found is what the row says, and can do no harm.
    async fn finds(&self, left: &Left) {
        let Memory { record, loader } = self.memory();
        let told = self.told();
        assert_eq!(self.machine.booted().unwrap(), left.booted, "{told}");
        assert_eq!(seen(&loader), left.loader, "{told}");
        let attempt = record.attempt.as_ref().map(|attempt| attempt.state.as_str());
        assert_eq!(attempt, left.attempt, "{told}");
        let claim = record.slots.b.as_ref();
        let claim = claim.map(|content| (content.version.to_string(), content.state.as_str()));
        let wanted = match left.claim {
            Claim::Nothing => None,
            Claim::Previous => Some((PREVIOUS.to_owned(), "KnownGood")),
            Claim::New(state) => Some((NEW.to_owned(), state)),
        };
        assert_eq!(claim, wanted, "{told}");
        let bytes = self.bytes();
        assert_eq!(bytes, Some(left.bytes), "{told}");
        let phase = self.status().await.phase;
        let phase = phase.as_ref().map_or("", |phase| phase.as_str());
        assert!(left.phases.contains(&phase), "{phase:?}: {told}");
        assert_eq!(self.machine.next_boot().unwrap(), Some(left.next), "{told}");
        let may_boot = loader.may_boot(Slot::B);
        assert!(!may_boot || bytes != Some(Bytes::Headless), "a torn slot may boot: {told}");
        let is_proven = matches!(left.claim, Claim::New("Verified" | "KnownGood"));
        assert!(left.next == Slot::A || is_proven, "what nobody read back boots next: {told}");
        self.is_as_installed(Slot::A, "old");
    }

    fn is_as_installed(&self, slot: Slot, name: &str) {
        let image = &self.bench.artifact(name).image;
        let found = self.machine.slot_digest(slot, image.bytes).unwrap();
        assert_eq!(found, image.digest, "slot {slot}: {}", self.told());
    }

    /// Switches the machine on again, and sees what comes of it.
    async fn goes_on(&mut self, wanted: &Memory) {
        let row = self.row.unwrap();
        // The answer that the cut broke off may still be under way; it is not counted.
        let from = self.bench.files.requests().len();
        let before = booted(&self.machine).len();
        match row.meanwhile {
            Meanwhile::GuardActs => {}
            Meanwhile::PowerCut => self.machine.power_cut().await.unwrap(),
            Meanwhile::Superseded => {
                self.superseded().await;
                self.machine.power_cut().await.unwrap();
            }
        }
        let boots = row.then.boots;
        self.boots_again(before).await;
        let status = self.ends(&row.then.end).await;
        let told = self.told();
        assert_eq!(booted(&self.machine), boots, "{told}");
        self.fetched(row.then.fetches, from);
        self.is_as_installed(Slot::A, "old");
        let Memory { record, loader } = self.memory();
        match row.then.end {
            End::Completed => {
                let found = comparable(Memory { record, loader }, row.story);
                assert_eq!(found, comparable(wanted.clone(), row.story), "{told}");
                assert_eq!(self.bytes(), Some(Bytes::New), "{told}");
            }
            End::RolledBack(reason) => {
                assert_eq!(status.failure_reason.as_deref(), Some(reason), "{told}");
                let failed: Vec<_> = record.failed.iter().map(|failed| failed.checksum).collect();
                assert_eq!(failed, [self.artifact.digest], "{told}");
                assert_eq!(seen(&loader), Loader::OnlyA, "{told}");
            }
            End::Superseded => {
                assert_eq!((record.attempt, record.failed.len()), (None, 0), "{told}");
                assert_eq!(seen(&loader), Loader::OnlyA, "{told}");
            }
        }
    }

    /// Waits for the boot after the cut.
    async fn boots_again(&self, before: usize) {
        let deadline = Instant::now() + PATIENCE;
        while booted(&self.machine).len() == before {
            assert!(Instant::now() < deadline, "no boot follows: {}", self.told());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for the end, and until everything of it is recorded.
    async fn ends(&mut self, end: &End) -> OSUpgradeProgressStatus {
        let phase = match end {
            End::Completed => "Completed",
            End::RolledBack(_) => "RolledBack",
            End::Superseded => "Superseded",
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            self.granted_when_staged(&status).await;
            let memory = self.memory();
            let is_marked = self.machine.booted().is_ok_and(|slot| !memory.loader.needs_marking(slot));
            if is_marked && status.phase.as_ref().is_some_and(|found| found.as_str() == phase) {
                return status;
            }
            assert!(Instant::now() < deadline, "never {phase}: {status:#?}\n{}", self.told());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What was fetched since the log had `from` entries.
    fn fetched(&self, fetches: Fetches, from: usize) {
        let requests = self.bench.files.requests();
        let index = format!("{}.idx", self.path);
        let mine = requests.iter().skip(from).filter(|one| one.path == self.path || one.path == index);
        let (count, bytes) = mine.fold((0, 0), |(count, sum), one| (count + 1, sum + one.bytes_sent));
        let told = || format!("{count} requests, {bytes} bytes: {}", self.told());
        match fetches {
            Fetches::Nothing => assert_eq!((count, bytes), (0, 0), "{}", told()),
            Fetches::Whole => assert_eq!((count, bytes), (1, self.artifact.bytes), "{}", told()),
            Fetches::LittleByIndex => assert!(count > 0 && bytes < self.artifact.bytes / 2, "{}", told()),
        }
    }
}

/// What the loader's state amounts to.
fn seen(loader: &LoaderStatus) -> Loader {
    let trial = loader.trial.as_ref().map(|trial| (trial.slot, trial.evidence));
    match (loader.order.as_slice(), trial) {
        ([Slot::A, Slot::B], None) => Loader::Both,
        ([Slot::A], None) => Loader::OnlyA,
        ([Slot::B, Slot::A], None) => Loader::Confirmed,
        ([Slot::B, Slot::A], Some((Slot::B, TrialEvidence::None))) if loader.b.tries_left == Tries::TRIAL => {
            Loader::Armed
        }
        ([Slot::B, Slot::A], Some((Slot::B, TrialEvidence::None))) => Loader::Tried,
        ([Slot::A], Some((Slot::B, TrialEvidence::Reverted))) => Loader::Reverted,
        ([Slot::A], Some((Slot::B, TrialEvidence::FellBack))) => Loader::FellBack,
        other => panic!("no row knows {other:?}"),
    }
}

/// Without what tells one object from another, or one leave to reboot from the next.
fn comparable(mut memory: Memory, story: Story) -> Memory {
    for seen in &mut memory.record.seen {
        seen.uid.clear();
        if let Some(spent) = &mut seen.spent {
            spent.not_after = Time(Timestamp::UNIX_EPOCH);
        }
    }
    if story == Story::ByHand {
        // An object of another kind was seen: no grants, and its images pinned.
        memory.record.seen.clear();
    }
    memory
}
