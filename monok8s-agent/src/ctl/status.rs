//! `ctl status` and `ctl explain`: how far upgrades are, and why they wait.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use monok8s_sdk::status::{Cluster, Course, Report};

use super::Outcome;
use super::cluster::{ClusterArgs, names, read};
use super::follow::{self, Followed};
use super::output::{self, Format};

/// Shows how far an upgrade is, what needs a person, and each of its nodes.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// The upgrade [default: every one].
    name: Option<String>,

    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    /// Exits with 3 if an upgrade goes on, 4 if it waits, 5 if it needs a person; of several with the highest.
    #[arg(long)]
    exit_code: bool,

    /// Follows the upgrades until they are done or need a person: on a terminal the whole picture, elsewhere a line
    /// for each change.
    #[arg(short, long, conflicts_with_all = ["output", "from"])]
    watch: bool,

    /// Follows them for so many seconds at most, and exits with 124 then.
    #[arg(long, value_name = "SECONDS", requires = "watch")]
    timeout: Option<u64>,

    #[command(flatten)]
    source: Source,
}

/// Says in sentences why an upgrade is where it is, and what each of its nodes waits for.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The upgrade.
    name: String,

    /// Only this node.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,

    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
struct Source {
    /// Reads a dump instead of a cluster: the output of kubectl get osupgrades,osupgradeprogresses,osnodes,nodes
    /// -o json.
    #[arg(long, value_name = "FILE", conflicts_with = "context")]
    from: Option<PathBuf>,

    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Source {
    fn read(&self) -> Result<Cluster> {
        let Some(path) = &self.from else { return self.cluster.with(async |client| read(&client).await) };
        let dump = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Cluster::from_dump(&dump).with_context(|| format!("cannot use {}", path.display()))
    }
}

impl Status {
    pub(super) fn run(self) -> Result<Outcome> {
        if self.watch {
            let patience = self.timeout.map(Duration::from_secs);
            let followed = self
                .source
                .cluster
                .with(async |client| follow::follow(&client, self.name.as_deref(), patience).await)?;
            return Ok(match followed {
                Followed::ToRest(course) => self.outcome(course),
                Followed::UntilTimeout => Outcome::Code(124),
            });
        }
        let reports = reports(&self.source.read()?, self.name.as_deref())?;
        match (&self.name, reports.as_slice()) {
            (Some(name), []) => bail!("{name} is being deleted"),
            (Some(_), [report]) => self.output.print(report, || report.text())?,
            _ => self.output.print(&reports, || all(&reports))?,
        }
        Ok(self.outcome(worst(&reports)))
    }

    fn outcome(&self, course: Option<Course>) -> Outcome {
        match course.filter(|_| self.exit_code) {
            Some(course) => Outcome::Code(code(course)),
            None => Outcome::Good,
        }
    }
}

/// The reports about the upgrade of this name, or about all.
pub(super) fn reports(cluster: &Cluster, name: Option<&str>) -> Result<Vec<Report>> {
    let names = names(cluster, name)?;
    Ok(names.iter().filter_map(|name| Report::of(cluster, name)).collect())
}

/// What a person has to know first.
pub(super) fn worst(reports: &[Report]) -> Option<Course> {
    reports.iter().map(|report| report.upgrade.course).max_by_key(|course| code(*course))
}

fn all(reports: &[Report]) -> String {
    if reports.is_empty() {
        return "there are no OSUpgrades\n".to_owned();
    }
    reports.iter().map(Report::text).collect::<Vec<_>>().join("\n")
}

fn code(course: Course) -> u8 {
    match course {
        Course::Done => 0,
        Course::Progressing => 3,
        Course::Waiting => 4,
        Course::Stalled => 5,
    }
}

impl Explain {
    pub(super) fn run(self) -> Result<Outcome> {
        let cluster = self.source.read()?;
        names(&cluster, Some(&self.name))?;
        let report = Report::of(&cluster, &self.name).context("it is being deleted")?;
        let text = match &self.node {
            None => report.explanation(),
            Some(node) => match report.explanation_of(node) {
                Some(text) => text,
                None => bail!("{} does not select a node {node}", self.name),
            },
        };
        output::print(&text)?;
        Ok(Outcome::Good)
    }
}
