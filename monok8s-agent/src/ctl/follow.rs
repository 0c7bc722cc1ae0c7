//! `ctl status --watch`: the same report, again and again.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kube::Client;
use monok8s_sdk::status::{Cluster, Course, Report};

use super::cluster::read;
use super::output;
use super::status::{reports, worst};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// How long the cluster gets to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Moves the cursor to the upper left corner, and clears from there on.
const CLEAR: &str = "\x1b[H\x1b[J";

/// How it ended.
pub(super) enum Followed {
    /// Nothing more happens by itself.
    ToRest(Option<Course>),
    /// Something would have, but the time was over.
    UntilTimeout,
}

/// Shows the upgrades until all are done or need a person. A cluster that does not answer any more is asked again.
pub(super) async fn follow(
    client: &Client,
    name: Option<&str>,
    patience: Option<Duration>,
) -> Result<Followed> {
    let began = Instant::now();
    let (mut screen, mut rests) = (Screen::default(), 0);
    loop {
        match look(client).await {
            Ok(cluster) => {
                let reports = reports(&cluster, name)?;
                if let (Some(name), true) = (name, reports.is_empty()) {
                    bail!("{name} is being deleted");
                }
                screen.show(reports)?;
            }
            Err(error) if !screen.looked => return Err(error),
            Err(error) => eprintln!("{error:#}; trying again"),
        }
        // Twice: what was asked for a moment ago may not have been seen yet.
        rests = if screen.is_at_rest() { rests + 1 } else { 0 };
        if rests > 1 {
            return Ok(Followed::ToRest(worst(&screen.reports)));
        }
        if patience.is_some_and(|patience| began.elapsed() >= patience) {
            eprintln!("timed out: {}", screen.last_words());
            return Ok(Followed::UntilTimeout);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One look, which is given up if nobody answers.
async fn look(client: &Client) -> Result<Cluster> {
    match tokio::time::timeout(ANSWER, read(client)).await {
        Ok(read) => read,
        Err(_) => bail!("the cluster does not answer within {}s", ANSWER.as_secs()),
    }
}

/// What was shown last.
#[derive(Default)]
struct Screen {
    reports: Vec<Report>,
    looked: bool,
}

impl Screen {
    fn show(&mut self, reports: Vec<Report>) -> Result<()> {
        if io::stdout().is_terminal() {
            let texts: Vec<_> = reports.iter().map(Report::text_with_bars).collect();
            output::print(&format!("{CLEAR}{}", texts.join("\n")))?;
        } else {
            output::print(&output::lines(self.news(&reports)))?;
        }
        (self.reports, self.looked) = (reports, true);
        Ok(())
    }

    fn news(&self, reports: &[Report]) -> Vec<String> {
        let before =
            |report: &Report| self.reports.iter().find(|before| before.upgrade.name == report.upgrade.name);
        reports.iter().flat_map(|report| report.news_since(before(report))).collect()
    }

    fn is_at_rest(&self) -> bool {
        let rests = |report: &Report| matches!(report.upgrade.course, Course::Done | Course::Stalled);
        self.looked && self.reports.iter().all(rests)
    }

    fn last_words(&self) -> String {
        let waiting = self.reports.iter().find(|report| !matches!(report.upgrade.course, Course::Done));
        match waiting.map(|report| &report.upgrade) {
            Some(upgrade) => format!("{}: {}: {}", upgrade.name, upgrade.reason, upgrade.message),
            None => "there is nothing to follow".to_owned(),
        }
    }
}
