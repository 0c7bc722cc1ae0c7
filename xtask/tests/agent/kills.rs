//! SIGKILL and power cuts at moments that nobody chose.

use std::time::Duration;

use monok8s_sdk::api::ProgressPhase;
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::{BootBackend as _, TrialProgress};
use monok8s_sdk::slot::Slot;
use xtask::http::{Fault, Times};
use xtask::rootfs::RootfsSpec;

use crate::bench::{Bench, MIB, booted};

/// How many times the agent is killed, over all runs.
const KILLS: u32 = 50;

/// A generator of moments; the seed is printed, so that a failing run can be repeated.
pub(crate) struct Moments(pub(crate) u64);

impl Moments {
    pub(crate) fn next(&mut self, below: u64) -> u64 {
        // xorshift64; Marsaglia, "Xorshift RNGs", 2003.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_at_fifty_random_moments_always_completes_with_one_boot_a_hop() {
    let seed = u64::from(std::process::id()) << 16 | 1;
    println!("seed {seed}");
    let mut moments = Moments(seed);
    let mut bench = Bench::start().await;
    let machine = bench.machine("node-1", &[]).await;
    let record = RecordStore::in_dir(machine.data_dir());
    let mut kills = 0;
    let mut hop = 0_usize;
    while kills < KILLS {
        hop += 1;
        // One patch release after the other, into A and B in turn; slow enough to be hit in the middle.
        let version = format!("v1.35.{}", 4 + hop);
        let spec = RootfsSpec::of(&version).sized(16 * MIB, 4 * MIB + 5);
        let name = format!("hop-{hop}");
        let image = bench.build(&name, &spec).image;
        bench.files.inject(&format!("/{name}"), Fault::Throttle { bytes_per_second: 2 * MIB }, Times::Always);
        bench.upgrade(&name, &version, &[bench.entry(&name, &version)]).await;
        bench.hand_made(&name, &name, "node-1").await;
        let goal = kills + 8;
        loop {
            tokio::time::sleep(Duration::from_millis(moments.next(700))).await;
            record.load().expect("the record is never unreadable");
            let status = bench.progress(&name).await.status.unwrap_or_default();
            if status.phase == Some(ProgressPhase::Completed) || kills >= goal {
                break;
            }
            machine.kill_agent().await.unwrap();
            kills += 1;
        }
        let status = bench.wait_for_phase(&machine, &name, ProgressPhase::Completed).await;
        let slot = if hop % 2 == 1 { Slot::B } else { Slot::A };
        assert_eq!(status.failure_reason.as_deref(), Some(""));
        assert_eq!(status.installed.as_ref().map(|installed| installed.slot), Some(slot));
        assert_eq!(booted(&machine).len(), hop + 1, "never two boots for one hop: {:?}", machine.boots());
        assert_eq!(machine.slot_digest(slot, image.bytes).unwrap(), image.digest, "hop {hop}");
        let loader = SimulatedLoader::open(machine.loader_path()).status().unwrap();
        assert!(loader.is_confirmed(slot) && loader.trial.is_none(), "{loader:?}");
        println!("hop {hop} to {version}: {kills} kills so far");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_before_the_trial_cost_time_and_nothing_else() {
    let seed = u64::from(std::process::id()) << 16 | 3;
    println!("seed {seed}");
    let mut moments = Moments(seed);
    let mut bench = Bench::start().await;
    let machine = bench.machine("node-1", &[]).await;
    let image = bench.build("slow", &crate::bench::small(crate::bench::NEW)).image;
    bench.files.inject("/slow", Fault::Throttle { bytes_per_second: 3 * MIB }, Times::Always);
    bench.upgrade("up", crate::bench::NEW, &[bench.entry("slow", crate::bench::NEW)]).await;
    bench.hand_made("progress", "up", "node-1").await;
    let record = RecordStore::in_dir(machine.data_dir());
    let loader = SimulatedLoader::open(machine.loader_path());
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(300 + moments.next(900))).await;
        // Once armed, a cut is the trial's boot; that is another story.
        let attempt = record.load().unwrap().attempt;
        let is_armed = attempt.is_some_and(|attempt| {
            attempt.may_be_committed()
                || loader.status().unwrap().trial_progress(attempt.id) != TrialProgress::NotArmed
        });
        if is_armed || booted(&machine).contains(&Slot::B) {
            break;
        }
        machine.power_cut().await.unwrap();
    }
    bench.wait_for_phase(&machine, "progress", ProgressPhase::Completed).await;
    assert_eq!(machine.slot_digest(Slot::B, image.bytes).unwrap(), image.digest);
    let boots = booted(&machine);
    assert_eq!(boots.iter().filter(|slot| **slot == Slot::B).count(), 1, "{boots:?}");
}
