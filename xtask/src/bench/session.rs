//! The cases, in turn on each device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::contender::{Contender, Place, Release};
use super::figures::{Limit, Work, float, median, work};
use super::host_facts::HostFacts;
use super::inputs::Inputs;
use super::report::{Device, Missing, Report, Row, Table, medians};
use super::rig::{Content, Pace, Rig, Speeds, warm};
use super::run::{self, End, Measured, Task};
use super::{contender, rauc};
use crate::http::FileServer;
use crate::programs;
use crate::rootfs::Image;

/// What takes longer than this, in seconds, is not repeated.
const PATIENT: f64 = 30.0;

/// A situation in which an image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Both slots are empty.
    First,
    /// Both slots hold the old release; the new one has its layout.
    SameLayout,
    /// Both slots hold the old release; the new one was laid out anew.
    Rebuilt,
    /// A first install that was killed half way, again.
    Resume,
}

/// Everything that is made once.
pub(super) struct Session {
    inputs: Inputs,
    contenders: Vec<Contender>,
    server: FileServer,
    base: String,
    ctl: PathBuf,
    rig: Rig,
    host: HostFacts,
    // Dropped after the loop devices on the file in it.
    scratch: TempDir,
}

/// What everything on one device is computed with.
struct Ground {
    pace: Pace,
    repetitions: u32,
    speeds: Speeds,
    server: f64,
    decode: f64,
    stock: u64,
    cores: f64,
}

impl Case {
    const ALL: [Self; 4] = [Self::First, Self::SameLayout, Self::Rebuilt, Self::Resume];

    fn title(self) -> &'static str {
        match self {
            Self::First => "First install",
            Self::SameLayout => "Patch release, same layout",
            Self::Rebuilt => "Patch release, rebuilt",
            Self::Resume => "First install again after a kill half way",
        }
    }

    fn image(self, inputs: &Inputs) -> &Image {
        if self == Self::SameLayout { &inputs.edited } else { &inputs.rebuilt }
    }

    /// What both slots hold.
    fn before(self, inputs: &Inputs) -> Option<&Image> {
        matches!(self, Self::SameLayout | Self::Rebuilt).then_some(&inputs.old)
    }
}

impl Session {
    pub(super) async fn open(cache: &Path, inputs: Inputs, contenders: Vec<Contender>) -> Result<Self> {
        let host = HostFacts::look();
        let ctl = programs::Program::Ctl.locate_release()?;
        // Beside the images, and not in a temporary directory that may be memory.
        let scratch = tempfile::Builder::new().prefix("run-").tempdir_in(cache)?;
        let rig = Rig::new(scratch.path(), inputs.rebuilt.bytes)?;
        let server = FileServer::start().await?;
        server.serve_directory("/", &inputs.directory);
        let base = server.url("/");
        for contender in &contenders {
            for image in [&inputs.rebuilt, &inputs.edited] {
                contender.release(image, &inputs.old).await?;
            }
            contender.know(&inputs.old).await?;
        }
        Ok(Self { inputs, contenders, server, base, ctl, rig, host, scratch })
    }

    pub(super) async fn measure(&mut self, paces: &[(Pace, u32)], missing: Vec<Missing>) -> Result<Report> {
        let stock = contender::stock(&self.inputs.rebuilt).await?;
        let stock_bytes = fs::metadata(&stock)?.len();
        let name = stock.file_name().unwrap_or_default().display().to_string();
        warm(&stock)?;
        let fetch = format!("curl -sSf -o /dev/null {}{name}", self.base);
        let server = float(stock_bytes) / self.typical(&fetch).await?;
        let decode = self.typical(&format!("zstd -dcq {} > /dev/null", stock.display())).await?;
        let mut grounds = Vec::new();
        for &(pace, repetitions) in paces {
            let speeds = self.rig.speeds(pace, &self.inputs.rebuilt).await?;
            let cores = float(self.host.cores as u64);
            grounds.push(Ground { pace, repetitions, speeds, server, decode, stock: stock_bytes, cores });
        }
        let mut devices = Vec::new();
        for ground in grounds {
            let cases = self.cases(&ground).await?;
            devices.push(Device { pace: ground.pace, speeds: ground.speeds, cases });
        }
        Ok(Report {
            host: self.host.clone(),
            inputs: self.inputs.description.clone(),
            image_bytes: self.inputs.rebuilt.bytes,
            server,
            decode_seconds: decode,
            stock_artifact_bytes: stock_bytes,
            devices,
            missing,
        })
    }

    /// The median of three.
    async fn typical(&self, script: &str) -> Result<f64> {
        let mut samples = Vec::new();
        for _ in 0..3 {
            samples.push(run::timed(self.rig.group(Pace::Plain)?, script, &self.rig.logs).await?);
        }
        Ok(median(&samples))
    }

    async fn cases(&self, ground: &Ground) -> Result<Vec<Table>> {
        let mut tables: Vec<Table> = Vec::new();
        for case in Case::ALL {
            let before = case.before(&self.inputs).map(|image| image.path.as_path());
            let work = work(&case.image(&self.inputs).path, before)?;
            let rows: Vec<Row> = self.contenders.iter().map(|one| Row::of(*one)).collect();
            let mut table = Table { title: case.title(), work, rows };
            let content = case.before(&self.inputs).map_or(Content::Nothing, Content::Image);
            self.rig.fill(self.rig.source(), content).await?;
            for repetition in 1..=ground.repetitions {
                for row in &mut table.rows {
                    let slow = row.runs.first().is_some_and(|run| run.seconds > PATIENT);
                    if slow || row.failure.is_some() {
                        continue;
                    }
                    eprint!("{:?} {case:?} {} {repetition}: ", ground.pace, row.contender.id());
                    let first = tables.first().and_then(|first| first.row(row.contender)?.median);
                    match self.once(case, ground, row.contender, first).await {
                        Ok((run, remark)) => {
                            eprintln!("{:.2} s", run.seconds);
                            row.runs.push(run);
                            row.remark = remark;
                        }
                        Err(error) => {
                            eprintln!("{error:#}");
                            row.failure = Some(format!("{error:#}"));
                        }
                    }
                }
            }
            for row in &mut table.rows {
                row.median = medians(&row.runs);
                row.limit = row.median.map(|run| ground.limit(&run, work));
            }
            tables.push(table);
        }
        Ok(tables)
    }

    /// One run from a fresh state. `first` is the contender's first install on this device.
    async fn once(
        &self,
        case: Case,
        ground: &Ground,
        contender: Contender,
        first: Option<Measured>,
    ) -> Result<(Measured, Option<String>)> {
        let image = case.image(&self.inputs);
        let old = case.before(&self.inputs);
        let release = contender.release(image, &self.inputs.old).await?;
        let state = self.scratch.path().join("state");
        let _ = fs::remove_dir_all(&state);
        fs::create_dir_all(&state)?;
        let place = Place {
            rig: &self.rig,
            base: &self.base,
            artifacts: &self.inputs.directory,
            state: &state,
            ctl: &self.ctl,
            old,
        };
        contender.prepare(&place).await?;
        self.rig.fill(self.rig.target(), old.map_or(Content::Nothing, Content::Image)).await?;
        if case == Case::Resume {
            let whole = first.context("there is no first install to be killed at half of")?;
            let end = End::Killed { written: whole.written / 2 };
            self.execute(ground, &place, contender, &release, end).await?;
        }
        let (mut run, log) = self.execute(ground, &place, contender, &release, End::Itself).await?;
        self.rig.expect(image).await?;
        run.verified = contender.verified(&log, image)?;
        let remark = (contender == Contender::Rauc).then(|| rauc::remark(&log)).flatten();
        Ok((run, remark))
    }

    async fn execute(
        &self,
        ground: &Ground,
        place: &Place<'_>,
        contender: Contender,
        release: &Release,
        end: End,
    ) -> Result<(Measured, String)> {
        drop_caches(&self.rig.logs).await?;
        // What the server sends is in its memory, as far as anyone on this side of a network can tell.
        for file in contender.served(release)? {
            warm(&file)?;
        }
        let log = self.rig.logs.join(format!("{}.log", contender.id()));
        let _ = fs::remove_file(&log);
        let task = Task {
            name: contender.id(),
            script: &contender.script(),
            variables: &Contender::variables(release, place),
            log: &log,
        };
        let run = run::measure(&task, self.rig.group(ground.pace)?, &self.rig, &self.server, end).await?;
        Ok((run, fs::read_to_string(&log).unwrap_or_default()))
    }
}

async fn drop_caches(logs: &Path) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", "sync && echo 3 > /proc/sys/vm/drop_caches"]);
    super::tool::run("dropping caches", command, logs).await
}

impl Table {
    fn row(&self, contender: Contender) -> Option<&Row> {
        self.rows.iter().find(|row| row.contender == contender)
    }
}

impl Row {
    fn of(contender: Contender) -> Self {
        Self { contender, runs: Vec::new(), median: None, limit: None, failure: None, remark: None }
    }
}

impl Ground {
    fn limit(&self, run: &Measured, work: Work) -> Limit {
        let fetched = float(run.fetched);
        Limit {
            fetch: fetched / self.server,
            // What is not fetched need not be decoded.
            decode: self.decode * (fetched / float(self.stock)).min(1.0) / self.cores,
            disk: float(work.changed) / self.speeds.write + float(work.data) / self.speeds.read,
        }
    }
}
