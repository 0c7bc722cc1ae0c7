//! `ctl create`: manifests on stdout.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use anyhow::Result;
use clap::{Args, Subcommand};
use monok8s_sdk::manifests::{
    Agent, ConfigMapCatalogs, Controller, DEFAULT_NAMESPACE, ImageSource, Namespace, Readable, to_yaml,
};

use super::{Outcome, output};
use crate::politeness::{ByteRate, PressureLimit, Rate};

/// What to print the manifests of.
#[derive(Debug, Subcommand)]
pub(super) enum Create {
    /// The controller: Namespace, CRDs, ServiceAccount, RBAC and Deployment.
    Controller(ControllerArgs),
    /// The node agents: Namespace, CRDs, ServiceAccount, RBAC, admission policies and DaemonSet.
    Agent(AgentArgs),
}

#[derive(Debug, Args)]
pub(super) struct ControllerArgs {
    #[command(flatten)]
    common: Common,

    /// Let catalogs be read from ConfigMaps of the namespace.
    #[arg(long)]
    allow_configmaps: bool,

    /// Let objects of a kind be read, for health checks: apps/Deployment, or Pod. May be given several times.
    #[arg(long, value_name = "GROUP/KIND")]
    grant_read: Vec<Readable>,
}

#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    #[command(flatten)]
    common: Common,

    /// Disk that holds both slots [default: the disk that the booted root is on].
    #[arg(long, value_name = "PATH")]
    disk: Option<String>,

    /// Directory on the host for the record that outlives reboots, on a partition that both slots share.
    #[arg(long, value_name = "DIRECTORY", value_parser = absolute)]
    data_dir: Option<String>,

    /// Boot loader, as monok8s-agent run takes it.
    #[arg(long, value_name = "BACKEND")]
    boot_backend: Option<String>,

    /// Namespace whose pods agents may list, for the pods checks of trials. May be given several times.
    #[arg(long, value_name = "NAME")]
    pod_checks: Vec<Namespace>,

    #[command(flatten)]
    politeness: PolitenessSettings,
}

/// The flags of monok8s-agent run. Without its variables: those of the pod that this runs in are no
/// wish for what is printed.
#[derive(Debug, Args)]
struct PolitenessSettings {
    /// Most bytes a second that an agent downloads, such as 20MiB, or none [default: none].
    #[arg(long, value_name = "BYTES")]
    download_rate: Option<Rate>,

    /// Most bytes a second that an agent writes to slots and reads from them, together [default: none].
    #[arg(long, value_name = "BYTES", value_parser = Rate::of_a_disk)]
    disk_rate: Option<Rate>,

    /// Agents slow down when tasks of their node wait for disks for more than so many percent of the
    /// time, or none [default: 30].
    #[arg(long, value_name = "PERCENT")]
    io_pressure: Option<PressureLimit>,

    /// Bytes a second that are written and read however busy the disks are [default: 4MiB].
    #[arg(long, value_name = "BYTES", value_parser = ByteRate::of_a_disk)]
    io_floor: Option<ByteRate>,
}

#[derive(Debug, Args)]
struct Common {
    /// Image to run [default: the one that managed nodes ship; the pods then run on managed nodes only].
    #[arg(long, value_name = "REFERENCE", value_parser = image)]
    image: Option<String>,

    /// Namespace to install into.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAMESPACE)]
    namespace: Namespace,
}

impl Common {
    fn image(&self) -> ImageSource {
        self.image.clone().map_or(ImageSource::Local, ImageSource::Registry)
    }
}

impl Create {
    pub(super) fn run(self) -> Result<Outcome> {
        let objects = match self {
            Self::Controller(ControllerArgs { common, allow_configmaps, grant_read }) => {
                let image = common.image();
                let config_maps =
                    if allow_configmaps { ConfigMapCatalogs::Allowed } else { ConfigMapCatalogs::Denied };
                let grant_read = grant_read.into_iter().collect();
                Controller { namespace: common.namespace, image, config_maps, grant_read }.objects()
            }
            Self::Agent(AgentArgs { common, disk, data_dir, boot_backend, pod_checks, politeness }) => {
                let PolitenessSettings { download_rate, disk_rate, io_pressure, io_floor } = politeness;
                let settings = [
                    ("MONOK8S_DISK", disk),
                    ("MONOK8S_DATA_DIR", data_dir),
                    ("MONOK8S_BOOT_BACKEND", boot_backend),
                    ("MONOK8S_DOWNLOAD_RATE", download_rate.map(|rate| rate.to_string())),
                    ("MONOK8S_DISK_RATE", disk_rate.map(|rate| rate.to_string())),
                    ("MONOK8S_IO_PRESSURE", io_pressure.map(|limit| limit.to_string())),
                    ("MONOK8S_IO_FLOOR", io_floor.map(|rate| rate.to_string())),
                ];
                let settings = settings
                    .into_iter()
                    .filter_map(|(name, value)| value.map(|value| (name.to_owned(), value)))
                    .collect();
                let image = common.image();
                let pod_checks = pod_checks.into_iter().collect();
                Agent { namespace: common.namespace, image, settings, pod_checks }.objects()
            }
        };
        output::print(&to_yaml(&objects))?;
        Ok(Outcome::Good)
    }
}

fn image(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { Err("write it like registry.example.com/image:tag".to_owned()) }
}

fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("write an absolute path".to_owned()) }
}
