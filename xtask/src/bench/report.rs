//! What came of it, as JSON and as a Markdown table.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::contender::Contender;
use super::figures::{Limit, Work, float, median};
use super::host_facts::HostFacts;
use super::rig::{Pace, Speeds};
use super::run::Measured;

const MIB: f64 = 1_048_576.0;

/// Everything.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) host: HostFacts,
    pub(super) inputs: String,
    pub(super) image_bytes: u64,
    /// What the file server delivers to one `curl`; bytes per second.
    pub(super) server: f64,
    /// `zstd -dc` of the stock artifact on one core; seconds.
    pub(super) decode_seconds: f64,
    pub(super) stock_artifact_bytes: u64,
    pub(super) devices: Vec<Device>,
    /// Contenders and devices that did not take part, and why.
    pub(super) missing: Vec<Missing>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Missing {
    pub(super) what: String,
    pub(super) why: String,
}

/// The results on one device.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) pace: Pace,
    pub(super) speeds: Speeds,
    pub(super) cases: Vec<Table>,
}

/// The results of one case.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) work: Work,
    pub(super) rows: Vec<Row>,
}

/// The results of one contender.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    #[serde(serialize_with = "id")]
    pub(super) contender: Contender,
    pub(super) runs: Vec<Measured>,
    /// Field by field.
    pub(super) median: Option<Measured>,
    pub(super) limit: Option<Limit>,
    /// Why it has no figures.
    pub(super) failure: Option<String>,
    pub(super) remark: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn id<S: serde::Serializer>(contender: &Contender, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(contender.id())
}

/// The median of each figure.
pub(super) fn medians(runs: &[Measured]) -> Option<Measured> {
    let of = |figure: fn(&Measured) -> f64| median(&runs.iter().map(figure).collect::<Vec<_>>());
    let whole = |figure: fn(&Measured) -> u64| {
        let mut sorted: Vec<u64> = runs.iter().map(figure).collect();
        sorted.sort_unstable();
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        at((sorted.len() - 1) / 2).midpoint(at(sorted.len() / 2))
    };
    (!runs.is_empty()).then(|| Measured {
        seconds: of(|run| run.seconds),
        cpu_seconds: of(|run| run.cpu_seconds),
        fetched: whole(|run| run.fetched),
        requests: whole(|run| run.requests),
        written: whole(|run| run.written),
        slot_written: whole(|run| run.slot_written),
        slot_read: whole(|run| run.slot_read),
        verified: whole(|run| run.verified),
        peak_rss: whole(|run| run.peak_rss),
    })
}

impl Report {
    /// Writes `image.json` and `image.md`.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        for (name, text) in [("image.json", json), ("image.md", self.markdown()?)] {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    pub(super) fn markdown(&self) -> Result<String> {
        let mut text = String::new();
        let out = &mut text;
        let host = &self.host;
        writeln!(out, "# An OS image into the other slot\n")?;
        writeln!(out, "Written by `cargo xtask bench image`; every figure is from one run of it.\n")?;
        writeln!(
            out,
            "- Machine: {}, {} cores, {:.0} GiB of memory, Linux {}, {}; load before the run {}",
            host.cpu,
            host.cores,
            float(host.memory_bytes) / MIB / 1024.0,
            host.kernel,
            host.os,
            host.load_before
        )?;
        writeln!(out, "- Image: {}", self.inputs)?;
        writeln!(
            out,
            "- Stock artifact (`zstd -3`): {:.1} MiB; `zstd -dc` of it takes {:.2} s on one core",
            float(self.stock_artifact_bytes) / MIB,
            self.decode_seconds
        )?;
        writeln!(out, "- File server, over loopback: {:.0} MB/s to `curl -o /dev/null`", self.server / 1e6)?;
        for device in &self.devices {
            device.markdown(out)?;
        }
        writeln!(out, "\n## How to read it\n\n{LEGEND}")?;
        for contender in self.contenders() {
            writeln!(out, "- **{}**: {}", contender.title(), contender.note())?;
        }
        if !self.missing.is_empty() {
            writeln!(out, "\n## Not measured\n")?;
            for Missing { what, why } in &self.missing {
                writeln!(out, "- {what}: {why}")?;
            }
        }
        Ok(text)
    }

    fn contenders(&self) -> Vec<Contender> {
        let rows = || self.devices.iter().flat_map(|device| &device.cases).flat_map(|case| &case.rows);
        Contender::ALL.into_iter().filter(|one| rows().any(|row| row.contender == *one)).collect()
    }

    /// Failures, for the end of the command.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for device in &self.devices {
            for case in &device.cases {
                for row in &case.rows {
                    if let Some(failure) = &row.failure {
                        let place = format!("{}, {:?} device", case.title, device.pace);
                        failures.push(format!("{} ({place}): {failure}", row.contender.id()));
                    }
                }
            }
        }
        failures
    }
}

const LEGEND: &str = "Medians of all runs, which were interleaved (what takes more than 30 seconds ran once); caches were dropped before each, and the slot was \
read and compared after each. A ratio is how many times faster a row is than that shell baseline. Fetched is what \
the file server sent; written is what the programs handed to block devices, temporary files included; verified is \
what was read back from the medium past the page cache and found right, as ours say themselves, and as the script \
does with all of the image; CPU and memory are those of all processes of the updater \
(the file server shares the cores with them). The limit is \
`max(fetch, decode / cores, write + read-back)`, from the speeds above, the bytes that this row fetched, and \
the blocks that are not zero (read back) and not in their place already (written). Where a device reads and writes \
at the same time, whoever reads back while it writes can stay below that. On the throttled device \
cgroup v1 slows down direct I/O and what an updater flushes itself, but not what the kernel writes in the \
background: rows that write through the page cache look faster there than such a device is. Each slot has the \
throttle for itself. A resumed run is the second one, after the first was killed when it had written half of the data \
that a first install writes.\n";

impl Device {
    fn markdown(&self, out: &mut String) -> Result<()> {
        let name = match self.pace {
            Pace::Plain => "Plain loop device",
            Pace::Throttled => "Loop device throttled to 80 MB/s written, 250 MB/s read",
        };
        let Speeds { write, read } = self.speeds;
        writeln!(
            out,
            "\n## {name}\n\n`dd` with direct I/O: {:.0} MB/s written, {:.0} MB/s read.",
            write / 1e6,
            read / 1e6
        )?;
        for case in &self.cases {
            case.markdown(out)?;
        }
        Ok(())
    }
}

impl Table {
    fn markdown(&self, out: &mut String) -> Result<()> {
        writeln!(
            out,
            "\n### {}\n\n{:.0} MiB of blocks are not zero; {:.0} MiB of them are not in their place yet.\n",
            self.title,
            float(self.work.data) / MIB,
            float(self.work.changed) / MIB
        )?;
        writeln!(
            out,
            "| updater | seconds | × pipe | × verified shell | CPU s | fetched MiB | written MiB | verified MiB | \
             peak RSS MiB | limit s | of limit |"
        )?;
        writeln!(out, "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")?;
        for row in &self.rows {
            row.markdown(self, out)?;
        }
        for row in &self.rows {
            if let Some(remark) = &row.remark {
                writeln!(out, "\n{}: {remark}.", row.contender.title())?;
            }
        }
        Ok(())
    }

    /// How many times faster than the baseline, if both have figures.
    fn ratio(&self, baseline: Contender, seconds: f64) -> String {
        let row = self.rows.iter().find(|row| row.contender == baseline);
        row.and_then(|row| row.median)
            .map_or_else(|| "–".to_owned(), |base| format!("{:.2}", base.seconds / seconds))
    }
}

impl Row {
    fn markdown(&self, table: &Table, out: &mut String) -> Result<()> {
        let title = self.contender.title();
        let (Some(run), Some(limit)) = (self.median, self.limit) else {
            let why = self.failure.as_deref().unwrap_or("not run").lines().next().unwrap_or_default();
            writeln!(out, "| {title} | failed: {} | | | | | | | | | |", why.replace('|', "\\|"))?;
            return Ok(());
        };
        let mib = |bytes: u64| float(bytes) / MIB;
        writeln!(
            out,
            "| {title} | {:.2} | {} | {} | {:.2} | {:.1} | {:.0} | {:.0} | {:.1} | {:.2} | {:.2} |",
            run.seconds,
            table.ratio(super::BASELINES[0], run.seconds),
            table.ratio(super::BASELINES[1], run.seconds),
            run.cpu_seconds,
            mib(run.fetched),
            mib(run.written),
            mib(run.verified),
            mib(run.peak_rss),
            limit.seconds(),
            run.seconds / limit.seconds()
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::contender::Hasher;
    use super::*;

    fn row(contender: Contender, seconds: &[f64]) -> Row {
        let runs: Vec<Measured> =
            seconds.iter().map(|seconds| Measured { seconds: *seconds, ..Measured::default() }).collect();
        let limit = Some(Limit { fetch: 1.0, decode: 0.5, disk: 2.0 });
        Row { contender, median: medians(&runs), runs, limit, failure: None, remark: None }
    }

    #[test]
    fn rows_have_ratios_to_the_baselines_and_the_distance_to_the_limit() {
        let shell = Contender::Shell(Hasher::OpenSsl);
        let rows = vec![
            row(Contender::OursWhole, &[3.0, 100.0, 1.0]),
            row(Contender::Pipe, &[6.0]),
            row(shell, &[9.0]),
            Row { failure: Some("a | b\nmore".to_owned()), ..row(Contender::Rauc, &[]) },
        ];
        let table = Table { title: "case", work: Work::default(), rows };
        let mut text = String::new();
        table.markdown(&mut text).unwrap();
        assert!(text.contains("| ours, stock artifact | 3.00 | 2.00 | 3.00 | "), "{text}");
        assert!(text.contains(" | 2.00 | 1.50 |\n"), "{text}");
        assert!(text.contains("| RAUC, local bundle | failed: a \\| b | "), "{text}");
    }
}
